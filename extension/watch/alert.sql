/*
 * alert.sql: what somebody should know about, until it is over
 *
 * One open row per replica and kind of problem.  open_alert() and
 * close_alert() are the only functions that change the table; settle_run()
 * calls them for a run that has ended, watch() for what is wrong although no run
 * says so.  Both may be called again at any time.  All of this runs with the
 * rights of the extension's owner, and can be called by nobody else.
 */

/*
 * Errors of our own, class TS; TSYNC_ERRCODE_* in tablesync.h are the same.
 * Whatever else makes a run fail is run_failed.
 */
CREATE FUNCTION tablesync.alert_kind(sqlstate text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE sqlstate
               WHEN 'TS001' THEN 'delete_guard'
               WHEN 'TS002' THEN 'source_went_back'
               WHEN 'TS003' THEN 'schema_changed'
               ELSE 'run_failed'
           END;
$$;
COMMENT ON FUNCTION tablesync.alert_kind(text) IS 'the kind of alert that a failed run opens, by its SQLSTATE';

/*
 * What everybody may read of an error: nothing that code or rows of a user
 * could have put into its message.  An SQLSTATE proves nothing about it, for a
 * trigger raises what it likes; so the text is ours, by the class.
 */
CREATE FUNCTION tablesync.public_message(sqlstate text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
               WHEN sqlstate IS NULL THEN 'the worker ended unexpectedly'
               WHEN sqlstate = 'TS001' THEN 'too many rows would be deleted'
               WHEN sqlstate = 'TS002' THEN 'the source has gone back in time'
               WHEN sqlstate = 'TS003' THEN 'the source has changed its shape'
               WHEN sqlstate ~ '^(08|HV)' THEN 'the source could not be reached, or did not answer as it should'
               WHEN sqlstate ~ '^28' OR sqlstate = '42501' THEN 'something was not permitted'
               WHEN sqlstate ~ '^53' THEN 'a server had too few resources'
               WHEN sqlstate ~ '^(55|40)' THEN 'others were in the way'
               WHEN sqlstate = '57014' THEN 'something took too long, or was cancelled'
               WHEN sqlstate ~ '^57' THEN 'a server was shut down or not ready'
               ELSE 'see tablesync_runs'
           END;
$$;
COMMENT ON FUNCTION tablesync.public_message(text) IS 'what everybody may be told about an error, by its SQLSTATE: a fixed text';

/* What the alert handler gets; listeners get another message, and no hint. */
CREATE FUNCTION tablesync.alert_payload(alert tablesync.all_alerts, event text)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object('event', event, 'alert_id', alert.alert_id, 'replica', alert.replica, 'kind', alert.kind,
                              'severity', alert.severity, 'since', alert.since, 'closed_at', alert.closed_at,
                              'occurrences', alert.occurrences, 'run_id', alert.run_id, 'sqlstate', alert.sqlstate,
                              'message', alert.message, 'hint', alert.hint);
$$;
COMMENT ON FUNCTION tablesync.alert_payload(tablesync.all_alerts, text) IS 'an alert as jsonb, with what has happened to it';

CREATE FUNCTION tablesync.start_alert_worker(replica regclass)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_start_alert_worker';
COMMENT ON FUNCTION tablesync.start_alert_worker(regclass) IS 'starts a worker that calls the alert handler once this transaction has committed; false if there is none to be had';

/* Is a handler set here, or for anybody whose settings we don't have? */
CREATE FUNCTION tablesync.has_alert_handler()
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(current_setting('tablesync.alert_handler', true), '') <> ''
        OR EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE c LIKE 'tablesync.alert\_handler=_%');
$$;
COMMENT ON FUNCTION tablesync.has_alert_handler() IS 'whether an alert handler may be set for the owner of a replica';

/* News of the last hour for the handler; older ones are of no use to anybody. */
CREATE FUNCTION tablesync.untold_alerts()
RETURNS SETOF tablesync.all_alerts
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM tablesync.all_alerts a
    WHERE a.told IS DISTINCT FROM 'closed'
      AND (a.told IS NULL OR a.closed_at IS NOT NULL)
      AND coalesce(a.closed_at, a.since) > clock_timestamp() - interval '1 hour';
$$;
COMMENT ON FUNCTION tablesync.untold_alerts() IS 'alerts that the handler has not been called for since they were opened or closed';

/*
 * Take the next alert for the handler, at most once, whatever becomes of the
 * call.  Only of replicas that one role owns: the handler gets its
 * rights.
 */
CREATE FUNCTION tablesync.claim_alert(owner oid)
RETURNS jsonb
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE tablesync.all_alerts a
    SET told = CASE WHEN a.closed_at IS NULL THEN 'opened' ELSE 'closed' END
    WHERE a.alert_id = (SELECT u.alert_id FROM tablesync.all_alerts u
                        WHERE u.alert_id IN (SELECT n.alert_id FROM tablesync.untold_alerts() n
                                             JOIN pg_class c ON c.oid = n.replica
                                             WHERE c.relowner = owner)
                          -- looked at again when the row is locked: another worker may have told of it meanwhile
                          AND u.told IS DISTINCT FROM 'closed' AND (u.told IS NULL OR u.closed_at IS NOT NULL)
                        ORDER BY u.alert_id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING tablesync.alert_payload(a, 'alert_' || a.told);
$$;
COMMENT ON FUNCTION tablesync.claim_alert(oid) IS 'what to call the alert handler with next; NULL if there is nothing';

CREATE FUNCTION tablesync.log_alert(opened boolean, message text, hint text)
RETURNS void
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_log_alert';
COMMENT ON FUNCTION tablesync.log_alert(boolean, text, text) IS 'a WARNING about an alert that opens, a line at level LOG about one that closes';

/* Tell listeners, the server log and the handler what has happened to an alert. */
CREATE FUNCTION tablesync.announce_alert(alert tablesync.all_alerts, event text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text := CASE alert.kind
                        WHEN 'stale' THEN format('no successful run within %s', (SELECT t.freshness FROM tablesync.all_replicas t WHERE t.replica = alert.replica))
                        WHEN 'drift' THEN 'differences from the source that no change there explains'
                        WHEN 'worker_unavailable' THEN 'no background worker was available'
                        WHEN 'consumer_behind' THEN 'a consumer of the feed has fallen behind'
                        ELSE tablesync.public_message(alert.sqlstate) END;
BEGIN
    PERFORM pg_notify('tablesync', (tablesync.alert_payload(alert, 'alert_' || event) - 'hint'
                                    || jsonb_build_object('message', message))::text);
    PERFORM tablesync.log_alert(event = 'opened',
                                format('tablesync alert %s for replica %s %s', alert.kind, alert.replica,
                                       CASE WHEN event = 'opened' THEN 'opened: ' || message ELSE 'is over' END),
                                CASE WHEN event = 'opened' THEN format('SELECT * FROM tablesync_alerts WHERE replica = %L::regclass;', alert.replica) END);
    IF tablesync.has_alert_handler() THEN
        PERFORM tablesync.start_alert_worker(alert.replica);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.announce_alert(tablesync.all_alerts, text) IS 'NOTIFY tablesync, a line in the server log, and a call of the alert handler';

/* A message may quote a row: only the owner of the replica, and its handler, get to read it. */
CREATE FUNCTION tablesync.open_alert(replica regclass, kind text, severity text, message text, hint text DEFAULT NULL,
                                     run_id bigint DEFAULT NULL, sqlstate text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    alert tablesync.all_alerts;
BEGIN
    INSERT INTO tablesync.all_alerts AS a (replica, kind, severity, message, hint, run_id, sqlstate)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (replica, kind) WHERE closed_at IS NULL DO UPDATE
    SET (severity, message, hint, run_id, sqlstate)
            = (excluded.severity, excluded.message, excluded.hint, excluded.run_id, excluded.sqlstate),
        last_seen = clock_timestamp(),
        occurrences = a.occurrences + 1
    RETURNING * INTO alert;
    IF alert.occurrences = 1 THEN
        PERFORM tablesync.announce_alert(alert, 'opened');
    END IF;
    RETURN alert.alert_id;
END
$$;
COMMENT ON FUNCTION tablesync.open_alert(regclass, text, text, text, text, bigint, text) IS 'opens an alert, or notes that an open one was seen again; returns its id';

CREATE FUNCTION tablesync.close_alert(replica regclass, kind text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    alert tablesync.all_alerts;
BEGIN
    UPDATE tablesync.all_alerts SET closed_at = greatest(clock_timestamp(), since)
    WHERE replica = $1 AND kind = $2 AND closed_at IS NULL
    RETURNING * INTO alert;
    IF alert.alert_id IS NOT NULL THEN
        PERFORM tablesync.announce_alert(alert, 'closed');
    END IF;
    RETURN alert.alert_id IS NOT NULL;
END
$$;
COMMENT ON FUNCTION tablesync.close_alert(regclass, text) IS 'closes an alert that is over; false if there was none';

/*
 * How long scheduled runs wait after a failure.  What only a person can mend,
 * privileges and passwords, is not tried more often than every 5 minutes; libpq
 * has no SQLSTATE for a refused connection, only what the server said.
 */
CREATE FUNCTION tablesync.retry_delay(failures integer, sqlstate text, detail text)
RETURNS interval
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT greatest(least(interval '15 seconds' * power(2, least(failures, 10) - 1), interval '15 minutes'),
                    CASE WHEN sqlstate ~ '^28' OR sqlstate IN ('42501', '2F003')
                           OR sqlstate = '08001' AND detail ~* ('authentication|password|pg_hba\.conf|permission denied|does not exist'
                                                                '|not permitted|too many|remaining connection slots|certificate|support SSL|private key|alert ')
                         THEN interval '5 minutes' END);
$$;
COMMENT ON FUNCTION tablesync.retry_delay(integer, text, text) IS 'back-off after so many failures in a row: 15 s, doubled each time, at most 15 min';

/* A row that somebody is altering right now is left alone: nobody waits for him. */
CREATE FUNCTION tablesync.back_off(replica regclass, sqlstate text, detail text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM tablesync.all_replicas t WHERE t.replica = $1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE tablesync.all_replicas t
        SET consecutive_failures = t.consecutive_failures + 1,
            retry_after = clock_timestamp() + tablesync.retry_delay(t.consecutive_failures + 1, $2, $3)
        WHERE t.replica = $1;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.back_off(regclass, text, text) IS 'lets scheduled runs of a replica wait after a failure';

/* What a failed or crashed run means for alerts and back-off; once per run. */
CREATE FUNCTION tablesync.settle_failure(run_id bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    run tablesync.all_runs;
    kind text;
BEGIN
    UPDATE tablesync.all_runs r SET settled = true WHERE r.run_id = $1 AND NOT r.settled RETURNING * INTO run;
    IF run.run_id IS NULL OR run.kind = 'verify' THEN    -- who asked to verify has been told
        RETURN;
    END IF;
    kind := tablesync.alert_kind(run.sqlstate);
    PERFORM tablesync.open_alert(run.replica, kind, CASE kind WHEN 'run_failed' THEN 'warning' ELSE 'critical' END,
                                 coalesce(run.message, format('the worker of run %s ended unexpectedly', run.run_id)),
                                 CASE WHEN run.message IS NULL
                                      THEN 'The server log says why. The replica is as it was; the next run goes on.'
                                      ELSE run.hint END,
                                 run.run_id, run.sqlstate);
    PERFORM tablesync.back_off(run.replica, run.sqlstate, run.detail);
END
$$;
COMMENT ON FUNCTION tablesync.settle_failure(bigint) IS 'opens the alert of a run that has failed or crashed, and lets the replica back off; once per run';

/* What a success is the end of. */
CREATE FUNCTION tablesync.settle_success(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.close_alert(a.replica, a.kind)
    FROM tablesync.all_alerts a
    WHERE a.replica = $1 AND a.closed_at IS NULL AND a.kind NOT IN ('drift', 'consumer_behind')
    ORDER BY a.alert_id;
    UPDATE tablesync.all_replicas t SET consecutive_failures = 0, retry_after = NULL
    WHERE t.replica = $1 AND (t.consecutive_failures > 0 OR t.retry_after IS NOT NULL);
END
$$;
COMMENT ON FUNCTION tablesync.settle_success(regclass) IS 'closes the alerts of a replica that a successful run is the end of';

/* The only way from runs to alerts.  A cancelled run says nothing either way. */
CREATE FUNCTION tablesync.settle_run(run_id bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    run tablesync.all_runs;
    status text;
BEGIN
    SELECT * INTO run FROM tablesync.all_runs r WHERE r.run_id = $1;
    -- in the order of those who remove a replica: its row before those of its runs, which go with it
    PERFORM FROM tablesync.all_replicas t WHERE t.replica = run.replica FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    status := CASE WHEN run.status = 'running' THEN tablesync.run_status(run.run_id) ELSE run.status END;
    PERFORM tablesync.settle_failure(r.run_id)
    FROM tablesync.all_runs r
    WHERE r.replica = run.replica AND r.run_id < run.run_id AND r.status = 'crashed' AND NOT r.settled
    ORDER BY r.run_id;
    IF status IN ('failed', 'crashed') THEN
        PERFORM tablesync.settle_failure(run.run_id);
    ELSIF status = 'succeeded' AND run.kind <> 'verify' THEN
        PERFORM tablesync.settle_success(run.replica);
    END IF;
    IF status <> 'crashed' THEN    -- there was a worker to be had
        PERFORM tablesync.close_alert(run.replica, 'worker_unavailable');
    END IF;
    IF tablesync.has_alert_handler() AND EXISTS (SELECT FROM tablesync.untold_alerts() u WHERE u.replica = run.replica) THEN
        PERFORM tablesync.start_alert_worker(run.replica);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.settle_run(bigint) IS 'opens and closes alerts after a run has ended, also for earlier ones that crashed';

/*
 * What is wrong although no run says so: replicas that are not fresh, crashed
 * workers.  Not of those that somebody has paused.
 */
CREATE VIEW tablesync.condition WITH (security_barrier = true) AS
SELECT t.replica, c.kind, c.severity, c.since, c.message, c.hint, c.run_id
FROM tablesync.all_replicas t
LEFT JOIN LATERAL (
    SELECT r.run_id, CASE WHEN r.status = 'running' THEN tablesync.run_status(r.run_id) ELSE r.status END AS status, r.started_at
    FROM tablesync.all_runs r WHERE r.replica = t.replica ORDER BY r.run_id DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT r.finished_at
    FROM tablesync.all_runs r
    WHERE r.replica = t.replica AND r.status = 'succeeded' AND r.kind <> 'verify'
    ORDER BY r.run_id DESC LIMIT 1
) success ON true
CROSS JOIN LATERAL (
    SELECT 'stale' AS kind,
           'critical' AS severity,
           age.since + t.freshness AS since,
           pg_catalog.format('no successful run within %s', t.freshness) AS message,
           'See tablesync_runs for failures; if there are none, look whether anything starts runs.' AS hint,
           NULL::pg_catalog.int8 AS run_id
    FROM (SELECT coalesce(success.finished_at, t.added_at)) age (since)
    WHERE pg_catalog.clock_timestamp() - age.since > t.freshness
      AND (success.finished_at IS NOT NULL OR last.status IS DISTINCT FROM 'running')    -- loading
    UNION ALL
    SELECT 'run_failed',
           'warning',
           last.started_at,
           pg_catalog.format('the worker of run %s ended unexpectedly', last.run_id),
           'The server log says why. The replica is as it was; the next run goes on.',
           last.run_id
    WHERE last.status = 'crashed'
) c
WHERE t.enabled AND t.home = tablesync.home() AND tablesync.sees(t.replica);
GRANT SELECT ON tablesync.condition TO PUBLIC;
COMMENT ON VIEW tablesync.condition IS 'what is wrong with replicas although no run says so, whether or not it is an alert already';

/* What watch() has to do about a replica: nothing, as long as all is well or known. */
CREATE FUNCTION tablesync.watch_steps(replica regclass)
RETURNS TABLE (step text, run_id bigint)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    -- failures that no worker has settled: crashes, and workers that were kept from it
    SELECT 'settle', l.run_id
    FROM (SELECT r.* FROM tablesync.all_runs r WHERE r.replica = $1 ORDER BY r.run_id DESC LIMIT 1) l
    WHERE NOT l.settled
      AND (l.status IN ('failed', 'crashed') OR l.status = 'running' AND tablesync.run_status(l.run_id) = 'crashed')
    UNION ALL
    -- successes after which alerts are still open
    (SELECT DISTINCT 'settle', l.run_id
     FROM tablesync.all_alerts a
     CROSS JOIN LATERAL (SELECT r.run_id, r.status FROM tablesync.all_runs r
                         WHERE r.replica = a.replica AND r.kind <> 'verify' ORDER BY r.run_id DESC LIMIT 1) l
     WHERE a.replica = $1 AND a.closed_at IS NULL AND a.kind NOT IN ('drift', 'consumer_behind') AND l.status = 'succeeded' AND a.run_id < l.run_id)
    UNION ALL
    SELECT 'open', NULL
    FROM tablesync.condition c
    WHERE c.replica = $1 AND c.kind = 'stale'
      AND NOT EXISTS (SELECT FROM tablesync.all_alerts a
                      WHERE a.replica = c.replica AND a.kind = c.kind AND a.closed_at IS NULL)
    UNION ALL
    SELECT 'close', NULL
    FROM tablesync.all_alerts a
    WHERE a.replica = $1 AND a.kind = 'stale' AND a.closed_at IS NULL
      AND NOT EXISTS (SELECT FROM tablesync.condition c WHERE c.replica = a.replica AND c.kind = a.kind)
    UNION ALL
    -- what the handler was not called for because there was no worker to be had
    (SELECT 'tell', NULL
     FROM tablesync.untold_alerts() u
     WHERE u.replica = $1 AND tablesync.has_alert_handler() LIMIT 1);
$$;
COMMENT ON FUNCTION tablesync.watch_steps(regclass) IS 'what watch() has to do about a replica';

/* One step of watch(); somebody else's locks must not keep the others waiting. */
CREATE FUNCTION tablesync.watch_step(replica regclass, step text, run_id bigint)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
BEGIN
    CASE step
        WHEN 'settle' THEN PERFORM tablesync.settle_run(run_id);
        WHEN 'close' THEN PERFORM tablesync.close_alert(replica, 'stale');
        WHEN 'open' THEN
            PERFORM tablesync.open_alert(c.replica, c.kind, c.severity, c.message, c.hint)
            FROM tablesync.condition c WHERE c.replica = $1 AND c.kind = 'stale';
        WHEN 'tell' THEN PERFORM tablesync.start_alert_worker(replica);
    END CASE;
    RETURN step <> 'tell';
EXCEPTION WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION tablesync.watch_step(regclass, text, bigint) IS 'one thing that watch() has found to do; false if it must wait';

CREATE FUNCTION tablesync.record_watch(replica regclass)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s record;
    done integer := 0;
BEGIN
    FOR s IN SELECT * FROM tablesync.watch_steps($1) LOOP
        done := done + tablesync.watch_step($1, s.step, s.run_id)::integer;
    END LOOP;
    RETURN done;
END
$$;
COMMENT ON FUNCTION tablesync.record_watch(regclass) IS 'behind the door tablesync.watch(replica)';

CREATE FUNCTION tablesync.watch(replica regclass)
RETURNS integer
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.watch(regclass) IS 'opens and closes alerts of a replica of the current user for what no run reports; returns the number of changes';

CREATE FUNCTION tablesync.watch()
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine regclass;
    done integer := 0;
BEGIN
    IF pg_is_in_recovery() THEN
        RETURN 0;
    END IF;
    FOR mine IN SELECT t.replica FROM tablesync.replica t LOOP
        done := done + tablesync.watch(mine);
    END LOOP;
    PERFORM tablesync.serve_queue(), tablesync.serve_exports();    -- after a crash nobody does
    RETURN done;
END
$$;
COMMENT ON FUNCTION tablesync.watch() IS 'opens and closes alerts for what no run reports: stale replicas, crashed workers; returns the number of changes';
