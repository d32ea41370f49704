#!/bin/bash
# sizes.sh: make bench-plot [SIZES="10000 100000 .."] [REPEAT=3].  Seconds of a
# few cases by size of the table: results/sizes.csv, and drawn from it
# docs/performance.svg (or $PLOT).

. "$(dirname "$0")/workload.sh"
. "$BENCH/cases.sh"

SIZES=${SIZES:-10000 100000 1000000 10000000 100000000}
PLOT=${PLOT:-$TSYNC_ROOT/docs/performance.svg}

measure_size() {    # rows
    set_size "$1" 1000000
    seed_media "$ROWS"
    CSV_PREFIX=$ROWS,
    printf '\n%s rows, %s changes a run\n' "$ROWS" "$OPS"
    print_heading
    digest_baseline
    load_case
    idle_case
    tail_case
    scattered_case
    drop_replica
    source_sql -c "DROP TABLE media"
}

start_bench_pair -c autovacuum=off
start_csv sizes.csv "rows,$COST_NAMES" "medians of $REPEAT; loads of more than a million rows once"
for rows in $SIZES; do measure_size "$rows"; done
perl "$BENCH/plot.pl" "$CSV" >"$PLOT"
echo "written to $CSV and $PLOT"
