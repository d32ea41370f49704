/*-------------------------------------------------------------------------
 *
 * tablesync.h
 *	  Parameters and error codes; all that every file may know.
 *
 * Structs and functions are in the header of the folder that they belong to,
 * such as query/query.h.  Folders depend only on those of lower floors (the
 * list is in the Makefile, and "make layers" checks it).
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_H
#define TABLESYNC_H

#include "postgres.h"

#include "fmgr.h"

/* Rows, and columns of each, that a message names. */
#define TSYNC_MAX_SHOWN 10

/*
 * Errors with an alert of their own; tablesync.alert_kind() in alert.sql lists
 * them all.  PostgreSQL leaves classes that begin with T to others.
 */
#define TSYNC_ERRCODE_DELETE_GUARD		MAKE_SQLSTATE('T', 'S', '0', '0', '1')
#define TSYNC_ERRCODE_SOURCE_WENT_BACK	MAKE_SQLSTATE('T', 'S', '0', '0', '2')
#define TSYNC_ERRCODE_SCHEMA_CHANGED	MAKE_SQLSTATE('T', 'S', '0', '0', '3')
#define TSYNC_ERRCODE_BY_VALUE			MAKE_SQLSTATE('T', 'S', '0', '0', '4')	/* never leaves SCAN */

/*
 * What SQL calls.  A session looks such a function up before it calls it, or
 * creates it: there the library refuses the SQL of another version, whose
 * arguments may be others.  What must go on meanwhile is exempt
 * (PG_FUNCTION_INFO_V1).
 */
#define TSYNC_FUNCTION_INFO_V1(name) \
extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
extern PGDLLEXPORT const Pg_finfo_record *pg_finfo_##name(void); \
const Pg_finfo_record * \
pg_finfo_##name(void) \
{ \
	static const Pg_finfo_record info = {1}; \
	tsync_check_version(); \
	return &info; \
} \
extern int	no_such_variable

/* in tablesync.c */
#define TSYNC_VERSION_BYTES 16
extern const char tsync_version[TSYNC_VERSION_BYTES];
extern char *tsync_installed_version(void);
extern bool tsync_is_being_updated(void);
extern bool tsync_fits_extension(void);
extern void tsync_check_version(void);
extern void tsync_hold_version(void);
extern int	tsync_chunk_time;	/* ms */
extern int	tsync_max_snapshot_age; /* ms */
extern int	tsync_statement_timeout;	/* ms */
extern int	tsync_lock_timeout; /* ms */
extern int	tsync_retry_timeout;	/* ms */
extern int	tsync_keep_runs;	/* runs per replica, -1 for all */
extern int	tsync_hang_after;	/* ms */
extern int	tsync_missed_after; /* ms */
extern int	tsync_max_workers;
extern char *tsync_alert_handler;
#define TSYNC_MAX_EXPORT_WORKERS 16
extern char *tsync_export_directory;	/* "" if there is none */
extern int	tsync_export_file_mode;
extern int	tsync_max_export_workers;
extern int	tsync_keep_exports; /* minutes, -1 for ever */

#endif							/* TABLESYNC_H */
