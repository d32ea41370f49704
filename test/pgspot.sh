#!/bin/bash
# pgspot.sh: make pgspot.  Looks through the install script for what a role
# with CREATE on some schema could make it bind to.  pgspot comes from PyPI; where that
# can't be reached, the check is skipped, and says so.
#
# The parser that pgspot uses does not know fields of variables of a composite
# type in PL/pgSQL ("settings.enabled := ..").  Parts that it can't read are
# looked through without the bodies of their PL/pgSQL functions, all of which
# have a fixed search_path (test/pgtap/functions.sql).

set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/tablesync.XXXXXX")
trap 'rm -rf "$work"' EXIT

python=$(command -v python3) || { echo "pgspot: skipped, python3 is missing"; exit 0; }
if ! { "$python" -m venv "$work/venv" && "$work/venv/bin/pip" install -q pgspot; } >"$work/pip.log" 2>&1; then
    echo "pgspot: skipped, it could not be installed from PyPI"
    exit 0
fi

# a procedure with SET can't commit; nothing in its body depends on the path
exceptions=(--proc-without-search-path "tablesync.run_scheduled(replica regclass,INOUT status text,INOUT message text)")
failed=0
without_bodies=
for part in $(make -s -C "$root" sql-parts); do
    { echo 'SET LOCAL search_path TO pg_catalog, pg_temp;'
      "$root/extension/catalog/settings.pl" "$root/extension/catalog/settings.txt" "$root/$part" | sed 's/@extschema@/public/g'; } >"$work/part.sql"
    if ! "$work/venv/bin/pgspot" "${exceptions[@]}" "$work/part.sql" >"$work/out" 2>&1 && ! grep -q "^PS" "$work/out"; then    # could not read it
        without_bodies="$without_bodies ${part##*/}"
        "$work/venv/bin/pgspot" "${exceptions[@]}" --no-plpgsql "$work/part.sql" >"$work/out" 2>&1 || true
    fi
    grep -q "not a known variable\|syntax error" "$work/out" && failed=1
    grep -q 'Errors: 0 Warnings: 0 Unknown: 0' "$work/out" || { echo "$part:"; cat "$work/out"; failed=1; }
done
[ "$failed" = 0 ] || exit 1
echo "pgspot: 0 findings (without bodies of PL/pgSQL functions:$without_bodies)"
