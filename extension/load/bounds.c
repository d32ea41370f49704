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
 * however the keys are spread.  (Measured with 3 million rows: 7 ms;
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
#include "scan/scan.h"
#include "source/source.h"
#include "utils/array.h"
#include "utils/lsyscache.h"

/* Sampled rows for each range, and how many may have gone: a range is then rarely more than twice what it should be. */
#define SAMPLES_PER_RANGE 50
#define MIN_SAMPLES_PER_RANGE 10

/* Sampled rows in all: the statement has 300 kB then. */
#define MAX_SAMPLES 20000

/* Rows that are looked at to see how many are within a filter. */
#define FILTER_SAMPLES 2000

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
	*nbounds = Max(*nbounds, 0) / load->ranged->nrange;
	return bounds;
}

/* Keys of sampled rows, in the source's order: of each column an array. */
typedef struct Sample
{
	int			count;
	Datum	   *values[INDEX_MAX_KEYS];
} Sample;

/* Take a column of the sampled keys from the only row of SPI_tuptable. */
static void
take_column(TsyncTable *ranged, Sample *sample, int column, int at_most)
{
	Oid			type = ranged->keys[column]->type;
	bool		isnull;
	Datum		value = tsync_result_datum(0, column + 1, &isnull);
	ArrayType  *array;
	int16		length;
	bool		byval;
	char		align;
	int			count = 0;

	/* of a table that has got other columns since, it would be none */
	if (SPI_gettypeid(SPI_tuptable->tupdesc, column + 1) != get_array_type(type))
		elog(ERROR, "a sample of keys is not of their type");
	if (!isnull)
	{
		array = DatumGetArrayTypePCopy(value);
		if (ARR_ELEMTYPE(array) != type || ARR_NDIM(array) > 1 || array_contains_nulls(array))
			tsync_refuse_answer(ranged, "a sample of keys that are none");
		get_typlenbyvalalign(type, &length, &byval, &align);
		deconstruct_array(array, type, length, byval, align, &sample->values[column], NULL, &count);
	}
	if (count > at_most || (column > 0 && count != sample->count))
		tsync_refuse_answer(ranged, "a sample of keys that does not fit the question");
	sample->count = count;
}

/* Every so many'th of the sampled keys, in their order. */
static char **
choose_bounds(TsyncTable *ranged, Sample *sample, int nranges, int *nbounds)
{
	char	  **bounds = palloc(Max(nranges, 1) * ranged->nrange * sizeof(char *));

	for (*nbounds = 0; *nbounds + 1 < nranges; (*nbounds)++)
		for (int i = 0; i < ranged->nrange; i++)
			bounds[*nbounds * ranged->nrange + i] =
				tsync_value_to_text(ranged->keys[i]->type,
									sample->values[i][(int64) sample->count * (*nbounds + 1) / nranges]);
	return bounds;
}

/* Blocks that the source has, no more than twice as many: it may have grown since its statistics were made. */
static int64
blocks_of_source(TsyncLoad *load)
{
	TsyncRange	behind = {.blocks = true,.first_block = load->source->blocks,.end_block = -1};

	while (tsync_can_read_blocks(load->source) && behind.first_block < MaxBlockNumber / 2 &&
		   tsync_select(load->ranged, TSYNC_SOURCE,
						psprintf("%s LIMIT 1", tsync_sql_keys_of_range(load->ranged, &behind)), NULL) > 0)
	{
		SPI_freetuptable(SPI_tuptable);
		behind.first_block *= 2;
	}
	return behind.first_block;
}

/* Bounds from rows here and there; none if there are too few of them. */
static char **
bounds_by_sample(TsyncLoad *load, int64 range_rows, int *nbounds)
{
	TsyncTable *ranged = load->ranged;
	int64		blocks = blocks_of_source(load);
	double		rows_per_block = load->source->estimate / load->source->blocks;
	int			nranges = (int) Min(rows_per_block * blocks / range_rows + 1, MAX_SAMPLES / MIN_SAMPLES_PER_RANGE);
	int			nsamples = ranged->filter != NULL ? MAX_SAMPLES : Min(nranges * SAMPLES_PER_RANGE, MAX_SAMPLES);
	double		share;
	Sample		sample = {0};

	if (tsync_select(ranged, TSYNC_SOURCE, tsync_sql_sample(ranged, blocks, (int64) rows_per_block, nsamples), NULL) != 1)
		elog(ERROR, "sample of keys did not return one row");
	for (int i = 0; i < ranged->nrange; i++)
		take_column(ranged, &sample, i, nsamples);
	SPI_freetuptable(SPI_tuptable);
	/* as much as is missing of the sample is missing of the table; but what is outside of a filter has to be read, too */
	share = ranged->filter != NULL ? 1.0 : (double) sample.count / nsamples;
	nranges = (int) Min(rows_per_block * blocks * share / range_rows + 1, sample.count / MIN_SAMPLES_PER_RANGE);
	return choose_bounds(ranged, &sample, nranges, nbounds);
}

/* A look at how many rows are within a filter. */
static void
count_sample(void *arg)
{
	TsyncLoad  *load = arg;
	double		rows_per_block = load->source->estimate / load->source->blocks;
	Sample		sample = {0};

	tsync_begin();
	if (tsync_select(load->table, TSYNC_SOURCE,
					 tsync_sql_sample(load->table, load->source->blocks, (int64) rows_per_block, FILTER_SAMPLES), NULL) == 1)
		take_column(load->table, &sample, 0, FILTER_SAMPLES);
	load->expected_rows = load->source->estimate * sample.count / FILTER_SAMPLES;
	tsync_commit();
}

/* How many rows will a load bring?  Where there is a filter, by a sample; 0 if nobody knows. */
double
tsync_expect_rows(TsyncLoad *load)
{
	load->expected_rows = load->table->filter == NULL ? load->source->estimate : 0;
	if (load->table->filter != NULL && load->source->blocks > 0)
		tsync_insist(count_sample, load);
	return load->expected_rows;
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
