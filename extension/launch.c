/*-------------------------------------------------------------------------
 *
 * launch.c
 *	  tablesync_run() and tablesync_wait(): ask for a worker, wait, report.
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
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define RESULT_COLUMNS 9
#define WAIT_POLL_MS 20

/* A worker that was asked for records its run well within this time. */
#define WAIT_START_MS 30000

PG_FUNCTION_INFO_V1(tsync_run);
PG_FUNCTION_INFO_V1(tsync_wait);
PG_FUNCTION_INFO_V1(tsync_try_run);
PG_FUNCTION_INFO_V1(tsync_raise_error);

/* How a run went, as far as it is known; texts are NULL where there is none. */
typedef struct RunReport
{
	char	   *status;			/* NULL: no such run */
	char	   *sqlstate;
	char	   *message;
	char	   *detail;
	char	   *hint;
	bool		no_worker;		/* there was none to be had */
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS];
} RunReport;

/*
 * Run a query with what is committed now, and hand its first row to the
 * caller in a SPI connection that the caller must finish.
 */
bool
tsync_query_latest(const char *sql, Oid type, Datum argument)
{
	bool		found;

	SPI_connect();
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args(sql, 1, &type, &argument, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed: %s", SPI_result_code_string(SPI_result));
	found = SPI_processed > 0;
	PopActiveSnapshot();
	return found;
}

/* The run of a replica that is going on, 0 if there is none. */
static int64
live_run(Oid relid)
{
	int64		run_id = 0;
	bool		isnull;

	if (tsync_query_latest("SELECT coalesce(max(r.run_id), -1)"
					 " FROM tablesync.live_runs() l LEFT JOIN tablesync.run r"
					 " ON r.replica = l.replica AND r.pid = l.pid AND r.status = 'running'"
					 " WHERE l.replica = $1::regclass HAVING count(*) > 0",
					 OIDOID, ObjectIdGetDatum(relid)))
		run_id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return run_id;
}

static char *
copy_text(MemoryContext context, int column)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(context, value) : NULL;
}

