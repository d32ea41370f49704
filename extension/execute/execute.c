/*-------------------------------------------------------------------------
 *
 * execute.c
 *	  Transactions of the worker, and statements inside them.
 *
 * postgres_fdw opens the remote transaction with the first statement for the
 * source and ends it with the local one, so tsync_begin() and tsync_commit()
 * also bound what the source sees.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "optimizer/plancat.h"
#include "pgstat.h"
#include "process/process.h"
#include "query/query.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* The memory context in which the transaction was begun; NULL outside of transactions of ours. */
static MemoryContext outer_context = NULL;

/* Begin a transaction in which SPI is ready; what is allocated lives until it ends. */
void
tsync_begin(void)
{
	Assert(!IsTransactionState());
	outer_context = CurrentMemoryContext;
	CHECK_FOR_INTERRUPTS();
	tsync_source_asked = false;
	/* a statement that failed before it was executed, while it was planned say, has left that to the next one */
	tsync_hold_nothing();
	/* before the transaction begins: an abort would undo the settings */
	tsync_pin_session();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
}

/* Likewise; what is allocated lives in a context of the caller. */
void
tsync_begin_in(MemoryContext context)
{
	tsync_begin();
	MemoryContextSwitchTo(context);
}

/*
 * Likewise a transaction that changes a replica, and what is known of it: the
 * extension is not updated meanwhile, and an error if it was before.  The context
 * may be NULL: that of the transaction.
 */
void
tsync_begin_change(MemoryContext context)
{
	tsync_begin();
	tsync_hold_version();
	if (context != NULL)
		MemoryContextSwitchTo(context);
}

/* Commit, and go back to the memory context in which the transaction was begun. */
void
tsync_commit(void)
{
	MemoryContext outer = outer_context;
	TimestampTz started = GetCurrentTimestamp();

	Assert(IsTransactionState() && outer != NULL);
	SPI_finish();
	PopActiveSnapshot();
	if (tsync_source_asked)
		tsync_await_source();	/* its COMMIT can hang, too */
	CommitTransactionCommand();
	if (tsync_source_asked)
	{
		tsync_source_answered();
		tsync_waited_elsewhere += GetCurrentTimestamp() - started;
	}
	outer_context = NULL;
	MemoryContextSwitchTo(outer);
	/* a worker has no main loop that would do it */
	pgstat_report_stat(false);
}

/*
 * Undo the transaction, if there is one; the source is not waited for any more.
 * A PG_CATCH begins with it: that gives memory back, which the report of the error
 * may need.  Errors on top of errors that are not reported yet end in a PANIC.
 * The memory context is for the caller to see to, who knows where the error was
 * caught: that in which the transaction was begun may be gone.
 */
void
tsync_abort(void)
{
	/* cancels what runs at the source; AbortCurrentTransaction() would end no more than a subtransaction */
	AbortOutOfAnyTransaction();
	if (tsync_source_asked)
		tsync_source_answered();
	outer_context = NULL;
}

/*
 * Run a query at one side and send its rows to a receiver, or to
 * SPI_tuptable when there is none.  Returns the number of rows.
 */
uint64
tsync_select(TsyncTable *table, TsyncSide side, const char *sql, DestReceiver *dest)
{
	MemoryContext caller = CurrentMemoryContext;

	/* who has no receiver wants one row: more would pile up here */
	SPIExecuteOptions options = {.must_return_tuples = true,.dest = dest,.tcount = dest ? 0 : 2};
	TimestampTz started = GetCurrentTimestamp();
	SPIPlanPtr	plan;
	uint64		processed;
	int			rc;

	Assert(IsTransactionState());
	CHECK_FOR_INTERRUPTS();
	/* before the text is planned: until the commit nobody can rename what it is about */
	tsync_hold(table, side);
	if (side == TSYNC_SOURCE)
		plan = tsync_prepare_for_source(sql);
	else if ((plan = SPI_prepare_cursor(sql, 0, NULL, CURSOR_OPT_PARALLEL_OK)) == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));

	if (side == TSYNC_SOURCE)
		tsync_await_source();
	rc = SPI_execute_plan_extended(plan, &options);
	tsync_source_answered();
	tsync_hold_nothing();
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "unexpected SPI result %s", SPI_result_code_string(rc));
	processed = SPI_processed;
	SPI_freeplan(plan);
	MemoryContextSwitchTo(caller);	/* SPI leaves its own current */
	if (side == TSYNC_SOURCE && table != NULL)
		table->waited += GetCurrentTimestamp() - started;
	return processed;
}

