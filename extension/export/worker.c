/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The worker that writes exports.
 *
 * It is connected as the role that has asked for them, so that nothing it reads
 * is read with other rights.  At most tablesync.max_export_workers of a database
 * are at work; they take no slot of the workers that run replicas.  A worker
 * has the lock of an export before it records the attempt: an export that is
 * recorded as STARTED and whose lock can be had was cut off by a crash.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "export/export.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "process/process.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define POLL_MS 500
#define SLOT_ATTEMPTS 3
#define SLOT_POLL_MS 50

/* Exports whose locks are tried in one go; others have those before. */
#define CANDIDATES "20"

static void
rest(int ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms, tsync_wait_event("TablesyncExport"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	tsync_follow_configuration();
}

/* Take one of tablesync.max_export_workers slots; 0 if there is none. */
static int
take_slot(void)
{
	for (int i = 0; i < SLOT_ATTEMPTS; i++)
	{
		for (int slot = 1; slot <= tsync_max_export_workers; slot++)
			if (tsync_try_lock(TSYNC_LOCK_EXPORT_SLOT, slot, ExclusiveLock, true))
				return slot;
		rest(SLOT_POLL_MS);		/* who counts the free ones has each for a moment */
	}
	return 0;
}

/* Record the start of an attempt; false if there is nothing to do. */
static bool
record_start(int64 export_id, Oid role, TsyncExport *export)
{
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(export_id), ObjectIdGetDatum(role)};

	if (tsync_record("SELECT e.replica::oid::int8, e.file, e.format = 'jsonl', e.attempts FROM tablesync.record_take_export($1, $2) e",
					 lengthof(types), types, values, NULL) != 1)
		return false;
	export->export_id = export_id;
	export->replica = (Oid) tsync_result_int64(0, 1);
	export->file = pstrdup(tsync_result_text(0, 2));
	export->json = tsync_result_bool(0, 3);
	export->attempt = (int) tsync_result_int64(0, 4);
	return true;
}

/* Take the lock of an export that waits, and record that an attempt begins; false if there is none. */
static bool
take_export(Oid role, TsyncExport *export)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(role)};
	int64		ids[20];
	int			count = 0;
	bool		taken = false;

	memset(export, 0, sizeof(*export));
	tsync_begin_in(CurrentMemoryContext);
	/* after an update a process with the new library is to go on */
	if (tsync_fits_extension())
		count = (int) tsync_record("SELECT e.export_id FROM tablesync.all_exports e WHERE e.role = $1 AND e.state IN ('NOT_STARTED', 'STARTED')"
								   " AND e.due_at <= clock_timestamp() ORDER BY e.export_id LIMIT " CANDIDATES,
								   lengthof(types), types, values, NULL);
	for (int i = 0; i < count; i++)
		ids[i] = tsync_result_int64(i, 1);
	for (int i = 0; i < count && !taken; i++)
	{
		if (!tsync_try_lock(TSYNC_LOCK_EXPORT, (uint32) ids[i], ExclusiveLock, true))
			continue;
		taken = record_start(ids[i], role, export);
		if (!taken)
			tsync_unlock(TSYNC_LOCK_EXPORT, (uint32) ids[i], ExclusiveLock, true);
	}
	tsync_commit();
	return taken;
}

/* An attempt, and what has become of it. */
typedef struct Attempt
{
	TsyncExport *export;
	char	   *part;
} Attempt;

static void
write_export(void *arg)
{
	Attempt    *attempt = arg;

	attempt->part = tsync_create_part(attempt->export);
	tsync_copy_export(attempt->export, attempt->part);
	tsync_keep_part(attempt->export, attempt->part);
}

static bool
is_any_error(ErrorData *edata, void *arg)
{
	return true;
}

/* May an error be gone at the next attempt?  Not one of rights, of data, of what is missing. */
static bool
may_pass(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return category == ERRCODE_TO_CATEGORY(ERRCODE_CONNECTION_EXCEPTION) || category == ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) || category == ERRCODE_TO_CATEGORY(ERRCODE_IO_ERROR) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR) || sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE || sqlerrcode == ERRCODE_OBJECT_IN_USE;
}

/* Record that a file is there; it goes if its export has. */
static void
record_finish(TsyncExport *export)
{
	Oid			types[] = {INT8OID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(export->export_id), CStringGetTextDatum(tsync_export_uri(export->file)),
	Int64GetDatum((int64) export->rows), export->note ? CStringGetTextDatum(export->note) : (Datum) 0};
	bool		known;

	tsync_begin();
	tsync_record("SELECT tablesync.record_finish_export($1, $2, $3, $4)", lengthof(types), types, values, export->note ? NULL : "   n");
	known = tsync_result_bool(0, 1);
	tsync_commit();
	if (!known)
		tsync_remove_file(tsync_export_path(export->file));
}

