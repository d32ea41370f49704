/*-------------------------------------------------------------------------
 *
 * chunks.c
 *	  Reading and writing what tablesync.chunk remembers of a replica.
 *
 * As in replicas.c, a function expects a transaction begun with tsync_begin()
 * and allocates its result in the current context.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

/* More rows than any table has; sums of them are far from overflowing. */
#define MAX_ROWS (INT64CONST(1) << 48)

/*
 * Find out whether what is remembered of the replica still holds.  "key" tells
 * what the digests are made of: with another one, or other columns here, they
 * are worthless (NULL: they are not going to be used, and stay what they are).
 * They are stale when the replica was written to by others (whose notes are
 * consumed here), was rewritten, or may have been written to without a note.
 * Returns whether from now on no write to the replica goes unnoticed; "written":
 * and whether others have written to it, which the feed can't show.
 */
bool
tsync_open_memory(Oid relid, const char *key, bool *written)
{
	bool		watched;
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(relid), key ? CStringGetTextDatum(key) : (Datum) 0};

	/* with the numbers of columns: one that is dropped and added again changes neither file, name nor type */
	tsync_record("WITH stray AS (DELETE FROM tablesync.stray_write WHERE replica = $1::regclass RETURNING 1),"
				 " now AS (SELECT pg_relation_filenode($1::regclass) AS file, EXISTS (SELECT FROM stray) AS written,"
				 "  tablesync.is_watched($1::regclass) AS watched,"
				 "  $2 || tablesync.memory_columns($1::regclass) AS key)"
				 " UPDATE tablesync.all_replicas t SET memory_key = coalesce(now.key, t.memory_key), memory_file = now.file,"
				 "  feed_starts_again = t.feed_starts_again OR now.written"
				 " FROM now, tablesync.replica old WHERE t.replica = $1::regclass AND old.replica = t.replica"
				 " RETURNING old.memory_key IS DISTINCT FROM coalesce(now.key, old.memory_key),"
				 " now.written OR NOT now.watched OR now.file IS NULL OR old.memory_file IS DISTINCT FROM now.file,"
				 " now.watched, now.written",
				 2, types, values, key ? NULL : " n");
	watched = SPI_processed == 1 && tsync_result_bool(0, 3);
	*written = SPI_processed == 1 && tsync_result_bool(0, 4);
	/* in the transaction that has consumed the notes: if the run comes to nothing, chunks are stale already */
	if (SPI_processed == 1 && tsync_result_bool(0, 1))
		tsync_record_oid("UPDATE tablesync.all_chunks SET digest = NULL, stale = false,"
						 " buckets = NULL, bucket_shift = NULL, bucket_mask = NULL"
						 " WHERE replica = $1::regclass AND (digest IS NOT NULL OR buckets IS NOT NULL)",
						 relid);
	else if (SPI_processed == 1 && tsync_result_bool(0, 2))
		tsync_record_oid("UPDATE tablesync.all_chunks SET stale = true"
						 " WHERE replica = $1::regclass AND NOT stale", relid);
	return watched;
}

