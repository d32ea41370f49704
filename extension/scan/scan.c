/*-------------------------------------------------------------------------
 *
 * scan.c
 *	  SCAN: find what differs between source and replica.
 *
 * What the replica holds is remembered (memory.c), so a scan reads only the
 * source.  Chunks that did not differ in the last run are compared by digest;
 * those that did, or do now, by buckets, and what differs is resolved to rows
 * (resolve.c).  A scan in one snapshot may read the source in the order of its
 * blocks, which is faster than by key: the digest of all chunks that are
 * expected to be equal, or the buckets of all chunks when most will differ.
 *
 * All that is read from the source for one chunk comes from one snapshot,
 * because postgres_fdw runs each of our transactions as one REPEATABLE READ
 * transaction there.
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
#include "run/run.h"
#include "scan/scan.h"
#include "source/source.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verify/verify.h"

/* From here on the newest version of one percent of the rows is good enough. */
#define SAMPLED_ROWS 1000000

typedef struct ScanState
{
	TsyncRun   *run;
	TsyncResolver *resolver;
	TsyncResolver *row_resolver;	/* for chunks to be compared by all columns */
	MemoryContext chunk_context;
	int64		expected_rows;
	double		weighted_rows;	/* more where buckets will be asked for */
	TimestampTz locked_since;	/* 0: the source's table is not locked */
} ScanState;

typedef enum ChunkOutcome
{
	CHUNK_DONE,
	CHUNK_LOCKED,				/* somebody at the source holds a lock */
	CHUNK_TOO_MANY,				/* its differences would take too long to fetch */
	CHUNK_TOO_LARGE				/* the source could not answer in time */
} ChunkOutcome;

/* Forget what an aborted transaction has left behind. */
static void
clear_state(TsyncRun *run, ScanState *state)
{
	tsync_use_row_fingerprint(run, false);
	tsync_resolver_clear(state->resolver);
	if (state->row_resolver)
		tsync_resolver_clear(state->row_resolver);
	MemoryContextReset(state->chunk_context);
}

/* Compare the buckets of a chunk and stage the rows that differ. */
static void
resolve_chunk(TsyncRun *run, ScanState *state, TsyncChunk *chunk, TsyncBuckets *source,
			  TsyncBuckets *replica)
{
	chunk->source = tsync_digest_of_buckets(source);
	chunk->differs = tsync_resolve(run, state->resolver, chunk, source, replica);
	if (chunk->differs)
		tsync_stage_memory(run, chunk, source);
}

/* Scan a chunk by buckets. */
static void
scan_buckets(TsyncRun *run, ScanState *state, TsyncChunk *chunk)
{
	TsyncBuckets *replica = tsync_buckets_of_replica(run, chunk);
	int64		before = run->source_time;
	TsyncBuckets *source = tsync_collect_buckets(run, TSYNC_SOURCE, chunk, replica->bucketing);

	tsync_note_speed(run, chunk->expected_rows, TSYNC_BUCKET_COST, run->source_time - before);
	resolve_chunk(run, state, chunk, source, replica);
}

/*
 * Scan a chunk by the fingerprint of all columns, which finds what a version
 * column does not tell as well; the usual digest is for the proof and for what
 * is remembered.
 */
static void
scan_all_columns(TsyncRun *run, ScanState *state, TsyncChunk *chunk)
{
	TsyncChunk	forgotten = *chunk;
	TsyncReplica *replica = run->replica;

	chunk->source = tsync_digest_source(run, tsync_sql_digest(replica, TSYNC_SOURCE, chunk, run->source_version));
	tsync_use_row_fingerprint(run, true);
	chunk->row_source = tsync_select_digest(run, TSYNC_SOURCE,
											tsync_sql_digest(replica, TSYNC_SOURCE, chunk,
															 run->source_version));
	chunk->differs = !chunk->rows_known || !tsync_digest_equal(chunk->row_source, chunk->row_replica) ||
		!tsync_digest_equal(chunk->source, chunk->replica);
	if (chunk->differs)
	{
		TsyncBuckets *ours;
		TsyncBuckets *theirs;

		forgotten.has_buckets = false;	/* they are of the other fingerprint */
		ours = tsync_buckets_of_replica(run, &forgotten);
		theirs = tsync_collect_buckets(run, TSYNC_SOURCE, chunk, ours->bucketing);
		chunk->differs = tsync_resolve(run, state->row_resolver, chunk, theirs, ours);
	}
	tsync_use_row_fingerprint(run, false);
}

