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
#include "executor/spi.h"
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

/* The bound that a query returns as its only row; NULL if it returns none. */
static char **
select_bound(TsyncTable *table, TsyncSide side, char *sql)
{
	char	  **bound = NULL;

	if (tsync_select(table, side, sql, NULL) == 1)
	{
		bound = palloc(table->nrange * sizeof(char *));
		for (int i = 0; i < table->nrange; i++)
		{
			bound[i] = tsync_result_text(0, i + 1);
			if (bound[i] == NULL)
				elog(ERROR, "key column %s of %s is NULL", table->keys[i]->quoted, table->label);
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return bound;
}

/* A bound about so many of the replica's rows above the lower one of a range; NULL if there are not so many. */
char **
tsync_find_bound_here(TsyncTable *table, TsyncRange *range, int64 rows)
{
	return select_bound(table, TSYNC_REPLICA, tsync_sql_boundary_here(table, range, rows));
}

/*
 * Likewise of the source: as many rows above the lower bound as there are columns times
 * "rows", at most.  That is a plain index range for each prefix, like a page.
 */
char **
tsync_find_bound(TsyncTable *table, TsyncRange *range, int64 rows)
{
	char	  **bound = NULL;

	for (int prefix = range->lower ? table->nrange - 1 : 0; prefix >= 0 && bound == NULL; prefix--)
		bound = select_bound(table, TSYNC_SOURCE, tsync_sql_boundary(table, range, prefix, rows));
	return bound;
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
