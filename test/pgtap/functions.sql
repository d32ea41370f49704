-- The functions that users call: names, arguments, defaults, results.

SELECT plan(35);

SELECT has_extension('tablesync');
SELECT has_schema('tablesync');
SELECT is(current_setting('shared_preload_libraries'), '', 'shared_preload_libraries is not needed');

/* Arguments of the only function of a name whose first arguments have these types. */
CREATE FUNCTION pg_temp.arguments(name name, types text) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(pg_get_function_arguments(p.oid), E'\n')
    FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.proname = name
      AND oidvectortypes(p.proargtypes) LIKE types || '%';
$$;

SELECT has_function('public', 'tablesync_add', ARRAY['text', 'regclass', 'name[]', 'name', 'text', 'text', 'integer', 'double precision', 'double precision', 'text', 'boolean', 'interval', 'integer', 'boolean', 'interval', 'text', 'double precision', 'name[]', 'text', 'jsonb', 'boolean', 'boolean', 'interval']);
SELECT has_function('public', 'tablesync_add', ARRAY['text', 'name', 'text', 'name[]', 'name', 'text', 'text', 'integer', 'double precision', 'double precision', 'text', 'boolean', 'interval', 'integer', 'boolean', 'interval', 'text', 'double precision', 'name[]', 'text', 'jsonb', 'boolean', 'boolean', 'interval']);
SELECT has_function('public', 'tablesync_alter', ARRAY['regclass', 'name', 'text', 'text', 'integer', 'double precision', 'double precision', 'text', 'boolean', 'interval', 'integer', 'boolean', 'interval', 'text', 'double precision', 'name[]', 'text', 'jsonb', 'boolean', 'interval']);
SELECT has_function('public', 'tablesync_remove', ARRAY['regclass', 'boolean']);
SELECT has_function('public', 'tablesync_run', ARRAY['regclass', 'boolean', 'boolean']);
SELECT has_function('public', 'tablesync_wait', ARRAY['bigint', 'interval']);
SELECT has_function('public', 'tablesync_cancel', ARRAY['regclass']);
SELECT has_function('public', 'tablesync_pause', ARRAY['regclass']);
SELECT has_function('public', 'tablesync_resume', ARRAY['regclass']);

SELECT is(pg_temp.arguments('tablesync_add', 'text, regclass'),
    'replica text, source regclass, key_columns name[] DEFAULT NULL::name[], version_column name DEFAULT NULL::name, '
    'fingerprint text DEFAULT NULL::text, consistency text DEFAULT ''auto''::text, chunk_rows integer DEFAULT NULL::integer, '
    'max_source_load double precision DEFAULT 1.0, max_delete_fraction double precision DEFAULT 0.2, '
    'on_schema_change text DEFAULT ''apply''::text, drop_columns boolean DEFAULT false, freshness interval DEFAULT NULL::interval, workers integer DEFAULT 2, '
    'enabled boolean DEFAULT true, trust_counters_for interval DEFAULT NULL::interval, sync_group text DEFAULT NULL::text, '
    'verify_fraction double precision DEFAULT NULL::double precision, columns name[] DEFAULT NULL::name[], '
    'filter text DEFAULT NULL::text, expressions jsonb DEFAULT NULL::jsonb, source_is_view boolean DEFAULT false, '
    'feed boolean DEFAULT false, keep_changes interval DEFAULT NULL::interval',
    'arguments of tablesync_add from a foreign table');
SELECT is(pg_temp.arguments('tablesync_add', 'text, name'),
    'replica text, server name, source text, key_columns name[] DEFAULT NULL::name[], version_column name DEFAULT NULL::name, '
    'fingerprint text DEFAULT NULL::text, consistency text DEFAULT ''auto''::text, chunk_rows integer DEFAULT NULL::integer, '
    'max_source_load double precision DEFAULT 1.0, max_delete_fraction double precision DEFAULT 0.2, '
    'on_schema_change text DEFAULT ''apply''::text, drop_columns boolean DEFAULT false, freshness interval DEFAULT NULL::interval, workers integer DEFAULT 2, '
    'enabled boolean DEFAULT true, trust_counters_for interval DEFAULT NULL::interval, sync_group text DEFAULT NULL::text, '
    'verify_fraction double precision DEFAULT NULL::double precision, columns name[] DEFAULT NULL::name[], '
    'filter text DEFAULT NULL::text, expressions jsonb DEFAULT NULL::jsonb, source_is_view boolean DEFAULT false, '
    'feed boolean DEFAULT false, keep_changes interval DEFAULT NULL::interval',
    'arguments of tablesync_add from server and name');
