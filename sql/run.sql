-- tablesync_run() and tablesync_wait(): what they do, return and refuse.
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
CREATE TABLE src.item (id integer PRIMARY KEY, name text, updated_at timestamp);
CREATE TABLE src.part (item integer, part text, price numeric, PRIMARY KEY (item, part));
INSERT INTO src.item SELECT i, 'item ' || i, '2021-01-01' FROM generate_series(1, 2500) i;
INSERT INTO src.part SELECT i, p, i * 1.10 FROM generate_series(1, 20) i, unnest(ARRAY['lid', 'box', 'leg']) p;
SELECT tablesync_add('item', 'loopback', 'src.item', version_column => 'updated_at');

-- the first run loads, the second finds nothing
SELECT replica, status, rows, inserted, updated, deleted, duration > '0' AS took_time, message FROM tablesync_run('item');
SELECT replica, status, rows, inserted, updated, deleted, duration > '0' AS took_time, message FROM tablesync_run('item');

-- inserts, updates, a changed key, deletes; a row that got an old version; a NULL version
INSERT INTO src.item VALUES (3001, 'new', '2021-01-02'), (3002, NULL, NULL);
UPDATE src.item SET name = 'changed ' || id, updated_at = '2021-01-02' WHERE id IN (10, 20);
UPDATE src.item SET name = 'older', updated_at = '2020-01-01' WHERE id = 30;
UPDATE src.item SET name = 'none', updated_at = NULL WHERE id = 40;
UPDATE src.item SET id = -1 WHERE id = 50;
DELETE FROM src.item WHERE id BETWEEN 101 AND 150;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('item');
(TABLE src.item EXCEPT TABLE item) UNION ALL (TABLE item EXCEPT TABLE src.item);

-- a replica that somebody has written to is repaired
DELETE FROM item WHERE id <= 5;
UPDATE item SET name = 'wrong', updated_at = '2022-01-01' WHERE id = 6;
INSERT INTO item VALUES (-2, 'too much', NULL);
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('item');
(TABLE src.item EXCEPT TABLE item) UNION ALL (TABLE item EXCEPT TABLE src.item);

-- every run but the first was a sync, and each proved that the replica is equal
SELECT kind, status, rows_scanned, inserted, updated, deleted, consistency,
       proof->'equal' AS equal, proof->'source'->'rows' AS source_rows, proof->'replica'->'rows' AS replica_rows,
       proof->'source'->'digest' = proof->'replica'->'digest' AS same_digest, sqlstate, message
FROM tablesync_runs ORDER BY run_id;

-- rows that exchange values with a unique index are no problem
CREATE UNIQUE INDEX ON item (name);
UPDATE src.item SET name = CASE id WHEN 1 THEN 'item 2' ELSE 'item 1' END, updated_at = '2021-01-03' WHERE id IN (1, 2);
SELECT status, inserted, updated, deleted FROM tablesync_run('item');
SELECT * FROM item WHERE id IN (1, 2) ORDER BY id;

-- a source that becomes empty: fewer than 1000 deletes are never held back
SELECT tablesync_add('part', 'loopback', 'src.part');
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
DELETE FROM src.part;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');

-- 1000 deletes and more are, beyond max_delete_fraction, until somebody insists
DELETE FROM src.item WHERE id BETWEEN 1001 AND 2200;
SELECT * FROM tablesync_run('item');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM item;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('item', force => true);
SELECT count(*) FROM item;
SELECT kind, status, inserted, updated, deleted, proof IS NULL AS no_proof, sqlstate, message
FROM tablesync_runs ORDER BY run_id DESC OFFSET 1 LIMIT 1;
SELECT max_delete_fraction FROM tablesync_alter('item', max_delete_fraction => 1);
DELETE FROM src.item WHERE id < 1001;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('item');

-- without waiting
SELECT run_id AS run, replica, status, coalesce(rows, inserted, updated, deleted) IS NULL AS no_counts
FROM tablesync_run('item', wait => false) \gset
SELECT :'replica' AS replica, :'status' AS status, :'no_counts' AS no_counts;
SELECT tablesync_wait(:run);
SELECT status FROM tablesync_runs WHERE run_id = :run;
-- a run that is over is not waited for; nor is NULL
SELECT tablesync_wait(:run, '0'), tablesync_wait(:run, '1 hour'), tablesync_wait(NULL);
-- who has waited can run again
SELECT status FROM tablesync_run('item');

