/*-------------------------------------------------------------------------
 *
 * tablesync.h
 *	  Structs that the modules share, and what each file exports.
 *
 * A run is one background worker (worker.c) that reads the source through
 * postgres_fdw (scan.c), keeps what differs in a stage (stage.c) and merges
 * the stage into the replica in one transaction (apply.c).  A first run
 * copies everything before that (load.c).  Files depend only on those that
 * stand further down in this header, never in circles.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_H
#define TABLESYNC_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "postmaster/bgworker.h"
#include "port/pg_bitutils.h"
#include "tcop/dest.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

/* A column that source and replica have in common. */
typedef struct TsyncColumn
{
	char	   *name;			/* as in the catalogs, for tuple descriptors */
	const char *quoted;			/* the same, ready for SQL text */
	Oid			type;
	int32		typmod;
	bool		nullable;
	bool		opaque;			/* no hash is the same at both ends */
	bool		refetch;		/* to be fetched for all rows, see evolve.c */
} TsyncColumn;

/* A replica with its settings, as read from tablesync.replica. */
typedef struct TsyncReplica
{
	Oid			relid;
	Oid			source;			/* foreign table */
	const char *label;			/* schema.table, for messages */
	const char *replica_sql;	/* quoted and qualified */
	const char *source_sql;
	int			ncolumns;
	TsyncColumn *columns;
	int			nkeys;
	TsyncColumn **keys;			/* into columns, in key order */
	int			nrange;			/* leading keys that both sides order alike */
	TsyncColumn *version;		/* NULL when there is none */
	bool		row_fingerprint;	/* fingerprint = 'row' */
	const char *fingerprint_column; /* a name that no key column has */
	bool		wide;			/* rows have no useful upper bound in bytes */
	const char *consistency;
	int			chunk_rows;		/* 0: let pace.c choose */
	int			workers;		/* processes that a load may use */
	double		scan_rate;		/* source rows digested per second lately, 0: unknown */
	const char *watermark;		/* of the version column, NULL: unknown */
	bool		trust_counters;
	double		weighted_rows;	/* of the last run, by what their scan costs */
	bool		drift_known;	/* an alert is open */
	bool		bulk_loading;	/* indexes are missing, ranges are planned */
	double		max_source_load;
	double		max_delete_fraction;
	bool		loaded;
	bool		adopted;		/* rows from before the first run: trust no version */
	double		verify_fraction;	/* of the chunks that each run verifies */
	bool		opaque_apart;	/* fingerprints leave out columns that have no hash */
	char	  **load_position;	/* nposition texts, or NULL */
	int			nposition;		/* nkeys; 0: none; anything else: nonsense */
	const char *bounds_key;		/* what bounds and position are made for, NULL: nobody knows */
} TsyncReplica;

/* Number of rows and sum, modulo 2^64, of their fingerprints. */
typedef struct TsyncDigest
{
	int64		rows;
	uint64		sum;
} TsyncDigest;

static inline bool
tsync_digest_equal(TsyncDigest a, TsyncDigest b)
{
	return a.rows == b.rows && a.sum == b.sum;
}

static inline void
tsync_add_digest(TsyncDigest *to, TsyncDigest digest)
{
	to->rows = (int64) ((uint64) to->rows + (uint64) digest.rows);
	to->sum += digest.sum;
}

/* How keys are put into buckets: (key >> shift) & mask. */
typedef struct TsyncBucketing
{
	int			shift;			/* only for a single integer key */
	int64		mask;			/* TSYNC_BITMAP_MASK, or number of buckets - 1 */
} TsyncBucketing;

/* A bucket of 64 neighbouring integer keys, whose rows are a bitmap. */
#define TSYNC_BITMAP_SHIFT 6
#define TSYNC_BITMAP_MASK (-1)

typedef struct TsyncBucket
{
	int64		number;
	uint64		rows;			/* how many, or the bitmap of those present */
	uint64		sum;			/* of their fingerprints, modulo 2^64 */
	uint64		recent;			/* source: bitmap of rows at or above the watermark */
	uint64		moment;			/* sum of fingerprint << bit, modulo 2^64 */
} TsyncBucket;

/* What else than rows and sum helps to find the rows of a bitmap that changed. */
typedef enum TsyncHint
{
	TSYNC_HINT_NONE,
	TSYNC_HINT_RECENT,
	TSYNC_HINT_MOMENT
} TsyncHint;

