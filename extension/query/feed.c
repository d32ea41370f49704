/*-------------------------------------------------------------------------
 *
 * feed.c
 *	  SQL text that writes the changes of a run to the feed.
 *
 * The statements precede those that change the replica (write.c), and see its
 * rows as they were.  Positions are counted in the order of keys: so both rows of
 * an update get the same one without being joined, and a run that is lost with a
 * server and done again at another gives each change the position that it had.
 * Each returns how many rows it has written, as a digest.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "query/query.h"
#include "utils/builtins.h"

/* The name that a column has in the feed, as tablesync.feed_name() has it. */
const char *
tsync_feed_name(const char *name)
{
	static const char *const ours[] = {"position", "run_id", "op"};

	for (int i = 0; i < lengthof(ours); i++)
	{
		size_t		length = strlen(ours[i]);

		if (strncmp(name, ours[i], length) == 0 && strspn(name + length, "_") == strlen(name + length))
			return psprintf("%s_", name);
	}
	return name;
}

static void
begin_feeding(StringInfo buf, TsyncTable *table)
{
	initStringInfo(buf);
	appendStringInfo(buf, "WITH fed AS (INSERT INTO %s (\"position\", run_id, op", table->feed_sql);
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(buf, ", %s", quote_identifier(tsync_feed_name(table->columns[i].name)));
	appendStringInfoString(buf, ") SELECT ");
}

/* Number rows in the order of their keys. */
static void
append_number(StringInfo buf, TsyncTable *table, const char *prefix)
{
	appendStringInfoString(buf, "pg_catalog.row_number() OVER (ORDER BY ");
	tsync_append_keys(buf, table, 0, table->nkeys, prefix);
	appendStringInfoChar(buf, ')');
}

/* What precedes the row's own columns; the expression for its number, which counts from 1, is there. */
static void
append_head(StringInfo buf, int64 position, int64 run_id, char op)
{
	appendStringInfo(buf, " OPERATOR(pg_catalog.+) '" INT64_FORMAT "'::pg_catalog.int8, '" INT64_FORMAT "'::pg_catalog.int8, '%c'::pg_catalog.\"char\", ",
					 position, run_id, op);
}

static void
end_feeding(StringInfo buf)
{
	appendStringInfoString(buf, " RETURNING 1) SELECT pg_catalog.count(*), NULL::pg_catalog.numeric FROM fed");
}

/* The rows that will be deleted: those of some keys, but not of those in "except", if that is not NULL. */
char *
tsync_sql_feed_deleted(TsyncTable *table, const char *keys, const char *except, int64 position, int64 run_id)
{
	StringInfoData buf;

	begin_feeding(&buf, table);
	append_number(&buf, table, "d.");
	append_head(&buf, position, run_id, 'd');
	tsync_append_columns(&buf, table, "r.");
	appendStringInfo(&buf, " FROM %s d JOIN %s r ON ", keys, table->replica_sql);
	tsync_append_keys_equal(&buf, table, "r.", "d.");
	if (except)
	{
		appendStringInfo(&buf, " WHERE NOT EXISTS (SELECT FROM %s e WHERE ", except);
		tsync_append_keys_equal(&buf, table, "e.", "d.");
		appendStringInfoChar(&buf, ')');
	}
	end_feeding(&buf);
	return buf.data;
}

/* The rows that will be updated, as they are. */
char *
tsync_sql_feed_before(TsyncTable *table, const char *rows, int64 position, int64 run_id)
{
	const char *number = tsync_unused_prefix(table);
	StringInfoData buf;

	begin_feeding(&buf, table);
	appendStringInfo(&buf, "s.%s", number);
	append_head(&buf, position, run_id, 'b');
	tsync_append_columns(&buf, table, "r.");
	appendStringInfoString(&buf, " FROM (SELECT ");
	append_number(&buf, table, "");
	appendStringInfo(&buf, " AS %s, ", number);
	tsync_append_keys(&buf, table, 0, table->nkeys, "");
	appendStringInfo(&buf, " FROM %s) s JOIN %s r ON ", rows, table->replica_sql);
	tsync_append_keys_equal(&buf, table, "r.", "s.");
	end_feeding(&buf);
	return buf.data;
}

/* Staged rows, as they will be. */
char *
tsync_sql_feed_rows(TsyncTable *table, const char *rows, char op, int64 position, int64 run_id)
{
	StringInfoData buf;

	begin_feeding(&buf, table);
	append_number(&buf, table, "");
	append_head(&buf, position, run_id, op);
	tsync_append_columns(&buf, table, "");
	appendStringInfo(&buf, " FROM %s", rows);
	end_feeding(&buf);
	return buf.data;
}

/* The row that says to start again. */
char *
tsync_sql_feed_start(TsyncTable *table, int64 position, int64 run_id)
{
	return psprintf("WITH fed AS (INSERT INTO %s (\"position\", run_id, op) VALUES (" INT64_FORMAT ", " INT64_FORMAT ", 't') RETURNING 1)"
					" SELECT pg_catalog.count(*), NULL::pg_catalog.numeric FROM fed", table->feed_sql, position, run_id);
}
