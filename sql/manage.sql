-- tablesync_alter, _pause, _resume, _cancel and _remove; the views; what
-- CREATE and DROP EXTENSION leave behind.
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
CREATE TABLE src.item (id integer PRIMARY KEY, name text, updated_at timestamptz);
INSERT INTO src.item SELECT i, 'item ' || i, '2021-01-01' FROM generate_series(1, 10) i;

-- nothing yet
SELECT * FROM tablesync_status;
SELECT * FROM tablesync_runs;
SELECT * FROM tablesync_progress;
SELECT * FROM tablesync_run();

SELECT tablesync_add('item', 'loopback', 'src.item');
SELECT * FROM tablesync_status;

-- tablesync_alter changes what is not NULL
SELECT fingerprint, version_column, consistency, chunk_rows, max_source_load, max_delete_fraction, on_schema_change, freshness, workers, enabled
FROM tablesync_alter('item');
SELECT fingerprint, version_column, consistency, chunk_rows, max_source_load, max_delete_fraction, on_schema_change, freshness, workers, enabled
FROM tablesync_alter('item', consistency => 'chunk', chunk_rows => 3, max_source_load => 0.9, max_delete_fraction => 0.5,
                     on_schema_change => 'pause', freshness => '1 day', workers => 2);
-- a version column makes the fingerprint take it if every column was compared, unless told otherwise; by xmin it is a hint
SELECT fingerprint, version_column FROM tablesync_alter('item', fingerprint => 'row');
SELECT fingerprint, version_column FROM tablesync_alter('item', version_column => 'updated_at');
SELECT fingerprint, version_column FROM tablesync_alter('item', fingerprint => 'xmin');
SELECT fingerprint, version_column FROM tablesync_alter('item', version_column => 'updated_at');
SELECT fingerprint, version_column, chunk_rows, freshness FROM tablesync_alter('item', fingerprint => 'row');
SELECT fingerprint, version_column FROM tablesync_alter('item', fingerprint => 'version');
-- refused
SELECT * FROM tablesync_alter('item', version_column => 'id');
SELECT * FROM tablesync_alter('item', version_column => 'missing');
SELECT * FROM tablesync_alter('src.item', workers => 2);
\set VERBOSITY terse
SELECT * FROM tablesync_alter('item', consistency => 'eventual');
SELECT * FROM tablesync_alter('item', chunk_rows => -1);
SELECT * FROM tablesync_alter('item', freshness => '-1 day');
\set VERBOSITY default
-- the settings are those of the next run
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('item');
SELECT consistency FROM tablesync_runs;
SELECT status FROM tablesync_run('item');
SELECT chunk_no, lower_key, rows, differed FROM tablesync.chunk ORDER BY chunk_no;

-- the views
\d tablesync_status
\d tablesync_runs
\d tablesync_progress
SELECT replica, source, state, rows, last_success IS NOT NULL AS has_succeeded, staleness < '1 hour' AS fresh,
       last_run_id = (SELECT max(run_id) FROM tablesync_runs) AS last_run, inserted, updated, deleted,
       duration > '0' AS took_time, schedule, next_run, message
FROM tablesync_status;
-- a replica that was not run in time is stale
SELECT freshness FROM tablesync_alter('item', freshness => '1 microsecond');
SELECT state FROM tablesync_status;
SELECT freshness FROM tablesync_alter('item', freshness => '1 day');

-- pause and resume
SELECT tablesync_pause('item');
SELECT state, rows FROM tablesync_status;
SELECT enabled FROM tablesync_alter('item', enabled => true);
SELECT state FROM tablesync_status;
SELECT enabled FROM tablesync_alter('item', enabled => false);
SELECT tablesync_resume('item');
SELECT state FROM tablesync_status;

-- there is nothing to cancel
SELECT tablesync_cancel('item');

-- what is no replica
SELECT tablesync_pause('src.item');
SELECT tablesync_resume('src.item');
SELECT tablesync_cancel('src.item');
SELECT tablesync_remove('src.item');
SELECT tablesync_remove('missing');

-- a replica that can be restored from a dump elsewhere stays paused there
BEGIN;
UPDATE tablesync.replica SET home = '1/2';
SELECT state, message FROM tablesync_status;
ROLLBACK;
UPDATE tablesync.replica SET home = '1/2';
SELECT * FROM tablesync_run('item');
SELECT * FROM tablesync_run();
SELECT tablesync_resume('item');
SELECT state, message FROM tablesync_status;

-- a run whose worker is gone has crashed
INSERT INTO tablesync.run (replica, kind) VALUES ('item', 'sync') RETURNING status;
SELECT kind, status, finished_at, duration FROM tablesync_runs ORDER BY run_id DESC LIMIT 1;
SELECT state, message FROM tablesync_status;
SELECT status FROM tablesync_run('item');
SELECT kind, status FROM tablesync_runs ORDER BY run_id;
SELECT state, message FROM tablesync_status;

