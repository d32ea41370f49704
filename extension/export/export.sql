/*
 * export.sql: windows of replicas, written to files
 *
 * Who asks for an export gets its number at once; a worker (worker.c) that is
 * connected as that role reads with that role's rights and writes the file.  No
 * text that anybody has written is kept and run: the query is made here, each
 * time, from catalogs, and no cast of a user's is in it (value.sql).
 */

/* SQL for an instant as it is compared with a column; NULL of a type that tells no time. */
CREATE FUNCTION tablesync.instant_literal(type oid, instant timestamptz)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
AS $$
    SELECT CASE type WHEN 'timestamptz'::regtype THEN format('%L::pg_catalog.timestamptz', instant)
                     WHEN 'timestamp'::regtype THEN format('%L::pg_catalog.timestamp', instant AT TIME ZONE 'UTC')
                     WHEN 'date'::regtype THEN format('%L::pg_catalog.timestamp', instant AT TIME ZONE 'UTC') END;
$$;
COMMENT ON FUNCTION tablesync.instant_literal(oid, timestamptz) IS 'SQL for an instant that a column of a type is compared with; without time zone it is in UTC; NULL where the type tells no time';

/* What an export reads: the replica, where its version tells the time, else its feed; an error unless the role that asks may. */
CREATE FUNCTION tablesync.export_relation(export tablesync.all_exports, OUT relation regclass, OUT is_feed boolean, OUT version_name name, OUT version_type oid)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.all_replicas;
BEGIN
    SELECT * INTO settings FROM tablesync.all_replicas t WHERE t.replica = export.replica;
    SELECT a.attname, b.base INTO version_name, version_type
    FROM pg_attribute a, tablesync.base_type(a.atttypid, a.atttypmod) b
    WHERE a.attrelid = export.replica AND a.attname = settings.version_column AND NOT a.attisdropped
      AND b.base IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype);
    is_feed := NOT FOUND AND settings.feed AND settings.feed_table IS NOT NULL;
    relation := CASE WHEN is_feed THEN settings.feed_table ELSE export.replica END;
    IF NOT coalesce(has_table_privilege(export.role, relation::oid, 'SELECT')
                    AND (SELECT has_schema_privilege(export.role, c.relnamespace, 'USAGE') FROM pg_class c WHERE c.oid = relation), false) THEN
        RAISE EXCEPTION 'permission denied for table %', relation
            USING ERRCODE = 'insufficient_privilege', DETAIL = format('An export reads it with the rights of role %s, which has asked for it.', export.role);
    ELSIF settings.replica IS NULL THEN
        RAISE EXCEPTION '% is not a replica', export.replica
            USING ERRCODE = 'undefined_object', HINT = 'Replicas are listed in tablesync_status.';
    ELSIF version_name IS NULL AND NOT coalesce(is_feed, false) THEN
        RAISE EXCEPTION '% has nothing that tells when its rows were changed', export.replica
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'It has neither a version column of type timestamptz, timestamp or date, nor a feed.',
                  HINT = format('Its owner may switch a feed on, which tells from then on: SELECT tablesync_alter(%L, feed => true);', export.replica);
    ELSIF (SELECT c.relkind NOT IN ('r', 'p') FROM pg_class c WHERE c.oid = relation) THEN    -- a view would run its owner's code
        RAISE EXCEPTION '% is not a table', relation USING ERRCODE = 'wrong_object_type', HINT = 'An export reads tables only.';
    ELSIF is_feed AND tablesync.feed_problem(export.replica, relation) IS NOT NULL THEN    -- of a type of the owner's, a column would have his casts called
        RAISE EXCEPTION '% can''t be the feed of %', relation, export.replica
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = tablesync.feed_problem(export.replica, relation),
                  HINT = format('The owner of the replica makes another one: DROP TABLE %s; SELECT tablesync_alter(%L, feed => true);', relation, export.replica);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.export_relation(tablesync.all_exports) IS 'what an export reads, if the role that has asked for it may';

