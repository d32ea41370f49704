/*-------------------------------------------------------------------------
 *
 * execute.h
 *	  Transactions, statements, row sets.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_EXECUTE_H
#define TABLESYNC_EXECUTE_H

#include "compat.h"
#include "tablesync.h"

#include "access/xact.h"
#include "executor/tuptable.h"
#include "nodes/pg_list.h"
#include "query/query.h"
#include "tcop/dest.h"
#include "utils/tuplestore.h"

typedef struct _SPI_plan *SPIPlanPtr;

/* Rows that wait for APPLY; spills to disk beyond a few megabytes. */
typedef struct TsyncRowSet
{
	const char *name;			/* under which SQL of the run sees it */
	TupleDesc	tupdesc;
	Tuplestorestate *rows;
	int64		count;
} TsyncRowSet;

/* The differences a run has found and not yet applied. */
typedef struct TsyncStage
{
	TsyncRowSet inserted;		/* whole rows */
	TsyncRowSet updated;		/* whole rows */
	TsyncRowSet deleted;		/* keys */
	TsyncRowSet reappeared;		/* keys in "deleted" that CONFIRM found again */
	int64		outside;		/* keys in "deleted" whose rows are still at the source, outside of a new filter */
} TsyncStage;

/* How much a stage held. */
typedef struct TsyncStageMark
{
	int64		inserted;
	int64		updated;
	int64		deleted;
} TsyncStageMark;

/* What those who decode the WAL are told of a transaction of a run. */
typedef struct TsyncMessage
{
	int64		run_id;
	int64		group_run_id;	/* the first run of the group; 0: it has none */
	const char *replica;
	const char *kind;			/* load, sync or verify */
	bool		complete;		/* the transaction records that the run has succeeded */
	TimestampTz source_instant; /* what was committed there before has been read; 0: unknown */
	int64		inserted;		/* by this transaction; -1: not known before */
	int64		updated;
	int64		deleted;
} TsyncMessage;

/* Does something with a row of a query's result. */
typedef void (*TsyncRowFunction) (TupleTableSlot *slot, void *arg);

/* Does something with a group of keys, a list of arrays of nkeys texts. */
typedef void (*TsyncKeysFunction) (TsyncTable *table, List *keys, void *arg);

/* in execute.c */
extern void tsync_begin(void);
extern void tsync_begin_in(MemoryContext context);
extern void tsync_begin_change(MemoryContext context);
extern void tsync_commit(void);
extern void tsync_abort(void);
extern uint64 tsync_select(TsyncTable *table, TsyncSide side, const char *sql, DestReceiver *dest);
extern uint64 tsync_select_each(TsyncTable *table, TsyncSide side, const char *sql, TupleDesc expected,
								TsyncRowFunction function, void *arg);
extern uint64 tsync_select_at_most(TsyncTable *table, TsyncSide side, const char *sql, TsyncRowSet *into,
								   uint64 limit);
extern uint64 tsync_select_into(TsyncTable *table, TsyncSide side, const char *sql, TsyncRowSet *into);
extern void tsync_avoid_large_joins(void);
extern bool tsync_try(void (*function) (void *), void *arg, bool (*judge) (ErrorData *, void *), ErrorData **error);
extern bool tsync_try_inside(void (*function) (void *), void *arg, bool (*judge) (ErrorData *, void *),
							 ErrorData **error);
extern bool tsync_is_uniqueness_violation(ErrorData *edata, void *arg);
pg_noreturn extern void tsync_refuse_answer(TsyncTable *table, const char *answer);
extern TsyncDigest tsync_select_digest(TsyncTable *table, TsyncSide side, const char *sql);
extern TsyncDigest tsync_modify(TsyncTable *table, const char *sql);

/* in hold.c */
extern void tsync_hold_early(TsyncTable *table);
extern void tsync_hold(TsyncTable *table, TsyncSide side);
extern void tsync_prepare_executor(void);
extern void tsync_hold_nothing(void);
extern void tsync_check_desc(TupleDesc expected, TupleDesc actual);

/* in rowset.c */
extern void tsync_rowset_init(TsyncRowSet *set, const char *name, TupleDesc tupdesc);
extern void tsync_rowset_clear(TsyncRowSet *set);
extern void tsync_rowset_truncate(TsyncRowSet *set, int64 count);
extern void tsync_rowset_append(TsyncRowSet *set, TsyncRowSet *from);
extern void tsync_rowsets_end(void);
extern void tsync_rowset_register(TsyncRowSet *set);
extern void tsync_rowset_start(TsyncRowSet *set);
extern bool tsync_rowset_next(TsyncRowSet *set, TupleTableSlot *slot);
extern Datum tsync_integer_datum(Oid type, int64 value);
extern char *tsync_value_to_text(Oid type, Datum value);
extern char **tsync_key_of_slot(TsyncTable *table, TupleTableSlot *slot);
extern char **tsync_key_of_row(TsyncTable *table, TupleTableSlot *slot);
extern int64 tsync_slot_integer(TupleTableSlot *slot, int attnum);
extern uint64 tsync_slot_sum(TupleTableSlot *slot, int attnum);
extern void tsync_for_keys(TsyncTable *table, TsyncSide side, TsyncRowSet *keys, TsyncKeysFunction function, void *arg);

/* in ship.c */
extern void tsync_prepare_planner(void);
extern SPIPlanPtr tsync_prepare_for_source(const char *sql);
extern void tsync_check_ships(const char *sql);

/* in spi.c */
extern uint64 tsync_catalog_execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls);
extern uint64 tsync_catalog_execute_oid(const char *sql, Oid oid);
extern uint64 tsync_record(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls);
extern uint64 tsync_record_oid(const char *sql, Oid oid);
extern int	tsync_result_column(const char *name);
extern char *tsync_result_text(uint64 row, int column);
extern Datum tsync_result_datum(uint64 row, int column, bool *isnull);
extern bool tsync_result_bool(uint64 row, int column);
extern int64 tsync_result_int64(uint64 row, int column);
extern double tsync_result_double(uint64 row, int column);
extern TimestampTz tsync_result_timestamp(uint64 row, int column);
extern char **tsync_result_texts(uint64 row, int column, int *ntexts);
extern Datum tsync_texts_datum(char **texts, int ntexts);

/* in message.c */
extern void tsync_emit_message(const TsyncMessage *message);

/* in stage.c */
extern TsyncStage *tsync_stage_create(TsyncTable *table);
extern void tsync_stage_clear(TsyncStage *stage);
extern void tsync_register_stage(TsyncStage *stage);
extern void tsync_unregister_stage(TsyncStage *stage);
extern int64 tsync_staged_rows(TsyncStage *stage);
extern TsyncStageMark tsync_stage_mark(TsyncStage *stage);
extern void tsync_stage_go_back(TsyncStage *stage, TsyncStageMark mark);

/* in stray_write.c */
extern void tsync_begin_own_write(Oid replica);
extern void tsync_end_own_write(void);

#endif							/* TABLESYNC_EXECUTE_H */
