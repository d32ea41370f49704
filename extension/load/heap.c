/*-------------------------------------------------------------------------
 *
 * heap.c
 *	  Rows of the source straight into the heap of the replica.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "load/load.h"
#include "query/query.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/rel.h"

/* Rows that go into the heap together. */
#define BUFFERED_ROWS 1000		/* as COPY's MAX_BUFFERED_TUPLES */

struct TsyncHeapWriter
{
	Relation	rel;
	BulkInsertState bistate;
	CommandId	cid;
	TupleTableSlot *slots[BUFFERED_ROWS];
	int			nused;			/* slots that hold a row */
	int			ncreated;
	TsyncDigest digest;			/* of the rows so far */
	ExprState  *fingerprint;
	ExprContext *econtext;
	TsyncOwnColumns *own;		/* NULL: the replica has only the source's columns */
	MemoryContext insert_context;
};

/*
 * The fingerprint of a row of the replica, ready to be computed.  The planner
 * makes it from the same text as always; a replica without indexes can only be
 * scanned for it.
 */
static ExprState *
prepare_fingerprint(TsyncTable *table, TsyncFingerprint fingerprint)
{
	MemoryContext caller = CurrentMemoryContext;
	SPIPlanPtr	plan = SPI_prepare(tsync_sql_fingerprint(table, fingerprint), 0, NULL);
	CachedPlan *cached;
	Plan	   *scan;
	Expr	   *expression;

	MemoryContextSwitchTo(caller);
	cached = plan ? SPI_plan_get_cached_plan(plan) : NULL;
	if (cached == NULL || list_length(cached->stmt_list) != 1)
		elog(ERROR, "could not plan the fingerprint of a row");
	scan = linitial_node(PlannedStmt, cached->stmt_list)->planTree;
	if (!IsA(scan, SeqScan))
		elog(ERROR, "unexpected plan for the fingerprint of a row");
	/* a copy: the plan's own goes with the plan */
	expression = copyObject(linitial_node(TargetEntry, scan->targetlist)->expr);
	ReleaseCachedPlan(cached, NULL);
	SPI_freeplan(plan);
	return ExecInitExpr(expression, NULL);
}

/* Begin to write rows of a source into a table, which nothing but the heap needs, and to digest them. */
TsyncHeapWriter *
tsync_heap_open(TsyncTable *table, TsyncFingerprint fingerprint, Relation rel)
{
	TsyncHeapWriter *writer = palloc0(sizeof(TsyncHeapWriter));

	writer->rel = rel;
	/* by xmin there is nothing here that it could be made of: rows are counted only */
	writer->fingerprint = fingerprint.xmin ? NULL : prepare_fingerprint(table, fingerprint);
	writer->econtext = CreateStandaloneExprContext();
	writer->own = tsync_open_own_columns(table, rel);
	writer->bistate = GetBulkInsertState();
	writer->cid = GetCurrentCommandId(true);
	writer->insert_context = AllocSetContextCreate(CurrentMemoryContext, "tablesync bulk insert",
												   ALLOCSET_DEFAULT_SIZES);
	return writer;
}

static void
writer_flush(TsyncHeapWriter *writer)
{
	MemoryContext caller;

	if (writer->nused == 0)
		return;
	caller = MemoryContextSwitchTo(writer->insert_context);
	table_multi_insert(writer->rel, writer->slots, writer->nused, writer->cid, 0, writer->bistate);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(writer->insert_context);
	for (int i = 0; i < writer->nused; i++)
		ExecClearTuple(writer->slots[i]);
	writer->nused = 0;
}

/* Write what is left; returns the digest of all rows. */
TsyncDigest
tsync_heap_close(TsyncHeapWriter *writer)
{
	writer_flush(writer);
	for (int i = 0; i < writer->ncreated; i++)
		ExecDropSingleTupleTableSlot(writer->slots[i]);
	FreeBulkInsertState(writer->bistate);
	table_finish_bulk_insert(writer->rel, 0);
	FreeExprContext(writer->econtext, true);
	tsync_close_own_columns(writer->own);
	MemoryContextDelete(writer->insert_context);
	return writer->digest;
}

static void
add_to_digest(TsyncHeapWriter *writer, TupleTableSlot *slot)
{
	bool		isnull;

	writer->digest.rows++;
	if (writer->fingerprint == NULL)
		return;
	writer->econtext->ecxt_scantuple = slot;
	writer->digest.sum += (uint64) DatumGetInt64(ExecEvalExprSwitchContext(writer->fingerprint,
																		   writer->econtext, &isnull));
	ResetExprContext(writer->econtext);
}

/* No constraint is checked below the executor but by us. */
static void
check_not_null(Relation rel, TupleTableSlot *slot)
{
	TupleDesc	tupdesc = RelationGetDescr(rel);

	slot_getallattrs(slot);
	for (int i = 0; i < tupdesc->natts; i++)
		if (TupleDescAttr(tupdesc, i)->attnotnull && slot->tts_isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("null value in column \"%s\" of relation \"%s\" violates not-null constraint",
							NameStr(TupleDescAttr(tupdesc, i)->attname), RelationGetRelationName(rel))));
}

/* Receive a row of the source; "arg" is the writer. */
void
tsync_heap_write(TupleTableSlot *slot, void *arg)
{
	TsyncHeapWriter *writer = arg;

	slot = tsync_complete_row(writer->own, slot);
	check_not_null(writer->rel, slot);
	add_to_digest(writer, slot);
	if (writer->nused == writer->ncreated)
		writer->slots[writer->ncreated++] = table_slot_create(writer->rel, NULL);
	ExecCopySlot(writer->slots[writer->nused++], slot);
	if (writer->nused == BUFFERED_ROWS)
		writer_flush(writer);
}
