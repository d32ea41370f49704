#!/bin/bash
# package.sh: make test-package.  Builds the Debian package from a copy of this
# tree, and uses it as its users would: it is installed, upgraded while a run goes
# on, and purged.  Then the same tree as PGXN gets it.
#
# All of that happens in a folder of its own, made by debootstrap (a minute or
# two, 2 GB), with chroot: it takes root, or sudo.  TSYNC_CACHE is where the
# folder stays, DEBIAN_RELEASE which release it has.  What can't be had is skipped
# by name.

set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${TSYNC_CACHE:-/var/cache/tablesync}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
release=${DEBIAN_RELEASE:-bookworm}
folder=$cache/package-$release
work=/tmp/tablesync-package.$$    # in the folder
version=$(sed -n "s/^default_version *= *'\(.*\)'/\1/p" "$root/tablesync.control")
next=$version.1
started=
mounted=
port_source=

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Run a command in the folder, as root or as the user of the servers.
inside() { as_root chroot "$folder" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
inside_as_user() { inside runuser -u postgres -- env -C / "$@"; }

fail() {
    echo "test-package: $*"
    exit 1
}

# quietly log command: its output only if it fails
quietly() {
    local log=$logs/$1
    shift
    "$@" >"$log" 2>&1 || { cat "$log"; fail "failed: $*"; }
}

fetch() {
    as_root true 2>/dev/null || return 1
    [ ! -e "$folder/complete" ] || return 0
    command -v debootstrap >/dev/null ||
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null 2>&1 || return 1
    echo "fetching Debian $release"
    as_root rm -rf "$folder"
    as_root mkdir -p "$cache"
    as_root debootstrap --variant=minbase --include=ca-certificates,build-essential,debhelper,postgresql,postgresql-server-dev-all \
        "$release" "$folder" "$mirror" >"$logs/debootstrap.log" 2>&1 || return 1
    echo '127.0.0.1 localhost' | as_root tee "$folder/etc/hosts" >/dev/null
    { inside apt-get update -qq && inside apt-get install -y -qq --no-install-recommends lintian pgxnclient; } >"$logs/apt.log" 2>&1 || true
    as_root touch "$folder/complete"
}

has() { inside sh -c "command -v $1" >/dev/null || { echo "$1: skipped, it can't be had"; return 1; }; }

finish() {
    local status=$? name
    for name in $started; do
        inside_as_user "$bin/pg_ctl" -D "$work/$name" -m immediate -w stop >/dev/null 2>&1 || true
    done
    inside dpkg --purge "$package" >/dev/null 2>&1 || true
    [ -z "$mounted" ] || as_root umount "$folder/proc" || true
    if [ $status -eq 0 ]; then
        inside rm -rf "$work"
        rm -rf "$logs"
    else
        echo "logs are kept in $logs and $folder$work"
    fi
}

# build version: the package, from the tree in the folder
build() {
    quietly "build-$1.log" inside env -C "$work/tablesync" dpkg-buildpackage -us -uc -b
}

# What a next release changes at least: the version, and an update.
make_next() {
    local updates=$work/tablesync/extension/updates file
    inside sed -i "s/^default_version.*/default_version = '$next'/" "$work/tablesync/tablesync.control"
    for file in "$folder$updates/0.1.0--$version"*; do
        file=${file##*/}
        inside mv "$updates/$file" "$updates/${file/$version/$next}"
    done
    echo "SELECT 'nothing to do';" | inside tee "$updates/tablesync--$version--$next.sql" >/dev/null
    { sed "1s/$version/$next/" "$root/debian/changelog"; echo; cat "$root/debian/changelog"; } |
        inside tee "$work/tablesync/debian/changelog" >/dev/null
}

# All files of the folder, but for what changes by itself.
list_files() {
    as_root find "$folder" -xdev \( -path "$folder/tmp" -o -path "$folder/proc" -o -path "$folder/var/cache" -o -path "$folder/var/log" -o -path "$folder/run" \) \
        -prune -o -path "$folder/var/lib/dpkg/*-old" -o -print | sort
}

nothing_left() {
    local left
    list_files >"$logs/files.after"
    left=$(diff "$logs/files.before" "$logs/files.after") || fail "$1 leaves, or takes:"$'\n'"$left"
}

free_port() {
    perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die; print $s->sockport'
}

# start source|target: a cluster; its port is in port_<name>
start() {
    local port
    port=$(free_port)
    inside_as_user "$bin/initdb" -D "$work/$1" -U postgres -A scram-sha-256 --pwfile="$work/password" --no-sync --no-locale -E UTF8 >/dev/null
    inside_as_user "$bin/pg_ctl" -D "$work/$1" -l "$work/$1.log" -w start \
        -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off -c max_worker_processes=16" >/dev/null
    started="$started $1"
    eval "port_$1=$port"
}

# sql source|target [psql arguments]
sql() {
    local port
    eval "port=\$port_$1"
    inside env PGPASSWORD=secret "$bin/psql" -X -q -At -h 127.0.0.1 -p "$port" -U "${as:-postgres}" -d postgres "${@:2}"
}

# is wanted source|target statement
is() {
    local got
    got=$(sql "$2" -c "$3" 2>&1) || true
    [ "$got" = "$1" ] || fail "$3"$'\n'"returns: $got"$'\n'"instead of: $1"
}

# contains text source|target statement
contains() {
    local got
    got=$(sql "$2" -c "$3" 2>&1) || true
    case $got in *"$1"*) ;; *) fail "$3"$'\n'"returns: $got"$'\n'"without: $1" ;; esac
}

