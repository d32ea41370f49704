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
#include "access/xlog.h"
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
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"

PG_FUNCTION_INFO_V1(tsync_run);
PG_FUNCTION_INFO_V1(tsync_try_run);
PG_FUNCTION_INFO_V1(tsync_raise_error);
PG_FUNCTION_INFO_V1(tsync_cancel);

/* Ids are taken from the sequence at once: a caller may want one before the worker runs. */
static int64
next_run_id(void)
{
	int64		run_id;

	SPI_connect();
	tsync_record("SELECT nextval('tablesync.run_run_id_seq')", 0, NULL, NULL, NULL);
	run_id = tsync_result_int64(0, 1);
	SPI_finish();
	return run_id;
}

static void
check_callable(const char *function)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot run %s during recovery", function),
				 errhint("Runs belong on the primary server; they work here after a promotion.")));
	/* our caller's locks, or an uncommitted tablesync_add(), would be in the way */
	PreventInTransactionBlock(true, function);
}

/* Check that a replica exists, is not paused, and is as the worker will see it. */
static void
check_enabled(Oid relid)
{
	bool		found;
	char	   *problem = NULL;
	char	   *hint = NULL;
	MemoryContext caller = CurrentMemoryContext;

	found = tsync_query_latest("SELECT p.problem, p.hint FROM tablesync.all_replicas r, LATERAL (VALUES"
							   " (r.xmin = pg_current_xact_id_if_assigned()::xid,"
							   "  'was added or altered in this transaction', 'Commit before you run it.'),"
							   " (r.home <> tablesync.home(), 'was copied from another database',"
							   "  format('Use tablesync_resume(%L).', r.replica)),"
							   " (NOT r.enabled, 'is paused', format('Use tablesync_resume(%L).', r.replica)),"
							   " (true, NULL, NULL)) p (applies, problem, hint)"
							   " WHERE r.replica = $1::regclass AND p.applies LIMIT 1",
							   OIDOID, ObjectIdGetDatum(relid));
	if (found)
	{
		problem = tsync_latest_text(caller, 1);
		hint = tsync_latest_text(caller, 2);
	}
	SPI_finish();
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is not a replica", tsync_relation_label(relid)),
				 errhint("Add it with tablesync_add(), and commit before you run it.")));
	if (problem)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replica %s %s", tsync_relation_label(relid), problem),
				 errhint("%s", hint)));
}

/* tablesync_cancel(replica): cancel the live run; false if there is none. */
Datum
tsync_cancel(PG_FUNCTION_ARGS)
{
	Oid			relid;
	bool		cancelled = false;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	relid = PG_GETARG_OID(0);
	tsync_check_acts_for_owner(relid);
	if (!tsync_query_latest("SELECT FROM tablesync.all_replicas WHERE replica = $1::regclass",
							OIDOID, ObjectIdGetDatum(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is not a replica", tsync_relation_label(relid)),
				 errhint("Replicas are listed in tablesync_status.")));
	SPI_finish();
	/* the worker may be connected as a former owner, whom the caller may not signal otherwise */
	tsync_query_latest("SELECT pid FROM tablesync.live_runs() WHERE replica = $1::regclass",
					   OIDOID, ObjectIdGetDatum(relid));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int			pid = (int) tsync_result_int64(i, 1);

		cancelled |= pid > 0 && BackendPidGetProc(pid) != NULL && kill(pid, SIGINT) == 0;
	}
	SPI_finish();
	PG_RETURN_BOOL(cancelled);
}

/* Start a worker for a replica with what else it is asked for. */
static BackgroundWorkerHandle *
start_run(Oid relid, Oid owner, int64 run_id, const TsyncStart *wanted)
{
	TsyncStart	start = *wanted;
	BackgroundWorkerHandle *handle;

	start.database = MyDatabaseId;
	start.owner = owner;
	start.replica = relid;
	start.run_id = run_id;
	handle = tsync_start_worker(&start, tsync_relation_label(relid));

	if (handle == NULL)
		tsync_refuse_no_worker(relid);
	return handle;
}