/* How many rows a bucket has. */
static inline int64
tsync_rows_of_bucket(TsyncBucketing *bucketing, TsyncBucket *bucket)
{
	return bucketing->mask == TSYNC_BITMAP_MASK ? pg_popcount64(bucket->rows) : (int64) bucket->rows;
}

/* Can a key be in a bucket of this number? */
static inline bool
tsync_is_bucket_number(const TsyncBucketing *bucketing, int64 number)
{
	return bucketing->mask == TSYNC_BITMAP_MASK
		? number >= (PG_INT64_MIN >> TSYNC_BITMAP_SHIFT) && number <= (PG_INT64_MAX >> TSYNC_BITMAP_SHIFT)
		: number >= 0 && number <= bucketing->mask;
}

/* Buckets of one side of a chunk, in the order of their numbers. */
typedef struct TsyncBuckets
{
	TsyncBucketing bucketing;
	int			count;
	int			allocated;
	TsyncBucket *buckets;
} TsyncBuckets;

/*
 * A half-open key range; bounds are nrange texts, NULL is unbounded.  Or,
 * where "blocks" is set, a half-open range of the source's blocks.
 */
typedef struct TsyncChunk
{
	int			number;			/* in tablesync.chunk */
	char	  **lower;			/* inclusive */
	char	  **upper;			/* exclusive */
	bool		blocks;
	int64		first_block;
	int64		end_block;		/* negative: the end of the table */
	int64		expected_rows;
	bool		indivisible;	/* nobody knows a key in its middle */
	bool		planned;		/* not in tablesync.chunk yet */
	bool		known;			/* "replica" is what the replica holds */
	bool		stale;			/* "replica" was true until somebody wrote */
	bool		has_buckets;	/* remembered, too */
	bool		has_bitmaps;	/* and they are bitmaps */
	bool		differed;		/* in the last run */
	bool		differs;		/* in this run */
	TimestampTz verified_at;	/* every column of every row compared; 0: never */
	bool		verifying;		/* it is this run's turn */
	bool		by_row;			/* which needs a second fingerprint of each row */
	bool		proved;			/* "remembered" is what a run ended with */
	bool		touched;		/* and the replica holds something else now */
	bool		blamed;			/* because of rows in run->touched_keys */
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
	return !chunk->differed && !chunk->by_row;
}

typedef enum TsyncSide
{
	TSYNC_REPLICA,
	TSYNC_SOURCE
} TsyncSide;

/* Rows that wait for APPLY; spills to disk beyond a few megabytes. */
typedef struct TsyncRowSet
{
	const char *name;			/* under which SQL of the run sees it */
	TupleDesc	tupdesc;
	Tuplestorestate *rows;
	int64		count;
} TsyncRowSet;

/* The differences a run has found and not yet applied. */
typedef struct TsyncStage
{
	TsyncRowSet inserted;		/* whole rows */
	TsyncRowSet updated;		/* whole rows */
	TsyncRowSet deleted;		/* keys */
	TsyncRowSet reappeared;		/* keys in "deleted" that CONFIRM found again */
	TsyncRowSet memory;			/* what to remember of chunks after APPLY (memory.c) */
} TsyncStage;

typedef enum TsyncPhase
{
	TSYNC_PHASE_SCHEMA,
	TSYNC_PHASE_LOAD,
	TSYNC_PHASE_INDEX,
	TSYNC_PHASE_SCAN,
	TSYNC_PHASE_CONFIRM,
	TSYNC_PHASE_APPLY
} TsyncPhase;

