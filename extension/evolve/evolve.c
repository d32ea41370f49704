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
#include "run/run.h"
#include "source/source.h"
#include "utils/memutils.h"

#define PAGE_ROWS 5000

/* Change replica and foreign table as the source has changed; an error if that needs their owner. */
void
tsync_evolve(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	char	   *problem;
	char	   *hint;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	run->paused = !tsync_evolve_catalog(run, &problem, &hint);
	tsync_commit();				/* a pause too */
	MemoryContextSwitchTo(run_context);
	if (run->paused)
		ereport(ERROR,
				(errcode(TSYNC_ERRCODE_SCHEMA_CHANGED),
				 errmsg("the source of %s has changed its shape", run->replica->label),
				 errdetail_internal("%s. The replica is paused.", problem),
				 hint ? errhint("%s", hint) : 0));
}

/* The replica as if it had only its keys and the columns to be fetched; NULL if there are none. */
static TsyncReplica *
only_refetched(TsyncReplica *replica)
{
	TsyncReplica *part = tsync_only_keys(replica);

	for (int i = 0; i < replica->ncolumns; i++)
		if (replica->columns[i].refetch && !tsync_is_key(replica, &replica->columns[i]))
			part->columns[part->ncolumns++] = replica->columns[i];
	return part->ncolumns > part->nkeys ? part : NULL;
}

/* List the keys that follow a key in the source's order, from the longest key prefix to none. */
static void
list_keys(TsyncRun *run, char **after, TsyncRowSet *keys)
{
	TsyncReading reading = {.after = after,.limit = PAGE_ROWS};

	tsync_start_reading(&reading, run);
	for (int prefix = after ? run->replica->nkeys - 1 : 0;
		 prefix >= 0 && keys->count < PAGE_ROWS; prefix--)
		tsync_select_at_most(run, TSYNC_SOURCE,
							 tsync_sql_page(run->replica, after, prefix, true, PAGE_ROWS - keys->count),
							 keys, PAGE_ROWS - keys->count);
	tsync_end_reading(&reading);
}

/* The last key of a page, NULL if it is empty. */
static char **
last_key(TsyncRun *run, TsyncRowSet *keys)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(keys->tupdesc, &TTSOpsMinimalTuple);
	char	  **key = NULL;

	tsync_rowset_start(keys);
	for (int64 left = keys->count; left > 0 && tsync_rowset_next(keys, slot); left--)
		if (left == 1)
			key = tsync_key_of_slot(run->replica, slot);
	ExecDropSingleTupleTableSlot(slot);
	return key;
}

static bool
is_same_key(TsyncReplica *replica, char **a, char **b)
{
	for (int i = 0; i < replica->nkeys; i++)
		if (strcmp(a[i], b[i]) != 0)
			return false;
	return true;
}

/* Fetch a page in one transaction and store it in the next; returns its last key. */
static char **
refetch_page(TsyncRun *run, char **after, TsyncRowSet *keys, TsyncRowSet *rows,
			 MemoryContext page_context)
{
	char	  **reached;

	tsync_begin();
	MemoryContextSwitchTo(page_context);
	list_keys(run, after, keys);
	reached = last_key(run, keys);
	if (reached != NULL && after != NULL && is_same_key(run->replica, reached, after))
		tsync_refuse_answer(run, "a page of keys that ends where it had to begin");
	tsync_fetch_rows(run, keys, rows);
	tsync_commit();
	if (reached == NULL)
		return NULL;

	tsync_begin();
	MemoryContextSwitchTo(page_context);
	tsync_rowset_register(rows);
	tsync_modify(run, tsync_sql_update(run->replica, rows->name, TSYNC_UNCOUNTED));
	tsync_commit();
	tsync_progress_step(1, rows->count);
	return reached;
}

/* REFETCH on a run whose replica has only the columns to be fetched. */
static void
refetch_pages(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	/* a page needs the last key of the one before */
	MemoryContext contexts[2] = {
		AllocSetContextCreate(run_context, "tablesync refetch page", ALLOCSET_DEFAULT_SIZES),
		AllocSetContextCreate(run_context, "tablesync refetch page", ALLOCSET_DEFAULT_SIZES)
	};
	TsyncRowSet keys;
	TsyncRowSet rows;
	char	  **position = NULL;
	int			page = 0;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	tsync_rowset_init(&keys, "tsync_refetch_keys", tsync_key_desc(run->replica, 0));
	tsync_rowset_init(&rows, "tsync_refetched", tsync_row_desc(run->replica));
	tsync_commit();
	do
	{
		int64		busy = run->source_time;

		MemoryContextReset(contexts[page % 2]);
		tsync_rowset_clear(&keys);
		tsync_rowset_clear(&rows);
		position = refetch_page(run, position, &keys, &rows, contexts[page % 2]);
		tsync_rest(run, run->source_time - busy, 0);
		page++;
	} while (position != NULL);
	MemoryContextSwitchTo(run_context);
	tuplestore_end(keys.rows);
	tuplestore_end(rows.rows);
	MemoryContextDelete(contexts[0]);
	MemoryContextDelete(contexts[1]);
}

/* REFETCH: bring the columns that no fingerprint can compare for all rows, if there are any. */
void
tsync_refetch(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	TsyncReplica *replica = run->replica;
	TsyncReplica *part = only_refetched(replica);

	if (part == NULL)
		return;
	tsync_progress_phase(TSYNC_PHASE_LOAD, 0, (int64) run->source_estimate);
	run->replica = part;
	refetch_pages(run);
	run->replica = replica;

	tsync_begin();
	tsync_finish_refetch(run);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
}
