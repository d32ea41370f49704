/*-------------------------------------------------------------------------
 *
 * alert.c
 *	  What follows from the end of a run, and calls of the alert handler.
 *
 * Alerts are rows (alert.sql).  A worker opens and closes them after its run has
 * been recorded, in a transaction of its own: nothing that goes wrong here
 * changes what became of the run.
 *
 * The user's handler is called by another worker still, so that neither the
 * run nor the caller of tablesync_run() waits for it.  That worker is connected as
 * the replica's owner, waits until the transaction that opened or closed the
 * alert has committed, and calls the handler in one transaction per alert.  An
 * alert that finds no worker is told with the next one, or by
 * tablesync.watch().
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/sequence.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "process/process.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "watch/watch.h"

/* A handler that takes longer is cancelled. */
#define HANDLER_TIMEOUT_MS 10000

/* How long to wait for the transaction that opened an alert. */
#define COMMIT_WAIT_MS 10000
#define COMMIT_POLL_MS 20

TSYNC_FUNCTION_INFO_V1(tsync_start_alert_worker);
TSYNC_FUNCTION_INFO_V1(tsync_log_alert);

/* What an alert worker is started with; travels in BackgroundWorker.bgw_extra. */
typedef struct AlertStart
{
	Oid			database;
	Oid			owner;
	TransactionId opened_by;
} AlertStart;

/*
 * Open and close alerts after a run.  Most runs are fine, and the one before
 * was too: then this is one query that finds nothing to do.
 */
void
tsync_settle_run(int64 run_id)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(run_id)};

	PG_TRY();
	{
		tsync_begin();
		tsync_record("SELECT tablesync.settle_run(r.run_id)"
					 " FROM tablesync.all_runs r JOIN tablesync.all_replicas t ON t.replica = r.replica"
					 " WHERE r.run_id = $1"
					 " AND (r.status <> 'succeeded' OR t.consecutive_failures > 0 OR t.retry_after IS NOT NULL"
					 " OR EXISTS (SELECT FROM tablesync.all_alerts a"
					 "  WHERE a.replica = r.replica AND a.closed_at IS NULL)"
					 " OR EXISTS (SELECT FROM tablesync.all_runs c"
					 "  WHERE c.replica = r.replica AND c.status = 'crashed' AND NOT c.settled))",
					 lengthof(types), types, values, NULL);
		tsync_commit();
	}
	PG_CATCH();
	{
		/* tablesync.watch() will find it */
		tsync_abort();
		MemoryContextSwitchTo(caller);
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
}

/* tablesync.log_alert(opened, message, hint): RAISE, without lines of context */
Datum
tsync_log_alert(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_VOID();
	ereport(PG_GETARG_BOOL(0) ? WARNING : LOG,
			(errmsg_internal("%s", text_to_cstring(PG_GETARG_TEXT_PP(1))),
			 PG_ARGISNULL(2) ? 0 : errhint("%s", text_to_cstring(PG_GETARG_TEXT_PP(2))),
			 errhidecontext(true), errhidestmt(true)));
	PG_RETURN_VOID();
}

/* tablesync.start_alert_worker(replica) */
Datum
tsync_start_alert_worker(PG_FUNCTION_ARGS)
{
	static AlertStart last;		/* one worker per transaction and owner will do */
	AlertStart	start = {.database = MyDatabaseId,.owner = tsync_owner_who_may_log_in(PG_GETARG_OID(0)),
	.opened_by = GetTopTransactionIdIfAny()};
	bool		started;

	if (!OidIsValid(start.owner))
		PG_RETURN_BOOL(false);
	if (TransactionIdIsValid(start.opened_by) &&
		start.opened_by == last.opened_by && start.owner == last.owner)
		PG_RETURN_BOOL(true);

	StaticAssertStmt(sizeof(AlertStart) <= TSYNC_EXTRA_BYTES, "AlertStart is too large");
	started = tsync_start_process("tsync_alert_main", "tablesync alert", "tablesync alert", &start, sizeof(start), (Datum) 0, false) != NULL;
	if (started)
		last = start;
	PG_RETURN_BOOL(started);
}

