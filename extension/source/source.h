/*-------------------------------------------------------------------------
 *
 * source.h
 *	  All that is asked of a source besides its differences, and how gently.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_SOURCE_H
#define TABLESYNC_SOURCE_H

#include "compat.h"
#include "tablesync.h"

#include "execute/execute.h"

/* Buckets cost the source so many times as much as a digest of the same rows. */
#define TSYNC_BUCKET_COST 2.2	/* measured: 1.7 to 2.4, by key and by blocks */

/* Nor is a digest of all columns as cheap as one of a version column. */
#define TSYNC_ROW_COST 3.0		/* 1.4 measured for five columns of 100 bytes, more for wider rows */

/* Bytes of rows without bound (TsyncReplica.wide) fetched by one statement. */
#define TSYNC_GROUP_BYTES (8 * 1024 * 1024) /* not measured; a worker has 64 MB, and postgres_fdw holds several forms
											 * of a row */

/* Rows that a source must have to be worth a bulk load. */
#define TSYNC_MIN_BULK_ROWS 100000

/* What the source is, before its rows are read. */
typedef struct TsyncSource
{
	int			version;		/* server_version_num */
	char	   *identity;		/* which files hold its rows, and its columns */
	bool		divided;		/* into partitions */
	char	   *look_key;		/* of a look that has found nothing to do, NULL: it has */
	bool		whole;			/* a look takes more catalogs than usual */
	bool		as_known;		/* all of this is what the last run has left in our tables */
	char	   *new_shape;		/* NULL while it is the one known */
	char	  **unreadable;		/* its new columns that we may not read */
	int			nunreadable;
	double		estimate;		/* rows, by its catalog */
	int64		blocks;			/* likewise; 0 when unknown */
	bool		clustered;		/* rows lie about in the order of their keys */
	int64		shared_buffers; /* blocks that the server keeps in memory, 0: unknown */
	int64		changes;		/* rows it has ever changed, by its counters; -1: unknown */
	char	   *epoch;			/* since when transaction ids mean what they do, NULL: unknown */
	int64		oldest_xid;		/* seen by a session there, 0: unknown */
	int64		newest_xid;		/* in use, as far as it is known; 0: it is not */
	int64		seen_xid;		/* older transactions have ended before rows are read */
	int64		horizon;		/* its transaction counter, 0 if unknown */
	TimestampTz instant;		/* by its clock: what was committed there before is read; 0: unknown */
	bool		went_back;		/* that was further in the last successful run */
	bool		stands_still;	/* a standby, and it was just there */
	char	   *newest_version; /* seen there so far, NULL if none */
	char	   *counters;		/* before the scan, NULL: don't matter */
	TimestampTz counters_at;
} TsyncSource;

/* How fast a source is, and how gently it is to be asked. */
typedef struct TsyncPace
{
	const char *label;			/* of the replica, for messages */
	const char *consistency;	/* snapshot, chunk or auto */
	int			chunk_rows;		/* 0: by speed */
	double		max_source_load;	/* share of the time that it may be busy with us */
	double		scan_rate;		/* rows digested per second lately, 0: unknown */
	double		rated_rows;		/* digested in this run, to learn its speed */
	double		rated_time;		/* microseconds, likewise */
	double		actual_time;	/* of the current chunk, microseconds */
	double		usual_time;		/* what it would usually take; 0: unknown */
	int64		chunk_target;	/* rows, while the source is slow; 0: it is not */
	double		slowness;		/* most times longer per row than usual */
	TimestampTz snapshot_taken;
} TsyncPace;

/* Rows of the source that a statement reads: those of a list of keys, of a range, or a page. */
typedef struct TsyncReading
{
	TsyncTable *table;
	List	   *keys;			/* arrays of nkeys texts */
	TsyncRange *range;			/* where there are no keys */
	char	  **after;			/* where there is neither: NULL is the beginning */
	int64		limit;
	ErrorContextCallback callback;
} TsyncReading;

/* in bad_value.c */
extern void tsync_explain_error(ErrorData *edata);

