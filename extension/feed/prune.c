/*-------------------------------------------------------------------------
 *
 * prune.c
 *	  After a run: consumers are woken, and old changes are deleted.
 *
 * In transactions of their own: what goes wrong here changes nothing about the
 * run, and is done after the next one.  Changes go in batches, so that no
 * transaction is long.  Who waits for the run waits for this too: so there are
 * few of them, unless runs write more than that.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "feed/feed.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lmgr.h"

#define BATCH_POSITIONS 20000	/* of updates: 30 ms, measured */
#define MIN_BATCHES 5

/* One batch. */
typedef struct PruneBatch
{
	Oid			relid;
	int64		run_id;
	bool		pruned;
	int64		written;		/* changes that the last run has written which wrote some */
} PruneBatch;

/* Delete a batch of changes that are not kept any more, if there is one. */
static void
prune_batch(void *arg)
{
	PruneBatch *batch = arg;
	Oid			types[] = {OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(batch->relid), Int32GetDatum(BATCH_POSITIONS)};
	Oid			prune_types[] = {OIDOID, INT8OID, INT8OID};
	Datum		prune_values[lengthof(prune_types)] = {ObjectIdGetDatum(batch->relid)};
	Oid			feed = InvalidOid;
	bool		isnull = true;

	tsync_begin();
	batch->pruned = false;
	if (tsync_record("SELECT p.p, t.feed_table::oid, t.feed_pruned,"
					 " (SELECT f.last_position - f.first_position + 1 FROM tablesync.all_fed_runs f WHERE f.replica = t.replica AND f.last_position = t.feed_position)"
					 " FROM tablesync.prunable($1::regclass, $2) p"
					 " JOIN tablesync.all_replicas t ON t.replica = $1::regclass"
					 " WHERE p.p IS NOT NULL AND tablesync.feed_problem(t.replica, t.feed_table) IS NULL",
					 lengthof(types), types, values, NULL) > 0)
	{
		prune_values[1] = tsync_result_datum(0, 1, &isnull);
		feed = DatumGetObjectId(tsync_result_datum(0, 2, &isnull));
		prune_values[2] = tsync_result_datum(0, 3, &isnull);
		batch->written = tsync_result_int64(0, 4);
		/* as of now, whatever was looked at before: what triggers on it do, they do with our rights */
		LockRelationOid(feed, RowExclusiveLock);
		batch->pruned = tsync_owner_of(feed) == tsync_owner_of(batch->relid) && OidIsValid(tsync_owner_of(feed));
	}
	if (batch->pruned)
	{
		/* from the last one on: the index still has what went before */
		tsync_catalog_execute(psprintf("DELETE FROM %s WHERE \"position\" OPERATOR(pg_catalog.<=) $1 AND \"position\" OPERATOR(pg_catalog.>) $2",
									   tsync_relation_label(feed)),
							  2, &prune_types[1], &prune_values[1], NULL);
		tsync_record("SELECT tablesync.prune_feed($1::regclass, $2)", 2, prune_types, prune_values, NULL);
	}
	tsync_commit();
}

/* Delete what is not kept any more. */
static void
prune_feed(PruneBatch *batch)
{
	batch->pruned = true;
	/* twice what is written, so that a feed which has grown gets smaller again */
	for (int i = 0; batch->pruned && (i < MIN_BATCHES || (int64) i * BATCH_POSITIONS < 2 * batch->written); i++)
		prune_batch(batch);
}

/* Wake who waits for changes, and see who has fallen behind. */
static void
settle_feed(PruneBatch *batch)
{
	Oid			types[] = {OIDOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(batch->relid), Int64GetDatum(batch->run_id)};

	tsync_begin();
	tsync_record("SELECT tablesync.settle_feed($1::regclass, $2)", lengthof(types), types, values, NULL);
	tsync_commit();
}

/* Do one of both, unless it fails, is cancelled, or waits too long: users may have locked the feed for as long as they like. */
static void
try_to(void (*step) (PruneBatch *batch), PruneBatch *batch)
{
	MemoryContext caller = CurrentMemoryContext;

	PG_TRY();
	{
		tsync_interrupt_recording();
		step(batch);
		tsync_begin_recording();
	}
	PG_CATCH();
	{
		tsync_begin_recording();
		tsync_abort();
		MemoryContextSwitchTo(caller);
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
}

/* What is to be done about the feed of a replica after a run. */
void
tsync_settle_feed(Oid relid, int64 run_id)
{
	PruneBatch	batch = {.relid = relid,.run_id = run_id};

	try_to(prune_feed, &batch);
	try_to(settle_feed, &batch);
}
