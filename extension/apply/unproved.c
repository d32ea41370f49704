/*-------------------------------------------------------------------------
 *
 * unproved.c
 *	  Why rows do not become what they are at the source.
 *
 * Rows may be written here that do not become what the source has: a trigger
 * changes them, or text carries less than the whole value.  Those are found by
 * comparing what was staged with what is here now, or, where that is equal, the
 * hashes of its columns with the source's.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "apply/apply.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "query/query.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Staged rows whose hashes are compared with the source's. */
#define MAX_COMPARED 200

/*
 * A sentence about triggers that may change what is written to the replica, ""
 * if there are none, and the statements that disable them, NULL likewise.  In a
 * transaction of its own.
 */
static char *
before_triggers(TsyncTable *table, char **statements)
{
	char	   *triggers;

	tsync_begin_in(CurrentMemoryContext);
	tsync_catalog_execute_oid("SELECT string_agg(DISTINCT pg_catalog.quote_ident(t.tgname), ', '),"
							  " string_agg(format('ALTER TABLE %s DISABLE TRIGGER %I;', t.tgrelid::regclass, t.tgname), ' ') FILTER (WHERE t.tgparentid = 0)"
							  " FROM pg_catalog.pg_trigger t WHERE (t.tgrelid = $1 OR t.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1)))"
							  " AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 3 = 3",
							  table->relid);
	triggers = tsync_result_text(0, 1);
	*statements = tsync_result_text(0, 2);
	tsync_commit();
	return triggers == NULL ? "" :
		psprintf(" The replica has BEFORE triggers, which may have changed or left out what was written: %s.", triggers);
}

/* The text that a query of the replica's side returns, in the given context; NULL if it is NULL. */
static char *
select_text(TsyncTable *table, const char *sql, MemoryContext context)
{
	char	   *text;

	if (tsync_select(table, TSYNC_REPLICA, sql, NULL) != 1)
		elog(ERROR, "query for a text did not return one row");
	text = tsync_result_text(0, 1);
	if (text != NULL)
		text = MemoryContextStrdup(context, text);
	SPI_freetuptable(SPI_tuptable);
	return text;
}

/*
 * Note which rows are not here as they were staged.  In the transaction that
 * has written them, before it is undone; the stage is not registered.
 */
void
tsync_note_unlike(TsyncApply *apply)
{
	apply->unproved = true;
	if (apply->stage->inserted.count + apply->stage->updated.count == 0)
		return;
	tsync_register_stage(apply->stage);
	apply->unlike = select_text(apply->table, tsync_sql_unlike_replica(apply->table, TSYNC_MAX_SHOWN),
								GetMemoryChunkContext(apply->stage));
}

/* Where the hashes of some source rows go. */
typedef struct HashesTarget
{
	int			source_version;
	TsyncRowSet *hashes;
} HashesTarget;

static void
list_hashes(TsyncTable *table, List *keys, void *arg)
{
	HashesTarget *target = arg;

	tsync_select_into(table, TSYNC_SOURCE, tsync_sql_hashes(table, keys, target->source_version), target->hashes);
}

/* The staged rows that are not what the source's are, although they were made of them; NULL if that can't be seen. */
static char *
find_lost_values(TsyncApply *apply)
{
	TsyncTable *table = apply->table;
	int			source_version = apply->fingerprint.source_version;
	TsyncRowSet keys;
	TsyncRowSet hashes;
	HashesTarget target = {.source_version = source_version,.hashes = &hashes};
	char	   *lost;

	tsync_begin_in(CurrentMemoryContext);
	tsync_rowset_init(&keys, "tsync_keys", tsync_key_desc(table, 0));
	tsync_rowset_init(&hashes, "tsync_hashes", tsync_hashes_desc(table));
	tsync_register_stage(apply->stage);
	tsync_select_into(table, TSYNC_REPLICA, tsync_sql_staged_keys(table, MAX_COMPARED), &keys);
	tsync_for_keys(table, TSYNC_SOURCE, &keys, list_hashes, &target);
	tsync_rowset_register(&hashes);
	lost = select_text(table, tsync_sql_unlike_hashes(table, hashes.name, source_version, TSYNC_MAX_SHOWN),
					   CurrentMemoryContext);
	tsync_commit();
	return lost;
}

static void
refuse_changed_rows(TsyncApply *apply, int attempts)
{
	TsyncTable *table = apply->table;
	char	   *statements;
	char	   *triggers = before_triggers(table, &statements);

	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("rows of replica %s do not become what they are at the source", table->label),
			 errdetail("%d attempts were made; nothing was changed. Not here as they were written: %s.%s",
					   attempts, apply->unlike, triggers),
			 statements ? errhint("%s", statements) :
			 errhint("Something on the replica changes these columns when they are written: \\d %s", table->label)));
}

static void
refuse_lost_values(TsyncApply *apply, int attempts, const char *lost)
{
	TsyncTable *table = apply->table;

	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("rows of replica %s do not become what they are at the source", table->label),
			 errdetail("%d attempts were made; nothing was changed. Their text does not carry all of these values: %s.",
					   attempts, lost),
			 table->version && apply->fingerprint.all_columns ?
			 errhint("SELECT tablesync_alter(%s, fingerprint => 'version');", quote_literal_cstr(table->label)) :
			 errhint("Write these values anew at the source, as their text reads.")));
}

/* Give up on some runs after so many attempts, and say why as far as it can be seen.  Does not return. */
void
tsync_give_up(List *applies, int attempts)
{
	TsyncApply *first = linitial(applies);
	char	   *statements;
	ListCell   *lc;

	foreach(lc, applies)
	{
		TsyncApply *apply = lfirst(lc);
		char	   *lost;

		if (!apply->unproved)
			continue;
		if (apply->unlike)
			refuse_changed_rows(apply, attempts);
		if ((lost = find_lost_values(apply)) != NULL)
			refuse_lost_values(apply, attempts, lost);
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("source or replica of %s kept changing during the run", first->table->label),
			 errdetail("%d attempts were made; nothing was changed.%s", attempts, before_triggers(first->table, &statements)),
			 errhint("Run again when TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE is over at the source, and nobody writes to the replica; if the source keeps moving rows between keys, use consistency chunk.")));
}
