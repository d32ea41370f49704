# cases.sh: sourced after workload.sh.  The baselines, and the cases of a run.
#
# set_size comes first: it says how many rows and changes, and how often each
# case is measured.

REPEAT=${REPEAT:-3}    # medians of so many

# What writes every row is measured once for tables larger than the limit.
set_size() {    # rows limit
    ROWS=$1
    OPS=$((ROWS / 100 < 36000 ? ROWS / 100 : 36000))    # changes of a run
    LOAD_REPEAT=$(($1 > $2 ? 1 : REPEAT))
}

nothing() { :; }

# --- baselines ---

DIGEST="SELECT count(*), sum(timestamp_hash_extended(updated_at, id::bigint)) FROM media_remote"

run_digest() { target_sql -c '\timing on' -c "$DIGEST"; }

digest_baseline() {
    if [[ $(target_sql -At -c "EXPLAIN (VERBOSE) $DIGEST") != *"Remote SQL: SELECT count"* ]]; then
        echo "the digest is not computed at the source" >&2
        exit 1
    fi
    run_digest >/dev/null    # warms the caches
    observe_times "$REPEAT" nothing run_digest
    digest=$(median_seconds)
    report "digest (baseline)"
}

drop_naive() { target_sql -c "SET client_min_messages = warning" -c "DROP TABLE IF EXISTS naive"; }

empty_naive() {
    drop_naive
    target_sql -c "CREATE TABLE naive (LIKE media_remote)"
    settle
}

copy_naive() {
    source_sql -c "COPY media TO STDOUT (FORMAT binary)" | target_sql -c "COPY naive FROM STDIN (FORMAT binary)"
    target_sql -c "ALTER TABLE naive ADD PRIMARY KEY (id)"
}

# --- cases ---

is_replica() { [ "$(target_sql -At -c "SELECT count(*) FROM tablesync.replica WHERE replica = to_regclass('media')")" = 1 ]; }

drop_replica() { target_sql -c "SELECT tablesync_remove('media', drop_replica => true)" >/dev/null; }

new_replica() {
    ! is_replica || drop_replica
    add_replica "version_column => 'updated_at'"
    settle
}

report_load() {
    report "load" "1.3 x copy"
    # shellcheck disable=SC2034    # for peers.sh
    load=$seconds
    target_sql -c "VACUUM ANALYZE media"
    run    # whatever the first run after a load has to do is not part of the other cases
}

load_case() {
    observe_times "$LOAD_REPEAT" new_replica run_timed
    report_load
}

# The baseline and the load by turns, so that whatever else the machine does meanwhile hits both.
copy_and_load_cases() {
    local i samples=$SAMPLES
    for ((i = 0; i < LOAD_REPEAT; i++)); do
        empty_naive
        SAMPLES=$samples.copy
        observe copy_naive
        [ "${PEERS:-yes}" = yes ] || drop_naive
        new_replica
        SAMPLES=$samples.load
        observe run_timed
    done
    SAMPLES=$samples.copy
    copy=$(median_seconds)
    report "copy (baseline)"
    SAMPLES=$samples.load
    report_load
    SAMPLES=$samples
}

idle_case() {
    observe_times "$REPEAT" nothing run_timed
    report "idle (forced to look)" "1.3 x digest"
}

change_tail() { change "$OPS" 0.01; }
change_scattered() { change "$OPS" 1; }

changed_case() {    # case at-most change
    observe_times "$REPEAT" "$3" run_timed
    check_replica
    report "$1" "$2"
}

tail_case() { changed_case "tail" "2 x digest" change_tail; }
scattered_case() { changed_case "scattered (after a busy run)" "3 x digest" change_scattered; }

# A run that finds nothing comes between.
quiet_then_scattered() {
    run
    change_scattered
}
scattered_after_quiet_case() { changed_case "scattered (after a quiet run)" "3 x digest" quiet_then_scattered; }

has_trust() {
    [ "$(target_sql -At -c "SELECT count(*) FROM pg_proc WHERE proname = 'tablesync_alter' AND 'trust_counters_for' = ANY (proargnames)")" = 1 ]
}

# The replica keeps the setting until it is removed.
unchanged_case() {
    if has_trust; then
        target_sql -c "SELECT tablesync_alter('media', trust_counters_for => '1 hour')" >/dev/null
        run
        observe_times "$REPEAT" nothing run_timed
        report "idle (counters unchanged)" "0.1 x digest"
    else
        report_missing "idle (counters unchanged)" "0.1 x digest"
    fi
}

