/*-------------------------------------------------------------------------
 *
 * plan.c
 *	  Cutting a key range into chunks of about the same number of rows.
 *
 * The boundaries come from the load, or from the replica, which has the
 * source's keys and is ours to read.  They are remembered from run to run with
 * what each chunk holds; a chunk that has grown, or for which the source takes
 * too long, is split, small neighbours are merged.  Keys that the two sides
 * may sort differently (text) can't bound a chunk: a replica with no other key
 * column is one chunk.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "memory/memory.h"
#include "process/process.h"
#include "query/query.h"
#include "scan/scan.h"
#include "source/source.h"

/* A chunk of fewer rows is not worth a statement. */
#define MIN_CHUNK_ROWS 100

/* Nor is a chunk cut into more pieces than this, whatever keys the source has. */
#define MAX_PIECES 10000

/* A chunk that tablesync.chunk does not have yet. */
static TsyncChunk *
make_chunk(char **lower, char **upper, int64 rows, bool differed)
{
	TsyncChunk *chunk = palloc0(sizeof(TsyncChunk));

	chunk->range.lower = lower;
	chunk->range.upper = upper;
	chunk->expected_rows = rows;
	chunk->differed = differed;
	chunk->planned = true;
	return chunk;
}

/* The replica as one chunk, where nothing is remembered. */
static TsyncChunk *
whole_replica(TsyncTable *table)
{
	char	   *sql = psprintf("SELECT pg_catalog.count(*), NULL::pg_catalog.text FROM %s",
							   table->replica_sql);
	TsyncDigest digest = tsync_select_digest(table, TSYNC_REPLICA, sql);

	return make_chunk(NULL, NULL, digest.rows, false);
}

/* Integer bounds begin a bitmap, if that leaves the chunk any keys. */
static void
align_boundary(TsyncTable *table, TsyncChunk *chunk, char **boundary)
{
	int64		key;

	if (table->nkeys != 1 || !tsync_is_integer(table->keys[0]->type))
		return;
	/* so that a bitmap belongs to one chunk */
	key = strtoll(boundary[0], NULL, 10) & ~((int64) TSYNC_BITMAP_KEYS - 1);
	if (chunk->range.lower == NULL || key > strtoll(chunk->range.lower[0], NULL, 10))
		boundary[0] = psprintf(INT64_FORMAT, key);
}

/* The first key above so many of a side's rows of a chunk, or NULL. */
static char **
find_boundary(TsyncTable *table, TsyncSide side, TsyncChunk *chunk, int64 rows)
{
	char	  **boundary = side == TSYNC_REPLICA ? tsync_find_bound_here(table, &chunk->range, rows)
	: tsync_find_bound(table, &chunk->range, rows);

	if (boundary != NULL)
		align_boundary(table, chunk, boundary);
	return boundary;
}

/* A piece of another chunk. */
static TsyncChunk *
make_piece(TsyncChunk *whole, char **lower, char **upper, int64 rows)
{
	TsyncChunk *piece = make_chunk(lower, upper, rows, whole->differed);

	piece->number = whole->number;
	piece->verified_at = whole->verified_at;
	piece->verifying = whole->verifying;
	piece->by_row = whole->by_row;
	piece->expected = whole->expected;
	piece->counted = whole->counted;
	piece->learned = whole->learned || whole->by_row;
	piece->touched = whole->touched;
	return piece;
}

/* Append a chunk to a list, in pieces of about "target" rows if it has grown. */
static List *
append_split(TsyncTable *table, List *chunks, TsyncChunk *chunk, int64 target)
{
	while (table->nrange > 0 && chunk->expected_rows > target * 2)
	{
		char	  **boundary = find_boundary(table, TSYNC_REPLICA, chunk, target);

		if (boundary == NULL)
			break;
		chunks = lappend(chunks, make_piece(chunk, chunk->range.lower, boundary, target));
		chunk = make_piece(chunk, boundary, chunk->range.upper, chunk->expected_rows - target);
	}
	return lappend(chunks, chunk);
}

