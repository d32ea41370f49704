/*-------------------------------------------------------------------------
 *
 * scan.c
 *	  SCAN and CONFIRM: find what differs between source and replica.
 *
 * Each chunk is compared by digest.  Where the digests differ, or did so in
 * the last run, the chunk's buckets are compared; the keys of the buckets that
 * differ are listed and compared one by one; the rows that are new or changed
 * are fetched into the stage.  All that is read from the source for one chunk
 * comes from one snapshot, because postgres_fdw runs each of our transactions
 * as one REPEATABLE READ transaction there.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define ROWS_PER_BUCKET 32
#define MAX_BUCKETS 65536

/* Buckets in excess of this share of a chunk are not worth a filter. */
#define MAX_FILTER_FRACTION 0.5

typedef struct BucketEntry
{
	int64		bucket;			/* hash key */
	int64		rows;			/* source's minus replica's */
	uint64		sum;			/* likewise */
} BucketEntry;

/* Row sets that one chunk fills and the next one clears. */
typedef struct DiffState
{
	TsyncRowSet listed;			/* source: keys with version or fingerprint */
	TsyncRowSet differing;		/* keys with i, u or d */
	TsyncRowSet to_insert;		/* keys */
	TsyncRowSet to_update;		/* keys */
	MemoryContext chunk_context;
} DiffState;

static DiffState *
diff_state_create(TsyncReplica *replica)
{
	DiffState  *state = palloc0(sizeof(DiffState));
	TupleDesc	listed = tsync_key_desc(replica, 1);
	TupleDesc	differing = tsync_key_desc(replica, 1);

	if (replica->row_fingerprint)
		TupleDescInitEntry(listed, replica->nkeys + 1, replica->fingerprint_column, NUMERICOID, -1, 0);
	else
		TupleDescInitEntry(listed, replica->nkeys + 1, replica->version->name,
						   replica->version->type, replica->version->typmod, 0);
	TupleDescInitEntry(differing, replica->nkeys + 1, "difference", CHAROID, -1, 0);

	tsync_rowset_init(&state->listed, "tsync_listed", listed);
	tsync_rowset_init(&state->differing, "tsync_differing", differing);
	tsync_rowset_init(&state->to_insert, "tsync_to_insert", tsync_key_desc(replica, 0));
	tsync_rowset_init(&state->to_update, "tsync_to_update", tsync_key_desc(replica, 0));
	state->chunk_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync chunk",
												 ALLOCSET_DEFAULT_SIZES);
	return state;
}

static void
diff_state_destroy(DiffState *state)
{
	tuplestore_end(state->listed.rows);
	tuplestore_end(state->differing.rows);
	tuplestore_end(state->to_insert.rows);
	tuplestore_end(state->to_update.rows);
	MemoryContextDelete(state->chunk_context);
}

static void
diff_state_clear(DiffState *state)
{
	tsync_rowset_clear(&state->listed);
	tsync_rowset_clear(&state->differing);
	tsync_rowset_clear(&state->to_insert);
	tsync_rowset_clear(&state->to_update);
	MemoryContextReset(state->chunk_context);
}

static bool
digest_equal(TsyncDigest a, TsyncDigest b)
{
	return a.rows == b.rows && a.sum == b.sum;
}

/* Distance from the smallest to the largest integer key of a chunk. */
static uint64
key_span(TsyncRun *run, TsyncChunk *chunk)
{
	uint64		span = 0;
	bool		isnull;

	if (chunk->lower && chunk->upper)
		return (uint64) strtoll(chunk->upper[0], NULL, 10) -
			(uint64) strtoll(chunk->lower[0], NULL, 10);

	if (tsync_select(run, TSYNC_REPLICA, tsync_sql_key_span(run->replica, chunk), NULL) == 1)
	{
		HeapTuple	tuple = SPI_tuptable->vals[0];
		Datum		min = SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull);
		Datum		max = SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull);

		if (!isnull)
			span = (uint64) DatumGetInt64(max) - (uint64) DatumGetInt64(min);
	}
	SPI_freetuptable(SPI_tuptable);
	return span;
}

/*
 * Choose buckets of about ROWS_PER_BUCKET rows.  Neighbouring integers share
 * a bucket, so that changes that lie close together touch few; the mask
 * bounds the number of buckets where keys are sparse or outside of what the
 * replica has.
 */
