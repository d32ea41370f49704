/*-------------------------------------------------------------------------
 *
 * bulk.c
 *	  The first copy of a large source, by several processes.
 *
 * The source's key range is cut into ranges (rows of tablesync.chunk).  Each
 * process takes the next range that nobody has taken, reads it and puts the
 * rows straight into the heap, in one transaction: a range is either loaded
 * and marked so, or neither, and an interrupted load goes on with the ranges
 * that are left.  The indexes, left alone meanwhile, are built after the rows.
 *
 * This works for an empty plain table where nothing else happens on INSERT
 * (tablesync.can_bulk_load) and keys that both sides order alike; load.c takes
 * all others.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/tables.h"
#include "commands/trigger.h"
#include "execute/execute.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "load/load.h"
#include "process/process.h"
#include "query/query.h"
#include "run/run.h"
#include "source/source.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/rel.h"

/* Rows that a source must have to be worth it. */
#define MIN_BULK_ROWS 100000

/* A load is not cut into more ranges than this, whatever the source says of itself. */
#define MAX_RANGES 100000

/* Rows of a range: a fraction of a second. */
#define RANGE_ROWS 100000

/* Bytes of rows without bound that one statement reads. */
#define PIECE_BYTES (24 * 1024 * 1024)

/* Elements of an array that makes libpq's buffer large enough, two bytes each. */
#define LARGE_ELEMENTS 60000

/* How often to publish the progress of all processes. */
#define REPORT_MS 500

/* A key that a query returns. */
typedef struct KeyTarget
{
	TsyncReplica *replica;
	char	  **key;
} KeyTarget;

static void
take_key(TupleTableSlot *slot, void *arg)
{
	KeyTarget  *target = arg;

	target->key = tsync_key_of_slot(target->replica, slot);
}

/*
 * Read a range and hand its rows over: rows without bound in pieces of so few
 * bytes that postgres_fdw can hold them.
 */
static void
read_range(TsyncRun *run, TsyncChunk *range, TsyncRowFunction function, void *arg)
{
	TsyncReplica *replica = run->replica;
	TsyncDigest bytes = {0, 0};
	KeyTarget	middle = {.replica = replica};
	TsyncChunk	half = *range;

	if (replica->wide)
		bytes = tsync_select_digest(run, TSYNC_SOURCE, tsync_sql_bytes_of_range(replica, range));
	if (bytes.rows > 1 && bytes.sum > PIECE_BYTES)
		tsync_select_each(run, TSYNC_SOURCE, tsync_sql_middle(replica, range, bytes.rows / 2),
						  tsync_key_desc(replica, 0), take_key, &middle);
	if (middle.key == NULL)
	{
		TsyncReading reading = {.range = range};

		tsync_start_reading(&reading, run);
		tsync_select_each(run, TSYNC_SOURCE, tsync_sql_range(replica, range), tsync_row_desc(replica), function, arg);
		tsync_end_reading(&reading);
		return;
	}
	half.upper = middle.key;
	read_range(run, &half, function, arg);
	half.lower = middle.key;
	half.upper = range->upper;
	read_range(run, &half, function, arg);
}

/* Put the rows of a range into the heap; returns their digest. */
static TsyncDigest
write_range(TsyncRun *run, TsyncChunk *range, Relation rel)
{
	TsyncHeapWriter *writer;

	/* bytes go into the heap as they come: what the statement returns must be what the table has */
	tsync_check_desc(tsync_row_desc(run->replica), RelationGetDescr(rel));
	writer = tsync_heap_open(run, rel);
	read_range(run, range, tsync_heap_write, writer);
	return tsync_heap_close(writer);
}

static void
keep_row(TupleTableSlot *slot, void *arg)
{
	TsyncRowSet *set = arg;

	tuplestore_puttupleslot(set->rows, slot);
	set->count++;
}

/* Insert the rows of a range, where somebody has given the replica an index or a trigger meanwhile. */
static TsyncDigest
insert_range(TsyncRun *run, TsyncChunk *range)
{
	TsyncRowSet rows;
	TsyncDigest inserted;

	tsync_rowset_init(&rows, "tsync_range", tsync_row_desc(run->replica));
	read_range(run, range, keep_row, &rows);
	tsync_rowset_register(&rows);
	inserted = tsync_modify(run, tsync_sql_insert(run->replica, rows.name, run->source_version));
	SPI_unregister_relation(rows.name);
	tuplestore_end(rows.rows);
	return inserted;
}

