/*-------------------------------------------------------------------------
 *
 * check.c
 *	  tablesync_check(): what a run would meet, seen by a worker.
 *
 * A session of the caller is not what a run is: another role, another user
 * mapping, another planner, a session at the source without restrictions.  So
 * the checks that need the source are made where a run would be made, in a
 * worker that is connected as the replica's owner.  Its transaction is
 * read-only; the answer comes back as JSON through a queue in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "catalog/tables.h"
#include "check/check.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "process/process.h"
#include "query/query.h"
#include "source/source.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

/* An answer may be longer: the queue is drained while it is sent. */
#define QUEUE_BYTES 16384

/* A source that takes longer to answer a few catalog queries is not well. */
#define CHECK_TIMEOUT_MS (60 * 1000)

/* What a worker is started with; travels in BackgroundWorker.bgw_extra. */
typedef struct CheckStart
{
	Oid			database;
	Oid			owner;
	Oid			replica;
} CheckStart;

/* Is this process such a worker? */
static bool checking = false;

TSYNC_FUNCTION_INFO_V1(tsync_check_in_worker);
TSYNC_FUNCTION_INFO_V1(tsync_ask_source);
TSYNC_FUNCTION_INFO_V1(tsync_check_digest);
TSYNC_FUNCTION_INFO_V1(tsync_worker_slots);

static BackgroundWorkerHandle *
start_check_worker(CheckStart *start, dsm_handle queue)
{
	BackgroundWorkerHandle *handle;

	StaticAssertStmt(sizeof(CheckStart) <= TSYNC_EXTRA_BYTES, "CheckStart is too large");
	handle = tsync_start_process_soon("tsync_check_main", "tablesync check",
									  psprintf("tablesync check of %s", tsync_relation_label(start->replica)),
									  start, sizeof(*start), UInt32GetDatum(queue), true);
	if (handle == NULL)
		tsync_refuse_no_worker(start->replica);
	return handle;
}

static void
terminate_worker(int code, Datum arg)
{
	TerminateBackgroundWorker((BackgroundWorkerHandle *) DatumGetPointer(arg));
}

/* Wait for the worker's answer; an error when there will be none. */
static char *
receive_answer(shm_mq_handle *channel, const char *label)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CHECK_TIMEOUT_MS);

	for (;;)
	{
		Size		size;
		void	   *answer;
		shm_mq_result result = shm_mq_receive(channel, &size, &answer, true);
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);

		if (result == SHM_MQ_SUCCESS)
			return pnstrdup(answer, size);
		if (result == SHM_MQ_DETACHED)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("the worker that checks replica %s ended before it answered", label),
					 errhint("The server log says why.")));
		if (left <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the source of replica %s did not answer within %d s",
							label, CHECK_TIMEOUT_MS / 1000),
					 errhint("Look at pg_stat_activity at the source, for sessions whose application_name begins with tablesync/.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, tsync_wait_event("TablesyncCheck"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* tablesync.check_in_worker(replica): what tablesync.preflight_source() finds there. */
Datum
tsync_check_in_worker(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	CheckStart	start = {.database = MyDatabaseId,.owner = tsync_check_owner(relid),.replica = relid};
	dsm_segment *segment;
	shm_mq	   *queue;
	shm_mq_handle *channel;
	BackgroundWorkerHandle *handle;
	char	   *answer;

	tsync_check_primary("tablesync_check()");
	segment = dsm_create(QUEUE_BYTES, 0);
	queue = shm_mq_create(dsm_segment_address(segment), QUEUE_BYTES);
	shm_mq_set_receiver(queue, MyProc);
	channel = shm_mq_attach(queue, segment, NULL);
	handle = start_check_worker(&start, dsm_segment_handle(segment));
	/* or a worker that never starts would be waited for */
	shm_mq_set_handle(channel, handle);

	PG_ENSURE_ERROR_CLEANUP(terminate_worker, PointerGetDatum(handle));
	{
		answer = receive_answer(channel, tsync_relation_label(relid));
	}
	PG_END_ENSURE_ERROR_CLEANUP(terminate_worker, PointerGetDatum(handle));
	dsm_detach(segment);
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(answer)));
}

