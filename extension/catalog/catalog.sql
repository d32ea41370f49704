/*
 * catalog.sql: what tablesync remembers, with constraints that refuse impossible states
 *
 * These tables belong to the extension's owner, and nobody else writes them:
 * what runs record is written by C (privilege.c), what users' functions change
 * goes through doors (door.c).  Everybody may read tablesync.replica, for one,
 * which row security restricts to the rows of one's own replicas (access.sql).
 *
 * Each has a primary key: where somebody publishes all tables of the database,
 * rows of one without could not be changed any more.
 *
 * Row security would also keep a role that may read everything, and nothing
 * else, from dumping them.  So each of them is a partitioned table, and all its
 * rows are in one partition, tablesync.all_replicas here, on which nobody has a
 * privilege and which has no policy: that one is dumped, and used by ourselves.
 *
 * The settings of a replica are described in settings.txt; make puts them where
 * the parts of this script list them (settings.pl).
 */

\echo Use "CREATE EXTENSION tablesync CASCADE" to load this file. \quit

/* Nothing in this script binds to an object that somebody has put into another schema. */
SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE SCHEMA tablesync;
GRANT USAGE ON SCHEMA tablesync TO PUBLIC;
COMMENT ON SCHEMA tablesync IS 'tables and internal functions of the extension tablesync';

/*
 * Where this database lives.  A dump restored elsewhere carries the old value,
 * which keeps its replicas paused until somebody resumes them there.
 */
CREATE FUNCTION tablesync.home()
RETURNS text
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_home';
COMMENT ON FUNCTION tablesync.home() IS 'system identifier and OID of this database; restored replicas stay paused while theirs differs';