static TsyncBucketing
choose_buckets(TsyncRun *run, TsyncChunk *chunk)
{
	TsyncBucketing bucketing = {0, 0};
	int64		buckets = 1;

	while (buckets < MAX_BUCKETS && buckets * ROWS_PER_BUCKET < chunk->expected_rows)
		buckets *= 2;
	bucketing.mask = buckets - 1;

	if (run->replica->nkeys == 1 && tsync_is_integer(run->replica->keys[0]->type))
	{
		uint64		span = key_span(run, chunk);

		while (bucketing.shift < 62 && (span >> bucketing.shift) >= (uint64) buckets)
			bucketing.shift++;
	}
	return bucketing;
}

/* Add the buckets of one side to the table (the replica's are subtracted). */
static TsyncDigest
add_buckets(TsyncRun *run, TsyncSide side, const char *sql, HTAB *table)
{
	TsyncDigest total = {0, 0};
	SPITupleTable *result;

	tsync_select(run, side, sql, NULL);
	result = SPI_tuptable;
	for (uint64 i = 0; i < result->numvals; i++)
	{
		BucketEntry *entry;
		bool		found;
		bool		isnull;
		int64		bucket = DatumGetInt64(SPI_getbinval(result->vals[i], result->tupdesc, 1, &isnull));
		int64		rows = DatumGetInt64(SPI_getbinval(result->vals[i], result->tupdesc, 2, &isnull));
		char	   *decimal = SPI_getvalue(result->vals[i], result->tupdesc, 3);
		uint64		sum;

		if (decimal == NULL)
			elog(ERROR, "fingerprints of a bucket are NULL");
		sum = tsync_sum_to_uint64(decimal);
		pfree(decimal);
		entry = hash_search(table, &bucket, HASH_ENTER, &found);
		if (!found)
			entry->rows = entry->sum = 0;
		entry->rows += side == TSYNC_SOURCE ? rows : -rows;
		entry->sum += side == TSYNC_SOURCE ? sum : -sum;
		total.rows += rows;
		total.sum += sum;
	}
	SPI_freetuptable(result);
	return total;
}

/* Compare the buckets of a chunk; returns those that differ. */
static List *
compare_buckets(TsyncRun *run, TsyncChunk *chunk, TsyncBucketing *bucketing)
{
	TsyncReplica *replica = run->replica;
	HASHCTL		ctl = {.keysize = sizeof(int64),.entrysize = sizeof(BucketEntry),
	.hcxt = CurrentMemoryContext};
	HTAB	   *table = hash_create("tablesync buckets", bucketing->mask + 1, &ctl,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	HASH_SEQ_STATUS scan;
	BucketEntry *entry;
	List	   *differing = NIL;

	chunk->source = add_buckets(run, TSYNC_SOURCE,
								tsync_sql_buckets(replica, TSYNC_SOURCE, chunk, bucketing,
												  run->source_version), table);
	chunk->replica = add_buckets(run, TSYNC_REPLICA,
								 tsync_sql_buckets(replica, TSYNC_REPLICA, chunk, bucketing,
												   run->source_version), table);
	hash_seq_init(&scan, table);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->rows != 0 || entry->sum != 0)
			differing = lappend_int(differing, (int) entry->bucket);
	hash_destroy(table);
	return differing;
}

/* Sort the differing keys into what is to be deleted, inserted and updated. */
static void
sort_differing_keys(TsyncRun *run, DiffState *state)
{
	int			nkeys = run->replica->nkeys;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(state->differing.tupdesc, &TTSOpsMinimalTuple);

	tsync_rowset_start(&state->differing);
	while (tsync_rowset_next(&state->differing, slot))
	{
		TsyncRowSet *set;

		slot_getallattrs(slot);
		switch (DatumGetChar(slot->tts_values[nkeys]))
		{
			case 'd':
				set = &run->stage->deleted;
				break;
			case 'i':
				set = &state->to_insert;
				break;
			default:
				set = &state->to_update;
		}
		tuplestore_putvalues(set->rows, set->tupdesc, slot->tts_values, slot->tts_isnull);
		set->count++;
	}
	ExecDropSingleTupleTableSlot(slot);
}

