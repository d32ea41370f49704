#!/bin/bash
# versions.sh: make test-versions.  Every supported pair of PostgreSQL versions:
# each source (13 to 18) is copied by each target (15 to 18), in small runs of all
# kinds, and make test runs on the targets that are not this machine's own.
#
# Each version is that of a release of Debian, put into a folder of its own by
# debootstrap (about a minute each, 2 GB), and run there by chroot: that takes
# root, or sudo.  TSYNC_CACHE is where the folders stay.  Versions that can't be
# had are skipped by name; 14 and 16 are no release's.
#
# make test-versions SUITES=no: only the pairs.

set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${TSYNC_CACHE:-/var/cache/tablesync}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
releases="13:bullseye 15:bookworm 17:trixie 18:sid"
oldest_target=15
work=/tmp/tablesync-versions.$$    # in each folder
started=

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Where a version is: this machine, or a folder.
folder_of() {
    local release
    if [ -x "/usr/lib/postgresql/$1/bin/postgres" ] && { [ "$1" -lt $oldest_target ] || [ -x "/usr/lib/postgresql/$1/bin/pg_config" ]; }; then
        echo /
        return
    fi
    for release in $releases; do
        [ "${release%%:*}" != "$1" ] || echo "$cache/debian-${release#*:}"
    done
}

# Each month sid has another compiler, whose warnings are no mistakes of ours.
cflags_of() {
    case $(folder_of "$1") in */debian-sid) echo -Wno-error ;; *) echo -Werror ;; esac
}

# Run a command where a version is, as root or as the user of the servers.
inside() {
    local folder
    folder=$(folder_of "$1")
    shift
    if [ "$folder" = / ]; then as_root "$@"; else as_root chroot "$folder" "$@"; fi
}
inside_as_user() {
    local version=$1
    shift
    inside "$version" runuser -u postgres -- env -C / LC_ALL=C.UTF-8 "$@"
}

# fetch version release: false if it can't be had
fetch() {
    local folder packages="postgresql-$1"
    folder=$(folder_of "$1")
    [ "$folder" != / ] && [ ! -x "$folder/usr/lib/postgresql/$1/bin/postgres" ] || return 0
    [ "$1" -lt $oldest_target ] || packages="$packages,postgresql-server-dev-$1,postgresql-$1-cron,postgresql-$1-pgtap,libipc-run-perl,make,gcc"
    command -v debootstrap >/dev/null ||
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null 2>&1 || return 1
    echo "fetching PostgreSQL $1 (Debian $2)"
    as_root rm -rf "$folder.new"
    as_root mkdir -p "$cache"
    as_root timeout 300 debootstrap --variant=minbase --include="$packages" "$2" "$folder.new" "$mirror" >"$logs/debootstrap-$2.log" 2>&1 || return 1
    echo '127.0.0.1 localhost' | as_root tee "$folder.new/etc/hosts" >/dev/null
    as_root mv "$folder.new" "$folder"
}

free_port() {
    perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die; print $s->sockport'
}

# start version source|target: a cluster; its port is in port_<what>_<version>
start() {
    local bin=/usr/lib/postgresql/$1/bin data=$work/$2-$1 port
    port=$(free_port)
    inside_as_user "$1" "$bin/initdb" -D "$data" -U postgres -A scram-sha-256 --pwfile="$work/password" --no-sync --no-locale -E UTF8 >/dev/null
    inside_as_user "$1" "$bin/pg_ctl" -D "$data" -l "$data.log" -w start \
        -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off -c max_worker_processes=32" >/dev/null
    started="$started $1:$2"
    eval "port_$2_$1=$port"
}

stop_all() {
    local status=$? one
    for one in $started; do
        inside_as_user "${one%%:*}" "/usr/lib/postgresql/${one%%:*}/bin/pg_ctl" -D "$work/${one#*:}-${one%%:*}" -m immediate -w stop >/dev/null 2>&1 || true
    done
    if [ $status -eq 0 ]; then
        for one in $have; do inside "$one" rm -rf "$work"; done
        rm -rf "$logs"
    else
        echo "logs are kept in $logs and, of each version, in $work"
    fi
}

# sql version source|target database [psql arguments]
sql() {
    local port
    eval "port=\$port_$2_$1"
    inside "$newest" env PGPASSWORD=secret PGTZ=UTC "/usr/lib/postgresql/$newest/bin/psql" -X -q -At -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U "${as:-postgres}" -d "$3" "${@:4}"
}

