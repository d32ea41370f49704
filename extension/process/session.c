/*-------------------------------------------------------------------------
 *
 * session.c
 *	  What every worker of ours is as a session, and how long it waits for a source.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include <limits.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "process/process.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

/* The source's own timeout comes first, if it is alive. */
#define SOURCE_GRACE_MS 1000

/* How often the timer looks whether the source has said something, while it is waited for. */
#define SOURCE_TICKS 8			/* silence is noticed at most an eighth too late */

static volatile sig_atomic_t cancel_requested = false;
static volatile sig_atomic_t end_requested = false;
static volatile sig_atomic_t recording = false; /* how runs have ended: not to be cancelled */
static volatile sig_atomic_t source_silent = false;
static volatile sig_atomic_t quiet_ticks = 0;	/* since the source has said something */
static volatile sig_atomic_t source_spoke = false;	/* since it was asked */
static TimeoutId source_timeout;
static int	source_limit = 0;	/* ms; 0: the source keeps it */

/* Is this session one of ours, and not one that calls a user's function? */
static bool session_is_ours = false;
static bool session_is_read_only = false;

/* The role whose replicas this process runs, if it is not for one of them only; NULL otherwise. */
const char *tsync_session_role = NULL;

/* Has the current transaction asked the source for anything? */
bool		tsync_source_asked = false;

/*
 * Microseconds that this process has waited for sources besides the statements
 * of its runs: for connections, catalogs, and ends of transactions.
 */
int64		tsync_waited_elsewhere = 0;

/* SIGINT cancels the run. */
static void
handle_cancel(SIGNAL_ARGS)
{
	int			save_errno = errno;

	cancel_requested = true;
	/* else the record would be cancelled, and the run look crashed */
	if (!recording)
	{
		InterruptPending = true;
		QueryCancelPending = true;
	}
	SetLatch(MyLatch);
	errno = save_errno;
}

/*
 * SIGTERM cancels it too, instead of ending the process in the middle of it:
 * the run can still be recorded as cancelled.  No other run comes after it.
 */
static void
handle_end(SIGNAL_ARGS)
{
	end_requested = true;
	handle_cancel(postgres_signal_arg);
}

/* Let signals do to this process what they should do to a run. */
void
tsync_watch_signals(void)
{
	pqsignal(SIGTERM, handle_end);
	pqsignal(SIGINT, handle_cancel);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
}

/* Has somebody cancelled this process? */
bool
tsync_is_cancelled(void)
{
	return cancel_requested;
}

/* Is this process to end after its run? */
bool
tsync_is_to_end(void)
{
	return end_requested;
}

/* From here on nothing cancels this process any more: how its runs have ended is recorded. */
void
tsync_begin_recording(void)
{
	recording = true;			/* before the flag is cleared: another cancel may come at any time */
	QueryCancelPending = false;
}

/* What comes now may be cancelled again, and ends when it waits too long for a lock: that is a cancel, too. */
void
tsync_interrupt_recording(void)
{
	recording = false;
}

/* Follow a change of the configuration, if there was one.  Outside of a transaction. */
void
tsync_follow_configuration(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * The run of this process is over, and another one may come.  A cancel is meant
 * for the run whose lock this process has, and whoever cancels looks at that
 * lock, and signals, while we can't go on (TSYNC_LOCK_TURN).  So what has
 * arrived by now was for the run that is over.  Outside of a transaction.
 */
void
tsync_next_turn(void)
{
	Assert(recording);			/* nothing cancels the wait */
	tsync_lock(TSYNC_LOCK_TURN, MyProcPid, ExclusiveLock, true);
	tsync_unlock(TSYNC_LOCK_TURN, MyProcPid, ExclusiveLock, true);
	cancel_requested = end_requested;
	source_silent = false;
	QueryCancelPending = false;
	recording = false;
	tsync_follow_configuration();
}

/*
 * What code of the owner, a trigger for instance, has left in the session is
 * nothing to the next run: DISCARD ALL, but for plans, and for settings, which
 * every transaction resets.  In a transaction.
 */
void
tsync_forget_leftovers(void)
{
	PortalHashTableDeleteAll();
	SetPGVariable("session_authorization", NIL, false);
	DropAllPreparedStatements();
	Async_UnlistenAll();
	ResetTempTableNamespace();
	ResetSequenceCaches();
}

/* The source has said nothing for another tick: too many in a row, and it is given up. */
static void
handle_source_timeout(void)
{
	if (source_silent || ++quiet_ticks < SOURCE_TICKS)
		return;
	/* where the limit is ours, it is the source's timeout that has come */
	source_silent = (source_limit <= 0);
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/* Keep the time limit of statements at the source from here, in ms; 0: the source does it. */
void
tsync_limit_here(int timeout)
{
	source_limit = Max(timeout, 0);
}

/* How long to wait for a word of the source, in ms. */
static int
source_patience(void)
{
	if (source_limit > 0)
		return source_limit;
	return Min(tsync_statement_timeout, INT_MAX - SOURCE_GRACE_MS) + SOURCE_GRACE_MS;
}

/*
 * The source is being asked: give up when it says nothing.  Its statement
 * timeout does not help against a backend that is frozen there.
 */
void
tsync_await_source(void)
{
	int			tick = source_patience() / SOURCE_TICKS + 1;

	/* for the commit, which has to wait for the source as well, and for APPLY, which must not have asked */
	tsync_source_asked = true;
	source_spoke = false;
	quiet_ticks = 0;
	if (session_is_ours && tsync_statement_timeout > 0)
		enable_timeout_every(source_timeout, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), tick), tick);
}