# Forgets the version column.  The first run compares every column once.
no_version_case() {
    target_sql -c "SELECT tablesync_remove('media')" >/dev/null
    add_replica "workers => 2"
    run
    changed_case "no version column (scattered)" "3.5 x digest" change_scattered
    target_sql -c "SELECT tablesync_alter('media', fingerprint => 'row')" >/dev/null
    run
    changed_case "fingerprint row (scattered)" "-" change_scattered
}

# --- a table of 50 rows ---

FIFTY_REPEAT=20

seed_fifty() {
    source_sql <<'SQL'
CREATE TABLE fifty (id integer PRIMARY KEY, note text, updated_at timestamp);
INSERT INTO fifty SELECT i, md5(i::text), clock_timestamp() FROM generate_series(1, 50) i;
GRANT SELECT ON fifty TO reader;
SQL
    target_sql -c "SELECT tablesync_add('fifty', 'production', 'public.fifty', version_column => 'updated_at')" \
        -c "SELECT tablesync_run('fifty')" -c "SELECT tablesync_run('fifty')" >/dev/null
}

# One session; the change comes from another one that psql starts in between.
run_fifty() {
    local i update="UPDATE fifty SET note = md5(random()::text), updated_at = clock_timestamp() WHERE id = (SELECT 1 + (random() * 49)::integer)"
    {
        printf '%s\n' '\timing on'
        for ((i = 0; i < FIFTY_REPEAT; i++)); do
            echo "\\! '$PSQL' -Xq -h 127.0.0.1 -p $source_port -U postgres -d postgres -c \"$update\""
            echo "SELECT * FROM tablesync_run('fifty');"
        done
    } | target_sql -At
}

fifty_case() {
    seed_fifty
    observe run_fifty
    if [ "$(grep -c '|succeeded|50|0|1|0|' "$TSYNC_WORK/output")" != $FIFTY_REPEAT ]; then
        echo "a run of 50 rows did not find its one change" >&2
        exit 1
    fi
    seconds=$(sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' "$TSYNC_WORK/output" | median)
    print_row "50 rows (one change; latency)" "$(divide "$seconds" 1000)" - - "40 ms" - - - "$(column 5 | maximum)" "$(column 6 | maximum)" -
    rm -f "$SAMPLES"
}

# --- the constants of extension/source/source.h ---

# Statements like those of a run, each through a foreign table of the benchmark.
BY_XMIN="hash_array_extended(ARRAY[written_by], id::bigint)"
DIGEST_BY_XMIN="SELECT count(*), sum($BY_XMIN) FROM media_by_xmin"
BUCKETS="SELECT count(*) FROM (SELECT id >> 6, bit_or(1::bigint << (id & 63)), sum($BY_XMIN),
    bit_or(1::bigint << (id & 63)) FILTER (WHERE xidsend(written_by) >= '\\xf0000000') FROM media_by_xmin GROUP BY 1) b"
DIGEST_OF_ROWS="SELECT count(*), sum(hashint4extended(0, id::bigint) # hashtextextended(s3_path, 2) # hashtextextended(format, 3)
    # hashint2extended(type, 4) # timestamp_hash_extended(updated_at, 5)) FROM media_remote"

seconds_of() {    # statement
    local i
    for ((i = 0; i < REPEAT; i++)); do
        target_sql -c '\timing on' -c "$1" >"$TSYNC_WORK/output"
        psql_seconds "$TSYNC_WORK/output"
        echo
    done | median
}

constants_case() {
    local version xmin
    target_sql -c "CREATE FOREIGN TABLE media_by_xmin (id integer NOT NULL, written_by xid OPTIONS (column_name 'xmin'))
        SERVER production OPTIONS (schema_name 'public', table_name 'media', fetch_size '3000')"
    version=$(seconds_of "$DIGEST")
    xmin=$(seconds_of "$DIGEST_BY_XMIN")
    note "a digest by xmin takes $(divide "$xmin" "$version") of one of the version column"
    note "buckets take $(divide "$(seconds_of "$BUCKETS")" "$xmin") digests (TSYNC_BUCKET_COST)"
    note "a digest of all columns takes $(divide "$(seconds_of "$DIGEST_OF_ROWS")" "$version") of the version column's (TSYNC_ROW_COST)"
}
