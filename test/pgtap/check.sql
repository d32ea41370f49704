-- tablesync_check, tablesync_add_schema and tablesync_totals: names, arguments,
-- columns, and who may see and do what.

SELECT plan(36);

SELECT is(pg_get_function_arguments('tablesync_check'::regproc),
    'replica regclass DEFAULT NULL::regclass', 'arguments of tablesync_check');
SELECT is(pg_get_function_result('tablesync_check'::regproc),
    'TABLE(replica regclass, check_name text, ok boolean, detail text, hint text)', 'columns of tablesync_check');
SELECT is(pg_get_function_arguments('tablesync_add_schema'::regproc),
    'server name, remote_schema text, local_schema text, only_tables name[] DEFAULT NULL::name[], except_tables name[] DEFAULT NULL::name[], '
    'version_column name DEFAULT NULL::name, fingerprint text DEFAULT NULL::text, consistency text DEFAULT ''auto''::text, '
    'chunk_rows integer DEFAULT NULL::integer, max_source_load double precision DEFAULT 1.0, max_delete_fraction double precision DEFAULT 0.2, '
    'on_schema_change text DEFAULT ''apply''::text, drop_columns boolean DEFAULT false, freshness interval DEFAULT NULL::interval, workers integer DEFAULT 2, enabled boolean DEFAULT true, '
    'trust_counters_for interval DEFAULT NULL::interval, sync_group text DEFAULT NULL::text, verify_fraction double precision DEFAULT NULL::double precision, '
    'source_is_view boolean DEFAULT false, feed boolean DEFAULT false, keep_changes interval DEFAULT NULL::interval, columns jsonb DEFAULT NULL::jsonb, filter jsonb DEFAULT NULL::jsonb, expressions jsonb DEFAULT NULL::jsonb, dry_run boolean DEFAULT false',
    'arguments of tablesync_add_schema: the settings and defaults of tablesync_add');
SELECT is(pg_get_function_result('tablesync_add_schema'::regproc),
    'TABLE(source text, replica regclass, added boolean, reason text)', 'columns of tablesync_add_schema');
SELECT is((SELECT string_agg(format('%s %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
           FROM pg_attribute WHERE attrelid = 'tablesync_totals'::regclass AND attnum > 0),
    'replica regclass, succeeded bigint, failed bigint, cancelled bigint, crashed bigint, failures_in_a_row bigint, rows_scanned bigint, '
    'inserted bigint, updated bigint, deleted bigint, duration interval, source_time interval', 'columns of tablesync_totals');

-- documentation in the catalog
SELECT is_empty(
    $$SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
      WHERE c.oid = 'tablesync.total'::regclass AND obj_description(c.oid, 'pg_class') IS NULL$$, 'the table has a comment');
SELECT isnt(obj_description(p, 'pg_proc'), NULL, p::regproc || ' has a comment')
FROM unnest(ARRAY['tablesync_check', 'tablesync_add_schema']::regproc[]) p;

-- the checks, in the order of what depends on what
SELECT results_eq($$SELECT check_name FROM tablesync_check('media')$$,
    $$VALUES ('state'), ('owner'), ('mapping'), ('worker_slots'), ('pg_cron'), ('publication'), ('connection'), ('server'), ('session'), ('source_table'),
             ('privileges'), ('row_security'), ('key'), ('types'), ('collation'), ('shape'), ('replica_table'), ('statements'), ('estimate')$$,
    'checks');
SELECT is_empty($$SELECT * FROM tablesync_check() WHERE NOT ok$$, 'all are ok');
SELECT is_empty($$SELECT * FROM tablesync_check() WHERE detail IS NULL OR detail = '' OR hint = ''$$, 'each says something');
SELECT lives_ok($$DO 'BEGIN ALTER ROLE app NOLOGIN; END'$$, 'something is broken');
SELECT is_empty($$SELECT * FROM tablesync_check() WHERE NOT ok AND hint IS NULL$$, 'what fails has a hint');
SELECT lives_ok($$DO 'BEGIN ALTER ROLE app LOGIN; END'$$, 'and mended');

-- totals
SELECT results_eq($$SELECT succeeded > 0, failed, failures_in_a_row, inserted FROM tablesync_totals WHERE replica = 'media'::regclass$$,
    $$VALUES (true, 0::bigint, 0::bigint, 3::bigint)$$, 'totals of a replica that is fine');
SELECT results_eq($$SELECT succeeded, failed > 0, failures_in_a_row = failed FROM tablesync_totals WHERE replica = 'broken'::regclass$$,
    $$VALUES (0::bigint, true, true)$$, 'totals of a replica that has never worked');
SELECT is((SELECT relrowsecurity FROM pg_class WHERE oid = 'tablesync.total'::regclass), true, 'row level security of tablesync.total');
SELECT is((SELECT count(*) FROM pg_extension WHERE extname = 'tablesync' AND 'tablesync.all_totals'::regclass = ANY (extconfig)), 1::bigint, 'totals are dumped');

-- who
SET ROLE member;
SELECT isnt_empty($$SELECT * FROM tablesync_check('media')$$, 'member: checks');
SELECT is_empty($$SELECT * FROM tablesync_check('media') WHERE NOT ok$$, 'member: as the owner, without a user mapping of her own');
SELECT isnt_empty('SELECT * FROM tablesync_totals', 'member: sees totals');
SET ROLE other;
SELECT is_empty('SELECT * FROM tablesync_check()', 'other: has nothing to check');
SELECT throws_ok($$SELECT * FROM tablesync_check('media')$$, '42501', NULL, 'other: can''t check what others own');
SELECT throws_ok($$SELECT tablesync.check_in_worker('media')$$, '42501', NULL, 'other: nor start the worker');
SELECT throws_ok($$SELECT tablesync.check_digest('media', 150000)$$, '0A000', NULL, 'other: nor do the worker''s part');
SELECT throws_ok($$SELECT tablesync.ask_source('SELECT 1')$$, '0A000', NULL, 'other: nor talk to a source');
SELECT throws_ok($$SELECT * FROM tablesync_add_schema('src', 'public', 'public')$$, '42501', NULL, 'other: can''t use a server of others');
SELECT is_empty('SELECT * FROM tablesync_totals', 'other: sees no totals');
SELECT is_empty('SELECT * FROM tablesync.total', 'other: nor the table behind');
SELECT throws_ok($$INSERT INTO tablesync.total (replica) VALUES ('media'::regclass) ON CONFLICT (replica) DO UPDATE SET succeeded = 0$$, '42501', NULL, 'other: can''t change them');
SET ROLE watcher;
SELECT is_empty('SELECT * FROM tablesync_check()', 'watcher: checks nothing, because hints name roles and addresses');
SELECT throws_ok($$SELECT * FROM tablesync_check('media')$$, '42501', NULL, 'watcher: nor by name');
SELECT isnt_empty('SELECT * FROM tablesync_totals', 'watcher: sees totals');
SELECT is_empty('SELECT * FROM tablesync.total', 'watcher: by the view only');
SELECT ok(used BETWEEN 0 AND total AND total = current_setting('max_worker_processes')::integer, 'watcher: sees how many workers there are')
FROM tablesync.worker_slots();
SET ROLE app;
SELECT is((SELECT count(*) FROM tablesync_add_schema('src', 'public', 'public') WHERE added), 0::bigint, 'owner: nothing is left to add');
RESET ROLE;

SELECT * FROM finish();
