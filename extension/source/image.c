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
TSYNC_FUNCTION_INFO_V1(tsync_source_images);
TSYNC_FUNCTION_INFO_V1(tsync_source_sorts_bytes);
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
	Datum		names;			/* of some tables, in the place of table_name; 0: of one */
	Datum		answer;
} Image;

static Image last;				/* lxid 0: none */

/* Answers about some tables at once, of this transaction; see tsync_source_images(). */
static LocalTransactionId images_lxid;
static List *images = NIL;

/* Statements that ask sources, as this process has planned them. */
typedef struct Statement
{
	Oid			server;
	bool		whole;
	bool		horizon;
	bool		several;
	SPIPlanPtr	plan;
	bool		answered;		/* else its foreign tables may be others now */
	uint64		used;
} Statement;

static Statement statements[16];
static uint64 statements_used = 0;

/* Does an answer tell what is wanted? */
static bool
tells(Image *image, Image *wanted)
{
	return image->lxid == wanted->lxid && image->role == wanted->role &&
		image->server == wanted->server && (image->whole || !wanted->whole) && (image->horizon || !wanted->horizon) &&
		strcmp(image->schema_name, wanted->schema_name) == 0 && strcmp(image->table_name, wanted->table_name) == 0;
}

/* The answer that was given before in this transaction; NULL if there is none. */
static Image *
find_image(Image *wanted)
{
	ListCell   *lc;

	if (tells(&last, wanted))
		return &last;
	if (images_lxid == wanted->lxid)
		foreach(lc, images)
			if (tells(lfirst(lc), wanted))
				return lfirst(lc);
	return NULL;
}

/*
 * Plan the statement that asks a source, or find the plan in this process.  What
 * is done at the source is free of charge, as in execute/ship.c; otherwise
 * postgres_fdw may join here.
 */
static Statement *
find_statement(Image *wanted)
{
	bool		several = wanted->names != (Datum) 0;
	Oid			types[] = {OIDOID, BOOLOID, BOOLOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(wanted->server), BoolGetDatum(wanted->whole), BoolGetDatum(wanted->horizon), BoolGetDatum(several)};
	Oid			parameters[] = {TEXTOID, several ? TEXTARRAYOID : TEXTOID};
	MemoryContext caller = CurrentMemoryContext;
	Statement  *oldest = &statements[0];

	for (Statement *s = statements; s < statements + lengthof(statements); s++)
	{
		/* planning one takes longer than an answer that says more */
		if (s->answered && s->server == wanted->server && s->several == several && s->whole == wanted->whole && (s->horizon || !wanted->horizon))
			return s;
		if ((oldest->answered && !s->answered) || (s->answered == oldest->answered && s->used < oldest->used))
			oldest = s;
	}
	if (oldest->plan != NULL)
		SPI_freeplan(oldest->plan);
	oldest->plan = NULL;
	tsync_catalog_execute("SELECT tablesync.source_image_statement($1, $2, $3, $4)", lengthof(types), types, values, NULL);
	oldest->plan = SPI_prepare_cursor(tsync_result_text(0, 1), lengthof(parameters), parameters, CURSOR_OPT_GENERIC_PLAN);
	MemoryContextSwitchTo(caller);
	if (oldest->plan == NULL || SPI_keepplan(oldest->plan) != 0)
		elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
	oldest->server = wanted->server;
	oldest->whole = wanted->whole;
	oldest->horizon = wanted->horizon;
	oldest->several = several;
	return oldest;
}

/* Run the statement that asks the source; its rows are in SPI_tuptable, no more than "limit" of them. */
static void
query_source(Image *wanted, int limit)
{
	Datum		values[] = {CStringGetTextDatum(wanted->schema_name),
	wanted->names != (Datum) 0 ? wanted->names : CStringGetTextDatum(wanted->table_name)};
	MemoryContext caller = CurrentMemoryContext;
	Statement  *statement = find_statement(wanted);

	statement->answered = false;
	if (SPI_execute_plan(statement->plan, values, NULL, false, limit) != SPI_OK_SELECT)
		elog(ERROR, "the catalogs of a source gave no answer");
	statement->answered = true;
	statement->used = ++statements_used;
	MemoryContextSwitchTo(caller);
}

/* Ask the source for a table; true if that has left out what matters. */
static bool
ask(Image *wanted)
{
	bool		isnull;

	query_source(wanted, 2);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("the catalogs of a source say too much of %s.%s",
						quote_identifier(wanted->schema_name), quote_identifier(wanted->table_name)),
				 errdetail("It is more than a table can have.")));
	wanted->answer = tsync_result_datum(0, 1, &isnull);
	if (isnull)
		elog(ERROR, "the catalogs of a source gave an empty answer");
	return !wanted->whole && tsync_result_bool(0, 2);
}

