/*-------------------------------------------------------------------------
 *
 * chunk.c
 *	  Cutting a key range into chunks of about the same number of rows.
 *
 * The boundaries come from the replica, which has the source's keys and is
 * ours to read.  They are remembered from run to run with the rows each chunk
 * had; a chunk that has grown is split, small neighbours are merged.  Keys
 * that the two sides may sort differently (text) can't bound a chunk: a
 * replica with no other key column is one chunk.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "executor/spi.h"

static TsyncChunk *
make_chunk(char **lower, char **upper, int64 rows, bool differed)
{
	TsyncChunk *chunk = palloc0(sizeof(TsyncChunk));

	chunk->lower = lower;
	chunk->upper = upper;
	chunk->expected_rows = rows;
	chunk->differed = differed;
	return chunk;
}

/* The replica as one chunk, where nothing is remembered. */
static TsyncChunk *
whole_replica(TsyncRun *run)
{
	char	   *sql = psprintf("SELECT pg_catalog.count(*), NULL::pg_catalog.text FROM %s",
							   run->replica->replica_sql);
	TsyncDigest digest = tsync_select_digest(run, TSYNC_REPLICA, sql);

	return make_chunk(NULL, NULL, digest.rows, true);
}

/* The first key above so many rows of a chunk, or NULL. */
static char **
find_boundary(TsyncRun *run, TsyncChunk *chunk, int64 rows)
{
	int			nrange = run->replica->nrange;
	char	  **boundary = NULL;

	if (tsync_select(run, TSYNC_REPLICA,
					 tsync_sql_boundary(run->replica, chunk, rows), NULL) == 1)
	{
		boundary = palloc(nrange * sizeof(char *));
		for (int i = 0; i < nrange; i++)
		{
			boundary[i] = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1);
			if (boundary[i] == NULL)
				elog(ERROR, "key column %s of %s is NULL",
					 run->replica->keys[i]->quoted, run->replica->label);
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return boundary;
}

/* Append a chunk to a list, in pieces of about "target" rows if it has grown. */
static List *
append_split(TsyncRun *run, List *chunks, TsyncChunk *chunk, int64 target)
{
	while (chunk->expected_rows > target * 2)
	{
		char	  **boundary = find_boundary(run, chunk, target);

		if (boundary == NULL)
			break;
		chunks = lappend(chunks, make_chunk(chunk->lower, boundary, target, chunk->differed));
		chunk = make_chunk(boundary, chunk->upper, chunk->expected_rows - target, chunk->differed);
	}
	return lappend(chunks, chunk);
}

static List *
merge_small(List *chunks, int64 target)
{
	List	   *merged = NIL;
	ListCell   *lc;

	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		TsyncChunk *previous = merged ? llast(merged) : NULL;

		if (previous && previous->expected_rows + chunk->expected_rows <= target / 2)
		{
			previous->upper = chunk->upper;
			previous->expected_rows += chunk->expected_rows;
			previous->differed |= chunk->differed;
		}
		else
			merged = lappend(merged, chunk);
	}
	return merged;
}

/* Plan the chunks of a run, in a transaction of the caller. */
void
tsync_plan_chunks(TsyncRun *run)
{
	int64		target = tsync_chunk_target(run->replica);
	List	   *remembered = NIL;
	List	   *chunks = NIL;
	ListCell   *lc;

	if (run->replica->nrange > 0)
		remembered = tsync_read_chunks(run->replica);
	if (remembered == NIL)
		remembered = list_make1(whole_replica(run));
	if (run->replica->nrange == 0)
	{
		run->chunks = remembered;
		return;
	}
	foreach(lc, merge_small(remembered, target))
		chunks = append_split(run, chunks, lfirst(lc), target);
	run->chunks = chunks;
}

/* Remember the chunks as they are after APPLY, if that differs from before. */
void
tsync_remember_chunks(TsyncRun *run)
{
	ListCell   *lc;

	foreach(lc, run->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		chunk->expected_rows = chunk->replica.rows;
		chunk->differed = chunk->differs;
	}
	tsync_write_chunks(run->replica, run->chunks);
}
