/*-------------------------------------------------------------------------
 *
 * image.c
 *	  What a source's catalogs say of a table, asked once in a transaction.
 *
 * postgres_fdw reads under REPEATABLE READ, in a transaction that lasts as long
 * as ours, subtransactions included: there the catalogs read the same
 * whenever they are asked.  So the last answer is kept until our transaction ends,
 * for the role that has asked, whose rights at the source may not be another's.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "process/process.h"
#include "source/source.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

TSYNC_FUNCTION_INFO_V1(tsync_source_image);
TSYNC_FUNCTION_INFO_V1(tsync_newest_xid);
TSYNC_FUNCTION_INFO_V1(tsync_oldest_xid);

/* The last answer, and what was asked. */
typedef struct Image
{
	LocalTransactionId lxid;	/* what the pointers point to is in the memory of this transaction */
	Oid			role;
	Oid			server;
	const char *schema_name;
	const char *table_name;
	bool		whole;
	bool		horizon;
	Datum		answer;
} Image;

static Image last;				/* lxid 0: none */

/* Statements that ask sources, as this process has planned them. */
typedef struct Statement
{
	Oid			server;
	bool		whole;
	bool		horizon;
	SPIPlanPtr	plan;
	bool		answered;		/* else its foreign tables may be others now */
	uint64		used;
} Statement;

static Statement statements[16];
static uint64 statements_used = 0;

static bool
is_last(Image *wanted)
{
	return last.lxid == wanted->lxid && last.role == wanted->role &&
		last.server == wanted->server && (last.whole || !wanted->whole) && (last.horizon || !wanted->horizon) &&
		strcmp(last.schema_name, wanted->schema_name) == 0 && strcmp(last.table_name, wanted->table_name) == 0;
}

/*
 * Plan the statement that asks a source, or find the plan in this process.  What
 * is done at the source is free of charge, as in execute/ship.c; otherwise
 * postgres_fdw may join here.
 */
static Statement *
find_statement(Image *wanted)
{
	Oid			types[] = {OIDOID, BOOLOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(wanted->server), BoolGetDatum(wanted->whole), BoolGetDatum(wanted->horizon)};
	Oid			parameters[] = {TEXTOID, TEXTOID};
	MemoryContext caller = CurrentMemoryContext;
	Statement  *oldest = &statements[0];

	for (Statement *s = statements; s < statements + lengthof(statements); s++)
	{
		/* planning one takes longer than an answer that says more */
		if (s->answered && s->server == wanted->server && s->whole == wanted->whole && (s->horizon || !wanted->horizon))
			return s;
		if ((oldest->answered && !s->answered) || (s->answered == oldest->answered && s->used < oldest->used))
			oldest = s;
	}
	if (oldest->plan != NULL)
		SPI_freeplan(oldest->plan);
	oldest->plan = NULL;
	tsync_catalog_execute("SELECT tablesync.source_image_statement($1, $2, $3)", lengthof(types), types, values, NULL);
	oldest->plan = SPI_prepare_cursor(tsync_result_text(0, 1), lengthof(parameters), parameters, CURSOR_OPT_GENERIC_PLAN);
	MemoryContextSwitchTo(caller);
	if (oldest->plan == NULL || SPI_keepplan(oldest->plan) != 0)
		elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
	oldest->server = wanted->server;
	oldest->whole = wanted->whole;
	oldest->horizon = wanted->horizon;
	return oldest;
}

/* Ask the source; true if that has left out what matters. */
static bool
ask(Image *wanted, Datum *answer)
{
	Datum		values[] = {CStringGetTextDatum(wanted->schema_name), CStringGetTextDatum(wanted->table_name)};
	MemoryContext caller = CurrentMemoryContext;
	Statement  *statement = find_statement(wanted);
	bool		isnull;

	statement->answered = false;
	if (SPI_execute_plan(statement->plan, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "the catalogs of a source gave no answer");
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("the catalogs of a source say too much of %s.%s",
						quote_identifier(wanted->schema_name), quote_identifier(wanted->table_name)),
				 errdetail("It is more than a table can have.")));
	statement->answered = true;
	statement->used = ++statements_used;
	MemoryContextSwitchTo(caller);
	*answer = tsync_result_datum(0, 1, &isnull);
	if (isnull)
		elog(ERROR, "the catalogs of a source gave an empty answer");
	return !wanted->whole && tsync_result_bool(0, 2);
}

/* Ask with settings of our own, whoever's session this is, and for all of it where that matters. */
static Datum
ask_with_settings(Image *wanted)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"}, {"join_collapse_limit", "1"}, {"from_collapse_limit", "1"},
		{"seq_page_cost", "0"}, {"cpu_tuple_cost", "0"}, {"cpu_operator_cost", "0"}, {"jit", "off"}
	};
	int			nestlevel = NewGUCNestLevel();
	Datum		answer;

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (ask(wanted, &answer))
	{
		wanted->whole = true;
		(void) ask(wanted, &answer);
	}
	AtEOXact_GUC(true, nestlevel);
	return answer;
}