CREATE TABLE tablesync.replica (
    replica regclass PRIMARY KEY,
    source regclass NOT NULL,
    @settings all -enabled: {column}@,
    @settings enabled: {column}@,    -- where it has always been
    shape jsonb NOT NULL,
    source_created boolean NOT NULL DEFAULT false,
    loaded boolean NOT NULL DEFAULT false,
    adopted boolean NOT NULL DEFAULT false,
    refetch name[] NOT NULL DEFAULT '{}',
    load_position text[],
    bounds_key text,
    identity text,
    source_version integer,
    look_key text,
    load_indexes oid[],
    memory_key text,
    memory_file oid,
    memory_horizon bigint,
    memory_epoch text,
    memory_at timestamptz,
    source_changes bigint,
    watermark text,
    filtered_by text,
    scan_rate double precision,
    counters jsonb,
    counters_at timestamptz,
    consecutive_failures integer NOT NULL DEFAULT 0 CHECK (consecutive_failures >= 0),
    retry_after timestamptz,
    feed_table regclass,
    feed_position bigint NOT NULL DEFAULT 0,
    feed_pruned bigint NOT NULL DEFAULT 0,
    feed_starts_again boolean NOT NULL DEFAULT false,
    home text NOT NULL DEFAULT tablesync.home(),
    added_at timestamptz NOT NULL DEFAULT now(),
    CHECK (fingerprint <> 'version' OR version_column IS NOT NULL),
    CHECK (NOT (loaded AND load_position IS NOT NULL)),
    CHECK (feed_pruned >= 0 AND feed_pruned <= feed_position)
) PARTITION BY HASH (replica);
CREATE TABLE tablesync.all_replicas PARTITION OF tablesync.replica FOR VALUES WITH (MODULUS 1, REMAINDER 0);
COMMENT ON TABLE tablesync.replica IS 'one row per replica: its source, its settings (change them with tablesync_alter) and its state';
COMMENT ON TABLE tablesync.all_replicas IS 'the rows of tablesync.replica, of all roles';
COMMENT ON COLUMN tablesync.replica.replica IS 'the local table';
COMMENT ON COLUMN tablesync.replica.source IS 'the foreign table through which the source is read';
@settings all: COMMENT ON COLUMN tablesync.replica.{name} IS '{comment}';@
COMMENT ON COLUMN tablesync.replica.shape IS 'columns of the source that the replica was built for';
COMMENT ON COLUMN tablesync.replica.source_created IS 'true when tablesync_add created the foreign table, which tablesync_remove then drops if it still belongs to the replica''s owner';
COMMENT ON COLUMN tablesync.replica.loaded IS 'false until the first load is complete';
COMMENT ON COLUMN tablesync.replica.adopted IS 'true while the replica holds rows that no run has compared in every column';
COMMENT ON COLUMN tablesync.replica.refetch IS 'columns whose values the next run fetches for all rows, because no fingerprint can compare them';
COMMENT ON COLUMN tablesync.replica.load_position IS 'key of the last row that an unfinished load has committed';
COMMENT ON COLUMN tablesync.replica.bounds_key IS 'types of the key for which load_position and the bounds in tablesync.chunk were made';
COMMENT ON COLUMN tablesync.replica.identity IS 'OIDs and file nodes of the source and its partitions when it was last read';
COMMENT ON COLUMN tablesync.replica.source_version IS 'server_version_num of the source when it was last read';
COMMENT ON COLUMN tablesync.replica.look_key IS 'digest of the source''s catalogs, and of ours, as a run has found them that did not have to follow anything';
COMMENT ON COLUMN tablesync.replica.load_indexes IS 'indexes that are not kept up to date while a load goes on; NULL when it is over';
COMMENT ON COLUMN tablesync.replica.memory_key IS 'what the digests in tablesync.chunk were made with: fingerprint and columns';
COMMENT ON COLUMN tablesync.replica.memory_file IS 'file node of the replica when the digests in tablesync.chunk were true';
COMMENT ON COLUMN tablesync.replica.memory_horizon IS 'transaction id at the source: what older ones have written was there when the digests in tablesync.chunk were made by xmin';
COMMENT ON COLUMN tablesync.replica.memory_epoch IS 'when the source''s statistics began: another life of the server may use a transaction id again';
COMMENT ON COLUMN tablesync.replica.memory_at IS 'when memory_horizon was read';
COMMENT ON COLUMN tablesync.replica.source_changes IS 'rows that the source had ever inserted, updated and deleted, by its counters, before the last complete scan: a hint where to look';
COMMENT ON COLUMN tablesync.replica.watermark IS 'versions below it were there before the last changes: a hint where to look, never proof';
COMMENT ON COLUMN tablesync.replica.filtered_by IS 'filter of the last run that has succeeded';
COMMENT ON COLUMN tablesync.replica.scan_rate IS 'rows per second that the source digested in the last runs';
COMMENT ON COLUMN tablesync.replica.counters IS 'the source''s statistics counters before the last complete scan';
COMMENT ON COLUMN tablesync.replica.counters_at IS 'when that scan began';
COMMENT ON COLUMN tablesync.replica.consecutive_failures IS 'runs that have failed since the last success';
COMMENT ON COLUMN tablesync.replica.retry_after IS 'scheduled runs wait until then; NULL when the last run was fine';
COMMENT ON COLUMN tablesync.replica.feed_table IS 'the table that changes are written to; it stays known when the feed is switched off';
COMMENT ON COLUMN tablesync.replica.feed_position IS 'position of the newest change in the feed';
COMMENT ON COLUMN tablesync.replica.feed_pruned IS 'changes up to this position are not kept any more';
COMMENT ON COLUMN tablesync.replica.feed_starts_again IS 'true when the replica has changed in ways that the feed does not show: the next success writes one row that says so';
COMMENT ON COLUMN tablesync.replica.home IS 'tablesync.home() of the database the replica was added or last resumed in';
COMMENT ON COLUMN tablesync.replica.added_at IS 'when the replica was added';

