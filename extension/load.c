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

#include "utils/memutils.h"

#define PAGE_ROWS 20000
#define FIRST_WIDE_PAGE_ROWS 16

typedef struct LoadState
{
	TsyncRowSet rows;			/* of the current page */
	TsyncRowSet keys;			/* of the current page, where rows have no bound */
	char	  **position;		/* key of the last row loaded, or NULL */
	int64		limit;			/* rows of the next page */
} LoadState;

static LoadState *
load_state_create(TsyncReplica *replica)
{
	LoadState  *state = palloc0(sizeof(LoadState));

	tsync_rowset_init(&state->rows, "tsync_page", tsync_row_desc(replica));
	tsync_rowset_init(&state->keys, "tsync_page_keys", tsync_key_desc(replica, 0));
	state->position = replica->load_position;
	state->limit = replica->wide ? FIRST_WIDE_PAGE_ROWS :
		Min(tsync_chunk_target(replica), PAGE_ROWS);
	return state;
}

/* Read the next page after the position, from the longest key prefix to none. */
static void
read_page(TsyncRun *run, LoadState *state, TsyncRowSet *into)
{
	int			prefix = state->position ? run->replica->nkeys - 1 : 0;

	for (; prefix >= 0 && into->count < state->limit; prefix--)
		tsync_select_into(run, TSYNC_SOURCE,
						  tsync_sql_page(run->replica, state->position, prefix,
										 state->limit - into->count), into);
}

/*
 * Positions of the key columns in whole rows differ from those in key sets;
 * find the key of the last row.
 */
static char **
last_key(TsyncRun *run, TsyncRowSet *rows)
{
	TsyncReplica *replica = run->replica;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(rows->tupdesc, &TTSOpsMinimalTuple);
	char	  **key = palloc(replica->nkeys * sizeof(char *));
	int64		left = rows->count;

	tsync_rowset_start(rows);
	while (left-- > 0 && tsync_rowset_next(rows, slot))
		;
	for (int i = 0; i < replica->nkeys; i++)
	{
		int			attnum = replica->keys[i] - replica->columns + 1;
		bool		isnull;
		Datum		value = slot_getattr(slot, attnum, &isnull);

		key[i] = isnull ? NULL : tsync_value_to_text(replica->keys[i]->type, value);
		if (key[i] == NULL)
			elog(ERROR, "key of a source row is NULL");
	}
	ExecDropSingleTupleTableSlot(slot);
	return key;
}

/*
 * Read a page of rows without bound: list keys, then fetch the rows of as many
 * as fit into one group.  Returns the key of the last one.
 */
static char **
read_wide_page(TsyncRun *run, LoadState *state)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(state->keys.tupdesc, &TTSOpsMinimalTuple);
	List	   *keys = NIL;
	List	   *group;

	tsync_rowset_clear(&state->keys);
	read_page(run, state, &state->keys);
	tsync_rowset_start(&state->keys);
	while (tsync_rowset_next(&state->keys, slot))
		keys = lappend(keys, tsync_key_of_slot(run->replica, slot));
	ExecDropSingleTupleTableSlot(slot);
	if (keys == NIL)
		return NULL;
	group = tsync_take_group(run, &keys);
	tsync_fetch_group(run, group, &state->rows);
	state->limit = Min(list_length(group) * 2, TSYNC_GROUP_WIDE_KEYS);
	return llast(group);
}

/* Read the next page into state->rows; returns its last key, NULL at the end. */
static char **
fetch_page(TsyncRun *run, LoadState *state)
{
	if (run->replica->wide)
		return read_wide_page(run, state);
	read_page(run, state, &state->rows);
	return state->rows.count > 0 ? last_key(run, &state->rows) : NULL;
}

static char **
copy_key(TsyncReplica *replica, char **key, MemoryContext context)
{
	char	  **copy = MemoryContextAlloc(context, replica->nkeys * sizeof(char *));

	for (int i = 0; i < replica->nkeys; i++)
		copy[i] = MemoryContextStrdup(context, key[i]);
	return copy;
}

/* Load one page; false when there is none left. */
static bool
load_page(TsyncRun *run, LoadState *state, MemoryContext page_context)
{
	char	  **reached;

	tsync_begin();
	MemoryContextSwitchTo(page_context);
	reached = fetch_page(run, state);
	tsync_commit();
	if (reached == NULL)
		return false;

	tsync_begin();
	MemoryContextSwitchTo(page_context);
	tsync_rowset_register(&state->rows);
	run->loaded_rows += tsync_modify(tsync_sql_insert(run->replica, state->rows.name));
	tsync_save_load_position(run, reached);
	tsync_commit();
	state->position = reached;
	return true;
}

/* Load the rows after the last position; they become visible page by page. */
void
tsync_load(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	MemoryContext position_context = AllocSetContextCreate(run_context, "tablesync load position",
														   ALLOCSET_SMALL_SIZES);
	MemoryContext page_context = AllocSetContextCreate(run_context, "tablesync load page",
													   ALLOCSET_DEFAULT_SIZES);
	LoadState  *state;
	int64		busy = run->source_time;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	state = load_state_create(run->replica);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	tsync_progress_phase(TSYNC_PHASE_LOAD, 0, (int64) run->source_estimate);
	while (load_page(run, state, page_context))
	{
		char	  **position = state->position;

		MemoryContextReset(position_context);
		state->position = copy_key(run->replica, position, position_context);
		MemoryContextReset(page_context);
		tsync_progress_step(1, state->rows.count);
		tsync_rowset_clear(&state->rows);
		tsync_rest(run->replica, run->source_time - busy);
		busy = run->source_time;
	}
	MemoryContextSwitchTo(run_context);
	tuplestore_end(state->rows.rows);
	tuplestore_end(state->keys.rows);
	MemoryContextDelete(page_context);
	tsync_finish_load(run);
	MemoryContextSwitchTo(run_context);
}
