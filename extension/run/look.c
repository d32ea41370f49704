/*-------------------------------------------------------------------------
 *
 * look.c
 *	  What a run looks at besides rows, and when.
 *
 * A statement costs postgres_fdw three round trips to the source, and a
 * transaction two more.  So all that is asked before rows are read is one
 * statement (source/image.sql).  Of a small replica even that shares a
 * transaction with the scan: the replica's side is prepared first, as if the
 * source were what the last run has left in our tables, and the first thing that
 * the scan asks is whether it is.  If not, that has cost a few milliseconds,
 * and the run begins as all others do: look, follow the shape, scan.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/tables.h"
#include "evolve/evolve.h"
#include "execute/execute.h"
#include "process/process.h"
#include "run/run.h"
#include "scan/scan.h"
#include "source/source.h"
#include "verify/verify.h"

/* Rows of the replica, by what they cost the source. */
static double
weighted_rows(TsyncRun *run)
{
	return tsync_weigh_rows(run->replica->state.quiet_rows, run->replica->state.differing_rows);
}

/* Read the replica's settings, and limit statements at its source. */
static void
read_settings(TsyncRun *run)
{

	tsync_begin_in(CurrentMemoryContext);
	tsync_read_run(run);
	tsync_commit();
	tsync_progress_phase(TSYNC_PHASE_SCHEMA, 0, 0);
	tsync_limit_source(&run->replica->table, tsync_first_timeout(&run->pace, run->replica->state.loaded, weighted_rows(run)));
}

/* A look at the source in a transaction of its own. */
typedef struct Look
{
	TsyncRun   *run;
	bool		horizon;
} Look;

static void
look_at_source(void *arg)
{
	Look	   *look = arg;
	TsyncRun   *run = look->run;
	TsyncTable *table = &run->replica->table;

	tsync_begin_in(CurrentMemoryContext);
	tsync_read_source(table, &run->source, look->horizon);
	run->source.changes = -1;
	if (run->source.estimate >= (run->replica->state.loaded ? tsync_chunk_target(&run->pace) : TSYNC_MIN_BULK_ROWS))
		tsync_read_layout(table, &run->source);
	run->source.counters = NULL;
	if (tsync_trusts_counters(run) && run->replica->state.loaded)
		tsync_read_counters(table, &run->source);
	tsync_commit();
}

/* Was it perhaps the look at the sessions there that is not permitted?  It can be done without. */
static bool
may_be_without_horizon(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE;
}

/* Does a run end where the source's counters stand still, which the user trusts? */
bool
tsync_trusts_counters(TsyncRun *run)
{
	return run->replica->settings.trust_counters && !run->grouped && !run->verify.whole;
}

/*
 * Look at the source, follow its shape, and read the columns that both sides
 * have then.  Shape and identity are of the same snapshot: no change of columns
 * after that escapes tsync_was_rewritten().
 */
void
tsync_open_source(TsyncRun *run)
{
	TsyncSource *source = &run->source;
	Look		look = {.run = run,.horizon = true};

	read_settings(run);
	if (!tsync_try(look_at_source, &look, may_be_without_horizon, NULL))
	{
		look.horizon = false;
		look_at_source(&look);
	}
	if (source->new_shape != NULL)
	{
		if (run->verify.whole)
			tsync_refuse_to_evolve(run->replica->table.label);
		tsync_check_older_shape(&run->replica->table, source, run->force);
		/* a transaction that changes columns begins when the source's has ended: it may wait for locks */
		tsync_evolve(&run->replica->table, run->run_id, source->new_shape, &run->paused);
	}

	tsync_begin_in(CurrentMemoryContext);
	if ((!run->verify.whole && tsync_record_source(run->replica_oid, run->run_id, source->identity, source->version,
												   source->unreadable, source->nunreadable)) ||
		source->new_shape != NULL)
		tsync_read_run(run);
	tsync_read_columns(run->replica);
	if (run->verify.whole)
		tsync_prepare_verify(run->replica, &run->verify, &run->pace);
	tsync_renew_stage(run);
	tsync_commit();
	tsync_check_bounds(run->replica);
}

static void
read_time(void *arg)
{
	TsyncRun   *run = arg;

	tsync_begin_in(CurrentMemoryContext);
	tsync_read_time(&run->replica->table, &run->source);
	tsync_commit();
}

/* Ask how far the source has come while it was loaded, which may have taken hours. */
void
tsync_look_at_time(TsyncRun *run)
{
	if (run->replica->settings.by_xmin && run->source.epoch != NULL)
		tsync_insist(read_time, run);
}

/* A question whether the source is older than it was. */
typedef struct TimeQuestion
{
	TsyncRun   *run;
	bool		went_back;
} TimeQuestion;

static void
compare_time(void *arg)
{
	TimeQuestion *question = arg;

	tsync_begin_in(CurrentMemoryContext);
	question->went_back = tsync_source_went_back(&question->run->replica->table, &question->run->source);
	tsync_commit();
}

/*
 * Has the source gone back in time since the run has looked at it?  One transaction
 * that was not interrupted is of one server.  Between two of them another may have
 * taken its place, without the last that this run, or the one before, has seen.
 */
bool
tsync_went_back_meanwhile(TsyncRun *run)
{
	TimeQuestion question = {.run = run};
	bool		refetched = run->refetch.table != NULL; /* before SCAN, in other transactions */
	const char *reason;

	if (run->source.horizon == 0 || (run->stage->deleted.count + run->stage->updated.count == 0 && !refetched) ||
		(run->scan.snapshot && !refetched && tsync_interruptions(&reason) == 0))
		return false;
	tsync_insist(compare_time, &question);
	return question.went_back;
}

