/*-------------------------------------------------------------------------
 *
 * memory.c
 *	  What the replica holds, remembered from run to run.
 *
 * tablesync.chunk has the digest of every chunk and, of chunks that change,
 * the rows and digest of every bucket, so that a run reads only the source.
 * A run keeps this true itself, in the transaction of APPLY.  Whatever else
 * writes to the replica makes it stale: a statement trigger leaves a row in
 * tablesync.stray_write, a rewrite changes the file node.  The next run then
 * digests the replica again, and knows which chunks somebody has changed.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "commands/trigger.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "memory/memory.h"
#include "process/process.h"
#include "query/query.h"
#include "run/run.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"

#define ROWS_PER_BUCKET 32
#define MAX_BUCKETS 65536

/* Fewest rows of a bucket of 64 keys that make a bitmap worth its place. */
#define MIN_ROWS_PER_BITMAP 12

static void
take_bucket(TupleTableSlot *slot, void *arg)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;
	TsyncBucket *bucket = tsync_add_bucket(arg);

	bucket->number = tsync_slot_integer(slot, 1);
	bucket->rows = (uint64) tsync_slot_integer(slot, 2);
	bucket->sum = tsync_slot_sum(slot, 3);
	bucket->recent = bucket->moment = 0;
	if (desc->natts > 3 && TupleDescAttr(desc, 3)->atttypid == NUMERICOID)
		bucket->moment = tsync_slot_sum(slot, 4);
	else if (desc->natts > 3)
		bucket->recent = (uint64) tsync_slot_integer(slot, 4);
}

/* The buckets of one side of a chunk, in the current memory context. */
TsyncBuckets *
tsync_collect_buckets(TsyncRun *run, TsyncSide side, TsyncChunk *chunk, TsyncBucketing bucketing)
{
	TsyncBuckets *buckets = tsync_make_buckets(bucketing);
	const char *nonsense;

	tsync_select_each(run, side, tsync_sql_buckets(run->replica, side, chunk, &bucketing,
												   run->source_version), NULL, take_bucket, buckets);
	tsync_sort_buckets(buckets);
	if ((nonsense = tsync_nonsense_in_buckets(buckets)) != NULL)
		tsync_refuse_answer(run, nonsense);
	return buckets;
}

/* Smallest and largest of the replica's integer keys in a chunk; 0 and 0 if none. */
void
tsync_key_span(TsyncRun *run, TsyncChunk *chunk, int64 *first, int64 *last)
{
	bool		isnull = true;
	HeapTuple	tuple;

	*first = *last = 0;
	if (tsync_select(run, TSYNC_REPLICA, tsync_sql_key_span(run->replica, chunk), NULL) != 1)
		return;
	tuple = SPI_tuptable->vals[0];
	if (SPI_gettypeid(SPI_tuptable->tupdesc, 1) != INT8OID || SPI_gettypeid(SPI_tuptable->tupdesc, 2) != INT8OID)
		elog(ERROR, "a span of keys is not two integers");
	*first = DatumGetInt64(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull));
	*last = DatumGetInt64(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull));
	if (isnull)
		*first = *last = 0;
	SPI_freetuptable(SPI_tuptable);
}

/* Distance from the smallest to the largest integer key of a chunk. */
static uint64
key_distance(TsyncRun *run, TsyncChunk *chunk)
{
	int64		first;
	int64		last;

	if (chunk->lower && chunk->upper)
		return (uint64) strtoll(chunk->upper[0], NULL, 10) -
			(uint64) strtoll(chunk->lower[0], NULL, 10);
	tsync_key_span(run, chunk, &first, &last);
	return (uint64) last - (uint64) first;
}

/*
 * Choose the buckets of a chunk: bitmaps of 64 keys where integers are dense,
 * else buckets of about ROWS_PER_BUCKET rows.  The mask bounds their number
 * where keys are sparse or outside of what the replica has.
 */
