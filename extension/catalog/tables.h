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

/* in chunks.c */
extern void tsync_open_memory(TsyncRun *run, const char *key);
extern bool tsync_was_written_to(TsyncRun *run);
extern void tsync_distrust_memory(TsyncRun *run);
extern List *tsync_read_chunks(TsyncReplica *replica);
extern void tsync_write_plan(TsyncReplica *replica, List *chunks);
extern bytea *tsync_read_buckets(TsyncReplica *replica, TsyncChunk *chunk, TsyncBucketing *bucketing);
extern void tsync_write_memory(TsyncReplica *replica, TsyncChunk *chunk, TsyncBucketing *bucketing,
							   bytea *buckets);
extern void tsync_write_digest(TsyncReplica *replica, TsyncChunk *chunk);

/* in proofs.c */
extern bool tsync_read_proof(TsyncRun *run, TsyncDigest *proof, char **memory_key);
extern void tsync_write_differences(TsyncRun *run, const char *differences);
extern void tsync_count_differences(TsyncRun *run);
extern void tsync_write_verified(TsyncRun *run, List *numbers);

/* in ranges.c */
extern void tsync_plan_ranges(TsyncReplica *replica, List *indexes, char **bounds, int nbounds);
extern TsyncChunk *tsync_claim_range(TsyncReplica *replica);
extern void tsync_finish_range(TsyncReplica *replica, TsyncChunk *range, TsyncDigest digest);
extern void tsync_count_ranges(TsyncReplica *replica, int64 *done, int64 *total, int64 *rows);
extern void tsync_end_bulk_load(TsyncRun *run);
extern bool tsync_is_sorting(int pid);
extern void tsync_undo_bulk_load(TsyncReplica *replica);

/* in replicas.c */
extern void tsync_read_columns(TsyncReplica *replica);
extern TsyncReplica *tsync_read_replica(Oid relid);
extern bool tsync_record_source(TsyncRun *run);
extern bool tsync_evolve_catalog(TsyncRun *run, char **problem, char **hint);
extern void tsync_finish_refetch(TsyncRun *run);
extern List *tsync_group_members(Oid replica);
extern void tsync_check_bounds(TsyncRun *run);
extern void tsync_save_load_position(TsyncRun *run, char **key);
extern void tsync_finish_load(TsyncRun *run, bool adopted);
extern bool tsync_lock_run(Oid relid);

/* in runs.c */
extern void tsync_start_run(TsyncRun *run, int64 group_run_id);
extern void tsync_finish_run(TsyncRun *run, double learned_rate);
extern void tsync_fail_run(TsyncRun *run, ErrorData *edata, bool cancelled);
extern void tsync_prune_runs(TsyncRun *run);

#endif							/* TABLESYNC_TABLES_H */
