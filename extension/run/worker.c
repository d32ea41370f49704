/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  One run, or those of a group, in a background worker.
 *
 * The worker is connected as the replica's owner.  Its first transaction
 * records the run as running and commits, so that a crash leaves evidence;
 * the last one changes the replica and records success (apply/apply.c); a verify
 * that only reports, or a run that is skipped, ends without APPLY.  When anything
 * in between fails, the error is copied, the transaction aborted
 * (which cancels what runs at the source) and the failure recorded in a new
 * transaction.  The connection to the source stays for the next run of the
 * process (serve.c), and ends with the process.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include <limits.h>

#include "access/xact.h"
#include "apply/apply.h"
#include "catalog/tables.h"
#include "check/check.h"
#include "evolve/evolve.h"
#include "execute/execute.h"
#include "feed/feed.h"
#include "load/load.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "run/run.h"
#include "scan/scan.h"
#include "source/source.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/timeout.h"
#include "verify/verify.h"
#include "watch/watch.h"

/* A run starts over when source or replica change under it. */
#define ATTEMPTS 5

/* How long to wait for an update of the extension, whose locks have ended a run. */
#define UPDATE_POLL_MS 50
#define UPDATE_POLLS 100

/* And when the source is interrupted in what does not go on by itself. */
#define RESTARTS 100			/* tablesync.retry_timeout usually comes first */

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
	return !confirmed || !tsync_was_rewritten(runs);
}

/* Open the source of a run, and load its replica if it was not. */
static void
begin_run(TsyncRun *run)
{
	tsync_progress_run(run->run_id, run->replica_oid);
	tsync_forget_reading();
	run->apply.unproved = false;
	if (tsync_expect_as_known(run))
	{
		run->apply.table = &run->replica->table;	/* should it come to nothing, this tells of which replica */
		return;
	}
	tsync_open_source(run);
	run->apply.table = &run->replica->table;
	if (run->replica->settings.by_xmin)
		tsync_prepare_xmin(&run->replica->table);
	if (!run->replica->state.loaded)
	{
		tsync_prepare_load(run);
		tsync_load(&run->load);
		tsync_look_at_time(run);
	}
	else if (tsync_trusts_counters(run) &&
			 tsync_source_unmoved(&run->replica->table, &run->source, tsync_message_of(run), tsync_waited(run)))
	{
		run->skipped = true;
		return;
	}
	/* before SCAN, which finds by its version what changes meanwhile */
	tsync_refetch(&run->refetch, &run->replica->table, &run->pace, run->source.estimate);
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

		if (run->replica->state.filter_changed)
			tsync_count_outside(&run->replica->table, run->stage);
		if (!run->verify.whole || run->verify.repair)
			tsync_check_guards(&run->replica->table, &run->source, run->stage, run->scan.chunks,
							   run->replica->settings.max_delete_fraction, run->force);
	}
}

/* Has a source gone back in time while it was scanned? */
static bool
is_older_source(List *runs)
{
	ListCell   *lc;

	foreach(lc, runs)
	{
		if (tsync_went_back_meanwhile(lfirst(lc)))
			return true;
	}
	return false;
}

static void
scan(void *arg)
{
	tsync_scan(tsync_scans_of(arg));
}

/* Could a scan that was to look at the source by the way, or that was prepared before, go well after a look? */
static bool
was_too_hasty(ErrorData *edata, void *runs)
{
	return ((TsyncRun *) linitial(runs))->scan.look != NULL && tsync_is_about_shape(edata);
}

