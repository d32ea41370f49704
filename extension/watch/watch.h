/*-------------------------------------------------------------------------
 *
 * watch.h
 *	  What follows from the ends of runs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_WATCH_H
#define TABLESYNC_WATCH_H

#include "tablesync.h"

/* in alert.c */
extern void tsync_settle_run(int64 run_id);
extern PGDLLEXPORT void tsync_alert_main(Datum main_arg);

#endif							/* TABLESYNC_WATCH_H */
