-- Every built-in type at its edges: each value must arrive as it is, and each
-- change must be seen, also that to a value which only counts as equal.
\set SHOW_CONTEXT never
CREATE EXTENSION tablesync CASCADE;
DO $$
BEGIN
    EXECUTE format('CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host %L, port %L, dbname %L)',
                   coalesce(host(inet_server_addr()), split_part(current_setting('unix_socket_directories'), ',', 1)),
                   current_setting('port'), current_database());
    EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER loopback OPTIONS (user %L)', current_user);
END
$$;
CREATE SCHEMA src;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);

-- types whose changes can be seen in a fingerprint, each with values to go through; NULL comes last
CREATE TABLE edge (column_name text GENERATED ALWAYS AS ('c' || id) STORED,
                   id integer GENERATED ALWAYS AS IDENTITY, type text, comparable boolean DEFAULT true, edges text[]);
INSERT INTO edge (type, edges) VALUES
    ('boolean', ARRAY['t', 'f']),
    ('smallint', ARRAY['-32768', '-1', '0', '32767']),
    ('integer', ARRAY['-2147483648', '-1', '0', '2147483647']),
    ('bigint', ARRAY['-9223372036854775808', '9223372036854775807', '-1', '0', '1', '4294967296', '4294967297', '-4294967297']),
    ('real', ARRAY['NaN', 'Infinity', '-Infinity', '0', '-0', '1e-45', '3.4028235e38', '0.1']),
    ('double precision', ARRAY['NaN', 'Infinity', '-Infinity', '0', '-0', '5e-324', '1.7976931348623157e308', '0.1', '0.30000000000000004']),
    ('numeric', ARRAY['NaN', 'Infinity', '-Infinity', '0', '0.0', '1', '1.0', '1.00', '1e1000', '-1e-1000']),
    ('numeric(12, 3)', ARRAY['NaN', '0', '-999999999.999', '0.001']),
    ('positive', ARRAY['1', '1.0']),
    ('money', ARRAY['-92233720368547758.08', '92233720368547758.07', '0']),
    ('text', ARRAY['', ' ', 'a', 'a ', E'line\nbreak\ttab\\backslash', '''quo"tes''', U&'\+01F600', U&'\00E9', U&'e\0301', 'NULL', '\N', '\.', repeat('x', 100000)]),
    ('varchar(5)', ARRAY['', ' ', 'a', 'a ', U&'\00E9\00E9\00E9\00E9\00E9']),
    ('char(5)', ARRAY['', 'a', 'aaaaa']),
    ('bpchar', ARRAY['', ' ', 'a', 'a ', 'a  ']),
    ('"char"', ARRAY['', 'a', ' ']),
    ('name', ARRAY['', 'a', 'a ', repeat('n', 63)]),
    ('bytea', ARRAY['\x', '\x00', '\x0000', '\xff5c2700', '\x2700']),
    ('uuid', ARRAY['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff']),
    ('json', ARRAY['{"a":1}', '{"a": 1}', '{"a":1,"a":2}', 'null', '1.0', '1.00']),
    ('jsonb', ARRAY['1', '1.0', '1.00', '-0.0', '{"a": [1, {"b": null}]}', 'null', '[]', '{}', '[[]]', '""', '"\u00e9"', '1e1000']),
    ('jsonpath', ARRAY['$', '$.a', 'strict $.a', '$[*] ? (@ > 1)']),
    ('bit(4)', ARRAY['0000', '1111', '0001']),
    ('bit varying', ARRAY['', '0', '00', '1', '10', '100000000']),
    ('date', ARRAY['-infinity', 'infinity', '4713-01-01 BC', '0001-12-31 BC', '5874897-12-31', '2000-01-01']),
    ('timestamp', ARRAY['-infinity', 'infinity', '4713-01-01 BC', '294276-12-31 23:59:59.999999', '2000-01-01', '2000-01-01 00:00:00.000001', '1999-12-31 23:59:59.999999']),
    ('timestamptz', ARRAY['-infinity', 'infinity', '4714-11-24 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00', '2000-01-01 00:00+00', '2000-01-01 00:00+01', '2000-01-01 00:35:47.483648+00']),
    ('timestamp(0)', ARRAY['2000-01-01 00:00:01', '2000-01-01 00:00:02']),
    ('time', ARRAY['00:00', '24:00', '23:59:59.999999']),
    ('timetz', ARRAY['00:00+15:59:59', '00:00-15:59:59', '24:00+00', '12:00+00', '13:00+01']),
    ('interval', ARRAY['0', '1 day', '24 hours', '1 mon', '30 days', '720 hours', '1 mon -30 days', '-178000000 years', '178000000 years', '0.000001 s', '-0.000001 s']),
    ('inet', ARRAY['0.0.0.0/0', '10.0.0.1', '10.0.0.1/24', '10.0.0.1/8', '::1', '::/0', '::ffff:10.0.0.1']),
    ('cidr', ARRAY['0.0.0.0/0', '10.0.0.0/8', '10.0.0.0/16', '::/0', '::/128']),
    ('macaddr', ARRAY['00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff']),
    ('macaddr8', ARRAY['00:00:00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff:ff:ff']),
    ('point', ARRAY['(0,0)', '(-0,0)', '(0,-0)', '(NaN,Infinity)', '(1e-300,1e300)', '(0,1e-9)']),
    ('line', ARRAY['{1,-1,0}', '{2,-2,0}', '{1,-1,1e-9}']),
    ('lseg', ARRAY['[(0,0),(1,1)]', '[(1,1),(0,0)]', '[(0,0),(1,1.0000000001)]']),
    ('box', ARRAY['(1,1),(0,0)', '(3,3),(2,2)', '(1,1),(0,-0)']),
    ('path', ARRAY['[(0,0),(1,1)]', '((0,0),(1,1))', '((1,1),(0,0))']),
    ('polygon', ARRAY['((0,0),(1,0),(0,1))', '((1,0),(0,1),(0,0))']),
    ('circle', ARRAY['<(0,0),1>', '<(5,5),1>', '<(0,0),1.0000000001>', '<(0,0),0>']),
    ('tsvector', ARRAY['', 'a', 'a:1', 'a:1A', 'a:1,2', 'a b', '''a b''']),
    ('tsquery', ARRAY['', 'a', 'a:*', 'a:A', '!a', 'a & b', 'b & a', 'a | b', 'a <-> b', 'a <2> b']),
    ('pg_lsn', ARRAY['0/0', 'FFFFFFFF/FFFFFFFF']),
    ('pg_snapshot', ARRAY['10:20:10,14', '10:20:']),
    ('txid_snapshot', ARRAY['10:20:10,14', '10:20:']),
    ('oid', ARRAY['0', '4294967295']),
    ('xid', ARRAY['0', '3', '4294967295']),
    ('xid8', ARRAY['0', '4294967296', '18446744073709551615']),
    ('cid', ARRAY['0', '4294967295']),
    ('tid', ARRAY['(0,1)', '(4294967295,65535)']),
    ('oidvector', ARRAY['', '1', '1 2', '2 1']),
    ('int2vector', ARRAY['', '1', '1 2', '2 1']),
    ('int4range', ARRAY['empty', '(,)', '[1,2)', '[1,)', '(,1)']),
    ('daterange', ARRAY['empty', '(,)', '[2000-01-01,2000-01-02)', '(-infinity,infinity)', '[-infinity,)']),
    ('boolean[]', ARRAY['{}', '{NULL}', '{t,f}', '{f,t}']),
    ('smallint[]', ARRAY['{}', '{NULL}', '{0}', '{0,NULL}', '[0:1]={-32768,32767}']),
    ('integer[]', ARRAY['{}', '{NULL}', '{1,2}', '{2,1}', '{{1,2}}', '{{1},{2}}', '[0:1]={1,2}', '[2:3]={1,2}', '[0:0][3:4]={{1,2}}', '{{{{{{1}}}}}}']),
    ('text[]', ARRAY['{}', '{NULL}', '{"NULL"}', '{""}', '{"a,b"}', '{a,b}', '{"a\"b\\c"}', '{{a},{b}}', '[5:6]={a,b}']),
    ('varchar(3)[]', ARRAY['{}', '{a}', '{"a "}']),
    ('name[]', ARRAY['{}', '{a}', '{"a "}']),
    ('bytea[]', ARRAY['{}', '{"\\x"}', '{"\\x00"}', '{"\\x","\\x00"}']),
    ('uuid[]', ARRAY['{}', '{00000000-0000-0000-0000-000000000000}']),
    ('date[]', ARRAY['{}', '{-infinity,infinity}', '{infinity,-infinity}']),
    ('inet[]', ARRAY['{}', '{10.0.0.1/24}', '{10.0.0.1/8}']),
    ('cidr[]', ARRAY['{}', '{10.0.0.0/24}', '{10.0.0.0/8}']),
    ('oid[]', ARRAY['{}', '{0}', '{4294967295}']);

