/*-------------------------------------------------------------------------
 *
 * source.h
 *	  All that is asked of a source besides its differences, and how gently.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_SOURCE_H
#define TABLESYNC_SOURCE_H

#include "tablesync.h"

#include "execute/execute.h"

/* Buckets cost the source so many times as much as a digest of the same rows. */
#define TSYNC_BUCKET_COST 2.2

/* Nor is a digest of all columns as cheap as one of a version column. */
#define TSYNC_ROW_COST 3.0

/* Bytes of rows without bound (TsyncReplica.wide) fetched by one statement. */
#define TSYNC_GROUP_BYTES (8 * 1024 * 1024)

/* Rows of the source that a statement reads: those of a list of keys, of a range, or a page. */
typedef struct TsyncReading
{
	TsyncRun   *run;
	List	   *keys;			/* arrays of nkeys texts */
	TsyncChunk *range;			/* where there are no keys */
	char	  **after;			/* where there is neither: NULL is the beginning */
	int64		limit;
	ErrorContextCallback callback;
} TsyncReading;

/* in bad_value.c */
extern void tsync_forget_reading(TsyncRun *run);
extern void tsync_start_reading(TsyncReading *reading, TsyncRun *run);
extern void tsync_end_reading(TsyncReading *reading);
extern void tsync_explain_error(List *runs, ErrorData *edata);

/* in connection.c */
extern void tsync_restrict_source_session(const char *label, int timeout);
extern void tsync_limit_source(TsyncRun *run, int timeout);
extern void tsync_disconnect_source(TsyncRun *run);

/* in fetch.c */
extern void tsync_fetch_rows(TsyncRun *run, TsyncRowSet *keys, TsyncRowSet *into);

/* in identity.c */
extern void tsync_read_source(TsyncRun *run);
extern char *tsync_source_identity(TsyncRun *run);
extern void tsync_read_layout(TsyncRun *run);
extern void tsync_read_source_time(TsyncRun *run);
extern bool tsync_source_unmoved(TsyncRun *run);

/* in pace.c */
extern int	tsync_chunk_timeout(TsyncReplica *replica);
extern int	tsync_snapshot_timeout(void);
extern int	tsync_first_timeout(TsyncReplica *replica);
extern int64 tsync_chunk_target(TsyncReplica *replica);
extern int64 tsync_statement_rows(TsyncReplica *replica);
extern int64 tsync_current_target(TsyncRun *run);
extern bool tsync_use_snapshot(TsyncReplica *replica, double weighted_rows);
extern void tsync_snapshot_too_old(TsyncRun *run);
extern void tsync_check_snapshot_age(TsyncRun *run);
extern void tsync_note_speed(TsyncRun *run, int64 rows, double cost, int64 usec);
extern double tsync_learned_rate(TsyncRun *run);
extern void tsync_source_is_slow(TsyncRun *run, int64 target);
extern void tsync_rest(TsyncRun *run, int64 busy_usec, int64 rows);
extern TsyncDigest tsync_digest_source(TsyncRun *run, char *sql);

#endif							/* TABLESYNC_SOURCE_H */
