/*-------------------------------------------------------------------------
 *
 * process.h
 *	  What a background worker of ours is: session, rights, progress; and how one is started.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_PROCESS_H
#define TABLESYNC_PROCESS_H

#include "compat.h"
#include "tablesync.h"

#include <limits.h>

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"

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
	TimestampTz source_instant; /* likewise */
	int64		run_id;
	dsm_handle	list;			/* of the runs that its caller waits for, instead of one; 0: none */
	bool		serve;			/* the queue, instead */
} TsyncStart;

/* How a run of a list has ended for the list; all else is in tablesync.run. */
typedef enum TsyncListed
{
	TSYNC_WAITING,
	TSYNC_TAKEN,
	TSYNC_DONE,
	TSYNC_OMITTED,				/* the replica is paused, or run by another worker */
	TSYNC_LEFT					/* the worker has waited long enough for another one */
} TsyncListed;

/* The runs that a caller has asked for and waits for, in shared memory. */
typedef struct TsyncList
{
	pg_atomic_uint32 given_up;	/* the caller waits no more */
	int			caller;			/* a backend's number, to wake it up */
	int			server;			/* likewise the worker's, if it stays; -1: not known yet */
	bool		stays;			/* of one run: the caller may put another one in its place (api/kept.c) */
	bool		force;
	int			count;
	struct
	{
		Oid			replica;
		pg_atomic_uint32 state;
		int64		run_id;
	}			runs[FLEXIBLE_ARRAY_MEMBER];
} TsyncList;

/* What processes of ours lock: the second field of all locks is the class, the fourth the kind. */
#define TSYNC_LOCK_CLASS 1953721955
typedef enum TsyncLock
{
	TSYNC_LOCK_RUN = 3,			/* a replica, while it is run; tablesync.live_runs() looks for it */
	TSYNC_LOCK_SLOT,			/* one of tablesync.max_workers, while its owner serves the queue */
	TSYNC_LOCK_QUEUE,			/* shared until what was put into the queue is visible; exclusive to leave it */
	TSYNC_LOCK_TURN,			/* a process: exclusive from one run to the next, shared to cancel a run of it */
	TSYNC_LOCK_NEED,			/* shared while somebody waits for a process to be free */
	TSYNC_LOCK_IDLE,			/* a role: shared while a worker of hers looks into the queue, and has nothing to do */
	TSYNC_LOCK_EXPORT = 20,		/* an export, while it is written; tablesync.is_export_live() looks for it */
	TSYNC_LOCK_EXPORT_SLOT		/* one of tablesync.max_export_workers, while its owner writes exports */
} TsyncLock;

/* Whom to become again after tsync_assume_identity(). */
typedef struct TsyncIdentity
{
	Oid			role;
	int			security;
	int			guc_level;
} TsyncIdentity;

/* in lock.c */
extern bool tsync_try_lock(TsyncLock kind, uint32 key, int mode, bool for_process);
extern void tsync_lock(TsyncLock kind, uint32 key, int mode, bool for_process);
extern void tsync_unlock(TsyncLock kind, uint32 key, int mode, bool for_process);
extern int	tsync_take_slot(void);
extern int	tsync_free_slots(void);
extern void tsync_unlock_all(void);
extern bool tsync_is_locked(TsyncLock kind, uint32 key);

/* in privilege.c */
extern Oid	tsync_extension_owner(void);
extern Oid	tsync_owner_of(Oid relid);
extern bool tsync_acts_for_owner(Oid relid);
extern void tsync_check_acts_for_owner(Oid relid);
extern bool tsync_may_see(Oid relid);
extern TsyncIdentity tsync_assume_identity(Oid role);
extern void tsync_resume_identity(TsyncIdentity previous);

/* in progress.c */
extern void tsync_progress_end(void);
extern void tsync_progress_start(int64 run_id, Oid replica);
extern void tsync_progress_run(int64 run_id, Oid replica);
extern void tsync_progress_phase(TsyncPhase phase, int64 chunks_total, int64 rows_estimated);
extern void tsync_progress_step(int64 chunks, int64 rows);
extern void tsync_progress_set(int64 chunks, int64 chunks_total, int64 rows);
extern void tsync_progress_throttled(int64 usec, double slowness);
extern void tsync_progress_interrupted(int sqlerrcode);

/* in session.c */
extern const char *tsync_session_role;
extern bool tsync_source_asked;
extern int64 tsync_waited_elsewhere;
extern void tsync_watch_signals(void);
extern bool tsync_is_cancelled(void);
extern bool tsync_is_to_end(void);
extern void tsync_begin_recording(void);
extern void tsync_interrupt_recording(void);
extern void tsync_follow_configuration(void);
extern void tsync_next_turn(void);
extern void tsync_forget_leftovers(void);
extern void tsync_await_source(void);
extern void tsync_limit_here(int timeout);
extern void tsync_source_has_spoken(void);
extern void tsync_source_answered(void);
extern bool tsync_source_is_silent(void);
extern void tsync_name_silence(ErrorData *edata);
extern bool tsync_source_timed_out(ErrorData *edata);
extern void tsync_pin_session(void);
extern void tsync_serve_role(Oid role);
extern void tsync_prepare_session(bool read_only);
extern bool tsync_is_worker(void);

/* in standby.c */
extern void tsync_check_primary(const char *function);

/* A caller waits so long for a process, where none of ours is at work that will end. */
#define TSYNC_NO_WORKER_MS 10000
#define TSYNC_NO_WORKER_HINT "Increase max_worker_processes, or run fewer replicas at the same time."

/* in start.c; before what a process is started with comes the version */
#define TSYNC_EXTRA_BYTES (BGW_EXTRALEN - TSYNC_VERSION_BYTES)
extern BackgroundWorkerHandle *tsync_start_process(const char *function, const char *type, const char *name,
												   const void *extra, Size size, Datum argument, bool notify);
extern BackgroundWorkerHandle *tsync_start_process_soon(const char *function, const char *type, const char *name,
														const void *extra, Size size, Datum argument, bool notify);
extern void tsync_read_start(void *extra, Size size);
/* for as long as the process does not wake us */
#define TSYNC_UNTIL_WOKEN LONG_MAX
extern void tsync_wait_for_process(long ms, uint32 wait_event);
extern BackgroundWorkerHandle *tsync_start_worker(TsyncStart *start, const char *label);
extern char *tsync_no_worker_message(Oid relid);
pg_noreturn extern void tsync_refuse_no_worker(Oid relid);
extern Oid	tsync_owner_who_may_log_in(Oid relid);
extern Oid	tsync_check_owner(Oid relid);

#endif							/* TABLESYNC_PROCESS_H */
