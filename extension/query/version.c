/*-------------------------------------------------------------------------
 *
 * version.c
 *	  SQL text about version columns.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "query/query.h"
#include "utils/builtins.h"
#include "utils/typcache.h"

/*
 * Two questions about a version column.  Does it have an order here, so that one
 * version is older than another (text has one, uuid too)?  And is that order the
 * source's, with a maximum that means something, so that what is above it there
 * is new?  That text has not: its order depends on a collation; nor has uuid.
 */
bool
tsync_has_order(TsyncColumn *version)
{
	return OidIsValid(lookup_type_cache(version->type, TYPECACHE_LT_OPR)->lt_opr);
}

bool
tsync_has_maximum(TsyncColumn *version)
{
	return tsync_orders_alike(version->type) && version->type != UUIDOID;
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

/* The newest version among the staged rows and the one seen so far. */
char *
tsync_sql_newest_version(TsyncTable *table, const char *seen)
{
	TsyncColumn *version = table->version;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT v FROM (SELECT %s AS v FROM %s UNION ALL SELECT %s FROM %s",
					 version->quoted, TSYNC_INSERTED,
					 version->quoted, TSYNC_UPDATED);
	if (seen)
	{
		appendStringInfoString(&buf, " UNION ALL SELECT ");
		tsync_append_literal(&buf, seen, version->type);
	}
	appendStringInfoString(&buf, ") s WHERE ");
	append_is_stamp(&buf, version, "v");
	appendStringInfoString(&buf, " ORDER BY v DESC LIMIT 1");
	return buf.data;
}

/* Append that no row of a relation is as new as b.v; the caller ends the subquery. */
static void
append_none_as_new(StringInfo buf, TsyncTable *table, const char *relation)
{
	appendStringInfo(buf, " AND NOT EXISTS (SELECT FROM %s x WHERE x.%s OPERATOR(pg_catalog.>=) b.v",
					 relation, table->version->quoted);
}

/*
 * The newest version that a staged update would set back, if no row of the
 * source is as new.  Rows of the replica that are not staged are as they are
 * at the source.
 */
char *
tsync_sql_set_back(TsyncTable *table, const char *seen)
{
	const char *version = table->version->quoted;
	char	   *current = psprintf("r.%s", version);
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT b.v FROM (SELECT r.%s AS v FROM %s s JOIN %s r ON ",
					 version, TSYNC_UPDATED, table->replica_sql);
	tsync_append_keys_equal(&buf, table, "r.", "s.");
	appendStringInfo(&buf, " WHERE s.%s OPERATOR(pg_catalog.<) %s AND ", version, current);
	append_is_stamp(&buf, table->version, current);
	append_not_from_the_future(&buf, table->version, current);
	appendStringInfo(&buf, " AND %s OPERATOR(pg_catalog.<=) ", current);
	tsync_append_literal(&buf, seen, table->version->type);
	appendStringInfo(&buf, " ORDER BY %s DESC LIMIT 1) b WHERE true", current);
	append_none_as_new(&buf, table, TSYNC_UPDATED);
	appendStringInfoChar(&buf, ')');
	append_none_as_new(&buf, table, TSYNC_INSERTED);
	appendStringInfoChar(&buf, ')');
	append_none_as_new(&buf, table, table->replica_sql);
	appendStringInfo(&buf, " AND NOT EXISTS (SELECT FROM %s s WHERE ", TSYNC_UPDATED);
	tsync_append_keys_equal(&buf, table, "x.", "s.");
	appendStringInfo(&buf, ") AND NOT EXISTS (SELECT FROM %s s WHERE ", TSYNC_DELETED);
	tsync_append_keys_equal(&buf, table, "x.", "s.");
	appendStringInfoString(&buf, "))");
	return buf.data;
}
