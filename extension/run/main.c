/*-------------------------------------------------------------------------
 *
 * main.c
 *	  Where a worker begins, and what it is to do.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "api/api.h"
#include "catalog/tables.h"
#include "compat.h"
#include "execute/execute.h"
#include "export/export.h"
#include "load/load.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "run/run.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

/* Help another worker with its load; an error is the server log's. */
static void
help_with_load(TsyncStart *start)
{
	TsyncRun   *run = tsync_make_run(start);

	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	tsync_begin_in(CurrentMemoryContext);
	tsync_read_run(run);
	tsync_read_columns(run->replica);
	tsync_commit();
	tsync_prepare_load(run);
	if (start->help == TSYNC_HELP_INDEX)
		tsync_help_index(&run->load);
	else
		tsync_help_load(&run->load);
}

/* What this process has run, or kept others from running, may be what the queue was waiting for. */
static void
leave_to_others(void)
{
	tsync_begin_recording();
	tsync_unlock_all();
	tsync_begin();
	/* whoever waits for a process starts the others when it has ended */
	if (!tsync_is_locked(TSYNC_LOCK_NEED, 0))
		(void) tsync_start_serving();
	(void) tsync_start_exports();
	tsync_commit();
}

void
tsync_worker_main(Datum main_arg)
{
	TsyncStart	start;

	tsync_read_start(&start, sizeof(start));
	tsync_watch_signals();
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, start.owner, TSYNC_CONNECT_FLAGS);
	tsync_prepare_session(false);
	tsync_prepare_planner();
	tsync_prepare_executor();
	MemoryContextSwitchTo(TopMemoryContext);

	if (start.help != TSYNC_HELP_NONE)
		help_with_load(&start);
	else if (start.serve)
		tsync_serve_queue(&start);
	else if (start.list != 0)
		tsync_serve_list(&start);
	else
		(void) tsync_perform(&start, false);
	if (start.help == TSYNC_HELP_NONE)
		leave_to_others();
	proc_exit(0);
}
