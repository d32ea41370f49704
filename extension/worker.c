/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  One run, in a background worker of its own.
 *
 * The worker is connected as the replica's owner.  Its first transaction
 * records the run as running and commits, so that a crash leaves evidence;
 * the last one, in apply.c, changes the replica and records success.  When
 * anything in between fails, the error is copied, the transaction aborted
 * (which cancels what runs at the source) and the failure recorded in a new
 * transaction.  The connection to the source ends with the process.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "compat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

/* A run starts over when source or replica change under it. */
#define ATTEMPTS 5

/* Deletes below this number are never held back. */
#define GUARD_MIN_DELETES 1000

/* The source's own timeout comes first, if it is alive. */
#define SOURCE_GRACE_MS 1000

static volatile sig_atomic_t cancel_requested = false;
static volatile sig_atomic_t source_silent = false;
static TimeoutId source_timeout;

/* Has the current transaction asked the source for anything? */
bool		tsync_source_asked = false;

/*
 * SIGTERM cancels what runs, like SIGINT, instead of ending the process in
 * the middle of it: the run can still be recorded as cancelled.
 */
static void
handle_cancel(SIGNAL_ARGS)
{
	int			save_errno = errno;

	cancel_requested = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

static void
handle_source_timeout(void)
{
	source_silent = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * Start (or stop) waiting for an answer of the source.  Its statement timeout
 * does not help against a backend that is frozen there.
 */
void
tsync_expect_source(bool waiting)
{
	tsync_source_asked |= waiting;
	if (tsync_statement_timeout <= 0)
		return;
	if (waiting)
		enable_timeout_after(source_timeout, tsync_statement_timeout + SOURCE_GRACE_MS);
	else
		disable_timeout(source_timeout, false);
}

/* Was it the source that cancelled a statement which took too long there? */
bool
tsync_source_timed_out(ErrorData *edata)
{
	return edata->sqlerrcode == ERRCODE_QUERY_CANCELED && !cancel_requested && !source_silent;
}

/* Values must look the same here and at the source, whatever the settings. */
void
tsync_prepare_session(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"datestyle", "ISO, YMD"},
		{"intervalstyle", "postgres"},
		{"extra_float_digits", "3"},
		{"bytea_output", "hex"},
		{"xmloption", "content"},
		{"lc_monetary", "C"},
		{"array_nulls", "on"},
		{"row_security", "on"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"jit", "off"},
	};
	char		lock_timeout[32];

	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	snprintf(lock_timeout, sizeof(lock_timeout), "%d", tsync_lock_timeout);
	SetConfigOption("lock_timeout", lock_timeout, PGC_SUSET, PGC_S_OVERRIDE);
	source_timeout = RegisterTimeout(USER_TIMEOUT, handle_source_timeout);
}

/* Identity of the source's files, in a remote transaction of its own. */
static char *
read_identity(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	char	   *identity;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	identity = tsync_source_identity(run);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	return identity;
}

static void
read_layout(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	tsync_read_layout(run);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
}

/* Read the replica's settings, connect to the source and check its shape. */
static void
open_source(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	run->replica = tsync_read_replica(run->replica_oid);
	tsync_prepare_verify(run);
	tsync_progress_phase(TSYNC_PHASE_SCHEMA, 0, 0);
	tsync_limit_source(run, tsync_first_timeout(run->replica));
	tsync_read_source(run);
	run->stage = tsync_stage_create(run->replica);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	run->source_identity = read_identity(run);
	if (run->source_estimate >= tsync_chunk_target(run->replica))
		read_layout(run);
}

/*
 * Was the source rewritten since the run began?  Then a snapshot of ours may
 * have missed its rows: absence proves nothing.
 */
static bool
source_was_rewritten(TsyncRun *run)
{
	char	   *identity = read_identity(run);
	bool		rewritten = strcmp(identity, run->source_identity) != 0;

	run->source_identity = identity;
	return rewritten;
}