-- remove: settings, history and the foreign table go, the rows stay
SELECT tablesync_remove('item');
SELECT count(*) FROM item;
SELECT to_regclass('item_source'), (SELECT count(*) FROM tablesync.run) AS runs, (SELECT count(*) FROM tablesync.chunk) AS chunks;
-- what was removed can be added again; its rows are compared, not loaded
SELECT tablesync_add('item', 'loopback', 'src.item', version_column => 'updated_at');
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('item');
-- with drop_replica the rows go too
SELECT tablesync_remove('item', drop_replica => true);
SELECT to_regclass('item'), to_regclass('item_source');
-- a foreign table that tablesync did not create stays
IMPORT FOREIGN SCHEMA src LIMIT TO (item) FROM SERVER loopback INTO public;
ALTER FOREIGN TABLE item RENAME TO imported;
SELECT tablesync_add('item', 'imported', version_column => 'updated_at');
SELECT tablesync_remove('item', true);
SELECT to_regclass('item'), to_regclass('imported');

-- so does one that another replica reads
SELECT tablesync_add('item', 'loopback', 'src.item', version_column => 'updated_at');
SELECT tablesync_add('second_item', 'item_source', version_column => 'updated_at');
SELECT tablesync_remove('item', true);
SELECT status, inserted FROM tablesync_run('second_item');
SELECT tablesync_remove('second_item', true);
DROP FOREIGN TABLE item_source;

-- dropping the replica is enough for tablesync to forget it
SELECT tablesync_add('item', 'imported', version_column => 'updated_at');
SELECT status FROM tablesync_run('item');
DROP TABLE item;
SELECT (SELECT count(*) FROM tablesync.replica) AS replicas, (SELECT count(*) FROM tablesync.run) AS runs, (SELECT count(*) FROM tablesync.chunk) AS chunks;
-- what was dropped can be added again
SELECT tablesync_add('item', 'loopback', 'src.item', version_column => 'updated_at');
DROP TABLE item;
SELECT tablesync_add('item', 'loopback', 'src.item', version_column => 'updated_at');
SELECT tablesync_remove('item', true);
-- a replica is forgotten after it was renamed and moved, too
SELECT tablesync_add('item', 'imported', version_column => 'updated_at');
ALTER TABLE item RENAME TO thing;
CREATE SCHEMA copies;
ALTER TABLE thing SET SCHEMA copies;
SELECT replica, status, inserted FROM tablesync_run('copies.thing');
SET client_min_messages = warning;
DROP SCHEMA copies CASCADE;
RESET client_min_messages;
SELECT count(*) FROM tablesync.replica;

-- every object of the extension says what it is
SELECT pg_describe_object(classid, objid, 0) AS "no comment"
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'tablesync')
  AND obj_description(objid, classid::regclass::name) IS NULL
  AND NOT (classid = 'pg_type'::regclass OR classid = 'pg_class'::regclass AND objid IN (SELECT oid FROM pg_class WHERE relkind IN ('S', 'c', 'i')))
ORDER BY 1;
-- so does every setting
SELECT attname AS "no comment" FROM pg_attribute
WHERE attrelid = 'tablesync.replica'::regclass AND attnum > 0 AND col_description(attrelid, attnum) IS NULL;

-- the catalogs of a source are read through foreign tables that go with the server
SELECT DISTINCT catalog FROM tablesync.source_catalogs ORDER BY catalog;
DROP FOREIGN TABLE imported;
DROP USER MAPPING FOR CURRENT_USER SERVER loopback;
DROP SERVER loopback;
SELECT count(*) FROM tablesync.source_catalogs;

-- the extension goes without CASCADE, whole
DO $$
BEGIN
    EXECUTE format('CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host %L, port %L, dbname %L)',
                   coalesce(host(inet_server_addr()), split_part(current_setting('unix_socket_directories'), ',', 1)),
                   current_setting('port'), current_database());
    EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER loopback OPTIONS (user %L)', current_user);
END
$$;
SELECT tablesync_add('item', 'loopback', 'src.item', version_column => 'updated_at');
SELECT status FROM tablesync_run('item');
SELECT tablesync_remove('item');
DROP EXTENSION tablesync;
SELECT count(*) FROM item;
SELECT relname FROM pg_class WHERE relname LIKE '%tablesync%' OR relnamespace = to_regnamespace('tablesync')::oid;
SELECT evtname FROM pg_event_trigger;

SET client_min_messages = warning;
DROP TABLE item;
DROP SERVER loopback CASCADE;
DROP SCHEMA src CASCADE;
