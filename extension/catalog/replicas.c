/*-------------------------------------------------------------------------
 *
 * replicas.c
 *	  What tablesync.replica says of a replica.
 *
 * The worker is connected as the replica's owner.  What is recorded is recorded
 * with the rights of the extension's owner (execute/spi.c).  Unless said otherwise
 * a function expects a transaction begun with tsync_begin() and allocates its
 * result in the current context.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "catalog/tables.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "query/query.h"
#include "process/process.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Rows that can't be longer are fetched by the thousand. */
#define NARROW_ROW_BYTES 8192	/* a page */

/* Refuse to go on with a column that source and replica no longer share. */
static void
check_column(TsyncTable *table, const char *problem)
{
	if (problem == NULL)
		return;
	ereport(ERROR,
			(errcode(TSYNC_ERRCODE_SCHEMA_CHANGED),
			 errmsg("replica %s no longer fits its source", table->label),
			 errdetail_internal("%s", problem),
			 errhint("Undo the change, or remove the replica with tablesync_remove() and add it again.")));
}

/* A column by its name; NULL if there is none. */
static TsyncColumn *
find_column(TsyncTable *table, const char *name)
{
	for (int i = 0; i < table->ncolumns; i++)
		if (strcmp(table->columns[i].name, name) == 0)
			return &table->columns[i];
	return NULL;
}

/*
 * Read which part of the source the replica is a copy of.  An expression that
 * does not fit the foreign table any more is an error.
 */
static void
read_part(TsyncTable *table)
{
	table->filter = NULL;
	tsync_catalog_execute_oid("SELECT column_name, expression, type::pg_catalog.int8, is_constant"
							  " FROM tablesync.part_of_source($1::regclass)", table->relid);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *name = tsync_result_text(i, 1);
		TsyncColumn *column = name ? find_column(table, name) : NULL;

		if (name == NULL)
			table->filter = tsync_result_text(i, 2);
		else if (column == NULL || column->type != (Oid) tsync_result_int64(i, 3) || tsync_is_key(table, column))
			check_column(table, psprintf("Column %s does not have the type of its expression.", quote_identifier(name)));
		else
		{
			column->expression = tsync_result_text(i, 2);
			column->constant = tsync_result_bool(i, 4);
		}
	}
	SPI_freetuptable(SPI_tuptable);
	table->source_rows = tsync_part_sql(table, table->source_sql);
}

