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

#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "process/process.h"
#include "utils/backend_progress.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define TSYNC_PROGRESS_MAGIC INT64CONST(0x7461626c6573796e) /* "tablesyn" */

/* What is published, in the order of the columns of tablesync.live_progress(). */
enum
{
	PARAM_MAGIC,				/* the pid's column */
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
	PARAM_INTERRUPTED_BY,		/* SQLSTATE of the source, 0: it goes on */
	NPARAMS
};

StaticAssertDecl(NPARAMS <= PGSTAT_NUM_PROGRESS_PARAM, "core's array is too short for our progress values");

static int64 params[NPARAMS];

TSYNC_FUNCTION_INFO_V1(tsync_live_progress);

static void
publish_values(void)
{
	int			index[NPARAMS];

	for (int p = 0; p < NPARAMS; p++)
		index[p] = p;
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

/* There is no run in this process now. */
void
tsync_progress_end(void)
{
	memset(params, 0, sizeof(params));
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

/* The source has interrupted us, with this SQLSTATE, and is asked again; 0: it has answered. */
void
tsync_progress_interrupted(int sqlerrcode)
{
	params[PARAM_INTERRUPTED_BY] = sqlerrcode;
	publish_values();
}

/* The name of a phase, NULL for what is none; the compiler complains of a phase without a name. */
static const char *
phase_name(TsyncPhase phase)
{
	switch (phase)
	{
		case TSYNC_PHASE_SCHEMA:
			return "schema";
		case TSYNC_PHASE_LOAD:
			return "load";
		case TSYNC_PHASE_INDEX:
			return "index";
		case TSYNC_PHASE_SCAN:
			return "scan";
		case TSYNC_PHASE_CONFIRM:
			return "confirm";
		case TSYNC_PHASE_APPLY:
			return "apply";
	}
	return NULL;				/* another command of the worker has written over it */
}

/* A published value as text, NULL if it has none. */
static const char *
name_of(int param, int64 value)
{
	if (param == PARAM_INTERRUPTED_BY)
		return value != 0 ? unpack_sql_state((int) value) : NULL;
	return phase_name((TsyncPhase) value);
}

/* A published value as the type that tablesync.live_progress() declares for it. */
static Datum
as_declared(int param, int64 value, Oid type, bool *isnull)
{
	const char *name;

	switch (type)
	{
		case INT4OID:
			return Int32GetDatum((int32) value);
		case INT8OID:
			return Int64GetDatum(value);
		case OIDOID:
			return ObjectIdGetDatum((Oid) value);
		case TIMESTAMPTZOID:
			return TimestampTzGetDatum(value);
		case TEXTOID:
			name = name_of(param, value);
			*isnull = (name == NULL);
			return name ? CStringGetTextDatum(name) : (Datum) 0;
		default:
			elog(ERROR, "no progress value has type %u", type);
	}
}

/* tablesync.live_progress(): the published values of every live run that the caller may see. */
Datum
tsync_live_progress(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			nbackends = pgstat_fetch_stat_numbackends();

	InitMaterializedSRF(fcinfo, 0);
	if (rsinfo->setDesc->natts != NPARAMS)
		elog(ERROR, "tablesync.live_progress() has %d columns for %d values", rsinfo->setDesc->natts, NPARAMS);

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

		for (int p = 0; p < NPARAMS; p++)
		{
			int64		value = p == PARAM_MAGIC ? status->st_procpid : status->st_progress_param[p];

			values[p] = as_declared(p, value, TupleDescAttr(rsinfo->setDesc, p)->atttypid, &nulls[p]);
		}
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
