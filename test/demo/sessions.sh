#!/bin/bash
# sessions.sh: prints the psql sessions of docs/sessions.md, from two throwaway
# clusters and the real pg_cron.  Takes about six minutes, since pg_cron's
# minutes are real.  test/demo/sessions.sh >sessions.txt

. "$(dirname "$0")/../setup.sh"

. "$TSYNC_ROOT/test/clusters.sh"

finish() {
    local status=$?
    stop_pair
    if [ $status -eq 0 ]; then rm -rf "$TSYNC_WORK"; else echo "failed; logs are kept in $TSYNC_WORK" >&2; fi
}
trap finish EXIT

title() { printf '\n== %s\n\n' "$*"; }

# show prompt port role database statement [psql option ..]: the statement as it would be typed, and what psql prints
show() {
    local prompt=$1 port=$2 role=$3 database=$4 statement=$5
    shift 5
    echo "$prompt $statement"
    "$PSQL" -X -h 127.0.0.1 -p "$port" -U "$role" -d "$database" "$@" -c "$statement" 2>&1 || true
}

shop() { show 'shop=#' "$source_port" postgres shop "$@"; }
admin() { show 'reports=#' "$target_port" postgres reports "$@"; }
reports() { show 'reports=>' "$target_port" app reports "$@"; }

quiet() { "$PSQL" -X -q -At -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$1" -U postgres -d "$2" -c "$3"; }

# wait_for what query: until it returns t at the target, three minutes at most
wait_for() {
    for _ in $(seq 180); do
        [ "$(quiet "$target_port" reports "$2")" != t ] || return 0
        sleep 1
    done
    echo "waited in vain for $1" >&2
    return 1
}

runs() { quiet "$target_port" reports "SELECT count(*) FROM tablesync.run WHERE status <> 'running'"; }

prepare() {
    start_cluster source
    start_cluster target -c shared_preload_libraries=pg_cron -c cron.database_name=reports \
        -c cron.use_background_workers=on -c max_worker_processes=16 -c log_line_prefix="'%m [%p] '"
    quiet "$source_port" postgres 'CREATE DATABASE shop'
    quiet "$target_port" postgres 'CREATE DATABASE reports'
    "$PSQL" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$source_port" -U postgres -d shop <<'SQL'
CREATE TABLE media (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s3_path varchar(1024) NOT NULL,
    format varchar(5) NOT NULL, type smallint NOT NULL, updated_at timestamp NOT NULL DEFAULT clock_timestamp());
INSERT INTO media (s3_path, format, type) SELECT '/' || md5(i::text) || '.jpg', 'jpg', 1 FROM generate_series(1, 20000) i;
CREATE TABLE countries (id smallint PRIMARY KEY, name varchar(60) NOT NULL, code char(2) NOT NULL);
INSERT INTO countries SELECT i, 'country ' || i, chr(65 + i / 26 % 26) || chr(65 + i % 26) FROM generate_series(1, 800) i;
CREATE TABLE accounts (id integer PRIMARY KEY, balance numeric(12,2) NOT NULL, updated_at timestamp NOT NULL DEFAULT clock_timestamp());
CREATE TABLE transfers (id bigint PRIMARY KEY, account integer NOT NULL REFERENCES accounts, amount numeric(12,2) NOT NULL,
    updated_at timestamp NOT NULL DEFAULT clock_timestamp());
INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 300) i;
INSERT INTO transfers SELECT i, i % 300 + 1, 10 FROM generate_series(1, 900) i;
CREATE ROLE reader LOGIN PASSWORD 'read-only';
GRANT SELECT ON media, countries, accounts, transfers TO reader;
ANALYZE;
SQL
    "$PSQL" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$target_port" -U postgres -d reports <<SQL
SET client_min_messages = warning;
CREATE EXTENSION tablesync CASCADE;
CREATE EXTENSION pg_cron;
CREATE ROLE app LOGIN PASSWORD 'app';
CREATE SCHEMA app AUTHORIZATION app;
GRANT USAGE ON SCHEMA cron TO app;
CREATE SERVER production FOREIGN DATA WRAPPER postgres_fdw
    OPTIONS (host '127.0.0.1', port '$source_port', dbname 'shop');
GRANT USAGE ON FOREIGN SERVER production TO app;
CREATE USER MAPPING FOR app SERVER production OPTIONS (user 'reader', password 'read-only');
SQL
}

