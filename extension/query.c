/*-------------------------------------------------------------------------
 *
 * query.c
 *	  The only place where SQL text for source and replica is built.
 *
 * Every function returns text in the current memory context and runs
 * nothing.  Identifiers arrive quoted (TsyncColumn.quoted, *_sql); key values
 * are typed literals, because postgres_fdw ships a LIMIT and a comparison for
 * certain only with constants.  Text meant for the source uses only what
 * postgres_fdw ships: no row comparison, no COALESCE, no cast through I/O.
 * tsync_select() refuses a plan that did not ship.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"
#include "query.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

const char *
tsync_relation_sql(TsyncReplica *rep, TsyncSide side)
{
	return side == TSYNC_SOURCE ? rep->source_sql : rep->replica_sql;
}

bool
tsync_is_key(TsyncReplica *rep, TsyncColumn *column)
{
	for (int i = 0; i < rep->nkeys; i++)
		if (rep->keys[i] == column)
			return true;
	return false;
}

/* A replica as if it had only its key columns, with room for the others. */
TsyncReplica *
tsync_only_keys(TsyncReplica *rep)
{
	TsyncReplica *part = palloc(sizeof(TsyncReplica));

	*part = *rep;
	part->columns = palloc0(rep->ncolumns * sizeof(TsyncColumn));
	part->keys = palloc0(rep->nkeys * sizeof(TsyncColumn *));
	part->ncolumns = 0;
	for (int i = 0; i < rep->nkeys; i++)
	{
		part->columns[part->ncolumns] = *rep->keys[i];
		part->keys[i] = &part->columns[part->ncolumns++];
	}
	return part;
}

/* Append the columns, separated by commas, each with a prefix such as "s.". */
void
tsync_append_columns(StringInfo buf, TsyncReplica *rep, const char *prefix)
{
	for (int i = 0; i < rep->ncolumns; i++)
		appendStringInfo(buf, "%s%s%s", i > 0 ? ", " : "", prefix, rep->columns[i].quoted);
}

void
tsync_append_keys(StringInfo buf, TsyncReplica *rep, int first, int last, const char *prefix)
{
	for (int i = first; i < last; i++)
		appendStringInfo(buf, "%s%s%s", i > first ? ", " : "", prefix, rep->keys[i]->quoted);
}

