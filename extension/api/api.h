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

#include "nodes/pg_list.h"

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

/* in launch.c */
extern int64 tsync_run_verify(Oid relid, bool repair);

/* in report.c */
extern bool tsync_query_latest(const char *sql, Oid type, Datum argument);
extern char *tsync_latest_text(MemoryContext context, int column);

#endif							/* TABLESYNC_API_H */
