/*-------------------------------------------------------------------------
 *
 * launch.c
 *	  tablesync_run(): ask for a worker, and wait until it has ended.
 *
 * The worker says how its run went in tablesync.run, which survives both of
 * us; nothing is passed back through shared memory.  A snapshot taken after
 * the worker has ended reads it, whatever the caller's isolation level.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "api/api.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

TSYNC_FUNCTION_INFO_V1(tsync_run);
TSYNC_FUNCTION_INFO_V1(tsync_raise_error);

/* Wait until a worker has ended; if we are cancelled, it is too. */
static void
wait_or_cancel(BackgroundWorkerHandle *handle)
{
	PG_ENSURE_ERROR_CLEANUP(tsync_cancel_worker, PointerGetDatum(handle));
	{
		pid_t		pid;

		while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
			tsync_wait_for_process(TSYNC_UNTIL_WOKEN, WAIT_EVENT_BGWORKER_SHUTDOWN);
	}
	PG_END_ENSURE_ERROR_CLEANUP(tsync_cancel_worker, PointerGetDatum(handle));
}

/* Run one replica with a worker of its own, and report on it. */
static TsyncReport *
run_one(Oid relid, const TsyncStart *wanted)
{
	TsyncReport *report = tsync_check_runnable(relid);
	TsyncStart	start = *wanted;

	if (report)
		return report;
	start.database = MyDatabaseId;
	start.owner = tsync_check_owner(relid);
	start.replica = relid;
	start.run_id = tsync_next_run_id();
	if (!start.verify && tsync_is_run_again(relid, start.owner))
	{
		if (!tsync_run_again(&start) && (report = tsync_check_runnable(relid)) == NULL)
			report = tsync_report_already_running(relid, -1);
		return report ? report : tsync_report_ended(relid, start.run_id);
	}
	wait_or_cancel(tsync_start_or_wait(&start, tsync_relation_label(relid), relid));
	return tsync_report_ended(relid, start.run_id);
}

/* Return the report of a run, and those of others in its group. */
static void
return_reports(ReturnSetInfo *result, Oid relid, TsyncReport *report, bool grouped)
{
	ListCell   *lc;

	if (tsync_has_failed(report))
		tsync_raise_report(report, ERROR);
	tuplestore_putvalues(result->setResult, result->setDesc, report->values, report->nulls);
	if (!grouped || report->nulls[1])
		return;
	foreach(lc, tsync_group_reports(relid, DatumGetInt64(report->values[1])))
	{
		TsyncReport *other = lfirst(lc);

		tuplestore_putvalues(result->setResult, result->setDesc, other->values, other->nulls);
	}
}

/* tablesync_run(replica, wait, force) */
Datum
tsync_run(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		wait = PG_ARGISNULL(1) || PG_GETARG_BOOL(1);
	TsyncStart	wanted = {.force = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2)};
	TsyncReport *report = NULL;

	tsync_check_callable("tablesync_run()");
	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		tsync_run_all(rsinfo, wait, wanted.force);
	else
		report = wait ? run_one(PG_GETARG_OID(0), &wanted) : tsync_queue_replica(PG_GETARG_OID(0), wanted.force);
	if (wait)
		(void) tsync_start_serving();	/* what has made room for us, or what a crash has left */
	if (report)
		return_reports(rsinfo, PG_GETARG_OID(0), report, wait);
	return (Datum) 0;
}

static char *
text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* tablesync.raise_error(sqlstate, message, detail, hint) */
Datum
tsync_raise_error(PG_FUNCTION_ARGS)
{
	TsyncReport report = {
		.sqlstate = text_argument(fcinfo, 0),
		.message = text_argument(fcinfo, 1),
		.detail = text_argument(fcinfo, 2),
		.hint = text_argument(fcinfo, 3)
	};

	tsync_raise_report(&report, ERROR);
	PG_RETURN_VOID();
}

/* Verify a replica, and wait; returns the id of the run. */
int64
tsync_run_verify(Oid relid, bool repair)
{
	TsyncStart	wanted = {.verify = true,.repair = repair};
	TsyncReport *report;

	tsync_check_callable("tablesync_verify()");
	report = run_one(relid, &wanted);
	if (tsync_has_failed(report))
		tsync_raise_report(report, ERROR);
	if (strcmp(report->status, "succeeded") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("replica %s can't be verified now", tsync_relation_label(relid)),
				 errdetail_internal("%s.", TextDatumGetCString(report->values[8])),
				 errhint("Verify it when that run has ended, or use tablesync_cancel(%s).",
						 quote_literal_cstr(tsync_relation_label(relid)))));
	return DatumGetInt64(report->values[1]);
}
