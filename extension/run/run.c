/*-------------------------------------------------------------------------
 *
 * run.c
 *	  What a run is made of, and what of it each phase gets.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/tables.h"
#include "execute/execute.h"
#include "run/run.h"
#include "utils/memutils.h"

/* Make the run that a worker is started with, in a context of its own below the caller's, which stays current. */
TsyncRun *
tsync_make_run(TsyncStart *start)
{
	TsyncRun   *run;

	MemoryContextSwitchTo(AllocSetContextCreate(CurrentMemoryContext, "tablesync run",
												ALLOCSET_DEFAULT_SIZES));
	run = palloc0(sizeof(TsyncRun));
	run->run_id = start->run_id;
	run->replica_oid = start->replica;
	run->force = start->force;
	run->verify.whole = start->verify;
	run->verify.repair = start->repair;
	run->source.version = start->source_version;
	run->source.instant = start->source_instant;
	run->waited_before = tsync_waited_elsewhere;
	return run;
}

/*
 * A run, or those of a group, and their locks.  NIL if another worker was faster:
 * the launcher sees that we left no trace.  All lock in the same order,
 * so one of those who start at the same time gets all of a group.
 */
List *
tsync_make_runs(TsyncStart *start)
{
	TsyncRun   *first = tsync_make_run(start);
	List	   *runs = list_make1(first);
	List	   *members;
	ListCell   *lc;

	tsync_begin_in(CurrentMemoryContext);
	members = start->verify ? NIL : tsync_group_members(start->replica);
	tsync_commit();
	first->grouped = list_length(members) > 1;
	if (members == NIL)
		members = list_make1_oid(start->replica);
	foreach(lc, members)
	{
		TsyncRun   *member;

		if (!tsync_lock_run(lfirst_oid(lc)))
		{
			tsync_unlock_runs();
			return NIL;
		}
		if (lfirst_oid(lc) == start->replica)
			continue;
		member = palloc0(sizeof(TsyncRun));
		member->replica_oid = lfirst_oid(lc);
		member->force = start->force;
		member->grouped = true;
		member->waited_before = -1; /* the first one has waited for all */
		runs = lappend(runs, member);
	}
	return runs;
}

/*
 * Read a run's replica, in a transaction of the caller; its columns come when
 * they are known to fit the source.  What the source has cost so far, and what
 * this run has learned of its speed, stays.
 */
TsyncTable *
tsync_read_run(TsyncRun *run)
{
	int64		waited = run->replica ? run->replica->table.waited : 0;

	run->replica = tsync_read_replica(run->replica_oid);
	run->replica->table.waited = waited;
	run->pace.label = run->replica->table.label;
	run->pace.consistency = run->replica->settings.consistency;
	run->pace.chunk_rows = run->replica->settings.chunk_rows;
	run->pace.max_source_load = run->replica->settings.max_source_load;
	run->pace.scan_rate = run->replica->state.scan_rate;
	return &run->replica->table;
}

/* Microseconds that a run has waited for its source so far. */
int64
tsync_waited(TsyncRun *run)
{
	return (run->replica ? run->replica->table.waited : 0) +
		(run->waited_before >= 0 ? tsync_waited_elsewhere - run->waited_before : 0);
}

/* What a transaction of a run says of itself, but for what it changes. */
TsyncMessage
tsync_message_of(TsyncRun *run)
{
	return (TsyncMessage)
	{
		.run_id = run->run_id,
			.group_run_id = run->group_run_id,
			.replica = run->replica->table.label,
			.kind = run->verify.whole ? "verify" : run->load.table != NULL ? "load" : "sync",
			.source_instant = run->source.instant
	};
}

/* The fingerprint that usual runs compare and remember. */
static TsyncFingerprint
usual_fingerprint(TsyncRun *run)
{
	return (TsyncFingerprint)
	{
		.all_columns = run->replica->settings.all_columns,
			.xmin = run->replica->settings.by_xmin,
			.source_version = run->source.version
	};
}

/* What LOAD gets; rows that an earlier attempt has loaded count. */
void
tsync_prepare_load(TsyncRun *run)
{
	TsyncLoad  *load = &run->load;

	load->run_id = run->run_id;
	load->replica = run->replica;
	load->table = &run->replica->table;
	load->fingerprint = usual_fingerprint(run);
	/* of the look before the load: what a transaction that ended before has written is loaded */
	load->horizon = run->source.horizon;
	load->epoch = run->source.epoch;
	load->fresh = run->replica->state.load_position == NULL && !run->replica->state.bulk_loading;
	load->source = &run->source;
	load->pace = &run->pace;
	load->grouped = run->grouped;
	load->message = tsync_message_of(run);
	load->message.inserted = -1;
}

