/*-------------------------------------------------------------------------
 *
 * copy.c
 *	  One export: its query, by COPY, into its file.
 *
 * The process is connected as the role that has asked, and everything that the
 * query evaluates runs as that role.  COPY itself is called below its check
 * whether the role may write files at the server: which file that is, nobody
 * but us has said.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "export/export.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "parser/parse_node.h"
#include "process/process.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

/* What an export reads. */
typedef struct ExportQuery
{
	Oid			relid;
	char	   *label;
	char	   *statement;
} ExportQuery;

static DefElem *
text_option(char *name, char *value)
{
	return makeDefElem(name, (Node *) makeString(value), -1);
}

/*
 * JSON has no control characters but escaped ones, so with two of these as
 * delimiter and quote, CSV takes each object as it is: no backslash is doubled.
 */
static List *
copy_options(bool json)
{
	List	   *options = list_make1(text_option("format", "csv"));

	if (json)
	{
		options = lappend(options, text_option("delimiter", "\002"));
		options = lappend(options, text_option("quote", "\001"));
	}
	else
		options = lappend(options, makeDefElem("header", (Node *) makeBoolean(true), -1));
	/* a database without encoding has bytes, of which nobody knows what they are */
	if (GetDatabaseEncoding() != PG_SQL_ASCII)
		options = lappend(options, text_option("encoding", "UTF8"));
	return options;
}

/* Values look the same whoever asks; and a file takes its time anyway. */
static void
settle_session(void)
{
	static const char *const settings[][2] = {{"timezone", "UTC"}, {"max_parallel_workers_per_gather", "0"}};

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * The query as of the current snapshot, in which its rows will be read too: a run
 * may delete old changes of a feed meanwhile.
 */
static ExportQuery
look_up_query(TsyncExport *export)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(export->export_id)};
	MemoryContext caller = CurrentMemoryContext;
	TsyncIdentity identity = tsync_assume_identity(tsync_extension_owner());
	ExportQuery query = {InvalidOid};

	if (SPI_execute_with_args("SELECT q.relation::int8, q.label, q.statement, q.note FROM tablesync.export_query($1) q",
							  lengthof(types), types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look up export " INT64_FORMAT, export->export_id);
	tsync_resume_identity(identity);
	MemoryContextSwitchTo(caller);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the replica was removed")));
	query.relid = (Oid) tsync_result_int64(0, 1);
	query.label = tsync_result_text(0, 2);
	query.statement = tsync_result_text(0, 3);
	export->note = tsync_result_text(0, 4);
	/* what is said in its end outlives the transaction */
	if (export->note)
		export->note = MemoryContextStrdup(caller, export->note);
	return query;
}

/* Lock what the query names, and see that it is still that. */
static void
hold_relation(ExportQuery *query)
{
	LockRelationOid(query->relid, AccessShareLock);
	if (get_rel_name(query->relid) == NULL || strcmp(tsync_relation_label(query->relid), query->label) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("%s was renamed or dropped as its export began", query->label)));
	/* a view would run its owner's code */
	if (get_rel_relkind(query->relid) != RELKIND_RELATION && get_rel_relkind(query->relid) != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s is not a table", query->label)));
}

/* The query, as of a new snapshot. */
static ExportQuery
look_up_anew(TsyncExport *export)
{
	PopActiveSnapshot();
	PushActiveSnapshot(GetTransactionSnapshot());
	return look_up_query(export);
}

/*
 * The query, made when what it names was locked already: its columns are still of
 * the types for which it was made.  The replica is, a feed is not the first time.
 */
static ExportQuery
hold_query(TsyncExport *export)
{
	ExportQuery query;
	Oid			relid;

	LockRelationOid(export->replica, AccessShareLock);
	query = look_up_anew(export);
	relid = query.relid;
	hold_relation(&query);
	if (relid != export->replica)
	{
		query = look_up_anew(export);
		hold_relation(&query);
	}
	if (query.relid != relid && query.relid != export->replica)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("%s has got another feed as its export began", tsync_relation_label(export->replica))));
	return query;
}

/* Write the rows of a query to a file that is there. */
static uint64
copy_to(const char *statement, bool json, const char *path)
{
	RawStmt    *parsed = linitial_node(RawStmt, pg_parse_query(statement));
	ParseState *pstate = make_parsestate(NULL);
	CopyToState state;
	uint64		rows;

	pstate->p_sourcetext = statement;
	state = tsync_begin_copy_to(pstate, parsed, path, copy_options(json));
	rows = DoCopyTo(state);
	EndCopyTo(state);
	free_parsestate(pstate);
	return rows;
}

/* Write an export to a file that is there, in a transaction of its own. */
void
tsync_copy_export(TsyncExport *export, const char *part)
{
	MemoryContext context = CurrentMemoryContext;
	ExportQuery query;

	tsync_begin_in(context);
	settle_session();
	query = hold_query(export);
	export->rows = copy_to(query.statement, export->json, part);
	tsync_commit();
}
