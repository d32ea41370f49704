/*-------------------------------------------------------------------------
 *
 * evolve.h
 *	  Following the shape of the source.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_EVOLVE_H
#define TABLESYNC_EVOLVE_H

#include "tablesync.h"

#include "source/source.h"

/* Columns that are fetched for all rows, because no version tells that their values are others; lives as long as the run. */
typedef struct TsyncRefetch
{
	TsyncTable *table;			/* as if it had only its key and these columns; NULL: there are none */
	TsyncRowSet rows;
} TsyncRefetch;

/* in evolve.c */
extern void tsync_evolve(TsyncTable *table, int64 run_id, const char *new_shape, bool *paused);
extern void tsync_refetch(TsyncRefetch *refetch, TsyncTable *table, TsyncPace *pace, double estimate);
extern void tsync_stage_refetched(TsyncRefetch *refetch, TsyncTable *table, TsyncStage *stage);

#endif							/* TABLESYNC_EVOLVE_H */
