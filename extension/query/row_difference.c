/*-------------------------------------------------------------------------
 *
 * row_difference.c
 *	  SQL text for telling how rows differ.
 *
 * As in text.c, every function returns text in the current memory context
 * and runs nothing, and text for the source uses only what ships.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "query/query.h"
#include "utils/builtins.h"

#define NEWER "'newer at source'"

/* A value whose text form has more bytes is described instead. */
#define MAX_VALUE_BYTES "1048576"

/* Append the condition that a row's key is in one of some ranges. */
static void
append_ranges(StringInfo buf, TsyncTable *table, List *ranges)
{
	ListCell   *lc;

	foreach(lc, ranges)
	{
		appendStringInfoString(buf, lc == list_head(ranges) ? "((" : " OR (");
		tsync_append_range(buf, table, lfirst(lc));
		appendStringInfoChar(buf, ')');
	}
	appendStringInfoChar(buf, ')');
}

/* Append the key of a row as jsonb. */
static void
append_json_key(StringInfo buf, TsyncTable *table, const char *prefix)
{
	appendStringInfoString(buf, "pg_catalog.jsonb_build_object(");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%s%s, %s%s", i > 0 ? ", " : "", quote_literal_cstr(table->keys[i]->name),
						 prefix, table->keys[i]->quoted);
	appendStringInfoChar(buf, ')');
}

/*
 * Append a value as jsonb.  No value may make that fail: not every json is
 * jsonb, and others' casts to json are not ours to call.
 */
static void
append_json_value(StringInfo buf, TsyncColumn *column, const char *prefix)
{
	char	   *value = psprintf("%s%s", prefix, column->quoted);

	if (tsync_max_bytes(column->type, column->typmod) >= 0)
	{
		appendStringInfo(buf, "%s", value);
		return;
	}
	appendStringInfo(buf, "CASE WHEN pg_catalog.octet_length(%s::pg_catalog.text) OPERATOR(pg_catalog.>) " MAX_VALUE_BYTES
					 " THEN pg_catalog.to_jsonb(pg_catalog.format('%%s bytes, md5 %%s',"
					 " pg_catalog.octet_length(%s::pg_catalog.text), pg_catalog.md5(%s::pg_catalog.text)))"
					 " ELSE pg_catalog.to_jsonb(%s%s) END", value, value, value, value,
					 column->type == JSONOID || column->type >= FirstNormalObjectId ? "::pg_catalog.text" : "");
}

/* Append a whole row as jsonb. */
static void
append_json_row(StringInfo buf, TsyncTable *table, const char *prefix)
{
	appendStringInfoString(buf, "(SELECT pg_catalog.to_jsonb(j.*) FROM (SELECT ");
	for (int i = 0; i < table->ncolumns; i++)
	{
		appendStringInfoString(buf, i > 0 ? ", " : "");
		append_json_value(buf, &table->columns[i], prefix);
		appendStringInfo(buf, " AS %s", table->columns[i].quoted);
	}
	appendStringInfoString(buf, ") j)");
}

/* Append a staged row set as "s", and the replica's rows with its keys as "r". */
static void
append_pairs(StringInfo buf, TsyncTable *table, const char *staged, bool keys_only, List *ranges)
{
	appendStringInfoString(buf, " FROM (SELECT ");
	if (keys_only)
		tsync_append_keys(buf, table, 0, table->nkeys, "");
	else
		tsync_append_columns(buf, table, "");
	appendStringInfo(buf, " FROM %s WHERE ", staged);
	append_ranges(buf, table, ranges);
	appendStringInfoString(buf, ") s JOIN (SELECT ");
	tsync_append_columns(buf, table, "");
	appendStringInfo(buf, " FROM %s) r ON ", table->replica_sql);
	tsync_append_keys_equal(buf, table, "s.", "r.");
}

/* The version column, where one version can be newer than another. */
static TsyncColumn *
ordered_version(TsyncTable *table)
{
	TsyncColumn *version = table->version;

	return version && tsync_has_maximum(version) ? version : NULL;
}

