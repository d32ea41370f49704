/*-------------------------------------------------------------------------
 *
 * bounds.c
 *	  Where a bulk load cuts its source into ranges.
 *
 * Ranges are read by the source only, so they may be bounded by all key columns
 * and in the source's own order, whatever that is: keys of text, and keys whose
 * first column has few values, are cut like any others.  Bounds are keys of rows
 * from here and there in the source's blocks: that takes one small statement,
 * which needs no statistics, and they are about as far apart as they should be
 * however the keys are spread.  (Measured with 3 million rows in 3 tenants: 10 ms;
 * to walk the index instead takes 0.3 to 0.5 us for each row of the table.)
 *
 * A key of one integer is cut by its statistics, at multiples of 64, where
 * bitmaps begin; so is the first column where nobody knows the blocks.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "load/load.h"
#include "process/process.h"
#include "query/query.h"
#include "source/source.h"
#include "utils/array.h"

/* Sampled rows for each range, and how many may have gone: a range is then rarely more than twice what it should be. */
#define SAMPLES_PER_RANGE 50
#define MIN_SAMPLES_PER_RANGE 10

/* Sampled rows in all: the statement has half a megabyte then. */
#define MAX_SAMPLES 20000

/* Bounds from the statistics of the first key column; NULL if they say nothing. */
static char **
bounds_by_statistics(TsyncLoad *load, int64 range_rows, int *nbounds)
{
	Oid			types[] = {OIDOID, FLOAT8OID, INT8OID};
	Datum		values[] = {
		ObjectIdGetDatum(load->table->relid),
		Float8GetDatum(load->source->estimate),
		Int64GetDatum(range_rows)
	};
	char	  **bounds;

	tsync_await_source();
	tsync_catalog_execute("SELECT b FROM tablesync.source_bounds($1::regclass, $2, $3) b",
						  lengthof(types), types, values, NULL);
	tsync_source_answered();
	bounds = tsync_result_texts(0, 1, nbounds);
	SPI_freetuptable(SPI_tuptable);
	if (*nbounds < 0 || *nbounds % load->ranged->nrange != 0)
		tsync_refuse_answer(load->table, "a list of bounds that is none");
	*nbounds /= load->ranged->nrange;
	return bounds;
}

/* Every so many'th of the sampled keys, in their order. */
static char **
choose_bounds(TsyncTable *ranged, TsyncRowSet *sample, int nranges, int *nbounds)
{
	char	  **bounds = palloc(Max(nranges, 1) * ranged->nrange * sizeof(char *));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(sample->tupdesc, &TTSOpsMinimalTuple);

	*nbounds = 0;
	tsync_rowset_start(sample);
	for (int64 i = 0; i < sample->count && tsync_rowset_next(sample, slot); i++)
		if (*nbounds + 1 < nranges && i >= sample->count * (*nbounds + 1) / nranges)
			memcpy(bounds + (*nbounds)++ * ranged->nrange, tsync_key_of_slot(ranged, slot),
				   ranged->nrange * sizeof(char *));
	ExecDropSingleTupleTableSlot(slot);
	return bounds;
}

/* Bounds from rows here and there; none if there are too few of them. */
static char **
bounds_by_sample(TsyncLoad *load, int64 range_rows, int *nbounds)
{
	TsyncTable *ranged = load->ranged;
	TsyncSource *source = load->source;
	int			wanted = (int) Min(source->estimate / range_rows + 1, MAX_SAMPLES / MIN_SAMPLES_PER_RANGE);
	int			nsamples = Min(wanted * SAMPLES_PER_RANGE, MAX_SAMPLES);
	TsyncRowSet sample;
	char	  **bounds;

	tsync_rowset_init(&sample, "tsync_sample", tsync_key_desc(ranged, 0));
	tsync_select_at_most(ranged, TSYNC_SOURCE,
						 tsync_sql_sample(ranged, source->blocks, (int64) (source->estimate / source->blocks), nsamples),
						 &sample, nsamples);
	bounds = choose_bounds(ranged, &sample, (int) Min(wanted, sample.count / MIN_SAMPLES_PER_RANGE), nbounds);
	tsync_rowset_clear(&sample);
	tuplestore_end(sample.rows);
	return bounds;
}

/*
 * Bounds that cut the source into ranges of about so many rows: of each, texts of
 * all key columns, one after the other.  In a transaction of the caller.
 */
char **
tsync_find_bounds(TsyncLoad *load, int64 range_rows, int *nbounds)
{
	TsyncTable *table = load->table;
	char	  **bounds = NULL;

	*nbounds = 0;
	if (load->source->blocks > 0 && !(table->nkeys == 1 && tsync_is_integer(table->keys[0]->type)))
		bounds = bounds_by_sample(load, range_rows, nbounds);
	if (*nbounds == 0)
		bounds = bounds_by_statistics(load, range_rows, nbounds);
	return bounds;
}
