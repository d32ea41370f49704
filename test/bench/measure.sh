# measure.sh: sourced by workload.sh.  Measures commands, prints the table, writes CSV.
#
# observe runs a command once and notes a sample.  Its time is what psql's \timing
# says if the command prints that, so that starting psql does not count, else what
# the clock says.  report turns the samples since the last report into one row:
# medians, the maximum of age and memory, the minimum of hot pages kept.

export LC_ALL=C    # psql prints times with the locale's decimal point
SAMPLES=$TSYNC_WORK/samples
digest=    # seconds of the baselines, once they are known
copy=

# A table at the source that production works with: read twice by its index, so that its pages have been used more than once.
HOT_PAGES="SELECT count(*) FROM pg_buffercache WHERE relfilenode = pg_relation_filenode('hot') AND relforknumber = 0
    AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())"

seed_hot() {
    source_sql -c "CREATE EXTENSION pg_buffercache" \
        -c "CREATE TABLE hot AS SELECT i AS id, repeat('h', 200) AS v FROM generate_series(1, 430000) i" \
        -c "ALTER TABLE hot ADD PRIMARY KEY (id)" -c "VACUUM ANALYZE hot"
}

warm_hot() {
    source_sql -c "SET enable_seqscan = off; SET enable_bitmapscan = off" \
        -c "SELECT count(v) FROM hot WHERE id > 0" -c "SELECT count(v) FROM hot WHERE id > 0" >/dev/null
    source_sql -At -c "$HOT_PAGES"
}

# Run a command and note: seconds, the figures of watch.pl, and the share of the hot pages that are still in the source's memory.
observe() {
    local from to watcher costs hot output=$TSYNC_WORK/output
    hot=$(warm_hot)
    coproc WATCH { exec perl "$BENCH/watch.pl" "$TSYNC_WORK/source" "$TSYNC_WORK/target" \
        "$PSQL" -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$source_port" -U postgres -d postgres; }
    watcher=$WATCH_PID
    exec {watch_out}<&"${WATCH[0]}" {watch_in}>&"${WATCH[1]}"
    eval "exec ${WATCH[0]}<&- ${WATCH[1]}>&-"
    read -r <&"$watch_out"    # it is ready
    from=$(date +%s%N)
    "$@" >"$output"
    to=$(date +%s%N)
    exec {watch_in}>&-
    read -r costs <&"$watch_out"
    exec {watch_out}<&-
    wait "$watcher"
    costs="$costs $(divide "$(source_sql -At -c "$HOT_PAGES")" "$hot")"
    echo "$(psql_seconds "$output" || awk -v ns="$((to - from))" 'BEGIN { printf "%.4f", ns / 1e9 }') $costs" >>"$SAMPLES"
}

# Run a command some times, each time after another one that is not measured.
observe_times() {    # times preparation command
    local i
    for ((i = 0; i < $1; i++)); do
        $2
        observe "$3"
    done
}

# The sum of what \timing printed; fails if it printed nothing.
psql_seconds() { awk '/^Time: [0-9.]+ ms/ {ms += $2} END {if (!ms) exit 1; printf "%.4f", ms / 1000}' "$1"; }

divide() { awk -v a="$1" -v b="${2:-0}" 'BEGIN { if (b > 0) printf "%.3f", a / b; else print "-" }'; }

column() { awk -v n="$1" '{print $n}' "$SAMPLES"; }
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
median_seconds() { column 1 | median; }
maximum() { sort -n | tail -n 1; }

describe_tablesync() {
    local commit
    commit=$(git -C "$TSYNC_ROOT" describe --always --dirty 2>/dev/null) || commit=
    echo "tablesync $(sed -n "s/^default_version *= *'\(.*\)'/\1/p" "$TSYNC_ROOT/tablesync.control")${commit:+ ($commit)}"
}

# What describes the machine, as lines for the top of table and CSV.
describe_machine() {
    echo "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores, $(awk '/MemTotal/ {printf "%d GB", $2 / 1048576}' /proc/meminfo) of memory"
    echo "$("$PG_CONFIG" --version), $(describe_tablesync), Linux $(uname -r), $(date +%F)"
}

CSV_PREFIX=    # first fields of each row, each with a comma after it

# Start a CSV file: machine and further lines as comments, then the column names.
start_csv() {    # file names [comment ...]
    CSV=$RESULTS/$1
    local names=$2 line
    shift 2
    mkdir -p "$RESULTS"
    { describe_machine; for line in "$@"; do echo "$line"; done; } | sed 's/^/# /' | tee "$CSV"
    echo "$names" >>"$CSV"
}

# shellcheck disable=SC2034    # for bench.sh and sizes.sh
COST_NAMES=case,seconds,x_digest,x_copy,at_most,source_cpu_seconds,buffers_hit,buffers_read,oldest_snapshot_seconds,worker_mb,hot_pages_kept
TABLE_FORMAT='%-36s %9s %9s %8s %-14s %9s %10s %9s %8s %7s %6s\n'

print_heading() {
    # shellcheck disable=SC2059
    printf "\n$TABLE_FORMAT" case seconds 'x digest' 'x copy' 'at most' 'source' buffers buffers oldest worker hot
    # shellcheck disable=SC2059
    printf "$TABLE_FORMAT" '' '' '' '' '' 'CPU s' hit read 'snap s' MB pages
}

# One row of the table and of the CSV file.
print_row() {    # case seconds x-digest x-copy at-most cpu hit read age memory hot-pages
    # shellcheck disable=SC2059
    printf "$TABLE_FORMAT" "$@"
    write_csv "$@"
}

# One row of the CSV file; - is an empty field.
write_csv() {
    (IFS=,; echo "$CSV_PREFIX$*") | awk -F, -v OFS=, '{for (i = 1; i <= NF; i++) if ($i == "-") $i = ""; print}' >>"$CSV"
}

# A line below the table, and a comment of the CSV file.
note() {
    echo "$1"
    echo "# $1" >>"$CSV"
}

# The row of a case; leaves its median in $seconds.
report() {    # case [at most]
    seconds=$(median_seconds)
    print_row "$1" "$seconds" "$(divide "$seconds" "$digest")" "$(divide "$seconds" "$copy")" "${2:--}" \
        "$(column 2 | median)" "$(column 3 | median)" "$(column 4 | median)" "$(column 5 | maximum)" \
        "$(column 6 | maximum | sed 's/^0\.0$/-/')" "$(column 7 | sort -n | head -n 1)"
    rm -f "$SAMPLES"
}

report_missing() {    # case [at most]
    print_row "$1" n/a - - "${2:--}" - - - - - -
}
