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
#include "scan/scan.h"
#include "source/source.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verify/verify.h"

/* From here on the newest version of one percent of the rows is good enough. */
#define SAMPLED_ROWS 1000000

typedef struct ScanState
{
	TsyncScan  *scan;
	TsyncResolver *resolver;
	TsyncResolver *row_resolver;	/* for chunks to be compared by all columns */
	MemoryContext chunk_context;
	int64		expected_rows;
	double		weighted_rows;	/* more where buckets will be asked for */
	TimestampTz locked_since;	/* 0: the source's table is not locked */
} ScanState;

/* How a try to scan a chunk has ended. */
typedef enum ChunkOutcome
{
	CHUNK_DONE,
	CHUNK_LOCKED,				/* somebody at the source holds a lock */
	CHUNK_TOO_MANY,				/* its differences would take too long to fetch */
	CHUNK_TOO_LARGE				/* the source could not answer in time */
} ChunkOutcome;

/* Forget what an aborted transaction has left behind. */
static void
clear_state(ScanState *state)
{
	tsync_resolver_clear(state->resolver);
	if (state->row_resolver)
		tsync_resolver_clear(state->row_resolver);
	MemoryContextReset(state->chunk_context);
}

/* Compare the buckets of a chunk and stage the rows that differ. */
static void
resolve_chunk(ScanState *state, TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica)
{
	TsyncScan  *scan = state->scan;

	chunk->source = tsync_digest_of_buckets(source);
	chunk->differs = tsync_resolve(state->resolver, chunk, source, replica, scan->snapshot);
	if (chunk->differs)
		tsync_stage_memory(scan->table, &scan->memory, chunk, source);
}

/* Scan a chunk by buckets. */
static void
scan_buckets(ScanState *state, TsyncChunk *chunk)
{
	TsyncScan  *scan = state->scan;
	TsyncBuckets *replica = tsync_buckets_of_replica(scan->table, scan->fingerprint, chunk);
	int64		before = scan->table->waited;
	TsyncBuckets *source = tsync_collect_buckets(scan->table, scan->fingerprint, TSYNC_SOURCE, &chunk->range,
												 replica->bucketing);

	tsync_note_speed(scan->pace, chunk->expected_rows, TSYNC_BUCKET_COST, scan->table->waited - before);
	resolve_chunk(state, chunk, source, replica);
}

/*
 * Scan a chunk by the fingerprint of all columns, which finds what a version
 * column does not tell as well; the usual digest is for the proof and for what
 * is remembered.
 */
static void
scan_all_columns(ScanState *state, TsyncChunk *chunk)
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
	chunk->differs = !chunk->rows_known || !tsync_digest_equal(chunk->row_source, chunk->row_replica) ||
		!tsync_digest_equal(chunk->source, chunk->replica);
	if (!chunk->differs)
		return;
	forgotten.has_buckets = false;	/* they are of the other fingerprint */
	ours = tsync_buckets_of_replica(table, every, &forgotten);
	theirs = tsync_collect_buckets(table, every, TSYNC_SOURCE, &chunk->range, ours->bucketing);
	/* nothing is staged to be remembered: these buckets are of the other fingerprint */
	chunk->differs = tsync_resolve(state->row_resolver, chunk, theirs, ours, scan->snapshot);
}

/* Scan a chunk: by digest where it is likely to be equal. */
static void
scan_chunk(ScanState *state, TsyncChunk *chunk)
{
	TsyncScan  *scan = state->scan;
	MemoryContext caller = MemoryContextSwitchTo(state->chunk_context);

	Assert(chunk->known);		/* what is not known can't be compared */
	if (chunk->by_row)
		scan_all_columns(state, chunk);
	else if (!chunk->differed)
	{
		chunk->source = tsync_digest_source(scan->table, scan->pace,
											tsync_sql_digest(scan->table, TSYNC_SOURCE, &chunk->range, scan->fingerprint));
		chunk->differs = !tsync_digest_equal(chunk->source, chunk->replica);
	}
	if (!chunk->by_row && (chunk->differed || chunk->differs))
		scan_buckets(state, chunk);
	tsync_compare_opaque(scan->table, scan->verify, scan->stage, chunk);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(state->chunk_context);
}

