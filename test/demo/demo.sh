#!/bin/bash
# demo.sh: make demo.  Two throwaway clusters on loopback TCP, a reader who may
# SELECT and nothing else, and three hours of changes at the source; then
# pg_cron takes over, and the replica follows by itself.
# make demo KEEP=1 leaves the clusters running; make demo PIPELINE=1 shows, after
# the hours, what Debezium has brought from the replica to Kafka.

. "$(dirname "$0")/../setup.sh"

. "$TSYNC_ROOT/test/clusters.sh"
. "$TSYNC_ROOT/test/demo/story.sh"
. "$TSYNC_ROOT/test/pipeline/programs.sh"

finish() {
    local status=$?
    stop_programs
    if [ $status -eq 0 ] && [ -n "${KEEP:-}" ]; then return; fi
    stop_pair
    if [ $status -eq 0 ]; then rm -rf "$TSYNC_WORK"; else echo "demo failed; logs are kept in $TSYNC_WORK"; fi
}
trap finish EXIT

title() { if [ -t 1 ]; then printf '\n\033[1m== %s\033[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi; }

all_rows() { "$1" -At -c "SELECT m FROM media m ORDER BY id"; }

run_and_compare() {    # hour
    title "Hour $1: the source"
    source_sql -c "TABLE media ORDER BY id"
    title "Hour $1: SELECT * FROM tablesync_run('media')"
    target_sql -c "SELECT * FROM tablesync_run('media')"
    title "Hour $1: the replica"
    target_sql -c "TABLE media ORDER BY id"
    target_sql -x -c "SELECT * FROM tablesync_status"
    if [ "$(all_rows source_sql)" = "$(all_rows target_sql)" ]; then
        echo "Hour $1: the replica is identical."
    else
        echo "Hour $1: the replica DIFFERS."
        exit 1
    fi
}

topic() { events "$@" <"$TSYNC_WORK/consumer.out"; }

# wait_for_topic rows: until the topic, replayed, has so many rows as the replica
wait_for_topic() {
    for _ in $(seq 120); do
        [ "$(topic rows media | wc -l)" != "$(all_rows target_sql | wc -l)" ] || return 0
        sleep 0.5
    done
    echo "nothing comes to the topic"
    exit 1
}

start_pipeline() {
    title "Kafka, and Debezium's connector on the replica"
    fetch_kafka || { PIPELINE=; return 0; }
    prepare_publication
    start_broker
    start_connector
    start_consumer
    wait_for_topic
    echo "The connector has read the rows of hour 1."
}

show_pipeline() {
    title "What Debezium has brought to the topic shop.public.media since: key, op, before, after"
    wait_for_topic
    topic changes media
    title "A consumer that keeps only op = c: new rows by format and hour"
    topic new media
    stop_program connector
    for _ in $(seq 60); do
        [ "$(target_admin_sql -At -c "SELECT count(*) FROM pg_replication_slots WHERE active")" != 0 ] || break
        sleep 0.5
    done
    stop_programs
    target_admin_sql -At -c "SELECT pg_drop_replication_slot('debezium')" >/dev/null
}

title "Two PostgreSQL clusters in $TSYNC_WORK"
start_cluster source
start_cluster target ${PIPELINE:+-c wal_level=logical} -c shared_preload_libraries=pg_cron -c cron.use_background_workers=on
echo "source on port $source_port, target on port $target_port"

hour_1

prepare_target

title "SELECT tablesync_add('media', 'production', 'public.media', version_column => 'updated_at')"
target_sql -c "SELECT tablesync_add('media', 'production', 'public.media', version_column => 'updated_at')"
target_sql -c '\d media'

run_and_compare 1
[ -z "${PIPELINE:-}" ] || start_pipeline

hour_2
run_and_compare 2

hour_3
run_and_compare 3
[ -z "${PIPELINE:-}" ] || show_pipeline

title "The runs"
target_sql -c "SELECT run_id, kind, status, rows_scanned, inserted, updated, deleted, source_time, proof->'equal' AS equal FROM tablesync_runs ORDER BY run_id"

title "SELECT tablesync_schedule('media', '* * * * *')"
"$PSQL" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$target_port" -U postgres -d postgres \
    -c "CREATE EXTENSION pg_cron" -c "GRANT USAGE ON SCHEMA cron TO app"
target_sql -c "SELECT tablesync_schedule('media', '* * * * *')"
target_sql -c "SELECT replica, state, schedule, next_run FROM tablesync_status"
source_sql <<'SQL'
UPDATE media SET s3_path = '/by-itself.gif', updated_at = '2021-01-01 03:10' WHERE id = 2;
INSERT INTO media (s3_path, format, type, updated_at) VALUES ('/g.jpg', 'jpg', 1, '2021-01-01 03:20');
SQL
echo "Changed at the source; pg_cron starts the next run at the full minute .."
for _ in $(seq 100); do
    [ "$(target_sql -At -c "SELECT count(*) FROM cron.job_run_details WHERE end_time IS NOT NULL")" = 0 ] || break
    sleep 1
done
title "The replica, without a hand being laid on it"
target_sql -c "TABLE media ORDER BY id"
target_sql -c "SELECT status, return_message, end_time - start_time AS duration FROM cron.job_run_details"
target_sql -c "SELECT * FROM tablesync_health()"
if [ "$(all_rows source_sql)" = "$(all_rows target_sql)" ]; then
    echo "The replica has followed by itself."
else
    echo "The replica has NOT followed."
    exit 1
fi

title "How to go on"
if [ -n "${KEEP:-}" ]; then
    cat <<TEXT
Both clusters are running. Change the source, run the sync, look at the replica:

  PGPASSWORD=secret $PSQL -h 127.0.0.1 -p $source_port -U postgres postgres    # the source
  PGPASSWORD=app    $PSQL -h 127.0.0.1 -p $target_port -U app postgres         # the replica
      SELECT * FROM tablesync_run('media');
      TABLE tablesync_status;

Stop them with:

  $([ "$(id -u)" != 0 ] || echo "runuser -u $TSYNC_USER -- ")$BINDIR/pg_ctl -D $TSYNC_WORK/source -m fast stop
  $([ "$(id -u)" != 0 ] || echo "runuser -u $TSYNC_USER -- ")$BINDIR/pg_ctl -D $TSYNC_WORK/target -m fast stop
  rm -rf $TSYNC_WORK
TEXT
else
    cat <<TEXT
make demo KEEP=1 leaves both clusters running and prints how to connect:

  psql -h 127.0.0.1 -p <port> -U postgres postgres    # the source
  psql -h 127.0.0.1 -p <port> -U app postgres         # the replica
      SELECT * FROM tablesync_run('media');
      TABLE tablesync_status;
TEXT
fi
