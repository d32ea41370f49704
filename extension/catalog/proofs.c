/*-------------------------------------------------------------------------
 *
 * proofs.c
 *	  Reading what was proved, and writing what verifying has found.
 *
 * As in replicas.c, a function expects a transaction begun with tsync_begin()
 * and allocates its result in the current context.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "utils/array.h"
#include "utils/timestamp.h"

/*
 * What the last success of a usual run proved, and what the digests in
 * tablesync.chunk are made of.  Returns whether no such run has failed since;
 * the proof is of -1 rows when there is none.
 */
bool
tsync_read_proof(Oid relid, TsyncDigest *proof, char **memory_key)
{
	bool		latest;

	*proof = (TsyncDigest) {-1, 0};
	*memory_key = NULL;
	if (tsync_record_oid("SELECT CASE WHEN right(t.memory_key, length(m.columns)) = m.columns"
						 "  THEN left(t.memory_key, -length(m.columns)) END, p.replica_rows, p.replica_digest, p.run_id = (SELECT max(l.run_id)"
						 "  FROM tablesync.all_runs l WHERE l.replica = t.replica AND l.kind <> 'verify')"
						 " FROM tablesync.all_replicas t CROSS JOIN tablesync.memory_columns($1::regclass) m (columns) LEFT JOIN LATERAL (SELECT * FROM tablesync.all_runs r"
						 "  WHERE r.replica = t.replica AND r.status = 'succeeded' AND r.kind <> 'verify'"
						 "  ORDER BY r.run_id DESC LIMIT 1) p"
						 "  ON p.source_rows = p.replica_rows AND p.source_digest = p.replica_digest"
						 " WHERE t.replica = $1::regclass", relid) != 1)
		return false;
	*memory_key = tsync_result_text(0, 1);
	if (tsync_result_text(0, 2) != NULL)
	{
		proof->rows = tsync_result_int64(0, 2);
		proof->sum = (uint64) tsync_result_int64(0, 3);
	}
	latest = tsync_result_bool(0, 4);
	SPI_freetuptable(SPI_tuptable);
	return latest;
}

/*
 * Write the result of a query for differences.  The query turns values into
 * jsonb, which may call a cast of the owner's; so it runs with the owner's
 * rights, and only finished rows are written with ours.
 */
void
tsync_write_differences(TsyncTable *table, int64 run_id, const char *differences)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(run_id), ObjectIdGetDatum(table->relid)};
	TupleDesc	desc = CreateTemplateTupleDesc(4);
	TsyncRowSet found;

	TupleDescInitEntry(desc, 1, "key", JSONBOID, -1, 0);
	TupleDescInitEntry(desc, 2, "difference", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, 3, "source", JSONBOID, -1, 0);
	TupleDescInitEntry(desc, 4, "replica_row", JSONBOID, -1, 0);
	tsync_rowset_init(&found, "tsync_found", desc);
	if (tsync_select_into(table, TSYNC_REPLICA, differences, &found) > 0)
	{
		tsync_rowset_register(&found);
		tsync_record("INSERT INTO tablesync.all_differences (run_id, replica, key, difference, source, replica_row)"
					 " SELECT $1, $2::regclass, f.* FROM tsync_found f",
					 lengthof(types), types, values, NULL);
		SPI_unregister_relation(found.name);
	}
	tuplestore_end(found.rows);
}

/* Count the differences of the run, and tell of those that are somebody's fault. */
void
tsync_count_differences(Oid relid, int64 run_id, int64 *differences, int64 *drifted_rows)
{
	Oid			types[] = {INT8OID, OIDOID, INT8OID};
	Datum		values[] = {Int64GetDatum(run_id), ObjectIdGetDatum(relid), (Datum) 0};

	tsync_record("SELECT count(*), count(*) FILTER (WHERE difference <> 'newer at source')"
				 " FROM tablesync.all_differences WHERE run_id = $1", 1, types, values, NULL);
	*differences = tsync_result_int64(0, 1);
	*drifted_rows = tsync_result_int64(0, 2);
	SPI_freetuptable(SPI_tuptable);
	if (*drifted_rows == 0)
		return;
	values[2] = Int64GetDatum(*drifted_rows);
	tsync_record("SELECT tablesync.note_drift($2::regclass, $1, $3)", lengthof(types), types, values, NULL);
}

/* Record that every column of some chunks was compared, as of when their scan began. */
void
tsync_write_verified(Oid relid, List *numbers, TimestampTz verified_at)
{
	Oid			types[] = {OIDOID, INT4ARRAYOID, TIMESTAMPTZOID};
	Datum	   *elements = palloc(list_length(numbers) * sizeof(Datum));
	ListCell   *lc;

	foreach(lc, numbers)
		elements[foreach_current_index(lc)] = Int32GetDatum(lfirst_int(lc));

	Datum		values[] = {
		ObjectIdGetDatum(relid),
		PointerGetDatum(construct_array(elements, list_length(numbers), INT4OID, sizeof(int32), true, TYPALIGN_INT)),
		TimestampTzGetDatum(verified_at)
	};

	tsync_record("UPDATE tablesync.all_chunks SET verified_at = $3 WHERE replica = $1::regclass AND chunk_no = ANY ($2)",
				 lengthof(types), types, values, NULL);
}
