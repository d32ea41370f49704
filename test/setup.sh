# setup.sh: sourced by make demo and make test.  Installs the packages that a
# fresh Debian 12 machine lacks, builds and installs the extension from a copy
# of this tree, and finds a user for the servers, which refuse to run as root.
#
# Sets TSYNC_ROOT (this tree), TSYNC_WORK (throwaway folder), TSYNC_USER, BINDIR.

set -euo pipefail

PACKAGES="make gcc postgresql-15 postgresql-server-dev-15 postgresql-15-cron postgresql-15-pgtap libipc-run-perl"

TSYNC_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_packages() {
    local missing
    command -v dpkg-query >/dev/null || return 0    # not Debian: use what is there
    missing=$(for p in $PACKAGES; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
    done)
    [ -n "$missing" ] || return 0
    echo "installing packages: ${missing//$'\n'/ }"
    as_root apt-get update -qq >/dev/null 2>&1 || true    # a broken third-party list is no reason to stop
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >"$TSYNC_WORK/apt.log" 2>&1 ||
        { cat "$TSYNC_WORK/apt.log"; exit 1; }
}

choose_user() {
    if [ "$(id -u)" != 0 ]; then
        TSYNC_USER=$(id -un)
    elif id postgres >/dev/null 2>&1; then
        TSYNC_USER=postgres
    else
        TSYNC_USER=nobody
    fi
}

# Run a command as the user of the servers.
as_user() {
    if [ "$(id -u)" = 0 ]; then
        runuser -u "$TSYNC_USER" -- "$@"
    else
        "$@"
    fi
}

build_and_install() {
    mkdir "$TSYNC_WORK/src"
    (cd "$TSYNC_ROOT" && tar cf - --exclude=.git --exclude=./tmp_check --exclude='*.o' --exclude='*.bc' --exclude='*.so' .) | tar xf - -C "$TSYNC_WORK/src"
    (cd "$TSYNC_WORK/src" && make -s -j2 PG_CONFIG="$PG_CONFIG" TSYNC_CFLAGS="${TSYNC_CFLAGS:-}" TSYNC_LDFLAGS="${TSYNC_LDFLAGS:-}" with_llvm=no >"$TSYNC_WORK/build.log" 2>&1) ||
        { cat "$TSYNC_WORK/build.log"; echo "build failed"; exit 1; }
    as_root make -s -C "$TSYNC_WORK/src" PG_CONFIG="$PG_CONFIG" with_llvm=no install >"$TSYNC_WORK/install.log" 2>&1 ||
        { cat "$TSYNC_WORK/install.log"; echo "install failed"; exit 1; }
}

TSYNC_WORK=$(mktemp -d "${TMPDIR:-/tmp}/tablesync.XXXXXX")
trap 'rm -rf "$TSYNC_WORK"' EXIT    # until there is more to clean up
chmod 755 "$TSYNC_WORK"
install_packages
if [ -z "${PG_CONFIG:-}" ]; then
    PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config    # Debian's pg_config in the PATH follows the newest client
    [ -x "$PG_CONFIG" ] || PG_CONFIG=$(command -v pg_config)
fi
BINDIR=$("$PG_CONFIG" --bindir)
choose_user
build_and_install
if [ "$(id -u)" = 0 ]; then chown -R "$TSYNC_USER" "$TSYNC_WORK"; fi

# a folder that the user of the servers may read
cd "$TSYNC_WORK"
