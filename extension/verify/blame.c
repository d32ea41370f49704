/*-------------------------------------------------------------------------
 *
 * blame.c
 *	  Which rows of a chunk has somebody touched here, and which at the source?
 *
 * A chunk of the replica has a remembered digest, from when it was proved to
 * be equal, and another one now.  Each row that differs from the source would
 * explain a certain part of that: a row that is only here may have been
 * inserted, one that is only there deleted here, and a row that both have
 * changed here.  The rows whose parts add up to what has changed are those
 * that somebody has touched; the others have changed at the source.  That is
 * tried for all subsets, so only for a few rows, but is as sure as 64 bits.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "verify/verify.h"

/* As many rows can be tried in all combinations. */
#define MAX_SUSPECTS 20			/* 2^20 sums; a wrong one fits once in 2^44 */

/* Rows that may have been touched, and the digest that each would explain. */
typedef struct Suspects
{
	TsyncRowSet *keys;			/* in the same order */
	int			count;
	TsyncDigest explains[MAX_SUSPECTS];
} Suspects;

static void
take_suspect(TupleTableSlot *slot, void *arg)
{
	Suspects   *suspects = arg;
	int			nkeys = suspects->keys->tupdesc->natts;

	slot_getallattrs(slot);
	if (suspects->count < MAX_SUSPECTS)
	{
		TsyncDigest *explains = &suspects->explains[suspects->count];

		explains->rows = tsync_slot_integer(slot, nkeys + 1);
		explains->sum = (uint64) tsync_slot_integer(slot, nkeys + 2) - (uint64) tsync_slot_integer(slot, nkeys + 3);
		tuplestore_putvalues(suspects->keys->rows, suspects->keys->tupdesc, slot->tts_values, slot->tts_isnull);
		suspects->keys->count++;
	}
	suspects->count++;
}

/*
 * The only subset of the suspects that explains a change, as a bitmap; 0 if
 * there is none, or more than one.  Each step adds or removes one suspect.
 */
static uint32
find_subset(Suspects *suspects, TsyncDigest change)
{
	TsyncDigest sum = {0, 0};
	uint32		subset = 0;
	uint32		solution = 0;

	for (uint32 i = 1; i < ((uint32) 1 << suspects->count); i++)
	{
		int			bit = pg_rightmost_one_pos32(i);
		bool		adding = ((subset ^= (uint32) 1 << bit) >> bit) & 1;

		sum.rows += adding ? suspects->explains[bit].rows : -suspects->explains[bit].rows;
		sum.sum += adding ? suspects->explains[bit].sum : -suspects->explains[bit].sum;
		if (sum.rows != change.rows || sum.sum != change.sum)
			continue;
		if (solution != 0)
			return 0;
		solution = subset;
	}
	return solution;
}

/* Copy the keys in a subset to those that somebody has touched. */
static void
blame_subset(Suspects *suspects, uint32 subset, TsyncRowSet *touched_keys)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(suspects->keys->tupdesc, &TTSOpsMinimalTuple);

	tsync_rowset_start(suspects->keys);
	for (int i = 0; tsync_rowset_next(suspects->keys, slot); i++)
		if ((subset >> i) & 1)
		{
			tuplestore_puttupleslot(touched_keys->rows, slot);
			touched_keys->count++;
		}
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Find the rows of a touched chunk that somebody has touched, and note their
 * keys; false if nobody can tell.  In a transaction of the caller that sees the
 * stage, with the fingerprint that the remembered digest is made of.
 */
bool
tsync_blame(TsyncTable *table, TsyncFingerprint fingerprint, TsyncChunk *chunk, TsyncDigest now, TsyncRowSet *touched_keys)
{
	TsyncRowSet keys;
	Suspects	suspects = {.keys = &keys};
	TsyncDigest change = {now.rows - chunk->remembered.rows, now.sum - chunk->remembered.sum};
	uint32		subset = 0;

	tsync_rowset_init(&keys, "tsync_suspects", tsync_key_desc(table, 0));
	tsync_select_each(table, TSYNC_REPLICA,
					  tsync_sql_suspects(table, &chunk->range, fingerprint, MAX_SUSPECTS + 1), NULL, take_suspect, &suspects);
	if (suspects.count <= MAX_SUSPECTS)
		subset = find_subset(&suspects, change);
	if (subset != 0)
		blame_subset(&suspects, subset, touched_keys);
	tuplestore_end(keys.rows);
	return subset != 0;
}
