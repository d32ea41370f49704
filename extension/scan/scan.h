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

#include "catalog/tables.h"
#include "source/source.h"
#include "verify/verify.h"

typedef enum TsyncVerdict
{
	TSYNC_NOT_COMPARED,
	TSYNC_EQUAL,
	TSYNC_DIFFERENT
} TsyncVerdict;

/* Finds the rows that differ in a chunk; private to resolve.c. */
typedef struct TsyncResolver TsyncResolver;

/* Likewise by xmin; private to by_xmin.c. */
typedef struct TsyncNewRows TsyncNewRows;

/* A bucket that differs; a side that lacks it has no rows. */
typedef struct TsyncBucketPair
{
	TsyncBucket source;
	TsyncBucket replica;
	bool		resolved;
	uint64		expected;		/* sum of the replica's rows after the change */
	int			missing;		/* candidates that nobody has found */
} TsyncBucketPair;

/* What SCAN looks at, and what it has found. */
typedef struct TsyncScan
{
	int64		run_id;			/* as far as progress shows it */
	TsyncReplica *replica;
	TsyncTable *table;			/* of it */
	TsyncFingerprint fingerprint;	/* that chunks are compared by */
	TsyncSource *source;
	TsyncPace  *pace;
	TsyncVerify *verify;
	TsyncStage *stage;			/* rows that differ */
	TsyncRowSet memory;			/* what to remember of chunks after APPLY */
	bool		watched;		/* no write to the replica goes unnoticed */
	List	   *chunks;			/* of TsyncChunk, in the order of their keys */
	int			drifted;		/* chunks that somebody else has changed */
	TsyncDigest digest;			/* of the source */
	bool		snapshot;		/* one for the whole scan */
	bool		snapshot_expired;	/* it took too long, or the source did not let it live */
	bool		conflicted;		/* the latter */
	int64		load_horizon;	/* transaction id of the source as the load began */
	const char *load_epoch;		/* likewise, since when ids mean what they do */
	bool		fresh;			/* this run has loaded the replica: it has the rows that are not new */
	bool		written;		/* somebody else has, or may have, written to the replica */
	bool		by_value;		/* every column is compared, because xmin tells too little */
	int			written_anew;	/* chunks in which it is, because most rows were written anew */
	bool		(*look) (void *look_at);	/* NULL, or the first thing that is done in the snapshot: goes on if true */
	void	   *look_at;
	bool		looking;		/* that is what is being done */
	bool		unlike;			/* it was false, and nothing was compared */
	bool		load_compared;	/* the load has found "load_digest" at the source, in a snapshot of its own */
	TsyncDigest load_digest;
} TsyncScan;

/* in scan.c */
extern void tsync_scan(List *scans);

/* in plan.c */
extern List *tsync_plan_chunks(TsyncTable *table, TsyncPace *pace);
extern TsyncChunk *tsync_fit_chunk(TsyncScan *scan, int position);
extern void tsync_halve_chunk(TsyncScan *scan, int position, bool must);

/* in blocks.c */
extern bool tsync_is_sequential(TsyncSource *source);
extern int64 tsync_seek_keys(TsyncSource *source);
extern bool tsync_may_seek_rows(TsyncSource *source, int64 rows);
extern bool tsync_can_read_blocks(TsyncSource *source);
extern TsyncAllBuckets *tsync_read_all_buckets(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source,
											   TsyncPace *pace);
extern TsyncDigest tsync_digest_by_blocks(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source,
										  TsyncPace *pace, List *excluded);
extern void tsync_learn_speed(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source, TsyncPace *pace,
							  double weighted_rows);
extern TsyncVerdict tsync_compare_quiet_chunks(TsyncTable *table, TsyncFingerprint fingerprint, TsyncSource *source,
											   TsyncPace *pace, List *chunks);

/* in by_xmin.c */
extern void tsync_set_horizon(TsyncScan *scan);
extern TsyncNewRows *tsync_new_rows_create(TsyncTable *table, TsyncFingerprint fingerprint, TsyncStage *stage);
extern void tsync_new_rows_destroy(TsyncNewRows *rows);
extern void tsync_new_rows_clear(TsyncNewRows *rows);
extern bool tsync_is_written_anew(TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica);
extern void tsync_begin_together(TsyncNewRows *rows);
extern void tsync_end_together(TsyncNewRows *rows);
extern bool tsync_resolve_by_xmin(TsyncNewRows *rows, TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica,
								  bool whatever_it_takes);

/* in resolve.c */
extern List *tsync_find_differences(TsyncBuckets *source, TsyncBuckets *replica);
extern TsyncResolver *tsync_resolver_create(TsyncTable *table, TsyncFingerprint fingerprint, TsyncStage *stage);
extern void tsync_resolver_destroy(TsyncResolver *resolver);
extern void tsync_resolver_clear(TsyncResolver *resolver);
extern bool tsync_resolve(TsyncResolver *resolver, TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica,
						  bool whatever_it_takes);

/* in confirm.c */
extern void tsync_confirm(TsyncTable *table, TsyncStage *stage);
extern void tsync_count_outside(TsyncTable *table, TsyncStage *stage);

#endif							/* TABLESYNC_SCAN_H */