static void
finish_chunk(TsyncScan *scan, TsyncChunk *chunk)
{
	tsync_add_digest(&scan->digest, chunk->source);
	tsync_progress_step(1, chunk->source.rows);
}

/* Scan a chunk whose buckets at the source are known already. */
static void
scan_slice(ScanState *state, TsyncChunk *chunk, TsyncAllBuckets *all)
{
	MemoryContext caller;
	TsyncBuckets source;

	if (chunk->by_row)
	{
		scan_chunk(state, chunk);
		return;
	}
	caller = MemoryContextSwitchTo(state->chunk_context);
	source = tsync_slice_of_buckets(all, &chunk->range);
	chunk->source = tsync_digest_of_buckets(&source);
	if (chunk->differed || !tsync_digest_equal(chunk->source, chunk->replica))
	{
		TsyncBuckets *replica = tsync_buckets_of_replica(state->scan->table, state->scan->fingerprint, chunk);

		if (replica->bucketing.mask == TSYNC_BITMAP_MASK)
			resolve_chunk(state, chunk, &source, replica);
		else
			/* the source's are bitmaps, and buckets of two kinds can't be compared */
			scan_buckets(state, chunk);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(state->chunk_context);
}

/*
 * Will the buckets of most chunks be needed, are they bitmaps whose ends are
 * those of chunks, and do rows that lie together at the source share them?
 */
static bool
want_all_buckets(TsyncScan *scan)
{
	int64		differing = 0;
	int64		rows = 0;
	ListCell   *lc;

	if (!scan->source->clustered)
		return false;
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if ((chunk->differed && !chunk->has_bitmaps) ||
			(chunk->range.lower && strtoll(chunk->range.lower[0], NULL, 10) % (1 << TSYNC_BITMAP_SHIFT) != 0))
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
scan_all_buckets(ScanState *state)
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
	foreach(lc, scan->chunks)
	{
		if (all == NULL)
			break;
		tsync_check_snapshot_age(scan->pace);
		scan_slice(state, lfirst(lc), all);
		finish_chunk(scan, lfirst(lc));
	}
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

/* Scan all chunks in a transaction of the source that the caller ends. */
static void
scan_in_snapshot(ScanState *state)
{
	TsyncScan  *scan = state->scan;

	/* columns without a hash are compared chunk by chunk, whatever the digests say */
	bool		by_blocks = list_length(scan->chunks) > 1 && tsync_can_read_blocks(scan->source) &&
	!(scan->verify->whole && scan->verify->opaque.rows != NULL);
	TsyncVerdict quiet = TSYNC_NOT_COMPARED;
	bool		quiet_differ = false;
	ListCell   *lc;

	if (by_blocks && want_all_buckets(scan) && scan_all_buckets(state))
		return;
	if (by_blocks && !scan->load_compared)	/* else the load has asked that, in vain */
		quiet = tsync_compare_quiet_chunks(scan->table, scan->fingerprint, scan->source, scan->pace, scan->chunks);
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		tsync_check_snapshot_age(scan->pace);
		if (quiet == TSYNC_EQUAL && tsync_is_quiet(chunk))
			chunk->source = chunk->replica;
		else
			scan_chunk(state, chunk);
		quiet_differ |= chunk->differs && tsync_is_quiet(chunk);
		finish_chunk(scan, chunk);
	}
	/* of one snapshot, by blocks and by key: only one of them can be right */
	if (quiet == TSYNC_DIFFERENT && !quiet_differ)
		refuse_damaged_index(scan->table);
}

/* Scan the sources of some scans in one transaction: a List of ScanState. */
static void
scan_snapshot(void *arg)
{
	List	   *states = arg;
	ListCell   *lc;

	/* postgres_fdw takes the snapshot with the first statement, so it is not older than this */
	tsync_begin_in(CurrentMemoryContext);
	foreach(lc, states)
		tsync_note_snapshot(((ScanState *) lfirst(lc))->scan->pace);
	foreach(lc, states)
	{
		ScanState  *state = lfirst(lc);

		tsync_progress_run(state->scan->run_id, state->scan->table->relid);
		tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(state->scan->chunks), state->expected_rows);
		if (state->scan->look && !state->scan->look(state->scan->look_at))
			state->scan->unlike = true;
		else
			scan_in_snapshot(state);
	}
	tsync_commit();
}

