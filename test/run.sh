#!/bin/bash
# run.sh: make test.  Builds with warnings as errors and runs every test:
# pg_regress and isolation on one throwaway cluster, then Perl TAP (which runs
# pgTAP too) on pairs of clusters.  make test TESTS=test/t/002_random.pl picks
# TAP files; PROVE_FLAGS goes to prove.

TSYNC_CFLAGS="-Werror ${TSYNC_CFLAGS:-}"
. "$(dirname "$0")/setup.sh"
. "$TSYNC_ROOT/test/clusters.sh"
. "$TSYNC_ROOT/test/programs.sh"

cluster=$TSYNC_WORK/installcheck
started=

finish() {
    local status=$?
    [ -z "$started" ] || as_user "$BINDIR/pg_ctl" -D "$cluster" -m immediate -w stop >/dev/null 2>&1 || true
    if [ $status -eq 0 ] && [ -z "${KEEP:-}" ]; then
        rm -rf "$TSYNC_WORK"
    else
        echo "logs are kept in $TSYNC_WORK"
    fi
    exit $status
}
trap finish EXIT

installcheck() {
    local port
    port=$(free_port)
    as_user "$BINDIR/initdb" -D "$cluster" -U postgres -A trust --no-sync --no-locale -E UTF8 >"$TSYNC_WORK/initdb.log"
    as_user "$BINDIR/pg_ctl" -D "$cluster" -l "$TSYNC_WORK/installcheck.log" -w start \
        -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off -c max_worker_processes=16" >/dev/null
    started=1
    (cd "$TSYNC_WORK/src" && as_user env PGHOST=127.0.0.1 PGPORT="$port" PGUSER=postgres \
        make -s PG_CONFIG="$PG_CONFIG" with_llvm=no installcheck) ||
        { cat "$TSYNC_WORK"/src/regression.diffs "$TSYNC_WORK"/src/output_iso/regression.diffs 2>/dev/null; exit 1; }
}

tap() {
    local pgxs perl_lib
    pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")/../..
    perl_lib=$pgxs/src/test/perl
    cd "$TSYNC_WORK/src"
    # what takes longest begins first
    local first="test/t/011_schedule.pl test/t/030_lying_source.pl test/t/071_seldom.pl test/t/019_bulk_load.pl"
    [ -n "${TESTS:-}" ] || TESTS="$first $(printf '%s\n' test/t/*.pl | grep -vxF "${first// /$'\n'}")"
    # shellcheck disable=SC2086
    as_user env PATH="$BINDIR:$TSYNC_TOOLS:$PATH" PG_REGRESS="$pgxs/src/test/regress/pg_regress" TESTDIR="$TSYNC_WORK/src" \
        TMPDIR="$TSYNC_WORK" prove ${PROVE_FLAGS:--j3} -I test/perl -I "$perl_lib" $TESTS
}

[ -n "${TESTS:-}" ] || installcheck
case "${TESTS:-all}" in all | *exporter*) unpack_monitoring ;; esac
case "${TESTS:-all}" in all | *pooler*) unpack_pooler ;; esac
tap
