/*-------------------------------------------------------------------------
 *
 * several.c
 *	  tablesync_run() of all replicas: a few workers for each owner, run after run.
 *
 * The workers share a list in shared memory, which is the caller's: when he gives
 * up, the runs that go on are cancelled and no other begins.  What a run has to
 * say comes from tablesync.run, like that of a single one.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "api/api.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/proc.h"

/* A replica that the caller has asked for. */
typedef struct Asked
{
	Oid			replica;
	Oid			owner;
	const char *group;			/* NULL: none; others of the same are run with it */
	bool		force;
	bool		listed;			/* to be run, unless it has a report */
	int64		run_id;
	TsyncReport *report;
} Asked;

/* The caller's replicas that may be run, in the order in which they were added. */
static List *
enabled_replicas(bool force)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *items = NIL;

	tsync_query_latest("SELECT t.replica::oid::int8, c.relowner::int8, t.sync_group || ' ' || f.ftserver || ' ' || c.relowner"
					   " FROM tablesync.all_replicas t JOIN pg_class c ON c.oid = t.replica"
					   " LEFT JOIN pg_foreign_table f ON f.ftrelid = t.source"
					   " WHERE t.enabled AND t.home = tablesync.home()"
					   " ORDER BY t.added_at, t.replica", OIDOID, ObjectIdGetDatum(InvalidOid));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Oid			replica = (Oid) tsync_result_int64(i, 1);
		char	   *group = tsync_result_text(i, 3);
		Oid			owner = (Oid) tsync_result_int64(i, 2);
		MemoryContext spi = MemoryContextSwitchTo(caller);

		if (tsync_acts_for_owner(replica))
		{
			Asked	   *item = palloc0(sizeof(Asked));

			item->replica = replica;
			item->force = force;
			item->owner = owner;
			item->group = group ? pstrdup(group) : NULL;
			items = lappend(items, item);
		}
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return items;
}

static void
check_item(void *arg)
{
	Asked	   *item = arg;

	item->report = item->force ? NULL : tsync_report_backing_off(item->replica);
	if (item->report == NULL)
		item->report = tsync_check_runnable(item->replica);
	item->owner = tsync_check_owner(item->replica);
}

/* Will a replica be run with another one of its group? */
static bool
is_member(List *items, Asked *item)
{
	ListCell   *lc;

	foreach(lc, items)
	{
		Asked	   *other = lfirst(lc);

		if (item->group && other->group && other->listed && other->report == NULL && strcmp(item->group, other->group) == 0)
			return true;
	}
	return false;
}

/*
 * Find out which of the replicas without a report are to be run.  The others have
 * a report then, or will be run with one of these.  Returns whether there are any.
 */
static bool
check_items(List *items)
{
	bool		any = false;
	ListCell   *lc;

	foreach(lc, items)
	{
		Asked	   *item = lfirst(lc);
		ErrorData  *edata;

		if (item->report != NULL || is_member(items, item))
			continue;
		if (!tsync_try_inside(check_item, item, tsync_is_only_its_own, &edata))
			item->report = tsync_report_error(item->replica, edata);
		if (item->report == NULL)
		{
			item->listed = any = true;
			item->run_id = tsync_next_run_id();
		}
		else if (tsync_has_failed(item->report))
			tsync_raise_report(item->report, WARNING);
	}
	return any;
}

/* A list and its workers, as their caller sees them. */
typedef struct Served
{
	List	   *items;			/* those in the list, in its order */
	TsyncList  *list;
	dsm_segment *segment;
	List	   *workers;		/* handles */
} Served;

/* Make the list of an owner's replicas that have no report yet. */
static Served *
make_list(List *items, Oid owner, bool force)
{
	Served	   *served = palloc0(sizeof(Served));
	ListCell   *lc;
	int			i = 0;

	foreach(lc, items)
	{
		Asked	   *item = lfirst(lc);

		if (item->listed && item->report == NULL && item->owner == owner)
			served->items = lappend(served->items, item);
	}
	if (served->items == NIL)
		return NULL;
	served->segment = dsm_create(add_size(offsetof(TsyncList, runs),
										  mul_size(list_length(served->items), sizeof(served->list->runs[0]))), 0);
	served->list = dsm_segment_address(served->segment);
	pg_atomic_init_u32(&served->list->given_up, 0);
	served->list->caller = tsync_my_proc_number();
	served->list->server = -1;
	served->list->stays = false;
	served->list->force = force;
	served->list->count = list_length(served->items);
	foreach(lc, served->items)
	{
		Asked	   *item = lfirst(lc);

		served->list->runs[i].replica = item->replica;
		served->list->runs[i].run_id = item->run_id;
		pg_atomic_init_u32(&served->list->runs[i++].state, TSYNC_WAITING);
	}
	return served;
}

/* The caller gives up: cancel what runs, and begin nothing more. */
static void
give_up(int code, Datum arg)
{
	Served	   *served = (Served *) DatumGetPointer(arg);
	ListCell   *lc;

	pg_atomic_write_u32(&served->list->given_up, 1);
	foreach(lc, served->workers)
		tsync_cancel_worker(code, PointerGetDatum(lfirst(lc)));
}

/* Does none of the workers go on? */
static bool
have_all_ended(Served *served)
{
	ListCell   *lc;

	foreach(lc, served->workers)
	{
		pid_t		pid;

		if (GetBackgroundWorkerPid(lfirst(lc), &pid) != BGWH_STOPPED)
			return false;
	}
	return true;
}