CREATE SEQUENCE tablesync.run_run_id_seq;
CREATE TABLE tablesync.run (
    run_id bigint PRIMARY KEY DEFAULT nextval('tablesync.run_run_id_seq'),
    replica regclass NOT NULL,
    kind text NOT NULL CHECK (kind IN ('load', 'sync', 'verify')),
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'succeeded', 'failed', 'cancelled', 'crashed')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    rows_scanned bigint NOT NULL DEFAULT 0,
    chunks integer NOT NULL DEFAULT 0,
    chunks_differing integer NOT NULL DEFAULT 0,
    inserted bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    deleted bigint NOT NULL DEFAULT 0,
    source_time interval NOT NULL DEFAULT '0',
    consistency text CHECK (consistency IN ('snapshot', 'chunk')),
    source_rows bigint,
    source_digest bigint,
    replica_rows bigint,
    replica_digest bigint,
    source_horizon bigint,
    newest_version text,
    sqlstate text,
    message text,
    detail text,
    hint text,
    pid integer NOT NULL DEFAULT pg_backend_pid(),
    group_run_id bigint,
    settled boolean NOT NULL DEFAULT false,
    source_instant timestamptz,
    CHECK ((status IN ('running', 'crashed')) = (finished_at IS NULL)),
    CHECK (status <> 'succeeded' OR (source_digest IS NOT NULL AND replica_digest IS NOT NULL))
) PARTITION BY HASH (run_id);
CREATE TABLE tablesync.all_runs PARTITION OF tablesync.run FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER SEQUENCE tablesync.run_run_id_seq OWNED BY tablesync.all_runs.run_id;
ALTER TABLE tablesync.all_runs ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
CREATE UNIQUE INDEX run_one_active ON tablesync.all_runs (replica) WHERE status = 'running';
CREATE INDEX run_crashed_unsettled ON tablesync.all_runs (replica) WHERE status = 'crashed' AND NOT settled;
CREATE INDEX run_of_group ON tablesync.all_runs (group_run_id) WHERE group_run_id IS NOT NULL;
CREATE INDEX run_of_replica ON tablesync.all_runs (replica, run_id DESC);
COMMENT ON TABLE tablesync.run IS 'one row per run; read it through the view tablesync_runs';
COMMENT ON TABLE tablesync.all_runs IS 'the rows of tablesync.run, of all roles';
COMMENT ON COLUMN tablesync.run.kind IS 'load (first copy), sync or verify';
COMMENT ON COLUMN tablesync.run.status IS 'as recorded; a run recorded as running whose worker is gone has crashed';
COMMENT ON COLUMN tablesync.run.source_time IS 'time spent waiting for the source: connections, catalogs, statements, ends of transactions';
COMMENT ON COLUMN tablesync.run.consistency IS 'how the source was read: in one snapshot, or in one per chunk';
COMMENT ON COLUMN tablesync.run.source_digest IS 'sum modulo 2^64 of the fingerprints of all source rows';
COMMENT ON COLUMN tablesync.run.replica_digest IS 'sum modulo 2^64 of the fingerprints of all replica rows after the run';
COMMENT ON COLUMN tablesync.run.source_horizon IS 'transaction counter of the source when the run began';
COMMENT ON COLUMN tablesync.run.newest_version IS 'newest value of the version column that any run up to this one has taken over';
COMMENT ON COLUMN tablesync.run.group_run_id IS 'first run of the group that this run was part of; NULL if it was alone';
COMMENT ON COLUMN tablesync.run.pid IS 'process of the background worker';
COMMENT ON COLUMN tablesync.run.source_instant IS 'clock of the source when the run began to read it: what was committed there before is in the replica; NULL if the run has not succeeded, or the source does not tell';
COMMENT ON COLUMN tablesync.run.settled IS 'whether the failure of the run has been made an alert';

