/*-------------------------------------------------------------------------
 *
 * door.c
 *	  From users' functions to the tables that users may not write.
 *
 * A user's function (tablesync_pause, say) checks and does with the rights of
 * its caller whatever it can, and comes here for the rest: a door
 * tablesync.<name>(replica, ..) calls tablesync.record_<name>(replica, ..) with
 * the rights of the extension's owner.  SECURITY DEFINER would not do: such a
 * function can't tell for whom it works.  Who calls a door must be a member of
 * the role that owns the replica; record_<name>() may be called by nobody else,
 * and trusts no argument to do harm to other replicas.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "process/process.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

TSYNC_FUNCTION_INFO_V1(tsync_door);

/* The call of what is behind a door, with the door's arguments as parameters. */
static char *
sql_behind(Oid door, int nargs)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT tablesync.%s(", quote_identifier(psprintf("record_%s", get_func_name(door))));
	for (int i = 0; i < nargs; i++)
		appendStringInfo(&buf, "%s$%d", i > 0 ? ", " : "", i + 1);
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* Copy the one value that a statement has returned into the memory that is to outlive it. */
static Datum
copy_result(MemoryContext context, bool *isnull)
{
	Form_pg_attribute column = TupleDescAttr(SPI_tuptable->tupdesc, 0);
	Datum		value = tsync_result_datum(0, 1, isnull);
	MemoryContext spi = MemoryContextSwitchTo(context);

	if (!*isnull)
		value = datumCopy(value, column->attbyval, column->attlen);
	MemoryContextSwitchTo(spi);
	return value;
}

Datum
tsync_door(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			door = fcinfo->flinfo->fn_oid;
	Oid		   *types;
	int			nargs;
	Datum		values[FUNC_MAX_ARGS];
	char		nulls[FUNC_MAX_ARGS];

	(void) get_func_signature(door, &types, &nargs);
	if (nargs != PG_NARGS() || nargs == 0 || types[0] != REGCLASSOID)
		elog(ERROR, "function %u is no door", door);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("replica must not be NULL")));
	tsync_check_acts_for_owner(PG_GETARG_OID(0));
	tsync_check_primary(psprintf("tablesync.%s()", get_func_name(door)));
	for (int i = 0; i < nargs; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}

	SPI_connect();
	if (tsync_record(sql_behind(door, nargs), nargs, types, values, nulls) != 1)
		elog(ERROR, "%s did not return one row", get_func_name(door));
	values[0] = copy_result(caller, &fcinfo->isnull);
	SPI_finish();
	return values[0];
}
