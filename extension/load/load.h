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

#include "catalog/tables.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "source/source.h"
#include "utils/relcache.h"

/* Rows on their way into the heap; private to heap.c. */
typedef struct TsyncHeapWriter TsyncHeapWriter;

/* How a replica's own columns get their values; private to own_columns.c. */
typedef struct TsyncOwnColumns TsyncOwnColumns;

/* What is to be loaded, and how far that has come. */
typedef struct TsyncLoad
{
	int64		run_id;
	TsyncReplica *replica;
	TsyncTable *table;			/* of it */
	TsyncTable *ranged;			/* likewise, as the source orders it; set by a bulk load */
	TsyncFingerprint fingerprint;	/* that loaded rows are remembered by */
	TsyncMessage message;		/* of each of its transactions */
	TsyncSource *source;
	TsyncPace  *pace;
	bool		grouped;		/* its snapshot must be that of other runs, too */
	int64		rows_before;	/* by earlier runs */
	bool		counted;		/* these */
	int64		rows;
	int64		horizon;		/* of the source, before the first row was read; 0: unknown */
	const char *epoch;			/* likewise, NULL: unknown */
	bool		fresh;			/* the load began in this run, and nobody else's rows are in the replica */
	bool		compared;		/* the source held "digest" after them, in one snapshot */
	TsyncDigest digest;
	bool		snapshot_expired;	/* a snapshot of the whole source took too long */
	double		expected_rows;	/* 0: unknown */
} TsyncLoad;

/* in load.c */
extern void tsync_load(TsyncLoad *load);

/* in bulk.c */
extern void tsync_help_load(TsyncLoad *load);
extern bool tsync_bulk_load(TsyncLoad *load);

/* in bounds.c */
extern double tsync_expect_rows(TsyncLoad *load);
extern char **tsync_find_bounds(TsyncLoad *load, int64 range_rows, int *nbounds);

/* in heap.c */
extern TsyncHeapWriter *tsync_heap_open(TsyncTable *table, TsyncFingerprint fingerprint, Relation rel);
extern TsyncDigest tsync_heap_close(TsyncHeapWriter *writer);
extern void tsync_heap_write(TupleTableSlot *slot, void *arg);

/* in own_columns.c */
extern bool tsync_has_columns(TsyncTable *table, Relation rel);
extern TsyncOwnColumns *tsync_open_own_columns(TsyncTable *table, Relation rel);
extern TupleTableSlot *tsync_complete_row(TsyncOwnColumns *own, TupleTableSlot *slot);
extern void tsync_close_own_columns(TsyncOwnColumns *own);

/* in indexes.c */
extern List *tsync_suspend_indexes(Oid relid);
extern bool tsync_has_live_index(Relation rel);
extern void tsync_help_index(TsyncLoad *load);
extern bool tsync_build_indexes(TsyncLoad *load);

/* in helper.c */
extern BackgroundWorkerHandle *tsync_start_helper(TsyncLoad *load, TsyncHelp help);
extern void tsync_wait_for_helper(BackgroundWorkerHandle *helper, bool silent);

#endif							/* TABLESYNC_LOAD_H */
