/*-------------------------------------------------------------------------
 *
 * identity.c
 *	  What the source is, before its rows are read: shape, files, layout, counters.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "process/process.h"
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/* Whatever the source's statistics say: one table of 32 TB has fewer. */
#define MAX_ESTIMATED_ROWS 1e12

/*
 * Ask the source for what a run must know before it reads rows, with one
 * statement; an error if the session there is not restricted as it must be.
 * "horizon": how far it has come, too, which takes a look at its sessions.
 */
void
tsync_read_source(TsyncTable *table, TsyncSource *source, bool horizon)
{
	Oid			types[] = {OIDOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), BoolGetDatum(horizon)};

	/* the replica may have got another owner, who has to be able to read the source's catalogs */
	tsync_catalog_execute_oid("SELECT tablesync.prepare_server(s.srvname) FROM pg_foreign_table t"
							  " JOIN pg_foreign_server s ON s.oid = t.ftserver WHERE t.ftrelid = $1", table->source);
	tsync_await_source();
	tsync_catalog_execute("SELECT o.server_version, o.estimated_rows, o.new_shape, o.unreadable, o.identity, o.divided, o.as_known,"
						  " t.horizon, t.newest_version, t.went_back, o.whole, o.look_key, t.oldest_xid, t.newest_xid, t.epoch, t.stands_still, o.pooled, t.source_instant"
						  " FROM tablesync.open_source($1::regclass, $2) o, LATERAL tablesync.source_time($1::regclass, $2 AND o.identity IS NOT NULL) t",
						  lengthof(types), types, values, NULL);
	tsync_source_answered();
	source->version = (int) tsync_result_int64(0, 1);
	source->estimate = tsync_result_double(0, 2);
	if (!(source->estimate >= 0))
		source->estimate = 0;	/* NaN, too */
	source->estimate = Min(source->estimate, MAX_ESTIMATED_ROWS);
	source->new_shape = tsync_result_text(0, 3);
	source->unreadable = tsync_result_texts(0, 4, &source->nunreadable);
	source->identity = tsync_result_text(0, 5);
	source->divided = tsync_result_bool(0, 6);
	source->as_known = tsync_result_bool(0, 7);
	source->horizon = tsync_result_int64(0, 8);
	source->newest_version = tsync_result_text(0, 9);
	source->went_back = tsync_result_bool(0, 10);
	source->whole = tsync_result_bool(0, 11);
	source->look_key = tsync_result_text(0, 12);
	source->oldest_xid = tsync_result_int64(0, 13);
	source->newest_xid = tsync_result_int64(0, 14);
	source->epoch = tsync_result_text(0, 15);
	source->stands_still = tsync_result_bool(0, 16);
	source->seen_xid = source->horizon;
	if (tsync_result_bool(0, 17))
		tsync_forgo_options(table->server);
	source->instant = tsync_result_timestamp(0, 18);
	SPI_freetuptable(SPI_tuptable);
	if (source->identity == NULL)
		elog(ERROR, "source of %s has no identity", table->label);
}

/* Which files hold the source's rows, and its columns; a rewrite of the table changes it. */
char *
tsync_source_identity(TsyncTable *table, TsyncSource *source)
{
	Oid			types[] = {OIDOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(table->source), BoolGetDatum(source->whole)};
	char	   *identity;

	tsync_await_source();
	tsync_catalog_execute("SELECT tablesync.source_identity($1::regclass, $2)", lengthof(types), types, values, NULL);
	tsync_source_answered();
	identity = tsync_result_text(0, 1);
	if (identity == NULL)
		elog(ERROR, "source of %s has no identity", table->label);
	SPI_freetuptable(SPI_tuptable);
	return identity;
}

/* Ask for what is not part of tsync_read_source(), and count how long that takes. */
static void
ask(const char *sql, Oid relid)
{
	TimestampTz started = GetCurrentTimestamp();

	tsync_await_source();
	tsync_catalog_execute_oid(sql, relid);
	tsync_source_answered();
	tsync_waited_elsewhere += GetCurrentTimestamp() - started;
}

/* Has an older server taken the place of the one that was looked at? */
bool
tsync_source_went_back(TsyncTable *table, TsyncSource *source)
{
	int64		horizon;

	ask("SELECT horizon FROM tablesync.source_time($1::regclass, true)", table->relid);
	horizon = tsync_result_int64(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return horizon > 0 && (int32) ((uint32) source->horizon - (uint32) horizon) > 0;
}

/* Ask once more how far the source has come. */
void
tsync_read_time(TsyncTable *table, TsyncSource *source)
{
	ask("SELECT horizon, newest_xid, epoch FROM tablesync.source_time($1::regclass, true)", table->relid);
	source->seen_xid = source->horizon = tsync_result_int64(0, 1);
	source->newest_xid = tsync_result_int64(0, 2);
	source->epoch = tsync_result_text(0, 3);
	SPI_freetuptable(SPI_tuptable);
}

/* Where a large source keeps its rows; for the order in which to read them. */
void
tsync_read_layout(TsyncTable *table, TsyncSource *source)
{
	ask("SELECT blocks, clustered, shared_buffers, coalesce(changes, -1) FROM tablesync.source_layout($1::regclass)", table->relid);
	source->blocks = Max(Min(tsync_result_int64(0, 1), MaxBlockNumber), 0);
	source->clustered = tsync_result_bool(0, 2);
	source->shared_buffers = Max(Min(tsync_result_int64(0, 3), MaxBlockNumber), 0);
	source->changes = tsync_result_int64(0, 4);
	SPI_freetuptable(SPI_tuptable);
}

/* Does the source itself have files?  A view has none; its identity begins with its OID and that of its file (image.sql). */
bool
tsync_has_files(TsyncSource *source)
{
	const char *file = source->identity ? strchr(source->identity, ':') : NULL;

	return file == NULL || strtoul(file + 1, NULL, 10) != 0;
}

/* An error if the source is a view whose rows do not have different keys. */
void
tsync_check_view_key(TsyncTable *table)
{
	ask("SELECT tablesync.check_view_key($1::regclass)", table->relid);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * The source's statistics counters, where the user trusts them.  They are read
 * in an earlier transaction than the rows of the scan that they are remembered
 * with: a change that the scan does not see moves them afterwards.
 */
void
tsync_read_counters(TsyncTable *table, TsyncSource *source)
{
	source->counters_at = GetCurrentTimestamp();
	ask("SELECT tablesync.source_counters($1::regclass)", table->source);
	source->counters = tsync_result_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Have the source's statistics counters not moved since before the last
 * complete scan?  Then, where the user trusts them, there is nothing to scan:
 * the run ends as that one did, in a transaction of its own.
 */
bool
tsync_source_unmoved(TsyncTable *table, TsyncSource *source, TsyncMessage message, int64 waited)
{
	Oid			types[] = {OIDOID, TEXTOID, INT8OID, INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), (Datum) 0, Int64GetDatum(message.run_id), Int64GetDatum(waited),
	TimestampTzGetDatum(source->instant)};
	bool		unmoved;

	if (source->counters == NULL)
		return false;
	tsync_begin();
	values[1] = CStringGetTextDatum(source->counters);
	tsync_record("SELECT tablesync.skip_scan($1::regclass, $2::jsonb, $3, $4, $5)",
				 lengthof(types), types, values, source->instant == 0 ? "    n" : NULL);
	unmoved = tsync_result_bool(0, 1);
	message.complete = true;
	if (unmoved)
		tsync_emit_message(&message);
	tsync_commit();
	return unmoved;
}
