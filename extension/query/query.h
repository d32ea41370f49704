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
#include "utils/timestamp.h"

/* A column that source and replica have in common. */
typedef struct TsyncColumn
{
	char	   *name;			/* as in the catalogs, for tuple descriptors */
	const char *quoted;			/* the same, ready for SQL text */
	Oid			type;
	int32		typmod;
	bool		nullable;
	bool		opaque;			/* no hash is the same at both ends */
	bool		refetch;		/* to be fetched for all rows, see evolve.c */
} TsyncColumn;

/* A replica with its settings, as read from tablesync.replica. */
typedef struct TsyncReplica
{
	Oid			relid;
	Oid			source;			/* foreign table */
	const char *label;			/* schema.table, for messages */
	const char *replica_sql;	/* quoted and qualified */
	const char *source_sql;
	int			ncolumns;
	TsyncColumn *columns;
	int			nkeys;
	TsyncColumn **keys;			/* into columns, in key order */
	int			nrange;			/* leading keys that both sides order alike */
	TsyncColumn *version;		/* NULL when there is none */
	bool		row_fingerprint;	/* fingerprint = 'row' */
	const char *fingerprint_column; /* a name that no key column has */
	bool		wide;			/* rows have no useful upper bound in bytes */
	const char *consistency;
	int			chunk_rows;		/* 0: let pace.c choose */
	int			workers;		/* processes that a load may use */
	double		scan_rate;		/* source rows digested per second lately, 0: unknown */
	const char *watermark;		/* of the version column, NULL: unknown */
	bool		trust_counters;
	double		weighted_rows;	/* of the last run, by what their scan costs */
	bool		drift_known;	/* an alert is open */
	bool		bulk_loading;	/* indexes are missing, ranges are planned */
	double		max_source_load;
	double		max_delete_fraction;
	bool		loaded;
	bool		adopted;		/* rows from before the first run: trust no version */
	double		verify_fraction;	/* of the chunks that each run verifies */
	bool		opaque_apart;	/* fingerprints leave out columns that have no hash */
	char	  **load_position;	/* nposition texts, or NULL */
	int			nposition;		/* nkeys; 0: none; anything else: nonsense */
	const char *bounds_key;		/* what bounds and position are made for, NULL: nobody knows */
} TsyncReplica;

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

/* How keys are put into buckets: (key >> shift) & mask. */
typedef struct TsyncBucketing
{
	int			shift;			/* only for a single integer key */
	int64		mask;			/* TSYNC_BITMAP_MASK, or number of buckets - 1 */
} TsyncBucketing;

/* A bucket of 64 neighbouring integer keys, whose rows are a bitmap. */
#define TSYNC_BITMAP_SHIFT 6
#define TSYNC_BITMAP_MASK (-1)

typedef struct TsyncBucket
{
	int64		number;
	uint64		rows;			/* how many, or the bitmap of those present */
	uint64		sum;			/* of their fingerprints, modulo 2^64 */
	uint64		recent;			/* source: bitmap of rows at or above the watermark */
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
	int			count;
	int			allocated;
	TsyncBucket *buckets;
} TsyncBuckets;

/*
 * A half-open key range; bounds are nrange texts, NULL is unbounded.  Or,
 * where "blocks" is set, a half-open range of the source's blocks.
 */
typedef struct TsyncChunk
{
	int			number;			/* in tablesync.chunk */
	char	  **lower;			/* inclusive */
	char	  **upper;			/* exclusive */
	bool		blocks;
	int64		first_block;
	int64		end_block;		/* negative: the end of the table */
	int64		expected_rows;
	bool		indivisible;	/* nobody knows a key in its middle */
	bool		planned;		/* not in tablesync.chunk yet */
	bool		known;			/* "replica" is what the replica holds */
	bool		stale;			/* "replica" was true until somebody wrote */
	bool		has_buckets;	/* remembered, too */
	bool		has_bitmaps;	/* and they are bitmaps */
	bool		differed;		/* in the last run */
	bool		differs;		/* in this run */
	TimestampTz verified_at;	/* every column of every row compared; 0: never */
	bool		verifying;		/* it is this run's turn */
	bool		by_row;			/* which needs a second fingerprint of each row */
	bool		proved;			/* "remembered" is what a run ended with */
	bool		touched;		/* and the replica holds something else now */
	bool		blamed;			/* because of rows in run->touched_keys */
	bool		rows_known;		/* "row_replica" is set */
	TsyncDigest remembered;
	TsyncDigest source;
	TsyncDigest replica;
	TsyncDigest row_source;		/* of all columns, where by_row */
	TsyncDigest row_replica;
} TsyncChunk;

/* Is a chunk likely to be equal, so that a digest of many such chunks will do? */
static inline bool
tsync_is_quiet(TsyncChunk *chunk)
{
	return !chunk->differed && !chunk->by_row;
}

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

/* Bitmaps whose keys one statement lists, instead of looking at a whole chunk. */
#define TSYNC_INDEXED_BUCKETS 78

/* Instead of a fingerprint's version: no digest of the rows is wanted. */
#define TSYNC_UNCOUNTED 0

/* in columns.c */
extern bool tsync_is_key(TsyncReplica *rep, TsyncColumn *column);
extern TsyncReplica *tsync_only_keys(TsyncReplica *rep);
extern TupleDesc tsync_key_desc(TsyncReplica *replica, int extra);
extern TupleDesc tsync_row_desc(TsyncReplica *replica);