#ifdef USE_ASSERT_CHECKING
/* Do chunks cover all keys, without a gap and none of them twice? */
static bool
are_aligned(TsyncTable *table, List *chunks)
{
	char	  **upper = NULL;
	ListCell   *lc;

	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if ((chunk->range.lower == NULL) != (upper == NULL))
			return false;
		for (int i = 0; upper != NULL && i < table->nrange; i++)
			if (strcmp(chunk->range.lower[i], upper[i]) != 0)
				return false;
		upper = chunk->range.upper;
		if (upper == NULL && lnext(chunks, lc) != NULL)
			return false;
	}
	return upper == NULL;
}
#endif

/* Let a chunk take in the next one. */
static void
take_in(TsyncChunk *chunk, TsyncChunk *next)
{
	chunk->range.upper = next->range.upper;
	chunk->expected_rows += next->expected_rows;
	chunk->differed |= next->differed;
	chunk->known &= next->known;
	chunk->stale = false;
	chunk->replica.rows += next->replica.rows;
	chunk->replica.sum += next->replica.sum;
	/* digests add up, packed buckets do not */
	chunk->has_buckets = chunk->has_bitmaps = false;
	chunk->verified_at = Min(chunk->verified_at, next->verified_at);
	chunk->planned = true;
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

		if (previous && previous->expected_rows + chunk->expected_rows <= target)
			take_in(previous, chunk);
		else
			merged = lappend(merged, chunk);
	}
	return merged;
}

static bool
is_new_plan(List *chunks, int remembered)
{
	ListCell   *lc;

	foreach(lc, chunks)
		if (((TsyncChunk *) lfirst(lc))->planned)
			return true;
	return list_length(chunks) != remembered;
}

/* Plan the chunks of a run, in a transaction of the caller. */
List *
tsync_plan_chunks(TsyncTable *table, TsyncPace *pace)
{
	int64		target = tsync_chunk_target(pace);
	List	   *remembered = tsync_read_chunks(table);
	int			nremembered = list_length(remembered);
	List	   *chunks = NIL;
	ListCell   *lc;

	if (remembered == NIL)
		remembered = list_make1(whole_replica(table));
	foreach(lc, merge_small(remembered, target))
		chunks = append_split(table, chunks, lfirst(lc), target);
	Assert(are_aligned(table, chunks));
	if (is_new_plan(chunks, nremembered))
		tsync_write_plan(table, chunks);
	return chunks;
}

/* Put pieces in the place of a chunk, and learn what the replica holds in each. */
static void
replace_chunk(TsyncScan *scan, int position, List *pieces)
{
	ListCell   *lc;

	if (list_length(pieces) < 2)
		return;
	scan->chunks = list_concat(list_concat(list_copy_head(scan->chunks, position), pieces),
							   list_copy_tail(scan->chunks, position + 1));
	Assert(are_aligned(scan->table, scan->chunks));
	tsync_begin();
	/* a run that verifies leaves what is remembered as it is */
	if (!scan->verify->whole)
		tsync_write_plan(scan->table, scan->chunks);
	tsync_commit();
	/* by xmin the replica has no sums of pieces, but it has the rows that are not new, if it had all of them */
	foreach(lc, pieces)
	{
		TsyncChunk *piece = lfirst(lc);

		piece->counted |= scan->fingerprint.xmin && !piece->by_row;
		piece->learned |= piece->counted;
	}
	scan->drifted += tsync_know_replica(scan->table, scan->fingerprint, scan->chunks, !scan->verify->whole);
	if (scan->fingerprint.xmin)
		tsync_know_rows(scan->table, scan->verify, scan->source->version, pieces);
}

/* Replace a chunk by pieces of about so many rows of the replica. */
static void
split_chunk(TsyncScan *scan, int position, int64 target)
{
	List	   *pieces;

	tsync_begin_in(CurrentMemoryContext);
	pieces = append_split(scan->table, NIL, list_nth(scan->chunks, position), target);
	tsync_commit();
	replace_chunk(scan, position, pieces);
}

/* Is a key the bound of a chunk?  Then it cuts nothing off. */
static bool
is_bound(TsyncTable *table, char **key, char **bound)
{
	for (int i = 0; bound && i < table->nrange; i++)
		if (strcmp(key[i], bound[i]) != 0)
			return false;
	return bound != NULL;
}

