/*-------------------------------------------------------------------------
 *
 * check.h
 *	  tablesync_check().
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_CHECK_H
#define TABLESYNC_CHECK_H

#include "tablesync.h"

/* in check.c */
extern PGDLLEXPORT void tsync_check_main(Datum main_arg);

/* in publication.c */
extern void tsync_name_publication(ErrorData *edata, Oid relid);

#endif							/* TABLESYNC_CHECK_H */
