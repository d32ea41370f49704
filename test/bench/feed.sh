#!/bin/bash
# feed.sh: make bench-feed [ROWS=1000000] [OPS=36000] [REPEAT=7].  What the feed
# costs: runs after the same kind of changes with it and without it, in turn, and
# the bytes that a change takes.

. "$(dirname "$0")/workload.sh"

ROWS=${ROWS:-1000000}
OPS=${OPS:-36000}
REPEAT=${REPEAT:-7}

timed_run() {    # on or off: adds the run's seconds to a list
    change "$OPS" 1
    settle
    target_sql -c "SELECT tablesync_alter('media', feed => $1)" >/dev/null
    run_timed >"$TSYNC_WORK/output"
    psql_seconds "$TSYNC_WORK/output" >>"$TSYNC_WORK/seconds.$1"
    echo >>"$TSYNC_WORK/seconds.$1"
}

changes() { target_sql -At -c "SELECT count(DISTINCT position) FROM media_changes"; }
bytes() { target_sql -At -c "SELECT pg_total_relation_size('media_changes')"; }
seconds() { grep . "$TSYNC_WORK/seconds.$1" | median; }
fastest() { grep . "$TSYNC_WORK/seconds.$1" | sort -n | head -n 1; }    # others may have been at work meanwhile

start_bench_pair -c autovacuum=off
describe_machine
seed_media "$ROWS"
add_replica "version_column => 'updated_at'"
run
for ((i = 0; i < REPEAT; i++)); do
    timed_run false
    timed_run true
done
check_replica
awk -v off="$(seconds false)" -v on="$(seconds true)" -v bytes="$(bytes)" -v changes="$(changes)" -v off_min="$(fastest false)" -v on_min="$(fastest true)" -v rows="$ROWS" -v ops="$OPS" 'BEGIN {
    printf "%d changes of %d rows, medians: %.3f s without, %.3f s with the feed (%.0f %% more); %.0f bytes a change\n",
        ops, rows, off, on, (on / off - 1) * 100, bytes / changes
    printf "fastest: %.3f s without, %.3f s with it (%.0f %% more)\n", off_min, on_min, (on_min / off_min - 1) * 100 }'
from=$(date +%s%N)
target_sql -At -c "SELECT count(*) FROM tablesync_changes('media', (SELECT feed_position - $OPS FROM tablesync.replica))" -c "SELECT count(*) FROM tablesync_envelopes('media', (SELECT feed_position - $OPS FROM tablesync.replica))" >/dev/null
echo "read as tablesync_changes and as tablesync_envelopes: $(divide $(($(date +%s%N) - from)) 1000000000) s for both"
