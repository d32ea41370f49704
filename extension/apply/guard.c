/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  What keeps a run from deleting rows that are not really gone.
 *
 * A run stops before it changes anything when too many rows would be deleted,
 * or when the source has gone back in time.  Two things prove the latter:
 *
 * - The source's transaction counter is behind where the last successful run
 *	 saw it (source/horizon.sql).  It is certain as long as the server has not caught
 *	 up meanwhile, nor gone on for 2^31 transactions; so it counts for a day.
 *
 * - A row that is still there has an older version than it had, and no row of
 *	 the source is as new as that row was.  A newest version that has merely
 *	 decreased would prove nothing: somebody may have deleted the newest rows.
 *	 Nor would one row with an older stamp, as clock skew or the late commit
 *	 of a long transaction leave behind.  The version must be one that a run has
 *	 seen at the source, lest it be somebody's who wrote to the replica.
 *
 * The statements here join the stage with the replica; the source is not
 * asked.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "apply/apply.h"
#include "execute/execute.h"
#include "memory/memory.h"
#include "query/query.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Deletes below this number are never held back. */
#define GUARD_MIN_DELETES 1000

/* Stop before a large part of the replica is deleted. */
static void
check_delete_guard(TsyncTable *table, TsyncStage *stage, List *chunks, double max_delete_fraction)
{
	int64		deletes = stage->deleted.count - stage->outside;
	int64		rows = tsync_add_up_replica(chunks).rows;

	if (deletes < GUARD_MIN_DELETES || deletes <= rows * max_delete_fraction)
		return;
	ereport(ERROR,
			(errcode(TSYNC_ERRCODE_DELETE_GUARD),
			 errmsg("run would delete " INT64_FORMAT " of " INT64_FORMAT " rows of replica %s",
					deletes, rows, table->label),
			 errdetail("max_delete_fraction allows %g; nothing was changed.", max_delete_fraction),
			 errhint("If the rows are really gone at the source, use tablesync_run(%s, force => true).",
					 quote_literal_cstr(table->label))));
}

/*
 * Would rows that are staged for update lose a version newer than any that the
 * source has?  Keeps the newest version seen up to date by the way: where it
 * grows, which is what it mostly does, there is no need to look further.
 */
static bool
look_at_versions(TsyncTable *table, TsyncStage *stage, char **newest_version)
{
	bool		set_back = false;

	tsync_begin_in(CurrentMemoryContext);
	if (tsync_has_order(table->version))
	{
		char	   *newest = NULL;

		tsync_rowset_register(&stage->inserted);
		tsync_rowset_register(&stage->updated);
		tsync_rowset_register(&stage->deleted);
		if (tsync_catalog_execute(tsync_sql_newest_version(table, *newest_version), 0, NULL, NULL, NULL) > 0)
			newest = tsync_result_text(0, 1);
		if (newest && *newest_version && strcmp(newest, *newest_version) == 0 &&
			stage->deleted.count > 0 && stage->updated.count > 0)
			set_back = tsync_catalog_execute(tsync_sql_set_back(table, *newest_version), 0, NULL, NULL, NULL) > 0;
		*newest_version = newest;
	}
	tsync_commit();
	return set_back;
}

#define COUNTER_IS_BEHIND "Its transaction counter is behind where the last successful run saw it."

static void
refuse_to_go_back(TsyncTable *table, const char *evidence, const char *change)
{
	ereport(ERROR,
			(errcode(TSYNC_ERRCODE_SOURCE_WENT_BACK),
			 errmsg("the source of replica %s has gone back in time", table->label),
			 errdetail_internal("%s %s; nothing was changed.", evidence, change),
			 errhint("A standby that lags will catch up. If the source was failed over, restored or moved for good, use tablesync_run(%s, force => true); until then the replica keeps the rows that the source has lost.",
					 quote_literal_cstr(table->label))));
}

static void
refuse_older_rows(TsyncTable *table, TsyncStage *stage, const char *evidence)
{
	refuse_to_go_back(table, evidence,
					  psprintf(INT64_FORMAT " rows would be deleted and " INT64_FORMAT " updated",
							   stage->deleted.count, stage->updated.count));
}

/* Stop a run that would follow the columns of a source that has gone back in time, unless it is forced. */
void
tsync_check_older_shape(TsyncTable *table, TsyncSource *source, bool force)
{
	if (source->new_shape != NULL && source->went_back && !force)
		refuse_to_go_back(table, COUNTER_IS_BEHIND, "Its columns have changed");
}

/*
 * Stop a run whose stage can't be trusted, unless it is forced; after SCAN,
 * outside of a transaction.
 */
void
tsync_check_guards(TsyncTable *table, TsyncSource *source, TsyncStage *stage, List *chunks,
				   double max_delete_fraction, bool force)
{
	bool		set_back = false;

	Assert(!IsTransactionState());
	if (table->version && stage->inserted.count + stage->updated.count > 0)
		set_back = look_at_versions(table, stage, &source->newest_version);
	/* not earlier: the newest version is recorded of a forced run as well */
	if (force)
		return;
	if (source->went_back && stage->deleted.count + stage->updated.count > 0)
		refuse_older_rows(table, stage, COUNTER_IS_BEHIND);
	if (set_back)
		refuse_older_rows(table, stage, "Rows have older versions than they had, and no row is as new as they were.");
	check_delete_guard(table, stage, chunks, max_delete_fraction);
}
