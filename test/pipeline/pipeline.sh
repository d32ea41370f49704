#!/bin/bash
# pipeline.sh: make test-pipeline.  Real consumers of a replica: Kafka with
# Debezium's connector, a client of the protocol from npm, and the feed.  Each has
# to have, replayed from empty, what the source has, after the three hours of make
# demo, after 200 random changes and a connector that was killed, after a column
# that came, and after a slot that was lost.
#
# What can't be had is skipped by name.  TSYNC_CACHE is where Kafka and the rest
# stay, TABLESYNC_SEED repeats the random changes, ROWS are those of the
# measurement.

. "$(dirname "$0")/../setup.sh"
. "$TSYNC_ROOT/test/clusters.sh"
. "$TSYNC_ROOT/test/demo/story.sh"
. "$TSYNC_ROOT/test/pipeline/programs.sh"

SEED=${TABLESYNC_SEED:-$((RANDOM * 32768 + RANDOM))}
ROWS=${ROWS:-50000}
kafka='' client='' checks=0 marks=0 loaded=0

finish() {
    local status=$?
    stop_programs
    stop_pair
    stop_cluster standby
    if [ $status -eq 0 ]; then rm -rf "$TSYNC_WORK"; else echo "test-pipeline failed; logs are kept in $TSYNC_WORK, TABLESYNC_SEED=$SEED"; fi
}
trap finish EXIT

fail() {
    echo "not ok: $*"
    exit 1
}

ok() {
    checks=$((checks + 1))
    echo "ok: $*"
}

# is wanted got what
is() {
    [ "$1" = "$2" ] || fail "$3: $2 instead of $1"
    ok "$3"
}

connector_sql() { PGPASSWORD=debezium "$PSQL" -X -q -At -h 127.0.0.1 -p "$target_port" -U debezium -d postgres -c "$1" 2>&1; }

# refused what statement: as the role of the connector
refused() {
    local got
    got=$(connector_sql "$2") && fail "$1 is not refused"
    case $got in *"permission denied"*) ok "$1 is refused" ;; *) fail "$1: $got" ;; esac
}

# The rows of the source as events.pl rows prints those of a consumer.
source_rows() {
    source_sql -At -c "SELECT to_jsonb(m) || jsonb_build_object('updated_at', (extract(epoch FROM updated_at) * 1000000)::bigint) FROM media m" | events sort
}

# Everything that the feed has for its consumer, as lines of key, tab, envelope.  After a t: the rows as they are.
fetch_feed() {
    local before=-1 after=0
    while [ "$before" != "$after" ]; do
        before=$after
        PGPASSWORD=follower "$PSQL" -X -q -At -F $'\t' -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$target_port" -U follower -d postgres >>"$TSYNC_WORK/feed.out" <<'SQL'
BEGIN;
CREATE TEMPORARY TABLE got ON COMMIT DROP AS SELECT position, key, value FROM tablesync_fetch('new_rows');
INSERT INTO got SELECT position, key, value FROM tablesync_envelopes('media', NULL) WHERE EXISTS (SELECT FROM got WHERE value->>'op' = 't');
SELECT coalesce(key::text, 'null'), value FROM got ORDER BY value->>'op' <> 't', position;
SELECT tablesync_commit('new_rows', max(position)) FROM got HAVING count(*) > 0 \g /dev/null
COMMIT;
SQL
        after=$(wc -l <"$TSYNC_WORK/feed.out")
    done
}

# Everything that the slot of npm's client has, up to a mark that is set now.
fetch_by_client() {
    marks=$((marks + 1))
    target_admin_sql -At -c "SELECT pg_logical_emit_message(true, 'end', 'mark $marks')" >/dev/null
    PGHOST=127.0.0.1 PGPORT=$target_port PGUSER=debezium PGPASSWORD=debezium PGDATABASE=postgres \
        timeout 120 node "$PIPELINE/client/client.js" client pipeline "mark $marks" >>"$TSYNC_WORK/client.out"
}

topic() { events "$@" <"$TSYNC_WORK/consumer.out"; }

# wait_for what file command: until it prints what a file has
wait_for() {
    local got
    for _ in $(seq 240); do
        got=$("${@:3}")
        [ "$got" != "$(cat "$2")" ] || return 0
        sleep 0.5
    done
    diff "$2" <(echo "$got") | head -20 || true
    fail "$1: it does not come"
}

# run_and_compare when: a run, and then all have what the source has
run_and_compare() {
    target_sql -At -c "SELECT status FROM tablesync_run('media')" >/dev/null
    compare "$1"
}

