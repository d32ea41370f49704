/*-------------------------------------------------------------------------
 *
 * standby.c
 *	  What can't be done on a hot standby of the target.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "process/process.h"
#include "utils/builtins.h"

TSYNC_FUNCTION_INFO_V1(tsync_check_primary_server);

/* An error on a standby, before a statement of ours that nobody has typed is refused there. */
void
tsync_check_primary(const char *function)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot use %s on a standby", function),
				 errhint("Use it on the primary server. It works here after a promotion.")));
}

/* tablesync.check_primary(function) */
Datum
tsync_check_primary_server(PG_FUNCTION_ARGS)
{
	tsync_check_primary(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}