static void
prepare_alert_session(void)
{
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("row_security", "on", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
}

/* Wait until a transaction has ended; false if it takes too long. */
static bool
wait_for_transaction(TransactionId xid)
{
	for (int waited = 0; TransactionIdIsValid(xid) && TransactionIdIsInProgress(xid);
		 waited += COMMIT_POLL_MS)
	{
		if (waited >= COMMIT_WAIT_MS)
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 COMMIT_POLL_MS, tsync_wait_event("TablesyncAlertCommit"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

/* Take the next alert to tell about, in a transaction of its own; NULL if there is none. */
static char *
claim_alert(void)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(GetUserId())};
	char	   *payload;

	tsync_begin_in(CurrentMemoryContext);
	if (tsync_record("SELECT tablesync.claim_alert($1)", lengthof(types), types, values, NULL) != 1)
		elog(ERROR, "could not claim an alert");
	payload = tsync_result_text(0, 1);
	tsync_commit();
	return payload;
}

/*
 * Refuse a handler of somebody else.  SECURITY DEFINER would not help: what it
 * leaves behind, a deferred trigger for instance, runs when its rights have
 * ended, with those of the replica's owner.
 */
static void
check_handler(Form_pg_proc proc)
{
	if (proc->prokind != PROKIND_FUNCTION || proc->proretset || proc->pronargs != 1 ||
		proc->proargtypes.values[0] != JSONBOID)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s is not a function that takes one jsonb", tsync_alert_handler)));
	if (proc->proowner != GetUserId() && !superuser_arg(proc->proowner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s belongs neither to the replica's owner nor to a superuser",
						tsync_alert_handler)));
}

/* Find the handler, and see that it may be called. */
static Oid
find_handler(void)
{
	Oid			function = DatumGetObjectId(DirectFunctionCall1(regprocedurein,
																CStringGetDatum(tsync_alert_handler)));
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	check_handler((Form_pg_proc) GETSTRUCT(tuple));
	ReleaseSysCache(tuple);
	if (tsync_function_aclcheck(function, GetUserId(), ACL_EXECUTE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, tsync_alert_handler);
	return function;
}

/* Is what runs, or has failed, the handler's code? */
static bool in_handler = false;

/* Call the handler in a transaction of its own. */
static void
call_handler(char *payload)
{
	FmgrInfo	handler;

	LOCAL_FCINFO(fcinfo, 1);

	in_handler = false;
	tsync_begin();
	enable_timeout_after(STATEMENT_TIMEOUT, HANDLER_TIMEOUT_MS);
	fmgr_info(find_handler(), &handler);
	in_handler = true;
	InitFunctionCallInfoData(*fcinfo, &handler, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = DirectFunctionCall1(jsonb_in, CStringGetDatum(payload));
	fcinfo->args[0].isnull = false;
	(void) FunctionCallInvoke(fcinfo);	/* NULL is as good as anything */
	tsync_commit();
	disable_timeout(STATEMENT_TIMEOUT, false);
}

/* Let nothing that a handler leaves in the session act on what follows, like DISCARD ALL. */
static void
forget_session(void)
{
	tsync_begin();
	ResetAllOptions();
	prepare_alert_session();
	LockReleaseAll(USER_LOCKMETHOD, true);
	Async_UnlistenAll();
	ResetPlanCache();
	ResetTempTableNamespace();
	ResetSequenceCaches();
	tsync_commit();
}

/* Call the handler; whatever it does wrong is only logged. */
static void
try_call_handler(char *payload)
{
	MemoryContext caller = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;

	PG_TRY();
	{
		call_handler(payload);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		edata = CopyErrorData();
		FlushErrorState();
		disable_timeout(STATEMENT_TIMEOUT, false);
		tsync_abort();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	if (edata == NULL)
		return;
	/* the timeout may have come as the call ended: it is not for what comes next */
	QueryCancelPending = false;
	ereport(WARNING,
			(errcode(edata->sqlerrcode),
			 in_handler ? errmsg("tablesync.alert_handler %s failed with SQLSTATE %s",
								 tsync_alert_handler, unpack_sql_state(edata->sqlerrcode)) :
			 errmsg("tablesync.alert_handler %s can't be called: %s", tsync_alert_handler, edata->message),
			 in_handler ? errdetail("Its own message is not logged: it may quote rows.") : 0));
}

/* Tell the handler about all alerts of one owner that it has not been told about. */
void
tsync_alert_main(Datum main_arg)
{
	AlertStart	start;
	char	   *payload;

	tsync_read_start(&start, sizeof(start));
	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, start.owner, TSYNC_CONNECT_FLAGS);
	prepare_alert_session();

	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext, "tablesync alert",
												ALLOCSET_DEFAULT_SIZES));
	/* until then its alerts can't be seen */
	if (tsync_alert_handler[0] == '\0' || !wait_for_transaction(start.opened_by))
		proc_exit(0);
	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	while ((payload = claim_alert()) != NULL)
	{
		/* claimed and committed before the call: at most once, whatever becomes of it */
		try_call_handler(payload);
		forget_session();
	}
	proc_exit(0);
}
