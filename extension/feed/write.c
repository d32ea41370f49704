/*-------------------------------------------------------------------------
 *
 * write.c
 *	  A run writes what it changes, in the transaction of APPLY.
 *
 * Before the merge: the stage has the rows that come, and the replica has those
 * that go.  What is merged then is proved to be what was staged, or the feed is
 * undone with it.  Nobody else writes to the replica meanwhile, nor runs it; so
 * positions are counted in its row, without gaps, and in the order of commits.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "feed/feed.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* A scan of a table reads so many rows while one is looked up by its key. */
#define MIN_ROWS_PER_LOOKUP 20	/* 14,400 of a million rows: 24 to 41 ms by index, 64 in a hash join, 76 to 106 in a
								 * merge join */

/* Does a replica have a feed, and how far has that come? */
TsyncFeed
tsync_look_at_feed(TsyncTable *table)
{
	TsyncFeed	feed = {0};
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(table->relid)};

	table->feed = InvalidOid;
	feed.on = tsync_record("SELECT t.feed_table::oid::int8, t.feed_position, t.feed_starts_again"
						   " FROM tablesync.all_replicas t WHERE t.replica = $1::regclass AND t.feed",
						   lengthof(types), types, values, NULL) > 0;
	if (feed.on)
	{
		feed.relid = (Oid) tsync_result_int64(0, 1);
		feed.position = tsync_result_int64(0, 2);
		feed.starts_again = tsync_result_bool(0, 3);
	}
	SPI_freetuptable(SPI_tuptable);
	return feed;
}

static bool
has_column(TupleDesc desc, const char *name, Oid type, int32 typmod)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (!attribute->attisdropped && strcmp(NameStr(attribute->attname), name) == 0)
			return attribute->atttypid == type && attribute->atttypmod == typmod;
	}
	return false;
}

/* Does a feed have the columns of its replica? */
static bool
is_fit(TsyncTable *table, Oid relid)
{
	Relation	rel = relation_open(relid, NoLock);
	bool		fit = true;

	for (int i = 0; fit && i < table->ncolumns; i++)
	{
		int32		typmod = table->columns[i].typmod;
		Oid			type = getBaseTypeAndTypmod(table->columns[i].type, &typmod);

		fit = has_column(RelationGetDescr(rel), tsync_feed_name(table->columns[i].name), type, typmod);
	}
	relation_close(rel, NoLock);
	return fit;
}

/* Refuse to write to what is not, or no longer, the feed of a replica. */
static void
check_feed(TsyncTable *table, TsyncFeed *feed)
{
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), ObjectIdGetDatum(feed->relid)};
	char	   *problem;

	tsync_record("SELECT tablesync.feed_problem($1::regclass, $2::regclass)", lengthof(types), types, values, NULL);
	problem = tsync_result_text(0, 1);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the feed of replica %s can't be written to", table->label),
				 errdetail_internal("%s", problem),
				 tsync_owner_of(feed->relid) != tsync_owner_of(table->relid) && OidIsValid(tsync_owner_of(feed->relid)) ?
				 errhint("ALTER TABLE %s OWNER TO %s;", tsync_relation_label(feed->relid),
						 quote_identifier(GetUserNameFromId(tsync_owner_of(table->relid), false))) :
				 errhint("To do without it: SELECT tablesync_alter(%s, feed => false);", quote_literal_cstr(table->label))));
	SPI_freetuptable(SPI_tuptable);
}

/* Prepare a feed for being written to, in the transaction of APPLY, once the replica is locked. */
void
tsync_open_feed(TsyncTable *table, TsyncFeed *feed)
{
	*feed = tsync_look_at_feed(table);
	if (!feed->on)
		return;
	if (OidIsValid(feed->relid))
		LockRelationOid(feed->relid, RowExclusiveLock);
	check_feed(table, feed);
	if (!is_fit(table, feed->relid))
	{
		/* with the owner's rights, as all that is done to the owner's tables */
		tsync_catalog_execute_oid("SELECT tablesync.fit_feed($1::regclass)", table->relid);
		SPI_freetuptable(SPI_tuptable);
	}
	table->feed = feed->relid;
	table->feed_sql = tsync_relation_label(feed->relid);
}

/* The transaction in which a feed was opened has been undone: nobody may look for it by what was found then. */
void
tsync_close_feed(TsyncTable *table)
{
	table->feed = InvalidOid;
	table->feed_sql = NULL;
}

static void
feed_rows(TsyncTable *table, const char *sql, int64 expected)
{
	int64		written = tsync_select_digest(table, TSYNC_REPLICA, sql).rows;

	if (written != expected)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("replica %s was changed by somebody else during the run", table->label),
				 errdetail(INT64_FORMAT " rows were to be written to its feed, " INT64_FORMAT " were.", expected, written),
				 errhint("Run again. If it happens every time, look for a trigger on %s that interferes.", table->feed_sql)));
}

/* Note how far the feed has come. */
static void
finish_feed(TsyncTable *table, TsyncFeed *feed, int64 before, int64 run_id)
{
	Oid			types[] = {OIDOID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {ObjectIdGetDatum(table->relid), Int64GetDatum(run_id), Int64GetDatum(before + 1), Int64GetDatum(feed->position),
	TimestampTzGetDatum(feed->source_instant)};

	tsync_record("SELECT tablesync.finish_feed($1::regclass, $2, $3, $4, $5)", lengthof(types), types, values,
				 feed->source_instant == 0 ? "    n" : NULL);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Likewise of rows that the replica has.  Where they are few they are looked up
 * one by one: the merge needs their pages anyway, and all others would be read for nothing.
 */
static void
feed_rows_here(TsyncTable *table, const char *sql, int64 expected, int64 rows)
{
	int			settings = NewGUCNestLevel();

	if (expected < rows / MIN_ROWS_PER_LOOKUP)
		tsync_avoid_large_joins();
	feed_rows(table, sql, expected);
	AtEOXact_GUC(false, settings);	/* true would keep them for the transaction */
}

/* Write what the stage is about to change in a replica of so many rows, or that all of it has to be read again. */
void
tsync_write_feed(TsyncTable *table, TsyncFeed *feed, TsyncStage *stage, int64 rows, int64 run_id)
{
	int64		deleted = stage->deleted.count - stage->reappeared.count;
	int64		before = feed->position;

	if (feed->starts_again)
		feed_rows(table, tsync_sql_feed_start(table, ++feed->position, run_id), 1);
	else
	{
		/* in the order in which they are merged */
		if (deleted > 0)
			feed_rows_here(table, tsync_sql_feed_deleted(table, TSYNC_DELETED, stage->reappeared.count > 0 ? TSYNC_REAPPEARED : NULL, feed->position, run_id),
						   deleted, stage->reappeared.count > 0 ? 0 : rows);
		feed->position += deleted;
		if (stage->updated.count > 0)
		{
			feed_rows_here(table, tsync_sql_feed_before(table, TSYNC_UPDATED, feed->position, run_id), stage->updated.count, rows);
			feed_rows(table, tsync_sql_feed_rows(table, TSYNC_UPDATED, 'u', feed->position, run_id), stage->updated.count);
		}
		feed->position += stage->updated.count;
		if (stage->inserted.count > 0)
			feed_rows(table, tsync_sql_feed_rows(table, TSYNC_INSERTED, 'c', feed->position, run_id), stage->inserted.count);
		feed->position += stage->inserted.count;
	}
	if (feed->position > before)
		finish_feed(table, feed, before, run_id);
}
