/*-------------------------------------------------------------------------
 *
 * difference.c
 *	  tablesync_verify(): have a worker compare everything, and return what it
 *	  found.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "api/api.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"

#define DIFFERENCE_COLUMNS 4

TSYNC_FUNCTION_INFO_V1(tsync_verify);

/* Put the differences that a run has recorded into the result. */
static void
return_differences(ReturnSetInfo *rsinfo, int64 run_id)
{
	tsync_query_latest("SELECT key, difference, source, replica_row FROM tablesync.all_differences"
					   " WHERE run_id = $1 ORDER BY key", INT8OID, Int64GetDatum(run_id));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		values[DIFFERENCE_COLUMNS];
		bool		nulls[DIFFERENCE_COLUMNS];

		for (int column = 0; column < DIFFERENCE_COLUMNS; column++)
			values[column] = tsync_result_datum(i, column + 1, &nulls[column]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	SPI_finish();
}

/* tablesync_verify(replica, repair) */
Datum
tsync_verify(PG_FUNCTION_ARGS)
{
	bool		repair = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("replica must not be NULL")));
	InitMaterializedSRF(fcinfo, 0);
	return_differences((ReturnSetInfo *) fcinfo->resultinfo, tsync_run_verify(PG_GETARG_OID(0), repair));
	return (Datum) 0;
}