/* Read the report of a run; status NULL if the run was never recorded. */
static RunReport *
read_report(int64 run_id)
{
	MemoryContext caller = CurrentMemoryContext;
	RunReport  *report = palloc0(sizeof(RunReport));

	memset(report->nulls, true, sizeof(report->nulls));
	if (tsync_query_latest("SELECT replica, run_id, status, replica_rows, inserted, updated, deleted,"
					 " finished_at - started_at, message, sqlstate, detail, hint"
					 " FROM tablesync.run WHERE run_id = $1", INT8OID, Int64GetDatum(run_id)))
	{
		TupleDesc	desc = SPI_tuptable->tupdesc;

		report->status = copy_text(caller, 3);
		report->message = copy_text(caller, 9);
		report->sqlstate = copy_text(caller, 10);
		report->detail = copy_text(caller, 11);
		report->hint = copy_text(caller, 12);
		for (int i = 0; i < RESULT_COLUMNS; i++)
		{
			Datum		value = SPI_getbinval(SPI_tuptable->vals[0], desc, i + 1, &report->nulls[i]);
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

/* Ids are taken from the sequence at once: a caller may want one before the worker runs. */
static int64
next_run_id(void)
{
	int64		run_id;
	bool		isnull;

	SPI_connect();
	if (SPI_execute("SELECT nextval('tablesync.run_run_id_seq')", false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not get a run id");
	run_id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
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

/* The role that a worker for the replica must connect as; checks that we may ask for it. */
Oid
tsync_check_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	if (!has_privs_of_role(GetUserId(), owner))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, tsync_relation_label(relid));

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for role %u", owner);
	if (TSYNC_NEEDS_LOGIN && !((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("owner \"%s\" of replica %s is not permitted to log in",
						NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname), tsync_relation_label(relid)),
				 errdetail("The background worker connects as the replica's owner."),
				 errhint("Use ALTER ROLE .. LOGIN; the role needs no password.")));
	ReleaseSysCache(tuple);
	return owner;
}

/* Check that a replica exists, is not paused, and is as the worker will see it. */
static void
check_enabled(Oid relid)
{
	bool		found;
	char	   *problem = NULL;
	char	   *hint = NULL;
	MemoryContext caller = CurrentMemoryContext;

	found = tsync_query_latest("SELECT p.problem, p.hint FROM tablesync.replica r, LATERAL (VALUES"
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
		problem = copy_text(caller, 1);
		hint = copy_text(caller, 2);
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

/* Start a worker for a run; NULL when the server has no slot for one. */
BackgroundWorkerHandle *
tsync_start_worker(TsyncStart *start, const char *label)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;

	StaticAssertStmt(sizeof(TsyncStart) <= BGW_EXTRALEN, "TsyncStart is too large");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "tablesync", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "tsync_worker_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "tablesync run", sizeof(worker.bgw_type));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "tablesync run " INT64_FORMAT "%s for %s",
			 start->run_id, start->helper ? " (helper)" : "", label);
	memcpy(worker.bgw_extra, start, sizeof(TsyncStart));
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
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
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("no background worker is available for replica %s", tsync_relation_label(relid)),
				 errhint("Increase max_worker_processes, or run fewer replicas at the same time.")));
	return handle;
}

/* Cancel a worker whose caller gives up; it records its run as cancelled. */
static void
cancel_worker(int code, Datum arg)
{
	pid_t		pid;

	if (GetBackgroundWorkerPid((BackgroundWorkerHandle *) DatumGetPointer(arg), &pid) == BGWH_STARTED)
		kill(pid, SIGINT);
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

static void
wait_for_start(BackgroundWorkerHandle *handle)
{
	pid_t		pid;

	if (WaitForBackgroundWorkerStartup(handle, &pid) == BGWH_POSTMASTER_DIED)
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("postmaster died while a run was starting")));
}

static void
set_text(RunReport *report, int column, const char *value)
{
	report->values[column] = CStringGetTextDatum(value);
	report->nulls[column] = false;
}

/* A report for a run that has no record (yet). */
static RunReport *
make_report(Oid relid, int64 run_id, const char *status, const char *message)
{
	RunReport  *report = palloc0(sizeof(RunReport));

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

static RunReport *
report_already_running(Oid relid, int64 run_id)
{
	return make_report(relid, run_id, "already running",
					   run_id > 0 ? psprintf("run " INT64_FORMAT " is going on", run_id)
					   : "another run is going on");
}

/* Report on a worker that has ended. */
static RunReport *
report_ended(Oid relid, int64 run_id)
{
	RunReport  *report = read_report(run_id);
	int64		other;

	if (report->status == NULL)
	{
		if ((other = live_run(relid)) != 0)
			return report_already_running(relid, other);
		report->status = "failed";
		report->message = psprintf("background worker for replica %s ended before it could record its run",
								   tsync_relation_label(relid));
		report->hint = "The server log says why.";
		report->no_worker = true;
	}
	else if (strcmp(report->status, "running") == 0)
	{
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

/* Run one replica and report on it. */
static RunReport *
run_one(Oid relid, bool wait, const TsyncStart *wanted)
{
	Oid			owner = tsync_check_owner(relid);
	int64		run_id;
	BackgroundWorkerHandle *handle;

	check_enabled(relid);
	if ((run_id = live_run(relid)) != 0)
		return report_already_running(relid, run_id);

	run_id = next_run_id();
	handle = start_run(relid, owner, run_id, wanted);
	if (!wait)
	{
		wait_for_start(handle);
		return make_report(relid, run_id, "started", NULL);
	}
	wait_or_cancel(handle);
	return report_ended(relid, run_id);
}

/*
 * Run one of several replicas.  What would be an error for a single one, such
 * as an owner that may not log in, must not keep the others from being run.
 */
static RunReport *
try_run_one(Oid relid, bool wait, const TsyncStart *wanted)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	RunReport  *volatile report = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		report = run_one(relid, wait, wanted);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		report = make_report(relid, 0, "failed", edata->message);
		report->sqlstate = pstrdup(unpack_sql_state(edata->sqlerrcode));
		report->message = edata->message;
		report->detail = edata->detail;
		report->hint = edata->hint;
		report->no_worker = edata->sqlerrcode == ERRCODE_INSUFFICIENT_RESOURCES;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return report;
}

/* A report for a replica that is to be left alone for now, NULL if it isn't. */
static RunReport *
report_backing_off(Oid relid)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *message = NULL;

	if (tsync_query_latest("SELECT format('consecutive failures: %s; the next try is due at %s;"
					 " tablesync_run(%L) does not wait',"
					 " consecutive_failures, date_trunc('second', retry_after), replica)"
					 " FROM tablesync.replica"
					 " WHERE replica = $1::regclass AND retry_after > clock_timestamp()",
					 OIDOID, ObjectIdGetDatum(relid)))
		message = copy_text(caller, 1);
	SPI_finish();
	return message ? make_report(relid, 0, "backing off", message) : NULL;
}

/* Run a replica that nobody has asked for by name. */
static RunReport *
run_if_due(Oid relid, bool wait, const TsyncStart *wanted)
{
	RunReport  *report = report_backing_off(relid);

	return report ? report : try_run_one(relid, wait, wanted);
}

/*
 * Open an alert for a replica that got no worker.  As late as possible: others
 * who do the same wait until we commit.
 */
static void
alert_no_worker(RunReport *report)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {report->values[0], CStringGetTextDatum(report->message),
	CStringGetTextDatum(report->hint)};

	SPI_connect();
	SPI_execute_with_args("SELECT tablesync.open_alert($1::regclass, 'worker_unavailable', 'warning', $2, $3)",
						  lengthof(types), types, values, NULL, false, 0);
	SPI_finish();
}

static bool
has_failed(RunReport *report)
{
	return strcmp(report->status, "failed") == 0 || strcmp(report->status, "cancelled") == 0 ||
		strcmp(report->status, "crashed") == 0;
}

/* Raise the worker's error as our own. */
static void
raise_report(RunReport *report, int elevel)
{
	int			sqlstate = ERRCODE_INTERNAL_ERROR;

	if (report->sqlstate && strlen(report->sqlstate) == 5)
		sqlstate = MAKE_SQLSTATE(report->sqlstate[0], report->sqlstate[1], report->sqlstate[2],
								 report->sqlstate[3], report->sqlstate[4]);
	ereport(elevel,
			(errcode(sqlstate),
			 errmsg_internal("%s", report->message ? report->message : "run failed"),
			 report->detail ? errdetail_internal("%s", report->detail) : 0,
			 report->hint ? errhint("%s", report->hint) : 0));
}

/* The replicas that tablesync_run() without arguments runs. */
static List *
enabled_replicas(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *replicas = NIL;

	tsync_query_latest("SELECT replica::oid FROM tablesync.replica"
				 " WHERE enabled AND home = tablesync.home() AND tablesync.owns(replica)"
				 " ORDER BY added_at, replica", OIDOID, ObjectIdGetDatum(InvalidOid));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		relid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		MemoryContext spi = MemoryContextSwitchTo(caller);

		replicas = lappend_oid(replicas, DatumGetObjectId(relid));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return replicas;
}

/* The replicas of a group other than one, with their runs of that worker. */
static List *
group_reports(Oid relid, int64 run_id)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *replicas = NIL;
	List	   *run_ids = NIL;
	List	   *reports = NIL;
	ListCell   *lc;
	ListCell   *lc2;

	tsync_query_latest("SELECT replica::oid, run_id FROM tablesync.run"
				 " WHERE group_run_id = $1 AND run_id <> $1 ORDER BY run_id", INT8OID, Int64GetDatum(run_id));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		replica = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		int64		member_run = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
		MemoryContext spi = MemoryContextSwitchTo(caller);

		replicas = lappend_oid(replicas, DatumGetObjectId(replica));
		run_ids = lappend(run_ids, memcpy(palloc(sizeof(int64)), &member_run, sizeof(int64)));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	forboth(lc, replicas, lc2, run_ids)
		reports = lappend(reports, report_ended(lfirst_oid(lc), *(int64 *) lfirst(lc2)));
	return reports;
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
		RunReport  *report;
		ListCell   *member;

		if (list_member_oid(done, lfirst_oid(lc)))
			continue;			/* as a member of a group */
		report = all ? run_if_due(lfirst_oid(lc), wait, &wanted)
			: run_one(lfirst_oid(lc), wait, &wanted);
		if (has_failed(report))
			raise_report(report, all ? WARNING : ERROR);
		if (report->no_worker)
			no_worker = lappend(no_worker, report);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, report->values, report->nulls);
		if (!wait || report->nulls[1])
			continue;
		foreach(member, group_reports(lfirst_oid(lc), DatumGetInt64(report->values[1])))
		{
			RunReport  *other = lfirst(member);

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
	RunReport  *report;
	char	   *texts[5];
	Datum		values[lengthof(texts) + 1];
	bool		nulls[lengthof(texts) + 1] = {false};

	check_callable("tablesync_run()");
	InitMaterializedSRF(fcinfo, 0);
	report = run_if_due(PG_GETARG_OID(0), true, &wanted);
	if (report->no_worker)
		alert_no_worker(report);
	texts[0] = report->status;
	texts[1] = report->sqlstate;
	texts[2] = report->nulls[8] ? NULL : TextDatumGetCString(report->values[8]);
	texts[3] = report->detail;
	texts[4] = report->hint;
	values[0] = BoolGetDatum(has_failed(report));
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
	RunReport	report = {
		.sqlstate = text_argument(fcinfo, 0),
		.message = text_argument(fcinfo, 1),
		.detail = text_argument(fcinfo, 2),
		.hint = text_argument(fcinfo, 3)
	};

	raise_report(&report, ERROR);
	PG_RETURN_VOID();
}

