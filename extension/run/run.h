/*-------------------------------------------------------------------------
 *
 * run.h
 *	  One run, in a process of its own.
 *
 * Only this folder sees a run as a whole; each phase gets what it needs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_RUN_H
#define TABLESYNC_RUN_H

#include "tablesync.h"

#include "apply/apply.h"
#include "load/load.h"
#include "process/process.h"
#include "scan/scan.h"

/* One run, from start to end; lives in the worker's "tablesync run" context. */
typedef struct TsyncRun
{
	int64		run_id;
	Oid			replica_oid;
	bool		force;			/* override the guards */
	bool		grouped;		/* its snapshot must be that of other runs, too */
	bool		skipped;		/* the source has not moved */
	bool		paused;			/* by this run, because of the new shape */
	TsyncReplica *replica;		/* NULL until it is read; another one after each look */
	TsyncSource source;
	TsyncPace	pace;
	TsyncVerify verify;
	TsyncStage *stage;
	TsyncLoad	load;
	TsyncScan	scan;
	TsyncApply	apply;
	TsyncRecord record;
} TsyncRun;

/* in worker.c */
extern PGDLLEXPORT void tsync_worker_main(Datum main_arg);

/* in run.c */
extern TsyncRun *tsync_make_run(TsyncStart *start);
extern List *tsync_make_runs(TsyncStart *start);
extern TsyncTable *tsync_read_run(TsyncRun *run);
extern void tsync_prepare_load(TsyncRun *run);
extern void tsync_prepare_scan(TsyncRun *run);
extern void tsync_prepare_apply(TsyncRun *run, bool last_attempt);
extern List *tsync_scans_of(List *runs);
extern List *tsync_applies_of(List *runs);

#endif							/* TABLESYNC_RUN_H */
