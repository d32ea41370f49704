/*-------------------------------------------------------------------------
 *
 * resolve.c
 *	  From buckets that differ to the rows to be inserted, updated, deleted.
 *
 * Where buckets are bitmaps, the keys that came and went show, and the rows
 * at or above the watermark, or the row that the moment points to, are likely
 * to be the changed ones: they are fetched, and where the bucket's digest then
 * comes out as the source's, it is resolved.  That is the proof; watermark and
 * moment are hints.  Of all other buckets the keys are listed at the source
 * and compared one by one.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "scan/scan.h"
#include "source/source.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* Keys that are guessed and checked together. */
#define BATCH_KEYS 20000		/* four statements of keys */

/* A filter for more than this share of a chunk's buckets is not worth it. */
#define MAX_FILTER_FRACTION 0.5 /* not measured */

/* Bitmaps beyond this number are filtered in one pass over the chunk. */
#define MAX_INDEXED_BUCKETS 300 /* four statements of TSYNC_INDEXED_BUCKETS; not measured */

/* More rows are not listed or fetched in one transaction: its snapshot would grow old. */
#define MAX_ROWS_TO_FETCH 100000	/* not measured */

/* A key whose row has probably changed. */
typedef struct Candidate
{
	int64		key;			/* hash key */
	TsyncBucketPair *difference;
	bool		wanted_old;
	bool		wanted_new;
	bool		has_old;
	bool		has_new;
	uint64		old_fingerprint;
	uint64		new_fingerprint;
} Candidate;

/* Row sets that one chunk fills and the next one clears. */
struct TsyncResolver
{
	TsyncTable *table;
	TsyncFingerprint fingerprint;
	TsyncStage *stage;			/* into which the rows go */
	TsyncRowSet listed;			/* source: keys with version or fingerprint */
	TsyncRowSet differing;		/* keys with i, u or d */
	TsyncRowSet to_insert;		/* keys */
	TsyncRowSet to_update;		/* keys */
	TsyncRowSet fetched;		/* whole rows of candidates */
	MemoryContext batch_context;
};

typedef struct FingerprintTarget
{
	HTAB	   *candidates;
	TsyncFingerprint fingerprint;
	bool		is_new;
} FingerprintTarget;

TsyncResolver *
tsync_resolver_create(TsyncTable *table, TsyncFingerprint fingerprint, TsyncStage *stage)
{
	TsyncResolver *resolver = palloc0(sizeof(TsyncResolver));
	TupleDesc	listed = tsync_key_desc(table, 1);
	TupleDesc	differing = tsync_key_desc(table, 1);

	resolver->table = table;
	resolver->fingerprint = fingerprint;
	resolver->stage = stage;
	if (fingerprint.all_columns)
		TupleDescInitEntry(listed, table->nkeys + 1, table->fingerprint_column, NUMERICOID, -1, 0);
	else
		TupleDescInitEntry(listed, table->nkeys + 1, table->version->name,
						   table->version->type, table->version->typmod, 0);
	TupleDescInitEntry(differing, table->nkeys + 1, "difference", CHAROID, -1, 0);

	tsync_rowset_init(&resolver->listed, "tsync_listed", listed);
	tsync_rowset_init(&resolver->differing, "tsync_differing", differing);
	tsync_rowset_init(&resolver->to_insert, "tsync_to_insert", tsync_key_desc(table, 0));
	tsync_rowset_init(&resolver->to_update, "tsync_to_update", tsync_key_desc(table, 0));
	tsync_rowset_init(&resolver->fetched, "tsync_fetched", tsync_row_desc(table));
	resolver->batch_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync resolver",
													ALLOCSET_DEFAULT_SIZES);
	return resolver;
}

void
tsync_resolver_destroy(TsyncResolver *resolver)
{
	tuplestore_end(resolver->listed.rows);
	tuplestore_end(resolver->differing.rows);
	tuplestore_end(resolver->to_insert.rows);
	tuplestore_end(resolver->to_update.rows);
	tuplestore_end(resolver->fetched.rows);
	MemoryContextDelete(resolver->batch_context);
}