compare() {
    local with=
    source_rows >"$TSYNC_WORK/wanted"
    fetch_feed
    events rows media <"$TSYNC_WORK/feed.out" | cmp -s - "$TSYNC_WORK/wanted" || fail "$1: the feed replayed is not the source"
    if [ -n "$client" ]; then
        fetch_by_client
        events rows media <"$TSYNC_WORK/client.out" | cmp -s - "$TSYNC_WORK/wanted" || fail "$1: what the client has, replayed, is not the source"
        with=", client"
    fi
    if [ -n "$kafka" ]; then
        wait_for "$1" "$TSYNC_WORK/wanted" topic rows media
        with="$with, topic"
    fi
    ok "$1: the source's $(wc -l <"$TSYNC_WORK/wanted") rows, replayed from feed$with"
}

make_slot() { target_admin_sql -At -c "SELECT pg_create_logical_replication_slot('client', 'pgoutput')" >/dev/null; }

prepare() {
    touch "$TSYNC_WORK"/{feed,client,consumer}.out
    chmod 666 "$TSYNC_WORK/consumer.out"
    start_cluster source
    start_cluster target -c wal_level=logical -c max_worker_processes=16
    hour_1
    prepare_target
    target_sql -c "SELECT tablesync_add('media', 'production', 'public.media', version_column => 'updated_at', feed => true)" >/dev/null
    prepare_publication
    target_admin_sql -At <<'SQL' >/dev/null
CREATE ROLE follower LOGIN PASSWORD 'follower';
GRANT SELECT ON media, media_changes TO follower;
SET ROLE follower;
SELECT tablesync_consumer_add('new_rows', 'media', after => 0);
RESET ROLE;
SQL
    [ -z "$client" ] || make_slot
}

# Who may read by a slot may read nothing else, and write nothing.
rights() {
    refused "a write of the connector's role to the replica" "DELETE FROM media"
    refused "its look at the source" "SELECT * FROM media_source"
    refused "its look at the feed" "SELECT * FROM media_changes"
    target_admin_sql <<'SQL'
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure) FROM pg_proc WHERE proname = 'pg_logical_emit_message' \gexec
SQL
    refused "its message in the name of a run" "SELECT pg_logical_emit_message(true, 'tablesync', '{}')"
    is '0|0|0' "$(connector_sql "SELECT (SELECT count(*) FROM tablesync.replica), (SELECT count(*) FROM tablesync_runs), (SELECT count(*) FROM tablesync_status)")" \
        "it sees none of the extension's rows"
    is 'r SELECT' "$(source_sql -At -c "SELECT c.relkind, string_agg(a.privilege_type, ',') FROM pg_class c, aclexplode(c.relacl) a
        WHERE a.grantee = 'reader'::regrole GROUP BY c.relkind" -F ' ')" "the source has granted SELECT"
    is 0 "$(source_sql -At -c "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)")" "the source has no slot and no publication"
}

# change batch: twenty random changes at the source
change() {
    source_sql <<SQL
SELECT setseed((($SEED + $1 * 7919) % 1000000) / 1000000.0) \g /dev/null
DO \$\$
DECLARE
    dice float8;
BEGIN
    FOR i IN 1..20 LOOP
        dice := random();
        IF dice < 0.4 THEN
            INSERT INTO media (s3_path, format, type, updated_at) VALUES ('/' || md5(random()::text), (ARRAY['jpg', 'mp4', 'gif', NULL])[ceil(random() * 4)],
                ceil(random() * 2), '2021-01-01'::timestamp + ceil(random() * 18000000) * interval '1 ms');
        ELSIF dice < 0.8 THEN
            UPDATE media SET s3_path = E'/\t"\\\\' || md5(random()::text), format = (ARRAY['jpg', 'mp4', 'gif', NULL])[ceil(random() * 4)]
                WHERE id = (SELECT id FROM media ORDER BY random() LIMIT 1);
        ELSE
            DELETE FROM media WHERE id = (SELECT id FROM media ORDER BY random() LIMIT 1);
        END IF;
    END LOOP;
END
\$\$;
SQL
}

# Before its first offset of a change is on disk, a connector that is killed takes its snapshot again.
wait_for_offset() {
    for _ in $(seq 120); do
        ! grep -qs lsn_proc "$TSYNC_WORK/offsets" || return 0
        sleep 0.5
    done
    fail "no offset of the connector is kept"
}

# Ten runs of twenty changes.  The connector is killed twice: while it has changes to bring, and while it is idle.
random_changes() {
    local batch
    [ -z "$kafka" ] || wait_for_offset
    for batch in $(seq 10); do
        change "$batch"
        target_sql -At -c "SELECT status FROM tablesync_run('media')" >/dev/null
        [ -n "$kafka" ] || continue
        case $batch in
            3) stop_program connector KILL ;;
            5) start_connector ;;
            7) compare "After 140 random changes" && stop_program connector KILL && start_connector ;;
        esac
    done
    compare "After 200 random changes (TABLESYNC_SEED=$SEED)"
}

