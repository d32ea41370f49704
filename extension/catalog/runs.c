/*-------------------------------------------------------------------------
 *
 * runs.c
 *	  Recording how runs start, go and end.
 *
 * As in catalog.c, a function expects a transaction begun with tsync_begin()
 * unless it says that it has one of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "common/pg_prng.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "run/run.h"
#include "utils/builtins.h"

/*
 * Record that a run has started, and that earlier ones which never finished
 * have crashed: the caller holds the replica's run lock, they don't.
 */
void
tsync_start_run(TsyncRun *run, int64 group_run_id)
{
	Oid			types[] = {INT8OID, OIDOID, INT8OID, BOOLOID};
	Datum		values[] = {Int64GetDatum(run->run_id), ObjectIdGetDatum(run->replica_oid),
	Int64GetDatum(group_run_id), BoolGetDatum(run->verify)};
	const char *nulls = group_run_id > 0 ? NULL : "  n ";

	/* checked by the launcher, but the replica may have got another owner since */
	tsync_check_acts_for_owner(run->replica_oid);
	if (run->run_id == 0)
	{
		tsync_record("SELECT nextval('tablesync.run_run_id_seq')", 0, NULL, NULL, NULL);
		run->run_id = tsync_result_int64(0, 1);
		values[0] = Int64GetDatum(run->run_id);
	}

	tsync_record_oid("UPDATE tablesync.all_runs SET status = 'crashed'"
						" WHERE replica = $1::regclass AND status = 'running'", run->replica_oid);
	if (tsync_record("INSERT INTO tablesync.all_runs (run_id, replica, kind, group_run_id)"
						" SELECT $1, replica, CASE WHEN $4 THEN 'verify' WHEN loaded THEN 'sync' ELSE 'load' END, $3"
						" FROM tablesync.all_replicas WHERE replica = $2::regclass",
						lengthof(types), types, values, nulls) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table with OID %u is not a replica of a role that %s is a member of",
						run->replica_oid, GetUserNameFromId(GetUserId(), false)),
				 errhint("Add it with tablesync_add(), and commit before you run it.")));
}

static Datum
text_or_null(const char *text, char *null_flag)
{
	*null_flag = text ? ' ' : 'n';
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

/* What a user should know about a run that has succeeded; NULL if nothing. */
static Datum
run_message(TsyncRun *run, char *null_flag)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (run->verify && run->differences > 0)
		appendStringInfo(&buf, "; " INT64_FORMAT " rows differ from the source, " INT64_FORMAT " of them are merely newer there%s",
						 run->differences, run->differences - run->drifted_rows, run->repair ? "; the replica was repaired" : "");
	else if (run->drifted_rows > 0)
		appendStringInfo(&buf, "; " INT64_FORMAT " rows had drifted from the source unnoticed and were repaired, see tablesync.difference",
						 run->drifted_rows);
	if (run->stage->reappeared.count > 0)
		appendStringInfo(&buf, "; " INT64_FORMAT " rows were deleted and inserted again at the source during the run; the next run takes them over",
						 run->stage->reappeared.count);
	if (run->drifted > 0)
		appendStringInfo(&buf, "; somebody else had changed the replica in %d of %d chunks; it was repaired",
						 run->drifted, list_length(run->chunks));
	if (run->slowness > 0)
		appendStringInfo(&buf, "; the source took up to %.1f times as long per row as usual", run->slowness);
	if (run->snapshot_expired)
		appendStringInfoString(&buf, "; a snapshot of the whole source took too long, each chunk had its own");
	return text_or_null(buf.len > 0 ? buf.data + 2 : NULL, null_flag);
}

/* Remember what a run has learned, for the next one. */
static void
save_lessons(TsyncRun *run, double learned_rate)
{
	TsyncReplica *replica = run->replica;
	Oid			types[] = {OIDOID, FLOAT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID, BOOLOID};
	char		nulls[] = "      ";
	Datum		values[] = {
		ObjectIdGetDatum(replica->relid),
		Float8GetDatum(run->slowness > 0 ? replica->scan_rate : learned_rate),
		text_or_null(replica->watermark, &nulls[2]),
		text_or_null(run->counters, &nulls[3]),
		TimestampTzGetDatum(run->counters_at),
		BoolGetDatum(replica->adopted && run->stage->reappeared.count > 0)
	};

	tsync_record("UPDATE tablesync.all_replicas SET scan_rate = nullif($2, 0), watermark = $3,"
						  " counters = $4::jsonb, counters_at = CASE WHEN $4 IS NOT NULL THEN $5 END, adopted = $6"
						  " WHERE replica = $1::regclass", lengthof(types), types, values, nulls);
}

