/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  Putting runs into the queue, and seeing that somebody serves it.
 *
 * A run for which nobody waits is a row of tablesync.queue from the caller's
 * transaction on.  A worker sees it when that has committed; it can't leave
 * before, because the caller has TSYNC_LOCK_QUEUE.  Whatever becomes of the
 * worker, the row stays: the next call, schedule or watchdog starts another one.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "api/api.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lock.h"

TSYNC_FUNCTION_INFO_V1(tsync_serve);

/* Put a run into the queue, or find the one that waits for the same replica; returns its number. */
static int64
enqueue(Oid relid, bool force)
{
	Oid			types[] = {OIDOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(relid), BoolGetDatum(force)};
	int64		run_id;

	tsync_lock(TSYNC_LOCK_QUEUE, 0, ShareLock, false);
	SPI_connect();
	tsync_record("INSERT INTO tablesync.all_queued AS q (run_id, replica, force)"
				 " VALUES (nextval('tablesync.run_run_id_seq'), $1::regclass, $2)"
				 " ON CONFLICT (replica) DO UPDATE SET force = q.force OR excluded.force RETURNING q.run_id",
				 lengthof(types), types, values, NULL);
	run_id = tsync_result_int64(0, 1);
	SPI_finish();
	return run_id;
}

/* Does any run wait?  Mostly not, and this is quickly seen. */
static bool
is_any_queued(void)
{
	bool		queued = tsync_query_latest("SELECT FROM tablesync.all_queued LIMIT 1", OIDOID, ObjectIdGetDatum(InvalidOid));

	SPI_finish();
	return queued;
}

/* A role whose runs wait. */
typedef struct Waiting
{
	Oid			owner;
	int			runs;
	Oid			replica;		/* one of hers */
} Waiting;

/* Whose runs wait, the oldest first; not those of replicas that are being run: whoever runs them looks afterwards. */
static List *
waiting_owners(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *owners = NIL;

	tsync_query_latest("SELECT c.relowner::int8, count(*), min(q.replica::oid)::int8"
					   " FROM tablesync.all_queued q JOIN pg_class c ON c.oid = q.replica"
					   " WHERE q.replica NOT IN (SELECT l.replica FROM tablesync.live_runs() l)"
					   " GROUP BY c.relowner ORDER BY min(q.run_id)", OIDOID, ObjectIdGetDatum(InvalidOid));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Waiting    *waiting = MemoryContextAlloc(caller, sizeof(Waiting));
		MemoryContext spi;

		waiting->owner = (Oid) tsync_result_int64(i, 1);
		waiting->runs = (int) Min(tsync_result_int64(i, 2), INT_MAX);
		waiting->replica = (Oid) tsync_result_int64(i, 3);
		spi = MemoryContextSwitchTo(caller);
		owners = lappend(owners, waiting);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return owners;
}

/* Runs of a role that may not log in any more: nobody will ever serve them, so they fail now. */
static void
end_unservable(Oid owner)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(owner)};

	SPI_connect();
	tsync_record("SELECT tablesync.end_queued(q.run_id, q.replica, 'failed', '28000',"
				 "  format('owner %I of replica %s is not permitted to log in', pg_get_userbyid($1), q.replica), NULL,"
				 "  'Use ALTER ROLE .. LOGIN; the role needs no password.')"
				 " FROM tablesync.all_queued q JOIN pg_class c ON c.oid = q.replica WHERE c.relowner = $1",
				 lengthof(types), types, values, NULL);
	SPI_finish();
}

/*
 * Start workers for runs that wait, as many as there are slots, whosever they
 * are: who put them there was permitted to.  Returns how many workers will look
 * into the queue at once; where no process is to be had, the runs wait.
 */
int
tsync_start_serving(void)
{
	static TransactionId last_xid = InvalidTransactionId;
	static int	last_started = 0;	/* by the same transaction: they have no slot yet */
	int			slots;
	int			ready = 0;
	ListCell   *lc;

	/* processes that are asked for on a standby would all begin after a promotion */
	if (RecoveryInProgress() || !is_any_queued())
		return 0;
	slots = tsync_free_slots();
	if (!TransactionIdIsValid(last_xid) || last_xid != GetTopTransactionIdIfAny())
		last_started = 0;
	last_xid = GetTopTransactionIdIfAny();
	foreach(lc, waiting_owners())
	{
		Waiting    *waiting = lfirst(lc);
		TsyncStart	start = {.database = MyDatabaseId,.owner = waiting->owner,.serve = true};
		int			idle = tsync_is_locked(TSYNC_LOCK_IDLE, waiting->owner) ? 1 : 0;

		ready += idle;
		if (!OidIsValid(tsync_owner_who_may_log_in(waiting->replica)))
		{
			end_unservable(waiting->owner);
			continue;
		}
		for (int i = idle; i < waiting->runs && last_started < slots; i++)
		{
			if (tsync_start_worker(&start, GetUserNameFromId(waiting->owner, true)) == NULL)
				return ready;
			ready++;
			last_started++;
		}
	}
	return ready;
}

/* tablesync.serve_queue() */
Datum
tsync_serve(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(tsync_start_serving());
}

/* Put a replica into the queue, and see that a worker serves it. */
TsyncReport *
tsync_queue_replica(Oid relid, bool force)
{
	TsyncReport *report = tsync_check_runnable(relid);
	int64		run_id;

	if (report)
		return report;
	if (max_worker_processes == 0)
		tsync_refuse_no_worker(relid);	/* it would wait until the server is started anew */
	run_id = enqueue(relid, force);
	report = tsync_start_serving() > 0 ? tsync_make_report(relid, run_id, "started", NULL) :
		tsync_make_report(relid, run_id, "queued", "it waits for one of the workers that tablesync.max_workers allows");
	report->queued = true;
	return report;
}

/* A replica to be put into the queue. */
typedef struct Enqueued
{
	Oid			relid;
	bool		force;
	TsyncReport *report;
} Enqueued;

static void
enqueue_one(void *arg)
{
	Enqueued   *one = arg;

	one->report = tsync_queue_replica(one->relid, one->force);
}

/* Likewise, with an error as a report. */
TsyncReport *
tsync_try_enqueue(Oid relid, bool force)
{
	Enqueued	one = {.relid = relid,.force = force};
	ErrorData  *edata;

	return tsync_try_inside(enqueue_one, &one, tsync_is_only_its_own, &edata) ? one.report : tsync_report_error(relid, edata);
}

/* Take a run out of the queue, and record how it has ended; false if it does not wait. */
bool
tsync_dequeue(Oid relid, int64 run_id)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(run_id), ObjectIdGetDatum(relid)};
	bool		ended;

	/* whoever serves the queue does not leave it before it is known whether this comes to something */
	tsync_lock(TSYNC_LOCK_QUEUE, 0, ShareLock, false);
	SPI_connect();
	tsync_record("SELECT tablesync.end_queued($1, $2::regclass, 'cancelled', '57014', 'the run was cancelled before it started', NULL, NULL)",
				 lengthof(types), types, values, NULL);
	ended = tsync_result_bool(0, 1);
	SPI_finish();
	return ended;
}

/* A run that waits for a replica, 0 if there is none. */
int64
tsync_waiting_run(Oid relid)
{
	int64		run_id = 0;

	if (tsync_query_latest("SELECT run_id FROM tablesync.all_queued WHERE replica = $1::regclass", OIDOID, ObjectIdGetDatum(relid)))
		run_id = tsync_result_int64(0, 1);
	SPI_finish();
	return run_id;
}