/* Append what to call a row that both sides have. */
static void
append_verdict_of_pair(StringInfo buf, TsyncTable *table, bool touched, bool by_row)
{
	TsyncColumn *version = ordered_version(table);

	/* by xmin there may be no version, and nothing else that could be told from it */
	if (touched ? !version : by_row || !table->version)
	{
		appendStringInfoString(buf, touched ? "'different'" : NEWER);
		return;
	}
	appendStringInfoString(buf, "CASE");
	if (!by_row && table->version)
		appendStringInfo(buf, " WHEN s.%s IS NOT DISTINCT FROM r.%s THEN 'different'",
						 table->version->quoted, table->version->quoted);
	if (touched)
		appendStringInfo(buf, " WHEN s.%s OPERATOR(pg_catalog.>) r.%s OR (s.%s IS NOT NULL AND r.%s IS NULL) THEN " NEWER,
						 version->quoted, version->quoted, version->quoted, version->quoted);
	appendStringInfo(buf, " ELSE %s END", touched ? "'different'" : NEWER);
}

/* Append what to call a row of the source, "s": who wrote it tells whether it is newer than the last success. */
static void
append_verdict_by_xmin(StringInfo buf, TsyncTable *table, const char *otherwise)
{
	appendStringInfo(buf, "CASE WHEN EXISTS (SELECT FROM %s n WHERE ", TSYNC_NEW);
	tsync_append_keys_equal(buf, table, "n.", "s.");
	appendStringInfo(buf, ") THEN " NEWER " ELSE %s END", otherwise);
}

/*
 * Append what to call a row that only the source has: somebody may have deleted
 * it here, unless it is newer than all that the replica ever had.
 */
static void
append_verdict_of_source(StringInfo buf, TsyncTable *table, bool touched)
{
	TsyncColumn *version = ordered_version(table);
	bool		timestamp = version && (version->type == TIMESTAMPOID || version->type == TIMESTAMPTZOID);

	if (!touched || !version)
	{
		appendStringInfoString(buf, touched ? "'missing here'" : NEWER);
		return;
	}
	appendStringInfo(buf, "CASE WHEN s.%s OPERATOR(pg_catalog.>) GREATEST((SELECT pg_catalog.max(%s) FROM %s)",
					 version->quoted, version->quoted, table->replica_sql);
	if (table->watermark)		/* lies so far below the newest version applied */
		appendStringInfo(buf, ", %s::%s%s", quote_literal_cstr(table->watermark), tsync_type_sql(version->type),
						 timestamp ? " OPERATOR(pg_catalog.+) '" TSYNC_WATERMARK_LAG "'::pg_catalog.interval" : "");
	appendStringInfoString(buf, ") THEN " NEWER " ELSE 'missing here' END");
}

/* Append the condition that the key of "s" has been touched, or has not. */
static void
append_key_filter(StringInfo buf, TsyncTable *table, const char *conjunction, const char *keys)
{
	if (*keys == '\0')
		return;
	appendStringInfo(buf, "%s%sEXISTS (SELECT FROM %s t WHERE ", conjunction, keys, TSYNC_TOUCHED);
	tsync_append_keys_equal(buf, table, "t.", "s.");
	appendStringInfoChar(buf, ')');
}

/*
 * (key, difference, source, replica_row) of the staged rows in some ranges, in
 * which somebody has touched the replica or not; a usual run asks only for
 * what is not merely newer.
 */
