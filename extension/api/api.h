/*-------------------------------------------------------------------------
 *
 * api.h
 *	  Functions that users call.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_API_H
#define TABLESYNC_API_H

#include "tablesync.h"

#include "nodes/execnodes.h"
#include "nodes/pg_list.h"
#include "process/process.h"

#define RESULT_COLUMNS 9

/* How a run went, as far as it is known; texts are NULL where there is none. */
typedef struct TsyncReport
{
	char	   *status;			/* NULL: no such run */
	char	   *sqlstate;
	char	   *message;
	char	   *detail;
	char	   *hint;
	bool		no_worker;		/* there was none to be had */
	bool		queued;			/* it has not ended, but waits for a worker */
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS];
} TsyncReport;

/* in report.c */
extern int64 tsync_live_run(Oid relid);
extern TsyncReport *tsync_make_report(Oid relid, int64 run_id, const char *status, const char *message);
extern TsyncReport *tsync_report_already_running(Oid relid, int64 run_id);
extern TsyncReport *tsync_report_ended(Oid relid, int64 run_id);
extern TsyncReport *tsync_report_backing_off(Oid relid);
extern bool tsync_has_failed(TsyncReport *report);
extern void tsync_raise_report(TsyncReport *report, int elevel);
extern List *tsync_group_reports(Oid relid, int64 run_id);

/* in request.c */
extern int64 tsync_next_run_id(void);
extern void tsync_check_callable(const char *function);
extern TsyncReport *tsync_check_runnable(Oid relid);
extern bool tsync_is_only_its_own(ErrorData *edata, void *arg);
extern TsyncReport *tsync_report_error(Oid relid, ErrorData *edata);
extern void tsync_alert_no_worker(TsyncReport *report);
extern BackgroundWorkerHandle *tsync_start_or_wait(TsyncStart *start, const char *label, Oid relid);
extern void tsync_cancel_worker(int code, Datum arg);

/* in queue.c */
extern int	tsync_start_serving(void);
extern TsyncReport *tsync_queue_replica(Oid relid, bool force);
extern TsyncReport *tsync_try_enqueue(Oid relid, bool force);
extern bool tsync_dequeue(Oid relid, int64 run_id);
extern int64 tsync_waiting_run(Oid relid);

/* in several.c */
extern void tsync_run_all(ReturnSetInfo *result, bool wait, bool force);

/* in kept.c */
extern bool tsync_is_run_again(Oid relid, Oid owner);
extern bool tsync_run_again(const TsyncStart *wanted);

/* in launch.c */
extern int64 tsync_run_verify(Oid relid, bool repair);

/* in report.c */
extern bool tsync_query_latest_with(const char *sql, int nargs, Oid *types, Datum *arguments);
extern bool tsync_query_latest(const char *sql, Oid type, Datum argument);
extern char *tsync_latest_text(MemoryContext context, int column);

#endif							/* TABLESYNC_API_H */
