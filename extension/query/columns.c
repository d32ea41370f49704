/*-------------------------------------------------------------------------
 *
 * columns.c
 *	  Keys and columns of a replica, and the rows that are made of them.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "query/query.h"

/* Is a column part of the key? */
bool
tsync_is_key(TsyncReplica *rep, TsyncColumn *column)
{
	for (int i = 0; i < rep->nkeys; i++)
		if (rep->keys[i] == column)
			return true;
	return false;
}

/* A replica as if it had only its key columns, with room for the others. */
TsyncReplica *
tsync_only_keys(TsyncReplica *rep)
{
	TsyncReplica *part = palloc(sizeof(TsyncReplica));

	*part = *rep;
	part->columns = palloc0(rep->ncolumns * sizeof(TsyncColumn));
	part->keys = palloc0(rep->nkeys * sizeof(TsyncColumn *));
	part->ncolumns = 0;
	for (int i = 0; i < rep->nkeys; i++)
	{
		part->columns[part->ncolumns] = *rep->keys[i];
		part->keys[i] = &part->columns[part->ncolumns++];
	}
	return part;
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