/* One run, from start to end; lives in the worker's "tablesync run" context. */
typedef struct TsyncRun
{
	int64		run_id;
	Oid			replica_oid;
	bool		force;			/* override the delete guard */
	bool		verify;			/* compare every column of every row */
	bool		repair;			/* and mend what differs */
	bool		skipped;		/* the source has not moved */
	TsyncReplica *replica;
	int			source_version; /* server_version_num */
	char	   *source_identity;	/* which files hold the source's rows, and its columns */
	char	   *new_shape;		/* of the source, NULL while it is the one known */
	char	  **unreadable;		/* its new columns that we may not read */
	int			nunreadable;
	bool		paused;			/* by this run, because of the new shape */
	double		source_estimate;	/* rows, by the source's catalog */
	int64		source_blocks;	/* likewise; 0 when unknown */
	bool		source_clustered;	/* rows lie about in the order of their keys */
	int64		source_horizon; /* its transaction counter, 0 if unknown */
	bool		went_back;		/* that was further in the last successful run */
	char	   *newest_version; /* seen at the source so far, NULL if none */
	bool		grouped;		/* its snapshot must be that of other runs, too */
	bool		snapshot;		/* one source snapshot for the whole scan */
	bool		snapshot_expired;	/* it took too long */
	TimestampTz snapshot_taken;
	char	   *counters;		/* of the source before the scan, NULL: don't matter */
	TimestampTz counters_at;
	int64		chunk_target;	/* rows, while the source is slow; 0: it is not */
	double		slowness;		/* most times longer per row than usual */
	List	   *chunks;			/* of TsyncChunk */
	TsyncStage *stage;
	int64		loaded_before;	/* by earlier runs */
	int64		loaded_rows;
	bool		load_compared;	/* "load_source" is what the source held after them */
	TsyncDigest load_source;
	int64		updated;
	int64		inserted;
	int64		deleted;
	int			drifted;		/* chunks that somebody else has changed */
	struct TsyncReading *reading;	/* what was being read of the source when an error came; NULL: nothing */
	bool		last_attempt;
	bool		unproved;		/* the attempt has ended with other rows here than were staged */
	char	   *unlike;			/* and these are they, NULL if it does not show here */
	bool		distrusted;		/* memory led to an APPLY that failed */
	bool		watched;		/* no write to the replica goes unnoticed */
	bool		rules_by_row;	/* a usual run sees a change of any column */
	List	   *remembered;		/* verify: tablesync.chunk as it is */
	bool		memory_usable;	/* verify: and we know what its digests are made of */
	bool		memory_by_row;	/* all columns */
	TimestampTz verified_at;	/* when the current scan began */
	TsyncRowSet touched_keys;	/* of rows that somebody has changed here */
	TsyncRowSet opaque;			/* columns without a hash of a chunk's source rows */
	int64		differences;	/* rows that verifying has found */
	int64		drifted_rows;	/* of them, those that are not just newer at the source */
	TsyncDigest source;
	TsyncDigest result;			/* of the replica after the run */
	int64		source_time;	/* microseconds spent waiting for the source */
	double		rated_rows;		/* digested at the source, to learn its speed */
	double		rated_time;		/* microseconds, likewise */
	double		actual_time;	/* of the current chunk, microseconds */
	double		usual_time;		/* what it would usually take; 0: unknown */
} TsyncRun;

/* Does the run leave the replica as it is? */
static inline bool
tsync_reports_only(TsyncRun *run)
{
	return run->verify && !run->repair;
}

/* Does something with a row of a query's result. */
typedef void (*TsyncRowFunction) (TupleTableSlot *slot, void *arg);

/* Finds the rows that differ in a chunk; private to resolve.c. */
typedef struct TsyncResolver TsyncResolver;

/* A bitmap of the whole source: it has no number, for it lies in its place. */
typedef struct TsyncPlainBucket
{
	uint64		rows;
	uint64		sum;
	uint64		hint;			/* recent or moment */
} TsyncPlainBucket;

/* The bitmaps of a whole source, in an array without gaps. */
typedef struct TsyncAllBuckets
{
	int64		first;			/* number of the first bucket */
	int64		count;
	TsyncPlainBucket *buckets;
	bool		overflow;		/* they are too many, or too far apart */
	bool		nonsense;		/* a number that no key has */
	TsyncHint	hint;
} TsyncAllBuckets;

/* Does something with a group of keys, a list of arrays of nkeys texts. */
typedef void (*TsyncKeysFunction) (TsyncRun *run, List *keys, void *arg);

/* Buckets cost the source so many times as much as a digest of the same rows. */
#define TSYNC_BUCKET_COST 2.2

/* Nor is a digest of all columns as cheap as one of a version column. */
#define TSYNC_ROW_COST 3.0

/* Bitmaps whose keys one statement lists, instead of looking at a whole chunk. */
#define TSYNC_INDEXED_BUCKETS 78

/* Bytes of rows without bound (TsyncReplica.wide) fetched by one statement. */
#define TSYNC_GROUP_BYTES (8 * 1024 * 1024)

