/*
 * preflight.sql: the checks of tablesync_check
 *
 * Each is a function tablesync.preflight_<name>(settings).  It returns what it
 * found, perhaps with a hint, or raises what is wrong.  check.sql performs
 * them: the first few in the caller's session, those that need the source in
 * a worker like that of a run.  None of them writes, none reads rows of the
 * source, but for those of a view that have no key.
 */

CREATE FUNCTION tablesync.ask_source(query text)
RETURNS void
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_ask_source';
COMMENT ON FUNCTION tablesync.ask_source(text) IS 'runs a query that the source must do alone; only in the worker of tablesync_check()';

CREATE FUNCTION tablesync.check_digest(replica regclass, server_version integer)
RETURNS void
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_check_digest';
COMMENT ON FUNCTION tablesync.check_digest(regclass, integer) IS 'an error unless the source would compute digests; only in the worker of tablesync_check()';

CREATE FUNCTION tablesync.worker_slots(OUT used integer, OUT total integer)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_worker_slots';
COMMENT ON FUNCTION tablesync.worker_slots() IS 'background workers that run now, and max_worker_processes';

CREATE FUNCTION tablesync.fail_check(message text, hint text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '%', message
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = coalesce(hint, '');
END
$$;
COMMENT ON FUNCTION tablesync.fail_check(text, text) IS 'what a check raises when it finds a problem';

/* Role that the source knows us as, as far as the user mapping of a role tells us. */
CREATE FUNCTION tablesync.remote_role(role oid, server oid)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT quote_ident(o.option_value)
                     FROM pg_user_mappings m, pg_options_to_table(m.umoptions) o
                     WHERE m.srvid = server AND m.umuser IN (0, role) AND o.option_name = 'user'
                     ORDER BY m.umuser DESC LIMIT 1),
                    '<role of the user mapping>');
$$;
COMMENT ON FUNCTION tablesync.remote_role(oid, oid) IS 'the role at the source that a role here is mapped to';

/* What the DBA of a source can type where a system catalog was revoked that everybody usually may read. */
CREATE FUNCTION tablesync.catalog_hint(server oid, catalog text)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('At the source: GRANT SELECT ON pg_catalog.%I TO %s;', catalog,
                  tablesync.remote_role((SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user), server));
$$;
COMMENT ON FUNCTION tablesync.catalog_hint(oid, text) IS 'what gives us back a system catalog that was revoked at the source';

/* What makes the sessions of a role at the source what a run would make them. */
CREATE FUNCTION tablesync.pooler_hint(server oid)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'At the source: ' || string_agg(format('ALTER ROLE %s SET %s = %s;', tablesync.remote_role((SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user), server), w.name, w.value), ' ' ORDER BY w.n)
        || ' Then let the pooler connect anew (RECONNECT in its console).'
    FROM (VALUES (1, 'default_transaction_read_only', 'on'), (2, 'row_security', 'off'), (3, 'lc_monetary', quote_literal('C')), (4, 'IntervalStyle', 'postgres'),
                 (5, 'extra_float_digits', '3'), (6, 'statement_timeout', quote_literal(current_setting('tablesync.statement_timeout'))),
                 (7, 'lock_timeout', quote_literal(current_setting('tablesync.lock_timeout'))),
                 (8, 'idle_in_transaction_session_timeout', quote_literal(current_setting('tablesync.statement_timeout'))),
                 (9, 'max_parallel_workers_per_gather', '0'), (10, 'jit', 'off'), (11, 'enable_sort', 'off'), (12, 'work_mem', quote_literal('96MB')),
                 (13, 'join_collapse_limit', '1'), (14, 'from_collapse_limit', '1')) w (n, name, value);
$$;
COMMENT ON FUNCTION tablesync.pooler_hint(oid) IS 'what the DBA of a source behind a connection pooler can type instead of the options of a session';

/* ---- checks made here ---- */

