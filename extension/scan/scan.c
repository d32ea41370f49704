/*-------------------------------------------------------------------------
 *
 * scan.c
 *	  SCAN: find what differs between source and replica.
 *
 * What the replica holds is remembered (memory.c), so a scan reads only the
 * source: in one snapshot (snapshot.c), or each chunk in one of its own
 * (one_by_one.c).  A chunk that is likely to be equal is compared by digest; one
 * that is not, or does differ, by buckets, and what differs is resolved to rows
 * (chunk.c, resolve.c, by_xmin.c).
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
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

/* From here on the newest version of one percent of the rows is good enough. */
#define SAMPLED_ROWS 1000000

/* Where to look for the newest version: a watermark is only a hint. */
static const char *
sample_of_replica(TsyncScan *scan)
{
	int64		rows = 0;
	ListCell   *lc;

	foreach(lc, scan->chunks)
		rows += ((TsyncChunk *) lfirst(lc))->expected_rows;
	return rows < SAMPLED_ROWS ? scan->table->replica_sql
		: psprintf("%s TABLESAMPLE SYSTEM (1)", scan->table->replica_sql);
}

/*
 * What xmin can be asked about a chunk: nothing where nobody knows what the
 * replica holds of it, but of a replica that this run has loaded how many rows.
 */
static void
prepare_by_xmin(TsyncScan *scan)
{
	ListCell   *lc;

	tsync_set_horizon(scan);
	/* then equal digests prove nothing, either */
	scan->by_value |= tsync_lives_anew(scan->source, scan->fresh ? scan->load_epoch : scan->replica->state.epoch);
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->counted = scan->fresh && !chunk->stale && !scan->by_value;
		chunk->by_row |= !chunk->counted && (!chunk->known || scan->by_value || scan->replica->state.adopted);
		chunk->learned = chunk->counted || (chunk->by_row && !chunk->verifying) || !chunk->known;
		if (chunk->by_row)
			chunk->counted = false;
	}
}

/*
 * Where are differences to be expected?  Where the last run that looked has found
 * some, if the source's counters have moved since; where these do not tell, if
 * that run was the last one.
 */
static void
expect_differences(TsyncScan *scan)
{
	TsyncState *state = &scan->replica->state;
	int64		changes = scan->source->changes;
	bool		busy = changes >= 0 && state->source_changes >= 0 ? changes != state->source_changes : !state->last_was_quiet;
	ListCell   *lc;

	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->expected = chunk->differed && busy;
	}
}

/* Plan the chunks of a run, and make sure that the replica's side is known. */
static void
prepare_scan(TsyncScan *scan)
{
	TsyncTable *table = scan->table;
	bool		whole = scan->verify->whole;
	bool		written;

	tsync_stage_clear(scan->stage);
	scan->digest = (TsyncDigest) {0, 0};
	scan->drifted = 0;
	scan->written_anew = 0;
	scan->verify->differences = scan->verify->drifted_rows = 0;
	tsync_begin_in(CurrentMemoryContext);
	tsync_clear_memory(&scan->memory);
	/* before any digest: a write that has committed by now is in it, a later one leaves a note for APPLY */
	scan->watched = tsync_open_memory(table->relid, whole ? NULL : tsync_sql_memory_key(table, scan->fingerprint), &written);
	/* then it has more than the load has put there, and a later attempt must not forget it: the notes are gone */
	scan->written |= written || !scan->watched;
	scan->fresh &= !scan->written;
	scan->chunks = whole ? tsync_plan_verify(table, scan->verify) : tsync_plan_chunks(table, scan->pace);
	if (!whole)
		tsync_choose_chunks(scan->replica, scan->verify, scan->chunks);
	tsync_commit();
	if (scan->fingerprint.xmin)
		prepare_by_xmin(scan);
	else if (scan->verify->by_xmin)
		tsync_set_horizon(scan);	/* tells who is at fault for a difference */
	expect_differences(scan);
	tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(scan->chunks), 0);
	/* before the first statement of the scan: no snapshot there has to last while we read here */
	scan->drifted += tsync_know_replica(table, scan->fingerprint, scan->chunks, !whole);
	tsync_know_rows(table, scan->verify, scan->source->version, scan->chunks);
	if (table->version && !table->watermark)
	{
		tsync_begin();
		tsync_advance_watermark(table, sample_of_replica(scan), NULL);
		tsync_commit();
	}
}

/* Plan a scan, and make what it needs. */
static TsyncScanState *
scan_state_create(TsyncScan *scan)
{
	TsyncScanState *state = palloc0(sizeof(TsyncScanState));
	TsyncSettings *settings = &scan->replica->settings;
	ListCell   *lc;

	state->scan = scan;
	prepare_scan(scan);
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		state->expected_rows += chunk->expected_rows;
		state->weighted_rows += chunk->expected || chunk->counted ? tsync_weigh_rows(0, chunk->expected_rows)
			: tsync_weigh_rows(chunk->expected_rows, 0);
	}
	tsync_begin_in(CurrentMemoryContext);
	if (scan->fingerprint.xmin)
		state->new_rows = tsync_new_rows_create(scan->table, scan->fingerprint, scan->stage);
	else
		state->resolver = tsync_resolver_create(scan->table, scan->fingerprint, scan->stage);
	if (scan->fingerprint.xmin || (settings->verify_fraction > 0 && !scan->fingerprint.all_columns))
		state->row_resolver = tsync_resolver_create(scan->table, tsync_every_column(scan->source->version), scan->stage);
	tsync_commit();
	state->chunk_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync chunk", ALLOCSET_DEFAULT_SIZES);
	return state;
}