CREATE TABLE tablesync.queue (
    run_id bigint PRIMARY KEY,
    replica regclass NOT NULL,
    force boolean NOT NULL DEFAULT false,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp()
) PARTITION BY HASH (run_id);
CREATE TABLE tablesync.all_queued PARTITION OF tablesync.queue FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE tablesync.all_queued ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
CREATE UNIQUE INDEX queue_one_per_replica ON tablesync.all_queued (replica);
COMMENT ON TABLE tablesync.queue IS 'one row per run that waits for a worker; not part of a dump';
COMMENT ON TABLE tablesync.all_queued IS 'the rows of tablesync.queue, of all roles';
COMMENT ON COLUMN tablesync.queue.run_id IS 'number that the run will have in tablesync.run; they begin in this order';
COMMENT ON COLUMN tablesync.queue.force IS 'whether it will override the guards';
COMMENT ON COLUMN tablesync.queue.queued_at IS 'since when it waits';

CREATE TABLE tablesync.chunk (
    replica regclass NOT NULL,
    chunk_no integer NOT NULL,
    lower_key text[],
    rows bigint NOT NULL DEFAULT 0 CHECK (rows >= 0),
    loaded boolean NOT NULL DEFAULT true,
    differed boolean NOT NULL DEFAULT false,
    digest bigint,
    stale boolean NOT NULL DEFAULT false,
    bucket_shift smallint,
    bucket_mask bigint,
    buckets bytea,
    verified_at timestamptz,
    PRIMARY KEY (replica, chunk_no),
    CHECK ((lower_key IS NULL) = (chunk_no IN (0, -1))),
    CHECK ((buckets IS NULL) = (bucket_mask IS NULL) AND (buckets IS NULL) = (bucket_shift IS NULL))
) PARTITION BY HASH (replica);
CREATE TABLE tablesync.all_chunks PARTITION OF tablesync.chunk FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE tablesync.all_chunks ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
ALTER TABLE tablesync.chunk ALTER COLUMN buckets SET STORAGE EXTERNAL;
COMMENT ON TABLE tablesync.chunk IS 'how a replica''s key range is cut into chunks, and what each holds, so that a run reads only the source';
COMMENT ON TABLE tablesync.all_chunks IS 'the rows of tablesync.chunk, of all roles';
COMMENT ON COLUMN tablesync.chunk.chunk_no IS 'position in key order, from 0';
COMMENT ON COLUMN tablesync.chunk.lower_key IS 'first key of the chunk, inclusive; NULL is unbounded; the next chunk''s is the upper bound, exclusive';
COMMENT ON COLUMN tablesync.chunk.rows IS 'rows of the replica in the chunk';
COMMENT ON COLUMN tablesync.chunk.loaded IS 'false until a load has copied its rows';
COMMENT ON COLUMN tablesync.chunk.differed IS 'whether the last run found a difference in it';
COMMENT ON COLUMN tablesync.chunk.digest IS 'sum modulo 2^64 of the fingerprints of these rows; NULL when unknown';
COMMENT ON COLUMN tablesync.chunk.stale IS 'true when somebody else has written to the replica since';
COMMENT ON COLUMN tablesync.chunk.verified_at IS 'when every column of every row in it was last compared with the source and found, or made, equal; NULL is never';
COMMENT ON COLUMN tablesync.chunk.bucket_shift IS 'keys belong to the bucket (key >> bucket_shift) & bucket_mask';
COMMENT ON COLUMN tablesync.chunk.bucket_mask IS '-1 where a bucket is 64 neighbouring integer keys and its rows are a bitmap of those present';
COMMENT ON COLUMN tablesync.chunk.buckets IS 'number, rows and digest (and moment, for bitmaps without a version column) of each bucket, 64 bits each in network byte order, ordered by number; NULL when unknown';