/* Did the source, or its connection, take longer than a snapshot may last? */
static bool
took_too_long(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode == ERRCODE_SNAPSHOT_TOO_OLD ||
	/* under a shorter statement_timeout chunks would fail as well */
		(tsync_source_timed_out(edata) && tsync_snapshot_timeout() == tsync_max_snapshot_age);
}

/*
 * Scan all chunks of a source in one transaction.  Returns false if that takes
 * too long, and a transaction for each chunk will do.
 */
static bool
try_scan_snapshot(ScanState *state)
{
	bool		done = tsync_try(scan_snapshot, list_make1(state), took_too_long, NULL);

	if (done)
		return true;
	clear_state(state);
	if (strcmp(state->scan->pace->consistency, "auto") != 0)
		tsync_snapshot_too_old(state->scan->pace);
	return false;
}

/* Rows in the stage, also those of a statement that did not get to its end. */
static int64
stored_rows(TsyncStage *stage)
{
	return tuplestore_tuple_count(stage->inserted.rows) +
		tuplestore_tuple_count(stage->updated.rows) +
		tuplestore_tuple_count(stage->deleted.rows);
}

/* A chunk that is being tried. */
typedef struct ChunkTry
{
	ScanState  *state;
	TsyncChunk *chunk;
	ChunkOutcome outcome;
} ChunkTry;

/* Scan a chunk in a transaction of its own. */
static void
scan_chunk_alone(void *arg)
{
	ChunkTry   *attempt = arg;

	tsync_begin();
	scan_chunk(attempt->state, attempt->chunk);
	tsync_commit();
	attempt->state->locked_since = 0;
}

/* What an error of the source means for a chunk; false: nothing that we can mend. */
static bool
judge_error(ErrorData *edata, void *arg)
{
	ChunkTry   *attempt = arg;
	TimestampTz now = GetCurrentTimestamp();

	/* not for a lock: lock_timeout is shorter there than statement_timeout, to tell the two apart */
	if (tsync_source_timed_out(edata))
		attempt->outcome = CHUNK_TOO_LARGE;
	else if (edata->sqlerrcode == ERRCODE_SNAPSHOT_TOO_OLD)
		attempt->outcome = CHUNK_TOO_MANY;
	else if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		return false;
	else
	{
		if (attempt->state->locked_since == 0)
			attempt->state->locked_since = now;
		attempt->outcome = CHUNK_LOCKED;
		/* since the first such error, however often it is tried */
		return tsync_lock_timeout <= 0 ||
			!TimestampDifferenceExceeds(attempt->state->locked_since, now, tsync_lock_timeout);
	}
	return true;
}

static ChunkOutcome
try_scan_chunk(ScanState *state, TsyncChunk *chunk)
{
	ChunkTry	attempt = {.state = state,.chunk = chunk,.outcome = CHUNK_DONE};

	if (!tsync_try(scan_chunk_alone, &attempt, judge_error, NULL))
		clear_state(state);
	return attempt.outcome;
}

/*
 * Scan each chunk in a transaction of its own, with a rest after each, and
 * smaller chunks when the source is slow.  Returns false to start over.
 */
static bool
scan_chunks(ScanState *state)
{
	TsyncScan  *scan = state->scan;
	int			position = 0;

	while (position < list_length(scan->chunks))
	{
		TsyncChunk *chunk = tsync_fit_chunk(scan, position);
		int64		stored = stored_rows(scan->stage);
		int64		before = scan->table->waited;
		ChunkOutcome outcome = try_scan_chunk(state, chunk);

		if (outcome == CHUNK_TOO_MANY || outcome == CHUNK_TOO_LARGE)
			tsync_halve_chunk(scan, position, outcome == CHUNK_TOO_LARGE);
		/* rows of a chunk that failed can't be told from the others: all of them go */
		if (outcome != CHUNK_DONE && stored_rows(scan->stage) != stored)
			return false;
		if (outcome != CHUNK_DONE)
			continue;
		finish_chunk(scan, chunk);
		tsync_rest(scan->pace, scan->table->waited - before, chunk->source.rows);
		position++;
	}
	return true;
}

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