/* Rows of a replica by their version.  All columns, also those that the source lacks. */
CREATE FUNCTION tablesync.export_of_rows(export tablesync.all_exports, relation regclass, label text, version_name name, version_type oid)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('SELECT %1$s FROM %2$s c WHERE c.%3$I OPERATOR(pg_catalog.>=) %4$s AND c.%3$I OPERATOR(pg_catalog.<) %5$s',
                  CASE export.format WHEN 'csv' THEN c.names ELSE tablesync.row_expression(c.columns, 'plain', 'c.', false, false) || '::pg_catalog.text AS row' END,
                  label, version_name, tablesync.instant_literal(version_type, export.from_time), tablesync.instant_literal(version_type, export.to_time))
    FROM (SELECT string_agg(format('c.%I', a.attname), ', ' ORDER BY a.attnum),
                 jsonb_agg(jsonb_build_object('name', a.attname, 'type', b.base::bigint, 'typmod', b.base_typmod) ORDER BY a.attnum)
          FROM pg_attribute a, tablesync.base_type(a.atttypid, a.atttypmod) b
          WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped) c (names, columns);
$$;
COMMENT ON FUNCTION tablesync.export_of_rows(tablesync.all_exports, regclass, text, name, oid) IS 'the query of an export of a replica''s rows';

/*
 * Changes of a feed by the time of their runs: nearly always one range of positions,
 * which the index finds.  That some of them are not kept any more must not pass for nothing.
 */
CREATE FUNCTION tablesync.export_of_changes(export tablesync.all_exports, relation regclass, label text)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    positions int8multirange;
    kept_since timestamptz;
    columns text;
