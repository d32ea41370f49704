/*
 * views.sql: what people look at
 *
 * They read the tables with the rights of the extension's owner, and show what
 * tablesync.sees() lets the current user see.
 */

CREATE VIEW @extschema@.tablesync_runs WITH (security_barrier = true) AS
SELECT r.run_id,
       r.replica,
       r.kind,
       now.status,
       r.started_at,
       r.finished_at,
       coalesce(r.finished_at, CASE WHEN now.status = 'running' THEN pg_catalog.clock_timestamp() END)
           - r.started_at AS duration,
       r.rows_scanned,
       r.chunks,
       r.chunks_differing,
       r.inserted,
       r.updated,
       r.deleted,
       r.source_time,
       r.consistency,
       CASE WHEN r.source_digest IS NOT NULL THEN
           pg_catalog.jsonb_build_object(
               'source', pg_catalog.jsonb_build_object('rows', r.source_rows, 'digest', pg_catalog.to_hex(r.source_digest)),
               'replica', pg_catalog.jsonb_build_object('rows', r.replica_rows, 'digest', pg_catalog.to_hex(r.replica_digest)),
               'equal', r.source_rows = r.replica_rows AND r.source_digest = r.replica_digest)
       END AS proof,
       r.sqlstate,
       CASE WHEN tablesync.owns(r.replica) THEN r.message END AS message,
       r.pid,
       r.source_instant
FROM tablesync.all_runs r
CROSS JOIN LATERAL (SELECT CASE WHEN r.status = 'running' THEN tablesync.run_status(r.run_id) ELSE r.status END OFFSET 0) now (status)
WHERE tablesync.sees(r.replica);
GRANT SELECT ON @extschema@.tablesync_runs TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_runs IS 'one row per run, with what it did and the proof it ended with';
COMMENT ON COLUMN @extschema@.tablesync_runs.status IS 'running, succeeded, failed, cancelled or crashed';
COMMENT ON COLUMN @extschema@.tablesync_runs.rows_scanned IS 'rows of the source that the run compared';
COMMENT ON COLUMN @extschema@.tablesync_runs.source_time IS 'time spent waiting for the source: connections, catalogs, statements, ends of transactions';
COMMENT ON COLUMN @extschema@.tablesync_runs.source_instant IS 'clock of the source when the run began to read it: what was committed there before is in the replica';
COMMENT ON COLUMN @extschema@.tablesync_runs.proof IS 'rows and digest of both sides after the run, and whether they are equal';

/* The columns are the values of progress.c, in its order, as what they are. */
CREATE FUNCTION tablesync.live_progress()
RETURNS TABLE (pid integer, run_id bigint, replica oid, phase text, chunks_done bigint, chunks_total bigint,
               rows_scanned bigint, rows_estimated bigint, phase_started timestamptz, throttled_usec bigint,
               slowness bigint, progressed_at timestamptz, interrupted_by text)
LANGUAGE C STRICT
AS 'MODULE_PATHNAME', 'tsync_live_progress';
COMMENT ON FUNCTION tablesync.live_progress() IS 'what live workers publish about their progress';

CREATE VIEW @extschema@.tablesync_progress WITH (security_barrier = true) AS
SELECT p.run_id,
       r.replica,
       p.phase,
       p.chunks_done,
       nullif(p.chunks_total, 0) AS chunks_total,
       p.rows_scanned,
       p.rows_estimated,
       pg_catalog.round(CASE WHEN p.rows_estimated > 0
                        THEN least(100.0 * p.rows_scanned / p.rows_estimated, 100.0) END, 1) AS percent,
       (p.rows_scanned / s.seconds)::pg_catalog.int8 AS rows_per_second,
       CASE WHEN p.rows_scanned > 0 THEN
           pg_catalog.make_interval(secs => pg_catalog.round((greatest(p.rows_estimated - p.rows_scanned, 0)
                                                             * s.seconds / p.rows_scanned)::pg_catalog.numeric, 1)::pg_catalog.float8)
       END AS eta,
       p.throttled_usec * '1 microsecond'::pg_catalog.interval AS throttled_for,
       CASE WHEN p.interrupted_by = '40001' THEN
           'the source, a hot standby, cancels statements that conflict with recovery: asking again'
       WHEN p.interrupted_by IN ('57P01', '57P02', '57P03') THEN
           'the source has ended our session or restarts: asking again'
       WHEN p.interrupted_by IS NOT NULL THEN
           pg_catalog.format('the source can''t be reached (SQLSTATE %s): asking again', p.interrupted_by)
       WHEN p.slowness > 0 THEN
           pg_catalog.format('the source takes %s times as long per row as usual', pg_catalog.round(p.slowness / 100.0, 1))
       END AS reason
