/*
 * check.sql: tablesync_check, the look before the run
 *
 * One failure does not hide the others: an error of a check is its result.
 */

CREATE FUNCTION tablesync.check_in_worker(replica regclass)
RETURNS jsonb
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_check_in_worker';
COMMENT ON FUNCTION tablesync.check_in_worker(regclass) IS 'rows of tablesync.preflight_source(), found by a worker that is connected as the replica''s owner';

/* Make one check; what it raises becomes its result. */
CREATE FUNCTION tablesync.try_check(settings tablesync.replica, check_name text, OUT ok boolean, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text;
BEGIN
    EXECUTE format('SELECT * FROM tablesync.%I($1)', 'preflight_' || check_name) INTO detail, hint USING settings;
    ok := true;
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
        ok := false;
        detail := concat_ws(': ', message, nullif(detail, ''));
        hint := coalesce(nullif(hint, ''), format('Mend it, then SELECT * FROM tablesync_check(%L);', settings.replica));
END
$$;
COMMENT ON FUNCTION tablesync.try_check(tablesync.replica, text) IS 'makes one check; an error is a result';

/* The worker's part.  Without connection or table the others would only repeat why. */
CREATE FUNCTION tablesync.preflight_source(replica regclass)
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    IF NOT FOUND THEN
        check_name := 'connection';
        ok := false;
        detail := 'a worker does not see the replica';
        hint := 'Commit before you check it.';
        RETURN NEXT;
        RETURN;
    END IF;
    FOREACH check_name IN ARRAY '{connection,server,session,source_table,privileges,row_security,key,types,collation,shape,replica_table,statements,estimate}'::text[] LOOP
        SELECT c.ok, c.detail, c.hint INTO ok, detail, hint FROM tablesync.try_check(settings, check_name) c;
        IF NOT ok AND check_name IN ('connection', 'source_table') THEN
            detail := detail || ' (checks that need this were left out)';
        END IF;
        RETURN NEXT;
        EXIT WHEN NOT ok AND check_name IN ('connection', 'source_table');
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_source(regclass) IS 'the checks that need the source; made by a worker as the replica''s owner';

/* Start the worker and fetch its rows; that it can't be started is a result too. */
CREATE FUNCTION tablesync.try_worker(settings tablesync.replica)
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text;
BEGIN
    RETURN QUERY
        SELECT a.* FROM jsonb_to_recordset(tablesync.check_in_worker(settings.replica))
            AS a (check_name text, ok boolean, detail text, hint text);
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
        check_name := 'connection';
        ok := false;
        detail := concat_ws(': ', message, nullif(detail, '')) || ' (checks that need this were left out)';
        hint := coalesce(nullif(hint, ''), 'See the other failed checks, and the server log.');
        RETURN NEXT;
END
$$;
COMMENT ON FUNCTION tablesync.try_worker(tablesync.replica) IS 'rows of tablesync.preflight_source(), or why there are none';

CREATE FUNCTION tablesync.check_replicas(wanted regclass)
RETURNS TABLE (replica regclass, check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    IF wanted IS NOT NULL THEN
        PERFORM tablesync.check_replica(wanted);
    END IF;
    FOR settings IN
        SELECT * FROM tablesync.replica t
        WHERE tablesync.owns(t.replica) AND (t.replica = wanted OR wanted IS NULL)
        ORDER BY t.added_at, t.replica
    LOOP
        RETURN QUERY
            SELECT settings.replica, n.name, c.ok, c.detail, c.hint
            FROM unnest('{state,owner,mapping,worker_slots,pg_cron,publication}'::text[]) WITH ORDINALITY n (name, position)
            CROSS JOIN LATERAL tablesync.try_check(settings, n.name) c
            ORDER BY n.position;
        RETURN QUERY
            SELECT settings.replica, w.* FROM tablesync.try_worker(settings) w;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.check_replicas(regclass) IS 'all checks of one replica, or of all';

CREATE FUNCTION @extschema@.tablesync_check(replica regclass DEFAULT NULL)
RETURNS TABLE (replica regclass, check_name text, ok boolean, detail text, hint text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM tablesync.check_replicas($1);
$$;
COMMENT ON FUNCTION @extschema@.tablesync_check(regclass) IS 'would a run work, and what would it cost?  One row per check, with what to do; without an argument for all replicas';
