#!/bin/bash
# soak.sh: make soak.  HISTORIES (100) random histories with faults, each compared
# with what a model says: see docs/testing.md.  SEED and HISTORY repeat one of them.

TSYNC_CFLAGS="-Werror ${TSYNC_CFLAGS:-}"
. "$(dirname "$0")/../setup.sh"

finish() {
    local status=$?
    if [ -n "$small_disk" ]; then as_root umount -l "$small_disk" || true; fi
    if [ $status -eq 0 ] && [ -z "${KEEP:-}" ]; then
        rm -rf "$TSYNC_WORK"
    else
        echo "logs are kept in $TSYNC_WORK"
    fi
    exit $status
}
small_disk=
trap finish EXIT

pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")/../..
# a disk that is soon full, where one may be mounted
if [ "$(id -u)" = 0 ]; then
    small_disk=$TSYNC_WORK/small
    mkdir "$small_disk"
    mount -t tmpfs -o size=8m,mode=777 tmpfs "$small_disk" 2>/dev/null || small_disk=
fi
[ -n "$small_disk" ] || echo "no small disk can be mounted: the fault 'disk full' is left out"
cd "$TSYNC_WORK/src"
as_user env PATH="$BINDIR:$PATH" PG_REGRESS="$pgxs/src/test/regress/pg_regress" TESTDIR="$TSYNC_WORK/src" TMPDIR="$TSYNC_WORK" \
    HISTORIES="${HISTORIES:-100}" SEED="${SEED:-}" HISTORY="${HISTORY:-}" FAULTS="${FAULTS:-yes}" KEEP_GOING="${KEEP_GOING:-}" REDUCE="${REDUCE:-120}" SOAK_SMALL_DISK="$small_disk" SOAK_PLACE="${SOAK_PLACE:-}" SOAK_FAULT="${SOAK_FAULT:-}" \
    perl -I test/soak -I test/perl -I "$pgxs/src/test/perl" test/soak/soak.pl
