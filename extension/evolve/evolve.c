/*-------------------------------------------------------------------------
 *
 * evolve.c
 *	  A run follows the shape of its source.
 *
 * What to do about a change is decided and done in SQL (evolve.sql), in one
 * local transaction.  What SQL leaves to us are the values of columns that are
 * new here.  Usually a fingerprint of all columns finds them, in the SCAN of
 * the same run.  Where the type of a column has no exact hash, nothing but
 * fetching tells: REFETCH reads those columns for all rows, page by page.  It
 * precedes the SCAN, which finds by its version what has changed meanwhile.
 * Then the rows that lack what was fetched, and that the SCAN has not found, are
 * staged like those that it has.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/tables.h"
#include "evolve/evolve.h"
#include "execute/execute.h"
#include "process/process.h"
#include "query/query.h"
#include "source/source.h"
#include "utils/memutils.h"

#define PAGE_ROWS 5000

/*
 * Change replica and foreign table as the source has changed; an error, and
 * "paused" set, if that needs their owner.
 */
void
tsync_evolve(TsyncTable *table, int64 run_id, const char *new_shape, bool *paused)
{
	char	   *problem;
	char	   *hint;

	Assert(!IsTransactionState());
	tsync_begin_change(CurrentMemoryContext);
	*paused = !tsync_evolve_catalog(table->relid, run_id, new_shape, &problem, &hint);
	tsync_commit();				/* a pause too */
	if (*paused)
		ereport(ERROR,
				(errcode(TSYNC_ERRCODE_SCHEMA_CHANGED),
				 errmsg("the source of %s has changed its shape", table->label),
				 errdetail_internal("%s. The replica is paused.", problem),
				 hint ? errhint("%s", hint) : 0));
}

/* A table as if it had only its keys and the columns to be fetched; NULL if there are none. */
static TsyncTable *
only_refetched(TsyncTable *table)
{
	TsyncTable *part = tsync_only_keys(table);

	for (int i = 0; i < table->ncolumns; i++)
		/* never the version either (want_filled): ahead of its row it would hide changes from SCAN */
		if (table->columns[i].refetch && !tsync_is_key(table, &table->columns[i]))
			part->columns[part->ncolumns++] = table->columns[i];
	return part->ncolumns > part->nkeys ? part : NULL;
}

static bool
is_same_key(TsyncTable *table, char **a, char **b)
{
	for (int i = 0; i < table->nkeys; i++)
		if (strcmp(a[i], b[i]) != 0)
			return false;
	return true;
}

/* A page that is fetched. */
typedef struct FetchedPage
{
	TsyncTable *table;
	char	  **after;			/* the key before it, NULL: it is the first */
	char	  **reached;		/* its last key, NULL: it is empty */
	int64		before;			/* rows of earlier pages */
	TsyncRowSet keys;
	TsyncRowSet *rows;			/* of all pages */
	MemoryContext context;
} FetchedPage;

/* Fetch a page. */
static void
fetch_page(void *arg)
{
	FetchedPage *page = arg;
	TsyncTable *table = page->table;

	/* what an interrupted answer has brought goes, too */
	tsync_rowset_clear(&page->keys);
	tsync_rowset_truncate(page->rows, page->before);
	tsync_begin_in(page->context);
	tsync_read_page(table, page->after, true, PAGE_ROWS, &page->keys);
	page->reached = tsync_last_key(table, &page->keys, true);
	/* or a source that repeats a page would be read for ever */
	if (page->reached != NULL && page->after != NULL && is_same_key(table, page->reached, page->after))
		tsync_refuse_answer(table, "a page of keys that ends where it had to begin");
	tsync_fetch_rows(table, &page->keys, page->rows);
	tsync_commit();
}

/* Fetch all rows of a table that has only the columns to be fetched. */
static void
fetch_pages(TsyncTable *table, TsyncPace *pace, TsyncRowSet *rows)
{
	/* a page needs the last key of the one before */
	MemoryContext contexts[2] = {
		AllocSetContextCreate(CurrentMemoryContext, "tablesync refetch page", ALLOCSET_DEFAULT_SIZES),
		AllocSetContextCreate(CurrentMemoryContext, "tablesync refetch page", ALLOCSET_DEFAULT_SIZES)
	};
	FetchedPage page = {.table = table,.rows = rows};

	tsync_begin_in(CurrentMemoryContext);
	tsync_rowset_init(&page.keys, "tsync_refetch_keys", tsync_key_desc(table, 0));
	tsync_rowset_init(rows, TSYNC_REFETCHED, tsync_row_desc(table));
	tsync_commit();
	for (int i = 0;; i++)
	{
		int64		busy = table->waited;

		page.context = contexts[i % 2];
		MemoryContextReset(page.context);
		page.after = page.reached;
		page.before = rows->count;
		tsync_insist(fetch_page, &page);
		if (page.reached == NULL)
			break;
		tsync_progress_step(1, rows->count - page.before);
		tsync_rest(pace, table->waited - busy, 0);
	}
	tuplestore_end(page.keys.rows);
	MemoryContextDelete(contexts[0]);
	MemoryContextDelete(contexts[1]);
}

/* REFETCH: bring the columns that no fingerprint can compare for all rows, if there are any. */
void
tsync_refetch(TsyncRefetch *refetch, TsyncTable *table, TsyncPace *pace, double estimate)
{
	Assert(!IsTransactionState());
	if (refetch->table != NULL)
		tuplestore_end(refetch->rows.rows); /* of an attempt before */
	refetch->table = only_refetched(table);
	if (refetch->table == NULL)
		return;
	tsync_progress_phase(TSYNC_PHASE_LOAD, 0, (int64) estimate);
	fetch_pages(refetch->table, pace, &refetch->rows);
	table->waited = refetch->table->waited;
}

/* Leave out the rows that SCAN has staged, which are newer, or are to be deleted: CONFIRM leaves such as they are, too. */
static void
leave_out_staged(TsyncRefetch *refetch, TsyncStage *stage)
{
	TsyncRowSet left;

	if (stage->updated.count == 0 && stage->deleted.count == 0)
		return;
	tsync_begin_in(CurrentMemoryContext);
	tsync_rowset_init(&left, refetch->rows.name, refetch->rows.tupdesc);
	tsync_rowset_register(&refetch->rows);
	tsync_register_stage(stage);
	tsync_select_into(refetch->table, TSYNC_REPLICA, tsync_sql_unstaged_rows(refetch->table), &left);
	tsync_commit();
	tuplestore_end(refetch->rows.rows);
	refetch->rows = left;
}

/* After SCAN, stage the rows for which REFETCH has brought other values than the replica has. */
void
tsync_stage_refetched(TsyncRefetch *refetch, TsyncTable *table, TsyncStage *stage)
{
	TsyncRowSet updated;

	Assert(!IsTransactionState());
	if (refetch->table == NULL)
		return;
	leave_out_staged(refetch, stage);
	tsync_begin_in(CurrentMemoryContext);
	tsync_rowset_init(&updated, stage->updated.name, stage->updated.tupdesc);
	tsync_rowset_register(&refetch->rows);
	if (table->wide)
		tsync_avoid_large_joins();
	tsync_select_into(table, TSYNC_REPLICA, tsync_sql_refetched_rows(table, refetch->table), &updated);
	tsync_commit();
	/* into the larger one: those that SCAN has found are few */
	tsync_rowset_append(&updated, &stage->updated);
	tuplestore_end(stage->updated.rows);
	stage->updated = updated;
}