/* May a scan begin before anything is known of the source?  Of few rows, which one snapshot reads. */
static bool
may_scan_at_once(TsyncRun *run)
{
	TsyncState *state = &run->replica->state;

	return state->loaded && !state->adopted && !state->refetching && state->source_version > 0 &&
		!run->surprised && !run->grouped && !run->verify.whole && !run->replica->settings.trust_counters &&
		state->quiet_rows + state->differing_rows < tsync_chunk_target(&run->pace) &&
		tsync_use_snapshot(&run->pace, weighted_rows(run));
}

/* The scan has begun its transaction: is the source as the run has taken it to be? */
static bool
look_as_known(void *arg)
{
	TsyncRun   *run = arg;

	tsync_read_source(&run->replica->table, &run->source, true);
	/* of the snapshot of the scan itself, the newest transaction may be one that it does not see */
	run->source.seen_xid = run->source.oldest_xid;
	return run->source.as_known && run->source.estimate < tsync_chunk_target(&run->pace) &&
		!(run->replica->settings.by_xmin && tsync_lives_anew(&run->source, run->replica->state.epoch));
}

/* Prepare the replica's side of a scan. */
static void
prepare_as_known(void *arg)
{
	TsyncRun   *run = arg;

	tsync_begin_in(CurrentMemoryContext);
	tsync_read_columns(run->replica);
	tsync_renew_stage(run);
	tsync_commit();
	tsync_check_bounds(run->replica);
	if (run->replica->settings.by_xmin)
		tsync_prepare_xmin(&run->replica->table);
	memset(&run->source, 0, sizeof(run->source));
	run->source.version = run->replica->state.source_version;
	run->source.changes = -1;
	tsync_prepare_scan(run);
	run->scan.look = look_as_known;
	run->scan.look_at = run;
}

/* Could an error come of a replica that does not fit its source, or of what may not be looked at? */
bool
tsync_is_about_shape(ErrorData *edata)
{
	static const int categories[] = {
		ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION, ERRCODE_DATA_EXCEPTION,
		ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION, ERRCODE_FEATURE_NOT_SUPPORTED,
		ERRCODE_FDW_ERROR, ERRCODE_INTERNAL_ERROR
	};

	for (int i = 0; i < lengthof(categories); i++)
		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_TO_CATEGORY(categories[i]))
			return true;
	return false;
}

/* Whatever it is, a look at the source comes first. */
static bool
is_no_cancel(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode != ERRCODE_QUERY_CANCELED;
}

/* Prepare a run for a source that is as the last run left it; false if that would not be wise. */
bool
tsync_expect_as_known(TsyncRun *run)
{
	if (run->surprised)
		return false;
	read_settings(run);
	return may_scan_at_once(run) && tsync_try(prepare_as_known, run, is_no_cancel, NULL);
}

/* A question about the identity of a source's files. */
typedef struct IdentityQuestion
{
	TsyncRun   *run;
	char	   *answer;
} IdentityQuestion;

/* Identity of the source's files, in a remote transaction of its own. */
static void
read_identity(void *arg)
{
	IdentityQuestion *question = arg;
	TsyncRun   *run = question->run;

	tsync_begin_in(CurrentMemoryContext);
	question->answer = tsync_source_identity(&run->replica->table, &run->source);
	tsync_commit();
}

/*
 * Was the source rewritten since the run began?  Then a snapshot of ours may
 * have missed its rows: absence proves nothing.  Or were its columns changed?
 * Then rows of this run may not fit each other.
 */
static bool
was_rewritten(TsyncRun *run)
{
	IdentityQuestion question = {.run = run};
	bool		rewritten;

	tsync_insist(read_identity, &question);
	rewritten = strcmp(question.answer, run->source.identity) != 0;
	run->source.identity = question.answer;
	run->surprised |= rewritten;
	return rewritten;
}

bool
tsync_was_rewritten(List *runs)
{
	bool		rewritten = false;
	ListCell   *lc;

	foreach(lc, runs)
		rewritten |= was_rewritten(lfirst(lc));
	return rewritten;
}

/*
 * Does a scan prove by itself that no rewrite has hidden rows from it?  A
 * rewrite hides all rows of a file from an older snapshot, and can't come
 * between two statements of a transaction, whose first one locks the table
 * until it ends.  So who has seen rows of an undivided table in one snapshot
 * has seen all.  (A partition is a file of its own.)  If, besides, nothing
 * differs, then no row is written either that may not fit columns that have
 * changed since the look.  A load has looked long ago, and may be settled by an
 * answer from before the scan: one look more costs little then.
 */
static bool
is_proof(TsyncRun *run)
{
	ListCell   *lc;

	if (run->load.table != NULL)
		return false;
	foreach(lc, run->scan.chunks)
	{
		TsyncChunk *chunk = lfirst(lc);

		if (chunk->differs || !tsync_digest_equal(chunk->source, chunk->replica))
			return false;
	}
	return run->scan.snapshot && !run->source.divided && run->scan.digest.rows > 0 && tsync_staged_rows(run->stage) == 0;
}

/* Is a second look at the sources needed after SCAN? */
bool
tsync_needs_second_look(List *runs)
{
	TsyncRun   *first = linitial(runs);

	return list_length(runs) > 1 || first->verify.whole || !is_proof(first);
}