/* Verify a replica, and wait; returns the id of the run. */
int64
tsync_run_verify(Oid relid, bool repair)
{
	TsyncStart	wanted = {.verify = true,.repair = repair};
	RunReport  *report;

	check_callable("tablesync_verify()");
	report = run_one(relid, true, &wanted);
	if (has_failed(report))
		raise_report(report, ERROR);
	if (strcmp(report->status, "succeeded") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("replica %s can't be verified now", tsync_relation_label(relid)),
				 errdetail_internal("%s.", TextDatumGetCString(report->values[8])),
				 errhint("Verify it when that run has ended, or use tablesync_cancel(%s).",
						 quote_literal_cstr(tsync_relation_label(relid)))));
	return DatumGetInt64(report->values[1]);
}

/* The recorded status of a run, NULL if there is none; "live" if its worker is. */
static char *
recorded_status(int64 run_id, bool *live)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *status = NULL;
	bool		isnull;

	if (tsync_query_latest("SELECT status, EXISTS (SELECT FROM tablesync.live_runs() l"
					 " WHERE l.replica = r.replica AND l.pid = r.pid)"
					 " FROM tablesync.run r WHERE run_id = $1", INT8OID, Int64GetDatum(run_id)))
	{
		status = copy_text(caller, 1);
		*live = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	}
	SPI_finish();
	return status;
}

