#!/bin/bash
# far.sh: make bench-far [DISTANCE=20] [TABLES=60] [NEAR_TABLES=300].  Many small
# tables, and a source that is far away: round trips, which a proxy counts and
# delays (test/perl/TablesyncProxy.pm), and time.
# Prints a table and writes it to results/far.csv.

. "$(dirname "$0")/workload.sh"

DISTANCE=${DISTANCE:-20}          # ms for a round trip
TABLES=${TABLES:-60}              # of 50 rows, far away
NEAR_TABLES=${NEAR_TABLES:-300}   # of 50 rows, on loopback
FORMAT='%-58s %12s %12s\n'

start_proxy() {
    coproc PROXY { exec perl -I "$TSYNC_ROOT/test/perl" -MTablesyncProxy -e '$| = 1;
        my $proxy = TablesyncProxy->start(@ARGV);
        print $proxy->port, "\n";
        while (<STDIN>) { print join(" ", $proxy->counts), "\n" }
        $proxy->stop' "$source_port" "$DISTANCE"; }
    exec {proxy_out}<&"${PROXY[0]}" {proxy_in}>&"${PROXY[1]}"
    read -r proxy_port <&"$proxy_out"
}

# Round trips since the last call.
round_trips() {
    local trips
    echo >&"$proxy_in"
    read -r trips _ <&"$proxy_out"
    echo "$trips"
}

# Where the source is for processes that start from now on.
source_at() { target_admin_sql -c "ALTER SERVER production OPTIONS (SET port '$1')"; }

seed_small() {    # tables
    target_admin_sql -c "CREATE SCHEMA small AUTHORIZATION app"
    source_sql <<SQL
CREATE SCHEMA small;
GRANT USAGE ON SCHEMA small TO reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA small GRANT SELECT ON TABLES TO reader;
SELECT format('CREATE TABLE small.t%s (id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL DEFAULT now())', i),
       format('INSERT INTO small.t%s SELECT n, ''note '' || n FROM generate_series(1, 50) n', i) FROM generate_series(1, $1) i \gexec
VACUUM ANALYZE;
SQL
    target_sql -o /dev/null <<SQL
SET client_min_messages = warning;
SELECT tablesync_add(format('small.t%s', i), 'production', format('small.t%s', i)) FROM generate_series(1, $1) i;
SQL
}

# Time and round trips of a statement; the second of two, where that is asked for, for what the first one only learns.
measure() {    # name sql
    local seconds trips
    round_trips >/dev/null
    target_sql -At -c '\timing on' -c "$2" >"$TSYNC_WORK/output"
    trips=$(round_trips)
    seconds=$(psql_seconds "$TSYNC_WORK/output")
    if grep -qE 'failed|crashed' "$TSYNC_WORK/output"; then
        echo "$1: a run has failed" >&2
        exit 1
    fi
    # shellcheck disable=SC2059
    printf "$FORMAT" "$1" "$seconds" "$trips" | tee -a "$TSYNC_WORK/rows"
    echo "\"$1\",$seconds,$trips" >>"$CSV"
}

run_all="SELECT status, count(*) FROM tablesync_run() GROUP BY 1"

start_bench_pair -c max_worker_processes=8
start_proxy
mkdir -p "$RESULTS"
CSV=$RESULTS/far.csv
{ describe_machine | sed 's/^/# /'; echo "case,seconds,round trips"; } >"$CSV"
describe_machine
# shellcheck disable=SC2059
printf "$FORMAT" case seconds "round trips"

seed_small "$TABLES"
for _ in 1 2; do target_sql -o /dev/null -c "$run_all"; done

source_at "$proxy_port"
measure "one table of 50 rows, $DISTANCE ms away, nothing changed" "SELECT status FROM tablesync_run('small.t1')"
source_sql -c "UPDATE small.t1 SET note = 'changed', updated_at = clock_timestamp() WHERE id = 7"
measure "one table of 50 rows, $DISTANCE ms away, one change" "SELECT status FROM tablesync_run('small.t1')"
measure "tablesync_check of one table, $DISTANCE ms away" "SELECT bool_and(ok) FROM tablesync_check('small.t1')"
measure "$TABLES tables, $DISTANCE ms away, nothing changed, one call" "$run_all"

target_admin_sql -c "CREATE SCHEMA added AUTHORIZATION app"
measure "$TABLES tables, $DISTANCE ms away, added by one call" "SELECT added, count(*) FROM tablesync_add_schema('production', 'small', 'added', version_column => 'updated_at') GROUP BY 1"
target_sql -o /dev/null -c "SELECT tablesync_remove(replica, drop_replica => true) FROM tablesync_status WHERE replica::text LIKE 'added.%'"

source_at "$source_port"
for i in 1 2 3 4 5; do
    source_sql -c "UPDATE small.t1 SET note = 'changed $i', updated_at = clock_timestamp() WHERE id = 7"
    target_sql -At -c '\timing on' -c "SELECT status FROM tablesync_run('small.t1')" | awk '/^Time/ {print $2 / 1000}'
done >"$TSYNC_WORK/changes"
near=$(median <"$TSYNC_WORK/changes")
# shellcheck disable=SC2059
printf "$FORMAT" "one table of 50 rows, loopback, one change (median of 5)" "$near" -
echo "\"one table of 50 rows, loopback, one change\",$near," >>"$CSV"

source_sql -c "DROP SCHEMA small CASCADE" 2>/dev/null
target_sql -o /dev/null -c "SELECT tablesync_remove(replica, drop_replica => true) FROM tablesync_status" -c "DROP SCHEMA small CASCADE" 2>/dev/null
seed_small "$NEAR_TABLES"
for _ in 1 2; do target_sql -o /dev/null -c "$run_all"; done
measure "$NEAR_TABLES tables, loopback, nothing changed, one call" "$run_all"
target_sql -At -c "SELECT format('SELECT status FROM tablesync_run(%L, wait => false);', replica) FROM tablesync_status" >"$TSYNC_WORK/queue.sql"
from=$(date +%s%N)
target_sql -At -f "$TSYNC_WORK/queue.sql" >"$TSYNC_WORK/statuses"
while [ "$(target_sql -At -c "SELECT count(*) FROM tablesync_status WHERE state <> 'ok'")" != 0 ]; do sleep 0.1; done
queued=$(awk -v ns="$(($(date +%s%N) - from))" 'BEGIN { printf "%.4f", ns / 1e9 }')
# shellcheck disable=SC2059
printf "$FORMAT" "$NEAR_TABLES calls that do not wait, until all have ended" "$queued" -
echo "\"$NEAR_TABLES calls that do not wait\",$queued," >>"$CSV"
echo "written to $CSV"
