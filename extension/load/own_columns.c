/*-------------------------------------------------------------------------
 *
 * own_columns.c
 *	  Rows of the source as rows of a replica that has further columns.
 *
 * A replica may have columns that its source lacks.  INSERT gives them their
 * defaults, identities and generated values; what puts rows straight into the
 * heap has to do the same.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "executor/executor.h"
#include "load/load.h"
#include "optimizer/optimizer.h"
#include "query/query.h"
#include "rewrite/rewriteHandler.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* A column whose value is computed here. */
typedef struct OwnColumn
{
	int			index;			/* in a row of the replica */
	ExprState  *value;
} OwnColumn;

struct TsyncOwnColumns
{
	int			ncolumns;		/* of the source's rows */
	int		   *place;			/* of each in a row of the replica */
	int			ncomputed;
	int			ndefaults;		/* of those computed; the others are generated of the rest of the row */
	OwnColumn  *computed;
	ExprContext *econtext;		/* what a row's values are allocated in */
	TupleTableSlot *row;
};

/* Has a relation the columns of the source's rows, with just their types? */
bool
tsync_has_columns(TsyncTable *table, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < table->ncolumns; i++)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), table->columns[i].name);
		Form_pg_attribute attribute = attnum > 0 ? TupleDescAttr(desc, attnum - 1) : NULL;

		if (attribute == NULL || attribute->attisdropped || attribute->attgenerated != '\0' ||
			attribute->atttypid != table->columns[i].type || attribute->atttypmod != table->columns[i].typmod)
			return false;
	}
	return true;
}

/* Does the executor compute a column's value?  Of a virtual one nothing is stored. */
static bool
is_computed(TupleDesc desc, int index, bool generated)
{
	Form_pg_attribute attribute = TupleDescAttr(desc, index);

	if (attribute->attisdropped)
		return false;
	return generated ? attribute->attgenerated == ATTRIBUTE_GENERATED_STORED
		: attribute->attgenerated == '\0' && (attribute->atthasdef || attribute->attidentity != '\0');
}

/* Note how the columns are computed that the source does not have: their defaults, or what is generated. */
static void
add_computed(TsyncOwnColumns *own, Relation rel, const bool *given, bool generated)
{
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		if (!given[i] && is_computed(RelationGetDescr(rel), i, generated))
			own->computed[own->ncomputed++] = (OwnColumn)
		{
			.index = i,
				.value = ExecInitExpr(expression_planner((Expr *) build_column_default(rel, i + 1)), NULL)
		};
}

/*
 * Prepare to complete rows of the source for a replica of which tsync_has_columns()
 * is true; NULL if they are complete as they are.  In the memory and transaction of the caller.
 */
TsyncOwnColumns *
tsync_open_own_columns(TsyncTable *table, Relation rel)
{
	int			natts = RelationGetNumberOfAttributes(rel);
	bool	   *given = palloc0(natts * sizeof(bool));
	TsyncOwnColumns *own = palloc0(sizeof(TsyncOwnColumns));
	bool		same = natts == table->ncolumns;

	own->ncolumns = table->ncolumns;
	own->place = palloc(table->ncolumns * sizeof(int));
	for (int i = 0; i < table->ncolumns; i++)
	{
		own->place[i] = get_attnum(RelationGetRelid(rel), table->columns[i].name) - 1;
		given[own->place[i]] = true;
		same &= own->place[i] == i;
	}
	if (same)
		return NULL;
	own->computed = palloc(natts * sizeof(OwnColumn));
	add_computed(own, rel, given, false);
	own->ndefaults = own->ncomputed;
	add_computed(own, rel, given, true);
	own->econtext = CreateStandaloneExprContext();
	own->row = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsVirtual);
	return own;
}

static void
compute(TsyncOwnColumns *own, int first, int end)
{
	for (int i = first; i < end; i++)
	{
		OwnColumn  *column = &own->computed[i];

		own->row->tts_values[column->index] =
			ExecEvalExprSwitchContext(column->value, own->econtext, &own->row->tts_isnull[column->index]);
	}
}

/* A row of the source as one of the replica; it is good until the next one. */
TupleTableSlot *
tsync_complete_row(TsyncOwnColumns *own, TupleTableSlot *slot)
{
	TupleTableSlot *row;

	if (own == NULL)
		return slot;
	row = own->row;
	ExecClearTuple(row);
	ResetExprContext(own->econtext);
	memset(row->tts_isnull, true, row->tts_tupleDescriptor->natts * sizeof(bool));
	slot_getallattrs(slot);
	for (int i = 0; i < own->ncolumns; i++)
	{
		row->tts_values[own->place[i]] = slot->tts_values[i];
		row->tts_isnull[own->place[i]] = slot->tts_isnull[i];
	}
	compute(own, 0, own->ndefaults);
	ExecStoreVirtualTuple(row);
	own->econtext->ecxt_scantuple = row;
	compute(own, own->ndefaults, own->ncomputed);
	return row;
}

void
tsync_close_own_columns(TsyncOwnColumns *own)
{
	if (own == NULL)
		return;
	ExecDropSingleTupleTableSlot(own->row);
	FreeExprContext(own->econtext, true);
}
