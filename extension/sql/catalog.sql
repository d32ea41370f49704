/* catalog.sql: what tablesync remembers, with constraints that refuse impossible states */

\echo Use "CREATE EXTENSION tablesync CASCADE" to load this file. \quit

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
    key_columns name[] NOT NULL CHECK (cardinality(key_columns) BETWEEN 1 AND 32),
    version_column name,
    fingerprint text NOT NULL CHECK (fingerprint IN ('version', 'row')),
    consistency text NOT NULL DEFAULT 'auto' CHECK (consistency IN ('auto', 'snapshot', 'chunk')),
    chunk_rows integer CHECK (chunk_rows > 0),
    max_source_load double precision NOT NULL DEFAULT 1.0 CHECK (max_source_load > 0 AND max_source_load <= 1),
    max_delete_fraction double precision NOT NULL DEFAULT 0.2 CHECK (max_delete_fraction >= 0 AND max_delete_fraction <= 1),
    on_schema_change text NOT NULL DEFAULT 'apply' CHECK (on_schema_change IN ('apply', 'pause', 'ignore')),
    drop_columns boolean NOT NULL DEFAULT false,
    freshness interval CHECK (freshness > '0'),
    workers integer NOT NULL DEFAULT 2 CHECK (workers BETWEEN 1 AND 16),
    trust_counters_for interval CHECK (trust_counters_for > '0'),
    sync_group text CHECK (sync_group <> ''),
    verify_fraction double precision CHECK (verify_fraction >= 0 AND verify_fraction <= 1),
    enabled boolean NOT NULL DEFAULT true,
    shape jsonb NOT NULL,
    source_created boolean NOT NULL DEFAULT false,
    loaded boolean NOT NULL DEFAULT false,
    adopted boolean NOT NULL DEFAULT false,
    refetch name[] NOT NULL DEFAULT '{}',
    load_position text[],
    load_indexes text[],
    memory_key text,
    memory_file oid,
    watermark text,
    scan_rate double precision,
    counters jsonb,
    counters_at timestamptz,
    consecutive_failures integer NOT NULL DEFAULT 0 CHECK (consecutive_failures >= 0),
    retry_after timestamptz,
    home text NOT NULL DEFAULT tablesync.home(),
    added_at timestamptz NOT NULL DEFAULT now(),
    CHECK (fingerprint = 'row' OR version_column IS NOT NULL),
    CHECK (NOT (loaded AND load_position IS NOT NULL))
);
COMMENT ON TABLE tablesync.replica IS 'one row per replica: its source and its settings (change them with tablesync_alter)';
COMMENT ON COLUMN tablesync.replica.replica IS 'the local table';
COMMENT ON COLUMN tablesync.replica.source IS 'the foreign table through which the source is read';
COMMENT ON COLUMN tablesync.replica.key_columns IS 'primary key columns of the source, in key order';
COMMENT ON COLUMN tablesync.replica.version_column IS 'column the source sets on every insert and update, if any';
COMMENT ON COLUMN tablesync.replica.fingerprint IS 'what a row''s 64-bit fingerprint covers: version (key and version column) or row (all columns)';
COMMENT ON COLUMN tablesync.replica.consistency IS 'snapshot: one source snapshot per run; chunk: one per chunk; auto: snapshot when the scan is short enough';
COMMENT ON COLUMN tablesync.replica.chunk_rows IS 'rows per chunk; NULL lets tablesync choose';
COMMENT ON COLUMN tablesync.replica.max_source_load IS 'fraction of the time the source may be busy with a run, in (0, 1]';
COMMENT ON COLUMN tablesync.replica.max_delete_fraction IS 'a run that would delete more than this fraction of the replica (and at least 1000 rows) stops';
COMMENT ON COLUMN tablesync.replica.on_schema_change IS 'what a run does when the source''s columns have changed: apply, pause or ignore';
COMMENT ON COLUMN tablesync.replica.drop_columns IS 'whether on_schema_change apply drops a column that the source has dropped; false keeps it, with the values it has';
COMMENT ON COLUMN tablesync.replica.freshness IS 'age of the last success after which the replica counts as stale';
COMMENT ON COLUMN tablesync.replica.workers IS 'background workers, each with a connection to the source, that a load may use';
COMMENT ON COLUMN tablesync.replica.sync_group IS 'replicas of the same group, server and owner are run together: one snapshot of the source, one transaction here';
COMMENT ON COLUMN tablesync.replica.trust_counters_for IS 'how long after a scan a run may skip the next one while the source''s statistics counters have not moved; NULL never does';
COMMENT ON COLUMN tablesync.replica.verify_fraction IS 'share of the key space that each run compares in every column, in turn, and repairs; NULL and 0 are none';
COMMENT ON COLUMN tablesync.replica.enabled IS 'false while paused';
COMMENT ON COLUMN tablesync.replica.shape IS 'columns of the source that the replica was built for';
COMMENT ON COLUMN tablesync.replica.source_created IS 'true when tablesync_add created the foreign table';
COMMENT ON COLUMN tablesync.replica.loaded IS 'false until the first load is complete';
COMMENT ON COLUMN tablesync.replica.adopted IS 'true while the replica holds rows that no run has compared in every column';
COMMENT ON COLUMN tablesync.replica.refetch IS 'columns whose values the next run fetches for all rows, because no fingerprint can compare them';
COMMENT ON COLUMN tablesync.replica.load_position IS 'key of the last row that an unfinished load has committed';
COMMENT ON COLUMN tablesync.replica.load_indexes IS 'statements that create the indexes again which a load has dropped; NULL when none are missing';
COMMENT ON COLUMN tablesync.replica.memory_key IS 'what the digests in tablesync.chunk were made with: fingerprint and columns';
COMMENT ON COLUMN tablesync.replica.memory_file IS 'file node of the replica when the digests in tablesync.chunk were true';
COMMENT ON COLUMN tablesync.replica.watermark IS 'versions below it were there before the last changes: a hint where to look, never proof';
COMMENT ON COLUMN tablesync.replica.scan_rate IS 'rows per second that the source digested in the last runs';
COMMENT ON COLUMN tablesync.replica.counters IS 'the source''s statistics counters before the last complete scan';
COMMENT ON COLUMN tablesync.replica.counters_at IS 'when that scan began';
COMMENT ON COLUMN tablesync.replica.consecutive_failures IS 'runs that have failed since the last success';
COMMENT ON COLUMN tablesync.replica.retry_after IS 'scheduled runs wait until then; NULL when the last run was fine';
COMMENT ON COLUMN tablesync.replica.home IS 'tablesync.home() of the database the replica was added or last resumed in';
COMMENT ON COLUMN tablesync.replica.added_at IS 'when the replica was added';

