# programs.sh: sourced by run.sh.  Fetches programs that only some tests need:
# postgres_exporter and promtool (016_exporter.pl), PgBouncer (039_pooler.pl); 23 MB of
# Debian packages, kept in tmp_check/packages.  They are not installed, because
# their packages start services, but unpacked into $TSYNC_WORK/tools.  Where they
# can't be had, the tests that need them are skipped.

TSYNC_TOOLS=$TSYNC_WORK/tools

# fetch_package package: false if it can't be had
fetch_package() {
    local cache=$TSYNC_ROOT/tmp_check/packages
    command -v apt-get >/dev/null || return 1
    mkdir -p "$cache" "$TSYNC_TOOLS"
    if ! ls "$cache/$1"_*.deb >/dev/null 2>&1; then
        echo "fetching $1"
        (cd "$cache" && timeout 60 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 download "$1" >>"$TSYNC_WORK/apt.log" 2>&1) ||
            { echo "$1 can't be fetched: tests that need it are skipped"; return 1; }
    fi
}

# unpack_package package folder path..: what of it is wanted goes into a folder, without its first three folders
unpack_package() {
    local package=$1 folder=$2
    shift 2
    mkdir -p "$folder"
    dpkg-deb --fsys-tarfile "$TSYNC_ROOT/tmp_check/packages/$package"_*.deb | tar xf - -C "$folder" --strip-components=3 --wildcards "$@" ||
        { rm -f "$TSYNC_ROOT/tmp_check/packages/$package"_*.deb; echo "$package can't be unpacked: tests that need it are skipped"; return 1; }
}

# unpack_program package program
unpack_program() {
    if ! command -v "$2" >/dev/null && fetch_package "$1"; then unpack_package "$1" "$TSYNC_TOOLS" "./usr/bin/$2" || true; fi
}

unpack_monitoring() {
    unpack_program prometheus-postgres-exporter prometheus-postgres-exporter
    # a package of its own since Debian 13
    if apt-cache show promtool >/dev/null 2>&1; then unpack_program promtool promtool; else unpack_program prometheus promtool; fi
}

# PgBouncer, and the libraries that nothing else here has.
unpack_pooler() {
    local package
    if [ -x /usr/sbin/pgbouncer ] || ! fetch_package pgbouncer; then return 0; fi
    for package in $(dpkg-deb -f "$TSYNC_ROOT/tmp_check/packages"/pgbouncer_*.deb Depends | grep -oE 'libc-ares2|libcares2|libevent[-.0-9a-z]*'); do
        if ! fetch_package "$package" || ! unpack_package "$package" "$TSYNC_TOOLS/lib" './usr/lib/*.so*'; then return 0; fi
    done
    unpack_package pgbouncer "$TSYNC_TOOLS/sbin" ./usr/sbin/pgbouncer || return 0
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$(dirname "$(find "$TSYNC_TOOLS/lib" -name 'libevent-*' | head -n 1)")" \
        "$TSYNC_TOOLS/sbin/pgbouncer" >"$TSYNC_TOOLS/pgbouncer"
    chmod 755 "$TSYNC_TOOLS/pgbouncer"
}
