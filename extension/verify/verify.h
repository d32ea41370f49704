/*-------------------------------------------------------------------------
 *
 * verify.h
 *	  Comparing every column of every row.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_VERIFY_H
#define TABLESYNC_VERIFY_H

#include "tablesync.h"

#include "catalog/tables.h"
#include "source/source.h"

/* What a run compares besides what every run does: everything, or a few chunks; lives as long as the run. */
typedef struct TsyncVerify
{
	bool		whole;			/* every column of every row; the run does nothing else */
	bool		repair;			/* and mends what differs */
	bool		by_row;			/* a usual run sees a change of any column */
	bool		by_xmin;		/* likewise, by the transaction that made it */
	List	   *remembered;		/* whole: tablesync.chunk as it is */
	bool		memory_usable;	/* whole: and we know what its digests are made of */
	bool		memory_by_row;	/* all columns */
	TimestampTz verified_at;	/* when the current scan began */
	TsyncRowSet new_keys;		/* of staged rows that the source has written since the last success */
	TsyncRowSet touched_keys;	/* of rows that somebody has changed here */
	TsyncRowSet opaque;			/* columns without a hash of a chunk's source rows */
	int64		differences;	/* rows that it has found */
	int64		drifted_rows;	/* of them, those that are not just newer at the source */
} TsyncVerify;

/* The fingerprint of all columns that have a hash. */
static inline TsyncFingerprint
tsync_every_column(int source_version)
{
	return (TsyncFingerprint) {.all_columns = true,.opaque_apart = true,.source_version = source_version};
}

/* in verify.c */
extern void tsync_refuse_to_evolve(const char *label);
extern void tsync_prepare_verify(TsyncReplica *replica, TsyncVerify *verify, TsyncPace *pace);
extern TsyncChunk *tsync_forget_chunk(TsyncChunk *remembered);
extern List *tsync_plan_verify(TsyncTable *table, TsyncVerify *verify);
extern void tsync_choose_chunks(TsyncReplica *replica, TsyncVerify *verify, List *chunks);
extern void tsync_know_rows(TsyncTable *table, TsyncVerify *verify, int source_version, List *chunks);
extern void tsync_compare_opaque(TsyncTable *table, TsyncVerify *verify, TsyncStage *stage, TsyncChunk *chunk);

/* in judge.c */
extern TsyncDigest tsync_digest_as_remembered(TsyncTable *table, TsyncVerify *verify, int source_version,
											  TsyncRange *range);
extern void tsync_judge_chunks(TsyncTable *table, TsyncVerify *verify, TsyncStage *stage, List *chunks,
							   int source_version);

/* in blame.c */
extern bool tsync_blame(TsyncTable *table, TsyncFingerprint fingerprint, TsyncChunk *chunk, TsyncDigest now,
						TsyncRowSet *touched_keys);

/* in record.c */
extern void tsync_record_differences(TsyncTable *table, TsyncVerify *verify, List *chunks, int64 run_id);
extern void tsync_save_verified(TsyncTable *table, TsyncVerify *verify, List *chunks, int source_version, bool spared);

#endif							/* TABLESYNC_VERIFY_H */
