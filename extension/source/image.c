/*-------------------------------------------------------------------------
 *
 * image.c
 *	  What a source's catalogs say of a table, asked once in a transaction.
 *
 * postgres_fdw reads under REPEATABLE READ, in a transaction that lasts as long
 * as ours, subtransactions included: there the catalogs read the same
 * whenever they are asked.  So the last answer is kept until our transaction ends,
 * for the role that has asked, whose rights at the source may not be another's.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "process/process.h"
#include "source/source.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(tsync_source_image);

/* The last answer, and what was asked. */
typedef struct Image
{
	LocalTransactionId lxid;	/* it is in the memory of this transaction */
	Oid			role;
	Oid			server;
	const char *schema_name;
	const char *table_name;
	bool		whole;
	bool		horizon;
	Datum		answer;
} Image;

static Image *last = NULL;

static bool
is_last(Image *wanted)
{
	return last != NULL && last->lxid == wanted->lxid && last->role == wanted->role &&
		last->server == wanted->server && (last->whole || !wanted->whole) && (last->horizon || !wanted->horizon) &&
		strcmp(last->schema_name, wanted->schema_name) == 0 && strcmp(last->table_name, wanted->table_name) == 0;
}

/* Ask the source, and keep its answer. */
static void
fetch_image(Image *wanted)
{
	Oid			types[] = {OIDOID, TEXTOID, TEXTOID, BOOLOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(wanted->server), CStringGetTextDatum(wanted->schema_name),
	CStringGetTextDatum(wanted->table_name), BoolGetDatum(wanted->whole), BoolGetDatum(wanted->horizon)};
	TimestampTz started = GetCurrentTimestamp();
	MemoryContext caller;
	Image	   *image;
	bool		isnull;
	Datum		answer;

	last = NULL;
	SPI_connect();
	tsync_await_source();
	if (tsync_catalog_execute("SELECT f FROM tablesync.fetch_source_image($1, $2, $3, $4, $5) f",
							  lengthof(types), types, values, NULL) != 1)
		elog(ERROR, "the catalogs of a source gave no answer");
	tsync_source_answered();
	tsync_waited_elsewhere += GetCurrentTimestamp() - started;
	answer = tsync_result_datum(0, 1, &isnull);
	if (isnull)
		elog(ERROR, "the catalogs of a source gave an empty answer");
	caller = MemoryContextSwitchTo(TopTransactionContext);
	image = palloc(sizeof(Image));
	*image = *wanted;
	image->schema_name = pstrdup(wanted->schema_name);
	image->table_name = pstrdup(wanted->table_name);
	image->answer = datumCopy(answer, false, -1);
	MemoryContextSwitchTo(caller);
	SPI_finish();
	last = image;
}

/* tablesync.source_image(server, schema_name, table_name, whole, horizon) */
Datum
tsync_source_image(PG_FUNCTION_ARGS)
{
	Image		wanted = {
		.lxid = tsync_local_xid(),
		.role = GetUserId(),
		.server = PG_GETARG_OID(0),
		.schema_name = text_to_cstring(PG_GETARG_TEXT_PP(1)),
		.table_name = text_to_cstring(PG_GETARG_TEXT_PP(2)),
		.whole = PG_GETARG_BOOL(3),
		.horizon = PG_GETARG_BOOL(4)
	};

	if (!is_last(&wanted))
		fetch_image(&wanted);
	PG_RETURN_DATUM(datumCopy(last->answer, false, -1));
}
