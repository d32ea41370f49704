/*-------------------------------------------------------------------------
 *
 * hold.c
 *	  What a statement is about stays what it was when its text was built.
 *
 * The text of statements has names, and our checks go by OID.  Between the two
 * somebody who owns a schema may rename a table and put another one in its
 * place, or its owner may give it another type or away.  So before a statement
 * is planned the relation that it reads is locked by OID, which keeps names,
 * columns and owner as they are until the transaction ends, and compared with
 * what the run knows of it.  A schema can still be renamed; therefore the executor
 * looks once more, at what the names have come to mean.
 *
 * Only the side that is asked is held: while the source is in a transaction of
 * ours, nobody here may keep us waiting for the replica.  By xmin the replica is
 * held first, before the source is asked in this transaction: who drops it locks
 * it before the foreign table with xmin that goes with it, and so must we.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "execute/execute.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

static ExecutorStart_hook_type previous_executor_start = NULL;

/* The next statement that starts may read these, and nothing else. */
static bool armed = false;
static Oid	expected_replica;
static Oid	expected_source;
static Oid	expected_xmin;
static Oid	expected_feed;

static void
refuse_replaced(TsyncTable *table, const char *relation, const char *change)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s %s during the run", relation, change),
			 errdetail("The run of replica %s has stopped; what it had not committed is undone.", table->label),
			 errhint("SELECT * FROM tablesync_run(%s);", quote_literal_cstr(tsync_relation_label(table->relid)))));
}

/* Lock a relation, and see that it is still the one of that name. */
static void
hold(TsyncTable *table, Oid relid, const char *known_as)
{
	/* the lock first: what is looked at under it stays so until the transaction ends */
	LockRelationOid(relid, AccessShareLock);
	if (get_rel_name(relid) == NULL)
		refuse_replaced(table, known_as, "was dropped");
	if (strcmp(tsync_relation_label(relid), known_as) != 0)
		refuse_replaced(table, known_as, "was renamed");
}

/* Before the source is asked anything, also about other replicas: hold what has to be held before it. */
void
tsync_hold_early(TsyncTable *table)
{
	if (OidIsValid(table->xmin_table))
		hold(table, table->relid, table->replica_sql);
}

/*
 * Hold the side that a statement of a run reads, and let the executor refuse
 * everything else.  In the transaction of the statement, before it is planned.
 */
void
tsync_hold(TsyncTable *table, TsyncSide side)
{
	if (table == NULL)
		return;
	if (side == TSYNC_SOURCE)
	{
		tsync_hold_early(table);
		hold(table, table->source, table->source_sql);
		if (get_rel_relkind(table->source) != RELKIND_FOREIGN_TABLE)
			refuse_replaced(table, table->source_sql, "was replaced");
		if (OidIsValid(table->xmin_table))
			hold(table, table->xmin_table, table->xmin_sql);
	}
	else
	{
		hold(table, table->relid, table->replica_sql);
		/* triggers and expressions run with our rights: they must be the owner's */
		if (tsync_owner_of(table->relid) != GetSessionUserId())
			refuse_replaced(table, table->replica_sql, "was given to another owner");
		if (OidIsValid(table->feed))
			hold(table, table->feed, table->feed_sql);
	}
	expected_replica = table->relid;
	expected_source = table->source;
	expected_xmin = table->xmin_table;
	expected_feed = table->feed;
	armed = true;
}

/* Is a relation part of what we may read? */
static bool
is_expected(Oid relid)
{
	/* partitions that the plan reads are locked already, others do not matter */
	return relid == expected_replica || relid == expected_source || relid == expected_xmin || relid == expected_feed ||
		list_member_oid(find_all_inheritors(expected_replica, NoLock, NULL), relid);
}

/* Executor hook: what the names of our statement mean now is what was held. */
static void
check_relations(QueryDesc *query, int eflags)
{
	ListCell   *lc;

	if (armed)
	{
		armed = false;			/* what triggers do is theirs */
		foreach(lc, query->plannedstmt->rtable)
		{
			RangeTblEntry *entry = lfirst(lc);

			if (entry->rtekind == RTE_RELATION && !is_expected(entry->relid))
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("a table or schema was renamed during the run"),
						 errdetail("A statement of the run would have used table %s.", tsync_relation_label(entry->relid)),
						 errhint("Run again.")));
		}
	}
	if (previous_executor_start)
		previous_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

/* Install the executor hook in this process, which executes nothing but a run. */
void
tsync_prepare_executor(void)
{
	previous_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = check_relations;
}

/* The statement that was to start has failed before. */
void
tsync_hold_nothing(void)
{
	armed = false;
}

/* Do rows have the columns that C code is prepared for?  An error if not. */
void
tsync_check_desc(TupleDesc expected, TupleDesc actual)
{
	bool		fits = expected->natts == actual->natts;

	for (int i = 0; fits && i < expected->natts; i++)
	{
		Form_pg_attribute e = TupleDescAttr(expected, i);
		Form_pg_attribute a = TupleDescAttr(actual, i);

		fits = e->atttypid == a->atttypid && e->attlen == a->attlen && e->attbyval == a->attbyval &&
			e->attalign == a->attalign && (e->atttypmod == -1 || e->atttypmod == a->atttypmod) && !a->attisdropped;
	}
	if (!fits)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("a table was changed during the run"),
				 errdetail("A statement returns other columns, or other types, than the run is prepared for."),
				 errhint("Undo the change of the foreign table or of the replica, and run again; if the source has changed, the run follows it by itself.")));
}
