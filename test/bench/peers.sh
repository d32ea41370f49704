# peers.sh: sourced after cases.sh.  What else there is to keep a copy of a table.
#
# They find a vacuumed source, and get statistics and work_mem.  Each drops what
# it made, because 100 million rows are 9 GB each time.

PEER_SETTINGS="SET work_mem = '256MB'"

# --- upsert by watermark, then an anti-join that deletes ---

upsert_naive() {
    target_sql <<SQL
\timing on
$PEER_SETTINGS;
BEGIN;
INSERT INTO naive SELECT * FROM media_remote WHERE updated_at > (SELECT max(updated_at) FROM naive)
ON CONFLICT (id) DO UPDATE SET (s3_path, format, type, updated_at) = ROW(excluded.s3_path, excluded.format, excluded.type, excluded.updated_at);
DELETE FROM naive n WHERE NOT EXISTS (SELECT FROM media_remote s WHERE s.id = n.id);
COMMIT;
SQL
}

# The copy baseline left table naive; what changed since then is not measured.
upsert_peer() {
    upsert_naive >/dev/null
    target_sql -c "VACUUM ANALYZE naive" -c "ANALYZE media_remote"
    observe_times "$LOAD_REPEAT" change_scattered upsert_naive
    report "peer: upsert plus anti-join"
    target_sql -c "DROP TABLE naive"
}

# --- a materialized view over the foreign table ---

refresh_matview() { target_sql -c '\timing on' -c "$PEER_SETTINGS" -c "REFRESH MATERIALIZED VIEW CONCURRENTLY media_matview"; }

matview_peer() {
    target_sql -c "CREATE MATERIALIZED VIEW media_matview AS SELECT * FROM media_remote" \
        -c "CREATE UNIQUE INDEX ON media_matview (id)" -c "VACUUM ANALYZE media_matview"
    observe_times "$LOAD_REPEAT" change_scattered refresh_matview
    report "peer: matview refresh concurrently"
    target_sql -c "DROP MATERIALIZED VIEW media_matview"
}

# --- logical replication's initial copy ---

peer_sql() { target_admin_sql -d peer "$@"; }

new_subscriber() {
    [ "$(target_admin_sql -At -c "SELECT count(*) FROM pg_database WHERE datname = 'peer'")" = 0 ] || drop_subscriber
    target_admin_sql -c "CREATE DATABASE peer"
    peer_sql -c "CREATE TABLE media (id integer PRIMARY KEY, s3_path varchar(1024), format varchar(5), type smallint, updated_at timestamp)"
    settle
}

drop_subscriber() {
    peer_sql -c "SET client_min_messages = warning" -c "DROP SUBSCRIPTION media"
    target_admin_sql -c "DROP DATABASE peer"
}

subscribe() {
    peer_sql <<SQL
SET client_min_messages = warning;
\timing on
CREATE SUBSCRIPTION media CONNECTION 'host=127.0.0.1 port=$source_port dbname=postgres user=replicator password=replicator' PUBLICATION media;
DO \$\$BEGIN WHILE EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r') LOOP PERFORM pg_sleep(0.01); END LOOP; END\$\$;
SQL
}

logical_peer() {
    source_sql -c "CREATE PUBLICATION media FOR TABLE media" -c "CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'replicator'" \
        -c "GRANT SELECT ON media TO replicator"
    observe_times "$LOAD_REPEAT" new_subscriber subscribe
    report "peer: logical replication's copy"
    drop_subscriber
    note "load is $(divide "$load" "$seconds") x logical replication's initial copy (at most 0.65)"
}

# --- pg_comparator: compares, and changes nothing ---

compare() {
    local table="/postgres/media?id:s3_path,format,type,updated_at"
    pg_comparator --no-report --use-key "pgsql://postgres:secret@127.0.0.1:$source_port$table" "pgsql://postgres:secret@127.0.0.1:$target_port$table"
}

comparator_peer() {
    if ! command -v pg_comparator >/dev/null; then
        note "pg_comparator is not installed: left out"
        return
    fi
    source_sql -c "CREATE EXTENSION pgcmp"
    target_admin_sql -c "CREATE EXTENSION pgcmp"
    observe_times "$LOAD_REPEAT" change_scattered compare
    report "peer: pg_comparator (compares only)"
}

peers() {
    source_sql -c "VACUUM ANALYZE media"
    comparator_peer    # needs the replica
    drop_replica
    upsert_peer
    matview_peer
    logical_peer
}
