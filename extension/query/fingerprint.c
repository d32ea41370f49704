/*-------------------------------------------------------------------------
 *
 * fingerprint.c
 *	  SQL text for the fingerprint of a row.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "query/query.h"

/*
 * The 64-bit number that stands for a row's key: the key itself if it is an
 * integer, else a chain of hashes of which each seeds the next.
 */
char *
tsync_key_number(TsyncTable *table, int version)
{
	char	   *number = "0";

	if (table->nkeys == 1 && tsync_is_integer(table->keys[0]->type))
		return psprintf("%s::pg_catalog.int8", table->keys[0]->quoted);

	for (int i = 0; i < table->nkeys; i++)
	{
		StringInfoData buf;

		initStringInfo(&buf);
		tsync_append_hash(&buf, table->keys[i], number, version);
		number = buf.data;
	}
	return number;
}

/* Append the hash of a column; "null_value" stands for NULL. */
void
tsync_append_column_hash(StringInfo buf, TsyncColumn *column, const char *seed,
						 const char *null_value, int version)
{
	if (column->nullable)
		appendStringInfo(buf, "CASE WHEN %s IS NULL THEN %s ELSE ", column->quoted, null_value);
	tsync_append_hash(buf, column, seed, version);
	if (column->nullable)
		appendStringInfoString(buf, " END");
}

/*
 * Append the fingerprint of a row: the version column's hash seeded by the
 * key, or one hash over the XOR of the key and of all other columns' hashes,
 * each with a seed of its own.  That last hash ties the values of a row
 * together: without it, rows that swap their values would leave the sum as
 * it was.
 */
void
tsync_append_fingerprint(StringInfo buf, TsyncTable *table, TsyncFingerprint fingerprint)
{
	char	   *key = tsync_key_number(table, fingerprint.source_version);

	Assert(fingerprint.source_version > 0);
	Assert(fingerprint.xmin || fingerprint.all_columns || table->version != NULL);
	if (fingerprint.xmin)
	{
		/* xid has no hash of its own that ships */
		appendStringInfo(buf, "pg_catalog.hash_array_extended(ARRAY[%s], %s)", table->xmin_column, key);
		return;
	}
	if (!fingerprint.all_columns)
	{
		tsync_append_column_hash(buf, table->version, key,
								 psprintf("pg_catalog.hashint4extended(0, %s)", key), fingerprint.source_version);
		return;
	}
	appendStringInfo(buf, "pg_catalog.hashint4extended(0, %s", key);
	for (int i = 0; i < table->ncolumns; i++)
	{
		if (tsync_is_key(table, &table->columns[i]) ||
			(fingerprint.opaque_apart && table->columns[i].opaque))
			continue;
		appendStringInfoString(buf, " OPERATOR(pg_catalog.#) ");
		tsync_append_column_hash(buf, &table->columns[i], psprintf("%d", i + 1), "0", fingerprint.source_version);
	}
	appendStringInfoChar(buf, ')');
}

/*
 * Text that changes whenever digests would: what a fingerprint covers, and
 * how.  Not run.
 */
char *
tsync_sql_memory_key(TsyncTable *table, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	tsync_append_fingerprint(&buf, table, fingerprint);
	appendStringInfoString(&buf, " of ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	for (int i = 0; fingerprint.all_columns && i < table->ncolumns; i++)
	{
		appendStringInfo(&buf, ", %s %u", table->columns[i].quoted, table->columns[i].type);
		if (table->columns[i].expression != NULL)
			appendStringInfo(&buf, " as %s", table->columns[i].expression);
	}
	if (table->filter != NULL)
		appendStringInfo(&buf, " where %s", table->filter);
	if (tsync_hint(table, fingerprint) == TSYNC_HINT_MOMENT)
		appendStringInfoString(&buf, " with moments");
	return buf.data;
}

/*
 * What shows the changed rows of a bitmap: the transaction that wrote them, the
 * version column, or, where every column counts and there is none, the moment.  A row that changes its
 * fingerprint by d changes the sum by d and the moment by d << bit, which tells
 * the bit, and costs a second fingerprint.
 */
TsyncHint
tsync_hint(TsyncTable *table, TsyncFingerprint fingerprint)
{
	if (fingerprint.xmin)
		return table->horizon.known ? TSYNC_HINT_RECENT : TSYNC_HINT_NONE;
	if (table->version != NULL)
		return table->watermark != NULL ? TSYNC_HINT_RECENT : TSYNC_HINT_NONE;
	return TSYNC_HINT_MOMENT;
}

/*
 * Append that a row was written by a transaction that had not ended when a run
 * last succeeded.  Transaction ids have no order in SQL, but their bytes have.
 */
void
tsync_append_is_new(StringInfo buf, TsyncTable *table)
{
	TsyncHorizon *horizon = &table->horizon;

	Assert(horizon->known && table->xmin_column != NULL);
	appendStringInfo(buf, "(pg_catalog.xidsend(%s) OPERATOR(pg_catalog.>=) '\\x%08x'::pg_catalog.bytea %s"
					 " pg_catalog.xidsend(%s) OPERATOR(pg_catalog.<) '\\x%08x'::pg_catalog.bytea)",
					 table->xmin_column, horizon->first, horizon->first <= horizon->end ? "AND" : "OR",
					 table->xmin_column, horizon->end);
}