/* An error that has to do with files is of a class of its own: missing rights in a directory are not those of a role. */
static void
record_failure(TsyncExport *export, ErrorData *edata, bool of_file)
{
	Oid			types[] = {INT8OID, TEXTOID, BOOLOID};
	Datum		values[] = {Int64GetDatum(export->export_id), CStringGetTextDatum(edata->message), BoolGetDatum(of_file || may_pass(edata->sqlerrcode))};

	ereport(LOG,
			(errmsg("export " INT64_FORMAT " has failed with SQLSTATE %s", export->export_id, unpack_sql_state(edata->sqlerrcode)),
			 errdetail("Its message is in tablesync_exports: it may quote rows."),
			 errhidestmt(true)));
	tsync_begin();
	tsync_record("SELECT tablesync.record_fail_export($1, $2, $3)", lengthof(types), types, values, NULL);
	tsync_commit();
}

/* Write an export that was taken, and record what has become of it. */
static void
perform(TsyncExport *export)
{
	Attempt		attempt = {.export = export};
	ErrorData  *edata;
	char	   *activity = psprintf("tablesync export " INT64_FORMAT, export->export_id);

	pgstat_report_activity(STATE_RUNNING, activity);
	if (tsync_try(write_export, &attempt, is_any_error, &edata))
		record_finish(export);
	else
	{
		if (attempt.part)
			(void) unlink(attempt.part);
		record_failure(export, edata, attempt.part == NULL && edata->sqlerrcode != ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE);
	}
	/* what code in a policy of the replica has left in the session is nothing to the next one */
	tsync_begin();
	tsync_forget_leftovers();
	tsync_commit();
	tsync_unlock(TSYNC_LOCK_EXPORT, (uint32) export->export_id, ExclusiveLock, true);
	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(true);
}

/* Is another attempt of this role's to come, and nothing of others to be done at once? */
static bool
is_worth_waiting(Oid role)
{
	bool		mine = false;
	bool		others = false;

	tsync_begin();
	tsync_record("SELECT w.role::int8, w.due FROM tablesync.record_waiting_exports() w", 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		is_mine = (Oid) tsync_result_int64(i, 1) == role;

		mine |= is_mine;
		others |= !is_mine && tsync_result_bool(i, 2);
	}
	if (!tsync_fits_extension())
		mine = false;
	tsync_commit();
	return mine && !others;
}

/* Forget an old export, with its file. */
static void
forget(int64 export_id, const char *file, const char *uri)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(export_id)};

	/* one in another directory stays */
	if (uri != NULL && strcmp(uri, tsync_export_uri(file)) == 0)
		tsync_remove_file(tsync_export_path(file));
	tsync_begin();
	tsync_record("SELECT tablesync.record_forget_export($1)", lengthof(types), types, values, NULL);
	tsync_commit();
}

/* Forget one export that has finished longer ago than tablesync.keep_exports; false if there is none. */
static bool
forget_one(void)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(tsync_keep_exports)};
	MemoryContext context = CurrentMemoryContext;
	int64		export_id = 0;
	char	   *file = NULL;
	char	   *uri = NULL;

	tsync_begin_in(context);
	if (tsync_keep_exports >= 0 &&
		tsync_record("SELECT e.export_id, e.file, e.uri FROM tablesync.all_exports e"
					 " WHERE e.finished_at < clock_timestamp() - make_interval(mins => $1) ORDER BY e.finished_at LIMIT 1",
					 lengthof(types), types, values, NULL) > 0)
	{
		export_id = tsync_result_int64(0, 1);
		file = MemoryContextStrdup(context, tsync_result_text(0, 2));
		uri = tsync_result_text(0, 3);
		uri = uri ? MemoryContextStrdup(context, uri) : NULL;
	}
	tsync_commit();
	if (export_id != 0)
		forget(export_id, file, uri);
	return export_id != 0;
}

/* Remove what is not needed any more; what goes wrong with it is the log's. */
static void
clean_up(void *arg)
{
	tsync_begin();
	tsync_sweep_parts();
	tsync_commit();
	while (forget_one())
		CHECK_FOR_INTERRUPTS();
}

static void
try_clean_up(void)
{
	ErrorData  *edata;

	if (!tsync_try(clean_up, NULL, is_any_error, &edata))
		ereport(LOG,
				(errmsg("old files of exports could not be removed: %s", edata->message)));
}

/* Write the exports of this session's role for as long as there are some. */
static void
serve(Oid role)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "tablesync export", ALLOCSET_DEFAULT_SIZES);
	TsyncExport export;

	for (;;)
	{
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		if (take_export(role, &export))
			perform(&export);
		else if (is_worth_waiting(role))
			rest(POLL_MS);
		else
			return;
	}
}

void
tsync_export_main(Datum main_arg)
{
	TsyncExportStart start;

	tsync_read_start(&start, sizeof(start));
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, StatementCancelHandler);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, start.role, TSYNC_CONNECT_FLAGS);
	tsync_prepare_session(false);
	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext, "tablesync exports", ALLOCSET_DEFAULT_SIZES));
	if (take_slot() == 0)
		proc_exit(0);			/* who has one looks whether others wait before he leaves */
	try_clean_up();
	serve(start.role);
	try_clean_up();
	tsync_unlock_all();
	tsync_begin();
	(void) tsync_start_exports();
	tsync_commit();
	proc_exit(0);
}