-- refused: what the worker could not see yet
DO $$
BEGIN
    PERFORM tablesync_alter('item', enabled => true);
    PERFORM tablesync_run('item');
END
$$;

-- refused: in a transaction block, what is no replica, what is paused
BEGIN;
SELECT * FROM tablesync_run('item');
ROLLBACK;
SELECT * FROM tablesync_run() \; SELECT 1;
SELECT * FROM tablesync_run('src.item');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM tablesync_run('missing');
SELECT tablesync_pause('item');
SELECT * FROM tablesync_run('item');
\echo :LAST_ERROR_SQLSTATE

-- all replicas: the paused one is left out, the others run in the order they were added
INSERT INTO src.part VALUES (1, 'lid', 1);
SELECT tablesync_add('part2', 'part_source');
SELECT replica, status, rows, inserted, updated, deleted FROM tablesync_run();
SELECT tablesync_resume('item');
SELECT replica, status, rows, inserted, updated, deleted FROM tablesync_run(NULL);

-- all replicas: a failure is a warning, and the others still run
ALTER TABLE part ADD CHECK (price > 0);
INSERT INTO src.part VALUES (1, 'leg', -1);
SELECT replica, status, rows, inserted, updated, deleted, message FROM tablesync_run();
SELECT replica, state, message FROM tablesync_status ORDER BY replica::text;
ALTER TABLE part DROP CONSTRAINT part_price_check;

-- the source has changed its shape: the replica follows
\d part
ALTER TABLE src.part ADD remark varchar(10) DEFAULT 'none', ALTER price SET NOT NULL;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
ALTER TABLE src.part DROP remark, ALTER price DROP NOT NULL;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
\d part
\d part_source
SELECT replica, change, "column", action, detail FROM tablesync_schema_log ORDER BY at;
-- or is paused, with what to do as a hint
ALTER TABLE src.part ALTER price TYPE numeric(10, 2);
SELECT * FROM tablesync_run('part');
\echo :LAST_ERROR_SQLSTATE
SELECT replica, state, message FROM tablesync_status WHERE replica = 'part'::regclass;
SELECT * FROM tablesync_run('part');
ALTER TABLE src.part ALTER price TYPE numeric;
SELECT tablesync_resume('part');
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
ALTER TABLE src.part RENAME price TO cost;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
ALTER TABLE src.part RENAME cost TO price;
-- a column that is dropped and added again is another column
ALTER TABLE src.part DROP price, ADD price numeric DEFAULT 5;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
-- another replica of the same foreign table finds its own way
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part2');
SELECT tablesync_remove('part2', drop_replica => true);
-- with on_schema_change "pause" all of it is left to the owner
SELECT on_schema_change FROM tablesync_alter('part', on_schema_change => 'pause');
ALTER TABLE src.part ADD weight integer;
SELECT * FROM tablesync_run('part');
-- with "ignore" new columns are none of our business, and dropped ones are not compared
SELECT on_schema_change, enabled FROM tablesync_alter('part', on_schema_change => 'ignore', enabled => true);
UPDATE src.part SET price = 6, weight = 1;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
ALTER TABLE src.part DROP price;
SELECT status, rows, inserted, updated, deleted FROM tablesync_run('part');
-- the source is gone
DROP TABLE src.part;
SELECT * FROM tablesync_run('part');

-- the replica has changed its shape
ALTER TABLE item DROP name;
SELECT * FROM tablesync_run('item');
ALTER TABLE item ADD name varchar(10);
SELECT * FROM tablesync_run('item');

-- a foreign table that is gone
DROP FOREIGN TABLE item_source;
SELECT * FROM tablesync_run('item');

SET client_min_messages = warning;
DROP TABLE item, part CASCADE;
DROP EXTENSION tablesync;
DROP SERVER loopback CASCADE;
DROP SCHEMA src CASCADE;
