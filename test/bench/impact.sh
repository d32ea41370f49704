#!/bin/bash
# impact.sh: make bench-impact [ROWS=10000000] [DURATION=60] [SCALE=20] [CLIENTS=4].
# What an application at the source feels of continuous runs: pgbench at 70 % of
# its peak rate, alone and during runs with max_source_load 0.25, in turns.
# Prints a table and writes it to results/impact-<rows>.csv.

. "$(dirname "$0")/workload.sh"

ROWS=${ROWS:-10000000}
DURATION=${DURATION:-60}
SCALE=${SCALE:-20}
CLIENTS=${CLIENTS:-4}
MAX_SOURCE_LOAD=${MAX_SOURCE_LOAD:-0.25}
CHANGES_PER_SECOND=10    # of media: 36,000 an hour
FORMAT='%-22s %10s %10s %10s %8s %10s\n'

# pgbench at one of the clusters; its report goes to <name>.out.
bench() {    # name port user [pgbench options]
    local name=$1 port=$2 user=$3
    shift 3
    "$BINDIR/pgbench" -h 127.0.0.1 -p "$port" -U "$user" "$@" postgres >"$TSYNC_WORK/$name.out" 2>"$TSYNC_WORK/$name.err" ||
        { cat "$TSYNC_WORK/$name.err" >&2; exit 1; }
}

application() {    # name [pgbench options]
    bench "$1" "$source_port" postgres -c "$CLIENTS" -j 2 "${@:2}"
}

# One statement a second, give or take.
changes() { bench changes "$source_port" postgres -n -R 1 -T "$DURATION" -f "$TSYNC_WORK/change.sql"; }

# One run after the other in one session; the last one is waited for.
continuous_runs() { bench runs "$target_port" app -n -T "$DURATION" -f "$TSYNC_WORK/run.sql"; }

tps() { sed -n 's/^tps = \([0-9]*\.[0-9]\).*/\1/p' "$TSYNC_WORK/$1.out"; }

# Percentile in ms.  Latencies count from when a transaction was due, not from when it began.
percentile() {    # percent pattern
    # shellcheck disable=SC2086
    cat "$TSYNC_WORK"/$2.log.* | awk '{print $3}' | sort -n |
        awk -v p="$1" '{v[NR] = $1} END {i = int(NR * p / 100); printf "%.3f", v[i < 1 ? 1 : i] / 1000}'
}

mean() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f", (a + b) / 2 }'; }

# Runs since a moment: how many, and seconds of one.
runs_since() {
    target_sql -At -F ' ' -c "SELECT count(*), coalesce(round(EXTRACT(epoch FROM avg(duration)), 2)::text, '-')
                              FROM tablesync_runs WHERE status = 'succeeded' AND started_at >= '$1'"
}

phase() {    # name alone|with
    local from pid runs background=()
    from=$(target_sql -At -c "SELECT clock_timestamp()")
    changes &
    background+=($!)
    if [ "$2" = with ]; then
        continuous_runs &
        background+=($!)
    fi
    application "$1" -T "$DURATION" -R "$rate" -l --log-prefix="$TSYNC_WORK/$1.log"
    for pid in "${background[@]}"; do wait "$pid"; done
    read -ra runs < <(runs_since "$from")
    print_phase "$1" "$(tps "$1")" "$(percentile 50 "$1")" "$(percentile 99 "$1")" "${runs[@]}"
}

print_phase() {    # name tps p50 p99 runs seconds
    # shellcheck disable=SC2059
    printf "$FORMAT" "$@"
    write_csv "$@"
}

compare() {
    local alone with
    alone=("$(mean "$(tps alone-1)" "$(tps alone-2)")" "$(percentile 50 'alone-?')" "$(percentile 99 'alone-?')")
    with=("$(mean "$(tps with-1)" "$(tps with-2)")" "$(percentile 50 'with-?')" "$(percentile 99 'with-?')")
    print_phase alone "${alone[@]}" - -
    print_phase with "${with[@]}" - -
    print_phase ratio "$(divide "${with[0]}" "${alone[0]}")" "$(divide "${with[1]}" "${alone[1]}")" \
        "$(divide "${with[2]}" "${alone[2]}")" - -
    note "at most: tps within 2 % (ratio 0.98), p99 within 10 % (ratio 1.10)"
}

start_bench_pair
seed_media "$ROWS"
add_replica "version_column => 'updated_at', max_source_load => $MAX_SOURCE_LOAD"
run
target_sql -c "VACUUM ANALYZE media"
"$BINDIR/pgbench" -h 127.0.0.1 -p "$source_port" -U postgres -i -q -s "$SCALE" postgres >/dev/null 2>&1
run
settle

change_statements "$CHANGES_PER_SECOND" 1 >"$TSYNC_WORK/change.sql"
echo "SELECT * FROM tablesync_run('media');" >"$TSYNC_WORK/run.sql"
application peak -T "$((DURATION > 15 ? DURATION / 3 : 5))"
rate=$(awk -v peak="$(tps peak)" 'BEGIN { printf "%d", peak * 0.7 }')

start_csv "impact-$ROWS.csv" phase,tps,p50_ms,p99_ms,runs,seconds_per_run \
    "media with $ROWS rows, $CHANGES_PER_SECOND changes a second in every phase, max_source_load $MAX_SOURCE_LOAD" \
    "pgbench: scale $SCALE, $CLIENTS clients, $DURATION s a phase, $rate transactions a second (70 % of its peak of $(tps peak | cut -d . -f 1))"
# shellcheck disable=SC2059
printf "\n$FORMAT" phase tps 'p50 ms' 'p99 ms' runs 's a run'
phase alone-1 alone
phase with-1 with
phase alone-2 alone
phase with-2 with
compare
run
check_replica
echo "written to $CSV"
