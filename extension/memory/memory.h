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

#include "catalog/tables.h"

/* in memory.c */
extern TsyncBuckets *tsync_collect_buckets(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSide side,
										   TsyncRange *range, TsyncBucketing bucketing);
extern void tsync_key_span(TsyncTable *table, TsyncRange *range, int64 *first, int64 *last);
extern TsyncBuckets *tsync_buckets_of_replica(TsyncTable *table, TsyncFingerprint fingerprint, TsyncChunk *chunk);
extern int	tsync_know_replica(TsyncTable *table, TsyncFingerprint fingerprint, List *chunks, bool remember);
extern void tsync_clear_memory(TsyncRowSet *memory);
extern void tsync_stage_memory(TsyncTable *table, TsyncFingerprint fingerprint, TsyncRowSet *memory, TsyncChunk *chunk,
							   TsyncBuckets *buckets);
extern void tsync_save_memory(TsyncTable *table, List *chunks, TsyncRowSet *memory, bool spared);
extern TsyncDigest tsync_add_up_replica(List *chunks);

/* in watermark.c */
extern void tsync_advance_watermark(TsyncTable *table, const char *rows, const char *more);

#endif							/* TABLESYNC_MEMORY_H */