/* in connection.c */
extern void tsync_restrict_source_session(const char *label, int timeout);
extern Oid	tsync_current_server(void);
extern bool tsync_refuses_options(ErrorData *edata, void *arg);
extern bool tsync_name_statement_pooling(ErrorData *edata);
extern bool tsync_name_refused_connection(ErrorData *edata);
extern bool tsync_connects_without_options(ErrorData *edata);
extern void tsync_forgo_options(Oid server);
extern void tsync_mark_session(void (*function) (void *), void *arg);
extern void tsync_limit_source(TsyncTable *table, int timeout);
extern void tsync_name_timeout(ErrorData *edata);

/* in fetch.c */
extern void tsync_fetch_rows(TsyncTable *table, TsyncRowSet *keys, TsyncRowSet *into);

/* in identity.c */
extern void tsync_read_source(TsyncTable *table, TsyncSource *source, bool horizon);
extern char *tsync_source_identity(TsyncTable *table, TsyncSource *source);
extern bool tsync_source_went_back(TsyncTable *table, TsyncSource *source);
extern void tsync_read_time(TsyncTable *table, TsyncSource *source);
extern void tsync_read_layout(TsyncTable *table, TsyncSource *source);
extern bool tsync_has_files(TsyncSource *source);
extern void tsync_check_view_key(TsyncTable *table);
extern void tsync_read_counters(TsyncTable *table, TsyncSource *source);
extern bool tsync_source_unmoved(TsyncTable *table, TsyncSource *source, TsyncMessage message, int64 waited);

/* in retry.c */
extern void tsync_forget_interruptions(void);
extern int64 tsync_interruptions(const char **reason);
extern void tsync_source_goes_on(void);
extern bool tsync_is_cut_off_again(void);
extern bool tsync_outlives_source(void);
extern bool tsync_is_interruption(ErrorData *edata, void *arg);
extern void tsync_await_source_again(void);
extern void tsync_insist(void (*function) (void *), void *arg);
extern void tsync_name_interruption(ErrorData *edata);

/* in server.c */
extern void tsync_tie_to_server(Oid table, Oid server, Oid extension);

/* in xmin.c */
extern bool tsync_lives_anew(TsyncSource *source, const char *epoch);
extern void tsync_prepare_xmin(TsyncTable *table);
extern TsyncHorizon tsync_find_horizon(TsyncSource *source, int64 first, const char *epoch);
extern bool tsync_find_xmin(TsyncTable *table);

/* in pace.c */
extern double tsync_weigh_rows(int64 quiet, int64 differing);
extern int	tsync_chunk_timeout(bool divisible);
extern int	tsync_snapshot_timeout(void);
extern int	tsync_first_timeout(TsyncPace *pace, bool loaded, double weighted_rows);
extern int64 tsync_chunk_target(TsyncPace *pace);
extern int64 tsync_statement_rows(TsyncPace *pace);
extern int64 tsync_current_target(TsyncPace *pace);
extern bool tsync_use_snapshot(TsyncPace *pace, double weighted_rows);
pg_noreturn extern void tsync_snapshot_too_old(TsyncPace *pace);
extern void tsync_check_snapshot_age(TsyncPace *pace);
extern void tsync_note_speed(TsyncPace *pace, int64 rows, double cost, int64 usec);
extern double tsync_learned_rate(TsyncPace *pace);
extern void tsync_source_is_slow(TsyncPace *pace, int64 target);
extern void tsync_rest(TsyncPace *pace, int64 busy_usec, int64 rows);
extern TsyncDigest tsync_digest_source(TsyncTable *table, TsyncPace *pace, char *sql);
extern void tsync_note_snapshot(TsyncPace *pace);

/* in page.c */
extern void tsync_read_page(TsyncTable *table, char **after, bool keys_only, int64 limit, TsyncRowSet *into);
extern char **tsync_find_bound_here(TsyncTable *table, TsyncRange *range, int64 rows);
extern char **tsync_find_bound(TsyncTable *table, TsyncRange *range, int64 rows);
extern char **tsync_last_key(TsyncTable *table, TsyncRowSet *page, bool keys_only);

/* in reading.c */
extern bool tsync_is_about_value(int sqlerrcode);
extern void tsync_forget_reading(void);
extern void tsync_start_reading(TsyncReading *reading, TsyncTable *table);
extern void tsync_end_reading(TsyncReading *reading);
extern TsyncReading *tsync_take_reading(void);

#endif							/* TABLESYNC_SOURCE_H */
