/*-------------------------------------------------------------------------
 *
 * memory.h
 *	  What the replica holds, remembered from run to run.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_MEMORY_H
#define TABLESYNC_MEMORY_H

#include "tablesync.h"

#include "execute/execute.h"

/* in memory.c */
extern TsyncBuckets *tsync_collect_buckets(TsyncRun *run, TsyncSide side, TsyncChunk *chunk,
										   TsyncBucketing bucketing);
extern void tsync_key_span(TsyncRun *run, TsyncChunk *chunk, int64 *first, int64 *last);
extern TsyncBuckets *tsync_buckets_of_replica(TsyncRun *run, TsyncChunk *chunk);
extern void tsync_know_replica(TsyncRun *run);
extern void tsync_clear_memory(TsyncRun *run);
extern void tsync_stage_memory(TsyncRun *run, TsyncChunk *chunk, TsyncBuckets *buckets);
extern void tsync_save_memory(TsyncRun *run);
extern void tsync_add_up_replica(TsyncRun *run);

/* in watermark.c */
extern void tsync_advance_watermark(TsyncRun *run, const char *rows, const char *more);

#endif							/* TABLESYNC_MEMORY_H */
