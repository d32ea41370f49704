/*-------------------------------------------------------------------------
 *
 * kept.c
 *	  A process that stays for its caller's next run of the same replica.
 *
 * To start a process, connect to the source and read the catalogs takes longer
 * than a run of a small table.  So a session that runs the same replica a second
 * time gets a process that waits for a third time, for a second.  They share a
 * list of one run (several.c), whose state is passed to and fro; nobody else
 * knows of it, and no lock is held meanwhile.  What a run has to say comes from
 * tablesync.run, as always.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "api/api.h"
#include "compat.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/memutils.h"

/* What this session has run last, and the process that has done it, if it was to stay. */
typedef struct Kept
{
	Oid			replica;
	Oid			owner;
	int64		settings;		/* role_settings() when the process was started */
	dsm_segment *segment;		/* NULL: there is no process */
	TsyncList  *list;
	BackgroundWorkerHandle *worker;
	MemoryContext context;		/* has the handle */
} Kept;

static Kept kept;

static void
forget_process(void)
{
	if (kept.segment != NULL)
		dsm_detach(kept.segment);
	if (kept.context != NULL)
		MemoryContextDelete(kept.context);
	kept.segment = NULL;
	kept.list = NULL;
	kept.worker = NULL;
	kept.context = NULL;
}

/* A hash of what is set for a role, which a process reads when it starts, and never again. */
static int64
role_settings(Oid role)
{
	int64		settings;

	(void) tsync_query_latest("SELECT hashtextextended(coalesce(string_agg(s::text, ' ' ORDER BY s.setdatabase, s.setrole), ''), 0)"
							  " FROM pg_db_role_setting s WHERE s.setrole IN (0, $1)", OIDOID, ObjectIdGetDatum(role));
	settings = tsync_result_int64(0, 1);
	SPI_finish();
	return settings;
}

/* Is this a replica that this session has run before all others last? */
bool
tsync_is_run_again(Oid relid, Oid owner)
{
	bool		again = kept.replica == relid && kept.owner == owner;

	if (!again)
		forget_process();
	kept.replica = relid;
	kept.owner = owner;
	return again;
}

/* What a process finds that is to perform a run. */
static void
set_run(TsyncStart *start)
{
	kept.list->force = start->force;
	kept.list->runs[0].replica = start->replica;
	kept.list->runs[0].run_id = start->run_id;
}

/* Give a run to the process that is there; false if there is none, or it is about to leave. */
static bool
hand_over(TsyncStart *start)
{
	uint32		state;

	if (kept.segment == NULL || kept.settings != role_settings(start->owner))
		return false;
	state = pg_atomic_read_u32(&kept.list->runs[0].state);
	if (state != TSYNC_DONE && state != TSYNC_OMITTED)
		return false;
	set_run(start);
	if (!pg_atomic_compare_exchange_u32(&kept.list->runs[0].state, &state, TSYNC_WAITING))
		return false;
	ProcSendSignal(kept.list->server);
	return true;
}

/* Start a process that performs a run, and stays. */
static void
start_process(const TsyncStart *wanted)
{
	MemoryContext caller = CurrentMemoryContext;
	TsyncStart	start = *wanted;

	forget_process();
	kept.settings = role_settings(start.owner); /* before it reads them */
	kept.segment = dsm_create(offsetof(TsyncList, runs) + sizeof(kept.list->runs[0]), 0);
	dsm_pin_mapping(kept.segment);	/* for longer than this transaction */
	kept.list = dsm_segment_address(kept.segment);
	pg_atomic_init_u32(&kept.list->given_up, 0);
	kept.list->caller = tsync_my_proc_number();
	kept.list->server = -1;
	kept.list->stays = true;
	kept.list->count = 1;
	pg_atomic_init_u32(&kept.list->runs[0].state, TSYNC_WAITING);
	set_run(&start);
	start.list = dsm_segment_handle(kept.segment);
	kept.context = AllocSetContextCreate(TopMemoryContext, "tablesync process that stays", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(kept.context);
	kept.worker = tsync_start_or_wait(&start, tsync_relation_label(start.replica), start.replica);
	MemoryContextSwitchTo(caller);
}

/* The caller gives up: the run is cancelled, and the process does not stay. */
static void
give_up(int code, Datum arg)
{
	if (kept.segment != NULL)
		pg_atomic_write_u32(&kept.list->given_up, 1);
	if (kept.worker != NULL)
		tsync_cancel_worker(code, PointerGetDatum(kept.worker));
	MemoryContextSwitchTo(TopMemoryContext);	/* we may be in the one that goes */
	forget_process();
}

/* Wait until the run has ended, or its process; returns its state. */
static TsyncListed
await_end(void)
{
	for (;;)
	{
		pid_t		pid;
		bool		stopped = GetBackgroundWorkerPid(kept.worker, &pid) == BGWH_STOPPED;
		TsyncListed state = pg_atomic_read_u32(&kept.list->runs[0].state);

		if (stopped || state == TSYNC_DONE || state == TSYNC_OMITTED)
			return state;
		tsync_wait_for_process(TSYNC_UNTIL_WOKEN, WAIT_EVENT_BGWORKER_SHUTDOWN);
	}
}

/* Perform a run of the replica that this session has run before; false if it was left out. */
bool
tsync_run_again(const TsyncStart *wanted)
{
	TsyncStart	start = *wanted;
	volatile TsyncListed state = TSYNC_WAITING;

	PG_ENSURE_ERROR_CLEANUP(give_up, (Datum) 0);
	{
		if (hand_over(&start))
			state = await_end();
		/* who was about to leave, or has died, has not begun */
		if (state == TSYNC_WAITING || state == TSYNC_LEFT)
		{
			start_process(&start);
			state = await_end();
		}
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_up, (Datum) 0);
	return state != TSYNC_OMITTED;
}
