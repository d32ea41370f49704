-- The feed: functions, their arguments and results, the view, who may call what.

SELECT plan(25);

/* The arguments of a function of ours, and what it returns. */
CREATE FUNCTION pg_temp.signature(name regproc) RETURNS text LANGUAGE sql AS $$
    SELECT format('(%s) %s', pg_get_function_arguments(name), pg_get_function_result(name));
$$;

SELECT is(pg_temp.signature('tablesync_changes'),
    '(replica regclass, after bigint DEFAULT 0, max_changes integer DEFAULT NULL::integer) '
    'TABLE("position" bigint, run_id bigint, op text, key jsonb, before jsonb, after jsonb, source_time timestamp with time zone)',
    'tablesync_changes');
SELECT is(pg_temp.signature('tablesync_envelopes'),
    '(replica regclass, after bigint DEFAULT 0, max_changes integer DEFAULT NULL::integer) TABLE("position" bigint, key jsonb, value jsonb)',
    'tablesync_envelopes');
SELECT is(pg_temp.signature('tablesync_as_of'), '(replica regclass, at timestamp with time zone) SETOF jsonb', 'tablesync_as_of');
SELECT is(pg_temp.signature('tablesync_consumer_add'), '(consumer text, replica regclass, after bigint DEFAULT NULL::bigint) bigint', 'tablesync_consumer_add');
SELECT is(pg_temp.signature('tablesync_consumer_remove'), '(consumer text) void', 'tablesync_consumer_remove');
SELECT is(pg_temp.signature('tablesync_fetch'), '(consumer text, max_changes integer DEFAULT 1000) TABLE("position" bigint, key jsonb, value jsonb)', 'tablesync_fetch');
SELECT is(pg_temp.signature('tablesync_commit'), '(consumer text, "position" bigint) void', 'tablesync_commit');
SELECT is((SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'tablesync_consumers'::regclass AND attnum > 0),
    'consumer text, replica regclass, position bigint, newest bigint, behind bigint, lag interval', 'tablesync_consumers');
SELECT table_privs_are('public', 'tablesync_consumers', 'other', ARRAY['SELECT']);
SELECT is(p.provolatile, v.volatility::"char", v.name || ': ' || v.volatility)
FROM (VALUES ('tablesync_changes', 's'), ('tablesync_envelopes', 's'), ('tablesync_as_of', 's'), ('tablesync_fetch', 'v')) v (name, volatility)
JOIN pg_proc p ON p.oid = v.name::regproc;
-- each row is of one snapshot: a new one in the middle would lose changes
SELECT is((SELECT string_agg(p.proname, ' ' ORDER BY p.proname) FROM pg_proc p WHERE p.pronamespace = 'tablesync'::regnamespace
           AND p.proname IN ('feed_of', 'describe_feed', 'missing_until', 'read_feed', 'change_envelopes', 'snapshot_envelopes', 'fetch_envelopes') AND p.provolatile <> 's'),
    NULL, 'what reads a feed uses the snapshot of who calls it');

-- values
SELECT is(tablesync.base64(tablesync.decimal_bytes(v.n, v.scale)), v.wanted, format('%s with scale %s', v.n, v.scale))
FROM (VALUES (0, 0, 'AA=='), (127, 0, 'fw=='), (128, 0, 'AIA='), (-128, 0, 'gA=='), (-129, 0, '/38='), (255, 0, 'AP8='), (-256, 0, '/wA='), (1.5, 3, 'Bdw=')) v (n, scale, wanted);
SELECT is(tablesync.decimal_bytes('NaN', 2), NULL, 'NaN has no bytes');
SELECT is(tablesync.bit_bytes(B''), '\x'::bytea, 'no bits');
SELECT throws_ok('SELECT tablesync.decimal_bytes(1, 2000000000)', '22023', NULL, 'no scale beyond all bounds');

SELECT * FROM finish();