/* An empty stage for the columns of a replica, in a transaction of the caller. */
void
tsync_renew_stage(TsyncRun *run)
{
	if (run->stage != NULL)
		tsync_stage_clear(run->stage);
	run->stage = tsync_stage_create(&run->replica->table);
}

/* What SCAN gets, once the replica is loaded. */
void
tsync_prepare_scan(TsyncRun *run)
{
	TsyncScan  *scan = &run->scan;

	scan->run_id = run->run_id;
	scan->replica = run->replica;
	scan->table = &run->replica->table;
	scan->fingerprint = run->verify.whole ? tsync_every_column(run->source.version) : usual_fingerprint(run);
	scan->source = &run->source;
	scan->pace = &run->pace;
	scan->verify = &run->verify;
	scan->stage = run->stage;
	scan->snapshot_expired |= run->load.snapshot_expired;
	scan->fresh = run->load.fresh && run->replica->settings.by_xmin && !run->verify.whole;
	scan->load_horizon = run->load.horizon;
	scan->load_epoch = run->load.epoch;
	run->replica->table.seek_keys = tsync_seek_keys(&run->source);
	scan->load_compared = run->load.compared;
	scan->load_digest = run->load.digest;
	scan->look = NULL;
	scan->looking = false;
	scan->unlike = false;
	run->load.compared = false; /* only the scan that follows at once may rely on it */
}

/* What is known of a run that has been scanned, should it succeed. */
static void
prepare_record(TsyncRun *run)
{
	TsyncRecord *record = &run->record;
	TsyncReplica *replica = run->replica;

	record->run_id = run->run_id;
	record->relid = replica->table.relid;
	record->label = replica->table.label;
	record->verify = run->verify.whole;
	record->repair = run->verify.repair;
	record->source = run->scan.digest;
	record->loaded = run->load.rows;
	record->waited = tsync_waited(run);
	record->snapshot = run->scan.snapshot;
	record->snapshot_expired = run->scan.snapshot_expired;
	record->slowness = run->pace.slowness;
	record->interruptions = tsync_interruptions(&record->interruption);
	record->conflicted = run->scan.conflicted;
	record->drifted = run->scan.drifted;
	record->drift_known = replica->state.drift_known;
	record->horizon = run->source.horizon;
	record->stands_still = run->source.stands_still;
	record->source_instant = run->source.instant;
	record->newest_version = run->source.newest_version;
	/* a source that was slow today is not slow for ever */
	record->scan_rate = run->pace.slowness > 0 ? run->pace.scan_rate : tsync_learned_rate(&run->pace);
	record->counters = run->source.counters;
	record->counters_at = run->source.counters_at;
	record->adopted = replica->state.adopted || replica->state.refetching;
	record->of_view = replica->settings.source_is_view && !tsync_has_files(&run->source);
	record->by_xmin = run->scan.fingerprint.xmin;
	record->by_value = run->scan.by_value;
	record->written_anew = run->scan.written_anew;
	record->epoch = run->source.epoch;
	record->seen_xid = run->source.seen_xid;
	record->source_changes = run->source.changes;
	record->look_key = run->source.look_key;
}

/* What APPLY gets, once all that is asked of the source has been. */
void
tsync_prepare_apply(TsyncRun *run, bool last_attempt)
{
	TsyncApply *apply = &run->apply;

	prepare_record(run);
	apply->table = &run->replica->table;
	apply->by_xmin = run->scan.fingerprint.xmin;
	apply->fingerprint = apply->by_xmin ? tsync_every_column(run->source.version) : run->scan.fingerprint;
	apply->stage = run->stage;
	apply->chunks = run->scan.chunks;
	apply->memory = &run->scan.memory;
	apply->watched = run->scan.watched;
	apply->verify = &run->verify;
	apply->record = &run->record;
	apply->message = tsync_message_of(run);
	apply->message.complete = true;
	apply->last_attempt = last_attempt;
}

List *
tsync_scans_of(List *runs)
{
	List	   *scans = NIL;
	ListCell   *lc;

	foreach(lc, runs)
		scans = lappend(scans, &((TsyncRun *) lfirst(lc))->scan);
	return scans;
}

List *
tsync_applies_of(List *runs)
{
	List	   *applies = NIL;
	ListCell   *lc;

	foreach(lc, runs)
		applies = lappend(applies, &((TsyncRun *) lfirst(lc))->apply);
	return applies;
}
