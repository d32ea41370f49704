-- Alerts and back-off: the views, the functions that other code calls, who may do what.

SELECT plan(51);

/* Columns of a relation with their types, in order. */
CREATE FUNCTION pg_temp.columns(relation regclass) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped;
$$;

SELECT is(pg_temp.columns('tablesync_alerts'),
    'alert_id bigint, replica regclass, kind text, severity text, since timestamp with time zone, message text, hint text',
    'columns of tablesync_alerts');
SELECT is(pg_temp.columns('tablesync_alert_history'),
    'alert_id bigint, replica regclass, kind text, severity text, since timestamp with time zone, last_seen timestamp with time zone, '
    'closed_at timestamp with time zone, occurrences integer, run_id bigint, sqlstate text, message text',
    'columns of tablesync_alert_history');
SELECT table_privs_are('public', v, 'other', ARRAY['SELECT']) FROM unnest(ARRAY['tablesync_alerts', 'tablesync_alert_history']) v;
SELECT is(relrowsecurity, true, 'row level security of tablesync.alert') FROM pg_class WHERE oid = 'tablesync.alert'::regclass;
SELECT function_returns('tablesync', 'open_alert', ARRAY['regclass', 'text', 'text', 'text', 'text', 'bigint', 'text'], 'bigint');
SELECT function_returns('tablesync', 'close_alert', ARRAY['regclass', 'text'], 'boolean');
SELECT function_returns('tablesync', 'watch', ARRAY[]::text[], 'integer');
SELECT has_function('tablesync', 'run_scheduled', ARRAY['regclass', 'text', 'text']);
SELECT is(current_setting('tablesync.alert_handler'), '', 'no handler by default') FROM tablesync.live_progress() RIGHT JOIN (VALUES (1)) v ON true;

-- kinds: every one that an error maps to is allowed
SELECT is(tablesync.alert_kind(s), k, coalesce(s, 'no SQLSTATE')) FROM (VALUES
    ('TS001', 'delete_guard'), ('TS002', 'source_went_back'), ('TS003', 'schema_changed'),
    ('08006', 'run_failed'), (NULL, 'run_failed')) v (s, k);
SELECT throws_ok($$SELECT tablesync.open_alert('media', 'boredom', 'warning', 'x')$$, '23514', NULL, 'no kinds but the known');
SELECT throws_ok($$SELECT tablesync.open_alert('media', 'drift', 'info', 'x')$$, '23514', NULL, 'no severities but the known');
SELECT throws_ok($$SELECT tablesync.open_alert('media_source', 'drift', 'warning', 'x')$$, '23503', NULL, 'no alerts of what is no replica');
SELECT throws_ok($$INSERT INTO tablesync.alert (replica, kind, severity, message)
                   VALUES ('media'::regclass, 'drift', 'warning', 'x'), ('media'::regclass, 'drift', 'warning', 'x')$$, '23505', NULL, 'one open row per kind');

-- messages that may quote a row
SELECT is(tablesync.public_message(s), p, 'public: ' || coalesce(s, 'no SQLSTATE'))
FROM (VALUES ('23505', 'see tablesync_runs'), ('22P02', 'see tablesync_runs'), ('44000', 'see tablesync_runs'), ('P0001', 'see tablesync_runs'),
             ('08006', 'the source could not be reached, or did not answer as it should'), ('TS001', 'too many rows would be deleted'),
             (NULL, 'the worker ended unexpectedly')) v (s, p);

-- back-off
SELECT is(tablesync.retry_delay(f, s, d), r::interval, format('after %s failures: %s %s', f, s, d)) FROM (VALUES
    (1, '08006', NULL, '15 s'), (3, '08006', NULL, '1 min'), (9, NULL, NULL, '15 min'), (2000000000, '57014', NULL, '15 min'),
    (1, '42501', NULL, '5 min'), (1, '28P01', NULL, '5 min'), (8, '42501', NULL, '15 min'),
    (1, '08001', 'FATAL:  password authentication failed for user "reader"', '5 min'),
    (1, '08001', 'SSL error: certificate verify failed', '5 min'),
    (1, '08001', 'Connection refused', '15 s')) v (f, s, d, r);

-- opened, seen again, closed, opened again
SET client_min_messages = error;
SELECT is(tablesync.open_alert('media', 'drift', 'warning', 'a', 'b'), tablesync.open_alert('media', 'drift', 'critical', 'c', 'd'), 'seen again: the same alert');
SELECT results_eq($$SELECT kind, severity, message, hint FROM tablesync_alerts WHERE replica = 'media'::regclass$$,
                  $$VALUES ('drift', 'critical', 'c', 'd')$$, 'with what is known now');
SELECT results_eq($$SELECT tablesync.close_alert('media', 'drift') FROM generate_series(1, 2)$$, ARRAY[true, false], 'closed once');
SELECT is_empty($$SELECT FROM tablesync_alerts WHERE replica = 'media'::regclass$$, 'closed');
SELECT results_eq($$SELECT occurrences, closed_at >= last_seen, last_seen >= since FROM tablesync_alert_history WHERE kind = 'drift'$$,
                  $$VALUES (2, true, true)$$, 'history');
RESET client_min_messages;

-- the replica that can't be loaded (see privileges.sql for the roles)
SET ROLE watcher;
SELECT results_eq($$SELECT replica, kind, message, hint FROM tablesync_alerts$$, $$VALUES ('broken'::regclass, 'run_failed', NULL::text, NULL::text)$$, 'watcher: sees the alert, no message');
SELECT is_empty('SELECT FROM tablesync_alert_history WHERE message IS NOT NULL', 'watcher: reads no message in the history');
SELECT is_empty('SELECT FROM tablesync.alert', 'watcher: nor in the table behind');
SET ROLE other;
SELECT is_empty('SELECT * FROM ' || t, 'other: sees nothing in ' || t)
FROM unnest(ARRAY['tablesync.alert', 'tablesync_alerts', 'tablesync_alert_history', 'tablesync.condition']) t;
SELECT throws_ok($$SELECT tablesync.open_alert('media', 'drift', 'warning', 'x')$$, '42501', NULL, 'other: opens no alert');
SELECT throws_ok($$SELECT tablesync.start_alert_worker('media')$$, '42501', NULL, 'other: starts no worker');
SELECT throws_ok($$SELECT tablesync.watch('media')$$, '42501', NULL, 'other: watches over nobody else''s replica');
RESET ROLE;

SELECT * FROM finish();
