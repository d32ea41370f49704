/*-------------------------------------------------------------------------
 *
 * report.c
 *	  What tablesync_run() tells its caller about a run.
 *
 * All of it comes from tablesync.run, which the worker has written; a run that
 * has left no trace there, or no end, is told apart by its lock.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "api/api.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/*
 * Run a query on our tables with what is committed now, and hand its first row
 * to the caller in a SPI connection that the caller must finish.  It runs with
 * the rights of the extension's owner: whether the current user may know the
 * answer is for the caller to see to.
 */
bool
tsync_query_latest_with(const char *sql, int nargs, Oid *types, Datum *arguments)
{
	TsyncIdentity caller;
	bool		found;

	SPI_connect();
	caller = tsync_assume_identity(tsync_extension_owner());
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args(sql, nargs, types, arguments, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed: %s", SPI_result_code_string(SPI_result));
	found = SPI_processed > 0;
	PopActiveSnapshot();
	tsync_resume_identity(caller);
	return found;
}

bool
tsync_query_latest(const char *sql, Oid type, Datum argument)
{
	return tsync_query_latest_with(sql, 1, &type, &argument);
}

char *
tsync_latest_text(MemoryContext context, int column)
{
	char	   *value = tsync_result_text(0, column);

	return value ? MemoryContextStrdup(context, value) : NULL;
}

/* The run of a replica that is going on, 0 if there is none. */
int64
tsync_live_run(Oid relid)
{
	int64		run_id = 0;
	bool		live = tsync_query_latest("SELECT FROM tablesync.live_runs() l WHERE l.replica = $1::regclass", OIDOID, ObjectIdGetDatum(relid));

	SPI_finish();
	if (!live)
		return 0;				/* as it mostly is, and quickly seen */
	if (tsync_query_latest("SELECT coalesce(max(r.run_id), -1)"
						   " FROM tablesync.live_runs() l LEFT JOIN tablesync.all_runs r"
						   " ON r.replica = l.replica AND r.pid = l.pid AND r.status = 'running'"
						   " WHERE l.replica = $1::regclass HAVING count(*) > 0",
						   OIDOID, ObjectIdGetDatum(relid)))
		run_id = tsync_result_int64(0, 1);
	SPI_finish();
	return run_id;
}

/* Read the report of a run; status NULL if the run was never recorded. */
static TsyncReport *
read_report(int64 run_id)
{
	MemoryContext caller = CurrentMemoryContext;
	TsyncReport *report = palloc0(sizeof(TsyncReport));

	memset(report->nulls, true, sizeof(report->nulls));
	if (tsync_query_latest("SELECT replica, run_id, status, replica_rows, inserted, updated, deleted,"
						   " finished_at - started_at, message, sqlstate, detail, hint"
						   " FROM tablesync.all_runs WHERE run_id = $1", INT8OID, Int64GetDatum(run_id)))
	{
		TupleDesc	desc = SPI_tuptable->tupdesc;

		report->status = tsync_latest_text(caller, 3);
		report->message = tsync_latest_text(caller, 9);
		report->sqlstate = tsync_latest_text(caller, 10);
		report->detail = tsync_latest_text(caller, 11);
		report->hint = tsync_latest_text(caller, 12);
		for (int i = 0; i < RESULT_COLUMNS; i++)
		{
			Datum		value = tsync_result_datum(0, i + 1, &report->nulls[i]);
			MemoryContext spi = MemoryContextSwitchTo(caller);

			if (!report->nulls[i])
				report->values[i] = datumCopy(value, TupleDescAttr(desc, i)->attbyval,
											  TupleDescAttr(desc, i)->attlen);
			MemoryContextSwitchTo(spi);
		}
	}
	SPI_finish();
	return report;
}

static void
set_text(TsyncReport *report, int column, const char *value)
{
	report->values[column] = CStringGetTextDatum(value);
	report->nulls[column] = false;
}

/* A report for a run that has no record (yet). */
TsyncReport *
tsync_make_report(Oid relid, int64 run_id, const char *status, const char *message)
{
	TsyncReport *report = palloc0(sizeof(TsyncReport));

	memset(report->nulls, true, sizeof(report->nulls));
	report->status = pstrdup(status);
	report->values[0] = ObjectIdGetDatum(relid);
	report->nulls[0] = false;
	if (run_id > 0)
	{
		report->values[1] = Int64GetDatum(run_id);
		report->nulls[1] = false;
	}
	set_text(report, 2, status);
	if (message)
		set_text(report, 8, message);
	return report;
}

TsyncReport *
tsync_report_already_running(Oid relid, int64 run_id)
{
	return tsync_make_report(relid, run_id, "already running",
							 run_id > 0 ? psprintf("run " INT64_FORMAT " is going on", run_id)
							 : "another run is going on");
}

/* Report on a worker that has ended. */
TsyncReport *
tsync_report_ended(Oid relid, int64 run_id)
{
	TsyncReport *report = read_report(run_id);
	int64		other;

	if (report->status == NULL)
	{
		if ((other = tsync_live_run(relid)) != 0)
			return tsync_report_already_running(relid, other);
		report->status = "failed";
		report->message = psprintf("background worker for replica %s ended before it could record its run",
								   tsync_relation_label(relid));
		report->hint = "The server log says why.";
		report->no_worker = true;
	}
	else if (strcmp(report->status, "running") == 0 && (other = tsync_live_run(relid)) == run_id)
		return tsync_report_already_running(relid, other);	/* by another worker than the caller's */
	else if (strcmp(report->status, "running") == 0)
	{
		/* its worker has ended, and nobody else would have left it so */
		report->status = "crashed";
		report->message = psprintf("background worker for replica %s ended unexpectedly",
								   tsync_relation_label(relid));
		report->hint = "The server log says why. The replica is as it was; the next run goes on.";
	}
	else
		return report;

	report->values[0] = ObjectIdGetDatum(relid);
	report->values[1] = Int64GetDatum(run_id);
	report->nulls[0] = report->nulls[1] = false;
	set_text(report, 2, report->status);
	set_text(report, 8, report->message);
	return report;
}

/* A report for a replica that is to be left alone for now, NULL if it isn't. */
TsyncReport *
tsync_report_backing_off(Oid relid)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *message = NULL;

	if (tsync_query_latest("SELECT format('consecutive failures: %s; the next try is due at %s;"
						   " tablesync_run(%L) does not wait',"
						   " consecutive_failures, date_trunc('second', retry_after), replica)"
						   " FROM tablesync.all_replicas"
						   " WHERE replica = $1::regclass AND retry_after > clock_timestamp()",
						   OIDOID, ObjectIdGetDatum(relid)))
		message = tsync_latest_text(caller, 1);
	SPI_finish();
	return message ? tsync_make_report(relid, 0, "backing off", message) : NULL;
}