FROM tablesync.live_progress() p
JOIN tablesync.all_runs r ON r.run_id = p.run_id AND r.pid = p.pid
CROSS JOIN LATERAL (SELECT greatest(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.phase_started)::pg_catalog.float8, 0.001)) s (seconds)
WHERE tablesync.sees(r.replica)
UNION ALL
SELECT q.run_id, q.replica, 'queued', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM tablesync.all_queued q
WHERE tablesync.sees(q.replica);
GRANT SELECT ON @extschema@.tablesync_progress TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_progress IS 'one row per run that is live or waits for a worker: phase, rows so far, estimated end';
COMMENT ON COLUMN @extschema@.tablesync_progress.phase IS 'queued, schema, load, index, scan, confirm or apply';
COMMENT ON COLUMN @extschema@.tablesync_progress.rows_estimated IS 'rows the current phase has to deal with, as far as known';
COMMENT ON COLUMN @extschema@.tablesync_progress.eta IS 'estimated time until the current phase ends';
COMMENT ON COLUMN @extschema@.tablesync_progress.throttled_for IS 'time rested so far to spare the source';
COMMENT ON COLUMN @extschema@.tablesync_progress.reason IS 'why the run rests longer than max_source_load asks for, or asks the source again, if it does';

CREATE VIEW @extschema@.tablesync_status WITH (security_barrier = true) AS
SELECT t.replica,
       t.source,
       CASE WHEN NOT t.enabled OR t.home <> tablesync.home() THEN 'paused'
            WHEN last.status = 'running' AND NOT t.loaded THEN 'loading'
            WHEN last.status = 'running' THEN 'running'
            WHEN EXISTS (SELECT FROM tablesync.all_queued q WHERE q.replica = t.replica) THEN 'queued'
            WHEN last.run_id IS NULL THEN 'never_run'
            WHEN last.status IN ('failed', 'crashed', 'cancelled') THEN 'failed'
            WHEN t.freshness < pg_catalog.clock_timestamp() - success.finished_at THEN 'stale'
            ELSE 'ok'
       END AS state,
       success.replica_rows AS rows,
       success.finished_at AS last_success,
       pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - success.finished_at) AS staleness,
       last.run_id AS last_run_id,
       last.inserted,
       last.updated,
       last.deleted,
       last.finished_at - last.started_at AS duration,
       plan.schedule,
       CASE WHEN t.enabled THEN tablesync.cron_next(plan.schedule, pg_catalog.clock_timestamp()) END AS next_run,
       CASE WHEN tablesync.owns(t.replica) THEN
           CASE WHEN t.home <> tablesync.home() THEN 'copied from another database; tablesync_resume() starts it here'
                WHEN last.status = 'crashed' THEN 'the worker of the last run ended unexpectedly; the next run goes on'
                ELSE last.message END
       END AS message,
       t.retry_after,
       verified.oldest_proof
