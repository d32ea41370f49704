#!/bin/bash
# format.sh: make format, make format-check.  The C code in PostgreSQL's own
# style: what its pgindent does, with Debian's pg_bsd_indent of the same version,
# except that lines may have 120 columns.  It moves blanks, braces and comments;
# it breaks and joins no lines.  format-check changes nothing, and fails if there
# were something to change.  Types are in extension/typedefs.list (make typedefs).

set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-format}
options="-bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 -i4 -l120 -lp -lpl -nip -npro -sac -tpg -ts4"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_indent() {
    command -v pg_bsd_indent >/dev/null && return
    { as_root apt-get update -qq || true
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends pg-bsd-indent; } >/dev/null 2>&1
}

# Types of ours that the list lacks would be taken for variables.
check_typedefs() {
    local missing
    missing=$(cat extension/*.[ch] extension/*/*.[ch] | sed -n 's/^} \([A-Za-z]\w*\);$/\1/p; s/^typedef [^(]*\b\([A-Z]\w*\);$/\1/p' |
        LC_ALL=C sort -u | LC_ALL=C comm -23 - extension/typedefs.list)
    [ -z "$missing" ] || { echo "format: extension/typedefs.list lacks ${missing//$'\n'/ }: run make typedefs"; exit 1; }
}

# What pg_bsd_indent would spoil is something else to it meanwhile: block comments that begin with dashes, values
# in braces on one line (a call), the loops of pg_list.h (a for).
disguise() {
    perl -pe 's!/\* +---!/*---X_X!; s/([)=]) \{([^{}]+)\}(?=[,;)])/$1 in_braces($2)/g; s/\b(foreach|forboth|for_each_\w+)\(/for (;;$1_of, /' "$1"
}

# Back again.  One blank goes before the stars of a returned pointer.
undisguise() {
    perl -pi -e 's!/\*---X_X!/* ---!; s!\*/(/\*.*\*/)$!*/\t$1!; s!^([A-Za-z_]\S*)[ \t]+(\*+)$!$1 $2!;
        s/in_braces(\((?:[^()]++|(?1))*\))/"{" . substr($1, 1, -1) . "}"/ge; s/for \(;;\s*(\w+)_of, /$1(/' "$1"
}

indent() {    # file copy
    disguise "$1" >"$2"
    # shellcheck disable=SC2086
    (cd "$work" && pg_bsd_indent $options -U"$work/typedefs" "$2") >"$work/log" 2>&1
    [ ! -s "$work/log" ] || { sed "s!^!$1: !" "$work/log"; return 1; }
    undisguise "$2"
}

install_indent || { echo "$mode: skipped, pg-bsd-indent can't be installed"; exit 0; }
check_typedefs
work=$(mktemp -d "${TMPDIR:-/tmp}/tablesync.XXXXXX")
trap 'rm -rf "$work"' EXIT
# names that are types in some header and variables here
{ grep -vxE 'date|interval|iterator|pointer|reference|string|text|timestamp|type' extension/typedefs.list; echo bool; } >"$work/typedefs"

changed=0
failed=
for file in extension/*.[ch] extension/*/*.[ch]; do
    indent "$file" "$work/copy.c" || { failed=1; continue; }
    cmp -s "$file" "$work/copy.c" && continue
    changed=$((changed + $({ diff "$file" "$work/copy.c" || true; } | grep -c '^<' || true)))
    if [ "$mode" = format-check ]; then
        diff -u --label "$file" --label "$file, formatted" "$file" "$work/copy.c" || true
    else
        cat "$work/copy.c" >"$file"
    fi
done
echo "$mode: $changed lines differ"
[ -z "$failed" ] || exit 1
[ "$mode" = format ] || [ "$changed" = 0 ]
