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
#include "catalog/pg_inherits.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define LOCK_ATTEMPTS 3
#define LOCK_RETRY_MS 1000

/* Keep writers out of the replica; readers go on. */
static void
lock_replica(TsyncReplica *replica)
{
	LockRelationOid(replica->relid, ShareRowExclusiveLock);
	(void) find_all_inheritors(replica->relid, ShareRowExclusiveLock, NULL);
	tsync_hold(replica, TSYNC_REPLICA);
	tsync_hold_nothing();
}

/*
 * Update rows in place.  Returns false, with nothing done, when rows would
 * collide on the way: those that swap a unique value can't be updated one
 * after the other.
 */
static bool
update_in_place(TsyncRun *run, TsyncDigest *changed)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		*changed = tsync_modify(run, tsync_sql_update(run->replica, run->stage->updated.name,
													  run->source_version));
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (!tsync_is_uniqueness_violation(edata))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/*
 * Look rows without bound up one by one: a hash or merge join would keep
 * whole rows in memory.
 */
void
tsync_avoid_large_joins(void)
{
	static const char *const joins[] = {"enable_hashjoin", "enable_mergejoin"};

	for (int i = 0; i < lengthof(joins); i++)
		(void) set_config_option(joins[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

static void
expect_rows(TsyncRun *run, const char *verb, int64 expected, int64 actual)
{
	if (expected != actual)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("replica %s was changed by somebody else during the run",
						run->replica->label),
				 errdetail(INT64_FORMAT " rows were to be %s, " INT64_FORMAT " were.",
						   expected, verb, actual),
				 errhint("Run again. If it happens every time, look for a trigger on the replica that interferes.")));
}

/* Let statements of this transaction see the stage. */
void
tsync_register_stage(TsyncStage *stage)
{
	tsync_rowset_register(&stage->inserted);
	tsync_rowset_register(&stage->updated);
	tsync_rowset_register(&stage->deleted);
	tsync_rowset_register(&stage->reappeared);
}

/* Take the rows of a digest away from the replica's, or add them. */
static void
subtract(TsyncRun *run, TsyncDigest rows)
{
	run->result.rows -= rows.rows;
	run->result.sum -= rows.sum;
}

static void
add(TsyncRun *run, TsyncDigest rows)
{
	run->result.rows += rows.rows;
	run->result.sum += rows.sum;
}

/* Update the staged rows; where that can't be done in place, replace them. */
static TsyncDigest
update_rows(TsyncRun *run)
{
	TsyncReplica *replica = run->replica;
	const char *rows = run->stage->updated.name;
	TsyncDigest changed;

	if (!update_in_place(run, &changed))
	{
		tsync_modify(run, tsync_sql_delete(replica, rows, NULL, run->source_version));
		changed = tsync_modify(run, tsync_sql_insert(replica, rows, run->source_version));
	}
	return changed;
}

/*
 * Delete, update and insert what the stage holds, and work out the replica's
 * digest: what it held, without the rows that we touch as they were, and with
 * them as they are stored now.
 */
static void
merge_stage(TsyncRun *run)
{
	TsyncReplica *replica = run->replica;
	TsyncStage *stage = run->stage;
	TsyncDigest changed;

	run->deleted = run->updated = run->inserted = 0;
	if (stage->deleted.count > 0)
	{
		changed = tsync_modify(run, tsync_sql_delete(replica, stage->deleted.name,
													 stage->reappeared.name, run->source_version));
		subtract(run, changed);
		run->deleted = changed.rows;
		expect_rows(run, "deleted", stage->deleted.count - stage->reappeared.count, run->deleted);
	}
	if (stage->updated.count > 0)
	{
		subtract(run, tsync_select_digest(run, TSYNC_REPLICA,
										  tsync_sql_digest_of_keys(replica, stage->updated.name,
																   run->source_version)));
		changed = update_rows(run);
		add(run, changed);
		run->updated = changed.rows;
		expect_rows(run, "updated", stage->updated.count, run->updated);
	}
	if (stage->inserted.count > 0)
	{
		changed = tsync_modify(run, tsync_sql_insert(replica, stage->inserted.name, run->source_version));
		add(run, changed);
		run->inserted = changed.rows;
		expect_rows(run, "inserted", stage->inserted.count, run->inserted);
	}
	tsync_progress_step(0, run->deleted + run->updated + run->inserted);
}

/* What the replica holds before APPLY. */
void
tsync_add_up_replica(TsyncRun *run)
{
	ListCell   *lc;

	run->result = (TsyncDigest) {0, 0};
	foreach(lc, run->chunks)
		add(run, ((TsyncChunk *) lfirst(lc))->replica);
}

/* The digest of the whole replica, where somebody may have written unnoticed. */
static void
digest_all(TsyncRun *run)
{
	TsyncChunk	everything = {0};

	run->result = tsync_select_digest(run, TSYNC_REPLICA,
									  tsync_sql_digest(run->replica, TSYNC_REPLICA, &everything,
													   run->source_version));
}

/* Did the replica become what the source was? */
static bool
is_proved(TsyncRun *run)
{
	return run->stage->reappeared.count > 0 ||
		tsync_digest_equal(run->result, run->source);
}

static void
unregister_stage(TsyncStage *stage)
{
	SPI_unregister_relation(stage->inserted.name);
	SPI_unregister_relation(stage->updated.name);
	SPI_unregister_relation(stage->deleted.name);
	SPI_unregister_relation(stage->reappeared.name);
}

static int64
staged_rows(TsyncRun *run)
{
	return run->stage->deleted.count + run->stage->updated.count + run->stage->inserted.count;
}

/* Merge the stage of one run; false when somebody else has written to the replica. */
static bool
apply_run(TsyncRun *run)
{
	TsyncStage *stage = run->stage;

	tsync_add_up_replica(run);
	if (staged_rows(run) == 0)
		return true;
	lock_replica(run->replica);
	if (tsync_was_written_to(run))
		return false;
	tsync_register_stage(stage);
	if (run->replica->wide)
		tsync_avoid_large_joins();
	tsync_record_differences(run);
	merge_stage(run);
	tsync_advance_watermark(run, stage->inserted.name, stage->updated.name);
	unregister_stage(stage);
	if (!run->watched)
		digest_all(run);
	return true;
}

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
		bool		applied = apply_run(run);

		if (applied && is_proved(run))
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
		tsync_finish_run(run);
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
		tsync_progress_phase(TSYNC_PHASE_APPLY, 0, staged_rows(first));
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
