/*-------------------------------------------------------------------------
 *
 * progress.c
 *	  What a live run is doing, for the view tablesync_progress.
 *
 * A worker publishes its progress in the parameter array that core keeps in
 * shared memory for the pg_stat_progress views.  Core has no view for our
 * command, so tablesync.live_progress() reads the array itself.  Other
 * commands of the worker may use the same array; every step therefore
 * publishes all values again.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "commands/progress.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "process/process.h"
#include "utils/backend_progress.h"
#include "utils/timestamp.h"

#define TSYNC_PROGRESS_MAGIC INT64CONST(0x7461626c6573796e)	/* "tablesyn" */

enum
{
	PARAM_MAGIC,
	PARAM_RUN_ID,
	PARAM_REPLICA,
	PARAM_PHASE,
	PARAM_CHUNKS_DONE,
	PARAM_CHUNKS_TOTAL,
	PARAM_ROWS_SCANNED,
	PARAM_ROWS_ESTIMATED,
	PARAM_PHASE_STARTED,		/* TimestampTz */
	PARAM_THROTTLED,			/* microseconds */
	PARAM_SLOWNESS,				/* percent of the usual time per row; 0: as usual */
	PARAM_PROGRESSED_AT,		/* TimestampTz */
	NPARAMS
};

static int64 params[NPARAMS];

PG_FUNCTION_INFO_V1(tsync_live_progress);

static void
publish_values(void)
{
	static const int index[NPARAMS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

	params[PARAM_PROGRESSED_AT] = GetCurrentTimestamp();
	pgstat_progress_update_multi_param(NPARAMS, index, params);
}

/* Announce a run of this process. */
void
tsync_progress_start(int64 run_id, Oid replica)
{
	memset(params, 0, sizeof(params));
	params[PARAM_MAGIC] = TSYNC_PROGRESS_MAGIC;
	params[PARAM_RUN_ID] = run_id;
	params[PARAM_REPLICA] = (int64) replica;
	params[PARAM_PHASE_STARTED] = GetCurrentTimestamp();
	publish_values();
}

/* Show another run of this process's group. */
void
tsync_progress_run(int64 run_id, Oid replica)
{
	params[PARAM_RUN_ID] = run_id;
	params[PARAM_REPLICA] = (int64) replica;
}

/* Enter a phase; totals are 0 where nobody can know them. */
void
tsync_progress_phase(TsyncPhase phase, int64 chunks_total, int64 rows_estimated)
{
	params[PARAM_PHASE] = phase;
	params[PARAM_CHUNKS_DONE] = 0;
	params[PARAM_CHUNKS_TOTAL] = chunks_total;
	params[PARAM_ROWS_SCANNED] = 0;
	params[PARAM_ROWS_ESTIMATED] = rows_estimated;
	params[PARAM_PHASE_STARTED] = GetCurrentTimestamp();
	publish_values();
}

/* Count chunks and rows that the current phase has completed. */
void
tsync_progress_step(int64 chunks, int64 rows)
{
	params[PARAM_CHUNKS_DONE] += chunks;
	params[PARAM_ROWS_SCANNED] += rows;
	publish_values();
}

/* Publish what several processes have completed of the current phase. */
void
tsync_progress_set(int64 chunks, int64 chunks_total, int64 rows)
{
	params[PARAM_CHUNKS_DONE] = chunks;
	params[PARAM_CHUNKS_TOTAL] = chunks_total;
	params[PARAM_ROWS_SCANNED] = rows;
	publish_values();
}

/* Count time slept to spare the source, which may be slow. */
void
tsync_progress_throttled(int64 usec, double slowness)
{
	params[PARAM_THROTTLED] += usec;
	params[PARAM_SLOWNESS] = (int64) (slowness * 100);
	publish_values();
}

/* tablesync.live_progress(): the published values of every live run that the caller may see. */
Datum
tsync_live_progress(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			nbackends = pgstat_fetch_stat_numbackends();

	InitMaterializedSRF(fcinfo, 0);

	for (int i = 1; i <= nbackends; i++)
	{
		LocalPgBackendStatus *local = tsync_backend_status(i);
		PgBackendStatus *status = local ? &local->backendStatus : NULL;
		Datum		values[NPARAMS];
		bool		nulls[NPARAMS] = {0};

		if (status == NULL || status->st_databaseid != MyDatabaseId ||
			status->st_progress_param[PARAM_MAGIC] != TSYNC_PROGRESS_MAGIC ||
			!tsync_may_see((Oid) status->st_progress_param[PARAM_REPLICA]))
			continue;

		values[0] = Int32GetDatum(status->st_procpid);
		values[1] = Int64GetDatum(status->st_progress_param[PARAM_RUN_ID]);
		values[2] = ObjectIdGetDatum((Oid) status->st_progress_param[PARAM_REPLICA]);
		for (int p = PARAM_PHASE; p < NPARAMS; p++)
			values[p] = Int64GetDatum(status->st_progress_param[p]);
		values[PARAM_PHASE] = Int32GetDatum((int32) status->st_progress_param[PARAM_PHASE]);
		values[PARAM_PHASE_STARTED] =
			TimestampTzGetDatum(status->st_progress_param[PARAM_PHASE_STARTED]);
		values[PARAM_PROGRESSED_AT] =
			TimestampTzGetDatum(status->st_progress_param[PARAM_PROGRESSED_AT]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
