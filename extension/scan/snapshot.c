/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  Scanning all chunks in one snapshot of the source.
 *
 * Such a scan may read the source in the order of its blocks, which is faster
 * than by key and, as a plain sequential scan, leaves the pages in its memory
 * that production works with: one digest of all chunks that are expected to be
 * equal, or, where many are expected to differ or the digest does, the buckets
 * of all chunks.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/tables.h"
#include "compat.h"
#include "execute/execute.h"
#include "process/process.h"
#include "query/query.h"
#include "scan/scan.h"
#include "scan/scan_state.h"
#include "source/source.h"
#include "utils/memutils.h"
#include "verify/verify.h"

/* Are the buckets of all chunks possible: bitmaps whose ends are those of chunks? */
static bool
have_bitmaps(TsyncScan *scan)
{
	TsyncTable *table = scan->table;
	ListCell   *lc;

	if (table->nkeys != 1 || !tsync_is_integer(table->keys[0]->type))
		return false;
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if ((chunk->has_buckets && !chunk->has_bitmaps) ||
			(chunk->range.lower && strtoll(chunk->range.lower[0], NULL, 10) % TSYNC_BITMAP_KEYS != 0))
			return false;
	}
	return true;
}

/*
 * Is it cheaper to read the buckets of all chunks at once than those that are
 * expected to differ by key?  Where a sequential scan has no merits of its own,
 * rows that lie together at the source have to share buckets.
 */
static bool
want_all_buckets(TsyncScan *scan)
{
	int64		expected = 0;
	int64		rows = 0;
	ListCell   *lc;

	if (!have_bitmaps(scan) || !(scan->source->clustered || tsync_is_sequential(scan->source)))
		return false;
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		rows += chunk->expected_rows;
		expected += chunk->expected || chunk->counted ? chunk->expected_rows : 0;
	}
	return expected > rows / 2 || (expected > 0 && !tsync_may_seek_rows(scan->source, expected));
}

/*
 * Scan all chunks by the buckets of the whole source, read in the order of its
 * blocks.  Returns false, with nothing staged, when they are too many.
 */
static bool
scan_all_buckets(TsyncScanState *state)
{
	TsyncScan  *scan = state->scan;
	MemoryContext caller = CurrentMemoryContext;

	/* of the transaction: an error leaves nobody to free it */
	MemoryContext context = AllocSetContextCreate(CurTransactionContext, "tablesync buckets of all chunks",
												  ALLOCSET_DEFAULT_SIZES);
	TsyncAllBuckets *all;
	ListCell   *lc;

	MemoryContextSwitchTo(context);
	all = tsync_read_all_buckets(scan->table, scan->fingerprint, scan->source, scan->pace);
	MemoryContextSwitchTo(caller);
	if (all && state->new_rows)
		tsync_begin_together(state->new_rows);
	foreach(lc, scan->chunks)
	{
		if (all == NULL)
			break;
		tsync_check_snapshot_age(scan->pace);
		tsync_scan_slice(state, lfirst(lc), all);
		tsync_finish_chunk(scan, lfirst(lc));
	}
	if (all && state->new_rows)
		tsync_end_together(state->new_rows);
	MemoryContextDelete(context);
	return all != NULL;
}

static void
refuse_damaged_index(TsyncTable *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_INDEX_CORRUPTED),
			 errmsg("the source of %s has other rows by its key than in its blocks", table->label),
			 errdetail("Its index lacks rows, or has some that are not there; every query there that uses it returns wrong results."),
			 errhint("Let the index of its key be built anew at the source: REINDEX INDEX CONCURRENTLY ..;")));
}

/* Scan chunk by chunk, but for the quiet ones if they are known to be equal. */
static void
scan_by_key(TsyncScanState *state, TsyncVerdict quiet)
{
	TsyncScan  *scan = state->scan;
	bool		quiet_differ = false;
	ListCell   *lc;

	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		/* before it is scanned: one that was written anew is compared by every column from then on */
		bool		is_quiet = tsync_is_quiet(chunk);

		tsync_check_snapshot_age(scan->pace);
		if (quiet == TSYNC_EQUAL && is_quiet)
			chunk->source = chunk->replica;
		else
			tsync_scan_chunk(state, chunk);
		quiet_differ |= chunk->differs && is_quiet;
		tsync_finish_chunk(scan, chunk);
	}
	/* of one snapshot, by blocks and by key: only one of them can be right */
	if (quiet == TSYNC_DIFFERENT && !quiet_differ)
		refuse_damaged_index(scan->table);
}