SELECT is(pg_temp.arguments('tablesync_alter', ''),
    'replica regclass, version_column name DEFAULT NULL::name, fingerprint text DEFAULT NULL::text, '
    'consistency text DEFAULT NULL::text, chunk_rows integer DEFAULT NULL::integer, '
    'max_source_load double precision DEFAULT NULL::double precision, max_delete_fraction double precision DEFAULT NULL::double precision, '
    'on_schema_change text DEFAULT NULL::text, drop_columns boolean DEFAULT NULL::boolean, freshness interval DEFAULT NULL::interval, workers integer DEFAULT NULL::integer, '
    'enabled boolean DEFAULT NULL::boolean, trust_counters_for interval DEFAULT NULL::interval, sync_group text DEFAULT NULL::text, '
    'verify_fraction double precision DEFAULT NULL::double precision, columns name[] DEFAULT NULL::name[], '
    'filter text DEFAULT NULL::text, expressions jsonb DEFAULT NULL::jsonb, '
    'feed boolean DEFAULT NULL::boolean, keep_changes interval DEFAULT NULL::interval',
    'arguments of tablesync_alter: nothing changes by default');
SELECT is(pg_temp.arguments('tablesync_remove', ''), 'replica regclass, drop_replica boolean DEFAULT false', 'arguments of tablesync_remove');
SELECT is(pg_temp.arguments('tablesync_run', ''), 'replica regclass DEFAULT NULL::regclass, wait boolean DEFAULT true, force boolean DEFAULT false', 'arguments of tablesync_run');
SELECT is(pg_temp.arguments('tablesync_wait', ''), 'run_id bigint, timeout interval DEFAULT NULL::interval', 'arguments of tablesync_wait');

SELECT function_returns('public', 'tablesync_add', ARRAY['text', 'regclass', 'name[]', 'name', 'text', 'text', 'integer', 'double precision', 'double precision', 'text', 'boolean', 'interval', 'integer', 'boolean', 'interval', 'text', 'double precision', 'name[]', 'text', 'jsonb', 'boolean', 'boolean', 'interval'], 'regclass');
SELECT function_returns('public', 'tablesync_add', ARRAY['text', 'name', 'text', 'name[]', 'name', 'text', 'text', 'integer', 'double precision', 'double precision', 'text', 'boolean', 'interval', 'integer', 'boolean', 'interval', 'text', 'double precision', 'name[]', 'text', 'jsonb', 'boolean', 'boolean', 'interval'], 'regclass');
SELECT is(pg_get_function_result('tablesync_alter'::regproc), 'SETOF tablesync.replica', 'tablesync_alter returns the settings');
SELECT is(pg_get_function_result('tablesync_run'::regproc),
    'TABLE(replica regclass, run_id bigint, status text, rows bigint, inserted bigint, updated bigint, deleted bigint, duration interval, message text)',
    'tablesync_run returns a row for each replica');
SELECT function_returns('public', 'tablesync_remove', ARRAY['regclass', 'boolean'], 'void');
SELECT function_returns('public', 'tablesync_wait', ARRAY['bigint', 'interval'], 'text');
SELECT function_returns('public', 'tablesync_cancel', ARRAY['regclass'], 'boolean');
SELECT function_returns('public', 'tablesync_pause', ARRAY['regclass'], 'void');
SELECT function_returns('public', 'tablesync_resume', ARRAY['regclass'], 'void');

-- results_eq() would run it in a subtransaction, where it is refused
SELECT is(
    (SELECT array_agg(status || pg_typeof(replica) || pg_typeof(run_id) || rows || inserted || updated || deleted || pg_typeof(duration) || (message IS NULL))
     FROM tablesync_run('media')),
    ARRAY['succeededregclassbigint3000intervaltrue'], 'tablesync_run returns what it says');

-- what belongs to the extension
SELECT is_empty(
    $$SELECT pg_describe_object(d.classid, d.objid, 0)
      FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) i
      WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
        AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'tablesync')
        AND i.schema = 'public' AND i.name NOT LIKE 'tablesync\_%' AND i.identity NOT LIKE '%tablesync\_%'$$,
    'outside of schema tablesync every name begins with tablesync_');
SELECT is_empty(
    $$SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
      JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
      JOIN pg_language l ON l.oid = p.prolang
      WHERE e.extname = 'tablesync' AND l.lanname IN ('sql', 'plpgsql') AND p.proname <> 'tablesync_add'    -- its body was parsed under that path
        AND p.prokind <> 'p'    -- a procedure with SET can't commit
        AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}'))$$,
    'functions have a fixed search_path');
SELECT is_empty(
    $$SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
      JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
      WHERE e.extname = 'tablesync' AND p.prosecdef AND p.proname NOT IN ('before_drop', 'forget_dropped', 'note_write', 'cron_home', 'cron_schedule', 'follow_schedule')$$,
    'few functions run with their owner''s rights');

-- parameters
LOAD 'tablesync';
SELECT is(current_setting('tablesync.max_snapshot_age'), '30s', 'tablesync.max_snapshot_age');
SELECT is(current_setting('tablesync.statement_timeout'), '5min', 'tablesync.statement_timeout');
SELECT is(current_setting('tablesync.lock_timeout'), '10s', 'tablesync.lock_timeout');
SELECT throws_ok('SET tablesync.no_such_parameter = 1', '42602', NULL, 'no other parameter has the prefix');

SELECT * FROM finish();
