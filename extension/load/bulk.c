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
 * (tablesync.can_bulk_load); load.c takes all others.  Ranges are bounded by all
 * key columns, in the order of the source, which alone compares them (bounds.c).
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/tables.h"
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

/*
 * Read a range and hand its rows over: rows without bound in pieces of so few
 * bytes that postgres_fdw can hold them.
 */
static void
read_range(TsyncTable *table, TsyncRange *range, TsyncRowFunction function, void *arg)
{
	TsyncReading reading = {.range = range};
	TsyncDigest bytes = {0, 0};
	char	  **middle = NULL;

	if (table->wide)
		bytes = tsync_select_digest(table, TSYNC_SOURCE, tsync_sql_bytes_of_range(table, range));
	/* in pieces as large as can be found within a prefix of the key */
	for (int64 rows = bytes.rows / (table->nrange + 1);
		 middle == NULL && bytes.rows > 1 && bytes.sum > PIECE_BYTES; rows /= 2)
	{
		middle = tsync_find_bound(table, range, rows);
		if (rows == 0)
			break;
	}
	if (middle != NULL)
	{
		TsyncRange	half = *range;

		half.upper = middle;
		read_range(table, &half, function, arg);
		half.lower = middle;
		half.upper = range->upper;
		read_range(table, &half, function, arg);
		return;
	}
	tsync_start_reading(&reading, table);
	tsync_select_each(table, TSYNC_SOURCE, tsync_sql_range(table, range), tsync_row_desc(table), function, arg);
	tsync_end_reading(&reading);
}