/* What a worker helps another one with. */
typedef enum TsyncHelp
{
	TSYNC_HELP_NONE,
	TSYNC_HELP_LOAD,
	TSYNC_HELP_INDEX
} TsyncHelp;

/* What a worker is started with; travels in BackgroundWorker.bgw_extra. */
typedef struct TsyncStart
{
	Oid			database;
	Oid			owner;
	Oid			replica;
	bool		force;
	bool		verify;
	bool		repair;
	TsyncHelp	help;			/* with a load that another worker leads */
	int			source_version; /* known to the helper's leader */
	int64		run_id;
} TsyncStart;

/*
 * Errors with an alert of their own; tablesync.alert_kind() in alert.sql lists
 * them all.  PostgreSQL leaves classes that begin with T to others.
 */
#define TSYNC_ERRCODE_DELETE_GUARD		MAKE_SQLSTATE('T', 'S', '0', '0', '1')
#define TSYNC_ERRCODE_SOURCE_WENT_BACK	MAKE_SQLSTATE('T', 'S', '0', '0', '2')
#define TSYNC_ERRCODE_SCHEMA_CHANGED	MAKE_SQLSTATE('T', 'S', '0', '0', '3')

/* in tablesync.c */
extern int	tsync_chunk_time;	/* ms */
extern int	tsync_max_snapshot_age; /* ms */
extern int	tsync_statement_timeout;	/* ms */
extern int	tsync_lock_timeout; /* ms */
extern int	tsync_keep_runs;	/* runs per replica, -1 for all */
extern int	tsync_hang_after;	/* ms */
extern int	tsync_missed_after; /* ms */

/* in launch.c */
extern Oid	tsync_check_owner(Oid relid);
extern bool tsync_query_latest(const char *sql, Oid type, Datum argument);
extern char *tsync_latest_text(MemoryContext context, int column);
extern int64 tsync_run_verify(Oid relid, bool repair);

/* in check.c */
extern PGDLLEXPORT void tsync_check_main(Datum main_arg);
extern char *tsync_alert_handler;

/* in worker.c */
extern PGDLLEXPORT void tsync_worker_main(Datum main_arg);
extern bool tsync_source_asked;
extern void tsync_expect_source(bool waiting);
extern void tsync_prepare_session(bool read_only);
extern void tsync_pin_session(void);
extern bool tsync_source_timed_out(ErrorData *edata);

/* in launch.c */
extern BackgroundWorkerHandle *tsync_start_worker(TsyncStart *start, const char *label);

/* in helper.c */
extern BackgroundWorkerHandle *tsync_start_helper(TsyncRun *run, TsyncHelp help);
extern void tsync_wait_for_helper(BackgroundWorkerHandle *helper, bool silent);

/* in bulk.c */
extern bool tsync_bulk_load(TsyncRun *run);
extern void tsync_help_load(TsyncRun *run);

/* in index.c */
extern List *tsync_suspend_indexes(Oid relid);
extern bool tsync_has_live_index(Relation rel);
extern bool tsync_build_indexes(TsyncRun *run);
extern void tsync_help_index(TsyncRun *run);

/* in alert.c */
extern PGDLLEXPORT void tsync_alert_main(Datum main_arg);
extern void tsync_settle_run(int64 run_id);

/* in guard.c */
extern void tsync_read_source_time(TsyncRun *run);
extern void tsync_check_guards(TsyncRun *run);

/* in evolve.c */
extern void tsync_evolve(TsyncRun *run);
extern void tsync_refetch(TsyncRun *run);

/* in load.c */
extern void tsync_load(TsyncRun *run);

/* in scan.c */
extern void tsync_scan(List *runs);

/* in confirm.c */
extern void tsync_confirm(TsyncRun *run);

/* in apply.c */
extern bool tsync_apply(List *runs);

extern void tsync_avoid_large_joins(void);
extern void tsync_register_stage(TsyncStage *stage);
extern void tsync_add_up_replica(TsyncRun *run);

