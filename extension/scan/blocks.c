/*-------------------------------------------------------------------------
 *
 * blocks.c
 *	  Reading the source in the order of its blocks.
 *
 * That costs about half of what reading by key does, and rows that lie in the
 * order of their keys share buckets.  A range of blocks says nothing about
 * keys, so this serves whole tables: one digest, or the bitmaps of all rows.
 * A row that an update moves would be seen twice or not at all from one
 * snapshot to the next; only a scan in one snapshot may come here.
 *
 * A table that is larger than a quarter of the source's shared_buffers is read
 * by one statement, without any range: a plain sequential scan of such a table
 * goes through a ring of a few buffers and leaves all others alone, which
 * neither a range of ctid nor an index does.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "execute/execute.h"
#include "memory/memory.h"
#include "process/process.h"
#include "query/query.h"
#include "scan/scan.h"
#include "source/source.h"
#include "utils/memutils.h"

/* Blocks can be addressed by a range of ctid since PostgreSQL 14. */
#define BLOCKS_VERSION 140000

/* More ranges of keys than this are not worth excluding row by row. */
#define MAX_EXCLUDED_RANGES 4	/* not measured; each is a comparison for every row */

/* A sequential scan of a table that is larger than this share of shared_buffers uses few of them (heapam.c). */
#define RING_FRACTION 4

/* Pages that we may bring into the source's memory by its index: this share of shared_buffers. */
#define SEEK_FRACTION 4			/* not measured; what has changed lately is there anyway */

/* Blocks that a key takes at most, in the index and in the table. */
#define BLOCKS_PER_KEY 2

/* Bitmaps that one sequential scan counts: about 200 bytes each in the source's work_mem (connection.c). */
#define SCANNED_BUCKETS 400000	/* not measured; 25 million dense keys */

/* Rows whose buckets fit into the source's caches: more take a quarter longer each. */
#define BUCKETED_ROWS 500000	/* measured by hand, figures not kept */

/* Statements, and rows of each, that tell the speed of a source. */
#define SAMPLES 5
#define SAMPLE_ROWS 100000

static double
rows_per_block(TsyncSource *source)
{
	Assert(source->blocks > 0);
	return Max(source->estimate / source->blocks, 1);
}

static int64
rows_of_blocks(TsyncSource *source, TsyncRange *range)
{
	int64		end = range->end_block < 0 ? source->blocks : range->end_block;

	return (int64) ((end - range->first_block) * rows_per_block(source));
}

/* Is the source read by plain sequential scans, which spare its memory? */
bool
tsync_is_sequential(TsyncSource *source)
{
	return source->shared_buffers > 0 && source->blocks > source->shared_buffers / RING_FRACTION;
}

/* How many keys may be looked for by the source's index: more would push out too much of its memory; 0: any number. */
int64
tsync_seek_keys(TsyncSource *source)
{
	/* before 14 a list of keys has no hash: each row would be compared with all of them */
	return tsync_is_sequential(source) && source->version >= BLOCKS_VERSION
		? source->shared_buffers / SEEK_FRACTION / BLOCKS_PER_KEY : 0;
}

/* May a range of so many rows be read by the source's index? */
bool
tsync_may_seek_rows(TsyncSource *source, int64 rows)
{
	return !tsync_is_sequential(source) || rows / rows_per_block(source) < source->shared_buffers / SEEK_FRACTION;
}

bool
tsync_can_read_blocks(TsyncSource *source)
{
	return source->blocks > 0 && (source->version >= BLOCKS_VERSION || tsync_is_sequential(source));
}

/*
 * The next range of the source's blocks with about so many rows; false after
 * the last one, which is open.
 */
static bool
next_blocks(TsyncSource *source, TsyncRange *range, int64 rows)
{
	int64		step = Max((int64) (rows / rows_per_block(source)), 1);

	if (range->blocks && range->end_block < 0)
		return false;
	if (tsync_is_sequential(source))
	{
		/* all of it, which no range may tell */
		bool		first = !range->buckets;

		*range = (TsyncRange) {.buckets = true,.first_block = PG_INT64_MIN,.end_block = PG_INT64_MAX};
		return first;
	}
	range->first_block = range->blocks ? range->end_block : 0;
	range->end_block = range->first_block + step;
	if (range->end_block >= source->blocks)
		range->end_block = -1;	/* open: relpages may be old */
	range->blocks = true;
	return true;
}

/*
 * The next part of the bitmaps of all rows, with as many as a sequential scan
 * can count, out of those from the first to the last key; false after the last
 * part, which is open.
 */
static bool
next_bitmaps(TsyncSource *source, TsyncRange *range, TsyncPace *pace, int64 first, int64 last)
{
	if (!tsync_is_sequential(source))
		return next_blocks(source, range, Min(tsync_statement_rows(pace), BUCKETED_ROWS));
	if (range->buckets && range->end_block == PG_INT64_MAX)
		return false;
	range->first_block = range->buckets ? range->end_block : PG_INT64_MIN;
	range->end_block = (range->buckets ? range->end_block : first >> TSYNC_BITMAP_SHIFT) + SCANNED_BUCKETS;
	if (range->end_block > last >> TSYNC_BITMAP_SHIFT)
		range->end_block = PG_INT64_MAX;
	range->buckets = true;
	return true;
}