/* Keep what the source has said of some tables; those of which it has more to say are asked for one by one. */
static void
ask_for_several(Image *wanted)
{
	MemoryContext caller;
	ArrayType  *names = DatumGetArrayTypeP(wanted->names);

	query_source(wanted, ArrayGetNItems(ARR_NDIM(names), ARR_DIMS(names)) + 1);
	caller = MemoryContextSwitchTo(TopTransactionContext);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		answer = tsync_result_datum(i, 1, &isnull);
		char	   *name = tsync_result_text(i, 3);
		Image	   *image;

		if (isnull || name == NULL)
			continue;
		image = palloc(sizeof(Image));
		*image = *wanted;
		image->schema_name = pstrdup(wanted->schema_name);
		image->table_name = pstrdup(name);
		image->answer = datumCopy(answer, false, -1);
		images = lappend(images, image);
	}
	MemoryContextSwitchTo(caller);
}

/* Ask with settings of our own, whoever's session this is, and for all of it where that matters. */
static void
ask_with_settings(Image *wanted)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"}, {"join_collapse_limit", "1"}, {"from_collapse_limit", "1"},
		{"seq_page_cost", "0"}, {"cpu_tuple_cost", "0"}, {"cpu_operator_cost", "0"}, {"jit", "off"}
	};
	int			nestlevel = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (wanted->names != (Datum) 0)
		ask_for_several(wanted);
	else if (ask(wanted))
	{
		wanted->whole = true;
		(void) ask(wanted);
	}
	AtEOXact_GUC(true, nestlevel);
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

static void
ask_now(void *arg)
{
	ask_with_settings(arg);
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
static void
ask_for_user(Image *wanted)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(wanted->server)};
	bool		arrive = false;
	bool		isnull;

	if (is_connected(wanted->server))
	{
		ask_now(wanted);
		return;
	}
	if (tsync_try_inside(ask_marked, wanted, judge_mark, NULL))
		arrive = DatumGetBool(GetAttributeByName(DatumGetHeapTupleHeader(wanted->answer), "options_arrive", &isnull));
	else
		(void) tsync_try_inside(ask_now, wanted, name_refusal, NULL);
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
}

/* Ask the source, in the session of a worker or of a user, and count how long that takes. */
static void
ask_source(Image *wanted)
{
	TimestampTz started = GetCurrentTimestamp();

	tsync_await_source();
	if (tsync_is_worker() || wanted->names != (Datum) 0)
		ask_with_settings(wanted);
	else
		ask_for_user(wanted);
	tsync_source_answered();
	tsync_waited_elsewhere += GetCurrentTimestamp() - started;
}

/* Ask the source, and keep its answer. */
static void
fetch_image(Image *wanted)
{
	MemoryContext caller;
	Image		image = *wanted;

	last.lxid = InvalidLocalTransactionId;
	SPI_connect();
	ask_source(&image);
	caller = MemoryContextSwitchTo(TopTransactionContext);
	image.schema_name = pstrdup(wanted->schema_name);
	image.table_name = pstrdup(wanted->table_name);
	image.answer = datumCopy(image.answer, false, -1);
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

	Image	   *image = find_image(&wanted);

	if (image == NULL)
	{
		fetch_image(&wanted);
		image = &last;
	}
	PG_RETURN_DATUM(datumCopy(image->answer, false, -1));
}

/* tablesync.source_images(server, schema_name, names): ask for some tables at once, for whoever asks for one of them later. */
Datum
tsync_source_images(PG_FUNCTION_ARGS)
{
	Image		wanted = {
		.lxid = tsync_local_xid(),
		.role = GetUserId(),
		.server = PG_GETARG_OID(0),
		.schema_name = text_to_cstring(PG_GETARG_TEXT_PP(1)),
		.names = PG_GETARG_DATUM(2),
		.whole = true
	};
	int			before;

	if (images_lxid != wanted.lxid)
		images = NIL;			/* it was in the memory of another transaction */
	images_lxid = wanted.lxid;
	before = list_length(images);
	SPI_connect();
	ask_source(&wanted);
	SPI_finish();
	PG_RETURN_INT32(list_length(images) - before);
}

/* tablesync.source_sorts_bytes(server): the last answer is kept until the transaction ends. */
Datum
tsync_source_sorts_bytes(PG_FUNCTION_ARGS)
{
	static LocalTransactionId lxid;
	static Oid	role;
	static Oid	server;
	static bool sorts_bytes;

	if (lxid != tsync_local_xid() || role != GetUserId() || server != PG_GETARG_OID(0))
	{
		lxid = InvalidLocalTransactionId;
		SPI_connect();
		tsync_catalog_execute_oid("SELECT tablesync.ask_sorting($1)", PG_GETARG_OID(0));
		sorts_bytes = tsync_result_bool(0, 1);
		SPI_finish();
		lxid = tsync_local_xid();
		role = GetUserId();
		server = PG_GETARG_OID(0);
	}
	PG_RETURN_BOOL(sorts_bytes);
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