/* SCAN; false if the source is not as a run has taken it to be. */
static bool
scan_sources(List *runs)
{
	return tsync_try(scan, runs, was_too_hasty, NULL) && !((TsyncRun *) linitial(runs))->scan.unlike;
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
	if (!scan_sources(runs))
	{
		first->surprised = true;
		return synchronise(runs, last_attempt);
	}
	/* an empty replica would hide a blind read: without deletes CONFIRM does not look again */
	if (tsync_needs_second_look(runs) && tsync_was_rewritten(runs))
		return false;
	/* started over, it is an older source from the first look on, of which the guards know */
	if (is_older_source(runs))
		return false;
	check_guards(runs);			/* before CONFIRM: it would look up all those keys */
	if (!confirm_deletes(runs))
		return false;
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		tsync_judge_chunks(&run->replica->table, &run->verify, run->stage, run->scan.chunks, run->source.version);
		tsync_stage_refetched(&run->refetch, &run->replica->table, run->stage);
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
	bool		interrupted;	/* by the source, which has to be asked again */
} Attempt;

static void
try_synchronise(void *arg)
{
	Attempt    *attempt = arg;

	attempt->done = synchronise(attempt->runs, attempt->last);
}

/* May an error have come from columns that changed while we read them, or from an interruption of the source? */
static bool
may_start_over(ErrorData *edata, void *arg)
{
	Attempt    *attempt = arg;
	ListCell   *lc;

	attempt->interrupted = tsync_is_interruption(edata, NULL);
	if (attempt->interrupted)
		return true;
	foreach(lc, attempt->runs)
	{
		TsyncRun   *run = lfirst(lc);

		/* never looked at, or stopped because of that very change */
		if (run->source.identity == NULL || run->paused)
			return false;
	}
	return tsync_is_about_shape(edata);
}

/*
 * One attempt, again where it is interrupted by the source in what does not go on
 * by itself; an error that a change of the source explains means to start over, too.
 */
static bool
attempt_runs(List *runs, bool last)
{
	Attempt		attempt = {.runs = runs,.last = last};
	ErrorData  *edata = NULL;

	for (int restarts = 1; !tsync_try(try_synchronise, &attempt, may_start_over, &edata); restarts++)
	{
		if (attempt.interrupted && restarts < RESTARTS)
			tsync_await_source_again();
		/* the same files and columns as before: then the error is what it says */
		else if (attempt.interrupted || !tsync_was_rewritten(runs))
			ReThrowError(edata);
		else
			return false;
	}
	return attempt.done;
}

/*
 * Runs have come to nothing: an error if that is because two rows of a view have
 * the same key.  Nothing proves that key but a run that succeeds.  Asked once.
 */
static void
check_view_keys(void *arg)
{
	ListCell   *lc;

	foreach(lc, (List *) arg)
	{
		TsyncRun   *run = lfirst(lc);

		if (run->key_asked || run->replica == NULL || !run->replica->settings.source_is_view)
			continue;
		run->key_asked = true;
		tsync_begin_in(CurrentMemoryContext);
		tsync_check_view_key(&run->replica->table);
		tsync_commit();
	}
}

/* The run has failed already: whatever comes of looking why is only an answer. */
static bool
is_an_answer(ErrorData *edata, void *arg)
{
	return true;
}

/* What has ended runs: the key of a view, where that explains an error, else the error itself. */
static ErrorData *
explain_by_view_key(List *runs, ErrorData *edata)
{
	ErrorData  *found = NULL;

	if (!tsync_is_about_shape(edata) && edata->sqlerrcode != ERRCODE_T_R_SERIALIZATION_FAILURE)
		return edata;
	if (!tsync_try(check_view_keys, runs, is_an_answer, &found) &&
		ERRCODE_TO_CATEGORY(found->sqlerrcode) == ERRCODE_TO_CATEGORY(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION))
		return found;
	return edata;
}

/* The story of a run, or of a group. */
static void
perform_runs(List *runs)
{
	tsync_forget_interruptions();
	for (int i = 1; i <= ATTEMPTS; i++)
	{
		if (attempt_runs(runs, i == ATTEMPTS))
			return;
		check_view_keys(runs);
	}
	tsync_give_up(tsync_applies_of(runs), ATTEMPTS);
}

/* Has this process recorded that a run has started? */
static bool has_begun = false;

bool
tsync_has_begun(void)
{
	return has_begun;
}

/*
 * Record that runs have started, and commit: a crash leaves evidence.  What has
 * waited in the queue leaves it; false if the first one is not there any more.
 */