/* Read the columns that both sides have in common, and the keys among them. */
void
tsync_read_columns(TsyncReplica *replica)
{
	TsyncTable *table = &replica->table;
	int			bytes = 0;

	table->ncolumns = tsync_catalog_execute_oid("SELECT column_name, type, typmod, nullable,"
												" key_position, is_version, problem, refetch, coalesce(other_type, false), bytewise_collation"
												" FROM tablesync.replica_columns($1::regclass)",
												table->relid);
	table->columns = palloc0(Max(table->ncolumns, 1) * sizeof(TsyncColumn));
	table->keys = palloc0(Max(table->ncolumns, 1) * sizeof(TsyncColumn *));
	for (int i = 0; i < table->ncolumns; i++)
	{
		TsyncColumn *column = &table->columns[i];
		int			key_position = (int) tsync_result_int64(i, 5);
		int			width;

		check_column(table, tsync_result_text(i, 7));
		column->name = tsync_result_text(i, 1);
		column->quoted = quote_identifier(column->name);
		column->type = (Oid) tsync_result_int64(i, 2);
		column->typmod = (int32) tsync_result_int64(i, 3);
		column->nullable = tsync_result_bool(i, 4);
		column->refetch = tsync_result_bool(i, 8);
		column->opaque = !tsync_can_hash(column->type) || tsync_result_bool(i, 9);
		column->bytewise_collation = (Oid) tsync_result_int64(i, 10);
		if (key_position > 0 && key_position <= table->ncolumns)	/* it comes from a table, and is an index below */
		{
			table->keys[key_position - 1] = column;
			table->nkeys++;
		}
		if (tsync_result_bool(i, 6))
			table->version = column;

		width = tsync_max_bytes(column->type, column->typmod);
		bytes += Max(width, 0);
		table->wide |= (width < 0 || bytes > NARROW_ROW_BYTES);
	}
	SPI_freetuptable(SPI_tuptable);

	if (table->nkeys == 0 || table->nkeys > INDEX_MAX_KEYS)
		elog(ERROR, "replica %s has no key", table->label);
	for (int i = 0; i < table->nkeys; i++)	/* NULL: a position was missing, or there twice */
		if (table->keys[i] == NULL || !tsync_can_be_key(table->keys[i]->type))
			elog(ERROR, "key columns of replica %s are not what they were", table->label);
	if (table->version == NULL && !replica->settings.all_columns && !replica->settings.by_xmin)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the version column of replica %s does not exist", table->label),
				 errhint("SELECT tablesync_alter(%s, fingerprint => 'row');", quote_literal_cstr(table->label))));
	if (replica->settings.part)
		read_part(table);
	table->fingerprint_column = "fingerprint";
	for (int i = 0; i < table->nkeys; i++)
		if (strcmp(table->keys[i]->name, table->fingerprint_column) == 0)
		{
			table->fingerprint_column = psprintf("%s_", table->fingerprint_column);
			i = -1;				/* look at all of them again */
		}
	while (table->nrange < table->nkeys &&
		   (OidIsValid(table->keys[table->nrange]->bytewise_collation) || tsync_orders_alike(table->keys[table->nrange]->type)))
		table->nrange++;
}

/* Take what a user has set from the columns of that name. */
static void
take_settings(TsyncSettings *settings)
{
	settings->all_columns = tsync_result_bool(0, tsync_result_column("all_columns"));
	settings->by_xmin = tsync_result_bool(0, tsync_result_column("by_xmin"));
	settings->part = tsync_result_bool(0, tsync_result_column("part"));
	settings->consistency = tsync_result_text(0, tsync_result_column("consistency"));
	settings->chunk_rows = (int) tsync_result_int64(0, tsync_result_column("chunk_rows"));
	settings->workers = (int) tsync_result_int64(0, tsync_result_column("workers"));
	settings->max_source_load = tsync_result_double(0, tsync_result_column("max_source_load"));
	settings->max_delete_fraction = tsync_result_double(0, tsync_result_column("max_delete_fraction"));
	settings->verify_fraction = tsync_result_double(0, tsync_result_column("verify_fraction"));
	settings->feed = tsync_result_bool(0, tsync_result_column("feed"));
	settings->trust_counters = tsync_result_text(0, tsync_result_column("trust_counters_for")) != NULL;
	settings->source_is_view = tsync_result_bool(0, tsync_result_column("source_is_view"));
}

/* Likewise what runs have left behind. */
static void
take_state(TsyncState *state)
{
	state->loaded = tsync_result_bool(0, tsync_result_column("loaded"));
	state->adopted = tsync_result_bool(0, tsync_result_column("adopted"));
	state->bulk_loading = tsync_result_text(0, tsync_result_column("load_indexes")) != NULL;
	state->load_position = tsync_result_texts(0, tsync_result_column("load_position"), &state->nposition);
	state->bounds_key = tsync_result_text(0, tsync_result_column("bounds_key"));
	state->scan_rate = tsync_result_double(0, tsync_result_column("scan_rate"));
	state->quiet_rows = tsync_result_int64(0, tsync_result_column("quiet_rows"));
	state->differing_rows = tsync_result_int64(0, tsync_result_column("differing_rows"));
	state->drift_known = tsync_result_bool(0, tsync_result_column("drift_known"));
	state->horizon = tsync_result_int64(0, tsync_result_column("memory_horizon"));
	state->epoch = tsync_result_text(0, tsync_result_column("memory_epoch"));
	state->horizon_is_recent = tsync_result_bool(0, tsync_result_column("horizon_is_recent"));
	state->source_changes = tsync_result_text(0, tsync_result_column("source_changes")) == NULL ? -1
		: tsync_result_int64(0, tsync_result_column("source_changes"));
	state->last_was_quiet = tsync_result_bool(0, tsync_result_column("last_was_quiet"));
	state->filter_changed = tsync_result_bool(0, tsync_result_column("filter_changed"));
	state->refetching = strcmp(tsync_result_text(0, tsync_result_column("refetch")), "{}") != 0;
	state->source_version = (int) tsync_result_int64(0, tsync_result_column("source_version"));
}

