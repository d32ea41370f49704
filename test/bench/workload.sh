# workload.sh: sourced by bench.sh, sizes.sh and impact.sh.  Two throwaway
# clusters, the table media at the source, and the changes it sees.
#
# The foreign table media_remote belongs to the benchmark, so that baselines and
# peers do not depend on what tablesync creates.

. "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
. "$TSYNC_ROOT/test/clusters.sh"
BENCH=$TSYNC_ROOT/test/bench
RESULTS=${RESULTS:-$BENCH/results}
. "$BENCH/measure.sh"

# Clusters of a failed run can be large: only their logs are kept.
finish() {
    local status=$?
    stop_pair
    rm -rf "$TSYNC_WORK/source" "$TSYNC_WORK/target"
    if [ $status -eq 0 ]; then rm -rf "$TSYNC_WORK"; else echo "failed; logs are kept in $TSYNC_WORK" >&2; fi
}

start_bench_pair() {    # further postgres options
    local options="-c shared_buffers=2GB -c max_wal_size=8GB -c checkpoint_timeout=1h $*"
    trap finish EXIT
    start_cluster source "$options" -c wal_level=logical
    start_cluster target "$options" -c wal_retrieve_retry_interval=100ms    # or subscriptions start 5 s late
    prepare_target
    seed_hot
    source_sql -c "CREATE ROLE reader LOGIN PASSWORD 'read-only'"
    target_sql <<'SQL'
CREATE FOREIGN TABLE media_remote (id integer NOT NULL, s3_path varchar(1024), format varchar(5), type smallint, updated_at timestamp)
SERVER production OPTIONS (schema_name 'public', table_name 'media', fetch_size '3000');
SQL
}

seed_media() {    # rows
    source_sql <<SQL
CREATE TABLE media (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s3_path varchar(1024), format varchar(5),
                    type smallint, updated_at timestamp);
INSERT INTO media (s3_path, format, type, updated_at)
SELECT '/bucket/' || md5(i::text) || '.jpg', 'jpg', 1, timestamp '2021-01-01' + i * interval '0.1 s' FROM generate_series(1, $1) i;
VACUUM ANALYZE media;
GRANT SELECT ON media TO reader;
SQL
    settle
}

# 40 % inserts, 40 % updates, 20 % deletes.  Updates and deletes fall on the
# newest ids, as many as the share (0.01 or 1) says; inserts come after all of them.
change_statements() {    # ops share
    local newest="SELECT (m.max - random() * $2 * (m.max - 1))::integer FROM (SELECT max(id) FROM media) m"
    cat <<SQL
UPDATE media SET s3_path = left('u' || s3_path, 45), updated_at = clock_timestamp()
WHERE id = ANY (ARRAY($newest, generate_series(1, $1 * 2 / 5)));
DELETE FROM media WHERE id = ANY (ARRAY($newest, generate_series(1, $1 / 5)));
INSERT INTO media (s3_path, format, type, updated_at)
SELECT '/bucket/' || md5(random()::text) || '.jpg', 'jpg', 1, clock_timestamp() FROM generate_series(1, $1 * 2 / 5) i;
SQL
}

change() { change_statements "$@" | source_sql; }

# The replica of media; load it with run.
add_replica() {    # further arguments of tablesync_add
    target_sql -c "SET client_min_messages = warning" \
        -c "SELECT tablesync_add('media', 'production', 'public.media', $1)" >/dev/null
}

run_timed() { target_sql -c '\timing on' -c "SELECT * FROM tablesync_run('media')"; }
run() { run_timed >/dev/null; }

# A benchmark of a sync that went wrong would be worth nothing.
check_replica() {
    local digest="SELECT count(*), sum(timestamp_hash_extended(updated_at, id::bigint)), sum(hashtextextended(s3_path, id::bigint)) FROM"
    if [ "$(target_sql -At -c "$digest media")" != "$(source_sql -At -c "$digest media")" ]; then
        echo "the replica differs from its source" >&2
        exit 1
    fi
}

# What earlier work has left to write is not for the next case to pay.
settle() {
    source_sql -c CHECKPOINT
    target_admin_sql -c CHECKPOINT
}
