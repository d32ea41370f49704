/*-------------------------------------------------------------------------
 *
 * row_difference.c
 *	  SQL text for telling how rows differ.
 *
 * As in query.c, every function returns text in the current memory context
 * and runs nothing, and text for the source uses only what ships.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "query/query.h"
#include "run/run.h"
#include "utils/builtins.h"

#define NEWER "'newer at source'"

/* A value whose text form has more bytes is described instead. */
#define MAX_VALUE_BYTES "1048576"

/* Append the condition that a row's key is in one of some ranges. */
static void
append_ranges(StringInfo buf, TsyncReplica *rep, List *ranges)
{
	ListCell   *lc;

	foreach(lc, ranges)
	{
		appendStringInfoString(buf, lc == list_head(ranges) ? "((" : " OR (");
		tsync_append_range(buf, rep, lfirst(lc), false);
		appendStringInfoChar(buf, ')');
	}
	appendStringInfoChar(buf, ')');
}

/* Append the key of a row as jsonb. */
static void
append_json_key(StringInfo buf, TsyncReplica *rep, const char *prefix)
{
	appendStringInfoString(buf, "pg_catalog.jsonb_build_object(");
	for (int i = 0; i < rep->nkeys; i++)
		appendStringInfo(buf, "%s%s, %s%s", i > 0 ? ", " : "", quote_literal_cstr(rep->keys[i]->name),
						 prefix, rep->keys[i]->quoted);
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
append_json_row(StringInfo buf, TsyncReplica *rep, const char *prefix)
{
	appendStringInfoString(buf, "(SELECT pg_catalog.to_jsonb(j.*) FROM (SELECT ");
	for (int i = 0; i < rep->ncolumns; i++)
	{
		appendStringInfoString(buf, i > 0 ? ", " : "");
		append_json_value(buf, &rep->columns[i], prefix);
		appendStringInfo(buf, " AS %s", rep->columns[i].quoted);
	}
	appendStringInfoString(buf, ") j)");
}

/* Append a staged row set as "s", and the replica's rows with its keys as "r". */
static void
append_pairs(StringInfo buf, TsyncReplica *rep, const char *staged, bool keys_only, List *ranges)
{
	appendStringInfoString(buf, " FROM (SELECT ");
	if (keys_only)
		tsync_append_keys(buf, rep, 0, rep->nkeys, "");
	else
		tsync_append_columns(buf, rep, "");
	appendStringInfo(buf, " FROM %s WHERE ", staged);
	append_ranges(buf, rep, ranges);
	appendStringInfoString(buf, ") s JOIN (SELECT ");
	tsync_append_columns(buf, rep, "");
	appendStringInfo(buf, " FROM %s) r ON ", rep->replica_sql);
	tsync_append_keys_equal(buf, rep, "s.", "r.");
}

/* The version column, where one version can be newer than another. */
static TsyncColumn *
ordered_version(TsyncReplica *rep)
{
	TsyncColumn *version = rep->version;

	return version && tsync_orders_alike(version->type) && version->type != UUIDOID ? version : NULL;
}

/* Append what to call a row that both sides have. */
static void
append_verdict_of_pair(StringInfo buf, TsyncRun *run, bool touched)
{
	TsyncColumn *version = ordered_version(run->replica);

	if (touched ? !version : run->rules_by_row)
	{
		appendStringInfoString(buf, touched ? "'different'" : NEWER);
		return;
	}
	appendStringInfoString(buf, "CASE");
	if (!run->rules_by_row)
		appendStringInfo(buf, " WHEN s.%s IS NOT DISTINCT FROM r.%s THEN 'different'",
						 run->replica->version->quoted, run->replica->version->quoted);
	if (touched)
		appendStringInfo(buf, " WHEN s.%s OPERATOR(pg_catalog.>) r.%s OR (s.%s IS NOT NULL AND r.%s IS NULL) THEN " NEWER,
						 version->quoted, version->quoted, version->quoted, version->quoted);
	appendStringInfo(buf, " ELSE %s END", touched ? "'different'" : NEWER);
}

/*
 * Append what to call a row that only the source has: somebody may have deleted
 * it here, unless it is newer than all that the replica ever had.
 */
static void
append_verdict_of_source(StringInfo buf, TsyncReplica *rep, bool touched)
{
	TsyncColumn *version = ordered_version(rep);
	bool		timestamp = version && (version->type == TIMESTAMPOID || version->type == TIMESTAMPTZOID);

	if (!touched || !version)
	{
		appendStringInfoString(buf, touched ? "'missing here'" : NEWER);
		return;
	}
	appendStringInfo(buf, "CASE WHEN s.%s OPERATOR(pg_catalog.>) GREATEST((SELECT pg_catalog.max(%s) FROM %s)",
					 version->quoted, version->quoted, rep->replica_sql);
	if (rep->watermark)			/* lies so far below the newest version applied */
		appendStringInfo(buf, ", %s::%s%s", quote_literal_cstr(rep->watermark), tsync_type_sql(version->type),
						 timestamp ? " OPERATOR(pg_catalog.+) '1 minute'::pg_catalog.interval" : "");
	appendStringInfoString(buf, ") THEN " NEWER " ELSE 'missing here' END");
}

/* Append the condition that the key of "s" has been touched, or has not. */
static void
append_key_filter(StringInfo buf, TsyncRun *run, const char *conjunction, const char *keys)
{
	if (*keys == '\0')
		return;
	appendStringInfo(buf, "%s%sEXISTS (SELECT FROM %s t WHERE ", conjunction, keys, run->touched_keys.name);
	tsync_append_keys_equal(buf, run->replica, "t.", "s.");
	appendStringInfoChar(buf, ')');
}

/*
 * (key, difference, source, replica_row) of the staged rows in some ranges, in
 * which somebody has touched the replica or not; a usual run asks only for
 * what is not merely newer.
 */
char *
tsync_sql_differences(TsyncRun *run, List *ranges, bool touched, const char *keys)
{
	TsyncReplica *rep = run->replica;
	TsyncStage *stage = run->stage;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT key, difference, source, replica_row FROM (SELECT ");
	append_json_key(&buf, rep, "s.");
	appendStringInfoString(&buf, " AS key, ");
	append_verdict_of_pair(&buf, run, touched);
	appendStringInfoString(&buf, " AS difference, ");
	append_json_row(&buf, rep, "s.");
	appendStringInfoString(&buf, " AS source, ");
	append_json_row(&buf, rep, "r.");
	appendStringInfoString(&buf, " AS replica_row");
	append_pairs(&buf, rep, stage->updated.name, false, ranges);
	append_key_filter(&buf, run, " WHERE ", keys);

	appendStringInfoString(&buf, " UNION ALL SELECT ");
	append_json_key(&buf, rep, "s.");
	appendStringInfoString(&buf, ", ");
	append_verdict_of_source(&buf, rep, touched);
	appendStringInfoString(&buf, ", ");
	append_json_row(&buf, rep, "s.");
	appendStringInfoString(&buf, ", NULL FROM (SELECT ");
	tsync_append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s WHERE ", stage->inserted.name);
	append_ranges(&buf, rep, ranges);
	appendStringInfoString(&buf, ") s");
	append_key_filter(&buf, run, " WHERE ", keys);
	appendStringInfoString(&buf, " UNION ALL SELECT ");

	append_json_key(&buf, rep, "r.");
	appendStringInfo(&buf, ", %s, NULL, ", touched ? "'missing at source'" : NEWER);
	append_json_row(&buf, rep, "r.");
	append_pairs(&buf, rep, stage->deleted.name, true, ranges);
	appendStringInfo(&buf, " WHERE NOT EXISTS (SELECT FROM %s e WHERE ", stage->reappeared.name);
	tsync_append_keys_equal(&buf, rep, "e.", "s.");
	appendStringInfoChar(&buf, ')');
	append_key_filter(&buf, run, " AND ", keys);
	appendStringInfo(&buf, ") d%s", run->verify ? "" : " WHERE difference OPERATOR(pg_catalog.<>) " NEWER);
	return buf.data;
}

/* Append rows with their keys and fingerprints; of a chunk, or all that match. */
static void
append_fingerprinted(StringInfo buf, TsyncRun *run, const char *rows, TsyncChunk *chunk, const char *alias)
{
	TsyncReplica *rep = run->replica;

	appendStringInfoString(buf, "(SELECT ");
	tsync_append_keys(buf, rep, 0, rep->nkeys, "");
	appendStringInfoString(buf, ", ");
	tsync_append_fingerprint(buf, rep, run->source_version);
	appendStringInfo(buf, " AS %s FROM %s WHERE ", rep->fingerprint_column, rows);
	tsync_append_range(buf, rep, chunk, false);
	appendStringInfo(buf, ") %s", alias);
}

/*
 * Keys of the staged rows of a chunk, each with what it would explain if
 * somebody had touched the row here: (rows, fingerprint now, fingerprint then).
 */
char *
tsync_sql_suspects(TsyncRun *run, TsyncChunk *chunk, int limit)
{
	TsyncReplica *rep = run->replica;
	TsyncStage *stage = run->stage;
	const char *f = rep->fingerprint_column;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "s.");
	appendStringInfo(&buf, ", 0::pg_catalog.int8, r.%s, s.%s FROM ", f, f);
	append_fingerprinted(&buf, run, stage->updated.name, chunk, "s JOIN ");
	append_fingerprinted(&buf, run, rep->replica_sql, chunk, "r ON ");
	tsync_append_keys_equal(&buf, rep, "s.", "r.");
	appendStringInfo(&buf, " WHERE r.%s OPERATOR(pg_catalog.<>) s.%s UNION ALL SELECT ", f, f);
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "s.");
	appendStringInfo(&buf, ", -1::pg_catalog.int8, 0::pg_catalog.int8, s.%s FROM ", f);
	append_fingerprinted(&buf, run, stage->inserted.name, chunk, "s");
	appendStringInfoString(&buf, " UNION ALL SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "r.");
	appendStringInfo(&buf, ", 1::pg_catalog.int8, r.%s, 0::pg_catalog.int8 FROM ", f);
	append_fingerprinted(&buf, run, rep->replica_sql, chunk, "r");
	appendStringInfo(&buf, " JOIN %s s ON ", stage->deleted.name);
	tsync_append_keys_equal(&buf, rep, "s.", "r.");
	appendStringInfo(&buf, " WHERE NOT EXISTS (SELECT FROM %s e WHERE ", stage->reappeared.name);
	tsync_append_keys_equal(&buf, rep, "e.", "r.");
	appendStringInfo(&buf, ") LIMIT %d", limit);
	return buf.data;
}

/* Append a row's key as PostgreSQL's messages show it: (a, b)=(1, 2). */
static void
append_shown_key(StringInfo buf, TsyncReplica *rep)
{
	StringInfoData names;

	initStringInfo(&names);
	appendStringInfoChar(&names, '(');
	tsync_append_keys(&names, rep, 0, rep->nkeys, "");
	appendStringInfoString(&names, ")=(");
	appendStringInfo(buf, "pg_catalog.concat(%s, pg_catalog.array_to_string(ARRAY[", quote_literal_cstr(names.data));
	for (int i = 0; i < rep->nkeys; i++)
		appendStringInfo(buf, "%ss.%s::pg_catalog.text", i > 0 ? ", " : "", rep->keys[i]->quoted);
	appendStringInfoString(buf, "], ', '), ')')");
}

/* The staged rows that should be in the replica now, as "s". */
static void
append_staged(StringInfo buf, TsyncRun *run)
{
	appendStringInfoString(buf, "(SELECT ");
	tsync_append_columns(buf, run->replica, "");
	appendStringInfo(buf, " FROM %s UNION ALL SELECT ", run->stage->updated.name);
	tsync_append_columns(buf, run->replica, "");
	appendStringInfo(buf, " FROM %s) s", run->stage->inserted.name);
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
tsync_sql_unlike_replica(TsyncRun *run, int limit)
{
	TsyncReplica *rep = run->replica;
	StringInfoData buf;

	begin_shown(&buf);
	append_shown_key(&buf, rep);
	appendStringInfoString(&buf, " AS k, pg_catalog.array_remove(ARRAY[");
	for (int i = 0; i < rep->ncolumns; i++)
		appendStringInfo(&buf, "%sCASE WHEN s.%s::pg_catalog.text IS DISTINCT FROM r.%s::pg_catalog.text THEN %s::pg_catalog.text END",
						 i > 0 ? ", " : "", rep->columns[i].quoted, rep->columns[i].quoted,
						 quote_literal_cstr(rep->columns[i].quoted));
	appendStringInfoString(&buf, "], NULL) AS c FROM ");
	append_staged(&buf, run);
	appendStringInfo(&buf, " JOIN %s r ON ", rep->replica_sql);
	tsync_append_keys_equal(&buf, rep, "s.", "r.");
	end_shown(&buf, limit);
	return buf.data;
}

/* Does tsync_sql_hashes() have a hash of this column? */
static bool
has_hash(TsyncReplica *rep, int i)
{
	return !tsync_is_key(rep, &rep->columns[i]) && !rep->columns[i].opaque;
}

/* Some of the source's rows by key: their keys, and a hash of each other column that has one. */
char *
tsync_sql_hashes(TsyncReplica *rep, List *keys, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	for (int i = 0; i < rep->ncolumns; i++)
		if (has_hash(rep, i))
		{
			/* an expression ships in an aggregate only */
			appendStringInfoString(&buf, ", pg_catalog.max(");
			tsync_append_column_hash(&buf, &rep->columns[i], "0", "0", version);
			appendStringInfoChar(&buf, ')');
		}
	appendStringInfo(&buf, " FROM %s WHERE (", rep->source_sql);
	tsync_append_key_list(&buf, rep, keys);
	appendStringInfoString(&buf, ") GROUP BY ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	return buf.data;
}

/* Descriptor of the rows of tsync_sql_hashes(). */
TupleDesc
tsync_hashes_desc(TsyncReplica *rep)
{
	const char *prefix = tsync_unused_prefix(rep);
	int			nhashes = 0;
	TupleDesc	desc;

	for (int i = 0; i < rep->ncolumns; i++)
		nhashes += has_hash(rep, i);
	desc = tsync_key_desc(rep, nhashes);
	nhashes = 0;
	for (int i = 0; i < rep->ncolumns; i++)
		if (has_hash(rep, i))
			TupleDescInitEntry(desc, rep->nkeys + ++nhashes, psprintf("%s%d", prefix, i + 1), INT8OID, -1, 0);
	return desc;
}

/* The staged rows whose hashes are not those of the source's rows that they were made of; one text or NULL. */
char *
tsync_sql_unlike_hashes(TsyncRun *run, const char *hashes, int limit)
{
	TsyncReplica *rep = run->replica;
	const char *prefix = tsync_unused_prefix(rep);
	const char *between = "";
	StringInfoData buf;

	begin_shown(&buf);
	append_shown_key(&buf, rep);
	appendStringInfoString(&buf, " AS k, pg_catalog.array_remove(ARRAY[");
	for (int i = 0; i < rep->ncolumns; i++)
		if (has_hash(rep, i))
		{
			appendStringInfo(&buf, "%sCASE WHEN ", between);
			tsync_append_column_hash(&buf, &rep->columns[i], "0", "0", run->source_version);
			appendStringInfo(&buf, " OPERATOR(pg_catalog.<>) h.%s%d THEN %s::pg_catalog.text END",
							 prefix, i + 1, quote_literal_cstr(rep->columns[i].quoted));
			between = ", ";
		}
	appendStringInfoString(&buf, "]::pg_catalog.text[], NULL) AS c FROM ");
	append_staged(&buf, run);
	appendStringInfo(&buf, " JOIN %s h ON ", hashes);
	tsync_append_keys_equal(&buf, rep, "s.", "h.");
	end_shown(&buf, limit);
	return buf.data;
}

/* Keys of some of the staged rows that should be in the replica now. */
char *
tsync_sql_staged_keys(TsyncRun *run, int limit)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, run->replica, 0, run->replica->nkeys, "");
	appendStringInfoString(&buf, " FROM ");
	append_staged(&buf, run);
	appendStringInfo(&buf, " LIMIT %d", limit);
	return buf.data;
}

/* Append the columns that have no hash, with "between" before each. */
static void
append_opaque(StringInfo buf, TsyncReplica *rep, const char *between, const char *format)
{
	bool		first = true;

	for (int i = 0; i < rep->ncolumns; i++)
	{
		const char *column = rep->columns[i].quoted;

		if (!rep->columns[i].opaque)
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
tsync_sql_list_opaque(TsyncReplica *rep, TsyncChunk *chunk)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	appendStringInfoString(&buf, ", ");
	append_opaque(&buf, rep, ", ", "$");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	tsync_append_range(&buf, rep, chunk, false);
	return buf.data;
}

/*
 * Keys of the replica's rows whose columns without a hash differ from those
 * listed, in text form, and that are not staged already.
 */
char *
tsync_sql_compare_opaque(TsyncRun *run, TsyncChunk *chunk)
{
	TsyncReplica *rep = run->replica;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "r.");
	appendStringInfoString(&buf, " FROM (SELECT ");
	tsync_append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->replica_sql);
	tsync_append_range(&buf, rep, chunk, false);
	appendStringInfo(&buf, ") r JOIN %s s ON ", run->opaque.name);
	tsync_append_keys_equal(&buf, rep, "r.", "s.");
	appendStringInfoString(&buf, " WHERE (");
	append_opaque(&buf, rep, " OR ", "r.$::pg_catalog.text IS DISTINCT FROM s.$::pg_catalog.text");
	appendStringInfo(&buf, ") AND NOT EXISTS (SELECT FROM %s u WHERE ", run->stage->updated.name);
	tsync_append_keys_equal(&buf, rep, "u.", "r.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}