/*
 * A receiver that hands every row to a function.  Rows are used as what the
 * code is prepared for, so that is compared with what comes: of each statement,
 * because a foreign table may have got other columns since the last one.
 */
typedef struct RowReceiver
{
	DestReceiver pub;
	TsyncRowFunction function;
	void	   *arg;
	MemoryContext context;		/* of the caller; the executor's own ends with the query */
	TupleDesc	expected;		/* NULL: the function looks at the types itself */
	uint64		limit;			/* more rows are an error; 0: there is none */
	uint64		count;
} RowReceiver;

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *receiver = (RowReceiver *) self;
	MemoryContext executor = MemoryContextSwitchTo(receiver->context);

	tsync_source_has_spoken();	/* harmless where it is the replica's row: nobody waits for the source then */
	/* rows that nobody has asked for must not fill a row set, which means the disk */
	if (receiver->limit > 0 && receiver->count++ >= receiver->limit)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the source has returned more than the " UINT64_FORMAT " rows that it was asked for", receiver->limit),
				 errhint("The table was probably rewritten while it was read, or its key is not unique. Run again.")));
	receiver->function(slot, receiver->arg);
	MemoryContextSwitchTo(executor);
	return true;
}

static void
receive_startup(DestReceiver *self, int operation, TupleDesc tupdesc)
{
	RowReceiver *receiver = (RowReceiver *) self;

	if (receiver->expected)
		tsync_check_desc(receiver->expected, tupdesc);
}

static void
receive_nothing(DestReceiver *self)
{
}

static RowReceiver
make_receiver(TupleDesc expected, TsyncRowFunction function, void *arg)
{
	return (RowReceiver)
	{
		.pub = {receive_row, receive_startup, receive_nothing, receive_nothing, DestTuplestore},
			.function = function,
			.arg = arg,
			.context = CurrentMemoryContext,
			.expected = expected
	};
}

/*
 * Run a query at one side and call a function for each row, in the caller's
 * memory context.  "expected" are the columns that the function is prepared
 * for; NULL if it looks at their types itself.
 */
uint64
tsync_select_each(TsyncTable *table, TsyncSide side, const char *sql, TupleDesc expected,
				  TsyncRowFunction function, void *arg)
{
	RowReceiver receiver = make_receiver(expected, function, arg);

	return tsync_select(table, side, sql, &receiver.pub);
}

static void
append_row(TupleTableSlot *slot, void *arg)
{
	TsyncRowSet *set = arg;

	tuplestore_puttupleslot(set->rows, slot);
}

/* Run a query at one side and append its rows to a row set; an error if they are more than a limit. */
uint64
tsync_select_at_most(TsyncTable *table, TsyncSide side, const char *sql, TsyncRowSet *into, uint64 limit)
{
	RowReceiver receiver = make_receiver(into->tupdesc, append_row, into);
	uint64		processed;

	receiver.limit = limit;
	processed = tsync_select(table, side, sql, &receiver.pub);
	into->count += processed;
	return processed;
}

/* Run a query at one side and append its rows to a row set. */
uint64
tsync_select_into(TsyncTable *table, TsyncSide side, const char *sql, TsyncRowSet *into)
{
	return tsync_select_at_most(table, side, sql, into, 0);
}

