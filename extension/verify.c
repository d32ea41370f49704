/*-------------------------------------------------------------------------
 *
 * verify.c
 *	  Comparing every column of every row.
 *
 * A run that verifies is a usual one with another fingerprint, that of all
 * columns, and with nothing taken for known: both sides are digested.  What
 * differs is recorded in tablesync.difference, and applied if it is to be
 * repaired.
 *
 * A replica with verify_fraction has a share of its chunks verified by every
 * usual run, in turn.  That is part of SCAN, not a pass of its own after
 * APPLY: the rows then belong to the same instant of the source as all others
 * of the run, they are confirmed, guarded and proved like them, and what has
 * merely changed at the source needs no second look.
 *
 * A row that differs is not at fault when the source is newer.  It is, when the
 * chunk still holds what the last run proved to be equal, or when its version
 * column says so.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Prepare for comparing columns that have no hash, as far as there are any. */
static void
prepare_opaque(TsyncRun *run)
{
	TsyncReplica *replica = run->replica;
	int			nopaque = 0;
	int			attnum = replica->nkeys;
	TupleDesc	desc;

	for (int i = 0; i < replica->ncolumns; i++)
		nopaque += replica->columns[i].opaque;
	if (run->opaque.rows != NULL)
		tuplestore_end(run->opaque.rows);	/* of an attempt with other columns */
	run->opaque.rows = NULL;
	if (nopaque == 0)
		return;
	desc = tsync_key_desc(replica, nopaque);
	for (int i = 0; i < replica->ncolumns; i++)
	{
		TsyncColumn *column = &replica->columns[i];

		if (column->opaque)
			TupleDescInitEntry(desc, ++attnum, column->name, column->type, column->typmod, 0);
	}
	tsync_rowset_init(&run->opaque, "tsync_opaque", desc);
}

/* A run that verifies leaves it to others to follow a change of the source's columns. */
void
tsync_check_may_evolve(TsyncRun *run)
{
	if (run->verify)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the columns of the source of %s have changed", run->replica->label),
				 errdetail("Replica and source can't be compared before a run has followed the change."),
				 errhint("SELECT * FROM tablesync_run(%s);", quote_literal_cstr(run->replica->label))));
}

/* Let a run that verifies look at all columns; nothing to do for others. */
void
tsync_prepare_verify(TsyncRun *run)
{
	TsyncReplica *replica = run->replica;

	if (!run->verify || replica->opaque_apart)
		return;
	if (!replica->loaded)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replica %s has not been loaded yet", replica->label),
				 errdetail("There is nothing to verify before the first run has succeeded."),
				 errhint("SELECT * FROM tablesync_run(%s);", quote_literal_cstr(replica->label))));
	for (int i = 0; i < replica->ncolumns; i++)
		if (replica->columns[i].refetch)
			tsync_check_may_evolve(run);
	run->rules_by_row = replica->row_fingerprint;
	if (!replica->row_fingerprint)
		replica->scan_rate /= TSYNC_ROW_COST;
	replica->row_fingerprint = replica->opaque_apart = true;
	prepare_opaque(run);
}

/* Use fingerprints of all columns, or again those that the run uses else. */
void
tsync_use_row_fingerprint(TsyncRun *run, bool all_columns)
{
	run->replica->row_fingerprint = all_columns || run->verify || run->rules_by_row;
	run->replica->opaque_apart = all_columns || run->verify;
}

/* A chunk of which nothing is known but its bounds. */
static TsyncChunk *
forget_chunk(TsyncChunk *remembered)
{
	TsyncChunk *chunk = palloc0(sizeof(TsyncChunk));

	chunk->number = remembered->number;
	chunk->lower = remembered->lower;
	chunk->upper = remembered->upper;
	chunk->expected_rows = remembered->expected_rows;
	return chunk;
}

/*
 * Plan a run that verifies, in a transaction of the caller: the chunks are the
 * remembered ones, but what they hold is not, and nothing is written back.
 */