# What came new, by format and hour: the same from everybody.
same_new_rows() {
    events new media <"$TSYNC_WORK/feed.out" >"$TSYNC_WORK/new"
    [ -z "$kafka" ] || wait_for "new rows" "$TSYNC_WORK/new" topic new media
    [ -z "$client" ] || tail -n "+$((loaded + 1))" "$TSYNC_WORK/client.out" | events new media | cmp - "$TSYNC_WORK/new" || fail "new rows of the client differ"
    ok "new rows, by format and hour ($(wc -l <"$TSYNC_WORK/new") groups), are the same from all"
}

# same_changes file table [ops]: the changes of a table, as the feed has them and as Debezium has written them.
same_changes() {
    local file=$1
    shift
    events changes "$@" <"$file" >"$TSYNC_WORK/changes"
    [ -s "$TSYNC_WORK/changes" ] || fail "$1 has no changes"
    wait_for "changes of $1" "$TSYNC_WORK/changes" topic changes "$@"
    ok "$(wc -l <"$TSYNC_WORK/changes") changes of $1 have in the feed the values that Debezium gives them"
}

# A second table: it is published before its load, while the connector is there.
every_type() {
    source_sql -f "$PIPELINE/kinds.sql"
    target_sql <<'SQL'
CREATE TYPE kind AS ENUM ('small', 'large');
SELECT tablesync_add('kinds', 'production', 'public.kinds', feed => true) \g /dev/null
ALTER TABLE kinds REPLICA IDENTITY FULL;
SQL
    target_admin_sql -c "GRANT SELECT ON kinds TO debezium" -c "ALTER PUBLICATION pipeline ADD TABLE kinds"
    target_sql -At -c "SELECT status FROM tablesync_run('kinds')" >/dev/null
    target_sql -At -F $'\t' -c "SELECT key, value FROM tablesync_envelopes('kinds', NULL)" | events values kinds >"$TSYNC_WORK/values"
    wait_for "a load" "$TSYNC_WORK/values" topic values kinds
    ok "a load while the connector is there comes as new rows"
    source_sql -c "UPDATE kinds SET n = n + 1" -c "DELETE FROM kinds WHERE id % 2 = 0"
    target_sql -At -c "SELECT status FROM tablesync_run('kinds')" >/dev/null
    target_sql -At -F $'\t' -c "SELECT key, value FROM tablesync_envelopes('kinds', 1)" >"$TSYNC_WORK/envelopes"
    same_changes "$TSYNC_WORK/envelopes" kinds ud    # that rows came by the load the feed does not say
}

complete_runs() { topic runs | tr '\n' ' '; }

messages() {
    target_sql -At -c "SELECT run_id FROM tablesync_runs WHERE run_id > $1 AND status = 'succeeded' ORDER BY run_id" | tr '\n' ' ' >"$TSYNC_WORK/runs"
    wait_for "messages of runs" "$TSYNC_WORK/runs" complete_runs
    ok "the topic of messages names each run that has succeeded"
}

evolution() {
    source_sql -c "ALTER TABLE media ADD width integer NOT NULL DEFAULT 640, ALTER type TYPE integer" -c "INSERT INTO media (s3_path, width) VALUES ('/wide.jpg', 1920)"
    run_and_compare "A column that came at the source"
}

with_new_name() { topic changes kinds u | grep -c '"renamed"' || true; }

# A column that is renamed changes no row: its new name comes with the next change of each.
renamed() {
    source_sql -c "ALTER TABLE kinds RENAME a_text TO renamed"
    target_sql -At -c "SELECT status FROM tablesync_run('kinds')" >/dev/null
    source_sql -c "UPDATE kinds SET n = 100 WHERE id = 3"
    target_sql -At -c "SELECT status FROM tablesync_run('kinds')" >/dev/null
    echo 1 >"$TSYNC_WORK/one"
    wait_for "a change under a new name" "$TSYNC_WORK/one" with_new_name
    ok "a column that is renamed has its new name in the next change of a row"
}

# An idle replica does not keep the slot where it is: its runs send messages, and Debezium is one transaction behind.
idle_runs() {
    local before
    before=$(target_admin_sql -At -c "SELECT pg_current_wal_lsn()")
    for _ in $(seq 10); do
        target_sql -At -c "SELECT status FROM tablesync_run('media')" >/dev/null
        for _ in $(seq 12); do
            [ "$(target_admin_sql -At -c "SELECT confirmed_flush_lsn > '$before' FROM pg_replication_slots WHERE slot_name = 'debezium'")" != t ] ||
                { ok "runs that find nothing move the slot"; return; }
            sleep 0.5
        done
    done
    fail "runs that find nothing do not move the slot"
}

# A write of somebody else, and the run that undoes it.
truncated() {
    target_sql -c "TRUNCATE media"
    run_and_compare "A replica that somebody has truncated"
}

