/*-------------------------------------------------------------------------
 *
 * request.c
 *	  What asking for a run needs: who may, what is in the way, and a process.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/transam.h"
#include "access/xact.h"
#include "api/api.h"
#include "catalog/pg_type.h"
#include "compat.h"
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
#include "utils/timestamp.h"

/* How often to look for a process. */
#define START_POLL_MS 100

/* Ids are taken from the sequence at once: a caller may want one before the worker runs. */
int64
tsync_next_run_id(void)
{
	int64		run_id;

	SPI_connect();
	tsync_record("SELECT nextval('tablesync.run_run_id_seq')", 0, NULL, NULL, NULL);
	run_id = tsync_result_int64(0, 1);
	SPI_finish();
	return run_id;
}

void
tsync_check_callable(const char *function)
{
	tsync_check_primary(function);
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

/* What keeps a replica from being run now: a report if it is run already, an error otherwise, NULL if nothing does. */
TsyncReport *
tsync_check_runnable(Oid relid)
{
	int64		run_id;

	(void) tsync_check_owner(relid);
	check_enabled(relid);
	return (run_id = tsync_live_run(relid)) != 0 ? tsync_report_already_running(relid, run_id) : NULL;
}

/* A cancel is for all that the caller has asked for. */
bool
tsync_is_only_its_own(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode != ERRCODE_QUERY_CANCELED;
}

/*
 * The report of one of several replicas.  What would be an error for a single
 * one, such as an owner that may not log in, must not keep the others from being
 * run.
 */
TsyncReport *
tsync_report_error(Oid relid, ErrorData *edata)
{
	TsyncReport *report = tsync_make_report(relid, 0, "failed", edata->message);

	report->sqlstate = pstrdup(unpack_sql_state(edata->sqlerrcode));
	report->message = edata->message;
	report->detail = edata->detail;
	report->hint = edata->hint;
	report->no_worker = edata->sqlerrcode == ERRCODE_INSUFFICIENT_RESOURCES;
	return report;
}

/*
 * Open an alert for a replica that got no worker.  As late as possible: others
 * who do the same wait until we commit.
 */
void
tsync_alert_no_worker(TsyncReport *report)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[] = {report->values[0], CStringGetTextDatum(report->message),
	CStringGetTextDatum(report->hint)};

	SPI_connect();
	/* it may be gone by now, and its worker with it */
	tsync_record("SELECT tablesync.open_alert(r.replica, 'worker_unavailable', 'warning', $2, $3)"
				 " FROM tablesync.all_replicas r WHERE r.replica = $1::regclass",
				 lengthof(types), types, values, NULL);
	SPI_finish();
}

/* Is a worker of ours at work in this database?  Then one will be free. */
static bool
is_somebody_at_work(void)
{
	bool		at_work = tsync_query_latest("SELECT FROM tablesync.live_runs()", OIDOID, ObjectIdGetDatum(InvalidOid));

	SPI_finish();
	return at_work;
}

/*
 * Start a worker that the caller will wait for.  It is one more than those that
 * serve the queue, so nobody who waits does so behind the loads of others.  If
 * the server has no process left, they make room after their run; an error where
 * none of ours is at work.
 */
BackgroundWorkerHandle *
tsync_start_or_wait(TsyncStart *start, const char *label, Oid relid)
{
	TimestampTz since = GetCurrentTimestamp();
	BackgroundWorkerHandle *handle;

	/* a session may have called us before an update, and a worker would be of the next version */
	tsync_check_version();
	handle = tsync_start_worker(start, label);
	if (handle == NULL && max_worker_processes > 0)
		tsync_lock(TSYNC_LOCK_NEED, 0, ShareLock, false);
	while (handle == NULL)
	{
		if (max_worker_processes == 0 ||
			(TimestampDifferenceExceeds(since, GetCurrentTimestamp(), TSYNC_NO_WORKER_MS) && !is_somebody_at_work()))
			tsync_refuse_no_worker(relid);
		tsync_wait_for_process(START_POLL_MS, tsync_wait_event("TablesyncStart"));
		if ((handle = tsync_start_worker(start, label)) != NULL)
			tsync_unlock(TSYNC_LOCK_NEED, 0, ShareLock, false);
	}
	return handle;
}

/* Cancel a worker whose caller gives up; it records its run as cancelled. */
void
tsync_cancel_worker(int code, Datum arg)
{
	BackgroundWorkerHandle *handle = (BackgroundWorkerHandle *) DatumGetPointer(arg);
	pid_t		pid;

	if (GetBackgroundWorkerPid(handle, &pid) == BGWH_STARTED)
		kill(pid, SIGINT);
	else
		TerminateBackgroundWorker(handle);	/* before it starts, or while it does: that cancels, too */
}
