/*-------------------------------------------------------------------------
 *
 * pace.c
 *	  Chunk sizing and protection of the source.
 *
 * The source session is restricted before it exists: libpq takes PGOPTIONS
 * from the environment for every connection whose server does not set
 * "options" itself, and a worker makes no other connection.  Where the server
 * sets "options", the SQL function tablesync.check_source_session() finds out
 * what is missing.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "compat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* Rows per chunk: about 100 ms of digests at the source. */
#define DEFAULT_CHUNK_ROWS 500000

/* What a source scans per second at least; for the choice of consistency. */
#define CAUTIOUS_ROWS_PER_SECOND 1000000.0

/* A rest is never longer, whatever max_source_load says. */
#define MAX_REST_USEC (60 * USECS_PER_SEC)

/* "tablesync/schema.table", as much of it as fits, in postgres_fdw's escapes. */
static char *
source_application_name(const char *label)
{
	char	   *name = psprintf("tablesync/%s", label);
	StringInfoData buf;

	name[pg_mbcliplen(name, strlen(name), NAMEDATALEN - 1)] = '\0';
	initStringInfo(&buf);
	for (; *name; name++)
	{
		if (*name == '%')		/* postgres_fdw's escape character */
			appendStringInfoChar(&buf, '%');
		appendStringInfoChar(&buf, *name);
	}
	return buf.data;
}

/*
 * Make every connection of this process to a source read-only, honest about
 * hidden rows, short of patience, and recognisable.
 */
void
tsync_restrict_source_session(const char *label)
{
	char	   *options;

	options = psprintf("-c default_transaction_read_only=on"
					   " -c row_security=off"
					   " -c statement_timeout=%d"
					   " -c lock_timeout=%d"
					   " -c idle_in_transaction_session_timeout=%d"
					   " -c max_parallel_workers_per_gather=0"
					   " -c jit=off"
					   " -c lc_monetary=C",
					   tsync_statement_timeout,
					   tsync_lock_timeout,
					   tsync_statement_timeout);
	if (setenv("PGOPTIONS", options, 1) != 0 ||
		setenv("PGCONNECT_TIMEOUT", "20", 0) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not set the environment of the source connection: %m")));
	SetConfigOption("postgres_fdw.application_name", source_application_name(label),
					PGC_USERSET, PGC_S_SESSION);
}

/* Rows that a chunk should have. */
int64
tsync_chunk_target(TsyncReplica *replica)
{
	return replica->chunk_rows > 0 ? replica->chunk_rows : DEFAULT_CHUNK_ROWS;
}

/* Should a scan of so many rows hold one snapshot at the source? */
bool
tsync_use_snapshot(TsyncReplica *replica, double rows)
{
	double		seconds = rows / CAUTIOUS_ROWS_PER_SECOND / replica->max_source_load;

	if (strcmp(replica->consistency, "auto") != 0)
		return strcmp(replica->consistency, "snapshot") == 0;
	return seconds * 1000 < tsync_max_snapshot_age;
}

/*
 * Leave the source alone for as long as max_source_load asks for after it has
 * been busy with us for so many microseconds.
 */
void
tsync_rest(TsyncReplica *replica, int64 busy_usec)
{
	double		wanted = busy_usec * (1.0 / replica->max_source_load - 1.0);
	int64		rest = (int64) Min(wanted, (double) MAX_REST_USEC);
	TimestampTz until = GetCurrentTimestamp() + rest;
	long		left;

	tsync_progress_throttled(rest);
	while ((left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until)) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, tsync_wait_event("TablesyncRest"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}
