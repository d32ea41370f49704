/*-------------------------------------------------------------------------
 *
 * serve.c
 *	  Several runs, one after the other, in one process.
 *
 * A process has one user, the owner of the replicas that it runs, and keeps
 * its connections to their sources from run to run.  It serves either the list
 * of a caller who waits, or the queue.  Each run is as if it were alone: its
 * locks, memory, files and cancels end with it, and what goes wrong is its own.
 *
 * At most tablesync.max_workers processes of a database serve the queue.  One
 * that finds nothing more for its user looks once more while nobody can put
 * anything into the queue, gives its slot away, and starts a worker for the next
 * owner.  It does so earlier when others have waited longer, or when somebody
 * who waits finds no process at all (TSYNC_LOCK_NEED): one run is the most that
 * a caller waits for.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "api/api.h"
#include "catalog/tables.h"
#include "compat.h"
#include "execute/execute.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "process/process.h"
#include "run/run.h"
#include "source/source.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "watch/watch.h"

/* Runs that come one by one find the connection open for so long. */
#define LINGER_MS 1000
#define POLL_MS 20

/* How often to look for a slot. */
#define SLOT_ATTEMPTS 3

/* A run that is to be performed. */
typedef struct Turn
{
	TsyncStart	start;
	bool		from_queue;
	bool		performed;
	ErrorData  *error;			/* it could not even be recorded */
} Turn;

/* Is a run of the queue going on? */
static bool in_turn = false;

/*
 * Give back what a run has taken from this process.  All locks go, with what a
 * trigger may have locked; whoever serves the queue takes a slot again.
 */
static void
end_turn(void)
{
	tsync_begin_recording();
	tsync_source_answered();
	tsync_end_own_write();
	tsync_hold_nothing();
	tsync_unlock_all();
	tsync_progress_end();
	tsync_forget_reading();
	tsync_rowsets_end();
	tsync_begin();
	tsync_forget_leftovers();
	tsync_commit();
	pgstat_report_activity(STATE_IDLE, NULL);
	tsync_next_turn();
}

/* Perform a run in a context of its own, which the caller deletes. */
static void
take_turn(Turn *turn)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		turn->performed = tsync_perform(&turn->start, turn->from_queue);
	}
	PG_CATCH();
	{
		tsync_abort();
		MemoryContextSwitchTo(context);
		turn->error = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	end_turn();
	MemoryContextSwitchTo(context);
}

/* Is a replica to be run, as its owner sees it now? */
static bool
is_enabled(Oid relid)
{
	bool		enabled;

	tsync_begin();
	enabled = tsync_record_oid("SELECT FROM tablesync.all_replicas"
							   " WHERE replica = $1::regclass AND enabled AND home = tablesync.home()", relid) > 0;
	tsync_commit();
	return enabled;
}

/* Does somebody who waits find no process? */
static bool
is_process_needed(void)
{
	bool		needed;

	tsync_begin();
	needed = tsync_is_locked(TSYNC_LOCK_NEED, 0);
	tsync_commit();
	return needed;
}

/* Perform the runs of a list. */
static void
serve_list(TsyncStart *start, TsyncList *list, MemoryContext context)
{
	for (int i = 0; i < list->count; i++)
	{
		Turn		turn = {.start = *start};
		uint32		waiting = TSYNC_WAITING;

		if (pg_atomic_read_u32(&list->given_up) || tsync_is_to_end())
			break;
		/* other workers have the same list */
		if (!pg_atomic_compare_exchange_u32(&list->runs[i].state, &waiting, TSYNC_TAKEN))
			continue;
		turn.start.list = 0;
		turn.start.replica = list->runs[i].replica;
		turn.start.run_id = list->runs[i].run_id;
		turn.start.force = list->force;
		MemoryContextSwitchTo(context);
		if (is_enabled(turn.start.replica))
		{
			MemoryContextSwitchTo(context);
			take_turn(&turn);
		}
		/* before the caller goes on, who may look at what it has read here */
		pgstat_report_stat(true);
		pg_atomic_write_u32(&list->runs[i].state, turn.performed || turn.error ? TSYNC_DONE : TSYNC_OMITTED);
		ProcSendSignal(list->caller);
		MemoryContextReset(context);
	}
}

/* Wait for a while for another run in the place of a list's only one, and while nobody else needs the process. */
static bool
await_another(TsyncList *list)
{
	TimestampTz since = GetCurrentTimestamp();
	uint32		state;

	while (!pg_atomic_read_u32(&list->given_up) && !tsync_is_cancelled() && !is_process_needed() &&
		   !TimestampDifferenceExceeds(since, GetCurrentTimestamp(), LINGER_MS))
	{
		tsync_follow_configuration();
		if (pg_atomic_read_u32(&list->runs[0].state) == TSYNC_WAITING)
			return true;
		/* no interrupts: a cancel that comes too late is no error */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS, tsync_wait_event("TablesyncQueue"));
		ResetLatch(MyLatch);
	}
	/* who puts one there from now on finds that we have left */
	state = pg_atomic_read_u32(&list->runs[0].state);
	return state == TSYNC_WAITING || !pg_atomic_compare_exchange_u32(&list->runs[0].state, &state, TSYNC_LEFT);
}

