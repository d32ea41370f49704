/*-------------------------------------------------------------------------
 *
 * read.c
 *	  SQL text that reads rows and keys of source and replica.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "query/query.h"

/*
 * The watermark after the rows of some row sets have been applied: below the
 * newest version among them, by as much as transactions usually take.
 */
char *
tsync_sql_watermark(TsyncTable *table, const char *rows, const char *more)
{
	const char *column = table->version->quoted;
	bool		timestamp = table->version->type == TIMESTAMPOID || table->version->type == TIMESTAMPTZOID;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT (pg_catalog.max(v)%s)::pg_catalog.text FROM (SELECT %s AS v FROM %s",
					 timestamp ? " OPERATOR(pg_catalog.-) '" TSYNC_WATERMARK_LAG "'::pg_catalog.interval" : "", column, rows);
	if (more)
		appendStringInfo(&buf, " UNION ALL SELECT %s FROM %s", column, more);
	appendStringInfo(&buf, ") u%s", timestamp ? " WHERE pg_catalog.isfinite(v) AND v OPERATOR(pg_catalog.>) '0001-01-01'" : "");
	return buf.data;
}

/* Whole source rows of a range. */
char *
tsync_sql_range(TsyncTable *table, TsyncRange *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_source_columns(&buf, table);
	appendStringInfo(&buf, " FROM %s WHERE ", table->source_rows);
	tsync_append_range(&buf, table, range);
	tsync_append_grouping(&buf, table);
	return buf.data;
}

/* Only the keys of the source rows of a range. */
char *
tsync_sql_keys_of_range(TsyncTable *table, TsyncRange *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	appendStringInfo(&buf, " FROM %s WHERE ", table->source_rows);
	tsync_append_range(&buf, table, range);
	return buf.data;
}

/*
 * One value whose text has twice as many bytes as it has elements, made at the
 * source of no row; were it a constant, it would be made here.
 */
char *
tsync_sql_large_value(TsyncTable *table, char **bound, int elements)
{
	TsyncRange	nothing = {.lower = bound,.upper = bound};
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT pg_catalog.array_fill(0, ARRAY[(%d OPERATOR(pg_catalog.+) pg_catalog.count(*))::pg_catalog.int4])"
					 " FROM %s WHERE ", elements, table->source_rows);
	tsync_append_range(&buf, table, &nothing);
	return buf.data;
}

/* Whole source rows by key. */
char *
tsync_sql_fetch(TsyncTable *table, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_source_columns(&buf, table);
	appendStringInfo(&buf, " FROM %s WHERE (", table->source_rows);
	tsync_append_key_list(&buf, table, keys);
	appendStringInfoChar(&buf, ')');
	tsync_append_grouping(&buf, table);
	return buf.data;
}

/*
 * Append a query for the bytes that rows of the source take, without its
 * WHERE; false when no column can tell its size.
 */
static bool
append_bytes(StringInfo buf, TsyncTable *table)
{
	bool		known = false;

	appendStringInfoString(buf, "SELECT pg_catalog.count(*), pg_catalog.sum(0::pg_catalog.int8");
	for (int i = 0; i < table->ncolumns; i++)
	{
		StringInfoData size;

		initStringInfo(&size);
		if (!tsync_append_size(&size, &table->columns[i]))
			continue;
		known = true;
		appendStringInfo(buf, " OPERATOR(pg_catalog.+) CASE WHEN %s IS NULL THEN 0 ELSE %s END",
						 table->columns[i].quoted, size.data);
	}
	appendStringInfo(buf, ") FROM %s WHERE ", table->source_rows);
	return known;
}

/* (rows, bytes) of source rows by key; NULL when nobody can tell. */
char *
tsync_sql_bytes_of_keys(TsyncTable *table, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (!append_bytes(&buf, table))
		return NULL;
	tsync_append_key_list(&buf, table, keys);
	return buf.data;
}

/* (rows, bytes) of the source rows after a key (NULL: all) up to another. */
char *
tsync_sql_bytes_of_page(TsyncTable *table, char **after, char **last)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (!append_bytes(&buf, table))
		return NULL;
	if (after)
	{
		tsync_append_bound(&buf, table, 0, table->nkeys, after, ">", ">=", ">");
		appendStringInfoString(&buf, " AND ");
	}
	tsync_append_bound(&buf, table, 0, table->nkeys, last, "<", "<=", "<=");
	return buf.data;
}

/* (rows, bytes) of the source rows of a range; NULL when nobody can tell. */
char *
tsync_sql_bytes_of_range(TsyncTable *table, TsyncRange *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (!append_bytes(&buf, table))
		return NULL;
	tsync_append_range(&buf, table, range);
	return buf.data;
}

/* Those of a list of keys that the source has. */
char *
tsync_sql_find_keys(TsyncTable *table, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	appendStringInfo(&buf, " FROM %s WHERE ", table->source_rows);
	tsync_append_key_list(&buf, table, keys);
	return buf.data;
}

/* (rows, 0) of a list of keys that the source has, whatever the filter. */
char *
tsync_sql_count_keys(TsyncTable *table, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT pg_catalog.count(*), pg_catalog.sum(0::pg_catalog.int8) FROM %s WHERE ", table->source_sql);
	tsync_append_key_list(&buf, table, keys);
	return buf.data;
}

/*
 * The next rows of the source after a key, or only their keys, in the source's
 * key order.  The first "prefix" columns are pinned to those of the key, so
 * that a page of a composite key is a plain index range: the caller goes from
 * the longest prefix to none.
 */
