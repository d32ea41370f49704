/*-------------------------------------------------------------------------
 *
 * runs.c
 *	  Recording how runs start, go and end.
 *
 * As in replicas.c, a function expects a transaction begun with tsync_begin()
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
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * Record that a run has started, and that earlier ones which never finished
 * have crashed: the caller holds the replica's run lock, they don't.  Returns the
 * run's number: "run_id", or the next one if that is 0.
 */
int64
tsync_start_run(Oid relid, int64 run_id, bool verify, int64 group_run_id)
{
	Oid			types[] = {INT8OID, OIDOID, INT8OID, BOOLOID};
	Datum		values[] = {Int64GetDatum(run_id), ObjectIdGetDatum(relid),
	Int64GetDatum(group_run_id), BoolGetDatum(verify)};
	const char *nulls = group_run_id > 0 ? NULL : "  n ";

	/* checked by the launcher, but the replica may have got another owner since */
	tsync_check_acts_for_owner(relid);
	if (run_id == 0)
	{
		tsync_record("SELECT nextval('tablesync.run_run_id_seq')", 0, NULL, NULL, NULL);
		run_id = tsync_result_int64(0, 1);
		values[0] = Int64GetDatum(run_id);
	}

	/* before the new row: run_one_active, the second line of defence, allows one that is running */
	tsync_record_oid("UPDATE tablesync.all_runs SET status = 'crashed'"
					 " WHERE replica = $1::regclass AND status = 'running'", relid);
	if (tsync_record("INSERT INTO tablesync.all_runs (run_id, replica, kind, group_run_id)"
					 " SELECT $1, replica, CASE WHEN $4 THEN 'verify' WHEN loaded THEN 'sync' ELSE 'load' END, $3"
					 " FROM tablesync.all_replicas WHERE replica = $2::regclass",
					 lengthof(types), types, values, nulls) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table with OID %u is not a replica of a role that %s is a member of",
						relid, GetUserNameFromId(GetUserId(), false)),
				 errhint("Add it with tablesync_add(), and commit before you run it.")));
	return run_id;
}

static Datum
text_or_null(const char *text, char *null_flag)
{
	*null_flag = text ? ' ' : 'n';
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

/* What a user should know about a run that has succeeded; NULL if nothing. */
static Datum
run_message(TsyncRecord *record, char *null_flag)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (record->verify && record->differences > 0)
		appendStringInfo(&buf, "; " INT64_FORMAT " rows differ from the source, " INT64_FORMAT " of them are merely newer there%s",
						 record->differences, record->differences - record->drifted_rows, record->repair ? "; the replica was repaired" : "");
	else if (record->drifted_rows > 0)
		appendStringInfo(&buf, "; " INT64_FORMAT " rows had drifted from the source unnoticed and were repaired, see tablesync.difference",
						 record->drifted_rows);
	if (record->of_view)
		appendStringInfoString(&buf, "; the source is a view: had the tables behind it been rewritten meanwhile, it would show only in rows that seem to be gone, which are looked up again");
	if (record->reappeared > 0)
		appendStringInfo(&buf, "; " INT64_FORMAT " rows were deleted and inserted again at the source during the run; the next run takes them over",
						 record->reappeared);
	if (record->outside > 0)
		appendStringInfo(&buf, "; " INT64_FORMAT " rows were removed because they are outside of the new filter", record->outside);
	if (record->drifted > 0)
		appendStringInfo(&buf, "; somebody else had changed the replica in %d of %d chunks; it was repaired",
						 record->drifted, record->chunks);
	if (record->by_value && record->horizon == 0)
		appendStringInfoString(&buf, "; the source does not show how far it has come, so every column was compared; tablesync_check() says what helps");
	else if (record->by_value)
		appendStringInfoString(&buf, "; xmin could not tell which rows had changed, as after a restore or a rewrite of the source; every column was compared");
	if (record->written_anew > 0)
		appendStringInfo(&buf, "; most rows of %d of %d chunks were written anew at the source; every column of these was compared",
						 record->written_anew, record->chunks);
	if (record->slowness > 0)
		appendStringInfo(&buf, "; the source took up to %.1f times as long per row as usual", record->slowness);
	if (record->interruptions == 1)
		appendStringInfo(&buf, "; the source was asked again once, because of: %s", record->interruption);
	else if (record->interruptions > 1)
		appendStringInfo(&buf, "; the source was asked again " INT64_FORMAT " times, the last time because of: %s",
						 record->interruptions, record->interruption);
	if (record->snapshot_expired)
		appendStringInfo(&buf, "; a snapshot of the whole source %s, each chunk had its own",
						 record->conflicted ? "could not be kept" : "took too long");
	if (record->stands_still)
		appendStringInfoString(&buf, "; the source is a hot standby on which no transaction has ended since the last run: its primary is quiet, or its recovery is paused");
	return text_or_null(buf.len > 0 ? buf.data + 2 : NULL, null_flag);
}

