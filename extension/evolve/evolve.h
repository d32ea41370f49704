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

/* in evolve.c */
extern void tsync_evolve(TsyncTable *table, int64 run_id, const char *new_shape, bool *paused);
extern void tsync_refetch(TsyncTable *table, TsyncPace *pace, double estimate, TsyncMessage message);

#endif							/* TABLESYNC_EVOLVE_H */
