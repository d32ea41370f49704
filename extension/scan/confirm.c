/*-------------------------------------------------------------------------
 *
 * confirm.c
 *	  CONFIRM: absence is not deletion until it was seen twice.
 *
 * What SCAN did not find may have been there all the same: a snapshot that is
 * older than a rewrite of the source's table sees none of its rows.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "execute/execute.h"
#include "process/process.h"
#include "query/query.h"
#include "scan/scan.h"

/* Count those of some keys that the source has, whatever the filter. */
static void
count_keys(TsyncTable *table, List *keys, void *arg)
{
	int64	   *count = arg;

	*count += tsync_select_digest(table, TSYNC_SOURCE, tsync_sql_count_keys(table, keys)).rows;
	tsync_source_goes_on();
}

typedef struct Outside
{
	TsyncTable *table;
	TsyncStage *stage;
} Outside;

static void
count_outside(void *arg)
{
	Outside    *outside = arg;

	outside->stage->outside = 0;
	tsync_begin();
	tsync_for_keys(outside->table, TSYNC_SOURCE, &outside->stage->deleted, count_keys, &outside->stage->outside);
	tsync_commit();
}

/*
 * How many of the rows to be deleted are still at the source, and only outside of
 * a filter that has changed?  These are meant to go.
 */
void
tsync_count_outside(TsyncTable *table, TsyncStage *stage)
{
	Outside		outside = {.table = table,.stage = stage};

	Assert(!IsTransactionState());
	if (stage->deleted.count > 0)
		tsync_insist(count_outside, &outside);
}

/* A second look, and how far it has come. */
typedef struct SecondLook
{
	TsyncTable *table;
	TsyncStage *stage;
	int			done;			/* groups of keys that were looked up */
	int			group;			/* the current one */
} SecondLook;

/* Note which of some keys to be deleted the source still has. */
static void
find_again(TsyncTable *table, List *keys, void *arg)
{
	SecondLook *look = arg;
	TsyncRowSet *reappeared = &look->stage->reappeared;

	if (look->group++ < look->done)
		return;
	tsync_select_at_most(table, TSYNC_SOURCE, tsync_sql_find_keys(table, keys), reappeared, list_length(keys));
	tsync_progress_step(0, list_length(keys));
	look->done++;
	tsync_source_goes_on();
}

static void
look_again(void *arg)
{
	SecondLook *look = arg;

	look->group = 0;
	/* without what an interrupted answer has brought */
	tsync_rowset_truncate(&look->stage->reappeared, look->stage->reappeared.count);
	tsync_begin();
	tsync_for_keys(look->table, TSYNC_SOURCE, &look->stage->deleted, find_again, look);
	tsync_commit();
}

/*
 * Look up the keys to be deleted again, in a new remote transaction, and note
 * those that are still there.
 */
void
tsync_confirm(TsyncTable *table, TsyncStage *stage)
{
	SecondLook	look = {.table = table,.stage = stage};

	Assert(!IsTransactionState());	/* a look of its own: the snapshot of SCAN must have ended */
	tsync_progress_phase(TSYNC_PHASE_CONFIRM, 0, stage->deleted.count);
	tsync_insist(look_again, &look);
}
