/*-------------------------------------------------------------------------
 *
 * text.c
 *	  Pieces of SQL text that all statements are made of.
 *
 * Every function of query/ returns or appends text in the current memory context
 * and runs nothing.  Identifiers arrive quoted (TsyncColumn.quoted, *_sql); key
 * values are typed literals, because postgres_fdw ships a LIMIT and a comparison
 * for certain only with constants.  Text meant for the source uses only what
 * postgres_fdw ships: no row comparison, no COALESCE, no cast through I/O.
 * tsync_select() refuses a plan that did not ship.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "query/query.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* schema.table, quoted; something readable too if it has been dropped. */
char *
tsync_relation_label(Oid relid)
{
	char	   *name = get_rel_name(relid);
	char	   *schema = name ? get_namespace_name(get_rel_namespace(relid)) : NULL;

	if (schema == NULL)
		return psprintf("with OID %u", relid);
	return quote_qualified_identifier(schema, name);
}

const char *
tsync_relation_sql(TsyncTable *table, TsyncSide side)
{
	return side == TSYNC_SOURCE ? table->source_rows : table->replica_sql;
}

/* Append the columns, separated by commas, each with a prefix such as "s.". */
void
tsync_append_columns(StringInfo buf, TsyncTable *table, const char *prefix)
{
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(buf, "%s%s%s", i > 0 ? ", " : "", prefix, table->columns[i].quoted);
}

void
tsync_append_keys(StringInfo buf, TsyncTable *table, int first, int last, const char *prefix)
{
	for (int i = first; i < last; i++)
		appendStringInfo(buf, "%s%s%s", i > first ? ", " : "", prefix, table->keys[i]->quoted);
}

