/*-------------------------------------------------------------------------
 *
 * catalog.h
 *	  Reading and writing the tables of schema tablesync, for catalog.c and
 *	  catalog_chunk.c only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_CATALOG_H
#define TABLESYNC_CATALOG_H

#include "tablesync.h"

extern uint64 tsync_catalog_execute(const char *sql, int nargs, Oid *types, Datum *values,
									const char *nulls);
extern uint64 tsync_catalog_execute_oid(const char *sql, Oid oid);
extern Datum tsync_result_datum(uint64 row, int column, bool *isnull);
extern char *tsync_result_text(uint64 row, int column);
extern bool tsync_result_bool(uint64 row, int column);
extern int64 tsync_result_int64(uint64 row, int column);
extern double tsync_result_double(uint64 row, int column);
extern TimestampTz tsync_result_timestamp(uint64 row, int column);
extern char **tsync_result_texts(uint64 row, int column, int *ntexts);
extern Datum tsync_texts_datum(char **texts, int ntexts);

#endif							/* TABLESYNC_CATALOG_H */