CREATE TABLE tablesync.run (
    run_id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    replica regclass NOT NULL REFERENCES tablesync.replica ON DELETE CASCADE,
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
    CHECK ((status IN ('running', 'crashed')) = (finished_at IS NULL)),
    CHECK (status <> 'succeeded' OR (source_digest IS NOT NULL AND replica_digest IS NOT NULL))
);
CREATE UNIQUE INDEX run_one_active ON tablesync.run (replica) WHERE status = 'running';
CREATE INDEX run_crashed_unsettled ON tablesync.run (replica) WHERE status = 'crashed' AND NOT settled;
CREATE INDEX run_of_group ON tablesync.run (group_run_id) WHERE group_run_id IS NOT NULL;
CREATE INDEX run_of_replica ON tablesync.run (replica, run_id DESC);
COMMENT ON TABLE tablesync.run IS 'one row per run; read it through the view tablesync_runs';
COMMENT ON COLUMN tablesync.run.kind IS 'load (first copy), sync or verify';
COMMENT ON COLUMN tablesync.run.status IS 'as recorded; a run recorded as running whose worker is gone has crashed';
COMMENT ON COLUMN tablesync.run.source_time IS 'time spent waiting for statements at the source';
COMMENT ON COLUMN tablesync.run.consistency IS 'how the source was read: in one snapshot, or in one per chunk';
COMMENT ON COLUMN tablesync.run.source_digest IS 'sum modulo 2^64 of the fingerprints of all source rows';
COMMENT ON COLUMN tablesync.run.replica_digest IS 'sum modulo 2^64 of the fingerprints of all replica rows after the run';
COMMENT ON COLUMN tablesync.run.source_horizon IS 'transaction counter of the source when the run began';
COMMENT ON COLUMN tablesync.run.newest_version IS 'newest value of the version column that any run up to this one has taken over';
COMMENT ON COLUMN tablesync.run.group_run_id IS 'first run of the group that this run was part of; NULL if it was alone';
COMMENT ON COLUMN tablesync.run.pid IS 'process of the background worker';
COMMENT ON COLUMN tablesync.run.settled IS 'whether the failure of the run has been made an alert';

