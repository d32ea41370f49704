/*-------------------------------------------------------------------------
 *
 * query.h
 *	  SQL text for source and replica, and what its results mean as plain data.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_QUERY_H
#define TABLESYNC_QUERY_H

#include "tablesync.h"

#include "access/tupdesc.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "port/pg_bitutils.h"

/* A column that source and replica have in common. */
typedef struct TsyncColumn
{
	char	   *name;			/* as in the catalogs, for tuple descriptors */
	const char *quoted;			/* the same, ready for SQL text */
	Oid			type;
	int32		typmod;
	bool		nullable;
	bool		opaque;			/* no hash is the same at both ends */
	bool		refetch;		/* to be fetched for all rows, whatever their version; see evolve.c */
	Oid			bytewise_collation; /* ours, of text that both sides sort by its bytes */
	const char *expression;		/* by which the source computes it, SQL text; NULL: it is a column there */
	bool		constant;		/* that expression has no column */
} TsyncColumn;

/*
 * Transaction ids of the source that have written what was not there when a run
 * last succeeded: from the first to before the end, modulo 2^32.
 */
typedef struct TsyncHorizon
{
	bool		known;
	uint32		first;
	uint32		end;
} TsyncHorizon;

/* A replica and its source, as SQL text sees them. */
typedef struct TsyncTable
{
	Oid			relid;
	Oid			source;			/* foreign table */
	Oid			server;			/* of it */
	const char *label;			/* schema.table, for messages */
	const char *replica_sql;	/* quoted and qualified */
	const char *source_sql;
	const char *filter;			/* condition for the source's rows, SQL text over its columns; NULL: there is none */
	const char *source_rows;	/* what statements read: source_sql, or a subquery with filter and computed columns */
	int			ncolumns;
	TsyncColumn *columns;
	int			nkeys;
	TsyncColumn **keys;			/* into columns, in key order */
	int			nrange;			/* leading keys that both sides order alike */
	TsyncColumn *version;		/* NULL when there is none */
	const char *fingerprint_column; /* a name that no key column has */
	bool		wide;			/* rows have no useful upper bound in bytes */
	Oid			xmin_table;		/* foreign table over the source with key and xmin; invalid: there is none */
	const char *xmin_sql;		/* quoted and qualified */
	const char *xmin_rows;		/* like source_rows */
	const char *xmin_column;	/* quoted */
	Oid			feed;			/* table that the changes of this transaction are written to; invalid: none */
	const char *feed_sql;		/* quoted and qualified */
	TsyncHorizon horizon;
	int64		seek_keys;		/* more keys are looked for in a scan, not by the source's index; 0: never */
	const char *watermark;		/* of the version column, NULL: unknown; moves on with the rows applied */
	int64		waited;			/* microseconds that statements for the source have taken */
} TsyncTable;

/* What a row's fingerprint is made of. */
typedef struct TsyncFingerprint
{
	bool		all_columns;	/* or the version column only */
	bool		xmin;			/* or the transaction that wrote it, which the replica does not have */
	bool		opaque_apart;	/* of all columns those that have no hash are left out */
	int			source_version; /* server_version_num there: which hashes it has */
} TsyncFingerprint;

/* Instead of a fingerprint: no digest of the rows is wanted. */
#define TSYNC_UNCOUNTED ((TsyncFingerprint) {0})

/*
 * A half-open range of keys; bounds are nrange texts, NULL is unbounded.  Or,
 * where "blocks" is set, a half-open range of the source's blocks, or of bitmaps.
 */
typedef struct TsyncRange
{
	char	  **lower;			/* inclusive */
	char	  **upper;			/* exclusive */
	bool		blocks;
	bool		buckets;		/* of 64 integer keys, by their numbers, in a way that no index serves */
	int64		first_block;	/* or bucket */
	int64		end_block;		/* negative: the end of the table; or PG_INT64_MAX: of the bitmaps */
} TsyncRange;

