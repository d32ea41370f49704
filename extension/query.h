/*-------------------------------------------------------------------------
 *
 * query.h
 *	  Pieces of SQL text that query.c and query_digest.c share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_QUERY_H
#define TABLESYNC_QUERY_H

#include "tablesync.h"

extern const char *tsync_relation_sql(TsyncReplica *rep, TsyncSide side);
extern const char *tsync_unused_prefix(TsyncReplica *rep);
extern void tsync_append_columns(StringInfo buf, TsyncReplica *rep, const char *prefix);
extern void tsync_append_keys(StringInfo buf, TsyncReplica *rep, int first, int last, const char *prefix);
extern void tsync_append_comparison(StringInfo buf, TsyncColumn *column, const char *operator, const char *value);
extern void tsync_append_keys_equal(StringInfo buf, TsyncReplica *rep, const char *a, const char *b);
extern void tsync_append_range(StringInfo buf, TsyncReplica *rep, TsyncChunk *chunk, bool above_lower);
extern void tsync_append_key_list(StringInfo buf, TsyncReplica *rep, List *keys);
extern void tsync_append_column_hash(StringInfo buf, TsyncColumn *column, const char *seed,
									 const char *null_value, int version);
extern void tsync_append_fingerprint(StringInfo buf, TsyncReplica *rep, int version);

#endif							/* TABLESYNC_QUERY_H */