static bool
record_starts(List *runs, bool from_queue)
{
	TsyncRun   *first = linitial(runs);
	ListCell   *lc;

	tsync_begin();
	tsync_check_version();
	if (from_queue && !tsync_take_queued(first->run_id, first->replica_oid))
	{
		tsync_commit();
		return false;
	}
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		if (run != first)
			run->run_id = tsync_queued_run(run->replica_oid);
		run->run_id = tsync_start_run(run->replica_oid, run->run_id, run->verify.whole,
									  list_length(runs) > 1 ? first->run_id : 0);
		run->group_run_id = list_length(runs) > 1 ? first->run_id : 0;
	}
	pgstat_report_activity(STATE_RUNNING, psprintf("tablesync run " INT64_FORMAT " for %s",
												   first->run_id, tsync_relation_label(first->replica_oid)));
	tsync_commit();
	has_begun = true;
	tsync_progress_start(first->run_id, first->replica_oid);
	return true;
}

/* Wait for an update of the extension to end, but not for long. */
static void
await_update(void)
{
	bool		updating = true;

	for (int i = 0; updating && i < UPDATE_POLLS; i++)
	{
		tsync_begin();
		updating = tsync_is_being_updated();
		tsync_commit();
		if (updating)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, UPDATE_POLL_MS, tsync_wait_event("TablesyncUpdate"));
			ResetLatch(MyLatch);
		}
	}
}

/* If the extension was updated during a run, that is why it has failed, whatever the error says. */
static void
name_update(ErrorData *edata)
{
	char	   *version;

	/* its ALTER TABLE takes locks in an order of its own */
	if (edata->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
		await_update();
	tsync_begin_in(CurrentMemoryContext);
	version = tsync_installed_version();
	if (version != NULL && !tsync_fits_extension())
	{
		edata->detail = psprintf("It has ended with: %s.", edata->message);
		edata->message = psprintf("tablesync was updated from version %s to %s during the run", tsync_version, version);
		edata->hint = pstrdup("Nothing is lost. Run again.");
		edata->sqlerrcode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	}
	tsync_commit();
}

/* Say what mends an error that has its reason here. */
static void
explain_failure(List *runs, ErrorData *edata)
{
	ListCell   *lc;

	foreach(lc, runs)
		tsync_name_publication(edata, ((TsyncRun *) lfirst(lc))->replica_oid);
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

		tsync_fail_run(run->run_id, run->load.rows, tsync_waited(run), edata,
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
		tsync_abort();
		MemoryContextSwitchTo(run_context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(run_context);
	/* while we can still be cancelled: this asks the source again */
	if (edata != NULL && !tsync_is_cancelled() && !tsync_source_is_silent())
	{
		edata = explain_by_view_key(runs, edata);
		tsync_name_timeout(edata);
		tsync_name_interruption(edata);
		tsync_explain_error(edata);
	}
	if (edata != NULL && !tsync_is_cancelled())
	{
		explain_failure(runs, edata);
		name_update(edata);
	}
	tsync_begin_recording();
	if (edata != NULL)
		record_failure(runs, edata);
}

/*
 * Perform a run, or those of its group, in a context of the caller's, and record
 * it; false if there is nothing to do: another worker was faster, or the queue has
 * it no more.  The locks stay.
 */
bool
tsync_perform(TsyncStart *start, bool from_queue)
{
	List	   *runs = tsync_make_runs(start);
	ListCell   *lc;

	if (runs == NIL || !record_starts(runs, from_queue))
		return false;
	run_in_envelope(runs);
	foreach(lc, runs)
	{
		TsyncRun   *run = lfirst(lc);

		/* in transactions of its own: what goes wrong here changes nothing about the run */
		tsync_settle_run(run->run_id);
		if (run->replica != NULL && run->replica->settings.feed)
			tsync_settle_feed(run->replica_oid, run->run_id);
		tsync_prune_runs(run->replica_oid);
	}
	return true;
}
