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

#endif							/* TABLESYNC_CHECK_H */
