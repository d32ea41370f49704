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

#include <limits.h>

#include "access/xact.h"
#include "apply/apply.h"
#include "catalog/tables.h"
#include "compat.h"
#include "evolve/evolve.h"
#include "execute/execute.h"
#include "load/load.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "process/process.h"
#include "run/run.h"
#include "scan/scan.h"
#include "source/source.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "verify/verify.h"
#include "watch/watch.h"

/* A run starts over when source or replica change under it. */
#define ATTEMPTS 5

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

/*
 * Read the replica's settings, connect to the source and follow its shape.  The
 * identity comes from the same snapshot as the shape, so that no change of
 * columns after that escapes source_was_rewritten().  Our own transaction that
 * changes columns begins when the source's has ended: it may wait for locks.
 */
static void
open_source(TsyncRun *run)
{
	MemoryContext run_context = CurrentMemoryContext;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	run->replica = tsync_read_replica(run->replica_oid);
	tsync_commit();
	tsync_progress_phase(TSYNC_PHASE_SCHEMA, 0, 0);
	MemoryContextSwitchTo(run_context);
	tsync_limit_source(run, tsync_first_timeout(run->replica));

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	tsync_read_source(run);
	tsync_read_source_time(run);
	if (run->source_estimate >= tsync_chunk_target(run->replica))
		tsync_read_layout(run);
	run->source_identity = tsync_source_identity(run);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	if (run->new_shape != NULL)
	{
		tsync_check_may_evolve(run);
		tsync_evolve(run);
	}

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	if ((!run->verify && tsync_record_source(run)) || run->new_shape != NULL)
		run->replica = tsync_read_replica(run->replica_oid);
	tsync_read_columns(run->replica);
	tsync_prepare_verify(run);
	if (run->stage != NULL)
		tsync_stage_clear(run->stage);
	run->stage = tsync_stage_create(run->replica);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	tsync_check_bounds(run);
}

/*
 * Was the source rewritten since the run began?  Then a snapshot of ours may
 * have missed its rows: absence proves nothing.  Or were its columns changed?
 * Then rows of this run may not fit each other.
 */
static bool
source_was_rewritten(TsyncRun *run)
{
	char	   *identity = read_identity(run);
	bool		rewritten = strcmp(identity, run->source_identity) != 0;

	run->source_identity = identity;
	return rewritten;
}

static bool
any_was_rewritten(List *runs)
{
	bool		rewritten = false;
	ListCell   *lc;

	foreach(lc, runs)
		rewritten |= source_was_rewritten(lfirst(lc));
	return rewritten;
}

/*
 * CONFIRM the deletes of all runs; false to start over.  Rows that are found
 * again stay, which is right chunk by chunk but would mix two instants where
 * the whole scan was one snapshot.
 */
static bool
confirm_deletes(List *runs)
{
	bool		confirmed = false;
	ListCell   *lc;

	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		if (run->stage->deleted.count == 0)
			continue;
		tsync_progress_run(run);
		tsync_confirm(run);
		confirmed = true;
		if (run->stage->reappeared.count > 0 && run->snapshot)
			return false;
	}
	return !confirmed || !any_was_rewritten(runs);
}

/* Open the sources of all runs, and load replicas that were not. */
static void
open_sources(List *runs)
{
	ListCell   *lc;

	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		tsync_progress_run(run);
		tsync_forget_reading(run);
		run->unproved = false;
		open_source(run);
		if (!run->replica->loaded)
			tsync_load(run);
		else if (list_length(runs) == 1 && !run->verify && tsync_source_unmoved(run))
			run->skipped = true;
		if (!run->skipped)
			tsync_refetch(run);
	}
}

/*
 * One attempt to find and apply the differences of a run, or of a group of
 * runs that share a snapshot and a transaction; false to start over.
 */
static bool
synchronise(List *runs)
{
	ListCell   *lc;

	open_sources(runs);
	if (((TsyncRun *) linitial(runs))->skipped)
		return true;
	tsync_scan(runs);
	if (any_was_rewritten(runs))
		return false;
	foreach(lc, runs)
		if (!tsync_reports_only(lfirst(lc)))
			tsync_check_guards(lfirst(lc));
	if (!confirm_deletes(runs))
		return false;
	foreach(lc, runs)
		tsync_judge_chunks(lfirst(lc));
	return tsync_reports_only(linitial(runs)) ? tsync_report(linitial(runs)) : tsync_apply(runs);
}

/* May an error have come from columns that changed while we read them? */
static bool
may_be_new_shape(TsyncRun *run, int sqlerrcode)
{
	static const int categories[] = {
		ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION, ERRCODE_DATA_EXCEPTION,
		ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION, ERRCODE_FEATURE_NOT_SUPPORTED,
		ERRCODE_FDW_ERROR, ERRCODE_INTERNAL_ERROR
	};

	if (run->source_identity == NULL || run->paused)
		return false;
	for (int i = 0; i < lengthof(categories); i++)
		if (ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_TO_CATEGORY(categories[i]))
			return true;
	return false;
}

