/*-------------------------------------------------------------------------
 *
 * columns.c
 *	  Keys and columns of a table, and the rows that are made of them.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "query/query.h"

/* Is a column part of the key? */
bool
tsync_is_key(TsyncTable *table, TsyncColumn *column)
{
	for (int i = 0; i < table->nkeys; i++)
		if (table->keys[i] == column)
			return true;
	return false;
}

/* Does the source compute a column out of others? */
bool
tsync_is_computed(TsyncTable *table)
{
	for (int i = 0; i < table->ncolumns; i++)
		if (table->columns[i].expression != NULL && !table->columns[i].constant)
			return true;
	return false;
}

/* A table as if it had only its key columns, with room for the others. */
TsyncTable *
tsync_only_keys(TsyncTable *table)
{
	TsyncTable *part = palloc(sizeof(TsyncTable));

	*part = *table;
	part->columns = palloc0(table->ncolumns * sizeof(TsyncColumn));
	part->keys = palloc0(table->nkeys * sizeof(TsyncColumn *));
	part->ncolumns = 0;
	for (int i = 0; i < table->nkeys; i++)
	{
		part->columns[part->ncolumns] = *table->keys[i];
		part->keys[i] = &part->columns[part->ncolumns++];
	}
	return part;
}

/*
 * A table whose ranges are bounded by all key columns, in the source's order.  For
 * statements that only the source compares: here the bounds may be in another order.
 */
TsyncTable *
tsync_in_source_order(TsyncTable *table)
{
	TsyncTable *ordered = palloc(sizeof(TsyncTable));

	*ordered = *table;
	ordered->nrange = table->nkeys;
	ordered->waited = 0;
	return ordered;
}

/*
 * Describe an attribute as a column.  Rows of ours that are compared with bounds must be
 * compared like those of the replica.
 */
static void
init_attribute(TupleDesc desc, int number, TsyncColumn *column, int32 typmod)
{
	TupleDescInitEntry(desc, number, column->name, column->type, typmod, 0);
	if (OidIsValid(column->bytewise_collation))
		TupleDescInitEntryCollation(desc, number, column->bytewise_collation);
}

/* Descriptor of the key columns, with room for extra columns. */
TupleDesc
tsync_key_desc(TsyncTable *table, int extra)
{
	TupleDesc	desc = CreateTemplateTupleDesc(table->nkeys + extra);
	bool		computed = tsync_is_computed(table);

	/* some are taken from whole rows */
	for (int i = 0; i < table->nkeys; i++)
		init_attribute(desc, i + 1, table->keys[i], computed ? -1 : table->keys[i]->typmod);
	return desc;
}

/* Descriptor of whole rows; an aggregate that stands for a column has no modifier. */
TupleDesc
tsync_row_desc(TsyncTable *table)
{
	TupleDesc	desc = CreateTemplateTupleDesc(table->ncolumns);
	bool		computed = tsync_is_computed(table);

	for (int i = 0; i < table->ncolumns; i++)
		init_attribute(desc, i + 1, &table->columns[i], computed ? -1 : table->columns[i].typmod);
	return desc;
}
