-- tablesync_verify, tablesync.difference and verify_fraction: names, types, rights.

SELECT plan(27);

SELECT has_function('public', 'tablesync_verify', ARRAY['regclass', 'boolean']);
SELECT is(pg_get_function_arguments('tablesync_verify'::regproc), 'replica regclass, repair boolean DEFAULT false', 'arguments of tablesync_verify');
SELECT is(pg_get_function_result('tablesync_verify'::regproc), 'TABLE(key jsonb, difference text, source jsonb, replica_row jsonb)', 'tablesync_verify returns rows that differ');
SELECT has_function('tablesync', 'note_drift', ARRAY['regclass', 'bigint', 'bigint', 'bigint']);

-- the table
SELECT is((SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum)
           FROM pg_attribute WHERE attrelid = 'tablesync.difference'::regclass AND attnum > 0),
    'run_id bigint, difference_no bigint, replica regclass, key jsonb, difference text, source jsonb, replica_row jsonb', 'columns of tablesync.difference');
SELECT is((SELECT relrowsecurity FROM pg_class WHERE oid = 'tablesync.difference'::regclass), true, 'row level security');
SELECT fk_ok('tablesync', 'all_differences', 'run_id', 'tablesync', 'all_runs', 'run_id');
SELECT is((SELECT confdeltype FROM pg_constraint WHERE conrelid = 'tablesync.all_differences'::regclass AND contype = 'f'), 'c', 'differences go with their run');
SELECT is((SELECT count(*) FROM pg_extension e WHERE extname = 'tablesync' AND 'tablesync.all_differences'::regclass = ANY (extconfig)), 1::bigint, 'a dump has them');
SELECT is_empty($$SELECT attname FROM pg_attribute WHERE attrelid = 'tablesync.difference'::regclass AND attnum > 0 AND col_description(attrelid, attnum) IS NULL$$,
    'every column is explained');

-- settings and the view
SELECT col_type_is('tablesync', 'replica', 'verify_fraction', 'double precision', 'verify_fraction');
SELECT is((SELECT attname::text FROM pg_attribute WHERE attrelid = 'tablesync_status'::regclass AND attnum > 0 ORDER BY attnum DESC LIMIT 1), 'oldest_proof', 'last column of tablesync_status');
SELECT is((SELECT count(*) FROM pg_proc WHERE proname IN ('tablesync_add', 'tablesync_alter') AND pronamespace = 'public'::regnamespace
           AND 'verify_fraction' = ANY (proargnames)), 3::bigint, 'a setting of tablesync_add and tablesync_alter');
SET ROLE app;
SELECT lives_ok($$SELECT tablesync_alter('media', verify_fraction => 0.5)$$, 'half of it');
SELECT lives_ok($$SELECT tablesync_alter('media', verify_fraction => 1)$$, 'all of it');
SELECT throws_ok($$SELECT tablesync_alter('media', verify_fraction => 1.01)$$, '22023', NULL, 'not more');
SELECT throws_ok($$SELECT tablesync_alter('media', verify_fraction => -0.1)$$, '22023', NULL, 'not less than nothing');
SELECT throws_ok($$SELECT tablesync_alter('media', verify_fraction => 'NaN')$$, '22023', NULL, 'nor no number at all');
SELECT lives_ok($$SELECT tablesync_alter('media', verify_fraction => 0)$$, 'none of it');

-- what it returns; throws_ok() would run it in a subtransaction
SELECT is((SELECT count(*) FROM tablesync_verify('media')), 0::bigint, 'owner: verifies');
SELECT isnt((SELECT oldest_proof FROM tablesync_status WHERE replica = 'media'::regclass), NULL, 'all is proved now');
SELECT throws_ok($$INSERT INTO tablesync.difference SELECT max(run_id), 1, 'media'::regclass, '{"id": 1}', 'different', '{}', '{}' FROM tablesync.run WHERE replica = 'media'::regclass$$, '42501', NULL, 'owner: may not invent any');
RESET ROLE;
SELECT throws_ok($$INSERT INTO tablesync.difference SELECT max(run_id), 1, 'media'::regclass, '{"id": 1}', 'missing here', '{}', '{}' FROM tablesync.run WHERE replica = 'media'::regclass$$, '23514', NULL, 'what is missing is missing');
SET ROLE other;
SELECT is_empty('SELECT * FROM tablesync.difference', 'other: sees nothing');
SELECT throws_ok($$INSERT INTO tablesync.difference VALUES (1, 1, 'media'::regclass, '{"id": 1}', 'different', '{}', '{}')$$, '42501', NULL, 'other: can''t invent a difference');
SET ROLE watcher;
SELECT is_empty('SELECT * FROM tablesync.difference', 'watcher: sees no rows of others');
RESET ROLE;
DELETE FROM tablesync.difference;
\set ON_ERROR_STOP off
SET ROLE watcher;
SELECT * FROM tablesync_verify('media');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_SQLSTATE', '42501'::text, 'watcher: may not verify');
RESET ROLE;

SELECT * FROM finish();