bool
tsync_has_failed(TsyncReport *report)
{
	return strcmp(report->status, "failed") == 0 || strcmp(report->status, "cancelled") == 0 ||
		strcmp(report->status, "crashed") == 0;
}

/* Is a text an SQLSTATE, and not one of success, warning or no data? */
static bool
is_error_code(const char *sqlstate)
{
	return strlen(sqlstate) == 5 && strspn(sqlstate, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5 &&
		strncmp(sqlstate, "00", 2) != 0 && strncmp(sqlstate, "01", 2) != 0 && strncmp(sqlstate, "02", 2) != 0;
}

/* Raise the worker's error as our own. */
void
tsync_raise_report(TsyncReport *report, int elevel)
{
	int			sqlstate = ERRCODE_INTERNAL_ERROR;

	if (report->sqlstate && is_error_code(report->sqlstate))
		sqlstate = MAKE_SQLSTATE(report->sqlstate[0], report->sqlstate[1], report->sqlstate[2],
								 report->sqlstate[3], report->sqlstate[4]);
	ereport(elevel,
			(errcode(sqlstate),
			 errmsg_internal("%s", report->message ? report->message : "run failed"),
			 report->detail ? errdetail_internal("%s", report->detail) : 0,
			 report->hint ? errhint("%s", report->hint) : 0));
}

/* The replicas of a group other than one, with their runs of that worker. */
List *
tsync_group_reports(Oid relid, int64 run_id)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *replicas = NIL;
	List	   *run_ids = NIL;
	List	   *reports = NIL;
	ListCell   *lc;
	ListCell   *lc2;

	tsync_query_latest("SELECT replica::oid, run_id FROM tablesync.all_runs"
					   " WHERE group_run_id = $1 AND run_id <> $1 ORDER BY run_id", INT8OID, Int64GetDatum(run_id));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Oid			replica = (Oid) tsync_result_int64(i, 1);
		int64		member_run = tsync_result_int64(i, 2);
		MemoryContext spi = MemoryContextSwitchTo(caller);

		replicas = lappend_oid(replicas, replica);
		run_ids = lappend(run_ids, memcpy(palloc(sizeof(int64)), &member_run, sizeof(int64)));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	forboth(lc, replicas, lc2, run_ids)
		reports = lappend(reports, tsync_report_ended(lfirst_oid(lc), *(int64 *) lfirst(lc2)));
	return reports;
}