/*
 * The status of a run as a user should see it.  A worker may end between the
 * snapshot that saw its run as running and the look at its lock, so a crash
 * is what a second look still sees.
 */
static char *
run_status(int64 run_id)
{
	bool		live = false;
	char	   *status = recorded_status(run_id, &live);

	if (status == NULL || live || strcmp(status, "running") != 0)
		return status;
	status = recorded_status(run_id, &live);
	return status && strcmp(status, "running") == 0 ? "crashed" : status;
}

/* tablesync_wait(run_id, timeout) */
Datum
tsync_wait(PG_FUNCTION_ARGS)
{
	int64		run_id;
	TimestampTz started = GetCurrentTimestamp();
	TimestampTz until = DT_NOEND;
	char	   *status;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	run_id = PG_GETARG_INT64(0);
	if (!PG_ARGISNULL(1))
		until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														TimestampTzGetDatum(started),
														PG_GETARG_DATUM(1)));
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

		status = run_status(run_id);
		if (status == NULL && TimestampDifferenceExceeds(started, now, WAIT_START_MS))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("run " INT64_FORMAT " does not exist", run_id),
					 errhint("See tablesync_runs, or the server log if its worker never started.")));
		if ((status != NULL && strcmp(status, "running") != 0) || now >= until)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 WAIT_POLL_MS, tsync_wait_event("TablesyncWait"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (status == NULL)
		status = "started";
	PG_RETURN_TEXT_P(cstring_to_text(status));
}