/* in verify.c: every column of every row */
extern void tsync_check_may_evolve(TsyncRun *run);
extern void tsync_prepare_verify(TsyncRun *run);
extern void tsync_plan_verify(TsyncRun *run);
extern void tsync_choose_chunks(TsyncRun *run);
extern void tsync_know_rows(TsyncRun *run);
extern void tsync_use_row_fingerprint(TsyncRun *run, bool all_columns);
extern void tsync_compare_opaque(TsyncRun *run, TsyncChunk *chunk);
extern void tsync_judge_chunks(TsyncRun *run);
extern void tsync_record_differences(TsyncRun *run);
extern void tsync_save_verified(TsyncRun *run);
extern bool tsync_report(TsyncRun *run);

/* in blame.c */
extern bool tsync_blame(TsyncRun *run, TsyncChunk *chunk, TsyncDigest now);

/* in blocks.c */
extern bool tsync_can_read_blocks(TsyncRun *run);
extern void tsync_learn_speed(TsyncRun *run, double weighted_rows);
extern TsyncDigest tsync_digest_by_blocks(TsyncRun *run, List *excluded);
typedef enum TsyncVerdict
{
	TSYNC_NOT_COMPARED,
	TSYNC_EQUAL,
	TSYNC_DIFFERENT
} TsyncVerdict;

extern TsyncVerdict tsync_compare_quiet_chunks(TsyncRun *run);
extern bool tsync_next_blocks(TsyncRun *run, TsyncChunk *range, int64 rows);
extern TsyncAllBuckets *tsync_read_all_buckets(TsyncRun *run);

/* in resolve.c: from buckets that differ to rows */
extern TsyncResolver *tsync_resolver_create(TsyncReplica *replica);
extern void tsync_resolver_clear(TsyncResolver *resolver);
extern void tsync_resolver_destroy(TsyncResolver *resolver);
extern bool tsync_resolve(TsyncRun *run, TsyncResolver *resolver, TsyncChunk *chunk,
						  TsyncBuckets *source, TsyncBuckets *replica);

/* in chunk.c */
extern void tsync_plan_chunks(TsyncRun *run);
extern TsyncChunk *tsync_fit_chunk(TsyncRun *run, int position);
extern void tsync_halve_chunk(TsyncRun *run, int position, bool must);

/* in memory.c */
extern void tsync_expect_write(Oid replica, int statements);
extern int64 tsync_slot_integer(TupleTableSlot *slot, int attnum);
extern uint64 tsync_slot_sum(TupleTableSlot *slot, int attnum);
extern void tsync_key_span(TsyncRun *run, TsyncChunk *chunk, int64 *first, int64 *last);
extern TsyncBuckets *tsync_collect_buckets(TsyncRun *run, TsyncSide side, TsyncChunk *chunk,
										   TsyncBucketing bucketing);
extern TsyncBuckets *tsync_buckets_of_replica(TsyncRun *run, TsyncChunk *chunk);
extern void tsync_know_replica(TsyncRun *run);
extern TupleDesc tsync_memory_desc(void);
extern void tsync_stage_memory(TsyncRun *run, TsyncChunk *chunk, TsyncBuckets *buckets);
extern void tsync_save_memory(TsyncRun *run);

/* in bucket.c */
extern uint64 tsync_sum_to_uint64(const char *decimal);
extern TsyncBuckets *tsync_make_buckets(TsyncBucketing bucketing);
extern TsyncBucket *tsync_add_bucket(TsyncBuckets *buckets);
extern void tsync_sort_buckets(TsyncBuckets *buckets);
extern const char *tsync_nonsense_in_buckets(TsyncBuckets *buckets);
extern TsyncDigest tsync_digest_of_buckets(TsyncBuckets *buckets);
extern bytea *tsync_pack_buckets(TsyncBuckets *buckets, TsyncHint hint);
extern bool tsync_unpack_buckets(bytea *packed, TsyncHint hint, TsyncBuckets *buckets);
extern void tsync_expect_keys(TsyncAllBuckets *all, int64 first, int64 last);
extern TsyncPlainBucket *tsync_reach_bucket(TsyncAllBuckets *all, int64 number);
extern TsyncBuckets tsync_slice_of_buckets(TsyncAllBuckets *all, TsyncChunk *chunk);

