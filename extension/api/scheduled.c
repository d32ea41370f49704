/*-------------------------------------------------------------------------
 *
 * scheduled.c
 *	  Runs that nobody waits for but pg_cron: by the workers that serve the queue.
 *
 * A worker sees what has been committed, so a run is queued in one transaction
 * and waited for in another one (tablesync.run_scheduled()).
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/transam.h"
#include "access/xact.h"
#include "api/api.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* How often those who wait look; later, less often. */
#define POLL_MS 20
#define LATER_POLL_MS 200

/* And see that somebody serves the queue. */
#define SERVE_MS 1000

TSYNC_FUNCTION_INFO_V1(tsync_queue_run);
TSYNC_FUNCTION_INFO_V1(tsync_await_run);
TSYNC_FUNCTION_INFO_V1(tsync_try_run);

/* Where a run of a replica is: a row if it waits or is recorded, and whether a worker is at it. */
typedef enum Whereabouts
{
	NOWHERE,
	QUEUED,
	GOING_ON,
	ENDED						/* or it has crashed */
} Whereabouts;

static Whereabouts
whereabouts(Oid relid, int64 run_id)
{
	Oid			types[] = {OIDOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(relid), Int64GetDatum(run_id)};
	Whereabouts where = NOWHERE;

	if (tsync_query_latest_with("SELECT true, false FROM tablesync.all_queued q WHERE q.replica = $1::regclass AND q.run_id = $2"
								" UNION ALL SELECT false, EXISTS (SELECT FROM tablesync.live_runs() l WHERE l.replica = r.replica AND l.pid = r.pid)"
								" FROM tablesync.all_runs r WHERE r.replica = $1::regclass AND r.run_id = $2",
								lengthof(types), types, values))
		where = tsync_result_bool(0, 1) ? QUEUED : tsync_result_bool(0, 2) ? GOING_ON : ENDED;
	SPI_finish();
	return where;
}

/* What has become of a run that is nowhere. */
static TsyncReport *
report_nowhere(Oid relid, int64 run_id)
{
	char	   *message = psprintf("run " INT64_FORMAT " of relation %u does not exist any more", run_id, relid);
	TsyncReport *report = tsync_make_report(relid, run_id, "failed", message);

	report->message = message;
	report->sqlstate = pstrdup(unpack_sql_state(ERRCODE_UNDEFINED_OBJECT));
	report->hint = "Was the replica removed meanwhile?";
	return report;
}

/* Nobody serves the queue, and no process is to be had; NULL if that is not so any more. */
static TsyncReport *
report_no_worker(Oid relid, int64 run_id)
{
	TsyncReport *report;

	if (!tsync_dequeue(relid, run_id))
		return NULL;			/* a worker has come after all */
	report = tsync_make_report(relid, 0, "failed", tsync_no_worker_message(relid));
	report->sqlstate = pstrdup(unpack_sql_state(ERRCODE_INSUFFICIENT_RESOURCES));
	report->message = tsync_no_worker_message(relid);
	report->hint = TSYNC_NO_WORKER_HINT;
	report->no_worker = true;
	return report;
}

/*
 * Wait until a run of the queue has ended.  The queue needs somebody who serves
 * it: where none has come for a while, the run is given up.
 */
static TsyncReport *
await_run(Oid relid, int64 run_id)
{
	TimestampTz started = GetCurrentTimestamp();
	TimestampTz served = started;	/* when somebody did, or was asked to */
	TimestampTz asked = started;

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		Whereabouts where = whereabouts(relid, run_id);
		TsyncReport *report = NULL;

		if (where == NOWHERE)
			return report_nowhere(relid, run_id);
		if (where == ENDED)
			return tsync_report_ended(relid, run_id);
		if (where == QUEUED && TimestampDifferenceExceeds(asked, now, SERVE_MS))
		{
			asked = now;
			if (tsync_free_slots() < tsync_max_workers || tsync_live_run(relid) != 0 || tsync_start_serving() > 0)
				served = now;
			else if (TimestampDifferenceExceeds(served, now, TSYNC_NO_WORKER_MS))
				report = report_no_worker(relid, run_id);
		}
		if (report)
			return report;
		tsync_wait_for_process(TimestampDifferenceExceeds(started, now, SERVE_MS) ? LATER_POLL_MS : POLL_MS,
							   tsync_wait_event("TablesyncQueue"));
	}
}

/* Return a report as a row: run_id, failed, and its texts. */
static void
return_report(FunctionCallInfo fcinfo, TsyncReport *report, int64 run_id)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *texts[] = {report->status, report->sqlstate,
	report->nulls[8] ? NULL : TextDatumGetCString(report->values[8]), report->detail, report->hint};
	Datum		values[lengthof(texts) + 2];
	bool		nulls[lengthof(texts) + 2] = {false};

	InitMaterializedSRF(fcinfo, 0);
	values[0] = Int64GetDatum(run_id);
	nulls[0] = run_id == 0;
	values[1] = BoolGetDatum(tsync_has_failed(report));
	for (int i = 0; i < lengthof(texts); i++)
	{
		nulls[i + 2] = texts[i] == NULL;
		values[i + 2] = texts[i] ? CStringGetTextDatum(texts[i]) : (Datum) 0;
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* tablesync.queue_run(replica): the number of a run to wait for, or how it has ended already. */
Datum
tsync_queue_run(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	TsyncReport *report;

	tsync_check_callable("tablesync_run()");
	tsync_check_acts_for_owner(relid);
	report = tsync_report_backing_off(relid);
	if (report == NULL)
		report = tsync_try_enqueue(relid, false);
	if (report->no_worker)
		tsync_alert_no_worker(report);
	return_report(fcinfo, report, report->queued ? DatumGetInt64(report->values[1]) : 0);
	return (Datum) 0;
}

/* tablesync.await_run(replica, run_id) */
Datum
tsync_await_run(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	TsyncReport *report;

	tsync_check_acts_for_owner(relid);
	report = await_run(relid, PG_GETARG_INT64(1));
	if (report->no_worker)
		tsync_alert_no_worker(report);
	return_report(fcinfo, report, 0);
	return (Datum) 0;
}

/* tablesync.try_run(replica) of 0.1.0, whose install script needs the name; it is not called: the version does not fit. */
Datum
tsync_try_run(PG_FUNCTION_ARGS)
{
	PG_RETURN_NULL();
}