/* Plan the chunks of a run, and make sure that the replica's side is known. */
static void
prepare_scan(TsyncScan *scan)
{
	TsyncTable *table = scan->table;
	bool		whole = scan->verify->whole;

	tsync_stage_clear(scan->stage);
	scan->digest = (TsyncDigest) {0, 0};
	scan->drifted = 0;
	scan->verify->differences = scan->verify->drifted_rows = 0;
	tsync_begin_in(CurrentMemoryContext);
	tsync_clear_memory(&scan->memory);
	/* before any digest: a write that has committed by now is in it, a later one leaves a note for APPLY */
	scan->watched = tsync_open_memory(table->relid, whole ? NULL : tsync_sql_memory_key(table, scan->fingerprint));
	scan->chunks = whole ? tsync_plan_verify(table, scan->verify) : tsync_plan_chunks(table, scan->pace);
	if (!whole)
		tsync_choose_chunks(scan->replica, scan->verify, scan->chunks);
	tsync_commit();
	tsync_progress_phase(TSYNC_PHASE_SCAN, list_length(scan->chunks), 0);
	/* before the first statement of the scan: no snapshot there has to last while we read here */
	scan->drifted += tsync_know_replica(table, scan->fingerprint, scan->chunks, !whole);
	tsync_know_rows(table, scan->source->version, scan->chunks);
	if (table->version && !table->watermark)
	{
		tsync_begin();
		tsync_advance_watermark(table, sample_of_replica(scan), NULL);
		tsync_commit();
	}
}

/* Plan a scan, and make what it needs. */
static ScanState *
scan_state_create(TsyncScan *scan)
{
	ScanState  *state = palloc0(sizeof(ScanState));
	TsyncSettings *settings = &scan->replica->settings;
	ListCell   *lc;

	state->scan = scan;
	prepare_scan(scan);
	foreach(lc, scan->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		state->expected_rows += chunk->expected_rows;
		state->weighted_rows += chunk->differed ? tsync_weigh_rows(0, chunk->expected_rows)
			: tsync_weigh_rows(chunk->expected_rows, 0);
	}
	tsync_begin_in(CurrentMemoryContext);
	state->resolver = tsync_resolver_create(scan->table, scan->fingerprint, scan->stage);
	if (settings->verify_fraction > 0 && !scan->fingerprint.all_columns)
		state->row_resolver = tsync_resolver_create(scan->table, tsync_every_column(scan->source->version), scan->stage);
	tsync_commit();
	state->chunk_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync chunk", ALLOCSET_DEFAULT_SIZES);
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
		finish_chunk(scan, chunk);
	}
	return true;
}

/* One attempt to scan a source in one transaction, or one for each chunk; false to start over. */
static bool
try_scan(TsyncScan *scan)
{
	ScanState  *state = scan_state_create(scan);
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
		done = try_scan_snapshot(state);
		scan->snapshot_expired = !done;
		/* not earlier: the source would be idle in a transaction of ours */
		tsync_rest(scan->pace, scan->table->waited - busy, 0);
	}
	else
	{
		tsync_limit_source(scan->table, tsync_chunk_timeout(scan->table->nrange > 0));
		done = scan_chunks(state);
	}
	scan_state_destroy(state);
	/* another attempt needs a snapshot of its own */
	scan->load_compared = false;
	Assert(!done || scan->unlike || adds_up(scan));
	return done;
}

/* Scan the sources of a group in one transaction. */
static void
scan_group(List *scans)
{
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
	scan_snapshot(states);
	foreach(lc, scans)
		Assert(adds_up(lfirst(lc)));
	foreach(lc, states)
		scan_state_destroy(lfirst(lc));
}

/*
 * SCAN: compare sources and replicas and stage the differences.  The source of
 * a single run sees one transaction for all chunks, or one for each; those of
 * a group see one for all.
 */
void
tsync_scan(List *scans)
{
	Assert(!IsTransactionState());
	if (list_length(scans) > 1)
		scan_group(scans);
	else
		while (!try_scan(linitial(scans)))
			;					/* with smaller chunks */
}