/* Scan all chunks in a transaction of the source that the caller ends. */
static void
scan_in_snapshot(TsyncScanState *state)
{
	TsyncScan  *scan = state->scan;

	/* columns without a hash are compared chunk by chunk, whatever the digests say */
	bool		by_blocks = list_length(scan->chunks) > 1 && tsync_can_read_blocks(scan->source) &&
	!(scan->verify->whole && scan->verify->opaque.rows != NULL);
	TsyncVerdict quiet = TSYNC_NOT_COMPARED;

	if (by_blocks && want_all_buckets(scan) && scan_all_buckets(state))
		return;
	if (by_blocks && !scan->load_compared)	/* else the load has asked that, in vain */
		quiet = tsync_compare_quiet_chunks(scan->table, scan->fingerprint, scan->source, scan->pace, scan->chunks);
	/* nobody knows in which chunk: a second look at all of them costs less than one by key */
	if (quiet == TSYNC_DIFFERENT && tsync_is_sequential(scan->source) && have_bitmaps(scan) && scan_all_buckets(state))
		return;
	scan_by_key(state, quiet);
}

/* Is the source as the scan has taken it to be? */
static bool
look_first(TsyncScan *scan)
{
	bool		as_known;

	scan->looking = true;
	as_known = scan->look(scan->look_at);
	scan->looking = false;
	return as_known;
}

/* Scan the sources of some scans in one transaction: a List of TsyncScanState. */
void
tsync_scan_snapshot(void *arg)
{
	List	   *states = arg;
	ListCell   *lc;

	/* postgres_fdw takes the snapshot with the first statement, so it is not older than this */
	tsync_begin_in(CurrentMemoryContext);
	foreach(lc, states)
		tsync_hold_early(((TsyncScanState *) lfirst(lc))->scan->table);
	foreach(lc, states)
		tsync_note_snapshot(((TsyncScanState *) lfirst(lc))->scan->pace);
	foreach(lc, states)
	{
		TsyncScanState *state = lfirst(lc);

		tsync_progress_run(state->scan->run_id, state->scan->table->relid);
		tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(state->scan->chunks), state->expected_rows);
		if (state->scan->look && !look_first(state->scan))
			state->scan->unlike = true;
		else
		{
			/* only now it is known how far the source has come */
			if (state->scan->look && state->scan->fingerprint.xmin)
				tsync_set_horizon(state->scan);
			scan_in_snapshot(state);
		}
	}
	tsync_commit();
}

/* A try to scan a source in one snapshot. */
typedef struct SnapshotTry
{
	TsyncScanState *state;
	bool		interrupted;
} SnapshotTry;

static void
scan_in_one_snapshot(void *arg)
{
	tsync_scan_snapshot(list_make1(((SnapshotTry *) arg)->state));
}

/* Was the source interrupted, or did it, or its connection, take longer than a snapshot may last? */
static bool
judge_error(ErrorData *edata, void *arg)
{
	SnapshotTry *attempt = arg;

	attempt->interrupted = tsync_is_interruption(edata, NULL);
	if (attempt->interrupted)
		return true;
	/* a source that does not tell what it is would not tell it a second time either */
	if (attempt->state->scan->looking)
		return false;
	return edata->sqlerrcode == ERRCODE_SNAPSHOT_TOO_OLD ||
	/* under a shorter statement_timeout chunks would fail as well */
		(tsync_source_timed_out(edata) && tsync_snapshot_timeout() == tsync_max_snapshot_age);
}

/*
 * Scan all chunks of a source in one transaction.  Returns false to try it again:
 * with a transaction for each chunk, if this one takes too long or does not live
 * long enough, and these will do.
 */
bool
tsync_try_scan_snapshot(TsyncScanState *state)
{
	TsyncScan  *scan = state->scan;
	SnapshotTry attempt = {.state = state};
	bool		automatic = strcmp(scan->pace->consistency, "auto") == 0;

	if (tsync_try(scan_in_one_snapshot, &attempt, judge_error, NULL))
	{
		tsync_source_goes_on();
		return true;
	}
	if (attempt.interrupted)
	{
		scan->conflicted = scan->snapshot_expired = automatic && tsync_outlives_source();
		tsync_await_source_again();
		return false;
	}
	if (!automatic)
		tsync_snapshot_too_old(scan->pace);
	scan->snapshot_expired = true;
	return false;
}
