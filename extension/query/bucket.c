/*-------------------------------------------------------------------------
 *
 * bucket.c
 *	  Buckets as plain data: growing, sorting, packing, slicing them.
 *
 * All numbers here come from the source or from a table, where nobody promises
 * that they are what we have written.  Nothing of the server is needed but
 * memory and errors, so that test/fuzz/ can run this file without one.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "compat.h"
#include "port/pg_bswap.h"
#include "query/query.h"
#include "utils/memutils.h"

/* More than a chunk's worth of anything: what a source may make us keep. */
#define MAX_COLLECTED_BUCKETS 4000000	/* four times the largest chunk */

/* Most buckets of a whole source that are kept in memory at once, 24 bytes each. */
#define MAX_ALL_BUCKETS 1750000 /* 100 million dense keys and a sixteenth */

/* Numbers of 64 bits that tablesync.chunk has for a bucket, without and with a moment. */
#define BUCKET_WORDS 3
#define BUCKET_WORDS_WITH_MOMENT 4

/* A decimal integer, of any length and sign, modulo 2^64. */
uint64
tsync_sum_to_uint64(const char *decimal)
{
	bool		negative = (*decimal == '-');
	uint64		value = 0;

	for (const char *p = decimal + negative; *p >= '0' && *p <= '9'; p++)
		value = value * 10 + (uint64) (*p - '0');
	return negative ? 0 - value : value;
}

/* Room for another bucket at the end. */
TsyncBucket *
tsync_add_bucket(TsyncBuckets *buckets)
{
	int64		mask = buckets->bucketing.mask;
	int			limit = mask < 0 ? MAX_COLLECTED_BUCKETS : (int) Min(mask, MAX_COLLECTED_BUCKETS - 1) + 1;

	if (buckets->count >= limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a chunk has more than %d buckets", limit),
				 errhint("If the source really has so many rows there: SELECT tablesync_alter(.., chunk_rows => 100000);")));
	if (buckets->count == buckets->allocated)
	{
		buckets->allocated = Max(256, buckets->allocated * 2);
		buckets->buckets = buckets->buckets == NULL
			? palloc(buckets->allocated * sizeof(TsyncBucket))
			: repalloc_huge(buckets->buckets, buckets->allocated * sizeof(TsyncBucket));
	}
	return &buckets->buckets[buckets->count++];
}

TsyncBuckets *
tsync_make_buckets(TsyncBucketing bucketing)
{
	TsyncBuckets *buckets = palloc0(sizeof(TsyncBuckets));

	buckets->bucketing = bucketing;
	return buckets;
}

static int
compare_numbers(const void *a, const void *b)
{
	int64		x = ((const TsyncBucket *) a)->number;
	int64		y = ((const TsyncBucket *) b)->number;

	return x < y ? -1 : x > y;
}

void
tsync_sort_buckets(TsyncBuckets *buckets)
{
	if (buckets->count > 1)
		qsort(buckets->buckets, buckets->count, sizeof(TsyncBucket), compare_numbers);
}

/* What no keys can make of buckets: NULL if there is nothing of the kind. */
const char *
tsync_nonsense_in_buckets(TsyncBuckets *buckets)
{
	for (int i = 0; i < buckets->count; i++)
	{
		TsyncBucket *bucket = &buckets->buckets[i];

		if (i > 0 && bucket->number == bucket[-1].number)
			return "a bucket twice";
		if (i > 0 && bucket->number < bucket[-1].number)
			return "buckets in no order";
		if (!tsync_is_bucket_number(&buckets->bucketing, bucket->number))
			return "a bucket that no key can be in";
		if (buckets->bucketing.mask != TSYNC_BITMAP_MASK && bucket->rows > (uint64) PG_INT32_MAX * PG_INT32_MAX)
			return "a bucket of more rows than a table can have";
	}
	return NULL;
}

/* Number and sum of the rows of some buckets. */
TsyncDigest
tsync_digest_of_buckets(TsyncBuckets *buckets)
{
	TsyncDigest digest = {0, 0};

	for (int i = 0; i < buckets->count; i++)
	{
		TsyncBucket *bucket = &buckets->buckets[i];
		TsyncDigest part = {tsync_rows_of_bucket(&buckets->bucketing, bucket), bucket->sum};

		tsync_add_digest(&digest, part);
	}
	return digest;
}

static int
words_of_bucket(TsyncBucketing *bucketing, TsyncHint hint)
{
	return bucketing->mask == TSYNC_BITMAP_MASK && hint == TSYNC_HINT_MOMENT
		? BUCKET_WORDS_WITH_MOMENT : BUCKET_WORDS;
}

/* Buckets as bytes for tablesync.chunk. */
bytea *
tsync_pack_buckets(TsyncBuckets *buckets, TsyncHint hint)
{
	int			words = words_of_bucket(&buckets->bucketing, hint);
	Size		size = VARHDRSZ + (Size) buckets->count * words * sizeof(uint64);
	bytea	   *packed = palloc(size);
	char	   *at = VARDATA(packed);

	SET_VARSIZE(packed, size);
	for (int i = 0; i < buckets->count; i++)
	{
		TsyncBucket *bucket = &buckets->buckets[i];
		uint64		word[] = {
			pg_hton64((uint64) bucket->number),
			pg_hton64(bucket->rows),
			pg_hton64(bucket->sum),
			pg_hton64(bucket->moment)
		};

		memcpy(at, word, words * sizeof(uint64));
		at += words * sizeof(uint64);
	}
	return packed;
}

