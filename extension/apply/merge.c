/*-------------------------------------------------------------------------
 *
 * merge.c
 *	  Merging the stage of a run into its replica.
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
#include "query/query.h"
#include "run/run.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "verify/verify.h"

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

/* Take the rows of a digest away from the replica's. */
static void
subtract(TsyncRun *run, TsyncDigest rows)
{
	run->result.rows -= rows.rows;
	run->result.sum -= rows.sum;
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
		tsync_add_digest(&run->result, changed);
		run->updated = changed.rows;
		expect_rows(run, "updated", stage->updated.count, run->updated);
	}
	if (stage->inserted.count > 0)
	{
		changed = tsync_modify(run, tsync_sql_insert(replica, stage->inserted.name, run->source_version));
		tsync_add_digest(&run->result, changed);
		run->inserted = changed.rows;
		expect_rows(run, "inserted", stage->inserted.count, run->inserted);
	}
	tsync_progress_step(0, run->deleted + run->updated + run->inserted);
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
bool
tsync_is_proved(TsyncRun *run)
{
	return run->stage->reappeared.count > 0 ||
		tsync_digest_equal(run->result, run->source);
}

/* Merge the stage of one run; false when somebody else has written to the replica. */
bool
tsync_apply_run(TsyncRun *run)
{
	TsyncStage *stage = run->stage;

	tsync_add_up_replica(run);
	if (tsync_staged_rows(run->stage) == 0)
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
	tsync_unregister_stage(stage);
	if (!run->watched)
		digest_all(run);
	return true;
}
