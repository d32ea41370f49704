/*-------------------------------------------------------------------------
 *
 * watermark.c
 *	  The newest version that the replica has, less what transactions usually take.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "execute/execute.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "memory/memory.h"
#include "query/query.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* Move the watermark to the newest rows of one relation or two. */
void
tsync_advance_watermark(TsyncTable *table, const char *rows, const char *more)
{
	char	   *watermark;
	TsyncColumn *version = table->version;

	if (version == NULL || !tsync_has_maximum(version))
		return;					/* no order, or no maximum */
	if (tsync_select(table, TSYNC_REPLICA, tsync_sql_watermark(table, rows, more), NULL) != 1)
		elog(ERROR, "a maximum is not one row");
	watermark = tsync_result_text(0, 1);
	/* it outlives this attempt, which may fail */
	if (watermark != NULL)
		table->watermark = MemoryContextStrdup(GetMemoryChunkContext(table->columns), watermark);
	SPI_freetuptable(SPI_tuptable);
}
