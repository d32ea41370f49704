/*-------------------------------------------------------------------------
 *
 * process.h
 *	  What a background worker of ours is: session, rights, progress; and how one is started.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_PROCESS_H
#define TABLESYNC_PROCESS_H

#include "tablesync.h"

#include "nodes/pg_list.h"
#include "postmaster/bgworker.h"

typedef enum TsyncPhase
{
	TSYNC_PHASE_SCHEMA,
	TSYNC_PHASE_LOAD,
	TSYNC_PHASE_INDEX,
	TSYNC_PHASE_SCAN,
	TSYNC_PHASE_CONFIRM,
	TSYNC_PHASE_APPLY
} TsyncPhase;

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

/* Whom to become again after tsync_assume_identity(). */
typedef struct TsyncIdentity
{
	Oid			role;
	int			security;
	int			guc_level;
} TsyncIdentity;

/* in privilege.c */
extern Oid	tsync_extension_owner(void);
extern Oid	tsync_owner_of(Oid relid);
extern bool tsync_acts_for_owner(Oid relid);
extern void tsync_check_acts_for_owner(Oid relid);
extern bool tsync_may_see(Oid relid);
extern TsyncIdentity tsync_assume_identity(Oid role);
extern void tsync_resume_identity(TsyncIdentity previous);

/* in progress.c */
extern void tsync_progress_start(int64 run_id, Oid replica);
extern void tsync_progress_run(int64 run_id, Oid replica);
extern void tsync_progress_phase(TsyncPhase phase, int64 chunks_total, int64 rows_estimated);
extern void tsync_progress_step(int64 chunks, int64 rows);
extern void tsync_progress_set(int64 chunks, int64 chunks_total, int64 rows);
extern void tsync_progress_throttled(int64 usec, double slowness);

/* in session.c */
extern bool tsync_source_asked;
extern void tsync_watch_signals(void);
extern bool tsync_is_cancelled(void);
extern void tsync_begin_recording(void);
extern void tsync_await_source(void);
extern void tsync_source_has_spoken(void);
extern void tsync_source_answered(void);
extern bool tsync_source_is_silent(void);
extern void tsync_name_silence(ErrorData *edata);
extern bool tsync_source_timed_out(ErrorData *edata);
extern void tsync_pin_session(void);
extern void tsync_prepare_session(bool read_only);

/* in start.c */
extern BackgroundWorkerHandle *tsync_start_process(const char *function, const char *type, const char *name,
												   const void *extra, Size size, Datum argument, bool notify);
extern BackgroundWorkerHandle *tsync_start_worker(TsyncStart *start, const char *label);
extern void tsync_refuse_no_worker(Oid relid) pg_attribute_noreturn();
extern Oid	tsync_owner_who_may_log_in(Oid relid);
extern Oid	tsync_check_owner(Oid relid);

#endif							/* TABLESYNC_PROCESS_H */