/*
 * Look rows without bound up one by one, up to the end of the transaction or of
 * the nest level of settings: a hash or merge join would keep whole rows in memory.
 */
void
tsync_avoid_large_joins(void)
{
	static const char *const joins[] = {"enable_hashjoin", "enable_mergejoin"};

	for (int i = 0; i < lengthof(joins); i++)
		(void) set_config_option(joins[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * Call a function that has transactions of its own.  If it ends with an error
 * that "judge" expects, returns false, with the transaction that failed aborted
 * and a copy of the error in the caller's context in "error" (NULL: nobody wants
 * it); any other error goes on.
 */
bool
tsync_try(void (*function) (void *), void *arg, bool (*judge) (ErrorData *, void *), ErrorData **error)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		function(arg);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		/* first, also where the error goes on: each of us needs memory for a copy */
		tsync_abort();
		MemoryContextSwitchTo(caller);
		edata = CopyErrorData();
		if (!judge(edata, arg))
			PG_RE_THROW();
		FlushErrorState();
		if (error)
			*error = edata;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return done;
}

/*
 * As tsync_try(), inside of a transaction: the function runs in a subtransaction,
 * which is undone if it fails.
 */
bool
tsync_try_inside(void (*function) (void *), void *arg, bool (*judge) (ErrorData *, void *), ErrorData **error)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	Assert(IsTransactionState());
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		function(arg);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(caller);
		edata = CopyErrorData();
		if (!judge(edata, arg))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (error)
			*error = edata;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	/* the end of a subtransaction leaves that of the transaction current, which need not be the caller's */
	CurrentResourceOwner = owner;
	return done;
}

/* Did two rows get in each other's way? */
bool
tsync_is_uniqueness_violation(ErrorData *edata, void *arg)
{
	return edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ||
		edata->sqlerrcode == ERRCODE_EXCLUSION_VIOLATION;
}

/* The source has answered with what no PostgreSQL would. */
void
tsync_refuse_answer(TsyncTable *table, const char *answer)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_ERROR),
			 errmsg("the source of %s gave an answer that makes no sense", table ? table->label : "a replica"),
			 errdetail("It was %s.", answer),
			 errhint("See whether the foreign table points to the table that it should: SELECT * FROM tablesync_check(%s);",
					 table ? quote_literal_cstr(table->label) : "")));
}

/* Run a query that returns one (rows, sum of fingerprints). */
TsyncDigest
tsync_select_digest(TsyncTable *table, TsyncSide side, const char *sql)
{
	TsyncDigest digest = {0, 0};
	char	   *sum;
	bool		isnull;

	if (tsync_select(table, side, sql, NULL) != 1 || SPI_gettypeid(SPI_tuptable->tupdesc, 1) != INT8OID)
		elog(ERROR, "digest query did not return one row");
	/* counts are added up, and used as sizes: nonsense of a source ends here */
	digest.rows = DatumGetInt64(tsync_result_datum(0, 1, &isnull));
	if (isnull || digest.rows < 0)
		tsync_refuse_answer(table, "a number of rows that is negative or NULL");
	sum = tsync_result_text(0, 2);
	if (sum != NULL)			/* of no rows it is NULL */
		digest.sum = tsync_sum_to_uint64(sum);
	SPI_freetuptable(SPI_tuptable);
	return digest;
}

/*
 * Run an INSERT, UPDATE or DELETE on the replica; returns the digest of the
 * rows affected.
 */
TsyncDigest
tsync_modify(TsyncTable *table, const char *sql)
{
	TsyncDigest changed;

	/* or the replica's own trigger would note it, and the next run distrust what it remembers */
	tsync_begin_own_write(table->relid);
	changed = tsync_select_digest(table, TSYNC_REPLICA, sql);
	/* a replica without the trigger would leave the claim to somebody else's statement */
	tsync_end_own_write();
	return changed;
}
