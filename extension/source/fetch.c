/*-------------------------------------------------------------------------
 *
 * fetch.c
 *	  Fetching whole rows of the source by key.
 *
 * In groups bounded by bytes: postgres_fdw holds a group in memory in several
 * forms at once.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "execute/execute.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "query/query.h"
#include "source/source.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* Fetch the whole source rows of a group of keys with one statement. */
static void
fetch_group(TsyncTable *table, List *keys, TsyncRowSet *into)
{
	TsyncReading reading = {.keys = keys};
	uint64		fetched;

	Assert(keys != NIL);
	tsync_start_reading(&reading, table);
	fetched = tsync_select_at_most(table, TSYNC_SOURCE, tsync_sql_fetch(table, keys), into, list_length(keys));
	tsync_end_reading(&reading);
	/* the keys were seen in the same snapshot: a row that is not there now was hidden, or its index is damaged */
	if (fetched != (uint64) list_length(keys))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("source of %s returned " UINT64_FORMAT " rows for %d keys of one snapshot",
						table->label, fetched, list_length(keys)),
				 errhint("The table was probably rewritten while it was read. Run again; if that does not help, the index of its key is damaged: let it be built anew at the source (REINDEX).")));
}

/* Fetch a list of keys, in halves as long as its rows take too many bytes. */
static void
fetch_keys(TsyncTable *table, List *keys, void *into)
{
	char	   *sql = NULL;
	int			half = list_length(keys) / 2;

	if (table->wide && half > 0)
		sql = tsync_sql_bytes_of_keys(table, keys);
	if (sql != NULL && tsync_select_digest(table, TSYNC_SOURCE, sql).sum > TSYNC_GROUP_BYTES)
	{
		fetch_keys(table, list_truncate(list_copy(keys), half), into);
		fetch_keys(table, list_copy_tail(keys, half), into);
		return;
	}
	fetch_group(table, keys, into);
}

/* Fetch the whole source rows of all keys in a row set. */
void
tsync_fetch_rows(TsyncTable *table, TsyncRowSet *keys, TsyncRowSet *into)
{
	tsync_for_keys(table, TSYNC_SOURCE, keys, fetch_keys, into);
}
