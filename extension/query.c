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

#include "catalog/pg_type.h"
#include "utils/builtins.h"

static const char *
relation_sql(TsyncReplica *rep, TsyncSide side)
{
	return side == TSYNC_SOURCE ? rep->source_sql : rep->replica_sql;
}

/* Append the columns, separated by commas, each with a prefix such as "s.". */
static void
append_columns(StringInfo buf, TsyncReplica *rep, const char *prefix)
{
	for (int i = 0; i < rep->ncolumns; i++)
		appendStringInfo(buf, "%s%s%s", i > 0 ? ", " : "", prefix, rep->columns[i].quoted);
}

static void
append_keys(StringInfo buf, TsyncReplica *rep, int first, int last, const char *prefix)
{
	for (int i = first; i < last; i++)
		appendStringInfo(buf, "%s%s%s", i > first ? ", " : "", prefix, rep->keys[i]->quoted);
}

/* A type's name for a cast that changes nothing: character(n) is bpchar. */
static const char *
type_sql(Oid type)
{
	return format_type_extended(type, -1, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

static void
append_literal(StringInfo buf, const char *value, Oid type)
{
	appendStringInfo(buf, "%s::%s", quote_literal_cstr(value), type_sql(type));
}

/* Append "column operator value". */
static void
append_comparison(StringInfo buf, TsyncColumn *column, const char *operator, const char *value)
{
	appendStringInfo(buf, "%s OPERATOR(pg_catalog.%s) ", column->quoted, operator);
	append_literal(buf, value, column->type);
}

/* Append "a.k1 = b.k1 AND a.k2 = b.k2 .." */
static void
append_keys_equal(StringInfo buf, TsyncReplica *rep, const char *a, const char *b)
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
		append_comparison(buf, rep->keys[first], last, bound[first]);
		return;
	}
	append_comparison(buf, rep->keys[first], loose, bound[first]);
	appendStringInfoString(buf, " AND (");
	append_comparison(buf, rep->keys[first], strict, bound[first]);
	appendStringInfoString(buf, " OR (");
	append_bound(buf, rep, first + 1, end, bound, strict, loose, last);
	appendStringInfoString(buf, "))");
}

/* Append the condition that a row belongs to a chunk, or to a range of blocks. */
static void
append_range(StringInfo buf, TsyncReplica *rep, TsyncChunk *chunk, bool above_lower)
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
			append_comparison(buf, rep->keys[first], "=", chunk->lower[first]);
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

/*
 * The 64-bit number that stands for a row's key: the key itself if it is an
 * integer, else a chain of hashes of which each seeds the next.
 */
static char *
key_number(TsyncReplica *rep, int version)
{
	char	   *number = "0";

	if (rep->nkeys == 1 && tsync_is_integer(rep->keys[0]->type))
		return psprintf("%s::pg_catalog.int8", rep->keys[0]->quoted);

	for (int i = 0; i < rep->nkeys; i++)
	{
		StringInfoData buf;

		initStringInfo(&buf);
		tsync_append_hash(&buf, rep->keys[i], number, version);
		number = buf.data;
	}
	return number;
}

/* Append the hash of a column; "null_value" stands for NULL. */
static void
append_column_hash(StringInfo buf, TsyncColumn *column, const char *seed,
				   const char *null_value, int version)
{
	if (column->nullable)
		appendStringInfo(buf, "CASE WHEN %s IS NULL THEN %s ELSE ", column->quoted, null_value);
	tsync_append_hash(buf, column, seed, version);
	if (column->nullable)
		appendStringInfoString(buf, " END");
}

static bool
is_key(TsyncReplica *rep, TsyncColumn *column)
{
	for (int i = 0; i < rep->nkeys; i++)
		if (rep->keys[i] == column)
			return true;
	return false;
}

/*
 * Append the fingerprint of a row: the version column's hash seeded by the
 * key, or one hash over the XOR of the key and of all other columns' hashes,
 * each with a seed of its own.  That last hash ties the values of a row
 * together: without it, rows that swap their values would leave the sum as
 * it was.
 */
static void
append_fingerprint(StringInfo buf, TsyncReplica *rep, int version)
{
	char	   *key = key_number(rep, version);

	if (!rep->row_fingerprint)
	{
		append_column_hash(buf, rep->version, key,
						   psprintf("pg_catalog.hashint4extended(0, %s)", key), version);
		return;
	}
	appendStringInfo(buf, "pg_catalog.hashint4extended(0, %s", key);
	for (int i = 0; i < rep->ncolumns; i++)
	{
		if (is_key(rep, &rep->columns[i]))
			continue;
		appendStringInfoString(buf, " OPERATOR(pg_catalog.#) ");
		append_column_hash(buf, &rep->columns[i], psprintf("%d", i + 1), "0", version);
	}
	appendStringInfoChar(buf, ')');
}