/* The reverse; false if the bytes can't be those of buckets. */
bool
tsync_unpack_buckets(bytea *packed, TsyncHint hint, TsyncBuckets *buckets)
{
	TsyncBucketing *bucketing = &buckets->bucketing;
	Size		length = words_of_bucket(bucketing, hint) * sizeof(uint64);
	Size		bytes = VARSIZE_ANY_EXHDR(packed);
	char	   *at = VARDATA_ANY(packed);

	/* shift and mask are columns of a table, too: C does not define a shift by 64 */
	if (bytes % length != 0 || bytes / length > MAX_COLLECTED_BUCKETS ||
		(bucketing->mask == TSYNC_BITMAP_MASK ? bucketing->shift != TSYNC_BITMAP_SHIFT
		 : bucketing->shift < 0 || bucketing->shift > 62 || bucketing->mask < 0))
		return false;
	for (; bytes > 0; bytes -= length, at += length)
	{
		TsyncBucket *bucket = tsync_add_bucket(buckets);
		uint64		word[BUCKET_WORDS_WITH_MOMENT] = {0};

		memcpy(word, at, length);
		bucket->number = (int64) pg_ntoh64(word[0]);
		bucket->rows = pg_ntoh64(word[1]);
		bucket->sum = pg_ntoh64(word[2]);
		bucket->recent = 0;
		bucket->moment = pg_ntoh64(word[3]);
	}
	return tsync_nonsense_in_buckets(buckets) == NULL;
}

/* Make the array reach from the first to before the end bucket; false if it can't. */
static bool
reach_to(TsyncAllBuckets *all, int64 first, int64 end)
{
	TsyncPlainBucket *larger;

	if (all->buckets)
	{
		first = Min(all->first, first);
		end = Max(all->first + all->count, end);
	}
	/* unsigned: keys may lie at both ends of bigint */
	if ((uint64) end - (uint64) first > MAX_ALL_BUCKETS)
		return false;
	end = Min(end + (end - first) / 16, first + MAX_ALL_BUCKETS);	/* inserts go on at the end */
	larger = MemoryContextAllocExtended(CurrentMemoryContext, (end - first) * sizeof(TsyncPlainBucket),
										MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	if (all->buckets)
	{
		memcpy(larger + (all->first - first), all->buckets, all->count * sizeof(TsyncPlainBucket));
		pfree(all->buckets);
	}
	all->buckets = larger;
	all->first = first;
	all->count = end - first;
	return true;
}

/* Make room for the bitmaps of all keys from the first to the last one. */
void
tsync_expect_keys(TsyncAllBuckets *all, int64 first, int64 last)
{
	all->overflow = !reach_to(all, first >> TSYNC_BITMAP_SHIFT, (last >> TSYNC_BITMAP_SHIFT) + 1);
}

/* The bitmap of a number; NULL, and a note why, if there can be none. */
TsyncPlainBucket *
tsync_reach_bucket(TsyncAllBuckets *all, int64 number)
{
	static const TsyncBucketing bitmaps = {TSYNC_BITMAP_SHIFT, TSYNC_BITMAP_MASK};

	all->nonsense |= !tsync_is_bucket_number(&bitmaps, number);
	if (all->nonsense || all->overflow)
		return NULL;
	if (number < all->first || number >= all->first + all->count)
		all->overflow = !reach_to(all, number, number + 1);
	return all->overflow ? NULL : &all->buckets[number - all->first];
}

static int64
bucket_of_bound(char **bound)
{
	return strtoll(bound[0], NULL, 10) >> TSYNC_BITMAP_SHIFT;
}

/* The buckets of one chunk out of those of all chunks. */
TsyncBuckets
tsync_slice_of_buckets(TsyncAllBuckets *all, TsyncRange *range)
{
	int64		first = range->lower ? Max(bucket_of_bound(range->lower), all->first) : all->first;
	int64		end = all->first + all->count;
	TsyncBuckets slice = {.bucketing = {TSYNC_BITMAP_SHIFT, TSYNC_BITMAP_MASK}};

	if (range->upper)
		end = Min(bucket_of_bound(range->upper), end);
	slice.buckets = palloc_extended(Max(end - first, 1) * sizeof(TsyncBucket), MCXT_ALLOC_HUGE);
	for (int64 i = first; i < end; i++)
	{
		TsyncPlainBucket *from = &all->buckets[i - all->first];

		if (from->rows != 0)
			slice.buckets[slice.count++] = (TsyncBucket)
		{
			.number = i,.rows = from->rows,.sum = from->sum,
				.recent = all->hint == TSYNC_HINT_RECENT ? from->hint : 0,
				.moment = all->hint == TSYNC_HINT_MOMENT ? from->hint : 0
		};
	}
	return slice;
}