static void
scan_state_destroy(TsyncScanState *state)
{
	if (state->resolver)
		tsync_resolver_destroy(state->resolver);
	if (state->new_rows)
		tsync_new_rows_destroy(state->new_rows);
	if (state->row_resolver)
		tsync_resolver_destroy(state->row_resolver);
	MemoryContextDelete(state->chunk_context);
	pfree(state);
}

#ifdef USE_ASSERT_CHECKING
/* Is the digest of a scan that of all its chunks? */
static bool
adds_up(TsyncScan *scan)
{
	TsyncDigest sum = {0, 0};
	ListCell   *lc;

	foreach(lc, scan->chunks)
		tsync_add_digest(&sum, ((TsyncChunk *) lfirst(lc))->source);
	return tsync_digest_equal(sum, scan->digest);
}
#endif

/*
 * Has the load found the source to hold what the replica does (load/indexes.c)?
 * Then its snapshot is this scan's.
 */
static bool
is_settled_by_load(TsyncScan *scan)
{
	ListCell   *lc;

	foreach(lc, scan->chunks)
		if (!tsync_is_quiet(lfirst(lc)))
			return false;
	if (!scan->load_compared || !tsync_digest_equal(scan->load_digest, tsync_add_up_replica(scan->chunks)))
		return false;
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->source = chunk->replica;
		tsync_finish_chunk(scan, chunk);
	}
	return true;
}

/* By xmin: chunks that hold other rows than the unchanged ones of the source were changed by somebody else. */
static void
count_drifted(TsyncScan *scan)
{
	ListCell   *lc;

	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (chunk->stale && chunk->proved && chunk->differs && !chunk->verifying && !scan->by_value &&
			tsync_digest_equal(chunk->source, chunk->remembered))
			scan->drifted++;
	}
}

/* One attempt to scan a source in one transaction, or one for each chunk; false to try again. */
static bool
try_scan(TsyncScan *scan)
{
	TsyncScanState *state = scan_state_create(scan);
	int64		busy = scan->table->waited;
	bool		done;

	tsync_learn_speed(scan->table, scan->fingerprint, scan->source, scan->pace, state->weighted_rows);
	scan->snapshot = !scan->snapshot_expired && tsync_use_snapshot(scan->pace, state->weighted_rows);
	tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(scan->chunks), state->expected_rows);
	if (scan->snapshot && is_settled_by_load(scan))
		done = true;
	else if (!scan->snapshot && scan->look)
		done = scan->unlike = true; /* chunk by chunk there is no first statement of all */
	else if (scan->snapshot)
	{
		tsync_limit_source(scan->table, tsync_snapshot_timeout());
		done = tsync_try_scan_snapshot(state);
		/* not earlier: the source would be idle in a transaction of ours */
		tsync_rest(scan->pace, scan->table->waited - busy, 0);
	}
	else
	{
		tsync_limit_source(scan->table, tsync_chunk_timeout(scan->table->nrange > 0));
		tsync_scan_one_by_one(state);
		done = true;
	}
	scan_state_destroy(state);
	/* another attempt needs a snapshot of its own */
	scan->load_compared = false;
	Assert(!done || scan->unlike || adds_up(scan));
	return done;
}

/* Scan the sources of a group in one transaction. */
static void
scan_group(void *arg)
{
	List	   *scans = arg;
	List	   *states = NIL;
	ListCell   *lc;

	foreach(lc, scans)
	{
		TsyncScan  *scan = lfirst(lc);

		tsync_progress_run(scan->run_id, scan->table->relid);
		states = lappend(states, scan_state_create(scan));
		scan->snapshot = true;
	}
	/* for all: members share server and owner, hence the connection */
	tsync_limit_source(((TsyncScan *) linitial(scans))->table, tsync_snapshot_timeout());
	/* no falling back to chunks: a member would be of other instants than the others */
	tsync_scan_snapshot(states);
	foreach(lc, scans)
		Assert(adds_up(lfirst(lc)));
	foreach(lc, states)
		scan_state_destroy(lfirst(lc));
}

/* Scan the source of a single run. */
static void
scan_alone(void *arg)
{
	while (!try_scan(linitial((List *) arg)))
		;						/* chunk by chunk, or once more */
}

/* Scan the sources of some runs, whatever interrupts them. */
static void
scan_all(void *arg)
{
	if (list_length((List *) arg) > 1)
		tsync_insist(scan_group, arg);
	else
		scan_alone(arg);
}

/* Must every column be compared, because xmin does not tell what has changed? */
static bool
must_compare_values(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode == TSYNC_ERRCODE_BY_VALUE;
}

/*
 * SCAN: compare sources and replicas and stage the differences.  The source of
 * a single run sees one transaction for all chunks, or one for each; those of
 * a group see one for all.
 */
void
tsync_scan(List *scans)
{
	ListCell   *lc;

	Assert(!IsTransactionState());
	if (!tsync_try(scan_all, scans, must_compare_values, NULL))
	{
		foreach(lc, scans)
			((TsyncScan *) lfirst(lc))->by_value = true;
		scan_all(scans);
	}
	foreach(lc, scans)
		if (((TsyncScan *) lfirst(lc))->fingerprint.xmin)
			count_drifted(lfirst(lc));
}
