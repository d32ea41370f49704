/*-------------------------------------------------------------------------
 *
 * feed.h
 *	  What runs have changed, for whoever wants to follow.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_FEED_H
#define TABLESYNC_FEED_H

#include "tablesync.h"

#include "datatype/timestamp.h"
#include "execute/execute.h"

/* Where a run writes what it changes. */
typedef struct TsyncFeed
{
	bool		on;
	bool		starts_again;	/* the replica has changed otherwise: one row says so */
	Oid			relid;
	int64		position;		/* of the last change */
	TimestampTz source_instant; /* what was committed there before is in the replica; 0: unknown */
} TsyncFeed;

/* in write.c */
extern TsyncFeed tsync_look_at_feed(TsyncTable *table);
extern void tsync_open_feed(TsyncTable *table, TsyncFeed *feed);
extern void tsync_close_feed(TsyncTable *table);
extern void tsync_write_feed(TsyncTable *table, TsyncFeed *feed, TsyncStage *stage, int64 rows, int64 run_id);

/* in prune.c */
extern void tsync_settle_feed(Oid relid, int64 run_id);

#endif							/* TABLESYNC_FEED_H */