/* Find the differing keys of some buckets and stage what they need. */
static void
localise(TsyncRun *run, DiffState *state, TsyncChunk *chunk, TsyncBucketing *bucketing,
		 List *buckets)
{
	TsyncReplica *replica = run->replica;

	if (list_length(buckets) > (bucketing->mask + 1) * MAX_FILTER_FRACTION)
		buckets = NIL;
	tsync_select_into(run, TSYNC_SOURCE,
					  tsync_sql_list_source(replica, chunk, bucketing, buckets,
											run->source_version), &state->listed);
	tsync_rowset_register(&state->listed);
	tsync_select_into(run, TSYNC_REPLICA,
					  tsync_sql_compare(replica, state->listed.name, chunk, bucketing, buckets,
										run->source_version), &state->differing);
	SPI_unregister_relation(state->listed.name);
	sort_differing_keys(run, state);
	tsync_fetch_rows(run, &state->to_insert, &run->stage->inserted);
	tsync_fetch_rows(run, &state->to_update, &run->stage->updated);
}

static void
scan_chunk(TsyncRun *run, DiffState *state, TsyncChunk *chunk)
{
	MemoryContext caller = MemoryContextSwitchTo(state->chunk_context);
	TsyncBucketing bucketing;
	List	   *buckets;

	if (!chunk->differed)
	{
		chunk->source = tsync_select_digest(run, TSYNC_SOURCE,
											tsync_sql_digest(run->replica, TSYNC_SOURCE, chunk,
															 run->source_version));
		chunk->replica = tsync_select_digest(run, TSYNC_REPLICA,
											 tsync_sql_digest(run->replica, TSYNC_REPLICA, chunk,
															  run->source_version));
		chunk->differs = !digest_equal(chunk->source, chunk->replica);
	}
	if (chunk->differed || chunk->differs)
	{
		bucketing = choose_buckets(run, chunk);
		buckets = compare_buckets(run, chunk, &bucketing);
		chunk->differs = (buckets != NIL);
		if (chunk->differs)
			localise(run, state, chunk, &bucketing, buckets);
	}
	MemoryContextSwitchTo(caller);
	diff_state_clear(state);
}

/* Forget what an earlier attempt of this run has found. */
static void
reset_scan(TsyncRun *run)
{
	tsync_stage_clear(run->stage);
	run->chunks = NIL;
	run->source = (TsyncDigest) {0, 0};
}

/*
 * SCAN: compare source and replica chunk by chunk and stage the differences.
 * The source sees one transaction for all chunks, or one for each.
 */
void
tsync_scan(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	DiffState  *state;
	int64		busy = run->source_time;
	int64		expected = 0;
	ListCell   *lc;

	reset_scan(run);
	tsync_begin();
	MemoryContextSwitchTo(run_context);
	state = diff_state_create(run->replica);
	tsync_plan_chunks(run);
	tsync_commit();
	MemoryContextSwitchTo(run_context);

	foreach(lc, run->chunks)
		expected += ((TsyncChunk *) lfirst(lc))->expected_rows;
	run->snapshot = tsync_use_snapshot(run->replica, expected);
	tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(run->chunks), expected);

	if (run->snapshot)
		tsync_begin();
	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (!run->snapshot)
			tsync_begin();
		scan_chunk(run, state, chunk);
		if (!run->snapshot)
		{
			tsync_commit();
			tsync_rest(run->replica, run->source_time - busy);
			busy = run->source_time;
		}
		run->source.rows += chunk->source.rows;
		run->source.sum += chunk->source.sum;
		tsync_progress_step(1, chunk->source.rows);
	}
	if (run->snapshot)
	{
		/* not earlier: the source would be idle in a transaction of ours */
		tsync_commit();
		tsync_rest(run->replica, run->source_time - busy);
	}
	MemoryContextSwitchTo(run_context);
	diff_state_destroy(state);
}

/* Note which of some keys to be deleted the source still has. */
static void
find_again(TsyncRun *run, List *keys, void *arg)
{
	tsync_select_into(run, TSYNC_SOURCE, tsync_sql_find_keys(run->replica, keys),
					  &run->stage->reappeared);
	tsync_progress_step(0, list_length(keys));
}

/*
 * CONFIRM: look up the keys to be deleted again, in a new remote transaction,
 * and note those that are still there.
 */
void
tsync_confirm(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;

	if (run->stage->deleted.count == 0)
		return;
	tsync_progress_phase(TSYNC_PHASE_CONFIRM, 0, run->stage->deleted.count);
	tsync_begin();
	MemoryContextSwitchTo(run_context);
	tsync_for_keys(run, &run->stage->deleted, find_again, NULL);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
}