/* The watermark lies so far below the newest version applied: as long as transactions usually take. */
#define TSYNC_WATERMARK_LAG "1 minute"

/* Row sets that statements see by these names. */
#define TSYNC_INSERTED "tsync_inserted"
#define TSYNC_UPDATED "tsync_updated"
#define TSYNC_DELETED "tsync_deleted"
#define TSYNC_REAPPEARED "tsync_reappeared"
#define TSYNC_KEPT "tsync_kept" /* keys of rows, and what the replica has besides the source's columns */
#define TSYNC_TOUCHED "tsync_touched"	/* keys of rows that somebody has changed here */
#define TSYNC_NEW "tsync_new"	/* keys of rows that the source has written since the last success */
#define TSYNC_OPAQUE "tsync_opaque" /* columns without a hash of a chunk's source rows */
#define TSYNC_REFETCHED "tsync_refetched"	/* columns that are fetched for all rows */

/* Number of rows and sum, modulo 2^64, of their fingerprints. */
typedef struct TsyncDigest
{
	int64		rows;
	uint64		sum;
} TsyncDigest;

static inline bool
tsync_digest_equal(TsyncDigest a, TsyncDigest b)
{
	return a.rows == b.rows && a.sum == b.sum;
}

static inline void
tsync_add_digest(TsyncDigest *to, TsyncDigest digest)
{
	to->rows = (int64) ((uint64) to->rows + (uint64) digest.rows);
	to->sum += digest.sum;
}

static inline void
tsync_subtract_digest(TsyncDigest *from, TsyncDigest digest)
{
	from->rows = (int64) ((uint64) from->rows - (uint64) digest.rows);
	from->sum -= digest.sum;
}

/* How keys are put into buckets: (key >> shift) & mask. */
typedef struct TsyncBucketing
{
	int			shift;			/* only for a single integer key */
	int64		mask;			/* TSYNC_BITMAP_MASK, or number of buckets - 1 */
} TsyncBucketing;

/* A bucket of 64 neighbouring integer keys, whose rows are a bitmap. */
#define TSYNC_BITMAP_SHIFT 6
#define TSYNC_BITMAP_KEYS (1 << TSYNC_BITMAP_SHIFT)
#define TSYNC_BITMAP_MASK (-1)

typedef struct TsyncBucket
{
	int64		number;
	uint64		rows;			/* how many, or the bitmap of those present */
	uint64		sum;			/* of their fingerprints, modulo 2^64 */
	uint64		recent;			/* source: of the rows at or above the watermark or horizon, as "rows" */
	uint64		moment;			/* sum of fingerprint << bit, modulo 2^64 */
} TsyncBucket;

/* What else than rows and sum helps to find the rows of a bitmap that changed. */
typedef enum TsyncHint
{
	TSYNC_HINT_NONE,
	TSYNC_HINT_RECENT,
	TSYNC_HINT_MOMENT
} TsyncHint;

/* How many rows a bucket has. */
static inline int64
tsync_rows_of_bucket(TsyncBucketing *bucketing, TsyncBucket *bucket)
{
	return bucketing->mask == TSYNC_BITMAP_MASK ? pg_popcount64(bucket->rows) : (int64) bucket->rows;
}

/* Can a key be in a bucket of this number? */
static inline bool
tsync_is_bucket_number(const TsyncBucketing *bucketing, int64 number)
{
	return bucketing->mask == TSYNC_BITMAP_MASK
		? number >= (PG_INT64_MIN >> TSYNC_BITMAP_SHIFT) && number <= (PG_INT64_MAX >> TSYNC_BITMAP_SHIFT)
		: number >= 0 && number <= bucketing->mask;
}

/* Buckets of one side of a chunk, in the order of their numbers. */
typedef struct TsyncBuckets
{
	TsyncBucketing bucketing;
	bool		without_sums;	/* nobody knows them */
	int			count;
	int			allocated;
	TsyncBucket *buckets;
} TsyncBuckets;