/* Scan a chunk: by digest where it is likely to be equal. */
static void
scan_chunk(TsyncRun *run, ScanState *state, TsyncChunk *chunk)
{
	MemoryContext caller = MemoryContextSwitchTo(state->chunk_context);

	if (chunk->by_row)
		scan_all_columns(run, state, chunk);
	else if (!chunk->differed)
	{
		chunk->source = tsync_digest_source(run, tsync_sql_digest(run->replica, TSYNC_SOURCE, chunk,
															run->source_version));
		chunk->differs = !tsync_digest_equal(chunk->source, chunk->replica);
	}
	if (!chunk->by_row && (chunk->differed || chunk->differs))
		scan_buckets(run, state, chunk);
	tsync_compare_opaque(run, chunk);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(state->chunk_context);
}

static void
finish_chunk(TsyncRun *run, TsyncChunk *chunk)
{
	tsync_add_digest(&run->source, chunk->source);
	tsync_progress_step(1, chunk->source.rows);
}

/* Scan a chunk whose buckets at the source are known already. */
static void
scan_slice(TsyncRun *run, ScanState *state, TsyncChunk *chunk, TsyncAllBuckets *all)
{
	MemoryContext caller;
	TsyncBuckets source;

	if (chunk->by_row)
	{
		scan_chunk(run, state, chunk);
		return;
	}
	caller = MemoryContextSwitchTo(state->chunk_context);
	source = tsync_slice_of_buckets(all, chunk);
	chunk->source = tsync_digest_of_buckets(&source);
	if (chunk->differed || !tsync_digest_equal(chunk->source, chunk->replica))
	{
		TsyncBuckets *replica = tsync_buckets_of_replica(run, chunk);

		if (replica->bucketing.mask == TSYNC_BITMAP_MASK)
			resolve_chunk(run, state, chunk, &source, replica);
		else
			scan_buckets(run, state, chunk);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(state->chunk_context);
}

/*
 * Will the buckets of most chunks be needed, are they bitmaps whose ends are
 * those of chunks, and do rows that lie together at the source share them?
 */
static bool
want_all_buckets(TsyncRun *run)
{
	int64		differing = 0;
	int64		rows = 0;
	ListCell   *lc;

	if (!run->source_clustered)
		return false;
	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if ((chunk->differed && !chunk->has_bitmaps) ||
			(chunk->lower && strtoll(chunk->lower[0], NULL, 10) % (1 << TSYNC_BITMAP_SHIFT) != 0))
			return false;
		rows += chunk->expected_rows;
		differing += chunk->differed ? chunk->expected_rows : 0;
	}
	return differing > rows / 2;
}

/*
 * Scan all chunks by the buckets of the whole source, read in the order of its
 * blocks.  Returns false, with nothing staged, when they are too many.
 */
static bool
scan_all_buckets(TsyncRun *run, ScanState *state)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(CurTransactionContext, "tablesync buckets of all chunks",
												  ALLOCSET_DEFAULT_SIZES);
	TsyncAllBuckets *all;
	ListCell   *lc;

	MemoryContextSwitchTo(context);
	all = tsync_read_all_buckets(run);
	MemoryContextSwitchTo(caller);
	foreach(lc, run->chunks)
	{
		if (all == NULL)
			break;
		tsync_check_snapshot_age(run);
		scan_slice(run, state, lfirst(lc), all);
		finish_chunk(run, lfirst(lc));
	}
	MemoryContextDelete(context);
	return all != NULL;
}

static void
refuse_damaged_index(TsyncRun *run)
{
	ereport(ERROR,
			(errcode(ERRCODE_INDEX_CORRUPTED),
			 errmsg("the source of %s has other rows by its key than in its blocks", run->replica->label),
			 errdetail("Its index lacks rows, or has some that are not there; every query there that uses it returns wrong results."),
			 errhint("Let the index of its key be built anew at the source: REINDEX INDEX CONCURRENTLY ..;")));
}

/* Scan all chunks in a transaction of the source that the caller ends. */
static void
scan_in_snapshot(TsyncRun *run, ScanState *state)
{
	bool		by_blocks = list_length(run->chunks) > 1 && tsync_can_read_blocks(run) &&
		!(run->verify && run->opaque.rows != NULL);
	TsyncVerdict quiet = TSYNC_NOT_COMPARED;
	bool		quiet_differ = false;
	ListCell   *lc;

	if (by_blocks && want_all_buckets(run) && scan_all_buckets(run, state))
		return;
	if (by_blocks && !run->load_compared)
		quiet = tsync_compare_quiet_chunks(run);
	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		tsync_check_snapshot_age(run);
		if (quiet == TSYNC_EQUAL && tsync_is_quiet(chunk))
			chunk->source = chunk->replica;
		else
			scan_chunk(run, state, chunk);
		quiet_differ |= chunk->differs && tsync_is_quiet(chunk);
		finish_chunk(run, chunk);
	}
	/* of one snapshot, by blocks and by key: only one of them can be right */
	if (quiet == TSYNC_DIFFERENT && !quiet_differ)
		refuse_damaged_index(run);
}