/* A type's name for a cast that changes nothing: character(n) is bpchar. */
const char *
tsync_type_sql(Oid type)
{
	return format_type_extended(type, -1, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

static void
append_literal(StringInfo buf, const char *value, Oid type)
{
	appendStringInfo(buf, "%s::%s", quote_literal_cstr(value), tsync_type_sql(type));
}

/* Append "column operator value". */
void
tsync_append_comparison(StringInfo buf, TsyncColumn *column, const char *operator, const char *value)
{
	appendStringInfo(buf, "%s OPERATOR(pg_catalog.%s) ", column->quoted, operator);
	append_literal(buf, value, column->type);
}

/* Append "a.k1 = b.k1 AND a.k2 = b.k2 .." */
void
tsync_append_keys_equal(StringInfo buf, TsyncReplica *rep, const char *a, const char *b)
{
	for (int i = 0; i < rep->nkeys; i++)
		appendStringInfo(buf, "%s%s%s OPERATOR(pg_catalog.=) %s%s", i > 0 ? " AND " : "",
						 a, rep->keys[i]->quoted, b, rep->keys[i]->quoted);
}

/*
 * Append a lexicographic comparison of the key columns from "first" to before
 * "end" with a bound.  The outer, looser comparison repeats what an index can
 * use.
 */
static void
append_bound(StringInfo buf, TsyncReplica *rep, int first, int end, char **bound,
			 const char *strict, const char *loose, const char *last)
{
	if (first == end - 1)
	{
		tsync_append_comparison(buf, rep->keys[first], last, bound[first]);
		return;
	}
	tsync_append_comparison(buf, rep->keys[first], loose, bound[first]);
	appendStringInfoString(buf, " AND (");
	tsync_append_comparison(buf, rep->keys[first], strict, bound[first]);
	appendStringInfoString(buf, " OR (");
	append_bound(buf, rep, first + 1, end, bound, strict, loose, last);
	appendStringInfoString(buf, "))");
}

/* Append the condition that a row belongs to a chunk, or to a range of blocks. */
void
tsync_append_range(StringInfo buf, TsyncReplica *rep, TsyncChunk *chunk, bool above_lower)
{
	int			first = 0;

	if (chunk->blocks)
	{
		appendStringInfo(buf, "ctid OPERATOR(pg_catalog.>=) '(" INT64_FORMAT ",0)'::pg_catalog.tid",
						 chunk->first_block);
		if (chunk->end_block >= 0)
			appendStringInfo(buf, " AND ctid OPERATOR(pg_catalog.<) '(" INT64_FORMAT ",0)'::pg_catalog.tid",
							 chunk->end_block);
		return;
	}
	if (chunk->lower && chunk->upper)
		for (; first < rep->nrange - 1 &&
			 strcmp(chunk->lower[first], chunk->upper[first]) == 0; first++)
		{
			tsync_append_comparison(buf, rep->keys[first], "=", chunk->lower[first]);
			appendStringInfoString(buf, " AND ");
		}
	if (chunk->lower)
		append_bound(buf, rep, first, rep->nrange, chunk->lower, ">", ">=", above_lower ? ">" : ">=");
	if (chunk->lower && chunk->upper)
		appendStringInfoString(buf, " AND ");
	if (chunk->upper)
		append_bound(buf, rep, first, rep->nrange, chunk->upper, "<", "<=", "<");
	if (!chunk->lower && !chunk->upper)
		appendStringInfoString(buf, "true");
}

/* Append the condition that a single-column key is one of a list of keys. */
static void
append_key_array(StringInfo buf, TsyncReplica *rep, List *keys)
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
	appendStringInfo(buf, "%s OPERATOR(pg_catalog.=) ANY (%s::%s[])", rep->keys[0]->quoted,
					 quote_literal_cstr(array.data), tsync_type_sql(rep->keys[0]->type));
}

/* Append the condition that a row's key is one of a list of keys. */
void
tsync_append_key_list(StringInfo buf, TsyncReplica *rep, List *keys)
{
	ListCell   *lc;

	if (rep->nkeys == 1)
	{
		append_key_array(buf, rep, keys);
		return;
	}
	foreach(lc, keys)
	{
		char	  **key = lfirst(lc);

		appendStringInfoString(buf, lc == list_head(keys) ? "(" : ") OR (");
		for (int i = 0; i < rep->nkeys; i++)
		{
			if (i > 0)
				appendStringInfoString(buf, " AND ");
			tsync_append_comparison(buf, rep->keys[i], "=", key[i]);
		}
	}
	appendStringInfoChar(buf, ')');
}

/*
 * The watermark after the rows of some row sets have been applied: below the
 * newest version among them, by as much as transactions usually take.
 */
char *
tsync_sql_watermark(TsyncReplica *rep, const char *rows, const char *more)
{
	const char *column = rep->version->quoted;
	bool		timestamp = rep->version->type == TIMESTAMPOID || rep->version->type == TIMESTAMPTZOID;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT (pg_catalog.max(v)%s)::pg_catalog.text FROM (SELECT %s AS v FROM %s",
					 timestamp ? " OPERATOR(pg_catalog.-) '1 minute'::pg_catalog.interval" : "", column, rows);
	if (more)
		appendStringInfo(&buf, " UNION ALL SELECT %s FROM %s", column, more);
	appendStringInfo(&buf, ") u%s", timestamp ? " WHERE pg_catalog.isfinite(v) AND v OPERATOR(pg_catalog.>) '0001-01-01'" : "");
	return buf.data;
}

/* Whole source rows of a range. */
char *
tsync_sql_range(TsyncReplica *rep, TsyncChunk *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	tsync_append_range(&buf, rep, range, false);
	return buf.data;
}

/* Only the keys of the source rows of a range. */
char *
tsync_sql_keys_of_range(TsyncReplica *rep, TsyncChunk *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	tsync_append_range(&buf, rep, range, false);
	return buf.data;
}

/*
 * One value whose text has twice as many bytes as it has elements, made at the
 * source of no row; were it a constant, it would be made here.
 */
char *
tsync_sql_large_value(TsyncReplica *rep, char **bound, int elements)
{
	TsyncChunk	nothing = {.lower = bound,.upper = bound};
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT pg_catalog.array_fill(0, ARRAY[(%d OPERATOR(pg_catalog.+) pg_catalog.count(*))::pg_catalog.int4])"
					 " FROM %s WHERE ", elements, rep->source_sql);
	tsync_append_range(&buf, rep, &nothing, false);
	return buf.data;
}