typedef enum TsyncSide
{
	TSYNC_REPLICA,
	TSYNC_SOURCE
} TsyncSide;

/* A bitmap of the whole source: it has no number, for it lies in its place. */
typedef struct TsyncPlainBucket
{
	uint64		rows;
	uint64		sum;
	uint64		hint;			/* recent or moment */
} TsyncPlainBucket;

/* The bitmaps of a whole source, in an array without gaps. */
typedef struct TsyncAllBuckets
{
	int64		first;			/* number of the first bucket */
	int64		count;
	TsyncPlainBucket *buckets;
	bool		overflow;		/* they are too many, or too far apart */
	bool		nonsense;		/* a number that no key has */
	TsyncHint	hint;
} TsyncAllBuckets;

/* Single-column keys that one statement lists. */
#define TSYNC_GROUP_KEYS 5000

/* Bitmaps whose keys one statement lists, instead of looking at a whole chunk. */
#define TSYNC_INDEXED_BUCKETS (TSYNC_GROUP_KEYS >> TSYNC_BITMAP_SHIFT)

/* in columns.c */
extern bool tsync_is_key(TsyncTable *table, TsyncColumn *column);
extern bool tsync_is_computed(TsyncTable *table);
extern TsyncTable *tsync_only_keys(TsyncTable *table);
extern TsyncTable *tsync_in_source_order(TsyncTable *table);
extern TupleDesc tsync_key_desc(TsyncTable *table, int extra);
extern TupleDesc tsync_row_desc(TsyncTable *table);

/* in part.c */
extern const char *tsync_part_sql(TsyncTable *table, const char *relation);
extern void tsync_append_source_columns(StringInfo buf, TsyncTable *table);
extern void tsync_append_source_column(StringInfo buf, TsyncTable *table, TsyncColumn *column);
extern void tsync_append_grouping(StringInfo buf, TsyncTable *table);

/* in text.c */
extern char *tsync_relation_label(Oid relid);
extern const char *tsync_relation_sql(TsyncTable *table, TsyncSide side);
extern void tsync_append_columns(StringInfo buf, TsyncTable *table, const char *prefix);
extern void tsync_append_keys(StringInfo buf, TsyncTable *table, int first, int last, const char *prefix);
extern const char *tsync_type_sql(Oid type);
extern void tsync_append_literal(StringInfo buf, const char *value, Oid type);
extern void tsync_append_comparison(StringInfo buf, TsyncColumn *column, const char *operator, const char *value);
extern void tsync_append_keys_equal(StringInfo buf, TsyncTable *table, const char *a, const char *b);
extern void tsync_append_bound(StringInfo buf, TsyncTable *table, int first, int end, char **bound,
							   const char *strict, const char *loose, const char *last);
extern void tsync_append_range(StringInfo buf, TsyncTable *table, TsyncRange *range);
extern void tsync_append_key_list(StringInfo buf, TsyncTable *table, List *keys);
extern const char *tsync_unused_prefix(TsyncTable *table);

/* in fingerprint.c */
extern char *tsync_key_number(TsyncTable *table, int version);
extern void tsync_append_column_hash(StringInfo buf, TsyncColumn *column, const char *seed, const char *null_value,
									 int version);
extern void tsync_append_fingerprint(StringInfo buf, TsyncTable *table, TsyncFingerprint fingerprint);
extern char *tsync_sql_memory_key(TsyncTable *table, TsyncFingerprint fingerprint);
extern TsyncHint tsync_hint(TsyncTable *table, TsyncFingerprint fingerprint);
extern void tsync_append_is_new(StringInfo buf, TsyncTable *table);

/* in digest.c */
extern char *tsync_sql_digest(TsyncTable *table, TsyncSide side, TsyncRange *range, TsyncFingerprint fingerprint);
extern char *tsync_sql_digest_without(TsyncTable *table, TsyncRange *range, List *chunks,
									  TsyncFingerprint fingerprint);
