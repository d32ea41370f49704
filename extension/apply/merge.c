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
#include "execute/execute.h"
#include "feed/feed.h"
#include "memory/memory.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "verify/verify.h"

/* Keep writers out of the replica; readers go on. */
static void
lock_replica(TsyncTable *table)
{
	LockRelationOid(table->relid, ShareRowExclusiveLock);
	/* somebody may write to a partition itself */
	(void) find_all_inheritors(table->relid, ShareRowExclusiveLock, NULL);
	/* under the lock nobody can rename it or give it away any more */
	tsync_hold(table, TSYNC_REPLICA);
	tsync_hold_nothing();
}

/* Rows that are being updated, and the digest of what they became. */
typedef struct InPlace
{
	TsyncApply *apply;
	TsyncDigest changed;
} InPlace;

/* Update rows in place. */
static void
update_in_place(void *arg)
{
	InPlace    *rows = arg;
	TsyncTable *table = rows->apply->table;

	rows->changed = tsync_modify(table, tsync_sql_update(table, TSYNC_UPDATED, rows->apply->fingerprint));
}

static void
expect_rows(TsyncTable *table, const char *verb, int64 expected, int64 actual)
{
	if (expected != actual)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("replica %s was changed by somebody else during the run", table->label),
				 errdetail(INT64_FORMAT " rows were to be %s, " INT64_FORMAT " were.",
						   expected, verb, actual),
				 errhint("Run again. If it happens every time, look for a trigger on the replica that interferes.")));
}

/*
 * Update the staged rows.  Those that swap a unique value can't be updated one
 * after the other: where rows collide on the way, all of them are replaced.
 */
static TsyncDigest
update_rows(TsyncApply *apply)
{
	InPlace		rows = {.apply = apply};

	if (tsync_try_inside(update_in_place, &rows, tsync_is_uniqueness_violation, NULL))
		return rows.changed;
	return tsync_replace_rows(apply);
}

/* Are the rows of a row set in the replica, byte by byte? */
static bool
are_stored(TsyncTable *table, const char *rows)
{
	TsyncDigest others = tsync_select_digest(table, TSYNC_REPLICA, tsync_sql_count_different_rows(table, rows));

	return others.rows == 0;
}

/*
 * By xmin, the replica's digest is the source's if the rows that were written
 * are stored as they were staged: all others are those of which the scan has
 * found that they are the source's.  How many there are is counted here, as always.
 */
static void
prove_by_xmin(TsyncApply *apply, TsyncDigest stored)
{
	TsyncTable *table = apply->table;
	TsyncRecord *record = apply->record;
	TsyncDigest staged = tsync_select_digest(table, TSYNC_REPLICA, tsync_sql_digest_of_rows(table, TSYNC_INSERTED, apply->fingerprint));
	bool		opaque = false;

	tsync_add_digest(&staged, tsync_select_digest(table, TSYNC_REPLICA, tsync_sql_digest_of_rows(table, TSYNC_UPDATED, apply->fingerprint)));
	for (int i = 0; i < table->ncolumns; i++)
		opaque |= table->columns[i].opaque;
	if (tsync_digest_equal(stored, staged) &&
		(!opaque || (are_stored(table, TSYNC_INSERTED) && are_stored(table, TSYNC_UPDATED))))
		record->replica.sum = record->source.sum;
	else
		record->replica.sum = record->source.sum + 1;	/* any other */
}

/*
 * Delete, update and insert what the stage holds, and work out the replica's
 * digest: what it held, without the rows that we touch as they were, and with
 * them as they are stored now.  Deletes come first: their rows may hold unique
 * values that others are to get.
 */
static void
merge_stage(TsyncApply *apply)
{
	TsyncTable *table = apply->table;
	TsyncStage *stage = apply->stage;
	TsyncRecord *record = apply->record;
	TsyncDigest stored = {0, 0};
	TsyncDigest changed;

	if (stage->deleted.count > 0)
	{
		changed = tsync_modify(table, tsync_sql_delete(table, TSYNC_DELETED, TSYNC_REAPPEARED, apply->fingerprint));
		tsync_subtract_digest(&record->replica, changed);
		record->deleted = changed.rows;
		expect_rows(table, "deleted", stage->deleted.count - stage->reappeared.count, record->deleted);
	}
	if (stage->updated.count > 0)
	{
		/* as they are: the statement that updates returns only what they become; by xmin no sum of theirs is needed */
		if (apply->by_xmin)
			record->replica.rows -= stage->updated.count;
		else
			tsync_subtract_digest(&record->replica,
								  tsync_select_digest(table, TSYNC_REPLICA,
													  tsync_sql_digest_of_keys(table, TSYNC_UPDATED, apply->fingerprint)));
		changed = update_rows(apply);
		tsync_add_digest(&record->replica, changed);
		tsync_add_digest(&stored, changed);
		record->updated = changed.rows;
		expect_rows(table, "updated", stage->updated.count, record->updated);
	}
	if (stage->inserted.count > 0)
	{
		changed = tsync_modify(table, tsync_sql_insert(table, TSYNC_INSERTED, apply->fingerprint));
		tsync_add_digest(&record->replica, changed);
		tsync_add_digest(&stored, changed);
		record->inserted = changed.rows;
		expect_rows(table, "inserted", stage->inserted.count, record->inserted);
	}
	if (apply->by_xmin)
		prove_by_xmin(apply, stored);
	tsync_progress_step(0, record->deleted + record->updated + record->inserted);
}