# wait_for source|target query: until it returns t
wait_for() {
    local i
    for i in $(seq 600); do
        [ "$(sql "$1" -c "$2")" != t ] || return 0
        sleep 0.1
    done
    fail "timed out after $i attempts: $2"
}

prepare() {
    start source
    start target
    sql source -v ON_ERROR_STOP=1 <<'SQL'
CREATE ROLE reader LOGIN PASSWORD 'secret';
CREATE TABLE items (id integer PRIMARY KEY, note text);
INSERT INTO items SELECT i, 'n' || i FROM generate_series(1, 1000) i;
GRANT SELECT ON items TO reader;
SQL
    sql target -v ON_ERROR_STOP=1 <<SQL
SET client_min_messages = warning;
CREATE EXTENSION tablesync CASCADE;
CREATE ROLE app LOGIN PASSWORD 'secret';
GRANT CREATE ON SCHEMA public TO app;
CREATE SERVER src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port_source', dbname 'postgres');
GRANT USAGE ON FOREIGN SERVER src TO app;
CREATE USER MAPPING FOR app SERVER src OPTIONS (user 'reader', password 'secret');
SQL
    as=app is items target "SELECT tablesync_add('items', 'src', 'public.items')"
}

rows="SELECT count(*) || ' ' || md5(string_agg(id || note, ',' ORDER BY id)) FROM items"
is_replica() {
    is "$(sql source -c "$rows")" target "$rows"
}

run="SELECT status FROM tablesync_run('items')"
misfit="the library of tablesync $next does not fit the extension, which is of version $version
HINT:  Use ALTER EXTENSION tablesync UPDATE."
old_misfit="the library of tablesync $version does not fit the extension, which is of version $next"