/* Policies that apply to the owner would hide rows from a run, and foreign tables can be dropped. */
static void
check_relations(TsyncTable *table, bool row_security_forced)
{
	if (row_security_forced)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("row security of replica %s is forced on its owner", table->label),
				 errdetail("Policies would hide rows from the run."),
				 errhint("ALTER TABLE %s NO FORCE ROW LEVEL SECURITY;", table->replica_sql)));
	if (get_rel_name(table->source) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the foreign table of replica %s does not exist any more", table->label),
				 errhint("Create it again and add the replica again with tablesync_add().")));
}

/* Read a replica's settings and state; its columns, when they are known to fit the source, are read next. */
TsyncReplica *
tsync_read_replica(Oid relid)
{
	TsyncReplica *replica = palloc0(sizeof(TsyncReplica));
	TsyncTable *table = &replica->table;
	bool		row_security_forced;

	if (get_rel_name(relid) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", relid)));
	table->relid = relid;
	table->replica_sql = table->label = tsync_relation_label(relid);

	if (tsync_record_oid("SELECT t.*, t.source::oid::int8 AS source_oid,"
						 " (SELECT f.ftserver::int8 FROM pg_foreign_table f WHERE f.ftrelid = t.source) AS server_oid, t.fingerprint = 'row' OR (t.adopted AND t.fingerprint <> 'xmin') AS all_columns,"
						 " t.fingerprint = 'xmin' AS by_xmin, num_nonnulls(t.filter, t.expressions) > 0 AS part,"
						 " t.loaded AND t.filter IS DISTINCT FROM t.filtered_by AS filter_changed, t.memory_at > clock_timestamp() - interval '1 day' AS horizon_is_recent,"
						 " (SELECT r.inserted + r.updated + r.deleted = 0 FROM tablesync.all_runs r WHERE r.replica = t.replica"
						 "  AND r.status = 'succeeded' AND r.kind <> 'verify' ORDER BY r.run_id DESC LIMIT 1) AS last_was_quiet,"
						 " c.relforcerowsecurity,"
						 " (SELECT sum(k.rows) FROM tablesync.all_chunks k WHERE k.replica = t.replica AND NOT k.differed) AS quiet_rows,"
						 " (SELECT sum(k.rows) FROM tablesync.all_chunks k WHERE k.replica = t.replica AND k.differed) AS differing_rows,"
						 " EXISTS (SELECT FROM tablesync.all_alerts a"
						 "  WHERE a.replica = t.replica AND a.kind = 'drift' AND a.closed_at IS NULL AND a.run_id IS NOT NULL) AS drift_known"
						 " FROM tablesync.all_replicas t JOIN pg_class c ON c.oid = t.replica"
						 " WHERE t.replica = $1::regclass", relid) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is not a replica", table->label),
				 errhint("Add it with tablesync_add(), and commit before you run it.")));
	table->source = (Oid) tsync_result_int64(0, tsync_result_column("source_oid"));
	table->server = (Oid) tsync_result_int64(0, tsync_result_column("server_oid"));
	table->watermark = tsync_result_text(0, tsync_result_column("watermark"));
	take_settings(&replica->settings);
	take_state(&replica->state);
	row_security_forced = tsync_result_bool(0, tsync_result_column("relforcerowsecurity"));
	SPI_freetuptable(SPI_tuptable);
	check_relations(table, row_security_forced);
	table->source_sql = table->source_rows = tsync_relation_label(table->source);
	return replica;
}

