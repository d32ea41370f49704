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

#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "run/run.h"
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verify/verify.h"

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
TsyncChunk *
tsync_forget_chunk(TsyncChunk *remembered)
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
		run->chunks = lappend(run->chunks, tsync_forget_chunk(lfirst(lc)));
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
