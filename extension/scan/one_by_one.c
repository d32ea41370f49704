/*-------------------------------------------------------------------------
 *
 * one_by_one.c
 *	  Scanning each chunk in a transaction, and so a snapshot, of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/tables.h"
#include "compat.h"
#include "execute/execute.h"
#include "process/process.h"
#include "scan/scan.h"
#include "scan/scan_state.h"
#include "source/source.h"
#include "utils/timestamp.h"

/* How a try to scan a chunk has ended. */
typedef enum ChunkOutcome
{
	CHUNK_DONE,
	CHUNK_LOCKED,				/* somebody at the source holds a lock */
	CHUNK_TOO_MANY,				/* its differences would take too long to fetch */
	CHUNK_TOO_LARGE,			/* the source could not answer in time */
	CHUNK_INTERRUPTED			/* the source has to be asked again */
} ChunkOutcome;

/* A chunk that is being tried. */
typedef struct ChunkTry
{
	TsyncScanState *state;
	TsyncChunk *chunk;
	ChunkOutcome outcome;
} ChunkTry;

/* Scan a chunk in a transaction of its own. */
static void
scan_chunk_alone(void *arg)
{
	ChunkTry   *attempt = arg;

	tsync_begin();
	tsync_scan_chunk(attempt->state, attempt->chunk);
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
	else if (tsync_is_interruption(edata, NULL))
		attempt->outcome = CHUNK_INTERRUPTED;
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

/* Try to scan a chunk; a try that fails leaves nothing behind. */
static ChunkOutcome
try_scan_chunk(TsyncScanState *state, TsyncChunk *chunk)
{
	TsyncScan  *scan = state->scan;
	ChunkTry	attempt = {.state = state,.chunk = chunk,.outcome = CHUNK_DONE};
	TsyncStageMark staged = tsync_stage_mark(scan->stage);
	int64		remembered = scan->memory.count;

	if (!tsync_try(scan_chunk_alone, &attempt, judge_error, NULL))
	{
		tsync_clear_state(state);
		tsync_stage_go_back(scan->stage, staged);
		tsync_rowset_truncate(&scan->memory, remembered);
	}
	else
		tsync_source_goes_on();
	return attempt.outcome;
}

/* Can a chunk be scanned better in smaller ones? */
static bool
is_to_be_cut(ChunkOutcome outcome)
{
	return outcome == CHUNK_TOO_MANY || outcome == CHUNK_TOO_LARGE ||
		(outcome == CHUNK_INTERRUPTED && tsync_is_cut_off_again());
}

/*
 * Scan each chunk in a transaction of its own, with a rest after each, and
 * smaller chunks when the source is slow, or does not let a snapshot live.
 */
void
tsync_scan_one_by_one(TsyncScanState *state)
{
	TsyncScan  *scan = state->scan;
	int			position = 0;

	while (position < list_length(scan->chunks))
	{
		TsyncChunk *chunk = tsync_fit_chunk(scan, position);
		int64		before = scan->table->waited;
		ChunkOutcome outcome = try_scan_chunk(state, chunk);

		if (outcome == CHUNK_INTERRUPTED)
			tsync_await_source_again();
		if (is_to_be_cut(outcome))
			tsync_halve_chunk(scan, position, outcome == CHUNK_TOO_LARGE);
		if (outcome != CHUNK_DONE)
			continue;
		tsync_finish_chunk(scan, chunk);
		tsync_rest(scan->pace, scan->table->waited - before, chunk->source.rows);
		position++;
	}
}
