/*-------------------------------------------------------------------------
 *
 * record.c
 *	  Recording the rows that differ, and the chunks that were compared.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "utils/memutils.h"
#include "verify/verify.h"

/* Key ranges of the chunks in which differences are recorded, neighbours as one. */
static List *
differing_ranges(TsyncVerify *verify, List *chunks, bool touched, bool blamed)
{
	List	   *ranges = NIL;
	bool		extend = false;
	ListCell   *lc;

	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		bool		wanted = chunk->differs && (verify->whole || chunk->verifying) &&
		chunk->touched == touched && chunk->blamed == blamed;

		if (wanted && extend)
			((TsyncRange *) llast(ranges))->upper = chunk->range.upper;
		else if (wanted)
			ranges = lappend(ranges, memcpy(palloc(sizeof(TsyncRange)), &chunk->range, sizeof(TsyncRange)));
		extend = wanted;
	}
	return ranges;
}

/* Record the rows in some ranges; "keys" says which of them, of those that somebody has touched. */
static void
record_ranges(TsyncTable *table, TsyncVerify *verify, int64 run_id, List *ranges, bool touched, const char *keys)
{
	bool		by_xmin = verify->by_xmin && table->horizon.known;

	if (by_xmin)
		tsync_rowset_register(&verify->new_keys);
	tsync_write_differences(table, run_id,
							tsync_sql_differences(table, ranges, touched, verify->by_row, by_xmin, verify->whole, keys));
	if (by_xmin)
		SPI_unregister_relation(verify->new_keys.name);
}

/*
 * Record how the staged rows differ from the replica's, in the transaction that
 * is going to apply them or to end the run.
 */
void
tsync_record_differences(TsyncTable *table, TsyncVerify *verify, List *chunks, int64 run_id)
{
	List	   *untouched = differing_ranges(verify, chunks, false, false);
	List	   *blamed = differing_ranges(verify, chunks, true, true);
	List	   *touched = differing_ranges(verify, chunks, true, false);

	Assert(IsTransactionState());
	verify->differences = verify->drifted_rows = 0;
	if (untouched == NIL && blamed == NIL && touched == NIL)
		return;
	if (untouched != NIL)
		record_ranges(table, verify, run_id, untouched, false, "");
	if (touched != NIL)
		record_ranges(table, verify, run_id, touched, true, "");
	if (blamed != NIL)
	{
		tsync_rowset_register(&verify->touched_keys);
		record_ranges(table, verify, run_id, blamed, false, "NOT ");
		record_ranges(table, verify, run_id, blamed, true, " ");
		SPI_unregister_relation(verify->touched_keys.name);
	}
	tsync_count_differences(table->relid, run_id, &verify->differences, &verify->drifted_rows);
}

/* Does the replica have what the source had, in all columns of a chunk? */
static bool
is_verified(TsyncTable *table, TsyncVerify *verify, int source_version, TsyncChunk *chunk)
{
	TsyncFingerprint fingerprint = {.all_columns = verify->by_row,.source_version = source_version};
	TsyncDigest now;

	if (!chunk->differs)
		return true;
	if (chunk->by_row)
		fingerprint = tsync_every_column(source_version);
	now = tsync_select_digest(table, TSYNC_REPLICA, tsync_sql_digest(table, TSYNC_REPLICA, &chunk->range, fingerprint));
	return tsync_digest_equal(now, chunk->by_row ? chunk->row_source : chunk->source);
}

/* Remember what a repaired chunk holds now; it would count as somebody else's change. */
static void
remember_repaired(TsyncTable *table, TsyncVerify *verify, int source_version, TsyncChunk *chunk)
{
	chunk->known = verify->memory_usable;
	if (chunk->known)
		chunk->replica = tsync_digest_as_remembered(table, verify, source_version, &chunk->range);
	tsync_write_memory(table, chunk, NULL, NULL);
}

/*
 * Record which chunks are verified, in the transaction that ends the run;
 * "spared" tells whether CONFIRM has left rows as they were.
 */
void
tsync_save_verified(TsyncTable *table, TsyncVerify *verify, List *chunks, int source_version, bool spared)
{
	List	   *numbers = NIL;
	ListCell   *lc;

	foreach(lc, verify->whole ? verify->remembered : chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (verify->whole ? !chunk->differs || (verify->repair && !spared)
			: chunk->verifying && is_verified(table, verify, source_version, chunk))
			numbers = lappend_int(numbers, chunk->number);
		if (verify->repair && chunk->differs)
			remember_repaired(table, verify, source_version, chunk);
	}
	if (numbers != NIL)
		tsync_write_verified(table->relid, numbers, verify->verified_at);
}