/* Open an alert about chunks that somebody else has changed, or close it. */
static void
note_drift(TsyncRun *run)
{
	Oid			types[] = {OIDOID, INT8OID, INT8OID};
	Datum		values[] = {
		ObjectIdGetDatum(run->replica->relid),
		Int64GetDatum(run->run_id),
		Int64GetDatum(run->drifted)
	};

	if (run->drifted == 0 && (run->drifted_rows > 0 || !run->replica->drift_known))
		return;
	tsync_record("SELECT tablesync.note_drift($1::regclass, $2, 0, $3)",
						  lengthof(types), types, values, NULL);
}

/* Record success, and how fast the source was; part of the transaction that changes the replica. */
void
tsync_finish_run(TsyncRun *run, double learned_rate)
{
	Oid			types[] = {INT8OID, INT8OID, INT4OID, INT4OID, INT8OID, INT8OID, INT8OID,
	INT8OID, TEXTOID, INT8OID, INT8OID, INT8OID, TEXTOID, INT8OID, TEXTOID};
	int			differing = 0;
	char		nulls[lengthof(types) + 1];
	ListCell   *lc;

	foreach(lc, run->chunks)
		differing += ((TsyncChunk *) lfirst(lc))->differs;

	Datum		values[] = {
		Int64GetDatum(run->run_id),
		Int64GetDatum(run->source.rows),
		Int32GetDatum(list_length(run->chunks)),
		Int32GetDatum(differing),
		Int64GetDatum(run->loaded_rows + run->inserted),
		Int64GetDatum(run->updated),
		Int64GetDatum(run->deleted),
		Int64GetDatum(run->source_time),
		CStringGetTextDatum(run->snapshot ? "snapshot" : "chunk"),
		Int64GetDatum((int64) run->source.sum),
		Int64GetDatum(run->result.rows),
		Int64GetDatum((int64) run->result.sum),
		(Datum) 0,
		Int64GetDatum(run->source_horizon),
		(Datum) 0
	};

	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	values[12] = run_message(run, &nulls[12]);
	values[14] = text_or_null(run->newest_version, &nulls[14]);

	if (tsync_record("UPDATE tablesync.all_runs SET status = 'succeeded', finished_at = clock_timestamp(),"
						" rows_scanned = $2, chunks = $3, chunks_differing = $4,"
						" inserted = $5, updated = $6, deleted = $7,"
						" source_time = $8 * interval '1 microsecond', consistency = $9,"
						" source_rows = $2, source_digest = $10,"
						" replica_rows = $11, replica_digest = $12, message = $13,"
						" source_horizon = nullif($14, 0), newest_version = $15"
						" WHERE run_id = $1", lengthof(types), types, values, nulls) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("replica %s was removed during the run", run->replica->label)));
	if (!run->verify)
		save_lessons(run, learned_rate);
	note_drift(run);
}

/*
 * Record why a run has failed, in a transaction of its own, and notify
 * listeners.  Everybody may listen, and an error may come from users' code that
 * quotes a row: its message stays in the table.
 */
void
tsync_fail_run(TsyncRun *run, ErrorData *edata, bool cancelled)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID};
	char		nulls[] = "        ";
	Datum		values[lengthof(types)];

	tsync_begin();
	values[0] = Int64GetDatum(run->run_id);
	values[1] = CStringGetTextDatum(cancelled ? "cancelled" : "failed");
	values[2] = CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode));
	values[3] = text_or_null(edata->message, &nulls[3]);
	values[4] = text_or_null(edata->detail, &nulls[4]);
	values[5] = text_or_null(edata->hint, &nulls[5]);
	values[6] = Int64GetDatum(run->loaded_rows);
	values[7] = Int64GetDatum(run->source_time);
	tsync_record("UPDATE tablesync.all_runs SET status = $2, finished_at = clock_timestamp(),"
					" sqlstate = $3, message = $4, detail = $5, hint = $6, inserted = $7,"
					" source_time = $8 * interval '1 microsecond'"
					" WHERE run_id = $1 AND status = 'running'",
					lengthof(types), types, values, nulls);
	tsync_record("SELECT pg_notify('tablesync', json_build_object('event', 'run_' || status,"
					" 'run_id', run_id, 'replica', replica, 'sqlstate', sqlstate,"
					" 'message', tablesync.public_message(sqlstate))::text)"
					" FROM tablesync.all_runs WHERE run_id = $1",
					1, types, values, NULL);
	tsync_commit();
}

/*
 * Delete history beyond tablesync.keep_runs, in a transaction of its own.
 * Finding the oldest run to keep means to pass all of them under row security
 * (35 ms for 10,000), so a long history is pruned at about every hundredth
 * part of its length only.
 */
void
tsync_prune_runs(TsyncRun *run)
{
	Oid			types[] = {OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(run->replica_oid), Int32GetDatum(tsync_keep_runs)};

	if (tsync_keep_runs < 0 ||
		pg_prng_double(&pg_global_prng_state) * tsync_keep_runs >= 100)
		return;
	tsync_begin();
	tsync_record("SELECT tablesync.prune_runs($1::regclass, $2)", 2, types, values, NULL);
	tsync_commit();
}