/* in stage.c */
extern TsyncStage *tsync_stage_create(TsyncReplica *replica);
extern void tsync_stage_clear(TsyncStage *stage);
extern void tsync_rowset_init(TsyncRowSet *set, const char *name, TupleDesc tupdesc);
extern void tsync_rowset_clear(TsyncRowSet *set);
extern void tsync_rowset_register(TsyncRowSet *set);
extern TupleDesc tsync_key_desc(TsyncReplica *replica, int extra);
extern TupleDesc tsync_row_desc(TsyncReplica *replica);
extern Datum tsync_integer_datum(Oid type, int64 value);
extern char *tsync_value_to_text(Oid type, Datum value);
extern char **tsync_key_of_slot(TsyncReplica *replica, TupleTableSlot *slot);
extern void tsync_rowset_start(TsyncRowSet *set);
extern bool tsync_rowset_next(TsyncRowSet *set, TupleTableSlot *slot);
extern void tsync_for_keys(TsyncRun *run, TsyncRowSet *keys, TsyncKeysFunction function, void *arg);
extern void tsync_advance_watermark(TsyncRun *run, const char *rows, const char *more);
extern void tsync_fetch_rows(TsyncRun *run, TsyncRowSet *keys, TsyncRowSet *into);

/* in culprit.c */

/* Rows of the source that a statement reads: those of a list of keys, of a range, or a page. */
typedef struct TsyncReading
{
	TsyncRun   *run;
	List	   *keys;			/* arrays of nkeys texts */
	TsyncChunk *range;			/* where there are no keys */
	char	  **after;			/* where there is neither: NULL is the beginning */
	int64		limit;
	ErrorContextCallback callback;
} TsyncReading;

extern void tsync_start_reading(TsyncReading *reading, TsyncRun *run);
extern void tsync_end_reading(TsyncReading *reading);
extern void tsync_forget_reading(TsyncRun *run);
extern void tsync_explain_error(List *runs, ErrorData *edata);
extern void tsync_note_unlike(TsyncRun *run);
extern void tsync_give_up(List *runs, int attempts) pg_attribute_noreturn();

/* in catalog.c */
extern char *tsync_relation_label(Oid relid);
extern TsyncReplica *tsync_read_replica(Oid relid);
extern void tsync_read_columns(TsyncReplica *replica);
extern void tsync_read_source(TsyncRun *run);
extern bool tsync_record_source(TsyncRun *run);
extern char *tsync_source_identity(TsyncRun *run);
extern void tsync_read_layout(TsyncRun *run);
extern char *tsync_before_triggers(TsyncRun *run, char **statements);
extern void tsync_disconnect_source(TsyncRun *run);
extern bool tsync_source_unmoved(TsyncRun *run);
extern bool tsync_evolve_catalog(TsyncRun *run, char **problem, char **hint);
extern void tsync_finish_refetch(TsyncRun *run);
extern List *tsync_group_members(Oid replica);
extern void tsync_start_run(TsyncRun *run, int64 group_run_id);
extern void tsync_finish_run(TsyncRun *run);
extern void tsync_fail_run(TsyncRun *run, ErrorData *edata, bool cancelled);
extern void tsync_prune_runs(TsyncRun *run);
extern void tsync_check_bounds(TsyncRun *run);
extern void tsync_save_load_position(TsyncRun *run, char **key);
extern void tsync_finish_load(TsyncRun *run, bool adopted);
extern bool tsync_lock_run(Oid relid);

/* in catalog_chunk.c */
extern void tsync_open_memory(TsyncRun *run, const char *key);
extern bool tsync_was_written_to(TsyncRun *run);
extern void tsync_distrust_memory(TsyncRun *run);
extern List *tsync_read_chunks(TsyncReplica *replica);
extern void tsync_write_plan(TsyncReplica *replica, List *chunks);
extern bool tsync_begin_bulk_load(TsyncRun *run, int64 range_rows);
extern TsyncChunk *tsync_claim_range(TsyncReplica *replica);
extern void tsync_finish_range(TsyncReplica *replica, TsyncChunk *range, TsyncDigest digest);
extern int	tsync_ranges_left(TsyncRun *run);
extern void tsync_report_load(TsyncRun *run);
extern void tsync_end_bulk_load(TsyncRun *run);
extern bool tsync_is_sorting(int pid);
extern void tsync_undo_bulk_load(TsyncRun *run);
extern bytea *tsync_read_buckets(TsyncReplica *replica, TsyncChunk *chunk, TsyncBucketing *bucketing);
extern void tsync_write_memory(TsyncReplica *replica, TsyncChunk *chunk, TsyncBucketing *bucketing,
							   bytea *buckets);