CREATE TABLE tablesync.chunk (
    replica regclass NOT NULL REFERENCES tablesync.replica ON DELETE CASCADE,
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
);
ALTER TABLE tablesync.chunk ALTER COLUMN buckets SET STORAGE EXTERNAL;
COMMENT ON TABLE tablesync.chunk IS 'how a replica''s key range is cut into chunks, and what each holds, so that a run reads only the source';
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
    replica regclass NOT NULL REFERENCES tablesync.replica ON DELETE CASCADE,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX stray_write_of_replica ON tablesync.stray_write (replica);
COMMENT ON TABLE tablesync.stray_write IS 'one row per transaction that has written to a replica and is not a run; the next run removes it';

/* A worker holds an advisory lock of its own kind for as long as it lives (catalog.c). */
CREATE FUNCTION tablesync.live_runs()
RETURNS TABLE (replica regclass, pid integer)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.objid::regclass, l.pid
    FROM pg_locks l
    WHERE l.locktype = 'advisory'
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.classid = 1953721955
      AND l.objsubid = 3
      AND l.granted;
$$;
COMMENT ON FUNCTION tablesync.live_runs() IS 'replicas that a worker is running now, with its process id';

/*
 * A run recorded as running whose worker is gone has crashed.  The caller's
 * snapshot may be older than the end of the run, so it is looked up again;
 * with the definer's rights, because pg_monitor may ask too.
 */
CREATE FUNCTION tablesync.run_status(run tablesync.run)
RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    status_now text;
BEGIN
    IF run.status <> 'running'
       OR EXISTS (SELECT FROM tablesync.live_runs() l WHERE l.replica = run.replica AND l.pid = run.pid) THEN
        RETURN run.status;
    END IF;
    SELECT r.status INTO status_now FROM tablesync.run r WHERE r.run_id = run.run_id;
    RETURN CASE WHEN status_now IS NULL OR status_now = 'running' THEN 'crashed' ELSE status_now END;
END
$$;
COMMENT ON FUNCTION tablesync.run_status(tablesync.run) IS 'status of a run; one recorded as running whose worker is gone has crashed';

/*
 * Delete what is older than a number of runs of a replica, but never a live
 * run, nor the last success of each kind.  Rows that somebody has locked wait
 * for the next time; so does what is more than a worker should delete at once.
 */
CREATE FUNCTION tablesync.prune_runs(replica regclass, keep integer)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM tablesync.run d
    WHERE d.run_id IN (
        SELECT r.run_id
        FROM tablesync.run r
        WHERE r.replica = $1
          AND r.run_id <= (SELECT k.run_id FROM tablesync.run k WHERE k.replica = $1
                           ORDER BY k.run_id DESC OFFSET greatest(keep, 1) LIMIT 1)
          AND r.status <> 'running'
          AND r.run_id NOT IN (SELECT max(s.run_id) FROM tablesync.run s
                               WHERE s.replica = $1 AND s.status = 'succeeded' GROUP BY s.kind)
        ORDER BY r.run_id
        LIMIT 10000
        FOR UPDATE SKIP LOCKED);
