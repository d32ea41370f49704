/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  What keeps a run from deleting rows that are not really gone.
 *
 * A run stops before it changes anything when too many rows would be deleted,
 * or when the source has gone back in time.  Two things prove the latter:
 *
 * - The source's transaction counter is behind where the last successful run
 *	 saw it (guard.sql).  It is certain as long as the server has not caught
 *	 up meanwhile, nor gone on for 2^31 transactions; so it counts for a day.
 *
 * - A row that is still there has an older version than it had, and no row of
 *	 the source is as new as that row was.  A newest version that has merely
 *	 decreased would prove nothing: somebody may have deleted the newest rows.
 *	 Nor would one row with an older stamp, as clock skew or the late commit
 *	 of a long transaction leave behind.  The version must be one that a run has
 *	 seen at the source, lest it be somebody's who wrote to the replica.
 *
 * The statements here join the stage with the replica; the source is not
 * asked.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

/* Deletes below this number are never held back. */
#define GUARD_MIN_DELETES 1000

/* Run a query that returns at most one text; NULL if there is none. */
static char *
select_text(const char *sql, int nargs, Oid *types, Datum *values)
{
	MemoryContext caller = CurrentMemoryContext;

	if (SPI_execute_with_args(sql, nargs, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed: %s", SPI_result_code_string(SPI_result));
	MemoryContextSwitchTo(caller);
	return SPI_processed > 0 ? SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1) : NULL;
}

/* Ask the source how far it has come; part of the transaction that opens it. */
void
tsync_read_source_time(TsyncRun *run)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(run->replica_oid)};
	HeapTuple	row;
	TupleDesc	desc;
	char	   *horizon;

	tsync_expect_source(true);
	horizon = select_text("SELECT horizon, newest_version, went_back"
						  " FROM tablesync.source_time($1::regclass)", 1, types, values);
	tsync_expect_source(false);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	run->source_horizon = horizon ? strtoll(horizon, NULL, 10) : 0;
	run->newest_version = SPI_getvalue(row, desc, 2);
	run->went_back = strcmp(SPI_getvalue(row, desc, 3), "t") == 0;
	SPI_freetuptable(SPI_tuptable);
}

/* Stop before a large part of the replica is deleted. */
static void
check_delete_guard(TsyncRun *run)
{
	int64		deletes = run->stage->deleted.count;
	int64		rows = 0;
	ListCell   *lc;

	foreach(lc, run->chunks)
		rows += ((TsyncChunk *) lfirst(lc))->replica.rows;
	if (deletes < GUARD_MIN_DELETES || deletes <= rows * run->replica->max_delete_fraction)
		return;
	ereport(ERROR,
			(errcode(TSYNC_ERRCODE_DELETE_GUARD),
			 errmsg("run would delete " INT64_FORMAT " of " INT64_FORMAT " rows of replica %s",
					deletes, rows, run->replica->label),
			 errdetail("max_delete_fraction allows %g; nothing was changed.",
					   run->replica->max_delete_fraction),
			 errhint("If the rows are really gone at the source, use tablesync_run(%s, force => true).",
					 quote_literal_cstr(run->replica->label))));
}

/* Does the version column have an order, so that one version can be the newest? */
static bool
has_order(TsyncColumn *version)
{
	return OidIsValid(lookup_type_cache(version->type, TYPECACHE_LT_OPR)->lt_opr);
}

/* Append that a version is neither NULL nor infinite. */
static void
append_is_stamp(StringInfo buf, TsyncColumn *version, const char *expression)
{
	Oid			type = version->type;

	if (type == TIMESTAMPOID || type == TIMESTAMPTZOID || type == DATEOID)
		appendStringInfo(buf, "pg_catalog.isfinite(%s)", expression);
	else
		appendStringInfo(buf, "%s IS NOT NULL", expression);
}

/*
 * Append that a version is not ahead of the clock: one that was, and has been
 * set right, is no sign of a source that has gone back.  Timestamps without time
 * zone may be those of any zone.
 */
static void
append_not_from_the_future(StringInfo buf, TsyncColumn *version, const char *expression)
{
	Oid			type = version->type;

	if (type != TIMESTAMPOID && type != TIMESTAMPTZOID && type != DATEOID)
		return;
	appendStringInfo(buf, " AND %s OPERATOR(pg_catalog.<=) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) '%s'::pg_catalog.interval)::%s",
					 expression, type == TIMESTAMPTZOID ? "1 minute" : "1 day",
					 format_type_extended(type, -1, FORMAT_TYPE_FORCE_QUALIFY));
}

static void
append_version_literal(StringInfo buf, TsyncColumn *version, const char *value)
{
	appendStringInfo(buf, "%s::%s", quote_literal_cstr(value),
					 format_type_extended(version->type, -1,
										  FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY));
}

static void
append_keys_equal(StringInfo buf, TsyncReplica *rep, const char *a, const char *b)
{
	for (int i = 0; i < rep->nkeys; i++)
		appendStringInfo(buf, "%s%s.%s OPERATOR(pg_catalog.=) %s.%s", i > 0 ? " AND " : "",
						 a, rep->keys[i]->quoted, b, rep->keys[i]->quoted);
}

