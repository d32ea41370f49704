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
#include "evolve/evolve.h"
#include "load/load.h"
#include "process/process.h"
#include "scan/scan.h"

/* One run, from start to end; lives in the worker's "tablesync run" context. */
typedef struct TsyncRun
{
	int64		run_id;
	int64		group_run_id;	/* the first run of the group; 0: it has none */
	Oid			replica_oid;
	bool		force;			/* override the guards */
	bool		grouped;		/* its snapshot must be that of other runs, too */
	bool		skipped;		/* the source has not moved */
	bool		paused;			/* by this run, because of the new shape */
	bool		key_asked;		/* it was looked whether the key of a view is one */
	bool		surprised;		/* the source is not, or was not, as we took it to be */
	int64		waited_before;	/* tsync_waited_elsewhere when it began; -1: another run counts that */
	TsyncReplica *replica;		/* NULL until it is read; another one after each look */
	TsyncSource source;
	TsyncPace	pace;
	TsyncVerify verify;
	TsyncStage *stage;
	TsyncLoad	load;
	TsyncRefetch refetch;
	TsyncScan	scan;
	TsyncApply	apply;
	TsyncRecord record;
} TsyncRun;

/* in main.c */
extern PGDLLEXPORT void tsync_worker_main(Datum main_arg);

/* in serve.c */
extern void tsync_serve_list(TsyncStart *start);
extern void tsync_serve_queue(TsyncStart *start);

/* in worker.c */
extern bool tsync_has_begun(void);
extern bool tsync_perform(TsyncStart *start, bool from_queue);

/* in run.c */
extern TsyncRun *tsync_make_run(TsyncStart *start);
extern List *tsync_make_runs(TsyncStart *start);
extern TsyncTable *tsync_read_run(TsyncRun *run);
extern int64 tsync_waited(TsyncRun *run);
extern TsyncMessage tsync_message_of(TsyncRun *run);
extern void tsync_renew_stage(TsyncRun *run);
extern void tsync_prepare_load(TsyncRun *run);
extern void tsync_prepare_scan(TsyncRun *run);
extern void tsync_prepare_apply(TsyncRun *run, bool last_attempt);
extern List *tsync_scans_of(List *runs);
extern List *tsync_applies_of(List *runs);

/* in look.c */
extern bool tsync_trusts_counters(TsyncRun *run);
extern void tsync_open_source(TsyncRun *run);
extern void tsync_look_at_time(TsyncRun *run);
extern bool tsync_went_back_meanwhile(TsyncRun *run);
extern bool tsync_expect_as_known(TsyncRun *run);
extern bool tsync_is_about_shape(ErrorData *edata);
extern bool tsync_was_rewritten(List *runs);
extern bool tsync_needs_second_look(List *runs);

#endif							/* TABLESYNC_RUN_H */
