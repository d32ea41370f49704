/*-------------------------------------------------------------------------
 *
 * cancel.c
 *	  tablesync_cancel(): end the run of a replica, and no other.
 *
 * A worker goes on to other runs when one has ended, so a signal has to come
 * while it has the lock of the run that is meant: TSYNC_LOCK_TURN keeps it from
 * going on meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include <signal.h>

#include "api/api.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lock.h"
#include "storage/procarray.h"

TSYNC_FUNCTION_INFO_V1(tsync_cancel);
TSYNC_FUNCTION_INFO_V1(tsync_withdraw_run);

/* The process that runs a replica, 0 if there is none; of a run, or whichever it is (0). */
static int
running_process(Oid relid, int64 run_id)
{
	Oid			types[] = {OIDOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(relid), Int64GetDatum(run_id)};
	int			pid = 0;

	if (tsync_query_latest_with("SELECT l.pid FROM tablesync.live_runs() l WHERE l.replica = $1::regclass"
								" AND ($2 = 0 OR EXISTS (SELECT FROM tablesync.all_runs r"
								"  WHERE r.run_id = $2 AND r.replica = l.replica AND r.pid = l.pid AND r.status = 'running'))",
								lengthof(types), types, values))
		pid = (int) tsync_result_int64(0, 1);
	SPI_finish();
	return pid;
}

/* Cancel a run of a replica if it is going on, or whichever is (0); false if there is none. */
static bool
cancel_live(Oid relid, int64 run_id)
{
	int			pid = running_process(relid, run_id);
	bool		cancelled;

	if (pid <= 0)
		return false;
	tsync_lock(TSYNC_LOCK_TURN, pid, ShareLock, false);
	/* the worker may be connected as a former owner, whom the caller may not signal otherwise */
	cancelled = running_process(relid, run_id) == pid && BackendPidGetProc(pid) != NULL && kill(pid, SIGINT) == 0;
	tsync_unlock(TSYNC_LOCK_TURN, pid, ShareLock, false);
	return cancelled;
}

/* tablesync_cancel(replica): cancel the run that waits, and the live one; false if there is neither. */
Datum
tsync_cancel(PG_FUNCTION_ARGS)
{
	Oid			relid;
	int64		waiting;
	bool		cancelled = false;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	relid = PG_GETARG_OID(0);
	tsync_check_acts_for_owner(relid);
	tsync_check_primary("tablesync_cancel()");
	if (!tsync_query_latest("SELECT FROM tablesync.all_replicas WHERE replica = $1::regclass",
							OIDOID, ObjectIdGetDatum(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is not a replica", tsync_relation_label(relid)),
				 errhint("Replicas are listed in tablesync_status.")));
	SPI_finish();
	/* what leaves the queue meanwhile is live then */
	if ((waiting = tsync_waiting_run(relid)) != 0)
		cancelled = tsync_dequeue(relid, waiting);
	cancelled |= cancel_live(relid, 0);
	PG_RETURN_BOOL(cancelled);
}

/* tablesync.withdraw_run(replica, run_id): who has waited for it does not want it any more. */
Datum
tsync_withdraw_run(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	int64		run_id = PG_GETARG_INT64(1);

	tsync_check_acts_for_owner(relid);
	PG_RETURN_BOOL(tsync_dequeue(relid, run_id) || cancel_live(relid, run_id));
}
