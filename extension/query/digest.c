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
append_bucket(StringInfo buf, TsyncReplica *rep, TsyncBucketing *bucketing, int version)
{
	if (bucketing->mask == TSYNC_BITMAP_MASK)
	{
		appendStringInfo(buf, "%s OPERATOR(pg_catalog.>>) %d", rep->keys[0]->quoted, bucketing->shift);
		return;
	}
	appendStringInfo(buf, "(%s", tsync_key_number(rep, version));
	if (rep->nkeys == 1 && tsync_is_integer(rep->keys[0]->type))
		appendStringInfo(buf, " OPERATOR(pg_catalog.>>) %d", bucketing->shift);
	appendStringInfo(buf, ") OPERATOR(pg_catalog.&) " INT64_FORMAT "::pg_catalog.int8",
					 bucketing->mask);
}

/* Append which bit stands for a row's key in the bitmap of its bucket. */
static void
append_bit_number(StringInfo buf, TsyncReplica *rep)
{
	TsyncColumn *key = rep->keys[0];

	appendStringInfo(buf, "(%s%s OPERATOR(pg_catalog.&) 63%s)%s",
					 key->quoted, key->type == INT2OID ? "::pg_catalog.int4" : "",
					 key->type == INT8OID ? "::pg_catalog.int8" : "",
					 key->type == INT8OID ? "::pg_catalog.int4" : "");
}

static void
append_bit(StringInfo buf, TsyncReplica *rep)
{
	appendStringInfoString(buf, "1::pg_catalog.int8 OPERATOR(pg_catalog.<<) ");
	append_bit_number(buf, rep);
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
static void
append_bucket_filter(StringInfo buf, TsyncReplica *rep, TsyncBucketing *bucketing,
					 List *buckets, int version)
{
	ListCell   *lc;

	if (buckets == NIL)
		return;
	if (bucketing->mask == TSYNC_BITMAP_MASK && list_length(buckets) <= TSYNC_INDEXED_BUCKETS)
	{
		appendStringInfo(buf, " AND %s OPERATOR(pg_catalog.=) ANY ('{", rep->keys[0]->quoted);
		append_keys_of_buckets(buf, buckets);
		appendStringInfo(buf, "}'::%s[])", tsync_type_sql(rep->keys[0]->type));
		return;
	}
	appendStringInfoString(buf, " AND (");
	append_bucket(buf, rep, bucketing, version);
	appendStringInfoString(buf, ")::pg_catalog.int8 OPERATOR(pg_catalog.=) ANY ('{");
	foreach(lc, buckets)
		appendStringInfo(buf, "%s" INT64_FORMAT, lc == list_head(buckets) ? "" : ",",
						 ((TsyncBucket *) lfirst(lc))->number);
	appendStringInfoString(buf, "}'::pg_catalog.int8[])");
}

/* (rows, sum of fingerprints) of a chunk. */
char *
tsync_sql_digest(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.count(*), pg_catalog.sum(");
	tsync_append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, ") FROM %s WHERE ", tsync_relation_sql(rep, side));
	tsync_append_range(&buf, rep, chunk, false);
	return buf.data;
}

/*
 * (rows, sum of fingerprints) of the source's rows in a range of blocks, but
 * not of the rows in some chunks.
 */
char *
tsync_sql_digest_without(TsyncReplica *rep, TsyncChunk *range, List *chunks, int version)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoString(&buf, tsync_sql_digest(rep, TSYNC_SOURCE, range, version));
	foreach(lc, chunks)
	{
		appendStringInfoString(&buf, " AND NOT (");
		tsync_append_range(&buf, rep, lfirst(lc), false);
		appendStringInfoChar(&buf, ')');
	}
	return buf.data;
}

/*
 * (bucket, rows, sum of fingerprints) of each bucket of a chunk; rows are a
 * bitmap where buckets are, and then a fourth column may be the moment, or at
 * the source the bitmap of the rows that have reached the watermark.
 */
char *
tsync_sql_buckets(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk,
				  TsyncBucketing *bucketing, int version)
{
	bool		bitmap = bucketing->mask == TSYNC_BITMAP_MASK;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	append_bucket(&buf, rep, bucketing, version);
	appendStringInfoString(&buf, bitmap ? ", pg_catalog.bit_or(" : ", pg_catalog.count(*");
	if (bitmap)
		append_bit(&buf, rep);
	appendStringInfoString(&buf, "), pg_catalog.sum(");
	tsync_append_fingerprint(&buf, rep, version);
	appendStringInfoChar(&buf, ')');
	if (bitmap && tsync_hint(rep) == TSYNC_HINT_MOMENT)
	{
		appendStringInfoString(&buf, ", pg_catalog.sum(");
		tsync_append_fingerprint(&buf, rep, version);
		appendStringInfoString(&buf, " OPERATOR(pg_catalog.<<) ");
		append_bit_number(&buf, rep);
		appendStringInfoChar(&buf, ')');
	}
	else if (bitmap && side == TSYNC_SOURCE && tsync_hint(rep) == TSYNC_HINT_RECENT)
	{
		appendStringInfoString(&buf, ", pg_catalog.bit_or(");
		append_bit(&buf, rep);
		appendStringInfoString(&buf, ") FILTER (WHERE ");
		tsync_append_comparison(&buf, rep->version, ">=", rep->watermark);
		appendStringInfoChar(&buf, ')');
	}
	appendStringInfo(&buf, " FROM %s WHERE ", tsync_relation_sql(rep, side));
	tsync_append_range(&buf, rep, chunk, false);
	appendStringInfoString(&buf, " GROUP BY 1");
	return buf.data;
}

