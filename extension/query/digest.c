/*-------------------------------------------------------------------------
 *
 * digest.c
 *	  SQL text for digests, buckets, and comparing rows by their fingerprints.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "query/query.h"

/* Append the number of the bucket that a row belongs to. */
static void
append_bucket(StringInfo buf, TsyncTable *table, TsyncBucketing *bucketing, TsyncFingerprint fingerprint)
{
	if (bucketing->mask == TSYNC_BITMAP_MASK)
	{
		appendStringInfo(buf, "%s OPERATOR(pg_catalog.>>) %d", table->keys[0]->quoted, bucketing->shift);
		return;
	}
	appendStringInfo(buf, "(%s", tsync_key_number(table, fingerprint.source_version));
	if (table->nkeys == 1 && tsync_is_integer(table->keys[0]->type))
		appendStringInfo(buf, " OPERATOR(pg_catalog.>>) %d", bucketing->shift);
	appendStringInfo(buf, ") OPERATOR(pg_catalog.&) " INT64_FORMAT "::pg_catalog.int8",
					 bucketing->mask);
}

/* Append which bit stands for a row's key in the bitmap of its bucket. */
static void
append_bit_number(StringInfo buf, TsyncTable *table)
{
	TsyncColumn *key = table->keys[0];

	appendStringInfo(buf, "(%s%s OPERATOR(pg_catalog.&) %d%s)%s",
					 key->quoted, key->type == INT2OID ? "::pg_catalog.int4" : "",
					 TSYNC_BITMAP_KEYS - 1, key->type == INT8OID ? "::pg_catalog.int8" : "",
					 key->type == INT8OID ? "::pg_catalog.int4" : "");
}

static void
append_bit(StringInfo buf, TsyncTable *table)
{
	appendStringInfoString(buf, "1::pg_catalog.int8 OPERATOR(pg_catalog.<<) ");
	append_bit_number(buf, table);
}

/* Append the 64 keys of each bucket of a bitmap, as an array's elements. */
static void
append_keys_of_buckets(StringInfo buf, List *buckets)
{
	ListCell   *lc;

	foreach(lc, buckets)
	{
		int64		first = (int64) ((uint64) ((TsyncBucket *) lfirst(lc))->number << TSYNC_BITMAP_SHIFT);

		for (int i = 0; i < 1 << TSYNC_BITMAP_SHIFT; i++)
			appendStringInfo(buf, "%s" INT64_FORMAT, i == 0 && lc == list_head(buckets) ? "" : ",", first + i);
	}
}

/*
 * Append " AND bucket = ANY (..)" for a list of TsyncBucket; NIL stands for all
 * buckets.  The keys of a few bitmaps are listed, for an index to find.
 */
void
tsync_append_bucket_filter(StringInfo buf, TsyncTable *table, TsyncBucketing *bucketing,
						   List *buckets, TsyncFingerprint fingerprint)
{
	ListCell   *lc;

	if (buckets == NIL)
		return;
	if (bucketing->mask == TSYNC_BITMAP_MASK && list_length(buckets) <= TSYNC_INDEXED_BUCKETS)
	{
		appendStringInfo(buf, " AND %s OPERATOR(pg_catalog.=) ANY ('{", table->keys[0]->quoted);
		append_keys_of_buckets(buf, buckets);
		appendStringInfo(buf, "}'::%s[])", tsync_type_sql(table->keys[0]->type));
		return;
	}
	appendStringInfoString(buf, " AND (");
	append_bucket(buf, table, bucketing, fingerprint);
	appendStringInfoString(buf, ")::pg_catalog.int8 OPERATOR(pg_catalog.=) ANY ('{");
	foreach(lc, buckets)
		appendStringInfo(buf, "%s" INT64_FORMAT, lc == list_head(buckets) ? "" : ",",
						 ((TsyncBucket *) lfirst(lc))->number);
	appendStringInfoString(buf, "}'::pg_catalog.int8[])");
}

/* Where the rows of a side are that a fingerprint can be made of. */
static const char *
fingerprinted(TsyncTable *table, TsyncSide side, TsyncFingerprint fingerprint)
{
	return side == TSYNC_SOURCE && fingerprint.xmin ? table->xmin_rows : tsync_relation_sql(table, side);
}