/* The run of a replica has ended; if it was that of a group, those of the others have, too. */
static void
report_item(List *items, Asked *item)
{
	ListCell   *lc;
	ListCell   *lc2;

	item->report = tsync_report_ended(item->replica, item->run_id);
	foreach(lc, tsync_group_reports(item->replica, item->run_id))
	{
		TsyncReport *report = lfirst(lc);

		foreach(lc2, items)
			if (((Asked *) lfirst(lc2))->replica == DatumGetObjectId(report->values[0]))
				((Asked *) lfirst(lc2))->report = report;
	}
}

/* A replica that the worker has left out; an error says why, if it is not another run. */
static void
explain_omission(void *arg)
{
	Asked	   *item = arg;

	item->report = tsync_check_runnable(item->replica);
	if (item->report == NULL)
		item->report = tsync_report_already_running(item->replica, -1);
}

/* Report on the runs of a list that have ended, as soon as they have; "ended": the workers have, too. */
static void
report_ended(List *items, Served *served, bool ended)
{
	ListCell   *lc;

	foreach(lc, served->items)
	{
		Asked	   *item = lfirst(lc);
		TsyncListed state = pg_atomic_read_u32(&served->list->runs[foreach_current_index(lc)].state);
		ErrorData  *edata;

		if (item->report != NULL)
			continue;
		if (state == TSYNC_DONE || (state == TSYNC_TAKEN && ended))
			report_item(items, item);
		else if (state == TSYNC_OMITTED && !tsync_try_inside(explain_omission, item, tsync_is_only_its_own, &edata))
			item->report = tsync_report_error(item->replica, edata);
		if (item->report != NULL && tsync_has_failed(item->report))
			tsync_raise_report(item->report, WARNING);
	}
}

/* Wait until the workers of a list have ended. */
static void
wait_for_list(List *items, Served *served)
{
	PG_ENSURE_ERROR_CLEANUP(give_up, PointerGetDatum(served));
	{
		for (;;)
		{
			bool		ended = have_all_ended(served);

			report_ended(items, served, ended);
			if (ended)
				break;
			tsync_wait_for_process(TSYNC_UNTIL_WOKEN, WAIT_EVENT_BGWORKER_SHUTDOWN);
		}
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_up, PointerGetDatum(served));
}

/* A list that workers are being started for. */
typedef struct Launch
{
	Served	   *served;
	Oid			owner;
} Launch;

static void
launch_list(void *arg)
{
	Launch	   *launch = arg;
	Asked	   *first = linitial(launch->served->items);
	TsyncStart	start = {
		.database = MyDatabaseId,.owner = launch->owner,.list = dsm_segment_handle(launch->served->segment)
	};
	char	   *label = GetUserNameFromId(launch->owner, true);
	BackgroundWorkerHandle *handle = tsync_start_or_wait(&start, label, first->replica);

	/* one is enough, others make it faster */
	do
		launch->served->workers = lappend(launch->served->workers, handle);
	while (list_length(launch->served->workers) < Min(tsync_max_workers, list_length(launch->served->items)) &&
		   (handle = tsync_start_worker(&start, label)) != NULL);
}

/*
 * Run the replicas of an owner.  A worker that somebody ends takes one run with
 * it, not the others: they get other workers, unless none did even begin.
 */
static void
run_list(List *items, Oid owner, bool force)
{
	Served	   *served;
	bool		progress;
	ListCell   *lc;

	while ((served = make_list(items, owner, force)) != NULL)
	{
		Launch		launch = {.served = served,.owner = owner};
		ErrorData  *edata = NULL;

		if (tsync_try_inside(launch_list, &launch, tsync_is_only_its_own, &edata))
			wait_for_list(items, served);
		progress = false;
		foreach(lc, served->items)
			progress |= ((Asked *) lfirst(lc))->report != NULL;
		foreach(lc, served->items)
		{
			Asked	   *item = lfirst(lc);

			if (progress || item->report != NULL)
				continue;
			if (edata && edata->sqlerrcode == ERRCODE_INSUFFICIENT_RESOURCES)
				edata->message = tsync_no_worker_message(item->replica);
			item->report = edata ? tsync_report_error(item->replica, edata) : tsync_report_ended(item->replica, item->run_id);
			if (tsync_has_failed(item->report))
				tsync_raise_report(item->report, WARNING);
		}
		dsm_detach(served->segment);
	}
}

/* Put all replicas into the queue. */
static void
queue_items(List *items)
{
	ListCell   *lc;

	foreach(lc, items)
	{
		Asked	   *item = lfirst(lc);

		item->report = item->force ? NULL : tsync_report_backing_off(item->replica);
		if (item->report == NULL)
			item->report = tsync_try_enqueue(item->replica, item->force);
		if (tsync_has_failed(item->report))
			tsync_raise_report(item->report, WARNING);
	}
}

/* tablesync_run() without a replica: a row for each of the caller's, and a warning for each failure. */
void
tsync_run_all(ReturnSetInfo *result, bool wait, bool force)
{
	List	   *items = enabled_replicas(force);
	ListCell   *lc;

	if (!wait)
		queue_items(items);
	while (check_items(items))
		foreach(lc, items)
			run_list(items, ((Asked *) lfirst(lc))->owner, force);
	foreach(lc, items)
	{
		TsyncReport *report = ((Asked *) lfirst(lc))->report;

		tuplestore_putvalues(result->setResult, result->setDesc, report->values, report->nulls);
	}
	foreach(lc, items)
	{
		TsyncReport *report = ((Asked *) lfirst(lc))->report;

		if (report->no_worker)
			tsync_alert_no_worker(report);
	}
}