/* Written by a trigger of each replica (tsync_note_write): who writes to a replica makes what we remember of it stale. */
CREATE TABLE tablesync.stray_write (
    write_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    replica regclass NOT NULL REFERENCES tablesync.all_replicas ON DELETE CASCADE,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX stray_write_of_replica ON tablesync.stray_write (replica);
COMMENT ON TABLE tablesync.stray_write IS 'one row per transaction that has written to a replica and is not a run; the next run removes it';

CREATE SEQUENCE tablesync.alert_alert_id_seq;
CREATE TABLE tablesync.alert (
    alert_id bigint PRIMARY KEY DEFAULT nextval('tablesync.alert_alert_id_seq'),
    replica regclass NOT NULL,
    kind text NOT NULL CHECK (kind IN ('run_failed', 'stale', 'delete_guard', 'schema_changed', 'drift',
                                       'source_went_back', 'worker_unavailable', 'consumer_behind')),
    severity text NOT NULL CHECK (severity IN ('warning', 'critical')),
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at timestamptz,
    occurrences integer NOT NULL DEFAULT 1 CHECK (occurrences > 0),
    run_id bigint,
    sqlstate text,
    message text NOT NULL,
    hint text,
    told text CHECK (told IN ('opened', 'closed')),
    CHECK (closed_at >= since)
) PARTITION BY HASH (alert_id);
CREATE TABLE tablesync.all_alerts PARTITION OF tablesync.alert FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER SEQUENCE tablesync.alert_alert_id_seq OWNED BY tablesync.all_alerts.alert_id;
ALTER TABLE tablesync.all_alerts ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
CREATE UNIQUE INDEX alert_one_open ON tablesync.all_alerts (replica, kind) WHERE closed_at IS NULL;
CREATE INDEX alert_untold ON tablesync.all_alerts (alert_id) WHERE told IS DISTINCT FROM 'closed';
COMMENT ON TABLE tablesync.alert IS 'one row per problem of a replica, open or over; what is open is in the view tablesync_alerts';
COMMENT ON TABLE tablesync.all_alerts IS 'the rows of tablesync.alert, of all roles';
COMMENT ON COLUMN tablesync.alert.kind IS 'what is wrong; at most one open row per replica and kind';
COMMENT ON COLUMN tablesync.alert.since IS 'when it was first seen';
COMMENT ON COLUMN tablesync.alert.last_seen IS 'when it was last seen';
COMMENT ON COLUMN tablesync.alert.closed_at IS 'when it was over; NULL while it is open';
COMMENT ON COLUMN tablesync.alert.occurrences IS 'how often it was seen';
COMMENT ON COLUMN tablesync.alert.run_id IS 'the last run that met it, if a run did';
COMMENT ON COLUMN tablesync.alert.sqlstate IS 'error code of that run';
COMMENT ON COLUMN tablesync.alert.told IS 'what the alert handler was last called for';

CREATE TABLE tablesync.schedule (
    replica regclass PRIMARY KEY,
    schedule text NOT NULL CHECK (length(schedule) <= 200),
    cron_job_id bigint,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
) PARTITION BY HASH (replica);
CREATE TABLE tablesync.all_schedules PARTITION OF tablesync.schedule FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE tablesync.all_schedules ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
COMMENT ON TABLE tablesync.schedule IS 'which replicas pg_cron runs, and when (change it with tablesync_schedule)';
COMMENT ON TABLE tablesync.all_schedules IS 'the rows of tablesync.schedule, of all roles';
COMMENT ON COLUMN tablesync.schedule.schedule IS 'cron expression as it was given to pg_cron';
COMMENT ON COLUMN tablesync.schedule.cron_job_id IS 'job of pg_cron';
COMMENT ON COLUMN tablesync.schedule.since IS 'when the replica was scheduled or resumed: starts are expected from here on';

CREATE SEQUENCE tablesync.schema_log_log_id_seq;
CREATE TABLE tablesync.schema_log (
    log_id bigint PRIMARY KEY DEFAULT nextval('tablesync.schema_log_log_id_seq'),
    replica regclass NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id bigint,
    change text NOT NULL CHECK (change IN ('added', 'dropped', 'renamed', 'retyped', 'replaced', 'nullable', 'not_null', 'key', 'collation', 'labels')),
    column_name text,
    action text NOT NULL CHECK (action IN ('applied', 'kept', 'dropped', 'ignored', 'recorded', 'accepted', 'paused')),
    detail text NOT NULL
) PARTITION BY HASH (log_id);
CREATE TABLE tablesync.all_schema_changes PARTITION OF tablesync.schema_log FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER SEQUENCE tablesync.schema_log_log_id_seq OWNED BY tablesync.all_schema_changes.log_id;
ALTER TABLE tablesync.all_schema_changes ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
CREATE INDEX schema_log_of_replica ON tablesync.all_schema_changes (replica, log_id DESC);
COMMENT ON TABLE tablesync.schema_log IS 'one row per change of a source''s shape; read it through the view tablesync_schema_log';
COMMENT ON TABLE tablesync.all_schema_changes IS 'the rows of tablesync.schema_log, of all roles';
COMMENT ON COLUMN tablesync.schema_log.at IS 'when a run noticed the change';
COMMENT ON COLUMN tablesync.schema_log.run_id IS 'the run that noticed it';
COMMENT ON COLUMN tablesync.schema_log.change IS 'added, dropped, renamed, retyped, replaced (dropped and added again), nullable, not_null, key, collation or labels';
COMMENT ON COLUMN tablesync.schema_log.column_name IS 'the column''s name here; NULL for the key';
COMMENT ON COLUMN tablesync.schema_log.action IS 'applied; kept or dropped, of a column that the source has dropped; ignored by policy; recorded, as nothing was to do; accepted, as the owner had done it; paused';
COMMENT ON COLUMN tablesync.schema_log.detail IS 'what has changed, in words';

CREATE TABLE tablesync.total (
    replica regclass PRIMARY KEY,
    succeeded bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0,
    crashed bigint NOT NULL DEFAULT 0,
    failures_in_a_row bigint NOT NULL DEFAULT 0,
    rows_scanned bigint NOT NULL DEFAULT 0,
    inserted bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    deleted bigint NOT NULL DEFAULT 0,
    duration interval NOT NULL DEFAULT '0',
    source_time interval NOT NULL DEFAULT '0'
) PARTITION BY HASH (replica);
CREATE TABLE tablesync.all_totals PARTITION OF tablesync.total FOR VALUES WITH (MODULUS 1, REMAINDER 0);
COMMENT ON TABLE tablesync.total IS 'what all runs of a replica add up to, those no longer in tablesync.run too; read it through the view tablesync_totals';
COMMENT ON TABLE tablesync.all_totals IS 'the rows of tablesync.total, of all roles';
COMMENT ON COLUMN tablesync.total.failures_in_a_row IS 'runs that have failed or crashed since the last success';

CREATE SEQUENCE tablesync.difference_difference_no_seq;    -- need not be dumped: numbers of one run are from one life of it
CREATE TABLE tablesync.difference (
    run_id bigint NOT NULL,
    difference_no bigint NOT NULL DEFAULT nextval('tablesync.difference_difference_no_seq'),
    replica regclass NOT NULL,
    key jsonb NOT NULL,
    difference text NOT NULL CHECK (difference IN ('different', 'missing here', 'missing at source', 'newer at source')),
    source jsonb,
    replica_row jsonb,
    PRIMARY KEY (run_id, difference_no),    -- a key may be longer than an index entry
    CHECK (source IS NOT NULL OR replica_row IS NOT NULL),
    CHECK (difference <> 'missing here' OR (source IS NOT NULL AND replica_row IS NULL)),
    CHECK (difference <> 'missing at source' OR (source IS NULL AND replica_row IS NOT NULL)),
    CHECK (difference <> 'different' OR (source IS NOT NULL AND replica_row IS NOT NULL))
) PARTITION BY HASH (run_id);
CREATE TABLE tablesync.all_differences PARTITION OF tablesync.difference FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER SEQUENCE tablesync.difference_difference_no_seq OWNED BY tablesync.all_differences.difference_no;
ALTER TABLE tablesync.all_differences ADD FOREIGN KEY (run_id) REFERENCES tablesync.all_runs ON DELETE CASCADE;
COMMENT ON TABLE tablesync.difference IS 'rows in which a replica differed from its source when a run compared all columns; kept as long as the run';
COMMENT ON TABLE tablesync.all_differences IS 'the rows of tablesync.difference, of all roles';
COMMENT ON COLUMN tablesync.difference.run_id IS 'the run that has found it';
COMMENT ON COLUMN tablesync.difference.difference_no IS 'tells the differences of a run apart';
COMMENT ON COLUMN tablesync.difference.replica IS 'the local table';
COMMENT ON COLUMN tablesync.difference.key IS 'key columns of the row';
COMMENT ON COLUMN tablesync.difference.difference IS 'different, missing here, missing at source, or newer at source (changed there since the last run)';
COMMENT ON COLUMN tablesync.difference.source IS 'the whole row at the source, NULL where it has none';
COMMENT ON COLUMN tablesync.difference.replica_row IS 'the whole row of the replica before a repair, NULL where it had none';

CREATE TABLE tablesync.fed_run (
    replica regclass NOT NULL,
    last_position bigint NOT NULL,
    first_position bigint NOT NULL CHECK (first_position > 0),
    run_id bigint,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source_time timestamptz,
    PRIMARY KEY (replica, last_position),
    CHECK (first_position <= last_position)
) PARTITION BY HASH (replica);
CREATE TABLE tablesync.all_fed_runs PARTITION OF tablesync.fed_run FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE tablesync.all_fed_runs ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
COMMENT ON TABLE tablesync.fed_run IS 'one row per run that has written to a feed, as long as its changes are kept';
COMMENT ON TABLE tablesync.all_fed_runs IS 'the rows of tablesync.fed_run, of all roles';
COMMENT ON COLUMN tablesync.fed_run.replica IS 'the local table';
COMMENT ON COLUMN tablesync.fed_run.last_position IS 'position of its last change';
COMMENT ON COLUMN tablesync.fed_run.first_position IS 'position of its first change';
COMMENT ON COLUMN tablesync.fed_run.run_id IS 'the run; NULL where tablesync_alter has begun the feed';
COMMENT ON COLUMN tablesync.fed_run.applied_at IS 'when the changes came into the replica';
COMMENT ON COLUMN tablesync.fed_run.source_time IS 'when the source was as the run has made the replica';

CREATE TABLE tablesync.consumer (
    role regrole NOT NULL,
    consumer text NOT NULL CHECK (consumer <> '' AND length(consumer) <= 200),
    replica regclass NOT NULL,
    "position" bigint NOT NULL CHECK ("position" >= 0),
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    committed_at timestamptz,
    PRIMARY KEY (role, consumer)
) PARTITION BY HASH (role);
CREATE TABLE tablesync.all_consumers PARTITION OF tablesync.consumer FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE tablesync.all_consumers ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
CREATE INDEX consumer_of_replica ON tablesync.all_consumers (replica);
COMMENT ON TABLE tablesync.consumer IS 'one row per consumer of a feed: how far it has come; read it through the view tablesync_consumers';
COMMENT ON TABLE tablesync.all_consumers IS 'the rows of tablesync.consumer, of all roles';
COMMENT ON COLUMN tablesync.consumer.role IS 'the role that has added it; names of consumers are each role''s own';
COMMENT ON COLUMN tablesync.consumer.consumer IS 'its name';
COMMENT ON COLUMN tablesync.consumer.replica IS 'the replica whose feed it reads';
COMMENT ON COLUMN tablesync.consumer."position" IS 'the last change that it has committed';
COMMENT ON COLUMN tablesync.consumer.added_at IS 'when it was added';
COMMENT ON COLUMN tablesync.consumer.committed_at IS 'when it has last committed; NULL is never';

CREATE SEQUENCE tablesync.export_export_id_seq;
CREATE TABLE tablesync.export (
    export_id bigint PRIMARY KEY DEFAULT nextval('tablesync.export_export_id_seq'),
    role regrole NOT NULL,
    replica regclass NOT NULL,
    from_time timestamptz NOT NULL CHECK (isfinite(from_time)),
    to_time timestamptz NOT NULL CHECK (isfinite(to_time)),
    format text NOT NULL CHECK (format IN ('csv', 'jsonl')),
    state text NOT NULL DEFAULT 'NOT_STARTED' CHECK (state IN ('NOT_STARTED', 'STARTED', 'FINISHED', 'FAILED')),
    file text NOT NULL CHECK (file ~ '^[0-9]+-[0-9]+-[0-9]+-[0-9]+[.](csv|jsonl)$'),
    uri text,
    rows bigint,
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    message text,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    CHECK (from_time < to_time),
    CHECK ((state = 'FINISHED') = (uri IS NOT NULL) AND (state = 'FINISHED') = (rows IS NOT NULL)),
    CHECK ((state IN ('FINISHED', 'FAILED')) = (finished_at IS NOT NULL))
) PARTITION BY HASH (export_id);
CREATE TABLE tablesync.all_exports PARTITION OF tablesync.export FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER SEQUENCE tablesync.export_export_id_seq OWNED BY tablesync.all_exports.export_id;
ALTER TABLE tablesync.all_exports ADD FOREIGN KEY (replica) REFERENCES tablesync.all_replicas ON DELETE CASCADE;
CREATE INDEX export_of_replica ON tablesync.all_exports (replica);
CREATE INDEX export_unfinished ON tablesync.all_exports (export_id) WHERE state IN ('NOT_STARTED', 'STARTED');
CREATE INDEX export_finished ON tablesync.all_exports (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON TABLE tablesync.export IS 'one row per export; not part of a dump; read it through the view tablesync_exports';
COMMENT ON TABLE tablesync.all_exports IS 'the rows of tablesync.export, of all roles';
COMMENT ON COLUMN tablesync.export.export_id IS 'its number';
COMMENT ON COLUMN tablesync.export.role IS 'the role that has asked for it, with whose rights it is read';
COMMENT ON COLUMN tablesync.export.replica IS 'the local table';
COMMENT ON COLUMN tablesync.export.from_time IS 'beginning of the window, inclusive';
COMMENT ON COLUMN tablesync.export.to_time IS 'end of the window, exclusive';
COMMENT ON COLUMN tablesync.export.format IS 'csv or jsonl';
COMMENT ON COLUMN tablesync.export.state IS 'as recorded; an export recorded as STARTED whose worker is gone is tried again';
COMMENT ON COLUMN tablesync.export.file IS 'name of the file in tablesync.export_directory';
COMMENT ON COLUMN tablesync.export.uri IS 'where the file is; NULL until it is whole';
COMMENT ON COLUMN tablesync.export.rows IS 'rows in the file';
COMMENT ON COLUMN tablesync.export.attempts IS 'how often it was started';
COMMENT ON COLUMN tablesync.export.message IS 'why the last attempt failed, or what is to be known about the file';
COMMENT ON COLUMN tablesync.export.asked_at IS 'when it was asked for';
COMMENT ON COLUMN tablesync.export.due_at IS 'when the next attempt may begin';
COMMENT ON COLUMN tablesync.export.finished_at IS 'when it has finished or failed';

/* The contents of these tables belong into a dump. */
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_replicas', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_runs', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.run_run_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_chunks', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_alerts', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.alert_alert_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_schedules', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_schema_changes', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.schema_log_log_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_totals', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_differences', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_fed_runs', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.all_consumers', '');