static bool
may_be_new_shapes(List *runs, int sqlerrcode)
{
	ListCell   *lc;

	foreach(lc, runs)
		if (!may_be_new_shape(lfirst(lc), sqlerrcode))
			return false;
	return true;
}

/* As synchronise(); an error that a change of the source explains means to start over, too. */
static bool
try_synchronise(List *runs)
{
	MemoryContext run_context = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;
	volatile bool done = false;

	PG_TRY();
	{
		done = synchronise(runs);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run_context);
		edata = CopyErrorData();
		if (!may_be_new_shapes(runs, edata->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(run_context);
	if (edata != NULL)
	{
		tsync_expect_source(false);
		if (!any_was_rewritten(runs))
			ReThrowError(edata);
	}
	return done;
}

/* The story of a run, or of a group. */
static void
perform_runs(List *runs)
{
	for (int attempt = 1;; attempt++)
	{
		ListCell   *lc;

		foreach(lc, runs)
			((TsyncRun *) lfirst(lc))->last_attempt = attempt == ATTEMPTS;
		if (try_synchronise(runs))
			return;
		if (attempt == ATTEMPTS)
			tsync_give_up(runs, ATTEMPTS);
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
	return run;
}

/*
 * The runs of this worker: one, or those of a group.  NIL if another worker was
 * faster: the launcher sees that we left no trace.  All lock in the same order,
 * so one of those who start at the same time gets all of a group.
 */
static List *
make_runs(TsyncStart *start)
{
	TsyncRun   *first = make_run(start);
	MemoryContext run_context = CurrentMemoryContext;
	List	   *runs = list_make1(first);
	List	   *members;
	ListCell   *lc;

	tsync_begin();
	MemoryContextSwitchTo(run_context);
	members = start->verify ? NIL : tsync_group_members(start->replica);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	first->grouped = list_length(members) > 1;
	if (members == NIL)
		members = list_make1_oid(start->replica);
	foreach(lc, members)
	{
		TsyncRun   *member;

		if (!tsync_lock_run(lfirst_oid(lc)))
			return NIL;
		if (lfirst_oid(lc) == start->replica)
			continue;
		member = palloc0(sizeof(TsyncRun));
		member->replica_oid = lfirst_oid(lc);
		member->force = start->force;
		member->grouped = true;
		runs = lappend(runs, member);
	}
	return runs;
}

static void
record_starts(List *runs)
{
	MemoryContext run_context = CurrentMemoryContext;
	TsyncRun   *first = linitial(runs);
	ListCell   *lc;

	tsync_begin();
	foreach(lc, runs)
		tsync_start_run(lfirst(lc), list_length(runs) > 1 ? first->run_id : 0);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	tsync_progress_start(first->run_id, first->replica_oid);
}

/* Record that all runs of a worker have failed. */
static void
record_failure(List *runs, ErrorData *edata)
{
	MemoryContext run_context = CurrentMemoryContext;
	ListCell   *lc;

	tsync_expect_source(false);
	tsync_name_silence(edata);
	foreach(lc, runs)
	{
		tsync_fail_run(lfirst(lc), edata,
					   tsync_is_cancelled() && edata->sqlerrcode == ERRCODE_QUERY_CANCELED);
		MemoryContextSwitchTo(run_context);
	}
}

/* Perform runs and record how they end. */
static void
run_in_envelope(List *runs)
{
	MemoryContext run_context = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;

	PG_TRY();
	{
		perform_runs(runs);
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
	MemoryContextSwitchTo(run_context);
	if (edata != NULL && !tsync_is_cancelled() && !tsync_source_is_silent())
		tsync_explain_error(runs, edata);
	tsync_begin_recording();
	if (edata != NULL)
		record_failure(runs, edata);
}

/* Help another worker with its load; an error is the server log's. */
static void
help(TsyncStart *start)
{
	TsyncRun   *run = make_run(start);
	MemoryContext run_context = CurrentMemoryContext;

	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	run->source_version = start->source_version;
	tsync_begin();
	MemoryContextSwitchTo(run_context);
	run->replica = tsync_read_replica(run->replica_oid);
	tsync_read_columns(run->replica);
	tsync_commit();
	MemoryContextSwitchTo(run_context);
	if (start->help == TSYNC_HELP_INDEX)
		tsync_help_index(run);
	else
		tsync_help_load(run);
}

void
tsync_worker_main(Datum main_arg)
{
	TsyncStart	start;
	List	   *runs;
	ListCell   *lc;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	tsync_watch_signals();
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, start.owner, TSYNC_CONNECT_FLAGS);
	tsync_prepare_session(false);
	tsync_prepare_planner();
	tsync_prepare_executor();

	if (start.help != TSYNC_HELP_NONE)
	{
		help(&start);
		proc_exit(0);
	}

	if ((runs = make_runs(&start)) == NIL)
		proc_exit(0);

	MemoryContext run_context = CurrentMemoryContext;

	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	record_starts(runs);
	run_in_envelope(runs);
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		MemoryContextSwitchTo(run_context);
		tsync_settle_run(run->run_id);
		tsync_prune_runs(run);
	}
	proc_exit(0);
}