# Do source and replica hold the same?  Columns by name: they may be in another order.
compare() {
    local columns="$6" query
    query="SET extra_float_digits = 1; SELECT count(*), md5(string_agg(md5(ROW($columns)::text), '' ORDER BY md5(ROW($columns)::text))) FROM"
    if [ "$(sql "$1" source "to_$2" -c "$query $3")" != "$(sql "$2" target "from_$1" -c "$query $4")" ]; then
        echo "from $1 to $2: $4 differs from $3 $5"
        return 1
    fi
}

replicas="media_xmin media_row media_version parts people"
table_of() { case $1 in media_*) echo media ;; *) echo "$1" ;; esac }
columns_of() { case $1 in media_*) echo "id, path, size, tags, meta, at, k, f, b, d, r, updated_at" ;; parts) echo "id, day, v" ;; people) echo "name, n, v" ;; esac }

# pair source target
pair() {
    local replica statuses
    sql "$1" source postgres -c "CREATE DATABASE to_$2"
    sql "$2" target postgres -c "CREATE DATABASE from_$1"
    sql "$1" source "to_$2" <<'SQL'
CREATE TYPE kind AS ENUM ('small', 'large');
CREATE TABLE media (id bigint PRIMARY KEY, path varchar(100), size numeric(12, 2), tags text[], meta jsonb, at timestamptz, k uuid, f float8,
    b bytea, d date, r int4range, updated_at timestamptz NOT NULL DEFAULT now());
INSERT INTO media SELECT i, 'path/' || i, i / 7.0, ARRAY['a', i::text], jsonb_build_object('i', i, 'x', i / 3.0), now() - i * interval '1 s',
    md5(i::text)::uuid, 1.0 / i, decode(md5(i::text), 'hex'), '2020-01-01'::date + i, int4range(i, i + 5) FROM generate_series(1, 5000) i;
CREATE TABLE parts (id integer, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2020-02-01') TO ('2021-01-01');
INSERT INTO parts SELECT i, '2020-01-01'::date + i % 60, 'v' || i FROM generate_series(1, 2000) i;
CREATE TABLE people (name text, n integer, v kind, PRIMARY KEY (name, n));
INSERT INTO people SELECT 'Name ' || i % 50, i, 'small' FROM generate_series(1, 2000) i;
GRANT USAGE ON SCHEMA public TO reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
ANALYZE;
SQL
    eval "local port=\$port_source_$1"
    sql "$2" target "from_$1" <<SQL
SET client_min_messages = warning;
CREATE EXTENSION tablesync CASCADE;
GRANT CREATE ON SCHEMA public TO app;
CREATE TYPE kind AS ENUM ('small', 'large');
CREATE SERVER src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'to_$2');
GRANT USAGE ON FOREIGN SERVER src TO app;
CREATE USER MAPPING FOR app SERVER src OPTIONS (user 'reader', password 'secret');
SQL
    as=app sql "$2" target "from_$1" >/dev/null <<'SQL'
SET client_min_messages = warning;
SELECT tablesync_add('media_xmin', 'src', 'public.media', version_column => 'updated_at', fingerprint => 'xmin', chunk_rows => 1000);
SELECT tablesync_add('media_row', 'src', 'public.media', version_column => 'updated_at', fingerprint => 'row', chunk_rows => 1000);
SELECT tablesync_add('media_version', 'src', 'public.media', version_column => 'updated_at', fingerprint => 'version', chunk_rows => 1000);
SELECT tablesync_add('parts', 'src', 'public.parts', chunk_rows => 500);
SELECT tablesync_add('people', 'src', 'public.people', chunk_rows => 500);
SQL
    run_and_compare "$1" "$2" "after the load"
    sql "$1" source "to_$2" <<'SQL'
UPDATE media SET path = path || '!', updated_at = clock_timestamp() WHERE id % 97 = 0;
INSERT INTO media (id, path) SELECT i, 'new' FROM generate_series(6001, 6100) i;
DELETE FROM media WHERE id % 501 = 3;
UPDATE parts SET v = v || '!' WHERE id % 97 = 0;
UPDATE parts SET day = day + 31 WHERE id % 201 = 0 AND day < '2020-01-30';
DELETE FROM parts WHERE id % 501 = 3;
UPDATE people SET v = 'large' WHERE n % 97 = 0;
DELETE FROM people WHERE n % 501 = 3;
SQL
    run_and_compare "$1" "$2" "after changes"
    sql "$1" source "to_$2" -c "UPDATE media SET size = size + 1 WHERE id = 17"
    run_and_compare "$1" "$2" "after a change without a stamp" media_version
    sql "$1" source "to_$2" <<'SQL'
UPDATE media SET updated_at = clock_timestamp() WHERE id = 17;
ALTER TABLE media ADD COLUMN added integer DEFAULT 5;
ALTER TABLE media ALTER path TYPE text;
GRANT SELECT ON media TO reader;
SQL
    run_and_compare "$1" "$2" "after new columns"
    for replica in $replicas; do
        statuses=$(as=app sql "$2" target "from_$1" -c "SELECT count(*) FROM tablesync_verify('$replica')")
        [ "$statuses" = 0 ] || { echo "from $1 to $2: verify of $replica finds $statuses differences"; return 1; }
    done
    statuses=$(sql "$2" target "from_$1" -c "SELECT summary FROM tablesync_health() WHERE status <> 'ok'")
    [ -z "$statuses" ] || { echo "from $1 to $2: $statuses"; return 1; }
    echo "from $1 to $2: identical"
}

