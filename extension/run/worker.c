/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  One run, in a background worker of its own.
 *
 * The worker is connected as the replica's owner.  Its first transaction
 * records the run as running and commits, so that a crash leaves evidence;
 * the last one changes the replica and records success (apply/apply.c); a verify
 * that only reports, or a run that is skipped, ends without APPLY.  When anything
 * in between fails, the error is copied, the transaction aborted
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
#include "process/process.h"
#include "run/run.h"
#include "scan/scan.h"
#include "source/source.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/guc.h"
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
	char	   *identity;

	tsync_begin_in(CurrentMemoryContext);
	identity = tsync_source_identity(&run->replica->table);
	tsync_commit();
	return identity;
}

/* Read the replica's settings, and look at the source in one transaction of its own. */
static void
look_at_source(TsyncRun *run)
{
	TsyncTable *table;

	tsync_begin_in(CurrentMemoryContext);
	table = tsync_read_run(run);
	tsync_commit();
	tsync_progress_phase(TSYNC_PHASE_SCHEMA, 0, 0);
	/* before the source is asked: a session there gets its limit as it begins */
	tsync_limit_source(table, tsync_first_timeout(&run->pace, run->replica->state.loaded,
												  tsync_weigh_rows(run->replica->state.quiet_rows, run->replica->state.differing_rows)));

	tsync_begin_in(CurrentMemoryContext);
	tsync_read_source(table, &run->source);
	tsync_read_horizon(table, &run->source);
	if (run->source.estimate >= (run->replica->state.loaded ? tsync_chunk_target(&run->pace) : TSYNC_MIN_BULK_ROWS))
		tsync_read_layout(table, &run->source);
	/* of the same snapshot as the shape: no change of columns after that escapes source_was_rewritten() */
	run->source.identity = tsync_source_identity(table);
	tsync_commit();
}

/*
 * Look at the source, follow its shape, and read the columns that both sides
 * have then.
 */
static void
open_source(TsyncRun *run)
{
	TsyncSource *source = &run->source;

	look_at_source(run);
	if (source->new_shape != NULL)
	{
		if (run->verify.whole)
			tsync_refuse_to_evolve(run->replica->table.label);
		/* a transaction that changes columns begins when the source's has ended: it may wait for locks */
		tsync_evolve(&run->replica->table, run->run_id, source->new_shape, &run->paused);
	}

	tsync_begin_in(CurrentMemoryContext);
	if ((!run->verify.whole && tsync_record_source(run->replica_oid, run->run_id, source->identity,
												   source->unreadable, source->nunreadable)) ||
		source->new_shape != NULL)
		tsync_read_run(run);
	/* not with the settings: before the shape was followed they may not fit the source */
	tsync_read_columns(run->replica);
	if (run->verify.whole)
		tsync_prepare_verify(run->replica, &run->verify, &run->pace);
	/* anew in each attempt: its rows have the columns of now */
	if (run->stage != NULL)
		tsync_stage_clear(run->stage);
	run->stage = tsync_stage_create(&run->replica->table);
	tsync_commit();
	/* needs the columns: bounds mean nothing for a key of another type */
	tsync_check_bounds(run->replica);
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
	bool		rewritten = strcmp(identity, run->source.identity) != 0;

	run->source.identity = identity;
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
		tsync_progress_run(run->run_id, run->replica_oid);
		tsync_confirm(&run->replica->table, run->stage);
		confirmed = true;
		if (run->stage->reappeared.count > 0 && run->scan.snapshot)
			return false;
	}
	/* only now: a rewrite while we looked would have hidden rows from that look, too */
	return !confirmed || !any_was_rewritten(runs);
}

/* Is there nothing to scan, because the source's counters, which the user trusts, stand still? */
static bool
is_unmoved(TsyncRun *run)
{
	return run->replica->settings.trust_counters && !run->grouped && !run->verify.whole &&
		tsync_source_unmoved(&run->replica->table, &run->source, run->run_id);
}

/* Open the source of a run, and load its replica if it was not. */
static void
begin_run(TsyncRun *run)
{
	tsync_progress_run(run->run_id, run->replica_oid);
	tsync_forget_reading();
	open_source(run);
	run->apply.table = &run->replica->table;	/* should it come to nothing, this tells of which replica */
	run->apply.unproved = false;
	if (!run->replica->state.loaded)
	{
		tsync_prepare_load(run);
		tsync_load(&run->load);
	}
	else if (is_unmoved(run))
	{
		run->skipped = true;
		return;
	}
	/* before SCAN, which finds by its version what changes meanwhile */
	tsync_refetch(&run->replica->table, &run->pace, run->source.estimate);
	tsync_prepare_scan(run);
}

/* Stop runs whose deletes, or whose source, can't be believed. */
static void
check_guards(List *runs)
{
	ListCell   *lc;

	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		if (!run->verify.whole || run->verify.repair)
			tsync_check_guards(&run->replica->table, &run->source, run->stage, run->scan.chunks,
							   run->replica->settings.max_delete_fraction, run->force);
	}
}