/* Append the sum of fingerprints; by xmin the replica's rows have none. */
static void
append_sum(StringInfo buf, TsyncTable *table, TsyncSide side, TsyncFingerprint fingerprint)
{
	appendStringInfoString(buf, "pg_catalog.sum(");
	if (side == TSYNC_REPLICA && fingerprint.xmin)
		appendStringInfoString(buf, "0::pg_catalog.int8");
	else
		tsync_append_fingerprint(buf, table, fingerprint);
	appendStringInfoChar(buf, ')');
}

/* (rows, sum of fingerprints) of a chunk. */
char *
tsync_sql_digest(TsyncTable *table, TsyncSide side, TsyncRange *range, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.count(*), ");
	append_sum(&buf, table, side, fingerprint);
	appendStringInfo(&buf, " FROM %s WHERE ", fingerprinted(table, side, fingerprint));
	tsync_append_range(&buf, table, range);
	return buf.data;
}

/*
 * (rows, sum of fingerprints) of the source's rows in a range of blocks, but
 * not of the rows in some chunks.
 */
char *
tsync_sql_digest_without(TsyncTable *table, TsyncRange *range, List *chunks, TsyncFingerprint fingerprint)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoString(&buf, tsync_sql_digest(table, TSYNC_SOURCE, range, fingerprint));
	foreach(lc, chunks)
	{
		appendStringInfoString(&buf, " AND NOT (");
		tsync_append_range(&buf, table, lfirst(lc));
		appendStringInfoChar(&buf, ')');
	}
	return buf.data;
}

/*
 * (bucket, rows, sum of fingerprints) of each bucket of a chunk; rows are a
 * bitmap where buckets are, and then a fourth column may be the moment, or at
 * the source the bitmap of the rows that have reached the watermark.  By xmin
 * it is that of the new rows, or their number.
 */
char *
tsync_sql_buckets(TsyncTable *table, TsyncSide side, TsyncRange *range,
				  TsyncBucketing *bucketing, TsyncFingerprint fingerprint)
{
	bool		bitmap = bucketing->mask == TSYNC_BITMAP_MASK;
	TsyncHint	hint = tsync_hint(table, fingerprint);
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	append_bucket(&buf, table, bucketing, fingerprint);
	appendStringInfoString(&buf, bitmap ? ", pg_catalog.bit_or(" : ", pg_catalog.count(*");
	if (bitmap)
		append_bit(&buf, table);
	appendStringInfoString(&buf, "), ");
	append_sum(&buf, table, side, fingerprint);
	if (fingerprint.xmin && hint == TSYNC_HINT_RECENT && side == TSYNC_SOURCE)
	{
		appendStringInfoString(&buf, bitmap ? ", pg_catalog.bit_or(" : ", pg_catalog.count(*");
		if (bitmap)
			append_bit(&buf, table);
		appendStringInfoString(&buf, ") FILTER (WHERE ");
		tsync_append_is_new(&buf, table);
		appendStringInfoChar(&buf, ')');
	}
	else if (bitmap && hint == TSYNC_HINT_MOMENT)
	{
		appendStringInfoString(&buf, ", pg_catalog.sum(");
		tsync_append_fingerprint(&buf, table, fingerprint);
		appendStringInfoString(&buf, " OPERATOR(pg_catalog.<<) ");
		append_bit_number(&buf, table);
		appendStringInfoChar(&buf, ')');
	}
	else if (bitmap && side == TSYNC_SOURCE && hint == TSYNC_HINT_RECENT)
	{
		appendStringInfoString(&buf, ", pg_catalog.bit_or(");
		append_bit(&buf, table);
		appendStringInfoString(&buf, ") FILTER (WHERE ");
		tsync_append_comparison(&buf, table->version, ">=", table->watermark);
		appendStringInfoChar(&buf, ')');
	}
	appendStringInfo(&buf, " FROM %s WHERE ", fingerprinted(table, side, fingerprint));
	tsync_append_range(&buf, table, range);
	appendStringInfoString(&buf, " GROUP BY 1");
	return buf.data;
}

/* The fingerprints of the replica's rows. */
char *
tsync_sql_fingerprint(TsyncTable *table, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_fingerprint(&buf, table, fingerprint);
	appendStringInfo(&buf, " FROM %s", table->replica_sql);
	return buf.data;
}