static void
take_bucket_of_blocks(TupleTableSlot *slot, void *arg)
{
	TsyncAllBuckets *all = arg;
	TsyncPlainBucket *bucket = tsync_reach_bucket(all, tsync_slot_integer(slot, 1));

	if (bucket == NULL)
		return;
	/* added to: rows of a bucket may lie in several ranges of blocks */
	bucket->rows |= (uint64) tsync_slot_integer(slot, 2);
	bucket->sum += tsync_slot_sum(slot, 3);
	if (all->hint == TSYNC_HINT_RECENT)
		bucket->hint |= (uint64) tsync_slot_integer(slot, 4);
	else if (all->hint == TSYNC_HINT_MOMENT)
		bucket->hint += tsync_slot_sum(slot, 4);
}

/*
 * The buckets of all source rows, as bitmaps, in the current memory context;
 * NULL if they are too many, or too far apart.
 */
TsyncAllBuckets *
tsync_read_all_buckets(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source, TsyncPace *pace)
{
	TsyncBucketing bucketing = {TSYNC_BITMAP_SHIFT, TSYNC_BITMAP_MASK};
	TsyncAllBuckets *all = palloc0(sizeof(TsyncAllBuckets));
	TsyncRange	range = {0};
	int64		first;
	int64		last;

	all->hint = tsync_hint(table, fingerprint);
	tsync_key_span(table, &range, &first, &last);
	tsync_expect_keys(all, first, last);
	while (!all->overflow && next_bitmaps(source, &range, pace, first, last))
	{
		int64		before = table->waited;

		tsync_check_snapshot_age(pace);
		tsync_select_each(table, TSYNC_SOURCE,
						  tsync_sql_buckets(table, TSYNC_SOURCE, &range, &bucketing,
											fingerprint), NULL, take_bucket_of_blocks, all);
		if (range.blocks)
			tsync_note_speed(pace, rows_of_blocks(source, &range), TSYNC_BUCKET_COST, table->waited - before);
		if (all->nonsense)
			tsync_refuse_answer(table, "a bucket that no key can be in");
	}
	return all->overflow ? NULL : all;
}

/* Key ranges of the chunks that are expected to differ, neighbours as one. */
static List *
ranges_to_exclude(List *chunks)
{
	List	   *ranges = NIL;
	TsyncChunk *previous = NULL;
	ListCell   *lc;

	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (!tsync_is_quiet(chunk) && previous && !tsync_is_quiet(previous))
			((TsyncRange *) llast(ranges))->upper = chunk->range.upper;
		else if (!tsync_is_quiet(chunk))
			ranges = lappend(ranges, memcpy(palloc(sizeof(TsyncRange)), &chunk->range, sizeof(TsyncRange)));
		previous = chunk;
	}
	return ranges;
}

/* One digest of the source, without some ranges of keys. */
TsyncDigest
tsync_digest_by_blocks(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source, TsyncPace *pace, List *excluded)
{
	TsyncDigest total = {0, 0};
	TsyncRange	range = {0};

	while (next_blocks(source, &range, tsync_statement_rows(pace)))
	{
		TsyncDigest digest;

		tsync_check_snapshot_age(pace);
		digest = tsync_digest_source(table, pace, tsync_sql_digest_without(table, &range, excluded,
																		   fingerprint));
		tsync_add_digest(&total, digest);
		tsync_progress_step(0, digest.rows);
	}
	tsync_progress_step(0, -total.rows);	/* they are counted again chunk by chunk */
	return total;
}

/*
 * Digest some blocks here and there of a source whose speed nobody knows yet,
 * where that decides whether all of it can be scanned in one snapshot.  A part
 * of it may be in its memory.
 */
void
tsync_learn_speed(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source, TsyncPace *pace, double weighted_rows)
{
	int64		length;

	if (pace->scan_rate > 0 || !tsync_can_read_blocks(source) || source->version < BLOCKS_VERSION ||
		strcmp(pace->consistency, "auto") != 0 || tsync_use_snapshot(pace, weighted_rows))
		return;
	length = Max((int64) (SAMPLE_ROWS / rows_per_block(source)), 1);
	for (int i = 0; i < SAMPLES; i++)
	{
		int64		first = source->blocks * (2 * i + 1) / (2 * SAMPLES);
		TsyncRange	range = {.blocks = true,.first_block = first,.end_block = first + length};

		tsync_begin();
		(void) tsync_digest_source(table, pace, tsync_sql_digest_without(table, &range, NIL, fingerprint));
		tsync_commit();
	}
	pace->scan_rate = tsync_learned_rate(pace);
}

/*
 * Compare the digest of all chunks that are likely to be equal with the
 * source's, read in the order of its blocks.
 */
TsyncVerdict
tsync_compare_quiet_chunks(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source, TsyncPace *pace, List *chunks)
{
	List	   *excluded = ranges_to_exclude(chunks);
	TsyncDigest replica = {0, 0};
	ListCell   *lc;

	foreach(lc, chunks)
		if (tsync_is_quiet(lfirst(lc)))
			tsync_add_digest(&replica, ((TsyncChunk *) lfirst(lc))->replica);
	if (list_length(excluded) > MAX_EXCLUDED_RANGES || replica.rows == 0)
		return TSYNC_NOT_COMPARED;
	return tsync_digest_equal(tsync_digest_by_blocks(table, fingerprint, source, pace, excluded), replica) ? TSYNC_EQUAL : TSYNC_DIFFERENT;
}
