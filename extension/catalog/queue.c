/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  Taking runs from the queue.
 *
 * A run waits as a row of tablesync.queue, which a crash does not take.  Its
 * worker has the run lock before it removes the row, in the transaction that
 * records the run as running: so the run is in one of the two tables, and
 * nobody else begins it.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

/* Others' runs wait so long for one of ours to end before we make room for them. */
#define PATIENCE "interval '10 seconds'"

/*
 * The next run that waits for a worker of a role, whose replica nobody runs and
 * which nobody is cancelling; false if there is none.  "others_wait" is set in
 * any case.
 */
bool
tsync_next_queued(Oid owner, TsyncQueued *next)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(owner)};

	memset(next, 0, sizeof(*next));
	tsync_record("WITH live AS MATERIALIZED (SELECT l.replica FROM tablesync.live_runs() l),"
				 " waiting AS MATERIALIZED (SELECT q.run_id, q.replica, q.force, q.queued_at, c.relowner = $1 AS mine"
				 "  FROM tablesync.all_queued q JOIN pg_class c ON c.oid = q.replica"
				 "  WHERE q.replica NOT IN (SELECT l.replica FROM live l)),"
				 " next AS (SELECT q.run_id, q.replica, q.force, q.queued_at FROM tablesync.all_queued q"
				 "  WHERE q.run_id IN (SELECT w.run_id FROM waiting w WHERE w.mine) ORDER BY q.run_id LIMIT 1 FOR UPDATE SKIP LOCKED)"
				 " SELECT n.run_id, n.replica::oid, n.force, NOT (t.enabled AND t.home = tablesync.home()),"
				 "  EXISTS (SELECT FROM waiting w WHERE NOT w.mine AND (n.queued_at IS NULL"
				 "   OR (w.queued_at < n.queued_at AND w.queued_at < clock_timestamp() - " PATIENCE ")))"
				 " FROM (VALUES (true)) one LEFT JOIN next n ON true LEFT JOIN tablesync.all_replicas t ON t.replica = n.replica",
				 lengthof(types), types, values, NULL);
	next->run_id = tsync_result_int64(0, 1);
	next->replica = (Oid) tsync_result_int64(0, 2);
	next->force = tsync_result_bool(0, 3);
	next->paused = tsync_result_bool(0, 4);
	next->others_wait = tsync_result_bool(0, 5);
	SPI_freetuptable(SPI_tuptable);
	return next->run_id != 0;
}

/* Remove a run from the queue; false if somebody else has, or is cancelling it: nobody waits for his transaction. */
bool
tsync_take_queued(int64 run_id, Oid relid)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(run_id), ObjectIdGetDatum(relid)};

	return tsync_record("DELETE FROM tablesync.all_queued WHERE run_id IN"
						" (SELECT q.run_id FROM tablesync.all_queued q WHERE q.run_id = $1 AND q.replica = $2::regclass FOR UPDATE SKIP LOCKED)",
						lengthof(types), types, values, NULL) == 1;
}

/* The run of a replica that waits, which the caller's will be: it is removed from the queue.  0 if there is none. */
int64
tsync_queued_run(Oid relid)
{
	return tsync_record_oid("DELETE FROM tablesync.all_queued WHERE run_id IN"
							" (SELECT q.run_id FROM tablesync.all_queued q WHERE q.replica = $1::regclass FOR UPDATE SKIP LOCKED)"
							" RETURNING run_id", relid) == 1 ?
		tsync_result_int64(0, 1) : 0;
}

/* Record the end of a run that has never started, in a transaction of its own. */
void
tsync_end_queued(TsyncQueued *queued, const char *status, ErrorData *edata)
{
	Oid			types[] = {INT8OID, OIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	char		nulls[] = "     nn";
	Datum		values[lengthof(types)];

	tsync_begin();
	values[0] = Int64GetDatum(queued->run_id);
	values[1] = ObjectIdGetDatum(queued->replica);
	values[2] = CStringGetTextDatum(status);
	values[3] = CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode));
	values[4] = CStringGetTextDatum(edata->message);
	values[5] = values[6] = (Datum) 0;
	if (edata->detail)
	{
		values[5] = CStringGetTextDatum(edata->detail);
		nulls[5] = ' ';
	}
	if (edata->hint)
	{
		values[6] = CStringGetTextDatum(edata->hint);
		nulls[6] = ' ';
	}
	tsync_record("SELECT tablesync.end_queued($1, $2::regclass, $3, $4, $5, $6, $7)", lengthof(types), types, values, nulls);
	tsync_commit();
}
