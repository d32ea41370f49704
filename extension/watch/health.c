/*-------------------------------------------------------------------------
 *
 * health.c
 *	  How long tablesync_health() waits before it complains.
 *
 * In C only because a session sees parameters of ours, with their units, once
 * the library is loaded: calling these functions loads it.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "fmgr.h"
#include "utils/timestamp.h"

TSYNC_FUNCTION_INFO_V1(tsync_is_hanging);
TSYNC_FUNCTION_INFO_V1(tsync_is_missed);

/* Is a moment longer ago than a number of milliseconds?  0 is patient for ever. */
static bool
is_too_long_ago(TimestampTz moment, int limit)
{
	return limit > 0 && TimestampDifferenceExceeds(moment, GetCurrentTimestamp(), limit);
}

/* tablesync.is_hanging(progressed_at) */
Datum
tsync_is_hanging(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(is_too_long_ago(PG_GETARG_TIMESTAMPTZ(0), tsync_hang_after));
}

/* tablesync.is_missed(expected) */
Datum
tsync_is_missed(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(is_too_long_ago(PG_GETARG_TIMESTAMPTZ(0), tsync_missed_after));
}
