/*-------------------------------------------------------------------------
 *
 * xmin.c
 *	  Which transaction has written each row of a source.
 *
 * That is the fingerprint of a row that needs nothing of the application: no
 * column that it sets, and no column that has a hash.  A transaction that had
 * ended when a snapshot was taken has written nothing since; so the rows that
 * are new show by their xmin, as long as the server has the same life in which
 * transaction ids were given out.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/dependency.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "commands/extension.h"
#include "execute/execute.h"
#include "process/process.h"
#include "query/query.h"
#include "source/source.h"
#include "utils/builtins.h"

/* So many ids may have been given out since the newest that was seen in use. */
#define HORIZON_SLACK (1 << 24) /* not measured; with more, the run has to compare every column */

/* Let the foreign table go away with the replica, with the server, or with the extension. */
static void
tie_to_replica(Oid relation, Oid replica, Oid server)
{
	ObjectAddress created;
	ObjectAddress of_replica;

	tsync_tie_to_server(relation, server, get_extension_oid("tablesync", false));
	ObjectAddressSet(created, RelationRelationId, relation);
	ObjectAddressSet(of_replica, RelationRelationId, replica);
	recordDependencyOn(&created, &of_replica, DEPENDENCY_AUTO);
}

/* Make sure that the replica has the foreign table through which xmin is read; a transaction of its own. */
void
tsync_prepare_xmin(TsyncTable *table)
{
	MemoryContext caller = CurrentMemoryContext;

	tsync_begin_in(caller);
	tsync_record_oid("SELECT t.relation, t.xmin_column, t.created, t.server FROM tablesync.xmin_table($1::pg_catalog.regclass) t", table->relid);
	table->xmin_table = (Oid) tsync_result_int64(0, 1);
	table->xmin_column = quote_identifier(tsync_result_text(0, 2));
	if (tsync_result_bool(0, 3))
		tie_to_replica(table->xmin_table, table->relid, (Oid) tsync_result_int64(0, 4));
	table->xmin_sql = tsync_relation_label(table->xmin_table);
	table->xmin_rows = tsync_part_sql(table, table->xmin_sql);
	tsync_commit();
}

/*
 * Has the server had another life since what is remembered was true, in which ids
 * were given out again?  A row may have been written anew by a transaction with the
 * number of the one that was lost.
 */
bool
tsync_lives_anew(TsyncSource *source, const char *epoch)
{
	return epoch && source->epoch && strcmp(epoch, source->epoch) != 0;
}

/*
 * From which transaction id on rows are new, if all had ended before that of
 * "first" that was in use in "epoch".  Not known where the server may have had
 * another life since, in which ids were given out again.
 */
TsyncHorizon
tsync_find_horizon(TsyncSource *source, int64 first, const char *epoch)
{
	TsyncHorizon horizon = {.first = (uint32) first};
	uint32		newest = (uint32) source->horizon;

	if (source->newest_xid > 0 && (int32) ((uint32) source->newest_xid - newest) > 0)
		newest = (uint32) source->newest_xid;
	horizon.end = newest + HORIZON_SLACK;
	horizon.known = first > 0 && source->horizon > 0 && epoch && source->epoch && strcmp(epoch, source->epoch) == 0 &&
		(int32) (newest - horizon.first) >= 0;
	return horizon;
}

/* Look for that foreign table, part of a transaction of the caller; false: the next run will make it. */
bool
tsync_find_xmin(TsyncTable *table)
{
	/* a foreign table has system columns of that type, too */
	if (tsync_catalog_execute_oid("SELECT x.relation::pg_catalog.oid::pg_catalog.int8, a.attname"
								  " FROM (SELECT tablesync.find_xmin_table($1::pg_catalog.regclass)) x (relation)"
								  " JOIN pg_attribute a ON a.attrelid = x.relation AND a.attnum > 0 AND a.atttypid = 'xid'::pg_catalog.regtype"
								  " WHERE has_table_privilege(x.relation, 'SELECT')", table->relid) != 1)
		return false;
	table->xmin_table = (Oid) tsync_result_int64(0, 1);
	table->xmin_column = quote_identifier(tsync_result_text(0, 2));
	table->xmin_sql = tsync_relation_label(table->xmin_table);
	table->xmin_rows = tsync_part_sql(table, table->xmin_sql);
	return true;
}
