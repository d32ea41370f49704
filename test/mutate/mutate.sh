#!/bin/bash
# mutate.sh: make mutate.  Puts small faults into the code, one at a time, and
# sees whether a test fails: MUTANTS of them (100), drawn by SEED; MUTANT="3 17"
# repeats some.  Everything happens in a copy of the server in a folder of its
# own, so that no fault is ever installed where somebody uses it.
#
#   BUDGET    seconds in which a test may be begun against a fault (90)
#   MORE      seconds for more tests against those that survive that, and then
#             HISTORIES (10) of make soak; 0 leaves both out (600)
#   LANES     faults that are tried at a time (1)
#   SUITE     soak: only the soak is tried, nothing else
#   TESTS     numbers of TAP files, sql, sql2: only these are tried ("013 sql")
#   COVERAGE_MAP  what make test-coverage has written: tests that reach a line of
#             C are tried first, and no others.  Else and for SQL the folder says.
#   RESULTS   file to which each line of the table is also added

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/tablesync-mutate.XXXXXX")
chmod 755 "$work"

# Which server?  As setup.sh says; but nothing of it may be changed.
if [ -z "${PG_CONFIG:-}" ]; then
    PG_CONFIG=$(find /usr/lib/postgresql -path '*/bin/pg_config' 2>/dev/null | sort -t / -k 5n | tail -n 1) || true
    PG_CONFIG=${PG_CONFIG:-$(command -v pg_config)} || { echo "mutate: no PostgreSQL here; make test installs one"; exit 1; }
fi

# The server again, under another root: it finds its files from where its programs are.
copy_server() {
    local folder
    for folder in "$(dirname "$("$PG_CONFIG" --bindir)")" "$("$PG_CONFIG" --sharedir)" "$("$PG_CONFIG" --includedir)" \
        "$("$PG_CONFIG" --includedir-server)" "$("$PG_CONFIG" --pkglibdir)"; do
        [ ! -e "$1$folder" ] || continue
        mkdir -p "$1$(dirname "$folder")"
        cp -a "$folder" "$1$(dirname "$folder")"
    done
    rm -rf "$1$("$PG_CONFIG" --pkglibdir)/bitcode"
}

lanes=${LANES:-1}
for ((lane = 1; lane <= lanes; lane++)); do
    copy_server "$work/lane$lane"
done
there=$PG_CONFIG

export TMPDIR=$work PG_CONFIG=$work/lane1$there
. "$root/test/setup.sh"
. "$TSYNC_ROOT/test/clusters.sh"

# Interrupted in the middle of a test, its servers would be left.
finish() {
    local file
    for file in "$work"/lane*/src/tmp_check/*/pgdata/postmaster.pid "$work"/lane*/data/postmaster.pid; do
        [ ! -e "$file" ] || as_root kill -QUIT "$(head -n 1 "$file")" || true
    done
    rm -rf "$work"
}
trap finish EXIT
as_user "$BINDIR/initdb" -D "$TSYNC_WORK/template" -U postgres -A trust --no-sync --no-locale -E UTF8 >"$TSYNC_WORK/initdb.log"
perl -I "$root/test/mutate" "$root/test/mutate/mutate.pl" "$work" "$TSYNC_WORK" "$there" "$lanes" "$TSYNC_USER"