healthy_day() {
    title "A healthy day"
    reports "SELECT tablesync_add('media', 'production', 'public.media', version_column => 'updated_at', freshness => '2 hours')"
    reports "SELECT status, rows, duration FROM tablesync_run('media')"
    reports "SELECT tablesync_schedule('media', '* * * * *')"
    reports "SELECT jobid, schedule, command, jobname FROM cron.job ORDER BY jobid"
    shop "INSERT INTO media (s3_path, format, type) VALUES ('/new.jpg', 'jpg', 1); UPDATE media SET s3_path = '/x.jpg', updated_at = now() WHERE id = 7; DELETE FROM media WHERE id IN (8, 9)"
    wait_for "a scheduled run" "SELECT count(*) >= 2 FROM cron.job_run_details WHERE end_time IS NOT NULL AND command LIKE 'CALL%'"
    reports "SELECT replica, state, rows, last_success, staleness, schedule, next_run FROM tablesync_status"
    reports "SELECT run_id, kind, status, duration, inserted, updated, deleted, proof->'equal' AS equal FROM tablesync_runs ORDER BY run_id"
    reports "SELECT status, return_message, end_time - start_time AS duration FROM cron.job_run_details WHERE command LIKE 'CALL%' ORDER BY runid"
    reports "SELECT * FROM tablesync_alerts"
    reports "SELECT * FROM tablesync_health()"
}

password_rotated() {
    local before listener
    title "A failure: the password is rotated"
    before=$(runs)
    "$PSQL" -X -q -At -h 127.0.0.1 -p "$target_port" -U app -d reports -c 'LISTEN tablesync' -c 'SELECT pg_sleep(75)' >"$TSYNC_WORK/listener" &
    listener=$!
    shop "ALTER ROLE reader PASSWORD 'rotated'"
    wait_for "a failed run" "SELECT count(*) > $before FROM tablesync.run WHERE status <> 'running'"
    reports "SELECT replica, state, last_success, retry_after, message FROM tablesync_status" -x
    reports "SELECT * FROM tablesync_alerts" -x
    reports "SELECT * FROM tablesync_health()"
    title "the server log"
    grep 'tablesync alert' "$TSYNC_WORK/target.log" || true
    wait $listener
    title "who listens"
    grep Asynchronous "$TSYNC_WORK/listener" || true
    wait_for "a start that backs off" "SELECT count(*) >= 1 FROM cron.job_run_details WHERE return_message LIKE '%' AND end_time IS NOT NULL AND start_time > (SELECT max(since) + interval '30 s' FROM tablesync.alert) AND command LIKE 'CALL%'"
    title "meanwhile"
    reports "SELECT start_time::time(0), status, return_message FROM cron.job_run_details WHERE command LIKE 'CALL%' ORDER BY runid DESC LIMIT 3"
    reports "SELECT replica, status, message FROM tablesync_run()" -x
    reports "SELECT check_name, detail, hint FROM tablesync_check('media') WHERE NOT ok" -x
    title "mended"
    reports "ALTER USER MAPPING FOR app SERVER production OPTIONS (SET password 'rotated')"
    reports "SELECT status, rows, inserted, updated, deleted FROM tablesync_run('media')"
    reports "SELECT kind, severity, since, closed_at, occurrences, sqlstate FROM tablesync_alert_history"
    reports "SELECT * FROM tablesync_health()"
}

verify() {
    title "Proof"
    reports "SELECT tablesync_unschedule('media')"
    shop "UPDATE media SET type = 2, updated_at = now() WHERE id = 20; UPDATE media SET type = 3 WHERE id = 30"
    reports "UPDATE media SET s3_path = 'mine' WHERE id = 40"
    reports "SELECT key, difference, source->'type' AS source, replica_row->'type' AS here, replica_row->'s3_path' = source->'s3_path' AS same_path FROM tablesync_verify('media')"
    reports "SELECT key, difference FROM tablesync_verify('media', repair => true)"
    reports "SELECT run_id, kind, status, duration, inserted, updated, deleted, proof->'equal' AS equal, message FROM tablesync_runs WHERE kind = 'verify' ORDER BY run_id" -x
    reports "SELECT count(*) FROM tablesync_verify('media')"
    reports "SELECT replica, state, oldest_proof FROM tablesync_status"
    title "proof in passing"
    reports "SELECT replica, verify_fraction FROM tablesync_alter('media', verify_fraction => 0.25)"
    admin "ALTER TABLE app.media DISABLE TRIGGER tablesync_note_write; UPDATE app.media SET s3_path = 'oops' WHERE id = 77; ALTER TABLE app.media ENABLE ALWAYS TRIGGER tablesync_note_write"
    reports "SELECT status, updated, duration, message FROM tablesync_run('media')" -x
    reports "SELECT kind, severity, message FROM tablesync_alerts"
}

