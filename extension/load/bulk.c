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
#include "source/source.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* Rows that a source must have to be worth it. */
#define MIN_BULK_ROWS 100000

/* A load is not cut into more ranges than this, whatever the source says of itself. */
#define MAX_RANGES 100000

/* Rows of a range: a fraction of a second. */
#define RANGE_ROWS 100000		/* not measured */

/* Bytes of rows without bound that one statement reads. */
#define PIECE_BYTES (24 * 1024 * 1024)	/* not measured */

/* Elements of an array that makes libpq's buffer large enough, two bytes each. */
#define LARGE_ELEMENTS 60000	/* small reads were 4 % of a load's time */

/* How often to publish the progress of all processes. */
#define REPORT_MS 500

/* A key that a query returns. */
typedef struct KeyTarget
{
	TsyncTable *table;
	char	  **key;
} KeyTarget;

static void
take_key(TupleTableSlot *slot, void *arg)
{
	KeyTarget  *target = arg;

	target->key = tsync_key_of_slot(target->table, slot);
}

/*
 * Read a range and hand its rows over: rows without bound in pieces of so few
 * bytes that postgres_fdw can hold them.
 */
static void
read_range(TsyncTable *table, TsyncRange *range, TsyncRowFunction function, void *arg)
{
	TsyncDigest bytes = {0, 0};
	KeyTarget	middle = {.table = table};
	TsyncRange	half = *range;

	if (table->wide)
		bytes = tsync_select_digest(table, TSYNC_SOURCE, tsync_sql_bytes_of_range(table, range));
	if (bytes.rows > 1 && bytes.sum > PIECE_BYTES)
		tsync_select_each(table, TSYNC_SOURCE, tsync_sql_middle(table, range, bytes.rows / 2),
						  tsync_key_desc(table, 0), take_key, &middle);
	if (middle.key == NULL)
	{
		TsyncReading reading = {.range = range};

		tsync_start_reading(&reading, table);
		tsync_select_each(table, TSYNC_SOURCE, tsync_sql_range(table, range), tsync_row_desc(table), function, arg);
		tsync_end_reading(&reading);
		return;
	}
	half.upper = middle.key;
	read_range(table, &half, function, arg);
	half.lower = middle.key;
	half.upper = range->upper;
	read_range(table, &half, function, arg);
}

