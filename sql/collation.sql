-- Collations.  collation_1.out is for servers without ICU.
\set SHOW_CONTEXT never
SELECT count(*) = 0 OR getdatabaseencoding() <> 'UTF8' AS skip FROM pg_collation WHERE collprovider = 'i' \gset
\if :skip
\quit
\endif
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
CREATE COLLATION src.ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE COLLATION src.german (provider = icu, locale = 'de');

-- refused: values that differ and count as equal
CREATE TABLE src.word (word text COLLATE src.ignores_case PRIMARY KEY, updated_at timestamp);
CREATE TABLE src.remark (id integer PRIMARY KEY, remark text COLLATE src.ignores_case, updated_at timestamp);
SELECT tablesync_add('word', 'loopback', 'src.word', version_column => 'updated_at');
SELECT tablesync_add('remark', 'loopback', 'src.remark', version_column => 'updated_at');
CREATE TABLE src.plain (id text PRIMARY KEY, remark text);
CREATE FOREIGN TABLE plain_source (id text COLLATE src.ignores_case, remark text) SERVER loopback OPTIONS (schema_name 'src', table_name 'plain');
SELECT tablesync_add('plain', 'plain_source');
CREATE TABLE plain (id text PRIMARY KEY, remark text COLLATE src.ignores_case);
ALTER FOREIGN TABLE plain_source ALTER id TYPE text;
SELECT tablesync_add('plain', 'plain_source');
DROP TABLE plain;

-- keys that the two sides sort differently are no problem, nor are collations that only the source has
CREATE TABLE src.town (name text COLLATE src.german, district text COLLATE "C", remark text COLLATE "de-x-icu", updated_at timestamp, PRIMARY KEY (name, district));
INSERT INTO src.town SELECT chr(code) || n, chr(code), chr(code), '2021-01-01'
FROM unnest(ARRAY[ascii('a'), ascii('A'), ascii('z'), ascii('Z'), 228, 196, 223, 246, 214, ascii('_'), ascii('"')]) code, generate_series(1, 50) n;
SELECT tablesync_add('town', 'loopback', 'src.town', version_column => 'updated_at', chunk_rows => 7);
\d town
SELECT tablesync_add('town_by_row', 'town_source', fingerprint => 'row', version_column => 'updated_at', chunk_rows => 7);
SELECT status, rows, inserted, updated, deleted FROM tablesync_run();
UPDATE src.town SET remark = upper(name), updated_at = '2021-01-02' WHERE name LIKE '%3';
UPDATE src.town SET name = upper(name), updated_at = '2021-01-02' WHERE name LIKE 'z_';
DELETE FROM src.town WHERE name LIKE '_4';
SELECT status, rows, inserted, updated, deleted FROM tablesync_run();
(TABLE src.town EXCEPT TABLE town) UNION ALL (TABLE town EXCEPT TABLE src.town);
(TABLE src.town EXCEPT TABLE town_by_row) UNION ALL (TABLE town_by_row EXCEPT TABLE src.town);

SET client_min_messages = warning;
DROP TABLE town, town_by_row CASCADE;
DROP EXTENSION tablesync;
DROP SERVER loopback CASCADE;
DROP SCHEMA src CASCADE;
