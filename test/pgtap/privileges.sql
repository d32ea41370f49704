-- Who may see and do what.  Replicas belong to "app"; "member" is a member of
-- it, "watcher" of pg_monitor, "other" of nothing.

SELECT plan(63);

-- functions
SELECT is(has_function_privilege('other', p.oid, 'EXECUTE'), true, 'everybody may call ' || p.oid::regprocedure)
FROM pg_proc p
WHERE p.proname = ANY ('{tablesync_add,tablesync_alter,tablesync_remove,tablesync_run,tablesync_wait,tablesync_cancel,tablesync_pause,tablesync_resume}')
  AND p.pronamespace = 'public'::regnamespace
ORDER BY p.oid::regprocedure::text;
SELECT function_privs_are('tablesync', 'create_source_catalog', ARRAY['oid'], 'other', ARRAY[]::text[]);
SELECT function_privs_are('tablesync', 'forget_dropped', ARRAY[]::text[], 'other', ARRAY[]::text[]);

-- views and tables
SELECT table_privs_are('public', v, 'other', ARRAY['SELECT']) FROM unnest(ARRAY['tablesync_status', 'tablesync_runs', 'tablesync_progress']) v;
SELECT schema_privs_are('tablesync', 'other', ARRAY['USAGE']);
SELECT is(relrowsecurity, true, 'row level security of ' || oid::regclass)
FROM pg_class WHERE oid = ANY ('{tablesync.replica,tablesync.run,tablesync.chunk}'::regclass[]) ORDER BY oid::regclass::text;

-- the owner
SET ROLE app;
SELECT results_eq('SELECT replica FROM tablesync.replica ORDER BY replica::text', ARRAY['broken'::regclass, 'media'::regclass], 'owner: sees her replicas');
SELECT isnt_empty('SELECT * FROM tablesync_runs WHERE message IS NOT NULL', 'owner: reads messages');
SELECT isnt_empty('SELECT * FROM tablesync.chunk', 'owner: sees chunks');
SELECT is((SELECT status FROM tablesync_run('media')), 'succeeded', 'owner: runs');
SELECT lives_ok($$SELECT tablesync_pause('media')$$, 'owner: pauses');
SELECT lives_ok($$SELECT tablesync_resume('media')$$, 'owner: resumes');
SELECT lives_ok($$SELECT tablesync_cancel('media')$$, 'owner: cancels');
RESET ROLE;

-- a member of the owner
SET ROLE member;
SELECT results_eq('SELECT replica FROM tablesync_status ORDER BY replica::text', ARRAY['broken'::regclass, 'media'::regclass], 'member: sees the replicas');
SELECT isnt_empty('SELECT * FROM tablesync_runs WHERE message IS NOT NULL', 'member: reads messages');
SELECT is((SELECT status FROM tablesync_run('media')), 'succeeded', 'member: runs');
SELECT lives_ok($$SELECT tablesync_alter('media', workers => 1)$$, 'member: alters');
SELECT is(tablesync_wait((SELECT max(run_id) FROM tablesync_runs WHERE replica = 'media'::regclass)), 'succeeded', 'member: waits');
RESET ROLE;

-- another role
SET ROLE other;
SELECT is_empty('SELECT * FROM ' || t, 'other: sees nothing in ' || t)
FROM unnest(ARRAY['tablesync.replica', 'tablesync.run', 'tablesync.chunk', 'tablesync_status', 'tablesync_runs', 'tablesync_progress']) t;
SELECT is((SELECT count(*) FROM tablesync_run()), 0::bigint, 'other: has no replica to run');
SELECT throws_ok(sql, NULL, NULL, 'other: ' || sql) FROM unnest(ARRAY[
    $$SELECT tablesync_alter('media', workers => 2)$$,
    $$SELECT tablesync_remove('media')$$,
    $$SELECT tablesync_cancel('media')$$,
    $$SELECT tablesync_pause('media')$$,
    $$SELECT tablesync_resume('media')$$]) sql;
SELECT throws_ok($$SELECT tablesync_add('mine', 'src', 'public.media')$$, '42501', NULL, 'other: can''t use a server of others');
SELECT throws_ok($$SELECT tablesync_add('media', 'media_source')$$, '42501', NULL, 'other: can''t add a table of others');
SELECT throws_ok($$INSERT INTO tablesync.run (replica, kind) VALUES ('media'::regclass, 'sync')$$, '42501', NULL, 'other: can''t invent a run');
SELECT throws_ok($$INSERT INTO tablesync.chunk (replica, chunk_no) VALUES ('media'::regclass, 0)$$, '42501', NULL, 'other: can''t invent a chunk');
SELECT throws_ok($$INSERT INTO tablesync.replica (replica, source, key_columns, fingerprint, shape)
                   VALUES ('media_source'::regclass, 'media_source'::regclass, '{id}', 'row', '[]')$$, '42501', NULL, 'other: can''t invent a replica');
SELECT throws_ok($$UPDATE tablesync.replica SET max_delete_fraction = 1$$, '42501', NULL, 'other: changes no setting');
SELECT throws_ok($$DELETE FROM tablesync.run$$, '42501', NULL, 'other: deletes no history');
-- throws_ok() would run it in a subtransaction, where it is refused anyway
\set ON_ERROR_STOP off
SELECT * FROM tablesync_run('media');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_SQLSTATE', '42501'::text, 'other: tablesync_run');
RESET ROLE;

-- a member of pg_monitor
SET ROLE watcher;
SELECT results_eq('SELECT replica, state FROM tablesync_status ORDER BY replica::text',
                  $$VALUES ('broken'::regclass, 'failed'), ('media', 'ok')$$, 'watcher: sees states');
SELECT isnt_empty($$SELECT FROM tablesync_runs WHERE status = 'failed' AND sqlstate = '23514'$$, 'watcher: sees that a run has failed');
SELECT is_empty('SELECT FROM tablesync_status WHERE message IS NOT NULL', 'watcher: reads no message in tablesync_status');
SELECT is_empty('SELECT FROM tablesync_runs WHERE message IS NOT NULL', 'watcher: reads no message in tablesync_runs');
CREATE FUNCTION pg_temp.readable_messages() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT count(*) FROM tablesync.run WHERE message IS NOT NULL OR detail IS NOT NULL);
EXCEPTION WHEN insufficient_privilege THEN
    RETURN 0;
END
$$;
SELECT is(pg_temp.readable_messages(), 0::bigint, 'watcher: nor in the table behind, where details quote rows');
SELECT is_empty('SELECT FROM tablesync.chunk WHERE lower_key IS NOT NULL', 'watcher: sees no keys');
SELECT throws_ok(sql, '42501', NULL, 'watcher: ' || sql) FROM unnest(ARRAY[
    $$SELECT tablesync_alter('media', workers => 2)$$,
    $$SELECT tablesync_remove('media')$$,
    $$SELECT tablesync_cancel('media')$$,
    $$SELECT tablesync_pause('media')$$]) sql;
\set ON_ERROR_STOP off
SELECT * FROM tablesync_run('media');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_SQLSTATE', '42501'::text, 'watcher: tablesync_run');
RESET ROLE;

-- a new owner: the old one is out, the new one in
ALTER TABLE media OWNER TO other;
SET ROLE app;
SELECT is_empty($$SELECT FROM tablesync_status WHERE replica = 'media'::regclass$$, 'old owner: does not see the replica any more');
SET ROLE other;
SELECT results_eq('SELECT replica FROM tablesync_status', ARRAY['media'::regclass], 'new owner: sees it');
RESET ROLE;
ALTER TABLE media OWNER TO app;

SELECT * FROM finish();
