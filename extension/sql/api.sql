/* api.sql: the other functions that users call */

/* An error unless a table is a replica of ours. */
CREATE FUNCTION tablesync.check_replica(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = replica) AND NOT tablesync.owns(replica) THEN
        RAISE EXCEPTION 'must be owner of table %', replica USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT EXISTS (SELECT FROM tablesync.replica t WHERE t.replica = $1) THEN
        RAISE EXCEPTION '% is not a replica', replica
            USING ERRCODE = 'undefined_object', HINT = 'Replicas are listed in tablesync_status.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_replica(regclass) IS 'an error unless a table is a replica and the current user a member of its owner';

CREATE FUNCTION tablesync_alter(
    replica regclass,
    version_column name DEFAULT NULL,
    fingerprint text DEFAULT NULL,
    consistency text DEFAULT NULL,
    chunk_rows integer DEFAULT NULL,
    max_source_load double precision DEFAULT NULL,
    max_delete_fraction double precision DEFAULT NULL,
    on_schema_change text DEFAULT NULL,
    freshness interval DEFAULT NULL,
    workers integer DEFAULT NULL,
    enabled boolean DEFAULT NULL,
    trust_counters_for interval DEFAULT NULL,
    verify_fraction double precision DEFAULT NULL)
RETURNS SETOF tablesync.replica
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed tablesync.replica;
BEGIN
    PERFORM tablesync.check_replica($1);
    SELECT * INTO changed FROM tablesync.replica t WHERE t.replica = $1;
    changed.version_column := coalesce($2, changed.version_column);
    changed.fingerprint := coalesce($3, CASE WHEN $2 IS NOT NULL THEN 'version' END, changed.fingerprint);
    changed.consistency := coalesce($4, changed.consistency);
    changed.chunk_rows := coalesce($5, changed.chunk_rows);
    changed.max_source_load := coalesce($6, changed.max_source_load);
    changed.max_delete_fraction := coalesce($7, changed.max_delete_fraction);
    changed.on_schema_change := coalesce($8, changed.on_schema_change);
    changed.freshness := coalesce($9, changed.freshness);
    changed.workers := coalesce($10, changed.workers);
    changed.enabled := coalesce($11, changed.enabled);
    changed.trust_counters_for := coalesce($12, changed.trust_counters_for);
    changed.verify_fraction := coalesce($13, changed.verify_fraction);
    PERFORM tablesync.check_settings(changed);
    IF $2 IS NOT NULL OR $3 IS NOT NULL THEN
        PERFORM tablesync.check_source(changed.source, changed.key_columns, changed.version_column, changed.fingerprint);
    END IF;
    UPDATE tablesync.replica t
    SET (version_column, fingerprint, consistency, chunk_rows, max_source_load, max_delete_fraction,
         on_schema_change, freshness, workers, enabled, trust_counters_for, verify_fraction)
        = (changed.version_column, changed.fingerprint, changed.consistency, changed.chunk_rows, changed.max_source_load,
           changed.max_delete_fraction, changed.on_schema_change, changed.freshness, changed.workers, changed.enabled,
           changed.trust_counters_for, changed.verify_fraction)
    WHERE t.replica = $1;
    RETURN NEXT changed;
END
$$;
COMMENT ON FUNCTION tablesync_alter(regclass, name, text, text, integer, double precision, double precision, text, interval, integer, boolean, interval, double precision)
    IS 'changes settings of a replica; NULL leaves one as it is';

CREATE FUNCTION tablesync_remove(replica regclass, drop_replica boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    PERFORM tablesync.check_replica($1);
    IF EXISTS (SELECT FROM tablesync.live_runs() l WHERE l.replica = $1) THEN
        RAISE EXCEPTION 'a run for replica % is going on', $1
            USING ERRCODE = 'object_in_use', HINT = format('Wait for it, or use tablesync_cancel(%L).', $1);
    END IF;
    PERFORM tablesync.end_bulk_load($1);
    DELETE FROM tablesync.replica t WHERE t.replica = $1 RETURNING * INTO settings;
    EXECUTE format('DROP TRIGGER IF EXISTS tablesync_note_write ON %s', $1);
    IF settings.source_created AND EXISTS (SELECT FROM pg_class WHERE oid = settings.source)
       AND NOT EXISTS (SELECT FROM tablesync.replica t WHERE t.source = settings.source) THEN
        EXECUTE format('DROP FOREIGN TABLE %s', settings.source);
    END IF;
    IF drop_replica THEN
        EXECUTE format('DROP TABLE %s', $1);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync_remove(regclass, boolean) IS 'forgets a replica and its history; its rows stay unless drop_replica is true';

CREATE FUNCTION tablesync_run(replica regclass DEFAULT NULL, wait boolean DEFAULT true, force boolean DEFAULT false)
RETURNS TABLE (replica regclass, run_id bigint, status text, rows bigint, inserted bigint, updated bigint, deleted bigint,
               duration interval, message text)
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_run';
COMMENT ON FUNCTION tablesync_run(regclass, boolean, boolean) IS 'makes a replica equal to its source now; without an argument all enabled replicas, one after the other';

CREATE FUNCTION tablesync_wait(run_id bigint, timeout interval DEFAULT NULL)
RETURNS text
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_wait';
COMMENT ON FUNCTION tablesync_wait(bigint, interval) IS 'waits until a run has ended and returns its status; running (or started) if the timeout comes first';

CREATE FUNCTION tablesync_cancel(replica regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_replica($1);
    RETURN (SELECT coalesce(bool_or(pg_cancel_backend(l.pid)), false) FROM tablesync.live_runs() l WHERE l.replica = $1);
END
$$;
COMMENT ON FUNCTION tablesync_cancel(regclass) IS 'cancels the live run of a replica; false if there is none';

CREATE FUNCTION tablesync_pause(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_replica($1);
    UPDATE tablesync.replica t SET enabled = false WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync_pause(regclass) IS 'keeps a replica from being run until tablesync_resume(); a live run goes on';

CREATE FUNCTION tablesync_resume(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_replica($1);
    UPDATE tablesync.replica t SET enabled = true, home = tablesync.home() WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync_resume(regclass) IS 'lets a paused replica, or one restored from a dump, be run again';
