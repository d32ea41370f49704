/*-------------------------------------------------------------------------
 *
 * fuzz_buckets.c
 *	  libFuzzer target: what tablesync.chunk and a source may claim of buckets.
 *
 * The first bytes of an input choose bucketing, hint and bounds, the rest is
 * packed buckets, or numbers of buckets in the order in which a source sends
 * them.  What is accepted must survive packing, and slices must have what was
 * put in, no more.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include "query/query.h"

#define HEADER_BYTES 32

/* A bound of a chunk out of eight bytes; NULL for zero. */
static char **
bound_of(int64 key)
{
	char	  **bound = palloc(sizeof(char *));

	bound[0] = palloc(32);
	snprintf(bound[0], 32, "%lld", (long long) key);
	return key == 0 ? NULL : bound;
}

static void
require(bool condition)
{
	if (!condition)
		abort();
}

/* Unpack bytes, and if they are accepted, pack and unpack them again. */
static void
fuzz_packed(TsyncBucketing bucketing, TsyncHint hint, const uint8 *data, size_t size)
{
	TsyncBuckets *buckets = tsync_make_buckets(bucketing);
	TsyncBuckets *again = tsync_make_buckets(bucketing);
	bytea	   *packed = palloc(VARHDRSZ + size);
	bytea	   *repacked;

	SET_VARSIZE(packed, VARHDRSZ + size);
	memcpy(VARDATA(packed), data, size);
	if (!tsync_unpack_buckets(packed, hint, buckets))
		return;
	(void) tsync_digest_of_buckets(buckets);
	repacked = tsync_pack_buckets(buckets, hint);
	require(VARSIZE(repacked) == VARSIZE(packed) && memcmp(repacked, packed, VARSIZE(packed)) == 0);
	require(tsync_unpack_buckets(repacked, hint, again) && again->count == buckets->count);
}

/* Collect buckets as they come, and look for nonsense as for a source's answer. */
static void
fuzz_collected(TsyncBucketing bucketing, const uint8 *data, size_t size)
{
	TsyncBuckets *buckets = tsync_make_buckets(bucketing);

	for (; size >= sizeof(int64); data += sizeof(int64), size -= sizeof(int64))
	{
		TsyncBucket *bucket = tsync_add_bucket(buckets);

		memset(bucket, 0, sizeof(TsyncBucket));
		memcpy(&bucket->number, data, sizeof(int64));
		bucket->rows = bucket->sum = (uint64) bucket->number;
	}
	tsync_sort_buckets(buckets);
	if (tsync_nonsense_in_buckets(buckets) == NULL)
		(void) tsync_digest_of_buckets(buckets);
}

/* Put bitmaps where numbers say, and slice them by two bounds. */
static void
fuzz_all_buckets(TsyncHint hint, int64 lower, int64 upper, const uint8 *data, size_t size)
{
	TsyncAllBuckets all = {.hint = hint};
	TsyncRange	range = {.lower = bound_of(lower),.upper = bound_of(upper)};
	TsyncBuckets slice;

	tsync_expect_keys(&all, lower, upper);
	for (; size >= sizeof(int64); data += sizeof(int64), size -= sizeof(int64))
	{
		TsyncPlainBucket *bucket;
		int64		number;

		memcpy(&number, data, sizeof(int64));
		if ((bucket = tsync_reach_bucket(&all, number)) == NULL)
			continue;
		bucket->rows |= (uint64) number | 1;
		bucket->sum += (uint64) number;
		bucket->hint += (uint64) number;
	}
	if (all.overflow || all.nonsense)
		return;					/* as its caller does */
	slice = tsync_slice_of_buckets(&all, &range);
	require(tsync_nonsense_in_buckets(&slice) == NULL);
	require(range.lower == NULL || slice.count == 0 || slice.buckets[0].number >= lower >> TSYNC_BITMAP_SHIFT);
	require(range.upper == NULL || slice.count == 0 || slice.buckets[slice.count - 1].number < upper >> TSYNC_BITMAP_SHIFT);
}

/* A sum as the source might print it. */
static void
fuzz_sum(const uint8 *data, size_t size)
{
	char	   *text = palloc(size + 1);

	memcpy(text, data, size);
	text[size] = '\0';
	(void) tsync_sum_to_uint64(text);
}

int			LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	int64		header[HEADER_BYTES / sizeof(int64)];

	if (size < HEADER_BYTES)
		return 0;
	memcpy(header, data, HEADER_BYTES);
	data += HEADER_BYTES;
	size -= HEADER_BYTES;
	if (sigsetjmp(fuzz_error, 0) == 0)
	{
		/* every other input has a bucketing that could be */
		TsyncBucketing bucketing = {(int) header[1], header[2]};
		TsyncHint	hint = (TsyncHint) ((uint64) header[0] % 3);

		if (header[0] & 8)
			bucketing = (TsyncBucketing)
		{
			TSYNC_BITMAP_SHIFT, TSYNC_BITMAP_MASK
		};
		switch (((uint64) header[0] >> 4) % 4)
		{
			case 0:
				fuzz_packed(bucketing, hint, data, size);
				break;
			case 1:
				fuzz_collected(bucketing, data, size);
				break;
			case 2:
				fuzz_all_buckets(hint, header[2], header[3], data, size);
				break;
			default:
				fuzz_sum(data, size);
		}
	}
	fuzz_free_all();
	return 0;
}