char *
tsync_sql_page(TsyncTable *table, char **after, int prefix, bool keys_only, int64 limit)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	if (keys_only)
		tsync_append_keys(&buf, table, 0, table->nkeys, "");
	else
		tsync_append_source_columns(&buf, table);
	appendStringInfo(&buf, " FROM %s", table->source_rows);
	for (int i = 0; after && i <= prefix; i++)
	{
		appendStringInfoString(&buf, i == 0 ? " WHERE " : " AND ");
		tsync_append_comparison(&buf, table->keys[i], i < prefix ? "=" : ">", after[i]);
	}
	if (!keys_only)
		tsync_append_grouping(&buf, table);
	appendStringInfoString(&buf, " ORDER BY ");
	tsync_append_keys(&buf, table, prefix, table->nkeys, "");
	appendStringInfo(&buf, " LIMIT " INT64_FORMAT, limit);
	return buf.data;
}

/* Append the bound of a range as a row. */
static void
append_row(StringInfo buf, TsyncTable *table, char **bound)
{
	appendStringInfoString(buf, "ROW(");
	for (int i = 0; i < table->nrange; i++)
	{
		appendStringInfoString(buf, i > 0 ? ", " : "");
		tsync_append_literal(buf, bound[i], table->keys[i]->type);
	}
	appendStringInfoChar(buf, ')');
}

/* Append a comparison of the key with the bound of a range, as rows: an index of ours begins there. */
static void
append_row_comparison(StringInfo buf, TsyncTable *table, const char *operator, char **bound)
{
	appendStringInfoString(buf, " AND ROW(");
	tsync_append_keys(buf, table, 0, table->nrange, "");
	appendStringInfo(buf, ") OPERATOR(pg_catalog.%s) ", operator);
	append_row(buf, table, bound);
}

/* The key of the replica so many rows above the lower bound of a chunk. */
char *
tsync_sql_boundary_here(TsyncTable *table, TsyncRange *range, int64 rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nrange, "");
	appendStringInfo(&buf, " FROM %s WHERE true", table->replica_sql);
	if (range->lower)
		append_row_comparison(&buf, table, ">", range->lower);
	if (range->upper)
		append_row_comparison(&buf, table, "<", range->upper);
	appendStringInfoString(&buf, " ORDER BY ");
	tsync_append_keys(&buf, table, 0, table->nrange, "");
	appendStringInfo(&buf, " OFFSET " INT64_FORMAT " LIMIT 1", rows);
	return buf.data;
}

/*
 * The key of the source so many rows further on in a range than the first of those
 * whose first "prefix" columns are those of the lower bound and whose next one is
 * greater: a plain index range, as a page is (tsync_sql_page).
 */
char *
tsync_sql_boundary(TsyncTable *table, TsyncRange *range, int prefix, int64 rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nrange, "");
	appendStringInfo(&buf, " FROM %s WHERE ", table->source_rows);
	for (int i = 0; range->lower && i <= prefix; i++)
	{
		tsync_append_comparison(&buf, table->keys[i], i < prefix ? "=" : ">", range->lower[i]);
		appendStringInfoString(&buf, " AND ");
	}
	if (range->upper)
		tsync_append_bound(&buf, table, 0, table->nrange, range->upper, "<", "<=", "<");
	else
		appendStringInfoString(&buf, "true");
	appendStringInfoString(&buf, " ORDER BY ");
	tsync_append_keys(&buf, table, prefix, table->nrange, "");
	appendStringInfo(&buf, " OFFSET " INT64_FORMAT " LIMIT 1", rows);
	return buf.data;
}

/*
 * The keys of some rows of the source, in its own order, as an array for each
 * key column: of rows that lie at equal distances in its blocks, each at another place
 * in its block.  They are fewer than samples, as far as there is no row at a place.
 * An array is sorted by the aggregate itself, where sessions of ours have no
 * other sort (source/connection.c); what is sorted by first is false of all rows, lest
 * an index be read from end to end for their order.
 */
char *
tsync_sql_sample(TsyncTable *table, int64 blocks, int64 rows_per_block, int samples)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nkeys; i++)
	{
		appendStringInfo(&buf, "%s pg_catalog.array_agg(%s ORDER BY ctid OPERATOR(pg_catalog.=) '(0,0)'::pg_catalog.tid, ",
						 i == 0 ? "SELECT" : ",", table->keys[i]->quoted);
		tsync_append_keys(&buf, table, 0, table->nkeys, "");
		appendStringInfoChar(&buf, ')');
	}
	appendStringInfo(&buf, " FROM %s WHERE ctid OPERATOR(pg_catalog.=) ANY ('{", table->source_rows);
	for (int i = 0; i < samples; i++)
		appendStringInfo(&buf, "%s\"(" INT64_FORMAT "," INT64_FORMAT ")\"", i > 0 ? "," : "",
						 (int64) ((double) blocks * i / samples), i % Max(rows_per_block, 1) + 1);
	appendStringInfoString(&buf, "}'::pg_catalog.tid[])");
	return buf.data;
}

/* Smallest and largest of the replica's integer keys in a chunk. */
char *
tsync_sql_key_span(TsyncTable *table, TsyncRange *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT pg_catalog.min(%s)::pg_catalog.int8, pg_catalog.max(%s)::pg_catalog.int8 FROM %s WHERE ",
					 table->keys[0]->quoted, table->keys[0]->quoted, table->replica_sql);
	tsync_append_range(&buf, table, range);
	return buf.data;
}