/*
 * One attempt to find and apply the differences of a run, or of a group of
 * runs that share a snapshot and a transaction; false to start over.
 */
static bool
synchronise(List *runs, bool last_attempt)
{
	TsyncRun   *first = linitial(runs);
	ListCell   *lc;

	foreach(lc, runs)
		begin_run(lfirst(lc));
	if (first->skipped)
		return true;
	tsync_scan(tsync_scans_of(runs));
	/* an empty replica would hide a blind read: without deletes CONFIRM does not look again */
	if (any_was_rewritten(runs))
		return false;
	check_guards(runs);			/* before CONFIRM: it would look up all those keys */
	if (!confirm_deletes(runs))
		return false;
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		tsync_judge_chunks(&run->replica->table, &run->verify, run->stage, run->scan.chunks, run->source.version);
		tsync_prepare_apply(run, last_attempt);
	}
	/* the source was asked for the last time: APPLY may wait for locks */
	if (!first->verify.whole || first->verify.repair)
		return tsync_apply(tsync_applies_of(runs));
	tsync_end_without_apply(&first->apply);
	return true;
}

/* One attempt, as it is tried. */
typedef struct Attempt
{
	List	   *runs;
	bool		last;
	bool		done;
} Attempt;

static void
try_synchronise(void *arg)
{
	Attempt    *attempt = arg;

	attempt->done = synchronise(attempt->runs, attempt->last);
}

/* May an error have come from columns that changed while we read them? */
static bool
may_be_new_shape(ErrorData *edata, void *arg)
{
	static const int categories[] = {
		ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION, ERRCODE_DATA_EXCEPTION,
		ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION, ERRCODE_FEATURE_NOT_SUPPORTED,
		ERRCODE_FDW_ERROR, ERRCODE_INTERNAL_ERROR
	};
	Attempt    *attempt = arg;
	ListCell   *lc;

	foreach(lc, attempt->runs)
	{
		TsyncRun   *run = lfirst(lc);

		/* never looked at, or stopped because of that very change */
		if (run->source.identity == NULL || run->paused)
			return false;
	}
	for (int i = 0; i < lengthof(categories); i++)
		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_TO_CATEGORY(categories[i]))
			return true;
	return false;
}

/* The story of a run, or of a group: an error that a change of the source explains means to start over, too. */
static void
perform_runs(List *runs)
{
	for (int i = 1; i <= ATTEMPTS; i++)
	{
		Attempt		attempt = {.runs = runs,.last = i == ATTEMPTS};
		ErrorData  *edata = NULL;

		/* the same files and columns as before: then the error is what it says */
		if (!tsync_try(try_synchronise, &attempt, may_be_new_shape, &edata) && !any_was_rewritten(runs))
			ReThrowError(edata);
		if (attempt.done)
			return;
	}
	tsync_give_up(tsync_applies_of(runs), ATTEMPTS);
}

/* Record that runs have started, and commit: a crash leaves evidence. */
static void
record_starts(List *runs)
{
	TsyncRun   *first = linitial(runs);
	ListCell   *lc;

	tsync_begin();
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		run->run_id = tsync_start_run(run->replica_oid, run->run_id, run->verify.whole,
									  list_length(runs) > 1 ? first->run_id : 0);
	}
	tsync_commit();
	tsync_progress_start(first->run_id, first->replica_oid);
}

/* Record that all runs of a worker have failed. */
static void
record_failure(List *runs, ErrorData *edata)
{
	ListCell   *lc;

	tsync_name_silence(edata);
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		tsync_fail_run(run->run_id, run->load.rows, run->replica ? run->replica->table.waited : 0, edata,
					   tsync_is_cancelled() && edata->sqlerrcode == ERRCODE_QUERY_CANCELED);
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
		tsync_abort();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(run_context);
	/* while we can still be cancelled: this asks the source again */
	if (edata != NULL && !tsync_is_cancelled() && !tsync_source_is_silent())
	{
		tsync_name_timeout(edata);
		tsync_explain_error(edata);
	}
	tsync_begin_recording();
	if (edata != NULL)
		record_failure(runs, edata);
}

/* Help another worker with its load; an error is the server log's. */
static void
help_with_load(TsyncStart *start)
{
	TsyncRun   *run = tsync_make_run(start);

	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	tsync_begin_in(CurrentMemoryContext);
	tsync_read_run(run);
	tsync_read_columns(run->replica);
	tsync_commit();
	tsync_prepare_load(run);
	if (start->help == TSYNC_HELP_INDEX)
		tsync_help_index(&run->load);
	else
		tsync_help_load(&run->load);
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
		help_with_load(&start);
		proc_exit(0);
	}

	if ((runs = tsync_make_runs(&start)) == NIL)
		proc_exit(0);
	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	record_starts(runs);
	run_in_envelope(runs);
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		/* in transactions of its own: what goes wrong here changes nothing about the run */
		tsync_settle_run(run->run_id);
		tsync_prune_runs(run->replica_oid);
	}
	proc_exit(0);
}
