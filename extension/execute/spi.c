/*-------------------------------------------------------------------------
 *
 * spi.c
 *	  Statements on our own tables, with whose rights they run, and their results.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "process/process.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/*
 * Run a statement with parameters; returns the number of rows.  SPI leaves its
 * own memory context current, we don't.
 */
uint64
tsync_catalog_execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	MemoryContext caller = CurrentMemoryContext;

	if (SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0) < 0)
		elog(ERROR, "SPI failed: %s", SPI_result_code_string(SPI_result));
	MemoryContextSwitchTo(caller);
	return SPI_processed;
}

uint64
tsync_catalog_execute_oid(const char *sql, Oid oid)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(oid)};

	return tsync_catalog_execute(sql, 1, types, values, NULL);
}

/*
 * Run one statement on the tables of schema tablesync with the rights of the
 * extension's owner; otherwise as tsync_catalog_execute().
 */
uint64
tsync_record(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	TsyncIdentity caller = tsync_assume_identity(tsync_extension_owner());
	uint64		rows = tsync_catalog_execute(sql, nargs, types, values, nulls);

	tsync_resume_identity(caller);
	return rows;
}

uint64
tsync_record_oid(const char *sql, Oid oid)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(oid)};

	return tsync_record(sql, 1, types, values, NULL);
}

/* The number of a result's column. */
int
tsync_result_column(const char *name)
{
	int			column = SPI_fnumber(SPI_tuptable->tupdesc, name);

	if (column <= 0)
		elog(ERROR, "a result has no column \"%s\"", name);
	return column;
}

/* Column of a row of SPI_tuptable as text, NULL if it is NULL. */
char *
tsync_result_text(uint64 row, int column)
{
	Assert(SPI_tuptable != NULL && row < SPI_tuptable->numvals);
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

Datum
tsync_result_datum(uint64 row, int column, bool *isnull)
{
	Assert(SPI_tuptable != NULL && row < SPI_tuptable->numvals);
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

bool
tsync_result_bool(uint64 row, int column)
{
	bool		isnull;
	Datum		value = tsync_result_datum(row, column, &isnull);

	return !isnull && DatumGetBool(value);
}

int64
tsync_result_int64(uint64 row, int column)
{
	char	   *text = tsync_result_text(row, column);

	return text ? strtoll(text, NULL, 10) : 0;
}

double
tsync_result_double(uint64 row, int column)
{
	char	   *text = tsync_result_text(row, column);

	return text ? strtod(text, NULL) : 0;
}

/* 0 if it is NULL. */
TimestampTz
tsync_result_timestamp(uint64 row, int column)
{
	bool		isnull;
	Datum		value = tsync_result_datum(row, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/*
 * Texts of a text[] column and how many they are.  NULL if there are none (0),
 * or it is no list of texts without NULLs among them (-1).
 */
char **
tsync_result_texts(uint64 row, int column, int *ntexts)
{
	bool		isnull;
	Datum		value = tsync_result_datum(row, column, &isnull);
	ArrayType  *array;
	Datum	   *elements;
	char	  **texts;

	*ntexts = 0;
	if (isnull)
		return NULL;
	*ntexts = -1;
	array = DatumGetArrayTypeP(value);
	/* looked at before it is taken apart: nobody promises that it is what we wrote */
	if (SPI_gettypeid(SPI_tuptable->tupdesc, column) != TEXTARRAYOID || ARR_ELEMTYPE(array) != TEXTOID ||
		ARR_NDIM(array) > 1 || array_contains_nulls(array))
		return NULL;
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, ntexts);
	if (*ntexts == 0)
		return NULL;
	texts = palloc(*ntexts * sizeof(char *));
	for (int i = 0; i < *ntexts; i++)
		texts[i] = TextDatumGetCString(elements[i]);
	return texts;
}

Datum
tsync_texts_datum(char **texts, int ntexts)
{
	Datum	   *elements = palloc(ntexts * sizeof(Datum));

	for (int i = 0; i < ntexts; i++)
		elements[i] = CStringGetTextDatum(texts[i]);
	return PointerGetDatum(construct_array(elements, ntexts, TEXTOID, -1, false, TYPALIGN_INT));
}