BEGIN
    SELECT coalesce(f.source_time, f.applied_at) INTO kept_since
    FROM tablesync.all_replicas t JOIN tablesync.all_fed_runs f ON f.replica = t.replica
    WHERE t.replica = export.replica AND t.feed_pruned BETWEEN f.first_position AND f.last_position;
    IF export.from_time <= kept_since THEN
        RAISE EXCEPTION 'the feed of % does not go back to %', export.replica, export.from_time
            USING ERRCODE = 'invalid_parameter_value', DETAIL = format('Changes are kept that are newer than %s.', kept_since),
                  HINT = 'The setting keep_changes says how long they are kept.';
    END IF;
    SELECT coalesce(range_agg(int8range(f.first_position, f.last_position, '[]')), '{}') INTO positions
    FROM tablesync.all_fed_runs f
    WHERE f.replica = export.replica AND coalesce(f.source_time, f.applied_at) >= export.from_time AND coalesce(f.source_time, f.applied_at) < export.to_time;
    IF export.format = 'csv' THEN
        columns := (SELECT string_agg(format('c.%I', a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
                    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped);
    ELSE
        columns := format('pg_catalog.jsonb_build_object(''position'', c."position", ''run_id'', c.run_id, ''op'', c.op::pg_catalog.text, ''row'','
                          ' CASE WHEN c.op OPERATOR(pg_catalog.<>) ''t'' THEN %s END)::pg_catalog.text AS row',
                          (SELECT tablesync.row_expression(jsonb_agg(jsonb_build_object('name', f.column_name, 'feed_name', f.feed_name,
                                                                                        'feed_type', f.feed_type::bigint, 'feed_typmod', f.feed_typmod)), 'plain', 'c.', true, false)
                           FROM tablesync.feed_columns(export.replica) f));
    END IF;
    RETURN format('SELECT %s FROM %s c WHERE %L::pg_catalog.int8multirange OPERATOR(pg_catalog.@>) c."position"'
                  ' AND c."position" OPERATOR(pg_catalog.>=) %s AND c."position" OPERATOR(pg_catalog.<) %s ORDER BY c."position", c.op',
                  columns, label, positions, coalesce(lower(positions), 0), coalesce(upper(positions), 0));
END
$$;
COMMENT ON FUNCTION tablesync.export_of_changes(tablesync.all_exports, regclass, text) IS 'the query of an export of a replica''s changes';

/* What there is to be known of the file: runs have not come as far as the window goes. */
CREATE FUNCTION tablesync.export_note(export tablesync.all_exports)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN s.instant IS NULL THEN 'no run has succeeded yet'
                WHEN s.instant < export.to_time THEN format('as the source was at %s, before the end of the window', s.instant) END
    FROM (SELECT tablesync.source_time_of((SELECT r.run_id FROM tablesync.all_runs r
                                           WHERE r.replica = export.replica AND r.status = 'succeeded' ORDER BY r.run_id DESC LIMIT 1))) s (instant);
$$;
COMMENT ON FUNCTION tablesync.export_note(tablesync.all_exports) IS 'what is to be known about the rows of an export';

CREATE FUNCTION tablesync.plan_export(export tablesync.all_exports, OUT relation oid, OUT label text, OUT statement text, OUT note text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    target record := tablesync.export_relation(export);
BEGIN
    relation := target.relation;
    label := (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation);
    statement := CASE WHEN target.is_feed THEN tablesync.export_of_changes(export, target.relation, label)
                      ELSE tablesync.export_of_rows(export, target.relation, label, target.version_name, target.version_type) END;
    note := tablesync.export_note(export);
END
$$;
COMMENT ON FUNCTION tablesync.plan_export(tablesync.all_exports) IS 'what an export reads, and the query; an error if it can''t be made';

/* In a query that is run as the role that asked; the row is the extension's. */
CREATE FUNCTION tablesync.export_query(export_id bigint, OUT relation oid, OUT label text, OUT statement text, OUT note text)
RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.* FROM tablesync.all_exports e, tablesync.plan_export(e) p WHERE e.export_id = $1;
$$;
COMMENT ON FUNCTION tablesync.export_query(bigint) IS 'the same for an export that was recorded';

/* All that can be known to fail fails here. */
CREATE FUNCTION tablesync.record_add_export(caller oid, replica regclass, from_time timestamptz, to_time timestamptz, format text)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    it tablesync.all_exports;
BEGIN
    IF $3 IS NULL OR $4 IS NULL OR NOT isfinite($3) OR NOT isfinite($4) THEN
        RAISE EXCEPTION 'the window of an export needs two finite times'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'SELECT tablesync_export(replica, from_time => ''2026-11-27'', to_time => ''2026-11-28'');';
    ELSIF $3 >= $4 THEN
        RAISE EXCEPTION 'the window of an export ends before it begins'
            USING ERRCODE = 'invalid_parameter_value', DETAIL = pg_catalog.format('It is from %s, inclusive, to %s, exclusive.', $3, $4), HINT = 'from_time must be before to_time.';
    ELSIF $5 IS NULL OR $5 NOT IN ('csv', 'jsonl') THEN
        RAISE EXCEPTION 'invalid value for format: %', coalesce(quote_literal(left($5, 100)), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It must be csv or jsonl.';
    ELSIF $2 IS NULL THEN
        RAISE EXCEPTION 'replica must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF coalesce(current_setting('tablesync.export_directory', true), '') = '' THEN
        RAISE EXCEPTION 'this server writes no exports'
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'tablesync.export_directory is not set.',
                  HINT = 'In postgresql.conf: tablesync.export_directory = ''/a/directory/of/the/server''''s/user''';
    ELSIF (SELECT count(*) >= 100 FROM tablesync.all_exports e WHERE e.role = $1 AND e.state IN ('NOT_STARTED', 'STARTED')) THEN
        RAISE EXCEPTION 'role % has too many exports that have not finished', $1::regrole
            USING ERRCODE = 'program_limit_exceeded', DETAIL = 'There may be 100 of them.', HINT = 'Wait for some to finish: TABLE tablesync_exports;';
    ELSIF current_setting('server_version_num')::integer < 170000 AND NOT (SELECT r.rolcanlogin FROM pg_roles r WHERE r.oid = $1) THEN
        RAISE EXCEPTION 'role % is not permitted to log in', $1::regrole
            USING ERRCODE = 'invalid_authorization_specification', DETAIL = 'The worker that writes an export connects as the role that asks for it.',
                  HINT = 'Ask as a role that may, without SET ROLE; it needs no password.';
    END IF;
    it.role := $1;
    it.replica := $2;
    it.from_time := $3;
    it.to_time := $4;
    it.format := $5;
    PERFORM tablesync.plan_export(it);
    it.export_id := nextval('tablesync.export_export_id_seq');
    INSERT INTO tablesync.all_exports (export_id, role, replica, from_time, to_time, format, file)
    VALUES (it.export_id, it.role, it.replica, it.from_time, it.to_time, it.format,
            concat_ws('-', replace(tablesync.home(), '/', '-'), it.export_id, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) || '.' || it.format);
    RETURN it.export_id;
END
$$;
COMMENT ON FUNCTION tablesync.record_add_export(oid, regclass, timestamptz, timestamptz, text) IS 'behind the door tablesync.add_export()';

CREATE FUNCTION tablesync.add_export(replica regclass, from_time timestamptz, to_time timestamptz, format text)
RETURNS bigint
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_role_door';
COMMENT ON FUNCTION tablesync.add_export(regclass, timestamptz, timestamptz, text) IS 'door for tablesync_export(); returns the number of the export';

CREATE FUNCTION tablesync.serve_exports()
RETURNS integer
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_serve_exports';
COMMENT ON FUNCTION tablesync.serve_exports() IS 'starts workers for exports that wait, whosever they are, when the transaction commits; returns how many';

CREATE FUNCTION @extschema@.tablesync_export(replica regclass, from_time timestamptz, to_time timestamptz, format text DEFAULT 'csv')
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    export_id bigint;
BEGIN
    PERFORM tablesync.check_primary('tablesync_export()');
    export_id := tablesync.add_export($1, $2, $3, $4);
    PERFORM tablesync.serve_exports();
    RETURN export_id;
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_export(regclass, timestamptz, timestamptz, text)
    IS 'has rows of a replica that have changed in a window written to a file by a worker, with the rights of who asks; returns the number of the export at once';

/* Is a worker at it?  It holds an advisory lock of its own kind (process/process.h). */
CREATE FUNCTION tablesync.is_export_live(export_id bigint)
RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_locks l
                   WHERE l.locktype = 'advisory' AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                     AND l.classid = 1953721955 AND l.objid = ($1 & 4294967295)::oid AND l.objsubid = 20 AND l.granted);
$$;
COMMENT ON FUNCTION tablesync.is_export_live(bigint) IS 'whether a worker is writing an export';

/* Roles whose exports wait; those of a role that can't connect any more will never be written. */
CREATE FUNCTION tablesync.record_waiting_exports()
RETURNS TABLE (role oid, due boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE tablesync.all_exports e
    SET state = 'FAILED', finished_at = clock_timestamp(), message = format('role %s may not connect to the database any more', e.role)
    WHERE e.state = 'NOT_STARTED'
      AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = e.role AND (r.rolcanlogin OR current_setting('server_version_num')::integer >= 170000)
                                               AND has_database_privilege(r.oid, current_database(), 'CONNECT'));
    RETURN QUERY SELECT e.role::oid, min(e.due_at) <= clock_timestamp() FROM tablesync.all_exports e
                 WHERE e.state = 'NOT_STARTED' OR e.state = 'STARTED' AND NOT tablesync.is_export_live(e.export_id)
                 GROUP BY e.role ORDER BY min(e.due_at);
END
$$;
COMMENT ON FUNCTION tablesync.record_waiting_exports() IS 'roles whose exports wait for a worker, and whether it has something to do at once';

/* The caller has the lock of the export, so nobody else is at it. */
CREATE FUNCTION tablesync.record_take_export(export_id bigint, role oid)
RETURNS SETOF tablesync.all_exports
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    it tablesync.all_exports;
BEGIN
    SELECT * INTO it FROM tablesync.all_exports e
    WHERE e.export_id = $1 AND e.role = $2 AND e.state IN ('NOT_STARTED', 'STARTED') AND e.due_at <= clock_timestamp() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    ELSIF it.state = 'STARTED' AND it.attempts >= 5 THEN
        UPDATE tablesync.all_exports e SET state = 'FAILED', finished_at = clock_timestamp(), message = 'the worker of the last attempt ended unexpectedly'
        WHERE e.export_id = $1;
        RETURN;
    END IF;
    RETURN QUERY UPDATE tablesync.all_exports e SET state = 'STARTED', attempts = e.attempts + 1 WHERE e.export_id = $1 RETURNING e.*;
END
$$;
COMMENT ON FUNCTION tablesync.record_take_export(bigint, oid) IS 'records the start of an attempt; no row if there is nothing to do';

/* False if it was forgotten meanwhile, with its replica. */
CREATE FUNCTION tablesync.record_finish_export(export_id bigint, uri text, rows bigint, note text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE tablesync.all_exports e SET state = 'FINISHED', uri = $2, rows = $3, message = $4, finished_at = clock_timestamp() WHERE e.export_id = $1;
    IF FOUND THEN
        PERFORM pg_notify('tablesync', json_build_object('event', 'export', 'export_id', $1, 'state', 'FINISHED')::text);
        RETURN true;
    END IF;
    RETURN false;
END
$$;
COMMENT ON FUNCTION tablesync.record_finish_export(bigint, text, bigint, text) IS 'records that a file is there';

/* The next attempt comes after 1, 5, 25 and 125 seconds. */
CREATE FUNCTION tablesync.record_fail_export(export_id bigint, message text, may_pass boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE tablesync.all_exports e
    SET state = CASE WHEN n.again THEN 'NOT_STARTED' ELSE 'FAILED' END, message = $2,
        due_at = CASE WHEN n.again THEN clock_timestamp() + 5 ^ (e.attempts - 1) * interval '1 second' ELSE e.due_at END,
        finished_at = CASE WHEN NOT n.again THEN clock_timestamp() END
    FROM (SELECT $3 AND o.attempts < 5 FROM tablesync.all_exports o WHERE o.export_id = $1) n (again)
    WHERE e.export_id = $1;
    PERFORM pg_notify('tablesync', json_build_object('event', 'export', 'export_id', $1, 'state', 'FAILED')::text)
    FROM tablesync.all_exports e WHERE e.export_id = $1 AND e.state = 'FAILED';
END
$$;
COMMENT ON FUNCTION tablesync.record_fail_export(bigint, text, boolean) IS 'records why an attempt has failed; whether another one comes depends on what it was, and how many there were';

CREATE FUNCTION tablesync.record_forget_export(export_id bigint)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM tablesync.all_exports e WHERE e.export_id = $1 AND e.state IN ('FINISHED', 'FAILED');
$$;
COMMENT ON FUNCTION tablesync.record_forget_export(bigint) IS 'forgets an export whose file is gone';

CREATE VIEW @extschema@.tablesync_exports WITH (security_barrier = true) AS
SELECT e.export_id,
       e.replica,
       e.from_time,
       e.to_time,
       e.state,
       e.uri,
       e.rows,
       e.attempts,
       CASE WHEN mine.mine OR tablesync.owns(e.replica) THEN e.message END AS message
FROM tablesync.all_exports e
CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.pg_has_role(e.role, 'USAGE'), false)) mine (mine)
WHERE mine.mine OR tablesync.sees(e.replica);
GRANT SELECT ON @extschema@.tablesync_exports TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_exports IS 'one row per export, for who has asked for it and the replica''s owner';
COMMENT ON COLUMN @extschema@.tablesync_exports.export_id IS 'its number, as tablesync_export() has returned it';
COMMENT ON COLUMN @extschema@.tablesync_exports.replica IS 'the local table';
COMMENT ON COLUMN @extschema@.tablesync_exports.from_time IS 'beginning of the window, inclusive';
COMMENT ON COLUMN @extschema@.tablesync_exports.to_time IS 'end of the window, exclusive';
COMMENT ON COLUMN @extschema@.tablesync_exports.state IS 'NOT_STARTED (it waits for a worker, or for its next attempt), STARTED, FINISHED or FAILED';
COMMENT ON COLUMN @extschema@.tablesync_exports.uri IS 'where the file is; NULL until it is whole';
COMMENT ON COLUMN @extschema@.tablesync_exports.rows IS 'rows in the file';
COMMENT ON COLUMN @extschema@.tablesync_exports.attempts IS 'how often it was started';
COMMENT ON COLUMN @extschema@.tablesync_exports.message IS 'why the last attempt failed, or what is to be known about the file';