/* The fingerprints of the replica's rows. */
char *
tsync_sql_fingerprint(TsyncReplica *rep, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, " FROM %s", rep->replica_sql);
	return buf.data;
}

/* (key, fingerprint) of the rows in a row set; for a single integer key. */
char *
tsync_sql_fingerprints(TsyncReplica *rep, const char *rows, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT %s, ", rep->keys[0]->quoted);
	tsync_append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, " FROM %s", rows);
	return buf.data;
}

/* (key, fingerprint) of the replica's rows by key; for a single integer key. */
char *
tsync_sql_fingerprints_of_keys(TsyncReplica *rep, List *keys, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s WHERE ", tsync_sql_fingerprints(rep, rep->replica_sql, version));
	tsync_append_key_list(&buf, rep, keys);
	return buf.data;
}

/* (rows, sum of fingerprints) of the replica's rows whose keys are in a row set. */
char *
tsync_sql_digest_of_keys(TsyncReplica *rep, const char *keys, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.count(*), pg_catalog.sum(");
	tsync_append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, ") FROM %s r WHERE EXISTS (SELECT FROM %s k WHERE ", rep->replica_sql, keys);
	tsync_append_keys_equal(&buf, rep, "r.", "k.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/*
 * Keys of a source's buckets, each with its version or, where the fingerprint
 * takes all columns, with the fingerprint computed there.
 */
char *
tsync_sql_list_source(TsyncReplica *rep, TsyncChunk *chunk, TsyncBucketing *bucketing,
					  List *buckets, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	if (rep->row_fingerprint)
	{
		appendStringInfoString(&buf, ", pg_catalog.sum(");
		tsync_append_fingerprint(&buf, rep, version);
		appendStringInfoChar(&buf, ')');
	}
	else
		appendStringInfo(&buf, ", %s", rep->version->quoted);
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	tsync_append_range(&buf, rep, chunk, false);
	append_bucket_filter(&buf, rep, bucketing, buckets, version);
	if (rep->row_fingerprint)
	{
		appendStringInfoString(&buf, " GROUP BY ");
		tsync_append_keys(&buf, rep, 0, rep->nkeys, "");
	}
	return buf.data;
}

/* Append "key AS k1, .., ": names that no column of the user's can clash with. */
static void
append_numbered_keys(StringInfo buf, TsyncReplica *rep)
{
	for (int i = 0; i < rep->nkeys; i++)
		appendStringInfo(buf, "%s AS k%d, ", rep->keys[i]->quoted, i + 1);
}

/*
 * Keys that differ between the listed rows of the source and the replica's,
 * in key order, each with i (insert), u (update) or d (delete).
 */
char *
tsync_sql_compare(TsyncReplica *rep, const char *listed, TsyncChunk *chunk,
				  TsyncBucketing *bucketing, List *buckets, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 1; i <= rep->nkeys; i++)
		appendStringInfo(&buf, "COALESCE(s.k%d, r.k%d), ", i, i);
	appendStringInfoString(&buf, "(CASE WHEN r.f IS NULL THEN 'i' WHEN s.f IS NULL THEN 'd' ELSE 'u' END)"
						   "::pg_catalog.\"char\" FROM (SELECT ");
	append_numbered_keys(&buf, rep);
	if (rep->row_fingerprint)
		appendStringInfo(&buf, "%s::pg_catalog.int8", rep->fingerprint_column);
	else
		tsync_append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, " AS f FROM %s) s FULL JOIN (SELECT ", listed);
	append_numbered_keys(&buf, rep);
	tsync_append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, " AS f FROM %s WHERE ", rep->replica_sql);
	tsync_append_range(&buf, rep, chunk, false);
	append_bucket_filter(&buf, rep, bucketing, buckets, version);
	appendStringInfoString(&buf, ") r ON ");
	for (int i = 1; i <= rep->nkeys; i++)
		appendStringInfo(&buf, "%ss.k%d OPERATOR(pg_catalog.=) r.k%d", i > 1 ? " AND " : "", i, i);
	appendStringInfoString(&buf, " WHERE s.f IS DISTINCT FROM r.f ORDER BY 1");
	for (int i = 2; i <= rep->nkeys; i++)
		appendStringInfo(&buf, ", %d", i);
	return buf.data;
}
