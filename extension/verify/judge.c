/*-------------------------------------------------------------------------
 *
 * judge.c
 *	  Has somebody touched the chunks that differ, or has the source moved on?
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "run/run.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verify/verify.h"

/* Are the remembered digests made of this kind of fingerprint? */
static bool
memory_is_by(TsyncRun *run, const char *memory_key, bool all_columns)
{
	TsyncReplica *replica = run->replica;
	bool		same;

	if (all_columns ? run->opaque.rows != NULL : replica->version == NULL)
		return false;
	replica->row_fingerprint = all_columns;
	replica->opaque_apart = false;
	same = strcmp(tsync_sql_memory_key(replica, run->source_version), memory_key) == 0;
	tsync_use_row_fingerprint(run, false);
	return same;
}

/*
 * Is what tablesync.chunk remembers what the last usual run ended with?  A run
 * that fails later may have noted what it found in the replica, but then the
 * digests do not add up to that proof.
 */
static bool
is_memory_proved(TsyncRun *run)
{
	MemoryContext caller = CurrentMemoryContext;
	TsyncDigest remembered = {0, 0};
	TsyncDigest proof;
	char	   *memory_key;
	bool		proved;
	ListCell   *lc;

	tsync_begin();
	MemoryContextSwitchTo(caller);
	proved = tsync_read_proof(run, &proof, &memory_key);
	run->memory_by_row = memory_key && memory_is_by(run, memory_key, true);
	run->memory_usable = run->memory_by_row || (memory_key && memory_is_by(run, memory_key, false));
	tsync_commit();
	MemoryContextSwitchTo(caller);
	foreach(lc, run->remembered)
	{
		remembered.rows += ((TsyncChunk *) lfirst(lc))->remembered.rows;
		remembered.sum += ((TsyncChunk *) lfirst(lc))->remembered.sum;
	}
	return run->memory_usable && (run->memory_by_row || !run->rules_by_row) &&
		(proved || tsync_digest_equal(remembered, proof));
}

/* Digest a remembered chunk of the replica the way it is remembered. */
TsyncDigest
tsync_digest_as_remembered(TsyncRun *run, TsyncChunk *chunk)
{
	TsyncDigest digest;

	run->replica->row_fingerprint = run->memory_by_row;
	run->replica->opaque_apart = false;
	digest = tsync_select_digest(run, TSYNC_REPLICA,
								 tsync_sql_digest(run->replica, TSYNC_REPLICA, chunk, run->source_version));
	tsync_use_row_fingerprint(run, false);
	return digest;
}

/* Has somebody touched a chunk that differs, and if so, which of its rows? */
static void
judge_chunk(TsyncRun *run, TsyncChunk *chunk)
{
	MemoryContext caller = CurrentMemoryContext;
	TsyncDigest now;

	tsync_begin();
	now = run->verify ? tsync_digest_as_remembered(run, chunk) : chunk->replica;
	chunk->touched = !tsync_digest_equal(now, chunk->remembered);
	if (chunk->touched)
	{
		tsync_register_stage(run->stage);
		MemoryContextSwitchTo(caller);
		if (run->touched_keys.rows == NULL)
			tsync_rowset_init(&run->touched_keys, "tsync_touched", tsync_key_desc(run->replica, 0));
		run->replica->row_fingerprint = run->verify ? run->memory_by_row : run->rules_by_row;
		run->replica->opaque_apart = false;
		chunk->blamed = tsync_blame(run, chunk, now);
		tsync_use_row_fingerprint(run, false);
	}
	tsync_commit();
	MemoryContextSwitchTo(caller);
}

/*
 * Find out which of the chunks that differ from the source hold what the last
 * usual run proved.
 */
void
tsync_judge_chunks(TsyncRun *run)
{
	bool		proved;
	ListCell   *lc;

	if (run->touched_keys.rows != NULL)
		tsync_rowset_clear(&run->touched_keys);
	if (!run->verify)
	{
		foreach(lc, run->chunks)
			if (((TsyncChunk *) lfirst(lc))->touched && ((TsyncChunk *) lfirst(lc))->differs)
				judge_chunk(run, lfirst(lc));
		return;
	}
	proved = is_memory_proved(run);
	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->touched = true;
		if (chunk->differs && run->remembered != NIL)
			((TsyncChunk *) list_nth(run->remembered, chunk->number))->differs = true;
	}
	foreach(lc, run->remembered)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->touched = true;
		if (chunk->differs && chunk->proved && proved)
			judge_chunk(run, chunk);
	}
	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		TsyncChunk *whole = run->remembered ? list_nth(run->remembered, chunk->number) : chunk;

		chunk->touched = whole->touched;
		chunk->blamed = whole->blamed;
	}
}
