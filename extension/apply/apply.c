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
#include "catalog/tables.h"
#include "compat.h"
#include "execute/execute.h"
#include "feed/feed.h"
#include "memory/memory.h"
#include "miscadmin.h"
#include "process/process.h"
#include "source/source.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "verify/verify.h"

#define LOCK_ATTEMPTS 3
#define LOCK_RETRY_MS 1000

/* Fill in what is known of a run now that it has succeeded, and record it. */
static void
finish_run(TsyncApply *apply)
{
	TsyncRecord *record = apply->record;
	ListCell   *lc;

	record->chunks = list_length(apply->chunks);
	record->differing = 0;
	foreach(lc, apply->chunks)
		record->differing += ((TsyncChunk *) lfirst(lc))->differs;
	record->reappeared = apply->stage->reappeared.count;
	record->outside = apply->stage->outside;
	/* rows that were left as they were are not proved in all columns */
	record->adopted &= record->reappeared > 0;
	record->differences = apply->verify->differences;
	record->drifted_rows = apply->verify->drifted_rows;
	record->watermark = apply->table->watermark;
	tsync_save_verified(apply->table, apply->verify, apply->chunks, apply->fingerprint.source_version, record->reappeared > 0);
	tsync_finish_run(record);
}

/* One attempt of APPLY; false when a replica is not as SCAN took it to be. */
static bool
apply_once(List *applies)
{
	MemoryContext caller = CurrentMemoryContext;
	ListCell   *lc;

	tsync_begin_change(NULL);
	foreach(lc, applies)
	{
		TsyncApply *apply = lfirst(lc);
		bool		merged = tsync_merge(apply);

		if (merged && tsync_is_proved(apply))
			continue;
		/* before they are undone: afterwards there is nothing to compare with */
		if (merged && apply->last_attempt)
			tsync_note_unlike(apply);
		tsync_abort();
		MemoryContextSwitchTo(caller);
		/* else what has stopped us, a note or another file, makes the next SCAN look by itself */
		if (merged)
			tsync_distrust_memory(apply->table->relid);
		return false;
	}
	/* when all are proved: one that is not undoes all */
	foreach(lc, applies)
	{
		TsyncApply *apply = lfirst(lc);

		/* in the transaction of the rows; a run that verifies has digests of another fingerprint */
		if (!apply->verify->whole)
			tsync_save_memory(apply->table, apply->chunks, apply->memory, apply->stage->reappeared.count > 0);
		finish_run(apply);
	}
	/* readers see all runs of a group, or none; and the source has not waited for any of it */
	Assert(!tsync_source_asked);
	tsync_commit();
	return true;
}

/* Nothing was applied: what its transaction has opened is not there any more. */
static void
forget_feeds(List *applies)
{
	ListCell   *lc;

	foreach(lc, applies)
		tsync_close_feed(((TsyncApply *) lfirst(lc))->table);
}

static bool
is_lock_trouble(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE || sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED;
}

/* A try to apply some runs. */
typedef struct ApplyTry
{
	List	   *applies;
	int			attempt;
	bool		applied;
	bool		doubtful;		/* the error may come of what we remember wrongly */
} ApplyTry;

static void
try_apply_once(void *arg)
{
	ApplyTry   *attempt = arg;

	attempt->applied = apply_once(attempt->applies);
}

/*
 * Can something be done about an error?  It may come from rows that are, or are
 * not, in the replica against what we remember of it: once in a run we look
 * again before we believe it.
 */
static bool
judge_error(ErrorData *edata, void *arg)
{
	ApplyTry   *attempt = arg;
	TsyncApply *first = linitial(attempt->applies);

	attempt->doubtful = !first->distrusted &&
		(edata->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE || tsync_is_uniqueness_violation(edata, NULL));
	return attempt->doubtful || (is_lock_trouble(edata->sqlerrcode) && attempt->attempt < LOCK_ATTEMPTS);
}

static void
distrust(List *applies)
{
	ListCell   *lc;

	foreach(lc, applies)
	{
		TsyncApply *apply = lfirst(lc);

		apply->distrusted = true;
		tsync_distrust_memory(apply->table->relid);
	}
}

/*
 * APPLY what some runs have staged and record them as succeeded, all in one
 * transaction.  Returns false, with nothing changed, when a replica has
 * changed since SCAN.  A lock that is held by others, or a deadlock with them,
 * is tried again a few times.
 */
bool
tsync_apply(List *applies)
{
	TsyncApply *first = linitial(applies);

	Assert(!IsTransactionState());	/* the source's has ended: it must not wait for our locks */
	for (int attempt = 1;; attempt++)
	{
		ApplyTry	this_one = {.applies = applies,.attempt = attempt};
		bool		done;

		tsync_progress_run(first->record->run_id, first->table->relid);
		tsync_progress_phase(TSYNC_PHASE_APPLY, 0, tsync_staged_rows(first->stage));
		done = tsync_try(try_apply_once, &this_one, judge_error, NULL);
		if (!this_one.applied)
			forget_feeds(applies);
		if (this_one.doubtful)
			distrust(applies);
		if (done || this_one.doubtful)
			return this_one.applied;
		/* with the same stage: nothing was wrong but a lock */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCK_RETRY_MS, tsync_wait_event("TablesyncApplyRetry"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* End a run that verifies and leaves the replica as it is. */
void
tsync_end_without_apply(TsyncApply *apply)
{
	tsync_progress_phase(TSYNC_PHASE_APPLY, 0, 0);
	apply->record->replica = tsync_add_up_replica(apply->chunks);
	tsync_begin();
	tsync_register_stage(apply->stage);
	if (apply->table->wide)
		tsync_avoid_large_joins();
	tsync_record_differences(apply->table, apply->verify, apply->chunks, apply->record->run_id);
	finish_run(apply);
	tsync_commit();
}