-- types that need a version column
INSERT INTO edge (type, comparable, edges)
SELECT type, false, edges FROM (VALUES
    ('mood', ARRAY['sad', 'ok', 'happy']),
    ('mood[]', ARRAY['{}', '{sad,NULL,happy}', '[0:0]={ok}']),
    ('bigint[]', ARRAY['{}', '{NULL}', '{-9223372036854775808,9223372036854775807}', '[0:0]={1}']),
    ('double precision[]', ARRAY['{NaN,Infinity}', '{0}', '{-0}', '{0.1}']),
    ('numeric[]', ARRAY['{NaN}', '{1.0}', '{1.00}']),
    ('money[]', ARRAY['{0}', '{-92233720368547758.08}']),
    ('char(3)[]', ARRAY['{a}', '{abc}', '{""}']),
    ('"char"[]', ARRAY['{a}', '{""}', '{" "}']),
    ('jsonb[]', ARRAY['{1.0}', '{1.00}', '{"{\"a\": \"b,c\"}"}']),
    ('timestamptz[]', ARRAY['{infinity}', '{4714-11-24 00:00:00+00 BC}', '{294276-12-31 23:59:59.999999+00}']),
    ('interval[]', ARRAY['{1 day}', '{24 hours}']),
    ('bit varying[]', ARRAY['{0}', '{00}']),
    ('box[]', ARRAY['{(1,1),(0,0)}', '{(1,1),(0,0);(2,2),(0,0)}']),
    ('point[]', ARRAY['{"(0,0)"}', '{"(-0,0)"}']),
    ('tsvector[]', ARRAY['{a:1}', '{a:1A}']),
    ('int8range', ARRAY['empty', '(,)', '[1,2)', '[-9223372036854775808,9223372036854775807)']),
    ('numrange', ARRAY['empty', '[1.0,2)', '[1.00,2)', '(1.0,2]', '[NaN,NaN]']),
    ('tsrange', ARRAY['empty', '(,)', '[-infinity,infinity]', '["4713-01-01 BC",2000-01-01)']),
    ('tstzrange', ARRAY['empty', '["2000-01-01 00:00+00","2000-01-01 00:00:00.000001+00")', '["4714-11-24 00:00:00+00 BC",)']),
    ('int4range[]', ARRAY['{empty}', '{"[1,2)",NULL}']),
    ('int4multirange', ARRAY['{}', '{[1,2)}', '{[1,2),[4,5)}', '{(,)}']),
    ('int8multirange', ARRAY['{}', '{[1,2),[4,5)}']),
    ('nummultirange', ARRAY['{[1.0,2)}', '{[1.00,2)}']),
    ('datemultirange', ARRAY['{}', '{(-infinity,infinity)}']),
    ('tsmultirange', ARRAY['{}', '{[-infinity,infinity]}']),
    ('tstzmultirange', ARRAY['{}', '{["2000-01-01 00:00+00",)}'])) v (type, edges);
