/*-------------------------------------------------------------------------
 *
 * scan_state.h
 *	  A scan that is going on; for this folder only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_SCAN_STATE_H
#define TABLESYNC_SCAN_STATE_H

#include "tablesync.h"

#include "scan/scan.h"
#include "datatype/timestamp.h"

typedef struct TsyncScanState
{
	TsyncScan  *scan;
	TsyncResolver *resolver;	/* of the fingerprint; NULL by xmin */
	TsyncNewRows *new_rows;		/* likewise, by xmin */
	TsyncResolver *row_resolver;	/* for chunks to be compared by all columns */
	MemoryContext chunk_context;
	int64		expected_rows;
	double		weighted_rows;	/* more where buckets will be asked for */
	TimestampTz locked_since;	/* 0: the source's table is not locked */
} TsyncScanState;

/* in chunk.c */
extern void tsync_clear_state(TsyncScanState *state);
extern void tsync_scan_chunk(TsyncScanState *state, TsyncChunk *chunk);
extern void tsync_scan_slice(TsyncScanState *state, TsyncChunk *chunk, TsyncAllBuckets *all);
extern void tsync_finish_chunk(TsyncScan *scan, TsyncChunk *chunk);

/* in snapshot.c */
extern void tsync_scan_snapshot(void *arg);
extern bool tsync_try_scan_snapshot(TsyncScanState *state);

/* in one_by_one.c */
extern void tsync_scan_one_by_one(TsyncScanState *state);

#endif							/* TABLESYNC_SCAN_STATE_H */