/* Put the rows of a range into the heap; returns their digest. */
static TsyncDigest
write_range(TsyncLoad *load, TsyncRange *range, Relation rel)
{
	TsyncHeapWriter *writer;

	writer = tsync_heap_open(load->table, load->fingerprint, rel);
	read_range(load->ranged, range, tsync_heap_write, writer);
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
	read_range(load->ranged, range, keep_row, &rows);
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

	if (tsync_has_live_index(rel) || rel->rd_rules != NULL ||
		rel->rd_rel->relispartition || rel->rd_rel->relhassubclass ||
		(desc->constr != NULL && desc->constr->num_check > 0) ||
		(triggers != NULL && (triggers->numtriggers > 1 || triggers->trig_insert_before_row ||
							  triggers->trig_insert_after_row || triggers->trig_insert_before_statement)))
		return false;
	/* bytes go into the heap as they come: what the statement returns must be what the table has */
	return tsync_has_columns(table, rel);
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

/* A try to load a range. */
typedef struct RangeTry
{
	TsyncLoad  *load;
	MemoryContext context;
	bool		first;			/* of this process */
	bool		found;			/* somebody has left one */
} RangeTry;

/* Load the next range, in one transaction. */
static void
load_range(void *arg)
{
	RangeTry   *attempt = arg;
	TsyncLoad  *load = attempt->load;
	TsyncTable *table = load->ranged;
	TsyncChunk *range;
	Relation	rel;

	tsync_begin_change(attempt->context);
	/* before all else: from here on nobody can add an index that misses our rows */
	rel = table_open(table->relid, RowExclusiveLock);
	/* whoever dies gives a range back by dying: it is claimed for this transaction */
	range = tsync_claim_range(table);
	if (range != NULL)
	{
		if (attempt->first)
			widen_connection(table, &range->range);
		tsync_emit_message(&load->message);
		/* what a table is may have changed before the lock, not after it */
		tsync_finish_range(table, range,
						   is_plain(table, rel) ? write_range(load, &range->range, rel) : insert_range(load, &range->range));
	}
	table_close(rel, NoLock);	/* until the transaction ends */
	tsync_commit();
	attempt->found = range != NULL;
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
	RangeTry	attempt = {.load = load,.context = range_context,.first = true};
	TimestampTz reported = 0;

	for (;; attempt.first = false)
	{
		int64		waited;

		tsync_insist(load_range, &attempt);
		if (!attempt.found)
			break;
		waited = load->ranged->waited;
		MemoryContextReset(range_context);
		if (leader && TimestampDifferenceExceeds(reported, GetCurrentTimestamp(), REPORT_MS))
		{
			report_load(load);
			reported = GetCurrentTimestamp();
		}
		load->table->waited += waited;
		load->ranged->waited = 0;
		tsync_rest(load->pace, waited, 0);
	}
	MemoryContextDelete(range_context);
}

/* Let what the ranges hold be remembered as of now. */
static void
open_memory(TsyncLoad *load)
{
	bool		written;		/* until now: there are no rows yet */

	tsync_begin();
	(void) tsync_open_memory(load->table->relid, tsync_sql_memory_key(load->table, load->fingerprint), &written);
	tsync_commit();
}

/* What a helper of a load does: as the leader, but without a record. */
void
tsync_help_load(TsyncLoad *load)
{
	tsync_limit_source(load->table, tsync_statement_timeout);
	load->ranged = tsync_in_source_order(load->table);
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
can_limit_bytes(TsyncTable *ranged)
{
	TsyncRange	everything = {0};

	return !ranged->wide || tsync_sql_bytes_of_range(ranged, &everything) != NULL;
}

/*
 * Leave the indexes alone from here on, and plan ranges; false if somebody has
 * put rows into the replica before we had locked it.  Their keys would be there
 * twice, and who is subscribed to the replica would stop at the second one.
 */
static bool
suspend_and_plan(TsyncLoad *load, char **bounds, int nbounds)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *indexes;

	tsync_begin_change(NULL);
	indexes = tsync_suspend_indexes(load->table->relid);
	if (tsync_select(load->table, TSYNC_REPLICA, psprintf("SELECT FROM %s LIMIT 1", load->table->replica_sql), NULL) > 0)
	{
		tsync_abort();
		MemoryContextSwitchTo(caller);
		return false;
	}
	tsync_plan_ranges(load->ranged, indexes, bounds, nbounds);
	tsync_commit();
	return true;
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
	char	  **bounds = NULL;
	int			nbounds = 0;
	bool		possible;

	tsync_begin_in(CurrentMemoryContext);
	tsync_catalog_execute_oid("SELECT tablesync.can_bulk_load($1::regclass)", load->table->relid);
	possible = tsync_result_bool(0, 1);
	if (possible)
		bounds = tsync_find_bounds(load, range_rows, &nbounds);
	tsync_commit();
	/* a table that nobody can cut is loaded by page: no statement is to read all of it */
	if (!possible || nbounds > MAX_RANGES || (nbounds == 0 && load->source->estimate > range_rows * 2))
		return false;

	return suspend_and_plan(load, bounds, nbounds);
}

/* Are planned ranges bounded by what bounds them today?  Not where an older version has begun to load. */
static bool
are_ranges_ours(TsyncLoad *load)
{
	bool		ours;

	tsync_begin();
	ours = tsync_are_ranges_of(load->ranged);
	tsync_commit();
	return ours;
}

/*
 * Load the replica in bulk.  Returns false, and leaves it empty, where that is
 * not possible or not worth it.
 */
bool
tsync_bulk_load(TsyncLoad *load)
{
	TsyncTable *table = load->table;
	int64		range_rows = Max(RANGE_ROWS, (int64) (load->source->estimate / MAX_RANGES * 2));
	int64		done;
	int64		total;
	int64		rows;

	load->ranged = tsync_in_source_order(table);
	if (!load->replica->state.bulk_loading)
	{
		/* nor where pages were loaded: ranges would bring their rows again */
		if (!can_limit_bytes(load->ranged) || load->source->estimate < TSYNC_MIN_BULK_ROWS ||
			load->replica->state.load_position != NULL)
			return false;
		if (!begin_bulk_load(load, range_rows))
			return false;
	}
	else if (!are_ranges_ours(load))
	{
		tsync_undo_bulk_load(table);
		return false;
	}
	/* before the first row: the digests of ranges hold, but for what others note from here on */
	open_memory(load);
	tsync_count_ranges(table, &done, &total, &rows);
	/* a run that starts over has loaded some of them itself */
	if (!load->counted)
		load->rows_before = rows;
	load->counted = true;
	load_with_helpers(load, total - done);
	if (tsync_build_indexes(load))
		return true;
	tsync_undo_bulk_load(table);
	load->rows_before = load->rows = 0;
	return false;
}
