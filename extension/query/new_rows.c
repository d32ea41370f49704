/*-------------------------------------------------------------------------
 *
 * new_rows.c
 *	  SQL text about rows that are new at the source, by the transactions that wrote them.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "query/query.h"

/* Begin a query for keys of the source, where their xmin is. */
static void
begin_keys(StringInfo buf, TsyncTable *table)
{
	initStringInfo(buf);
	appendStringInfoString(buf, "SELECT ");
	tsync_append_keys(buf, table, 0, table->nkeys, "");
	appendStringInfo(buf, " FROM %s WHERE ", table->xmin_rows);
}

/* Keys of the new rows in some buckets of a chunk; NIL stands for all buckets. */
char *
tsync_sql_new_keys(TsyncTable *table, TsyncRange *range, TsyncBucketing *bucketing, List *buckets,
				   TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	begin_keys(&buf, table);
	tsync_append_range(&buf, table, range);
	tsync_append_bucket_filter(&buf, table, bucketing, buckets, fingerprint);
	appendStringInfoString(&buf, " AND ");
	tsync_append_is_new(&buf, table);
	return buf.data;
}

/* Those of a list of keys whose rows are new. */
char *
tsync_sql_new_of_keys(TsyncTable *table, List *keys)
{
	StringInfoData buf;

	begin_keys(&buf, table);
	appendStringInfoChar(&buf, '(');
	tsync_append_key_list(&buf, table, keys);
	appendStringInfoString(&buf, ") AND ");
	tsync_append_is_new(&buf, table);
	return buf.data;
}

/* Keys of all rows of the source in some buckets of a chunk. */
char *
tsync_sql_keys_of_buckets(TsyncTable *table, TsyncRange *range, TsyncBucketing *bucketing, List *buckets,
						  TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	begin_keys(&buf, table);
	tsync_append_range(&buf, table, range);
	tsync_append_bucket_filter(&buf, table, bucketing, buckets, fingerprint);
	return buf.data;
}

/* Keys of the replica in some buckets of a chunk that are not in a row set. */
char *
tsync_sql_unlisted_keys(TsyncTable *table, const char *listed, TsyncRange *range, TsyncBucketing *bucketing,
						List *buckets, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	appendStringInfo(&buf, " FROM (SELECT * FROM %s WHERE ", table->replica_sql);
	tsync_append_range(&buf, table, range);
	tsync_append_bucket_filter(&buf, table, bucketing, buckets, fingerprint);
	appendStringInfo(&buf, ") r WHERE NOT EXISTS (SELECT FROM %s l WHERE ", listed);
	tsync_append_keys_equal(&buf, table, "l.", "r.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* Are values of a type equal only if their bytes are, in collation C if there is one? */
static bool
is_string(Oid type)
{
	return type == TEXTOID || type == VARCHAROID || type == BYTEAOID;
}

/* Append "prefix.column, .." for all columns that are no strings; returns how many. */
static int
append_others(StringInfo buf, TsyncTable *table, const char *prefix)
{
	int			others = 0;

	for (int i = 0; i < table->ncolumns; i++)
		if (!is_string(table->columns[i].type))
			appendStringInfo(buf, "%s%s%s", others++ > 0 ? ", " : "", prefix, table->columns[i].quoted);
	return others;
}

/*
 * Append whether rows s and r differ, byte by byte: not by equality, which some
 * types lack and others take more lightly than we do.  Strings are no part of
 * the records that are compared: these would be further copies of large values.
 */
static void
append_differs(StringInfo buf, TsyncTable *table)
{
	const char *or = "";
	StringInfoData others;

	initStringInfo(&others);
	appendStringInfoChar(buf, '(');
	if (append_others(&others, table, "s.") > 0)
	{
		/* as records, or it would be a comparison by the columns' operators */
		appendStringInfo(buf, "ROW(%s)::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW(", others.data);
		(void) append_others(buf, table, "r.");
		appendStringInfoString(buf, ")::pg_catalog.record");
		or = " OR ";
	}
	for (int i = 0; i < table->ncolumns; i++)
		if (is_string(table->columns[i].type))
		{
			const char *collate = table->columns[i].type == BYTEAOID ? "" : " COLLATE pg_catalog.\"C\"";

			appendStringInfo(buf, "%ss.%s%s IS DISTINCT FROM r.%s%s", or, table->columns[i].quoted, collate,
							 table->columns[i].quoted, collate);
			or = " OR ";
		}
	appendStringInfoChar(buf, ')');
}

/*
 * The rows of a row set that the replica does not have, or has with other values;
 * a further column tells which.  One statement: it looks each of them up.
 */
char *
tsync_sql_different_rows(TsyncTable *table, const char *rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_columns(&buf, table, "s.");
	appendStringInfo(&buf, ", r.%s IS NULL FROM %s s LEFT JOIN %s r ON ", table->keys[0]->quoted, rows, table->replica_sql);
	tsync_append_keys_equal(&buf, table, "r.", "s.");
	appendStringInfo(&buf, " WHERE r.%s IS NULL OR ", table->keys[0]->quoted);
	append_differs(&buf, table);
	return buf.data;
}

/* Of the rows with columns that were fetched for all rows ("part": a table that has only these and its key) those not staged. */
char *
tsync_sql_unstaged_rows(TsyncTable *part)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_columns(&buf, part, "s.");
	appendStringInfo(&buf, " FROM %s s WHERE NOT EXISTS (SELECT FROM %s u WHERE ", TSYNC_REFETCHED, TSYNC_UPDATED);
	tsync_append_keys_equal(&buf, part, "u.", "s.");
	appendStringInfo(&buf, ") AND NOT EXISTS (SELECT FROM %s d WHERE ", TSYNC_DELETED);
	tsync_append_keys_equal(&buf, part, "d.", "s.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* The replica's rows with the columns that were fetched for all rows, where they have others. */
char *
tsync_sql_refetched_rows(TsyncTable *table, TsyncTable *part)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&buf, "%s%s.%s", i > 0 ? ", " : "",
						 table->columns[i].refetch && !tsync_is_key(table, &table->columns[i]) ? "s" : "r",
						 table->columns[i].quoted);
	appendStringInfo(&buf, " FROM %s s JOIN %s r ON ", TSYNC_REFETCHED, table->replica_sql);
	tsync_append_keys_equal(&buf, table, "s.", "r.");
	appendStringInfoString(&buf, " WHERE ");
	append_differs(&buf, part);
	return buf.data;
}

/* How many rows of a row set the replica does not have, or has with other values; a second column is NULL. */
char *
tsync_sql_count_different_rows(TsyncTable *table, const char *rows)
{
	return psprintf("SELECT pg_catalog.count(*), NULL::pg_catalog.text FROM (%s) d", tsync_sql_different_rows(table, rows));
}

/* (rows, sum of fingerprints) of a row set. */
char *
tsync_sql_digest_of_rows(TsyncTable *table, const char *rows, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.count(*), pg_catalog.sum(");
	tsync_append_fingerprint(&buf, table, fingerprint);
	appendStringInfo(&buf, ") FROM %s", rows);
	return buf.data;
}
