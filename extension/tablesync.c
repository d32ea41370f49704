/*-------------------------------------------------------------------------
 *
 * tablesync.c
 *	  Module magic and configuration parameters.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include <limits.h>

#include "fmgr.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

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

void		_PG_init(void);

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
	MarkGUCPrefixReserved("tablesync");
}