/* Scan the sources of some runs in one transaction. */
static void
scan_snapshot(List *states)
{
	MemoryContext caller = CurrentMemoryContext;
	TimestampTz now;
	ListCell   *lc;

	tsync_begin();
	now = GetCurrentTimestamp();
	foreach(lc, states)
	{
		ScanState  *state = lfirst(lc);

		MemoryContextSwitchTo(caller);
		state->run->snapshot_taken = now;
		tsync_progress_run(state->run);
		tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(state->run->chunks), state->expected_rows);
		scan_in_snapshot(state->run, state);
	}
	tsync_commit();
	MemoryContextSwitchTo(caller);
}

/* Did the source, or its connection, take longer than a snapshot may last? */
static bool
took_too_long(ErrorData *edata)
{
	return edata->sqlerrcode == ERRCODE_SNAPSHOT_TOO_OLD ||
		(tsync_source_timed_out(edata) && tsync_snapshot_timeout() == tsync_max_snapshot_age);
}

/*
 * Scan all chunks of a source in one transaction.  Returns false if that takes
 * too long, and a transaction for each chunk will do.
 */
static bool
try_scan_snapshot(TsyncRun *run, ScanState *state)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = true;

	PG_TRY();
	{
		scan_snapshot(list_make1(state));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (!took_too_long(CopyErrorData()))
			PG_RE_THROW();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		clear_state(run, state);
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	if (!done && strcmp(run->replica->consistency, "auto") != 0)
		tsync_snapshot_too_old(run);
	return done;
}

/* Rows in the stage, also those of a statement that did not get to its end. */
static int64
staged_rows(TsyncRun *run)
{
	return tuplestore_tuple_count(run->stage->inserted.rows) +
		tuplestore_tuple_count(run->stage->updated.rows) +
		tuplestore_tuple_count(run->stage->deleted.rows);
}

/* What an error of the source means for a chunk; CHUNK_DONE: nothing we can mend. */
static ChunkOutcome
judge_error(ScanState *state, ErrorData *edata)
{
	TimestampTz now = GetCurrentTimestamp();

	if (tsync_source_timed_out(edata))
		return CHUNK_TOO_LARGE;
	if (edata->sqlerrcode == ERRCODE_SNAPSHOT_TOO_OLD)
		return CHUNK_TOO_MANY;
	if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		return CHUNK_DONE;
	if (state->locked_since == 0)
		state->locked_since = now;
	return tsync_lock_timeout > 0 && TimestampDifferenceExceeds(state->locked_since, now, tsync_lock_timeout)
		? CHUNK_DONE : CHUNK_LOCKED;
}

/* Scan a chunk in a transaction of its own. */
static ChunkOutcome
try_scan_chunk(TsyncRun *run, ScanState *state, TsyncChunk *chunk)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile ChunkOutcome outcome = CHUNK_DONE;

	PG_TRY();
	{
		tsync_begin();
		MemoryContextSwitchTo(caller);
		scan_chunk(run, state, chunk);
		tsync_commit();
		state->locked_since = 0;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(caller);
		edata = CopyErrorData();
		outcome = judge_error(state, edata);
		if (outcome == CHUNK_DONE)
			PG_RE_THROW();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		clear_state(run, state);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return outcome;
}

/*
 * Scan each chunk in a transaction of its own, with a rest after each, and
 * smaller chunks when the source is slow.  Returns false to start over.
 */
static bool
scan_chunks(TsyncRun *run, ScanState *state)
{
	int			position = 0;

	while (position < list_length(run->chunks))
	{
		TsyncChunk *chunk = tsync_fit_chunk(run, position);
		int64		staged = staged_rows(run);
		int64		before = run->source_time;
		ChunkOutcome outcome = try_scan_chunk(run, state, chunk);

		if (outcome == CHUNK_TOO_MANY || outcome == CHUNK_TOO_LARGE)
			tsync_halve_chunk(run, position, outcome == CHUNK_TOO_LARGE);
		if (outcome != CHUNK_DONE && staged_rows(run) != staged)
			return false;
		if (outcome != CHUNK_DONE)
			continue;
		finish_chunk(run, chunk);
		tsync_rest(run, run->source_time - before, chunk->source.rows);
		position++;
	}
	return true;
}

/* Where to look for the newest version: a watermark is only a hint. */
static const char *
sample_of_replica(TsyncRun *run)
{
	int64		rows = 0;
	ListCell   *lc;

	foreach(lc, run->chunks)
		rows += ((TsyncChunk *) lfirst(lc))->expected_rows;
	return rows < SAMPLED_ROWS ? run->replica->replica_sql
		: psprintf("%s TABLESAMPLE SYSTEM (1)", run->replica->replica_sql);
}

