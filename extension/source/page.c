/*-------------------------------------------------------------------------
 *
 * page.c
 *	  Walking the source in its own key order, page by page.
 *
 * The next page begins after the last key of the one before.  Of a composite key
 * it is a plain index range for each of its prefixes: rows that share all but
 * the last column with the key, then all but the last two, and so on.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "execute/execute.h"
#include "query/query.h"
#include "source/source.h"

/*
 * Read the next rows after a key (NULL: the first), or only their keys, until a
 * row set has "limit" of them or there are none left.
 */
void
tsync_read_page(TsyncTable *table, char **after, bool keys_only, int64 limit, TsyncRowSet *into)
{
	TsyncReading reading = {.after = after,.limit = limit};

	tsync_start_reading(&reading, table);
	for (int prefix = after ? table->nkeys - 1 : 0; prefix >= 0 && into->count < limit; prefix--)
		tsync_select_at_most(table, TSYNC_SOURCE,
							 tsync_sql_page(table, after, prefix, keys_only, limit - into->count),
							 into, limit - into->count);
	tsync_end_reading(&reading);
}

/* Key of the last row of a page, which holds keys or whole rows; NULL if it is empty. */
char **
tsync_last_key(TsyncTable *table, TsyncRowSet *page, bool keys_only)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(page->tupdesc, &TTSOpsMinimalTuple);
	char	  **key = NULL;

	tsync_rowset_start(page);
	for (int64 left = page->count; left > 0 && tsync_rowset_next(page, slot); left--)
		if (left == 1)
			key = keys_only ? tsync_key_of_slot(table, slot) : tsync_key_of_row(table, slot);
	ExecDropSingleTupleTableSlot(slot);
	return key;
}
