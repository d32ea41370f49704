/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  tablesync_wait(): wait until a run has ended.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xlog.h"
#include "api/api.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "process/process.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define WAIT_POLL_MS 20

/* How often a run that waits for a worker is looked after. */
#define SERVE_MS 1000

/* A worker that was asked for records its run well within this time. */
#define WAIT_START_MS 30000

TSYNC_FUNCTION_INFO_V1(tsync_run_status);
TSYNC_FUNCTION_INFO_V1(tsync_wait);

/* The recorded status of a run, NULL if the caller has none of that number; "live" if its worker is. */
static char *
recorded_status(int64 run_id, bool (*may_ask) (Oid replica), bool *live)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *status = NULL;

	if (tsync_query_latest("SELECT status, EXISTS (SELECT FROM tablesync.live_runs() l"
						   " WHERE l.replica = r.replica AND l.pid = r.pid), replica::oid"
						   " FROM tablesync.all_runs r WHERE run_id = $1"
						   " UNION ALL SELECT 'queued', false, replica::oid FROM tablesync.all_queued WHERE run_id = $1",
						   INT8OID, Int64GetDatum(run_id)))
	{
		if (may_ask((Oid) tsync_result_int64(0, 3)))
			status = tsync_latest_text(caller, 1);
		*live = tsync_result_bool(0, 2);
	}
	SPI_finish();
	return status;
}

/*
 * The status of a run as a user should see it, and whether its worker is still
 * there.  A worker may end between the snapshot that saw its run as running and
 * the look at its lock, so a crash is what a second look still sees.  On a
 * standby, where no lock of a worker is seen, a run goes on until its end arrives.
 */
static char *
run_status(int64 run_id, bool (*may_ask) (Oid replica), bool *live)
{
	char	   *status;

	*live = false;
	status = recorded_status(run_id, may_ask, live);
	if (status == NULL || *live || strcmp(status, "running") != 0 || RecoveryInProgress())
		return status;
	status = recorded_status(run_id, may_ask, live);
	return status && strcmp(status, "running") == 0 ? "crashed" : status;
}

/* tablesync.run_status(run_id) */
Datum
tsync_run_status(PG_FUNCTION_ARGS)
{
	bool		live;
	char	   *status = run_status(PG_GETARG_INT64(0), tsync_may_see, &live);

	if (status == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(status));
}

/* When to stop waiting; an interval beyond all time is for ever. */
static TimestampTz
end_of_wait(TimestampTz started, Interval *timeout)
{
	/* months, days and microseconds as a float: no overflow */
	double		seconds = timeout->month * (30.0 * SECS_PER_DAY) + timeout->day * (double) SECS_PER_DAY +
	timeout->time / (double) USECS_PER_SEC;

	if (seconds > 1e9)
		return DT_NOEND;
	return started + (int64) (Max(seconds, 0) * USECS_PER_SEC);
}

/* tablesync_wait(run_id, timeout) */
Datum
tsync_wait(PG_FUNCTION_ARGS)
{
	int64		run_id;
	TimestampTz started = GetCurrentTimestamp();
	TimestampTz until = DT_NOEND;
	TimestampTz asked = started;
	char	   *status;
	bool		live;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	run_id = PG_GETARG_INT64(0);
	if (!PG_ARGISNULL(1))
		until = end_of_wait(started, PG_GETARG_INTERVAL_P(1));
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

		status = run_status(run_id, tsync_acts_for_owner, &live);
		if (status == NULL && TimestampDifferenceExceeds(started, now, WAIT_START_MS))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("run " INT64_FORMAT " does not exist", run_id),
					 errhint("See tablesync_runs, or the server log if its worker never started.")));
		/* a worker that has recorded its end still has the run lock for a moment: the next run would meet it */
		if ((status != NULL && strcmp(status, "running") != 0 && strcmp(status, "queued") != 0 && !live) || now >= until)
			break;
		if (status != NULL && strcmp(status, "queued") == 0 && TimestampDifferenceExceeds(asked, now, SERVE_MS))
		{
			(void) tsync_start_serving();	/* after a crash nobody does */
			asked = now;
		}
		tsync_wait_for_process(WAIT_POLL_MS, tsync_wait_event("TablesyncWait"));
	}
	if (status == NULL)
		status = "started";
	PG_RETURN_TEXT_P(cstring_to_text(status));
}
