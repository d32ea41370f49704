/*-------------------------------------------------------------------------
 *
 * write.c
 *	  SQL text that changes the replica.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "query/query.h"

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
end_counted(StringInfo buf, TsyncTable *table, TsyncFingerprint fingerprint)
{
	appendStringInfoString(buf, " RETURNING ");
	/* by xmin rows here have none */
	if (fingerprint.source_version == 0 || fingerprint.xmin)
		appendStringInfoString(buf, "0::pg_catalog.int8");
	else
		tsync_append_fingerprint(buf, table, fingerprint);
	appendStringInfoString(buf, ") SELECT pg_catalog.count(*), pg_catalog.sum(fingerprint) FROM changed");
}

char *
tsync_sql_insert(TsyncTable *table, const char *from, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	begin_counted(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (", table->replica_sql);
	tsync_append_columns(&buf, table, "");
	appendStringInfoString(&buf, ") OVERRIDING SYSTEM VALUE SELECT ");
	tsync_append_columns(&buf, table, "");
	appendStringInfo(&buf, " FROM %s", from);
	end_counted(&buf, table, fingerprint);
	return buf.data;
}

/* Append further columns of the replica, quoted already. */
static void
append_own(StringInfo buf, List *own, const char *prefix)
{
	ListCell   *lc;

	foreach(lc, own)
		appendStringInfo(buf, ", %s%s", prefix, (char *) lfirst(lc));
}

/* Keys of the replica's rows that are in a row set, and their own columns. */
char *
tsync_sql_keep_columns(TsyncTable *table, List *own, const char *from)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "r.");
	append_own(&buf, own, "r.");
	appendStringInfo(&buf, " FROM %s r JOIN %s s ON ", table->replica_sql, from);
	tsync_append_keys_equal(&buf, table, "s.", "r.");
	return buf.data;
}

/* Insert rows again whose own columns were kept. */
char *
tsync_sql_insert_kept(TsyncTable *table, List *own, const char *from, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	begin_counted(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (", table->replica_sql);
	tsync_append_columns(&buf, table, "");
	append_own(&buf, own, "");
	appendStringInfoString(&buf, ") OVERRIDING SYSTEM VALUE SELECT ");
	tsync_append_columns(&buf, table, "s.");
	append_own(&buf, own, "k.");
	appendStringInfo(&buf, " FROM %s s JOIN %s k ON ", from, TSYNC_KEPT);
	tsync_append_keys_equal(&buf, table, "k.", "s.");
	end_counted(&buf, table, fingerprint);
	return buf.data;
}

/* The rows to come have other column names, for RETURNING means the replica's. */
char *
tsync_sql_update(TsyncTable *table, const char *from, TsyncFingerprint fingerprint)
{
	const char *prefix = tsync_unused_prefix(table);
	StringInfoData buf;

	begin_counted(&buf);
	appendStringInfo(&buf, "UPDATE %s r SET (", table->replica_sql);
	tsync_append_columns(&buf, table, "");
	appendStringInfoString(&buf, ") = ROW(");
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&buf, "%s%s%d", i > 0 ? ", " : "", prefix, i + 1);
	appendStringInfo(&buf, ") FROM %s s (", from);
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&buf, "%s%s%d", i > 0 ? ", " : "", prefix, i + 1);
	appendStringInfoString(&buf, ") WHERE ");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%sr.%s OPERATOR(pg_catalog.=) s.%s%d", i > 0 ? " AND " : "",
						 table->keys[i]->quoted, prefix, (int) (table->keys[i] - table->columns) + 1);
	end_counted(&buf, table, fingerprint);
	return buf.data;
}

/* Delete by key, but not the keys in "except". */
char *
tsync_sql_delete(TsyncTable *table, const char *keys, const char *except, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	begin_counted(&buf);
	appendStringInfo(&buf, "DELETE FROM %s r WHERE EXISTS (SELECT FROM %s d WHERE ", table->replica_sql, keys);
	tsync_append_keys_equal(&buf, table, "r.", "d.");
	appendStringInfoChar(&buf, ')');
	if (except)
	{
		appendStringInfo(&buf, " AND NOT EXISTS (SELECT FROM %s e WHERE ", except);
		tsync_append_keys_equal(&buf, table, "e.", "r.");
		appendStringInfoChar(&buf, ')');
	}
	end_counted(&buf, table, fingerprint);
	return buf.data;
}