/* Forget the rows of a chunk whose transaction was aborted. */
void
tsync_resolver_clear(TsyncResolver *resolver)
{
	tsync_rowset_clear(&resolver->listed);
	tsync_rowset_clear(&resolver->differing);
	tsync_rowset_clear(&resolver->to_insert);
	tsync_rowset_clear(&resolver->to_update);
	tsync_rowset_clear(&resolver->fetched);
	MemoryContextReset(resolver->batch_context);
}

static void
put_row(TsyncRowSet *set, Datum *values, bool *nulls)
{
	tuplestore_putvalues(set->rows, set->tupdesc, values, nulls);
	set->count++;
}

#ifdef USE_ASSERT_CHECKING
/* Are buckets in ascending order, none twice? */
static bool
are_ascending(TsyncBuckets *buckets)
{
	for (int i = 1; i < buckets->count; i++)
		if (buckets->buckets[i - 1].number >= buckets->buckets[i].number)
			return false;
	return true;
}
#endif

/*
 * The buckets in which two sides of a chunk differ, or may differ: a list of
 * TsyncBucketPair.  Where nobody knows the replica's sums, those of new rows may.
 */
List *
tsync_find_differences(TsyncBuckets *source, TsyncBuckets *replica)
{
	List	   *differences = NIL;
	int			s = 0;
	int			r = 0;

	Assert(source->bucketing.mask == replica->bucketing.mask && source->bucketing.shift == replica->bucketing.shift);
	Assert(are_ascending(source) && are_ascending(replica));
	while (s < source->count || r < replica->count)
	{
		TsyncBucket *theirs = s < source->count ? &source->buckets[s] : NULL;
		TsyncBucket *ours = r < replica->count ? &replica->buckets[r] : NULL;
		TsyncBucketPair *difference;

		if (theirs && ours && theirs->number != ours->number)
		{
			if (theirs->number < ours->number)
				ours = NULL;
			else
				theirs = NULL;
		}
		s += theirs != NULL;
		r += ours != NULL;
		if (theirs && ours && theirs->rows == ours->rows &&
			(replica->without_sums ? theirs->recent == 0 : theirs->sum == ours->sum))
			continue;
		difference = palloc0(sizeof(TsyncBucketPair));
		if (theirs)
			difference->source = *theirs;
		if (ours)
			difference->replica = *ours;
		difference->source.number = difference->replica.number = theirs ? theirs->number : ours->number;
		differences = lappend(differences, difference);
	}
	return differences;
}

/* Sort the differing keys into what is to be deleted, inserted and updated. */
static void
sort_differing_keys(TsyncResolver *resolver)
{
	int			nkeys = resolver->table->nkeys;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(resolver->differing.tupdesc, &TTSOpsMinimalTuple);

	tsync_rowset_start(&resolver->differing);
	while (tsync_rowset_next(&resolver->differing, slot))
	{
		TsyncRowSet *set;

		slot_getallattrs(slot);
		switch (DatumGetChar(slot->tts_values[nkeys]))
		{
			case 'd':
				set = &resolver->stage->deleted;
				break;
			case 'i':
				set = &resolver->to_insert;
				break;
			default:
				set = &resolver->to_update;
		}
		put_row(set, slot->tts_values, slot->tts_isnull);
	}
	ExecDropSingleTupleTableSlot(slot);
}

/* Compare the rows of some buckets (NIL: all) key by key; stage what they need. */
static void
compare_keys(TsyncResolver *resolver, TsyncChunk *chunk, TsyncBucketing *bucketing,
			 List *buckets)
{
	TsyncTable *table = resolver->table;
	TsyncReading reading = {.range = &chunk->range};

	tsync_start_reading(&reading, table);
	tsync_select_into(table, TSYNC_SOURCE,
					  tsync_sql_list_source(table, &chunk->range, bucketing, buckets,
											resolver->fingerprint), &resolver->listed);
	tsync_end_reading(&reading);
	tsync_rowset_register(&resolver->listed);
	tsync_select_into(table, TSYNC_REPLICA,
					  tsync_sql_compare(table, resolver->listed.name, &chunk->range, bucketing, buckets,
										resolver->fingerprint), &resolver->differing);
	SPI_unregister_relation(resolver->listed.name);
	sort_differing_keys(resolver);
	/* in the transaction of the digest: all that is read of a chunk comes from one snapshot */
	tsync_fetch_rows(table, &resolver->to_insert, &resolver->stage->inserted);
	tsync_fetch_rows(table, &resolver->to_update, &resolver->stage->updated);
	tsync_rowset_clear(&resolver->listed);
	tsync_rowset_clear(&resolver->differing);
	tsync_rowset_clear(&resolver->to_insert);
	tsync_rowset_clear(&resolver->to_update);
}

