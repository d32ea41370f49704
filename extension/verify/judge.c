/*-------------------------------------------------------------------------
 *
 * judge.c
 *	  Has somebody touched the chunks that differ, or has the source moved on?
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include <limits.h>

#include "catalog/tables.h"
#include "execute/execute.h"
#include "query/query.h"
#include "utils/memutils.h"
#include "verify/verify.h"

/* Fingerprints as those that a remembered digest may be made of. */
static TsyncFingerprint
usual_fingerprint(bool all_columns, int source_version)
{
	return (TsyncFingerprint) {.all_columns = all_columns,.source_version = source_version};
}

/* Are the remembered digests made of this kind of fingerprint? */
static bool
memory_is_by(TsyncTable *table, TsyncVerify *verify, const char *memory_key, TsyncFingerprint fingerprint)
{
	if (fingerprint.all_columns ? verify->opaque.rows != NULL : table->version == NULL)
		return false;
	return strcmp(tsync_sql_memory_key(table, fingerprint), memory_key) == 0;
}

/*
 * Is what tablesync.chunk remembers what the last usual run ended with?  A run
 * that fails later may have noted what it found in the replica, but then the
 * digests do not add up to that proof.
 */
static bool
is_memory_proved(TsyncTable *table, TsyncVerify *verify, int source_version)
{
	TsyncDigest remembered = {0, 0};
	TsyncDigest proof;
	char	   *memory_key;
	bool		proved;
	ListCell   *lc;

	tsync_begin_in(CurrentMemoryContext);
	proved = tsync_read_proof(table->relid, &proof, &memory_key);
	verify->memory_by_row = memory_key && memory_is_by(table, verify, memory_key, usual_fingerprint(true, source_version));
	verify->memory_usable = verify->memory_by_row ||
		(memory_key && memory_is_by(table, verify, memory_key, usual_fingerprint(false, source_version)));
	tsync_commit();
	foreach(lc, verify->remembered)
		tsync_add_digest(&remembered, ((TsyncChunk *) lfirst(lc))->remembered);
	return verify->memory_usable && (verify->memory_by_row || !verify->by_row) &&
		(proved || tsync_digest_equal(remembered, proof));
}

/* Digest a remembered chunk of the replica the way it is remembered. */
TsyncDigest
tsync_digest_as_remembered(TsyncTable *table, TsyncVerify *verify, int source_version, TsyncRange *range)
{
	return tsync_select_digest(table, TSYNC_REPLICA,
							   tsync_sql_digest(table, TSYNC_REPLICA, range,
												usual_fingerprint(verify->memory_by_row, source_version)));
}

/* Has somebody touched a chunk that differs, and if so, which of its rows? */
static void
judge_chunk(TsyncTable *table, TsyncVerify *verify, TsyncStage *stage, int source_version, TsyncChunk *chunk)
{
	MemoryContext caller = CurrentMemoryContext;
	TsyncDigest now;

	tsync_begin();
	now = verify->whole ? tsync_digest_as_remembered(table, verify, source_version, &chunk->range) : chunk->replica;
	chunk->touched = !tsync_digest_equal(now, chunk->remembered);
	if (chunk->touched)
	{
		bool		by_row = verify->whole ? verify->memory_by_row : verify->by_row;

		tsync_register_stage(stage);
		/* APPLY still needs these keys */
		MemoryContextSwitchTo(caller);
		if (verify->touched_keys.rows == NULL)
			tsync_rowset_init(&verify->touched_keys, TSYNC_TOUCHED, tsync_key_desc(table, 0));
		chunk->blamed = tsync_blame(table, usual_fingerprint(by_row, source_version), chunk, now, &verify->touched_keys);
	}
	tsync_commit();
}