/* Is there a connection to a server already, which options come too late for? */
static bool
is_connected(Oid server)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(server)};
	char	   *sql;

	tsync_catalog_execute("SELECT format('SELECT FROM %I.postgres_fdw_get_connections() c WHERE c.server_name = %L', n.nspname, s.srvname)"
						  " FROM pg_foreign_server s, pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
						  " WHERE s.oid = $1 AND e.extname = 'postgres_fdw'", 1, types, values, NULL);
	sql = SPI_processed == 1 ? tsync_result_text(0, 1) : NULL;
	return sql == NULL || tsync_catalog_execute(sql, 0, NULL, NULL, NULL) > 0;
}

/* A question in somebody's own session. */
typedef struct Question
{
	Image	   *image;
	Datum		answer;
} Question;

static void
ask_now(void *arg)
{
	Question   *question = arg;

	question->answer = ask_with_settings(question->image);
}

static void
ask_marked(void *arg)
{
	tsync_mark_session(ask_now, arg);
}

/* A judge that can't mend anything, but says what a pooler refuses in any case. */
static bool
name_refusal(ErrorData *edata, void *arg)
{
	if (tsync_name_statement_pooling(edata))
	{
		FlushErrorState();
		ReThrowError(edata);
	}
	return false;
}

/* Has a pooler refused the mark? */
static bool
judge_mark(ErrorData *edata, void *arg)
{
	return name_refusal(edata, arg) || tsync_refuses_options(edata, NULL);
}

/*
 * Ask in the session of somebody who adds a replica, say: where that is the first
 * time, it shows whether the options of runs would arrive, and if not, it is said.
 */
static Datum
ask_for_user(Image *wanted)
{
	Question	question = {.image = wanted};
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(wanted->server)};
	bool		arrive = false;
	bool		isnull;

	if (is_connected(wanted->server))
	{
		ask_now(&question);
		return question.answer;
	}
	if (tsync_try_inside(ask_marked, &question, judge_mark, NULL))
		arrive = DatumGetBool(GetAttributeByName(DatumGetHeapTupleHeader(question.answer), "options_arrive", &isnull));
	else
		(void) tsync_try_inside(ask_now, &question, name_refusal, NULL);
	if (!arrive)
	{
		tsync_catalog_execute("SELECT tablesync.pooler_hint($1) WHERE NOT EXISTS (SELECT FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o"
							  " WHERE s.oid = $1 AND o.option_name = 'options' AND o.option_value <> '')", 1, types, values, NULL);
		if (SPI_processed == 1)
			ereport(NOTICE,
					(errmsg("a connection pooler keeps the options of our sessions from the source"),
					 errdetail("Runs are read-only there by the rights of their role alone, refuse a table with policies, and can't restrict the planner; they keep time limits from here."),
					 errhint("%s", tsync_result_text(0, 1))));
	}
	return question.answer;
}

/* Ask the source, and keep its answer. */
static void
fetch_image(Image *wanted)
{
	TimestampTz started = GetCurrentTimestamp();
	MemoryContext caller;
	Image		image = *wanted;
	Datum		answer;

	last.lxid = InvalidLocalTransactionId;
	SPI_connect();
	tsync_await_source();
	answer = tsync_is_worker() ? ask_with_settings(&image) : ask_for_user(&image);
	tsync_source_answered();
	tsync_waited_elsewhere += GetCurrentTimestamp() - started;
	caller = MemoryContextSwitchTo(TopTransactionContext);
	image.schema_name = pstrdup(wanted->schema_name);
	image.table_name = pstrdup(wanted->table_name);
	image.answer = datumCopy(answer, false, -1);
	MemoryContextSwitchTo(caller);
	SPI_finish();
	last = image;
}

/* tablesync.source_image(server, schema_name, table_name, whole, horizon) */
Datum
tsync_source_image(PG_FUNCTION_ARGS)
{
	Image		wanted = {
		.lxid = tsync_local_xid(),
		.role = GetUserId(),
		.server = PG_GETARG_OID(0),
		.schema_name = text_to_cstring(PG_GETARG_TEXT_PP(1)),
		.table_name = text_to_cstring(PG_GETARG_TEXT_PP(2)),
		.whole = PG_GETARG_BOOL(3),
		.horizon = PG_GETARG_BOOL(4)
	};

	if (!is_last(&wanted))
		fetch_image(&wanted);
	PG_RETURN_DATUM(datumCopy(last.answer, false, -1));
}

/* The newest of some transaction ids, or the oldest, modulo 2^32 as tablesync.xid_precedes() compares them. */
static Datum
extreme_xid(FunctionCallInfo fcinfo, int sign)
{
	Datum	   *xids;
	bool	   *nulls;
	int			nxids;
	bool		found = false;
	int64		extreme = 0;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &xids, &nulls, &nxids);
	for (int i = 0; i < nxids; i++)
	{
		int64		xid = nulls[i] ? 0 : DatumGetInt64(xids[i]);
		int32		distance = (int32) ((uint32) xid - (uint32) extreme);

		if (nulls[i] || (found && (sign > 0 ? distance <= 0 : distance >= 0)))
			continue;
		extreme = xid;
		found = true;
	}
	if (!found)
		PG_RETURN_NULL();
	PG_RETURN_INT64(extreme);
}

/* tablesync.newest_xid(xids) */
Datum
tsync_newest_xid(PG_FUNCTION_ARGS)
{
	return extreme_xid(fcinfo, 1);
}

/* tablesync.oldest_xid(xids) */
Datum
tsync_oldest_xid(PG_FUNCTION_ARGS)
{
	return extreme_xid(fcinfo, -1);
}
