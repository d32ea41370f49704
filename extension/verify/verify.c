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
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verify/verify.h"

/* Prepare for comparing columns that have no hash, as far as there are any. */
static void
prepare_opaque(TsyncTable *table, TsyncVerify *verify)
{
	int			nopaque = 0;
	int			attnum = table->nkeys;
	TupleDesc	desc;

	for (int i = 0; i < table->ncolumns; i++)
		nopaque += table->columns[i].opaque;
	if (verify->opaque.rows != NULL)
		tuplestore_end(verify->opaque.rows);	/* of an attempt with other columns */
	verify->opaque.rows = NULL;
	if (nopaque == 0)
		return;
	desc = tsync_key_desc(table, nopaque);
	for (int i = 0; i < table->ncolumns; i++)
	{
		TsyncColumn *column = &table->columns[i];

		if (column->opaque)
			TupleDescInitEntry(desc, ++attnum, column->name, column->type, tsync_is_computed(table) ? -1 : column->typmod, 0);
	}
	tsync_rowset_init(&verify->opaque, TSYNC_OPAQUE, desc);
}

/* A run that verifies leaves it to others to follow a change of the source's columns. */
void
tsync_refuse_to_evolve(const char *label)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the columns of the source of %s have changed", label),
			 errdetail("Replica and source can't be compared before a run has followed the change."),
			 errhint("SELECT * FROM tablesync_run(%s);", quote_literal_cstr(label))));
}

/*
 * Prepare a run that verifies everything, once the columns are known; an error
 * if there is nothing to compare.  All columns of a row cost the source more
 * than its version: the speed that is known counts for less.
 */
void
tsync_prepare_verify(TsyncReplica *replica, TsyncVerify *verify, TsyncPace *pace)
{
	TsyncTable *table = &replica->table;

	Assert(verify->whole);
	if (!replica->state.loaded)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replica %s has not been loaded yet", table->label),
				 errdetail("There is nothing to verify before the first run has succeeded."),
				 errhint("SELECT * FROM tablesync_run(%s);", quote_literal_cstr(table->label))));
	for (int i = 0; i < table->ncolumns; i++)
		if (table->columns[i].refetch)
			tsync_refuse_to_evolve(table->label);
	verify->by_row = replica->settings.all_columns;
	verify->by_xmin = replica->settings.by_xmin;
	if (!verify->by_row)
		pace->scan_rate /= TSYNC_ROW_COST;
	prepare_opaque(table, verify);
}

/* A chunk of which nothing is known but its bounds. */
TsyncChunk *
tsync_forget_chunk(TsyncChunk *remembered)
{
	TsyncChunk *chunk = palloc0(sizeof(TsyncChunk));

	chunk->number = remembered->number;
	chunk->range = remembered->range;
	chunk->expected_rows = remembered->expected_rows;
	return chunk;
}

/*
 * Plan a run that verifies everything, in a transaction of the caller: the chunks
 * are the remembered ones, but what they hold is not, and nothing is written
 * back.
 */
List *
tsync_plan_verify(TsyncTable *table, TsyncVerify *verify)
{
	List	   *chunks = NIL;
	ListCell   *lc;

	verify->verified_at = GetCurrentTimestamp();
	verify->remembered = tsync_read_chunks(table);
	foreach(lc, verify->remembered)
		chunks = lappend(chunks, tsync_forget_chunk(lfirst(lc)));
	return chunks ? chunks : list_make1(palloc0(sizeof(TsyncChunk)));
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
 * Choose the chunks that a usual run verifies, at least one where it verifies
 * any.  What is remembered of them must stand the comparison with what they
 * hold.
 */
void
tsync_choose_chunks(TsyncReplica *replica, TsyncVerify *verify, List *chunks)
{
	double		wanted = list_length(chunks) * replica->settings.verify_fraction;
	List	   *by_age;
	ListCell   *lc;

	Assert(!verify->whole);
	verify->by_row = replica->settings.all_columns;
	verify->by_xmin = replica->settings.by_xmin;
	/* by xmin any chunk may have to be compared by value */
	if (!verify->by_row && (wanted > 0 || verify->by_xmin))
		prepare_opaque(&replica->table, verify);
	/* while columns are fetched for all rows, those that lack them are not at fault */
	if (wanted <= 0 || replica->state.refetching)
		return;
	verify->verified_at = GetCurrentTimestamp();
	by_age = list_copy(chunks);
	list_sort(by_age, compare_verified);
	foreach(lc, by_age)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (foreach_current_index(lc) >= wanted)
			break;
		chunk->verifying = true;
		chunk->by_row = !verify->by_row;
		if (verify->by_xmin)
			continue;			/* nothing that is remembered can be compared with what the replica holds */
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
tsync_know_rows(TsyncTable *table, TsyncVerify *verify, int source_version, List *chunks)
{
	ListCell   *lc;

	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (!chunk->verifying && !chunk->by_row)
			continue;
		if (!verify->by_xmin)
			chunk->touched = chunk->proved && !tsync_digest_equal(chunk->replica, chunk->remembered);
		if (!chunk->by_row)
			continue;
		tsync_begin();
		chunk->row_replica = tsync_select_digest(table, TSYNC_REPLICA,
												 tsync_sql_digest(table, TSYNC_REPLICA, &chunk->range,
																  tsync_every_column(source_version)));
		tsync_commit();
		chunk->rows_known = true;
		if (verify->by_xmin)
		{
			chunk->touched = chunk->stale || chunk->row_replica.rows != chunk->remembered.rows;
			chunk->replica.rows = chunk->expected_rows = chunk->row_replica.rows;
			chunk->known = true;
		}
		Assert(chunk->known);
	}
}

/*
 * Compare the columns of a chunk that have no hash, which means to fetch them,
 * and stage the rows that differ in nothing else.
 */
void
tsync_compare_opaque(TsyncTable *table, TsyncVerify *verify, TsyncStage *stage, TsyncChunk *chunk)
{
	TsyncReading reading = {.range = &chunk->range};
	TsyncRowSet keys;

	if (verify->opaque.rows == NULL || !(verify->whole || chunk->by_row))
		return;
	tsync_rowset_clear(&verify->opaque);
	tsync_rowset_init(&keys, "tsync_opaque_keys", tsync_key_desc(table, 0));
	tsync_start_reading(&reading, table);
	tsync_select_into(table, TSYNC_SOURCE, tsync_sql_list_opaque(table, &chunk->range), &verify->opaque);
	tsync_end_reading(&reading);
	tsync_rowset_register(&verify->opaque);
	/* a row that is staged already must not be staged again */
	tsync_rowset_register(&stage->updated);
	tsync_select_into(table, TSYNC_REPLICA, tsync_sql_compare_opaque(table, &chunk->range), &keys);
	SPI_unregister_relation(stage->updated.name);
	SPI_unregister_relation(verify->opaque.name);
	if (keys.count > 0)
	{
		tsync_fetch_rows(table, &keys, &stage->updated);
		chunk->differs = true;
	}
	tuplestore_end(keys.rows);
	tsync_rowset_clear(&verify->opaque);
}
