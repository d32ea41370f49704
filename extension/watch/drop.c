/*-------------------------------------------------------------------------
 *
 * drop.c
 *	  DROP EXTENSION ends the schedules, too.
 *
 * An event trigger for what was dropped would come too late: ours are dropped
 * with the extension, as are the functions that know of pg_cron.  And whether a
 * DROP SCHEMA .. CASCADE takes the extension along is not known before.  So
 * when something of the extension is dropped for the first time in a statement,
 * and all else of it is still there, the jobs are removed.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/dependency.h"
#include "catalog/objectaccess.h"
#include "commands/extension.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "fmgr.h"

PG_FUNCTION_INFO_V1(tsync_watch_drop);

/* May the statement that is being executed drop the extension, and has not begun to? */
static bool drop_expected = false;

static object_access_hook_type next_hook = NULL;

/* Before anything is dropped.  Members of the extension are dropped with it, or by its own scripts. */
static void
notice_drop(ObjectAccessType access, Oid class, Oid object, int column, void *arg)
{
	if (next_hook)
		next_hook(access, class, object, column, arg);
	if (access != OAT_DROP || !drop_expected || creating_extension ||
		getExtensionOfObject(class, object) != get_extension_oid("tablesync", false))
		return;
	drop_expected = false;
	SPI_connect();
	tsync_record("SELECT tablesync.end_jobs()", 0, NULL, NULL, NULL);
	SPI_finish();
}

/* tablesync.watch_drop(): a statement begins that may drop the extension. */
Datum
tsync_watch_drop(PG_FUNCTION_ARGS)
{
	static bool hooked = false;

	if (!hooked)
	{
		next_hook = object_access_hook;
		object_access_hook = notice_drop;
		hooked = true;
	}
	drop_expected = true;
	PG_RETURN_VOID();
}
