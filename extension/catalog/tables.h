/*-------------------------------------------------------------------------
 *
 * tables.h
 *	  The tables of schema tablesync: a file per table, or per use of one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_TABLES_H
#define TABLESYNC_TABLES_H

#include "tablesync.h"

#include "execute/execute.h"

/* What a user has set. */
typedef struct TsyncSettings
{
	bool		all_columns;	/* fingerprint = 'row', or no version can be trusted */
	bool		by_xmin;		/* fingerprint = 'xmin' */
	bool		part;			/* there is a filter, or there are computed columns */
	const char *consistency;
	int			chunk_rows;		/* 0: by the speed of the source */
	int			workers;		/* processes that a load may use */
	double		max_source_load;
	double		max_delete_fraction;
	double		verify_fraction;	/* of the chunks that each run verifies */
	bool		trust_counters;
	bool		source_is_view;
	bool		feed;
} TsyncSettings;

/* What runs have left behind. */
typedef struct TsyncState
{
	bool		loaded;
	bool		adopted;		/* rows from before the first run: trust no version */
	bool		bulk_loading;	/* indexes are missing, ranges are planned */
	char	  **load_position;	/* nposition texts, or NULL */
	int			nposition;		/* nkeys; 0: none; anything else: nonsense */
	const char *bounds_key;		/* what bounds and position are made for, NULL: nobody knows */
	double		scan_rate;		/* source rows digested per second lately, 0: unknown */
	int64		quiet_rows;		/* of chunks that did not differ in the last run */
	int64		differing_rows; /* of those that did */
	bool		drift_known;	/* an alert is open */
	int64		horizon;		/* what older transactions of the source have written was seen, 0: unknown */
	const char *epoch;			/* in which these ids were given out */
	bool		horizon_is_recent;	/* the ids have not come round since */
	int64		source_changes; /* rows that the source had ever changed then, -1: unknown */
	bool		last_was_quiet; /* the last run that scanned has found nothing */
	bool		refetching;		/* columns are to be fetched for all rows */
	bool		filter_changed; /* since the last success */
	int			source_version; /* server_version_num of the source when it was last read; 0: nobody knows */
} TsyncState;

/* A row of tablesync.replica, and the columns of both sides. */
typedef struct TsyncReplica
{
	TsyncTable	table;
	TsyncSettings settings;
	TsyncState	state;
} TsyncReplica;

/* A range of keys, and what the replica and its source have there; a row of tablesync.chunk. */
typedef struct TsyncChunk
{
	int			number;			/* in tablesync.chunk */
	TsyncRange	range;
	int64		expected_rows;
	bool		indivisible;	/* nobody knows a key in its middle */
	bool		planned;		/* not in tablesync.chunk yet */
	bool		known;			/* "replica" is what the replica holds */
	bool		stale;			/* "replica" was true until somebody wrote */
	bool		has_buckets;	/* remembered, too */
	bool		has_bitmaps;	/* and they are bitmaps */
	bool		differed;		/* in the last run that looked */
	bool		expected;		/* likely to differ in this run */
	bool		differs;		/* in this run */
	bool		counted;		/* of what the replica holds only the number of rows is known */
	bool		learned;		/* what is remembered is made anew by this run */
	TimestampTz verified_at;	/* every column of every row compared; 0: never */
	bool		verifying;		/* it is this run's turn */
	bool		by_row;			/* which needs a second fingerprint of each row */
	bool		proved;			/* "remembered" is what a run ended with */
	bool		touched;		/* and the replica holds something else now */
	bool		blamed;			/* because of rows in TSYNC_TOUCHED */
	bool		rows_known;		/* "row_replica" is set */
	TsyncDigest remembered;
	TsyncDigest source;
	TsyncDigest replica;
	TsyncDigest row_source;		/* of all columns, where by_row */
	TsyncDigest row_replica;
} TsyncChunk;

/* Is a chunk likely to be equal, so that a digest of many such chunks will do? */
static inline bool
tsync_is_quiet(TsyncChunk *chunk)
{
	return !chunk->expected && !chunk->by_row && !chunk->counted;
}

/* A run that waits for a worker; a row of tablesync.queue. */
typedef struct TsyncQueued
{
	int64		run_id;
	Oid			replica;
	bool		force;
	bool		paused;			/* since it was put there */
	bool		others_wait;	/* those of another owner, and longer than they should */
} TsyncQueued;