/* Put the rows of a range into the heap; returns their digest. */
static TsyncDigest
write_range(TsyncLoad *load, TsyncRange *range, Relation rel)
{
	TsyncHeapWriter *writer;

	/* bytes go into the heap as they come: what the statement returns must be what the table has */
	tsync_check_desc(tsync_row_desc(load->table), RelationGetDescr(rel));
	writer = tsync_heap_open(load->table, load->fingerprint, rel);
	read_range(load->table, range, tsync_heap_write, writer);
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
insert_range(TsyncLoad *load, TsyncRange *range)
{
	TsyncRowSet rows;
	TsyncDigest inserted;

	tsync_rowset_init(&rows, "tsync_range", tsync_row_desc(load->table));
	read_range(load->table, range, keep_row, &rows);
	tsync_rowset_register(&rows);
	inserted = tsync_modify(load->table, tsync_sql_insert(load->table, rows.name, load->fingerprint));
	SPI_unregister_relation(rows.name);
	tuplestore_end(rows.rows);
	return inserted;
}

/*
 * Does nothing but the heap need a row, as when the load began
 * (tablesync.can_bulk_load)?  A lock of the caller keeps it so.
 */
static bool
is_plain(TsyncTable *table, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	TriggerDesc *triggers = rel->trigdesc;

	if (desc->natts != table->ncolumns || tsync_has_live_index(rel) || rel->rd_rules != NULL ||
		rel->rd_rel->relispartition || rel->rd_rel->relhassubclass ||
		(desc->constr != NULL && desc->constr->num_check > 0) ||
		(triggers != NULL && (triggers->numtriggers > 1 || triggers->trig_insert_before_row ||
							  triggers->trig_insert_after_row || triggers->trig_insert_before_statement)))
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (strcmp(NameStr(attribute->attname), table->columns[i].name) != 0 ||
			attribute->atttypid != table->columns[i].type || attribute->atttypmod != table->columns[i].typmod ||
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
widen_connection(TsyncTable *table, TsyncRange *range)
{
	char	  **bound = range->lower ? range->lower : range->upper;

	if (bound == NULL)
		return;
	tsync_select(table, TSYNC_SOURCE, tsync_sql_large_value(table, bound, LARGE_ELEMENTS), NULL);
	SPI_freetuptable(SPI_tuptable);
}

/* Load the next range; false if nobody has left one. */
static bool
load_range(TsyncLoad *load, MemoryContext range_context, bool first)
{
	TsyncTable *table = load->table;
	TsyncChunk *range;
	Relation	rel;

	tsync_begin_in(range_context);
	/* first: from here on nobody can add an index that misses our rows */
	rel = table_open(table->relid, RowExclusiveLock);
	/* whoever dies gives a range back by dying: it is claimed for this transaction */
	range = tsync_claim_range(table);
	if (range != NULL && first)
		widen_connection(table, &range->range);
	/* what a table is may have changed before the lock, not after it */
	if (range != NULL)
		tsync_finish_range(table, range,
						   is_plain(table, rel) ? write_range(load, &range->range, rel) : insert_range(load, &range->range));
	table_close(rel, NoLock);	/* until the transaction ends */
	tsync_commit();
	return range != NULL;
}

/* Publish how far all processes of a load have come. */
static void
report_load(TsyncLoad *load)
{
	int64		done;
	int64		total;
	int64		rows;

	tsync_count_ranges(load->table, &done, &total, &rows);
	tsync_progress_set(done, total, rows);
	load->rows = rows - load->rows_before;
}

/* Load ranges until none is left that nobody else has taken. */
static void
load_ranges(TsyncLoad *load, bool leader)
{
	MemoryContext range_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync range",
														ALLOCSET_DEFAULT_SIZES);
	int64		before = load->table->waited;
	TimestampTz reported = 0;

	for (bool first = true; load_range(load, range_context, first); first = false)
	{
		MemoryContextReset(range_context);
		if (leader && TimestampDifferenceExceeds(reported, GetCurrentTimestamp(), REPORT_MS))
		{
			report_load(load);
			reported = GetCurrentTimestamp();
		}
		tsync_rest(load->pace, load->table->waited - before, 0);
		before = load->table->waited;
	}
	MemoryContextDelete(range_context);
}

/* Let what the ranges hold be remembered as of now. */
static void
open_memory(TsyncLoad *load)
{
	tsync_begin();
	(void) tsync_open_memory(load->table->relid, tsync_sql_memory_key(load->table, load->fingerprint));
	tsync_commit();
}

/* What a helper of a load does: as the leader, but without a record. */
void
tsync_help_load(TsyncLoad *load)
{
	tsync_limit_source(load->table, tsync_statement_timeout);
	load_ranges(load, false);
}

/* Start the helpers that the setting asks for and the server has room for. */
static List *
start_helpers(TsyncLoad *load, int nranges)
{
	List	   *helpers = NIL;
	int			wanted = Min(load->replica->settings.workers, nranges) - 1;

	if (load->replica->settings.max_source_load < 1)
		return NIL;				/* one connection can be busy enough */

	for (int i = 0; i < wanted; i++)
	{
		BackgroundWorkerHandle *helper = tsync_start_helper(load, TSYNC_HELP_LOAD);

		if (helper == NULL)
			break;
		helpers = lappend(helpers, helper);
	}
	return helpers;
}

static void
wait_for_helpers(TsyncLoad *load, List *helpers)
{
	ListCell   *lc;

	foreach(lc, helpers)
		tsync_wait_for_helper(lfirst(lc), true);
	report_load(load);
}

/* Load all ranges with helpers, who must not survive an error here. */
static void
load_with_helpers(TsyncLoad *load, int nranges)
{
	List	   *volatile helpers = start_helpers(load, nranges);

	PG_TRY();
	{
		load_ranges(load, true);
		wait_for_helpers(load, helpers);
		load_ranges(load, true);	/* what a helper has left by an error is left to us */
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
can_limit_bytes(TsyncTable *table)
{
	TsyncRange	everything = {0};

	return !table->wide || (table->nrange == table->nkeys &&
							tsync_sql_bytes_of_range(table, &everything) != NULL);
}

/*
 * Prepare a bulk load: plan its ranges of about so many rows and leave the
 * indexes alone from here on, in two transactions, for the source must not
 * wait for a lock here.  Returns false when the replica or its source are not
 * fit for it.
 */
static bool
begin_bulk_load(TsyncLoad *load, int64 range_rows)
{
	Oid			types[] = {OIDOID, TEXTARRAYOID, FLOAT8OID, INT8OID};
	Datum		values[] = {
		ObjectIdGetDatum(load->table->relid),
		(Datum) 0,
		Float8GetDatum(load->source->estimate),
		Int64GetDatum(Max(range_rows, (int64) (load->source->estimate / MAX_RANGES * 2)))
	};
	char	  **bounds = NULL;
	int			nbounds = 0;
	bool		possible;

	tsync_begin_in(CurrentMemoryContext);
	tsync_catalog_execute_oid("SELECT tablesync.can_bulk_load($1::regclass)", load->table->relid);
	possible = tsync_result_bool(0, 1);
	if (possible)
	{
		tsync_await_source();
		tsync_catalog_execute("SELECT b FROM tablesync.source_bounds($1::regclass, $3, $4) b",
							  lengthof(types), types, values, " n  ");
		tsync_source_answered();
		bounds = tsync_result_texts(0, 1, &nbounds);
	}
	tsync_commit();
	if (!possible || nbounds < 0 || nbounds > MAX_RANGES)
		return false;

	tsync_begin();
	tsync_plan_ranges(load->table, tsync_suspend_indexes(load->table->relid), bounds, nbounds);
	tsync_commit();
	return true;
}

/*
 * Load the replica in bulk.  Returns false, and leaves it empty, where that is
 * not possible or not worth it.
 */
bool
tsync_bulk_load(TsyncLoad *load)
{
	TsyncTable *table = load->table;
	int64		done;
	int64		total;

	if (!load->replica->state.bulk_loading)
	{
		/* nor where pages were loaded: ranges would bring their rows again */
		if (!can_limit_bytes(table) || table->nrange == 0 || load->source->estimate < MIN_BULK_ROWS ||
			load->replica->state.load_position != NULL)
			return false;
		if (!begin_bulk_load(load, RANGE_ROWS))
			return false;
	}
	/* before the first row: the digests of ranges hold, but for what others note from here on */
	open_memory(load);
	tsync_count_ranges(table, &done, &total, &load->rows_before);
	load_with_helpers(load, total - done);
	if (tsync_build_indexes(load))
		return true;
	tsync_undo_bulk_load(table);
	load->rows_before = load->rows = 0;
	return false;
}
