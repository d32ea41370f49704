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
 * Ask the source for what a run must know before it reads rows; an error if
 * the session there is not restricted as it must be.
 */
void
tsync_read_source(TsyncTable *table, TsyncSource *source)
{
	/* the replica may have got another owner, who has to be able to read the source's catalogs */
	tsync_catalog_execute_oid("SELECT tablesync.prepare_server(s.srvname) FROM pg_foreign_table t"
							  " JOIN pg_foreign_server s ON s.oid = t.ftserver WHERE t.ftrelid = $1", table->source);
	tsync_await_source();
	tsync_catalog_execute_oid("SELECT server_version, estimated_rows, new_shape, unreadable"
							  " FROM tablesync.open_source($1::regclass)", table->relid);
	tsync_source_answered();
	source->version = (int) tsync_result_int64(0, 1);
	source->estimate = tsync_result_double(0, 2);
	if (!(source->estimate >= 0))
		source->estimate = 0;	/* NaN, too */
	source->estimate = Min(source->estimate, MAX_ESTIMATED_ROWS);
	source->new_shape = tsync_result_text(0, 3);
	source->unreadable = tsync_result_texts(0, 4, &source->nunreadable);
	SPI_freetuptable(SPI_tuptable);
}

/* Which files hold the source's rows; a rewrite of the table changes it. */
char *
tsync_source_identity(TsyncTable *table)
{
	char	   *identity;

	tsync_await_source();
	tsync_catalog_execute_oid("SELECT tablesync.source_identity($1::regclass)", table->source);
	tsync_source_answered();
	identity = tsync_result_text(0, 1);
	if (identity == NULL)
		elog(ERROR, "source of %s has no identity", table->label);
	SPI_freetuptable(SPI_tuptable);
	return identity;
}

/* Where a large source keeps its rows; for the order in which to read them. */
void
tsync_read_layout(TsyncTable *table, TsyncSource *source)
{
	tsync_await_source();
	tsync_catalog_execute_oid("SELECT blocks, clustered, shared_buffers, coalesce(changes, -1) FROM tablesync.source_layout($1::regclass)",
							  table->relid);
	tsync_source_answered();
	source->blocks = Max(Min(tsync_result_int64(0, 1), MaxBlockNumber), 0);
	source->clustered = tsync_result_bool(0, 2);
	source->shared_buffers = Max(Min(tsync_result_int64(0, 3), MaxBlockNumber), 0);
	source->changes = tsync_result_int64(0, 4);
	SPI_freetuptable(SPI_tuptable);
}

/* Ask the source how far it has come; part of the transaction that opens it. */
void
tsync_read_horizon(TsyncTable *table, TsyncSource *source)
{
	tsync_await_source();
	tsync_catalog_execute_oid("SELECT horizon, newest_version, went_back"
							  " FROM tablesync.source_time($1::regclass)", table->relid);
	tsync_source_answered();
	source->horizon = tsync_result_int64(0, 1);
	source->newest_version = tsync_result_text(0, 2);
	source->went_back = tsync_result_bool(0, 3);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Have the source's statistics counters not moved since before the last
 * complete scan?  Then, where the user trusts them, there is nothing to scan:
 * the run ends as that one did.  They are read before the scan that they are
 * remembered with, so a change that the scan may have missed moves them.
 */
bool
tsync_source_unmoved(TsyncTable *table, TsyncSource *source, int64 run_id)
{
	Oid			types[] = {OIDOID, TEXTOID, INT8OID, INT8OID};
	bool		unmoved = false;

	tsync_begin_in(CurrentMemoryContext);
	source->counters_at = GetCurrentTimestamp();
	tsync_await_source();
	tsync_catalog_execute_oid("SELECT tablesync.source_counters($1::regclass)", table->source);
	tsync_source_answered();
	source->counters = tsync_result_text(0, 1);
	if (source->counters != NULL)
	{
		Datum		values[] = {
			ObjectIdGetDatum(table->relid),
			CStringGetTextDatum(source->counters),
			Int64GetDatum(run_id),
			Int64GetDatum(table->waited)
		};

		tsync_record("SELECT tablesync.skip_scan($1::regclass, $2::jsonb, $3, $4)",
					 lengthof(types), types, values, NULL);
		unmoved = tsync_result_bool(0, 1);
	}
	tsync_commit();
	return unmoved;
}
