/*-------------------------------------------------------------------------
 *
 * apply.h
 *	  APPLY: one transaction, and what keeps a run from it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_APPLY_H
#define TABLESYNC_APPLY_H

#include "compat.h"
#include "tablesync.h"

#include "catalog/tables.h"
#include "source/source.h"
#include "verify/verify.h"

/* A run that brings more rows because of a new shape writes one to the feed, which says to start again. */
#define TSYNC_MAX_FED_REPAIRS 100000

/* What APPLY is to do for one run, and what comes of it. */
typedef struct TsyncApply
{
	TsyncTable *table;
	TsyncFingerprint fingerprint;	/* of the digests of rows here */
	bool		by_xmin;		/* the source's are by xmin, which rows here don't have */
	TsyncStage *stage;			/* rows that differ */
	List	   *chunks;
	TsyncRowSet *memory;		/* what to remember of chunks */
	bool		watched;		/* no write to the replica goes unnoticed */
	TsyncVerify *verify;
	TsyncRecord *record;		/* how the run has succeeded; its outcome is filled in here */
	TsyncMessage message;
	bool		last_attempt;
	bool		distrusted;		/* memory has led to an APPLY that failed */
	bool		unproved;		/* other rows are here than were staged */
	char	   *unlike;			/* and these are they, NULL if it does not show here */
} TsyncApply;

/* in apply.c */
extern bool tsync_apply(List *applies);
extern void tsync_end_without_apply(TsyncApply *apply);

/* in merge.c */
extern bool tsync_is_proved(TsyncApply *apply);
extern bool tsync_merge(TsyncApply *apply);

/* in replace.c */
extern TsyncDigest tsync_replace_rows(TsyncApply *apply);

/* in guard.c */
extern void tsync_check_guards(TsyncTable *table, TsyncSource *source, TsyncStage *stage, List *chunks,
							   double max_delete_fraction, bool force);
extern void tsync_check_older_shape(TsyncTable *table, TsyncSource *source, bool force);

/* in unproved.c */
extern void tsync_note_unlike(TsyncApply *apply);
pg_noreturn extern void tsync_give_up(List *applies, int attempts);

#endif							/* TABLESYNC_APPLY_H */
