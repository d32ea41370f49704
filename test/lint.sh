#!/bin/bash
# lint.sh: make lint.  Reads scripts, C and SQL without running them: shellcheck,
# includes.pl, cppcheck, plpgsql_check.  What can't be installed here is skipped,
# and says so.  LINT=plpgsql_check picks some.

# shellcheck source=test/setup.sh
. "$(dirname "$0")/setup.sh"
# shellcheck source=test/clusters.sh
. "$TSYNC_ROOT/test/clusters.sh"

failed=

# Get what a check needs, unless it is there, or say that it is left out.
have() {    # program package
    dpkg-query -W -f '${Status}' "$2" 2>/dev/null | grep -q 'ok installed' && return
    as_root apt-get update -qq >/dev/null 2>&1 || true    # a broken third-party list is no reason to stop
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >"$TSYNC_WORK/apt.log" 2>&1 ||
        command -v "$1" >/dev/null || { echo "$1: skipped, $2 can't be installed"; return 1; }
}

# Sourced files are looked at through those that source them.
check_shellcheck() {
    local scripts
    have shellcheck shellcheck || return 0
    mapfile -t scripts < <(grep -lr --include='*.sh' --include=run '^#!/bin/bash' .ci test)
    shellcheck -x -a -f gcc "${scripts[@]}" | sort -u
}

check_includes() {
    local include
    include=$("$PG_CONFIG" --includedir-server)
    # shellcheck disable=SC2046
    test/includes.pl gcc -Werror -Wall -Wno-unused -Iextension -DTSYNC_VERSION='""' $("$PG_CONFIG" --cppflags) -I"$include" -I"$include/../internal"
}

# Without the server's headers (test/cppcheck.h).  Our signatures leave out const, as PostgreSQL's own do, variables
# are declared at the top of a function, and gcc tells better what is assigned and never read.
check_cppcheck() {
    have cppcheck cppcheck || return 0
    cppcheck --quiet --error-exitcode=1 -j"$(nproc)" --enable=warning,style,performance,portability --inline-suppr \
        --suppress=constParameter --suppress=constVariable --suppress=variableScope --suppress=shadowFunction --suppress=unreadVariable \
        --template='{file}:{line}: {severity}: {message} [{id}]' -Iextension --include=test/cppcheck.h -DPG_VERSION_NUM=150000 extension
}

check_plpgsql_check() {
    have plpgsql_check postgresql-15-plpgsql-check || return 0
    if [ ! -e "$("$PG_CONFIG" --sharedir)/extension/plpgsql_check.control" ]; then
        echo "plpgsql_check: skipped, it is not for the PostgreSQL of $PG_CONFIG"
        return 0
    fi
    start_cluster target -c shared_preload_libraries=pg_cron
    target_admin_sql -At -f "$TSYNC_ROOT/test/plpgsql.sql" >"$TSYNC_WORK/findings" 2>&1 || { cat "$TSYNC_WORK/findings"; return 1; }
    cat "$TSYNC_WORK/findings"
    [ ! -s "$TSYNC_WORK/findings" ]
}

trap 'stop_cluster target; rm -rf "$TSYNC_WORK"' EXIT
cd "$TSYNC_ROOT"
for check in ${LINT:-shellcheck includes cppcheck plpgsql_check}; do
    "check_$check" || { echo "$check: failed"; failed="$failed $check"; }
done
[ -z "$failed" ] || exit 1
