/*-------------------------------------------------------------------------
 *
 * ranges.c
 *	  What tablesync.chunk says of the ranges of a bulk load.
 *
 * As in replicas.c, a function expects a transaction begun with tsync_begin()
 * unless it says that it has one of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"

/*
 * Record which indexes a bulk load leaves alone, and its ranges.  Of a bound there
 * are as many texts as the table has columns that bound ranges.
 */
void
tsync_plan_ranges(TsyncTable *table, List *indexes, char **bounds, int nbounds)
{
	Oid			types[] = {OIDOID, OIDARRAYOID, TEXTARRAYOID, INT4OID};
	Datum	   *oids = palloc(list_length(indexes) * sizeof(Datum));
	ListCell   *lc;

	foreach(lc, indexes)
		oids[foreach_current_index(lc)] = ObjectIdGetDatum(lfirst_oid(lc));

	Datum		values[] = {
		ObjectIdGetDatum(table->relid),
		PointerGetDatum(construct_array(oids, list_length(indexes), OIDOID, sizeof(Oid), true, TYPALIGN_INT)),
		tsync_texts_datum(bounds, nbounds * table->nrange),
		Int32GetDatum(table->nrange)
	};

	tsync_record("SELECT tablesync.record_bulk_load($1::regclass, $2, $3, $4)", lengthof(types), types, values, NULL);
}

/* Are the planned ranges bounded by as many columns as the table says? */
bool
tsync_are_ranges_of(TsyncTable *table)
{
	Oid			types[] = {OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), Int32GetDatum(table->nrange)};

	return tsync_record("SELECT FROM tablesync.all_chunks WHERE replica = $1::regclass AND cardinality(lower_key) <> $2 LIMIT 1",
						lengthof(types), types, values, NULL) == 0;
}

/*
 * Take the next range of a load for this transaction, NULL if there is none.
 */
TsyncChunk *
tsync_claim_range(TsyncTable *table)
{
	TsyncChunk *range;
	int			nlower;
	int			nupper;

	if (tsync_record_oid("SELECT chunk_no, lower_key, upper_key"
						 " FROM tablesync.claim_range($1::regclass)", table->relid) != 1)
		return NULL;
	range = palloc0(sizeof(TsyncChunk));
	range->number = (int) tsync_result_int64(0, 1);
	range->range.lower = tsync_result_texts(0, 2, &nlower);
	range->range.upper = tsync_result_texts(0, 3, &nupper);
	/* of another key, a bound would be read beyond its end */
	if ((nlower != 0 && nlower != table->nrange) || (nupper != 0 && nupper != table->nrange))
		elog(ERROR, "range %d of replica %s is not one of its key", range->number, table->label);
	SPI_freetuptable(SPI_tuptable);
	return range;
}

/* Note what a range has brought; part of the transaction that loads it. */
void
tsync_finish_range(TsyncTable *table, TsyncChunk *range, TsyncDigest digest)
{
	Oid			types[] = {OIDOID, INT4OID, INT8OID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), Int32GetDatum(range->number),
	Int64GetDatum(digest.rows), Int64GetDatum((int64) digest.sum)};

	Assert(digest.rows >= 0);
	tsync_record("UPDATE tablesync.all_chunks SET rows = $3, digest = $4"
				 " WHERE replica = $1::regclass AND chunk_no = $2",
				 lengthof(types), types, values, NULL);
}

/* How many ranges of a load are done, how many there are, and the rows of those that are done; a transaction of its own. */
void
tsync_count_ranges(TsyncTable *table, int64 *done, int64 *total, int64 *rows)
{
	tsync_begin();
	tsync_record_oid("SELECT count(*) FILTER (WHERE loaded), count(*), sum(rows) FILTER (WHERE loaded)"
					 " FROM tablesync.all_chunks WHERE replica = $1::regclass", table->relid);
	*done = tsync_result_int64(0, 1);
	*total = tsync_result_int64(0, 2);
	*rows = tsync_result_int64(0, 3);
	tsync_commit();
}

/*
 * Make one chunk of the ranges of a load: their bounds are in the source's order,
 * which need not be ours, but what they hold adds up.
 */
static void
merge_ranges(TsyncTable *table)
{
	Oid			types[] = {OIDOID, INT8OID, INT8OID, BOOLOID};
	Datum		values[lengthof(types)] = {ObjectIdGetDatum(table->relid)};
	TsyncDigest sum = {0, 0};
	bool		known = true;
	bool		stale = false;
	uint64		nranges = tsync_record_oid("SELECT rows, digest, stale FROM tablesync.all_chunks WHERE replica = $1::regclass",
										   table->relid);

	for (uint64 i = 0; i < nranges; i++)
	{
		tsync_add_digest(&sum, (TsyncDigest) {tsync_result_int64(i, 1), (uint64) tsync_result_int64(i, 2)});
		known &= tsync_result_text(i, 2) != NULL;
		stale |= tsync_result_bool(i, 3);
	}
	SPI_freetuptable(SPI_tuptable);
	values[1] = Int64GetDatum(sum.rows);
	values[2] = Int64GetDatum((int64) sum.sum);
	values[3] = BoolGetDatum(stale);
	tsync_record_oid("DELETE FROM tablesync.all_chunks WHERE replica = $1::regclass AND chunk_no > 0", table->relid);
	tsync_record("UPDATE tablesync.all_chunks SET rows = $2, digest = $3, stale = $4 WHERE replica = $1::regclass",
				 lengthof(types), types, values, known ? NULL : "  n ");
}

/* Build the indexes that the load has left alone: with them, it is complete. */
void
tsync_end_bulk_load(TsyncTable *table)
{
	tsync_catalog_execute_oid("SELECT tablesync.build_indexes($1::regclass)", table->relid);
	if (table->nrange < table->nkeys)
		merge_ranges(table);
	tsync_record_oid("UPDATE tablesync.all_replicas SET loaded = true, load_indexes = NULL WHERE replica = $1::regclass",
					 table->relid);
}

/*
 * Is a process that creates indexes neither waiting for a lock nor nearly
 * through with reading the table?  Then its blocks count as none again.
 */
bool
tsync_is_sorting(int pid)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(pid);

	return tsync_catalog_execute("SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'"
								 " UNION ALL SELECT FROM pg_stat_progress_create_index"
								 " WHERE pid = $1 AND (blocks_done > blocks_total * 0.7 OR phase LIKE '%loading tuples in tree')",
								 1, &type, &value, NULL) == 0;
}

/*
 * Empty the replica and build its indexes, in a transaction of its own: somebody
 * else has inserted rows, or the source has moved values between ranges.
 */
void
tsync_undo_bulk_load(TsyncTable *table)
{
	tsync_begin();
	tsync_catalog_execute(psprintf("TRUNCATE %s", table->replica_sql), 0, NULL, NULL, NULL);
	tsync_catalog_execute_oid("SELECT tablesync.build_indexes($1::regclass)", table->relid);
	tsync_record_oid("UPDATE tablesync.all_replicas SET load_indexes = NULL WHERE replica = $1::regclass", table->relid);
	tsync_record_oid("DELETE FROM tablesync.all_chunks WHERE replica = $1::regclass", table->relid);
	tsync_commit();
}
