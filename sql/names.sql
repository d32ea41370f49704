-- Schema, table and column names that need quoting, in both forms of
-- tablesync_add() and in everything that follows.
\set SHOW_CONTEXT never
CREATE EXTENSION tablesync CASCADE;
DO $do$
BEGIN
    EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host %L, port %L, dbname %L)',
                   'the "100%" server''s $$name$$',
                   coalesce(host(inet_server_addr()), split_part(current_setting('unix_socket_directories'), ',', 1)),
                   current_setting('port'), current_database());
    EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER %I OPTIONS (user %L)', 'the "100%" server''s $$name$$', current_user);
END
$do$;

CREATE TABLE name (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name name UNIQUE);
INSERT INTO name (name) VALUES
    ('plain'),
    ('UPPER Case'),
    ('double"quote'),
    ('"quoted"'),
    ('single''quote'),
    ('back\slash'),
    ('percent %I %s %L %% %'),
    ('dollar $$ $1 $_$ $c $s'),
    (E'new\nline'),
    (E'tab\tcomma, (paren) [bracket] {brace}'),
    (' space '),
    ('dotted.name'),
    ('tablesync.fingerprint'),              -- what tablesync calls things itself
    ('tsync_inserted'),
    ('s'),
    ('select'),
    ('x); DROP TABLE name; --'),
    ('/* comment */ ; :variable'),
    (U&'\00FC\00F1\00EF\4E2D\6587\+01F600'),
    (repeat('n', 63)),
    (repeat(U&'\00FC', 31) || 'x'),         -- 63 bytes
    (repeat(U&'\4E2D', 20) || 'xyz');       -- 63 bytes; a foreign table's name is cut between characters
SELECT max(octet_length(name)) FROM name;

/* A source whose schema, table and columns have the name, with a row. */
CREATE FUNCTION create_source(name name) RETURNS void LANGUAGE plpgsql AS $do$
BEGIN
    EXECUTE format('CREATE SCHEMA %I', name);
    EXECUTE format('CREATE TABLE %I.%1$I (%1$I text, id integer, updated_at timestamp, PRIMARY KEY (%1$I, id))', name);
    EXECUTE format('INSERT INTO %I.%1$I VALUES (%1$L, 1, ''2021-01-01''), (''deleted'', 2, ''2021-01-01'')', name);
END
$do$;
SELECT count(create_source(name)) FROM name;

-- from server and name; the replica has the name too, in a schema of that name and without one
CREATE SCHEMA "the ""100%"" copies";
SET search_path = "the ""100%"" copies", public;
SELECT count(tablesync_add(quote_ident(name), 'the "100%" server''s $$name$$', format('%I.%1$I', name),
                           version_column => 'updated_at')) FROM name;
SELECT count(tablesync_add(format('%I.%I', name, 'copy of ' || id), 'the "100%" server''s $$name$$', format('%I.%1$I', name),
                           version_column => 'updated_at', key_columns => ARRAY[name, 'id'])) FROM name;

-- from a foreign table of that name, whose columns and version have it as well
CREATE SCHEMA foreign_tables;
DO $do$
DECLARE
    name name;
BEGIN
    FOR name IN SELECT n.name FROM name n LOOP
        EXECUTE format('CREATE FOREIGN TABLE foreign_tables.%I ("the key" text OPTIONS (column_name %1$L) NOT NULL, '
                       'id integer NOT NULL, %1$I timestamp OPTIONS (column_name ''updated_at'')) '
                       'SERVER %I OPTIONS (schema_name %1$L, table_name %1$L)', name, 'the "100%" server''s $$name$$');
    END LOOP;
END
$do$;
SELECT count(tablesync_add(quote_ident('again ' || left(name, 10) || id), format('foreign_tables.%I', name)::regclass,
                           version_column => name)) FROM name;
RESET search_path;

-- all of them load, update, insert and delete
SELECT status, rows, inserted, updated, deleted, message, count(*) FROM tablesync_run() GROUP BY 1, 2, 3, 4, 5, 6;
DO $do$
DECLARE
    name name;
BEGIN
    FOR name IN SELECT n.name FROM name n LOOP
        EXECUTE format('UPDATE %I.%1$I SET updated_at = ''2021-01-02'' WHERE %1$I = %1$L', name);
        EXECUTE format('DELETE FROM %I.%1$I WHERE %1$I = ''deleted''', name);
        EXECUTE format('INSERT INTO %I.%1$I VALUES (%1$L, 3), (E''\t'' || %1$L || ''"\\'', 4)', name);
    END LOOP;
