/*-------------------------------------------------------------------------
 *
 * pace.c
 *	  Chunk sizing and protection of the source.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "compat.h"
#include "execute/execute.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "source/source.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

/* Rows per chunk until we know how fast the source is. */
#define DEFAULT_CHUNK_ROWS 500000	/* half a second at CAUTIOUS_ROWS_PER_SECOND */

/* Bounds for what we make of the speed later. */
#define MIN_TARGET_ROWS 10000
#define MAX_TARGET_ROWS 1000000
#define MAX_STATEMENT_ROWS 2500000	/* 0.16 s by blocks, measured */

/* What a source scans per second at least; for the choice of consistency. */
#define CAUTIOUS_ROWS_PER_SECOND 1000000.0	/* a tenth of what was measured */

/* A scan of one snapshot can't rest in between; it must then be short. */
#define MAX_BUSY_SECONDS 1.0	/* not measured */

/* Fewer rows, or less time, tell little about speed. */
#define MIN_RATED_ROWS 100000
#define MIN_RATED_USEC 50000

/* The source is slow when it takes so many times longer per row than usual. */
#define SLOW_FACTOR 4.0			/* more than the noise of repeated runs */

/* Weight of a run's speed in what is remembered of it. */
#define RATE_WEIGHT 0.2			/* nine tenths of a change have come through after ten runs */

/* A rest is never longer, whatever max_source_load says. */
#define MAX_REST_USEC (60 * USECS_PER_SEC)
#define MAX_BACKOFF_USEC (10 * USECS_PER_SEC)

/* Smallest chunk that a slow source is asked for. */
#define MIN_SLOW_ROWS 1000

static int
limited_timeout(void)
{
	int			timeout = Max(tsync_chunk_time, 50) * 4;

	return tsync_statement_timeout > 0 ? Min(timeout, tsync_statement_timeout) : timeout;
}

/* Rows of a scan by what they cost: buckets are asked for where chunks are likely to differ. */
double
tsync_weigh_rows(int64 quiet, int64 differing)
{
	return quiet + differing * TSYNC_BUCKET_COST;
}

/* Longest time for a statement in chunk mode, ms; a chunk that nothing can divide may take long. */
int
tsync_chunk_timeout(bool divisible)
{
	return divisible ? limited_timeout() : tsync_statement_timeout;
}

/* Longest time for a statement of a scan in one snapshot, ms. */
int
tsync_snapshot_timeout(void)
{
	return tsync_statement_timeout > 0 ? Min(tsync_max_snapshot_age, tsync_statement_timeout)
		: tsync_max_snapshot_age;
}

/*
 * The limit to connect with: what SCAN will ask for, most likely.  The columns
 * of the replica are not known yet.
 */
int
tsync_first_timeout(TsyncPace *pace, bool loaded, double weighted_rows)
{
	if (!loaded)
		return tsync_statement_timeout;
	return tsync_use_snapshot(pace, weighted_rows) ? tsync_snapshot_timeout()
		: limited_timeout();
}

static int64
rows_in(TsyncPace *pace, double milliseconds, int64 at_most)
{
	double		rows = pace->scan_rate * milliseconds / 1000;

	return (int64) Min(Max(rows, MIN_TARGET_ROWS), at_most);
}

/* Rows that a chunk should have: its buckets in tablesync.chunk_time. */
int64
tsync_chunk_target(TsyncPace *pace)
{
	if (pace->chunk_rows > 0)
		return pace->chunk_rows;
	if (pace->scan_rate <= 0)
		return DEFAULT_CHUNK_ROWS;
	return rows_in(pace, tsync_chunk_time / TSYNC_BUCKET_COST, MAX_TARGET_ROWS);
}

/* Rows that one statement should read in the order of blocks. */
int64
tsync_statement_rows(TsyncPace *pace)
{
	if (pace->chunk_rows > 0 || pace->scan_rate <= 0)
		return tsync_chunk_target(pace);
	return rows_in(pace, tsync_chunk_time, MAX_STATEMENT_ROWS);
}

/* Rows that a chunk should have right now. */
int64
tsync_current_target(TsyncPace *pace)
{
	int64		target = tsync_chunk_target(pace);

	return pace->chunk_target > 0 ? Min(pace->chunk_target, target) : target;
}

/*
 * Should a scan hold one snapshot at the source?  Its rows count as often as
 * their buckets, if these will be asked for, cost more than their digest.
 */