CREATE FUNCTION tablesync.preflight_state(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    resume text := format('SELECT tablesync_resume(%L);', settings.replica);
BEGIN
    IF settings.home <> tablesync.home() THEN
        PERFORM tablesync.fail_check('the replica was copied from another database and is paused', resume);
    ELSIF NOT settings.enabled THEN
        PERFORM tablesync.fail_check('the replica is paused', resume);
    END IF;
    detail := CASE WHEN settings.loaded THEN 'enabled, loaded'
                   WHEN settings.load_position IS NOT NULL THEN 'enabled; the next run goes on with the load'
                   ELSE 'enabled; the next run loads it' END;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_state(tablesync.replica) IS 'check: would a run be started?';

CREATE FUNCTION tablesync.preflight_owner(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = settings.replica);
    role_name name := pg_get_userbyid(table_owner);
    can_log_in boolean := (SELECT r.rolcanlogin FROM pg_roles r WHERE r.oid = table_owner);
    problems text;
    hints text;
    creators text;
BEGIN
    SELECT string_agg(p.problem, '; '), string_agg(p.remedy, ' ')
    INTO problems, hints
    FROM (
        SELECT format('role "%s" may not log in, and %s as the owner', role_name, w.who),
               format('ALTER ROLE %I LOGIN;', role_name)
        FROM (SELECT CASE WHEN current_setting('server_version_num')::integer < 170000 THEN 'workers connect'
                          WHEN EXISTS (SELECT FROM tablesync.schedule s WHERE s.replica = settings.replica) THEN 'pg_cron connects' END) w (who)
        WHERE NOT can_log_in AND w.who IS NOT NULL
        UNION ALL
        SELECT format('role "%s" may not connect to this database', role_name),
               format('GRANT CONNECT ON DATABASE %I TO %I;', current_database(), role_name)
        WHERE NOT has_database_privilege(table_owner, current_database(), 'CONNECT')
        UNION ALL
        SELECT DISTINCT format('role "%s" may not use schema %I', role_name, n.nspname),
               format('GRANT USAGE ON SCHEMA %I TO %I;', n.nspname, role_name)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid IN (settings.replica, settings.source) AND NOT has_schema_privilege(table_owner, n.oid, 'USAGE')
        UNION ALL
        SELECT format('role "%s" may not %s %s', role_name, string_agg(w.privilege, ', '), w.relation),
               format('GRANT %s ON %s TO %I;', string_agg(w.privilege, ', '), w.relation, role_name)
        FROM (VALUES (settings.source, 'SELECT'), (settings.replica, 'SELECT'), (settings.replica, 'INSERT'),
                     (settings.replica, 'UPDATE'), (settings.replica, 'DELETE')) w (relation, privilege)
        WHERE NOT has_table_privilege(table_owner, w.relation, w.privilege)
        GROUP BY w.relation
    ) p (problem, remedy);
    IF problems IS NOT NULL THEN
        PERFORM tablesync.fail_check(problems, hints);
    END IF;
    SELECT string_agg(CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END, ', ' ORDER BY a.grantee)
    INTO creators
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace,
         aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
    WHERE e.extname = 'tablesync' AND a.privilege_type = 'CREATE' AND a.grantee NOT IN (n.nspowner, e.extowner);
    detail := format('%s may %sread the foreign table and write the replica', role_name, CASE WHEN can_log_in THEN 'log in, ' END)
        || coalesce('; in the schema of the extension others may create functions, which is no good: ' || creators, '');
END
$$;
COMMENT ON FUNCTION tablesync.preflight_owner(tablesync.replica) IS 'check: may the owner do here what a run does?';

CREATE FUNCTION tablesync.preflight_mapping(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = settings.replica);
    server oid := (tablesync.source_target(settings.source)).server;
BEGIN
    IF server IS NULL THEN
        PERFORM tablesync.fail_check(format('foreign table %s does not exist any more', settings.source),
                                     'Create it again, and add the replica again with tablesync_add().');
    END IF;
    PERFORM tablesync.check_mapping(pg_get_userbyid(table_owner), server);
    detail := format('%s reads as %s', pg_get_userbyid(table_owner), tablesync.remote_role(table_owner, server));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_mapping(tablesync.replica) IS 'check: has the owner a user mapping?';

CREATE FUNCTION tablesync.preflight_worker_slots(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    slots record := tablesync.worker_slots();
BEGIN
    detail := format('%s of %s worker processes are in use', slots.used, slots.total);
    hint := format('ALTER SYSTEM SET max_worker_processes = %s; needs a restart.', slots.total + 8);
    IF slots.used >= slots.total THEN
        PERFORM tablesync.fail_check(detail, hint);
    ELSIF slots.used + settings.workers < slots.total THEN
        hint := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_worker_slots(tablesync.replica) IS 'check: is there a background worker for a run?';

/* Without pg_cron somebody else has to start runs: worth a hint, not a failure. */
CREATE FUNCTION tablesync.preflight_pg_cron(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cron_database text;
    version text := (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'pg_cron');
BEGIN
    BEGIN
        cron_database := current_setting('cron.database_name', true);
    EXCEPTION WHEN insufficient_privilege THEN
        detail := 'pg_cron runs on this server, in a database that only administrators may look up';
        hint := 'An administrator sees it by: SHOW cron.database_name;';
    END;
    IF version IS NOT NULL THEN
        hint := NULL;
        detail := format('pg_cron %s is installed in this database', version);
    ELSIF cron_database IS NOT NULL THEN
        detail := format('pg_cron lives in database %s', cron_database);
        hint := format('Schedule from there: SELECT cron.schedule_in_database(%L, ''0 * * * *'', %L, %L);',
                       'tablesync ' || settings.replica, format('SELECT tablesync_run(%L)', settings.replica), current_database());
    ELSIF detail IS NULL THEN
        detail := 'pg_cron is not installed in this database: runs are started by hand or by other means';
        hint := 'To schedule runs here, add pg_cron to shared_preload_libraries, restart, and CREATE EXTENSION pg_cron.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_pg_cron(tablesync.replica) IS 'check: where is pg_cron?';

/* ---- checks made by a worker, as the owner ---- */

CREATE FUNCTION tablesync.preflight_connection(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    server_name name;
    address text;
    message text;
BEGIN
    SELECT s.srvname, (SELECT string_agg(o.option_name || '=' || o.option_value, ' ' ORDER BY o.option_name)
                       FROM pg_options_to_table(s.srvoptions) o
                       WHERE o.option_name IN ('host', 'hostaddr', 'port', 'dbname', 'service'))
    INTO server_name, address
    FROM pg_foreign_server s WHERE s.oid = target.server;
    PERFORM tablesync.source_image(target.server, target.schema_name, target.table_name, whole => true);    -- what all other checks need, too
    detail := format('server "%s" (%s) answers', server_name, coalesce(address, 'libpq''s defaults'));
    BEGIN
        PERFORM tablesync.source_image(target.server, target.schema_name, target.table_name, whole => true, horizon => true);
    EXCEPTION WHEN insufficient_privilege THEN
        detail := format('%s, but does not show how far it has come (%s): each run compares every column, and a source that went back in time may not be noticed', detail, SQLERRM);
        hint := tablesync.catalog_hint(target.server, substring(SQLERRM from 'pg_[a-z_]+'));
    END;
EXCEPTION
    WHEN insufficient_privilege THEN
        PERFORM tablesync.fail_check(SQLERRM, tablesync.catalog_hint(target.server, substring(SQLERRM from 'pg_[a-z_]+')));
    WHEN connection_exception OR prohibited_sql_statement_attempted THEN
        GET STACKED DIAGNOSTICS message = PG_EXCEPTION_DETAIL;
        PERFORM tablesync.fail_check(concat_ws(': ', SQLERRM, nullif(message, '')),
                                     tablesync.connection_hint(target.server, concat_ws(E'\n', SQLERRM, message)));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_connection(tablesync.replica) IS 'check: does the source let the owner in?';

CREATE FUNCTION tablesync.preflight_session(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    image tablesync.source_image := tablesync.source_image(target.server, target.schema_name, target.table_name);
BEGIN
    PERFORM tablesync.check_source_session(settings.source);
    detail := 'read-only, and errors instead of hidden rows';
    IF tablesync.is_pooled(target.server, image) THEN
        detail := 'a connection pooler keeps the options of our sessions from the source: ';
        IF (image.read_only, image.row_security) = ('on', 'off') THEN
            detail := detail || 'its role makes them read-only, with errors instead of hidden rows; time limits are kept from here';
        ELSE
            detail := detail || 'they are read-only by the rights of their role alone, rows are not hidden while the table has no policies, time limits are kept from here, and the planner is not restricted';
            hint := tablesync.pooler_hint(target.server);
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_session(tablesync.replica) IS 'check: is the session at the source restricted as a run needs it?';

CREATE FUNCTION tablesync.preflight_server(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version integer := tablesync.check_source_server(settings.source);
BEGIN
    detail := format('PostgreSQL %s.%s, encoding %s on both sides, hash functions agree',
                     version / 10000, version % 10000, current_setting('server_encoding'));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_server(tablesync.replica) IS 'check: version, encoding and hash functions of the source';

CREATE FUNCTION tablesync.preflight_source_table(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    problem text := tablesync.source_kind_problem(relation.relkind, relation.has_children, settings.source_is_view);
BEGIN
    IF problem IS NOT NULL THEN
        PERFORM tablesync.fail_check(problem, tablesync.source_kind_hint(relation.relkind, settings.source_is_view));
    END IF;
    detail := format('%I.%I is a %s', target.schema_name, target.table_name,
                     CASE relation.relkind WHEN 'p' THEN 'partitioned table' WHEN 'm' THEN 'materialized view'
                         WHEN 'v' THEN 'view: rewrites of the tables behind it do not show, but for the second look at rows that seem to be gone' ELSE 'table' END);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_source_table(tablesync.replica) IS 'check: is there such a table at the source?';

/* Reads no row; the source checks privileges and policies before it reads the first. */
CREATE FUNCTION tablesync.read_nothing(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.ask_source(format('SELECT %s%s FROM %s LIMIT 0',
        CASE WHEN settings.fingerprint = 'xmin' THEN 'ctid, ' END,    -- a system column, too
        (SELECT string_agg(format('%I', c->>'column'), ', ') FROM jsonb_array_elements(settings.shape) c), settings.source));
END
$$;
COMMENT ON FUNCTION tablesync.read_nothing(tablesync.replica) IS 'an error unless the owner may read all columns and all rows of the source';

CREATE FUNCTION tablesync.preflight_privileges(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    role_name text := tablesync.remote_role((SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user), target.server);
BEGIN
    PERFORM tablesync.read_nothing(settings);
    detail := format('%s may read %I.%I', role_name, target.schema_name, target.table_name);
EXCEPTION
    WHEN insufficient_privilege THEN
        PERFORM tablesync.fail_check('the source says: ' || SQLERRM,
            format('At the source: GRANT USAGE ON SCHEMA %1$I TO %3$s; GRANT SELECT%4$s ON %1$I.%2$I TO %3$s;',
                   target.schema_name, target.table_name, role_name,
                   CASE WHEN settings.columns IS NOT NULL AND settings.fingerprint <> 'xmin' THEN
                       (SELECT format(' (%s)', string_agg(format('%I', c->>'remote'), ', ' ORDER BY (c->>'attnum')::integer)) FROM jsonb_array_elements(settings.shape) c) END));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_privileges(tablesync.replica) IS 'check: may we read the whole source?';

CREATE FUNCTION tablesync.preflight_row_security(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
BEGIN
    detail := 'off at the source';
    IF tablesync.is_view(relation.relkind) THEN
        PERFORM tablesync.read_nothing(settings);
        detail := 'a view may have policies behind it; none hides rows from us';
    ELSIF relation.row_security THEN
        PERFORM tablesync.read_nothing(settings);
        detail := 'on at the source, but no policy hides rows from us';
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        PERFORM tablesync.fail_check('the source says: ' || SQLERRM,
            format('At the source: ALTER ROLE %s BYPASSRLS; or map to the owner of %I.%I. See also the check of privileges.',
                   tablesync.remote_role((SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user), target.server),
                   target.schema_name, target.table_name));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_row_security(tablesync.replica) IS 'check: would policies hide rows from us?';

CREATE FUNCTION tablesync.preflight_key(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    image tablesync.source_image := tablesync.source_image(target.server, target.schema_name, target.table_name, whole => true);
    key_list text := (SELECT string_agg(quote_ident(k), ', ') FROM unnest(settings.key_columns) k);
    attnums integer[];
    index_name text;
BEGIN
    IF settings.source_is_view THEN
        PERFORM tablesync.check_null_keys(settings);
        detail := format('(%s), %s; no row has NULL there', key_list,
                         CASE WHEN tablesync.has_view_index(settings.source, tablesync.source_shape(settings.source), settings.key_columns) THEN 'by a unique index'
                              ELSE 'which no index proves: two rows with the same one end a run with an error' END);
        RETURN;
    END IF;
    PERFORM tablesync.source_key(settings.source, settings.key_columns);
    SELECT array_agg((s.c->>'attnum')::integer ORDER BY k.n) INTO attnums
    FROM unnest(settings.key_columns) WITH ORDINALITY k (name, n)
    JOIN jsonb_array_elements(tablesync.source_shape(settings.source)) s (c) ON s.c->>'column' = k.name;
    index_name := (SELECT min(i.name)
                   FROM unnest(image.indkeys, image.indnkeyatts, image.uniques, image.indnames) i (indkey, nkeyatts, is_unique, name)
                   WHERE i.is_unique AND (tablesync.key_attnums(i.indkey, i.nkeyatts))[:cardinality(attnums)] = attnums);
    IF index_name IS NULL THEN
        PERFORM tablesync.fail_check(format('no index of the source begins with (%s) in this order: every page of a load would sort the whole table', key_list),
            format('SELECT tablesync_remove(%L); and add it again with key_columns in the order of an index.', settings.replica));
    END IF;
    detail := format('(%s), by index %I', key_list, index_name);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_key(tablesync.replica) IS 'check: has the source the key, and an index in its order?';

CREATE FUNCTION tablesync.preflight_types(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_source(settings.source, settings.key_columns, settings.version_column,
                                   CASE WHEN settings.adopted AND settings.fingerprint <> 'xmin' THEN 'row' ELSE settings.fingerprint END,
                                   tablesync.wanted_shape(settings, tablesync.source_shape(settings.source)));
    detail := format('%s columns, each of the same type on both sides; compared by %s', (SELECT count(*) FROM tablesync.replica_columns(settings.replica)),
                     CASE WHEN settings.adopted THEN 'all columns, until a run has succeeded'
                          WHEN settings.fingerprint = 'row' THEN 'all columns'
                          WHEN settings.fingerprint = 'xmin' THEN 'key and xmin'
                          ELSE format('key and %I', settings.version_column) END);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_types(tablesync.replica) IS 'check: can every column be replicated exactly?';

CREATE FUNCTION tablesync.preflight_collation(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    sorted text;
    fuzzy text;
BEGIN
    SELECT string_agg(quote_ident(c.remote_name), ', ' ORDER BY c.attnum) INTO fuzzy
    FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
    LEFT JOIN pg_attribute a ON a.attrelid = settings.replica AND a.attname = c.remote_name AND NOT a.attisdropped
    WHERE EXISTS (SELECT FROM jsonb_array_elements(settings.shape) s WHERE s->>'remote' = c.remote_name)
      AND c.problem LIKE 'its collation %'
       OR EXISTS (SELECT FROM pg_collation co WHERE co.oid = a.attcollation AND NOT co.collisdeterministic);
    IF fuzzy IS NOT NULL THEN
        PERFORM tablesync.fail_check(format('the collation of column %s is not deterministic: different values count as equal', fuzzy),
                                     'A column like that can''t be replicated exactly. Leave the table out, or change the collation.');
    END IF;
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO sorted
    FROM pg_attribute a JOIN tablesync.replica_columns(settings.replica) c ON c.column_name = a.attname
    WHERE a.attrelid = settings.replica AND a.attname = ANY (settings.key_columns) AND a.attcollation <> 0 AND c.bytewise_collation IS NULL;
    detail := 'the key does not depend on how text is sorted';
    IF sorted IS NOT NULL THEN
        detail := format('key column %s is text, and the two sides may sort it differently', sorted);
        hint := 'Nothing to do. Only key columns before it divide the table into chunks; if it is the first one, one statement scans the whole table.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_collation(tablesync.replica) IS 'check: does a collation get in the way?';

CREATE FUNCTION tablesync.preflight_shape(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changes record;
BEGIN
    SELECT string_agg(s.detail, '; ') AS all_of_them, string_agg(s.problem, '; ') AS problems, string_agg(DISTINCT s.hint, ' ') AS hints
    INTO changes
    FROM tablesync.plan_evolution(settings, tablesync.wanted_shape(settings, tablesync.source_shape(settings.source))) s;
    IF settings.on_schema_change = 'apply' AND changes.problems IS NOT NULL THEN
        PERFORM tablesync.fail_check(changes.problems, changes.hints);
    ELSIF settings.on_schema_change = 'pause' AND changes.all_of_them IS NOT NULL THEN
        PERFORM tablesync.fail_check(changes.all_of_them, 'The next run pauses the replica, as on_schema_change says.');
    END IF;
    detail := CASE WHEN changes.all_of_them IS NULL THEN 'the source is as it was when the replica was built'
              ELSE format('the next run does what on_schema_change says, which is %s: %s', settings.on_schema_change, changes.all_of_them) END;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_shape(tablesync.replica) IS 'check: has the source changed its shape?';

CREATE FUNCTION tablesync.preflight_replica_table(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text := (SELECT string_agg(c.problem, ' ') FROM tablesync.replica_columns(settings.replica) c);
BEGIN
    IF problem IS NOT NULL THEN
        PERFORM tablesync.fail_check(problem, 'Undo the change, or remove the replica with tablesync_remove() and add it again.');
    ELSIF NOT tablesync.has_key_index(settings.replica, settings.key_columns) THEN
        PERFORM tablesync.fail_check('the replica has no unique index on its key: rows would be looked up one by one',
            format('ALTER TABLE %s ADD PRIMARY KEY (%s);', settings.replica,
                   (SELECT string_agg(quote_ident(k), ', ') FROM unnest(settings.key_columns) k)));
    ELSIF (SELECT c.relforcerowsecurity FROM pg_class c WHERE c.oid = settings.replica) THEN
        PERFORM tablesync.fail_check('row security is forced on the owner: policies would hide rows from runs',
            format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY;', settings.replica));
    END IF;
    detail := 'it has the columns of its source, and an index on the key'
        || coalesce((SELECT '; what its BEFORE triggers change differs from the source: ' || string_agg(quote_ident(t.tgname), ', ' ORDER BY t.tgname)
                     FROM pg_trigger t
                     WHERE t.tgrelid = settings.replica AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 3 = 3), '');
END
$$;
COMMENT ON FUNCTION tablesync.preflight_replica_table(tablesync.replica) IS 'check: does the replica fit its source?';

CREATE FUNCTION tablesync.preflight_statements(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_digest(settings.replica, tablesync.check_source_server(settings.source));
    detail := 'the source computes the digests; rows that are equal do not cross the network';
END
$$;
COMMENT ON FUNCTION tablesync.preflight_statements(tablesync.replica) IS 'check: does the source do the work of a run''s statements?';

/* Bytes of a row: the planner's figure, from statistics where there are any. */
CREATE FUNCTION tablesync.row_width(settings tablesync.replica)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT %s FROM %s',
                   (SELECT string_agg(quote_ident(c.column_name), ', ') FROM tablesync.replica_columns(settings.replica) c),
                   settings.replica)
    INTO plan;
    RETURN (plan->0->'Plan'->>'Plan Width')::integer;
END
$$;
COMMENT ON FUNCTION tablesync.row_width(tablesync.replica) IS 'bytes of an average row of a replica, as the planner sees it';

/*
 * What a run costs: by the last ten that compared, else by the speed of a
 * modest machine.  A chunk's digest is one row of some 100 bytes.
 */
CREATE FUNCTION tablesync.preflight_estimate(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows_compared_per_second CONSTANT double precision := 1000000;
    rows_loaded_per_second CONSTANT double precision := 250000;
    target record := tablesync.source_target(settings.source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    row_count double precision := coalesce(nullif(relation.estimated_rows, 0), (SELECT sum(c.rows) FROM tablesync.chunk c WHERE c.replica = settings.replica), 0);
    width integer := tablesync.row_width(settings);
    past record;
BEGIN
    SELECT count(*) AS runs, avg(r.rows_scanned) AS row_count, avg(EXTRACT(epoch FROM r.source_time)) AS seconds,
           avg(r.chunks * 100 + (r.inserted + r.updated) * width) AS bytes
    INTO past
    FROM (SELECT * FROM tablesync.run q
          WHERE q.replica = settings.replica AND q.status = 'succeeded' AND q.kind = 'sync'
          ORDER BY q.run_id DESC LIMIT 10) r;
    IF past.runs > 0 THEN
        detail := format('%s rows, about %s over the network, %s s at the source (average of the last %s runs)',
                         round(past.row_count), pg_size_pretty(round(past.bytes)), round(past.seconds, 3), past.runs);
        RETURN;
    END IF;
    IF row_count = 0 THEN
        hint := CASE WHEN relation.relkind = 'v' THEN 'A view has no statistics: how many rows it has the first run tells.'
                     ELSE format('The source has no statistics of it. There: ANALYZE %I.%I;', target.schema_name, target.table_name) END;
    END IF;
    detail := format('about %s rows%s; ', row_count::bigint, CASE WHEN settings.filter IS NOT NULL THEN ' without the filter' ELSE '' END);
    IF NOT settings.loaded THEN
        detail := detail || format('the load transfers about %s in %s s; ',
                                   pg_size_pretty((row_count * width)::bigint), round((row_count / rows_loaded_per_second)::numeric, 2));
    END IF;
    detail := detail || format('a run takes about %s s at the source and transfers about %s bytes for each row that has changed '
                               '(assumed: %s rows compared and %s loaded in a second)',
                               round((row_count / rows_compared_per_second)::numeric, 2), width,
                               rows_compared_per_second, rows_loaded_per_second);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_estimate(tablesync.replica) IS 'check: rows, bytes over the network and seconds at the source of a run';