/* Cancel a worker whose caller gives up; it records its run as cancelled. */
static void
cancel_worker(int code, Datum arg)
{
	BackgroundWorkerHandle *handle = (BackgroundWorkerHandle *) DatumGetPointer(arg);
	pid_t		pid;

	if (GetBackgroundWorkerPid(handle, &pid) == BGWH_STARTED)
		kill(pid, SIGINT);
	else
		TerminateBackgroundWorker(handle);	/* before it starts, or while it does: that cancels, too */
}

/* Wait until a worker has ended; if we are cancelled, it is too. */
static void
wait_or_cancel(BackgroundWorkerHandle *handle)
{
	PG_ENSURE_ERROR_CLEANUP(cancel_worker, PointerGetDatum(handle));
	{
		BgwHandleStatus status = WaitForBackgroundWorkerShutdown(handle);

		if (status == BGWH_POSTMASTER_DIED)
			ereport(FATAL,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg("postmaster died while a run was going on")));
	}
	PG_END_ENSURE_ERROR_CLEANUP(cancel_worker, PointerGetDatum(handle));
}

/* Wait until a worker has started; if we are cancelled before, it does not. */
static void
wait_for_start(BackgroundWorkerHandle *handle)
{
	PG_ENSURE_ERROR_CLEANUP(cancel_worker, PointerGetDatum(handle));
	{
		pid_t		pid;

		if (WaitForBackgroundWorkerStartup(handle, &pid) == BGWH_POSTMASTER_DIED)
			ereport(FATAL,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg("postmaster died while a run was starting")));
	}
	PG_END_ENSURE_ERROR_CLEANUP(cancel_worker, PointerGetDatum(handle));
}

/* Run one replica and report on it. */
static TsyncReport *
run_one(Oid relid, bool wait, const TsyncStart *wanted)
{
	Oid			owner = tsync_check_owner(relid);
	int64		run_id;
	BackgroundWorkerHandle *handle;

	check_enabled(relid);
	if ((run_id = tsync_live_run(relid)) != 0)
		return tsync_report_already_running(relid, run_id);

	run_id = next_run_id();
	handle = start_run(relid, owner, run_id, wanted);
	if (!wait)
	{
		wait_for_start(handle);
		return tsync_make_report(relid, run_id, "started", NULL);
	}
	wait_or_cancel(handle);
	return tsync_report_ended(relid, run_id);
}

/* A replica that is being run, as one of several. */
typedef struct OneOfSeveral
{
	Oid			relid;
	bool		wait;
	const TsyncStart *wanted;
	TsyncReport *report;
} OneOfSeveral;

static void
run_one_of_several(void *arg)
{
	OneOfSeveral *one = arg;

	one->report = run_one(one->relid, one->wait, one->wanted);
}

/* A cancel is for all of them. */
static bool
is_only_its_own(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode != ERRCODE_QUERY_CANCELED;
}

/*
 * Run one of several replicas.  What would be an error for a single one, such
 * as an owner that may not log in, must not keep the others from being run.
 */
static TsyncReport *
try_run_one(Oid relid, bool wait, const TsyncStart *wanted)
{
	OneOfSeveral one = {.relid = relid,.wait = wait,.wanted = wanted};
	ErrorData  *edata;
	TsyncReport *report;

	if (tsync_try_inside(run_one_of_several, &one, is_only_its_own, &edata))
		return one.report;
	report = tsync_make_report(relid, 0, "failed", edata->message);
	report->sqlstate = pstrdup(unpack_sql_state(edata->sqlerrcode));
	report->message = edata->message;
	report->detail = edata->detail;
	report->hint = edata->hint;
	report->no_worker = edata->sqlerrcode == ERRCODE_INSUFFICIENT_RESOURCES;
	return report;
}

/* Run a replica that nobody has asked for by name. */
static TsyncReport *
run_if_due(Oid relid, bool wait, const TsyncStart *wanted)
{
	TsyncReport *report = tsync_report_backing_off(relid);

	return report ? report : try_run_one(relid, wait, wanted);
}

