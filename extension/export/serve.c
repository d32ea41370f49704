/*-------------------------------------------------------------------------
 *
 * serve.c
 *	  Seeing that somebody writes the exports that wait.
 *
 * An export is a row from the transaction on that asks for it; its worker is
 * started when that has committed.  If no process is to be had then, or the
 * server crashes, the row stays, and whoever looks next starts another one: a
 * call of tablesync_export(), the end of a run, the watchdog.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "export/export.h"
#include "miscadmin.h"
#include "process/process.h"

TSYNC_FUNCTION_INFO_V1(tsync_serve_exports);

/* Roles for which this transaction starts a worker when it commits. */
static Oid	pending[TSYNC_MAX_EXPORT_WORKERS];
static int	npending = 0;

/* What is done after the commit must not fail: all that is needed was looked up before. */
static void
start_pending(XactEvent event, void *arg)
{
	int			count = npending;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	npending = 0;
	if (event != XACT_EVENT_COMMIT)
		return;
	for (int i = 0; i < count; i++)
	{
		TsyncExportStart start = {.database = MyDatabaseId,.role = pending[i]};

		(void) tsync_start_process("tsync_export_main", "tablesync export", "tablesync export", &start, sizeof(start), (Datum) 0, false);
	}
}

/* How many workers could write exports now?  In a transaction. */
static int
free_slots(void)
{
	int			slots = 0;

	for (int slot = 1; slot <= tsync_max_export_workers; slot++)
		slots += !tsync_is_locked(TSYNC_LOCK_EXPORT_SLOT, slot);
	return slots;
}

/* Have workers started for exports that wait, as many as there are slots; returns how many. */
int
tsync_start_exports(void)
{
	static bool registered = false;
	int			slots;

	if (RecoveryInProgress())
		return 0;
	SPI_connect();
	/* mostly there are none, and this is quickly seen */
	if (tsync_record("SELECT FROM tablesync.all_exports WHERE state IN ('NOT_STARTED', 'STARTED') LIMIT 1", 0, NULL, NULL, NULL) > 0)
	{
		if (!registered)
			RegisterXactCallback(start_pending, NULL);
		registered = true;
		slots = free_slots();
		npending = 0;
		tsync_record("SELECT w.role::int8 FROM tablesync.record_waiting_exports() w", 0, NULL, NULL, NULL);
		for (uint64 i = 0; i < SPI_processed && npending < Min(slots, TSYNC_MAX_EXPORT_WORKERS); i++)
			pending[npending++] = (Oid) tsync_result_int64(i, 1);
	}
	SPI_finish();
	return npending;
}

/* tablesync.serve_exports() */
Datum
tsync_serve_exports(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(tsync_start_exports());
}
