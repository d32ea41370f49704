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

	tsync_add_up_replica(run);
	tsync_begin();
	if (stage->deleted.count + stage->updated.count + stage->inserted.count > 0)
	{
		lock_replica(run->replica);
		written = tsync_was_written_to(run);
		if (!written)
		{
			tsync_register_stage(stage);
			if (run->replica->wide)
				tsync_avoid_large_joins();
			tsync_record_differences(run);
			merge_stage(run);
			if (run->replica->version)
				tsync_advance_watermark(run, stage->inserted.name, stage->updated.name);
		}
	}
	if (written || !is_proved(run))
	{
		AbortOutOfAnyTransaction();
		if (!written)
			tsync_distrust_memory(run);
		return false;
	}
	if (!run->verify)
		tsync_save_memory(run);
	tsync_save_verified(run);
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
			if (!is_lock_trouble(edata->sqlerrcode) || attempt >= LOCK_ATTEMPTS)
				PG_RE_THROW();
			FreeErrorData(edata);
			FlushErrorState();
			AbortOutOfAnyTransaction();
			retry = true;
		}
		PG_END_TRY();
		MemoryContextSwitchTo(run_context);
		if (!retry)
			return applied;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCK_RETRY_MS, tsync_wait_event("TablesyncApplyRetry"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}