/* Whole source rows by key. */
char *
tsync_sql_fetch(TsyncReplica *rep, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	tsync_append_key_list(&buf, rep, keys);
	return buf.data;
}

/*
 * Append a query for the bytes that rows of the source take, without its
 * WHERE; false when no column can tell its size.
 */
static bool
append_bytes(StringInfo buf, TsyncReplica *rep)
{
	bool		known = false;

	appendStringInfoString(buf, "SELECT pg_catalog.count(*), pg_catalog.sum(0::pg_catalog.int8");
	for (int i = 0; i < rep->ncolumns; i++)
	{
		StringInfoData size;

		initStringInfo(&size);
		if (!tsync_append_size(&size, &rep->columns[i]))
			continue;
		known = true;
		appendStringInfo(buf, " OPERATOR(pg_catalog.+) CASE WHEN %s IS NULL THEN 0 ELSE %s END",
						 rep->columns[i].quoted, size.data);
	}
	appendStringInfo(buf, ") FROM %s WHERE ", rep->source_sql);
	return known;
}

/* (rows, bytes) of source rows by key; NULL when nobody can tell. */
char *
tsync_sql_bytes_of_keys(TsyncReplica *rep, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (!append_bytes(&buf, rep))
		return NULL;
	tsync_append_key_list(&buf, rep, keys);
	return buf.data;
}

/* (rows, bytes) of the source rows after a key (NULL: all) up to another. */
char *
tsync_sql_bytes_of_page(TsyncReplica *rep, char **after, char **last)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (!append_bytes(&buf, rep))
		return NULL;
	if (after)
	{
		append_bound(&buf, rep, 0, rep->nkeys, after, ">", ">=", ">");
		appendStringInfoString(&buf, " AND ");
	}
	append_bound(&buf, rep, 0, rep->nkeys, last, "<", "<=", "<=");
	return buf.data;
}

/* (rows, bytes) of the source rows of a range; NULL when nobody can tell. */
char *
tsync_sql_bytes_of_range(TsyncReplica *rep, TsyncChunk *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (!append_bytes(&buf, rep))
		return NULL;
	tsync_append_range(&buf, rep, range, false);
	return buf.data;
}

/* The source's key so many rows above the lower bound of a range. */
char *
tsync_sql_middle(TsyncReplica *rep, TsyncChunk *range, int64 rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	tsync_append_range(&buf, rep, range, false);
	appendStringInfoString(&buf, " ORDER BY ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	appendStringInfo(&buf, " LIMIT 1 OFFSET " INT64_FORMAT, rows);
	return buf.data;
}

/* Those of a list of keys that the source has. */
char *
tsync_sql_find_keys(TsyncReplica *rep, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	tsync_append_key_list(&buf, rep, keys);
	return buf.data;
}

/*
 * The next rows of the source after a key, or only their keys, in the source's
 * key order.  The first "prefix" columns are pinned to those of the key, so
 * that a page of a composite key is a plain index range: the caller goes from
 * the longest prefix to none.
 */
char *
tsync_sql_page(TsyncReplica *rep, char **after, int prefix, bool keys_only, int64 limit)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	if (keys_only)
		tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	else
		tsync_append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s", rep->source_sql);
	for (int i = 0; after && i <= prefix; i++)
	{
		appendStringInfoString(&buf, i == 0 ? " WHERE " : " AND ");
		tsync_append_comparison(&buf, rep->keys[i], i < prefix ? "=" : ">", after[i]);
	}
	appendStringInfoString(&buf, " ORDER BY ");
	tsync_append_keys(&buf, rep, prefix, rep->nkeys, "");
	appendStringInfo(&buf, " LIMIT " INT64_FORMAT, limit);
	return buf.data;
}

/* The key so many of a side's rows above the lower bound of a chunk. */
char *
tsync_sql_boundary(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int64 rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nrange, "");
	appendStringInfo(&buf, " FROM %s WHERE ", tsync_relation_sql(rep, side));
	tsync_append_range(&buf, rep, chunk, true);
	appendStringInfoString(&buf, " ORDER BY ");
	tsync_append_keys(&buf, rep, 0, rep->nrange, "");
	appendStringInfo(&buf, " OFFSET " INT64_FORMAT " LIMIT 1", rows);
	return buf.data;
}

