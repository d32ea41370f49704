/*-------------------------------------------------------------------------
 *
 * helper.c
 *	  Processes that help a run with its load.
 *
 * A helper is a worker like that of the run, the leader, but records nothing:
 * whatever it has not done when it ends is left to its leader.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "compat.h"
#include "load/load.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "storage/latch.h"

/* A helper that ends wakes its leader; how often to look nevertheless. */
#define HELPER_POLL_MS 500

/* Start a helper; NULL when the server has no slot for one. */
BackgroundWorkerHandle *
tsync_start_helper(TsyncLoad *load, TsyncHelp help)
{
	TsyncStart	start = {
		.database = MyDatabaseId,
		.owner = GetUserId(),
		.replica = load->table->relid,
		.help = help,
		.source_version = load->fingerprint.source_version,
		.source_instant = load->source->instant,
		.run_id = load->run_id
	};

	return tsync_start_worker(&start, load->table->label);
}

static bool
is_running(BackgroundWorkerHandle *helper)
{
	pid_t		pid;
	BgwHandleStatus status = GetBackgroundWorkerPid(helper, &pid);

	return status == BGWH_STARTED || status == BGWH_NOT_YET_STARTED;
}

/*
 * Wait until a helper has ended, in its own time.  Unless "silent", say that
 * we are alive meanwhile: what it does may take long.
 */
void
tsync_wait_for_helper(BackgroundWorkerHandle *helper, bool silent)
{
	while (is_running(helper))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 HELPER_POLL_MS, tsync_wait_event("TablesyncLoadHelpers"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (!silent)
			tsync_progress_step(0, 0);
	}
}