/*
 * Record what a look at the source has shown: new columns that may not be read,
 * which files hold its rows, and its version.  Returns whether all columns have to be compared
 * once, because these are others.  In a transaction that is not the source's.
 */
bool
tsync_record_source(Oid relid, int64 run_id, const char *identity, int version, char **unreadable, int nunreadable)
{
	Oid			types[] = {OIDOID, TEXTOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(identity), Int32GetDatum(version)};
	bool		replaced;

	if (nunreadable > 0)
	{
		Oid			note_types[] = {OIDOID, INT8OID, TEXTARRAYOID};
		Datum		note_values[] = {ObjectIdGetDatum(relid), Int64GetDatum(run_id),
		tsync_texts_datum(unreadable, nunreadable)};

		tsync_record("SELECT tablesync.record_unreadable($1::regclass, $2, $3)", lengthof(note_types), note_types, note_values, NULL);
	}
	tsync_record("SELECT tablesync.record_identity($1::regclass, $2, $3)", lengthof(types), types, values, NULL);
	replaced = tsync_result_bool(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return replaced;
}

/*
 * Let the replica follow the source's new shape.  Returns false, with the
 * replica paused and a problem and a hint, where that is not to be done.
 */
bool
tsync_evolve_catalog(Oid relid, int64 run_id, const char *new_shape, char **problem, char **hint)
{
	Oid			types[] = {OIDOID, TEXTOID, INT8OID, TEXTOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(relid), CStringGetTextDatum(new_shape),
	Int64GetDatum(run_id), (Datum) 0, (Datum) 0};
	char	   *steps;

	/* with the owner's rights: what it does may run code of the owner */
	tsync_catalog_execute("SELECT problem, hint, steps, shape FROM tablesync.evolve($1::regclass, $2::jsonb)",
						  2, types, values, NULL);
	*problem = tsync_result_text(0, 1);
	*hint = tsync_result_text(0, 2);
	steps = tsync_result_text(0, 3);
	if (*problem == NULL)
		values[1] = CStringGetTextDatum(tsync_result_text(0, 4));
	SPI_freetuptable(SPI_tuptable);

	values[3] = CStringGetTextDatum(steps ? steps : "[]");
	values[4] = BoolGetDatum(*problem != NULL);
	tsync_record("SELECT tablesync.record_evolution($1::regclass, $2::jsonb, $3, $4::jsonb, $5)",
				 lengthof(types), types, values, NULL);
	return *problem == NULL;
}

/* The replicas that are run together with one, by OID; NIL if it has no group. */
List *
tsync_group_members(Oid replica)
{
	List	   *members = NIL;
	uint64		nmembers;

	/* few replicas have one, and to look for others takes longer the more there are */
	if (tsync_record_oid("SELECT FROM tablesync.all_replicas WHERE replica = $1::regclass AND sync_group IS NOT NULL", replica) == 0)
		return NIL;
	nmembers = tsync_catalog_execute_oid("SELECT m::oid FROM tablesync.group_members($1::regclass) m ORDER BY 1", replica);
	for (uint64 i = 0; i < nmembers; i++)
		members = lappend_oid(members, (Oid) tsync_result_int64(i, 1));
	SPI_freetuptable(SPI_tuptable);
	return members;
}

/*
 * What bounds in key order are made of: the types of the key.  A load position,
 * ranges of a bulk load and bounds of chunks mean nothing for another key.
 */
static char *
key_of_bounds(TsyncTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", tsync_type_sql(table->keys[i]->type));
	return buf.data;
}

/*
 * Forget what is remembered by key if the key has another type than it had, or
 * nobody knows which; in transactions of its own.
 */
void
tsync_check_bounds(TsyncReplica *replica)
{
	TsyncState *state = &replica->state;
	char	   *key;
	bool		usable;
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[2];

	tsync_begin();
	key = key_of_bounds(&replica->table);
	usable = state->bounds_key != NULL && strcmp(state->bounds_key, key) == 0 &&
		(state->nposition == 0 || state->nposition == replica->table.nkeys);
	tsync_commit();
	if (usable)
		return;
	if (state->bulk_loading)
		tsync_undo_bulk_load(&replica->table);

	tsync_begin();
	values[0] = ObjectIdGetDatum(replica->table.relid);
	values[1] = CStringGetTextDatum(key_of_bounds(&replica->table));
	tsync_record_oid("DELETE FROM tablesync.all_chunks WHERE replica = $1::regclass", replica->table.relid);
	tsync_record("UPDATE tablesync.all_replicas SET bounds_key = $2, load_position = NULL WHERE replica = $1::regclass",
				 lengthof(types), types, values, NULL);
	tsync_commit();
	state->bulk_loading = false;
	state->load_position = NULL;
	state->nposition = 0;
}

/* Remember how far a load has come; part of the transaction of the page. */
void
tsync_save_load_position(TsyncTable *table, char **key)
{
	Oid			types[] = {OIDOID, TEXTARRAYOID};
	Datum		values[] = {ObjectIdGetDatum(table->relid),
	tsync_texts_datum(key, table->nkeys)};

	tsync_record("UPDATE tablesync.all_replicas SET load_position = $2"
				 " WHERE replica = $1::regclass", 2, types, values, NULL);
}

/*
 * Mark a replica as loaded, in a transaction of its own; as adopted if rows in
 * it are not our doing, so that no version column is trusted until a run has
 * compared all of them.
 */
void
tsync_finish_load(TsyncReplica *replica, bool adopted)
{
	TsyncTable *table = &replica->table;
	Oid			types[] = {OIDOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), BoolGetDatum(adopted)};

	tsync_begin();
	for (int i = 0; adopted && !replica->settings.by_xmin && i < table->ncolumns; i++)
		if (!tsync_can_hash(table->columns[i].type))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("replica %s holds rows that no run has loaded", table->label),
					 errdetail("Column %s can't be compared with the source.",
							   table->columns[i].quoted),
					 errhint("Empty it, and run again: TRUNCATE %s;", table->replica_sql)));
	tsync_record("UPDATE tablesync.all_replicas SET loaded = true, load_position = NULL, memory_horizon = NULL,"
				 " feed_starts_again = true, adopted = adopted OR $2 WHERE replica = $1::regclass",
				 2, types, values, NULL);
	tsync_commit();
	replica->settings.all_columns |= adopted && !replica->settings.by_xmin;
	replica->state.adopted |= adopted;
}

/* Replicas whose run lock this process has. */
static List *locked = NIL;

/* Take the run lock of a replica: no transaction releases it, the end of this process does. */
bool
tsync_lock_run(Oid relid)
{
	MemoryContext caller;

	/* of the session: no commit or abort releases it, the end of the process does, however it comes */
	if (!tsync_try_lock(TSYNC_LOCK_RUN, relid, ExclusiveLock, true))
		return false;
	caller = MemoryContextSwitchTo(TopMemoryContext);
	locked = lappend_oid(locked, relid);
	MemoryContextSwitchTo(caller);
	return true;
}

/* The runs are over, and this process goes on. */
void
tsync_unlock_runs(void)
{
	ListCell   *lc;

	foreach(lc, locked)
		tsync_unlock(TSYNC_LOCK_RUN, lfirst_oid(lc), ExclusiveLock, true);
	list_free(locked);
	locked = NIL;
}
