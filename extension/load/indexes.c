/*-------------------------------------------------------------------------
 *
 * indexes.c
 *	  The indexes of a replica, once a bulk load has put its rows in place.
 *
 * A helper builds them, and meanwhile this process asks the source for one
 * digest of all rows: what a SCAN begins with (scan.c), and all there is to
 * it if the source has not changed since it was read.  The helper has locked
 * the replica, and the source must never wait for that, so the replica is not
 * to be touched in between.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_index.h"
#include "catalog/tables.h"
#include "compat.h"
#include "execute/execute.h"
#include "load/load.h"
#include "miscadmin.h"
#include "process/process.h"
#include "scan/scan.h"
#include "source/source.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* For building the indexes, in kB. */
#define INDEX_MEMORY "40960"

/* How often to look what the helper is doing. */
#define SORT_POLL_MS 20

/*
 * Let nobody keep the indexes of a replica up to date any more, until they are
 * built by REINDEX; returns them.  They stay what they are, with all that
 * depends on them: there is nothing that would have to be created again.
 */
List *
tsync_suspend_indexes(Oid relid)
{
	/* keeps everybody out: a plan that uses these indexes would miss rows */
	Relation	rel = table_open(relid, AccessExclusiveLock);
	Relation	catalog = table_open(IndexRelationId, RowExclusiveLock);
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		HeapTuple	tuple = SearchSysCacheCopy1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(lc));
		index = (Form_pg_index) GETSTRUCT(tuple);
		index->indisready = index->indisvalid = false;
		CatalogTupleUpdate(catalog, &tuple->t_self, tuple);
	}
	/* else others would go on with what they have cached of the indexes */
	CacheInvalidateRelcache(rel);
	table_close(catalog, RowExclusiveLock);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return indexes;
}

/* Has a table an index that is kept up to date? */
bool
tsync_has_live_index(Relation rel)
{
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		bool		ready = HeapTupleIsValid(tuple) && ((Form_pg_index) GETSTRUCT(tuple))->indisready;

		if (HeapTupleIsValid(tuple))
			ReleaseSysCache(tuple);
		if (ready)
			return true;
	}
	return false;
}

/*
 * Build the indexes in a transaction of their own: with them, the load is
 * complete.
 */
static void
end_load(void *arg)
{
	TsyncLoad  *load = arg;

	tsync_begin_change(NULL);
	(void) set_config_option("maintenance_work_mem", INDEX_MEMORY, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	tsync_end_bulk_load(load->table);
	tsync_commit();
}

/* What a helper does who is asked for it. */
void
tsync_help_index(TsyncLoad *load)
{
	end_load(load);
}

static bool
are_missing(TsyncLoad *load)
{
	bool		missing;

	tsync_begin();
	missing = tsync_read_replica(load->table->relid)->state.bulk_loading;
	tsync_commit();
	return missing;
}

/* Digest the whole source, in one snapshot. */
static void
digest_all(void *arg)
{
	TsyncLoad  *load = arg;
	TsyncSource *source = load->source;

	tsync_learn_speed(load->table, load->fingerprint, source, load->pace, source->estimate);
	if (!tsync_use_snapshot(load->pace, source->estimate))
		return;
	tsync_limit_source(load->table, tsync_snapshot_timeout());
	tsync_begin_in(CurrentMemoryContext);
	tsync_note_snapshot(load->pace);
	load->digest = tsync_digest_by_blocks(load->table, load->fingerprint, source, load->pace, NIL);
	tsync_commit();
	load->compared = true;
}

/* Whatever the source has, SCAN will meet it again: no reason to give up the indexes. */
static bool
is_left_to_scan(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode != ERRCODE_QUERY_CANCELED || tsync_source_timed_out(edata);
}

/* Ask the source for its digest where SCAN would want it in one snapshot, too. */
static void
digest_source(TsyncLoad *load)
{
	int64		busy = load->table->waited;
	TimestampTz taken;

	/* by xmin a load is compared by what has come since it began, not by a digest */
	if (load->grouped || load->fingerprint.xmin || !tsync_can_read_blocks(load->source))
		return;
	if (!tsync_try(digest_all, load, is_left_to_scan, NULL) && strcmp(load->pace->consistency, "auto") == 0)
	{
		taken = load->pace->snapshot_taken;
		load->snapshot_expired = taken != 0 && TimestampDifferenceExceeds(taken, GetCurrentTimestamp(), tsync_max_snapshot_age);
	}
	tsync_rest(load->pace, load->table->waited - busy, 0);
}

/*
 * Wait while the helper reads and sorts, which keeps all processes busy that
 * it may use.  It writes the tree alone.
 */
static void
wait_for_sort(BackgroundWorkerHandle *helper)
{
	bool		sorting = true;
	pid_t		pid;

	while (sorting)
	{
		BgwHandleStatus status;

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 SORT_POLL_MS, tsync_wait_event("TablesyncLoadHelpers"));
		ResetLatch(MyLatch);
		status = GetBackgroundWorkerPid(helper, &pid);
		tsync_begin();
		sorting = status == BGWH_NOT_YET_STARTED ||
			(status == BGWH_STARTED && tsync_is_sorting((int) pid));
		tsync_commit();
		tsync_progress_step(0, 0);
	}
}

/* Let a helper build the indexes, which must not survive an error here. */
static void
build_by_helper(TsyncLoad *load)
{
	BackgroundWorkerHandle *helper = NULL;

	if (load->replica->settings.workers > 1)
		helper = tsync_start_helper(load, TSYNC_HELP_INDEX);
	if (helper == NULL)
		return;
	PG_TRY();
	{
		wait_for_sort(helper);
		/* touches nothing here: the helper has locked the replica, and the source must not wait for that */
		digest_source(load);
		tsync_wait_for_helper(helper, false);
	}
	PG_CATCH();
	{
		TerminateBackgroundWorker(helper);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Build the indexes that a bulk load has left alone.  Returns false if they refuse
 * rows: somebody else has inserted some, or unique values have moved at the
 * source between two ranges.
 */
bool
tsync_build_indexes(TsyncLoad *load)
{
	tsync_progress_phase(TSYNC_PHASE_INDEX, 0, load->rows_before + load->rows);
	build_by_helper(load);
	return !are_missing(load) ||	/* or with the helper's error */
		tsync_try(end_load, load, tsync_is_uniqueness_violation, NULL);
}
