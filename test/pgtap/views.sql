-- The views: names, columns in order, types, contents.

SELECT plan(30);

/* Columns of a relation with their types, in order. */
CREATE FUNCTION pg_temp.columns(relation regclass) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped;
$$;

SELECT has_view('public', v, v) FROM unnest(ARRAY['tablesync_status', 'tablesync_runs', 'tablesync_progress']) v;
SELECT is(pg_temp.columns('tablesync_status'),
    'replica regclass, source regclass, state text, rows bigint, last_success timestamp with time zone, staleness interval, '
    'last_run_id bigint, inserted bigint, updated bigint, deleted bigint, duration interval, schedule text, '
    'next_run timestamp with time zone, message text, retry_after timestamp with time zone, oldest_proof timestamp with time zone',
    'columns of tablesync_status');
SELECT is(pg_temp.columns('tablesync_runs'),
    'run_id bigint, replica regclass, kind text, status text, started_at timestamp with time zone, finished_at timestamp with time zone, '
    'duration interval, rows_scanned bigint, chunks integer, chunks_differing integer, inserted bigint, updated bigint, deleted bigint, '
    'source_time interval, consistency text, proof jsonb, sqlstate text, message text, pid integer, source_instant timestamp with time zone',
    'columns of tablesync_runs');
SELECT is(pg_temp.columns('tablesync_progress'),
    'run_id bigint, replica regclass, phase text, chunks_done bigint, chunks_total bigint, rows_scanned bigint, rows_estimated bigint, '
    'percent numeric, rows_per_second bigint, eta interval, throttled_for interval, reason text',
    'columns of tablesync_progress');
SELECT results_eq(
    $$SELECT relname::text FROM pg_class WHERE relkind = 'v' AND relname LIKE 'tablesync\_%' AND 'security_barrier=true' = ANY (reloptions) ORDER BY 1$$,
    $$SELECT relname::text FROM pg_class WHERE relkind = 'v' AND relname LIKE 'tablesync\_%' ORDER BY 1$$,
    'views don''t let functions of who looks see hidden rows');

-- settings and their defaults
SELECT has_column('tablesync', 'replica', c, c) FROM unnest(ARRAY['source', 'key_columns', 'version_column', 'fingerprint', 'consistency',
    'chunk_rows', 'max_source_load', 'max_delete_fraction', 'on_schema_change', 'freshness', 'workers', 'enabled']::name[]) c;
SELECT results_eq(
    $$SELECT source, key_columns, version_column, fingerprint, consistency, chunk_rows, max_source_load, max_delete_fraction,
             on_schema_change, freshness, workers, enabled
      FROM tablesync.replica WHERE replica = 'media'::regclass$$,
    $$VALUES ('media_source'::regclass, '{id}'::name[], 'updated_at'::name, 'xmin', 'auto', NULL::integer, 1.0::double precision,
              0.2::double precision, 'apply', NULL::interval, 1, true)$$,
    'settings of a replica that was added without any');

-- contents
SELECT results_eq(
    $$SELECT replica, source, state, rows, last_success <= now(), staleness >= '0', duration > '0', message IS NULL
      FROM tablesync_status WHERE replica = 'media'::regclass$$,
    $$VALUES ('media'::regclass, 'media_source'::regclass, 'ok', 3::bigint, true, true, true, true)$$,
    'status of a replica that is fine');
SELECT results_eq(
    $$SELECT state, rows, last_success, staleness, inserted, updated, deleted, duration > '0',
             message LIKE '%violates check constraint%'
      FROM tablesync_status WHERE replica = 'broken'::regclass$$,
    $$VALUES ('failed', NULL::bigint, NULL::timestamptz, NULL::interval, 0::bigint, 0::bigint, 0::bigint, true, true)$$,
    'status of a replica that has never worked');
SELECT results_eq(
    $$SELECT kind, status, finished_at > started_at, duration = finished_at - started_at, rows_scanned, chunks, chunks_differing,
             inserted, updated, deleted, source_time > '0', consistency, sqlstate IS NULL, message IS NULL, pid > 0, source_instant < finished_at
      FROM tablesync_runs WHERE replica = 'media'::regclass ORDER BY run_id LIMIT 1$$,
    $$VALUES ('load', 'succeeded', true, true, 3::bigint, 1, 0, 3::bigint, 0::bigint, 0::bigint, true, 'snapshot', true, true, true, true)$$,
    'a first run');
SELECT results_eq(
    $$SELECT proof->'equal', proof->'source' = proof->'replica', proof->'source'->'rows', proof->'source'->>'digest' ~ '^[0-9a-f]+$',
             (SELECT array_agg(k ORDER BY k) FROM jsonb_object_keys(proof) k)
      FROM tablesync_runs WHERE replica = 'media'::regclass ORDER BY run_id LIMIT 1$$,
    $$VALUES ('true'::jsonb, true, '3'::jsonb, true, '{equal,replica,source}'::text[])$$,
    'its proof');
SELECT results_eq(
    $$SELECT kind, status, finished_at > started_at, proof, sqlstate, message LIKE '%violates check constraint%'
      FROM tablesync_runs WHERE replica = 'broken'::regclass$$,
    $$VALUES ('load', 'failed', true, NULL::jsonb, '23514', true)$$,
    'a run that has failed');
SELECT is_empty('SELECT * FROM tablesync_progress', 'no run, no progress');

-- constraints refuse impossible states
SELECT throws_ok($$INSERT INTO tablesync.run (replica, kind, status) VALUES ('media'::regclass, 'sync', 'succeeded')$$, '23514', NULL, 'no success without an end');
SELECT throws_ok($$INSERT INTO tablesync.run (replica, kind, status, finished_at) VALUES ('media'::regclass, 'sync', 'succeeded', now())$$, '23514', NULL, 'no success without a proof');
SELECT throws_ok($$INSERT INTO tablesync.run (replica, kind) VALUES ('media'::regclass, 'sync'), ('media'::regclass, 'sync')$$, '23505', NULL, 'no two runs at a time');
SELECT throws_ok($$INSERT INTO tablesync.run (replica, kind) VALUES ('media_source'::regclass, 'sync')$$, '23503', NULL, 'no run of what is no replica');

SELECT * FROM finish();