/* (key, fingerprint) of the rows in a row set; for a single integer key. */
char *
tsync_sql_fingerprints(TsyncTable *table, const char *rows, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT %s, ", table->keys[0]->quoted);
	tsync_append_fingerprint(&buf, table, fingerprint);
	appendStringInfo(&buf, " FROM %s", rows);
	return buf.data;
}

/* (key, fingerprint) of the replica's rows by key; for a single integer key. */
char *
tsync_sql_fingerprints_of_keys(TsyncTable *table, List *keys, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s WHERE ", tsync_sql_fingerprints(table, table->replica_sql, fingerprint));
	tsync_append_key_list(&buf, table, keys);
	return buf.data;
}

/* (rows, sum of fingerprints) of the replica's rows whose keys are in a row set. */
char *
tsync_sql_digest_of_keys(TsyncTable *table, const char *keys, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.count(*), pg_catalog.sum(");
	tsync_append_fingerprint(&buf, table, fingerprint);
	appendStringInfo(&buf, ") FROM %s r WHERE EXISTS (SELECT FROM %s k WHERE ", table->replica_sql, keys);
	tsync_append_keys_equal(&buf, table, "r.", "k.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/*
 * Keys of a source's buckets, each with its version or, where the fingerprint
 * takes all columns, with the fingerprint computed there.
 */
char *
tsync_sql_list_source(TsyncTable *table, TsyncRange *range, TsyncBucketing *bucketing,
					  List *buckets, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	if (fingerprint.all_columns)
	{
		appendStringInfoString(&buf, ", pg_catalog.sum(");
		tsync_append_fingerprint(&buf, table, fingerprint);
		appendStringInfoChar(&buf, ')');
	}
	else
		appendStringInfo(&buf, ", %s", table->version->quoted);
	appendStringInfo(&buf, " FROM %s WHERE ", table->source_rows);
	tsync_append_range(&buf, table, range);
	tsync_append_bucket_filter(&buf, table, bucketing, buckets, fingerprint);
	if (fingerprint.all_columns)
	{
		appendStringInfoString(&buf, " GROUP BY ");
		tsync_append_keys(&buf, table, 0, table->nkeys, "");
	}
	return buf.data;
}

/* Append "key AS k1, .., ": names that no column of the user's can clash with. */
static void
append_numbered_keys(StringInfo buf, TsyncTable *table)
{
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%s AS k%d, ", table->keys[i]->quoted, i + 1);
}

/*
 * Keys that differ between the listed rows of the source and the replica's,
 * in key order, each with i (insert), u (update) or d (delete).
 */
char *
tsync_sql_compare(TsyncTable *table, const char *listed, TsyncRange *range,
				  TsyncBucketing *bucketing, List *buckets, TsyncFingerprint fingerprint)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 1; i <= table->nkeys; i++)
		appendStringInfo(&buf, "COALESCE(s.k%d, r.k%d), ", i, i);
	appendStringInfoString(&buf, "(CASE WHEN r.f IS NULL THEN 'i' WHEN s.f IS NULL THEN 'd' ELSE 'u' END)"
						   "::pg_catalog.\"char\" FROM (SELECT ");
	append_numbered_keys(&buf, table);
	if (fingerprint.all_columns)
		appendStringInfo(&buf, "%s::pg_catalog.int8", table->fingerprint_column);
	else
		tsync_append_fingerprint(&buf, table, fingerprint);
	appendStringInfo(&buf, " AS f FROM %s) s FULL JOIN (SELECT ", listed);
	append_numbered_keys(&buf, table);
	tsync_append_fingerprint(&buf, table, fingerprint);
	appendStringInfo(&buf, " AS f FROM %s WHERE ", table->replica_sql);
	tsync_append_range(&buf, table, range);
	tsync_append_bucket_filter(&buf, table, bucketing, buckets, fingerprint);
	appendStringInfoString(&buf, ") r ON ");
	for (int i = 1; i <= table->nkeys; i++)
		appendStringInfo(&buf, "%ss.k%d OPERATOR(pg_catalog.=) r.k%d", i > 1 ? " AND " : "", i, i);
	appendStringInfoString(&buf, " WHERE s.f IS DISTINCT FROM r.f ORDER BY 1");
	for (int i = 2; i <= table->nkeys; i++)
		appendStringInfo(&buf, ", %d", i);
	return buf.data;
}