/*
 * Does nothing but the heap need a row, as when the load began
 * (tablesync.can_bulk_load)?  A lock of the caller keeps it so.
 */
static bool
is_plain(TsyncReplica *replica, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	TriggerDesc *triggers = rel->trigdesc;

	if (desc->natts != replica->ncolumns || tsync_has_live_index(rel) || rel->rd_rules != NULL ||
		rel->rd_rel->relispartition || rel->rd_rel->relhassubclass ||
		(desc->constr != NULL && desc->constr->num_check > 0) ||
		(triggers != NULL && (triggers->numtriggers > 1 || triggers->trig_insert_before_row ||
							  triggers->trig_insert_after_row || triggers->trig_insert_before_statement)))
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (strcmp(NameStr(attribute->attname), replica->columns[i].name) != 0 ||
			attribute->atttypid != replica->columns[i].type || attribute->atttypmod != replica->columns[i].typmod ||
			attribute->attisdropped || attribute->attgenerated != '\0')
			return false;
	}
	return true;
}

/*
 * Make libpq read more at a time.  Its buffer has 16 kB and grows with the
 * largest message; postgres_fdw makes an epoll set before it reads a portion,
 * and that would take about 4 % of a load's time.
 */
static void
widen_connection(TsyncRun *run, TsyncChunk *range)
{
	char	  **bound = range->lower ? range->lower : range->upper;

	if (bound == NULL)
		return;
	tsync_select(run, TSYNC_SOURCE, tsync_sql_large_value(run->replica, bound, LARGE_ELEMENTS), NULL);
	SPI_freetuptable(SPI_tuptable);
}

/* Load the next range; false if nobody has left one. */
static bool
load_range(TsyncRun *run, MemoryContext range_context, bool first)
{
	TsyncChunk *range;
	Relation	rel;

	tsync_begin();
	MemoryContextSwitchTo(range_context);
	/* first: from here on nobody can add an index that misses our rows */
	rel = table_open(run->replica->relid, RowExclusiveLock);
	range = tsync_claim_range(run->replica);
	if (range != NULL && first)
		widen_connection(run, range);
	if (range != NULL)
		tsync_finish_range(run->replica, range,
						   is_plain(run->replica, rel) ? write_range(run, range, rel) : insert_range(run, range));
	table_close(rel, NoLock);	/* until the transaction ends */
	tsync_commit();
	return range != NULL;
}

/* Publish how far all processes of a load have come. */
static void
report_load(TsyncRun *run)
{
	int64		done;
	int64		total;
	int64		rows;

	tsync_count_ranges(run->replica, &done, &total, &rows);
	tsync_progress_set(done, total, rows);
	run->loaded_rows = rows - run->loaded_before;
}

/* Load ranges until none is left that nobody else has taken. */
static void
load_ranges(TsyncRun *run, bool leader)
{
	MemoryContext run_context = CurrentMemoryContext;
	MemoryContext range_context = AllocSetContextCreate(run_context, "tablesync range",
														ALLOCSET_DEFAULT_SIZES);
	int64		before = run->source_time;
	TimestampTz reported = 0;

	for (bool first = true; load_range(run, range_context, first); first = false)
	{
		MemoryContextReset(range_context);
		if (leader && TimestampDifferenceExceeds(reported, GetCurrentTimestamp(), REPORT_MS))
		{
			report_load(run);
			reported = GetCurrentTimestamp();
		}
		tsync_rest(run, run->source_time - before, 0);
		before = run->source_time;
	}
	MemoryContextSwitchTo(run_context);
	MemoryContextDelete(range_context);
}

/* Let what the ranges hold be remembered as of now. */
static void
open_memory(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	tsync_open_memory(run, tsync_sql_memory_key(run->replica, run->source_version));
	tsync_commit();
	MemoryContextSwitchTo(run_context);
}

/* What a helper of a load does: as the leader, but without a record. */
void
tsync_help_load(TsyncRun *run)
{
	tsync_limit_source(run, tsync_statement_timeout);
	load_ranges(run, false);
}