/* A type's name for a cast that changes nothing: character(n) is bpchar. */
const char *
tsync_type_sql(Oid type)
{
	return format_type_extended(type, -1, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

void
tsync_append_literal(StringInfo buf, const char *value, Oid type)
{
	appendStringInfo(buf, "%s::%s", quote_literal_cstr(value), tsync_type_sql(type));
}

/* Append "column operator value". */
void
tsync_append_comparison(StringInfo buf, TsyncColumn *column, const char *operator, const char *value)
{
	appendStringInfo(buf, "%s OPERATOR(pg_catalog.%s) ", column->quoted, operator);
	tsync_append_literal(buf, value, column->type);
}

/* Append "a.k1 = b.k1 AND a.k2 = b.k2 .." */
void
tsync_append_keys_equal(StringInfo buf, TsyncTable *table, const char *a, const char *b)
{
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%s%s%s OPERATOR(pg_catalog.=) %s%s", i > 0 ? " AND " : "",
						 a, table->keys[i]->quoted, b, table->keys[i]->quoted);
}

/*
 * Append a lexicographic comparison of the key columns from "first" to before
 * "end" with a bound.  The outer, looser comparison repeats what an index can
 * use; so can each part of the OR.
 */
void
tsync_append_bound(StringInfo buf, TsyncTable *table, int first, int end, char **bound,
				   const char *strict, const char *loose, const char *last)
{
	if (first == end - 1)
	{
		tsync_append_comparison(buf, table->keys[first], last, bound[first]);
		return;
	}
	/* no row comparison: postgres_fdw does not ship it */
	tsync_append_comparison(buf, table->keys[first], loose, bound[first]);
	appendStringInfoString(buf, " AND (");
	tsync_append_comparison(buf, table->keys[first], strict, bound[first]);
	appendStringInfoString(buf, " OR (");
	tsync_append_comparison(buf, table->keys[first], "=", bound[first]);
	appendStringInfoString(buf, " AND ");
	tsync_append_bound(buf, table, first + 1, end, bound, strict, loose, last);
	appendStringInfoString(buf, "))");
}

/* May two values be equal that are written differently, like 1.0 and 1.00? */
static bool
has_equal_texts(TsyncColumn *column)
{
	return column->type == NUMERICOID || column->type == BPCHAROID;
}

/*
 * Append the condition that a key is between two bounds whose texts differ in column "first"
 * and that have more columns.  In parts that an index finds each for itself: it
 * would else read all keys that share that column with a bound.  Where the
 * values may be equal all the same, the first part has to end at the upper bound
 * by itself, and the last one must not repeat it.
 */
static void
append_between(StringInfo buf, TsyncTable *table, int first, TsyncRange *range)
{
	TsyncColumn *column = table->keys[first];
	char	   *lower = range->lower[first];
	char	   *upper = range->upper[first];
	bool		may_be_equal = has_equal_texts(column);

	tsync_append_comparison(buf, column, ">=", lower);
	appendStringInfoString(buf, " AND ");
	tsync_append_comparison(buf, column, "<=", upper);
	appendStringInfoString(buf, " AND ((");
	tsync_append_comparison(buf, column, "=", lower);
	appendStringInfoString(buf, " AND ");
	tsync_append_bound(buf, table, first + 1, table->nrange, range->lower, ">", ">=", ">=");
	if (may_be_equal)
	{
		appendStringInfoString(buf, " AND (");
		tsync_append_comparison(buf, column, "<", upper);
		appendStringInfoString(buf, " OR (");
		tsync_append_bound(buf, table, first + 1, table->nrange, range->upper, "<", "<=", "<");
		appendStringInfoString(buf, "))");
	}
	appendStringInfoString(buf, ") OR (");
	tsync_append_comparison(buf, column, ">", lower);
	appendStringInfoString(buf, " AND ");
	tsync_append_comparison(buf, column, "<", upper);
	appendStringInfoString(buf, ") OR (");
	tsync_append_comparison(buf, column, "=", upper);
	appendStringInfoString(buf, " AND ");
	if (may_be_equal)
	{
		tsync_append_comparison(buf, column, ">", lower);
		appendStringInfoString(buf, " AND ");
	}
	tsync_append_bound(buf, table, first + 1, table->nrange, range->upper, "<", "<=", "<");
	appendStringInfoString(buf, "))");
}

/* Append the condition that a row belongs to a chunk, or to a range of blocks. */
void
tsync_append_range(StringInfo buf, TsyncTable *table, TsyncRange *range)
{
	int			first = 0;

	Assert(range->blocks || range->buckets || table->nrange > 0 || (!range->lower && !range->upper));
	if (range->blocks)
	{
		appendStringInfo(buf, "ctid OPERATOR(pg_catalog.>=) '(" INT64_FORMAT ",0)'::pg_catalog.tid",
						 range->first_block);
		if (range->end_block >= 0)
			appendStringInfo(buf, " AND ctid OPERATOR(pg_catalog.<) '(" INT64_FORMAT ",0)'::pg_catalog.tid",
							 range->end_block);
		return;
	}
	if (range->buckets)
	{
		appendStringInfoString(buf, "true");
		if (range->first_block > PG_INT64_MIN)
			appendStringInfo(buf, " AND %s OPERATOR(pg_catalog.>>) %d OPERATOR(pg_catalog.>=) " INT64_FORMAT,
							 table->keys[0]->quoted, TSYNC_BITMAP_SHIFT, range->first_block);
		if (range->end_block < PG_INT64_MAX)
			appendStringInfo(buf, " AND %s OPERATOR(pg_catalog.>>) %d OPERATOR(pg_catalog.<) " INT64_FORMAT,
							 table->keys[0]->quoted, TSYNC_BITMAP_SHIFT, range->end_block);
		return;
	}
	if (range->lower && range->upper)
		for (; first < table->nrange - 1 &&
			 strcmp(range->lower[first], range->upper[first]) == 0; first++)
		{
			tsync_append_comparison(buf, table->keys[first], "=", range->lower[first]);
			appendStringInfoString(buf, " AND ");
		}
	if (range->lower && range->upper && first < table->nrange - 1)
	{
		append_between(buf, table, first, range);
		return;
	}
	if (range->lower)
		tsync_append_bound(buf, table, first, table->nrange, range->lower, ">", ">=", ">=");
	if (range->lower && range->upper)
		appendStringInfoString(buf, " AND ");
	if (range->upper)
		tsync_append_bound(buf, table, first, table->nrange, range->upper, "<", "<=", "<");
	if (!range->lower && !range->upper)
		appendStringInfoString(buf, "true");
}

/*
 * Append the condition that a single-column key is one of a list of keys: more
 * than an index should look for are compared as what no index has.
 */
static void
append_key_array(StringInfo buf, TsyncTable *table, List *keys)
{
	StringInfoData array;
	ListCell   *lc;

	initStringInfo(&array);
	foreach(lc, keys)
	{
		appendStringInfoString(&array, lc == list_head(keys) ? "{\"" : ",\"");
		for (const char *p = ((char **) lfirst(lc))[0]; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&array, '\\');
			appendStringInfoChar(&array, *p);
		}
		appendStringInfoChar(&array, '"');
	}
	appendStringInfoChar(&array, '}');
	appendStringInfo(buf, "%s OPERATOR(pg_catalog.=) ANY (%s::%s[])",
					 list_length(keys) > TSYNC_GROUP_KEYS ? psprintf("(%s OPERATOR(pg_catalog.|) 0::%s)", table->keys[0]->quoted, tsync_type_sql(table->keys[0]->type))
					 : table->keys[0]->quoted,
					 quote_literal_cstr(array.data), tsync_type_sql(table->keys[0]->type));
}

/* Append the condition that a row's key is one of a list of keys. */
void
tsync_append_key_list(StringInfo buf, TsyncTable *table, List *keys)
{
	ListCell   *lc;

	Assert(keys != NIL);		/* of none, all rows would be read */
	if (table->nkeys == 1)
	{
		append_key_array(buf, table, keys);
		return;
	}
	foreach(lc, keys)
	{
		char	  **key = lfirst(lc);

		appendStringInfoString(buf, lc == list_head(keys) ? "(" : ") OR (");
		for (int i = 0; i < table->nkeys; i++)
		{
			if (i > 0)
				appendStringInfoString(buf, " AND ");
			tsync_append_comparison(buf, table->keys[i], "=", key[i]);
		}
	}
	appendStringInfoChar(buf, ')');
}

/* A prefix that no column's name begins with. */
const char *
tsync_unused_prefix(TsyncTable *table)
{
	const char *prefix = "new";

	for (int i = 0; i < table->ncolumns; i++)
		if (strncmp(table->columns[i].name, prefix, strlen(prefix)) == 0)
		{
			prefix = psprintf("%s_", prefix);
			i = -1;				/* look at all of them again */
		}
	return prefix;
}
