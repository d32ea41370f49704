/*-------------------------------------------------------------------------
 *
 * tablesync.c
 *	  Module magic, configuration parameters, and the SQL that the library fits.
 *
 * A package brings a new library for all databases at once; ALTER EXTENSION
 * brings its SQL, to one database.  In between a session has a library that is
 * newer than the SQL, or, if it is older than the update, an older one.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include <limits.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/rel.h"

PG_MODULE_MAGIC;

/* The version in tablesync.control when this was built. */
const char	tsync_version[TSYNC_VERSION_BYTES] = TSYNC_VERSION;

int			tsync_chunk_time = 250;
int			tsync_max_snapshot_age = 30 * 1000;
int			tsync_statement_timeout = 5 * 60 * 1000;
int			tsync_lock_timeout = 10 * 1000;
int			tsync_retry_timeout = 60 * 1000;
int			tsync_keep_runs = 10000;
int			tsync_hang_after = 15 * 60 * 1000;
int			tsync_missed_after = 5 * 60 * 1000;
int			tsync_max_workers = 2;
char	   *tsync_alert_handler = NULL;
char	   *tsync_export_directory = NULL;
int			tsync_export_file_mode = 0600;
int			tsync_max_export_workers = 1;
int			tsync_keep_exports = 7 * 24 * 60;

void		_PG_init(void);

/* A path that does not depend on where the server was started. */
static bool
check_export_directory(char **newval, void **extra, GucSource source)
{
	if (*newval == NULL || **newval == '\0' || is_absolute_path(*newval))
		return true;
	GUC_check_errdetail("It must be an absolute path, or empty.");
	return false;
}

static const char *
show_export_file_mode(void)
{
	static char text[12];

	snprintf(text, sizeof(text), "%04o", tsync_export_file_mode);
	return text;
}

/* Where exports go, and how. */
static void
define_export_parameters(void)
{
	DefineCustomStringVariable("tablesync.export_directory",
							   "Directory that exports are written to.",
							   "An absolute path at the server; only the user of the server may write to it. Empty: there are no exports.",
							   &tsync_export_directory,
							   "", PGC_SIGHUP, 0, check_export_directory, NULL, NULL);
	DefineCustomIntVariable("tablesync.export_file_mode",
							"Permissions of the files of exports, as chmod has them.",
							NULL,
							&tsync_export_file_mode,
							0600, 0400, 0666,
							PGC_SIGHUP, 0, NULL, NULL, show_export_file_mode);
	DefineCustomIntVariable("tablesync.max_export_workers",
							"Number of processes that write exports of a database.",
							"They are besides those that run replicas.",
							&tsync_max_export_workers,
							1, 1, TSYNC_MAX_EXPORT_WORKERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.keep_exports",
							"Exports that have finished longer ago are forgotten, and their files removed.",
							"Workers do that when they write others. -1 keeps all.",
							&tsync_keep_exports,
							7 * 24 * 60, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
}

/*
 * Define the parameters.  A run is a process of its own: it sees what is set
 * in postgresql.conf, for the database or for the replica's owner.
 */
void
_PG_init(void)
{
	DefineCustomIntVariable("tablesync.chunk_time",
							"Time that one chunk should take at the source.",
							"Chunks are sized by it; where each has a snapshot of its own, no statement may take four times as long.",
							&tsync_chunk_time,
							250, 1, 60 * 1000,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.max_snapshot_age",
							"Longest time that a run may hold one snapshot at the source.",
							"Replicas with consistency \"auto\" whose scan is expected to take longer are read with a snapshot per chunk.",
							&tsync_max_snapshot_age,
							30 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.statement_timeout",
							"Longest time that one statement of a run may take at the source.",
							"0 disables the timeout.",
							&tsync_statement_timeout,
							5 * 60 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.lock_timeout",
							"Longest time that a run waits for a lock, at the source and on the replica.",
							"0 disables the timeout.",
							&tsync_lock_timeout,
							10 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.retry_timeout",
							"Longest time that a run goes on to ask a source that is interrupted.",
							"Counted since it has last answered. 0 lets the first interruption end the run.",
							&tsync_retry_timeout,
							60 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.keep_runs",
							"Number of runs per replica that stay in tablesync_runs.",
							"Runs delete what is older when they end, long histories now and then; the last success stays. -1 keeps all.",
							&tsync_keep_runs,
							10000, -1, INT_MAX,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.hang_after",
							"A run without progress for this time counts as hanging in tablesync_health().",
							"0 disables the check.",
							&tsync_hang_after,
							15 * 60 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.missed_after",
							"A scheduled start that is overdue for this time counts as missed in tablesync_health().",
							"0 disables the check.",
							&tsync_missed_after,
							5 * 60 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tablesync.max_workers",
							"Number of processes that serve the queue of runs in a database.",
							"Whoever waits for runs has a process of his own besides; loads may have helpers.",
							&tsync_max_workers,
							2, 1, 64,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("tablesync.alert_handler",
							   "Function that is called when an alert opens or closes.",
							   "Schema, name and argument type, such as \"public.page_us(jsonb)\"; it runs with the rights of the replica's owner.",
							   &tsync_alert_handler,
							   "", PGC_SUSET, 0, NULL, NULL, NULL);
	define_export_parameters();
	MarkGUCPrefixReserved("tablesync");
}

/* The version of the extension in this database, NULL if it is not there. */
char *
tsync_installed_version(void)
{
	Relation	extensions = table_open(ExtensionRelationId, AccessShareLock);
	char	   *version = NULL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("tablesync"));
	scan = systable_beginscan(extensions, ExtensionNameIndexId, true, NULL, 1, &key);
	if (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(extensions), &isnull);

		version = isnull ? NULL : TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(extensions, AccessShareLock);
	return version;
}

/* Is somebody updating the extension in this database, who has begun and not committed yet?  In a transaction. */
bool
tsync_is_being_updated(void)
{
	Oid			extension = get_extension_oid("tablesync", true);
	LOCKTAG		tag;
	int			holders;

	if (!OidIsValid(extension))
		return false;
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, 0);
	/* not those who wait for it: they hold nothing that others want */
	pfree(GetLockConflicts(&tag, ShareLock, &holders));
	return holders > 0;
}

/* Is the extension in this database of the library's version?  In a transaction. */
bool
tsync_fits_extension(void)
{
	char	   *version = tsync_installed_version();

	return version != NULL && strcmp(version, tsync_version) == 0;
}

/* An error unless it is; its scripts may be on the way from one version to another. */
void
tsync_check_version(void)
{
	if (creating_extension || tsync_fits_extension())
		return;
	get_extension_oid("tablesync", false);	/* is it there at all? */
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the library of tablesync %s does not fit the extension, which is of version %s",
					tsync_version, tsync_installed_version()),
			 errhint("Use ALTER EXTENSION tablesync UPDATE. Sessions that were there before have to connect again.")));
}

/*
 * Likewise, and so it stays until the transaction ends: scripts that update the
 * extension begin with its comment, which takes a lock that this one keeps away.
 * Not a lock on a table: those are taken in any order, and would end in deadlocks.
 */
void
tsync_hold_version(void)
{
	LockDatabaseObject(ExtensionRelationId, get_extension_oid("tablesync", false), 0, ShareLock);
	tsync_check_version();
}