/* Append the number of the bucket that a row belongs to. */
static void
append_bucket(StringInfo buf, TsyncReplica *rep, TsyncBucketing *bucketing, int version)
{
	if (bucketing->mask == TSYNC_BITMAP_MASK)
	{
		appendStringInfo(buf, "%s OPERATOR(pg_catalog.>>) %d", rep->keys[0]->quoted, bucketing->shift);
		return;
	}
	appendStringInfo(buf, "(%s", key_number(rep, version));
	if (rep->nkeys == 1 && tsync_is_integer(rep->keys[0]->type))
		appendStringInfo(buf, " OPERATOR(pg_catalog.>>) %d", bucketing->shift);
	appendStringInfo(buf, ") OPERATOR(pg_catalog.&) " INT64_FORMAT "::pg_catalog.int8",
					 bucketing->mask);
}

/* Append the bit that stands for a row's key in the bitmap of its bucket. */
static void
append_bit(StringInfo buf, TsyncReplica *rep)
{
	TsyncColumn *key = rep->keys[0];

	appendStringInfo(buf, "1::pg_catalog.int8 OPERATOR(pg_catalog.<<) (%s%s OPERATOR(pg_catalog.&) 63%s)%s",
					 key->quoted, key->type == INT2OID ? "::pg_catalog.int4" : "",
					 key->type == INT8OID ? "::pg_catalog.int8" : "",
					 key->type == INT8OID ? "::pg_catalog.int4" : "");
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
		appendStringInfo(buf, "}'::%s[])", type_sql(rep->keys[0]->type));
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
					 quote_literal_cstr(array.data), type_sql(rep->keys[0]->type));
}

/* Append the condition that a row's key is one of a list of keys. */
static void
append_key_list(StringInfo buf, TsyncReplica *rep, List *keys)
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
			append_comparison(buf, rep->keys[i], "=", key[i]);
		}
	}
	appendStringInfoChar(buf, ')');
}

/* (rows, sum of fingerprints) of a chunk. */
char *
tsync_sql_digest(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.count(*), pg_catalog.sum(");
	append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, ") FROM %s WHERE ", relation_sql(rep, side));
	append_range(&buf, rep, chunk, false);
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
		append_range(&buf, rep, lfirst(lc), false);
		appendStringInfoChar(&buf, ')');
	}
	return buf.data;
}

/*
 * (bucket, rows, sum of fingerprints) of each bucket of a chunk; rows are a
 * bitmap where buckets are, and a source with a watermark adds the bitmap of
 * the rows that have reached it.
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
	append_fingerprint(&buf, rep, version);
	appendStringInfoChar(&buf, ')');
	if (bitmap && side == TSYNC_SOURCE && rep->version && rep->watermark)
	{
		appendStringInfoString(&buf, ", pg_catalog.bit_or(");
		append_bit(&buf, rep);
		appendStringInfoString(&buf, ") FILTER (WHERE ");
		append_comparison(&buf, rep->version, ">=", rep->watermark);
		appendStringInfoChar(&buf, ')');
	}
	appendStringInfo(&buf, " FROM %s WHERE ", relation_sql(rep, side));
	append_range(&buf, rep, chunk, false);
	appendStringInfoString(&buf, " GROUP BY 1");
	return buf.data;
}

/* (key, fingerprint) of the rows in a row set; for a single integer key. */
char *
tsync_sql_fingerprints(TsyncReplica *rep, const char *rows, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT %s, ", rep->keys[0]->quoted);
	append_fingerprint(&buf, rep, version);
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
	append_key_list(&buf, rep, keys);
	return buf.data;
}

