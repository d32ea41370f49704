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
#include "tcop/dest.h"
#include "utils/tuplestore.h"

/* A column that source and replica have in common. */
typedef struct TsyncColumn
{
	char	   *name;			/* as in the catalogs, for tuple descriptors */
	const char *quoted;			/* the same, ready for SQL text */
	Oid			type;
	int32		typmod;
	bool		nullable;
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
	double		max_source_load;
	double		max_delete_fraction;
	bool		loaded;
	bool		adopted;		/* rows from before the first run: trust no version */
	char	  **load_position;	/* nkeys texts, or NULL */
} TsyncReplica;

/* Number of rows and sum, modulo 2^64, of their fingerprints. */
typedef struct TsyncDigest
{
	int64		rows;
	uint64		sum;
} TsyncDigest;

/* A half-open key range; bounds are nrange texts, NULL is unbounded. */
typedef struct TsyncChunk
{
	char	  **lower;			/* inclusive */
	char	  **upper;			/* exclusive */
	int64		expected_rows;
	bool		differed;		/* in the last run */
	bool		differs;		/* in this run */
	TsyncDigest source;
	TsyncDigest replica;
} TsyncChunk;

/* How keys are put into the buckets of a chunk: (key >> shift) & mask. */
typedef struct TsyncBucketing
{
	int			shift;			/* only for a single integer key */
	int64		mask;			/* number of buckets - 1 */
} TsyncBucketing;

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
} TsyncStage;

typedef enum TsyncPhase
{
	TSYNC_PHASE_SCHEMA,
	TSYNC_PHASE_LOAD,
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
	TsyncReplica *replica;
	int			source_version; /* server_version_num */
	char	   *source_identity;	/* which files hold the source's rows, and its columns */
	char	   *new_shape;		/* of the source, NULL while it is the one known */
	bool		paused;			/* by this run, because of the new shape */
	double		source_estimate;	/* rows, by the source's catalog */
	bool		snapshot;		/* one source snapshot for the whole scan */
	List	   *chunks;			/* of TsyncChunk */
	TsyncStage *stage;
	int64		loaded_rows;
	int64		updated;
	int64		inserted;
	int64		deleted;
	TsyncDigest source;
	TsyncDigest result;			/* of the replica after the run */
	int64		source_time;	/* microseconds spent waiting for the source */
} TsyncRun;

/* Does something with a group of keys, a list of arrays of nkeys texts. */
typedef void (*TsyncKeysFunction) (TsyncRun *run, List *keys, void *arg);

/* Bytes of rows without bound (TsyncReplica.wide) fetched by one statement. */
#define TSYNC_GROUP_BYTES (8 * 1024 * 1024)

/* What a worker is started with; travels in BackgroundWorker.bgw_extra. */
typedef struct TsyncStart
{
	Oid			database;
	Oid			owner;
	Oid			replica;
	bool		force;
	int64		run_id;
} TsyncStart;

/* in tablesync.c */
extern int	tsync_max_snapshot_age; /* ms */
extern int	tsync_statement_timeout;	/* ms */
extern int	tsync_lock_timeout; /* ms */

/* in worker.c */
extern PGDLLEXPORT void tsync_worker_main(Datum main_arg);
extern bool tsync_source_asked;
extern void tsync_expect_source(bool waiting);

/* in evolve.c */
extern void tsync_evolve(TsyncRun *run);
extern void tsync_refetch(TsyncRun *run);

/* in load.c */
extern void tsync_load(TsyncRun *run);

/* in scan.c */
extern void tsync_scan(TsyncRun *run);
extern void tsync_confirm(TsyncRun *run);

/* in apply.c */
extern bool tsync_apply(TsyncRun *run);

/* in chunk.c */
extern void tsync_plan_chunks(TsyncRun *run);
extern void tsync_remember_chunks(TsyncRun *run);

/* in stage.c */
extern TsyncStage *tsync_stage_create(TsyncReplica *replica);
extern void tsync_stage_clear(TsyncStage *stage);
extern void tsync_rowset_init(TsyncRowSet *set, const char *name, TupleDesc tupdesc);
extern void tsync_rowset_clear(TsyncRowSet *set);
extern void tsync_rowset_register(TsyncRowSet *set);
extern TupleDesc tsync_key_desc(TsyncReplica *replica, int extra);
extern TupleDesc tsync_row_desc(TsyncReplica *replica);
extern char *tsync_value_to_text(Oid type, Datum value);
extern char **tsync_key_of_slot(TsyncReplica *replica, TupleTableSlot *slot);
extern void tsync_rowset_start(TsyncRowSet *set);
extern bool tsync_rowset_next(TsyncRowSet *set, TupleTableSlot *slot);
extern void tsync_for_keys(TsyncRun *run, TsyncRowSet *keys, TsyncKeysFunction function, void *arg);
extern void tsync_fetch_rows(TsyncRun *run, TsyncRowSet *keys, TsyncRowSet *into);

