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
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define LOCK_ATTEMPTS 3
#define LOCK_RETRY_MS 1000

/* Keep writers out of the replica; readers go on. */
static void
lock_replica(TsyncReplica *replica)
{
	char	   *sql = psprintf("LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE", replica->replica_sql);
	MemoryContext caller = CurrentMemoryContext;

	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not lock the replica");
	MemoryContextSwitchTo(caller);
}

/*
 * Update rows in place.  Returns false, with nothing done, when rows would
 * collide on the way: those that swap a unique value can't be updated one
 * after the other.
 */
static bool
update_in_place(TsyncRun *run)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run->updated = tsync_modify(run, tsync_sql_update(run->replica, run->stage->updated.name));
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
static void
avoid_large_joins(void)
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
static void
register_stage(TsyncStage *stage)
{
	tsync_rowset_register(&stage->inserted);
	tsync_rowset_register(&stage->updated);
	tsync_rowset_register(&stage->deleted);
	tsync_rowset_register(&stage->reappeared);
}

/* Delete, update and insert what the stage holds. */
static void
merge_stage(TsyncRun *run)
{
	TsyncReplica *replica = run->replica;
	TsyncStage *stage = run->stage;

	run->deleted = run->updated = run->inserted = 0;
	if (stage->deleted.count > 0)
	{
		run->deleted = tsync_modify(run, tsync_sql_delete(replica, stage->deleted.name,
														  stage->reappeared.name));
		expect_rows(run, "deleted", stage->deleted.count - stage->reappeared.count, run->deleted);
	}
	if (stage->updated.count > 0 && !update_in_place(run))
	{
		run->updated = tsync_modify(run, tsync_sql_delete(replica, stage->updated.name, NULL));
		tsync_modify(run, tsync_sql_insert(replica, stage->updated.name));
	}
	expect_rows(run, "updated", stage->updated.count, run->updated);
	if (stage->inserted.count > 0)
		run->inserted = tsync_modify(run, tsync_sql_insert(replica, stage->inserted.name));
	expect_rows(run, "inserted", stage->inserted.count, run->inserted);
	tsync_progress_step(0, run->deleted + run->updated + run->inserted);
}

/* Add to (or take from) a digest that of the replica's rows in a row set. */
static void
count_rows(TsyncRun *run, TsyncRowSet *keys, TsyncDigest *digest, int sign)
{
	TsyncDigest rows;

	if (keys->count == 0)
		return;
	rows = tsync_select_digest(run, TSYNC_REPLICA,
							   tsync_sql_digest_of_keys(run->replica, keys->name, run->source_version));
	digest->rows += sign * rows.rows;
	digest->sum += sign > 0 ? rows.sum : -rows.sum;
}

/*
 * Merge the stage, and work out the replica's digest: what it held, without
 * the rows that we touch as they are before, and with them as they are after.
 */
static void
merge_and_digest(TsyncRun *run)
{
	TsyncStage *stage = run->stage;

	register_stage(stage);
	if (run->replica->wide)
		avoid_large_joins();
	count_rows(run, &stage->deleted, &run->result, -1);
	count_rows(run, &stage->updated, &run->result, -1);
	merge_stage(run);
	CommandCounterIncrement();
	count_rows(run, &stage->reappeared, &run->result, 1);
	count_rows(run, &stage->updated, &run->result, 1);
	count_rows(run, &stage->inserted, &run->result, 1);
	tsync_advance_watermark(run, stage->inserted.name, stage->updated.name);
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
		(run->result.rows == run->source.rows && run->result.sum == run->source.sum);
}

/* One attempt of APPLY; false when the replica is not as SCAN took it to be. */
static bool
apply_once(TsyncRun *run)
{
	TsyncStage *stage = run->stage;
	bool		written = false;
	ListCell   *lc;

	run->result = (TsyncDigest) {0, 0};
	foreach(lc, run->chunks)
	{
		run->result.rows += ((TsyncChunk *) lfirst(lc))->replica.rows;
		run->result.sum += ((TsyncChunk *) lfirst(lc))->replica.sum;
	}
	tsync_begin();
	if (stage->deleted.count + stage->updated.count + stage->inserted.count > 0)
	{
		lock_replica(run->replica);
		written = tsync_was_written_to(run);
		if (!written)
			merge_and_digest(run);
		if (!written && !run->watched)
			digest_all(run);
	}
	if (written || !is_proved(run))
	{
		AbortOutOfAnyTransaction();
		if (!written)
			tsync_distrust_memory(run);
		return false;
	}
	tsync_save_memory(run);
	tsync_finish_run(run);
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

/*
 * APPLY the stage and record the run as succeeded.  Returns false, with
 * nothing changed, when the replica has changed since SCAN.  A lock that is
 * held by others, or a deadlock with them, is tried again a few times.
 */
bool
tsync_apply(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	volatile bool applied = false;

	for (volatile int attempt = 1;; attempt++)
	{
		volatile bool retry = false;
		volatile bool doubtful = false;

		tsync_progress_phase(TSYNC_PHASE_APPLY, 0,
							 run->stage->deleted.count + run->stage->updated.count +
							 run->stage->inserted.count);
		PG_TRY();
		{
			applied = apply_once(run);
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(run_context);
			edata = CopyErrorData();
			doubtful = is_memory_trouble(run, edata);
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
		{
			run->distrusted = true;
			tsync_distrust_memory(run);
			MemoryContextSwitchTo(run_context);
		}
		if (!retry)
			return applied;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCK_RETRY_MS, tsync_wait_event("TablesyncApplyRetry"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}