char *
tsync_sql_differences(TsyncTable *table, List *ranges, bool touched, bool by_row, bool by_xmin, bool all, const char *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT key, difference, source, replica_row FROM (SELECT ");
	append_json_key(&buf, table, "s.");
	appendStringInfoString(&buf, " AS key, ");
	if (by_xmin)
		append_verdict_by_xmin(&buf, table, "'different'");
	else
		append_verdict_of_pair(&buf, table, touched, by_row);
	appendStringInfoString(&buf, " AS difference, ");
	append_json_row(&buf, table, "s.");
	appendStringInfoString(&buf, " AS source, ");
	append_json_row(&buf, table, "r.");
	appendStringInfoString(&buf, " AS replica_row");
	append_pairs(&buf, table, TSYNC_UPDATED, false, ranges);
	append_key_filter(&buf, table, " WHERE ", keys);

	appendStringInfoString(&buf, " UNION ALL SELECT ");
	append_json_key(&buf, table, "s.");
	appendStringInfoString(&buf, ", ");
	if (by_xmin)
		append_verdict_by_xmin(&buf, table, "'missing here'");
	else
		append_verdict_of_source(&buf, table, touched);
	appendStringInfoString(&buf, ", ");
	append_json_row(&buf, table, "s.");
	appendStringInfoString(&buf, ", NULL FROM (SELECT ");
	tsync_append_columns(&buf, table, "");
	appendStringInfo(&buf, " FROM %s WHERE ", TSYNC_INSERTED);
	append_ranges(&buf, table, ranges);
	appendStringInfoString(&buf, ") s");
	append_key_filter(&buf, table, " WHERE ", keys);
	appendStringInfoString(&buf, " UNION ALL SELECT ");

	append_json_key(&buf, table, "r.");
	appendStringInfo(&buf, ", %s, NULL, ", touched ? "'missing at source'" : NEWER);
	append_json_row(&buf, table, "r.");
	append_pairs(&buf, table, TSYNC_DELETED, true, ranges);
	appendStringInfo(&buf, " WHERE NOT EXISTS (SELECT FROM %s e WHERE ", TSYNC_REAPPEARED);
	tsync_append_keys_equal(&buf, table, "e.", "s.");
	appendStringInfoChar(&buf, ')');
	append_key_filter(&buf, table, " AND ", keys);
	appendStringInfo(&buf, ") d%s", all ? "" : " WHERE difference OPERATOR(pg_catalog.<>) " NEWER);
	return buf.data;
}

/* Append rows with their keys and fingerprints; of a chunk, or all that match. */
static void
append_fingerprinted(StringInfo buf, TsyncTable *table, const char *rows, TsyncRange *range,
					 TsyncFingerprint fingerprint, const char *alias)
{

	appendStringInfoString(buf, "(SELECT ");
	tsync_append_keys(buf, table, 0, table->nkeys, "");
	appendStringInfoString(buf, ", ");
	tsync_append_fingerprint(buf, table, fingerprint);
	appendStringInfo(buf, " AS %s FROM %s WHERE ", table->fingerprint_column, rows);
	tsync_append_range(buf, table, range);
	appendStringInfo(buf, ") %s", alias);
}

/*
 * Keys of the staged rows of a chunk, each with what it would explain if
 * somebody had touched the row here: (rows, fingerprint now, fingerprint then).
 */
char *
tsync_sql_suspects(TsyncTable *table, TsyncRange *range, TsyncFingerprint fingerprint, int limit)
{
	const char *f = table->fingerprint_column;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "s.");
	appendStringInfo(&buf, ", 0::pg_catalog.int8, r.%s, s.%s FROM ", f, f);
	append_fingerprinted(&buf, table, TSYNC_UPDATED, range, fingerprint, "s JOIN ");
	append_fingerprinted(&buf, table, table->replica_sql, range, fingerprint, "r ON ");
	tsync_append_keys_equal(&buf, table, "s.", "r.");
	appendStringInfo(&buf, " WHERE r.%s OPERATOR(pg_catalog.<>) s.%s UNION ALL SELECT ", f, f);
	tsync_append_keys(&buf, table, 0, table->nkeys, "s.");
	appendStringInfo(&buf, ", -1::pg_catalog.int8, 0::pg_catalog.int8, s.%s FROM ", f);
	append_fingerprinted(&buf, table, TSYNC_INSERTED, range, fingerprint, "s");
	appendStringInfoString(&buf, " UNION ALL SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "r.");
	appendStringInfo(&buf, ", 1::pg_catalog.int8, r.%s, 0::pg_catalog.int8 FROM ", f);
	append_fingerprinted(&buf, table, table->replica_sql, range, fingerprint, "r");
	appendStringInfo(&buf, " JOIN %s s ON ", TSYNC_DELETED);
	tsync_append_keys_equal(&buf, table, "s.", "r.");
	appendStringInfo(&buf, " WHERE NOT EXISTS (SELECT FROM %s e WHERE ", TSYNC_REAPPEARED);
	tsync_append_keys_equal(&buf, table, "e.", "r.");
	appendStringInfo(&buf, ") LIMIT %d", limit);
	return buf.data;
}

/* Append a row's key as PostgreSQL's messages show it: (a, b)=(1, 2). */
static void
append_shown_key(StringInfo buf, TsyncTable *table)
{
	StringInfoData names;

	initStringInfo(&names);
	appendStringInfoChar(&names, '(');
	tsync_append_keys(&names, table, 0, table->nkeys, "");
	appendStringInfoString(&names, ")=(");
	appendStringInfo(buf, "pg_catalog.concat(%s, pg_catalog.array_to_string(ARRAY[", quote_literal_cstr(names.data));
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%ss.%s::pg_catalog.text", i > 0 ? ", " : "", table->keys[i]->quoted);
	appendStringInfoString(buf, "], ', '), ')')");
}

/* The staged rows that should be in the replica now, as "s". */
static void
append_staged(StringInfo buf, TsyncTable *table)
{
	appendStringInfoString(buf, "(SELECT ");
	tsync_append_columns(buf, table, "");
	appendStringInfo(buf, " FROM %s UNION ALL SELECT ", TSYNC_UPDATED);
	tsync_append_columns(buf, table, "");
	appendStringInfo(buf, " FROM %s) s", TSYNC_INSERTED);
}

/* One text that shows some rows, each with the first of the columns in an array "c" of it. */
static void
begin_shown(StringInfo buf)
{
	initStringInfo(buf);
	appendStringInfoString(buf, "SELECT pg_catalog.string_agg(pg_catalog.concat(k, ' in ', pg_catalog.array_to_string(c[1:10], ', ')), '; ')"
						   " FROM (SELECT * FROM (SELECT ");
}

static void
end_shown(StringInfo buf, int limit)
{
	appendStringInfo(buf, ") u WHERE pg_catalog.cardinality(c) OPERATOR(pg_catalog.>) 0 LIMIT %d) l", limit);
}

/* The staged rows that are not in the replica as they were staged; one text, NULL if all are. */
char *
tsync_sql_unlike_replica(TsyncTable *table, int limit)
{
	StringInfoData buf;

	begin_shown(&buf);
	append_shown_key(&buf, table);
	appendStringInfoString(&buf, " AS k, pg_catalog.array_remove(ARRAY[");
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&buf, "%sCASE WHEN s.%s::pg_catalog.text IS DISTINCT FROM r.%s::pg_catalog.text THEN %s::pg_catalog.text END",
						 i > 0 ? ", " : "", table->columns[i].quoted, table->columns[i].quoted,
						 quote_literal_cstr(table->columns[i].quoted));
	appendStringInfoString(&buf, "], NULL) AS c FROM ");
	append_staged(&buf, table);
	appendStringInfo(&buf, " JOIN %s r ON ", table->replica_sql);
	tsync_append_keys_equal(&buf, table, "s.", "r.");
	end_shown(&buf, limit);
	return buf.data;
}

