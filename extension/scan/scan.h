/*-------------------------------------------------------------------------
 *
 * scan.h
 *	  SCAN and CONFIRM: find what differs, see twice what is gone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_SCAN_H
#define TABLESYNC_SCAN_H

#include "tablesync.h"

#include "execute/execute.h"

typedef enum TsyncVerdict
{
	TSYNC_NOT_COMPARED,
	TSYNC_EQUAL,
	TSYNC_DIFFERENT
} TsyncVerdict;

/* Finds the rows that differ in a chunk; private to resolve.c. */
typedef struct TsyncResolver TsyncResolver;

/* in blocks.c */
extern bool tsync_can_read_blocks(TsyncRun *run);
extern bool tsync_next_blocks(TsyncRun *run, TsyncChunk *range, int64 rows);
extern TsyncAllBuckets *tsync_read_all_buckets(TsyncRun *run);
extern TsyncDigest tsync_digest_by_blocks(TsyncRun *run, List *excluded);
extern void tsync_learn_speed(TsyncRun *run, double weighted_rows);
extern TsyncVerdict tsync_compare_quiet_chunks(TsyncRun *run);

/* in confirm.c */
extern void tsync_confirm(TsyncRun *run);

/* in plan.c */
extern void tsync_plan_chunks(TsyncRun *run);
extern TsyncChunk *tsync_fit_chunk(TsyncRun *run, int position);
extern void tsync_halve_chunk(TsyncRun *run, int position, bool must);

/* in resolve.c */
extern TsyncResolver *tsync_resolver_create(TsyncReplica *replica);
extern void tsync_resolver_destroy(TsyncResolver *resolver);
extern void tsync_resolver_clear(TsyncResolver *resolver);
extern bool tsync_resolve(TsyncRun *run, TsyncResolver *resolver, TsyncChunk *chunk,
						  TsyncBuckets *source, TsyncBuckets *replica);

/* in scan.c */
extern void tsync_scan(List *runs);

#endif							/* TABLESYNC_SCAN_H */