extern void tsync_write_digest(TsyncReplica *replica, TsyncChunk *chunk);

/* in catalog_verify.c */
extern bool tsync_read_proof(TsyncRun *run, TsyncDigest *proof, char **memory_key);
extern void tsync_write_differences(TsyncRun *run, const char *differences);
extern void tsync_count_differences(TsyncRun *run);
extern void tsync_write_verified(TsyncRun *run, List *numbers);

/* in query.c: SQL text; the caller runs it */
extern const char *tsync_type_sql(Oid type);
extern char *tsync_sql_digest(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int version);
extern char *tsync_sql_buckets(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk,
							   TsyncBucketing *bucketing, int version);
extern char *tsync_sql_digest_without(TsyncReplica *rep, TsyncChunk *range, List *chunks, int version);
extern char *tsync_sql_fingerprint(TsyncReplica *rep, int version);
extern char *tsync_sql_fingerprints(TsyncReplica *rep, const char *rows, int version);
extern char *tsync_sql_fingerprints_of_keys(TsyncReplica *rep, List *keys, int version);
extern char *tsync_sql_digest_of_keys(TsyncReplica *rep, const char *keys, int version);
extern char *tsync_sql_memory_key(TsyncReplica *rep, int version);
extern char *tsync_sql_watermark(TsyncReplica *rep, const char *rows, const char *more);
extern char *tsync_sql_list_source(TsyncReplica *rep, TsyncChunk *chunk, TsyncBucketing *bucketing,
								   List *buckets, int version);
extern char *tsync_sql_compare(TsyncReplica *rep, const char *listed, TsyncChunk *chunk,
							   TsyncBucketing *bucketing, List *buckets, int version);
extern bool tsync_is_key(TsyncReplica *rep, TsyncColumn *column);
extern TsyncReplica *tsync_only_keys(TsyncReplica *rep);
extern char *tsync_sql_range(TsyncReplica *rep, TsyncChunk *range);
extern char *tsync_sql_keys_of_range(TsyncReplica *rep, TsyncChunk *range);
extern char *tsync_sql_large_value(TsyncReplica *rep, char **bound, int elements);
extern char *tsync_sql_fetch(TsyncReplica *rep, List *keys);
extern char *tsync_sql_bytes_of_keys(TsyncReplica *rep, List *keys);
extern char *tsync_sql_bytes_of_page(TsyncReplica *rep, char **after, char **last);
extern char *tsync_sql_bytes_of_range(TsyncReplica *rep, TsyncChunk *range);
extern char *tsync_sql_middle(TsyncReplica *rep, TsyncChunk *range, int64 rows);
extern char *tsync_sql_find_keys(TsyncReplica *rep, List *keys);
extern char *tsync_sql_page(TsyncReplica *rep, char **after, int prefix, bool keys_only, int64 limit);
extern char *tsync_sql_boundary(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int64 rows);
extern char *tsync_sql_key_span(TsyncReplica *rep, TsyncChunk *chunk);
#define TSYNC_UNCOUNTED 0		/* as version: no digest of the rows is wanted */
extern char *tsync_sql_insert(TsyncReplica *rep, const char *from, int version);
extern char *tsync_sql_update(TsyncReplica *rep, const char *from, int version);
extern char *tsync_sql_delete(TsyncReplica *rep, const char *keys, const char *except, int version);

extern TsyncHint tsync_hint(TsyncReplica *rep);

/* in query_verify.c */
extern char *tsync_sql_differences(TsyncRun *run, List *ranges, bool touched, const char *keys);
extern char *tsync_sql_suspects(TsyncRun *run, TsyncChunk *chunk, int limit);
extern char *tsync_sql_hashes(TsyncReplica *rep, List *keys, int version);
extern TupleDesc tsync_hashes_desc(TsyncReplica *rep);
extern char *tsync_sql_unlike_replica(TsyncRun *run, int limit);
extern char *tsync_sql_unlike_hashes(TsyncRun *run, const char *hashes, int limit);
extern char *tsync_sql_staged_keys(TsyncRun *run, int limit);
extern char *tsync_sql_list_opaque(TsyncReplica *rep, TsyncChunk *chunk);
extern char *tsync_sql_compare_opaque(TsyncRun *run, TsyncChunk *chunk);

