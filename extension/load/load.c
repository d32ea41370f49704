/*-------------------------------------------------------------------------
 *
 * load.c
 *	  The first copy of a source into an empty replica.
 *
 * Keyset pagination in the source's own key order: a page is read in one
 * transaction, and inserted in the next one together with the position it
 * reached, so an interrupted load goes on where it stopped and the source
 * never waits for us.  The SCAN that follows in the same run finds whatever
 * has changed behind the position meanwhile, and proves the result.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "load/load.h"
#include "process/process.h"
#include "query/query.h"
#include "source/source.h"
#include "utils/memutils.h"

#define PAGE_ROWS 20000
#define PAGE_ROWS_UNKNOWN 100	/* where rows have no bound and can't tell their size */

typedef struct LoadState
{
	TsyncRowSet rows;			/* of the current page */
	TsyncRowSet keys;			/* of the current page, where rows have no bound */
	char	  **position;		/* key of the last row loaded, or NULL */
	int64		limit;			/* rows of the next page */
} LoadState;

static int64
page_limit(TsyncPace *pace)
{
	return Min(tsync_chunk_target(pace), PAGE_ROWS);
}

static LoadState *
load_state_create(TsyncLoad *load)
{
	LoadState  *state = palloc0(sizeof(LoadState));

	tsync_rowset_init(&state->rows, "tsync_page", tsync_row_desc(load->table));
	tsync_rowset_init(&state->keys, "tsync_page_keys", tsync_key_desc(load->table, 0));
	state->position = load->replica->state.load_position;
	state->limit = page_limit(load->pace);
	return state;
}

/*
 * Make the next page of rows without bound small enough: list its keys and ask
 * how many bytes their rows take, until they are few.
 */
static void
limit_wide_page(TsyncLoad *load, LoadState *state)
{
	state->limit = Min(state->limit * 2, page_limit(load->pace));
	for (;;)
	{
		TsyncReading reading = {.after = state->position,.limit = state->limit};
		char	   *sql;
		TsyncDigest bytes;

		tsync_rowset_clear(&state->keys);
		tsync_read_page(load->table, state->position, true, state->limit, &state->keys);
		if (state->keys.count <= 1)
			return;
		sql = tsync_sql_bytes_of_page(load->table, state->position,
									  tsync_last_key(load->table, &state->keys, true));
		if (sql == NULL)
		{
			state->limit = PAGE_ROWS_UNKNOWN;
			return;
		}
		tsync_start_reading(&reading, load->table);
		bytes = tsync_select_digest(load->table, TSYNC_SOURCE, sql);
		tsync_end_reading(&reading);
		if (bytes.sum <= TSYNC_GROUP_BYTES)
			return;
		state->limit = Max(state->keys.count * (double) TSYNC_GROUP_BYTES / bytes.sum / 2, 1);
	}
}

/* Read the next page into state->rows; returns its last key, NULL at the end. */
static char **
fetch_page(TsyncLoad *load, LoadState *state)
{
	if (load->table->wide)
		limit_wide_page(load, state);
	tsync_read_page(load->table, state->position, false, state->limit, &state->rows);
	return tsync_last_key(load->table, &state->rows, false);
}

static char **
copy_key(TsyncTable *table, char **key, MemoryContext context)
{
	char	  **copy = MemoryContextAlloc(context, table->nkeys * sizeof(char *));

	for (int i = 0; i < table->nkeys; i++)
		copy[i] = MemoryContextStrdup(context, key[i]);
	return copy;
}

/* Insert a page together with the position that it reaches. */
static void
insert_page(TsyncLoad *load, LoadState *state, char **reached)
{
	load->message.inserted = state->rows.count;
	tsync_emit_message(&load->message);
	tsync_rowset_register(&state->rows);
	load->rows += tsync_modify(load->table, tsync_sql_insert(load->table, state->rows.name, TSYNC_UNCOUNTED)).rows;
	/* with the rows: a load that is interrupted goes on after the last one that is there */
	tsync_save_load_position(load->table, reached);
}

/* A page that is being read. */
typedef struct PageRead
{
	TsyncLoad  *load;
	LoadState  *state;
	MemoryContext context;
	char	  **reached;		/* the key of its last row, NULL: there is none */
} PageRead;

static void
read_page(void *arg)
{
	PageRead   *page = arg;

	/* what an interrupted answer has brought was not even counted */
	tsync_rowset_clear(&page->state->rows);
	tsync_begin_in(page->context);
	page->reached = fetch_page(page->load, page->state);
	tsync_commit();
}

/* Load one page; false when there is none left. */
static bool
load_page(TsyncLoad *load, LoadState *state, MemoryContext page_context)
{
	PageRead	page = {.load = load,.state = state,.context = page_context};

	tsync_insist(read_page, &page);
	if (page.reached == NULL)
		return false;

	/* a transaction without the source, which must not wait for our locks */
	tsync_begin_change(page_context);
	insert_page(load, state, page.reached);
	tsync_commit();
	state->position = page.reached;
	return true;
}

/* Load the rows after the last position; they become visible page by page. */
static void
load_pages(void *arg)
{
	TsyncLoad  *load = arg;
	MemoryContext position_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync load position",
														   ALLOCSET_SMALL_SIZES);
	MemoryContext page_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync load page",
													   ALLOCSET_DEFAULT_SIZES);
	LoadState  *state;
	int64		busy = load->table->waited;

	tsync_begin_in(CurrentMemoryContext);
	state = load_state_create(load);
	tsync_commit();
	while (load_page(load, state, page_context))
	{
		char	  **reached = state->position;

		/* out of the page's context, which is reset before the next page needs it */
		MemoryContextReset(position_context);
		state->position = copy_key(load->table, reached, position_context);
		MemoryContextReset(page_context);
		tsync_progress_step(1, state->rows.count);
		tsync_rowset_clear(&state->rows);
		tsync_rest(load->pace, load->table->waited - busy, 0);
		busy = load->table->waited;
	}
	tuplestore_end(state->rows.rows);
	tuplestore_end(state->keys.rows);
	MemoryContextDelete(page_context);
}

/* Is there a row in the replica although no page was loaded? */
static bool
has_rows_of_others(TsyncLoad *load)
{
	char	   *sql = psprintf("SELECT FROM %s LIMIT 1", load->table->replica_sql);
	bool		found;

	if (load->replica->state.load_position != NULL || load->replica->state.bulk_loading)
		return false;
	tsync_begin();
	found = tsync_select(load->table, TSYNC_REPLICA, sql, NULL) > 0;
	tsync_commit();
	return found;
}

/*
 * Load the replica.  Rows that somebody else has put there, or unique values
 * that moved at the source between two pages, end the load early: the SCAN
 * that follows then compares every column and sorts it out.
 */
void
tsync_load(TsyncLoad *load)
{
	bool		adopted = has_rows_of_others(load);

	Assert(!IsTransactionState());
	Assert(!load->replica->state.loaded);
	tsync_progress_phase(TSYNC_PHASE_LOAD, 0, (int64) tsync_expect_rows(load));
	if (!adopted && !tsync_bulk_load(load))
		adopted = !tsync_try(load_pages, load, tsync_is_uniqueness_violation, NULL);
	load->fresh &= !adopted;
	tsync_finish_load(load->replica, adopted);
}