# The target is lost, and its standby takes over, without the slots.
failover() {
    local port client=    # its slot is lost
    port=$(free_port)
    as_user env PGPASSWORD=secret "$BINDIR/pg_basebackup" -h 127.0.0.1 -p "$target_port" -U postgres -D "$TSYNC_WORK/standby" -R -c fast
    as_user "$BINDIR/pg_ctl" -D "$TSYNC_WORK/standby" -l "$TSYNC_WORK/standby.log" -w start \
        -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off -c wal_level=logical -c max_worker_processes=16" >/dev/null
    change 11
    target_sql -At -c "SELECT status FROM tablesync_run('media')" >/dev/null
    wait_until_replayed "$port"
    stop_program connector
    as_user "$BINDIR/pg_ctl" -D "$TSYNC_WORK/target" -m immediate -w stop >/dev/null
    as_user "$BINDIR/pg_ctl" -D "$TSYNC_WORK/standby" -w promote >/dev/null
    sed "s/:$target_port:/:$port:/" "$PGPASSFILE" >"$TSYNC_WORK/pgpass.new"
    cat "$TSYNC_WORK/pgpass.new" >"$PGPASSFILE"
    target_port=$port
    change 12
    target_sql -At -c "SELECT status FROM tablesync_run('media')" >/dev/null
    start_connector
    compare "After a failover"
    target_sql -At -F $'\t' -c "SELECT key, value FROM tablesync_envelopes('kinds', NULL)" | events rows kinds >"$TSYNC_WORK/values"
    wait_for "a snapshot" "$TSYNC_WORK/values" topic rows kinds
    ok "a snapshot has the values that the feed has"
    change 13
    run_and_compare "And after a run more"
}

wait_until_replayed() {
    local lsn
    lsn=$(target_admin_sql -At -c "SELECT pg_current_wal_lsn()")
    for _ in $(seq 120); do
        [ "$(PGPASSWORD=secret "$PSQL" -X -q -At -h 127.0.0.1 -p "$1" -U postgres -d postgres -c "SELECT pg_last_wal_replay_lsn() >= '$lsn'")" != t ] || return 0
        sleep 0.5
    done
    fail "the standby does not follow"
}

seconds_since() { awk -v from="$1" -v to="$(date +%s%N)" 'BEGIN { printf "%.1f", (to - from) / 1e9 }'; }

# How long many new rows take from the source to each.
measure() {
    local from lines
    [ -z "$client" ] || [ -z "$kafka" ] || make_slot    # the failover has lost it
    source_sql -c "INSERT INTO media (s3_path, format, type, updated_at) SELECT '/' || md5(i::text), 'jpg', 1, now() FROM generate_series(1, $ROWS) i"
    lines=$(wc -l <"$TSYNC_WORK/consumer.out")
    from=$(date +%s%N)
    target_sql -At -c "SELECT status FROM tablesync_run('media')" >/dev/null
    echo "$ROWS new rows: in the replica after $(seconds_since "$from") s"
    if [ -n "$kafka" ]; then
        for _ in $(seq 600); do
            [ $(($(wc -l <"$TSYNC_WORK/consumer.out") - lines)) -lt "$ROWS" ] || break
            sleep 0.1
        done
        echo "$ROWS new rows: at the consumer of the topic after $(seconds_since "$from") s"
    fi
    from=$(date +%s%N)
    fetch_feed
    echo "$ROWS new rows: read from the feed in $(seconds_since "$from") s, a thousand at a time"
    [ -n "$client" ] || return 0
    from=$(date +%s%N)
    fetch_by_client
    echo "$ROWS new rows: read by the client in $(seconds_since "$from") s"
}

if fetch_kafka; then kafka=yes; fi
if fetch_client; then client=yes; fi
prepare
target_sql -At -c "SELECT status FROM tablesync_run('media')" >/dev/null
if [ -n "$kafka" ]; then
    start_broker
    start_connector
    start_consumer
fi
compare "Hour 1"
loaded=$(wc -l <"$TSYNC_WORK/client.out")
first_run=$(target_sql -At -c "SELECT max(run_id) FROM tablesync_runs")
rights
hour_2
run_and_compare "Hour 2"
hour_3
run_and_compare "Hour 3"
if [ -n "$kafka" ]; then every_type; fi
random_changes
if [ -n "$kafka" ]; then
    same_changes "$TSYNC_WORK/feed.out" media
    messages "$first_run"
    echo "changes of media in the topic, and those of them that came again: $(topic count media)"
fi
same_new_rows
evolution
truncated
if [ -n "$kafka" ]; then
    renamed
    idle_runs
fi
if [ -n "$kafka" ]; then failover; fi
measure
echo "$checks passed, 0 failed"
