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

#include "query/query.h"

/* in evolve.c */
extern void tsync_evolve(TsyncRun *run);
extern void tsync_refetch(TsyncRun *run);

#endif							/* TABLESYNC_EVOLVE_H */
