-- Exports: the function, its view, who may call what.

SELECT plan(11);

SELECT is(pg_get_function_arguments('tablesync_export'::regproc),
    'replica regclass, from_time timestamp with time zone, to_time timestamp with time zone, format text DEFAULT ''csv''::text', 'arguments of tablesync_export');
SELECT is(pg_get_function_result('tablesync_export'::regproc), 'bigint', 'tablesync_export returns a number');
SELECT is((SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'tablesync_exports'::regclass AND attnum > 0),
    'export_id bigint, replica regclass, from_time timestamp with time zone, to_time timestamp with time zone, state text, uri text, rows bigint, attempts integer, message text',
    'tablesync_exports');
SELECT table_privs_are('public', 'tablesync_exports', 'other', ARRAY['SELECT']);
SELECT table_privs_are('tablesync', 'all_exports', 'other', ARRAY[]::text[]);
SELECT throws_ok($$SELECT tablesync_export('media', '2021-01-01', '2021-01-02')$$, '55000', 'this server writes no exports', 'without a directory there are none');
SELECT throws_ok($$SET tablesync.export_directory = '/tmp'$$, '55P02', NULL, 'the directory is not the session''s');
SELECT is(current_setting('tablesync.export_file_mode'), '0600', 'tablesync.export_file_mode');
SELECT is(current_setting('tablesync.max_export_workers'), '1', 'tablesync.max_export_workers');
SELECT is(current_setting('tablesync.keep_exports'), '7d', 'tablesync.keep_exports');
SELECT is(tablesync.instant_literal('timestamp'::regtype, '2021-01-01 12:00+02'), $$'2021-01-01 10:00:00'::pg_catalog.timestamp$$, 'an instant for a column without time zone');

SELECT * FROM finish();
