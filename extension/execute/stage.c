/*-------------------------------------------------------------------------
 *
 * stage.c
 *	  The differences a run has found and not yet applied.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "query/query.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

TsyncStage *
tsync_stage_create(TsyncTable *table)
{
	TsyncStage *stage = palloc0(sizeof(TsyncStage));

	tsync_rowset_init(&stage->inserted, TSYNC_INSERTED, tsync_row_desc(table));
	tsync_rowset_init(&stage->updated, TSYNC_UPDATED, tsync_row_desc(table));
	tsync_rowset_init(&stage->deleted, TSYNC_DELETED, tsync_key_desc(table, 0));
	tsync_rowset_init(&stage->reappeared, TSYNC_REAPPEARED, tsync_key_desc(table, 0));
	return stage;
}

void
tsync_stage_clear(TsyncStage *stage)
{
	tsync_rowset_clear(&stage->inserted);
	tsync_rowset_clear(&stage->updated);
	tsync_rowset_clear(&stage->deleted);
	tsync_rowset_clear(&stage->reappeared);
	stage->outside = 0;
}

/* Let statements of this transaction see the stage. */
void
tsync_register_stage(TsyncStage *stage)
{
	tsync_rowset_register(&stage->inserted);
	tsync_rowset_register(&stage->updated);
	tsync_rowset_register(&stage->deleted);
	tsync_rowset_register(&stage->reappeared);
}

void
tsync_unregister_stage(TsyncStage *stage)
{
	SPI_unregister_relation(stage->inserted.name);
	SPI_unregister_relation(stage->updated.name);
	SPI_unregister_relation(stage->deleted.name);
	SPI_unregister_relation(stage->reappeared.name);
}

/* Rows that the stage holds, as they were counted. */
int64
tsync_staged_rows(TsyncStage *stage)
{
	return stage->deleted.count + stage->updated.count + stage->inserted.count;
}

TsyncStageMark
tsync_stage_mark(TsyncStage *stage)
{
	return (TsyncStageMark)
	{
		.inserted = stage->inserted.count,
			.updated = stage->updated.count,
			.deleted = stage->deleted.count
	};
}

/* Let a stage hold what it held then. */
void
tsync_stage_go_back(TsyncStage *stage, TsyncStageMark mark)
{
	tsync_rowset_truncate(&stage->inserted, mark.inserted);
	tsync_rowset_truncate(&stage->updated, mark.updated);
	tsync_rowset_truncate(&stage->deleted, mark.deleted);
}
