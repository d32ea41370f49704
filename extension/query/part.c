/*-------------------------------------------------------------------------
 *
 * part.c
 *	  SQL text for a part of a source: filtered rows, and columns that it computes.
 *
 * Statements for the source read a subquery that looks like a table.  The
 * planner resolves it, so that what they ask for ships as if they had the filter
 * and the expressions themselves.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "query/query.h"
#include "utils/lsyscache.h"

/* What statements read instead of the source's foreign table. */
static const char *
computed_rows(TsyncTable *table, const char *relation)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "(SELECT ctid");
	for (int i = 0; i < table->ncolumns; i++)
		if (table->columns[i].expression != NULL)
			appendStringInfo(&buf, ", (%s) AS %s", table->columns[i].expression, table->columns[i].quoted);
		else
			appendStringInfo(&buf, ", %s", table->columns[i].quoted);
	appendStringInfo(&buf, " FROM %s", relation);
	if (table->filter != NULL)
		appendStringInfo(&buf, " WHERE (%s)", table->filter);
	appendStringInfoString(&buf, ") part");
	return buf.data;
}

/*
 * The part of a foreign table over the source that the replica is a copy of, for
 * FROM.  "relation" is the one with all columns, or that with xmin.
 */
const char *
tsync_part_sql(TsyncTable *table, const char *relation)
{
	if (relation == table->source_sql)
		for (int i = 0; i < table->ncolumns; i++)
			if (table->columns[i].expression != NULL)
				return computed_rows(table, relation);
	return table->filter == NULL ? relation
		: psprintf("(SELECT ctid, * FROM %s WHERE (%s)) part", relation, table->filter);
}

/* Has a type a maximum that is one of the values, bit by bit? */
static bool
has_maximum(Oid type)
{
	static const Oid types[] = {
		INT2OID, INT4OID, INT8OID, FLOAT4OID, FLOAT8OID, NUMERICOID, TEXTOID, VARCHAROID, BPCHAROID, DATEOID, TIMEOID, TIMETZOID,
		TIMESTAMPOID, TIMESTAMPTZOID, INTERVALOID, CASHOID, OIDOID, INETOID
	};

	for (int i = 0; i < lengthof(types); i++)
		if (types[i] == type)
			return true;
	return type_is_array(type);
}

/*
 * Append a column as the source is to return it.  postgres_fdw lets the source
 * compute expressions only where it aggregates; so where there are some, each row
 * is a group of its own, and its other columns are aggregates of one value.
 */
void
tsync_append_source_column(StringInfo buf, TsyncTable *table, TsyncColumn *column)
{
	if (!tsync_is_computed(table) || tsync_is_key(table, column))
		appendStringInfoString(buf, column->quoted);
	else if (column->constant)
		appendStringInfo(buf, "(%s)", column->expression);
	else if (has_maximum(column->type))
		appendStringInfo(buf, "pg_catalog.max(%s)%s", column->quoted, column->type == VARCHAROID ? "::pg_catalog.varchar" : "");
	else
		appendStringInfo(buf, "(pg_catalog.array_agg(%s))[1]", column->quoted);
}

/* Append all columns as the source is to return them. */
void
tsync_append_source_columns(StringInfo buf, TsyncTable *table)
{
	for (int i = 0; i < table->ncolumns; i++)
	{
		appendStringInfoString(buf, i > 0 ? ", " : "");
		tsync_append_source_column(buf, table, &table->columns[i]);
	}
}

/* Append what makes a group of each row, after the WHERE of a statement with such columns. */
void
tsync_append_grouping(StringInfo buf, TsyncTable *table)
{
	if (!tsync_is_computed(table))
		return;
	appendStringInfoString(buf, " GROUP BY ");
	tsync_append_keys(buf, table, 0, table->nkeys, "");
}
