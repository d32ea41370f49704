/*-------------------------------------------------------------------------
 *
 * rowset.c
 *	  Row sets: rows that outlive transactions, and that SQL sees by name.
 *
 * They are tuplestores, which spill to disk, so SCAN can end its remote
 * transaction before APPLY waits for a lock, and a crash leaves nothing behind.
 * SQL sees them as named relations (the way triggers see transition tables).
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "query/query.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#define ROWSET_KB 4096			/* in memory, per row set; the default of work_mem */
#define GROUP_COMPOSITE_KEYS 200

/* Keys that one scan looks for: their text takes a megabyte. */
#define SCANNED_KEYS 100000		/* 24,000 of 10 million keys took 0.65 of a digest, measured */

/* Has the files of all row sets. */
static ResourceOwner stage_owner = NULL;

/* Make an empty row set that lives until tsync_rowsets_end(), or the process ends. */
void
tsync_rowset_init(TsyncRowSet *set, const char *name, TupleDesc tupdesc)
{
	ResourceOwner caller = CurrentResourceOwner;

	/* a tuplestore uses the resource owner it was made under ever after: a transaction's would close its files */
	if (stage_owner == NULL)
		stage_owner = ResourceOwnerCreate(NULL, "tablesync stage");
	CurrentResourceOwner = stage_owner;
	set->name = name;
	set->tupdesc = tupdesc;
	set->rows = tuplestore_begin_heap(false, true, ROWSET_KB);
	set->count = 0;
	CurrentResourceOwner = caller;
}

void
tsync_rowset_clear(TsyncRowSet *set)
{
	tuplestore_clear(set->rows);
	set->count = 0;
}

/* Keep the first rows of a row set; what a statement that failed has added was not even counted. */
void
tsync_rowset_truncate(TsyncRowSet *set, int64 count)
{
	TsyncRowSet kept;
	TupleTableSlot *slot;

	set->count = count;
	if (tuplestore_tuple_count(set->rows) == count)
		return;
	tsync_rowset_init(&kept, set->name, set->tupdesc);
	slot = MakeSingleTupleTableSlot(set->tupdesc, &TTSOpsMinimalTuple);
	tsync_rowset_start(set);
	for (; kept.count < count && tsync_rowset_next(set, slot); kept.count++)
		tuplestore_puttupleslot(kept.rows, slot);
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(set->rows);
	*set = kept;
}

/* Append the rows of another row set of the same columns. */
void
tsync_rowset_append(TsyncRowSet *set, TsyncRowSet *from)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(from->tupdesc, &TTSOpsMinimalTuple);

	tsync_rowset_start(from);
	for (; tsync_rowset_next(from, slot); set->count++)
		tuplestore_puttupleslot(set->rows, slot);
	ExecDropSingleTupleTableSlot(slot);
}

/* Close the files of all row sets, whose memory goes with its context. */
void
tsync_rowsets_end(void)
{
	if (stage_owner == NULL)
		return;
	/* as of a transaction of its own: it has no parent, and holds files only */
	ResourceOwnerRelease(stage_owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
	ResourceOwnerRelease(stage_owner, RESOURCE_RELEASE_LOCKS, false, true);
	ResourceOwnerRelease(stage_owner, RESOURCE_RELEASE_AFTER_LOCKS, false, true);
	ResourceOwnerDelete(stage_owner);
	stage_owner = NULL;
}

/* Let statements of the current SPI connection see a row set by its name. */
void
tsync_rowset_register(TsyncRowSet *set)
{
	/* SPI allocates its registry where we are, and needs it until it ends */
	MemoryContext caller = MemoryContextSwitchTo(TopTransactionContext);
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));

	enr->md.name = pstrdup(set->name);
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = set->tupdesc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = set->count;
	enr->reldata = set->rows;
	if (SPI_register_relation(enr) != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register row set \"%s\"", set->name);
	MemoryContextSwitchTo(caller);
}

/* Start reading a row set from its first row. */
void
tsync_rowset_start(TsyncRowSet *set)
{
	tuplestore_select_read_pointer(set->rows, 0);
	tuplestore_rescan(set->rows);
}

/* Read the next row into a minimal-tuple slot; false at the end. */
bool
tsync_rowset_next(TsyncRowSet *set, TupleTableSlot *slot)
{
	tuplestore_select_read_pointer(set->rows, 0);
	return tuplestore_gettupleslot(set->rows, true, false, slot);
}

/* A datum of one of the integer types. */
Datum
tsync_integer_datum(Oid type, int64 value)
{
	switch (type)
	{
		case INT2OID:
			return Int16GetDatum((int16) value);
		case INT4OID:
			return Int32GetDatum((int32) value);
		default:
			return Int64GetDatum(value);
	}
}

/* A value in text form. */
char *
tsync_value_to_text(Oid type, Datum value)
{
	Oid			output;
	bool		isvarlena;

	getTypeOutputInfo(type, &output, &isvarlena);
	return OidOutputFunctionCall(output, value);
}

