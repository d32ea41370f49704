#!/bin/bash
# bench.sh: make bench [ROWS=10000000] [REPEAT=3] [PEERS=no].  Every case of a
# run, two baselines of the same run, and other ways to keep a copy of a table.
# Prints a table and writes it to results/bench-<rows>.csv.

. "$(dirname "$0")/workload.sh"
. "$BENCH/cases.sh"
. "$BENCH/peers.sh"

set_size "${ROWS:-10000000}" 10000000

# Without autovacuum, which could fall into one case and not into another.
start_bench_pair -c autovacuum=off
seed_media "$ROWS"

start_csv "bench-$ROWS.csv" "$COST_NAMES" "media with $ROWS rows, $OPS changes a run, medians of $REPEAT (of $LOAD_REPEAT where every row is written)"
print_heading
digest_baseline
copy_and_load_cases
idle_case
tail_case
scattered_case
scattered_after_quiet_case
unchanged_case
no_version_case
fifty_case
constants_case
note "private memory of a worker: at most 64 MB in every case"
[ "${PEERS:-yes}" != yes ] || peers
echo "written to $CSV"
