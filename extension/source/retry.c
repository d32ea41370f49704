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

/* Who ends our sessions so often in a row means it. */
#define MAX_TERMINATIONS 3

/* What has happened to the current run. */
static struct
{
	int64		count;			/* interruptions */
	char	   *reason;			/* of the last one; in TopMemoryContext */
	bool		answered;		/* the source has, in this run */
	/* since it has last answered: */
	int			in_a_row;
	int			cut_off;		/* of these, in the middle of an answer or a transaction */
	bool		conflict;		/* the last one is a standby's, with recovery */
	int			terminations;
	TimestampTz since;			/* of the first one */
} interrupted;

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

/* The source has answered: patience begins anew. */
void
tsync_source_goes_on(void)
{
	interrupted.answered = true;
	if (interrupted.in_a_row == 0)
		return;
	interrupted.in_a_row = interrupted.cut_off = interrupted.terminations = 0;
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

/* Does the text of a failed connection say that it may go well later?  There is no SQLSTATE. */
static bool
may_connect_later(ErrorData *edata)
{
	static const char *const passing[] = {
		"the database system is", "too many clients", "too many connections", "connection slots are"
	};
	static const char *const lasting[] = {"authentication", "pg_hba.conf", "does not exist", "SSL", "certificate"};

	for (int i = 0; edata->detail && i < lengthof(passing); i++)
		if (strstr(edata->detail, passing[i]))
			return true;
	for (int i = 0; edata->detail && i < lengthof(lasting); i++)
		if (strstr(edata->detail, lasting[i]))
			return false;
	return interrupted.answered;
}

/* Is an error an interruption of the source, which says nothing about what it was asked? */
static bool
is_interruption(ErrorData *edata)
{
	/* postgres_fdw's own: the same SQLSTATEs have other meanings here */
	if (edata->filename == NULL || strcmp(edata->filename, "connection.c") != 0)
		return false;
	switch (edata->sqlerrcode)
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
		(edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN && interrupted.terminations >= MAX_TERMINATIONS) ||
		(interrupted.since != 0 &&
		 TimestampDifferenceExceeds(interrupted.since, GetCurrentTimestamp(), tsync_retry_timeout));
}

/* Keep the first line of a message, without the severity that libpq has put before what it can't take apart. */
static void
note_reason(const char *message)
{
	static const char fatal[] = "FATAL:  ";

	if (interrupted.reason)
		pfree(interrupted.reason);
	if (strncmp(message, fatal, strlen(fatal)) == 0)
		message += strlen(fatal);
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
	if (!is_interruption(edata) || is_patience_over(edata))
		return false;
	note_reason(edata->message);
	interrupted.count++;
	interrupted.in_a_row++;
	if (interrupted.since == 0)
		interrupted.since = GetCurrentTimestamp();
	interrupted.conflict = edata->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE;
	interrupted.cut_off += interrupted.conflict || edata->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
		edata->sqlerrcode == ERRCODE_CONNECTION_FAILURE;
	interrupted.terminations += edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN;
	tsync_progress_interrupted(edata->sqlerrcode);
	return true;
}

/* Leave an interrupted source alone for some time, longer each time in a row. */
void
tsync_await_source_again(void)
{
	int			doublings = Min(interrupted.in_a_row - 1, 16);
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													Min(FIRST_WAIT_MS << doublings, LONGEST_WAIT_MS));
	long		left;

	Assert(!IsTransactionState());	/* what was interrupted has been undone */
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
	if (!is_interruption(edata))
		return;
	if (interrupted.in_a_row > 0)
		edata->detail = psprintf("%s%sThe source was asked again %d times before.", edata->detail ? edata->detail : "",
								 edata->detail ? "\n" : "", interrupted.in_a_row);
	if (edata->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE)
		edata->hint = pstrdup("The source is a hot standby whose primary removes rows that the statement still reads. Let its DBA set hot_standby_feedback = on there, or increase max_standby_streaming_delay; or increase tablesync.retry_timeout here.");
	else if (edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
		edata->hint = pstrdup("Somebody ends our sessions at the source, or it was shut down: ask its DBA, and run again.");
	else if (edata->hint == NULL)
		edata->hint = pstrdup("Run again when the source answers; tablesync.retry_timeout says how long a run goes on to ask it.");
}
