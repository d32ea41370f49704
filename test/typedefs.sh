#!/bin/bash
# typedefs.sh: make typedefs.  The names of types that our code uses, ours and the
# server's, from the debug information of the objects: extension/typedefs.list.

set -euo pipefail
cd "$(dirname "$0")/.."
types=$(for object in extension/*.o extension/*/*.o; do
    objdump --dwarf=info "$object" | grep -A 3 'DW_TAG_typedef' | sed -n 's/.*DW_AT_name .*[ \t]\([A-Za-z_][A-Za-z_0-9]*\)$/\1/p'
done | LC_ALL=C sort -u)
[ "$(wc -l <<<"$types")" -gt 100 ] || { echo "typedefs: the objects have no debug information" >&2; exit 1; }
echo "$types" >extension/typedefs.list
echo "typedefs: $(wc -l <<<"$types") types"