/* Judge the remembered chunks in which a run that has verified everything found something. */
static void
judge_remembered(TsyncTable *table, TsyncVerify *verify, TsyncStage *stage, List *chunks, int source_version)
{
	bool		proved = is_memory_proved(table, verify, source_version);
	ListCell   *lc;

	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->touched = true;	/* nobody can tell, unless somebody does below */
		if (chunk->differs && verify->remembered != NIL)
			((TsyncChunk *) list_nth(verify->remembered, chunk->number))->differs = true;
	}
	foreach(lc, verify->remembered)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->touched = true;
		if (chunk->differs && chunk->proved && proved)
			judge_chunk(table, verify, stage, source_version, chunk);
	}
	foreach(lc, chunks) /* pieces of them, where they were cut */
	{
		TsyncChunk *chunk = lfirst(lc);
		TsyncChunk *whole = verify->remembered ? list_nth(verify->remembered, chunk->number) : chunk;

		chunk->touched = whole->touched;
		chunk->blamed = whole->blamed;
	}
}

/* Has somebody touched the replica since the last success?  By notes, and by the number of rows. */
static void
judge_chunks_by_xmin(TsyncVerify *verify, List *chunks)
{
	int64	   *rows = palloc0(Max(list_length(verify->remembered), 1) * sizeof(int64));
	ListCell   *lc;

	foreach(lc, chunks)
		if (verify->remembered != NIL)
			rows[((TsyncChunk *) lfirst(lc))->number] += ((TsyncChunk *) lfirst(lc))->replica.rows;
	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		TsyncChunk *whole = verify->remembered ? list_nth(verify->remembered, chunk->number) : NULL;

		chunk->touched = whole == NULL || whole->stale || rows[chunk->number] != whole->remembered.rows;
		if (chunk->differs && whole)
			whole->differs = true;
	}
	pfree(rows);
}

static void
find_new(TsyncTable *table, List *keys, void *arg)
{
	tsync_select_at_most(table, TSYNC_SOURCE, tsync_sql_new_of_keys(table, keys), arg, list_length(keys));
}

/* Find out which of the staged rows the source has written since the last success. */
static void
find_new_keys(TsyncTable *table, TsyncVerify *verify, TsyncStage *stage)
{
	TsyncRowSet keys;

	tsync_begin_in(CurrentMemoryContext);
	if (verify->new_keys.rows == NULL)
		tsync_rowset_init(&verify->new_keys, TSYNC_NEW, tsync_key_desc(table, 0));
	tsync_rowset_clear(&verify->new_keys);
	tsync_rowset_init(&keys, "tsync_staged_keys", tsync_key_desc(table, 0));
	if (table->horizon.known && stage->inserted.count + stage->updated.count > 0)
	{
		tsync_register_stage(stage);
		tsync_select_into(table, TSYNC_REPLICA, tsync_sql_staged_keys(table, INT_MAX), &keys);
		tsync_unregister_stage(stage);
		tsync_for_keys(table, TSYNC_SOURCE, &keys, find_new, &verify->new_keys);
	}
	tuplestore_end(keys.rows);
	tsync_commit();
}

/* Are rows compared that a run verifies, and do some differ? */
static bool
has_verified_differences(TsyncVerify *verify, List *chunks)
{
	ListCell   *lc;

	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (chunk->differs && (verify->whole || chunk->verifying))
			return true;
	}
	return false;
}

/*
 * Find out which of the chunks that differ from the source hold what the last
 * usual run proved.
 */
void
tsync_judge_chunks(TsyncTable *table, TsyncVerify *verify, TsyncStage *stage, List *chunks, int source_version)
{
	ListCell   *lc;

	Assert(!IsTransactionState());
	if (verify->touched_keys.rows != NULL)
		tsync_rowset_clear(&verify->touched_keys);
	if (verify->by_xmin)
	{
		if (verify->whole)
			judge_chunks_by_xmin(verify, chunks);
		if (has_verified_differences(verify, chunks))
			find_new_keys(table, verify, stage);
		return;
	}
	if (verify->whole)
	{
		judge_remembered(table, verify, stage, chunks, source_version);
		return;
	}
	foreach(lc, chunks)
		if (((TsyncChunk *) lfirst(lc))->touched && ((TsyncChunk *) lfirst(lc))->differs)
			judge_chunk(table, verify, stage, source_version, lfirst(lc));
}