extern char *tsync_sql_buckets(TsyncTable *table, TsyncSide side, TsyncRange *range, TsyncBucketing *bucketing,
							   TsyncFingerprint fingerprint);
extern void tsync_append_bucket_filter(StringInfo buf, TsyncTable *table, TsyncBucketing *bucketing,
									   List *buckets, TsyncFingerprint fingerprint);
extern char *tsync_sql_fingerprint(TsyncTable *table, TsyncFingerprint fingerprint);
extern char *tsync_sql_fingerprints(TsyncTable *table, const char *rows, TsyncFingerprint fingerprint);
extern char *tsync_sql_fingerprints_of_keys(TsyncTable *table, List *keys, TsyncFingerprint fingerprint);
extern char *tsync_sql_digest_of_keys(TsyncTable *table, const char *keys, TsyncFingerprint fingerprint);
extern char *tsync_sql_list_source(TsyncTable *table, TsyncRange *range, TsyncBucketing *bucketing, List *buckets,
								   TsyncFingerprint fingerprint);
extern char *tsync_sql_compare(TsyncTable *table, const char *listed, TsyncRange *range, TsyncBucketing *bucketing,
							   List *buckets, TsyncFingerprint fingerprint);

/* in new_rows.c */
extern char *tsync_sql_new_keys(TsyncTable *table, TsyncRange *range, TsyncBucketing *bucketing, List *buckets,
								TsyncFingerprint fingerprint);
extern char *tsync_sql_new_of_keys(TsyncTable *table, List *keys);
extern char *tsync_sql_keys_of_buckets(TsyncTable *table, TsyncRange *range, TsyncBucketing *bucketing, List *buckets,
									   TsyncFingerprint fingerprint);
extern char *tsync_sql_unlisted_keys(TsyncTable *table, const char *listed, TsyncRange *range, TsyncBucketing *bucketing,
									 List *buckets, TsyncFingerprint fingerprint);
extern char *tsync_sql_different_rows(TsyncTable *table, const char *rows);
extern char *tsync_sql_unstaged_rows(TsyncTable *part);
extern char *tsync_sql_refetched_rows(TsyncTable *table, TsyncTable *part);
extern char *tsync_sql_count_different_rows(TsyncTable *table, const char *rows);
extern char *tsync_sql_digest_of_rows(TsyncTable *table, const char *rows, TsyncFingerprint fingerprint);

/* in read.c */
extern char *tsync_sql_watermark(TsyncTable *table, const char *rows, const char *more);
extern char *tsync_sql_range(TsyncTable *table, TsyncRange *range);
extern char *tsync_sql_keys_of_range(TsyncTable *table, TsyncRange *range);
extern char *tsync_sql_large_value(TsyncTable *table, char **bound, int elements);
extern char *tsync_sql_fetch(TsyncTable *table, List *keys);
extern char *tsync_sql_bytes_of_keys(TsyncTable *table, List *keys);
extern char *tsync_sql_bytes_of_page(TsyncTable *table, char **after, char **last);
extern char *tsync_sql_bytes_of_range(TsyncTable *table, TsyncRange *range);
extern char *tsync_sql_find_keys(TsyncTable *table, List *keys);
extern char *tsync_sql_count_keys(TsyncTable *table, List *keys);
extern char *tsync_sql_page(TsyncTable *table, char **after, int prefix, bool keys_only, int64 limit);
extern char *tsync_sql_boundary_here(TsyncTable *table, TsyncRange *range, int64 rows);
extern char *tsync_sql_boundary(TsyncTable *table, TsyncRange *range, int prefix, int64 rows);
extern char *tsync_sql_key_span(TsyncTable *table, TsyncRange *range);
extern char *tsync_sql_sample(TsyncTable *table, int64 blocks, int64 rows_per_block, int samples);

