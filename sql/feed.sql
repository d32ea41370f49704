-- The feed: tablesync_changes, _envelopes, _as_of and consumers, and what they refuse.

\set SHOW_CONTEXT never
SET client_min_messages = warning;
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
CREATE TABLE src.item (id integer PRIMARY KEY, name text, price numeric(8, 2));
INSERT INTO src.item VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3);

SELECT tablesync_add('item', 'loopback', 'src.item', feed => true);
\d item_changes
SELECT status FROM tablesync_run('item');
SELECT * FROM item_changes;
SELECT clock_timestamp() AS loaded \gset

INSERT INTO src.item VALUES (4, 'four', 4);
UPDATE src.item SET price = 2.5 WHERE id = 2;
DELETE FROM src.item WHERE id = 3;
SELECT status, inserted, updated, deleted FROM tablesync_run('item');
TABLE item_changes ORDER BY position, op;
SELECT position, run_id IS NOT NULL AS run_id, op, key, before, after, source_time <= now() AS source_time FROM tablesync_changes('item');
SELECT position FROM tablesync_changes('item', 2);
SELECT position FROM tablesync_changes('item', after => 1, max_changes => 1);
SELECT position FROM tablesync_changes('item', NULL, 1);
SELECT position, key, value->'op' AS op, value->'before' AS before, value->'after' AS after FROM tablesync_envelopes('item', 1);
SELECT position, key, value->'op' AS op, value->'after' AS after FROM tablesync_envelopes('item', NULL) ORDER BY key;
SELECT * FROM tablesync_as_of('item', :'loaded') r ORDER BY r->'id';
SELECT * FROM tablesync_as_of('item', 'infinity') r ORDER BY r->'id';

-- consumers
TABLE tablesync_consumers;
SELECT tablesync_consumer_add('search', 'item', 1);
SELECT tablesync_consumer_add('newest', 'item');
SELECT position, value->'op' AS op FROM tablesync_fetch('search', 2);
SELECT tablesync_commit('search', 3);
SELECT position, value->'op' AS op FROM tablesync_fetch('search');
SELECT consumer, replica, position, newest, behind, lag > '0' AS lag FROM tablesync_consumers ORDER BY consumer;
SELECT tablesync_commit('search', 4);
SELECT tablesync_commit('search', 4);
SELECT count(*) FROM tablesync_fetch('search');

-- refused, and nothing changes
SELECT * FROM tablesync_changes('item', 99);
SELECT * FROM tablesync_changes('item', -1);
SELECT * FROM tablesync_changes('item', 0, 0);
SELECT * FROM tablesync_changes(NULL);
SELECT * FROM tablesync_changes('src.item');
SELECT * FROM tablesync_envelopes('item', 99);
SELECT * FROM tablesync_envelopes('item', NULL, -1);
SELECT * FROM tablesync_envelopes('item', max_changes => 0);
SELECT * FROM tablesync_as_of('item', NULL);
SELECT * FROM tablesync_as_of('src.item', now());
\set VERBOSITY terse
SELECT * FROM tablesync_as_of('item', '2021-01-01 00:00+00');
\set VERBOSITY default
SELECT tablesync_consumer_add('search', 'item');
SELECT tablesync_consumer_add('', 'item');
SELECT tablesync_consumer_add(NULL, 'item');
SELECT tablesync_consumer_add('x', NULL);
SELECT tablesync_consumer_add('x', 'item', 5);
SELECT tablesync_consumer_add('x', 'item', -1);
SELECT tablesync_consumer_add('x', 'src.item');
SELECT tablesync_consumer_remove('x');
SELECT tablesync_consumer_remove(NULL);
SELECT * FROM tablesync_fetch('x');
SELECT * FROM tablesync_fetch(NULL);
SELECT * FROM tablesync_fetch('search', 0);
SELECT * FROM tablesync_fetch('search', NULL);
SELECT tablesync_commit('x', 4);
SELECT tablesync_commit('search', 5);
SELECT tablesync_commit('search', 3);
SELECT tablesync_commit('search', -1);
SELECT tablesync_commit('search', NULL);
SELECT consumer, position FROM tablesync_consumers ORDER BY consumer;
SELECT * FROM tablesync_alter('item', keep_changes => '-1 day');
SELECT feed, keep_changes FROM tablesync_alter('item', keep_changes => '30 days');
SELECT feed, keep_changes FROM tablesync_alter('item', keep_changes => '0');

-- off
SELECT feed, feed_table FROM tablesync_alter('item', feed => false);
SELECT * FROM tablesync_changes('item');
SELECT tablesync_fetch('search');
SELECT tablesync_consumer_remove('search'), tablesync_consumer_remove('newest');
SELECT tablesync_remove('item');
SELECT count(*) FROM item_changes;
SELECT tablesync_add('item', 'loopback', 'src.item', feed => true);

DROP TABLE item, item_changes;
DROP EXTENSION tablesync;
DROP SERVER loopback CASCADE;
DROP SCHEMA src CASCADE;