/*
 * A part of its answer is here.  Each portion that postgres_fdw fetches is a
 * statement of its own at the source, with a time limit of its own.  Called for
 * every row, so it does not touch the timer.
 */
void
tsync_source_has_spoken(void)
{
	source_spoke = true;
	quiet_ticks = 0;
}

/* It has answered, or will not be waited for any more. */
void
tsync_source_answered(void)
{
	if (session_is_ours && tsync_statement_timeout > 0)
		disable_timeout(source_timeout, false);
}

/* Has the source said nothing for longer than it may? */
bool
tsync_source_is_silent(void)
{
	return source_silent;
}

/* A cancel that a silent source has caused is named by its cause. */
void
tsync_name_silence(ErrorData *edata)
{
	if (!source_silent || edata->sqlerrcode != ERRCODE_QUERY_CANCELED)
		return;
	edata->sqlerrcode = ERRCODE_CONNECTION_FAILURE;
	edata->message = psprintf(source_spoke ? "the source has stopped in the middle of an answer, and said nothing for %d ms"
							  : "the source did not answer within %d ms", source_patience());
	edata->detail = pstrdup("It has not cancelled the statement either, which it does earlier unless its process is frozen or the connection lost.");
	edata->hint = pstrdup("Look for our session in pg_stat_activity there, by its application_name, which begins with \"tablesync/\", and at the network between.");
}

/* Was it the source that cancelled a statement which took too long there? */
bool
tsync_source_timed_out(ErrorData *edata)
{
	/* one SQLSTATE for three: who has cancelled decides */
	return edata->sqlerrcode == ERRCODE_QUERY_CANCELED && !cancel_requested && !source_silent;
}

/*
 * Values must look the same here and at the source, whatever the settings; and
 * code of the replica's owner, a trigger for instance, may have left settings
 * behind in an earlier transaction.  Outside of a transaction.
 */
void
tsync_pin_session(void)
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

	Assert(!IsTransactionState());	/* settings of a transaction would be undone with it */
	if (!session_is_ours)
		return;
	ResetAllOptions();
	/* RESET ALL leaves the role alone */
	SetConfigOption("role", "none", PGC_USERSET, PGC_S_SESSION);
	/* overriding what the owner has set for role or database */
	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	snprintf(lock_timeout, sizeof(lock_timeout), "%d", tsync_lock_timeout);
	SetConfigOption("lock_timeout", lock_timeout, PGC_SUSET, PGC_S_OVERRIDE);
	if (session_is_read_only)
		SetConfigOption("default_transaction_read_only", "on", PGC_SUSET, PGC_S_OVERRIDE);
}

/* This process runs whatever replicas a role has to be run, over the same connections to sources. */
void
tsync_serve_role(Oid role)
{
	StartTransactionCommand();
	tsync_session_role = MemoryContextStrdup(TopMemoryContext, GetUserNameFromId(role, false));
	CommitTransactionCommand();
}

/* Make this the session of a worker. */
void
tsync_prepare_session(bool read_only)
{
	session_is_ours = true;
	session_is_read_only = read_only;
	tsync_pin_session();
	source_timeout = RegisterTimeout(USER_TIMEOUT, handle_source_timeout);
}

/* Is this session one of a worker, and not of somebody who calls a function? */
bool
tsync_is_worker(void)
{
	return session_is_ours;
}
