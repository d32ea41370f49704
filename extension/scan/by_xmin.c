/*-------------------------------------------------------------------------
 *
 * by_xmin.c
 *	  From buckets that differ to the rows that changed, by who wrote them.
 *
 * A row that was not there when a run last succeeded has an xmin that was not
 * given out, or had not ended, then.  So buckets show which rows are new; these
 * are fetched and compared with the replica's, byte by byte, because a row may
 * be written without being changed.  Rows that are gone leave fewer rows in
 * their bucket.  Each bucket that differs must be explained so.  If one is not,
 * transaction ids do not mean what we think, as when the source is another
 * server now, and every column is compared instead.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "scan/scan.h"
#include "source/source.h"
#include "utils/guc.h"

/* Fewer rows of a chunk are never too many to be fetched. */
#define FEW_ROWS 1000			/* not measured */

/* Where more of a chunk's rows were written anew, they may well be the same. */
#define MAX_NEW_FRACTION 0.5	/* not measured; comparing all columns costs about three digests */

/* More rows are not fetched in one transaction: its snapshot would grow old. */
#define MAX_ROWS_TO_FETCH 100000	/* not measured; as in resolve.c */

/* Row sets that one chunk fills and the next one clears. */
struct TsyncNewRows
{
	TsyncTable *table;
	TsyncFingerprint fingerprint;
	TsyncStage *stage;			/* into which the rows go */
	bool		together;		/* the new rows of all chunks are fetched in the end */
	TsyncRowSet wanted;			/* keys of new rows */
	TsyncRowSet fetched;		/* these rows */
	TsyncRowSet listed;			/* keys of buckets from which rows are gone */
	TupleDesc	different;		/* of rows, with whether the replica lacks them */
};

TsyncNewRows *
tsync_new_rows_create(TsyncTable *table, TsyncFingerprint fingerprint, TsyncStage *stage)
{
	TsyncNewRows *rows = palloc0(sizeof(TsyncNewRows));

	rows->table = table;
	rows->fingerprint = fingerprint;
	rows->stage = stage;
	tsync_rowset_init(&rows->wanted, "tsync_wanted", tsync_key_desc(table, 0));
	tsync_rowset_init(&rows->fetched, "tsync_fetched", tsync_row_desc(table));
	tsync_rowset_init(&rows->listed, "tsync_listed", tsync_key_desc(table, 0));
	rows->different = CreateTemplateTupleDesc(table->ncolumns + 1);
	for (int i = 1; i <= table->ncolumns; i++)
		TupleDescCopyEntry(rows->different, i, rows->fetched.tupdesc, i);
	TupleDescInitEntry(rows->different, table->ncolumns + 1, "missing", BOOLOID, -1, 0);
	return rows;
}

void
tsync_new_rows_destroy(TsyncNewRows *rows)
{
	tuplestore_end(rows->wanted.rows);
	tuplestore_end(rows->fetched.rows);
	tuplestore_end(rows->listed.rows);
}

/* Forget the rows of a chunk. */
void
tsync_new_rows_clear(TsyncNewRows *rows)
{
	rows->together = false;
	tsync_rowset_clear(&rows->wanted);
	tsync_rowset_clear(&rows->fetched);
	tsync_rowset_clear(&rows->listed);
}

/* From which transaction on rows are new: of what a load or the last run has not seen. */
void
tsync_set_horizon(TsyncScan *scan)
{
	TsyncState *state = &scan->replica->state;

	scan->table->horizon = scan->fresh ? tsync_find_horizon(scan->source, scan->load_horizon, scan->load_epoch)
		: tsync_find_horizon(scan->source, state->horizon_is_recent ? state->horizon : 0, state->epoch);
}

/* Give up on xmin: SCAN starts over, and compares every column. */
static void
compare_by_value(TsyncTable *table, const char *reason)
{
	ereport(ERROR,
			(errcode(TSYNC_ERRCODE_BY_VALUE),
			 errmsg("xmin does not tell which rows of the source of %s have changed", table->label),
			 errdetail_internal("%s", reason)));
}

static void
put_key(TsyncNewRows *rows, TsyncRowSet *set, int64 number, int bit)
{
	/* unsigned: C does not define what shifting a negative number does */
	int64		key = (int64) ((uint64) number << TSYNC_BITMAP_SHIFT) + bit;
	Datum		value = tsync_integer_datum(rows->table->keys[0]->type, key);
	bool		isnull = false;

	tuplestore_putvalues(set->rows, set->tupdesc, &value, &isnull);
	set->count++;
}

static void
put_keys(TsyncNewRows *rows, TsyncRowSet *set, int64 number, uint64 keys)
{
	for (uint64 left = keys; left != 0; left &= left - 1)
		put_key(rows, set, number, pg_rightmost_one_pos64(left));
}