/* Start the helpers that the setting asks for and the server has room for. */
static List *
start_helpers(TsyncRun *run, int nranges)
{
	List	   *helpers = NIL;
	int			wanted = Min(run->replica->workers, nranges) - 1;

	if (run->replica->max_source_load < 1)
		return NIL;				/* one connection can be busy enough */

	for (int i = 0; i < wanted; i++)
	{
		BackgroundWorkerHandle *helper = tsync_start_helper(run, TSYNC_HELP_LOAD);

		if (helper == NULL)
			break;
		helpers = lappend(helpers, helper);
	}
	return helpers;
}

static void
wait_for_helpers(TsyncRun *run, List *helpers)
{
	ListCell   *lc;

	foreach(lc, helpers)
		tsync_wait_for_helper(lfirst(lc), true);
	report_load(run);
}

/* Load all ranges with helpers, who must not survive an error here. */
static void
load_with_helpers(TsyncRun *run, int nranges)
{
	List	   *volatile helpers = start_helpers(run, nranges);

	PG_TRY();
	{
		load_ranges(run, true);
		wait_for_helpers(run, helpers);
		load_ranges(run, true);	/* what a helper has left by an error is left to us */
	}
	PG_CATCH();
	{
		ListCell   *lc;

		foreach(lc, helpers)
			TerminateBackgroundWorker(lfirst(lc));
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Can rows of any size be read in pieces of few bytes? */
static bool
can_limit_bytes(TsyncReplica *replica)
{
	TsyncChunk	everything = {0};

	return !replica->wide || (replica->nrange == replica->nkeys &&
							  tsync_sql_bytes_of_range(replica, &everything) != NULL);
}

/*
 * Prepare a bulk load: plan its ranges of about so many rows and leave the
 * indexes alone from here on, in two transactions, for the source must not
 * wait for a lock here.  Returns false when the replica or its source are not
 * fit for it.
 */
static bool
begin_bulk_load(TsyncRun *run, int64 range_rows)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {OIDOID, TEXTARRAYOID, FLOAT8OID, INT8OID};
	Datum		values[] = {
		ObjectIdGetDatum(run->replica->relid),
		(Datum) 0,
		Float8GetDatum(run->source_estimate),
		Int64GetDatum(Max(range_rows, (int64) (run->source_estimate / MAX_RANGES * 2)))
	};
	char	  **bounds = NULL;
	int			nbounds = 0;
	bool		possible;

	tsync_begin();
	MemoryContextSwitchTo(caller);
	tsync_catalog_execute_oid("SELECT tablesync.can_bulk_load($1::regclass)", run->replica->relid);
	possible = tsync_result_bool(0, 1);
	if (possible)
	{
		tsync_expect_source(true);
		tsync_catalog_execute("SELECT b FROM tablesync.source_bounds($1::regclass, $3, $4) b",
							  lengthof(types), types, values, " n  ");
		tsync_expect_source(false);
		bounds = tsync_result_texts(0, 1, &nbounds);
	}
	tsync_commit();
	MemoryContextSwitchTo(caller);
	if (!possible || nbounds < 0 || nbounds > MAX_RANGES)
		return false;

	tsync_begin();
	MemoryContextSwitchTo(caller);
	tsync_plan_ranges(run->replica, tsync_suspend_indexes(run->replica->relid), bounds, nbounds);
	tsync_commit();
	MemoryContextSwitchTo(caller);
	return true;
}

/*
 * Load the replica in bulk.  Returns false, and leaves it empty, where that is
 * not possible or not worth it.
 */
bool
tsync_bulk_load(TsyncRun *run)
{
	TsyncReplica *replica = run->replica;
	int64		done;
	int64		total;

	if (!replica->bulk_loading)
	{
		if (!can_limit_bytes(replica) || replica->nrange == 0 || run->source_estimate < MIN_BULK_ROWS ||
			replica->load_position != NULL)
			return false;
		if (!begin_bulk_load(run, RANGE_ROWS))
			return false;
	}
	open_memory(run);
	tsync_count_ranges(replica, &done, &total, &run->loaded_before);
	load_with_helpers(run, total - done);
	if (tsync_build_indexes(run))
		return true;
	tsync_undo_bulk_load(replica);
	run->loaded_before = run->loaded_rows = 0;
	return false;
}
