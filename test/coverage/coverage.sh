#!/bin/bash
# coverage.sh: make test-coverage.  Runs the tests with gcov in our objects, and
# prints which lines of the C code they reach: per file, and in total.  TESTS and
# PROVE_FLAGS work as in make test; SUITE=soak runs make soak instead.
# COVERAGE_LIST=yes prints the lines that nothing has reached, COVERAGE_MAP names
# a file that gets the tests of each line (make mutate reads it).  A process that
# is killed takes its counts along, and so do those that run when a server is
# stopped at once, as each test does in the end.  What is installed is slow: make
# clean install brings the usual library back.

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
suite=${SUITE:-test}
map=${COVERAGE_MAP:+$(realpath "$COVERAGE_MAP")}
work=$(mktemp -d "${TMPDIR:-/tmp}/tablesync-coverage.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 777 "$work"    # the servers' user writes counts

run() {
    # where an object was built: .../tablesync.XXXXXX/src/extension
    strip=$(tr -cd / <<<"$work/tablesync/src" | wc -c)
    env TMPDIR="$work" KEEP=1 TSYNC_CFLAGS="-O0 -U_FORTIFY_SOURCE --coverage ${TSYNC_CFLAGS:-}" TSYNC_LDFLAGS=--coverage \
        TSYNC_COVERAGE="$work/counts" GCOV_PREFIX="$work/counts/$1" GCOV_PREFIX_STRIP="$strip" "${@:2}"
}

status=0
case $suite in
    test) run sql PROVE_FLAGS="${PROVE_FLAGS:--j3} --timer --exec $root/test/coverage/each.sh" "$root/test/run.sh" || status=$? ;;
    soak) run soak "$root/test/soak/soak.sh" || status=$? ;;
    *) echo "SUITE is test or soak" >&2; exit 1 ;;
esac
[ -d "$work/counts" ] || { echo "nothing was counted"; exit 1; }
[ "$status" = 0 ] || echo "a test has failed; what was reached until then:"
perl "$root/test/coverage/report.pl" "$work"/tablesync.*/src "$work/counts" "${COVERAGE_LIST:-no}" "${map:-}"
exit "$status"
