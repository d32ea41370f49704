-- Schedules, history and health: the contract, without pg_cron (see
-- t/011_schedule.pl for the real one).  Replica "media" is fine, "broken" has
-- failed.

SELECT plan(79);

-- functions
SELECT has_function('public', 'tablesync_schedule', ARRAY['regclass', 'text', 'bigint']);
SELECT has_function('public', 'tablesync_unschedule', ARRAY['regclass']);
SELECT has_function('public', 'tablesync_health', ARRAY[]::text[]);
SELECT function_returns('public', 'tablesync_schedule', ARRAY['regclass', 'text', 'bigint'], 'bigint');
SELECT function_returns('public', 'tablesync_unschedule', ARRAY['regclass'], 'boolean');
SELECT is(pg_get_function_arguments('tablesync_schedule'::regproc), 'replica regclass, schedule text, job_id bigint DEFAULT NULL::bigint', 'arguments of tablesync_schedule');
SELECT is(pg_get_function_arguments('tablesync_health'::regproc), 'OUT status text, OUT flags integer, OUT summary text', 'columns of tablesync_health');

-- the next start by a cron expression
SELECT is(tablesync.cron_next(expression, after, 'GMT'), next, format('after %s: %s', after, expression))
FROM (VALUES
    ('* * * * *', '2026-02-27 23:58:30+00'::timestamptz, '2026-02-27 23:59:00+00'::timestamptz),
    ('* * * * *', '2026-02-27 23:59:00+00', '2026-02-28 00:00:00+00'),
    ('*/5 * * * *', '2026-02-27 23:58:30+00', '2026-02-28 00:00:00+00'),
    ('58 23 * * *', '2026-02-27 23:58:30+00', '2026-02-28 23:58:00+00'),
    ('59 23 * * *', '2026-02-27 23:58:30+00', '2026-02-27 23:59:00+00'),
    ('5 1,13 * * *', '2026-02-27 01:05:00+00', '2026-02-27 13:05:00+00'),
    ('10,20-24/2 6 * * *', '2026-02-27 06:20:59+00', '2026-02-27 06:22:00+00'),
    ('0 0 29 2 *', '2096-03-01 00:00:00+00', '2104-02-29 00:00:00+00'),
    ('0 0 31 * *', '2026-01-31 00:00:00+00', '2026-03-31 00:00:00+00'),
    ('0 12 * * mon-FRI', '2026-02-27 23:58:30+00', '2026-03-02 12:00:00+00'),
    ('0 12 * * 7', '2026-02-27 23:58:30+00', '2026-03-01 12:00:00+00'),
    ('0 12 13 * fri', '2026-02-27 23:58:30+00', '2026-03-06 12:00:00+00'),      -- either day will do
    ('0 12 13 * *', '2026-02-27 23:58:30+00', '2026-03-13 12:00:00+00'),
    ('0 0 */2 * 1', '2026-02-27 23:58:30+00', '2026-03-09 00:00:00+00'),        -- a star: both must fit
    ('0 0 1 jan,Jul *', '2026-02-27 23:58:30+00', '2026-07-01 00:00:00+00'),
    (E'\t0  3 * * * ', '2026-02-27 23:58:30+00', '2026-02-28 03:00:00+00'),
    ('@hourly', '2026-02-27 23:58:30+00', '2026-02-28 00:00:00+00'),
    ('@daily', '2026-02-27 23:58:30+00', '2026-02-28 00:00:00+00'),
    ('@midnight', '2026-02-27 23:58:30+00', '2026-02-28 00:00:00+00'),
    ('@weekly', '2026-02-27 23:58:30+00', '2026-03-01 00:00:00+00'),
    ('@monthly', '2026-02-27 23:58:30+00', '2026-03-01 00:00:00+00')) e (expression, after, next);
SELECT is(tablesync.cron_next(expression, '2026-02-27 23:58:30+00', 'GMT'), NULL, format('never, or in doubt: %s', expression))
FROM unnest('{@yearly,@reboot,@annually,@HOURLY,30 seconds,5/10 * * * *,10-5 * * * *,60 * * * *,* 24 * * *,* * 0 * *,* * * 13 *,* * * * 8,*/0 * * * *,"0,,5 * * * *",0 0 31 2 *,0 0 $ * *,* * * *,* * * * * *,-1 * * * *,"",nonsense,NULL}'::text[]) expression;
SELECT is(tablesync.cron_next('* * * * *', after), NULL, format('no start after %s', after))
FROM unnest('{infinity,-infinity,NULL}'::timestamptz[]) after;
-- another time zone, and its changes of the clock
SELECT is(tablesync.cron_next(expression, after, 'Europe/Berlin'), next, format('Berlin, after %s: %s', after, expression))
FROM (VALUES
    ('0 4 * * *', '2026-07-01 12:00:00+00'::timestamptz, '2026-07-02 02:00:00+00'::timestamptz),
    ('0 4 1 * *', '2026-07-15 12:00:00+00', '2026-08-01 02:00:00+00'),
    ('30 2 * * 0', '2026-03-28 00:00:00+00', NULL),         -- does not exist on that Sunday
    ('30 * * * *', '2026-10-25 00:35:00+00', NULL)) e (expression, after, next);        -- the hour that comes twice