/* Does tsync_sql_hashes() have a hash of this column? */
static bool
has_hash(TsyncTable *table, int i)
{
	return !tsync_is_key(table, &table->columns[i]) && !table->columns[i].opaque;
}

/* Some of the source's rows by key: their keys, and a hash of each other column that has one. */
char *
tsync_sql_hashes(TsyncTable *table, List *keys, int source_version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	for (int i = 0; i < table->ncolumns; i++)
		if (has_hash(table, i))
		{
			/* an expression ships in an aggregate only */
			appendStringInfoString(&buf, ", pg_catalog.max(");
			tsync_append_column_hash(&buf, &table->columns[i], "0", "0", source_version);
			appendStringInfoChar(&buf, ')');
		}
	appendStringInfo(&buf, " FROM %s WHERE (", table->source_rows);
	tsync_append_key_list(&buf, table, keys);
	appendStringInfoString(&buf, ") GROUP BY ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	return buf.data;
}

/* Descriptor of the rows of tsync_sql_hashes(). */
TupleDesc
tsync_hashes_desc(TsyncTable *table)
{
	const char *prefix = tsync_unused_prefix(table);
	int			nhashes = 0;
	TupleDesc	desc;

	for (int i = 0; i < table->ncolumns; i++)
		nhashes += has_hash(table, i);
	desc = tsync_key_desc(table, nhashes);
	nhashes = 0;
	for (int i = 0; i < table->ncolumns; i++)
		if (has_hash(table, i))
			TupleDescInitEntry(desc, table->nkeys + ++nhashes, psprintf("%s%d", prefix, i + 1), INT8OID, -1, 0);
	return desc;
}

/* The staged rows whose hashes are not those of the source's rows that they were made of; one text or NULL. */
char *
tsync_sql_unlike_hashes(TsyncTable *table, const char *hashes, int source_version, int limit)
{
	const char *prefix = tsync_unused_prefix(table);
	const char *between = "";
	StringInfoData buf;

	begin_shown(&buf);
	append_shown_key(&buf, table);
	appendStringInfoString(&buf, " AS k, pg_catalog.array_remove(ARRAY[");
	for (int i = 0; i < table->ncolumns; i++)
		if (has_hash(table, i))
		{
			appendStringInfo(&buf, "%sCASE WHEN ", between);
			tsync_append_column_hash(&buf, &table->columns[i], "0", "0", source_version);
			appendStringInfo(&buf, " OPERATOR(pg_catalog.<>) h.%s%d THEN %s::pg_catalog.text END",
							 prefix, i + 1, quote_literal_cstr(table->columns[i].quoted));
			between = ", ";
		}
	appendStringInfoString(&buf, "]::pg_catalog.text[], NULL) AS c FROM ");
	append_staged(&buf, table);
	appendStringInfo(&buf, " JOIN %s h ON ", hashes);
	tsync_append_keys_equal(&buf, table, "s.", "h.");
	end_shown(&buf, limit);
	return buf.data;
}

/* Keys of some of the staged rows that should be in the replica now. */
char *
tsync_sql_staged_keys(TsyncTable *table, int limit)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	appendStringInfoString(&buf, " FROM ");
	append_staged(&buf, table);
	appendStringInfo(&buf, " LIMIT %d", limit);
	return buf.data;
}

