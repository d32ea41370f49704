/*-------------------------------------------------------------------------
 *
 * export.h
 *	  Windows of replicas, written to files.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_EXPORT_H
#define TABLESYNC_EXPORT_H

#include "tablesync.h"

/* What a worker for exports is started with; travels in BackgroundWorker.bgw_extra. */
typedef struct TsyncExportStart
{
	Oid			database;
	Oid			role;
} TsyncExportStart;

/* An export that a worker has taken. */
typedef struct TsyncExport
{
	int64		export_id;
	Oid			replica;
	char	   *file;			/* its name in the directory */
	bool		json;
	int			attempt;
	uint64		rows;
	char	   *note;			/* what is to be known about the rows; NULL: nothing */
} TsyncExport;

/* in file.c */
extern char *tsync_export_path(const char *file);
extern char *tsync_export_uri(const char *file);
extern char *tsync_create_part(TsyncExport *export);
extern void tsync_keep_part(TsyncExport *export, const char *part);
extern void tsync_remove_file(const char *path);
extern void tsync_sweep_parts(void);

/* in copy.c */
extern void tsync_copy_export(TsyncExport *export, const char *part);

/* in serve.c */
extern int	tsync_start_exports(void);

/* in worker.c */
extern PGDLLEXPORT void tsync_export_main(Datum main_arg);

#endif							/* TABLESYNC_EXPORT_H */