# A session that has used the library, a run of it that waits for the source, and then an upgrade.
upgrade_in_a_run() {
    local worker now
    exec 8> >(sql source) 9> >(as=app sql target >"$logs/session" 2>&1)
    echo "$run;" >&9
    wait_for target "SELECT count(*) = 2 AND bool_and(status = 'succeeded') FROM tablesync_runs"
    sql source -c "UPDATE items SET note = 'changed' WHERE id % 10 = 0"
    echo "BEGIN; LOCK TABLE items;" >&8
    wait_for source "SELECT count(*) = 1 FROM pg_locks WHERE relation = 'items'::regclass AND mode = 'AccessExclusiveLock' AND granted"
    echo "$run;" >&9
    wait_for source "SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'reader' AND wait_event_type = 'Lock'"

    quietly upgrade.log inside dpkg -i "$work/${package}_${next}_$architecture.deb"
    contains "$misfit" target "TABLE tablesync_progress"
    worker=$(sql target -c "SELECT pid FROM pg_stat_activity WHERE backend_type = 'tablesync run'")
    as_root grep -q 'tablesync.so (deleted)' "/proc/$worker/maps" || fail "the run does not keep its library"
    echo "COMMIT;" >&8
    wait_for target "SELECT count(*) = 3 AND bool_and(status = 'succeeded') FROM tablesync.all_runs"
    is_replica

    as=app contains "$misfit" target "$run"
    # the session is still there, with a library that is older and fits, and starts a process, with one that is newer
    wait_for target "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'"
    now=$(sql target -c "SELECT now()")
    echo "$run;" >&9
    wait_for target "SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend' AND query_start > '$now' AND state = 'idle'"
    is "$next" target "ALTER EXTENSION tablesync UPDATE; SELECT extversion FROM pg_extension WHERE extname = 'tablesync'"
    as=app is succeeded target "$run"
    # and now the session's does not fit
    echo "$run;" >&9
    exec 8>&- 9>&-
    wait_for target "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend'"
    grep -qz 'succeeded.succeeded.ERROR:.*could record its run.HINT:  The server log says why.*ERROR: .*'"$old_misfit" "$logs/session" || fail "the session says: $(cat "$logs/session")"
    inside grep -q "was started by a session with a library other than that of tablesync $next" "$work/target.log" || fail "the log does not say why"
    ! inside grep "terminated by signal\|PANIC" "$work/target.log" || fail "a process has crashed"
}

# The same tree, as PGXN gets it.
try_pgxn() {
    local zip=tablesync-$version.zip
    has pgxn || return 0
    git -C "$root" rev-parse --git-dir >/dev/null 2>&1 || { echo "make dist: skipped, this is no clone"; return 0; }
    git clone -q "$root" "$logs/clone"
    make -s --no-print-directory -C "$logs/clone" dist
    as_root cp "$logs/clone/$zip" "$folder$work/"
    quietly pgxn.log inside env -C "$work" pgxn install --yes --pg_config "$bin/pg_config" "./$zip"
    contains tablesync target "SELECT name FROM pg_available_extensions WHERE name = 'tablesync' AND default_version = '$version'"
    quietly pgxn-uninstall.log inside env -C "$work" pgxn uninstall --yes --pg_config "$bin/pg_config" "./$zip"
    nothing_left "pgxn uninstall"
    echo "make dist: installed by pgxn"
}

logs=$(mktemp -d "${TMPDIR:-/tmp}/tablesync.XXXXXX")
fetch || { tail -n 5 "$logs"/*.log 2>/dev/null || true; echo "test-package: skipped, Debian $release can't be had"; rm -rf "$logs"; exit 0; }
postgres=$(inside /usr/share/postgresql-common/supported-versions | tail -n 1)
bin=/usr/lib/postgresql/$postgres/bin
architecture=$(inside dpkg --print-architecture)
package=postgresql-$postgres-tablesync
trap finish EXIT
if as_root mount -t proc proc "$folder/proc" 2>/dev/null; then mounted=yes; fi
inside mkdir -p "$work/tablesync"
echo secret | inside tee "$work/password" >/dev/null
(cd "$root" && tar cf - --exclude=.git --exclude=./tmp_check --exclude='*.o' --exclude='*.bc' --exclude='*.so' .) | inside tar xf - -C "$work/tablesync"
build "$version"
if has lintian; then quietly lintian.log inside env TMPDIR="$work" lintian --allow-root --fail-on error,warning "$work/tablesync_${version}_$architecture.changes"; fi
list_files >"$logs/files.before"
quietly install.log inside dpkg -i "$work/${package}_${version}_$architecture.deb"
quietly installcheck.log inside env -C "$work/tablesync" debian/tests/installcheck
echo "$package: built, installed, make installcheck passes"
make_next
build "$next"
inside chown -R postgres "$work"
prepare
as=app is succeeded target "$run"
is_replica
upgrade_in_a_run
echo "$package: upgraded while a run went on"
sql target -c "DROP EXTENSION tablesync"
quietly purge.log inside dpkg --purge "$package"
nothing_left "purge"
echo "$package: purged"
try_pgxn