/* Has somebody else written to the replica since tsync_open_memory()? */
bool
tsync_was_written_to(Oid relid)
{
	bool		written;

	/* a rewrite, or an extension that swaps files, leaves another file and no note */
	tsync_record_oid("SELECT EXISTS (SELECT FROM tablesync.stray_write WHERE replica = $1::regclass)"
					 " OR memory_file IS DISTINCT FROM pg_relation_filenode($1::regclass)"
					 " FROM tablesync.all_replicas WHERE replica = $1::regclass",
					 relid);
	written = SPI_processed != 1 || tsync_result_bool(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return written;
}

/* Read the replica again: it was not as we remembered it. */
void
tsync_distrust_memory(Oid relid)
{
	/* apart from APPLY, which is undone */
	tsync_begin();
	tsync_record_oid("UPDATE tablesync.all_chunks SET stale = true,"
					 " buckets = NULL, bucket_shift = NULL, bucket_mask = NULL"
					 " WHERE replica = $1::regclass", relid);
	tsync_commit();
}

/* Compare two bounds, as datums of the types of the key. */
static int
compare_bounds(TsyncTable *table, Datum *a, Datum *b)
{
	for (int i = 0; i < table->nrange; i++)
	{
		TypeCacheEntry *type = lookup_type_cache(table->keys[i]->type, TYPECACHE_CMP_PROC_FINFO);

		/* text bounds ranges only where both sides sort it by its bytes */
		int			order = DatumGetInt32(FunctionCall2Coll(&type->cmp_proc_finfo, C_COLLATION_OID, a[i], b[i]));

		if (order != 0)
			return order;
	}
	return 0;
}

/* Chunks whose bounds are being looked at. */
typedef struct Bounds
{
	TsyncTable *table;
	List	   *chunks;
	bool		ascending;
} Bounds;

/* Are the bounds of chunks values of the key, in ascending order?  An error of an input function if not values. */
static void
compare_all_bounds(void *arg)
{
	Bounds	   *bounds = arg;
	TsyncTable *table = bounds->table;
	Datum	   *previous = NULL;
	ListCell   *lc;

	foreach(lc, bounds->chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		Datum	   *bound = palloc(Max(table->nrange, 1) * sizeof(Datum));

		for (int i = 0; chunk->range.lower && i < table->nrange; i++)
		{
			Oid			input;
			Oid			parameter;

			getTypeInputInfo(table->keys[i]->type, &input, &parameter);
			bound[i] = OidInputFunctionCall(input, chunk->range.lower[i], parameter, -1);
		}
		if (previous && compare_bounds(table, previous, bound) >= 0)
			return;
		previous = chunk->range.lower ? bound : NULL;
	}
	bounds->ascending = true;
}

static bool
is_no_value(ErrorData *edata, void *arg)
{
	return ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_DATA_EXCEPTION;
}

/* Can the chunks be what a run has written?  Nobody promises it. */
static bool
are_plausible(TsyncTable *table, List *chunks)
{
	Bounds		bounds = {.table = table,.chunks = chunks};

	return list_length(chunks) < 2 ||
		(tsync_try_inside(compare_all_bounds, &bounds, is_no_value, NULL) && bounds.ascending);
}

/* The chunks of the last run in key order; NIL if there are none, not all, or none that could be true. */
List *
tsync_read_chunks(TsyncTable *table)
{
	List	   *chunks = NIL;
	TsyncChunk *previous = NULL;
	int64		rows = 0;
	int			nbounds;
	uint64		nchunks = tsync_record_oid("SELECT lower_key, rows, differed, digest, stale,"
										   " buckets IS NOT NULL, digest IS NOT NULL, bucket_mask = -1, chunk_no, verified_at"
										   " FROM tablesync.all_chunks"
										   " WHERE replica = $1::regclass ORDER BY chunk_no",
										   table->relid);

	for (uint64 i = 0; i < nchunks; i++)
	{
		TsyncChunk *chunk = palloc0(sizeof(TsyncChunk));

		chunk->number = (int) i;
		chunk->range.lower = tsync_result_texts(i, 1, &nbounds);
		chunk->expected_rows = chunk->replica.rows = tsync_result_int64(i, 2);
		chunk->differed = tsync_result_bool(i, 3);
		chunk->replica.sum = (uint64) tsync_result_int64(i, 4);
		chunk->stale = tsync_result_bool(i, 5);
		chunk->has_buckets = tsync_result_bool(i, 6);
		chunk->known = !chunk->stale && tsync_result_bool(i, 7);
		chunk->has_bitmaps = tsync_result_bool(i, 8);
		if (tsync_result_int64(i, 9) != (int64) i || nbounds != (i == 0 ? 0 : table->nrange) ||
			(i > 0 && table->nrange == 0) ||
			chunk->expected_rows < 0 || chunk->expected_rows > MAX_ROWS - rows)
		{
			chunks = NIL;		/* somebody has deleted some, or made them up */
			break;
		}
		rows += chunk->expected_rows;
		chunk->proved = tsync_result_bool(i, 7);
		chunk->remembered = chunk->replica;
		chunk->verified_at = tsync_result_timestamp(i, 10);
		if (previous)
			previous->range.upper = chunk->range.lower;
		chunks = lappend(chunks, chunk);
		previous = chunk;
	}
	SPI_freetuptable(SPI_tuptable);
	if (are_plausible(table, chunks))
		return chunks;
	ereport(WARNING,
			(errmsg("what is remembered of the key ranges of replica %s contradicts itself", table->label),
			 errdetail("They are cut anew.")));
	return NIL;
}

/* Give the chunks of a new plan their numbers; new ones are unknown. */
void
tsync_write_plan(TsyncTable *table, List *chunks)
{
	Oid			types[] = {OIDOID, INT4OID, INT4OID, TEXTARRAYOID, INT8OID, BOOLOID, BOOLOID, INT8OID, TIMESTAMPTZOID};
	ListCell   *lc;

	/* kept ones out of the way, below zero, before the others are removed */
	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		Datum		values[] = {
			ObjectIdGetDatum(table->relid),
			Int32GetDatum(chunk->number),
			Int32GetDatum(-1 - foreach_current_index(lc))
		};

		if (!chunk->planned)
			tsync_record("UPDATE tablesync.all_chunks SET chunk_no = $3"
						 " WHERE replica = $1::regclass AND chunk_no = $2", 3, types, values, NULL);
	}
	tsync_record_oid("DELETE FROM tablesync.all_chunks WHERE replica = $1::regclass AND chunk_no >= 0",
					 table->relid);
	tsync_record_oid("UPDATE tablesync.all_chunks SET chunk_no = -1 - chunk_no"
					 " WHERE replica = $1::regclass", table->relid);
	foreach(lc, chunks)
	{
		TsyncChunk *chunk = lfirst(lc);
		char		nulls[] = "         ";
		Datum		values[] = {
			ObjectIdGetDatum(table->relid),
			Int32GetDatum(foreach_current_index(lc)),
			(Datum) 0,
			chunk->range.lower ? tsync_texts_datum(chunk->range.lower, table->nrange) : (Datum) 0,
			Int64GetDatum(chunk->expected_rows),
			BoolGetDatum(chunk->differed),
			BoolGetDatum(chunk->stale),
			Int64GetDatum((int64) chunk->replica.sum),
			TimestampTzGetDatum(chunk->verified_at)
		};

		chunk->number = foreach_current_index(lc);
		nulls[2] = 'n';
		nulls[3] = chunk->range.lower ? ' ' : 'n';
		nulls[7] = chunk->known || chunk->stale ? ' ' : 'n';
		nulls[8] = chunk->verified_at != 0 ? ' ' : 'n';
		if (chunk->planned)
			tsync_record("INSERT INTO tablesync.all_chunks (replica, chunk_no, lower_key, rows, differed, stale, digest, verified_at)"
						 " VALUES ($1::regclass, $2, $4, $5, $6, $7, $8, $9)", lengthof(types), types, values, nulls);
		chunk->planned = false;
	}
}