END
$do$;
SELECT status, rows, inserted, updated, deleted, message, count(*) FROM tablesync_run() GROUP BY 1, 2, 3, 4, 5, 6;

/* Is a replica equal to its source? */
CREATE FUNCTION is_equal(replica regclass, source name) RETURNS boolean LANGUAGE plpgsql AS $do$
DECLARE
    equal boolean;
BEGIN
    EXECUTE format('SELECT count(*) = 3 AND bool_and((s.*)::text = (r.*)::text) FROM %I.%1$I s FULL JOIN %s r ON s.id = r.id', source, replica)
    INTO equal;
    RETURN equal;
END
$do$;
SELECT count(*), bool_and(is_equal(t.replica, f.options->>'table_name'))
FROM tablesync.replica t
JOIN pg_foreign_table ft ON ft.ftrelid = t.source,
LATERAL (SELECT jsonb_object_agg(option_name, option_value) FROM pg_options_to_table(ft.ftoptions)) f (options);

-- messages, views and other functions
SELECT count(*), bool_and(state = 'ok') FROM tablesync_status;
SELECT count(*), bool_and((proof->>'equal')::boolean) FROM tablesync_runs;
SELECT tablesync_pause('"the ""100%"" copies"."percent %I %s %L %% %"');
SELECT * FROM tablesync_run('"the ""100%"" copies"."percent %I %s %L %% %"');
SELECT tablesync_add('"the ""100%"" copies"."double""quote"', 'foreign_tables."double""quote"');
SELECT replica, consistency FROM tablesync_alter('"the ""100%"" copies"."dollar $$ $1 $_$ $c $s"', consistency => 'chunk');
SELECT tablesync_add('copy', 'the "100%" server''s $$name$$', 'x"y.z');
SELECT tablesync_add('copy', 'the "100%" server''s $$name$$', '"no such %s"."table %I"');
SELECT tablesync_add('copy', 'the "100%" server''s $$name$$', '"UPPER Case"."UPPER Case"', version_column => 'no such %s "column"');
SELECT tablesync_add('copy', 'the 100% server', 'public.name');
DO $do$
BEGIN
    EXECUTE format('ALTER TABLE %I.%1$I ADD COLUMN %I integer', 'double"quote', 'new "100%" column');
END
$do$;
SELECT status, inserted, updated, deleted FROM tablesync_run('"the ""100%"" copies"."double""quote"');
CREATE VIEW above AS SELECT "new ""100%"" column" AS "a ""%s"" b" FROM "the ""100%"" copies"."double""quote";
DO $do$
BEGIN
    EXECUTE format('ALTER TABLE %I.%1$I ALTER COLUMN %I TYPE bigint', 'double"quote', 'new "100%" column');
END
$do$;
SELECT status, inserted, updated, deleted FROM tablesync_run('"the ""100%"" copies"."double""quote"');
\d above
DROP VIEW above;
DO $do$
BEGIN
    EXECUTE format('ALTER TABLE %I.%1$I RENAME COLUMN %I TO %I', 'double"quote', 'new "100%" column', '%I''; --"');
END
$do$;
SELECT status, inserted, updated, deleted FROM tablesync_run('"the ""100%"" copies"."double""quote"');
SELECT change, "column", action, detail FROM tablesync_schema_log ORDER BY at;

-- names whose foreign tables' names would be the same
CREATE SCHEMA src;
CREATE TABLE src.a (id integer PRIMARY KEY);
SELECT tablesync_add(repeat('c', 60) || '1', 'the "100%" server''s $$name$$', 'src.a');
SELECT tablesync_add(repeat('c', 60) || '2', 'the "100%" server''s $$name$$', 'src.a');

-- nothing has been executed that was a name
SELECT count(*) FROM name;

SET client_min_messages = warning;
SELECT count(tablesync_remove(replica, drop_replica => true)) FROM tablesync.replica;
SELECT count(*) FROM pg_class WHERE relkind = 'f' AND relnamespace NOT IN ('foreign_tables'::regnamespace, 'tablesync'::regnamespace);
DROP EXTENSION tablesync;
DROP SERVER "the ""100%"" server's $$name$$" CASCADE;
DO $do$
DECLARE
    name name;
BEGIN
    FOR name IN SELECT n.name FROM name n LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
END
$do$;
DROP SCHEMA src, foreign_tables, "the ""100%"" copies" CASCADE;
DROP FUNCTION create_source, is_equal;
DROP TABLE name;
