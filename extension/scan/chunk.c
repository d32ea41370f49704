/*-------------------------------------------------------------------------
 *
 * chunk.c
 *	  Scanning one chunk, in a transaction of the caller.
 *
 * All that is read from the source for one chunk comes from one snapshot,
 * because postgres_fdw runs each of our transactions as one REPEATABLE READ
 * transaction there.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/tables.h"
#include "execute/execute.h"
#include "memory/memory.h"
#include "process/process.h"
#include "query/query.h"
#include "scan/scan.h"
#include "scan/scan_state.h"
#include "source/source.h"
#include "utils/memutils.h"
#include "verify/verify.h"

/* Forget what an aborted transaction has left behind. */
void
tsync_clear_state(TsyncScanState *state)
{
	if (state->resolver)
		tsync_resolver_clear(state->resolver);
	if (state->row_resolver)
		tsync_resolver_clear(state->row_resolver);
	if (state->new_rows)
		tsync_new_rows_clear(state->new_rows);
	MemoryContextReset(state->chunk_context);
}

/*
 * Scan a chunk by the fingerprint of all columns, which finds what the usual one
 * does not tell as well; the usual digest is for the proof and for what is
 * remembered.
 */
static void
scan_all_columns(TsyncScanState *state, TsyncChunk *chunk)
{
	TsyncScan  *scan = state->scan;
	TsyncTable *table = scan->table;
	TsyncFingerprint every = tsync_every_column(scan->source->version);
	TsyncBuckets *ours;
	TsyncBuckets *theirs;
	TsyncChunk	forgotten = *chunk;

	chunk->source = tsync_digest_source(table, scan->pace,
										tsync_sql_digest(table, TSYNC_SOURCE, &chunk->range, scan->fingerprint));
	/* not rated: all columns cost more than the digests that the usual speed is made of */
	chunk->row_source = tsync_select_digest(table, TSYNC_SOURCE,
											tsync_sql_digest(table, TSYNC_SOURCE, &chunk->range, every));
	/* by xmin, rows that are written anew are no difference */
	chunk->differs = !chunk->rows_known || !tsync_digest_equal(chunk->row_source, chunk->row_replica) ||
		(!scan->fingerprint.xmin && !tsync_digest_equal(chunk->source, chunk->replica));
	if (!chunk->differs)
		return;
	forgotten.has_buckets = false;	/* they are of the other fingerprint */
	ours = tsync_buckets_of_replica(table, every, &forgotten);
	theirs = tsync_collect_buckets(table, every, TSYNC_SOURCE, &chunk->range, ours->bucketing);
	/* nothing is staged to be remembered: these buckets are of the other fingerprint */
	chunk->differs = tsync_resolve(state->row_resolver, chunk, theirs, ours, scan->snapshot);
}

/* Compare the buckets of a chunk and stage the rows that differ. */
static void
resolve_chunk(TsyncScanState *state, TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica)
{
	TsyncScan  *scan = state->scan;

	chunk->source = tsync_digest_of_buckets(source);
	if (state->new_rows && tsync_is_written_anew(chunk, source, replica))
	{
		chunk->by_row = chunk->learned = true;
		scan->written_anew++;
		scan_all_columns(state, chunk);
		return;
	}
	chunk->differs = state->new_rows ? tsync_resolve_by_xmin(state->new_rows, chunk, source, replica, scan->snapshot)
		: tsync_resolve(state->resolver, chunk, source, replica, scan->snapshot);
	/* what was only counted is known now */
	if (chunk->differs || chunk->counted)
		tsync_stage_memory(scan->table, scan->fingerprint, &scan->memory, chunk, source);
}

/* Scan a chunk by buckets. */
static void
scan_buckets(TsyncScanState *state, TsyncChunk *chunk)
{
	TsyncScan  *scan = state->scan;
	TsyncBuckets *replica = tsync_buckets_of_replica(scan->table, scan->fingerprint, chunk);
	int64		before = scan->table->waited;
	TsyncBuckets *source = tsync_collect_buckets(scan->table, scan->fingerprint, TSYNC_SOURCE, &chunk->range,
												 replica->bucketing);

	tsync_note_speed(scan->pace, chunk->expected_rows, TSYNC_BUCKET_COST, scan->table->waited - before);
	resolve_chunk(state, chunk, source, replica);
}

/* Scan a chunk: by digest where it is likely to be equal. */
void
tsync_scan_chunk(TsyncScanState *state, TsyncChunk *chunk)
{
	TsyncScan  *scan = state->scan;
	MemoryContext caller = MemoryContextSwitchTo(state->chunk_context);
	bool		by_buckets = chunk->expected || chunk->counted;

	Assert(chunk->known);		/* what is not known can't be compared */
	if (chunk->by_row)
		scan_all_columns(state, chunk);
	else if (!by_buckets)
	{
		chunk->source = tsync_digest_source(scan->table, scan->pace,
											tsync_sql_digest(scan->table, TSYNC_SOURCE, &chunk->range, scan->fingerprint));
		chunk->differs = !tsync_digest_equal(chunk->source, chunk->replica);
	}
	if (!chunk->by_row && (by_buckets || chunk->differs))
		scan_buckets(state, chunk);
	tsync_compare_opaque(scan->table, scan->verify, scan->stage, chunk);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(state->chunk_context);
}

/* Count a chunk that has been scanned. */
void
tsync_finish_chunk(TsyncScan *scan, TsyncChunk *chunk)
{
	tsync_add_digest(&scan->digest, chunk->source);
	/* by xmin the replica has no sum of its own: that it holds these rows is what the scan has found, or will apply */
	if (scan->fingerprint.xmin)
		chunk->replica.sum = chunk->source.sum;
	tsync_progress_step(1, chunk->source.rows);
}

/* Scan a chunk whose buckets at the source are known already. */
void
tsync_scan_slice(TsyncScanState *state, TsyncChunk *chunk, TsyncAllBuckets *all)
{
	MemoryContext caller;
	TsyncBuckets source;

	if (chunk->by_row)
	{
		tsync_scan_chunk(state, chunk);
		return;
	}
	caller = MemoryContextSwitchTo(state->chunk_context);
	source = tsync_slice_of_buckets(all, &chunk->range);
	chunk->source = tsync_digest_of_buckets(&source);
	if (chunk->expected || chunk->counted || !tsync_digest_equal(chunk->source, chunk->replica))
	{
		TsyncBuckets *replica = tsync_buckets_of_replica(state->scan->table, state->scan->fingerprint, chunk);

		if (replica->bucketing.mask == TSYNC_BITMAP_MASK)
			resolve_chunk(state, chunk, &source, replica);
		else
			/* the source's are bitmaps, and buckets of two kinds can't be compared */
			scan_buckets(state, chunk);
	}
	tsync_compare_opaque(state->scan->table, state->scan->verify, state->scan->stage, chunk);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(state->chunk_context);
}
