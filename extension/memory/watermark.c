/*-------------------------------------------------------------------------
 *
 * watermark.c
 *	  The newest version that the replica has, less what transactions usually take.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "memory/memory.h"
#include "query/query.h"
#include "run/run.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* Move the watermark to the newest rows of one relation or two. */
void
tsync_advance_watermark(TsyncRun *run, const char *rows, const char *more)
{
	char	   *watermark;
	TsyncColumn *version = run->replica->version;

	if (version == NULL || !tsync_orders_alike(version->type) || version->type == UUIDOID)
		return;					/* no order, or no maximum */
	if (tsync_select(run, TSYNC_REPLICA,
					 tsync_sql_watermark(run->replica, rows, more), NULL) != 1)
		return;
	watermark = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	/* it outlives this attempt, which may fail */
	if (watermark != NULL)
		run->replica->watermark = MemoryContextStrdup(GetMemoryChunkContext(run), watermark);
	SPI_freetuptable(SPI_tuptable);
}
