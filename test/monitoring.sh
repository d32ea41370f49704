# monitoring.sh: sourced by run.sh.  Fetches two programs that only
# test/t/016_exporter.pl needs: postgres_exporter and promtool (22 MB of Debian
# packages, kept in tmp_check/packages).  They are not installed, because their
# packages start services, but unpacked into $TSYNC_WORK/tools.  Where they
# can't be had, the tests that need them are skipped.

TSYNC_TOOLS=$TSYNC_WORK/tools

# unpack_program package program
unpack_program() {
    local cache=$TSYNC_ROOT/tmp_check/packages
    ! command -v "$2" >/dev/null || return 0
    command -v apt-get >/dev/null || return 0
    mkdir -p "$cache" "$TSYNC_TOOLS"
    if ! ls "$cache/$1"_*.deb >/dev/null 2>&1; then
        echo "fetching $1"
        (cd "$cache" && timeout 60 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 download "$1" >>"$TSYNC_WORK/apt.log" 2>&1) ||
            { echo "$1 can't be fetched: tests that need it are skipped"; return 0; }
    fi
    dpkg-deb --fsys-tarfile "$cache/$1"_*.deb | tar xf - -C "$TSYNC_TOOLS" --strip-components=3 "./usr/bin/$2" ||
        { rm -f "$cache/$1"_*.deb; echo "$1 can't be unpacked: tests that need it are skipped"; }
}

unpack_monitoring() {
    unpack_program prometheus-postgres-exporter prometheus-postgres-exporter
    # a package of its own since Debian 13
    if apt-cache show promtool >/dev/null 2>&1; then unpack_program promtool promtool; else unpack_program prometheus promtool; fi
}