$$;
COMMENT ON FUNCTION tablesync.prune_runs(regclass, integer) IS 'deletes the history of a replica beyond a number of runs; the last successes stay';

/* Access: a user sees and changes what belongs to the replicas of roles that she is a member of. */
CREATE FUNCTION tablesync.owns(replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = $1), false);
$$;
COMMENT ON FUNCTION tablesync.owns(regclass) IS 'whether the current user is a member of the role that owns the replica';

/* What the views show: members of pg_monitor see how runs go, but no messages. */
CREATE FUNCTION tablesync.sees(replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role('pg_monitor', 'USAGE') OR tablesync.owns(replica);
$$;
COMMENT ON FUNCTION tablesync.sees(regclass) IS 'whether the current user may see the state of a replica';

ALTER TABLE tablesync.replica ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.run ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.chunk ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.stray_write ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON tablesync.replica USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.run USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.chunk USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.stray_write USING (tablesync.owns(replica));
GRANT SELECT, INSERT, UPDATE, DELETE ON tablesync.replica, tablesync.run, tablesync.chunk TO PUBLIC;
GRANT SELECT, DELETE ON tablesync.stray_write TO PUBLIC;
GRANT USAGE ON SEQUENCE tablesync.run_run_id_seq TO PUBLIC;

/* Fires after every statement on a replica, whatever session_replication_role is. */
CREATE FUNCTION tablesync.note_write()
RETURNS trigger
LANGUAGE C SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_note_write';
COMMENT ON FUNCTION tablesync.note_write() IS 'trigger: notes that somebody else than a run has written to a replica';

/*
 * Does every write to a replica leave a note?  Not where rows come through
 * another table (a parent, a partition), from a subscription, whose worker
 * fires no statement triggers, or go by a cascade of a run's own deletes.  And
 * a crash empties an unlogged table.
 */
CREATE FUNCTION tablesync.is_watched(replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.relkind = 'r' AND c.relpersistence = 'p'
       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
       AND NOT EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid)
       AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.confrelid = c.oid AND k.confdeltype IN ('c', 'n', 'd'))
       AND EXISTS (SELECT FROM pg_trigger g
                   WHERE g.tgrelid = c.oid AND g.tgfoid = 'tablesync.note_write'::regproc
                     AND g.tgenabled = 'A' AND g.tgqual IS NULL AND g.tgtype & 61 = 60)    -- each statement, all four kinds
    FROM pg_class c WHERE c.oid = $1;
$$;
COMMENT ON FUNCTION tablesync.is_watched(regclass) IS 'whether every write to a replica leaves a note in tablesync.stray_write';

SELECT pg_catalog.pg_extension_config_dump('tablesync.replica', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.run', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.run_run_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.chunk', '');

/* A dropped replica takes its settings and history with it. */
CREATE FUNCTION tablesync.forget_dropped()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM tablesync.replica r
    USING pg_event_trigger_dropped_objects() d
    WHERE d.classid = 'pg_class'::regclass
      AND d.objsubid = 0
      AND r.replica = d.objid::regclass;
END
$$;
COMMENT ON FUNCTION tablesync.forget_dropped() IS 'event trigger: removes settings and history of dropped replicas';
REVOKE ALL ON FUNCTION tablesync.forget_dropped() FROM PUBLIC;
CREATE EVENT TRIGGER tablesync_forget_dropped ON sql_drop
    EXECUTE FUNCTION tablesync.forget_dropped();
COMMENT ON EVENT TRIGGER tablesync_forget_dropped IS 'removes tablesync''s settings and history of dropped tables';