/* in fingerprint.c */
extern void tsync_append_hash(StringInfo buf, TsyncColumn *column, const char *seed, int version);
extern bool tsync_can_hash(Oid type);
extern bool tsync_can_be_key(Oid type);
extern bool tsync_orders_alike(Oid type);
extern bool tsync_is_integer(Oid type);
extern int	tsync_max_bytes(Oid type, int32 typmod);
extern bool tsync_append_size(StringInfo buf, TsyncColumn *column);

/* in privilege.c */

/* Whom to become again after tsync_assume_identity(). */
typedef struct TsyncIdentity
{
	Oid			role;
	int			security;
	int			guc_level;
} TsyncIdentity;

extern Oid	tsync_extension_owner(void);
extern Oid	tsync_owner_of(Oid relid);
extern bool tsync_acts_for_owner(Oid relid);
extern void tsync_check_acts_for_owner(Oid relid);
extern bool tsync_may_see(Oid relid);
extern TsyncIdentity tsync_assume_identity(Oid role);
extern void tsync_resume_identity(TsyncIdentity previous);
extern uint64 tsync_record(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls);
extern uint64 tsync_record_oid(const char *sql, Oid oid);

/* in hold.c */
extern void tsync_hold(TsyncReplica *replica, TsyncSide side);
extern void tsync_hold_nothing(void);
extern void tsync_prepare_executor(void);
extern void tsync_check_desc(TupleDesc expected, TupleDesc actual);

/* in execute.c */
extern void tsync_prepare_planner(void);
extern void tsync_check_ships(const char *sql);
extern void tsync_begin(void);
extern void tsync_commit(void);
extern uint64 tsync_select(TsyncRun *run, TsyncSide side, const char *sql, DestReceiver *dest);
extern uint64 tsync_select_each(TsyncRun *run, TsyncSide side, const char *sql, TupleDesc expected,
								TsyncRowFunction function, void *arg);
extern uint64 tsync_select_at_most(TsyncRun *run, TsyncSide side, const char *sql, TsyncRowSet *into, uint64 limit);
extern uint64 tsync_select_into(TsyncRun *run, TsyncSide side, const char *sql, TsyncRowSet *into);
extern TsyncDigest tsync_modify(TsyncRun *run, const char *sql);
extern void tsync_refuse_answer(TsyncRun *run, const char *answer) pg_attribute_noreturn();
extern bool tsync_try(TsyncRun *run, void (*function) (TsyncRun *), bool (*is_expected) (ErrorData *));
extern bool tsync_is_uniqueness_violation(ErrorData *edata);
extern TsyncDigest tsync_digest_source(TsyncRun *run, char *sql);
extern TsyncDigest tsync_select_digest(TsyncRun *run, TsyncSide side, const char *sql);

/* in pace.c */
extern void tsync_restrict_source_session(const char *label, int timeout);
extern void tsync_limit_source(TsyncRun *run, int timeout);
extern int	tsync_chunk_timeout(TsyncReplica *replica);
extern int	tsync_first_timeout(TsyncReplica *replica);
extern int64 tsync_chunk_target(TsyncReplica *replica);
extern int64 tsync_current_target(TsyncRun *run);
extern int64 tsync_statement_rows(TsyncReplica *replica);
extern int	tsync_snapshot_timeout(void);
extern bool tsync_use_snapshot(TsyncReplica *replica, double weighted_rows);
extern void tsync_snapshot_too_old(TsyncRun *run);
extern void tsync_check_snapshot_age(TsyncRun *run);
extern void tsync_note_speed(TsyncRun *run, int64 rows, double cost, int64 usec);
extern void tsync_source_is_slow(TsyncRun *run, int64 target);
extern void tsync_rest(TsyncRun *run, int64 busy_usec, int64 rows);
extern double tsync_learned_rate(TsyncRun *run);

/* in progress.c */
extern void tsync_progress_start(int64 run_id, Oid replica);
extern void tsync_progress_run(TsyncRun *run);
extern void tsync_progress_phase(TsyncPhase phase, int64 chunks_total, int64 rows_estimated);
extern void tsync_progress_step(int64 chunks, int64 rows);
extern void tsync_progress_set(int64 chunks, int64 chunks_total, int64 rows);
extern void tsync_progress_throttled(int64 usec, double slowness);

#endif							/* TABLESYNC_H */