/* Perform the runs of a caller who waits; they are his until he gives up. */
void
tsync_serve_list(TsyncStart *start)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "tablesync turn", ALLOCSET_DEFAULT_SIZES);
	dsm_segment *segment = dsm_attach(start->list);
	TsyncList  *list;

	if (segment == NULL)
		return;					/* nobody waits any more */
	list = dsm_segment_address(segment);
	list->server = tsync_my_proc_number();
	if (!list->stays)
		tsync_serve_role(start->owner);
	do
		serve_list(start, list, context);
	while (list->stays && !pg_atomic_read_u32(&list->given_up) && !tsync_is_to_end() && await_another(list));
}

/* Run what the queue has next, or record why not. */
static void
serve_queued(TsyncStart *start, TsyncQueued *next)
{
	Turn		turn = {.start = *start,.from_queue = true};
	ErrorData	paused = {
		.sqlerrcode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
		.message = "the replica was paused before the run could start"
	};

	turn.start.serve = false;
	turn.start.replica = next->replica;
	turn.start.run_id = next->run_id;
	turn.start.force = next->force;
	if (next->paused)
		tsync_end_queued(next, "cancelled", &paused);
	else
	{
		in_turn = true;
		take_turn(&turn);
		in_turn = false;
	}
	if (turn.error)
	{
		tsync_end_queued(next, turn.error->sqlerrcode == ERRCODE_QUERY_CANCELED ? "cancelled" : "failed", turn.error);
		tsync_settle_run(next->run_id);
	}
}

/* Look for the next run, in a transaction of its own.  After an update, a process with the new library is to run it. */
static bool
find_next(TsyncStart *start, TsyncQueued *next)
{
	bool		found;

	tsync_begin();
	found = tsync_next_queued(start->owner, next);
	if (!tsync_fits_extension())
		next->others_wait = true;
	tsync_commit();
	return found;
}

/* May this process end?  Not if there is something to do, or if somebody is about to add something. */
static bool
try_to_leave(TsyncStart *start)
{
	TsyncQueued next;
	bool		leaves;

	tsync_begin();
	leaves = tsync_try_lock(TSYNC_LOCK_QUEUE, 0, ExclusiveLock, false) && !tsync_next_queued(start->owner, &next);
	if (leaves)
		tsync_unlock_all();		/* while nobody can add anything: who does finds no idle worker */
	tsync_commit();
	return leaves;
}

static void
rest(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS, tsync_wait_event("TablesyncQueue"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	tsync_follow_configuration();
}

/* Take a slot.  Somebody who counts the free ones has each for a moment. */
static bool
take_slot(void)
{
	for (int i = 0; i < SLOT_ATTEMPTS; i++)
	{
		if (tsync_take_slot() > 0)
			return true;
		rest();
	}
	return false;
}

/* Serve the queue until nothing is left, or others come first. */
static void
serve(TsyncStart *start, MemoryContext context)
{
	bool		idle = false;
	TimestampTz idle_since = GetCurrentTimestamp();

	while (!tsync_is_to_end() && !is_process_needed())
	{
		TsyncQueued next;
		bool		found = find_next(start, &next);

		if (next.others_wait)
			return;
		if (idle == found)
		{
			if (idle)
				tsync_unlock(TSYNC_LOCK_IDLE, start->owner, ShareLock, true);
			else
				tsync_lock(TSYNC_LOCK_IDLE, start->owner, ShareLock, true);
			idle = !found;
			idle_since = GetCurrentTimestamp();
		}
		if (found)
		{
			MemoryContextSwitchTo(context);
			serve_queued(start, &next);
			MemoryContextReset(context);
			/* what it has read here is not to be counted only when this process ends */
			pgstat_report_stat(true);
			/* another worker may have been faster */
			if (tsync_take_slot() == 0)
				return;
		}
		else if (TimestampDifferenceExceeds(idle_since, GetCurrentTimestamp(), LINGER_MS) && try_to_leave(start))
			return;
		else
			rest();
	}
}

/* How to start another worker like this one. */
static TsyncStart *successor;

/* A worker that dies in a run takes that with it, and not the others, which get another worker. */
static void
start_successor(int code, Datum arg)
{
	/* who has begun no run would only be followed by the like */
	if (in_turn && tsync_has_begun())
		(void) tsync_start_worker(successor, tsync_session_role);
}

/* Serve the queue of this session's user for as long as there is something to do. */
void
tsync_serve_queue(TsyncStart *start)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "tablesync turn", ALLOCSET_DEFAULT_SIZES);

	if (!take_slot())
		return;					/* who has one looks into the queue before it leaves */
	successor = start;
	tsync_serve_role(start->owner);
	before_shmem_exit(start_successor, (Datum) 0);
	serve(start, context);
	tsync_unlock_all();
}