bool
tsync_use_snapshot(TsyncPace *pace, double weighted_rows)
{
	double		rate = pace->scan_rate > 0 ? pace->scan_rate : CAUTIOUS_ROWS_PER_SECOND;
	double		seconds = weighted_rows / rate;

	if (strcmp(pace->consistency, "auto") != 0)
		return strcmp(pace->consistency, "snapshot") == 0;
	return seconds * 1000 < tsync_max_snapshot_age &&
		(pace->max_source_load >= 1 || seconds < MAX_BUSY_SECONDS);
}

/* Stop a scan whose snapshot has become too old. */
void
tsync_snapshot_too_old(TsyncPace *pace)
{
	ereport(ERROR,
			(errcode(ERRCODE_SNAPSHOT_TOO_OLD),
			 errmsg("scan of the source of %s takes longer than tablesync.max_snapshot_age",
					pace->label),
			 errdetail("After %d ms the source must be free to vacuum again.", tsync_max_snapshot_age),
			 errhint("Increase tablesync.max_snapshot_age, or set consistency to auto or chunk.")));
}

/* Look at the age of a scan's snapshot before its next statement. */
void
tsync_check_snapshot_age(TsyncPace *pace)
{
	Assert(pace->snapshot_taken != 0);
	if (TimestampDifferenceExceeds(pace->snapshot_taken, GetCurrentTimestamp(), tsync_max_snapshot_age))
		tsync_snapshot_too_old(pace);
}

/* Note how long a digest of so many rows took, or buckets, which cost more. */
void
tsync_note_speed(TsyncPace *pace, int64 rows, double cost, int64 usec)
{
	pace->rated_rows += rows * cost;
	pace->rated_time += usec;
	if (pace->scan_rate > 0)
		pace->usual_time += rows * cost / pace->scan_rate * USECS_PER_SEC;
	pace->actual_time += usec;
}

/* Rows per second that the source digests, as far as known; 0 if it is not. */
double
tsync_learned_rate(TsyncPace *pace)
{
	double		usual = pace->scan_rate;
	double		rate;

	if (pace->rated_rows < MIN_RATED_ROWS || pace->rated_time <= 0)
		return usual;
	rate = pace->rated_rows / pace->rated_time * USECS_PER_SEC;
	return usual > 0 ? usual + (rate - usual) * RATE_WEIGHT : rate;
}

/* Ask the source for fewer rows at a time. */
void
tsync_source_is_slow(TsyncPace *pace, int64 target)
{
	pace->chunk_target = Max(target, MIN_SLOW_ROWS);
}

/*
 * Compare the speed of the last chunk with the usual one.  Returns how many
 * microseconds to stay away from a source that is busy or cold.
 */
static int64
judge_speed(TsyncPace *pace, int64 rows)
{
	double		factor = pace->usual_time > 0 ? pace->actual_time / pace->usual_time : 0;
	int64		backoff = 0;

	if (factor >= SLOW_FACTOR && pace->actual_time >= MIN_RATED_USEC)
	{
		pace->slowness = Max(pace->slowness, factor);
		tsync_source_is_slow(pace, (int64) (rows / factor));
		backoff = (int64) Min(pace->actual_time * (factor - 1), (double) MAX_BACKOFF_USEC);
	}
	else if (pace->chunk_target > 0)
		pace->chunk_target = pace->chunk_target * 2 >= tsync_chunk_target(pace) ? 0 : pace->chunk_target * 2;
	pace->usual_time = pace->actual_time = 0;
	return backoff;
}

/*
 * Leave the source alone for as long as max_source_load asks for after it has
 * been busy with us for so many microseconds, or longer if it is slow.
 */
void
tsync_rest(TsyncPace *pace, int64 busy_usec, int64 rows)
{
	double		wanted = busy_usec * (1.0 / pace->max_source_load - 1.0);
	int64		backoff = judge_speed(pace, rows);
	int64		rest = Max((int64) Min(wanted, (double) MAX_REST_USEC), backoff);
	TimestampTz until = GetCurrentTimestamp() + rest;
	long		left;

	Assert(!IsTransactionState());	/* the source would be idle in a transaction of ours */
	tsync_progress_throttled(rest, backoff > 0 ? pace->slowness : 0);
	while ((left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until)) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, tsync_wait_event("TablesyncRest"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Run a digest query at the source and learn how fast it is. */
TsyncDigest
tsync_digest_source(TsyncTable *table, TsyncPace *pace, char *sql)
{
	int64		before = table->waited;
	TsyncDigest digest = tsync_select_digest(table, TSYNC_SOURCE, sql);

	tsync_note_speed(pace, digest.rows, 1.0, table->waited - before);
	return digest;
}

/* A snapshot of the source begins to grow old. */
void
tsync_note_snapshot(TsyncPace *pace)
{
	pace->snapshot_taken = GetCurrentTimestamp();
}