/* in catalog.c */
extern char *tsync_relation_label(Oid relid);
extern TsyncReplica *tsync_read_replica(Oid relid);
extern void tsync_read_columns(TsyncReplica *replica);
extern void tsync_read_source(TsyncRun *run);
extern char *tsync_source_identity(TsyncRun *run);
extern bool tsync_evolve_catalog(TsyncRun *run, char **problem, char **hint);
extern void tsync_finish_refetch(TsyncRun *run);
extern void tsync_start_run(TsyncRun *run);
extern void tsync_finish_run(TsyncRun *run);
extern void tsync_fail_run(TsyncRun *run, ErrorData *edata, bool cancelled);
extern void tsync_save_load_position(TsyncRun *run, char **key);
extern void tsync_finish_load(TsyncRun *run, bool adopted);
extern List *tsync_read_chunks(TsyncReplica *replica);
extern void tsync_write_chunks(TsyncReplica *replica, List *chunks);
extern bool tsync_lock_run(Oid relid);

/* in query.c: SQL text; the caller runs it */
extern char *tsync_sql_digest(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int version);
extern char *tsync_sql_buckets(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk,
							   TsyncBucketing *bucketing, int version);
extern char *tsync_sql_list_source(TsyncReplica *rep, TsyncChunk *chunk, TsyncBucketing *bucketing,
								   List *buckets, int version);
extern char *tsync_sql_compare(TsyncReplica *rep, const char *listed, TsyncChunk *chunk,
							   TsyncBucketing *bucketing, List *buckets, int version);
extern char *tsync_sql_fetch(TsyncReplica *rep, List *keys);
extern char *tsync_sql_bytes_of_keys(TsyncReplica *rep, List *keys);
extern char *tsync_sql_bytes_of_page(TsyncReplica *rep, char **after, char **last);
extern char *tsync_sql_find_keys(TsyncReplica *rep, List *keys);
extern char *tsync_sql_page(TsyncReplica *rep, char **after, int prefix, bool keys_only, int64 limit);
extern char *tsync_sql_boundary(TsyncReplica *rep, TsyncChunk *chunk, int64 rows);
extern char *tsync_sql_key_span(TsyncReplica *rep, TsyncChunk *chunk);
extern char *tsync_sql_insert(TsyncReplica *rep, const char *from);
extern char *tsync_sql_update(TsyncReplica *rep, const char *from);
extern char *tsync_sql_delete(TsyncReplica *rep, const char *keys, const char *except);

/* in fingerprint.c */
extern void tsync_append_hash(StringInfo buf, TsyncColumn *column, const char *seed, int version);
extern bool tsync_can_hash(Oid type);
extern bool tsync_can_be_key(Oid type);
extern bool tsync_orders_alike(Oid type);
extern bool tsync_is_integer(Oid type);
extern int	tsync_max_bytes(Oid type, int32 typmod);
extern bool tsync_append_size(StringInfo buf, TsyncColumn *column);

/* in execute.c */
extern void tsync_prepare_planner(void);
extern void tsync_begin(void);
extern void tsync_commit(void);
extern uint64 tsync_select(TsyncRun *run, TsyncSide side, const char *sql, DestReceiver *dest);
extern uint64 tsync_select_into(TsyncRun *run, TsyncSide side, const char *sql, TsyncRowSet *into);
extern uint64 tsync_modify(const char *sql);
extern bool tsync_is_uniqueness_violation(ErrorData *edata);
extern TsyncDigest tsync_select_digest(TsyncRun *run, TsyncSide side, const char *sql);
extern uint64 tsync_sum_to_uint64(const char *decimal);

/* in pace.c */
extern void tsync_restrict_source_session(const char *label);
extern int64 tsync_chunk_target(TsyncReplica *replica);
extern bool tsync_use_snapshot(TsyncReplica *replica, double rows);
extern void tsync_rest(TsyncReplica *replica, int64 busy_usec);

/* in progress.c */
extern void tsync_progress_start(int64 run_id, Oid replica);
extern void tsync_progress_phase(TsyncPhase phase, int64 chunks_total, int64 rows_estimated);
extern void tsync_progress_step(int64 chunks, int64 rows);
extern void tsync_progress_throttled(int64 usec);

#endif							/* TABLESYNC_H */