/* A chunk that is being cut, and the pieces so far. */
typedef struct Cut
{
	TsyncTable *table;
	TsyncChunk *chunk;			/* what is left of it */
	int64		target;			/* rows of the source in a piece */
	char	  **boundary;		/* the end of the next one, NULL: there is none */
	List	   *pieces;
} Cut;

/* Ask the source's index where the next piece ends. */
static void
find_next_piece(void *arg)
{
	Cut		   *cut = arg;

	tsync_begin_in(CurrentMemoryContext);
	cut->boundary = find_boundary(cut->table, TSYNC_SOURCE, cut->chunk, cut->target);
	tsync_commit();
}

/* Cut a chunk by the source's index, a statement and a transaction for each piece. */
static void
cut_by_source(void *arg)
{
	Cut		   *cut = arg;

	do
	{
		tsync_insist(find_next_piece, cut);
		if (cut->boundary == NULL || is_bound(cut->table, cut->boundary, cut->chunk->range.lower))
			break;
		cut->pieces = lappend(cut->pieces, make_piece(cut->chunk, cut->chunk->range.lower, cut->boundary, 0));
		cut->chunk = make_piece(cut->chunk, cut->boundary, cut->chunk->range.upper, 0);
	} while (list_length(cut->pieces) < MAX_PIECES);
}

static bool
took_too_long(ErrorData *edata, void *arg)
{
	return tsync_source_timed_out(edata);
}

/*
 * Replace a chunk by pieces of so many rows of the source, which may have got
 * many more than the replica has.  That takes a look at its index; nothing is
 * done if that takes too long, too.
 */
static void
split_chunk_by_source(TsyncScan *scan, int position, int64 target)
{
	Cut			cut = {.table = scan->table,.chunk = list_nth(scan->chunks, position),.target = target};

	(void) tsync_try(cut_by_source, &cut, took_too_long, NULL);
	replace_chunk(scan, position, lappend(cut.pieces, cut.chunk));
}

/* The chunk at a position, cut so that the source can answer in time now. */
TsyncChunk *
tsync_fit_chunk(TsyncScan *scan, int position)
{
	int64		target = tsync_current_target(scan->pace);
	TsyncChunk *chunk = list_nth(scan->chunks, position);

	if (scan->table->nrange > 0 && chunk->expected_rows > target * 2)
		split_chunk(scan, position, target);
	return list_nth(scan->chunks, position);
}

/*
 * Cut a chunk for which the source took too long.
 * It may be large at the source only: new rows mostly come at an open end, or
 * where we have none to cut at.  Where it can't be cut, it stays as it
 * is, or is an error if it must not.
 */
void
tsync_halve_chunk(TsyncScan *scan, int position, bool must)
{
	TsyncChunk *chunk = list_nth(scan->chunks, position);
	int			before = list_length(scan->chunks);
	bool		divisible = chunk->expected_rows >= MIN_CHUNK_ROWS * 2;
	int64		target = divisible ? (chunk->expected_rows - 1) / 2 : tsync_current_target(scan->pace);

	/* what is new there the replica does not know, and can't cut */
	if (scan->table->nrange > 0 && chunk->range.upper == NULL)
		split_chunk_by_source(scan, position, target);
	if (divisible && list_length(scan->chunks) == before)
		split_chunk(scan, position, target);
	for (; scan->table->nrange > 0 && list_length(scan->chunks) == before && target >= MIN_CHUNK_ROWS; target /= 4)
		split_chunk_by_source(scan, position, target);
	if (list_length(scan->chunks) > before)
	{
		tsync_source_is_slow(scan->pace, target);
		return;
	}
	chunk->indivisible = true;
	if (must)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("the source of %s can't answer for " INT64_FORMAT " rows within %d ms",
						scan->table->label, chunk->expected_rows, tsync_chunk_timeout(scan->table->nrange > 0)),
				 errdetail("The chunk can't be made smaller."),
				 errhint("Increase tablesync.chunk_time, or run when the source is less busy.")));
}
