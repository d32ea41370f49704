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
#include "run/run.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verify/verify.h"

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
			ranges = lappend(ranges, tsync_forget_chunk(chunk));
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
		chunk->replica = tsync_digest_as_remembered(run, chunk);
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