/* Remember what a run has learned, for the next one. */
static void
save_lessons(TsyncRecord *record)
{
	Oid			types[] = {OIDOID, FLOAT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID, BOOLOID, INT8OID, TEXTOID, INT8OID, TEXTOID};
	char		nulls[] = "          ";
	Datum		values[] = {
		ObjectIdGetDatum(record->relid),
		Float8GetDatum(record->scan_rate),
		text_or_null(record->watermark, &nulls[2]),
		text_or_null(record->counters, &nulls[3]),
		TimestampTzGetDatum(record->counters_at),
		BoolGetDatum(record->adopted),
		Int64GetDatum(record->by_xmin ? record->seen_xid : 0),
		text_or_null(record->epoch, &nulls[7]),
		Int64GetDatum(record->source_changes),
		text_or_null(record->look_key, &nulls[9])
	};

	/* with the digests: of what has changed since, the next run asks by this transaction id */
	tsync_record("UPDATE tablesync.all_replicas SET scan_rate = nullif($2, 0), watermark = $3,"
				 " counters = $4::jsonb, counters_at = CASE WHEN $4 IS NOT NULL THEN $5 END, adopted = adopted AND $6, refetch = CASE WHEN $6 THEN refetch ELSE '{}' END,"
				 " memory_horizon = nullif($7, 0), memory_epoch = $8, memory_at = clock_timestamp(), source_changes = nullif($9, -1), look_key = $10, filtered_by = filter"
				 " WHERE replica = $1::regclass", lengthof(types), types, values, nulls);
}

/* Open an alert about chunks that somebody else has changed, or close it. */
static void
note_drift(TsyncRecord *record)
{
	Oid			types[] = {OIDOID, INT8OID, INT8OID};
	Datum		values[] = {
		ObjectIdGetDatum(record->relid),
		Int64GetDatum(record->run_id),
		Int64GetDatum(record->drifted)
	};

	if (record->drifted == 0 && (record->drifted_rows > 0 || !record->drift_known))
		return;
	tsync_record("SELECT tablesync.note_drift($1::regclass, $2, 0, $3)",
				 lengthof(types), types, values, NULL);
}

/* Lock in the order of those who remove a replica: its row before those of its runs, which go with it. */
static void
hold_replica(int64 run_id)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(run_id)};

	tsync_record("SELECT FROM tablesync.all_replicas t"
				 " WHERE t.replica = (SELECT r.replica FROM tablesync.all_runs r WHERE r.run_id = $1) FOR KEY SHARE",
				 lengthof(types), types, values, NULL);
}

/* Record success, and how fast the source was; part of the transaction that changes the replica. */
void
tsync_finish_run(TsyncRecord *record)
{
	Oid			types[] = {INT8OID, INT8OID, INT4OID, INT4OID, INT8OID, INT8OID, INT8OID,
	INT8OID, TEXTOID, INT8OID, INT8OID, INT8OID, TEXTOID, INT8OID, TEXTOID, TIMESTAMPTZOID};
	char		nulls[lengthof(types) + 1];
	Datum		values[] = {
		Int64GetDatum(record->run_id),
		Int64GetDatum(record->source.rows),
		Int32GetDatum(record->chunks),
		Int32GetDatum(record->differing),
		Int64GetDatum(record->loaded + record->inserted),
		Int64GetDatum(record->updated),
		Int64GetDatum(record->deleted),
		Int64GetDatum(record->waited),
		CStringGetTextDatum(record->snapshot ? "snapshot" : "chunk"),
		Int64GetDatum((int64) record->source.sum),
		Int64GetDatum(record->replica.rows),
		Int64GetDatum((int64) record->replica.sum),
		(Datum) 0,
		Int64GetDatum(record->horizon),
		(Datum) 0,
		TimestampTzGetDatum(record->source_instant)
	};

	Assert(record->run_id > 0);
	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	values[12] = run_message(record, &nulls[12]);
	values[14] = text_or_null(record->newest_version, &nulls[14]);
	nulls[15] = record->source_instant == 0 ? 'n' : ' ';

	hold_replica(record->run_id);
	if (tsync_record("UPDATE tablesync.all_runs SET status = 'succeeded', finished_at = clock_timestamp(),"
					 " rows_scanned = $2, chunks = $3, chunks_differing = $4,"
					 " inserted = $5, updated = $6, deleted = $7,"
					 " source_time = $8 * interval '1 microsecond', consistency = $9,"
					 " source_rows = $2, source_digest = $10,"
					 " replica_rows = $11, replica_digest = $12, message = $13,"
					 " source_horizon = nullif($14, 0), newest_version = $15, source_instant = $16"
					 " WHERE run_id = $1", lengthof(types), types, values, nulls) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("replica %s was removed during the run", record->label)));
	/* a run that verifies learns nothing for usual ones: its fingerprint is another */
	if (!record->verify)
		save_lessons(record);
	note_drift(record);
}

/*
 * Record why a run has failed, in a transaction of its own, and notify
 * listeners.  Everybody may listen, and an error may come from users' code that
 * quotes a row: its message stays in the table.
 */
void
tsync_fail_run(int64 run_id, int64 loaded, int64 waited, ErrorData *edata, bool cancelled)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID};
	char		nulls[] = "        ";
	Datum		values[lengthof(types)];

	tsync_begin();
	values[0] = Int64GetDatum(run_id);
	values[1] = CStringGetTextDatum(cancelled ? "cancelled" : "failed");
	values[2] = CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode));
	values[3] = text_or_null(edata->message, &nulls[3]);
	values[4] = text_or_null(edata->detail, &nulls[4]);
	values[5] = text_or_null(edata->hint, &nulls[5]);
	values[6] = Int64GetDatum(loaded);
	values[7] = Int64GetDatum(waited);
	hold_replica(run_id);
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
tsync_prune_runs(Oid relid)
{
	Oid			types[] = {OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(relid), Int32GetDatum(tsync_keep_runs)};

	if (tsync_keep_runs < 0 ||
		pg_prng_double(&pg_global_prng_state) * tsync_keep_runs >= 100)
		return;
	tsync_begin();
	tsync_record("SELECT tablesync.prune_runs($1::regclass, $2)", 2, types, values, NULL);
	tsync_commit();
}
