/*-------------------------------------------------------------------------
 *
 * new_rows.c
 *	  SQL text about rows that are new at the source, by the transactions that wrote them.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "query/query.h"

/* Begin a query for keys of the source, where their xmin is. */
static void
begin_keys(StringInfo buf, TsyncTable *table)
{
	initStringInfo(buf);
	appendStringInfoString(buf, "SELECT ");
	tsync_append_keys(buf, table, 0, table->nkeys, "");
	appendStringInfo(buf, " FROM %s WHERE ", table->xmin_sql);
}

/* Keys of the new rows in some buckets of a chunk; NIL stands for all buckets. */
char *
tsync_sql_new_keys(TsyncTable *table, TsyncRange *range, TsyncBucketing *bucketing, List *buckets,
				   TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	begin_keys(&buf, table);
	tsync_append_range(&buf, table, range, false);
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
	tsync_append_range(&buf, table, range, false);
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
	tsync_append_range(&buf, table, range, false);
	tsync_append_bucket_filter(&buf, table, bucketing, buckets, fingerprint);
	appendStringInfo(&buf, ") r WHERE NOT EXISTS (SELECT FROM %s l WHERE ", listed);
	tsync_append_keys_equal(&buf, table, "l.", "r.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* The rows of a row set whose keys the replica does not have. */
char *
tsync_sql_missing_rows(TsyncTable *table, const char *rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_columns(&buf, table, "s.");
	appendStringInfo(&buf, " FROM %s s WHERE NOT EXISTS (SELECT FROM %s r WHERE ", rows, table->replica_sql);
	tsync_append_keys_equal(&buf, table, "r.", "s.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* The rows of a row set that the replica has with other values, byte by byte. */
char *
tsync_sql_changed_rows(TsyncTable *table, const char *rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_columns(&buf, table, "s.");
	appendStringInfoString(&buf, " FROM (SELECT ");
	tsync_append_columns(&buf, table, "");
	appendStringInfo(&buf, " FROM %s) s JOIN (SELECT ", rows);
	tsync_append_columns(&buf, table, "");
	appendStringInfo(&buf, " FROM %s) r ON ", table->replica_sql);
	tsync_append_keys_equal(&buf, table, "r.", "s.");
	/* not by equality, which some types lack and others take more lightly than we do */
	appendStringInfoString(&buf, " WHERE (s.*) OPERATOR(pg_catalog.*<>) (r.*)");
	return buf.data;
}

/* How many rows of a row set the replica has with other values; a second column is NULL. */
char *
tsync_sql_count_changed_rows(TsyncTable *table, const char *rows)
{
	return psprintf("SELECT pg_catalog.count(*), NULL::pg_catalog.text FROM (%s) c", tsync_sql_changed_rows(table, rows));
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
