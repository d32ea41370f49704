/*-------------------------------------------------------------------------
 *
 * start.c
 *	  Starting background workers, and whom they may connect as.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "query/query.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

/* A process of ours that has nothing to do looks more often than that whether somebody needs one. */
#define ROOM_POLL_MS 50
#define ROOM_ATTEMPTS 20

/* How often a session that waits for a process of ours looks whether an update of the extension waits for it. */
#define UPDATE_LOOK_MS 500

/*
 * Start a process of ours, which begins with an exported function and finds
 * "extra" in bgw_extra; NULL when the server has no slot for one.  Its end is
 * told to this process where that is wanted.
 */
BackgroundWorkerHandle *
tsync_start_process(const char *function, const char *type, const char *name,
					const void *extra, Size size, Datum argument, bool notify)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;

	Assert(size <= TSYNC_EXTRA_BYTES);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	/* whoever needs what it has not done starts another */
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = notify ? MyProcPid : 0;
	worker.bgw_main_arg = argument;
	strlcpy(worker.bgw_library_name, "tablesync", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, function, sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, type, sizeof(worker.bgw_type));
	strlcpy(worker.bgw_name, name, sizeof(worker.bgw_name));
	memcpy(worker.bgw_extra, tsync_version, TSYNC_VERSION_BYTES);
	memcpy(worker.bgw_extra + TSYNC_VERSION_BYTES, extra, size);
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
}

/*
 * In a process of ours: what it was started with.  Who has started it may have
 * an older library, and mean something else.
 */
void
tsync_read_start(void *extra, Size size)
{
	if (memcmp(MyBgworkerEntry->bgw_extra, tsync_version, TSYNC_VERSION_BYTES) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("process \"%s\" was started by a session with a library other than that of tablesync %s",
						MyBgworkerEntry->bgw_name, tsync_version),
				 errhint("That session has to connect again.")));
	memcpy(extra, MyBgworkerEntry->bgw_extra + TSYNC_VERSION_BYTES, size);
}

/* Likewise; where the server has no slot, one of ours that has nothing to do makes room in a moment.  In a transaction. */
BackgroundWorkerHandle *
tsync_start_process_soon(const char *function, const char *type, const char *name,
						 const void *extra, Size size, Datum argument, bool notify)
{
	BackgroundWorkerHandle *handle = tsync_start_process(function, type, name, extra, size, argument, notify);

	if (handle != NULL || max_worker_processes == 0)
		return handle;
	tsync_lock(TSYNC_LOCK_NEED, 0, ShareLock, false);
	for (int i = 0; i < ROOM_ATTEMPTS && handle == NULL; i++)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ROOM_POLL_MS, tsync_wait_event("TablesyncStart"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		handle = tsync_start_process(function, type, name, extra, size, argument, notify);
	}
	tsync_unlock(TSYNC_LOCK_NEED, 0, ShareLock, false);
	return handle;
}

/* Start a worker for a run, for several ("label" is their owner), or to help with one; NULL when the server has no slot for it. */
BackgroundWorkerHandle *
tsync_start_worker(TsyncStart *start, const char *label)
{
	char	   *name;

	StaticAssertStmt(sizeof(TsyncStart) <= TSYNC_EXTRA_BYTES, "TsyncStart is too large");
	if (start->serve)
		name = psprintf("tablesync runs of the queue for role %s", label);
	else if (start->list != 0)
		name = psprintf("tablesync runs for %s%s", OidIsValid(start->replica) ? "" : "role ", label);
	else
		name = psprintf("tablesync run " INT64_FORMAT "%s for %s", start->run_id,
						start->help != TSYNC_HELP_NONE ? " (helper)" : "", label);
	return tsync_start_process("tsync_worker_main", "tablesync run", name, start, sizeof(TsyncStart), (Datum) 0, true);
}

char *
tsync_no_worker_message(Oid relid)
{
	return psprintf("no background worker is available for replica %s", tsync_relation_label(relid));
}

/* No worker was to be had for a replica. */
void
tsync_refuse_no_worker(Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg_internal("%s", tsync_no_worker_message(relid)),
			 errhint(TSYNC_NO_WORKER_HINT)));
}

/* The owner of a table if a worker may connect as her, else InvalidOid. */
Oid
tsync_owner_who_may_log_in(Oid relid)
{
	Oid			owner = tsync_owner_of(relid);
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	bool		allowed;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	allowed = !TSYNC_NEEDS_LOGIN || ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	return allowed ? owner : InvalidOid;
}

/* The role that a worker for the replica must connect as; checks that we may ask for it. */
Oid
tsync_check_owner(Oid relid)
{
	Oid			owner;

	tsync_check_acts_for_owner(relid);
	owner = tsync_owner_who_may_log_in(relid);
	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("owner \"%s\" of replica %s is not permitted to log in",
						GetUserNameFromId(tsync_owner_of(relid), true), tsync_relation_label(relid)),
				 errdetail("The background worker connects as the replica's owner."),
				 errhint("Use ALTER ROLE .. LOGIN; the role needs no password.")));
	return owner;
}

/*
 * End a statement that waits for a process of ours, if the extension is being
 * updated for a while.  The update may wait for a lock of this transaction, the
 * process for the update: a circle of which the lock manager sees no more than
 * two parts.
 */
static void
make_way_for_update(void)
{
	static TimestampTz looked_at = 0;
	static bool updating = false;
	TimestampTz now = GetCurrentTimestamp();
	bool		before = updating && !TimestampDifferenceExceeds(looked_at, now, 4 * UPDATE_LOOK_MS);

	if (!TimestampDifferenceExceeds(looked_at, now, UPDATE_LOOK_MS))
		return;
	looked_at = now;
	updating = tsync_is_being_updated();
	if (before && updating)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("tablesync is being updated"),
				 errdetail("The update may have to wait until this transaction has ended."),
				 errhint("Nothing is lost. Connect again, and run again, once it is updated.")));
}

/* Wait, in a transaction, until a process of ours has something to tell, but no longer than some milliseconds. */
void
tsync_wait_for_process(long ms, uint32 wait_event)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, Min(ms, UPDATE_LOOK_MS), wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	make_way_for_update();
}