/* The digest of the whole replica, where somebody may have written unnoticed. */
static TsyncDigest
digest_all(TsyncApply *apply)
{
	TsyncRange	everything = {0};
	TsyncDigest now = tsync_select_digest(apply->table, TSYNC_REPLICA,
										  tsync_sql_digest(apply->table, TSYNC_REPLICA, &everything, apply->fingerprint));
	TsyncDigest wanted = {0, 0};
	ListCell   *lc;

	if (!apply->by_xmin)
		return now;

	/*
	 * nothing is remembered of such a replica: all columns of all chunks were compared, but those of a load were only
	 * counted
	 */
	foreach(lc, apply->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (!chunk->by_row)
			return (TsyncDigest) {now.rows, apply->record->replica.sum};
		tsync_add_digest(&wanted, chunk->row_source);
	}
	now.sum = apply->record->replica.sum + (now.sum - wanted.sum);
	return now;
}

/* Did the replica become what the source was? */
bool
tsync_is_proved(TsyncApply *apply)
{
	/* where rows stay that CONFIRM has found again, the sums can't be equal: recorded as they are */
	return apply->stage->reappeared.count > 0 ||
		tsync_digest_equal(apply->record->replica, apply->record->source);
}

/* Tell those who decode the WAL what is to come: all of it, or the transaction fails (expect_rows). */
static void
announce(TsyncApply *apply)
{
	TsyncStage *stage = apply->stage;

	apply->message.inserted = stage->inserted.count;
	apply->message.updated = stage->updated.count;
	apply->message.deleted = stage->deleted.count - stage->reappeared.count;
	tsync_emit_message(&apply->message);
}

/*
 * Write to the feed what will be merged.  What others have written here it does not
 * show, nor that they have already done what the source did.  Where many rows are
 * brought that the source has not changed now, as new columns do, all of them in the
 * feed would be of no use.
 */
static void
feed_changes(TsyncApply *apply, TsyncFeed *feed)
{
	TsyncRecord *record = apply->record;

	feed->starts_again |= record->drifted > 0 || (record->adopted && tsync_staged_rows(apply->stage) > TSYNC_MAX_FED_REPAIRS);
	feed->source_instant = record->source_instant;
	tsync_write_feed(apply->table, feed, apply->stage, record->source.rows, record->run_id);
}

/* Write to the feed that the replica has changed otherwise, although this run changes nothing. */
static void
start_feed_again(TsyncApply *apply)
{
	TsyncFeed	feed;

	lock_replica(apply->table);
	tsync_open_feed(apply->table, &feed);
	if (feed.on)
		feed_changes(apply, &feed);
}

/*
 * Merge the stage of one run, in a transaction of the caller; false when somebody
 * else has written to the replica since SCAN looked at it.
 */
bool
tsync_merge(TsyncApply *apply)
{
	TsyncStage *stage = apply->stage;
	TsyncRecord *record = apply->record;
	TsyncFeed	feed = tsync_look_at_feed(apply->table);

	Assert(IsTransactionState());
	Assert(stage->reappeared.count <= stage->deleted.count);
	record->deleted = record->updated = record->inserted = 0;
	record->replica = tsync_add_up_replica(apply->chunks);
	/* nothing to lock for: what is written at this moment is the next run's */
	if (tsync_staged_rows(stage) == 0)
	{
		announce(apply);
		if (feed.starts_again)
			start_feed_again(apply);
		return true;
	}
	/* with the lock nobody can write any more: what was written before has left a note */
	lock_replica(apply->table);
	if (tsync_was_written_to(apply->table->relid))
		return false;
	tsync_register_stage(stage);
	if (apply->table->wide)
		tsync_avoid_large_joins();
	/* not while we wait for the lock: it gives the transaction a number, which vacuum has to care for */
	announce(apply);
	/* before the merge, which makes both sides equal */
	tsync_record_differences(apply->table, apply->verify, apply->chunks, record->run_id);
	tsync_open_feed(apply->table, &feed);
	if (feed.on)
		feed_changes(apply, &feed);
	merge_stage(apply);
	tsync_advance_watermark(apply->table, TSYNC_INSERTED, TSYNC_UPDATED);
	tsync_unregister_stage(stage);
	/* what others write without a note does not add up: read it */
	if (!apply->watched)
		record->replica = digest_all(apply);
	return true;
}
