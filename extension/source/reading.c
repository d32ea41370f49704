/*-------------------------------------------------------------------------
 *
 * reading.c
 *	  What is being read of the source, should an error come of it.
 *
 * An error about a value names no row.  Whoever reads rows says which ones, as a
 * callback for the error's context; when there is an error of that kind, a copy
 * is kept beyond the transaction that it ends (bad_value.c then looks for the row).
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "source/source.h"
#include "utils/memutils.h"

/* Is an error of this kind about a value? */
bool
tsync_is_about_value(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_PROGRAM_LIMIT_EXCEEDED ||
		sqlerrcode == ERRCODE_OUT_OF_MEMORY || sqlerrcode == ERRCODE_INTERNAL_ERROR;
}

static char **
copy_bound(char **bound, int n)
{
	char	  **copy = bound ? palloc(n * sizeof(char *)) : NULL;

	for (int i = 0; bound && i < n; i++)
		copy[i] = pstrdup(bound[i]);
	return copy;
}

/* What was being read when the last error about a value came; NULL: nothing. */
static TsyncReading *kept = NULL;

void
tsync_forget_reading(void)
{
	if (kept != NULL)
		MemoryContextDelete(GetMemoryChunkContext(kept));
	kept = NULL;
}

/* Keep, beyond the transaction that the error ends, what was being read. */
static void
keep_reading(void *arg)
{
	TsyncReading *reading = arg;
	TsyncTable *table = reading->table;
	MemoryContext caller = CurrentMemoryContext;
	ListCell   *lc;

	if (!tsync_is_about_value(geterrcode()))
		return;
	tsync_forget_reading();
	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext, "tablesync reading",
												ALLOCSET_DEFAULT_SIZES));
	kept = palloc0(sizeof(TsyncReading));
	kept->table = table;
	kept->limit = reading->limit;
	kept->after = copy_bound(reading->after, table->nkeys);
	foreach(lc, reading->keys)
		kept->keys = lappend(kept->keys, copy_bound(lfirst(lc), table->nkeys));
	if (reading->range)
	{
		kept->range = palloc(sizeof(TsyncRange));
		*kept->range = *reading->range;
		kept->range->lower = copy_bound(reading->range->lower, table->nrange);
		kept->range->upper = copy_bound(reading->range->upper, table->nrange);
	}
	MemoryContextSwitchTo(caller);
}

/* From here to tsync_end_reading() rows are read as "reading" says; the caller's variable. */
void
tsync_start_reading(TsyncReading *reading, TsyncTable *table)
{
	reading->table = table;
	reading->callback.callback = keep_reading;
	reading->callback.arg = reading;
	reading->callback.previous = error_context_stack;
	error_context_stack = &reading->callback;
}

void
tsync_end_reading(TsyncReading *reading)
{
	error_context_stack = reading->callback.previous;
}

/*
 * What was being read when the last error about a value came; NULL: nothing.
 * It is the caller's from now on: looking for the row reads again, and what is
 * kept of the errors that this brings must not take its place.
 */
TsyncReading *
tsync_take_reading(void)
{
	TsyncReading *taken = kept;

	kept = NULL;
	return taken;
}