schema_change() {
    title "A schema change"
    reports "CREATE VIEW per_format AS SELECT format, count(*) FROM media GROUP BY format"
    shop "ALTER TABLE media ADD width integer NOT NULL DEFAULT 640, ALTER format TYPE varchar(10), ALTER type TYPE integer"
    reports "SELECT status, rows, inserted, updated, deleted, duration FROM tablesync_run('media')"
    reports "SELECT replica, change, \"column\", action, detail FROM tablesync_schema_log ORDER BY at"
    reports "SELECT count(*), min(width), max(width) FROM media"
    reports "TABLE per_format"
    quiet "$target_port" reports 'DROP VIEW app.per_format'    # no column that a view shows can be retyped by hand
    title "A rename, and a narrower type"
    shop "ALTER TABLE media RENAME s3_path TO path"
    reports "SELECT status, rows, inserted, updated, deleted FROM tablesync_run('media')"
    reports "SELECT replica, change, \"column\", action, detail FROM tablesync_schema_log ORDER BY at DESC LIMIT 1"
    shop "ALTER TABLE media ALTER format TYPE varchar(4)"
    reports "SELECT * FROM tablesync_run('media')"
    reports "SELECT replica, state, message FROM tablesync_status"
    reports "SELECT * FROM tablesync_alerts" -x
    reports "SELECT * FROM tablesync_health()"
    reports "ALTER TABLE app.media ALTER COLUMN format TYPE varchar(4)"
    reports "ALTER FOREIGN TABLE app.media_source ALTER COLUMN format TYPE varchar(4)"
    reports "SELECT tablesync_resume('app.media')"
    reports "SELECT status, rows, inserted, updated, deleted FROM tablesync_run('media')"
    reports "SELECT * FROM tablesync_alerts"
    reports "SELECT replica, change, \"column\", action FROM tablesync_schema_log ORDER BY at DESC LIMIT 2"
}

small_table() {
    title "A table under 1000 rows"
    reports "SELECT tablesync_add('countries', 'production', 'public.countries')"
    reports "SELECT status, rows, inserted, duration FROM tablesync_run('countries')"
    shop "INSERT INTO countries VALUES (801, 'Newland', 'NL')"
    reports "SELECT status, rows, inserted, duration FROM tablesync_run('countries')"
    for _ in 1 2 3 4 5; do reports "SELECT status FROM tablesync_run('countries')" >/dev/null; done
    reports "SELECT run_id, kind, duration, source_time, rows_scanned, inserted, proof->'equal' AS equal FROM tablesync_runs WHERE replica = 'countries'::regclass ORDER BY run_id"
}

groups() {
    title "A group"
    reports "SELECT tablesync_add(t, 'production', 'public.' || t, version_column => 'updated_at', consistency => 'snapshot', sync_group => 'bank') FROM unnest('{accounts,transfers}'::text[]) t"
    reports "SELECT replica, run_id, status, rows, inserted FROM tablesync_run('transfers')"
    reports "ALTER TABLE transfers ADD FOREIGN KEY (account) REFERENCES accounts DEFERRABLE INITIALLY DEFERRED"
    shop "INSERT INTO accounts VALUES (301, 100); INSERT INTO transfers VALUES (901, 301, 10)"
    reports "SELECT replica, run_id, status, rows, inserted FROM tablesync_run('accounts')"
    reports "SELECT run_id, group_run_id, replica FROM tablesync.run WHERE group_run_id IS NOT NULL ORDER BY run_id"
}

prepare
healthy_day
password_rotated
verify
schema_change
small_table
groups