/*
 * Compare buckets key by key: by an index where they are few bitmaps, and with
 * the whole chunk where they are most of it, unless that would find again what
 * is "staged" of other buckets.
 */
static void
compare_buckets(TsyncResolver *resolver, TsyncChunk *chunk, TsyncBuckets *source,
				List *buckets, bool staged)
{
	if (source->bucketing.mask == TSYNC_BITMAP_MASK && list_length(buckets) <= MAX_INDEXED_BUCKETS)
		while (buckets != NIL)
		{
			List	   *group = list_truncate(list_copy(buckets), TSYNC_INDEXED_BUCKETS);

			compare_keys(resolver, chunk, &source->bucketing, group);
			buckets = list_copy_tail(buckets, list_length(group));
		}
	else if (!staged && list_length(buckets) > source->count * MAX_FILTER_FRACTION)
		compare_keys(resolver, chunk, &source->bucketing, NIL);
	else
		compare_keys(resolver, chunk, &source->bucketing, buckets);
}

/* The source's buckets of some pairs, for statements about them. */
static List *
buckets_of(List *pairs)
{
	List	   *buckets = NIL;
	ListCell   *lc;

	foreach(lc, pairs)
		buckets = lappend(buckets, &((TsyncBucketPair *) lfirst(lc))->source);
	return buckets;
}

/*
 * Bitmap of the keys on both sides whose rows have probably changed: the
 * recent ones, or those for which sum and moment have moved as by one change.
 */
static uint64
changed_keys(TsyncBucketPair *difference)
{
	TsyncBucket *source = &difference->source;
	TsyncBucket *replica = &difference->replica;
	uint64		sum = source->sum - replica->sum;
	uint64		moment = source->moment - replica->moment;
	uint64		changed = source->recent & replica->rows;

	/* keys that have come or gone have moved the sums, too */
	if (source->rows != replica->rows || moment == 0)
		return changed;
	for (uint64 left = source->rows; left != 0; left &= left - 1)
		if (sum << pg_rightmost_one_pos64(left) == moment)
			changed |= left & -left;
	return changed;
}

/* Bitmaps of the keys whose rows the source has new, and the replica old. */
static uint64
new_keys(TsyncBucketPair *difference)
{
	return (difference->source.rows & ~difference->replica.rows) | changed_keys(difference);
}

static uint64
old_keys(TsyncBucketPair *difference)
{
	return (difference->replica.rows & ~difference->source.rows) | changed_keys(difference);
}

static void
add_candidates(TsyncTable *table, HTAB *candidates, TsyncBucketPair *difference, TsyncRowSet *to_fetch)
{
	uint64		fetch = new_keys(difference);
	uint64		old = old_keys(difference);

	for (uint64 left = fetch | old; left != 0; left &= left - 1)
	{
		int			bit = pg_rightmost_one_pos64(left);

		/* unsigned: C does not define what shifting a negative number does */
		int64		key = (int64) ((uint64) difference->source.number << TSYNC_BITMAP_SHIFT) + bit;
		Candidate  *candidate = hash_search(candidates, &key, HASH_ENTER, NULL);
		Datum		value = tsync_integer_datum(table->keys[0]->type, key);
		bool		isnull = false;

		candidate->difference = difference;
		candidate->wanted_new = (fetch >> bit) & 1;
		candidate->wanted_old = (old >> bit) & 1;
		candidate->has_new = candidate->has_old = false;
		if (candidate->wanted_new)
			put_row(to_fetch, &value, &isnull);
		difference->missing += candidate->wanted_new + candidate->wanted_old;
	}
}

