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
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "execute/execute.h"
#include "memory/memory.h"
#include "process/process.h"
#include "query/query.h"
#include "run/run.h"
#include "scan/scan.h"
#include "source/source.h"
#include "utils/memutils.h"

/* Blocks can be addressed by a range of ctid since PostgreSQL 14. */
#define BLOCKS_VERSION 140000

/* More ranges of keys than this are not worth excluding row by row. */
#define MAX_EXCLUDED_RANGES 4

/* Rows whose buckets fit into the source's caches: more take a quarter longer each. */
#define BUCKETED_ROWS 500000

/* Statements, and rows of each, that tell the speed of a source. */
#define SAMPLES 5
#define SAMPLE_ROWS 100000

static double
rows_per_block(TsyncRun *run)
{
	return Max(run->source_estimate / run->source_blocks, 1);
}

static int64
rows_of_blocks(TsyncRun *run, TsyncChunk *range)
{
	int64		end = range->end_block < 0 ? run->source_blocks : range->end_block;

	return (int64) ((end - range->first_block) * rows_per_block(run));
}

bool
tsync_can_read_blocks(TsyncRun *run)
{
	return run->source_blocks > 0 && run->source_version >= BLOCKS_VERSION;
}

/*
 * The next range of the source's blocks with about so many rows; false after
 * the last one, which is open.
 */
bool
tsync_next_blocks(TsyncRun *run, TsyncChunk *range, int64 rows)
{
	int64		step = Max((int64) (rows / rows_per_block(run)), 1);

	if (range->blocks && range->end_block < 0)
		return false;
	range->first_block = range->blocks ? range->end_block : 0;
	range->end_block = range->first_block + step;
	if (range->end_block >= run->source_blocks)
		range->end_block = -1;
	range->blocks = true;
	return true;
}

static void
take_bucket_of_blocks(TupleTableSlot *slot, void *arg)
{
	TsyncAllBuckets *all = arg;
	TsyncPlainBucket *bucket = tsync_reach_bucket(all, tsync_slot_integer(slot, 1));

	if (bucket == NULL)
		return;
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
tsync_read_all_buckets(TsyncRun *run)
{
	TsyncBucketing bucketing = {TSYNC_BITMAP_SHIFT, TSYNC_BITMAP_MASK};
	TsyncAllBuckets *all = palloc0(sizeof(TsyncAllBuckets));
	TsyncChunk	range = {0};
	int64		first;
	int64		last;

	all->hint = tsync_hint(run->replica);
	tsync_key_span(run, &range, &first, &last);
	tsync_expect_keys(all, first, last);
	while (!all->overflow &&
		   tsync_next_blocks(run, &range, Min(tsync_statement_rows(run->replica), BUCKETED_ROWS)))
	{
		int64		before = run->source_time;

		tsync_check_snapshot_age(run);
		tsync_select_each(run, TSYNC_SOURCE,
						  tsync_sql_buckets(run->replica, TSYNC_SOURCE, &range, &bucketing,
											run->source_version), NULL, take_bucket_of_blocks, all);
		tsync_note_speed(run, rows_of_blocks(run, &range), TSYNC_BUCKET_COST, run->source_time - before);
		if (all->nonsense)
			tsync_refuse_answer(run, "a bucket that no key can be in");
	}
	return all->overflow ? NULL : all;
}

/* Key ranges of the chunks that are expected to differ, neighbours as one. */
static List *
ranges_to_exclude(TsyncRun *run)
{
	List	   *ranges = NIL;
	TsyncChunk *previous = NULL;
	ListCell   *lc;

	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (!tsync_is_quiet(chunk) && previous && !tsync_is_quiet(previous))
			((TsyncChunk *) llast(ranges))->upper = chunk->upper;
		else if (!tsync_is_quiet(chunk))
		{
			TsyncChunk *range = palloc0(sizeof(TsyncChunk));

			range->lower = chunk->lower;
			range->upper = chunk->upper;
			ranges = lappend(ranges, range);
		}
		previous = chunk;
	}
	return ranges;
}

/* One digest of the source, without some ranges of keys. */
TsyncDigest
tsync_digest_by_blocks(TsyncRun *run, List *excluded)
{
	TsyncDigest total = {0, 0};
	TsyncChunk	range = {0};

	while (tsync_next_blocks(run, &range, tsync_statement_rows(run->replica)))
	{
		TsyncDigest digest;

		tsync_check_snapshot_age(run);
		digest = tsync_digest_source(run, tsync_sql_digest_without(run->replica, &range, excluded,
																   run->source_version));
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
tsync_learn_speed(TsyncRun *run, double weighted_rows)
{
	MemoryContext caller = CurrentMemoryContext;
	int64		length;

	if (run->replica->scan_rate > 0 || !tsync_can_read_blocks(run) ||
		strcmp(run->replica->consistency, "auto") != 0 || tsync_use_snapshot(run->replica, weighted_rows))
		return;
	length = Max((int64) (SAMPLE_ROWS / rows_per_block(run)), 1);
	for (int i = 0; i < SAMPLES; i++)
	{
		int64		first = run->source_blocks * (2 * i + 1) / (2 * SAMPLES);
		TsyncChunk	range = {.blocks = true,.first_block = first,.end_block = first + length};

		tsync_begin();
		MemoryContextSwitchTo(caller);
		(void) tsync_digest_source(run, tsync_sql_digest_without(run->replica, &range, NIL, run->source_version));
		tsync_commit();
		MemoryContextSwitchTo(caller);
	}
	run->replica->scan_rate = tsync_learned_rate(run);
}

/*
 * Compare the digest of all chunks that are likely to be equal with the
 * source's, read in the order of its blocks.
 */
TsyncVerdict
tsync_compare_quiet_chunks(TsyncRun *run)
{
	List	   *excluded = ranges_to_exclude(run);
	TsyncDigest replica = {0, 0};
	ListCell   *lc;

	foreach(lc, run->chunks)
		if (tsync_is_quiet(lfirst(lc)))
			tsync_add_digest(&replica, ((TsyncChunk *) lfirst(lc))->replica);
	if (list_length(excluded) > MAX_EXCLUDED_RANGES || replica.rows == 0)
		return TSYNC_NOT_COMPARED;
	return tsync_digest_equal(tsync_digest_by_blocks(run, excluded), replica) ? TSYNC_EQUAL : TSYNC_DIFFERENT;
}