/* Smallest and largest of the replica's integer keys in a chunk. */
char *
tsync_sql_key_span(TsyncReplica *rep, TsyncChunk *chunk)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT pg_catalog.min(%s)::pg_catalog.int8, pg_catalog.max(%s)::pg_catalog.int8 FROM %s WHERE ",
					 rep->keys[0]->quoted, rep->keys[0]->quoted, rep->replica_sql);
	tsync_append_range(&buf, rep, chunk, false);
	return buf.data;
}

/*
 * Statements that change the replica return (rows, sum of fingerprints): of
 * the rows as they are stored, or were before they were deleted.
 */
static void
begin_counted(StringInfo buf)
{
	initStringInfo(buf);
	appendStringInfoString(buf, "WITH changed (fingerprint) AS (");
}

static void
end_counted(StringInfo buf, TsyncReplica *rep, int version)
{
	appendStringInfoString(buf, " RETURNING ");
	if (version == TSYNC_UNCOUNTED)
		appendStringInfoString(buf, "0::pg_catalog.int8");
	else
		tsync_append_fingerprint(buf, rep, version);
	appendStringInfoString(buf, ") SELECT pg_catalog.count(*), pg_catalog.sum(fingerprint) FROM changed");
}

char *
tsync_sql_insert(TsyncReplica *rep, const char *from, int version)
{
	StringInfoData buf;

	begin_counted(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (", rep->replica_sql);
	tsync_append_columns(&buf, rep, "");
	appendStringInfoString(&buf, ") OVERRIDING SYSTEM VALUE SELECT ");
	tsync_append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s", from);
	end_counted(&buf, rep, version);
	return buf.data;
}

/* A prefix that no column's name begins with. */
const char *
tsync_unused_prefix(TsyncReplica *rep)
{
	const char *prefix = "new";

	for (int i = 0; i < rep->ncolumns; i++)
		if (strncmp(rep->columns[i].name, prefix, strlen(prefix)) == 0)
		{
			prefix = psprintf("%s_", prefix);
			i = -1;				/* look at all of them again */
		}
	return prefix;
}

/* The rows to come have other column names, for RETURNING means the replica's. */
char *
tsync_sql_update(TsyncReplica *rep, const char *from, int version)
{
	const char *prefix = tsync_unused_prefix(rep);
	StringInfoData buf;

	begin_counted(&buf);
	appendStringInfo(&buf, "UPDATE %s r SET (", rep->replica_sql);
	tsync_append_columns(&buf, rep, "");
	appendStringInfoString(&buf, ") = ROW(");
	for (int i = 0; i < rep->ncolumns; i++)
		appendStringInfo(&buf, "%s%s%d", i > 0 ? ", " : "", prefix, i + 1);
	appendStringInfo(&buf, ") FROM %s s (", from);
	for (int i = 0; i < rep->ncolumns; i++)
		appendStringInfo(&buf, "%s%s%d", i > 0 ? ", " : "", prefix, i + 1);
	appendStringInfoString(&buf, ") WHERE ");
	for (int i = 0; i < rep->nkeys; i++)
		appendStringInfo(&buf, "%sr.%s OPERATOR(pg_catalog.=) s.%s%d", i > 0 ? " AND " : "",
						 rep->keys[i]->quoted, prefix, (int) (rep->keys[i] - rep->columns) + 1);
	end_counted(&buf, rep, version);
	return buf.data;
}

/* Delete by key, but not the keys in "except". */
char *
tsync_sql_delete(TsyncReplica *rep, const char *keys, const char *except, int version)
{
	StringInfoData buf;

	begin_counted(&buf);
	appendStringInfo(&buf, "DELETE FROM %s r WHERE EXISTS (SELECT FROM %s d WHERE ", rep->replica_sql, keys);
	tsync_append_keys_equal(&buf, rep, "r.", "d.");
	appendStringInfoChar(&buf, ')');
	if (except)
	{
		appendStringInfo(&buf, " AND NOT EXISTS (SELECT FROM %s e WHERE ", except);
		tsync_append_keys_equal(&buf, rep, "e.", "r.");
		appendStringInfoChar(&buf, ')');
	}
	end_counted(&buf, rep, version);
	return buf.data;
}
