/*-------------------------------------------------------------------------
 *
 * retry.c
 *	  A source that is interrupted is asked again.
 *
 * A hot standby cancels what reads rows that its primary removes, sessions end
 * when a server restarts or is promoted, slots run out, networks fail.  None of
 * that says anything about the rows.  So what was asked is asked again, after
 * some time, for as long as tablesync.retry_timeout since the source has last
 * answered; whoever asks sees to it that nothing that was done is done again.
 *
 * Interruptions are counted for the run of this process, and what they were is
 * kept for its record.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "compat.h"
#include "execute/execute.h"
#include "miscadmin.h"
#include "process/process.h"
#include "source/source.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* How long to wait before the source is asked again: at first, and at most. */
#define FIRST_WAIT_MS 100
#define LONGEST_WAIT_MS 5000

/* Who ends so many sessions of a run means it. */
#define MAX_TERMINATIONS 3

/* What has interrupted a run. */
typedef struct Interruptions
{
	int64		count;			/* interruptions */
	int			terminations;	/* of them, by somebody at the source */
	char	   *reason;			/* of the last one; in TopMemoryContext */
	bool		connected;		/* the source has let us in, in this run */
	/* since it has last answered what was to be answered: */
	int			in_a_row;
	int			cut_off;		/* of these, in the middle of an answer or a transaction */
	bool		conflict;		/* the last one is a standby's, with recovery */
	TimestampTz since;			/* of the first one */
} Interruptions;

static Interruptions interrupted;	/* of the current run */

/* A run begins. */
void
tsync_forget_interruptions(void)
{
	if (interrupted.reason)
		pfree(interrupted.reason);
	memset(&interrupted, 0, sizeof(interrupted));
}

/* How often the run was interrupted, and why the last time (NULL: never). */
int64
tsync_interruptions(const char **reason)
{
	*reason = interrupted.reason;
	return interrupted.count;
}

/* The source has answered what it was asked: patience begins anew. */
void
tsync_source_goes_on(void)
{
	interrupted.connected = true;
	if (interrupted.in_a_row == 0)
		return;
	interrupted.in_a_row = interrupted.cut_off = 0;
	interrupted.since = 0;
	tsync_progress_interrupted(0);
}

/* Is what we ask cut off again and again?  What takes less time may get through. */
bool
tsync_is_cut_off_again(void)
{
	return interrupted.cut_off > 1;
}

/* Can't a transaction live at the source for as long as this one would have to? */
bool
tsync_outlives_source(void)
{
	return interrupted.conflict || interrupted.cut_off > 1;
}

/*
 * Does the text of a failed connection say that it may go well later?  There is no
 * SQLSTATE.  "SSL" says nothing: a restart may look like "SSL SYSCALL error: EOF
 * detected".
 */
static bool
may_connect_later(ErrorData *edata)
{
	static const char *const passing[] = {
		"the database system is", "too many clients", "too many connections", "connection slots are"
	};
	static const char *const lasting[] = {
		"authentication", "password", "pg_hba.conf", "does not exist", "support SSL", "certificate", "private key", "alert "
	};

	for (int i = 0; edata->detail && i < lengthof(passing); i++)
		if (strstr(edata->detail, passing[i]))
			return true;
	for (int i = 0; edata->detail && i < lengthof(lasting); i++)
		if (strstr(edata->detail, lasting[i]))
			return false;
	return interrupted.connected;
}

/*
 * What has happened to the source, as an SQLSTATE of its.  Where a session ends
 * with an error, postgres_fdw may know no more of that than its text, which is
 * in the source's language.
 */
static int
cause_of(ErrorData *edata)
{
	if (edata->sqlerrcode == ERRCODE_CONNECTION_FAILURE && strstr(edata->message, "administrator command"))
		return ERRCODE_ADMIN_SHUTDOWN;
	if (edata->sqlerrcode == ERRCODE_CONNECTION_FAILURE && strstr(edata->message, "conflict with recovery"))
		return ERRCODE_T_R_SERIALIZATION_FAILURE;
	return edata->sqlerrcode;
}

/* Is an error an interruption of the source, which says nothing about what it was asked? */
static bool
is_interruption(ErrorData *edata)
{
	/* postgres_fdw's own: the same SQLSTATEs have other meanings here */
	if (edata->filename == NULL || strcmp(edata->filename, "connection.c") != 0 ||
		strstr(edata->message, "statement pooling mode"))
		return false;
	switch (cause_of(edata))
	{
		case ERRCODE_T_R_SERIALIZATION_FAILURE:
		case ERRCODE_T_R_DEADLOCK_DETECTED:
		case ERRCODE_ADMIN_SHUTDOWN:
		case ERRCODE_CRASH_SHUTDOWN:
		case ERRCODE_CANNOT_CONNECT_NOW:
		case ERRCODE_TOO_MANY_CONNECTIONS:
		case ERRCODE_CONNECTION_FAILURE:
			return true;
		case ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION:
			return may_connect_later(edata);
		default:
			return false;
	}
}

