/*-------------------------------------------------------------------------
 *
 * stage.c
 *	  The differences a run has found and not yet applied.
 *
 * The stage is a handful of tuplestores that outlive transactions and spill
 * to disk, so SCAN can end its remote transaction before APPLY waits for a
 * lock, and a crash leaves nothing behind.  SQL sees them as named relations
 * (the way triggers see transition tables).
 *
 * Whole rows are fetched from the source by key, in groups bounded by bytes:
 * postgres_fdw holds a group in memory in several forms at once.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define ROWSET_KB 4096			/* in memory, per row set */
#define GROUP_KEYS 5000			/* single-column keys in one statement */
#define GROUP_COMPOSITE_KEYS 200

/* Make an empty row set that lives until the process ends or clears it. */
void
tsync_rowset_init(TsyncRowSet *set, const char *name, TupleDesc tupdesc)
{
	static ResourceOwner stage_owner = NULL;
	ResourceOwner caller = CurrentResourceOwner;

	/* a tuplestore uses the resource owner it was made under ever after */
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

/* Descriptor of the key columns, with room for extra columns. */
TupleDesc
tsync_key_desc(TsyncReplica *replica, int extra)
{
	TupleDesc	desc = CreateTemplateTupleDesc(replica->nkeys + extra);

	for (int i = 0; i < replica->nkeys; i++)
		TupleDescInitEntry(desc, i + 1, replica->keys[i]->name,
						   replica->keys[i]->type, replica->keys[i]->typmod, 0);
	return desc;
}

/* Descriptor of whole rows. */
TupleDesc
tsync_row_desc(TsyncReplica *replica)
{
	TupleDesc	desc = CreateTemplateTupleDesc(replica->ncolumns);

	for (int i = 0; i < replica->ncolumns; i++)
		TupleDescInitEntry(desc, i + 1, replica->columns[i].name,
						   replica->columns[i].type, replica->columns[i].typmod, 0);
	return desc;
}

TsyncStage *
tsync_stage_create(TsyncReplica *replica)
{
	TsyncStage *stage = palloc0(sizeof(TsyncStage));

	tsync_rowset_init(&stage->inserted, "tsync_inserted", tsync_row_desc(replica));
	tsync_rowset_init(&stage->updated, "tsync_updated", tsync_row_desc(replica));
	tsync_rowset_init(&stage->deleted, "tsync_deleted", tsync_key_desc(replica, 0));
	tsync_rowset_init(&stage->reappeared, "tsync_reappeared", tsync_key_desc(replica, 0));
	tsync_rowset_init(&stage->memory, "tsync_memory", tsync_memory_desc());
	return stage;
}

void
tsync_stage_clear(TsyncStage *stage)
{
	tsync_rowset_clear(&stage->inserted);
	tsync_rowset_clear(&stage->updated);
	tsync_rowset_clear(&stage->deleted);
	tsync_rowset_clear(&stage->reappeared);
	tsync_rowset_clear(&stage->memory);
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

/* The key in the first columns of a slot, as texts in the current context. */
char	  **
tsync_key_of_slot(TsyncReplica *replica, TupleTableSlot *slot)
{
	char	  **key = palloc(replica->nkeys * sizeof(char *));

	slot_getsomeattrs(slot, replica->nkeys);
	for (int i = 0; i < replica->nkeys; i++)
	{
		if (slot->tts_isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("key column %s of the source of %s is NULL",
							replica->keys[i]->quoted, replica->label)));
		key[i] = tsync_value_to_text(replica->keys[i]->type, slot->tts_values[i]);
	}
	return key;
}

/* Fetch the whole source rows of a group of keys with one statement. */
static void
fetch_group(TsyncRun *run, List *keys, TsyncRowSet *into)
{
	TsyncReading reading = {.keys = keys};
	uint64		fetched;

	tsync_start_reading(&reading, run);
	fetched = tsync_select_at_most(run, TSYNC_SOURCE, tsync_sql_fetch(run->replica, keys), into, list_length(keys));
	tsync_end_reading(&reading);
	if (fetched != (uint64) list_length(keys))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("source of %s returned " UINT64_FORMAT " rows for %d keys of one snapshot",
						run->replica->label, fetched, list_length(keys)),
				 errhint("The table was probably rewritten while it was read. Run again; if that does not help, the index of its key is damaged: let it be built anew at the source (REINDEX).")));
}

static int
group_keys(TsyncReplica *replica)
{
	return replica->nkeys == 1 ? GROUP_KEYS : GROUP_COMPOSITE_KEYS;
}

/* Read the next group of keys, no larger than one statement should take. */
static List *
next_keys(TsyncReplica *replica, TsyncRowSet *set, TupleTableSlot *slot)
{
	List	   *keys = NIL;
	int			limit = group_keys(replica);

	while (list_length(keys) < limit && tsync_rowset_next(set, slot))
		keys = lappend(keys, tsync_key_of_slot(replica, slot));
	return keys;
}

/* Call a function for groups of the keys in a row set. */
void
tsync_for_keys(TsyncRun *run, TsyncRowSet *keys, TsyncKeysFunction function, void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext group_context = AllocSetContextCreate(caller, "tablesync keys",
														ALLOCSET_DEFAULT_SIZES);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(keys->tupdesc, &TTSOpsMinimalTuple);
	List	   *group;

	tsync_rowset_start(keys);
	MemoryContextSwitchTo(group_context);
	while ((group = next_keys(run->replica, keys, slot)) != NIL)
	{
		function(run, group, arg);
		ExecClearTuple(slot);	/* its tuple may be in the context */
		MemoryContextReset(group_context);
	}
	MemoryContextSwitchTo(caller);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(group_context);
}

/* Fetch a list of keys, in halves as long as its rows take too many bytes. */
static void
fetch_keys(TsyncRun *run, List *keys, void *into)
{
	char	   *sql = NULL;
	int			half = list_length(keys) / 2;

	if (run->replica->wide && half > 0)
		sql = tsync_sql_bytes_of_keys(run->replica, keys);
	if (sql != NULL && tsync_select_digest(run, TSYNC_SOURCE, sql).sum > TSYNC_GROUP_BYTES)
	{
		fetch_keys(run, list_truncate(list_copy(keys), half), into);
		fetch_keys(run, list_copy_tail(keys, half), into);
		return;
	}
	fetch_group(run, keys, into);
}

/* Fetch the whole source rows of all keys in a row set. */
void
tsync_fetch_rows(TsyncRun *run, TsyncRowSet *keys, TsyncRowSet *into)
{
	tsync_for_keys(run, keys, fetch_keys, into);
}

/* Move the watermark to the newest rows of one relation or two. */
void
tsync_advance_watermark(TsyncRun *run, const char *rows, const char *more)
{
	char	   *watermark;
	TsyncColumn *version = run->replica->version;

	if (version == NULL || !tsync_orders_alike(version->type) || version->type == UUIDOID)
		return;					/* no order, or no maximum */
	if (tsync_select(run, TSYNC_REPLICA,
					 tsync_sql_watermark(run->replica, rows, more), NULL) != 1)
		return;
	watermark = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	/* it outlives this attempt, which may fail */
	if (watermark != NULL)
		run->replica->watermark = MemoryContextStrdup(GetMemoryChunkContext(run), watermark);
	SPI_freetuptable(SPI_tuptable);
}