static TsyncBucketing
choose_buckets(TsyncRun *run, TsyncChunk *chunk)
{
	TsyncBucketing bucketing = {0, 0};
	int64		buckets = 1;
	bool		integer = run->replica->nkeys == 1 && tsync_is_integer(run->replica->keys[0]->type);
	uint64		span = integer ? key_distance(run, chunk) : 0;

	if (integer && (span >> TSYNC_BITMAP_SHIFT) * MIN_ROWS_PER_BITMAP <= (uint64) chunk->expected_rows)
	{
		bucketing.shift = TSYNC_BITMAP_SHIFT;
		bucketing.mask = TSYNC_BITMAP_MASK;
		return bucketing;
	}
	while (buckets < MAX_BUCKETS && buckets * ROWS_PER_BUCKET < chunk->expected_rows)
		buckets *= 2;
	bucketing.mask = buckets - 1;
	while (bucketing.shift < 62 && (span >> bucketing.shift) >= (uint64) buckets)
		bucketing.shift++;
	return bucketing;
}

/* Are bitmaps possible for this key, and is the sum of all that of the chunk? */
static bool
fit_chunk(TsyncRun *run, TsyncChunk *chunk, TsyncBuckets *buckets)
{
	bool		integer = run->replica->nkeys == 1 && tsync_is_integer(run->replica->keys[0]->type);

	return (integer || buckets->bucketing.mask != TSYNC_BITMAP_MASK) &&
		tsync_digest_equal(tsync_digest_of_buckets(buckets), chunk->replica);
}

/* The buckets that the replica has in a chunk: remembered, or counted now. */
TsyncBuckets *
tsync_buckets_of_replica(TsyncRun *run, TsyncChunk *chunk)
{
	if (chunk->has_buckets)
	{
		TsyncBucketing bucketing;
		bytea	   *packed = tsync_read_buckets(run->replica, chunk, &bucketing);
		TsyncBuckets *buckets = tsync_make_buckets(bucketing);
		bool		unpacked = tsync_unpack_buckets(packed, tsync_hint(run->replica), buckets);

		pfree(packed);
		if (unpacked && fit_chunk(run, chunk, buckets))
			return buckets;
		ereport(WARNING,
				(errmsg("what is remembered of chunk %d of replica %s contradicts itself",
						chunk->number, run->replica->label),
				 errdetail("The replica is read instead.")));
	}
	return tsync_collect_buckets(run, TSYNC_REPLICA, chunk, choose_buckets(run, chunk));
}

/*
 * Digest a chunk of the replica that is unknown or stale.  One that is likely
 * to differ again gets buckets too, for the source must not wait for them.
 */
static void
digest_replica(TsyncRun *run, TsyncChunk *chunk)
{
	TsyncBuckets *buckets = NULL;
	TsyncDigest now;

	if (chunk->differed && !chunk->has_buckets)
	{
		buckets = tsync_collect_buckets(run, TSYNC_REPLICA, chunk, choose_buckets(run, chunk));
		now = tsync_digest_of_buckets(buckets);
	}
	else
		now = tsync_select_digest(run, TSYNC_REPLICA,
								  tsync_sql_digest(run->replica, TSYNC_REPLICA, chunk,
												   run->source_version));
	if (now.rows != chunk->replica.rows || now.sum != chunk->replica.sum)
	{
		run->drifted += chunk->stale && chunk->proved;	/* or it was never known */
		chunk->has_buckets = false;
	}
	chunk->replica = now;
	chunk->expected_rows = now.rows;
	chunk->known = true;
	chunk->stale = false;
	if (run->verify)
		return;					/* this digest is not the one that is remembered */
	if (buckets != NULL || !chunk->has_buckets)
	{
		chunk->has_buckets = (buckets != NULL);
		chunk->has_bitmaps = buckets && buckets->bucketing.mask == TSYNC_BITMAP_MASK;
		tsync_write_memory(run->replica, chunk, buckets ? &buckets->bucketing : NULL,
						   buckets ? tsync_pack_buckets(buckets, tsync_hint(run->replica)) : NULL);
	}
	else
		tsync_write_digest(run->replica, chunk);
}

