#!/bin/bash
# bench.sh: make bench [ROWS=10000000].  Two throwaway clusters, table media, warm
# caches.  Prints seconds (medians of 3 where a case can be repeated) and ratios
# to two baselines of the same run: "digest", one aggregate query over the whole
# foreign table, and "copy", COPY piped into COPY with the primary key built after.

. "$(dirname "$0")/../setup.sh"
. "$TSYNC_ROOT/test/clusters.sh"

ROWS=${ROWS:-10000000}
OPS=$((ROWS < 1000000 ? ROWS / 100 : 36000))

finish() {
    local status=$?
    stop_pair
    if [ $status -eq 0 ]; then rm -rf "$TSYNC_WORK"; else echo "bench failed; logs are kept in $TSYNC_WORK"; fi
}
trap finish EXIT

# Seconds that a command takes.
seconds() {
    local from to
    from=$(date +%s%N)
    "$@" >/dev/null
    to=$(date +%s%N)
    echo "$from $to" | awk '{printf "%.3f", ($2 - $1) / 1e9}'
}

median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

report() {    # case seconds
    printf '%-32s %9.3f %12s %10s\n' "$1" "$2" \
        "$(echo "$2 $digest" | awk '{printf "%.2f", $1 / $2}')" "$(echo "$2 $copy" | awk '{printf "%.2f", $1 / $2}')"
}

# 40 % inserts, 40 % updates, 20 % deletes of ids from $1 on, over a range of $2.
change() {
    source_sql <<SQL
UPDATE media SET s3_path = left('u' || s3_path, 45), updated_at = clock_timestamp()
WHERE id = ANY (ARRAY(SELECT $1 + (random() * $2)::integer FROM generate_series(1, $OPS * 2 / 5)));
DELETE FROM media WHERE id = ANY (ARRAY(SELECT $1 + (random() * $2)::integer FROM generate_series(1, $OPS / 5)));
INSERT INTO media (s3_path, format, type, updated_at)
SELECT 'new' || i, 'jpg', 1, clock_timestamp() FROM generate_series(1, $OPS * 2 / 5) i;
SQL
}

run() { target_sql -c "SELECT * FROM tablesync_run('media')"; }

changed_runs() {    # case, first id, range
    local times=()
    for _ in 1 2 3; do
        change "$2" "$3"
        times+=("$(seconds run)")
    done
    report "$1" "$(median "${times[@]}")"
}

copy_baseline() {
    source_sql -c "COPY media TO STDOUT (FORMAT binary)" | target_sql -c "COPY naive FROM STDIN (FORMAT binary)"
    target_sql -c "ALTER TABLE naive ADD PRIMARY KEY (id)"
}

digest_baseline() {
    target_sql -c "SELECT count(*), sum(timestamp_hash_extended(updated_at, id::bigint)) FROM media_source"
}

upsert_baseline() {
    target_sql <<'SQL'
BEGIN;
INSERT INTO naive SELECT * FROM media_source WHERE updated_at > (SELECT max(updated_at) FROM naive)
ON CONFLICT (id) DO UPDATE SET (s3_path, format, type, updated_at) = ROW(excluded.s3_path, excluded.format, excluded.type, excluded.updated_at);
DELETE FROM naive n WHERE NOT EXISTS (SELECT FROM media_source s WHERE s.id = n.id);
COMMIT;
SQL
}

echo "media with $ROWS rows, $OPS changes a run, $(nproc) cores, PostgreSQL $("$PG_CONFIG" --version | awk '{print $2}')"
start_cluster source -c shared_buffers=2GB -c max_wal_size=8GB
start_cluster target -c shared_buffers=2GB -c max_wal_size=8GB
source_sql <<SQL
CREATE TABLE media (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s3_path varchar(1024), format varchar(5),
                    type smallint, updated_at timestamp);
INSERT INTO media (s3_path, format, type, updated_at)
SELECT '/bucket/' || md5(i::text) || '.jpg', 'jpg', 1, timestamp '2021-01-01' + i * interval '0.1 s' FROM generate_series(1, $ROWS) i;
VACUUM ANALYZE media;
CREATE ROLE reader LOGIN PASSWORD 'read-only';
GRANT SELECT ON media TO reader;
SQL
prepare_target
target_sql -c "SELECT tablesync_add('media', 'production', 'public.media', version_column => 'updated_at')" \
    -c "CREATE TABLE naive (LIKE media)" >/dev/null

copy=$(seconds copy_baseline)
load=$(seconds run)
target_sql -c "VACUUM ANALYZE media" -c "VACUUM ANALYZE naive"
digest=$(median "$(seconds digest_baseline)" "$(seconds digest_baseline)" "$(seconds digest_baseline)")

printf '%-32s %9s %12s %10s\n' case seconds 'x digest' 'x copy'
report "digest (baseline)" "$digest"
report "copy (baseline)" "$copy"
report "load" "$load"
seconds run >/dev/null
report "idle" "$(median "$(seconds run)" "$(seconds run)" "$(seconds run)")"
changed_runs "tail: newest 1 % of ids" $((ROWS - ROWS / 100)) $((ROWS / 100))
changed_runs "scattered over all ids" 1 "$ROWS"
report "upsert plus anti-join (peer)" "$(seconds upsert_baseline)"
target_sql -c "SELECT tablesync_alter('media', fingerprint => 'row')" -c "SELECT tablesync_run('media')" >/dev/null
changed_runs "scattered, no version column" 1 "$ROWS"
