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

#include "execute/execute.h"

/* in blame.c */
extern bool tsync_blame(TsyncRun *run, TsyncChunk *chunk, TsyncDigest now);

/* in judge.c */
extern TsyncDigest tsync_digest_as_remembered(TsyncRun *run, TsyncChunk *chunk);
extern void tsync_judge_chunks(TsyncRun *run);

/* in record.c */
extern void tsync_record_differences(TsyncRun *run);
extern void tsync_save_verified(TsyncRun *run);

/* in verify.c */
extern void tsync_check_may_evolve(TsyncRun *run);
extern void tsync_prepare_verify(TsyncRun *run);
extern void tsync_use_row_fingerprint(TsyncRun *run, bool all_columns);
extern TsyncChunk *tsync_forget_chunk(TsyncChunk *remembered);
extern void tsync_plan_verify(TsyncRun *run);
extern void tsync_choose_chunks(TsyncRun *run);
extern void tsync_know_rows(TsyncRun *run);
extern void tsync_compare_opaque(TsyncRun *run, TsyncChunk *chunk);

#endif							/* TABLESYNC_VERIFY_H */