/* A value of a key column, as text. */
static char *
key_value(TsyncTable *table, int i, TupleTableSlot *slot, int attnum)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, attnum, &isnull);

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("key column %s of the source of %s is NULL",
						table->keys[i]->quoted, table->label)));
	return tsync_value_to_text(table->keys[i]->type, value);
}

/* The key in the first columns of a slot, as texts in the current context. */
char **
tsync_key_of_slot(TsyncTable *table, TupleTableSlot *slot)
{
	char	  **key = palloc(table->nkeys * sizeof(char *));

	Assert(slot->tts_tupleDescriptor->natts >= table->nkeys);
	for (int i = 0; i < table->nkeys; i++)
		key[i] = key_value(table, i, slot, i + 1);
	return key;
}

/* The key of a whole row in a slot, likewise. */
char **
tsync_key_of_row(TsyncTable *table, TupleTableSlot *slot)
{
	char	  **key = palloc(table->nkeys * sizeof(char *));

	Assert(slot->tts_tupleDescriptor->natts == table->ncolumns);
	for (int i = 0; i < table->nkeys; i++)
		key[i] = key_value(table, i, slot, table->keys[i] - table->columns + 1);
	return key;
}

/* An integer of any width, as SQL of query/digest.c returns bucket numbers. */
int64
tsync_slot_integer(TupleTableSlot *slot, int attnum)
{
	bool		isnull;
	Datum		value;

	if (attnum > slot->tts_tupleDescriptor->natts)
		elog(ERROR, "a row has no column %d", attnum);
	value = slot_getattr(slot, attnum, &isnull);
	if (isnull)
		return 0;
	switch (TupleDescAttr(slot->tts_tupleDescriptor, attnum - 1)->atttypid)
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
			return DatumGetInt32(value);
		case INT8OID:
			return DatumGetInt64(value);
		default:
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column %d of a row is not an integer", attnum),
					 errhint("A key or version column was given another type during the run. Run again.")));
	}
}

/* A sum of fingerprints, modulo 2^64. */
uint64
tsync_slot_sum(TupleTableSlot *slot, int attnum)
{
	bool		isnull;
	Datum		value;
	Numeric		number;
	char	   *decimal;
	uint64		sum;

	if (attnum > slot->tts_tupleDescriptor->natts ||
		TupleDescAttr(slot->tts_tupleDescriptor, attnum - 1)->atttypid != NUMERICOID)
		elog(ERROR, "column %d of a row is not a sum", attnum);
	value = slot_getattr(slot, attnum, &isnull);
	if (isnull)
		elog(ERROR, "fingerprints of a bucket are NULL");
	number = DatumGetNumeric(value);	/* a copy, mostly */
	decimal = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number)));
	sum = tsync_sum_to_uint64(decimal);
	pfree(decimal);
	if ((Pointer) number != DatumGetPointer(value))
		pfree(number);
	return sum;
}

/*
 * How many keys one statement lists.  Where an index would bring too many of
 * the source's pages into its memory, so many that they are looked for in a scan.
 */
static int
group_keys(TsyncTable *table, TsyncSide side, TsyncRowSet *keys)
{
	if (side == TSYNC_SOURCE && table->seek_keys > 0 && keys->count > Max(table->seek_keys, TSYNC_GROUP_KEYS) &&
		table->nkeys == 1 && tsync_is_integer(table->keys[0]->type))
		return SCANNED_KEYS;
	return table->nkeys == 1 ? TSYNC_GROUP_KEYS : GROUP_COMPOSITE_KEYS;
}

/* Read the next group of keys, no larger than one statement should take. */
static List *
next_keys(TsyncTable *table, TsyncRowSet *set, TupleTableSlot *slot, int limit)
{
	List	   *keys = NIL;

	while (list_length(keys) < limit && tsync_rowset_next(set, slot))
		keys = lappend(keys, tsync_key_of_slot(table, slot));
	return keys;
}

/* Call a function for groups of the keys in a row set, which it will look for at one side. */
void
tsync_for_keys(TsyncTable *table, TsyncSide side, TsyncRowSet *keys, TsyncKeysFunction function, void *arg)
{
	int			limit = group_keys(table, side, keys);
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext group_context = AllocSetContextCreate(caller, "tablesync keys",
														ALLOCSET_DEFAULT_SIZES);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(keys->tupdesc, &TTSOpsMinimalTuple);
	List	   *group;

	tsync_rowset_start(keys);
	MemoryContextSwitchTo(group_context);
	while ((group = next_keys(table, keys, slot, limit)) != NIL)
	{
		function(table, group, arg);
		ExecClearTuple(slot);	/* its tuple may be in the context: it would be freed twice */
		MemoryContextReset(group_context);
	}
	MemoryContextSwitchTo(caller);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(group_context);
}