/* Note the fingerprint of a candidate, and what it does to the bucket's sum. */
static void
note_fingerprint(TupleTableSlot *slot, void *arg)
{
	FingerprintTarget *target = arg;
	int64		key = tsync_slot_integer(slot, 1);
	Candidate  *candidate = hash_search(target->candidates, &key, HASH_FIND, NULL);
	uint64		fingerprint = (uint64) tsync_slot_integer(slot, 2);

	/* a row that comes twice, or that nobody asked for, must not count */
	if (candidate == NULL || (target->is_new ? candidate->has_new : candidate->has_old))
		return;
	if (target->is_new)
	{
		candidate->has_new = true;
		candidate->new_fingerprint = fingerprint;
		candidate->difference->expected += fingerprint;
	}
	else
	{
		candidate->has_old = true;
		candidate->old_fingerprint = fingerprint;
		candidate->difference->expected -= fingerprint;
	}
	candidate->difference->missing--;
}

static void
read_old_fingerprints(TsyncTable *table, List *keys, void *arg)
{
	FingerprintTarget *target = arg;

	tsync_select_each(table, TSYNC_REPLICA,
					  tsync_sql_fingerprints_of_keys(table, keys, target->fingerprint),
					  NULL, note_fingerprint, arg);
}

static void
read_fingerprints(TsyncResolver *resolver, HTAB *candidates)
{
	FingerprintTarget target = {.candidates = candidates,.fingerprint = resolver->fingerprint};
	TsyncRowSet old;
	HASH_SEQ_STATUS scan;
	Candidate  *candidate;

	tsync_rowset_init(&old, "tsync_old", tsync_key_desc(resolver->table, 0));
	hash_seq_init(&scan, candidates);
	while ((candidate = hash_seq_search(&scan)) != NULL)
		if (candidate->wanted_old)
		{
			Datum		value = tsync_integer_datum(resolver->table->keys[0]->type, candidate->key);
			bool		isnull = false;

			put_row(&old, &value, &isnull);
		}
	tsync_for_keys(resolver->table, TSYNC_REPLICA, &old, read_old_fingerprints, &target);
	tuplestore_end(old.rows);

	/* computed here, from what has arrived: what changes on the way does not add up */
	target.is_new = true;
	tsync_rowset_register(&resolver->fetched);
	tsync_select_each(resolver->table, TSYNC_REPLICA,
					  tsync_sql_fingerprints(resolver->table, resolver->fetched.name, resolver->fingerprint),
					  NULL, note_fingerprint, &target);
	SPI_unregister_relation(resolver->fetched.name);
}

/* Stage the fetched rows that belong to resolved buckets. */
static void
stage_fetched(TsyncResolver *resolver, HTAB *candidates)
{
	int			key_column = resolver->table->keys[0] - resolver->table->columns + 1;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(resolver->fetched.tupdesc, &TTSOpsMinimalTuple);

	tsync_rowset_start(&resolver->fetched);
	while (tsync_rowset_next(&resolver->fetched, slot))
	{
		int64		key = tsync_slot_integer(slot, key_column);
		Candidate  *candidate = hash_search(candidates, &key, HASH_FIND, NULL);
		TsyncRowSet *set;

		if (candidate == NULL)
			tsync_refuse_answer(resolver->table, "a row of another key than it was asked for");
		set = candidate->has_old ? &resolver->stage->updated : &resolver->stage->inserted;
		/* else its bucket is compared key by key, and would stage it again */
		if (!candidate->difference->resolved ||
			(candidate->has_old && candidate->old_fingerprint == candidate->new_fingerprint))
			continue;
		tuplestore_puttupleslot(set->rows, slot);
		set->count++;
	}
	ExecDropSingleTupleTableSlot(slot);
}

/* Stage the deleted keys of a resolved bucket. */
static void
stage_deleted(TsyncResolver *resolver, TsyncBucketPair *difference)
{
	for (uint64 left = difference->replica.rows & ~difference->source.rows; left != 0; left &= left - 1)
	{
		int64		key = (int64) ((uint64) difference->source.number << TSYNC_BITMAP_SHIFT) +
		pg_rightmost_one_pos64(left);
		Datum		value = tsync_integer_datum(resolver->table->keys[0]->type, key);
		bool		isnull = false;

		put_row(&resolver->stage->deleted, &value, &isnull);
	}
}

