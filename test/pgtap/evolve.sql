-- Following the source's shape: the view, the log, who may see it, and which
-- types widen.  What runs do is in test/t/013_evolve.pl.

SELECT plan(56);

SELECT has_view('public', 'tablesync_schema_log', 'tablesync_schema_log');
SELECT is((SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum) FROM pg_attribute
           WHERE attrelid = 'tablesync_schema_log'::regclass AND attnum > 0),
    'replica regclass, at timestamp with time zone, change text, column text, action text, detail text',
    'columns of tablesync_schema_log');
SELECT has_column('tablesync', 'replica', c, c) FROM unnest(ARRAY['drop_columns', 'refetch']::name[]) c;
SELECT is((SELECT drop_columns FROM tablesync.replica WHERE replica = 'media'::regclass), false, 'dropped columns are kept by default');
SELECT table_privs_are('public', 'tablesync_schema_log', 'other', ARRAY['SELECT']);
SELECT is((SELECT relrowsecurity FROM pg_class WHERE oid = 'tablesync.schema_log'::regclass), true, 'row level security of the log');
SELECT throws_ok($$SELECT tablesync_alter('media', drop_columns => NULL, on_schema_change => 'panic')$$, '22023', NULL, 'no other policy');

-- who sees it
INSERT INTO tablesync.schema_log (replica, change, column_name, action, detail) VALUES ('media'::regclass, 'added', 'path', 'applied', 'column path was added');
SET ROLE app;
SELECT results_eq('SELECT replica, change, "column", action, detail FROM tablesync_schema_log',
                  $$VALUES ('media'::regclass, 'added', 'path', 'applied', 'column path was added')$$, 'owner: reads the log');
SET ROLE watcher;
SELECT results_eq('SELECT change, detail FROM tablesync_schema_log', $$VALUES ('added', NULL::text)$$, 'watcher: sees changes without details');
SELECT is_empty('SELECT FROM tablesync.schema_log', 'watcher: nothing in the table behind');
SET ROLE other;
SELECT is_empty('SELECT FROM tablesync_schema_log', 'other: sees nothing');
SELECT throws_ok($$INSERT INTO tablesync.schema_log (replica, change, action, detail) VALUES ('media'::regclass, 'key', 'paused', 'x')$$, '42501', NULL, 'other: can''t invent a change');
RESET ROLE;
SELECT throws_ok($$INSERT INTO tablesync.schema_log (replica, change, action, detail) VALUES ('media'::regclass, 'moved', 'applied', 'x')$$, '23514', NULL, 'no other change');
SELECT throws_ok($$INSERT INTO tablesync.schema_log (replica, change, action, detail) VALUES ('media'::regclass, 'added', 'guessed', 'x')$$, '23514', NULL, 'no other action');
DELETE FROM tablesync.schema_log;

/* Type and modifier of a column of a table made for it. */
CREATE FUNCTION pg_temp.widens(old_type text, new_type text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    result boolean;
BEGIN
    EXECUTE format('CREATE TEMP TABLE types (o %s, n %s)', old_type, new_type);
    SELECT tablesync.widens(o.atttypid, o.atttypmod, n.atttypid, n.atttypmod) INTO result
    FROM pg_attribute o, pg_attribute n
    WHERE o.attrelid = 'types'::regclass AND o.attname = 'o' AND n.attrelid = 'types'::regclass AND n.attname = 'n';
    DROP TABLE types;
    RETURN result;
END
$$;
SELECT is(pg_temp.widens(o, n), true, o || ' widens to ' || n)
FROM (VALUES ('smallint', 'integer'), ('smallint', 'bigint'), ('integer', 'bigint'), ('varchar(5)', 'varchar(6)'), ('varchar(5)', 'varchar'),
             ('varchar(5)', 'text'), ('varchar', 'text'), ('text', 'varchar'), ('char(3)', 'char(4)'), ('bit varying(3)', 'bit varying(5)'),
             ('numeric(5,2)', 'numeric(6,2)'), ('numeric(5,2)', 'numeric(7,4)'), ('numeric(5,2)', 'numeric'), ('numeric(3,-2)', 'numeric(5,0)'),
             ('timestamp(0)', 'timestamp(3)'), ('timestamp(3)', 'timestamp'), ('timestamp', 'timestamp(6)'), ('time(0)', 'time'),
             ('timestamptz(2)', 'timestamptz(3)'), ('interval(2)', 'interval')) v (o, n);
SELECT is(pg_temp.widens(o, n), false, o || ' does not widen to ' || n)
FROM (VALUES ('integer', 'smallint'), ('bigint', 'integer'), ('integer', 'text'), ('varchar(5)', 'varchar(4)'), ('text', 'varchar(5)'),
             ('varchar', 'varchar(9)'), ('char(3)', 'varchar(3)'), ('char(3)', 'text'), ('numeric(5,2)', 'numeric(5,3)'),
             ('numeric(5,2)', 'numeric(5,1)'), ('numeric', 'numeric(100,50)'), ('numeric(5,0)', 'numeric(5,-1)'), ('real', 'double precision'),
             ('timestamp', 'timestamptz'), ('timestamp', 'timestamp(3)'), ('date', 'timestamp'), ('json', 'jsonb'),
             ('integer', 'numeric'), ('bit(3)', 'bit(4)'), ('integer[]', 'bigint[]'), ('interval(3)', 'interval(2)')) v (o, n);

SELECT * FROM finish();