void
tsync_plan_verify(TsyncRun *run)
{
	ListCell   *lc;

	run->chunks = NIL;
	run->verified_at = GetCurrentTimestamp();
	run->remembered = tsync_read_chunks(run->replica);
	foreach(lc, run->remembered)
		run->chunks = lappend(run->chunks, forget_chunk(lfirst(lc)));
	if (run->chunks == NIL)
		run->chunks = list_make1(palloc0(sizeof(TsyncChunk)));
}

/* Those that were never verified first, then by the time since. */
static int
compare_verified(const ListCell *a, const ListCell *b)
{
	const TsyncChunk *x = lfirst(a);
	const TsyncChunk *y = lfirst(b);

	if (x->verified_at != y->verified_at)
		return x->verified_at < y->verified_at ? -1 : 1;
	return x->number - y->number;
}

/*
 * Choose the chunks that a usual run verifies, at least one.  What is
 * remembered of them must stand the comparison with what they hold.
 */
void
tsync_choose_chunks(TsyncRun *run)
{
	double		wanted = list_length(run->chunks) * run->replica->verify_fraction;
	List	   *by_age;
	ListCell   *lc;

	run->differences = run->drifted_rows = 0;
	if (run->verify)
		return;
	run->rules_by_row = run->replica->row_fingerprint;
	if (wanted <= 0)
		return;
	run->verified_at = GetCurrentTimestamp();
	if (!run->rules_by_row)
		prepare_opaque(run);
	by_age = list_copy(run->chunks);
	list_sort(by_age, compare_verified);
	foreach(lc, by_age)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (foreach_current_index(lc) >= wanted)
			break;
		chunk->verifying = true;
		chunk->by_row = !run->rules_by_row;
		chunk->stale |= chunk->known;
		chunk->known = false;
	}
	list_free(by_age);
}

/*
 * Digest all columns of the replica's rows in the chunks to be verified, before
 * the source is read, and see whether somebody has touched them.
 */
void
tsync_know_rows(TsyncRun *run)
{
	MemoryContext caller = CurrentMemoryContext;
	ListCell   *lc;

	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (!chunk->verifying)
			continue;
		chunk->touched = chunk->proved && !tsync_digest_equal(chunk->replica, chunk->remembered);
		if (!chunk->by_row)
			continue;
		tsync_begin();
		tsync_use_row_fingerprint(run, true);
		chunk->row_replica = tsync_select_digest(run, TSYNC_REPLICA,
												 tsync_sql_digest(run->replica, TSYNC_REPLICA, chunk,
																  run->source_version));
		tsync_use_row_fingerprint(run, false);
		tsync_commit();
		MemoryContextSwitchTo(caller);
		chunk->rows_known = true;
	}
}

/*
 * Compare the columns of a chunk that have no hash, which means to fetch them,
 * and stage the rows that differ in nothing else.
 */
void
tsync_compare_opaque(TsyncRun *run, TsyncChunk *chunk)
{
	TsyncReplica *replica = run->replica;
	TsyncReading reading = {.range = chunk};
	TsyncRowSet keys;

	if (run->opaque.rows == NULL || !(run->verify || chunk->by_row))
		return;
	tsync_rowset_clear(&run->opaque);
	tsync_rowset_init(&keys, "tsync_opaque_keys", tsync_key_desc(replica, 0));
	tsync_start_reading(&reading, run);
	tsync_select_into(run, TSYNC_SOURCE, tsync_sql_list_opaque(replica, chunk), &run->opaque);
	tsync_end_reading(&reading);
	tsync_rowset_register(&run->opaque);
	tsync_rowset_register(&run->stage->updated);
	tsync_select_into(run, TSYNC_REPLICA, tsync_sql_compare_opaque(run, chunk), &keys);
	SPI_unregister_relation(run->stage->updated.name);
	SPI_unregister_relation(run->opaque.name);
	if (keys.count > 0)
	{
		tsync_fetch_rows(run, &keys, &run->stage->updated);
		chunk->differs = true;
	}
	tuplestore_end(keys.rows);
	tsync_rowset_clear(&run->opaque);
}

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
static TsyncDigest
digest_as_remembered(TsyncRun *run, TsyncChunk *chunk)
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
	now = run->verify ? digest_as_remembered(run, chunk) : chunk->replica;
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