DO $$
BEGIN
    PERFORM '<a/>'::xml;
    INSERT INTO edge (type, comparable, edges) VALUES ('xml', false, ARRAY['<a/>', '<a></a>', '', 'a &amp; b', '<a b="c"/><d/>']);
EXCEPTION WHEN feature_not_supported THEN
    NULL;   -- this server was built without libxml
END
$$;
UPDATE edge SET edges = edges || NULL::text;

-- what tablesync says of each type is what is expected here
SELECT type, problem
FROM edge, tablesync.type_problem(type::regtype, false, true) problem
WHERE comparable <> (problem IS NULL) AND type <> 'positive';

/* A source with a column for each type. */
CREATE FUNCTION create_source(name text, types edge[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE src.%I (id integer PRIMARY KEY, column_name text, position integer, updated_at timestamp(0), %s)',
                   name, (SELECT string_agg(format('%I %s', t.column_name, t.type), ', ' ORDER BY t.id) FROM unnest(types) t));
    EXECUTE format('INSERT INTO src.%I SELECT row_number() OVER (ORDER BY t.id, n), t.column_name, n '
                   'FROM unnest($1) t, generate_series(1, cardinality(t.edges)) n', name)
    USING types;
END
$$;

/* Give each row the value of its type that comes so many steps after its own. */
CREATE FUNCTION set_values(name text, types edge[], step integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    type edge;
BEGIN
    FOREACH type IN ARRAY types LOOP
        FOR position IN 1 .. cardinality(type.edges) LOOP
            EXECUTE format('UPDATE src.%I SET %I = %L, updated_at = timestamp ''2021-01-01'' + %s * interval ''1 s'' WHERE column_name = %L AND position = %s',
                           name, type.column_name, type.edges[(position - 1 + step) % cardinality(type.edges) + 1],
                           CASE WHEN name = 'by_version' THEN step ELSE 0 END, type.column_name, position);
        END LOOP;
    END LOOP;
END
$$;

SET client_min_messages = warning;      -- tsquery has something to say about ''
SELECT array_agg(e ORDER BY id) FILTER (WHERE comparable) AS comparable, array_agg(e ORDER BY id) AS every FROM edge e \gset
SELECT create_source('by_row', :'comparable'), create_source('by_version', :'every');
SELECT set_values('by_row', :'comparable', 0), set_values('by_version', :'every', 0);
CREATE FUNCTION run(replica regclass, OUT status text, OUT whole boolean, OUT inserted text, OUT updated text)
LANGUAGE sql AS $$
    SELECT status, rows = count,
           CASE inserted WHEN count THEN 'all' ELSE inserted::text END, CASE updated WHEN count THEN 'all' ELSE updated::text END
    FROM tablesync_run(replica), (SELECT sum(cardinality(edges)) AS count FROM edge WHERE comparable OR replica::text = 'by_version') e
$$;

-- every value arrives as it is
SELECT tablesync_add('by_row', 'loopback', 'src.by_row', fingerprint => 'row'),
       tablesync_add('by_version', 'loopback', 'src.by_version', version_column => 'updated_at');
SELECT * FROM run('by_row');
SELECT * FROM run('by_version');
CREATE VIEW differing AS
    SELECT column_name, s::text AS source, r::text AS replica
    FROM src.by_row s FULL JOIN by_row r USING (id, column_name) WHERE s::text IS DISTINCT FROM r::text
    UNION ALL
    SELECT column_name, s::text, r::text
    FROM src.by_version s FULL JOIN by_version r USING (id, column_name) WHERE s::text IS DISTINCT FROM r::text;
SELECT type, source, replica FROM differing JOIN edge USING (column_name);

-- every change of a value is seen, and it arrives
SELECT set_values('by_row', :'comparable', 1), set_values('by_version', :'every', 1);
SELECT * FROM run('by_row');
SELECT * FROM run('by_version');
SELECT type, source, replica FROM differing JOIN edge USING (column_name);
SELECT set_values('by_row', :'comparable', 2), set_values('by_version', :'every', 2);
SELECT * FROM run('by_row');
SELECT * FROM run('by_version');
SELECT type, source, replica FROM differing JOIN edge USING (column_name);
SELECT * FROM run('by_row');
SELECT * FROM run('by_version');

-- keys at their edges
CREATE TABLE key_edge AS
SELECT 'key_' || id AS name, type, array_remove(array_remove(edges, NULL), repeat('x', 100000)) AS edges   -- which no index takes
FROM edge
WHERE type IN ('smallint', 'integer', 'bigint', 'uuid', 'date', 'timestamp', 'timestamptz', 'text', 'varchar(5)', 'char(5)');
INSERT INTO key_edge VALUES ('key_numeric', 'numeric', ARRAY['NaN', 'Infinity', '-Infinity', '0', '1.0', '1e1000', '-1e-1000']);
DO $$
DECLARE
    key key_edge;
BEGIN
    FOR key IN SELECT * FROM key_edge LOOP
        EXECUTE format('CREATE TABLE src.%I (id %s PRIMARY KEY, updated_at timestamp)', key.name, key.type);
        EXECUTE format('INSERT INTO src.%I SELECT e::%s, ''2021-01-01'' FROM unnest($1) e', key.name, key.type) USING key.edges;
    END LOOP;
END
$$;
SELECT type, tablesync_add(name, 'loopback', 'src.' || name, version_column => 'updated_at') IS NOT NULL AS added,
       tablesync_add(name || '_row', (name || '_source')::regclass, fingerprint => 'row', version_column => 'updated_at', chunk_rows => 1) IS NOT NULL AS added_by_row
FROM key_edge ORDER BY type;
CREATE FUNCTION run_keys() RETURNS TABLE (type text, counts text, counts_by_row text, differing bigint) LANGUAGE plpgsql AS $$
DECLARE
    key key_edge;
BEGIN
    FOR key IN SELECT * FROM key_edge k ORDER BY k.type LOOP
        type := key.type;
        SELECT concat_ws(' ', status, inserted, updated, deleted) INTO counts FROM tablesync_run(key.name::regclass);
        SELECT concat_ws(' ', status, inserted, updated, deleted) INTO counts_by_row FROM tablesync_run((key.name || '_row')::regclass);
        EXECUTE format('SELECT count(*) FROM src.%I s FULL JOIN %1$I r USING (id) FULL JOIN %I b USING (id) '
                       'WHERE s::text IS DISTINCT FROM r::text OR s::text IS DISTINCT FROM b::text', key.name, key.name || '_row')
        INTO differing;
        RETURN NEXT;
    END LOOP;
END
$$;
SELECT * FROM run_keys();
DO $$
DECLARE
    key key_edge;
BEGIN
    FOR key IN SELECT * FROM key_edge LOOP   -- delete the first edge, update the last, insert nothing
        EXECUTE format('DELETE FROM src.%I WHERE id = %L', key.name, key.edges[1]);
        EXECUTE format('UPDATE src.%I SET updated_at = ''2021-01-02'' WHERE id = %L', key.name, key.edges[cardinality(key.edges)]);
    END LOOP;
END
$$;
SELECT * FROM run_keys();
DO $$
DECLARE
    key key_edge;
BEGIN
    FOR key IN SELECT * FROM key_edge LOOP   -- the first edge comes back
        EXECUTE format('INSERT INTO src.%I VALUES (%L)', key.name, key.edges[1]);
    END LOOP;
END
$$;
SELECT * FROM run_keys();
-- a key that changes to an equal one is an update
UPDATE src.key_numeric SET id = 1.00 WHERE id = 1;
UPDATE src.key_numeric SET id = 0.0 WHERE id = 0;
SELECT * FROM run_keys() WHERE type = 'numeric';
SELECT id FROM key_numeric WHERE id IN (0, 1) ORDER BY id;

-- an enum can't be in a key: its labels are sorted by when they were added
CREATE TABLE src.enum_key (id mood PRIMARY KEY, updated_at timestamp);
SELECT tablesync_add('enum_key', 'loopback', 'src.enum_key', version_column => 'updated_at');

DROP VIEW differing;
SELECT count(tablesync_remove(replica, drop_replica => true)) AS removed FROM tablesync.replica;
DROP EXTENSION tablesync;
DROP SERVER loopback CASCADE;
DROP SCHEMA src CASCADE;
DROP FUNCTION create_source, set_values, run, run_keys;
DROP TABLE edge, key_edge CASCADE;
DROP TYPE mood;
DROP DOMAIN positive;
