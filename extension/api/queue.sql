/* queue.sql: runs for which nobody waits, and those that pg_cron waits for */

CREATE FUNCTION tablesync.serve_queue()
RETURNS integer
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_serve';
COMMENT ON FUNCTION tablesync.serve_queue() IS 'starts workers for runs that wait, whosever they are; returns how many';

CREATE FUNCTION tablesync.queue_run(replica regclass)
RETURNS TABLE (run_id bigint, failed boolean, status text, sqlstate text, message text, detail text, hint text)
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_queue_run';
COMMENT ON FUNCTION tablesync.queue_run(regclass) IS 'lets a replica be run by the next free worker, unless it is backing off; run_id is NULL where there is nothing to wait for';

CREATE FUNCTION tablesync.await_run(replica regclass, run_id bigint)
RETURNS TABLE (run_id bigint, failed boolean, status text, sqlstate text, message text, detail text, hint text)
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_await_run';
COMMENT ON FUNCTION tablesync.await_run(regclass, bigint) IS 'waits until a run that was queued has ended, and returns what tablesync_run() would have raised';

CREATE FUNCTION tablesync.withdraw_run(replica regclass, run_id bigint)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_withdraw_run';
COMMENT ON FUNCTION tablesync.withdraw_run(regclass, bigint) IS 'cancels a run that was queued, whether it waits or goes on; false if it has ended';

CREATE FUNCTION tablesync.raise_error(sqlstate text, message text, detail text, hint text)
RETURNS void
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_raise_error';
COMMENT ON FUNCTION tablesync.raise_error(text, text, text, text) IS 'raises an error';

/*
 * A run that no person waits for.  A worker sees what has been committed, so the
 * run is queued in one transaction and waited for in the next.  A failure rolls
 * back what its statement has written, so the alert that no worker was to be
 * had is committed before.  SET search_path would forbid the COMMIT; nothing here
 * depends on it.
 */
CREATE PROCEDURE tablesync.run_scheduled(replica regclass, INOUT status text DEFAULT NULL, INOUT message text DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    report record;
    queued pg_catalog.int8;
    cancelled boolean := false;
BEGIN
    PERFORM tablesync.check_primary('tablesync.run_scheduled()');
    IF NOT EXISTS (SELECT FROM tablesync.due(replica)) THEN
        status := 'not due';
        message := 'a run has started since the schedule was last due';
        RETURN;
    END IF;
    SELECT r.* INTO report FROM tablesync.queue_run(replica) r;
    IF report.run_id IS NOT NULL THEN
        queued := report.run_id;
        COMMIT;
        BEGIN
            SELECT r.* INTO report FROM tablesync.await_run(replica, queued) r;
        EXCEPTION WHEN query_canceled THEN
            cancelled := true;
        END;
        IF cancelled THEN    -- who waits for it does not want it any more
            PERFORM tablesync.withdraw_run(replica, queued);
            COMMIT;
            PERFORM tablesync.raise_error('57014', 'canceling statement due to user request', NULL, NULL);
        END IF;
    END IF;
    status := report.status;
    message := report.message;
    IF report.failed THEN
        COMMIT;
        PERFORM tablesync.raise_error(report.sqlstate, report.message, report.detail, report.hint);
    END IF;
END
$$;
COMMENT ON PROCEDURE tablesync.run_scheduled(regclass, text, text) IS 'what pg_cron calls: like tablesync_run() for one replica, by one of the workers that serve the queue; returns at once while it is backing off or not due';
