/*
 * totals.sql: counters that only grow, for monitoring
 *
 * Sums over tablesync.run would shrink when old history is deleted, and a
 * counter that shrinks looks to Prometheus like a restart: everything is
 * counted again.  So each run is added up when it ends.
 *
 * No foreign key to tablesync.replica: its check would make the end of a run
 * wait for whoever drops the replica, who waits for the run.
 */

CREATE FUNCTION tablesync.count_run()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO tablesync.all_totals AS t
    VALUES (NEW.replica, (NEW.status = 'succeeded')::integer, (NEW.status = 'failed')::integer,
            (NEW.status = 'cancelled')::integer, (NEW.status = 'crashed')::integer, (NEW.status IN ('failed', 'crashed'))::integer,
            NEW.rows_scanned, NEW.inserted, NEW.updated, NEW.deleted,
            coalesce(NEW.finished_at - NEW.started_at, '0'), NEW.source_time)
    ON CONFLICT (replica) DO UPDATE
    SET succeeded = t.succeeded + excluded.succeeded,
        failed = t.failed + excluded.failed,
        cancelled = t.cancelled + excluded.cancelled,
        crashed = t.crashed + excluded.crashed,
        failures_in_a_row = CASE WHEN NEW.status = 'succeeded' THEN 0 ELSE t.failures_in_a_row + excluded.failures_in_a_row END,
        rows_scanned = t.rows_scanned + excluded.rows_scanned,
        inserted = t.inserted + excluded.inserted,
        updated = t.updated + excluded.updated,
        deleted = t.deleted + excluded.deleted,
        duration = t.duration + excluded.duration,
        source_time = t.source_time + excluded.source_time;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.count_run() IS 'trigger: adds a run that has ended to tablesync.total';
CREATE TRIGGER count_run AFTER UPDATE OF status ON tablesync.all_runs
    FOR EACH ROW WHEN (OLD.status = 'running' AND NEW.status <> 'running')
    EXECUTE FUNCTION tablesync.count_run();

CREATE FUNCTION tablesync.forget_total()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM tablesync.all_totals t WHERE t.replica = OLD.replica;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.forget_total() IS 'trigger: a replica that is removed takes its totals with it';
CREATE TRIGGER forget_total AFTER DELETE ON tablesync.all_replicas
    FOR EACH ROW EXECUTE FUNCTION tablesync.forget_total();

/* A crash that no later run has recorded yet is counted already. */
CREATE VIEW @extschema@.tablesync_totals WITH (security_barrier = true) AS
SELECT r.replica,
       coalesce(t.succeeded, 0) AS succeeded,
       coalesce(t.failed, 0) AS failed,
       coalesce(t.cancelled, 0) AS cancelled,
       coalesce(t.crashed, 0) + unrecorded.crashes AS crashed,
       coalesce(t.failures_in_a_row, 0) + unrecorded.crashes AS failures_in_a_row,
       coalesce(t.rows_scanned, 0) AS rows_scanned,
       coalesce(t.inserted, 0) AS inserted,
       coalesce(t.updated, 0) AS updated,
       coalesce(t.deleted, 0) AS deleted,
       coalesce(t.duration, '0') AS duration,
       coalesce(t.source_time, '0') AS source_time
FROM tablesync.all_replicas r
LEFT JOIN tablesync.all_totals t ON t.replica = r.replica
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS crashes
    FROM tablesync.all_runs q
    WHERE q.replica = r.replica AND q.status = 'running' AND tablesync.run_status(q.run_id) = 'crashed'
) unrecorded
WHERE tablesync.sees(r.replica);
GRANT SELECT ON @extschema@.tablesync_totals TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_totals IS 'one row per replica: what all its runs add up to; the figures only grow, except failures_in_a_row';
COMMENT ON COLUMN @extschema@.tablesync_totals.failures_in_a_row IS 'runs that have failed or crashed since the last success';
COMMENT ON COLUMN @extschema@.tablesync_totals.rows_scanned IS 'rows of the source that runs have compared';
COMMENT ON COLUMN @extschema@.tablesync_totals.duration IS 'time that runs have taken';
COMMENT ON COLUMN @extschema@.tablesync_totals.source_time IS 'time that runs have waited for the source';