/* The remembered buckets of a chunk, packed. */
bytea *
tsync_read_buckets(TsyncTable *table, TsyncChunk *chunk, TsyncBucketing *bucketing)
{
	Oid			types[] = {OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), Int32GetDatum(chunk->number)};
	bytea	   *packed;
	bool		isnull;

	if (tsync_record("SELECT bucket_shift, bucket_mask, buckets FROM tablesync.all_chunks"
					 " WHERE replica = $1::regclass AND chunk_no = $2 AND buckets IS NOT NULL",
					 2, types, values, NULL) != 1)
		elog(ERROR, "buckets of chunk %d of replica %s are not there any more", chunk->number, table->label);
	bucketing->shift = (int) tsync_result_int64(0, 1);
	bucketing->mask = tsync_result_int64(0, 2);
	if (SPI_gettypeid(SPI_tuptable->tupdesc, 3) != BYTEAOID)
		elog(ERROR, "buckets are no bytea");
	packed = DatumGetByteaPCopy(tsync_result_datum(0, 3, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return packed;
}

/* Write what the replica holds in a chunk; buckets are unknown if NULL. */
void
tsync_write_memory(TsyncTable *table, TsyncChunk *chunk, TsyncBucketing *bucketing, bytea *buckets)
{
	Oid			types[] = {OIDOID, INT4OID, INT8OID, BOOLOID, INT8OID, INT4OID, INT8OID, BYTEAOID};
	Datum		values[] = {
		ObjectIdGetDatum(table->relid),
		Int32GetDatum(chunk->number),
		Int64GetDatum(chunk->replica.rows),
		BoolGetDatum(chunk->differs || chunk->differed),
		Int64GetDatum((int64) chunk->replica.sum),
		Int32GetDatum(bucketing ? bucketing->shift : 0),
		Int64GetDatum(bucketing ? bucketing->mask : 0),
		PointerGetDatum(buckets)
	};
	char		nulls[] = "        ";

	nulls[4] = chunk->known ? ' ' : 'n';
	nulls[5] = nulls[6] = nulls[7] = buckets ? ' ' : 'n';
	tsync_record("UPDATE tablesync.all_chunks SET rows = $3, differed = $4, digest = $5, stale = false,"
				 " bucket_shift = $6, bucket_mask = $7, buckets = $8"
				 " WHERE replica = $1::regclass AND chunk_no = $2", lengthof(types), types, values, nulls);
}

/* Write a chunk's digest, and leave its buckets as they are. */
void
tsync_write_digest(TsyncTable *table, TsyncChunk *chunk)
{
	Oid			types[] = {OIDOID, INT4OID, INT8OID, BOOLOID, INT8OID};
	Datum		values[] = {
		ObjectIdGetDatum(table->relid),
		Int32GetDatum(chunk->number),
		Int64GetDatum(chunk->replica.rows),
		BoolGetDatum(chunk->differs),
		Int64GetDatum((int64) chunk->replica.sum)
	};

	tsync_record("UPDATE tablesync.all_chunks SET rows = $3, differed = $4, digest = $5, stale = false"
				 " WHERE replica = $1::regclass AND chunk_no = $2", lengthof(types), types, values, NULL);
}
