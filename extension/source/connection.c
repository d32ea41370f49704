/*-------------------------------------------------------------------------
 *
 * connection.c
 *	  The session at the source: restricted before it exists.
 *
 * libpq takes PGOPTIONS from the environment for every connection whose server
 * does not set "options" itself, and a worker makes no other connection.  Where
 * the server sets "options", the SQL function tablesync.check_source_session()
 * finds out what is missing.
 *
 * A connection pooler may refuse options, or drop them: PgBouncer's answer is
 * "unsupported startup parameter".  Then sessions there are what their role has,
 * and time limits are kept here.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "process/process.h"
#include "source/source.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/*
 * "tablesync/schema.table", as much of it as fits, in postgres_fdw's escapes; or
 * the role, where a connection is for whichever of its replicas: its name can't
 * change later.
 */
static char *
source_application_name(const char *label)
{
	char	   *name = psprintf("tablesync/%s", tsync_session_role ? tsync_session_role : label);
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

/* Shows at the source that options arrive: harmless, and nobody sets it (image.sql). */
#define MARK "-c geqo_seed=0.815"

/*
 * Make every connection of this process to a source read-only, honest about
 * hidden rows, short of patience, and recognisable.  "timeout" is for each
 * statement there, in ms; that it was a lock and not work must show before.
 * The source's planner can't know how few buckets there are, and would sort
 * all rows on disk to count them; a scan's share of them (SCANNED_BUCKETS) fits
 * into this work_mem.  What we join is in the right order.  To compile statements
 * would take 30 ms and 10 MB of the source for each session, and what has a sort
 * that is switched off would be compiled however small it is; a digest by xmin of
 * 10 million rows takes 7 to 13 % less then, buckets 14 to 19 %.
 */
void
tsync_restrict_source_session(const char *label, int timeout)
{
	char	   *options;

	options = psprintf(MARK
					   " -c default_transaction_read_only=on"
					   " -c row_security=off"
					   " -c statement_timeout=%d"
					   " -c lock_timeout=%d"
					   " -c idle_in_transaction_session_timeout=%d"
					   " -c max_parallel_workers_per_gather=0"
					   " -c jit=off"
					   " -c enable_sort=off"
					   " -c work_mem=96MB"
					   " -c join_collapse_limit=1"
					   " -c from_collapse_limit=1"
					   " -c lc_monetary=C",
					   timeout,
					   timeout > 0 && (tsync_lock_timeout == 0 || timeout < tsync_lock_timeout) ? timeout / 4 * 3 : tsync_lock_timeout,
					   tsync_statement_timeout);
	if (setenv("PGOPTIONS", options, 1) != 0 ||
		setenv("PGCONNECT_TIMEOUT", "20", 0) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not set the environment of the source connection: %m")));
	SetConfigOption("postgres_fdw.application_name", source_application_name(label),
					PGC_SUSET, PGC_S_OVERRIDE);
}

/* End the connection to the source; the next statement opens a new one. */
static void
disconnect(TsyncTable *table)
{
	tsync_begin();
	if (tsync_catalog_execute_oid("SELECT format('SELECT %I.postgres_fdw_disconnect(%L)', n.nspname, s.srvname)"
								  " FROM pg_foreign_table t JOIN pg_foreign_server s ON s.oid = t.ftserver,"
								  " pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'"
								  " JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'postgres_fdw'"
								  " WHERE t.ftrelid = $1 AND p.proname = 'postgres_fdw_disconnect'",
								  table->source) != 1)
		elog(ERROR, "postgres_fdw has no function to end a connection");
	tsync_catalog_execute(tsync_result_text(0, 1), 0, NULL, NULL, NULL);
	tsync_commit();
}

/* A connection of this process, and what it was opened with. */
typedef struct Limit
{
	Oid			server;
	int			timeout;		/* ms */
	bool		pooled;			/* it knows of no options */
} Limit;

static List *limits = NIL;

/* The limit of the session at the source that was asked last, ms; -1: there is none yet. */
static int	current_limit = -1;
static Oid	current_server = InvalidOid;

/* The limit that the connection to a server has; -1 if none was asked for. */
static Limit *
limit_of(Oid server)
{
	MemoryContext caller;
	Limit	   *limit;
	ListCell   *lc;

	foreach(lc, limits)
		if (((Limit *) lfirst(lc))->server == server)
			return lfirst(lc);
	caller = MemoryContextSwitchTo(TopMemoryContext);
	limit = palloc(sizeof(Limit));
	limit->server = server;
	limit->timeout = -1;
	limit->pooled = false;
	limits = lappend(limits, limit);
	MemoryContextSwitchTo(caller);
	return limit;
}

/*
 * Let no statement at the source take longer.  A connection that other runs of
 * this process have left open is used again; where it has another limit, it ends
 * here.  The environment is set in any case: postgres_fdw may have to connect again.
 */
void
tsync_limit_source(TsyncTable *table, int timeout)
{
	Limit	   *limit = limit_of(table->server);

	Assert(!IsTransactionState());	/* it may end the connection */
	tsync_restrict_source_session(table->label, timeout);
	/* a limit is one of the options that a session begins with */
	if (limit->timeout >= 0 && limit->timeout != timeout && !limit->pooled)
		disconnect(table);
	limit->timeout = current_limit = timeout;
	current_server = table->server;
	tsync_limit_here(0);
	if (limit->pooled)
		tsync_forgo_options(table->server);
}

/* The server whose limit was set last: that of the run. */
Oid
tsync_current_server(void)
{
	return current_server;
}

/* A judge for tsync_try(): has a pooler refused a connection because of its options? */
bool
tsync_refuses_options(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode == ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION && edata->detail &&
		strstr(edata->detail, "unsupported startup parameter") != NULL;
}

/* Does a pooler allow no transactions?  Then the error says what would. */
bool
tsync_name_statement_pooling(ErrorData *edata)
{
	if (strstr(edata->message, "statement pooling mode") == NULL)
		return false;
	edata->sqlerrcode = ERRCODE_FEATURE_NOT_SUPPORTED;
	edata->message = pstrdup("the connection pooler before the source allows no transactions");
	edata->detail = pstrdup("In statement pooling mode what is read for one run would come from different snapshots.");
	edata->hint = pstrdup("Let it use pool_mode = session or transaction for this database or role, or connect to the source directly.");
	return true;
}

/* A connection that was refused: why, and what helps. */
typedef struct Refusal
{
	char	   *why;
	char	   *hint;
} Refusal;

static void
find_hint(void *arg)
{
	Refusal    *refusal = arg;
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(current_server), CStringGetTextDatum(refusal->why)};

	tsync_begin_in(CurrentMemoryContext);
	if (tsync_catalog_execute("SELECT tablesync.connection_hint($1, $2)", lengthof(types), types, values, NULL) == 1)
		refusal->hint = tsync_result_text(0, 1);
	tsync_commit();
}

/* A judge: no hint is worth an error. */
static bool
do_without_hint(ErrorData *edata, void *arg)
{
	return true;
}

/* Say what helps where libpq, postgres_fdw or the source refuses a connection.  Not in a transaction. */
bool
tsync_name_refused_connection(ErrorData *edata)
{
	Refusal		refusal = {.why = psprintf("%s\n%s", edata->message, edata->detail ? edata->detail : "")};

	if (edata->filename == NULL || strcmp(edata->filename, "connection.c") != 0 || !OidIsValid(current_server) ||
		(edata->sqlerrcode != ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION &&
		 edata->sqlerrcode != ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED))
		return false;
	if (tsync_try(find_hint, &refusal, do_without_hint, NULL) && refusal.hint)
		edata->hint = refusal.hint;
	return edata->hint != NULL;
}

/* Was a connection refused because of options that can be left out?  From now on they are. */
bool
tsync_connects_without_options(ErrorData *edata)
{
	if (!tsync_refuses_options(edata, NULL) || getenv("PGOPTIONS") == NULL)
		return false;
	tsync_forgo_options(current_server);
	return true;
}

/* From here on sessions at a server, InvalidOid: whichever, have no options, which a pooler keeps from it. */
void
tsync_forgo_options(Oid server)
{
	if (OidIsValid(server))
		limit_of(server)->pooled = true;
	unsetenv("PGOPTIONS");
	tsync_limit_here(current_limit);
}

/*
 * Call a function in a session that is somebody's own.  A connection that it opens
 * is as it would be without us, but for a mark that tells whether options arrive.
 */
void
tsync_mark_session(void (*function) (void *), void *arg)
{
	volatile bool marked = getenv("PGOPTIONS") == NULL;

	if (marked)
		(void) setenv("PGOPTIONS", MARK, 1);
	PG_TRY();
	{
		function(arg);
	}
	PG_CATCH();
	{
		if (marked)
			unsetenv("PGOPTIONS");
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (marked)
		unsetenv("PGOPTIONS");
}

/* Name the time limit that has ended a statement at the source, and what sets it.  Not in a transaction. */
void
tsync_name_timeout(ErrorData *edata)
{
	const char *parameter = current_limit == tsync_statement_timeout ? "tablesync.statement_timeout" :
	current_limit == tsync_max_snapshot_age ? "tablesync.max_snapshot_age" : "tablesync.chunk_time";

	/* who cancels it there by hand has the same SQLSTATE */
	if (!tsync_source_timed_out(edata) || current_limit <= 0 || strstr(edata->message, "user request") ||
		edata->context == NULL || strstr(edata->context, "remote SQL command") == NULL)
		return;
	edata->detail = psprintf("The source reported: %s. The limit is %d ms, unless the options of the foreign server set another one.",
							 edata->message, current_limit);
	edata->message = pstrdup("a statement took longer at the source than it may");
	tsync_begin_in(CurrentMemoryContext);
	edata->hint = psprintf("Run when the source is less busy; or increase %s, for example by ALTER ROLE %s SET %s = '%d s';", parameter,
						   quote_identifier(GetUserNameFromId(GetUserId(), false)), parameter, current_limit / 500 + 1);
	tsync_commit();
}