/* The newest version among the staged rows and the one seen so far. */
static char *
sql_newest_version(TsyncRun *run)
{
	TsyncColumn *version = run->replica->version;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT v FROM (SELECT %s AS v FROM %s UNION ALL SELECT %s FROM %s",
					 version->quoted, run->stage->inserted.name,
					 version->quoted, run->stage->updated.name);
	if (run->newest_version)
	{
		appendStringInfoString(&buf, " UNION ALL SELECT ");
		append_version_literal(&buf, version, run->newest_version);
	}
	appendStringInfoString(&buf, ") s WHERE ");
	append_is_stamp(&buf, version, "v");
	appendStringInfoString(&buf, " ORDER BY v DESC LIMIT 1");
	return buf.data;
}

/* Append that no row of a relation is as new as b.v; the caller ends the subquery. */
static void
append_none_as_new(StringInfo buf, TsyncRun *run, const char *relation)
{
	appendStringInfo(buf, " AND NOT EXISTS (SELECT FROM %s x WHERE x.%s OPERATOR(pg_catalog.>=) b.v",
					 relation, run->replica->version->quoted);
}

/*
 * The newest version that a staged update would set back, if no row of the
 * source is as new.  Rows of the replica that are not staged are as they are
 * at the source.
 */
static char *
sql_set_back(TsyncRun *run)
{
	TsyncReplica *rep = run->replica;
	TsyncStage *stage = run->stage;
	const char *version = rep->version->quoted;
	char	   *current = psprintf("r.%s", version);
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT b.v FROM (SELECT r.%s AS v FROM %s s JOIN %s r ON ",
					 version, stage->updated.name, rep->replica_sql);
	append_keys_equal(&buf, rep, "r", "s");
	appendStringInfo(&buf, " WHERE s.%s OPERATOR(pg_catalog.<) %s AND ", version, current);
	append_is_stamp(&buf, rep->version, current);
	append_not_from_the_future(&buf, rep->version, current);
	appendStringInfo(&buf, " AND %s OPERATOR(pg_catalog.<=) ", current);
	append_version_literal(&buf, rep->version, run->newest_version);
	appendStringInfo(&buf, " ORDER BY %s DESC LIMIT 1) b WHERE true", current);
	append_none_as_new(&buf, run, stage->updated.name);
	appendStringInfoChar(&buf, ')');
	append_none_as_new(&buf, run, stage->inserted.name);
	appendStringInfoChar(&buf, ')');
	append_none_as_new(&buf, run, rep->replica_sql);
	appendStringInfo(&buf, " AND NOT EXISTS (SELECT FROM %s s WHERE ", stage->updated.name);
	append_keys_equal(&buf, rep, "x", "s");
	appendStringInfo(&buf, ") AND NOT EXISTS (SELECT FROM %s s WHERE ", stage->deleted.name);
	append_keys_equal(&buf, rep, "x", "s");
	appendStringInfoString(&buf, "))");
	return buf.data;
}

/*
 * Would rows that are staged for update lose a version newer than any that the
 * source has?  Keeps the newest version seen up to date by the way: where it
 * grows, which is what it mostly does, there is no need to look further.
 */
static bool
look_at_versions(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	TsyncStage *stage = run->stage;
	bool		set_back = false;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	if (has_order(run->replica->version))
	{
		char	   *newest;

		tsync_rowset_register(&stage->inserted);
		tsync_rowset_register(&stage->updated);
		tsync_rowset_register(&stage->deleted);
		newest = select_text(sql_newest_version(run), 0, NULL, NULL);
		if (newest && run->newest_version && strcmp(newest, run->newest_version) == 0 &&
			stage->deleted.count > 0 && stage->updated.count > 0)
			set_back = select_text(sql_set_back(run), 0, NULL, NULL) != NULL;
		run->newest_version = newest;
	}
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	return set_back;
}

static void
refuse_to_go_back(TsyncRun *run, const char *evidence)
{
	ereport(ERROR,
			(errcode(TSYNC_ERRCODE_SOURCE_WENT_BACK),
			 errmsg("the source of replica %s has gone back in time", run->replica->label),
			 errdetail("%s " INT64_FORMAT " rows would be deleted and " INT64_FORMAT " updated; nothing was changed.",
					   evidence, run->stage->deleted.count, run->stage->updated.count),
			 errhint("A standby that lags will catch up. If the source was failed over, restored or moved for good, use tablesync_run(%s, force => true); until then the replica keeps the rows that the source has lost.",
					 quote_literal_cstr(run->replica->label))));
}

/*
 * Stop a run whose stage can't be trusted, unless it was forced; after SCAN,
 * outside of a transaction.
 */
void
tsync_check_guards(TsyncRun *run)
{
	TsyncStage *stage = run->stage;
	bool		set_back = false;

	if (run->replica->version && stage->inserted.count + stage->updated.count > 0)
		set_back = look_at_versions(run);
	if (run->force)
		return;
	if (run->went_back && stage->deleted.count + stage->updated.count > 0)
		refuse_to_go_back(run, "Its transaction counter is behind where the last successful run saw it.");
	if (set_back)
		refuse_to_go_back(run, "Rows have older versions than they had, and no row is as new as they were.");
	check_delete_guard(run);
}
