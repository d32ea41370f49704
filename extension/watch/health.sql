/*
 * health.sql: is all well?
 *
 * A problem is a bit, so that many replicas make one number:
 *
 *    1  failed    the last run that has ended did not succeed
 *    2  stale     the last success is older than the replica's freshness
 *    4  missed    the schedule has started no run for tablesync.missed_after, or its job is gone
 *    8  hanging   a run has made no progress for tablesync.hang_after
 *   16  alert     an alert is open
 *   32  blind     nothing to judge: no replica that the current user may see
 *
 * 2 and 8 are critical, an alert is what it says, the others are warnings.
 * Paused replicas are not judged, but for their alerts: a run may have paused
 * them.
 */

CREATE FUNCTION tablesync.is_hanging(progressed_at timestamptz)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_is_hanging';
COMMENT ON FUNCTION tablesync.is_hanging(timestamptz) IS 'whether a moment is longer ago than tablesync.hang_after';

CREATE FUNCTION tablesync.is_missed(expected timestamptz)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_is_missed';
COMMENT ON FUNCTION tablesync.is_missed(timestamptz) IS 'whether a moment is longer ago than tablesync.missed_after';

CREATE VIEW tablesync.health WITH (security_barrier = true) AS
WITH scheduled AS (
    SELECT t.replica, t.state, t.schedule, t.last_success,
           tablesync.cron_next(t.schedule, greatest(s.since, latest.started_at, latest.finished_at, pg_catalog.pg_postmaster_start_time()))
               AS expected,
           s.schedule AS recorded
    FROM @extschema@.tablesync_status t
    LEFT JOIN tablesync.all_schedules s ON s.replica = t.replica
    LEFT JOIN LATERAL (
        SELECT r.started_at, r.finished_at FROM tablesync.all_runs r WHERE r.replica = t.replica ORDER BY r.run_id DESC LIMIT 1
    ) latest ON true
), problem AS (
    SELECT s.replica, 1 AS flag, 'warning' AS severity,
           pg_catalog.format('run %s %s', ended.run_id,
                             CASE ended.status WHEN 'cancelled' THEN 'was cancelled' ELSE 'has ' || ended.status END) AS problem
    FROM scheduled s
    CROSS JOIN LATERAL (
        SELECT two.run_id, two.status
        FROM (SELECT r.run_id, CASE WHEN r.status = 'running' THEN tablesync.run_status(r.run_id) ELSE r.status END AS status
              FROM tablesync.all_runs r WHERE r.replica = s.replica AND r.kind <> 'verify' ORDER BY r.run_id DESC LIMIT 2) two
        WHERE two.status <> 'running' ORDER BY two.run_id DESC LIMIT 1
    ) ended
    WHERE ended.status <> 'succeeded'
    UNION ALL
    SELECT s.replica, 2, 'critical',
           CASE WHEN s.last_success IS NULL THEN pg_catalog.format('never succeeded, freshness is %s', t.freshness)
                ELSE pg_catalog.format('last success %s ago, freshness is %s',
                                       pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - s.last_success), t.freshness) END
    FROM scheduled s
    JOIN tablesync.all_replicas t ON t.replica = s.replica
    WHERE t.freshness < pg_catalog.clock_timestamp() - coalesce(s.last_success, t.added_at)
    UNION ALL
    SELECT s.replica, 4, 'warning',
           CASE WHEN s.schedule IS NULL THEN pg_catalog.format('pg_cron has no active job for schedule "%s"', s.recorded)
                ELSE pg_catalog.format('schedule "%s" has not started the run of %s', s.schedule, s.expected) END
    FROM scheduled s
    WHERE s.recorded IS NOT NULL AND NOT pg_catalog.pg_is_in_recovery()    -- the primary knows what it has started
      AND (s.schedule IS NULL
           OR (tablesync.is_missed(s.expected) AND s.state NOT IN ('running', 'loading', 'queued')))
    UNION ALL
    SELECT s.replica, 8, 'critical',
           pg_catalog.format('run %s has made no progress since %s', p.run_id, pg_catalog.date_trunc('second', p.progressed_at))
    FROM scheduled s
    JOIN tablesync.live_progress() p ON p.replica = s.replica
    WHERE tablesync.is_hanging(p.progressed_at)
    UNION ALL
    SELECT a.replica, 16, a.severity, pg_catalog.format('alert %s since %s', a.kind, pg_catalog.date_trunc('second', a.since))
    FROM @extschema@.tablesync_alerts a
    WHERE a.kind NOT IN ('run_failed', 'stale')    -- bits 1 and 2
)
SELECT s.replica, s.state, p.flag, p.severity, p.problem
FROM scheduled s
LEFT JOIN problem p ON p.replica = s.replica AND (s.state <> 'paused' OR p.flag = 16);
GRANT SELECT ON tablesync.health TO PUBLIC;
COMMENT ON VIEW tablesync.health IS 'one row per replica and problem, and one for a replica without any; tablesync_health() sums it up';
COMMENT ON COLUMN tablesync.health.flag IS 'bit of the problem: 1 failed, 2 stale, 4 missed, 8 hanging, 16 alert';
COMMENT ON COLUMN tablesync.health.severity IS 'warning or critical';
COMMENT ON COLUMN tablesync.health.problem IS 'what is wrong, without anything that a run''s message may quote';

CREATE FUNCTION @extschema@.tablesync_health(OUT status text, OUT flags integer, OUT summary text)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH seen AS MATERIALIZED (
        SELECT h.*, row_number() OVER (ORDER BY h.severity = 'critical' DESC NULLS LAST, h.replica::text, h.flag) AS n
        FROM tablesync.health h
    ), total AS (
        SELECT count(DISTINCT s.replica) AS replicas,
               count(DISTINCT s.replica) FILTER (WHERE s.state = 'paused') AS paused,
               count(s.problem) AS problems,
               coalesce(bit_or(s.flag), 0) | CASE WHEN count(*) = 0 THEN 32 ELSE 0 END AS flags,
               coalesce(bool_or(s.severity = 'critical'), false) AS critical,
               string_agg(s.replica || ': ' || s.problem, '; ' ORDER BY s.n) FILTER (WHERE s.problem IS NOT NULL AND s.n <= 5) AS problem_list
        FROM seen s
    ), verdict AS (
        SELECT CASE WHEN critical THEN 'critical' WHEN flags <> 0 THEN 'warning' ELSE 'ok' END AS status, *
        FROM total
    )
    SELECT status, flags,
           translate(status || ': '
                     || CASE WHEN replicas = 0 THEN format('no replica that role %s may see', current_user)
                             WHEN problems = 0 THEN replicas || CASE replicas WHEN 1 THEN ' replica' ELSE ' replicas' END
                             ELSE problem_list || CASE WHEN problems > 5 THEN format('; and %s more', problems - 5) ELSE '' END END
                     || CASE WHEN paused > 0 THEN format(' (%s paused)', paused) ELSE '' END, E'\n\r', '  ')
    FROM verdict;
$$;
COMMENT ON FUNCTION @extschema@.tablesync_health() IS 'is all well? status is ok, warning or critical; flags adds up 1 failed, 2 stale, 4 missed (schedule), 8 hanging, 16 alert, 32 nothing visible; summary is one line';