/* in text.c */
extern char *tsync_relation_label(Oid relid);
extern const char *tsync_relation_sql(TsyncReplica *rep, TsyncSide side);
extern void tsync_append_columns(StringInfo buf, TsyncReplica *rep, const char *prefix);
extern void tsync_append_keys(StringInfo buf, TsyncReplica *rep, int first, int last, const char *prefix);
extern const char *tsync_type_sql(Oid type);
extern void tsync_append_literal(StringInfo buf, const char *value, Oid type);
extern void tsync_append_comparison(StringInfo buf, TsyncColumn *column, const char *operator, const char *value);
extern void tsync_append_keys_equal(StringInfo buf, TsyncReplica *rep, const char *a, const char *b);
extern void tsync_append_bound(StringInfo buf, TsyncReplica *rep, int first, int end, char **bound,
							   const char *strict, const char *loose, const char *last);
extern void tsync_append_range(StringInfo buf, TsyncReplica *rep, TsyncChunk *chunk, bool above_lower);
extern void tsync_append_key_list(StringInfo buf, TsyncReplica *rep, List *keys);
extern const char *tsync_unused_prefix(TsyncReplica *rep);

/* in fingerprint.c */
extern char *tsync_key_number(TsyncReplica *rep, int version);
extern void tsync_append_column_hash(StringInfo buf, TsyncColumn *column, const char *seed,
									 const char *null_value, int version);
extern void tsync_append_fingerprint(StringInfo buf, TsyncReplica *rep, int version);
extern char *tsync_sql_memory_key(TsyncReplica *rep, int version);
extern TsyncHint tsync_hint(TsyncReplica *rep);

/* in digest.c */
extern char *tsync_sql_digest(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int version);
extern char *tsync_sql_digest_without(TsyncReplica *rep, TsyncChunk *range, List *chunks, int version);
extern char *tsync_sql_buckets(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk,
							   TsyncBucketing *bucketing, int version);
extern char *tsync_sql_fingerprint(TsyncReplica *rep, int version);
extern char *tsync_sql_fingerprints(TsyncReplica *rep, const char *rows, int version);
extern char *tsync_sql_fingerprints_of_keys(TsyncReplica *rep, List *keys, int version);
extern char *tsync_sql_digest_of_keys(TsyncReplica *rep, const char *keys, int version);
extern char *tsync_sql_list_source(TsyncReplica *rep, TsyncChunk *chunk, TsyncBucketing *bucketing,
								   List *buckets, int version);
extern char *tsync_sql_compare(TsyncReplica *rep, const char *listed, TsyncChunk *chunk,
							   TsyncBucketing *bucketing, List *buckets, int version);

/* in read.c */
extern char *tsync_sql_watermark(TsyncReplica *rep, const char *rows, const char *more);
extern char *tsync_sql_range(TsyncReplica *rep, TsyncChunk *range);
extern char *tsync_sql_keys_of_range(TsyncReplica *rep, TsyncChunk *range);
extern char *tsync_sql_large_value(TsyncReplica *rep, char **bound, int elements);
extern char *tsync_sql_fetch(TsyncReplica *rep, List *keys);
extern char *tsync_sql_bytes_of_keys(TsyncReplica *rep, List *keys);
extern char *tsync_sql_bytes_of_page(TsyncReplica *rep, char **after, char **last);
extern char *tsync_sql_bytes_of_range(TsyncReplica *rep, TsyncChunk *range);
extern char *tsync_sql_middle(TsyncReplica *rep, TsyncChunk *range, int64 rows);
extern char *tsync_sql_find_keys(TsyncReplica *rep, List *keys);
extern char *tsync_sql_page(TsyncReplica *rep, char **after, int prefix, bool keys_only, int64 limit);
extern char *tsync_sql_boundary(TsyncReplica *rep, TsyncSide side, TsyncChunk *chunk, int64 rows);
extern char *tsync_sql_key_span(TsyncReplica *rep, TsyncChunk *chunk);

/* in write.c */
extern char *tsync_sql_insert(TsyncReplica *rep, const char *from, int version);
extern char *tsync_sql_update(TsyncReplica *rep, const char *from, int version);
extern char *tsync_sql_delete(TsyncReplica *rep, const char *keys, const char *except, int version);

/* in version.c */
extern bool tsync_has_order(TsyncColumn *version);
extern char *tsync_sql_newest_version(TsyncRun *run);
extern char *tsync_sql_set_back(TsyncRun *run);

/* in row_difference.c */
extern char *tsync_sql_differences(TsyncRun *run, List *ranges, bool touched, const char *keys);
extern char *tsync_sql_suspects(TsyncRun *run, TsyncChunk *chunk, int limit);
extern char *tsync_sql_unlike_replica(TsyncRun *run, int limit);
extern char *tsync_sql_hashes(TsyncReplica *rep, List *keys, int version);
extern TupleDesc tsync_hashes_desc(TsyncReplica *rep);
extern char *tsync_sql_unlike_hashes(TsyncRun *run, const char *hashes, int limit);
extern char *tsync_sql_staged_keys(TsyncRun *run, int limit);
extern char *tsync_sql_list_opaque(TsyncReplica *rep, TsyncChunk *chunk);
extern char *tsync_sql_compare_opaque(TsyncRun *run, TsyncChunk *chunk);

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
extern TsyncBuckets tsync_slice_of_buckets(TsyncAllBuckets *all, TsyncChunk *chunk);

#endif							/* TABLESYNC_QUERY_H */