/*
 * Open an alert for a replica that got no worker.  As late as possible: others
 * who do the same wait until we commit.
 */
static void
alert_no_worker(TsyncReport *report)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {report->values[0], CStringGetTextDatum(report->message),
	CStringGetTextDatum(report->hint)};

	SPI_connect();
	tsync_record("SELECT tablesync.open_alert($1::regclass, 'worker_unavailable', 'warning', $2, $3)",
				 lengthof(types), types, values, NULL);
	SPI_finish();
}

/* The replicas that tablesync_run() without arguments runs: the caller's. */
static List *
enabled_replicas(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *replicas = NIL;

	tsync_query_latest("SELECT replica::oid FROM tablesync.all_replicas"
					   " WHERE enabled AND home = tablesync.home()"
					   " ORDER BY added_at, replica", OIDOID, ObjectIdGetDatum(InvalidOid));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Oid			relid = (Oid) tsync_result_int64(i, 1);
		MemoryContext spi = MemoryContextSwitchTo(caller);

		if (tsync_acts_for_owner(relid))
			replicas = lappend_oid(replicas, relid);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return replicas;
}

/* tablesync_run(replica, wait, force) */
Datum
tsync_run(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		all = PG_ARGISNULL(0);
	bool		wait = PG_ARGISNULL(1) || PG_GETARG_BOOL(1);
	TsyncStart	wanted = {.force = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2)};
	List	   *replicas;
	List	   *no_worker = NIL;
	List	   *done = NIL;
	ListCell   *lc;

	check_callable("tablesync_run()");
	InitMaterializedSRF(fcinfo, 0);
	replicas = all ? enabled_replicas() : list_make1_oid(PG_GETARG_OID(0));
	foreach(lc, replicas)
	{
		TsyncReport *report;
		ListCell   *member;

		if (list_member_oid(done, lfirst_oid(lc)))
			continue;			/* as a member of a group */
		report = all ? run_if_due(lfirst_oid(lc), wait, &wanted)
			: run_one(lfirst_oid(lc), wait, &wanted);
		if (tsync_has_failed(report))
			tsync_raise_report(report, all ? WARNING : ERROR);
		if (report->no_worker)
			no_worker = lappend(no_worker, report);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, report->values, report->nulls);
		if (!wait || report->nulls[1])
			continue;
		foreach(member, tsync_group_reports(lfirst_oid(lc), DatumGetInt64(report->values[1])))
		{
			TsyncReport *other = lfirst(member);

			done = lappend_oid(done, DatumGetObjectId(other->values[0]));
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, other->values, other->nulls);
		}
	}
	foreach(lc, no_worker)
		alert_no_worker(lfirst(lc));
	return (Datum) 0;
}

/* tablesync.try_run(replica) */
Datum
tsync_try_run(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TsyncStart	wanted = {0};
	TsyncReport *report;
	char	   *texts[5];
	Datum		values[lengthof(texts) + 1];
	bool		nulls[lengthof(texts) + 1] = {false};

	check_callable("tablesync_run()");
	tsync_check_acts_for_owner(PG_GETARG_OID(0));
	InitMaterializedSRF(fcinfo, 0);
	report = run_if_due(PG_GETARG_OID(0), true, &wanted);
	if (report->no_worker)
		alert_no_worker(report);
	texts[0] = report->status;
	texts[1] = report->sqlstate;
	texts[2] = report->nulls[8] ? NULL : TextDatumGetCString(report->values[8]);
	texts[3] = report->detail;
	texts[4] = report->hint;
	values[0] = BoolGetDatum(tsync_has_failed(report));
	for (int i = 0; i < lengthof(texts); i++)
	{
		nulls[i + 1] = texts[i] == NULL;
		values[i + 1] = texts[i] ? CStringGetTextDatum(texts[i]) : (Datum) 0;
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
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

	check_callable("tablesync_verify()");
	report = run_one(relid, true, &wanted);
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