/*
 * Were most of a chunk's rows written anew?  They may well be the same, as after
 * a rewrite of the table: to compare all columns then costs less than to fetch them.
 */
bool
tsync_is_written_anew(TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica)
{
	bool		bitmaps = source->bucketing.mask == TSYNC_BITMAP_MASK;
	int64		anew = 0;
	int			r = 0;

	for (int s = 0; s < source->count; s++)
	{
		TsyncBucket *theirs = &source->buckets[s];

		while (r < replica->count && replica->buckets[r].number < theirs->number)
			r++;
		if (r < replica->count && replica->buckets[r].number == theirs->number)
			anew += bitmaps ? pg_popcount64(theirs->recent & replica->buckets[r].rows)
				: (int64) Min(theirs->recent, replica->buckets[r].rows);
	}
	return anew > Max(chunk->replica.rows * MAX_NEW_FRACTION, FEW_ROWS);
}

/* Stop before anything is staged that would take too long. */
static void
check_amount(TsyncNewRows *rows, TsyncChunk *chunk, int64 wanted, bool whatever_it_takes)
{
	if (!whatever_it_takes && !chunk->indivisible && wanted > MAX_ROWS_TO_FETCH)
		ereport(ERROR,
				(errcode(ERRCODE_SNAPSHOT_TOO_OLD),
				 errmsg("a chunk of %s has " INT64_FORMAT " rows to fetch", rows->table->label, wanted)));
}

/* Take the keys that came, changed, and went from bitmaps. */
static void
read_bitmaps(TsyncNewRows *rows, TsyncChunk *chunk, List *differences, bool without_sums, bool whatever_it_takes)
{
	int64		wanted = 0;
	ListCell   *lc;

	foreach(lc, differences)
	{
		TsyncBucketPair *pair = lfirst(lc);
		uint64		come = pair->source.rows & ~pair->replica.rows;
		uint64		gone = pair->replica.rows & ~pair->source.rows;
		uint64		changed = pair->source.recent & pair->source.rows & pair->replica.rows;

		if ((come & ~pair->source.recent) != 0)
			compare_by_value(rows->table, "Rows have come that were written before.");
		if (!without_sums && (come | gone | changed) == 0)
			compare_by_value(rows->table, "Rows have changed that were not written since.");
		wanted += pg_popcount64(come | changed);
	}
	check_amount(rows, chunk, wanted, whatever_it_takes);
	foreach(lc, differences)
	{
		TsyncBucketPair *pair = lfirst(lc);

		put_keys(rows, &rows->wanted, pair->source.number,
				 pair->source.rows & (~pair->replica.rows | pair->source.recent));
		put_keys(rows, &rows->stage->deleted, pair->source.number, pair->replica.rows & ~pair->source.rows);
	}
}

/* Stage a row that the replica lacks, or has otherwise. */
static void
stage_row(TupleTableSlot *slot, void *arg)
{
	TsyncStage *stage = arg;
	int			ncolumns = stage->inserted.tupdesc->natts;
	TsyncRowSet *into;

	slot_getallattrs(slot);
	into = DatumGetBool(slot->tts_values[ncolumns]) ? &stage->inserted : &stage->updated;
	tuplestore_putvalues(into->rows, into->tupdesc, slot->tts_values, slot->tts_isnull);
	into->count++;
}

/* Fetch the wanted rows, and stage those that the replica lacks or has otherwise; returns how many it lacks. */
static int64
stage_wanted(TsyncNewRows *rows)
{
	TsyncTable *table = rows->table;
	int64		before = rows->stage->inserted.count;
	int			settings;

	if (rows->wanted.count == 0)
		return 0;
	tsync_fetch_rows(table, &rows->wanted, &rows->fetched);
	settings = NewGUCNestLevel();
	if (table->wide)
		tsync_avoid_large_joins();
	tsync_rowset_register(&rows->fetched);
	tsync_select_each(table, TSYNC_REPLICA, tsync_sql_different_rows(table, rows->fetched.name), rows->different, stage_row,
					  rows->stage);
	SPI_unregister_relation(rows->fetched.name);
	AtEOXact_GUC(false, settings);	/* true would keep them for the transaction */
	tsync_rowset_clear(&rows->wanted);
	tsync_rowset_clear(&rows->fetched);
	return rows->stage->inserted.count - before;
}

/* The buckets of some pairs, for statements about them; NIL, which is all, where most of them differ. */
static List *
buckets_of(List *pairs, int of_all)
{
	List	   *buckets = NIL;
	ListCell   *lc;

	if (list_length(pairs) > of_all / 2)
		return NIL;
	foreach(lc, pairs)
		buckets = lappend(buckets, &((TsyncBucketPair *) lfirst(lc))->source);
	return buckets;
}

