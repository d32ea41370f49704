#!/bin/bash
# assert.sh: make test-assert.  Runs the tests with a PostgreSQL 15 that checks
# its assertions and overwrites memory when it is freed, so that what is used
# after that shows.  It is built once, from Debian's source package, in a folder
# of its own (ten minutes on two cores); TESTS and PROVE_FLAGS work as in make
# test.  TSYNC_CACHE is where the build stays.

set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
if [ "$(id -u)" = 0 ]; then cache=/var/cache/tablesync; else cache=${XDG_CACHE_HOME:-$HOME/.cache}/tablesync; fi
cache=${TSYNC_CACHE:-$cache}
prefix=$cache/postgresql-15-assert
packages="make gcc bzip2 bison flex libicu-dev libxml2-dev zlib1g-dev pkg-config libipc-run-perl postgresql-15-cron postgresql-15-pgtap"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_packages() {
    local p missing=
    for p in $packages; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
    done
    [ -n "$missing" ] || return 0
    as_root apt-get update -qq >/dev/null 2>&1 || true    # a broken third-party list is no reason to stop
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
}

# Debian's source package, with lists of our own: the machine's stay as they are.
fetch_source() {
    local lists=$1/apt
    mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
    cat >"$lists/sources.list" <<LIST
deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
LIST
    (cd "$1" && for verb in update "source --download-only --tar-only postgresql-15"; do
        # shellcheck disable=SC2086
        apt-get -qq -o Dir::Etc::sourcelist="$lists/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::State::lists="$lists/lists" -o Dir::Cache="$lists/cache" -o APT::Sandbox::User=root $verb
    done)
    mkdir "$1/postgresql"
    tar xf "$1"/postgresql-15_*.orig.tar.* -C "$1/postgresql" --strip-components=1
}

# --enable-cassert overwrites freed memory, too.  PostgreSQL generates headers
# in the outermost make only, and we are called by one.
build() {
    (unset MAKELEVEL MAKEFLAGS MFLAGS
        cd "$1/postgresql" &&
        ./configure -q --prefix="$2" --enable-cassert --enable-debug --enable-tap-tests --with-icu --with-libxml --without-readline CFLAGS="-O1 -g" &&
        nice -n 15 make -s -j"$(nproc)" &&
        make -s install &&
        nice -n 15 make -s -C contrib/postgres_fdw install &&
        nice -n 15 make -s -C contrib/test_decoding install)
}

# pg_cron and pgTAP are Debian's: they are not what is looked at.
borrow_extensions() {
    local debian=/usr/lib/postgresql/15/bin/pg_config
    cp "$("$debian" --sharedir)"/extension/{pgtap,pg_cron}* "$1/share/extension/"
    cp "$("$debian" --pkglibdir)"/pg_cron.so "$1/lib/"
}

install_packages
if [ ! -e "$prefix/complete" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "building a PostgreSQL 15 with assertions in $prefix"
    fetch_source "$work" || { echo "test-assert: skipped, Debian's source packages can't be reached"; exit 0; }
    build "$work" "$prefix" >"$cache/build.log" 2>&1 || { tail -30 "$cache/build.log"; rm -rf "$prefix"; exit 1; }
    borrow_extensions "$prefix"
    touch "$prefix/complete"
    rm -rf "$work"
    trap - EXIT
fi
PG_CONFIG=$prefix/bin/pg_config exec "$root/test/run.sh"
