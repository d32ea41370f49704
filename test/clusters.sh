# clusters.sh: sourced after setup.sh.  Throwaway clusters on loopback TCP, on
# free ports, in $TSYNC_WORK.

PSQL=$BINDIR/psql
export PGPASSFILE=$TSYNC_WORK/pgpass PGCONNECT_TIMEOUT=10
touch "$PGPASSFILE"
chmod 600 "$PGPASSFILE"

source_port= target_port=    # start_cluster sets them

free_port() {
    perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die; print $s->sockport'
}

# start_cluster name [postgres options]: superuser postgres with password secret; sets <name>_port
start_cluster() {
    local name=$1 port
    shift
    port=$(free_port)
    echo secret >"$TSYNC_WORK/$name.password"
    chmod 644 "$TSYNC_WORK/$name.password"
    as_user "$BINDIR/initdb" -D "$TSYNC_WORK/$name" -U postgres -A scram-sha-256 --pwfile="$TSYNC_WORK/$name.password" \
        --no-sync --no-locale -E UTF8 >"$TSYNC_WORK/$name.initdb.log"
    as_user "$BINDIR/pg_ctl" -D "$TSYNC_WORK/$name" -l "$TSYNC_WORK/$name.log" -w start \
        -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off $*" >/dev/null
    echo "127.0.0.1:$port:*:postgres:secret" >>"$PGPASSFILE"
    echo "127.0.0.1:$port:*:app:app" >>"$PGPASSFILE"
    eval "${name}_port=$port"
}

stop_cluster() {
    [ ! -f "$TSYNC_WORK/$1/postmaster.pid" ] || as_user "$BINDIR/pg_ctl" -D "$TSYNC_WORK/$1" -m fast -w stop >/dev/null 2>&1 || true
}

stop_pair() {
    stop_cluster target
    stop_cluster source
}

source_sql() { "$PSQL" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$source_port" -U postgres -d postgres "$@"; }
target_admin_sql() { "$PSQL" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$target_port" -U postgres -d postgres "$@"; }
target_sql() { "$PSQL" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$target_port" -U app -d postgres "$@"; }

# The extension, role app, and server "production" with a mapping to reader at the source.
prepare_target() {
    target_admin_sql <<SQL
SET client_min_messages = warning;
CREATE EXTENSION tablesync CASCADE;
CREATE ROLE app LOGIN PASSWORD 'app';
GRANT CREATE ON SCHEMA public TO app;
CREATE SERVER production FOREIGN DATA WRAPPER postgres_fdw
    OPTIONS (host '127.0.0.1', port '$source_port', dbname 'postgres');
GRANT USAGE ON FOREIGN SERVER production TO app;
CREATE USER MAPPING FOR app SERVER production OPTIONS (user 'reader', password 'read-only');
SQL
}
