/*-------------------------------------------------------------------------
 *
 * replace.c
 *	  Rows that can't be updated one after the other are deleted and inserted.
 *
 * Where rows swap a unique value, no order of updates will do.  What the source
 * does not have, the replica's own columns, is kept aside meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/table.h"
#include "apply/apply.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "query/query.h"
#include "utils/builtins.h"
#include "utils/rel.h"

/* Is a column of the replica one that the source's rows have? */
static bool
is_replicated(TsyncTable *table, Form_pg_attribute attribute)
{
	for (int i = 0; i < table->ncolumns; i++)
		if (strcmp(table->columns[i].name, NameStr(attribute->attname)) == 0)
			return true;
	return false;
}

/*
 * The replica's own columns that have values of their own, quoted, and a descriptor of the
 * key with them; NIL if there are none.
 */
static List *
find_own_columns(TsyncTable *table, TupleDesc *desc)
{
	Relation	rel = table_open(table->relid, NoLock); /* which the merge holds */
	TupleDesc	whole = RelationGetDescr(rel);
	List	   *attributes = NIL;
	List	   *names = NIL;
	ListCell   *lc;
	int			number = table->nkeys;

	for (int i = 0; i < whole->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(whole, i);

		if (!attribute->attisdropped && attribute->attgenerated == '\0' && !is_replicated(table, attribute))
			attributes = lappend(attributes, attribute);
	}
	*desc = tsync_key_desc(table, list_length(attributes));
	foreach(lc, attributes)
	{
		Form_pg_attribute attribute = lfirst(lc);
		char	   *name = pstrdup(NameStr(attribute->attname));

		TupleDescInitEntry(*desc, ++number, name, attribute->atttypid, attribute->atttypmod, attribute->attndims);
		TupleDescInitEntryCollation(*desc, number, attribute->attcollation);
		names = lappend(names, unconstify(char *, quote_identifier(name)));
	}
	table_close(rel, NoLock);
	return names;
}

/* Delete the staged rows for update, and insert them again; returns the digest of what they are then. */
TsyncDigest
tsync_replace_rows(TsyncApply *apply)
{
	TsyncTable *table = apply->table;
	TupleDesc	desc;
	List	   *own = find_own_columns(table, &desc);
	TsyncRowSet kept;
	TsyncDigest inserted;

	if (own == NIL)
	{
		tsync_modify(table, tsync_sql_delete(table, TSYNC_UPDATED, NULL, apply->fingerprint));
		return tsync_modify(table, tsync_sql_insert(table, TSYNC_UPDATED, apply->fingerprint));
	}
	tsync_rowset_init(&kept, TSYNC_KEPT, desc);
	tsync_select_into(table, TSYNC_REPLICA, tsync_sql_keep_columns(table, own, TSYNC_UPDATED), &kept);
	tsync_rowset_register(&kept);
	tsync_modify(table, tsync_sql_delete(table, TSYNC_UPDATED, NULL, apply->fingerprint));
	inserted = tsync_modify(table, tsync_sql_insert_kept(table, own, TSYNC_UPDATED, apply->fingerprint));
	SPI_unregister_relation(kept.name);
	tuplestore_end(kept.rows);
	return inserted;
}