FROM tablesync.all_replicas t
LEFT JOIN tablesync.all_schedules s ON s.replica = t.replica
CROSS JOIN LATERAL (
    SELECT CASE WHEN t.home = tablesync.home() THEN tablesync.cron_schedule(t.replica, s.schedule) END OFFSET 0
) plan (schedule)
LEFT JOIN LATERAL (
    SELECT r.run_id, CASE WHEN r.status = 'running' THEN tablesync.run_status(r.run_id) ELSE r.status END AS status, r.inserted, r.updated, r.deleted,
           r.started_at, r.finished_at, r.message
    FROM tablesync.all_runs r
    WHERE r.replica = t.replica AND (r.kind <> 'verify' OR r.status = 'running') ORDER BY r.run_id DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT r.finished_at, r.replica_rows
    FROM tablesync.all_runs r WHERE r.replica = t.replica AND r.status = 'succeeded' AND r.kind <> 'verify' ORDER BY r.run_id DESC LIMIT 1
) success ON true
CROSS JOIN LATERAL (
    SELECT CASE WHEN pg_catalog.bool_and(c.verified_at IS NOT NULL) THEN pg_catalog.min(c.verified_at) END
    FROM tablesync.all_chunks c WHERE c.replica = t.replica
) verified (oldest_proof)
WHERE tablesync.sees(t.replica);
GRANT SELECT ON @extschema@.tablesync_status TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_status IS 'one row per replica: its state, freshness and last run';
COMMENT ON COLUMN @extschema@.tablesync_status.state IS 'ok, running, loading, queued, stale, failed, paused or never_run';
COMMENT ON COLUMN @extschema@.tablesync_status.rows IS 'rows of the replica after the last successful run';
COMMENT ON COLUMN @extschema@.tablesync_status.staleness IS 'time since the last successful run ended';
COMMENT ON COLUMN @extschema@.tablesync_status.schedule IS 'cron expression that starts the replica''s runs';
COMMENT ON COLUMN @extschema@.tablesync_status.next_run IS 'when the schedule starts the next run; NULL while paused, or where it can''t be told';
COMMENT ON COLUMN @extschema@.tablesync_status.message IS 'what the last run has to say';
COMMENT ON COLUMN @extschema@.tablesync_status.retry_after IS 'scheduled runs wait until then, because the last ones failed';
COMMENT ON COLUMN @extschema@.tablesync_status.oldest_proof IS 'every column of every row was compared with the source since then; NULL if some never was';

CREATE VIEW @extschema@.tablesync_alerts WITH (security_barrier = true) AS
SELECT a.alert_id,
       a.replica,
       a.kind,
       a.severity,
       a.since,
       CASE WHEN tablesync.owns(a.replica) THEN a.message END AS message,
       CASE WHEN tablesync.owns(a.replica) THEN a.hint END AS hint
FROM tablesync.all_alerts a
WHERE a.closed_at IS NULL AND tablesync.sees(a.replica)
UNION ALL
SELECT NULL,
       c.replica,
       c.kind,
       c.severity,
       c.since,
       c.message,
       c.hint
FROM tablesync.condition c
WHERE NOT EXISTS (SELECT FROM tablesync.all_alerts a
                  WHERE a.replica = c.replica AND a.kind = c.kind AND a.closed_at IS NULL);
GRANT SELECT ON @extschema@.tablesync_alerts TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_alerts IS 'one row per problem that is not over';
COMMENT ON COLUMN @extschema@.tablesync_alerts.alert_id IS 'NULL where only this view has noticed: nobody has been told yet';
COMMENT ON COLUMN @extschema@.tablesync_alerts.kind IS 'run_failed, stale, delete_guard, schema_changed, drift, source_went_back, worker_unavailable or consumer_behind';
COMMENT ON COLUMN @extschema@.tablesync_alerts.severity IS 'warning: may pass by itself; critical: somebody has to do something';

CREATE VIEW @extschema@.tablesync_alert_history WITH (security_barrier = true) AS
SELECT a.alert_id,
       a.replica,
       a.kind,
       a.severity,
       a.since,
       a.last_seen,
       a.closed_at,
       a.occurrences,
       a.run_id,
       a.sqlstate,
       CASE WHEN tablesync.owns(a.replica) THEN a.message END AS message
FROM tablesync.all_alerts a
WHERE tablesync.sees(a.replica);
GRANT SELECT ON @extschema@.tablesync_alert_history TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_alert_history IS 'one row per problem, also of those that are over';
COMMENT ON COLUMN @extschema@.tablesync_alert_history.occurrences IS 'how often it was seen while it was open';
