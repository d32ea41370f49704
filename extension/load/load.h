/*-------------------------------------------------------------------------
 *
 * load.h
 *	  The first copy.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_LOAD_H
#define TABLESYNC_LOAD_H

#include "tablesync.h"

#include "execute/execute.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "utils/relcache.h"

/* Rows on their way into the heap; private to heap.c. */
typedef struct TsyncHeapWriter TsyncHeapWriter;

/* in bulk.c */
extern void tsync_help_load(TsyncRun *run);
extern bool tsync_bulk_load(TsyncRun *run);

/* in heap.c */
extern TsyncHeapWriter *tsync_heap_open(TsyncRun *run, Relation rel);
extern TsyncDigest tsync_heap_close(TsyncHeapWriter *writer);
extern void tsync_heap_write(TupleTableSlot *slot, void *arg);

/* in helper.c */
extern BackgroundWorkerHandle *tsync_start_helper(TsyncRun *run, TsyncHelp help);
extern void tsync_wait_for_helper(BackgroundWorkerHandle *helper, bool silent);

/* in indexes.c */
extern List *tsync_suspend_indexes(Oid relid);
extern bool tsync_has_live_index(Relation rel);
extern void tsync_help_index(TsyncRun *run);
extern bool tsync_build_indexes(TsyncRun *run);

/* in load.c */
extern void tsync_load(TsyncRun *run);

#endif							/* TABLESYNC_LOAD_H */
