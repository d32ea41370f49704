# setup.sh: sourced by make demo and make test.  Installs the packages that a
# fresh Debian machine lacks (12, 13 or newer), builds and installs the extension
# from a copy of this tree, and finds a user for the servers, which refuse to run
# as root.  The server is that of PG_CONFIG, or the newest one that Debian's
# packages have put there, or the release's own.
#
# Sets TSYNC_ROOT (this tree), TSYNC_WORK (throwaway folder), TSYNC_USER, PG_CONFIG, BINDIR.

set -euo pipefail

TSYNC_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# The major version of Debian's servers: the newest that is installed, or the release's own.
debian_version() {
    local version
    version=$(find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null | cut -d/ -f5 | sort -n | tail -n 1) || true
    [ -n "$version" ] || version=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p') || true
    echo "$version"
}

find_pg_config() {
    local version
    [ -z "${PG_CONFIG:-}" ] || return 0
    version=$(debian_version)
    if [ -z "$version" ] && command -v apt-get >/dev/null; then
        as_root apt-get update -qq >/dev/null 2>&1 || true    # a new machine has no lists yet
        version=$(debian_version)
    fi
    # the one in the PATH follows the newest client
    PG_CONFIG=/usr/lib/postgresql/$version/bin/pg_config
    if [ -z "$version" ]; then PG_CONFIG=$(command -v pg_config); fi
}

install_packages() {
    local missing version packages
    command -v dpkg-query >/dev/null || return 0    # not Debian: use what is there
    version=$(expr "$PG_CONFIG" : '/usr/lib/postgresql/\([0-9]*\)/') || version=
    packages="make gcc libipc-run-perl"
    [ -z "$version" ] || packages="$packages postgresql-$version postgresql-server-dev-$version postgresql-$version-cron postgresql-$version-pgtap"
    missing=$(for p in $packages; do
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
find_pg_config
install_packages
BINDIR=$("$PG_CONFIG" --bindir)
choose_user
build_and_install
if [ "$(id -u)" = 0 ]; then chown -R "$TSYNC_USER" "$TSYNC_WORK"; fi

# a folder that the user of the servers may read
cd "$TSYNC_WORK"
