/*-------------------------------------------------------------------------
 *
 * apply.c
 *	  APPLY: merge the stage into the replica, in one transaction.
 *
 * Readers of the replica see all of a run or nothing.  The source session is
 * idle and outside of a transaction by now, so waiting for the replica's lock
 * costs the source nothing.  The rows that are touched are digested before and
 * after: with what is remembered of all others, that is the replica's digest,
 * and it must be the source's.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "apply/apply.h"
#include "catalog/pg_inherits.h"
#include "catalog/tables.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "memory/memory.h"
#include "miscadmin.h"
#include "process/process.h"
#include "run/run.h"
#include "source/source.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "verify/verify.h"

#define LOCK_ATTEMPTS 3
#define LOCK_RETRY_MS 1000

/* One attempt of APPLY; false when a replica is not as SCAN took it to be. */
static bool
apply_once(List *runs)
{
	MemoryContext caller = CurrentMemoryContext;
	ListCell   *lc;

	tsync_begin();
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);
		bool		applied = tsync_apply_run(run);

		if (applied && tsync_is_proved(run))
			continue;
		if (applied && run->last_attempt)
			tsync_note_unlike(run);
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(caller);
		if (applied)
			tsync_distrust_memory(run);
		return false;
	}
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		if (!run->verify)
			tsync_save_memory(run);
		tsync_save_verified(run);
		tsync_finish_run(run, tsync_learned_rate(run));
	}
	tsync_commit();
	return true;
}

static bool
is_lock_trouble(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE || sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED;
}

/*
 * May an error come from rows that are, or are not, in the replica against
 * what we remember of it?  Once in a run we look again before we believe it.
 */
static bool
is_memory_trouble(TsyncRun *run, ErrorData *edata)
{
	return !run->distrusted &&
		(edata->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE || tsync_is_uniqueness_violation(edata));
}

static void
distrust(List *runs)
{
	MemoryContext run_context = CurrentMemoryContext;
	ListCell   *lc;

	foreach(lc, runs)
	{
		((TsyncRun *) lfirst(lc))->distrusted = true;
		tsync_distrust_memory(lfirst(lc));
		MemoryContextSwitchTo(run_context);
	}
}

/*
 * APPLY what the runs have staged and record them as succeeded, all in one
 * transaction.  Returns false, with nothing changed, when a replica has
 * changed since SCAN.  A lock that is held by others, or a deadlock with them,
 * is tried again a few times.
 */
bool
tsync_apply(List *runs)
{
	TsyncRun   *first = linitial(runs);
	MemoryContext run_context = CurrentMemoryContext;
	volatile bool applied = false;

	for (volatile int attempt = 1;; attempt++)
	{
		volatile bool retry = false;
		volatile bool doubtful = false;

		tsync_progress_run(first);
		tsync_progress_phase(TSYNC_PHASE_APPLY, 0, tsync_staged_rows(first->stage));
		PG_TRY();
		{
			applied = apply_once(runs);
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(run_context);
			edata = CopyErrorData();
			doubtful = is_memory_trouble(first, edata);
			retry = is_lock_trouble(edata->sqlerrcode) && attempt < LOCK_ATTEMPTS;
			if (!retry && !doubtful)
				PG_RE_THROW();
			FreeErrorData(edata);
			FlushErrorState();
			AbortOutOfAnyTransaction();
		}
		PG_END_TRY();
		MemoryContextSwitchTo(run_context);
		if (doubtful)
			distrust(runs);
		if (!retry)
			return applied;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCK_RETRY_MS, tsync_wait_event("TablesyncApplyRetry"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* End a run that verifies and leaves the replica as it is. */
bool
tsync_report(TsyncRun *run)
{
	MemoryContext caller = CurrentMemoryContext;

	tsync_progress_phase(TSYNC_PHASE_APPLY, 0, 0);
	tsync_add_up_replica(run);
	tsync_begin();
	tsync_register_stage(run->stage);
	if (run->replica->wide)
		tsync_avoid_large_joins();
	tsync_record_differences(run);
	tsync_save_verified(run);
	tsync_finish_run(run, tsync_learned_rate(run));
	tsync_commit();
	MemoryContextSwitchTo(caller);
	return true;
}
