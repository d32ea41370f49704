-- tablesync_add(): what it accepts, and every refusal with its reason.
-- The database is its own source, through the server "loopback".
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

-- from server and name: the foreign table and the replica are created
CREATE TABLE src.media (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path varchar(1024) COLLATE "C" NOT NULL,
    size numeric(10, 2) DEFAULT 0 CHECK (size >= 0),
    updated_at timestamptz);
SELECT tablesync_add('media', 'loopback', 'src.media', version_column => 'updated_at');
\d media
\d media_source
SELECT key_columns, version_column, fingerprint, consistency, chunk_rows, max_source_load, max_delete_fraction,
       on_schema_change, freshness, workers, enabled, source_created, loaded
FROM tablesync.replica;

-- from a foreign table, into another schema, with every setting; the remote names differ
CREATE SCHEMA copies;
CREATE FOREIGN TABLE foreign_media (
    number integer OPTIONS (column_name 'id') NOT NULL,
    file varchar(1024) OPTIONS (column_name 'path') COLLATE "C" NOT NULL,
    size numeric(10, 2),
    changed timestamptz OPTIONS (column_name 'updated_at'))
    SERVER loopback OPTIONS (schema_name 'src', table_name 'media');
SELECT tablesync_add('copies.media', 'foreign_media', ARRAY['number'], 'changed',
                     fingerprint => 'row', consistency => 'chunk', chunk_rows => 100, max_source_load => 0.5,
                     max_delete_fraction => 0, on_schema_change => 'ignore', freshness => '1 hour', workers => 2, enabled => false);
\d copies.media
SELECT source, key_columns, version_column, fingerprint, consistency, chunk_rows, max_source_load, max_delete_fraction,
       on_schema_change, freshness, workers, enabled, source_created, loaded
FROM tablesync.replica WHERE replica = 'copies.media'::regclass;

-- fetch_size is set where nobody has set it
SELECT ftoptions FROM pg_foreign_table WHERE ftrelid = 'foreign_media'::regclass;

-- a composite key keeps the order of the source's primary key; the hint names a likely version column
CREATE TABLE src.pair (b text, a integer, last_modified timestamp, PRIMARY KEY (b, a));
SELECT tablesync_add('pair', 'loopback', 'src.pair');
SELECT key_columns, version_column, fingerprint FROM tablesync.replica WHERE replica = 'pair'::regclass;