/* Guess the changed rows of some buckets; returns the buckets left unresolved. */
static List *
guess_batch(TsyncResolver *resolver, List *batch, List *unresolved)
{
	MemoryContext caller = MemoryContextSwitchTo(resolver->batch_context);
	HASHCTL		ctl = {.keysize = sizeof(int64),.entrysize = sizeof(Candidate),.hcxt = CurrentMemoryContext};
	HTAB	   *candidates = hash_create("tablesync candidates", 1024, &ctl,
										 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ListCell   *lc;

	foreach(lc, batch)
	{
		TsyncBucketPair *difference = lfirst(lc);

		difference->expected = difference->replica.sum;
		add_candidates(resolver->table, candidates, difference, &resolver->to_insert);
	}
	tsync_fetch_rows(resolver->table, &resolver->to_insert, &resolver->fetched);
	read_fingerprints(resolver, candidates);
	MemoryContextSwitchTo(caller);
	foreach(lc, batch)
	{
		TsyncBucketPair *difference = lfirst(lc);

		/* the proof: a wrong guess, a late commit or a tie does not come out as the source's sum */
		difference->resolved = difference->missing == 0 && difference->expected == difference->source.sum;
		if (difference->resolved)
			stage_deleted(resolver, difference);
		else
			unresolved = lappend(unresolved, difference);
	}
	stage_fetched(resolver, candidates);
	tsync_rowset_clear(&resolver->to_insert);
	tsync_rowset_clear(&resolver->fetched);
	MemoryContextReset(resolver->batch_context);
	return unresolved;
}

/* Guess the changed rows of bitmaps; returns the buckets left unresolved. */
static List *
guess_rows(TsyncResolver *resolver, List *differences)
{
	List	   *unresolved = NIL;
	List	   *batch = NIL;
	int			keys = 0;
	ListCell   *lc;

	foreach(lc, differences)
	{
		TsyncBucketPair *difference = lfirst(lc);
		int			mine = pg_popcount64(new_keys(difference) | old_keys(difference));

		if (mine == 0)
			unresolved = lappend(unresolved, difference);
		else
			batch = lappend(batch, difference);
		keys += mine;
		if (keys < BATCH_KEYS)
			continue;
		unresolved = guess_batch(resolver, batch, unresolved);
		batch = NIL;
		keys = 0;
	}
	return batch == NIL ? unresolved : guess_batch(resolver, batch, unresolved);
}

/*
 * Give up on a chunk, before anything is staged, whose rows would take so long
 * to fetch that its snapshot would grow old.
 */
static void
check_amount(TsyncTable *table, TsyncBucketing *bucketing, List *differences)
{
	int64		rows = 0;
	ListCell   *lc;

	foreach(lc, differences)
	{
		TsyncBucketPair *difference = lfirst(lc);
		uint64		fetch = bucketing->mask == TSYNC_BITMAP_MASK ? new_keys(difference) : 0;

		rows += fetch ? pg_popcount64(fetch) : tsync_rows_of_bucket(bucketing, &difference->source);
	}
	if (rows > MAX_ROWS_TO_FETCH)
		ereport(ERROR,
				(errcode(ERRCODE_SNAPSHOT_TOO_OLD),
				 errmsg("a chunk of %s has up to " INT64_FORMAT " rows to fetch", table->label, rows)));
}

/*
 * Find the rows in which the two sides of a chunk differ and put them into
 * the stage.  Returns false when they do not differ.  Unless "whatever_it_takes",
 * an error is raised before anything is staged that would take too long.
 */
bool
tsync_resolve(TsyncResolver *resolver, TsyncChunk *chunk, TsyncBuckets *source, TsyncBuckets *replica, bool whatever_it_takes)
{
	List	   *differences = tsync_find_differences(source, replica);
	List	   *unresolved = differences;

	if (differences == NIL)
		return false;
	/* before anything is staged: a stage can't forget single rows */
	if (!whatever_it_takes && !chunk->indivisible)
		check_amount(resolver->table, &source->bucketing, differences);
	if (source->bucketing.mask == TSYNC_BITMAP_MASK)
		unresolved = guess_rows(resolver, differences);
	if (unresolved != NIL)
		compare_buckets(resolver, chunk, source, buckets_of(unresolved),
						list_length(unresolved) < list_length(differences));
	return true;
}