-- without pg_cron
SET ROLE app;
SELECT throws_like($$SELECT tablesync_schedule('media', '* * * * *')$$, 'pg_cron is not loaded', 'no schedule without pg_cron');
SELECT throws_ok($$SELECT tablesync_schedule('media', NULL)$$, '22004', NULL, 'a schedule is not NULL');
SELECT throws_ok($$SELECT tablesync_schedule('media_source', '* * * * *')$$, '42704', NULL, 'only replicas have a schedule');
SELECT is(tablesync_unschedule('media'), false, 'there is nothing to unschedule');
RESET ROLE;

-- a record is no proof that somebody starts runs
INSERT INTO tablesync.schedule (replica, schedule, cron_job_id) VALUES ('media', '* * * * *', 7);
SELECT results_eq($$SELECT schedule, next_run FROM tablesync_status WHERE replica = 'media'::regclass$$,
                  $$VALUES (NULL::text, NULL::timestamptz)$$, 'pg_cron is not loaded, so nothing is scheduled');
SELECT results_eq('SELECT flag, problem FROM tablesync.health WHERE replica = $$media$$::regclass',
                  $$VALUES (4, 'pg_cron has no active job for schedule "* * * * *"')$$, 'which is a problem');
SET ROLE other;
SELECT is_empty('SELECT * FROM tablesync.schedule', 'other: sees no schedule');
SELECT is_empty('SELECT * FROM tablesync.health', 'other: sees no health');
SELECT is(tablesync.cron_schedule((SELECT oid FROM pg_class WHERE relname = 'media'), 'guessed'), NULL, 'other: learns nothing');
SELECT throws_ok($$SELECT tablesync_unschedule('media')$$, '42501', NULL, 'other: can''t unschedule');
SELECT throws_ok($$INSERT INTO tablesync.schedule (replica, schedule) VALUES ('broken', '* * * * *')$$, '42501', NULL, 'other: can''t record a schedule');
RESET ROLE;
SET ROLE watcher;
SELECT results_eq('SELECT replica, flag, problem FROM tablesync.health ORDER BY replica::text, flag',
                  $$SELECT replica, CASE WHEN state = 'ok' THEN 4 ELSE 1 END,
                           CASE WHEN state = 'ok' THEN 'pg_cron has no active job for schedule "* * * * *"' ELSE format('run %s has failed', last_run_id) END
                    FROM tablesync_status ORDER BY replica::text$$, 'watcher: sees problems, but no messages');
SELECT results_eq('SELECT status, flags FROM tablesync_health()', $$VALUES ('warning', 5)$$, 'watcher: asks for health');
RESET ROLE;

-- resumed: starts count from now; copied from another database: its job is not here
UPDATE tablesync.schedule SET since = '2020-01-01';
SELECT tablesync_alter('media', enabled => false);
SELECT is((SELECT since FROM tablesync.schedule), '2020-01-01', 'paused: nothing changes');
SELECT is((SELECT count(*) FROM tablesync.health WHERE problem IS NOT NULL AND replica = 'media'::regclass), 0::bigint, 'paused: not judged');
SELECT tablesync_alter('media', enabled => true);
SELECT is((SELECT since > now() - interval '1 minute' FROM tablesync.schedule), true, 'resumed: starts count from now');
UPDATE tablesync.replica SET home = 'elsewhere' WHERE replica = 'media'::regclass;
SET client_min_messages = warning;
SELECT tablesync_resume('media');
RESET client_min_messages;
SELECT is_empty('SELECT * FROM tablesync.schedule', 'a restored replica has to be scheduled again');

-- history; the other files look at it too
BEGIN;
INSERT INTO tablesync.run (replica, kind, status, finished_at, source_digest, replica_digest)
SELECT 'media', k, CASE WHEN n > 1 THEN 'failed' ELSE 'succeeded' END, now(), 0, 0 FROM unnest('{load,verify}'::text[]) k, generate_series(1, 3) n;
INSERT INTO tablesync.run (replica, kind, status) VALUES ('media', 'sync', 'crashed'), ('media', 'sync', 'running'), ('media', 'sync', 'crashed');
SELECT tablesync.prune_runs('media', 0);
SELECT results_eq($$SELECT kind, status FROM tablesync.run WHERE replica = 'media'::regclass ORDER BY run_id$$,
                  $$VALUES ('sync', 'succeeded'), ('load', 'succeeded'), ('verify', 'succeeded'), ('sync', 'running'), ('sync', 'crashed')$$,
                  'what stays: the last success of each kind, what may be running, the last one');
SELECT isnt_empty($$SELECT FROM tablesync.run WHERE replica = 'broken'::regclass AND status = 'failed'$$, 'other replicas keep theirs');
ROLLBACK;

-- parameters
LOAD 'tablesync';
SELECT is(current_setting('tablesync.keep_runs'), '10000', 'tablesync.keep_runs');
SELECT is(current_setting('tablesync.hang_after'), '15min', 'tablesync.hang_after');
SELECT is(current_setting('tablesync.missed_after'), '5min', 'tablesync.missed_after');

SELECT * FROM finish();