/* How a run has succeeded; a row of tablesync.run, and what the next run should know. */
typedef struct TsyncRecord
{
	int64		run_id;
	Oid			relid;
	const char *label;
	bool		verify;			/* it has compared every column of every row */
	bool		repair;			/* and mended what differed */
	TsyncDigest source;
	TsyncDigest replica;		/* after the run */
	int			chunks;
	int			differing;		/* chunks */
	int64		loaded;			/* rows */
	int64		inserted;
	int64		updated;
	int64		deleted;
	int64		reappeared;
	int64		outside;		/* deleted because of a new filter */
	int64		waited;			/* microseconds, for the source */
	bool		snapshot;		/* one for the whole scan */
	bool		snapshot_expired;	/* it took too long */
	double		slowness;		/* most times longer per row than usual */
	int64		interruptions;	/* after which the source was asked again */
	const char *interruption;	/* the last one */
	bool		conflicted;		/* a snapshot of the whole source was given up for one */
	int			drifted;		/* chunks that somebody else has changed */
	int64		differences;	/* rows that verifying has found */
	int64		drifted_rows;	/* of them, those that are not just newer at the source */
	bool		drift_known;	/* an alert is open */
	int64		horizon;
	bool		stands_still;	/* the source, a standby: at that */
	TimestampTz source_instant; /* what was committed there before has been read; 0: unknown */
	const char *newest_version;
	double		scan_rate;		/* of the source; 0: unknown */
	const char *watermark;
	const char *counters;
	TimestampTz counters_at;
	bool		adopted;		/* rows or columns of which no version tells are compared; in the end: are still to be */
	bool		of_view;		/* whose rewrites do not show */
	bool		by_xmin;		/* the digests are of that fingerprint */
	bool		by_value;		/* but rows had to be compared by value */
	int			written_anew;	/* chunks of which most rows were written anew */
	const char *epoch;
	int64		seen_xid;		/* what older transactions have written was seen; 0: unknown */
	int64		source_changes; /* -1: unknown */
	const char *look_key;		/* of the look at the source */
} TsyncRecord;

/* in replicas.c */
extern void tsync_read_columns(TsyncReplica *replica);
extern TsyncReplica *tsync_read_replica(Oid relid);
extern bool tsync_record_source(Oid relid, int64 run_id, const char *identity, int version,
								char **unreadable, int nunreadable);
extern bool tsync_evolve_catalog(Oid relid, int64 run_id, const char *new_shape, char **problem, char **hint);
extern List *tsync_group_members(Oid replica);
extern void tsync_check_bounds(TsyncReplica *replica);
extern void tsync_save_load_position(TsyncTable *table, char **key);
extern void tsync_finish_load(TsyncReplica *replica, bool adopted);
extern bool tsync_lock_run(Oid relid);
extern void tsync_unlock_runs(void);

/* in runs.c */
extern int64 tsync_start_run(Oid relid, int64 run_id, bool verify, int64 group_run_id);
extern void tsync_finish_run(TsyncRecord *record);
extern void tsync_fail_run(int64 run_id, int64 loaded, int64 waited, ErrorData *edata, bool cancelled);
extern void tsync_prune_runs(Oid relid);

/* in queue.c */
extern bool tsync_next_queued(Oid owner, TsyncQueued *next);
extern bool tsync_take_queued(int64 run_id, Oid relid);
extern int64 tsync_queued_run(Oid relid);
extern void tsync_end_queued(TsyncQueued *queued, const char *status, ErrorData *edata);

/* in chunks.c */
extern bool tsync_open_memory(Oid relid, const char *key, bool *written);
extern bool tsync_was_written_to(Oid relid);
extern void tsync_distrust_memory(Oid relid);
extern List *tsync_read_chunks(TsyncTable *table);
extern void tsync_write_plan(TsyncTable *table, List *chunks);
extern bytea *tsync_read_buckets(TsyncTable *table, TsyncChunk *chunk, TsyncBucketing *bucketing);
extern void tsync_write_memory(TsyncTable *table, TsyncChunk *chunk, TsyncBucketing *bucketing, bytea *buckets);
extern void tsync_write_digest(TsyncTable *table, TsyncChunk *chunk);

/* in ranges.c */
extern void tsync_plan_ranges(TsyncTable *table, List *indexes, char **bounds, int nbounds);
extern bool tsync_are_ranges_of(TsyncTable *table);
extern TsyncChunk *tsync_claim_range(TsyncTable *table);
extern void tsync_finish_range(TsyncTable *table, TsyncChunk *range, TsyncDigest digest);
extern void tsync_count_ranges(TsyncTable *table, int64 *done, int64 *total, int64 *rows);
extern void tsync_end_bulk_load(TsyncTable *table);
extern bool tsync_is_sorting(int pid);
extern void tsync_undo_bulk_load(TsyncTable *table);

/* in proofs.c */
extern bool tsync_read_proof(Oid relid, TsyncDigest *proof, char **memory_key);
extern void tsync_write_differences(TsyncTable *table, int64 run_id, const char *differences);
extern void tsync_count_differences(Oid relid, int64 run_id, int64 *differences, int64 *drifted_rows);
extern void tsync_write_verified(Oid relid, List *numbers, TimestampTz verified_at);

#endif							/* TABLESYNC_TABLES_H */