/* in write.c */
extern char *tsync_sql_insert(TsyncTable *table, const char *from, TsyncFingerprint fingerprint);
extern char *tsync_sql_keep_columns(TsyncTable *table, List *own, const char *from);
extern char *tsync_sql_insert_kept(TsyncTable *table, List *own, const char *from, TsyncFingerprint fingerprint);
extern char *tsync_sql_update(TsyncTable *table, const char *from, TsyncFingerprint fingerprint);
extern char *tsync_sql_delete(TsyncTable *table, const char *keys, const char *except, TsyncFingerprint fingerprint);

/* in feed.c */
extern const char *tsync_feed_name(const char *name);
extern char *tsync_sql_feed_deleted(TsyncTable *table, const char *keys, const char *except, int64 position, int64 run_id);
extern char *tsync_sql_feed_before(TsyncTable *table, const char *rows, int64 position, int64 run_id);
extern char *tsync_sql_feed_rows(TsyncTable *table, const char *rows, char op, int64 position, int64 run_id);
extern char *tsync_sql_feed_start(TsyncTable *table, int64 position, int64 run_id);

/* in version.c */
extern bool tsync_has_order(TsyncColumn *version);
extern bool tsync_has_maximum(TsyncColumn *version);
extern char *tsync_sql_newest_version(TsyncTable *table, const char *seen);
extern char *tsync_sql_set_back(TsyncTable *table, const char *seen);

/* in row_difference.c */
extern char *tsync_sql_differences(TsyncTable *table, List *ranges, bool touched, bool by_row, bool by_xmin, bool all,
								   const char *keys);
extern char *tsync_sql_suspects(TsyncTable *table, TsyncRange *range, TsyncFingerprint fingerprint, int limit);
extern char *tsync_sql_unlike_replica(TsyncTable *table, int limit);
extern char *tsync_sql_hashes(TsyncTable *table, List *keys, int source_version);
extern TupleDesc tsync_hashes_desc(TsyncTable *table);
extern char *tsync_sql_unlike_hashes(TsyncTable *table, const char *hashes, int source_version, int limit);
extern char *tsync_sql_staged_keys(TsyncTable *table, int limit);
extern char *tsync_sql_list_opaque(TsyncTable *table, TsyncRange *range);
extern char *tsync_sql_compare_opaque(TsyncTable *table, TsyncRange *range);

/* in type_hash.c */
extern void tsync_append_hash(StringInfo buf, TsyncColumn *column, const char *seed, int version);
extern bool tsync_can_hash(Oid type);
extern bool tsync_can_be_key(Oid type);
extern bool tsync_orders_alike(Oid type);
extern bool tsync_is_integer(Oid type);
extern int	tsync_max_bytes(Oid type, int32 typmod);
extern bool tsync_append_size(StringInfo buf, TsyncColumn *column);

/* in bucket.c */
extern uint64 tsync_sum_to_uint64(const char *decimal);
extern TsyncBucket *tsync_add_bucket(TsyncBuckets *buckets);
extern TsyncBuckets *tsync_make_buckets(TsyncBucketing bucketing);
extern void tsync_sort_buckets(TsyncBuckets *buckets);
extern const char *tsync_nonsense_in_buckets(TsyncBuckets *buckets);
extern TsyncDigest tsync_digest_of_buckets(TsyncBuckets *buckets);
extern bytea *tsync_pack_buckets(TsyncBuckets *buckets, TsyncHint hint);
extern bool tsync_unpack_buckets(bytea *packed, TsyncHint hint, TsyncBuckets *buckets);
extern void tsync_expect_keys(TsyncAllBuckets *all, int64 first, int64 last);
extern TsyncPlainBucket *tsync_reach_bucket(TsyncAllBuckets *all, int64 number);
extern TsyncBuckets tsync_slice_of_buckets(TsyncAllBuckets *all, TsyncRange *range);

#endif							/* TABLESYNC_QUERY_H */