/* Make sure that every chunk's digest is known before the source is read. */
void
tsync_know_replica(TsyncRun *run)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext chunk_context = AllocSetContextCreate(caller, "tablesync memory",
														ALLOCSET_DEFAULT_SIZES);
	ListCell   *lc;

	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (chunk->known && (chunk->has_buckets || !chunk->differed))
			continue;
		tsync_begin();
		MemoryContextSwitchTo(chunk_context);
		digest_replica(run, chunk);
		tsync_commit();
		MemoryContextReset(chunk_context);
		tsync_progress_step(1, chunk->replica.rows);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(chunk_context);
}

/* Make the row set in which changed memory waits for APPLY, or empty it. */
void
tsync_clear_memory(TsyncRun *run)
{
	TupleDesc	desc;

	if (run->memory.rows != NULL)
	{
		tsync_rowset_clear(&run->memory);
		return;
	}
	desc = CreateTemplateTupleDesc(4);
	TupleDescInitEntry(desc, 1, "chunk_no", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 2, "bucket_shift", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 3, "bucket_mask", INT8OID, -1, 0);
	TupleDescInitEntry(desc, 4, "buckets", BYTEAOID, -1, 0);
	tsync_rowset_init(&run->memory, "tsync_memory", desc);
}

/* Stage what the replica will hold in a chunk after APPLY. */
void
tsync_stage_memory(TsyncRun *run, TsyncChunk *chunk, TsyncBuckets *buckets)
{
	TsyncRowSet *set = &run->memory;
	bytea	   *packed = tsync_pack_buckets(buckets, tsync_hint(run->replica));
	Datum		values[] = {
		Int32GetDatum(chunk->number),
		Int32GetDatum(buckets->bucketing.shift),
		Int64GetDatum(buckets->bucketing.mask),
		PointerGetDatum(packed)
	};
	bool		nulls[lengthof(values)] = {false};

	tuplestore_putvalues(set->rows, set->tupdesc, values, nulls);
	set->count++;
	pfree(packed);
}

/* Write the staged memory of one chunk. */
static void
write_staged(TsyncRun *run, TupleTableSlot *slot)
{
	TsyncBucketing bucketing;
	TsyncChunk *chunk;

	slot_getallattrs(slot);
	chunk = list_nth(run->chunks, DatumGetInt32(slot->tts_values[0]));
	bucketing.shift = DatumGetInt32(slot->tts_values[1]);
	bucketing.mask = DatumGetInt64(slot->tts_values[2]);
	tsync_write_memory(run->replica, chunk, &bucketing, DatumGetByteaP(slot->tts_values[3]));
}

/*
 * Remember the chunks as they are after APPLY, in its transaction.  Where rows
 * were spared by CONFIRM, nobody knows in which chunk: those that differed are
 * read again by the next run.
 */
void
tsync_save_memory(TsyncRun *run)
{
	TsyncRowSet *set = &run->memory;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(set->tupdesc, &TTSOpsMinimalTuple);
	bool		spared = run->stage->reappeared.count > 0;
	ListCell   *lc;

	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->known = !(spared && chunk->differs);
		chunk->replica = chunk->source;
		if (!chunk->known || (chunk->by_row && chunk->differs))
			tsync_write_memory(run->replica, chunk, NULL, NULL);
		else if (chunk->differed && !chunk->differs)
			tsync_write_digest(run->replica, chunk);
	}
	tsync_rowset_start(set);
	while (!spared && tsync_rowset_next(set, slot))
		write_staged(run, slot);
	ExecDropSingleTupleTableSlot(slot);
}

/* What the replica holds before APPLY. */
void
tsync_add_up_replica(TsyncRun *run)
{
	ListCell   *lc;

	run->result = (TsyncDigest) {0, 0};
	foreach(lc, run->chunks)
		tsync_add_digest(&run->result, ((TsyncChunk *) lfirst(lc))->replica);
}