/* Plan the chunks of a run, and make sure that the replica's side is known. */
static void
prepare_scan(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;

	tsync_stage_clear(run->stage);
	run->source = (TsyncDigest) {0, 0};
	run->drifted = 0;
	tsync_begin();
	MemoryContextSwitchTo(run_context);
	tsync_clear_memory(run);
	tsync_open_memory(run, run->verify ? NULL : tsync_sql_memory_key(run->replica, run->source_version));
	if (run->verify)
		tsync_plan_verify(run);
	else
		tsync_plan_chunks(run);
	tsync_choose_chunks(run);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(run->chunks), 0);
	tsync_know_replica(run);
	tsync_know_rows(run);
	if (run->replica->version && !run->replica->watermark)
	{
		tsync_begin();
		MemoryContextSwitchTo(run_context);
		tsync_advance_watermark(run, sample_of_replica(run), NULL);
		tsync_commit();
		MemoryContextSwitchTo(run_context);
	}
}

/* Plan a run's scan, and make what it needs. */
static ScanState *
scan_state_create(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	ScanState  *state = palloc0(sizeof(ScanState));
	ListCell   *lc;

	state->run = run;
	prepare_scan(run);
	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		state->expected_rows += chunk->expected_rows;
		state->weighted_rows += chunk->expected_rows * (chunk->differed ? TSYNC_BUCKET_COST : 1.0);
	}
	tsync_begin();
	MemoryContextSwitchTo(run_context);
	state->resolver = tsync_resolver_create(run->replica);
	if (run->replica->verify_fraction > 0 && !run->replica->row_fingerprint)
	{
		tsync_use_row_fingerprint(run, true);
		state->row_resolver = tsync_resolver_create(run->replica);
		tsync_use_row_fingerprint(run, false);
	}
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	state->chunk_context = AllocSetContextCreate(run_context, "tablesync chunk", ALLOCSET_DEFAULT_SIZES);
	return state;
}

static void
scan_state_destroy(ScanState *state)
{
	tsync_resolver_destroy(state->resolver);
	if (state->row_resolver)
		tsync_resolver_destroy(state->row_resolver);
	MemoryContextDelete(state->chunk_context);
	pfree(state);
}

/*
 * Has the load found the source to hold what the replica does (index.c)?  Then
 * its snapshot is this scan's.
 */
static bool
is_settled_by_load(TsyncRun *run)
{
	TsyncDigest replica = {0, 0};
	ListCell   *lc;

	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (!tsync_is_quiet(chunk))
			return false;
		tsync_add_digest(&replica, chunk->replica);
	}
	if (!run->load_compared || !tsync_digest_equal(run->load_source, replica))
		return false;
	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->source = chunk->replica;
		finish_chunk(run, chunk);
	}
	return true;
}

/* One attempt to scan a source in one transaction, or one for each chunk; false to start over. */
static bool
try_scan(TsyncRun *run)
{
	ScanState  *state = scan_state_create(run);
	int64		busy = run->source_time;
	bool		done;

	tsync_learn_speed(run, state->weighted_rows);
	run->snapshot = !run->snapshot_expired && tsync_use_snapshot(run->replica, state->weighted_rows);
	tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(run->chunks), state->expected_rows);
	if (run->snapshot && is_settled_by_load(run))
		done = true;
	else if (run->snapshot)
	{
		tsync_limit_source(run, tsync_snapshot_timeout());
		done = try_scan_snapshot(run, state);
		run->snapshot_expired = !done;
		/* not earlier: the source would be idle in a transaction of ours */
		tsync_rest(run, run->source_time - busy, 0);
	}
	else
	{
		tsync_limit_source(run, tsync_chunk_timeout(run->replica));
		done = scan_chunks(run, state);
	}
	scan_state_destroy(state);
	run->load_compared = false;
	return done;
}

/* Scan the sources of a group in one transaction. */
static void
scan_group(List *runs)
{
	List	   *states = NIL;
	ListCell   *lc;

	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		tsync_progress_run(run);
		states = lappend(states, scan_state_create(run));
		run->snapshot = true;
	}
	tsync_limit_source(linitial(runs), tsync_snapshot_timeout());
	scan_snapshot(states);
	foreach(lc, states)
		scan_state_destroy(lfirst(lc));
}

/*
 * SCAN: compare sources and replicas and stage the differences.  The source of
 * a single run sees one transaction for all chunks, or one for each; those of
 * a group see one for all.
 */
void
tsync_scan(List *runs)
{
	if (list_length(runs) > 1)
		scan_group(runs);
	else
		while (!try_scan(linitial(runs)))
			;					/* with smaller chunks */
}
