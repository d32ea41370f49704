#!/bin/bash
# soak.sh: make soak.  HISTORIES (100) random histories with faults, each compared
# with what a model says: see docs/testing.md.  SEED and HISTORY repeat one of them.

TSYNC_CFLAGS="-Werror ${TSYNC_CFLAGS:-}"
. "$(dirname "$0")/../setup.sh"

finish() {
    local status=$?
    if [ $status -eq 0 ] && [ -z "${KEEP:-}" ]; then
        rm -rf "$TSYNC_WORK"
    else
        echo "logs are kept in $TSYNC_WORK"
    fi
    exit $status
}
trap finish EXIT

pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")/../..
cd "$TSYNC_WORK/src"
as_user env PATH="$BINDIR:$PATH" PG_REGRESS="$pgxs/src/test/regress/pg_regress" TESTDIR="$TSYNC_WORK/src" TMPDIR="$TSYNC_WORK" \
    HISTORIES="${HISTORIES:-100}" SEED="${SEED:-}" HISTORY="${HISTORY:-}" FAULTS="${FAULTS:-yes}" KEEP_GOING="${KEEP_GOING:-}" REDUCE="${REDUCE:-120}" \
    perl -I test/soak -I test/perl -I "$pgxs/src/test/perl" test/soak/soak.pl