# run_and_compare source target when [all but this replica]
run_and_compare() {
    local replica columns failed
    failed=$(as=app sql "$2" target "from_$1" -c "SELECT string_agg(replica || ': ' || coalesce(message, status), ', ') FROM tablesync_run() WHERE status <> 'succeeded'") || return 1
    [ -z "$failed" ] || { echo "from $1 to $2 $3: $failed"; return 1; }
    for replica in $replicas; do
        [ "$replica" != "${4:-}" ] || continue
        columns=$(columns_of "$replica")
        case "$3:$replica" in "after new columns:media_"*) columns="$columns, added" ;; esac
        compare "$1" "$2" "$(table_of "$replica")" "$replica" "$3" "$columns"
    done
}

# A copy of this tree where a version is, built as CI does and installed.
install_extension() {
    inside "$1" mkdir -p "$work/src"
    (cd "$root" && tar cf - --exclude=.git --exclude=./tmp_check --exclude='*.o' --exclude='*.bc' --exclude='*.so' .) | inside "$1" tar xf - -C "$work/src"
    inside "$1" make -s -j2 -C "$work/src" PG_CONFIG="/usr/lib/postgresql/$1/bin/pg_config" TSYNC_CFLAGS="$(cflags_of "$1")" with_llvm=no install >"$logs/build-$1.log" 2>&1 ||
        { cat "$logs/build-$1.log"; echo "PostgreSQL $1: build failed"; return 1; }
}

# make test of a version in a folder: some tests look at /proc
suite() {
    local folder status=0
    folder=$(folder_of "$1")
    as_root mount -t proc proc "$folder/proc" || { echo "PostgreSQL $1: make test is skipped, /proc can't be mounted"; return 0; }
    inside "$1" env -C "$work/src" LC_ALL=C.UTF-8 TMPDIR="$work" PG_CONFIG="/usr/lib/postgresql/$1/bin/pg_config" TSYNC_CFLAGS="$(cflags_of "$1")" make test || status=$?
    as_root umount "$folder/proc"
    return $status
}

logs=$(mktemp -d "${TMPDIR:-/tmp}/tablesync.XXXXXX")
have=
trap stop_all EXIT
for release in $releases; do
    version=${release%%:*}
    if fetch "$version" "${release#*:}"; then
        have="$have $version"
        inside "$version" mkdir -p "$work"
        echo secret | inside "$version" tee "$work/password" >/dev/null
        inside "$version" chown -R postgres "$work"
    else
        echo "PostgreSQL $version: skipped, Debian ${release#*:} can't be had"
    fi
done
[ -n "$have" ] || exit 0
newest=${have##* }    # whose psql serves all
for version in $have; do
    start "$version" source
    sql "$version" source postgres -c "CREATE ROLE reader LOGIN PASSWORD 'secret'"
    [ "$version" -ge $oldest_target ] || continue
    install_extension "$version"
    start "$version" target
    sql "$version" target postgres -c "CREATE ROLE app LOGIN PASSWORD 'secret'"
done
for target in $have; do
    [ "$target" -ge $oldest_target ] || continue
    for source in $have; do pair "$source" "$target"; done
done
for version in $have; do
    if [ "${SUITES:-}" != no ] && [ "$version" -ge $oldest_target ] && [ "$(folder_of "$version")" != / ]; then suite "$version"; fi
done
