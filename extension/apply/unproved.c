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
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "query/query.h"
#include "run/run.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/*
 * A sentence about triggers that may change what is written to the replica, ""
 * if there are none, and the statements that disable them, NULL likewise.  In a
 * transaction of its own.
 */
char *
tsync_before_triggers(TsyncRun *run, char **statements)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *triggers;

	tsync_begin();
	MemoryContextSwitchTo(caller);
	tsync_catalog_execute_oid("SELECT string_agg(DISTINCT pg_catalog.quote_ident(t.tgname), ', '),"
							  " string_agg(format('ALTER TABLE %s DISABLE TRIGGER %I;', t.tgrelid::regclass, t.tgname), ' ') FILTER (WHERE t.tgparentid = 0)"
							  " FROM pg_catalog.pg_trigger t WHERE (t.tgrelid = $1 OR t.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1)))"
							  " AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 3 = 3",
							  run->replica->relid);
	triggers = tsync_result_text(0, 1);
	*statements = tsync_result_text(0, 2);
	tsync_commit();
	MemoryContextSwitchTo(caller);
	return triggers == NULL ? "" :
		psprintf(" The replica has BEFORE triggers, which may have changed or left out what was written: %s.", triggers);
}

/* Staged rows whose hashes are compared with the source's. */
#define MAX_COMPARED 200

/* The text that a query of the replica's side returns, in the run's context; NULL if it is NULL. */
static char *
select_text(TsyncRun *run, char *sql)
{
	char	   *text;

	if (tsync_select(run, TSYNC_REPLICA, sql, NULL) != 1)
		elog(ERROR, "query for a text did not return one row");
	text = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (text != NULL)
		text = MemoryContextStrdup(GetMemoryChunkContext(run), text);
	SPI_freetuptable(SPI_tuptable);
	return text;
}

/*
 * Note which rows are not here as they were staged.  In the transaction that
 * has written them, before it is undone; the stage is not registered.
 */
void
tsync_note_unlike(TsyncRun *run)
{
	run->unproved = true;
	if (run->stage->inserted.count + run->stage->updated.count == 0)
		return;
	tsync_register_stage(run->stage);
	run->unlike = select_text(run, tsync_sql_unlike_replica(run, TSYNC_MAX_SHOWN));
}

static void
list_hashes(TsyncRun *run, List *keys, void *arg)
{
	tsync_select_into(run, TSYNC_SOURCE, tsync_sql_hashes(run->replica, keys, run->source_version), arg);
}

/* The staged rows that are not what the source's are, although they were made of them; NULL if that can't be seen. */
static char *
find_lost_values(TsyncRun *run)
{
	MemoryContext caller = CurrentMemoryContext;
	TsyncRowSet keys;
	TsyncRowSet hashes;
	char	   *lost;

	tsync_begin();
	MemoryContextSwitchTo(caller);
	tsync_rowset_init(&keys, "tsync_keys", tsync_key_desc(run->replica, 0));
	tsync_rowset_init(&hashes, "tsync_hashes", tsync_hashes_desc(run->replica));
	tsync_register_stage(run->stage);
	tsync_select_into(run, TSYNC_REPLICA, tsync_sql_staged_keys(run, MAX_COMPARED), &keys);
	tsync_for_keys(run, &keys, list_hashes, &hashes);
	tsync_rowset_register(&hashes);
	lost = select_text(run, tsync_sql_unlike_hashes(run, hashes.name, TSYNC_MAX_SHOWN));
	tsync_commit();
	MemoryContextSwitchTo(caller);
	return lost;
}

static void
refuse_changed_rows(TsyncRun *run, int attempts)
{
	char	   *statements;
	char	   *triggers = tsync_before_triggers(run, &statements);

	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("rows of replica %s do not become what they are at the source", run->replica->label),
			 errdetail("%d attempts were made; nothing was changed. Not here as they were written: %s.%s",
					   attempts, run->unlike, triggers),
			 statements ? errhint("%s", statements) :
			 errhint("Something on the replica changes these columns when they are written: \\d %s", run->replica->label)));
}

static void
refuse_lost_values(TsyncRun *run, int attempts, const char *lost)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("rows of replica %s do not become what they are at the source", run->replica->label),
			 errdetail("%d attempts were made; nothing was changed. Their text does not carry all of these values: %s.",
					   attempts, lost),
			 run->replica->version && run->replica->row_fingerprint ?
			 errhint("SELECT tablesync_alter(%s, fingerprint => 'version');", quote_literal_cstr(run->replica->label)) :
			 errhint("Write these values anew at the source, as their text reads.")));
}

/* Give up on some runs after so many attempts, and say why as far as it can be seen.  Does not return. */
void
tsync_give_up(List *runs, int attempts)
{
	TsyncRun   *first = linitial(runs);
	char	   *statements;
	ListCell   *lc;

	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);
		char	   *lost;

		if (!run->unproved)
			continue;
		if (run->unlike)
			refuse_changed_rows(run, attempts);
		if ((lost = find_lost_values(run)) != NULL)
			refuse_lost_values(run, attempts, lost);
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("source or replica of %s kept changing during the run", first->replica->label),
			 errdetail("%d attempts were made; nothing was changed.%s", attempts, tsync_before_triggers(first, &statements)),
			 errhint("Run again when TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE is over at the source, and nobody writes to the replica; if the source keeps moving rows between keys, use consistency chunk.")));
}
