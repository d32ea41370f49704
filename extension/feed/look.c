/*-------------------------------------------------------------------------
 *
 * look.c
 *	  Doors for whoever reads a feed, and need not own the replica.
 *
 * A reader sees nothing of our tables.  tablesync.feed_of() brings what she
 * needs to know, if she may SELECT the feed; what concerns her consumers goes
 * through tsync_role_door(), which tells what is behind it who calls.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

TSYNC_FUNCTION_INFO_V1(tsync_feed_of);
TSYNC_FUNCTION_INFO_V1(tsync_role_door);

/*
 * Run a query with the rights of the extension's owner, in the snapshot of the
 * caller's statement: what it says of a feed must fit what the caller reads there.
 */
static uint64
look(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	TsyncIdentity caller = tsync_assume_identity(tsync_extension_owner());

	if (SPI_execute_with_args(sql, nargs, types, values, nulls, true, 0) < 0)
		elog(ERROR, "SPI failed: %s", SPI_result_code_string(SPI_result));
	tsync_resume_identity(caller);
	return SPI_processed;
}

/* The one value that a statement has returned, copied into the memory that is to outlive it. */
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

/* An error unless a feed is there, is a table, and may be read by the current user. */
static void
check_access(Oid replica, Oid feed)
{
	if (tsync_owner_of(feed) == InvalidOid)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s has no feed", tsync_relation_label(replica)),
				 errhint("The owner of a replica switches it on: SELECT tablesync_alter(%s, feed => true);",
						 quote_literal_cstr(tsync_relation_label(replica)))));
	if (pg_class_aclcheck(feed, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(feed));
	/* a view would run its owner's code as whoever reads it */
	if (get_rel_relkind(feed) != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s is not a table", tsync_relation_label(feed)),
				 errhint("The owner of the replica makes another one: DROP .. %s; SELECT tablesync_alter(%s, feed => true);",
						 tsync_relation_label(feed), quote_literal_cstr(tsync_relation_label(replica)))));
}

/* Lock the feed of a replica as for reading; an error unless the current user may read it. */
static void
hold_readable(Oid replica)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(replica)};
	Oid			feed = InvalidOid;

	if (look("SELECT t.feed_table::oid::int8 FROM tablesync.all_replicas t WHERE t.replica = $1::regclass AND t.feed", 1, types, values, NULL) > 0)
		feed = (Oid) tsync_result_int64(0, 1);
	/* who may not read it does not get to wait for it; what it is stays so under the lock */
	check_access(replica, feed);
	LockRelationOid(feed, AccessShareLock);
	check_access(replica, feed);
}

/* tablesync.feed_of(replica, since, most) */
Datum
tsync_feed_of(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {OIDOID, INT8OID, INT4OID};
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), PG_GETARG_DATUM(2)};
	char		nulls[] = {' ', PG_ARGISNULL(1) ? 'n' : ' ', PG_ARGISNULL(2) ? 'n' : ' ', '\0'};
	Datum		description;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("replica must not be NULL")));
	SPI_connect();
	hold_readable(PG_GETARG_OID(0));
	if (look("SELECT tablesync.describe_feed($1::regclass, $2, $3)", lengthof(types), types, values, nulls) != 1)
		elog(ERROR, "describe_feed did not return one row");
	description = copy_result(caller, &fcinfo->isnull);
	SPI_finish();
	return description;
}

/* tablesync.<verb>_consumer(..) calls tablesync.record_<verb>_consumer(caller, ..) with the rights of the extension's owner. */
Datum
tsync_role_door(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			door = fcinfo->flinfo->fn_oid;
	Oid		   *argtypes;
	int			nargs;
	Oid			types[FUNC_MAX_ARGS];
	Datum		values[FUNC_MAX_ARGS];
	char		nulls[FUNC_MAX_ARGS];
	StringInfoData sql;

	(void) get_func_signature(door, &argtypes, &nargs);
	if (nargs != PG_NARGS() || nargs >= FUNC_MAX_ARGS)
		elog(ERROR, "function %u is no door", door);
	types[0] = OIDOID;
	values[0] = ObjectIdGetDatum(GetUserId());
	nulls[0] = ' ';
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT tablesync.%s($1", quote_identifier(psprintf("record_%s", get_func_name(door))));
	for (int i = 0; i < nargs; i++)
	{
		types[i + 1] = argtypes[i];
		values[i + 1] = PG_GETARG_DATUM(i);
		nulls[i + 1] = PG_ARGISNULL(i) ? 'n' : ' ';
		appendStringInfo(&sql, ", $%d", i + 2);
	}
	appendStringInfoChar(&sql, ')');

	SPI_connect();
	if (tsync_record(sql.data, nargs + 1, types, values, nulls) != 1)
		elog(ERROR, "%s did not return one row", get_func_name(door));
	values[0] = copy_result(caller, &fcinfo->isnull);
	SPI_finish();
	return values[0];
}