/* Has the source not answered for longer than it is to be asked again? */
static bool
is_patience_over(ErrorData *edata)
{
	return tsync_retry_timeout == 0 || tsync_source_is_silent() ||
		(cause_of(edata) == ERRCODE_ADMIN_SHUTDOWN && interrupted.terminations >= MAX_TERMINATIONS) ||
		(interrupted.since != 0 &&
		 TimestampDifferenceExceeds(interrupted.since, GetCurrentTimestamp(), tsync_retry_timeout));
}

/*
 * Keep the first line of an error, without the severity that libpq puts before
 * what it can't take apart; why there is no connection only the detail tells.
 */
static void
note_reason(ErrorData *edata)
{
	static const char fatal[] = "FATAL:  ";
	char	   *message = edata->message;

	if (strncmp(message, fatal, strlen(fatal)) == 0)
		message += strlen(fatal);
	if (edata->sqlerrcode == ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION && edata->detail)
		message = psprintf("%s: %s", message, edata->detail);
	if (interrupted.reason)
		pfree(interrupted.reason);
	interrupted.reason = MemoryContextStrdup(TopMemoryContext, message);
	interrupted.reason[strcspn(interrupted.reason, "\n")] = '\0';
}

/*
 * A judge for tsync_try(): is an error an interruption after which the source is
 * to be asked again?  If so, it counts, and tsync_await_source_again() comes next.
 */
bool
tsync_is_interruption(ErrorData *edata, void *arg)
{
	int			cause = cause_of(edata);

	if (tsync_connects_without_options(edata))
		return true;			/* at once, and no reason to say anything */
	if (!is_interruption(edata) || is_patience_over(edata))
		return false;
	note_reason(edata);
	interrupted.count++;
	interrupted.in_a_row++;
	if (interrupted.since == 0)
		interrupted.since = GetCurrentTimestamp();
	interrupted.connected |= cause != ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
	interrupted.conflict = cause == ERRCODE_T_R_SERIALIZATION_FAILURE;
	interrupted.cut_off += interrupted.conflict || cause == ERRCODE_T_R_DEADLOCK_DETECTED || cause == ERRCODE_CONNECTION_FAILURE;
	interrupted.terminations += cause == ERRCODE_ADMIN_SHUTDOWN;
	tsync_progress_interrupted(cause);
	return true;
}

/* Leave an interrupted source alone for some time, longer each time in a row. */
void
tsync_await_source_again(void)
{
	/* none in a row: a connection without options comes at once */
	int			doublings = Max(Min(interrupted.in_a_row - 1, 16), 0);
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													Min(FIRST_WAIT_MS << doublings, LONGEST_WAIT_MS));
	long		left;

	Assert(!IsTransactionState());	/* what was interrupted has been undone */
	if (interrupted.in_a_row == 0)
		return;
	ereport(LOG,
			(errmsg("the source is asked again because of: %s", interrupted.reason)));
	while ((left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until)) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, tsync_wait_event("TablesyncSourceRetry"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Call a function that asks the source in transactions of its own, again as often as it is interrupted. */
void
tsync_insist(void (*function) (void *), void *arg)
{
	while (!tsync_try(function, arg, tsync_is_interruption, NULL))
		tsync_await_source_again();
	tsync_source_goes_on();
}

/* Say of an interruption that has ended a run after all what helps against it. */
void
tsync_name_interruption(ErrorData *edata)
{
	bool		named = tsync_name_statement_pooling(edata) || tsync_name_refused_connection(edata);

	if (!is_interruption(edata))
		return;
	if (interrupted.in_a_row > 0)
		edata->detail = psprintf("%s%sThe source was asked %d times more before.", edata->detail ? edata->detail : "",
								 edata->detail ? "\n" : "", interrupted.in_a_row);
	if (named)
		return;
	if (cause_of(edata) == ERRCODE_T_R_SERIALIZATION_FAILURE)
		edata->hint = pstrdup("The source is a hot standby whose primary removes rows that the statement still reads. Let its DBA set hot_standby_feedback = on there, or increase max_standby_streaming_delay; or increase tablesync.retry_timeout here.");
	else if (cause_of(edata) == ERRCODE_ADMIN_SHUTDOWN)
		edata->hint = pstrdup("Somebody ends our sessions at the source, or it was shut down: ask its DBA, and run again.");
	else if (edata->hint == NULL)
		edata->hint = pstrdup("Run again when the source answers; tablesync.retry_timeout says how long a run goes on to ask it.");
}