-- a partitioned source is a table like any other
CREATE TABLE src.partitioned (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE src.partition PARTITION OF src.partitioned DEFAULT;
SELECT tablesync_add('partitioned', 'loopback', 'src.partitioned');

-- domains become their base type; enums stay
CREATE DOMAIN email AS varchar(100) CHECK (VALUE LIKE '%@%');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE src.person (id bigint PRIMARY KEY, address email, feels mood, updated_at timestamp);
SELECT tablesync_add('person', 'loopback', 'src.person', version_column => 'updated_at');
\d person

-- an existing table: empty is to be loaded, filled is to be compared; further indexes and defaults do no harm
CREATE TABLE existing_empty (updated_at timestamptz, id integer PRIMARY KEY, path varchar(1024) NOT NULL, size numeric(10, 2) DEFAULT 1);
CREATE INDEX ON existing_empty (size);
CREATE TABLE existing_filled (id integer NOT NULL UNIQUE, path varchar(1024), size numeric(10, 2), updated_at timestamptz);
INSERT INTO existing_filled VALUES (1);
SELECT tablesync_add('existing_empty', 'media_source'), tablesync_add('existing_filled', 'media_source');
SELECT replica, loaded FROM tablesync.replica WHERE replica::text LIKE 'existing%' ORDER BY replica::text;

-- row security at the source deserves a warning
CREATE TABLE src.secured (id integer PRIMARY KEY);
ALTER TABLE src.secured ENABLE ROW LEVEL SECURITY;
SELECT tablesync_add('secured', 'loopback', 'src.secured');

-- refused: already a replica
SELECT tablesync_add('media', 'media_source');

-- refused: no such server, no such source, not a foreign table
SELECT tablesync_add('copy', 'nowhere', 'src.media');
SELECT tablesync_add('copy', 'loopback', 'media');
SELECT tablesync_add('copy', 'loopback', 'src.missing');
SELECT tablesync_add('copy', 'src.media');
SELECT tablesync_add('copy', 'src.missing');
SELECT tablesync_add('no_schema.copy', 'media_source');

-- refused: not a plain table
CREATE VIEW src.a_view AS SELECT * FROM src.media;
SELECT tablesync_add('copy', 'loopback', 'src.a_view');
CREATE MATERIALIZED VIEW src.a_matview AS SELECT * FROM src.media;
SELECT tablesync_add('copy', 'loopback', 'src.a_matview');
SELECT tablesync_add('copy', 'loopback', 'public.media_source');
CREATE TABLE src.parent (id integer PRIMARY KEY);
CREATE TABLE src.child (more text) INHERITS (src.parent);
SELECT tablesync_add('copy', 'loopback', 'src.parent');

-- refused: no key
CREATE TABLE src.no_key (a integer NOT NULL, b integer NOT NULL, c integer, d integer NOT NULL, e integer NOT NULL, UNIQUE (a, b), UNIQUE (c));
CREATE UNIQUE INDEX ON src.no_key (d) WHERE d > 0;
ALTER TABLE src.no_key ADD UNIQUE (e) DEFERRABLE;
SELECT tablesync_add('copy', 'loopback', 'src.no_key');
SELECT tablesync_add('copy', 'loopback', 'src.no_key', key_columns => '{a}');
SELECT tablesync_add('copy', 'loopback', 'src.no_key', key_columns => '{c}');
SELECT tablesync_add('copy', 'loopback', 'src.no_key', key_columns => '{d}');
SELECT tablesync_add('copy', 'loopback', 'src.no_key', key_columns => '{e}');
SELECT tablesync_add('copy', 'loopback', 'src.no_key', key_columns => '{x}');
SELECT tablesync_add('copy', 'loopback', 'src.no_key', key_columns => '{a,a}');
SELECT tablesync_add('copy', 'loopback', 'src.no_key', key_columns => '{}');
SELECT tablesync_add('copy', 'loopback', 'src.media', key_columns => '{path}');
-- accepted: another key than the primary key
SELECT tablesync_add('no_key', 'loopback', 'src.no_key', key_columns => '{b,a}');

-- refused: types
CREATE TABLE src.bool_key (id boolean PRIMARY KEY);
CREATE TABLE src.float_key (id double precision PRIMARY KEY);
CREATE TABLE src.reg_type (id integer PRIMARY KEY, class regclass, updated_at timestamp);
CREATE TABLE src.reg_types (id integer PRIMARY KEY, classes regclass[], updated_at timestamp);
CREATE TABLE src.composite_type (id integer PRIMARY KEY, pair src.pair, updated_at timestamp);
CREATE TABLE src.xml_type (id integer PRIMARY KEY, document xml, updated_at timestamp);
CREATE TABLE src.bigint_array (id integer PRIMARY KEY, numbers bigint[], updated_at timestamp);
CREATE TABLE src.enum_type (id integer PRIMARY KEY, feels mood, updated_at timestamp);
SELECT tablesync_add('copy', 'loopback', 'src.bool_key');
SELECT tablesync_add('copy', 'loopback', 'src.float_key');
SELECT tablesync_add('copy', 'loopback', 'src.reg_type', version_column => 'updated_at');
SELECT tablesync_add('copy', 'loopback', 'src.reg_types', version_column => 'updated_at');
SELECT tablesync_add('copy', 'loopback', 'src.composite_type', version_column => 'updated_at');
SELECT tablesync_add('copy', 'loopback', 'src.xml_type', fingerprint => 'row');
SELECT tablesync_add('copy', 'loopback', 'src.bigint_array', fingerprint => 'row');
SELECT tablesync_add('copy', 'loopback', 'src.enum_type', fingerprint => 'row');
-- accepted: by xmin, or with a version column, they need not be hashed
SELECT tablesync_add(name, 'loopback', 'src.' || name)
FROM (VALUES ('xml_type'), ('bigint_array'), ('enum_type')) v (name);
SELECT tablesync_add(name || '_by_version', 'loopback', 'src.' || name, version_column => 'updated_at', fingerprint => 'version')
FROM (VALUES ('xml_type'), ('bigint_array'), ('enum_type')) v (name);
-- and can't be hashed afterwards either
SELECT replica FROM tablesync_alter('xml_type', fingerprint => 'row');
SELECT tablesync_remove('enum_type_by_version', drop_replica => true);

-- refused: a version column that can't be one
SELECT tablesync_add('copy', 'loopback', 'src.media', version_column => 'missing');
SELECT tablesync_add('copy', 'loopback', 'src.media', version_column => 'id');
SELECT tablesync_add('copy', 'loopback', 'src.bigint_array', version_column => 'numbers');

-- refused: a foreign table that is not like its source
CREATE FOREIGN TABLE wrong_source (id integer, path varchar(1024), size numeric(10, 2))
    SERVER loopback OPTIONS (schema_name 'src', table_name 'media');
SELECT tablesync_add('copy', 'wrong_source');
ALTER FOREIGN TABLE wrong_source ADD updated_at timestamp;
SELECT tablesync_add('copy', 'wrong_source');
ALTER FOREIGN TABLE wrong_source ALTER updated_at TYPE timestamptz, ALTER size TYPE numeric(10, 3);
SELECT tablesync_add('copy', 'wrong_source');
ALTER FOREIGN TABLE wrong_source ALTER size TYPE numeric(10, 2), ADD more text;
SELECT tablesync_add('copy', 'wrong_source');

-- refused: an existing table that is not like the source
CREATE TABLE wrong (id integer, path varchar(1024), size numeric(10, 2));
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ADD updated_at timestamp;
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ALTER updated_at TYPE timestamptz, ALTER size TYPE numeric(11, 2);
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ALTER size TYPE numeric(10, 2), ADD more text;
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong DROP more, ALTER updated_at SET NOT NULL;
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ALTER updated_at DROP NOT NULL;
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ADD UNIQUE (id, path);
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ADD UNIQUE (id);
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ALTER id SET NOT NULL, ALTER id ADD GENERATED ALWAYS AS IDENTITY;
SELECT tablesync_add('wrong', 'media_source');
ALTER TABLE wrong ALTER id DROP IDENTITY, DROP size, ADD size numeric(10, 2) GENERATED ALWAYS AS (1) STORED;
SELECT tablesync_add('wrong', 'media_source');
-- accepted once it fits
ALTER TABLE wrong DROP size, ADD size numeric(10, 2), ADD PRIMARY KEY (id);
SELECT tablesync_add('wrong', 'media_source');

-- refused: not a table, or one that a worker can't see
CREATE VIEW copy_view AS SELECT * FROM src.media;
SELECT tablesync_add('copy_view', 'media_source');
CREATE TEMPORARY TABLE copy_temporary (id integer PRIMARY KEY, path varchar(1024), size numeric(10, 2), updated_at timestamptz);
SELECT tablesync_add('copy_temporary', 'media_source');

-- refused: values that settings can't have
\set VERBOSITY terse
SELECT tablesync_add('copy', 'media_source', fingerprint => 'md5');
SELECT tablesync_add('copy', 'media_source', fingerprint => 'version');
SELECT tablesync_add('copy', 'media_source', consistency => 'eventual');
SELECT tablesync_add('copy', 'media_source', chunk_rows => 0);
SELECT tablesync_add('copy', 'media_source', max_source_load => 0);
SELECT tablesync_add('copy', 'media_source', max_source_load => 1.1);
SELECT tablesync_add('copy', 'media_source', max_source_load => 'NaN');
SELECT tablesync_add('copy', 'media_source', max_delete_fraction => -0.1);
SELECT tablesync_add('copy', 'media_source', max_delete_fraction => 1.1);
SELECT tablesync_add('copy', 'media_source', on_schema_change => 'panic');
SELECT tablesync_add('copy', 'media_source', freshness => '0');
SELECT tablesync_add('copy', 'media_source', workers => 0);
SELECT tablesync_add('copy', 'media_source', workers => 17);
\set VERBOSITY default

-- refused: a source that can't be reached as the replica's owner
CREATE ROLE regress_tablesync_owner;
GRANT CREATE ON SCHEMA public TO regress_tablesync_owner;
GRANT USAGE ON FOREIGN SERVER loopback TO regress_tablesync_owner;
SET ROLE regress_tablesync_owner;
SELECT tablesync_add('copy', 'loopback', 'src.media');
RESET ROLE;
CREATE TABLE copy_of_other (id integer PRIMARY KEY, path varchar(1024), size numeric(10, 2), updated_at timestamptz);
ALTER TABLE copy_of_other OWNER TO regress_tablesync_owner;
SELECT tablesync_add('copy_of_other', 'media_source');
DO $$
BEGIN
    EXECUTE format('CREATE USER MAPPING FOR regress_tablesync_owner SERVER loopback OPTIONS (user %L, password_required ''false'')', current_user);
END
$$;
SELECT tablesync_add('copy_of_other', 'media_source');

-- refused: a table or a server of somebody else
SET ROLE regress_tablesync_owner;
SELECT tablesync_add('existing_empty', 'media_source');
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER loopback FROM regress_tablesync_owner;
SET ROLE regress_tablesync_owner;
SELECT tablesync_add('copy', 'loopback', 'src.media');
SELECT tablesync_add('copy_of_other', 'media_source');
RESET ROLE;

-- refused: types of another database that differ here, and its encoding
SELECT current_database() AS here \gset
CREATE DATABASE regress_tablesync_source TEMPLATE template0;
CREATE DATABASE regress_tablesync_latin1 TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C';
\c regress_tablesync_source
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE weather AS ENUM ('sun', 'rain');
CREATE TABLE other_labels (id integer PRIMARY KEY, feels mood, updated_at timestamp);
CREATE TABLE no_type (id integer PRIMARY KEY, weather weather, updated_at timestamp);
\c regress_tablesync_latin1
CREATE TABLE other_encoding (id integer PRIMARY KEY, name text);
\c :here
\set SHOW_CONTEXT never
DO $$
BEGIN
    EXECUTE format('CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host %L, port %L, dbname %L)',
                   coalesce(host(inet_server_addr()), split_part(current_setting('unix_socket_directories'), ',', 1)),
                   current_setting('port'), 'regress_tablesync_source');
    EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER elsewhere OPTIONS (user %L)', current_user);
END
$$;
SELECT tablesync_add('copy', 'elsewhere', 'public.other_labels', version_column => 'updated_at');
SELECT tablesync_add('copy', 'elsewhere', 'public.no_type', version_column => 'updated_at');
ALTER SERVER elsewhere OPTIONS (SET dbname 'regress_tablesync_latin1');
SELECT tablesync_add('copy', 'elsewhere', 'public.other_encoding');

-- nothing is left of what was refused
SELECT oid::regclass FROM pg_class WHERE relname IN ('copy', 'copy_source');

SET client_min_messages = warning;
SELECT postgres_fdw_disconnect_all();
DROP DATABASE regress_tablesync_source;
DROP DATABASE regress_tablesync_latin1;
DROP EXTENSION tablesync;
DROP SERVER elsewhere CASCADE;
DROP SERVER loopback CASCADE;
DROP SCHEMA src, copies CASCADE;
DROP TABLE media, pair, partitioned, person, existing_empty, existing_filled, no_key, secured, xml_type, bigint_array, enum_type, wrong, copy_of_other CASCADE;
DROP TYPE mood;
DROP DOMAIN email;
REVOKE CREATE ON SCHEMA public FROM regress_tablesync_owner;
DROP ROLE regress_tablesync_owner;