/* Stage the keys that the source does not have any more in some buckets: so many. */
static void
stage_gone(TsyncNewRows *rows, TsyncChunk *chunk, TsyncBucketing *bucketing, List *buckets, int64 gone)
{
	TsyncTable *table = rows->table;
	int			settings;
	int64		before = rows->stage->deleted.count;

	if (gone < 0)
		compare_by_value(table, "Rows have come that were written before.");
	if (gone == 0)
		return;
	tsync_select_into(table, TSYNC_SOURCE,
					  tsync_sql_keys_of_buckets(table, &chunk->range, bucketing, buckets, rows->fingerprint), &rows->listed);
	settings = NewGUCNestLevel();
	/* keys only; a row set has no index, and nobody tells the planner how many of the replica's rows are in the range */
	(void) set_config_option("enable_nestloop", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	tsync_rowset_register(&rows->listed);
	tsync_select_into(table, TSYNC_REPLICA,
					  tsync_sql_unlisted_keys(table, rows->listed.name, &chunk->range, bucketing, buckets, rows->fingerprint),
					  &rows->stage->deleted);
	SPI_unregister_relation(rows->listed.name);
	AtEOXact_GUC(false, settings);	/* true would keep them for the transaction */
	if (rows->stage->deleted.count - before != gone)
		compare_by_value(table, "Other rows are gone than the replica has.");
}

/* Find what came, changed, and went in buckets that have only a number of rows. */
static void
read_counts(TsyncNewRows *rows, TsyncChunk *chunk, TsyncBuckets *source, List *differences, bool without_sums,
			bool whatever_it_takes)
{
	TsyncTable *table = rows->table;
	List	   *buckets = buckets_of(differences, source->count);
	int64		fewer = 0;
	int64		recent = 0;
	ListCell   *lc;

	foreach(lc, differences)
	{
		TsyncBucketPair *pair = lfirst(lc);
		int64		more = (int64) (pair->source.rows - pair->replica.rows);

		if ((int64) pair->source.recent < more || (!without_sums && pair->source.recent == 0 && more == 0))
			compare_by_value(table, "Rows have come or changed that were not written since.");
		fewer -= more;
		recent += (int64) pair->source.recent;
	}
	check_amount(rows, chunk, recent, whatever_it_takes);
	/* those of other chunks first: how many of ours have come is counted */
	(void) stage_wanted(rows);
	if (recent > 0)
		tsync_select_into(table, TSYNC_SOURCE,
						  tsync_sql_new_keys(table, &chunk->range, &source->bucketing, buckets, rows->fingerprint), &rows->wanted);
	stage_gone(rows, chunk, &source->bucketing, buckets, fewer + stage_wanted(rows));
}

/*
 * Find the rows in which the two sides of a chunk differ and put them into the
 * stage.  Returns false when they do not differ.  Unless "whatever_it_takes", an
 * error is raised before anything is staged that would take too long.
 */
bool
tsync_resolve_by_xmin(TsyncNewRows *rows, TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica,
					  bool whatever_it_takes)
{
	List	   *differences = tsync_find_differences(source, replica);
	int64		before = tsync_staged_rows(rows->stage) + rows->wanted.count;
	bool		differs = true;
	bool		digests_differ = !chunk->counted && !tsync_digest_equal(chunk->source, chunk->replica);

	/* without it no row is new, and a difference has no explanation */
	if (!rows->table->horizon.known && (differences != NIL || replica->without_sums))
		compare_by_value(rows->table, "Nobody knows which transactions the last run has seen.");
	if (differences == NIL && digests_differ)
		compare_by_value(rows->table, "Rows have changed that were not written since.");
	if (differences == NIL)
		return false;
	if (source->bucketing.mask == TSYNC_BITMAP_MASK)
	{
		read_bitmaps(rows, chunk, differences, replica->without_sums, whatever_it_takes);
		if (!rows->together)
			(void) stage_wanted(rows);
		differs = tsync_staged_rows(rows->stage) + rows->wanted.count > before;
	}
	else
		read_counts(rows, chunk, source, differences, replica->without_sums, whatever_it_takes);
	tsync_rowset_clear(&rows->listed);
	/* what is remembered is made anew, also where rows were written and not changed */
	return differs || !chunk->counted;
}

/* From here on, fetch the new rows of chunks whose buckets are bitmaps together, where many keys cost less than few. */
void
tsync_begin_together(TsyncNewRows *rows)
{
	Assert(rows->wanted.count == 0);
	rows->together = true;
}

/* Fetch and stage the new rows of all chunks since. */
void
tsync_end_together(TsyncNewRows *rows)
{
	rows->together = false;
	(void) stage_wanted(rows);
}
