#!/bin/bash
# fuzz.sh: make fuzz.  Throws INPUTS (100000) inputs at what reads packed
# buckets and does arithmetic with numbers of the source (extension/query/bucket.c),
# outside of a server, with AddressSanitizer and UndefinedBehaviorSanitizer.
# Needs clang 14 and its runtime, which it installs on a Debian machine.

set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
pg_config=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
work=$(mktemp -d "${TMPDIR:-/tmp}/tablesync.XXXXXX")
trap 'rm -rf "$work"' EXIT

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

if ! dpkg-query -W -f '${Status}' clang-14 libclang-rt-14-dev postgresql-server-dev-15 python3-minimal 2>/dev/null | grep -q "^\(install ok installed\)\{4\}$"; then
    as_root apt-get update -qq >/dev/null 2>&1 || true    # a broken third-party list is no reason to stop
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clang-14 libclang-rt-14-dev postgresql-server-dev-15 python3-minimal
fi

# the numbers that arithmetic trips over, and one input of each kind
mkdir "$work/corpus"
python3 - "$work/corpus" <<'PYTHON'
import struct, sys
extremes = [0, 1, -1, 63, 64, 2**31 - 1, 2**57 - 1, 2**57, -2**57, -2**57 - 1, 2**62, 2**63 - 1, -2**63]
for kind in range(4):
    for flags in (0, 1, 2, 8, 9, 10):
        for i, edge in enumerate(extremes):
            name = f"{sys.argv[1]}/{kind}-{flags}-{i}"
            with open(name, "wb") as f:
                f.write(struct.pack("<4q", kind << 4 | flags, 6, edge, extremes[i - 1]))
                f.write(struct.pack(">12q", *(extremes * 2)[i:i + 12]) if kind == 0 else struct.pack("<12q", *(extremes * 2)[i:i + 12]))
PYTHON

# -fwrapv, which PostgreSQL is built with, is left out: nothing here may need it
clang-14 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    -I"$("$pg_config" --includedir-server)" -I"$("$pg_config" --includedir)" -I"$root/extension" -I"$root/test/fuzz" -w \
    "$root"/test/fuzz/{fuzz_buckets,stand_ins}.c "$root/extension/query/bucket.c" -o "$work/fuzz" \
    -L"$("$pg_config" --pkglibdir)" -L"$("$pg_config" --libdir)" -lpgport
cd "$work"
"$work/fuzz" -runs="${INPUTS:-100000}" -max_len=4096 -rss_limit_mb=1024 -timeout=10 ${SEED:+-seed=$SEED} -print_final_stats=1 corpus >"$work/log" 2>&1 ||
    { tail -60 "$work/log"; cp "$work"/crash-* "$work"/timeout-* "$work"/oom-* "$root" 2>/dev/null || true; exit 1; }
grep -E 'Seed|stat::(number_of_executed_units|peak_rss_mb)|cov:' "$work/log" | tail -4
