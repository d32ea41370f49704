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

/*
 * Refuse a fingerprint that can't cover the columns it would have to.  Asks
 * only what is known here: a replica that is paused because its source has
 * lost the version column gets another fingerprint this way.
 */
CREATE FUNCTION tablesync.check_comparable(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    misfit record;
BEGIN
    SELECT c.column_name, tablesync.type_problem(c.type::oid, false, true) AS problem INTO misfit
    FROM tablesync.replica_columns(settings.replica) c
    WHERE (settings.fingerprint = 'row' OR c.column_name = settings.version_column)
      AND tablesync.type_problem(c.type::oid, false, true) IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        PERFORM tablesync.refuse_column(quote_ident(misfit.column_name), format('%I.%I', target.schema_name, target.table_name),
                                        misfit.problem,
                                        CASE WHEN settings.fingerprint = 'row' THEN
                                            'Set fingerprint to xmin if the source is a table, or to version if it sets a column on every change, and name that as version_column.'
                                        ELSE 'Choose another version column, or none.' END);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_comparable(tablesync.replica) IS 'an error if the fingerprint of a replica can''t cover its columns';

/* The settings that a user may choose, out of those of a replica; all others are kept as they are. */
CREATE FUNCTION tablesync.with_settings(current tablesync.replica, wanted jsonb)
RETURNS tablesync.replica
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_populate_record(current,
        (SELECT coalesce(jsonb_object_agg(w.key, w.value), '{}') FROM jsonb_each(wanted) w
         WHERE w.key IN (@settings alter: '{name}'@)));
$$;
COMMENT ON FUNCTION tablesync.with_settings(tablesync.replica, jsonb) IS 'a replica''s settings with those changed that a user may choose';

CREATE FUNCTION tablesync.record_alter(replica regclass, settings jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed tablesync.replica;
BEGIN
    SELECT * INTO changed FROM tablesync.all_replicas t WHERE t.replica = $1 FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    changed := tablesync.with_settings(changed, settings);
    PERFORM tablesync.check_settings(changed);
    IF changed.version_column IS DISTINCT FROM (SELECT t.version_column FROM tablesync.all_replicas t WHERE t.replica = $1) THEN
        -- versions of another column say nothing about this one
        UPDATE tablesync.all_runs r SET newest_version = NULL WHERE r.replica = $1 AND r.newest_version IS NOT NULL;
    END IF;
    UPDATE tablesync.all_replicas t
    SET
        @settings alter: {name} = changed.{name}@,
        watermark = CASE WHEN t.version_column = changed.version_column THEN t.watermark END,
        counters = CASE WHEN (t.version_column, t.fingerprint) IS NOT DISTINCT FROM (changed.version_column, changed.fingerprint) THEN t.counters END
    WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync.record_alter(regclass, jsonb) IS 'behind the door tablesync.alter()';

CREATE FUNCTION tablesync.alter(replica regclass, settings jsonb)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.alter(regclass, jsonb) IS 'door for tablesync_alter()';

CREATE FUNCTION @extschema@.tablesync_alter(
    replica regclass,
    @settings alter: {name} {type} DEFAULT NULL@)
RETURNS SETOF tablesync.replica
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    current tablesync.replica;
    changed tablesync.replica;
    no_xmin text;
    part jsonb;
BEGIN
    PERFORM tablesync.check_primary('tablesync_alter()');
    PERFORM tablesync.check_replica($1);
    SELECT * INTO current FROM tablesync.replica t WHERE t.replica = $1;
    changed := current;
    -- NULL leaves a setting as it is
    IF version_column IS NOT NULL AND changed.fingerprint = 'row' THEN
        changed.fingerprint := 'version';    -- unless another one is named as well
    END IF;
    @settings alter: changed.{name} := coalesce({name}, changed.{name});@
    @settings alter off: changed.{name} := nullif(changed.{name}, {off});@
    IF (changed.columns, changed.filter, changed.expressions) IS DISTINCT FROM (current.columns, current.filter, current.expressions) THEN
        PERFORM tablesync.check_settings(changed);
        part := tablesync.change_part(current, changed);
        changed := jsonb_populate_record(NULL::tablesync.replica, part->'settings');
    END IF;
    PERFORM tablesync.check_settings(changed);
    IF version_column IS NOT NULL OR fingerprint IS NOT NULL THEN
        PERFORM tablesync.check_comparable(changed);
    END IF;
    IF fingerprint = 'xmin' THEN    -- else the source need not be there
        no_xmin := tablesync.xmin_problem(changed.source);
    END IF;
    IF no_xmin IS NOT NULL THEN
        PERFORM tablesync.refuse_xmin(changed.source, no_xmin);
    END IF;
    -- before the row of the replica is locked: APPLY locks in this order
    IF feed THEN
        PERFORM tablesync.begin_feed($1);
    ELSIF NOT feed THEN
        PERFORM tablesync.end_feed($1);
    END IF;
    PERFORM tablesync.alter($1, to_jsonb(changed));
    IF part IS NOT NULL THEN
        PERFORM tablesync.take_part($1, changed.shape, part->'steps');
    END IF;
    RETURN QUERY SELECT * FROM tablesync.replica t WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_alter(regclass, @settings alter: {type}@)
    IS 'changes settings of a replica; NULL leaves one as it is, 0 ends trust_counters_for and keep_changes, an empty text leaves a sync_group or a filter, {} means all columns or no expressions';

CREATE FUNCTION tablesync.record_forget(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.drop_xmin_table($1);
    DELETE FROM tablesync.all_replicas t WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync.record_forget(regclass) IS 'behind the door tablesync.forget()';

CREATE FUNCTION tablesync.forget(replica regclass)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.forget(regclass) IS 'door for tablesync_remove(): forgets settings and history of a replica';

/*
 * Does a foreign table that was created for a replica still belong to the same
 * role, and to no other replica?  Who removes the replica may have more rights.
 */
CREATE FUNCTION tablesync.may_be_dropped(source regclass, replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_class f JOIN pg_class r ON r.oid = $2
                   WHERE f.oid = $1 AND f.relkind = 'f' AND f.relowner = r.relowner
                     AND f.relnamespace <> 'tablesync'::regnamespace)
       AND NOT EXISTS (SELECT FROM tablesync.replica t WHERE t.source = $1 AND t.replica <> $2);
$$;
COMMENT ON FUNCTION tablesync.may_be_dropped(regclass, regclass) IS 'whether removing a replica drops its foreign table';

CREATE FUNCTION @extschema@.tablesync_remove(replica regclass, drop_replica boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    PERFORM tablesync.check_primary('tablesync_remove()');
    PERFORM tablesync.check_replica($1);
    IF EXISTS (SELECT FROM tablesync.live_runs() l WHERE l.replica = $1) THEN
        RAISE EXCEPTION 'a run for replica % is going on', $1
            USING ERRCODE = 'object_in_use', HINT = format('Wait for it, or use tablesync_cancel(%L).', $1);
    END IF;
    IF NOT drop_replica THEN
        PERFORM tablesync.abandon_bulk_load($1);
    END IF;
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    PERFORM tablesync.drop_feed(settings, drop_replica);
    PERFORM tablesync.forget($1);
    EXECUTE format('DROP TRIGGER IF EXISTS tablesync_note_write ON %s', $1);
    IF settings.source_created AND tablesync.may_be_dropped(settings.source, $1) THEN
        EXECUTE format('DROP FOREIGN TABLE %s', settings.source);
    END IF;
    IF drop_replica THEN
        EXECUTE format('DROP TABLE %s', $1);
    END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_remove(regclass, boolean) IS 'forgets a replica and its history; its rows and its feed stay unless drop_replica is true';

CREATE FUNCTION @extschema@.tablesync_run(replica regclass DEFAULT NULL, wait boolean DEFAULT true, force boolean DEFAULT false)
RETURNS TABLE (replica regclass, run_id bigint, status text, rows bigint, inserted bigint, updated bigint, deleted bigint,
               duration interval, message text)
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_run';
COMMENT ON FUNCTION @extschema@.tablesync_run(regclass, boolean, boolean) IS 'makes a replica equal to its source now; without an argument all enabled replicas, one after the other';

CREATE FUNCTION @extschema@.tablesync_wait(run_id bigint, timeout interval DEFAULT NULL)
RETURNS text
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_wait';
COMMENT ON FUNCTION @extschema@.tablesync_wait(bigint, interval) IS 'waits until a run has ended and returns its status; running (or started) if the timeout comes first';

CREATE FUNCTION @extschema@.tablesync_cancel(replica regclass)
RETURNS boolean
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_cancel';
COMMENT ON FUNCTION @extschema@.tablesync_cancel(regclass) IS 'cancels the live run of a replica; false if there is none';

CREATE FUNCTION tablesync.record_enable(replica regclass, enabled boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- numbers of columns, types and files mean nothing elsewhere
    IF $2 THEN
        UPDATE tablesync.all_replicas t
        SET shape = tablesync.restored_shape(t.shape, t.replica, t.source), memory_file = NULL
        WHERE t.replica = $1 AND t.home <> tablesync.home();
    END IF;
    UPDATE tablesync.all_replicas t
    SET enabled = $2,
        home = CASE WHEN $2 THEN tablesync.home() ELSE t.home END,
        retry_after = CASE WHEN $2 THEN NULL ELSE t.retry_after END
    WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync.record_enable(regclass, boolean) IS 'behind the door tablesync.enable()';

CREATE FUNCTION tablesync.enable(replica regclass, enabled boolean)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.enable(regclass, boolean) IS 'door for tablesync_pause() and tablesync_resume()';

CREATE FUNCTION @extschema@.tablesync_pause(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_primary('tablesync_pause()');
    PERFORM tablesync.check_replica($1);
    PERFORM tablesync.enable($1, false);
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_pause(regclass) IS 'keeps a replica from being run until tablesync_resume(); a live run goes on';

CREATE FUNCTION @extschema@.tablesync_resume(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_primary('tablesync_resume()');
    PERFORM tablesync.check_replica($1);
    PERFORM tablesync.enable($1, true);
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_resume(regclass) IS 'lets a paused replica, or one restored from a dump, be run again; ends a back-off';

/* The replicas that are run together with one: those of its group with the same server and owner that may be run now. */
CREATE FUNCTION tablesync.group_members(replica regclass)
RETURNS SETOF regclass
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.replica
    FROM tablesync.replica t
    JOIN pg_class tc ON tc.oid = t.replica
    JOIN pg_foreign_table tf ON tf.ftrelid = t.source
    JOIN tablesync.replica m ON m.sync_group = t.sync_group
    JOIN pg_class mc ON mc.oid = m.replica AND mc.relowner = tc.relowner
    JOIN pg_foreign_table mf ON mf.ftrelid = m.source AND mf.ftserver = tf.ftserver
    WHERE t.replica = $1
      AND (m.replica = $1 OR m.enabled AND m.home = tablesync.home());
$$;
COMMENT ON FUNCTION tablesync.group_members(regclass) IS 'the replicas that are run together with one, itself included; none if it has no sync_group';