/* (rows, sum of fingerprints) of the replica's rows whose keys are in a row set. */
char *
tsync_sql_digest_of_keys(TsyncReplica *rep, const char *keys, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.count(*), pg_catalog.sum(");
	append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, ") FROM %s r WHERE EXISTS (SELECT FROM %s k WHERE ", rep->replica_sql, keys);
	append_keys_equal(&buf, rep, "r.", "k.");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/*
 * Text that changes whenever digests would: what a fingerprint covers, and
 * how.  Not run.
 */
char *
tsync_sql_memory_key(TsyncReplica *rep, int version)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_fingerprint(&buf, rep, version);
	appendStringInfoString(&buf, " of ");
	append_keys(&buf, rep, 0, rep->nkeys, "");
	for (int i = 0; rep->row_fingerprint && i < rep->ncolumns; i++)
		appendStringInfo(&buf, ", %s %u", rep->columns[i].quoted, rep->columns[i].type);
	return buf.data;
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
	append_keys(&buf, rep, 0, rep->nkeys, "");
	if (rep->row_fingerprint)
	{
		appendStringInfoString(&buf, ", pg_catalog.sum(");
		append_fingerprint(&buf, rep, version);
		appendStringInfoChar(&buf, ')');
	}
	else
		appendStringInfo(&buf, ", %s", rep->version->quoted);
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	append_range(&buf, rep, chunk, false);
	append_bucket_filter(&buf, rep, bucketing, buckets, version);
	if (rep->row_fingerprint)
	{
		appendStringInfoString(&buf, " GROUP BY ");
		append_keys(&buf, rep, 0, rep->nkeys, "");
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
		append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, " AS f FROM %s) s FULL JOIN (SELECT ", listed);
	append_numbered_keys(&buf, rep);
	append_fingerprint(&buf, rep, version);
	appendStringInfo(&buf, " AS f FROM %s WHERE ", rep->replica_sql);
	append_range(&buf, rep, chunk, false);
	append_bucket_filter(&buf, rep, bucketing, buckets, version);
	appendStringInfoString(&buf, ") r ON ");
	for (int i = 1; i <= rep->nkeys; i++)
		appendStringInfo(&buf, "%ss.k%d OPERATOR(pg_catalog.=) r.k%d", i > 1 ? " AND " : "", i, i);
	appendStringInfoString(&buf, " WHERE s.f IS DISTINCT FROM r.f ORDER BY 1");
	for (int i = 2; i <= rep->nkeys; i++)
		appendStringInfo(&buf, ", %d", i);
	return buf.data;
}

/* Whole source rows of a range. */
char *
tsync_sql_range(TsyncReplica *rep, TsyncChunk *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	append_range(&buf, rep, range, false);
	return buf.data;
}

/* Whole source rows by key. */
char *
tsync_sql_fetch(TsyncReplica *rep, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	append_key_list(&buf, rep, keys);
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
	append_key_list(&buf, rep, keys);
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

/* Those of a list of keys that the source has. */
char *
tsync_sql_find_keys(TsyncReplica *rep, List *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	append_keys(&buf, rep, 0, rep->nkeys, "");
	appendStringInfo(&buf, " FROM %s WHERE ", rep->source_sql);
	append_key_list(&buf, rep, keys);
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
		append_keys(&buf, rep, 0, rep->nkeys, "");
	else
		append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s", rep->source_sql);
	for (int i = 0; after && i <= prefix; i++)
	{
		appendStringInfoString(&buf, i == 0 ? " WHERE " : " AND ");
		append_comparison(&buf, rep->keys[i], i < prefix ? "=" : ">", after[i]);
	}
	appendStringInfoString(&buf, " ORDER BY ");
	append_keys(&buf, rep, prefix, rep->nkeys, "");
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
	append_keys(&buf, rep, 0, rep->nrange, "");
	appendStringInfo(&buf, " FROM %s WHERE ", relation_sql(rep, side));
	append_range(&buf, rep, chunk, true);
	appendStringInfoString(&buf, " ORDER BY ");
	append_keys(&buf, rep, 0, rep->nrange, "");
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
	append_range(&buf, rep, chunk, false);
	return buf.data;
}

char *
tsync_sql_insert(TsyncReplica *rep, const char *from)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (", rep->replica_sql);
	append_columns(&buf, rep, "");
	appendStringInfoString(&buf, ") OVERRIDING SYSTEM VALUE SELECT ");
	append_columns(&buf, rep, "");
	appendStringInfo(&buf, " FROM %s", from);
	return buf.data;
}

char *
tsync_sql_update(TsyncReplica *rep, const char *from)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "UPDATE %s r SET (", rep->replica_sql);
	append_columns(&buf, rep, "");
	appendStringInfoString(&buf, ") = ROW(");
	append_columns(&buf, rep, "s.");
	appendStringInfo(&buf, ") FROM %s s WHERE ", from);
	append_keys_equal(&buf, rep, "r.", "s.");
	return buf.data;
}

/* Delete by key, but not the keys in "except". */
char *
tsync_sql_delete(TsyncReplica *rep, const char *keys, const char *except)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "DELETE FROM %s r USING %s d WHERE ", rep->replica_sql, keys);
	append_keys_equal(&buf, rep, "r.", "d.");
	if (except)
	{
		appendStringInfo(&buf, " AND NOT EXISTS (SELECT FROM %s e WHERE ", except);
		append_keys_equal(&buf, rep, "e.", "d.");
		appendStringInfoChar(&buf, ')');
	}
	return buf.data;
}
