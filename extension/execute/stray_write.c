/*-------------------------------------------------------------------------
 *
 * stray_write.c
 *	  Who has written to a replica: a run, or somebody else?
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_index.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "nodes/bitmapset.h"
#include "query/query.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

/* The replica of this process's run, and how many of its statements are ours. */
static Oid	own_replica = InvalidOid;
static int	own_statements = 0;

PG_FUNCTION_INFO_V1(tsync_note_write);

/* The next statement that writes to the replica is the run's own. */
void
tsync_begin_own_write(Oid replica)
{
	own_replica = replica;
	own_statements = 1;
}

/* It has ended, whether it wrote or not. */
void
tsync_end_own_write(void)
{
	own_statements = 0;
}

/* Is nothing here that would keep a key from being there twice, as while a bulk load leaves the indexes alone? */
static bool
is_key_unchecked(Relation rel)
{
	bool		suspended = false;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;
		bool		checks;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		checks = index->indisunique && index->indisready;
		suspended |= index->indisunique && !index->indisready;
		ReleaseSysCache(tuple);
		if (checks)
			return false;
	}
	return suspended;
}

/*
 * Refuse a row that may have a key which a bulk load brings, too, where the
 * replica is published: subscribers check their keys, and would stop before they
 * learn that the load has begun again.
 */
static void
refuse_unchecked(Relation rel)
{
	PublicationDesc published;

	if (!XLogLogicalInfoActive() || !is_key_unchecked(rel))
		return;
	RelationBuildPublicationDesc(rel, &published);
	if (published.pubactions.pubinsert || published.pubactions.pubupdate)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replica %s can't be written to while it is loaded", tsync_relation_label(RelationGetRelid(rel))),
				 errdetail("It is published, and until its indexes are built nothing keeps a row from being there twice, which subscribers could not follow."),
				 errhint("Wait for the load, or complete it: SELECT tablesync_run(%s);",
						 quote_literal_cstr(tsync_relation_label(RelationGetRelid(rel))))));
}

/*
 * The columns that an UPDATE has set, as arrays of names and of numbers; false where
 * that does not tell which columns have changed.
 */
static bool
find_updated_columns(TriggerData *trigger, Datum *names, Datum *numbers)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	Datum	   *name = palloc(desc->natts * sizeof(Datum));
	Datum	   *number = palloc(desc->natts * sizeof(Datum));
	int			n = 0;

	/* a BEFORE trigger may change others */
	if (!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) || trigger->tg_updatedcols == NULL ||
		trigger->tg_relation->trigdesc->trig_update_before_row)
		return false;
	for (int i = 0; i < desc->natts; i++)
		if (bms_is_member(i + 1 - FirstLowInvalidHeapAttributeNumber, trigger->tg_updatedcols))
		{
			name[n] = CStringGetTextDatum(NameStr(TupleDescAttr(desc, i)->attname));
			number[n++] = Int32GetDatum(i + 1);
		}
	*names = PointerGetDatum(construct_array(name, n, TEXTOID, -1, false, TYPALIGN_INT));
	*numbers = PointerGetDatum(construct_array(number, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	return n > 0;
}

/*
 * Trigger, after each statement on a replica: note that somebody else than a
 * run has written.  One row per (sub)transaction is enough; rows of others
 * can't stand in for it, for a run may be removing them.  An UPDATE that sets
 * nothing but columns which are none of the source's concerns no run.
 */
Datum
tsync_note_write(PG_FUNCTION_ARGS)
{
	/*
	 * tables and columns that every version has: nobody's writes fail between a new library and its SQL.  Columns go
	 * by name and by number, for one of them may have been renamed, or made anew, by hand.
	 */
	static const char *const note = "INSERT INTO tablesync.stray_write (replica)"
	" SELECT t.replica FROM tablesync.replica t WHERE t.replica = $1::regclass"
	" AND ($2 IS NULL OR to_jsonb(t)->>'expressions' IS NOT NULL"
	"  OR EXISTS (SELECT FROM jsonb_array_elements(t.shape) s WHERE s->>'hidden' IS NULL"
	"   AND (s->>'local' IS NULL OR s->>'column' = ANY ($2) OR (s->>'local')::int4 = ANY ($3))))";
	static SPIPlanPtr plan = NULL;
	static TransactionId noted_in = InvalidTransactionId;
	static Oid	noted_for = InvalidOid;
	TriggerData *trigger;
	Oid			types[] = {OIDOID, TEXTARRAYOID, INT4ARRAYOID};
	Datum		values[lengthof(types)] = {0};
	const char *nulls = NULL;
	Oid			relid;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("tablesync.note_write() must be called as a trigger")));
	trigger = (TriggerData *) fcinfo->context;
	relid = RelationGetRelid(trigger->tg_relation);
	if (relid == own_replica && own_statements > 0)
	{
		/* one statement, no more: what a trigger of the owner writes besides leaves a note */
		own_statements--;
		PG_RETURN_POINTER(NULL);
	}
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) || TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		refuse_unchecked(trigger->tg_relation);
	/* the subtransaction's id: after a rollback to a savepoint it is another one, and the note is gone */
	if (noted_in == GetCurrentTransactionId() && noted_for == relid)
		PG_RETURN_POINTER(NULL);

	/* though somebody else's row may be there: a run that does not see our write may be removing it */
	values[0] = ObjectIdGetDatum(relid);
	if (!find_updated_columns(trigger, &values[1], &values[2]))
		nulls = " nn";
	SPI_connect();
	if (plan == NULL)
	{
		plan = SPI_prepare(note, lengthof(types), types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare to note a write to a replica");
	}
	if (SPI_execute_plan(plan, values, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not note a write to a replica");
	/* only now that the row is there: an error must not leave the claim that it is */
	if (SPI_processed > 0)
	{
		noted_in = GetCurrentTransactionId();
		noted_for = relid;
	}
	SPI_finish();
	PG_RETURN_POINTER(NULL);
}
