/*-------------------------------------------------------------------------
 *
 * run.h
 *	  One run, in a process of its own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_RUN_H
#define TABLESYNC_RUN_H

#include "tablesync.h"

#include "execute/execute.h"
#include "source/source.h"

/* One run, from start to end; lives in the worker's "tablesync run" context. */
struct TsyncRun
{
	int64		run_id;
	Oid			replica_oid;
	bool		force;			/* override the delete guard */
	bool		verify;			/* compare every column of every row */
	bool		repair;			/* and mend what differs */
	bool		skipped;		/* the source has not moved */
	TsyncReplica *replica;
	int			source_version; /* server_version_num */
	char	   *source_identity;	/* which files hold the source's rows, and its columns */
	char	   *new_shape;		/* of the source, NULL while it is the one known */
	char	  **unreadable;		/* its new columns that we may not read */
	int			nunreadable;
	bool		paused;			/* by this run, because of the new shape */
	double		source_estimate;	/* rows, by the source's catalog */
	int64		source_blocks;	/* likewise; 0 when unknown */
	bool		source_clustered;	/* rows lie about in the order of their keys */
	int64		source_horizon; /* its transaction counter, 0 if unknown */
	bool		went_back;		/* that was further in the last successful run */
	char	   *newest_version; /* seen at the source so far, NULL if none */
	bool		grouped;		/* its snapshot must be that of other runs, too */
	bool		snapshot;		/* one source snapshot for the whole scan */
	bool		snapshot_expired;	/* it took too long */
	TimestampTz snapshot_taken;
	char	   *counters;		/* of the source before the scan, NULL: don't matter */
	TimestampTz counters_at;
	int64		chunk_target;	/* rows, while the source is slow; 0: it is not */
	double		slowness;		/* most times longer per row than usual */
	List	   *chunks;			/* of TsyncChunk */
	TsyncStage *stage;
	TsyncRowSet memory;			/* what to remember of chunks after APPLY */
	int64		loaded_before;	/* by earlier runs */
	int64		loaded_rows;
	bool		load_compared;	/* "load_source" is what the source held after them */
	TsyncDigest load_source;
	int64		updated;
	int64		inserted;
	int64		deleted;
	int			drifted;		/* chunks that somebody else has changed */
	struct TsyncReading *reading;	/* what was being read of the source when an error came; NULL: nothing */
	bool		last_attempt;
	bool		unproved;		/* the attempt has ended with other rows here than were staged */
	char	   *unlike;			/* and these are they, NULL if it does not show here */
	bool		distrusted;		/* memory led to an APPLY that failed */
	bool		watched;		/* no write to the replica goes unnoticed */
	bool		rules_by_row;	/* a usual run sees a change of any column */
	List	   *remembered;		/* verify: tablesync.chunk as it is */
	bool		memory_usable;	/* verify: and we know what its digests are made of */
	bool		memory_by_row;	/* all columns */
	TimestampTz verified_at;	/* when the current scan began */
	TsyncRowSet touched_keys;	/* of rows that somebody has changed here */
	TsyncRowSet opaque;			/* columns without a hash of a chunk's source rows */
	int64		differences;	/* rows that verifying has found */
	int64		drifted_rows;	/* of them, those that are not just newer at the source */
	TsyncDigest source;
	TsyncDigest result;			/* of the replica after the run */
	int64		source_time;	/* microseconds spent waiting for the source */
	double		rated_rows;		/* digested at the source, to learn its speed */
	double		rated_time;		/* microseconds, likewise */
	double		actual_time;	/* of the current chunk, microseconds */
	double		usual_time;		/* what it would usually take; 0: unknown */
};

/* Does the run leave the replica as it is? */
static inline bool
tsync_reports_only(TsyncRun *run)
{
	return run->verify && !run->repair;
}

/* in worker.c */
extern PGDLLEXPORT void tsync_worker_main(Datum main_arg);

#endif							/* TABLESYNC_RUN_H */