/* Stop before a large part of the replica is deleted, unless forced to. */
static void
check_delete_guard(TsyncRun *run)
{
	int64		deletes = run->stage->deleted.count;
	int64		rows = 0;
	ListCell   *lc;

	foreach(lc, run->chunks)
		rows += ((TsyncChunk *) lfirst(lc))->replica.rows;
	if (run->force || deletes < GUARD_MIN_DELETES ||
		deletes <= rows * run->replica->max_delete_fraction)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("run would delete " INT64_FORMAT " of " INT64_FORMAT " rows of replica %s",
					deletes, rows, run->replica->label),
			 errdetail("max_delete_fraction allows %g; nothing was changed.",
					   run->replica->max_delete_fraction),
			 errhint("If the rows are really gone at the source, use tablesync_run(%s, force => true).",
					 quote_literal_cstr(run->replica->label))));
}

/*
 * Rows that CONFIRM found again stay, which is right chunk by chunk but would
 * mix two instants where the whole scan was one snapshot.
 */
static bool
may_spare_reappeared(TsyncRun *run)
{
	return run->stage->reappeared.count == 0 || !run->snapshot;
}

/* One attempt to find and apply the differences; false to start over. */
static bool
synchronise(TsyncRun *run)
{
	tsync_scan(run);
	if (source_was_rewritten(run))
		return false;
	if (run->stage->deleted.count > 0)
	{
		if (!tsync_reports_only(run))
			check_delete_guard(run);
		tsync_confirm(run);
		if (source_was_rewritten(run) || !may_spare_reappeared(run))
			return false;
	}
	tsync_judge_chunks(run);
	return tsync_reports_only(run) ? tsync_report(run) : tsync_apply(run);
}

/* The story of a run. */
static void
perform_run(TsyncRun *run)
{
	open_source(run);
	if (!run->replica->loaded)
		tsync_load(run);
	else if (!run->verify && tsync_source_unmoved(run))
		return;
	for (int attempt = 1; !synchronise(run); attempt++)
		if (attempt >= ATTEMPTS)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("source or replica of %s kept changing during the run",
							run->replica->label),
					 errdetail("%d attempts were made; nothing was changed.", ATTEMPTS),
					 errhint("Run again when TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE is over at the source, and nobody writes to the replica; if the source keeps moving rows between keys, use consistency chunk.")));
}

static void
record_start(TsyncRun *run)
{
	tsync_begin();
	tsync_start_run(run);
	tsync_commit();
	tsync_progress_start(run->run_id, run->replica_oid);
}

/* Perform a run and record how it ends. */
static void
run_in_envelope(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;

	PG_TRY();
	{
		perform_run(run);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run_context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();	/* subtransactions too */
	}
	PG_END_TRY();

	if (edata != NULL)
	{
		MemoryContextSwitchTo(run_context);
		tsync_expect_source(false);
		QueryCancelPending = false;
		if (source_silent && edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
		{
			edata->sqlerrcode = ERRCODE_CONNECTION_FAILURE;
			edata->message = psprintf("the source did not answer within %d ms",
									  tsync_statement_timeout + SOURCE_GRACE_MS);
		}
		tsync_fail_run(run, edata, cancel_requested && edata->sqlerrcode == ERRCODE_QUERY_CANCELED);
	}
}

/* Make the run that a worker is started with, in a context of its own. */
static TsyncRun *
make_run(TsyncStart *start)
{
	TsyncRun   *run;

	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext, "tablesync run",
												ALLOCSET_DEFAULT_SIZES));
	run = palloc0(sizeof(TsyncRun));
	run->run_id = start->run_id;
	run->replica_oid = start->replica;
	run->force = start->force;
	run->verify = start->verify;
	run->repair = start->repair;
	run->source_timeout = -1;
	return run;
}

/* Help another worker with its load; an error is the server log's. */
static void
help(TsyncStart *start)
{
	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	tsync_help_load(make_run(start));
}

void
tsync_worker_main(Datum main_arg)
{
	TsyncStart	start;
	TsyncRun   *run;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	pqsignal(SIGTERM, handle_cancel);
	pqsignal(SIGINT, handle_cancel);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, start.owner, TSYNC_CONNECT_FLAGS);
	tsync_prepare_session();
	tsync_prepare_planner();

	if (start.helper)
	{
		help(&start);
		proc_exit(0);
	}

	/* another worker was faster: the launcher sees that we left no trace */
	if (!tsync_lock_run(start.replica))
		proc_exit(0);

	run = make_run(&start);

	MemoryContext run_context = CurrentMemoryContext;

	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	record_start(run);
	MemoryContextSwitchTo(run_context);
	run_in_envelope(run);
	tsync_prune_runs(run);
	proc_exit(0);
}