/* All that the worker finds, as JSON. */
static char *
find_answer(Oid relid)
{
	if (tsync_catalog_execute_oid("SELECT jsonb_agg(c) FROM tablesync.preflight_source($1::regclass) c", relid) != 1)
		elog(ERROR, "could not check replica with OID %u", relid);
	return tsync_result_text(0, 1);
}

/* The worker: the session of a run, except that nothing can be written. */
void
tsync_check_main(Datum main_arg)
{
	CheckStart	start;
	dsm_segment *segment;
	shm_mq	   *queue;
	shm_mq_handle *channel;
	char	   *answer;

	tsync_read_start(&start, sizeof(start));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if ((segment = dsm_attach(DatumGetUInt32(main_arg))) == NULL)
		proc_exit(0);			/* nobody waits any more */
	queue = dsm_segment_address(segment);
	shm_mq_set_sender(queue, MyProc);
	channel = shm_mq_attach(queue, segment, NULL);

	BackgroundWorkerInitializeConnectionByOid(start.database, start.owner, TSYNC_CONNECT_FLAGS);
	tsync_prepare_session(true);
	tsync_prepare_planner();
	checking = true;
	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);

	tsync_begin();
	tsync_restrict_source_session(tsync_relation_label(start.replica), tsync_statement_timeout);
	answer = find_answer(start.replica);
	if (answer != NULL && strstr(answer, "unsupported startup parameter") != NULL)
	{
		/* of a pooler that refuses options, as a run would find out */
		tsync_commit();
		tsync_forgo_options(InvalidOid);
		tsync_begin();
		answer = find_answer(start.replica);
	}
	if (answer != NULL)
		(void) shm_mq_send(channel, strlen(answer), answer, false, true);
	tsync_commit();
	proc_exit(0);
}

/* Anywhere else a look at the source would prove nothing about runs. */
static void
check_in_worker_only(void)
{
	if (!checking)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("this function works only in the worker of tablesync_check()")));
}

/* tablesync.ask_source(query): run a query that must ship, forget its rows. */
Datum
tsync_ask_source(PG_FUNCTION_ARGS)
{
	check_in_worker_only();
	SPI_connect();
	(void) tsync_select(NULL, TSYNC_SOURCE, text_to_cstring(PG_GETARG_TEXT_PP(0)), NULL);
	SPI_finish();
	PG_RETURN_VOID();
}

/* tablesync.check_digest(replica, version): an error unless digests ship. */
Datum
tsync_check_digest(PG_FUNCTION_ARGS)
{
	TsyncReplica *replica;
	TsyncRange	everything = {0};
	TsyncFingerprint fingerprint = {.source_version = PG_GETARG_INT32(1)};

	check_in_worker_only();
	SPI_connect();
	replica = tsync_read_replica(PG_GETARG_OID(0));
	tsync_read_columns(replica);
	/* by xmin, all columns are compared at times; the foreign table with xmin is made by the first run */
	fingerprint.opaque_apart = replica->settings.by_xmin;
	fingerprint.all_columns = replica->settings.all_columns || replica->settings.by_xmin;
	tsync_check_ships(tsync_sql_digest(&replica->table, TSYNC_SOURCE, &everything, fingerprint));
	fingerprint.xmin = tsync_find_xmin(&replica->table);
	if (fingerprint.xmin)
		tsync_check_ships(tsync_sql_digest(&replica->table, TSYNC_SOURCE, &everything, fingerprint));
	SPI_finish();
	PG_RETURN_VOID();
}

/* tablesync.worker_slots(): background workers that run now, and how many may. */
Datum
tsync_worker_slots(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	int			nbackends = pgstat_fetch_stat_numbackends();
	int			used = 0;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (int i = 1; i <= nbackends; i++)
		if (tsync_backend_status(i)->backendStatus.st_backendType == B_BG_WORKER)
			used++;
	values[0] = Int32GetDatum(used);
	values[1] = Int32GetDatum(max_worker_processes);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
