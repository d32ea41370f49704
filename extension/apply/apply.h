/*-------------------------------------------------------------------------
 *
 * apply.h
 *	  APPLY: one transaction, and what keeps a run from it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_APPLY_H
#define TABLESYNC_APPLY_H

#include "tablesync.h"

#include "execute/execute.h"

/* in apply.c */
extern bool tsync_apply(List *runs);
extern bool tsync_report(TsyncRun *run);

/* in guard.c */
extern void tsync_check_guards(TsyncRun *run);

/* in merge.c */
extern void tsync_avoid_large_joins(void);
extern bool tsync_is_proved(TsyncRun *run);
extern bool tsync_apply_run(TsyncRun *run);

/* in unproved.c */
extern char *tsync_before_triggers(TsyncRun *run, char **statements);
extern void tsync_note_unlike(TsyncRun *run);
extern void tsync_give_up(List *runs, int attempts) pg_attribute_noreturn();

#endif							/* TABLESYNC_APPLY_H */