/* Append the columns that have no hash, with "between" before each. */
static void
append_opaque(StringInfo buf, TsyncTable *table, const char *between, const char *format)
{
	bool		first = true;

	for (int i = 0; i < table->ncolumns; i++)
	{
		const char *column = table->columns[i].quoted;

		if (!table->columns[i].opaque)
			continue;
		if (!first)
			appendStringInfoString(buf, between);
		for (const char *p = format; *p; p++)
			if (*p == '$')
				appendStringInfoString(buf, column);
			else
				appendStringInfoChar(buf, *p);
		first = false;
	}
}

/* Keys of the source's rows in a chunk, with the columns that have no hash. */
char *
tsync_sql_list_opaque(TsyncTable *table, TsyncRange *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	for (int i = 0; i < table->ncolumns; i++)
		if (table->columns[i].opaque)
		{
			appendStringInfoString(&buf, ", ");
			tsync_append_source_column(&buf, table, &table->columns[i]);
		}
	appendStringInfo(&buf, " FROM %s WHERE ", table->source_rows);
	tsync_append_range(&buf, table, range);
	tsync_append_grouping(&buf, table);
	return buf.data;
}

/*
 * Keys of the replica's rows whose columns without a hash differ from those
 * listed, in text form, and that are not staged already.
 */
char *
tsync_sql_compare_opaque(TsyncTable *table, TsyncRange *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "r.");
	appendStringInfoString(&buf, " FROM (SELECT ");
	tsync_append_columns(&buf, table, "");
	appendStringInfo(&buf, " FROM %s WHERE ", table->replica_sql);
	tsync_append_range(&buf, table, range);
	appendStringInfo(&buf, ") r JOIN %s s ON ", TSYNC_OPAQUE);
	tsync_append_keys_equal(&buf, table, "r.", "s.");
	appendStringInfoString(&buf, " WHERE (");
	append_opaque(&buf, table, " OR ", "r.$::pg_catalog.text IS DISTINCT FROM s.$::pg_catalog.text");
	appendStringInfo(&buf, ") AND NOT EXISTS (SELECT FROM %s u WHERE ", TSYNC_UPDATED);
	tsync_append_keys_equal(&buf, table, "u.", "r.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}