/* Key ranges of the chunks in which differences are recorded, neighbours as one. */
static List *
differing_ranges(TsyncRun *run, bool touched, bool blamed)
{
	List	   *ranges = NIL;
	bool		extend = false;
	ListCell   *lc;

	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		bool		wanted = chunk->differs && (run->verify || chunk->verifying) &&
			chunk->touched == touched && chunk->blamed == blamed;

		if (wanted && extend)
			((TsyncChunk *) llast(ranges))->upper = chunk->upper;
		else if (wanted)
			ranges = lappend(ranges, forget_chunk(chunk));
		extend = wanted;
	}
	return ranges;
}

/*
 * Record how the staged rows differ from the replica's, in the transaction that
 * is going to apply them or to end the run.
 */
void
tsync_record_differences(TsyncRun *run)
{
	List	   *untouched = differing_ranges(run, false, false);
	List	   *blamed = differing_ranges(run, true, true);
	List	   *touched = differing_ranges(run, true, false);

	if (untouched == NIL && blamed == NIL && touched == NIL)
		return;
	if (untouched != NIL)
		tsync_write_differences(run, tsync_sql_differences(run, untouched, false, ""));
	if (touched != NIL)
		tsync_write_differences(run, tsync_sql_differences(run, touched, true, ""));
	if (blamed != NIL)
	{
		tsync_rowset_register(&run->touched_keys);
		tsync_write_differences(run, tsync_sql_differences(run, blamed, false, "NOT "));
		tsync_write_differences(run, tsync_sql_differences(run, blamed, true, " "));
		SPI_unregister_relation(run->touched_keys.name);
	}
	tsync_count_differences(run);
}

/* Does the replica have what the source had, in all columns of a chunk? */
static bool
is_verified(TsyncRun *run, TsyncChunk *chunk)
{
	TsyncDigest now;

	if (!chunk->differs)
		return true;
	tsync_use_row_fingerprint(run, chunk->by_row);
	now = tsync_select_digest(run, TSYNC_REPLICA,
							  tsync_sql_digest(run->replica, TSYNC_REPLICA, chunk, run->source_version));
	tsync_use_row_fingerprint(run, false);
	return tsync_digest_equal(now, chunk->by_row ? chunk->row_source : chunk->source);
}

/* Remember what a repaired chunk holds now; it would count as somebody else's change. */
static void
remember_repaired(TsyncRun *run, TsyncChunk *chunk)
{
	chunk->known = run->memory_usable;
	if (chunk->known)
		chunk->replica = digest_as_remembered(run, chunk);
	tsync_write_memory(run->replica, chunk, NULL, NULL);
}

/* Record which chunks are verified, in the transaction that ends the run. */
void
tsync_save_verified(TsyncRun *run)
{
	bool		mended = run->repair && run->stage->reappeared.count == 0;
	List	   *numbers = NIL;
	ListCell   *lc;

	foreach(lc, run->verify ? run->remembered : run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (run->verify ? !chunk->differs || mended : chunk->verifying && is_verified(run, chunk))
			numbers = lappend_int(numbers, chunk->number);
		if (run->verify && run->repair && chunk->differs)
			remember_repaired(run, chunk);
	}
	if (numbers != NIL)
		tsync_write_verified(run, numbers);
}

/* End a run that verifies and leaves the replica as it is. */
bool
tsync_report(TsyncRun *run)
{
	MemoryContext caller = CurrentMemoryContext;

	tsync_progress_phase(TSYNC_PHASE_APPLY, 0, 0);
	tsync_add_up_replica(run);
	tsync_begin();
	tsync_register_stage(run->stage);
	if (run->replica->wide)
		tsync_avoid_large_joins();
	tsync_record_differences(run);
	tsync_save_verified(run);
	tsync_finish_run(run);
	tsync_commit();
	MemoryContextSwitchTo(caller);
	return true;
}
