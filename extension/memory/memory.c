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
#include "utils/memutils.h"
#include "utils/rel.h"

#define ROWS_PER_BUCKET 32		/* not measured */
#define MAX_BUCKETS 65536

/* Fewest rows of a bucket of 64 keys that make a bitmap worth its place. */
#define MIN_ROWS_PER_BITMAP 12	/* 2 bytes a row at 24 bytes a bucket */

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
tsync_collect_buckets(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSide side, TsyncRange *range,
					  TsyncBucketing bucketing)
{
	TsyncBuckets *buckets = tsync_make_buckets(bucketing);
	const char *nonsense;

	tsync_select_each(table, side, tsync_sql_buckets(table, side, range, &bucketing, fingerprint),
					  NULL, take_bucket, buckets);
	/* groups come in any order; two sides are compared like lists that are merged */
	tsync_sort_buckets(buckets);
	if ((nonsense = tsync_nonsense_in_buckets(buckets)) != NULL)
		tsync_refuse_answer(table, nonsense);
	return buckets;
}

/* Smallest and largest of the replica's integer keys in a chunk; 0 and 0 if none. */
void
tsync_key_span(TsyncTable *table, TsyncRange *range, int64 *first, int64 *last)
{
	if (tsync_select(table, TSYNC_REPLICA, tsync_sql_key_span(table, range), NULL) != 1 ||
		SPI_gettypeid(SPI_tuptable->tupdesc, 1) != INT8OID || SPI_gettypeid(SPI_tuptable->tupdesc, 2) != INT8OID)
		elog(ERROR, "a span of keys is not two integers");
	*first = tsync_result_int64(0, 1);
	*last = tsync_result_int64(0, 2);
	SPI_freetuptable(SPI_tuptable);
}

/* Distance from the smallest to the largest integer key of a chunk. */
static uint64
key_distance(TsyncTable *table, TsyncRange *range)
{
	int64		first;
	int64		last;

	if (range->lower && range->upper)
		return (uint64) strtoll(range->upper[0], NULL, 10) -
			(uint64) strtoll(range->lower[0], NULL, 10);
	tsync_key_span(table, range, &first, &last);
	return (uint64) last - (uint64) first;
}

/*
 * Choose the buckets of a chunk: bitmaps of 64 keys where integers are dense,
 * else buckets of about ROWS_PER_BUCKET rows.  The mask bounds their number
 * where keys are sparse or outside of what the replica has.
 */
static TsyncBucketing
choose_buckets(TsyncTable *table, TsyncChunk *chunk)
{
	TsyncBucketing bucketing = {0, 0};
	int64		buckets = 1;
	bool		integer = table->nkeys == 1 && tsync_is_integer(table->keys[0]->type);
	uint64		span = integer ? key_distance(table, &chunk->range) : 0;

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
fit_chunk(TsyncTable *table, TsyncChunk *chunk, TsyncBuckets *buckets)
{
	bool		integer = table->nkeys == 1 && tsync_is_integer(table->keys[0]->type);

	return (integer || buckets->bucketing.mask != TSYNC_BITMAP_MASK) &&
		tsync_digest_equal(tsync_digest_of_buckets(buckets), chunk->replica);
}

/*
 * The buckets that the replica has in a chunk: remembered, or counted now, which
 * by xmin tells the rows but no sums.
 */
TsyncBuckets *
tsync_buckets_of_replica(TsyncTable *table, TsyncFingerprint fingerprint, TsyncChunk *chunk)
{
	TsyncBuckets *counted;

	if (chunk->has_buckets)
	{
		TsyncBucketing bucketing;
		bytea	   *packed = tsync_read_buckets(table, chunk, &bucketing);
		TsyncBuckets *buckets = tsync_make_buckets(bucketing);
		bool		unpacked = tsync_unpack_buckets(packed, tsync_hint(table, fingerprint), buckets);

		pfree(packed);
		/* nobody promises that the bytes are ours: they must add up to the digest */
		if (unpacked && fit_chunk(table, chunk, buckets))
			return buckets;
		ereport(WARNING,
				(errmsg("what is remembered of chunk %d of replica %s contradicts itself",
						chunk->number, table->label),
				 errdetail("The replica is read instead.")));
	}
	counted = tsync_collect_buckets(table, fingerprint, TSYNC_REPLICA, &chunk->range, choose_buckets(table, chunk));
	counted->without_sums = fingerprint.xmin;
	return counted;
}

/*
 * Digest a chunk of the replica that is unknown or stale, and remember it unless
 * the digest is not of the usual fingerprint.  A chunk that is likely to differ
 * again gets buckets too, for the source must not wait for them.  Returns whether
 * it has drifted: holds something else than a run has proved.
 */
static bool
digest_replica(TsyncTable *table, TsyncFingerprint fingerprint, TsyncChunk *chunk, bool remember)
{
	bool		drifted = false;
	TsyncBuckets *buckets = NULL;
	TsyncDigest now;

	if (chunk->differed && !chunk->has_buckets)
	{
		buckets = tsync_collect_buckets(table, fingerprint, TSYNC_REPLICA, &chunk->range, choose_buckets(table, chunk));
		now = tsync_digest_of_buckets(buckets);
	}
	else
		now = tsync_select_digest(table, TSYNC_REPLICA,
								  tsync_sql_digest(table, TSYNC_REPLICA, &chunk->range, fingerprint));
	if (!tsync_digest_equal(now, chunk->replica))
	{
		drifted = chunk->stale && chunk->proved;	/* or it was never known */
		/* they are of what it held before */
		chunk->has_buckets = false;
	}
	chunk->replica = now;
	chunk->expected_rows = now.rows;
	chunk->known = true;
	chunk->stale = false;
	if (!remember)
		return drifted;
	if (buckets != NULL || !chunk->has_buckets)
	{
		chunk->has_buckets = (buckets != NULL);
		chunk->has_bitmaps = buckets && buckets->bucketing.mask == TSYNC_BITMAP_MASK;
		tsync_write_memory(table, chunk, buckets ? &buckets->bucketing : NULL,
						   buckets ? tsync_pack_buckets(buckets, tsync_hint(table, fingerprint)) : NULL);
	}
	else
		tsync_write_digest(table, chunk);
	return drifted;
}

/* Count the rows of a chunk of the replica, which has nothing else that a digest by xmin is made of. */
static void
count_replica(TsyncTable *table, TsyncFingerprint fingerprint, TsyncChunk *chunk)
{
	chunk->replica = tsync_select_digest(table, TSYNC_REPLICA,
										 tsync_sql_digest(table, TSYNC_REPLICA, &chunk->range, fingerprint));
	chunk->expected_rows = chunk->replica.rows;
	chunk->known = true;
}

/*
 * Make sure that every chunk's digest is known before the source is read, in
 * transactions of its own; returns how many chunks have drifted.
 */
int
tsync_know_replica(TsyncTable *table, TsyncFingerprint fingerprint, List *chunks, bool remember)
{
	int			drifted = 0;
	MemoryContext chunk_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync memory",
														ALLOCSET_DEFAULT_SIZES);
	ListCell   *lc;

	Assert(!IsTransactionState());
	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (chunk->by_row ? fingerprint.xmin : chunk->known && (fingerprint.xmin || chunk->has_buckets || !chunk->differed))
			continue;
		tsync_begin_in(chunk_context);
		if (fingerprint.xmin)
			count_replica(table, fingerprint, chunk);
		else
			drifted += digest_replica(table, fingerprint, chunk, remember);
		tsync_commit();
		MemoryContextReset(chunk_context);
		tsync_progress_step(1, chunk->replica.rows);
	}
	MemoryContextDelete(chunk_context);
	return drifted;
}

