/*-------------------------------------------------------------------------
 *
 * evolve.c
 *	  A run follows the shape of its source.
 *
 * What to do about a change is decided and done in SQL (evolve.sql), in one
 * local transaction.  What SQL leaves to us are the values of columns that are
 * new here.  Usually a fingerprint of all columns finds them, in the SCAN of
 * the same run.  Where the type of a column has no exact hash, nothing but
 * fetching tells: REFETCH reads those columns for all rows, page by page, and
 * puts them into the rows the replica has.  It precedes the SCAN, which finds
 * by its version what has changed meanwhile.  An interrupted REFETCH begins
 * anew with the next run.
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
typedef struct Refetch
{
	TsyncTable *table;
	char	  **after;			/* the key before it, NULL: it is the first */
	char	  **reached;		/* its last key, NULL: it is empty */
	TsyncRowSet keys;
	TsyncRowSet rows;
	TsyncMessage message;		/* of the transaction that stores it */
	MemoryContext context;
} Refetch;

/* Fetch a page. */
static void
fetch_page(void *arg)
{
	Refetch    *page = arg;
	TsyncTable *table = page->table;

	/* what an interrupted answer has brought goes, too */
	tsync_rowset_clear(&page->keys);
	tsync_rowset_clear(&page->rows);
	tsync_begin_in(page->context);
	tsync_read_page(table, page->after, true, PAGE_ROWS, &page->keys);
	page->reached = tsync_last_key(table, &page->keys, true);
	/* or a source that repeats a page would be read for ever */
	if (page->reached != NULL && page->after != NULL && is_same_key(table, page->reached, page->after))
		tsync_refuse_answer(table, "a page of keys that ends where it had to begin");
	tsync_fetch_rows(table, &page->keys, &page->rows);
	tsync_commit();
}

/* Store a page, without the source, which must not wait for our locks. */
static void
store_page(Refetch *page)
{
	page->message.updated = page->rows.count;
	tsync_begin_change(page->context);
	tsync_emit_message(&page->message);
	tsync_rowset_register(&page->rows);
	tsync_modify(page->table, tsync_sql_update(page->table, page->rows.name, TSYNC_UNCOUNTED));
	tsync_commit();
	tsync_progress_step(1, page->rows.count);
}

/* REFETCH for a table that has only the columns to be fetched. */
static void
refetch_pages(TsyncTable *table, TsyncPace *pace, TsyncMessage message)
{
	/* a page needs the last key of the one before */
	MemoryContext contexts[2] = {
		AllocSetContextCreate(CurrentMemoryContext, "tablesync refetch page", ALLOCSET_DEFAULT_SIZES),
		AllocSetContextCreate(CurrentMemoryContext, "tablesync refetch page", ALLOCSET_DEFAULT_SIZES)
	};
	Refetch		page = {.table = table,.message = message};

	tsync_begin_in(CurrentMemoryContext);
	tsync_rowset_init(&page.keys, "tsync_refetch_keys", tsync_key_desc(table, 0));
	tsync_rowset_init(&page.rows, "tsync_refetched", tsync_row_desc(table));
	tsync_commit();
	for (int i = 0;; i++)
	{
		int64		busy = table->waited;

		page.context = contexts[i % 2];
		MemoryContextReset(page.context);
		page.after = page.reached;
		tsync_insist(fetch_page, &page);
		if (page.reached == NULL)
			break;
		store_page(&page);
		tsync_rest(pace, table->waited - busy, 0);
	}
	tuplestore_end(page.keys.rows);
	tuplestore_end(page.rows.rows);
	MemoryContextDelete(contexts[0]);
	MemoryContextDelete(contexts[1]);
}

/* REFETCH: bring the columns that no fingerprint can compare for all rows, if there are any. */
void
tsync_refetch(TsyncTable *table, TsyncPace *pace, double estimate, TsyncMessage message)
{
	TsyncTable *part = only_refetched(table);

	Assert(!IsTransactionState());
	if (part == NULL)
		return;
	tsync_progress_phase(TSYNC_PHASE_LOAD, 0, (int64) estimate);
	refetch_pages(part, pace, message);
	table->waited = part->waited;

	tsync_begin();
	tsync_finish_refetch(table->relid);
	tsync_commit();
}
