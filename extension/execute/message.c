/*-------------------------------------------------------------------------
 *
 * message.c
 *	  What those who decode the WAL are told of a transaction of a run.
 *
 * Where the target is published (wal_level = logical), each transaction that
 * changes a replica begins with a message of our own: which run it belongs to,
 * and how far the source had come.  It is part of the transaction: whoever
 * decodes gets it before the rows and after the BEGIN, and does not get it when
 * the transaction fails.  docs/publish.md has the format, which others rely on.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "lib/stringinfo.h"
#include "replication/message.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#define MESSAGE_PREFIX "tablesync"

/* Append a member of a JSON object, but for its value. */
static void
append_name(StringInfo buf, const char *name)
{
	appendStringInfo(buf, "%s\"%s\": ", buf->len > 1 ? ", " : "", name);
}

/* Append a number; -1 is not known. */
static void
append_count(StringInfo buf, const char *name, int64 count)
{
	append_name(buf, name);
	if (count < 0)
		appendStringInfoString(buf, "null");
	else
		appendStringInfo(buf, INT64_FORMAT, count);
}

static void
append_text(StringInfo buf, const char *name, const char *value)
{
	append_name(buf, name);
	escape_json(buf, value);
}

/* Append a moment in UTC, whatever this session's time zone is; 0 is not known. */
static void
append_time(StringInfo buf, const char *name, TimestampTz time)
{
	int			utc = 0;
	char		text[MAXDATELEN + 1];

	append_name(buf, name);
	if (time == 0)
		appendStringInfoString(buf, "null");
	else
		appendStringInfo(buf, "\"%s\"", JsonEncodeDateTime(text, TimestampTzGetDatum(time), TIMESTAMPTZOID, &utc));
}

/*
 * To those who decode, a message is where its record ends, and a change where
 * its record begins: one of a subtransaction that follows at once would come in
 * any order.  Put a record between that means nothing to anybody.
 */
static void
log_nothing(void)
{
	char		nothing = 0;	/* a record without data is for XLOG_SWITCH only */

	XLogBeginInsert();
	XLogRegisterData(&nothing, sizeof(nothing));
	(void) XLogInsert(RM_XLOG_ID, XLOG_NOOP);
}

/* Tell of the current transaction, before it changes the replica. */
void
tsync_emit_message(const TsyncMessage *message)
{
	StringInfoData buf;

	Assert(IsTransactionState());
	if (!XLogLogicalInfoActive())
		return;
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	append_count(&buf, "run", message->run_id);
	append_count(&buf, "group_run", message->group_run_id > 0 ? message->group_run_id : -1);
	append_text(&buf, "replica", message->replica);
	append_text(&buf, "kind", message->kind);
	append_name(&buf, "complete");
	appendStringInfoString(&buf, message->complete ? "true" : "false");
	append_time(&buf, "source_time", message->source_instant);
	append_count(&buf, "inserted", message->inserted);
	append_count(&buf, "updated", message->updated);
	append_count(&buf, "deleted", message->deleted);
	appendStringInfoChar(&buf, '}');
	(void) tsync_log_message(MESSAGE_PREFIX, buf.data, buf.len);
	log_nothing();
	pfree(buf.data);
}