/* Make the row set in which changed memory waits for APPLY, or empty it. */
void
tsync_clear_memory(TsyncRowSet *memory)
{
	TupleDesc	desc;

	if (memory->rows != NULL)
	{
		tsync_rowset_clear(memory);
		return;
	}
	desc = CreateTemplateTupleDesc(4);
	TupleDescInitEntry(desc, 1, "chunk_no", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 2, "bucket_shift", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 3, "bucket_mask", INT8OID, -1, 0);
	TupleDescInitEntry(desc, 4, "buckets", BYTEAOID, -1, 0);
	tsync_rowset_init(memory, "tsync_memory", desc);
}

/* Stage what the replica will hold in a chunk after APPLY. */
void
tsync_stage_memory(TsyncTable *table, TsyncFingerprint fingerprint, TsyncRowSet *memory, TsyncChunk *chunk,
				   TsyncBuckets *buckets)
{
	bytea	   *packed = tsync_pack_buckets(buckets, tsync_hint(table, fingerprint));
	Datum		values[] = {
		Int32GetDatum(chunk->number),
		Int32GetDatum(buckets->bucketing.shift),
		Int64GetDatum(buckets->bucketing.mask),
		PointerGetDatum(packed)
	};
	bool		nulls[lengthof(values)] = {false};

	Assert(!chunk->by_row);		/* what is remembered is made of the usual fingerprint */
	tuplestore_putvalues(memory->rows, memory->tupdesc, values, nulls);
	memory->count++;
	pfree(packed);
}

/* Write the staged memory of one chunk. */
static void
write_staged(TsyncTable *table, List *chunks, TupleTableSlot *slot)
{
	TsyncBucketing bucketing;
	TsyncChunk *chunk;

	slot_getallattrs(slot);
	chunk = list_nth(chunks, DatumGetInt32(slot->tts_values[0]));
	bucketing.shift = DatumGetInt32(slot->tts_values[1]);
	bucketing.mask = DatumGetInt64(slot->tts_values[2]);
	tsync_write_memory(table, chunk, &bucketing, DatumGetByteaP(slot->tts_values[3]));
}

/*
 * Remember the chunks as they are after APPLY, in its transaction.  Where rows
 * were spared by CONFIRM, nobody knows in which chunk: those that differed are
 * read again by the next run.
 */
void
tsync_save_memory(TsyncTable *table, List *chunks, TsyncRowSet *memory, bool spared)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(memory->tupdesc, &TTSOpsMinimalTuple);
	ListCell   *lc;

	Assert(IsTransactionState());	/* that of APPLY */
	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->known = !(spared && chunk->differs);
		chunk->replica = chunk->source;
		/* rows that were written anew and are the same have other fingerprints by xmin, and count as seen from now on */
		if (!chunk->known || chunk->learned ||
			(chunk->by_row && (chunk->differs || !tsync_digest_equal(chunk->source, chunk->remembered))))
			tsync_write_memory(table, chunk, NULL, NULL);
		else if (chunk->expected && !chunk->differs)
			tsync_write_digest(table, chunk);
	}
	tsync_rowset_start(memory);
	while (!spared && tsync_rowset_next(memory, slot))
		write_staged(table, chunks, slot);
	ExecDropSingleTupleTableSlot(slot);
}

/* What the replica holds, by what is known of its chunks. */
TsyncDigest
tsync_add_up_replica(List *chunks)
{
	TsyncDigest replica = {0, 0};
	ListCell   *lc;

	foreach(lc, chunks)
		tsync_add_digest(&replica, ((TsyncChunk *) lfirst(lc))->replica);
	return replica;
}
