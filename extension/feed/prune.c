/*-------------------------------------------------------------------------
 *
 * prune.c
 *	  After a run: consumers are woken, and old changes are deleted.
 *
 * In transactions of their own: what goes wrong here changes nothing about the
 * run, and is done after the next one.  Changes go in batches, so that no
 * transaction is long, and not so many after one run that it would take long.
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

#define BATCH_POSITIONS 20000	/* 0.1 s, measured */
#define MAX_BATCHES 50

/* One batch. */
typedef struct PruneBatch
{
	Oid			relid;
	bool		pruned;
} PruneBatch;

/* Delete a batch of changes that are not kept any more, if there is one. */
static void
prune_batch(void *arg)
{
	PruneBatch *batch = arg;
	Oid			types[] = {OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(batch->relid), Int32GetDatum(BATCH_POSITIONS)};
	Oid			prune_types[] = {OIDOID, INT8OID};
	Datum		prune_values[] = {ObjectIdGetDatum(batch->relid), (Datum) 0};
	Oid			feed;
	bool		isnull = true;

	tsync_begin();
	batch->pruned = false;
	if (tsync_record("SELECT p.p, t.feed_table::oid FROM tablesync.prunable($1::regclass, $2) p"
					 " JOIN tablesync.all_replicas t ON t.replica = $1::regclass"
					 " WHERE p.p IS NOT NULL AND tablesync.feed_problem(t.replica, t.feed_table) IS NULL",
					 lengthof(types), types, values, NULL) > 0)
	{
		prune_values[1] = tsync_result_datum(0, 1, &isnull);
		feed = DatumGetObjectId(tsync_result_datum(0, 2, &isnull));
		/* as of now, whatever was looked at before: what triggers on it do, they do with our rights */
		LockRelationOid(feed, RowExclusiveLock);
		batch->pruned = tsync_owner_of(feed) == tsync_owner_of(batch->relid) && OidIsValid(tsync_owner_of(feed));
	}
	if (batch->pruned)
	{
		tsync_catalog_execute(psprintf("DELETE FROM %s WHERE \"position\" OPERATOR(pg_catalog.<=) $1", tsync_relation_label(feed)),
							  1, &prune_types[1], &prune_values[1], NULL);
		tsync_record("SELECT tablesync.prune_feed($1::regclass, $2)", lengthof(prune_types), prune_types, prune_values, NULL);
	}
	tsync_commit();
}

/* Wake who waits for changes, and see who has fallen behind. */
static void
settle_feed(Oid relid, int64 run_id)
{
	Oid			types[] = {OIDOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(relid), Int64GetDatum(run_id)};

	tsync_begin();
	tsync_record("SELECT tablesync.settle_feed($1::regclass, $2)", lengthof(types), types, values, NULL);
	tsync_commit();
}

/* What is to be done about the feed of a replica after a run. */
void
tsync_settle_feed(Oid relid, int64 run_id)
{
	MemoryContext caller = CurrentMemoryContext;
	PruneBatch	batch = {.relid = relid,.pruned = true};

	PG_TRY();
	{
		for (int i = 0; i < MAX_BATCHES && batch.pruned; i++)
			prune_batch(&batch);
		settle_feed(relid, run_id);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		EmitErrorReport();
		FlushErrorState();
		tsync_abort();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
}
