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
/* add.sql: tablesync_add, and everything that it refuses */

/* Key columns of a source by their remote names: the primary key, or what the user says, if it is unique. */
CREATE FUNCTION tablesync.source_key(source regclass, key_columns name[])
RETURNS name[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    shape jsonb := tablesync.source_shape(source);
    relation record;
    primary_key name[];
    attnums integer[];
    is_unique boolean;
BEGIN
    SELECT array_agg((c->>'column')::name ORDER BY (c->>'key')::integer)
    INTO primary_key
    FROM jsonb_array_elements(shape) c
    WHERE c->>'key' IS NOT NULL;
    IF key_columns IS NULL AND primary_key IS NULL THEN
        RAISE EXCEPTION 'the source %.% has no primary key', quote_ident(target.schema_name), quote_ident(target.table_name)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Rows can be told apart only by a key.',
                  HINT = 'If NOT NULL columns of it have a unique index, name them as key_columns.';
    END IF;
    IF key_columns IS NULL OR key_columns = primary_key THEN
        RETURN primary_key;
    END IF;

    relation := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    SELECT array_agg(c.attnum::integer ORDER BY c.attnum)
    INTO attnums
    FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
    JOIN jsonb_array_elements(shape) s ON s->>'remote' = c.remote_name
    WHERE s->>'column' = ANY (key_columns) AND c.not_null;
    EXECUTE format('SELECT bool_or(%L::integer[] = (SELECT array_agg(n ORDER BY n) FROM unnest(string_to_array(indkey, '' '')::integer[]) n)) '
                   'FROM %s WHERE indrelid = %s AND indisunique AND indimmediate AND indisvalid AND indpred IS NULL AND indexprs IS NULL',
                   attnums, tablesync.source_catalog(target.server, 'pg_index'), relation.relid)
    INTO is_unique;
    IF is_unique IS NOT TRUE OR cardinality(attnums) <> cardinality(key_columns) THEN
        RAISE EXCEPTION 'columns % are not a key of the source %.%', key_columns, quote_ident(target.schema_name), quote_ident(target.table_name)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'A key needs a unique index at the source, on NOT NULL columns, that is neither partial nor deferrable.',
                  HINT = CASE WHEN primary_key IS NOT NULL THEN format('The primary key is (%s).', array_to_string(primary_key, ', '))
                         ELSE 'Name all columns of such an index as key_columns.' END;
    END IF;
    RETURN key_columns;
END
$$;
COMMENT ON FUNCTION tablesync.source_key(regclass, name[]) IS 'the key columns of a source; an error if it has none';

/* Why a relation of the source is not a plain or partitioned table. */
CREATE FUNCTION tablesync.source_kind_problem(relkind "char", has_children boolean)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN relkind = 'v' THEN 'It is a view: rewrites of the tables behind it can''t be noticed.'
                WHEN relkind = 'm' THEN 'It is a materialized view.'
                WHEN relkind = 'f' THEN 'It is a foreign table: one snapshot of it does not exist.'
                WHEN relkind = 'r' AND has_children THEN 'It has inheritance children: their rows are outside of its primary key.'
                WHEN relkind NOT IN ('r', 'p') THEN 'It is not a table.' END;
$$;
COMMENT ON FUNCTION tablesync.source_kind_problem("char", boolean) IS 'why a kind of relation can''t be replicated exactly; NULL if it can';

/* Refuse a source that is not a plain or partitioned table. */
CREATE FUNCTION tablesync.check_source_kind(server oid, schema_name text, table_name text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation record := tablesync.source_relation(server, schema_name, table_name);
    source_name text := quote_ident(schema_name) || '.' || quote_ident(table_name);
BEGIN
    IF tablesync.source_kind_problem(relation.relkind, relation.has_children) IS NOT NULL THEN
        RAISE EXCEPTION 'the source % is not a table that can be replicated exactly', source_name
            USING ERRCODE = 'wrong_object_type',
                  DETAIL = tablesync.source_kind_problem(relation.relkind, relation.has_children),
                  HINT = 'Replicate the tables behind it.';
    END IF;
    IF relation.row_security THEN
        RAISE WARNING 'row security is enabled on the source %', source_name
            USING DETAIL = 'Runs set row_security to off and fail if a policy would hide rows from them.',
                  HINT = 'Ask for a role with BYPASSRLS, or read the table as its owner.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_source_kind(oid, text, text) IS 'an error if a source is not a plain or partitioned table';

/* What to do about a column of which tablesync.source_columns() says that it is a problem. */
CREATE FUNCTION tablesync.column_hint(problem text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN problem LIKE 'type %' THEN 'Create the type here like at the source, or leave the table out.' END;
$$;
COMMENT ON FUNCTION tablesync.column_hint(text) IS 'what to do about a problem of a source''s column';

CREATE FUNCTION tablesync.refuse_column(column_name text, source_name text, problem text, hint text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF hint IS NULL THEN
        RAISE EXCEPTION 'column % of the source % can''t be replicated exactly', column_name, source_name
            USING ERRCODE = 'feature_not_supported', DETAIL = format('Reason: %s.', problem);
    END IF;
    RAISE EXCEPTION 'column % of the source % can''t be replicated exactly', column_name, source_name
        USING ERRCODE = 'feature_not_supported', DETAIL = format('Reason: %s.', problem), HINT = hint;
END
$$;
COMMENT ON FUNCTION tablesync.refuse_column(text, text, text, text) IS 'raises the error for a column that can''t be replicated exactly';

/* Refuse a source that can't be replicated exactly. */
CREATE FUNCTION tablesync.check_source(source regclass, key_columns name[], version_column name, fingerprint text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    source_name text := quote_ident(target.schema_name) || '.' || quote_ident(target.table_name);
    misfit record;
BEGIN
    SELECT q.* INTO misfit
    FROM (
        SELECT c.attnum, format('%I', c.remote_name) AS name,
               coalesce(c.problem,
                        CASE WHEN a.attname IS NULL THEN 'the foreign table has no such column' END,
                        CASE WHEN (a.atttypid, a.atttypmod) <> (c.type, c.typmod) THEN
                            format('its type is %s, and %s in the foreign table',
                                   format_type(c.type, c.typmod), format_type(a.atttypid, a.atttypmod)) END,
                        CASE WHEN NOT co.collisdeterministic THEN 'its collation in the foreign table is not deterministic' END,
                        tablesync.type_problem(c.type, u.key, u.key OR u.hashed)) AS problem,
               CASE WHEN c.problem IS NOT NULL THEN tablesync.column_hint(c.problem)
                    WHEN a.attname IS NULL OR (a.atttypid, a.atttypmod) <> (c.type, c.typmod) OR NOT co.collisdeterministic THEN
                        'Create the foreign table again with IMPORT FOREIGN SCHEMA, or let tablesync_add(replica, server, source) do it.'
                    WHEN tablesync.type_problem(c.type, false, false) IS NOT NULL THEN NULL    -- not at all
                    WHEN u.key THEN 'Types of keys are smallint, integer, bigint, numeric, uuid, date, timestamp, timestamptz, text, varchar and char.'
                    WHEN fingerprint = 'row' THEN 'If the source sets a column on every change, name it as version_column.'
                    ELSE 'Choose another version column, or none.' END AS hint
        FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
        LEFT JOIN pg_attribute a
            ON a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped
           AND c.remote_name = coalesce((SELECT option_value FROM pg_options_to_table(a.attfdwoptions)
                                         WHERE option_name = 'column_name'), a.attname)
        LEFT JOIN pg_collation co ON co.oid = a.attcollation
        CROSS JOIN LATERAL (SELECT coalesce(a.attname = ANY (key_columns), false),
                                   fingerprint = 'row' OR coalesce(a.attname = version_column, false)) u (key, hashed)
    ) q
    WHERE q.problem IS NOT NULL
    ORDER BY q.attnum LIMIT 1;
    IF FOUND THEN
        PERFORM tablesync.refuse_column(misfit.name, source_name, misfit.problem, misfit.hint);
    END IF;

    SELECT a.attname INTO misfit
    FROM pg_attribute a
    WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped
      AND NOT EXISTS (SELECT FROM jsonb_array_elements(tablesync.source_shape(source)) s
                      WHERE s->>'column' = a.attname AND s->>'remote' =
                            coalesce((SELECT option_value FROM pg_options_to_table(a.attfdwoptions)
                                      WHERE option_name = 'column_name'), a.attname))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'column % of foreign table % does not exist in the source %', quote_ident(misfit.attname), source, source_name
            USING ERRCODE = 'undefined_column',
                  HINT = 'Create the foreign table again with IMPORT FOREIGN SCHEMA.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_source(regclass, name[], name, text) IS 'an error if a source can''t be replicated exactly';

CREATE FUNCTION tablesync.has_key_index(replica regclass, key_columns name[])
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_index i
        WHERE i.indrelid = replica AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
          AND ARRAY(SELECT a.attname FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, n)
                    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                    WHERE k.n <= i.indnkeyatts ORDER BY a.attname)
            = ARRAY(SELECT k FROM unnest(key_columns) k ORDER BY k));
$$;
COMMENT ON FUNCTION tablesync.has_key_index(regclass, name[]) IS 'whether a table has a unique index on the key columns';

/* Refuse an existing table that does not fit its source, column by column. */
CREATE FUNCTION tablesync.check_existing(replica regclass, source regclass, key_columns name[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
BEGIN
    SELECT CASE WHEN c.relkind NOT IN ('r', 'p') THEN 'It is not a table.'
                WHEN c.relpersistence = 't' THEN 'It is a temporary table: a background worker can''t see it.' END
    INTO problem
    FROM pg_class c WHERE c.oid = replica;

    IF problem IS NULL THEN
        SELECT CASE WHEN r.attname IS NULL THEN format('It has no column %I.', s."column")
                    WHEN s."column" IS NULL THEN format('Its column %I does not exist in the source.', r.attname)
                    WHEN format_type(r.atttypid, r.atttypmod) <> s.type THEN
                        format('Its column %I has type %s, the source has %s.', r.attname, format_type(r.atttypid, r.atttypmod), s.type)
                    WHEN r.attnotnull AND NOT s.not_null AND NOT s."column" = ANY (key_columns) THEN
                        format('Its column %I is NOT NULL, the source''s is not.', r.attname)
                    WHEN r.attgenerated <> '' THEN format('Its column %I is generated.', r.attname)
                    WHEN r.attidentity = 'a' THEN
                        format('Its column %I is GENERATED ALWAYS AS IDENTITY; BY DEFAULT would do.', r.attname)
                    WHEN NOT co.collisdeterministic THEN format('The collation of its column %I is not deterministic.', r.attname)
               END
        INTO problem
        FROM (SELECT * FROM jsonb_to_recordset(tablesync.source_shape(source)) AS s ("column" name, type text, not_null boolean)) s
        FULL JOIN (SELECT * FROM pg_attribute WHERE attrelid = replica AND attnum > 0 AND NOT attisdropped) r
            ON r.attname = s."column"
        LEFT JOIN pg_collation co ON co.oid = r.attcollation
        WHERE r.attname IS NULL OR s."column" IS NULL
           OR format_type(r.atttypid, r.atttypmod) <> s.type
           OR (r.attnotnull AND NOT s.not_null AND NOT s."column" = ANY (key_columns))
           OR r.attgenerated <> '' OR r.attidentity = 'a' OR NOT co.collisdeterministic
        ORDER BY r.attnum LIMIT 1;
    END IF;

    IF problem IS NULL AND NOT tablesync.has_key_index(replica, key_columns) THEN
        problem := format('It has no primary key or unique index on (%s).',
                          (SELECT string_agg(quote_ident(k), ', ') FROM unnest(key_columns) k));
    END IF;
    IF problem IS NULL THEN
        SELECT format('Its key column %I is not NOT NULL.', r.attname) INTO problem
        FROM pg_attribute r
        WHERE r.attrelid = replica AND r.attname = ANY (key_columns) AND NOT r.attnotnull LIMIT 1;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'table % can''t be the replica of %', replica, source
            USING ERRCODE = 'datatype_mismatch', DETAIL = problem,
                  HINT = 'Change the table, or name one that does not exist: tablesync_add() creates it like the source.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_existing(regclass, regclass, name[]) IS 'an error if an existing table can''t hold an exact copy of a source';

/* Definitions of the columns of a source, for CREATE [FOREIGN] TABLE. */
CREATE FUNCTION tablesync.column_definitions(server oid, schema_name text, table_name text)
RETURNS text
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('%I %s%s%s', c.remote_name,
                             CASE WHEN c.type >= 16384 THEN format('%s.', (SELECT quote_ident(n.nspname) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = c.type))
                                  || (SELECT quote_ident(t.typname) FROM pg_type t WHERE t.oid = c.type)
                                  ELSE format_type(c.type, c.typmod) END,
                             CASE WHEN c."collation" IS NOT NULL THEN
                                 format(' COLLATE pg_catalog.%I', (SELECT collname FROM pg_collation WHERE oid = c."collation")) END,
                             CASE WHEN c.not_null THEN ' NOT NULL' END), ', ' ORDER BY c.attnum)
    FROM tablesync.source_columns(server, schema_name, table_name) c;
$$;
COMMENT ON FUNCTION tablesync.column_definitions(oid, text, text) IS 'column definitions of a source with names, types, collations and NOT NULL, nothing else';

CREATE FUNCTION tablesync.check_mapping(role_name name, server oid)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_name name := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = server);
BEGIN
    IF NOT EXISTS (SELECT FROM pg_user_mappings m
                   WHERE m.srvid = server AND m.umuser IN (0, (SELECT r.oid FROM pg_roles r WHERE r.rolname = role_name))) THEN
        RAISE EXCEPTION 'role "%" has no user mapping for server "%"', role_name, server_name
            USING ERRCODE = 'undefined_object',
                  DETAIL = 'tablesync_add() connects to the source as the current user, runs connect as the replica''s owner.',
                  HINT = format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (user .., password ..);', role_name, server_name);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_mapping(name, oid) IS 'an error if a role has no user mapping for a server';

CREATE FUNCTION tablesync.check_owner_access(owner oid, source regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_name name := pg_get_userbyid(owner);
BEGIN
    PERFORM tablesync.check_mapping(role_name, (tablesync.source_target(source)).server);
    IF NOT has_table_privilege(owner, source, 'SELECT') THEN
        RAISE EXCEPTION 'role "%" may not read foreign table %', role_name, source
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT SELECT ON %s TO %I;', source, role_name);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_owner_access(oid, regclass) IS 'an error if the owner of a replica can''t read its source';

/*
 * Options that runs need: rows fetched by the thousand where nobody has
 * decided otherwise, and the planner's own estimates, with which every
 * statement ships.
 */
CREATE FUNCTION tablesync.set_source_options(source regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    of_table jsonb;
    of_server jsonb;
    changes text[] := '{}';
    change text;
BEGIN
    SELECT coalesce((SELECT jsonb_object_agg(option_name, option_value) FROM pg_options_to_table(t.ftoptions)), '{}'),
           coalesce((SELECT jsonb_object_agg(option_name, option_value) FROM pg_options_to_table(s.srvoptions)), '{}')
    INTO of_table, of_server
    FROM pg_foreign_table t JOIN pg_foreign_server s ON s.oid = t.ftserver
    WHERE t.ftrelid = source;
    IF NOT (of_server || of_table) ? 'fetch_size' THEN
        changes := array_append(changes, 'ADD fetch_size ''3000''');
    END IF;
    IF (of_table->>'use_remote_estimate')::boolean THEN
        changes := array_append(changes, 'SET use_remote_estimate ''false''');
    ELSIF NOT of_table ? 'use_remote_estimate' AND (of_server->>'use_remote_estimate')::boolean THEN
        changes := array_append(changes, 'ADD use_remote_estimate ''false''');
    END IF;
    FOREACH change IN ARRAY changes LOOP
        IF tablesync.owns(source) THEN
            EXECUTE format('ALTER FOREIGN TABLE %s OPTIONS (%s)', source, change);
        ELSE
            RAISE WARNING 'an option of foreign table % does not suit runs', source
                USING HINT = format('ALTER FOREIGN TABLE %s OPTIONS (%s);', source, change);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.set_source_options(regclass) IS 'gives a foreign table the options that runs need';

/* Say what is wrong with settings that the table's constraints would refuse. */
CREATE FUNCTION tablesync.check_settings(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    setting text;
    value text;
    wanted text;
BEGIN
    SELECT v.* INTO setting, value, wanted
    FROM (VALUES
        ('fingerprint', settings.fingerprint, 'version or row', settings.fingerprint IN ('version', 'row')),
        ('consistency', settings.consistency, 'auto, snapshot or chunk', settings.consistency IN ('auto', 'snapshot', 'chunk')),
        ('chunk_rows', settings.chunk_rows::text, 'greater than 0', coalesce(settings.chunk_rows > 0, true)),
        ('max_source_load', settings.max_source_load::text, 'greater than 0 and at most 1',
            settings.max_source_load > 0 AND settings.max_source_load <= 1),
        ('max_delete_fraction', settings.max_delete_fraction::text, 'between 0 and 1', settings.max_delete_fraction BETWEEN 0 AND 1),
        ('on_schema_change', settings.on_schema_change, 'apply, pause or ignore', settings.on_schema_change IN ('apply', 'pause', 'ignore')),
        ('drop_columns', settings.drop_columns::text, 'true or false', settings.drop_columns IS NOT NULL),
        ('freshness', settings.freshness::text, 'greater than 0', coalesce(settings.freshness > '0', true)),
        ('trust_counters_for', settings.trust_counters_for::text, 'greater than 0', coalesce(settings.trust_counters_for > '0', true)),
        ('verify_fraction', settings.verify_fraction::text, 'between 0 and 1', coalesce(settings.verify_fraction BETWEEN 0 AND 1, true)),
        ('workers', settings.workers::text, 'between 1 and 16', settings.workers BETWEEN 1 AND 16),
        ('enabled', settings.enabled::text, 'true or false', settings.enabled IS NOT NULL)
    ) v (setting, value, wanted, valid)
    WHERE v.valid IS NOT TRUE LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'invalid value for %: %', setting, coalesce(quote_literal(value), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = format('It must be %s.', wanted);
    END IF;
    IF settings.sync_group IS NOT NULL AND settings.consistency <> 'snapshot' THEN
        RAISE EXCEPTION 'a sync_group needs consistency snapshot'
            USING ERRCODE = 'invalid_parameter_value',
                  DETAIL = 'Its replicas are read in one snapshot of the source, and changed in one transaction here.',
                  HINT = 'Set consistency => ''snapshot'' as well.';
    END IF;
    IF settings.fingerprint = 'version' AND settings.version_column IS NULL THEN
        RAISE EXCEPTION 'fingerprint version needs a version column'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name one as version_column, or use fingerprint row.';
    END IF;
    IF settings.version_column = ANY (settings.key_columns)
       OR (settings.version_column IS NOT NULL
           AND NOT EXISTS (SELECT FROM jsonb_array_elements(settings.shape) c WHERE c->>'column' = settings.version_column)) THEN
        RAISE EXCEPTION 'column "%" can''t be the version column', settings.version_column
            USING ERRCODE = 'invalid_parameter_value',
                  DETAIL = 'The version column is a column of the source outside of its key.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_settings(tablesync.replica) IS 'an error if a setting of a replica is not valid';

CREATE FUNCTION tablesync.check_not_replica(existing regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM tablesync.replica t WHERE t.replica = existing) THEN
        RAISE EXCEPTION '% is a replica already', existing
            USING ERRCODE = 'duplicate_object', HINT = 'Change its settings with tablesync_alter().';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_not_replica(regclass) IS 'an error if a table is a replica';

/* Add a replica; "home_schema" is where a name without schema is created. */
CREATE FUNCTION tablesync.add_replica(replica_name text, existing regclass, home_schema name,
                                      source regclass, source_created boolean, settings jsonb)
RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record;
    name_parts text[] := parse_ident(replica_name);
    wanted tablesync.replica;
    suggestion text;
    first_row record;
    has_rows boolean := false;
BEGIN
    IF replica_name IS NULL OR source IS NULL THEN
        RAISE EXCEPTION 'replica and source must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM tablesync.check_not_replica(existing);
    IF NOT EXISTS (SELECT FROM pg_foreign_table t JOIN pg_foreign_server s ON s.oid = t.ftserver
                   JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
                   JOIN pg_proc p ON p.oid = w.fdwhandler
                   WHERE t.ftrelid = source AND p.proname = 'postgres_fdw_handler') THEN
        RAISE EXCEPTION '% is not a foreign table of postgres_fdw', source
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'Create one with IMPORT FOREIGN SCHEMA, or use tablesync_add(replica, server, source).';
    END IF;
    target := tablesync.source_target(source);
    PERFORM tablesync.check_mapping(current_user, target.server);
    PERFORM tablesync.prepare_server((SELECT srvname FROM pg_foreign_server WHERE oid = target.server));
    PERFORM tablesync.check_source_server(source);
    IF NOT source_created THEN
        PERFORM tablesync.check_source_kind(target.server, target.schema_name, target.table_name);
    END IF;

    wanted := jsonb_populate_record(NULL::tablesync.replica, settings);
    wanted.source := source;
    wanted.source_created := source_created;
    wanted.shape := tablesync.source_shape(source);
    wanted.drop_columns := coalesce(wanted.drop_columns, false);
    wanted.fingerprint := coalesce(wanted.fingerprint, CASE WHEN wanted.version_column IS NULL THEN 'row' ELSE 'version' END);
    wanted.key_columns := tablesync.source_key(source, wanted.key_columns);
    PERFORM tablesync.check_settings(wanted);
    PERFORM tablesync.check_source(source, wanted.key_columns, wanted.version_column, wanted.fingerprint);

    IF existing IS NULL THEN
        EXECUTE format('CREATE TABLE %I.%I (%s, PRIMARY KEY (%s))',
                       CASE WHEN cardinality(name_parts) > 1 THEN name_parts[1] ELSE home_schema END,
                       name_parts[cardinality(name_parts)],
                       (SELECT string_agg(format('%I %s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                                                 CASE WHEN a.attcollation <> t.typcollation THEN
                                                     format(' COLLATE pg_catalog.%I', co.collname) END,
                                                 CASE WHEN (s.c->>'not_null')::boolean THEN ' NOT NULL' END),
                                          ', ' ORDER BY s.n)
                        FROM jsonb_array_elements(wanted.shape) WITH ORDINALITY s (c, n)
                        JOIN pg_attribute a ON a.attrelid = source AND a.attname = s.c->>'column'
                        JOIN pg_type t ON t.oid = a.atttypid
                        LEFT JOIN pg_collation co ON co.oid = a.attcollation),
                       (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(wanted.key_columns) WITH ORDINALITY u (k, n)));
        wanted.replica := format('%I.%I', CASE WHEN cardinality(name_parts) > 1 THEN name_parts[1] ELSE home_schema END,
                                 name_parts[cardinality(name_parts)])::regclass;
    ELSE
        wanted.replica := existing;
        IF NOT tablesync.owns(existing) THEN
            RAISE EXCEPTION 'must be owner of table %', existing USING ERRCODE = 'insufficient_privilege';
        END IF;
        PERFORM tablesync.check_existing(existing, source, wanted.key_columns);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', existing) INTO has_rows;
        IF has_rows AND EXISTS (SELECT FROM pg_attribute a
                                WHERE a.attrelid = existing AND a.attnum > 0 AND NOT a.attisdropped
                                  AND tablesync.type_problem(a.atttypid, false, true) IS NOT NULL) THEN
            RAISE EXCEPTION 'the rows of table % can''t be compared with its source', existing
                USING ERRCODE = 'feature_not_supported',
                      DETAIL = (SELECT format('Column %I: %s.', a.attname, tablesync.type_problem(a.atttypid, false, true))
                                FROM pg_attribute a
                                WHERE a.attrelid = existing AND a.attnum > 0 AND NOT a.attisdropped
                                  AND tablesync.type_problem(a.atttypid, false, true) IS NOT NULL LIMIT 1),
                      HINT = format('TRUNCATE %s; the first run loads it again.', existing);
        END IF;
    END IF;
    PERFORM tablesync.check_owner_access((SELECT relowner FROM pg_class WHERE oid = wanted.replica), source);
    PERFORM tablesync.set_source_options(source);
    EXECUTE format('SELECT * FROM %s LIMIT 1', source) INTO first_row;   -- may we read every column?

    INSERT INTO tablesync.replica (replica, source, key_columns, version_column, fingerprint, consistency, chunk_rows,
                                   max_source_load, max_delete_fraction, on_schema_change, drop_columns, freshness, workers, enabled,
                                   trust_counters_for, sync_group, verify_fraction, shape, source_created, loaded, adopted)
    VALUES (wanted.replica, wanted.source, wanted.key_columns, wanted.version_column, wanted.fingerprint, wanted.consistency,
            wanted.chunk_rows, wanted.max_source_load, wanted.max_delete_fraction, wanted.on_schema_change, wanted.drop_columns,
            wanted.freshness, wanted.workers, wanted.enabled, wanted.trust_counters_for, wanted.sync_group, wanted.verify_fraction,
            wanted.shape, wanted.source_created, has_rows, has_rows);

    -- fires whatever session_replication_role is
    EXECUTE format('CREATE TRIGGER tablesync_note_write AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION tablesync.note_write()', wanted.replica);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER tablesync_note_write', wanted.replica);
    EXECUTE format('ALTER TRIGGER tablesync_note_write ON %s DEPENDS ON EXTENSION tablesync', wanted.replica);
    EXECUTE format('COMMENT ON TRIGGER tablesync_note_write ON %s IS %L', wanted.replica,
                   'tells tablesync that somebody else than a run has written to the replica');

    IF wanted.version_column IS NULL THEN
        SELECT c->>'column' INTO suggestion
        FROM jsonb_array_elements(wanted.shape) c
        WHERE c->>'type' LIKE 'timestamp%' AND NOT c->>'column' = ANY (wanted.key_columns)
          AND c->>'column' IN ('updated_at', 'modified_at', 'last_modified', 'last_modified_at', 'last_updated',
                               'last_update', 'changed_at', 'updated_on', 'modified_on', 'mtime')
        LIMIT 1;
        IF suggestion IS NOT NULL THEN
            RAISE NOTICE 'every column of every row is compared; column "%" may make runs faster', suggestion
                USING HINT = format('If the source sets it on every insert and update: SELECT tablesync_alter(%L, version_column => %L);',
                                    wanted.replica, suggestion);
        END IF;
    END IF;
    RETURN wanted.replica;
END
$$;
COMMENT ON FUNCTION tablesync.add_replica(text, regclass, name, regclass, boolean, jsonb) IS 'checks a source, creates or checks the replica, and registers it';

/* Create the foreign table for a source next to its replica. */
CREATE FUNCTION tablesync.create_source(replica_name text, existing regclass, home_schema name, server name, source_name text)
RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    replica_parts text[] := parse_ident(replica_name);
    source_parts text[] := parse_ident(source_name);
    server_oid oid := (SELECT oid FROM pg_foreign_server WHERE srvname = server);
    foreign_schema text := CASE WHEN cardinality(replica_parts) > 1 THEN replica_parts[1] ELSE home_schema END;
    foreign_name text := replica_parts[cardinality(replica_parts)];
    misfit record;
    leftover regclass;
BEGIN
    IF replica_name IS NULL OR server IS NULL OR source_name IS NULL THEN
        RAISE EXCEPTION 'replica, server and source must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM tablesync.check_not_replica(existing);
    IF server_oid IS NULL THEN
        RAISE EXCEPTION 'server "%" does not exist', server
            USING ERRCODE = 'undefined_object',
                  HINT = 'CREATE SERVER .. FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host .., dbname ..);';
    END IF;
    IF cardinality(source_parts) <> 2 THEN
        RAISE EXCEPTION 'source "%" is not of the form schema.table', source_name
            USING ERRCODE = 'invalid_name', HINT = 'For example ''public.media''.';
    END IF;
    WHILE octet_length(foreign_name) > 56 LOOP
        foreign_name := left(foreign_name, -1);
    END LOOP;
    foreign_name := foreign_name || '_source';
    PERFORM tablesync.check_mapping(current_user, server_oid);
    PERFORM tablesync.prepare_server(server);
    PERFORM tablesync.check_source_kind(server_oid, source_parts[1], source_parts[2]);
    SELECT c.remote_name, c.problem INTO misfit
    FROM tablesync.source_columns(server_oid, source_parts[1], source_parts[2]) c
    WHERE c.problem IS NOT NULL ORDER BY c.attnum LIMIT 1;
    IF FOUND THEN
        PERFORM tablesync.refuse_column(quote_ident(misfit.remote_name), source_name, misfit.problem,
                                        tablesync.column_hint(misfit.problem));
    END IF;
    -- left over from a replica that was dropped
    leftover := to_regclass(format('%I.%I', foreign_schema, foreign_name));
    IF leftover IS NOT NULL THEN
        IF NOT EXISTS (SELECT FROM tablesync.source_target(leftover) t
                       WHERE t.server = server_oid AND t.schema_name = source_parts[1] AND t.table_name = source_parts[2]) THEN
            RAISE EXCEPTION 'relation % already exists', leftover
                USING ERRCODE = 'duplicate_table', DETAIL = format('It is not a foreign table over %s of server "%s".', source_name, server),
                      HINT = 'Create a foreign table of another name with IMPORT FOREIGN SCHEMA, and use tablesync_add(replica, foreign_table).';
        END IF;
        RETURN leftover;
    END IF;
    EXECUTE format('CREATE FOREIGN TABLE %I.%I (%s) SERVER %I OPTIONS (schema_name %L, table_name %L, fetch_size ''3000'')',
                   foreign_schema, foreign_name,
                   tablesync.column_definitions(server_oid, source_parts[1], source_parts[2]),
                   server, source_parts[1], source_parts[2]);
    RETURN format('%I.%I', foreign_schema, foreign_name)::regclass;
END
$$;
COMMENT ON FUNCTION tablesync.create_source(text, regclass, name, name, text) IS 'creates the foreign table <replica>_source over a table of a server';

CREATE FUNCTION tablesync_add(
    replica text,
    source regclass,
    key_columns name[] DEFAULT NULL,
    version_column name DEFAULT NULL,
    fingerprint text DEFAULT NULL,
    consistency text DEFAULT 'auto',
    chunk_rows integer DEFAULT NULL,
    max_source_load double precision DEFAULT 1.0,
    max_delete_fraction double precision DEFAULT 0.2,
    on_schema_change text DEFAULT 'apply',
    drop_columns boolean DEFAULT false,
    freshness interval DEFAULT NULL,
    workers integer DEFAULT 2,
    enabled boolean DEFAULT true,
    trust_counters_for interval DEFAULT NULL,
    sync_group text DEFAULT NULL,
    verify_fraction double precision DEFAULT NULL)
RETURNS regclass
LANGUAGE sql
AS $$
    SELECT tablesync.add_replica(replica, pg_catalog.to_regclass(replica), pg_catalog.current_schema(), source, false,
        pg_catalog.jsonb_build_object('key_columns', key_columns, 'version_column', version_column, 'fingerprint', fingerprint,
            'consistency', consistency, 'chunk_rows', chunk_rows, 'max_source_load', max_source_load,
            'max_delete_fraction', max_delete_fraction, 'on_schema_change', on_schema_change,
            'drop_columns', drop_columns, 'freshness', freshness, 'workers', workers, 'enabled', enabled,
            'trust_counters_for', trust_counters_for, 'sync_group', sync_group, 'verify_fraction', verify_fraction));
$$;
COMMENT ON FUNCTION tablesync_add(text, regclass, name[], name, text, text, integer, double precision, double precision, text, boolean, interval, integer, boolean, interval, text, double precision)
    IS 'makes a table the replica of an existing foreign table; creates it if it does not exist';

CREATE FUNCTION tablesync_add(
    replica text,
    server name,
    source text,
    key_columns name[] DEFAULT NULL,
    version_column name DEFAULT NULL,
    fingerprint text DEFAULT NULL,
    consistency text DEFAULT 'auto',
    chunk_rows integer DEFAULT NULL,
    max_source_load double precision DEFAULT 1.0,
    max_delete_fraction double precision DEFAULT 0.2,
    on_schema_change text DEFAULT 'apply',
    drop_columns boolean DEFAULT false,
    freshness interval DEFAULT NULL,
    workers integer DEFAULT 2,
    enabled boolean DEFAULT true,
    trust_counters_for interval DEFAULT NULL,
    sync_group text DEFAULT NULL,
    verify_fraction double precision DEFAULT NULL)
RETURNS regclass
LANGUAGE sql
AS $$
    SELECT tablesync.add_replica(replica, pg_catalog.to_regclass(replica), pg_catalog.current_schema(),
        tablesync.create_source(replica, pg_catalog.to_regclass(replica), pg_catalog.current_schema(), server, source), true,
        pg_catalog.jsonb_build_object('key_columns', key_columns, 'version_column', version_column, 'fingerprint', fingerprint,
            'consistency', consistency, 'chunk_rows', chunk_rows, 'max_source_load', max_source_load,
            'max_delete_fraction', max_delete_fraction, 'on_schema_change', on_schema_change,
            'drop_columns', drop_columns, 'freshness', freshness, 'workers', workers, 'enabled', enabled,
            'trust_counters_for', trust_counters_for, 'sync_group', sync_group, 'verify_fraction', verify_fraction));
$$;
COMMENT ON FUNCTION tablesync_add(text, name, text, name[], name, text, text, integer, double precision, double precision, text, boolean, interval, integer, boolean, interval, text, double precision)
    IS 'makes a table the replica of schema.table on a server; creates the foreign table <replica>_source too';
/* api.sql: the other functions that users call */

/* An error unless a table is a replica of ours. */
CREATE FUNCTION tablesync.check_replica(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = replica) AND NOT tablesync.owns(replica) THEN
        RAISE EXCEPTION 'must be owner of table %', replica USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT EXISTS (SELECT FROM tablesync.replica t WHERE t.replica = $1) THEN
        RAISE EXCEPTION '% is not a replica', replica
            USING ERRCODE = 'undefined_object', HINT = 'Replicas are listed in tablesync_status.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_replica(regclass) IS 'an error unless a table is a replica and the current user a member of its owner';

/*
 * Refuse a fingerprint that can't cover the columns it would have to.  Asks
 * only what is known here: a replica that is paused because its source has
 * lost the version column gets another fingerprint this way.
 */
CREATE FUNCTION tablesync.check_comparable(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    misfit record;
BEGIN
    SELECT c.column_name, tablesync.type_problem(c.type::oid, false, true) AS problem INTO misfit
    FROM tablesync.replica_columns(settings.replica) c
    WHERE (settings.fingerprint = 'row' OR c.column_name = settings.version_column)
      AND tablesync.type_problem(c.type::oid, false, true) IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        PERFORM tablesync.refuse_column(quote_ident(misfit.column_name), format('%I.%I', target.schema_name, target.table_name),
                                        misfit.problem,
                                        CASE WHEN settings.fingerprint = 'row' THEN
                                            'If the source sets a column on every change, name it as version_column.'
                                        ELSE 'Choose another version column, or none.' END);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_comparable(tablesync.replica) IS 'an error if the fingerprint of a replica can''t cover its columns';

CREATE FUNCTION tablesync_alter(
    replica regclass,
    version_column name DEFAULT NULL,
    fingerprint text DEFAULT NULL,
    consistency text DEFAULT NULL,
    chunk_rows integer DEFAULT NULL,
    max_source_load double precision DEFAULT NULL,
    max_delete_fraction double precision DEFAULT NULL,
    on_schema_change text DEFAULT NULL,
    drop_columns boolean DEFAULT NULL,
    freshness interval DEFAULT NULL,
    workers integer DEFAULT NULL,
    enabled boolean DEFAULT NULL,
    trust_counters_for interval DEFAULT NULL,
    sync_group text DEFAULT NULL,
    verify_fraction double precision DEFAULT NULL)
RETURNS SETOF tablesync.replica
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed tablesync.replica;
BEGIN
    PERFORM tablesync.check_replica($1);
    SELECT * INTO changed FROM tablesync.replica t WHERE t.replica = $1;
    changed.version_column := coalesce($2, changed.version_column);
    changed.fingerprint := coalesce($3, CASE WHEN $2 IS NOT NULL THEN 'version' END, changed.fingerprint);
    changed.consistency := coalesce($4, changed.consistency);
    changed.chunk_rows := coalesce($5, changed.chunk_rows);
    changed.max_source_load := coalesce($6, changed.max_source_load);
    changed.max_delete_fraction := coalesce($7, changed.max_delete_fraction);
    changed.on_schema_change := coalesce($8, changed.on_schema_change);
    changed.drop_columns := coalesce($9, changed.drop_columns);
    changed.freshness := coalesce($10, changed.freshness);
    changed.workers := coalesce($11, changed.workers);
    changed.enabled := coalesce($12, changed.enabled);
    changed.trust_counters_for := nullif(coalesce($13, changed.trust_counters_for), '0');
    changed.sync_group := nullif(coalesce($14, changed.sync_group), '');
    changed.verify_fraction := coalesce($15, changed.verify_fraction);
    PERFORM tablesync.check_settings(changed);
    IF $2 IS NOT NULL OR $3 IS NOT NULL THEN
        PERFORM tablesync.check_comparable(changed);
    END IF;
    UPDATE tablesync.replica t
    SET (version_column, fingerprint, consistency, chunk_rows, max_source_load, max_delete_fraction,
         on_schema_change, drop_columns, freshness, workers, enabled, trust_counters_for, sync_group, verify_fraction)
        = (changed.version_column, changed.fingerprint, changed.consistency, changed.chunk_rows, changed.max_source_load,
           changed.max_delete_fraction, changed.on_schema_change, changed.drop_columns, changed.freshness,
           changed.workers, changed.enabled, changed.trust_counters_for, changed.sync_group, changed.verify_fraction),
        watermark = CASE WHEN t.version_column = changed.version_column THEN t.watermark END,
        counters = CASE WHEN (t.version_column, t.fingerprint) IS NOT DISTINCT FROM (changed.version_column, changed.fingerprint) THEN t.counters END
    WHERE t.replica = $1;
    IF $2 IS NOT NULL THEN    -- versions of another column say nothing about this one
        UPDATE tablesync.run r SET newest_version = NULL WHERE r.replica = $1 AND r.newest_version IS NOT NULL;
    END IF;
    RETURN NEXT changed;
END
$$;
COMMENT ON FUNCTION tablesync_alter(regclass, name, text, text, integer, double precision, double precision, text, boolean, interval, integer, boolean, interval, text, double precision)
    IS 'changes settings of a replica; NULL leaves one as it is, 0 ends trust_counters_for, an empty text leaves a sync_group';

CREATE FUNCTION tablesync_remove(replica regclass, drop_replica boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    PERFORM tablesync.check_replica($1);
    IF EXISTS (SELECT FROM tablesync.live_runs() l WHERE l.replica = $1) THEN
        RAISE EXCEPTION 'a run for replica % is going on', $1
            USING ERRCODE = 'object_in_use', HINT = format('Wait for it, or use tablesync_cancel(%L).', $1);
    END IF;
    IF NOT drop_replica THEN
        PERFORM tablesync.abandon_bulk_load($1);
    END IF;
    DELETE FROM tablesync.replica t WHERE t.replica = $1 RETURNING * INTO settings;
    EXECUTE format('DROP TRIGGER IF EXISTS tablesync_note_write ON %s', $1);
    IF settings.source_created AND EXISTS (SELECT FROM pg_class WHERE oid = settings.source)
       AND NOT EXISTS (SELECT FROM tablesync.replica t WHERE t.source = settings.source) THEN
        EXECUTE format('DROP FOREIGN TABLE %s', settings.source);
    END IF;
    IF drop_replica THEN
        EXECUTE format('DROP TABLE %s', $1);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync_remove(regclass, boolean) IS 'forgets a replica and its history; its rows stay unless drop_replica is true';

CREATE FUNCTION tablesync_run(replica regclass DEFAULT NULL, wait boolean DEFAULT true, force boolean DEFAULT false)
RETURNS TABLE (replica regclass, run_id bigint, status text, rows bigint, inserted bigint, updated bigint, deleted bigint,
               duration interval, message text)
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_run';
COMMENT ON FUNCTION tablesync_run(regclass, boolean, boolean) IS 'makes a replica equal to its source now; without an argument all enabled replicas, one after the other';

CREATE FUNCTION tablesync_wait(run_id bigint, timeout interval DEFAULT NULL)
RETURNS text
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_wait';
COMMENT ON FUNCTION tablesync_wait(bigint, interval) IS 'waits until a run has ended and returns its status; running (or started) if the timeout comes first';

CREATE FUNCTION tablesync_cancel(replica regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_replica($1);
    RETURN (SELECT coalesce(bool_or(pg_cancel_backend(l.pid)), false) FROM tablesync.live_runs() l WHERE l.replica = $1);
END
$$;
COMMENT ON FUNCTION tablesync_cancel(regclass) IS 'cancels the live run of a replica; false if there is none';

CREATE FUNCTION tablesync_pause(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_replica($1);
    UPDATE tablesync.replica t SET enabled = false WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync_pause(regclass) IS 'keeps a replica from being run until tablesync_resume(); a live run goes on';

CREATE FUNCTION tablesync_resume(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_replica($1);
    UPDATE tablesync.replica t
    SET enabled = true, home = tablesync.home(), retry_after = NULL,
        memory_file = CASE WHEN t.home = tablesync.home() THEN t.memory_file END    -- numbers of files mean nothing elsewhere
    WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync_resume(regclass) IS 'lets a paused replica, or one restored from a dump, be run again; ends a back-off';

/* The replicas that are run together with one: those of its group with the same server and owner that may be run now. */
CREATE FUNCTION tablesync.group_members(replica regclass)
RETURNS SETOF regclass
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.replica
    FROM tablesync.replica t
    JOIN pg_class tc ON tc.oid = t.replica
    JOIN pg_foreign_table tf ON tf.ftrelid = t.source
    JOIN tablesync.replica m ON m.sync_group = t.sync_group
    JOIN pg_class mc ON mc.oid = m.replica AND mc.relowner = tc.relowner
    JOIN pg_foreign_table mf ON mf.ftrelid = m.source AND mf.ftserver = tf.ftserver
    WHERE t.replica = $1
      AND (m.replica = $1 OR m.enabled AND m.home = tablesync.home());
$$;
COMMENT ON FUNCTION tablesync.group_members(regclass) IS 'the replicas that are run together with one, itself included; none if it has no sync_group';
/* verify.sql: comparing every column of every row, and what that has found */

/* The end of tablesync.replica.memory_key: which columns the replica has. */
CREATE FUNCTION tablesync.memory_columns(replica regclass)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ' in ' || string_agg(attnum::text, ' ' ORDER BY attname)
    FROM pg_attribute
    WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped;
$$;
COMMENT ON FUNCTION tablesync.memory_columns(regclass) IS 'the numbers of a replica''s columns, in the order of their names';

CREATE TABLE tablesync.difference (
    run_id bigint NOT NULL REFERENCES tablesync.run ON DELETE CASCADE,
    replica regclass NOT NULL,
    key jsonb NOT NULL,
    difference text NOT NULL CHECK (difference IN ('different', 'missing here', 'missing at source', 'newer at source')),
    source jsonb,
    replica_row jsonb,
    CHECK (source IS NOT NULL OR replica_row IS NOT NULL),
    CHECK (difference <> 'missing here' OR (source IS NOT NULL AND replica_row IS NULL)),
    CHECK (difference <> 'missing at source' OR (source IS NULL AND replica_row IS NOT NULL)),
    CHECK (difference <> 'different' OR (source IS NOT NULL AND replica_row IS NOT NULL))
);
CREATE INDEX difference_of_run ON tablesync.difference (run_id);
COMMENT ON TABLE tablesync.difference IS 'rows in which a replica differed from its source when a run compared all columns; kept as long as the run';
COMMENT ON COLUMN tablesync.difference.run_id IS 'the run that has found it';
COMMENT ON COLUMN tablesync.difference.replica IS 'the local table';
COMMENT ON COLUMN tablesync.difference.key IS 'key columns of the row';
COMMENT ON COLUMN tablesync.difference.difference IS 'different, missing here, missing at source, or newer at source (changed there since the last run)';
COMMENT ON COLUMN tablesync.difference.source IS 'the whole row at the source, NULL where it has none';
COMMENT ON COLUMN tablesync.difference.replica_row IS 'the whole row of the replica before a repair, NULL where it had none';
ALTER TABLE tablesync.difference ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON tablesync.difference USING (tablesync.owns(replica));
GRANT SELECT, INSERT, UPDATE, DELETE ON tablesync.difference TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('tablesync.difference', '');

/*
 * Somebody has changed the replica, or the source without its version column:
 * an alert until a run finds nothing of that kind.  Rows are known where all
 * columns were compared, else chunks.
 */
CREATE FUNCTION tablesync.note_drift(replica regclass, run_id bigint, rows bigint, chunks bigint DEFAULT 0)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF rows + chunks = 0 THEN
        -- what a run that repairs nothing has found is not over because usual runs don't see it
        IF (SELECT r.kind FROM tablesync.run r WHERE r.run_id = $2) = 'verify'
           OR NOT EXISTS (SELECT FROM tablesync.alert a JOIN tablesync.run r ON r.run_id = a.run_id
                          WHERE a.replica = $1 AND a.kind = 'drift' AND a.closed_at IS NULL AND r.kind = 'verify'
                            AND (r.source_rows, r.source_digest) IS DISTINCT FROM (r.replica_rows, r.replica_digest)) THEN
            PERFORM tablesync.close_alert($1, 'drift');
        END IF;
        RETURN;
    END IF;
    PERFORM tablesync.open_alert($1, 'drift', 'warning',
        CASE WHEN rows > 0 THEN format('differences from the source that no change there explains: %s rows', rows)
             ELSE format('somebody else had changed the replica; chunks concerned: %s', chunks) END,
        format('Look for who writes to %s, or for updates at the source that leave the version column as it was; see tablesync_runs and tablesync.difference for run %s.',
               $1, run_id), run_id);
END
$$;
COMMENT ON FUNCTION tablesync.note_drift(regclass, bigint, bigint, bigint) IS 'opens an alert about a replica that had drifted from its source, or closes it';

CREATE FUNCTION tablesync_verify(replica regclass, repair boolean DEFAULT false)
RETURNS TABLE (key jsonb, difference text, source jsonb, replica_row jsonb)
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_verify';
COMMENT ON FUNCTION tablesync_verify(regclass, boolean) IS 'compares every column of every row with the source and returns the rows that differ; repair makes them equal';
/*
 * schema.sql: what a source looks like, read through postgres_fdw
 *
 * A plain reader may read the system catalogs of the source.  One set of
 * foreign tables per server, in schema tablesync, makes them readable here;
 * their name columns are declared text, because comparisons of type name with
 * a constant do not ship.
 */

CREATE FUNCTION tablesync.create_source_catalog(server oid)
RETURNS SETOF regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_name name := (SELECT srvname FROM pg_foreign_server WHERE oid = server);
    catalog record;
    table_name text;
BEGIN
    FOR catalog IN
        SELECT * FROM (VALUES
            ('pg_class', 'oid oid, relname text, relnamespace oid, relfilenode oid, relkind "char", '
                         'relrowsecurity boolean, relhassubclass boolean, reltuples real, relpages integer'),
            ('pg_namespace', 'oid oid, nspname text'),
            ('pg_attribute', 'attrelid oid, attname text, attnum smallint, atttypid oid, atttypmod integer, '
                             'attcollation oid, attnotnull boolean, attisdropped boolean'),
            ('pg_type', 'oid oid, typname text, typnamespace oid, typtype "char", typbasetype oid, '
                        'typtypmod integer, typelem oid'),
            ('pg_enum', 'enumtypid oid, enumlabel text, enumsortorder real'),
            ('pg_collation', 'oid oid, collname text, collnamespace oid, collisdeterministic boolean'),
            ('pg_index', 'indexrelid oid, indrelid oid, indisprimary boolean, indisunique boolean, '
                         'indimmediate boolean, indisvalid boolean, indkey text, indpred text, indexprs text'),
            ('pg_inherits', 'inhrelid oid, inhparent oid'),
            ('pg_settings', 'name text, setting text'),
            ('pg_stats', 'schemaname text, tablename text, attname text, inherited boolean, correlation real, histogram_bounds text'),
            ('pg_stat_user_tables', 'relid oid, n_tup_ins bigint, n_tup_upd bigint, n_tup_del bigint'),
            ('pg_stat_database', 'datname text, stats_reset timestamptz'),
            ('pg_stat_activity', 'backend_xmin bigint'),
            ('pg_stat_bgwriter', 'stats_reset timestamptz')
        ) AS v (name, columns)
        WHERE NOT EXISTS (SELECT FROM tablesync.source_catalogs c
                          WHERE c.server = $1 AND c.catalog = v.name)
    LOOP
        table_name := left(server_name, 40) || '.' || catalog.name;
        IF to_regclass(format('tablesync.%I', table_name)) IS NOT NULL THEN
            table_name := server || '.' || catalog.name;
        END IF;
        EXECUTE format('CREATE FOREIGN TABLE tablesync.%I (%s) SERVER %I '
                       'OPTIONS (schema_name ''pg_catalog'', table_name %L, fetch_size ''1000'', use_remote_estimate ''false'')',
                       table_name, catalog.columns, server_name, catalog.name);
        EXECUTE format('GRANT SELECT ON tablesync.%I TO PUBLIC', table_name);
        EXECUTE format('COMMENT ON FOREIGN TABLE tablesync.%I IS %L', table_name,
                       format('%s of the databases behind foreign server %s', catalog.name, server_name));
        RETURN NEXT format('tablesync.%I', table_name)::regclass;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION tablesync.create_source_catalog(oid) FROM PUBLIC;
COMMENT ON FUNCTION tablesync.create_source_catalog(oid) IS 'creates the missing foreign tables over a server''s system catalogs';

CREATE FUNCTION tablesync.prepare_server(server name)
RETURNS void
LANGUAGE C STRICT
AS 'MODULE_PATHNAME', 'tsync_prepare_server';
COMMENT ON FUNCTION tablesync.prepare_server(name) IS 'makes the system catalogs of a server''s database readable here; needs USAGE on the server';

CREATE VIEW tablesync.source_catalogs AS
SELECT t.ftserver AS server,
       (SELECT o.option_value FROM pg_catalog.pg_options_to_table(t.ftoptions) o WHERE o.option_name = 'table_name') AS catalog,
       t.ftrelid::pg_catalog.regclass AS foreign_table
FROM pg_catalog.pg_foreign_table t
JOIN pg_catalog.pg_class c ON c.oid = t.ftrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'tablesync';
GRANT SELECT ON tablesync.source_catalogs TO PUBLIC;
COMMENT ON VIEW tablesync.source_catalogs IS 'foreign tables over the system catalogs of sources, per server';

CREATE FUNCTION tablesync.source_catalog(server oid, catalog text)
RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    foreign_table regclass;
BEGIN
    SELECT c.foreign_table INTO foreign_table
    FROM tablesync.source_catalogs c
    WHERE c.server = $1 AND c.catalog = $2;
    IF foreign_table IS NULL THEN
        RAISE EXCEPTION 'the foreign table over % of server "%" is missing',
            catalog, (SELECT srvname FROM pg_foreign_server WHERE oid = server)
            USING ERRCODE = 'undefined_table',
                  HINT = 'Use tablesync.prepare_server() with the name of the server.';
    END IF;
    RETURN foreign_table;
END
$$;
COMMENT ON FUNCTION tablesync.source_catalog(oid, text) IS 'the foreign table over one system catalog of a server';

/* Where a foreign table points to. */
CREATE FUNCTION tablesync.source_target(source regclass, OUT server oid, OUT schema_name text, OUT table_name text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.ftserver,
           coalesce((SELECT option_value FROM pg_options_to_table(t.ftoptions) WHERE option_name = 'schema_name'), n.nspname),
           coalesce((SELECT option_value FROM pg_options_to_table(t.ftoptions) WHERE option_name = 'table_name'), c.relname)
    FROM pg_foreign_table t
    JOIN pg_class c ON c.oid = t.ftrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE t.ftrelid = source;
$$;
COMMENT ON FUNCTION tablesync.source_target(regclass) IS 'server and remote name of a foreign table';

CREATE FUNCTION tablesync.source_relation(server oid, schema_name text, table_name text,
    OUT relid oid, OUT relkind "char", OUT relfilenode oid, OUT row_security boolean,
    OUT has_children boolean, OUT estimated_rows double precision)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('SELECT c.oid, c.relkind, c.relfilenode, c.relrowsecurity, c.relhassubclass, '
                   'greatest(c.reltuples, 0) '
                   'FROM %s c JOIN %s n ON n.oid = c.relnamespace '
                   'WHERE c.relname = %L AND n.nspname = %L',
                   tablesync.source_catalog(server, 'pg_class'),
                   tablesync.source_catalog(server, 'pg_namespace'), table_name, schema_name)
    INTO relid, relkind, relfilenode, row_security, has_children, estimated_rows;
    IF has_children THEN    -- relhassubclass may be a thing of the past
        EXECUTE format('SELECT count(*) > 0 FROM %s WHERE inhparent = %s',
                       tablesync.source_catalog(server, 'pg_inherits'), relid)
        INTO has_children;
    END IF;
    IF relid IS NULL THEN
        RAISE EXCEPTION 'the source has no table %.%', quote_ident(schema_name), quote_ident(table_name)
            USING ERRCODE = 'undefined_table',
                  DETAIL = format('Looked for on server "%s".', (SELECT srvname FROM pg_foreign_server WHERE oid = server)),
                  HINT = 'It may have been dropped or renamed, or the server may point to another database.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.source_relation(oid, text, text) IS 'a table''s row in the source''s pg_class';

/*
 * Which files hold a source's rows, and what its columns are.  TRUNCATE, ALTER
 * TABLE, attached and detached partitions change it.
 */
CREATE FUNCTION tablesync.source_identity(source regclass)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    identity text := format('%s:%s', relation.relid, relation.relfilenode);
    parents oid[] := ARRAY[relation.relid];
    files text;
    columns text;
BEGIN
    EXECUTE format('SELECT md5(string_agg(concat_ws('' '', attnum, atttypid, atttypmod, attnotnull, attname), '','' ORDER BY attnum)) '
                   'FROM %s WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped',
                   tablesync.source_catalog(target.server, 'pg_attribute'), relation.relid)
    INTO columns;
    identity := concat_ws(' ', identity, columns);
    WHILE relation.has_children AND cardinality(parents) > 0 LOOP
        EXECUTE format('SELECT array_agg(c.oid), string_agg(format(''%%s:%%s'', c.oid, c.relfilenode), '' '' ORDER BY c.oid) '
                       'FROM %s i JOIN %s c ON c.oid = i.inhrelid WHERE i.inhparent = ANY (%L::oid[])',
                       tablesync.source_catalog(target.server, 'pg_inherits'),
                       tablesync.source_catalog(target.server, 'pg_class'), parents)
        INTO parents, files;
        identity := concat_ws(' ', identity, files);
    END LOOP;
    RETURN identity;
END
$$;
COMMENT ON FUNCTION tablesync.source_identity(regclass) IS 'OIDs and file nodes of a source table and its partitions, and a digest of its columns';

/*
 * In how many blocks a source keeps its rows, 0 if that is not known, and
 * whether they lie about in the order of their keys.
 */
CREATE FUNCTION tablesync.source_layout(replica regclass, OUT blocks bigint, OUT clustered boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    target record;
    first_key text;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    target := tablesync.source_target(settings.source);
    first_key := (SELECT c->>'remote' FROM jsonb_array_elements(settings.shape) c
                  WHERE c->>'column' = settings.key_columns[1]);
    EXECUTE format('SELECT greatest(c.relpages, 0) FROM %s c JOIN %s n ON n.oid = c.relnamespace '
                   'WHERE c.relname = %L AND n.nspname = %L AND c.relkind = ''r''',
                   tablesync.source_catalog(target.server, 'pg_class'),
                   tablesync.source_catalog(target.server, 'pg_namespace'), target.table_name, target.schema_name)
    INTO blocks;
    EXECUTE format('SELECT correlation > 0.9 FROM %s '
                   'WHERE schemaname = %L AND tablename = %L AND attname = %L AND NOT inherited',
                   tablesync.source_catalog(target.server, 'pg_stats'), target.schema_name, target.table_name, first_key)
    INTO clustered;
    blocks := coalesce(blocks, 0);
    clustered := coalesce(clustered, false);
END
$$;
COMMENT ON FUNCTION tablesync.source_layout(regclass) IS 'blocks of a replica''s source, and whether its rows lie in the order of their keys';

/*
 * What moves when a source changes: statistics counters, their resets (a crash
 * is one, and shows in pg_stat_bgwriter), and the files that hold the rows.
 * NULL where the counters do not tell: a standby's never move, and before
 * PostgreSQL 14 a source does not say whether it is one.
 */
CREATE FUNCTION tablesync.source_counters(source regclass)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    counters record;
    resets text;
    standby text;
BEGIN
    EXECUTE format('SELECT setting FROM %s WHERE name = ''in_hot_standby''', tablesync.source_catalog(target.server, 'pg_settings'))
    INTO standby;
    EXECUTE format('SELECT n_tup_ins, n_tup_upd, n_tup_del FROM %s WHERE relid = %s',
                   tablesync.source_catalog(target.server, 'pg_stat_user_tables'), relation.relid)
    INTO counters;
    EXECUTE format('SELECT string_agg(concat_ws('' '', datname, extract(epoch FROM stats_reset)), '' '' ORDER BY datname) '
                   'FROM (SELECT datname, stats_reset FROM %s UNION ALL SELECT NULL, stats_reset FROM %s) s WHERE stats_reset IS NOT NULL',
                   tablesync.source_catalog(target.server, 'pg_stat_database'),
                   tablesync.source_catalog(target.server, 'pg_stat_bgwriter'))
    INTO resets;
    IF standby IS DISTINCT FROM 'off' OR relation.has_children OR relation.relkind <> 'r' OR counters.n_tup_ins IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN jsonb_build_object('inserted', counters.n_tup_ins, 'updated', counters.n_tup_upd, 'deleted', counters.n_tup_del,
                              'resets', resets, 'identity', tablesync.source_identity(source));
END
$$;
COMMENT ON FUNCTION tablesync.source_counters(regclass) IS 'statistics counters of a source, with what else must not have moved for them to mean anything';

/* The local type for a column of the source, or why there is none. */
CREATE FUNCTION tablesync.local_type(server oid, remote_type oid, remote_typmod integer,
    OUT type oid, OUT typmod integer, OUT problem text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    remote record;
    same_labels boolean;
BEGIN
    type := remote_type;
    typmod := remote_typmod;
    WHILE type >= 10000 LOOP    -- built-in types have the same OID everywhere
        EXECUTE format('SELECT t.oid, t.typname, n.nspname, t.typtype, t.typbasetype, t.typtypmod, t.typelem '
                       'FROM %s t JOIN %s n ON n.oid = t.typnamespace WHERE t.oid = %s',
                       tablesync.source_catalog(server, 'pg_type'),
                       tablesync.source_catalog(server, 'pg_namespace'), type)
        INTO remote;
        IF remote.typtype = 'd' THEN
            type := remote.typbasetype;
            typmod := remote.typtypmod;
            CONTINUE;
        END IF;
        type := to_regtype(format('%I.%I', remote.nspname, remote.typname));
        IF type IS NULL THEN
            problem := format('type %I.%I does not exist here', remote.nspname, remote.typname);
        ELSIF remote.typtype = 'e' THEN
            EXECUTE format('SELECT array_agg(enumlabel ORDER BY enumsortorder) = '
                           '(SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = %s) '
                           'FROM %s WHERE enumtypid = %s',
                           type, tablesync.source_catalog(server, 'pg_enum'), remote.oid)
            INTO same_labels;
            IF same_labels IS NOT TRUE THEN
                problem := format('type %I.%I has other labels here', remote.nspname, remote.typname);
            END IF;
        ELSIF remote.typelem <> 0 THEN
            problem := (tablesync.local_type(server, remote.typelem, -1)).problem;
        END IF;
        RETURN;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = type) THEN
        problem := format('the source''s built-in type %s is unknown here', type);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.local_type(oid, oid, integer) IS 'the local type that holds values of a source''s type exactly; domains become their base type';

/* Columns of a source table as the source's catalogs have them. */
CREATE FUNCTION tablesync.source_columns(server oid, schema_name text, table_name text)
RETURNS TABLE (attnum smallint, remote_name text, type oid, typmod integer, "collation" oid,
               not_null boolean, key_position integer, problem text, relid oid)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation record := tablesync.source_relation(server, schema_name, table_name);
    attribute record;
    key_attnums smallint[];
    local record;
BEGIN
    EXECUTE format('SELECT string_to_array(indkey, '' '')::smallint[] FROM %s WHERE indrelid = %s AND indisprimary',
                   tablesync.source_catalog(server, 'pg_index'), relation.relid)
    INTO key_attnums;
    FOR attribute IN EXECUTE
        format('SELECT a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attcollation '
               'FROM %s a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum',
               tablesync.source_catalog(server, 'pg_attribute'), relation.relid)
    LOOP
        local := tablesync.local_type(server, attribute.atttypid, attribute.atttypmod);
        attnum := attribute.attnum;
        remote_name := attribute.attname;
        type := local.type;
        typmod := local.typmod;
        not_null := attribute.attnotnull;
        key_position := array_position(key_attnums, attribute.attnum);
        problem := local.problem;
        relid := relation.relid;
        "collation" := NULL;
        IF attribute.attcollation NOT IN (0, 100) THEN     -- not the default collation
            EXECUTE format('SELECT l.oid, NOT r.collisdeterministic AS nondeterministic '
                           'FROM %s r LEFT JOIN pg_collation l ON l.collname::text = r.collname '
                           'AND l.collnamespace = ''pg_catalog''::regnamespace AND r.collnamespace = 11 '
                           'AND l.collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database())) '
                           'WHERE r.oid = %s',
                           tablesync.source_catalog(server, 'pg_collation'), attribute.attcollation)
            INTO local;
            "collation" := local.oid;
            IF local.nondeterministic THEN
                problem := 'its collation is not deterministic: different values count as equal';
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.source_columns(oid, text, text) IS 'columns of a source table with their local types, from the source''s catalogs';

CREATE FUNCTION tablesync.type_problem(type oid, key boolean, hashed boolean)
RETURNS text
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_type_problem';
COMMENT ON FUNCTION tablesync.type_problem(oid, boolean, boolean) IS 'why a column of a type can''t be replicated exactly, as part of a key, or compared by fingerprint; NULL if it can';

/*
 * The shape of a foreign table's source, for comparison between runs.  The
 * OID of the table tells whether column numbers of two shapes mean the same.
 */
CREATE FUNCTION tablesync.source_shape(source regclass)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    shape jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object(
               'column', coalesce(a.attname::text, c.remote_name),
               'remote', c.remote_name,
               'table', c.relid::bigint,
               'attnum', c.attnum,
               'type', format_type(c.type, c.typmod),
               'type_oid', c.type::bigint,
               'typmod', c.typmod,
               'collation', (SELECT co.collname FROM pg_collation co WHERE co.oid = c."collation"),
               'not_null', c.not_null,
               'key', c.key_position,
               'problem', c.problem) ORDER BY c.attnum)
    INTO shape
    FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
    LEFT JOIN pg_attribute a
        ON a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped
       AND c.remote_name = coalesce((SELECT option_value FROM pg_options_to_table(a.attfdwoptions)
                                     WHERE option_name = 'column_name'), a.attname);
    RETURN shape;
END
$$;
COMMENT ON FUNCTION tablesync.source_shape(regclass) IS 'names, types, collations, NOT NULL and key of the source''s columns as jsonb';

/* The part of a shape whose change is a change of the source; the rest is for building columns here. */
CREATE FUNCTION tablesync.shape_core(shape jsonb)
RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(c.c - '{type_oid,typmod,problem}'::text[] ORDER BY c.n)
    FROM jsonb_array_elements(shape) WITH ORDINALITY c (c, n);
$$;
COMMENT ON FUNCTION tablesync.shape_core(jsonb) IS 'what two shapes of a source are compared by';

/* Did on_schema_change "ignore" leave a foreign table behind with the types that its source once had? */
CREATE FUNCTION tablesync.lags_behind(source regclass, shape jsonb)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM jsonb_to_recordset(shape) AS s ("column" name, type text)
                   JOIN pg_attribute f ON f.attrelid = source AND f.attname = s."column" AND NOT f.attisdropped
                   WHERE format_type(f.atttypid, f.atttypmod) <> s.type);
$$;
COMMENT ON FUNCTION tablesync.lags_behind(regclass, jsonb) IS 'whether a foreign table has other types than a shape of its source';

/* With on_schema_change "ignore" new columns are none of our business; a renamed one is not new. */
CREATE FUNCTION tablesync.known_shape(old jsonb, new jsonb)
RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_agg(n.n ORDER BY n.i), '[]')
    FROM jsonb_array_elements(new) WITH ORDINALITY n (n, i)
    WHERE EXISTS (SELECT FROM jsonb_array_elements(old) o (o)
                  WHERE o.o->'remote' = n.n->'remote'
                     OR (o.o->'table' = n.n->'table' AND o.o->'attnum' = n.n->'attnum'));
$$;
COMMENT ON FUNCTION tablesync.known_shape(jsonb, jsonb) IS 'a source''s new shape without the columns that the old one does not have';

/* Columns that a replica has in common with its source. */
CREATE FUNCTION tablesync.replica_columns(replica regclass)
RETURNS TABLE (column_name name, type bigint, typmod integer, nullable boolean, key_position integer,
               is_version boolean, problem text, refetch boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s."column",
           r.atttypid::bigint,
           r.atttypmod,
           NOT (s.not_null AND r.attnotnull),
           array_position(t.key_columns, s."column"),
           s."column" = t.version_column,
           CASE WHEN f.attname IS NULL THEN format('Foreign table %s has no column %I.', t.source, s."column")
                WHEN r.attname IS NULL THEN format('Table %s has no column %I.', t.replica, s."column")
                WHEN (r.atttypid, r.atttypmod) <> (f.atttypid, f.atttypmod) THEN
                    format('Column %I has type %s in %s and type %s in foreign table %s.', s."column",
                           format_type(r.atttypid, r.atttypmod), t.replica,
                           format_type(f.atttypid, f.atttypmod), t.source)
           END,
           s."column" = ANY (t.refetch)
    FROM tablesync.replica t
    CROSS JOIN LATERAL ROWS FROM (
        jsonb_to_recordset(t.shape) AS ("column" name, not_null boolean)
    ) WITH ORDINALITY AS s ("column", not_null, ordinality)
    LEFT JOIN pg_attribute f ON f.attrelid = t.source AND f.attname = s."column" AND NOT f.attisdropped
    LEFT JOIN pg_attribute r ON r.attrelid = t.replica AND r.attname = s."column" AND NOT r.attisdropped
    WHERE t.replica = $1
    ORDER BY s.ordinality;
$$;
COMMENT ON FUNCTION tablesync.replica_columns(regclass) IS 'columns of a replica in the order of its source, with what no longer fits';

/* What makes the source's fingerprints comparable with ours. */
CREATE FUNCTION tablesync.check_source_server(source regclass)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    settings jsonb;
    hash bigint;
BEGIN
    EXECUTE format('SELECT jsonb_object_agg(name, setting) FROM %s '
                   'WHERE name IN (''server_version_num'', ''server_encoding'')',
                   tablesync.source_catalog(target.server, 'pg_settings'))
    INTO settings;
    EXECUTE format('SELECT sum(hashtextextended(name, 0)) FROM %s WHERE name = ''server_version_num''',
                   tablesync.source_catalog(target.server, 'pg_settings'))
    INTO hash;
    IF (settings->>'server_version_num')::integer < 120000 THEN
        RAISE EXCEPTION 'the source runs PostgreSQL %', (settings->>'server_version_num')::integer / 10000
            USING ERRCODE = 'feature_not_supported', HINT = 'PostgreSQL 12 or newer is supported.';
    END IF;
    IF settings->>'server_encoding' <> current_setting('server_encoding') THEN
        RAISE EXCEPTION 'the source''s encoding is %, ours is %', settings->>'server_encoding', current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Fingerprints of text depend on its bytes.',
                  HINT = 'Keep the replica in a database with the source''s encoding.';
    END IF;
    IF hash <> hashtextextended('server_version_num', 0) THEN
        RAISE EXCEPTION 'the source''s hash functions differ from ours'
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Fingerprints would never agree; the two machines probably differ in byte order.';
    END IF;
    RETURN (settings->>'server_version_num')::integer;
END
$$;
COMMENT ON FUNCTION tablesync.check_source_server(regclass) IS 'server_version_num of the source; an error if its values can''t be compared with ours by hash';

/* Settings of the source session that a run relies on (pace.c asks for them). */
CREATE FUNCTION tablesync.check_source_session(source regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    found text;
    missing text;
BEGIN
    EXECUTE format('SELECT string_agg(format(''%%s is %%s'', s.name, s.setting), '', '' ORDER BY s.name DESC), '
                   'string_agg(format(''-c %%s=%%s'', w.name, w.value), '' '' ORDER BY s.name DESC) '
                   'FROM %s s JOIN (VALUES (''row_security'', ''off''), (''default_transaction_read_only'', ''on''), '
                   '(''lc_monetary'', ''C'')) w (name, value) ON w.name = s.name AND w.value <> s.setting '
                   'WHERE s.name IN (''row_security'', ''default_transaction_read_only'', ''lc_monetary'')',
                   tablesync.source_catalog(target.server, 'pg_settings'))
    INTO found, missing;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'the session at the source is not restricted as a run needs it'
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = format('There, %s.', found),
                  HINT = (SELECT CASE WHEN EXISTS (SELECT FROM pg_options_to_table(s.srvoptions) WHERE option_name = 'options')
                                 THEN format('Add "%s" to the option "options" of server "%s", or drop that option.', missing, s.srvname)
                                 ELSE 'A connection pooler in between may drop the session''s options; connect to the source directly.' END
                          FROM pg_foreign_server s WHERE s.oid = target.server);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_source_session(regclass) IS 'an error if the session at the source is not restricted as a run needs it';

/* What a run asks before it reads rows; "new_shape" is NULL while the source's shape is the one known. */
CREATE FUNCTION tablesync.open_source(replica regclass, OUT server_version integer, OUT estimated_rows double precision,
                                      OUT new_shape jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    target record;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    target := tablesync.source_target(settings.source);
    server_version := tablesync.check_source_server(settings.source);
    PERFORM tablesync.check_source_session(settings.source);
    SELECT r.estimated_rows INTO estimated_rows
    FROM tablesync.source_relation(target.server, target.schema_name, target.table_name) r;
    new_shape := tablesync.source_shape(settings.source);
    IF settings.on_schema_change = 'ignore' THEN
        new_shape := tablesync.known_shape(settings.shape, new_shape);
    END IF;
    IF tablesync.shape_core(new_shape) = tablesync.shape_core(settings.shape)
       AND (settings.on_schema_change = 'ignore' OR NOT tablesync.lags_behind(settings.source, new_shape)) THEN
        new_shape := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.open_source(regclass) IS 'version and estimated rows of the source, and its shape if that has changed';

/*
 * End a run without a scan if the source's counters are those from before the
 * last one, the user trusts them for as long, and nobody has written to the
 * replica: it then ends with the proof of that scan.
 */
CREATE FUNCTION tablesync.skip_scan(replica regclass, counters jsonb, run_id bigint, source_usec bigint)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    proof record;
BEGIN
    SELECT r.source_rows, r.source_digest, r.replica_rows, r.replica_digest, r.consistency, r.source_horizon,
           r.newest_version, t.counters_at
    INTO proof
    FROM tablesync.replica t
    JOIN LATERAL (SELECT * FROM tablesync.run l
                  WHERE l.replica = t.replica AND l.status = 'succeeded' AND l.kind <> 'verify' ORDER BY l.run_id DESC LIMIT 1) r
        ON r.source_rows = r.replica_rows AND r.source_digest = r.replica_digest
    WHERE t.replica = $1 AND t.counters = $2 AND t.loaded AND NOT t.adopted AND t.refetch = '{}'
      AND clock_timestamp() < t.counters_at + t.trust_counters_for
      AND t.memory_file = pg_relation_filenode($1) AND tablesync.is_watched($1)
      AND NOT EXISTS (SELECT FROM tablesync.stray_write w WHERE w.replica = $1)
      AND NOT EXISTS (SELECT FROM tablesync.chunk c WHERE c.replica = $1 AND (c.stale OR c.digest IS NULL));
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE tablesync.run r
    SET status = 'succeeded', finished_at = clock_timestamp(), consistency = proof.consistency,
        source_time = $4 * interval '1 microsecond',
        source_rows = proof.source_rows, source_digest = proof.source_digest,
        replica_rows = proof.replica_rows, replica_digest = proof.replica_digest,
        source_horizon = proof.source_horizon, newest_version = proof.newest_version,
        message = format('not scanned: the source''s counters have not moved since %s', date_trunc('second', proof.counters_at))
    WHERE r.run_id = $3;
    RETURN true;
END
$$;
COMMENT ON FUNCTION tablesync.skip_scan(regclass, jsonb, bigint, bigint) IS 'ends a run without a scan if the source''s counters have not moved; false if they have';
/* load.sql: what a bulk load (bulk.c) prepares and finishes */

/* The smallest value of a type, as text, for the inner columns of a composite key's bound; NULL if there is none. */
CREATE FUNCTION tablesync.smallest_value(type oid)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT v.smallest
    FROM (VALUES ('int2'::regtype::oid, '-32768'), ('int4'::regtype::oid, '-2147483648'), ('int8'::regtype::oid, '-9223372036854775808'),
                 ('date'::regtype::oid, '-infinity'), ('timestamp'::regtype::oid, '-infinity'), ('timestamptz'::regtype::oid, '-infinity'),
                 ('uuid'::regtype::oid, '00000000-0000-0000-0000-000000000000')) v (type, smallest)
    WHERE v.type = $1;
$$;
COMMENT ON FUNCTION tablesync.smallest_value(oid) IS 'smallest value of a key''s type as text, NULL if unknown';

/* Integers that cut what lies between some integers into pieces of about so many rows; multiples of 64, for bitmaps. */
CREATE FUNCTION tablesync.subdivide(bounds bigint[], rows double precision, piece_rows bigint)
RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(b::text ORDER BY b)
    FROM (SELECT DISTINCT (bounds[i] + trunc((bounds[i + 1]::numeric - bounds[i]) * p / pieces))::bigint & ~63::bigint AS b
          FROM (SELECT greatest(ceil(rows / greatest(cardinality(bounds) - 1, 1) / piece_rows), 1)::integer) s (pieces),
               generate_series(1, cardinality(bounds) - 1) i,
               generate_series(0, s.pieces - 1) p) d
    WHERE b > bounds[1];
$$;
COMMENT ON FUNCTION tablesync.subdivide(bigint[], double precision, bigint) IS 'bounds of ranges with about so many rows each, aligned to multiples of 64';

/*
 * Values of the first key column that cut a source into ranges of about the
 * same number of rows, in ascending order: from its statistics, or between the
 * smallest and the largest integer.  NULL where nothing is known.
 */
CREATE FUNCTION tablesync.source_bounds(replica regclass, rows double precision, range_rows bigint)
RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    target record;
    first_key jsonb;
    histogram text[];
    smallest bigint;
    largest bigint;
    known bigint[];
    step numeric;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    target := tablesync.source_target(settings.source);
    first_key := (SELECT c FROM jsonb_array_elements(settings.shape) c WHERE c->>'column' = settings.key_columns[1]);
    EXECUTE format('SELECT histogram_bounds::text[] FROM %s WHERE schemaname = %L AND tablename = %L AND attname = %L '
                   'ORDER BY inherited DESC LIMIT 1',
                   tablesync.source_catalog(target.server, 'pg_stats'), target.schema_name, target.table_name, first_key->>'remote')
    INTO histogram;
    IF first_key->>'type' NOT IN ('smallint', 'integer', 'bigint') THEN
        RETURN histogram[2:cardinality(histogram) - 1];
    END IF;
    EXECUTE format('SELECT min(%1$I), max(%1$I) FROM %2$s', first_key->>'column', settings.source) INTO smallest, largest;
    IF smallest IS NULL OR largest = smallest THEN
        RETURN NULL;
    END IF;
    known := (SELECT array_agg(b::bigint ORDER BY b::bigint) FROM unnest(histogram) b WHERE b::bigint BETWEEN smallest AND largest);
    IF cardinality(known) > 1 THEN      -- rows may have come at the end since
        step := (known[cardinality(known)]::numeric - known[1]) / (cardinality(known) - 1);
        known := known || ARRAY(SELECT g::bigint FROM generate_series(known[cardinality(known)] + step, largest, greatest(step, 1)) g
                                LIMIT 10 * cardinality(known));
        RETURN tablesync.subdivide(known || largest, rows, range_rows);
    END IF;
    RETURN tablesync.subdivide(ARRAY[smallest, largest], rows, range_rows);
END
$$;
COMMENT ON FUNCTION tablesync.source_bounds(regclass, double precision, bigint) IS 'values of the first key column that cut a source into ranges of about the same size';

/*
 * Can rows be put straight into the heap of an empty replica, and its indexes
 * be built afterwards?  Only where nothing else happens on an INSERT, no other
 * object needs an index meanwhile, and every property of an index comes back.
 */
CREATE FUNCTION tablesync.can_bulk_load(replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.relkind = 'r' AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap')
       AND NOT c.relispartition AND NOT c.relhasrules AND NOT c.relhassubclass AND c.reloftype = 0
       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
       AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgfoid <> 'tablesync.note_write'::regproc)
       AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype NOT IN ('p', 'u', 'n'))
       AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                       WHERE i.indrelid = c.oid
                         AND (NOT i.indisvalid OR i.indisclustered OR i.indisreplident OR x.reltablespace <> 0
                              OR (x.reloptions IS NOT NULL AND EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.oid))
                              OR EXISTS (SELECT FROM pg_description d WHERE d.objoid IN (x.oid, (SELECT k.oid FROM pg_constraint k WHERE k.conindid = x.oid)))
                              OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = x.oid AND a.attstattarget >= 0)
                              OR EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'n' AND d.refobjid IN (x.oid, (SELECT k.oid FROM pg_constraint k WHERE k.conindid = x.oid)))))
       AND ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum)
         = ARRAY(SELECT s.c->>'column' FROM jsonb_array_elements(t.shape) WITH ORDINALITY s (c, n) ORDER BY s.n)
       AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND (a.attisdropped OR a.attgenerated <> ''))
       AND NOT EXISTS (SELECT FROM pg_attribute a    -- inner columns of a range's bounds
                       WHERE a.attrelid = c.oid AND a.attname = ANY (t.key_columns[2:]) AND a.attcollation = 0
                         AND tablesync.smallest_value(a.atttypid) IS NULL)
    FROM tablesync.replica t JOIN pg_class c ON c.oid = t.replica
    WHERE t.replica = $1;
$$;
COMMENT ON FUNCTION tablesync.can_bulk_load(regclass) IS 'whether rows can be put straight into the heap of an empty replica';

/* Drop the indexes of an empty replica, remember how to create them again, and plan its ranges. */
CREATE FUNCTION tablesync.begin_bulk_load(replica regclass, bounds text[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    index record;
    statements text[] := '{}';
    inner_bounds text[];
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1);
    FOR index IN
        SELECT i.indexrelid::regclass AS index_name, k.conname, pg_get_constraintdef(k.oid) AS constraint_definition,
               pg_get_indexdef(i.indexrelid) AS index_definition
        FROM pg_index i LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u')
        WHERE i.indrelid = $1
        ORDER BY i.indisprimary DESC, i.indexrelid
    LOOP
        IF index.conname IS NOT NULL THEN
            statements := statements || format('ALTER TABLE %s ADD CONSTRAINT %I %s', $1, index.conname, index.constraint_definition);
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', $1, index.conname);
        ELSE
            statements := statements || index.index_definition;
            EXECUTE format('DROP INDEX %s', index.index_name);
        END IF;
    END LOOP;
    SELECT array_agg(tablesync.smallest_value(a.atttypid) ORDER BY k.n)
    INTO inner_bounds
    FROM tablesync.replica t, unnest(t.key_columns) WITH ORDINALITY k (name, n)
    JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = k.name
    WHERE t.replica = $1 AND k.n > 1 AND a.attcollation = 0;
    UPDATE tablesync.replica t SET load_indexes = statements WHERE t.replica = $1;
    DELETE FROM tablesync.chunk c WHERE c.replica = $1;
    INSERT INTO tablesync.chunk (replica, chunk_no, lower_key, loaded)
    SELECT $1, b.n, CASE WHEN b.n > 0 THEN ARRAY[b.bound] || inner_bounds END, false
    FROM (SELECT 0, NULL UNION ALL SELECT u.n, u.bound FROM unnest(bounds) WITH ORDINALITY u (bound, n)) b (n, bound);
END
$$;
COMMENT ON FUNCTION tablesync.begin_bulk_load(regclass, text[]) IS 'drops the indexes of an empty replica until end_bulk_load() and plans the ranges that are loaded';

/*
 * Claim the next range of a load for this transaction; no row if all are
 * loaded or being loaded, or the load is over.
 */
CREATE FUNCTION tablesync.claim_range(replica regclass)
RETURNS TABLE (chunk_no integer, lower_key text[], upper_key text[])
LANGUAGE plpgsql    -- which keeps the plan
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    UPDATE tablesync.chunk c SET loaded = true
    WHERE c.replica = $1
      AND EXISTS (SELECT FROM tablesync.replica t WHERE t.replica = $1 AND t.load_indexes IS NOT NULL)
      AND c.chunk_no = (SELECT n.chunk_no FROM tablesync.chunk n WHERE n.replica = $1 AND NOT n.loaded
                        ORDER BY n.chunk_no LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING c.chunk_no, c.lower_key,
              (SELECT u.lower_key FROM tablesync.chunk u WHERE u.replica = $1 AND u.chunk_no = c.chunk_no + 1);
END
$$;
COMMENT ON FUNCTION tablesync.claim_range(regclass) IS 'takes the next range of a load for the current transaction';

/* Create the indexes again that a load has dropped, where they were. */
CREATE FUNCTION tablesync.end_bulk_load(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET default_tablespace = ''
AS $$
DECLARE
    statement text;
    helpers integer := (SELECT t.workers - 1 FROM tablesync.replica t WHERE t.replica = $1);
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1);    -- until nobody loads any more
    IF EXISTS (SELECT FROM pg_class c, unnest(c.reloptions) o WHERE c.oid = $1 AND o LIKE 'parallel_workers=%') THEN
        helpers := 0;    -- somebody has decided
    END IF;
    IF helpers > 0 THEN    -- or each would have to have 32 MB
        EXECUTE format('ALTER TABLE %s SET (parallel_workers = %s)', $1, helpers);
    END IF;
    FOREACH statement IN ARRAY coalesce((SELECT t.load_indexes FROM tablesync.replica t WHERE t.replica = $1), '{}') LOOP
        EXECUTE statement;
    END LOOP;
    IF helpers > 0 THEN
        EXECUTE format('ALTER TABLE %s RESET (parallel_workers)', $1);
    END IF;
    UPDATE tablesync.replica t SET load_indexes = NULL WHERE t.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync.end_bulk_load(regclass) IS 'creates the indexes again that a load has dropped';

/* Take a bulk load back whose rows are not unique: somebody else has inserted some, or the source has moved values between ranges. */
CREATE FUNCTION tablesync.undo_bulk_load(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('TRUNCATE %s', $1);
    PERFORM tablesync.end_bulk_load($1);
    DELETE FROM tablesync.chunk c WHERE c.replica = $1;
END
$$;
COMMENT ON FUNCTION tablesync.undo_bulk_load(regclass) IS 'empties a replica whose load has brought rows that its indexes refuse, and creates these';

/* Give a replica that is removed in the middle of its load its indexes back, as far as its rows allow. */
CREATE FUNCTION tablesync.abandon_bulk_load(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET default_tablespace = ''
AS $$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY coalesce((SELECT t.load_indexes FROM tablesync.replica t WHERE t.replica = $1), '{}') LOOP
        BEGIN
            EXECUTE statement;
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            RAISE WARNING 'an index of table % could not be created again', $1
                USING DETAIL = SQLERRM, HINT = format('Mend its rows, then: %s;', statement);
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.abandon_bulk_load(regclass) IS 'creates the indexes again that an unfinished load has dropped, as far as the rows allow';
/*
 * guard.sql: how far the source's time has come
 *
 * The transaction counter of a server never goes back, except where the server
 * itself does: a lagging standby, a failover that lost transactions, a restored
 * backup, another server.  A plain reader sees it in pg_stat_activity, as
 * the oldest transaction that a snapshot of its own has to care for.
 */

CREATE FUNCTION tablesync.xid_precedes(a bigint, b bigint)
RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ((b - a) & 4294967295) BETWEEN 1 AND 2147483647;
$$;
COMMENT ON FUNCTION tablesync.xid_precedes(bigint, bigint) IS 'whether a transaction id is older than another, modulo 2^32';

/*
 * Every snapshot that is visible tells the truth; the newest is that of this
 * transaction, or newer.  The rows are compared here, because transaction ids
 * have no max().
 */
CREATE FUNCTION tablesync.source_horizon(source regclass)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    seen bigint;
    horizon bigint;
BEGIN
    FOR seen IN EXECUTE
        format('SELECT backend_xmin FROM %s WHERE backend_xmin IS NOT NULL',
               tablesync.source_catalog(target.server, 'pg_stat_activity'))
    LOOP
        IF horizon IS NULL OR tablesync.xid_precedes(horizon, seen) THEN
            horizon := seen;
        END IF;
    END LOOP;
    RETURN horizon;
END
$$;
COMMENT ON FUNCTION tablesync.source_horizon(regclass) IS 'how far the transaction counter of the source has come';

/* What a run must know before it believes that rows are gone. */
CREATE FUNCTION tablesync.source_time(replica regclass, OUT horizon bigint, OUT went_back boolean, OUT newest_version text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_horizon bigint;
BEGIN
    horizon := (SELECT tablesync.source_horizon(t.source) FROM tablesync.replica t WHERE t.replica = $1);
    SELECT r.source_horizon, r.newest_version INTO last_horizon, newest_version
    FROM tablesync.run r
    WHERE r.replica = $1 AND r.status = 'succeeded' AND r.source_horizon IS NOT NULL
    ORDER BY r.run_id DESC LIMIT 1;
    went_back := coalesce(tablesync.xid_precedes(horizon, last_horizon), false);
END
$$;
COMMENT ON FUNCTION tablesync.source_time(regclass) IS 'how far the source has come, whether the last success had seen it further, and the newest version that was seen';
/*
 * dependents.sql: views that stand on a replica
 *
 * The type of a column can't change while a view shows it.  So such views are
 * dropped and created again in the transaction of the change; one that would
 * not come back exactly as it was is an error, which undoes all of it.
 */

/* Views above some columns of tables, each after those that it reads. */
CREATE FUNCTION tablesync.dependent_views(relations regclass[], columns name[])
RETURNS regclass[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE reads (reader, object, attnum) AS (
        SELECT w.ev_class, d.refobjid, d.refobjsubid
        FROM pg_depend d
        JOIN pg_rewrite w ON w.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> w.ev_class
    ), above (reader, depth) AS (
        SELECT r.reader, 1
        FROM reads r
        JOIN pg_attribute a ON a.attrelid = r.object AND a.attnum = r.attnum
        WHERE r.object = ANY (relations) AND a.attname = ANY (columns)
        UNION
        SELECT r.reader, above.depth + 1
        FROM above
        JOIN reads r ON r.object = above.reader
    )
    SELECT coalesce(array_agg(v.reader::regclass ORDER BY v.depth, v.reader), '{}')
    FROM (SELECT above.reader, max(above.depth) AS depth FROM above GROUP BY above.reader) v;
$$;
COMMENT ON FUNCTION tablesync.dependent_views(regclass[], name[]) IS 'views that show columns of tables, directly or not, in the order in which they can be created';

/* Privileges on a relation (attnum 0) or on one of its columns, in an order of their own. */
CREATE FUNCTION tablesync.privileges(relation regclass, attnum smallint)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('grantor', pg_get_userbyid(x.grantor),
                                                 'grantee', CASE WHEN x.grantee <> 0 THEN pg_get_userbyid(x.grantee) END,
                                                 'privilege', x.privilege_type,
                                                 'grantable', x.is_grantable)
                              ORDER BY x.grantee, x.privilege_type, x.grantor), '[]')
    FROM pg_class c
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = $2
    CROSS JOIN LATERAL aclexplode(CASE WHEN $2 = 0 THEN coalesce(c.relacl, acldefault('r', c.relowner))
                                       ELSE a.attacl END) x
    WHERE c.oid = relation;
$$;
COMMENT ON FUNCTION tablesync.privileges(regclass, smallint) IS 'privileges granted on a relation, or on a column of it';

/* All that a plain view is, to create it again and to see that it is the same. */
CREATE FUNCTION tablesync.view_state(view regclass)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'name', format('%I.%I', n.nspname, c.relname),
        'owner', pg_get_userbyid(c.relowner),
        'options', coalesce(to_jsonb(c.reloptions), '[]'),
        'privileges', tablesync.privileges(c.oid, 0::smallint),
        'comment', obj_description(c.oid, 'pg_class'),
        'columns', (SELECT jsonb_agg(jsonb_build_object('name', a.attname,
                                                        'privileges', tablesync.privileges(c.oid, a.attnum),
                                                        'comment', col_description(c.oid, a.attnum)) ORDER BY a.attnum)
                    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0))
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = view;
$$;
COMMENT ON FUNCTION tablesync.view_state(regclass) IS 'name, owner, options, privileges, columns and comments of a view';

/* Refuse a view that has more to it than tablesync.create_view() makes. */
CREATE FUNCTION tablesync.check_recreatable(view regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
BEGIN
    SELECT CASE WHEN c.relkind <> 'v' THEN 'is not a plain view'
                WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN 'belongs to another role'
                WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid) THEN 'has triggers'
                WHEN EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN') THEN 'has rules'
                WHEN EXISTS (SELECT FROM pg_attrdef d WHERE d.adrelid = c.oid) THEN 'has column defaults'
                WHEN EXISTS (SELECT FROM pg_seclabel l WHERE l.classoid = 'pg_class'::regclass AND l.objoid = c.oid) THEN 'has security labels'
                WHEN EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
                    THEN 'belongs to an extension'
           END
    INTO problem
    FROM pg_class c WHERE c.oid = view;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '% shows the column and can''t be created again: it %', view, problem
            USING ERRCODE = 'feature_not_supported';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_recreatable(regclass) IS 'an error if a view can''t be dropped and created again exactly';

/* Drop views, the last first; returns what is needed to create them again. */
CREATE FUNCTION tablesync.drop_views(views regclass[])
RETURNS jsonb[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    view regclass;
    states jsonb[] := '{}';
BEGIN
    FOREACH view IN ARRAY views LOOP
        PERFORM tablesync.check_recreatable(view);
        states := array_append(states, jsonb_build_object('state', tablesync.view_state(view),
                                                          'definition', pg_get_viewdef(view)));
    END LOOP;
    FOR n IN REVERSE cardinality(views) .. 1 LOOP
        EXECUTE format('DROP VIEW %s', views[n]);
    END LOOP;
    RETURN states;
END
$$;
COMMENT ON FUNCTION tablesync.drop_views(regclass[]) IS 'drops views and returns what they were';

/* Make the privileges on a view, or on a column of it, those that it had. */
CREATE FUNCTION tablesync.restore_privileges(view regclass, column_name name, wanted jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    attnum smallint := coalesce((SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = view AND a.attname = column_name), 0);
    part text := CASE WHEN column_name IS NULL THEN '' ELSE format(' (%I)', column_name) END;
    p jsonb;
BEGIN
    IF tablesync.privileges(view, attnum) = wanted THEN
        RETURN;
    END IF;
    FOR p IN SELECT x.p FROM jsonb_array_elements(tablesync.privileges(view, attnum)) x (p) LOOP   -- by default
        EXECUTE format('REVOKE %s%s ON %s FROM %s', p->>'privilege', part, view, coalesce(quote_ident(p->>'grantee'), 'PUBLIC'));
    END LOOP;
    FOR p IN SELECT x.p FROM jsonb_array_elements(wanted) x (p) LOOP
        EXECUTE format('GRANT %s%s ON %s TO %s%s', p->>'privilege', part, view, coalesce(quote_ident(p->>'grantee'), 'PUBLIC'),
                       CASE WHEN (p->>'grantable')::boolean AND p->>'grantee' <> p->>'grantor' THEN ' WITH GRANT OPTION' END);
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.restore_privileges(regclass, name, jsonb) IS 'grants and revokes until the privileges on a view are those given';

/* Create a view again; an error if it is not what it was. */
CREATE FUNCTION tablesync.create_view(state jsonb, definition text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    view regclass;
    view_column jsonb;
BEGIN
    EXECUTE format('CREATE VIEW %s%s AS %s', state->>'name',
                   (SELECT ' WITH (' || string_agg(format('%I = %L', o.option_name, o.option_value), ', ') || ')'
                    FROM pg_options_to_table(ARRAY(SELECT jsonb_array_elements_text(state->'options'))) o),
                   definition);
    view := (state->>'name')::regclass;
    IF state->>'owner' <> current_user THEN
        EXECUTE format('ALTER VIEW %s OWNER TO %I', view, state->>'owner');
    END IF;
    PERFORM tablesync.restore_privileges(view, NULL, state->'privileges');
    IF state->>'comment' IS NOT NULL THEN
        EXECUTE format('COMMENT ON VIEW %s IS %L', view, state->>'comment');
    END IF;
    FOR view_column IN SELECT c.c FROM jsonb_array_elements(state->'columns') c (c) LOOP
        IF view_column->>'comment' IS NOT NULL THEN
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', view, view_column->>'name', view_column->>'comment');
        END IF;
        PERFORM tablesync.restore_privileges(view, (view_column->>'name')::name, view_column->'privileges');
    END LOOP;
    IF tablesync.view_state(view) <> state THEN
        RAISE EXCEPTION 'view % would not be the same again', view USING ERRCODE = 'feature_not_supported';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.create_view(jsonb, text) IS 'creates a view that tablesync.drop_views() has dropped; an error if it would not be the same';
/*
 * plan.sql: what a change of a source's shape asks for
 *
 * A plan compares the shape a replica was built for with the source's new one,
 * and with what replica and foreign table are now: whatever the owner has done
 * by hand needs no statement any more and is accepted.  Making a plan asks
 * only local catalogs and changes nothing.
 */

CREATE TYPE tablesync.schema_step AS (
    change text,
    column_name text,
    action text,
    detail text,
    statements text[],
    unless_used text[],
    fill boolean,
    problem text,
    hint text
);
COMMENT ON TYPE tablesync.schema_step IS 'one change of a source''s shape: what a run does about it, or the problem that keeps it from doing so';
COMMENT ON COLUMN tablesync.schema_step.statements IS 'DDL for replica and foreign table';
COMMENT ON COLUMN tablesync.schema_step.unless_used IS 'DDL that is left out where other objects depend on the column';
COMMENT ON COLUMN tablesync.schema_step.fill IS 'whether the column''s values have to be compared or fetched for all rows';
COMMENT ON COLUMN tablesync.schema_step.problem IS 'why the replica pauses; NULL where it need not';

/* Does every value of a type stay the same value under another one?  Where in doubt, no. */
CREATE FUNCTION tablesync.widens(old_type oid, old_typmod integer, new_type oid, new_typmod integer)
RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN old_type = 'int2'::regtype THEN new_type IN ('int4'::regtype, 'int8'::regtype)
        WHEN old_type = 'int4'::regtype THEN new_type = 'int8'::regtype
        WHEN old_type IN ('varchar'::regtype, 'text'::regtype) AND new_type IN ('varchar'::regtype, 'text'::regtype) THEN
            new_typmod = -1 OR (old_typmod <> -1 AND new_typmod >= old_typmod)
        WHEN old_type <> new_type THEN false
        WHEN old_type IN ('bpchar'::regtype, 'varbit'::regtype) THEN
            CASE WHEN old_typmod = -1 THEN new_typmod = -1
                 ELSE new_typmod >= old_typmod OR (new_typmod = -1 AND old_type = 'varbit'::regtype) END
        WHEN old_type = 'numeric'::regtype THEN
            new_typmod = -1 OR (old_typmod <> -1 AND new_scale >= old_scale
                                AND new_precision - new_scale >= old_precision - old_scale)
        WHEN old_type IN ('timestamp'::regtype, 'timestamptz'::regtype, 'time'::regtype, 'timetz'::regtype) THEN
            new_typmod = -1 OR new_typmod >= 6 OR (old_typmod <> -1 AND new_typmod >= old_typmod)
        WHEN old_type = 'interval'::regtype THEN new_typmod = -1
        ELSE false END
    FROM (SELECT (old_typmod - 4) >> 16 & 65535, ((old_typmod - 4) & 2047 # 1024) - 1024,
                 (new_typmod - 4) >> 16 & 65535, ((new_typmod - 4) & 2047 # 1024) - 1024)
         v (old_precision, old_scale, new_precision, new_scale);
$$;
COMMENT ON FUNCTION tablesync.widens(oid, integer, oid, integer) IS 'whether a column can change from one type to another without any value being lost';

CREATE FUNCTION tablesync.local_column(relation regclass, column_name text,
    OUT type text, OUT type_oid oid, OUT typmod integer, OUT not_null boolean, OUT "collation" text, OUT writable boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format_type(a.atttypid, a.atttypmod), a.atttypid, a.atttypmod, a.attnotnull,
           CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE %I.%I', n.nspname, co.collname) ELSE '' END,
           a.attgenerated = '' AND a.attidentity <> 'a'
    FROM (SELECT) always
    LEFT JOIN pg_attribute a ON a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_collation co ON co.oid = a.attcollation
    LEFT JOIN pg_namespace n ON n.oid = co.collnamespace;
$$;
COMMENT ON FUNCTION tablesync.local_column(regclass, text) IS 'type, NOT NULL and collation of a column of a local table; NULLs if there is none';

/* Does a column of a foreign table stand for this column of its source? */
CREATE FUNCTION tablesync.stands_for(source regclass, column_name text, remote_name text)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_attribute a
                   WHERE a.attrelid = source AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
                     AND coalesce((SELECT o.option_value FROM pg_options_to_table(a.attfdwoptions) o
                                   WHERE o.option_name = 'column_name'), a.attname) = remote_name);
$$;
COMMENT ON FUNCTION tablesync.stands_for(regclass, text, text) IS 'whether a foreign table has a column for a column of its source';

/* What to type to do by hand what a run does not dare to do. */
CREATE FUNCTION tablesync.by_hand(replica regclass, statements text[])
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT concat_ws(' ', (SELECT string_agg(s || ';', ' ' ORDER BY n) FROM unnest(statements) WITH ORDINALITY u (s, n)),
                     format('SELECT tablesync_resume(%L);', replica));
$$;
COMMENT ON FUNCTION tablesync.by_hand(regclass, text[]) IS 'statements that lead out of a pause, as text';

CREATE FUNCTION tablesync.add_again(replica regclass)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('Give %1$s the new key, then remove the replica with tablesync_remove(%1$L) and add it again. '
                  'Its rows are kept; the first run compares every column.', replica);
$$;
COMMENT ON FUNCTION tablesync.add_again(regclass) IS 'what to do about a replica whose key has changed at the source';

/* Statements that make a foreign table's column what the source's column is. */
CREATE FUNCTION tablesync.foreign_column_statements(source regclass, new jsonb)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(
        SELECT s FROM (VALUES
            (CASE WHEN NOT tablesync.stands_for(source, new->>'column', new->>'remote') THEN
                format('ALTER FOREIGN TABLE %s ADD COLUMN %I %s%s%s', source, new->>'column', new->>'type',
                       ' COLLATE pg_catalog.' || quote_ident(new->>'collation'),
                       CASE WHEN (new->>'not_null')::boolean THEN ' NOT NULL' END)
             WHEN f.type <> new->>'type' THEN
                format('ALTER FOREIGN TABLE %s ALTER COLUMN %I TYPE %s%s', source, new->>'column', new->>'type', f."collation") END),
            (CASE WHEN f.not_null AND NOT (new->>'not_null')::boolean THEN
                format('ALTER FOREIGN TABLE %s ALTER COLUMN %I DROP NOT NULL', source, new->>'column') END)) v (s)
        WHERE s IS NOT NULL)
    FROM tablesync.local_column(source, new->>'column') f;
$$;
COMMENT ON FUNCTION tablesync.foreign_column_statements(regclass, jsonb) IS 'DDL that makes a foreign table''s column fit the source';

/* A column that the source did not have. */
CREATE FUNCTION tablesync.plan_added(settings tablesync.replica, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, new->>'column');
    on_source text[] := tablesync.foreign_column_statements(settings.source, new);
    step tablesync.schema_step;
    misfit text := coalesce(new->>'problem', tablesync.type_problem((new->>'type_oid')::oid, false, settings.fingerprint = 'row'));
BEGIN
    step.change := 'added';
    step.column_name := new->>'column';
    step.detail := concat_ws(' ', format('column %I', new->>'remote'), new->>'type', 'was added');
    step.fill := true;
    step.action := 'applied';
    step.statements := on_source;
    IF misfit IS NOT NULL THEN
        step.problem := format('%s and can''t be replicated exactly: %s', step.detail, misfit);
        step.hint := concat_ws(' ',
            CASE WHEN new->>'problem' LIKE 'type % here' THEN 'Create the type here like at the source, and resume.'
                 WHEN tablesync.type_problem((new->>'type_oid')::oid, false, false) IS NULL AND new->>'problem' IS NULL THEN
                     'If the source sets a column on every change, name it as version_column with tablesync_alter(), and resume.' END,
            format('To leave new columns out: SELECT tablesync_alter(%L, on_schema_change => ''ignore'', enabled => true);', settings.replica));
    ELSIF mine.type IS NULL THEN
        step.statements := format('ALTER TABLE %s ADD COLUMN %I %s%s', settings.replica, new->>'column', new->>'type',
                                  ' COLLATE pg_catalog.' || quote_ident(new->>'collation')) || on_source;
    ELSIF NOT tablesync.stands_for(settings.source, new->>'column', new->>'remote') THEN
        step.problem := format('%s, and %s has a column of that name already', step.detail, settings.replica);
        step.hint := format('Rename or drop the column of %s. Or, to have its values replaced by the source''s: %s', settings.replica,
                            tablesync.by_hand(settings.replica, on_source));
    ELSIF mine.type <> new->>'type' OR NOT mine.writable THEN
        step.problem := format('%s, and column %I of %s is %s', step.detail, new->>'column', settings.replica,
                               CASE WHEN mine.writable THEN mine.type ELSE 'generated' END);
        step.hint := format('Rename or drop the column of %s. %s', settings.replica, tablesync.by_hand(settings.replica, '{}'));
    ELSE
        step.action := CASE WHEN on_source = '{}' THEN 'accepted' ELSE 'applied' END;
        IF mine.not_null AND NOT (new->>'not_null')::boolean THEN
            step.statements := format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, new->>'column') || on_source;
        END IF;
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_added(tablesync.replica, jsonb) IS 'what to do about a column that the source did not have';

/* Statements that rename a replica's column as the source has done. */
CREATE FUNCTION tablesync.rename_statements(settings tablesync.replica, old jsonb, new jsonb)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN old->>'column' <> old->>'remote' THEN    -- a name of its own here
        ARRAY[format('ALTER FOREIGN TABLE %s ALTER COLUMN %I OPTIONS (SET column_name %L)', settings.source, old->>'column', new->>'remote')]
    ELSE
        ARRAY[format('ALTER TABLE %s RENAME COLUMN %I TO %I', settings.replica, old->>'column', new->>'remote'),
              format('ALTER FOREIGN TABLE %s RENAME COLUMN %I TO %I', settings.source, old->>'column', new->>'remote')]
    END;
$$;
COMMENT ON FUNCTION tablesync.rename_statements(tablesync.replica, jsonb, jsonb) IS 'DDL that renames a column here like at the source';

/*
 * A column that the source no longer has.  In a table that was created anew,
 * a new column of the same type may be the old one under another name.
 */
CREATE FUNCTION tablesync.plan_dropped(settings tablesync.replica, old jsonb, added jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, old->>'column');
    in_source boolean := tablesync.stands_for(settings.source, old->>'column', old->>'remote');
    step tablesync.schema_step;
    may_be jsonb;
BEGIN
    step.change := 'dropped';
    step.column_name := old->>'column';
    step.detail := concat_ws(' ', format('column %I', old->>'remote'), old->>'type', 'was dropped');
    step.statements := CASE WHEN mine.not_null THEN
        ARRAY[format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, old->>'column')] ELSE '{}' END;
    step.fill := false;
    SELECT n INTO may_be FROM jsonb_array_elements(added) n
    WHERE n->>'type' = old->>'type' AND n->'table' <> old->'table' LIMIT 1;
    IF old->>'column' = ANY (settings.key_columns) THEN
        step.problem := format('key column %I was dropped', old->>'remote');
        step.hint := tablesync.add_again(settings.replica);
    ELSIF settings.fingerprint = 'version' AND old->>'column' = settings.version_column THEN
        step.problem := format('version column %I was dropped', old->>'remote');
        step.hint := format('SELECT tablesync_alter(%1$L, fingerprint => ''row''); or name another version_column. Then: %2$s',
                            settings.replica, tablesync.by_hand(settings.replica, '{}'));
    ELSIF may_be IS NOT NULL AND mine.type IS NOT NULL AND settings.on_schema_change <> 'ignore' THEN
        step.problem := format('the table was created anew with column %I instead of %I, which may be the same', may_be->>'remote', old->>'remote');
        step.hint := format('If it was renamed: %s If it is another column, drop column %I of %s and resume.',
                            tablesync.by_hand(settings.replica, tablesync.rename_statements(settings, old, may_be)),
                            old->>'column', settings.replica);
    ELSIF settings.on_schema_change = 'ignore' THEN
        step.action := 'ignored';
    ELSE
        step.action := CASE WHEN mine.type IS NULL THEN 'accepted' WHEN settings.drop_columns THEN 'dropped' ELSE 'kept' END;
        step.unless_used := ARRAY(SELECT s FROM (VALUES
            (CASE WHEN step.action = 'dropped' THEN format('ALTER TABLE %s DROP COLUMN %I', settings.replica, old->>'column') END),
            (CASE WHEN in_source THEN format('ALTER FOREIGN TABLE %s DROP COLUMN %I', settings.source, old->>'column') END)) v (s)
            WHERE s IS NOT NULL);
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_dropped(tablesync.replica, jsonb, jsonb) IS 'what to do about a column that the source no longer has';

/* A column with another name: never done by a run, accepted once the owner has done it. */
CREATE FUNCTION tablesync.plan_renamed(settings tablesync.replica, old jsonb, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before record := tablesync.local_column(settings.replica, old->>'column');
    after record := tablesync.local_column(settings.replica, new->>'column');
    step tablesync.schema_step;
BEGIN
    step.change := 'renamed';
    step.column_name := new->>'column';
    step.detail := format('column %I was renamed to %I', old->>'remote', new->>'remote');
    step.action := 'accepted';
    step.fill := false;
    IF after.type IS NULL OR NOT tablesync.stands_for(settings.source, new->>'column', new->>'remote')
       OR (before.type IS NOT NULL AND old->>'column' <> new->>'column') THEN
        step.problem := step.detail;
        step.hint := tablesync.by_hand(settings.replica, tablesync.rename_statements(settings, old, new));
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_renamed(tablesync.replica, jsonb, jsonb) IS 'what to do about a column that has another name at the source';

/* In words how a column's type has changed; it has not where only the foreign table's differs. */
CREATE FUNCTION tablesync.describe_retyped(remote_name text, old_type text, new_type text, replaced boolean)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN replaced AND old_type IS NOT DISTINCT FROM new_type THEN format('column %I was dropped and added again', remote_name)
                WHEN replaced THEN format('column %I %s was dropped and added again as %s', remote_name, old_type, v.new_type)
                WHEN old_type IS NOT DISTINCT FROM new_type THEN format('column %I is of type %s', remote_name, v.new_type)
                ELSE format('column %I changed its type from %s to %s', remote_name, old_type, v.new_type) END
    FROM (SELECT coalesce(new_type, 'one that is unknown here')) v (new_type);
$$;
COMMENT ON FUNCTION tablesync.describe_retyped(text, text, text, boolean) IS 'how a column''s type has changed, in words';

/* A column with another type, or another column under the same name ("replaced"). */
CREATE FUNCTION tablesync.plan_retyped(settings tablesync.replica, old jsonb, new jsonb, replaced boolean)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, new->>'column');
    is_key boolean := old->>'column' = ANY (settings.key_columns);
    is_hashed boolean := settings.fingerprint = 'row' OR settings.adopted
                         OR coalesce(old->>'column' = ANY (settings.key_columns || settings.version_column), false);
    alike boolean := mine.type_oid = (new->>'type_oid')::oid
                     OR (mine.type_oid IN ('text'::regtype, 'varchar'::regtype) AND (new->>'type_oid')::oid IN ('text'::regtype, 'varchar'::regtype));
    misfit text := coalesce(new->>'problem', tablesync.type_problem((new->>'type_oid')::oid, is_key, is_key OR is_hashed));
    was text := CASE WHEN old->'type' = new->'type' THEN mine.type ELSE old->>'type' END;    -- or ignored then
    on_replica text := format('ALTER TABLE %s ALTER COLUMN %I TYPE %s%s', settings.replica, new->>'column', new->>'type',
                              CASE WHEN mine."collation" <> '' AND (new->>'type_oid')::oid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)
                                   THEN mine."collation" END);
    on_source text[] := tablesync.foreign_column_statements(settings.source, new);
    step tablesync.schema_step;
BEGIN
    step.change := CASE WHEN replaced THEN 'replaced' ELSE 'retyped' END;
    step.column_name := new->>'column';
    step.detail := tablesync.describe_retyped(new->>'remote', was, new->>'type', replaced);
    step.fill := true;
    step.statements := on_source;
    step.action := 'applied';
    IF replaced AND (is_key OR (settings.fingerprint = 'version' AND old->>'column' = settings.version_column)) THEN
        step.problem := format('%s column %I was dropped and added again', CASE WHEN is_key THEN 'key' ELSE 'version' END, new->>'remote');
        step.hint := format('Remove the replica with tablesync_remove(%L) and add it again. Its rows are kept; the first run compares every column.',
                            settings.replica);
    ELSIF misfit IS NOT NULL THEN
        step.problem := format('%s and can''t be replicated exactly: %s', step.detail, misfit);
        step.hint := coalesce(CASE WHEN new->>'problem' LIKE 'type % here' THEN 'Create the type here like at the source, and resume.' END,
                              'Undo the change at the source, or name another key, version column or fingerprint.');
    ELSIF mine.type = new->>'type' OR mine.type IS NULL THEN
        step.action := CASE WHEN on_source = '{}' THEN 'accepted' ELSE 'applied' END;
    ELSIF settings.on_schema_change = 'ignore' AND (alike OR NOT is_hashed) THEN
        step.action := 'ignored';
        step.statements := '{}';
    ELSIF settings.on_schema_change <> 'ignore'
          AND tablesync.widens(mine.type_oid, mine.typmod, (new->>'type_oid')::oid, (new->>'typmod')::integer) THEN
        step.statements := on_replica || on_source;
    ELSE
        step.problem := step.detail;
        step.hint := tablesync.by_hand(settings.replica, format('%s USING %I::%s', on_replica, new->>'column', new->>'type') || on_source);
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_retyped(tablesync.replica, jsonb, jsonb, boolean) IS 'what to do about a column whose type has changed at the source';

/* A column whose NOT NULL has changed.  A replica never gains one: that would read all of it under a lock. */
CREATE FUNCTION tablesync.plan_nullable(settings tablesync.replica, old jsonb, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, new->>'column');
    step tablesync.schema_step;
BEGIN
    step.column_name := new->>'column';
    step.fill := false;
    IF (new->>'not_null')::boolean THEN
        step.change := 'not_null';
        step.detail := format('column %I became NOT NULL', new->>'remote');
        step.action := 'recorded';
        RETURN step;
    END IF;
    step.change := 'nullable';
    step.detail := format('column %I is no longer NOT NULL', new->>'remote');
    IF old->>'column' = ANY (settings.key_columns) THEN
        step.problem := format('key column %I is no longer NOT NULL', new->>'remote');
        step.hint := tablesync.add_again(settings.replica);
        RETURN step;
    END IF;
    step.statements := CASE WHEN mine.not_null THEN
                           ARRAY[format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, new->>'column')] ELSE '{}' END
                       || CASE WHEN (tablesync.local_column(settings.source, new->>'column')).not_null THEN
                           ARRAY[format('ALTER FOREIGN TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.source, new->>'column')] ELSE '{}' END;
    step.action := CASE WHEN step.statements = '{}' THEN 'accepted' ELSE 'applied' END;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_nullable(tablesync.replica, jsonb, jsonb) IS 'what to do about a column that has become NOT NULL, or is so no longer';

/* Columns of two shapes that are the same column: the same number in the same table, else the same name. */
CREATE FUNCTION tablesync.match_columns(old jsonb, new jsonb)
RETURNS TABLE (before jsonb, after jsonb, replaced boolean)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH matched AS (
        SELECT o.o, n.n
        FROM jsonb_array_elements(old) o (o)
        FULL JOIN jsonb_array_elements(new) n (n)
            ON CASE WHEN old->0->'table' = new->0->'table' THEN o.o->'attnum' ELSE o.o->'remote' END
             = CASE WHEN old->0->'table' = new->0->'table' THEN n.n->'attnum' ELSE n.n->'remote' END
    )
    SELECT m.o, m.n, false FROM matched m WHERE m.o IS NOT NULL AND m.n IS NOT NULL
    UNION ALL
    SELECT o.o, n.n, o.o IS NOT NULL AND n.n IS NOT NULL
    FROM (SELECT m.o FROM matched m WHERE m.n IS NULL) o
    FULL JOIN (SELECT m.n FROM matched m WHERE m.o IS NULL) n ON o.o->'remote' = n.n->'remote';
$$;
COMMENT ON FUNCTION tablesync.match_columns(jsonb, jsonb) IS 'pairs of columns of two shapes; NULL where one has none';

/* A primary key that has changed matters where it is the replica's key. */
CREATE FUNCTION tablesync.plan_key(settings tablesync.replica, new jsonb)
RETURNS SETOF tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was name[];
    step tablesync.schema_step;
BEGIN
    IF NOT EXISTS (SELECT FROM tablesync.match_columns(settings.shape, new) m
                   WHERE m.before->>'key' IS DISTINCT FROM m.after->>'key') THEN
        RETURN;
    END IF;
    was := ARRAY(SELECT (c->>'column')::name FROM jsonb_array_elements(settings.shape) c
                 WHERE c->>'key' IS NOT NULL ORDER BY (c->>'key')::integer);
    step.change := 'key';
    step.detail := coalesce((SELECT format('the primary key is now (%s)', string_agg(quote_ident(c->>'remote'), ', ' ORDER BY (c->>'key')::integer))
                             FROM jsonb_array_elements(new) c WHERE c->>'key' IS NOT NULL HAVING count(*) > 0),
                            'the primary key was dropped');
    step.action := 'recorded';
    step.fill := false;
    IF was = settings.key_columns THEN
        step.problem := step.detail;
        step.hint := tablesync.add_again(settings.replica);
    END IF;
    RETURN NEXT step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_key(tablesync.replica, jsonb) IS 'what to do about a primary key that has changed';

/* All that has changed, in an order that suits DDL: key, dropped, the others. */
CREATE FUNCTION tablesync.plan_evolution(settings tablesync.replica, new jsonb)
RETURNS SETOF tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m record;
    step tablesync.schema_step;
    added jsonb := (SELECT coalesce(jsonb_agg(a.after), '[]') FROM tablesync.match_columns(settings.shape, new) a WHERE a.before IS NULL);
BEGIN
    RETURN QUERY SELECT * FROM tablesync.plan_key(settings, new);
    FOR m IN SELECT * FROM tablesync.match_columns(settings.shape, new) x
             ORDER BY x.after IS NOT NULL, (coalesce(x.after, x.before)->>'attnum')::integer
    LOOP
        IF m.after IS NULL THEN
            RETURN NEXT tablesync.plan_dropped(settings, m.before, added);
            CONTINUE;
        ELSIF m.before IS NULL THEN
            RETURN NEXT tablesync.plan_added(settings, m.after);
            CONTINUE;
        END IF;
        IF (m.before->'remote', m.before->'column') <> (m.after->'remote', m.after->'column') THEN
            step := tablesync.plan_renamed(settings, m.before, m.after);
            RETURN NEXT step;
            CONTINUE WHEN step.problem IS NOT NULL;
        END IF;
        IF m.replaced OR m.before->'type' <> m.after->'type'
           OR (settings.on_schema_change <> 'ignore' AND tablesync.lags_behind(settings.source, jsonb_build_array(m.after))) THEN
            RETURN NEXT tablesync.plan_retyped(settings, m.before, m.after, m.replaced);
        END IF;
        IF m.before->'not_null' <> m.after->'not_null' THEN
            RETURN NEXT tablesync.plan_nullable(settings, m.before, m.after);
        END IF;
        IF m.before->'collation' <> m.after->'collation' THEN
            RETURN NEXT (ROW('collation', m.after->>'column', 'recorded',
                             format('the collation of column %I changed', m.after->>'remote'),
                             NULL, NULL, false, NULL, NULL)::tablesync.schema_step);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.plan_evolution(tablesync.replica, jsonb) IS 'what a source''s new shape asks for, one row per change';
/*
 * evolve.sql: a replica follows the shape of its source
 *
 * A run finds a new shape before it reads rows.  Then one local transaction,
 * which does not touch the source, either changes replica, foreign table and
 * settings and logs it, or pauses the replica and says what to do.
 */

CREATE TABLE tablesync.schema_log (
    log_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    replica regclass NOT NULL REFERENCES tablesync.replica ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id bigint,
    change text NOT NULL CHECK (change IN ('added', 'dropped', 'renamed', 'retyped', 'replaced', 'nullable', 'not_null', 'key', 'collation')),
    column_name text,
    action text NOT NULL CHECK (action IN ('applied', 'kept', 'dropped', 'ignored', 'recorded', 'accepted', 'paused')),
    detail text NOT NULL
);
CREATE INDEX schema_log_of_replica ON tablesync.schema_log (replica, log_id DESC);
COMMENT ON TABLE tablesync.schema_log IS 'one row per change of a source''s shape; read it through the view tablesync_schema_log';
COMMENT ON COLUMN tablesync.schema_log.at IS 'when a run noticed the change';
COMMENT ON COLUMN tablesync.schema_log.run_id IS 'the run that noticed it';
COMMENT ON COLUMN tablesync.schema_log.change IS 'added, dropped, renamed, retyped, replaced (dropped and added again), nullable, not_null, key or collation';
COMMENT ON COLUMN tablesync.schema_log.column_name IS 'the column''s name here; NULL for the key';
COMMENT ON COLUMN tablesync.schema_log.action IS 'applied; kept or dropped, of a column that the source has dropped; ignored by policy; recorded, as nothing was to do; accepted, as the owner had done it; paused';
COMMENT ON COLUMN tablesync.schema_log.detail IS 'what has changed, in words';
ALTER TABLE tablesync.schema_log ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON tablesync.schema_log USING (tablesync.owns(replica));
GRANT SELECT, INSERT, DELETE ON tablesync.schema_log TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('tablesync.schema_log', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.schema_log_log_id_seq', '');

CREATE VIEW tablesync_schema_log WITH (security_barrier = true) AS
SELECT l.replica,
       l.at,
       l.change,
       l.column_name AS "column",
       l.action,
       CASE WHEN tablesync.owns(l.replica) THEN l.detail END AS detail
FROM tablesync.schema_log l
WHERE tablesync.sees(l.replica);
GRANT SELECT ON tablesync_schema_log TO PUBLIC;
COMMENT ON VIEW tablesync_schema_log IS 'one row per change of a source''s shape, and what a run did about it';
COMMENT ON COLUMN tablesync_schema_log.change IS 'added, dropped, renamed, retyped, replaced (dropped and added again), nullable, not_null, key or collation';
COMMENT ON COLUMN tablesync_schema_log.action IS 'applied, kept, dropped, ignored, recorded, accepted or paused';

CREATE FUNCTION tablesync.log_steps(replica regclass, run_id bigint, steps tablesync.schema_step[], paused boolean)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO tablesync.schema_log (replica, run_id, change, column_name, action, detail)
    SELECT $1, $2, s.change, s.column_name, CASE WHEN paused THEN 'paused' ELSE s.action END, coalesce(s.problem, s.detail)
    FROM unnest(steps) WITH ORDINALITY AS s
    WHERE NOT paused OR s.problem IS NOT NULL
    ORDER BY s.ordinality;
$$;
COMMENT ON FUNCTION tablesync.log_steps(regclass, bigint, tablesync.schema_step[], boolean) IS 'logs what was done about changes of a source''s shape, or why a replica is paused';

/* Run the DDL of a step that other objects may forbid; the column then stays. */
CREATE FUNCTION tablesync.drop_unless_used(step tablesync.schema_step)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY coalesce(step.unless_used, '{}') LOOP
        BEGIN
            EXECUTE statement;
        EXCEPTION WHEN dependent_objects_still_exist OR invalid_table_definition OR insufficient_privilege THEN
            step.detail := format('%s; %s', step.detail, SQLERRM);
            IF statement LIKE 'ALTER TABLE %' THEN
                step.action := 'kept';
            END IF;
        END;
    END LOOP;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.drop_unless_used(tablesync.schema_step) IS 'drops what a step wants dropped unless other objects depend on it';

/*
 * How the values of changed columns get here.  A fingerprint of all columns
 * finds them; where one of the types has none, they are fetched for all rows.
 * Keys and the version are compared anyway, and must not run ahead of the
 * other columns.
 */
CREATE FUNCTION tablesync.want_filled(settings tablesync.replica, new_shape jsonb, filled name[], hashed boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF filled = '{}' OR settings.fingerprint = 'row' OR (NOT settings.loaded AND settings.load_position IS NULL) THEN
        RETURN;
    END IF;
    IF hashed AND NOT EXISTS (SELECT FROM jsonb_array_elements(new_shape) c
                              WHERE tablesync.type_problem((c->>'type_oid')::oid, false, true) IS NOT NULL) THEN
        UPDATE tablesync.replica t SET adopted = true WHERE t.replica = settings.replica;
    ELSE
        UPDATE tablesync.replica t
        SET refetch = ARRAY(SELECT unnest(t.refetch) UNION SELECT unnest(filled)
                            EXCEPT SELECT unnest(t.key_columns || t.version_column))
        WHERE t.replica = settings.replica;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.want_filled(tablesync.replica, jsonb, name[], boolean) IS 'sees to it that a run brings the values of changed columns for all rows';

/* Do what a plan says, and remember the new shape. */
CREATE FUNCTION tablesync.apply_steps(settings tablesync.replica, new_shape jsonb, run_id bigint, steps tablesync.schema_step[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    statement text;
    view jsonb;
    views jsonb[] := '{}';
    retyped name[];
    renamed jsonb;
BEGIN
    IF EXISTS (SELECT FROM unnest(steps) s WHERE cardinality(s.statements) + cardinality(coalesce(s.unless_used, '{}')) > 0) THEN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', settings.replica);
        retyped := ARRAY(SELECT s.column_name FROM unnest(steps) s
                         WHERE s.change IN ('retyped', 'replaced') AND s.action = 'applied');
        views := tablesync.drop_views(tablesync.dependent_views(ARRAY[settings.replica, settings.source], retyped));
    END IF;
    FOR statement IN SELECT d.d FROM unnest(steps) WITH ORDINALITY s, unnest(s.statements) WITH ORDINALITY d (d, n)
                     ORDER BY s.ordinality, d.n LOOP
        EXECUTE statement;
    END LOOP;
    FOREACH view IN ARRAY views LOOP
        PERFORM tablesync.create_view(view->'state', view->>'definition');
    END LOOP;
    FOR n IN 1 .. cardinality(steps) LOOP
        steps[n] := tablesync.drop_unless_used(steps[n]);
    END LOOP;

    SELECT coalesce(jsonb_object_agg(m.before->>'column', m.after->>'column'), '{}') INTO renamed
    FROM tablesync.match_columns(settings.shape, new_shape) m
    WHERE m.before IS NOT NULL AND m.after IS NOT NULL;
    UPDATE tablesync.replica t
    SET shape = new_shape,
        key_columns = ARRAY(SELECT coalesce(renamed->>k.k::text, k.k)::name FROM unnest(t.key_columns) WITH ORDINALITY k (k, n) ORDER BY k.n),
        version_column = renamed->>t.version_column::text,
        refetch = ARRAY(SELECT (renamed->>k.k::text)::name FROM unnest(t.refetch) k (k) WHERE renamed ? k.k::text)
    WHERE t.replica = settings.replica;
    PERFORM tablesync.want_filled(settings, new_shape, ARRAY(SELECT s.column_name FROM unnest(steps) s WHERE s.fill),
                                  NOT tablesync.lags_behind(settings.source, new_shape));
    PERFORM tablesync.log_steps(settings.replica, run_id, steps, false);
    PERFORM tablesync.close_alert(settings.replica, 'schema_changed');
END
$$;
COMMENT ON FUNCTION tablesync.apply_steps(tablesync.replica, jsonb, bigint, tablesync.schema_step[]) IS 'changes replica and foreign table as planned';

/* Mark what the policy, or an error, keeps a run from doing as a problem. */
CREATE FUNCTION tablesync.refuse_steps(settings tablesync.replica, steps tablesync.schema_step[], reason text)
RETURNS tablesync.schema_step[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(ROW(s.change, s.column_name, s.action, s.detail, s.statements, s.unless_used, s.fill,
                         CASE WHEN w.to_do <> '{}' THEN concat_ws(': ', s.detail, reason) END,
                         CASE WHEN w.to_do <> '{}' THEN tablesync.by_hand(settings.replica, w.to_do) END)::tablesync.schema_step
                     ORDER BY s.ordinality)
    FROM unnest(steps) WITH ORDINALITY s, LATERAL (SELECT s.statements || coalesce(s.unless_used, '{}')) w (to_do);
$$;
COMMENT ON FUNCTION tablesync.refuse_steps(tablesync.replica, tablesync.schema_step[], text) IS 'turns the steps of a plan that would change something into problems';

/* Stop the runs of a replica until its owner has dealt with a change. */
CREATE FUNCTION tablesync.pause_for_schema(settings tablesync.replica, run_id bigint, steps tablesync.schema_step[],
                                           OUT problem text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    resume text := tablesync.by_hand(settings.replica, '{}');    -- say it once
BEGIN
    SELECT string_agg(s.problem, '; ' ORDER BY s.ordinality) INTO problem
    FROM unnest(steps) WITH ORDINALITY s;
    SELECT concat_ws(' ', string_agg(nullif(btrim(replace(h.hint, resume, '')), ''), ' ' ORDER BY h.n),
                     CASE WHEN bool_or(strpos(h.hint, resume) > 0) THEN resume END) INTO hint
    FROM (SELECT s.hint, min(s.ordinality) FROM unnest(steps) WITH ORDINALITY s GROUP BY s.hint) h (hint, n);
    UPDATE tablesync.replica t SET enabled = false WHERE t.replica = settings.replica;
    PERFORM tablesync.log_steps(settings.replica, run_id, steps, true);
END
$$;
COMMENT ON FUNCTION tablesync.pause_for_schema(tablesync.replica, bigint, tablesync.schema_step[]) IS 'pauses a replica because of a change of its source''s shape; returns why, and what to do';

/* What a run does about a new shape; "problem" is NULL if it can go on. */
CREATE FUNCTION tablesync.evolve(replica regclass, new_shape jsonb, run_id bigint, OUT problem text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    steps tablesync.schema_step[];
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1 FOR UPDATE;
    steps := ARRAY(SELECT s FROM tablesync.plan_evolution(settings, new_shape) s);
    IF settings.on_schema_change = 'pause' AND NOT EXISTS (SELECT FROM unnest(steps) s WHERE s.problem IS NOT NULL) THEN
        steps := tablesync.refuse_steps(settings, steps, NULL);
    END IF;
    IF NOT EXISTS (SELECT FROM unnest(steps) s WHERE s.problem IS NOT NULL) THEN
        BEGIN
            PERFORM tablesync.apply_steps(settings, new_shape, run_id, steps);
            RETURN;
        EXCEPTION
            WHEN lock_not_available THEN
                RAISE EXCEPTION 'could not lock replica % to follow a change of its source', replica
                    USING ERRCODE = 'lock_not_available', DETAIL = 'Others have used it for longer than tablesync.lock_timeout; nothing was changed.',
                          HINT = 'The next run tries again.';
            WHEN OTHERS THEN
                IF SQLSTATE !~ '^(0A|22|23|2B|42|44|54|P0|55006)' THEN
                    RAISE;
                END IF;
                steps := tablesync.refuse_steps(settings, steps, SQLERRM);
                IF NOT EXISTS (SELECT FROM unnest(steps) s WHERE s.problem IS NOT NULL) THEN
                    RAISE;
                END IF;
        END;
    END IF;
    SELECT p.problem, p.hint INTO problem, hint FROM tablesync.pause_for_schema(settings, run_id, steps) p;
END
$$;
COMMENT ON FUNCTION tablesync.evolve(regclass, jsonb, bigint) IS 'makes a replica follow its source''s new shape, or pauses it; returns why, and what to do';

CREATE FUNCTION tablesync.finish_refetch(replica regclass)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE tablesync.replica t SET refetch = '{}' WHERE t.replica = $1;
$$;
COMMENT ON FUNCTION tablesync.finish_refetch(regclass) IS 'notes that the columns in tablesync.replica.refetch have been fetched for all rows';
/*
 * alert.sql: what somebody should know about, until it is over
 *
 * One open row per replica and kind of problem.  open_alert() and
 * close_alert() are the only functions that change the table; settle_run()
 * calls them for a run that has ended, watch() for what is wrong although no run
 * says so.  Both may be called again at any time.
 */

CREATE TABLE tablesync.alert (
    alert_id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    replica regclass NOT NULL REFERENCES tablesync.replica ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('run_failed', 'stale', 'delete_guard', 'schema_changed', 'drift',
                                       'source_went_back', 'worker_unavailable')),
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
);
CREATE UNIQUE INDEX alert_one_open ON tablesync.alert (replica, kind) WHERE closed_at IS NULL;
CREATE INDEX alert_untold ON tablesync.alert (alert_id) WHERE told IS DISTINCT FROM 'closed';
COMMENT ON TABLE tablesync.alert IS 'one row per problem of a replica, open or over; what is open is in the view tablesync_alerts';
COMMENT ON COLUMN tablesync.alert.kind IS 'what is wrong; at most one open row per replica and kind';
COMMENT ON COLUMN tablesync.alert.since IS 'when it was first seen';
COMMENT ON COLUMN tablesync.alert.last_seen IS 'when it was last seen';
COMMENT ON COLUMN tablesync.alert.closed_at IS 'when it was over; NULL while it is open';
COMMENT ON COLUMN tablesync.alert.occurrences IS 'how often it was seen';
COMMENT ON COLUMN tablesync.alert.run_id IS 'the last run that met it, if a run did';
COMMENT ON COLUMN tablesync.alert.sqlstate IS 'error code of that run';
COMMENT ON COLUMN tablesync.alert.told IS 'what the alert handler was last called for';

ALTER TABLE tablesync.alert ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON tablesync.alert USING (tablesync.owns(replica));
GRANT SELECT, INSERT, UPDATE, DELETE ON tablesync.alert TO PUBLIC;
GRANT USAGE ON SEQUENCE tablesync.alert_alert_id_seq TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('tablesync.alert', '');
SELECT pg_catalog.pg_extension_config_dump('tablesync.alert_alert_id_seq', '');

/*
 * Errors of our own, class TS; TSYNC_ERRCODE_* in tablesync.h are the same.
 * Whatever else makes a run fail is run_failed.
 */
CREATE FUNCTION tablesync.alert_kind(sqlstate text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE sqlstate
               WHEN 'TS001' THEN 'delete_guard'
               WHEN 'TS002' THEN 'source_went_back'
               WHEN 'TS003' THEN 'schema_changed'
               ELSE 'run_failed'
           END;
$$;
COMMENT ON FUNCTION tablesync.alert_kind(text) IS 'the kind of alert that a failed run opens, by its SQLSTATE';

/* Errors that may quote a row: bad data, constraints, users' own functions. */
CREATE FUNCTION tablesync.public_message(sqlstate text, message text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN sqlstate ~ '^(22|23|44|P0)' THEN NULL ELSE left(message, 1000) END;
$$;
COMMENT ON FUNCTION tablesync.public_message(text, text) IS 'an error message if everybody may read it: NULL where it may quote a row';

/* What the alert handler gets, and listeners but for messages that are not public. */
CREATE FUNCTION tablesync.alert_payload(alert tablesync.alert, event text)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object('event', event, 'alert_id', alert.alert_id, 'replica', alert.replica, 'kind', alert.kind,
                              'severity', alert.severity, 'since', alert.since, 'closed_at', alert.closed_at,
                              'occurrences', alert.occurrences, 'run_id', alert.run_id, 'sqlstate', alert.sqlstate,
                              'message', alert.message, 'hint', alert.hint);
$$;
COMMENT ON FUNCTION tablesync.alert_payload(tablesync.alert, text) IS 'an alert as jsonb, with what has happened to it';

CREATE FUNCTION tablesync.start_alert_worker(replica regclass)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_start_alert_worker';
COMMENT ON FUNCTION tablesync.start_alert_worker(regclass) IS 'starts a worker that calls the alert handler once this transaction has committed; false if there is none to be had';

/* Is a handler set here, or for anybody whose settings we don't have? */
CREATE FUNCTION tablesync.has_alert_handler()
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(current_setting('tablesync.alert_handler', true), '') <> ''
        OR EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE c LIKE 'tablesync.alert\_handler=_%');
$$;
COMMENT ON FUNCTION tablesync.has_alert_handler() IS 'whether an alert handler may be set for the owner of a replica';

/* News of the last hour for the handler; older ones are of no use to anybody. */
CREATE FUNCTION tablesync.untold_alerts()
RETURNS SETOF tablesync.alert
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM tablesync.alert a
    WHERE a.told IS DISTINCT FROM 'closed'
      AND (a.told IS NULL OR a.closed_at IS NOT NULL)
      AND coalesce(a.closed_at, a.since) > clock_timestamp() - interval '1 hour';
$$;
COMMENT ON FUNCTION tablesync.untold_alerts() IS 'alerts that the handler has not been called for since they were opened or closed';

/*
 * Take the next alert for the handler, at most once, whatever becomes of the
 * call.  Only of replicas that the current user owns herself: the handler
 * gets her rights.
 */
CREATE FUNCTION tablesync.claim_alert()
RETURNS jsonb
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE tablesync.alert a
    SET told = CASE WHEN a.closed_at IS NULL THEN 'opened' ELSE 'closed' END
    WHERE a.alert_id = (SELECT u.alert_id FROM tablesync.alert u
                        WHERE u.alert_id IN (SELECT n.alert_id FROM tablesync.untold_alerts() n
                                             JOIN pg_class c ON c.oid = n.replica
                                             WHERE c.relowner = current_user::regrole)
                        ORDER BY u.alert_id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING tablesync.alert_payload(a, 'alert_' || a.told);
$$;
COMMENT ON FUNCTION tablesync.claim_alert() IS 'what to call the alert handler with next; NULL if there is nothing';

CREATE FUNCTION tablesync.log_alert(opened boolean, message text, hint text)
RETURNS void
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_log_alert';
COMMENT ON FUNCTION tablesync.log_alert(boolean, text, text) IS 'a WARNING about an alert that opens, a line at level LOG about one that closes';

/* Tell listeners, the server log and the handler what has happened to an alert. */
CREATE FUNCTION tablesync.announce_alert(alert tablesync.alert, event text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text := tablesync.public_message(alert.sqlstate, alert.message);
BEGIN
    PERFORM pg_notify('tablesync', (tablesync.alert_payload(alert, 'alert_' || event) - 'hint'
                                    || jsonb_build_object('message', message))::text);
    PERFORM tablesync.log_alert(event = 'opened',
                                format('tablesync alert %s for replica %s %s', alert.kind, alert.replica,
                                       CASE WHEN event = 'opened' THEN 'opened: ' || coalesce(message, 'see tablesync_alerts')
                                            ELSE 'is over' END),
                                CASE WHEN message IS NOT NULL THEN alert.hint END);
    IF tablesync.has_alert_handler() THEN
        PERFORM tablesync.start_alert_worker(alert.replica);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.announce_alert(tablesync.alert, text) IS 'NOTIFY tablesync, a line in the server log, and a call of the alert handler';

/* A message may quote a row only if the SQLSTATE says so (public_message). */
CREATE FUNCTION tablesync.open_alert(replica regclass, kind text, severity text, message text, hint text DEFAULT NULL,
                                     run_id bigint DEFAULT NULL, sqlstate text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    alert tablesync.alert;
BEGIN
    INSERT INTO tablesync.alert AS a (replica, kind, severity, message, hint, run_id, sqlstate)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (replica, kind) WHERE closed_at IS NULL DO UPDATE
    SET (severity, message, hint, run_id, sqlstate)
            = (excluded.severity, excluded.message, excluded.hint, excluded.run_id, excluded.sqlstate),
        last_seen = clock_timestamp(),
        occurrences = a.occurrences + 1
    RETURNING * INTO alert;
    IF alert.occurrences = 1 THEN
        PERFORM tablesync.announce_alert(alert, 'opened');
    END IF;
    RETURN alert.alert_id;
END
$$;
COMMENT ON FUNCTION tablesync.open_alert(regclass, text, text, text, text, bigint, text) IS 'opens an alert, or notes that an open one was seen again; returns its id';

CREATE FUNCTION tablesync.close_alert(replica regclass, kind text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    alert tablesync.alert;
BEGIN
    UPDATE tablesync.alert SET closed_at = greatest(clock_timestamp(), since)
    WHERE replica = $1 AND kind = $2 AND closed_at IS NULL
    RETURNING * INTO alert;
    IF alert.alert_id IS NOT NULL THEN
        PERFORM tablesync.announce_alert(alert, 'closed');
    END IF;
    RETURN alert.alert_id IS NOT NULL;
END
$$;
COMMENT ON FUNCTION tablesync.close_alert(regclass, text) IS 'closes an alert that is over; false if there was none';

/*
 * How long scheduled runs wait after a failure.  What only a person can mend,
 * privileges and passwords, is not tried more often than every 5 minutes; libpq
 * has no SQLSTATE for a refused connection, only what the server said.
 */
CREATE FUNCTION tablesync.retry_delay(failures integer, sqlstate text, detail text)
RETURNS interval
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT greatest(least(interval '15 seconds' * power(2, least(failures, 10) - 1), interval '15 minutes'),
                    CASE WHEN sqlstate ~ '^28' OR sqlstate IN ('42501', '2F003')
                           OR sqlstate = '08001' AND detail ~* ('authentication|password|pg_hba\.conf|permission denied|does not exist'
                                                                '|not permitted|too many|remaining connection slots')
                         THEN interval '5 minutes' END);
$$;
COMMENT ON FUNCTION tablesync.retry_delay(integer, text, text) IS 'back-off after so many failures in a row: 15 s, doubled each time, at most 15 min';

/* A row that somebody is altering right now is left alone: nobody waits for him. */
CREATE FUNCTION tablesync.back_off(replica regclass, sqlstate text, detail text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM tablesync.replica t WHERE t.replica = $1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE tablesync.replica t
        SET consecutive_failures = t.consecutive_failures + 1,
            retry_after = clock_timestamp() + tablesync.retry_delay(t.consecutive_failures + 1, $2, $3)
        WHERE t.replica = $1;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.back_off(regclass, text, text) IS 'lets scheduled runs of a replica wait after a failure';

/* What a failed or crashed run means for alerts and back-off; once per run. */
CREATE FUNCTION tablesync.settle_failure(run_id bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    run tablesync.run;
    kind text;
BEGIN
    UPDATE tablesync.run r SET settled = true WHERE r.run_id = $1 AND NOT r.settled RETURNING * INTO run;
    IF run.run_id IS NULL OR run.kind = 'verify' THEN    -- who asked to verify has been told
        RETURN;
    END IF;
    kind := tablesync.alert_kind(run.sqlstate);
    PERFORM tablesync.open_alert(run.replica, kind, CASE kind WHEN 'run_failed' THEN 'warning' ELSE 'critical' END,
                                 coalesce(run.message, format('the worker of run %s ended unexpectedly', run.run_id)),
                                 CASE WHEN run.message IS NULL
                                      THEN 'The server log says why. The replica is as it was; the next run goes on.'
                                      ELSE run.hint END,
                                 run.run_id, run.sqlstate);
    PERFORM tablesync.back_off(run.replica, run.sqlstate, run.detail);
END
$$;
COMMENT ON FUNCTION tablesync.settle_failure(bigint) IS 'opens the alert of a run that has failed or crashed, and lets the replica back off; once per run';

/* What a success is the end of. */
CREATE FUNCTION tablesync.settle_success(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.close_alert(a.replica, a.kind)
    FROM tablesync.alert a
    WHERE a.replica = $1 AND a.closed_at IS NULL AND a.kind <> 'drift'
    ORDER BY a.alert_id;
    UPDATE tablesync.replica t SET consecutive_failures = 0, retry_after = NULL
    WHERE t.replica = $1 AND (t.consecutive_failures > 0 OR t.retry_after IS NOT NULL);
END
$$;
COMMENT ON FUNCTION tablesync.settle_success(regclass) IS 'closes the alerts of a replica that a successful run is the end of';

/* The only way from runs to alerts.  A cancelled run says nothing either way. */
CREATE FUNCTION tablesync.settle_run(run_id bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    run tablesync.run;
    status text;
BEGIN
    SELECT * INTO run FROM tablesync.run r WHERE r.run_id = $1;
    status := tablesync.run_status(run);
    PERFORM tablesync.settle_failure(r.run_id)
    FROM tablesync.run r
    WHERE r.replica = run.replica AND r.run_id < run.run_id AND r.status = 'crashed' AND NOT r.settled
    ORDER BY r.run_id;
    IF status IN ('failed', 'crashed') THEN
        PERFORM tablesync.settle_failure(run.run_id);
    ELSIF status = 'succeeded' AND run.kind <> 'verify' THEN
        PERFORM tablesync.settle_success(run.replica);
    END IF;
    IF status <> 'crashed' THEN    -- there was a worker to be had
        PERFORM tablesync.close_alert(run.replica, 'worker_unavailable');
    END IF;
    IF tablesync.has_alert_handler() AND EXISTS (SELECT FROM tablesync.untold_alerts() u WHERE u.replica = run.replica) THEN
        PERFORM tablesync.start_alert_worker(run.replica);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.settle_run(bigint) IS 'opens and closes alerts after a run has ended, also for earlier ones that crashed';

/*
 * What is wrong although no run says so: replicas that are not fresh, crashed
 * workers.  Not of those that somebody has paused.
 */
CREATE VIEW tablesync.condition WITH (security_barrier = true) AS
SELECT t.replica, c.kind, c.severity, c.since, c.message, c.hint, c.run_id
FROM tablesync.replica t
LEFT JOIN LATERAL (
    SELECT r.run_id, tablesync.run_status(r) AS status, r.started_at
    FROM tablesync.run r WHERE r.replica = t.replica ORDER BY r.run_id DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT r.finished_at
    FROM tablesync.run r
    WHERE r.replica = t.replica AND r.status = 'succeeded' AND r.kind <> 'verify'
    ORDER BY r.run_id DESC LIMIT 1
) success ON true
CROSS JOIN LATERAL (
    SELECT 'stale' AS kind,
           'critical' AS severity,
           coalesce(success.finished_at, t.added_at) + t.freshness AS since,
           pg_catalog.format('no successful run within %s', t.freshness) AS message,
           'See tablesync_runs for failures; if there are none, look whether anything starts runs.' AS hint,
           NULL::pg_catalog.int8 AS run_id
    WHERE coalesce(success.finished_at, t.added_at) + t.freshness < pg_catalog.clock_timestamp()
      AND (success.finished_at IS NOT NULL OR last.status IS DISTINCT FROM 'running')    -- loading
    UNION ALL
    SELECT 'run_failed',
           'warning',
           last.started_at,
           pg_catalog.format('the worker of run %s ended unexpectedly', last.run_id),
           'The server log says why. The replica is as it was; the next run goes on.',
           last.run_id
    WHERE last.status = 'crashed'
) c
WHERE t.enabled AND t.home = tablesync.home() AND tablesync.sees(t.replica);
GRANT SELECT ON tablesync.condition TO PUBLIC;
COMMENT ON VIEW tablesync.condition IS 'what is wrong with replicas although no run says so, whether or not it is an alert already';

/* One step of watch(); somebody else's locks must not keep the others waiting. */
CREATE FUNCTION tablesync.watch_step(step text, replica regclass, run_id bigint)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
BEGIN
    CASE step
        WHEN 'settle' THEN PERFORM tablesync.settle_run(run_id);
        WHEN 'close' THEN PERFORM tablesync.close_alert(replica, 'stale');
        WHEN 'open' THEN
            PERFORM tablesync.open_alert(c.replica, c.kind, c.severity, c.message, c.hint)
            FROM tablesync.condition c WHERE c.replica = $2 AND c.kind = 'stale';
        WHEN 'tell' THEN PERFORM tablesync.start_alert_worker(replica);
    END CASE;
    RETURN step <> 'tell';
EXCEPTION WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION tablesync.watch_step(text, regclass, bigint) IS 'one thing that watch() has found to do; false if it must wait';

/* What watch() has to do: nothing, as long as all is well or known. */
CREATE FUNCTION tablesync.watch_steps()
RETURNS TABLE (step text, replica regclass, run_id bigint)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    -- failures that no worker has settled: crashes, and workers that were kept from it
    SELECT 'settle', l.replica, l.run_id
    FROM tablesync.replica t
    CROSS JOIN LATERAL (SELECT r.* FROM tablesync.run r WHERE r.replica = t.replica ORDER BY r.run_id DESC LIMIT 1) l
    WHERE NOT l.settled
      AND (l.status IN ('failed', 'crashed')
           OR l.status = 'running' AND (SELECT tablesync.run_status(r) FROM tablesync.run r WHERE r.run_id = l.run_id) = 'crashed')
    UNION ALL
    -- successes after which alerts are still open
    SELECT DISTINCT 'settle', a.replica, l.run_id
    FROM tablesync.alert a
    CROSS JOIN LATERAL (SELECT r.run_id, r.status FROM tablesync.run r
                        WHERE r.replica = a.replica AND r.kind <> 'verify' ORDER BY r.run_id DESC LIMIT 1) l
    WHERE a.closed_at IS NULL AND a.kind <> 'drift' AND l.status = 'succeeded' AND a.run_id < l.run_id
    UNION ALL
    SELECT 'open', c.replica, NULL
    FROM tablesync.condition c
    WHERE c.kind = 'stale' AND tablesync.owns(c.replica)
      AND NOT EXISTS (SELECT FROM tablesync.alert a
                      WHERE a.replica = c.replica AND a.kind = c.kind AND a.closed_at IS NULL)
    UNION ALL
    SELECT 'close', a.replica, NULL
    FROM tablesync.alert a
    WHERE a.kind = 'stale' AND a.closed_at IS NULL
      AND NOT EXISTS (SELECT FROM tablesync.condition c WHERE c.replica = a.replica AND c.kind = a.kind)
    UNION ALL
    -- what the handler was not called for because there was no worker to be had
    (SELECT DISTINCT ON (c.relowner) 'tell', u.replica, NULL
     FROM tablesync.untold_alerts() u
     JOIN pg_class c ON c.oid = u.replica
     WHERE tablesync.has_alert_handler());
$$;
COMMENT ON FUNCTION tablesync.watch_steps() IS 'alerts that watch() would open or close, for the replicas of the current user';

CREATE FUNCTION tablesync.watch()
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s record;
    done integer := 0;
BEGIN
    IF pg_is_in_recovery() THEN
        RETURN 0;
    END IF;
    FOR s IN SELECT * FROM tablesync.watch_steps() LOOP
        done := done + tablesync.watch_step(s.step, s.replica, s.run_id)::integer;
    END LOOP;
    RETURN done;
END
$$;
COMMENT ON FUNCTION tablesync.watch() IS 'opens and closes alerts for what no run reports: stale replicas, crashed workers; returns the number of changes';

CREATE FUNCTION tablesync.try_run(replica regclass)
RETURNS TABLE (failed boolean, status text, sqlstate text, message text, detail text, hint text)
LANGUAGE C VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_try_run';
COMMENT ON FUNCTION tablesync.try_run(regclass) IS 'runs a replica unless it is backing off, and returns what tablesync_run() would have raised';

CREATE FUNCTION tablesync.raise_error(sqlstate text, message text, detail text, hint text)
RETURNS void
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_raise_error';
COMMENT ON FUNCTION tablesync.raise_error(text, text, text, text) IS 'raises an error';

/*
 * A run that no person waits for.  A failure rolls back what its statement has
 * written, so the alert that no worker was to be had is committed before.
 * SET search_path would forbid the COMMIT; nothing here depends on it.
 */
CREATE PROCEDURE tablesync.run_scheduled(replica regclass, INOUT status text DEFAULT NULL, INOUT message text DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    report record;
BEGIN
    IF NOT EXISTS (SELECT FROM tablesync.due(replica)) THEN
        status := 'not due';
        message := 'a run has started since the schedule was last due';
        RETURN;
    END IF;
    SELECT r.* INTO report FROM tablesync.try_run(replica) r;
    status := report.status;
    message := report.message;
    IF report.failed THEN
        COMMIT;
        PERFORM tablesync.raise_error(report.sqlstate, report.message, report.detail, report.hint);
    END IF;
END
$$;
COMMENT ON PROCEDURE tablesync.run_scheduled(regclass, text, text) IS 'what pg_cron calls: like tablesync_run() for one replica, but returns at once while it is backing off or not due';
/*
 * schedule.sql: runs that pg_cron starts
 *
 * pg_cron keeps its jobs in one database of the cluster and starts them there
 * or in any other.  A job of ours is recognised by its name, which begins with
 * the OIDs of database and replica, so that renaming either harms nothing and
 * two databases never share a job.  What was scheduled is recorded here too,
 * because pg_cron may live in another database, and lets nobody read the jobs
 * of others.
 */

CREATE TABLE tablesync.schedule (
    replica regclass PRIMARY KEY REFERENCES tablesync.replica ON DELETE CASCADE,
    schedule text NOT NULL,
    cron_job_id bigint,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE tablesync.schedule IS 'which replicas pg_cron runs, and when (change it with tablesync_schedule)';
COMMENT ON COLUMN tablesync.schedule.schedule IS 'cron expression as it was given to pg_cron';
COMMENT ON COLUMN tablesync.schedule.cron_job_id IS 'job of pg_cron';
COMMENT ON COLUMN tablesync.schedule.since IS 'when the replica was scheduled or resumed: starts are expected from here on';
ALTER TABLE tablesync.schedule ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON tablesync.schedule USING (tablesync.owns(replica));
GRANT SELECT, INSERT, UPDATE, DELETE ON tablesync.schedule TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('tablesync.schedule', '');

/* Values of one field of a cron expression, in order; NULL if pg_cron might read it in another way. */
CREATE FUNCTION tablesync.cron_field(field text, low integer, high integer, names text[])
RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    range text;
    part text[];
    bounds integer[];
    field_values integer[] := '{}';
BEGIN
    FOREACH range IN ARRAY string_to_array(lower(field), ',') LOOP
        part := regexp_match(range, '^(?:(\*)|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/([0-9]{1,3}))?$');
        IF part[1] IS NOT NULL THEN
            bounds := ARRAY[low, high];
        ELSE
            SELECT array_agg(coalesce(array_position(names, word) - 1 + low,
                                      CASE WHEN word ~ '^[0-9]{1,2}$' THEN word::integer END) ORDER BY n)
            INTO bounds
            FROM unnest(ARRAY[part[2], coalesce(part[3], part[2])]) WITH ORDINALITY w (word, n);
        END IF;
        -- a step needs a range
        IF part[2] IS NOT NULL AND part[3] IS NULL AND part[4] IS NOT NULL
           OR (bounds[1] >= low AND bounds[2] <= high AND bounds[1] <= bounds[2] AND coalesce(part[4], '1')::integer > 0) IS NOT TRUE THEN
            RETURN NULL;
        END IF;
        field_values := field_values || ARRAY(SELECT generate_series(bounds[1], bounds[2], coalesce(part[4], '1')::integer));
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT v FROM unnest(field_values) v ORDER BY v);
END
$$;
COMMENT ON FUNCTION tablesync.cron_field(text, integer, integer, text[]) IS 'values of one field of a cron expression; NULL if in doubt';

/*
 * Where pg_cron lives: cron.database_name is shown to superusers only, and all
 * it tells is which database has the extension.
 */
CREATE FUNCTION tablesync.cron_home(OUT database text, OUT here boolean, OUT zone text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    database := current_setting('cron.database_name', true);
    -- who has the extension has its schema: nobody else can have put a "cron" there
    here := coalesce(database = current_database(), false) AND EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_cron');
    zone := coalesce(nullif(current_setting('cron.timezone', true), ''), 'GMT');    -- before pg_cron 1.6 always GMT
END
$$;
COMMENT ON FUNCTION tablesync.cron_home() IS 'database of pg_cron (NULL if it is not loaded), whether that is this one, and its time zone';

/*
 * When pg_cron starts a job for the first time after a moment.  NULL if never,
 * or if in doubt: an expression that is not plain, or a change of the clock.
 * pg_cron 1.4 accepts @yearly, but never starts it.
 */
CREATE FUNCTION tablesync.cron_next(schedule text, after timestamptz, zone text DEFAULT NULL)
RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    zone_name text := coalesce(zone, (SELECT h.zone FROM tablesync.cron_home() h));
    field text[] := regexp_split_to_array(btrim(CASE schedule WHEN '@hourly' THEN '0 * * * *'
                                                              WHEN '@daily' THEN '0 0 * * *'
                                                              WHEN '@midnight' THEN '0 0 * * *'
                                                              WHEN '@weekly' THEN '0 0 * * 0'
                                                              WHEN '@monthly' THEN '0 0 1 * *'
                                                              ELSE schedule END, E' \t'), '[ \t]+');
    minutes integer[] := tablesync.cron_field(field[1], 0, 59, '{}');
    hours integer[] := tablesync.cron_field(field[2], 0, 23, '{}');
    month_days integer[] := tablesync.cron_field(field[3], 1, 31, '{}');
    months integer[] := tablesync.cron_field(field[4], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}');
    week_days integer[] := tablesync.cron_field(field[5], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}');
    any_day boolean := field[3] LIKE '*%' OR field[5] LIKE '*%';
    earliest timestamp := date_trunc('minute', after AT TIME ZONE zone_name) + interval '1 minute';
    day date := earliest::date;
    on_month_day boolean;
    on_week_day boolean;
    minute_of_day integer;
    next_start timestamptz;
BEGIN
    IF cardinality(field) <> 5 OR minutes IS NULL OR hours IS NULL OR month_days IS NULL OR months IS NULL OR week_days IS NULL
       OR earliest IS NULL OR NOT isfinite(earliest) THEN
        RETURN NULL;
    END IF;
    FOR n IN 0 .. 3000 LOOP    -- 29 February may be eight years away
        on_month_day := EXTRACT(day FROM day)::integer = ANY (month_days);
        on_week_day := EXTRACT(dow FROM day)::integer = ANY (week_days) OR EXTRACT(isodow FROM day)::integer = ANY (week_days);
        IF EXTRACT(month FROM day)::integer = ANY (months)
           AND (on_month_day AND on_week_day OR NOT any_day AND (on_month_day OR on_week_day)) THEN
            minute_of_day := CASE WHEN n > 0 THEN hours[1] * 60 + minutes[1] ELSE
                (SELECT least((SELECT min(h.hour * 60 + m.minute) FROM unnest(minutes) m (minute)
                               WHERE h.hour = ANY (hours) AND m.minute >= EXTRACT(minute FROM earliest)),
                              (SELECT min(later) * 60 + minutes[1] FROM unnest(hours) later WHERE later > h.hour))
                 FROM (SELECT EXTRACT(hour FROM earliest)::integer) h (hour)) END;
            EXIT WHEN minute_of_day IS NOT NULL;
        END IF;
        day := day + 1;
    END LOOP;
    next_start := (day + minute_of_day * interval '1 minute') AT TIME ZONE zone_name;
    -- hours that the clock skips or repeats
    IF next_start AT TIME ZONE zone_name <> day + minute_of_day * interval '1 minute'
       OR (next_start - after < interval '1 day'
           AND (next_start AT TIME ZONE zone_name) - (after AT TIME ZONE zone_name) <> next_start - after) THEN
        RETURN NULL;
    END IF;
    RETURN next_start;
END
$$;
COMMENT ON FUNCTION tablesync.cron_next(text, timestamptz, text) IS 'first start by a cron expression after a moment; NULL if never or in doubt';

/* Every job of a replica has a name that begins like this. */
CREATE FUNCTION tablesync.job_prefix(replica oid)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('tablesync %s.%s:', d.oid, replica) FROM pg_database d WHERE d.datname = current_database();
$$;
COMMENT ON FUNCTION tablesync.job_prefix(oid) IS 'how names of a replica''s jobs begin: OIDs of database and replica';

/* How names of the jobs begin that watch over the replicas of one role each. */
CREATE FUNCTION tablesync.watch_prefix()
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('tablesync watch %s.', d.oid) FROM pg_database d WHERE d.datname = current_database();
$$;
COMMENT ON FUNCTION tablesync.watch_prefix() IS 'how names of the watchdogs'' jobs begin; the OID of the role follows';

/* Name, command, database and role of the job for a replica, and of the watchdog for its owner. */
CREATE FUNCTION tablesync.job_definition(replica regclass, OUT name text, OUT command text, OUT database text, OUT role name,
                                         OUT watch_name text, OUT watch_command text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    name := format('%s %s.%s', tablesync.job_prefix(replica), current_database(), replica);
    WHILE octet_length(name) > 63 LOOP    -- pg_cron's column is of type name
        name := left(name, -1);
    END LOOP;
    command := format('CALL tablesync.run_scheduled(%s)', replica::oid);
    database := current_database();
    role := (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = replica);
    watch_name := tablesync.watch_prefix() || (SELECT c.relowner FROM pg_class c WHERE c.oid = replica);
    watch_command := 'SELECT tablesync.watch()';
END
$$;
COMMENT ON FUNCTION tablesync.job_definition(regclass) IS 'what pg_cron has to know to run a replica';

/*
 * What pg_cron will do for a replica, as far as it can be known: its own job
 * where it lives in this database, else what was recorded.  NULL if the job is
 * gone or switched off, or pg_cron not loaded.
 *
 * Jobs are read with the definer's rights, so the rights of who asks are looked
 * up by name; who may not see the replica gets back what he brought.
 */
CREATE FUNCTION tablesync.cron_schedule(replica regclass, recorded text)
RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home record := tablesync.cron_home();
    asking name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    replica_owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = replica);
BEGIN
    IF recorded IS NULL OR home.database IS NULL THEN
        RETURN NULL;
    END IF;
    IF home.database <> current_database()
       OR (pg_has_role(asking, 'pg_monitor', 'USAGE') OR pg_has_role(asking, replica_owner, 'USAGE')) IS NOT TRUE THEN
        RETURN recorded;
    END IF;
    IF NOT home.here THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT j.schedule FROM cron.job j JOIN pg_roles r ON r.rolname = j.username
            WHERE starts_with(j.jobname::text, tablesync.job_prefix(replica))
              AND j.active AND j.database = current_database() AND pg_has_role(r.oid, replica_owner, 'USAGE')
            ORDER BY j.jobid LIMIT 1);
END
$$;
COMMENT ON FUNCTION tablesync.cron_schedule(regclass, text) IS 'schedule by which pg_cron runs a replica now; the recorded one where that can''t be known';

/*
 * Does a start that pg_cron makes now have anything to do?  Starts that were
 * due during a long run come all at once when it is over; the first one makes
 * the replica fresh, and the others find here that none was due since then.
 */
CREATE FUNCTION tablesync.due(replica regclass)
RETURNS SETOF regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_start timestamptz;
    next_start timestamptz;
BEGIN
    PERFORM tablesync.check_replica($1);
    SELECT r.started_at INTO last_start FROM tablesync.run r WHERE r.replica = $1 ORDER BY r.run_id DESC LIMIT 1;
    SELECT tablesync.cron_next(tablesync.cron_schedule(s.replica, s.schedule), last_start) INTO next_start
    FROM tablesync.schedule s WHERE s.replica = $1;
    IF next_start IS NULL OR next_start <= clock_timestamp()
       OR EXISTS (SELECT FROM tablesync.live_runs() l WHERE l.replica = $1) THEN
        RETURN NEXT $1;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.due(regclass) IS 'the replica, unless a run has started since its schedule was last due';

/*
 * Jobs follow the record: without a record no job, and never two.  A replica
 * can be dropped whatever has become of pg_cron.
 */
CREATE FUNCTION tablesync.follow_schedule()
RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home record := tablesync.cron_home();
    replica oid := coalesce(NEW.replica, OLD.replica);
BEGIN
    IF home.here THEN
        PERFORM cron.unschedule(j.jobid) FROM cron.job j
        WHERE starts_with(j.jobname::text, tablesync.job_prefix(replica)) AND j.jobid IS DISTINCT FROM NEW.cron_job_id;
        PERFORM cron.unschedule(j.jobid) FROM cron.job j    -- watchdogs with nothing left to watch
        WHERE starts_with(j.jobname::text, tablesync.watch_prefix())
          AND NOT EXISTS (SELECT FROM tablesync.schedule s JOIN pg_class c ON c.oid = s.replica
                          WHERE tablesync.watch_prefix() || c.relowner = j.jobname::text);
    ELSIF home.database IS NOT NULL AND (TG_OP = 'DELETE' AND OLD.cron_job_id IS NOT NULL OR OLD.cron_job_id <> NEW.cron_job_id) THEN
        RAISE WARNING 'job % of pg_cron is still there', OLD.cron_job_id
            USING DETAIL = format('pg_cron is in database "%s".', home.database),
                  HINT = format('In that database: SELECT cron.unschedule(%s);', OLD.cron_job_id);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'jobs "%" of pg_cron could not be unscheduled: %', tablesync.job_prefix(replica), SQLERRM
        USING HINT = 'Look for them in cron.job.';
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.follow_schedule() IS 'trigger: unschedules the jobs of a replica that its schedule does not name';
REVOKE ALL ON FUNCTION tablesync.follow_schedule() FROM PUBLIC;
CREATE TRIGGER follow_schedule AFTER INSERT OR DELETE OR UPDATE OF cron_job_id ON tablesync.schedule
    FOR EACH ROW EXECUTE FUNCTION tablesync.follow_schedule();

/* A paused replica missed no start; a restored one has no job here. */
CREATE FUNCTION tablesync.renew_schedule()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    forgotten text;
BEGIN
    IF NEW.home = OLD.home THEN
        UPDATE tablesync.schedule s SET since = clock_timestamp() WHERE s.replica = NEW.replica;
        RETURN NULL;
    END IF;
    UPDATE tablesync.schedule s SET cron_job_id = NULL WHERE s.replica = NEW.replica;    -- that number means nothing here
    DELETE FROM tablesync.schedule s WHERE s.replica = NEW.replica RETURNING s.schedule INTO forgotten;
    IF FOUND THEN
        RAISE NOTICE 'replica % is not scheduled here', NEW.replica
            USING HINT = format('SELECT tablesync_schedule(%L, %L);', NEW.replica, forgotten);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.renew_schedule() IS 'trigger: a schedule counts from when its replica is resumed';
CREATE TRIGGER renew_schedule AFTER UPDATE OF enabled, home ON tablesync.replica
    FOR EACH ROW WHEN (NEW.enabled AND (NOT OLD.enabled OR NEW.home <> OLD.home))
    EXECUTE FUNCTION tablesync.renew_schedule();

/* An error with the way out unless pg_cron can be used from here. */
CREATE FUNCTION tablesync.check_cron(replica regclass, schedule text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home record := tablesync.cron_home();
    job record := tablesync.job_definition(replica);
BEGIN
    IF home.database IS NULL THEN
        RAISE EXCEPTION 'pg_cron is not loaded'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Schedules are kept and started by the extension pg_cron.',
                  HINT = format('Install it, add pg_cron to shared_preload_libraries, set cron.database_name = %L, restart the server '
                                'and use CREATE EXTENSION pg_cron; or let another scheduler call tablesync_run(%L).',
                                current_database(), replica);
    ELSIF home.database <> current_database() THEN
        RAISE EXCEPTION 'pg_cron is in database "%", not in this one', home.database
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Jobs of pg_cron can be made only there.',
                  HINT = format('As a superuser in database "%s": SELECT cron.schedule_in_database(%L, %L, %L, %L, %L); '
                                'Then here, with the number that it returns: SELECT tablesync_schedule(%L, %L, job_id => <number>);',
                                home.database, job.name, schedule, job.command, job.database, job.role, replica, schedule);
    ELSIF NOT home.here THEN
        RAISE EXCEPTION 'extension pg_cron does not exist'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'As a superuser in this database: CREATE EXTENSION pg_cron;';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_cron(regclass, text) IS 'an error unless pg_cron can be used from this database';

/* Have pg_cron start runs of a replica as the replica's owner. */
CREATE FUNCTION tablesync.schedule_job(replica regclass, schedule text)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job record := tablesync.job_definition(replica);
    previous_role text := current_setting('role');
    job_id bigint;
BEGIN
    IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        PERFORM cron.schedule_in_database(job.watch_name, '* * * * *', job.watch_command, job.database, job.role::text, true);
        RETURN cron.schedule_in_database(job.name, schedule, job.command, job.database, job.role::text, true);
    END IF;
    IF NOT has_schema_privilege(job.role, 'cron', 'USAGE') THEN
        RAISE EXCEPTION 'role "%" may not use pg_cron', job.role
            USING ERRCODE = 'insufficient_privilege', DETAIL = 'The job belongs to the owner of the replica.',
                  HINT = format('As a superuser in this database: GRANT USAGE ON SCHEMA cron TO %I;', job.role);
    END IF;
    PERFORM set_config('role', job.role, true);    -- only superusers may name another role
    PERFORM cron.schedule(job.watch_name, '* * * * *', job.watch_command);
    job_id := cron.schedule(job.name, schedule, job.command);
    PERFORM set_config('role', previous_role, true);
    RETURN job_id;
END
$$;
COMMENT ON FUNCTION tablesync.schedule_job(regclass, text) IS 'creates or changes the job for a replica in pg_cron';

CREATE FUNCTION tablesync_schedule(replica regclass, schedule text, job_id bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_job_id bigint := job_id;
BEGIN
    PERFORM tablesync.check_replica($1);
    IF schedule IS NULL THEN
        RAISE EXCEPTION 'schedule must not be NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = format('Use tablesync_unschedule(%L) to end a schedule.', $1);
    END IF;
    IF job_id IS NULL THEN
        PERFORM tablesync.check_cron($1, $2);
        new_job_id := tablesync.schedule_job($1, $2);
    ELSIF (SELECT h.here FROM tablesync.cron_home() h) THEN
        RAISE EXCEPTION 'job_id is only for a job that was scheduled in another database'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'pg_cron is in this database: leave job_id out.';
    END IF;
    INSERT INTO tablesync.schedule AS s (replica, schedule, cron_job_id) VALUES ($1, $2, new_job_id)
    ON CONFLICT ON CONSTRAINT schedule_pkey
    DO UPDATE SET schedule = excluded.schedule, cron_job_id = excluded.cron_job_id, since = excluded.since;
    RETURN new_job_id;
END
$$;
COMMENT ON FUNCTION tablesync_schedule(regclass, text, bigint)
    IS 'lets pg_cron run a replica by a cron expression; returns the job''s number (job_id records a job that was made where pg_cron lives)';

CREATE FUNCTION tablesync_unschedule(replica regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_replica($1);
    DELETE FROM tablesync.schedule s WHERE s.replica = $1;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION tablesync_unschedule(regclass) IS 'ends the schedule of a replica; false if it has none';
/*
 * views.sql: what people look at
 *
 * They read the tables with the rights of the extension's owner, and show what
 * tablesync.sees() lets the current user see.
 */

CREATE FUNCTION tablesync.live_progress()
RETURNS TABLE (pid integer, run_id bigint, replica oid, phase integer, chunks_done bigint, chunks_total bigint,
               rows_scanned bigint, rows_estimated bigint, phase_started timestamptz, throttled_usec bigint,
               slowness bigint, progressed_at timestamptz)
LANGUAGE C STRICT
AS 'MODULE_PATHNAME', 'tsync_live_progress';
COMMENT ON FUNCTION tablesync.live_progress() IS 'what live workers publish about their progress';

CREATE VIEW tablesync_runs WITH (security_barrier = true) AS
SELECT r.run_id,
       r.replica,
       r.kind,
       tablesync.run_status(r) AS status,
       r.started_at,
       r.finished_at,
       coalesce(r.finished_at, CASE WHEN tablesync.run_status(r) = 'running' THEN pg_catalog.clock_timestamp() END)
           - r.started_at AS duration,
       r.rows_scanned,
       r.chunks,
       r.chunks_differing,
       r.inserted,
       r.updated,
       r.deleted,
       r.source_time,
       r.consistency,
       CASE WHEN r.source_digest IS NOT NULL THEN
           pg_catalog.jsonb_build_object(
               'source', pg_catalog.jsonb_build_object('rows', r.source_rows, 'digest', pg_catalog.to_hex(r.source_digest)),
               'replica', pg_catalog.jsonb_build_object('rows', r.replica_rows, 'digest', pg_catalog.to_hex(r.replica_digest)),
               'equal', r.source_rows = r.replica_rows AND r.source_digest = r.replica_digest)
       END AS proof,
       r.sqlstate,
       CASE WHEN tablesync.owns(r.replica) THEN r.message END AS message,
       r.pid
FROM tablesync.run r
WHERE tablesync.sees(r.replica);
GRANT SELECT ON tablesync_runs TO PUBLIC;
COMMENT ON VIEW tablesync_runs IS 'one row per run, with what it did and the proof it ended with';
COMMENT ON COLUMN tablesync_runs.status IS 'running, succeeded, failed, cancelled or crashed';
COMMENT ON COLUMN tablesync_runs.rows_scanned IS 'rows of the source that the run compared';
COMMENT ON COLUMN tablesync_runs.source_time IS 'time spent waiting for statements at the source';
COMMENT ON COLUMN tablesync_runs.proof IS 'rows and digest of both sides after the run, and whether they are equal';

CREATE VIEW tablesync_progress WITH (security_barrier = true) AS
SELECT p.run_id,
       r.replica,
       ('{schema,load,index,scan,confirm,apply}'::pg_catalog.text[])[p.phase + 1] AS phase,
       p.chunks_done,
       nullif(p.chunks_total, 0) AS chunks_total,
       p.rows_scanned,
       p.rows_estimated,
       pg_catalog.round(CASE WHEN p.rows_estimated > 0
                        THEN least(100.0 * p.rows_scanned / p.rows_estimated, 100.0) END, 1) AS percent,
       (p.rows_scanned / s.seconds)::pg_catalog.int8 AS rows_per_second,
       CASE WHEN p.rows_scanned > 0 THEN
           pg_catalog.make_interval(secs => pg_catalog.round((greatest(p.rows_estimated - p.rows_scanned, 0)
                                                             * s.seconds / p.rows_scanned)::pg_catalog.numeric, 1)::pg_catalog.float8)
       END AS eta,
       p.throttled_usec * '1 microsecond'::pg_catalog.interval AS throttled_for,
       CASE WHEN p.slowness > 0 THEN
           pg_catalog.format('the source takes %s times as long per row as usual', pg_catalog.round(p.slowness / 100.0, 1))
       END AS reason
FROM tablesync.live_progress() p
JOIN tablesync.run r ON r.run_id = p.run_id AND r.pid = p.pid
CROSS JOIN LATERAL (SELECT greatest(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.phase_started)::pg_catalog.float8, 0.001)) s (seconds)
WHERE tablesync.sees(r.replica);
GRANT SELECT ON tablesync_progress TO PUBLIC;
COMMENT ON VIEW tablesync_progress IS 'one row per live run: phase, rows so far, estimated end';
COMMENT ON COLUMN tablesync_progress.phase IS 'schema, load, index, scan, confirm or apply';
COMMENT ON COLUMN tablesync_progress.rows_estimated IS 'rows the current phase has to deal with, as far as known';
COMMENT ON COLUMN tablesync_progress.eta IS 'estimated time until the current phase ends';
COMMENT ON COLUMN tablesync_progress.throttled_for IS 'time rested so far to spare the source';
COMMENT ON COLUMN tablesync_progress.reason IS 'why the run rests longer than max_source_load asks for, if it does';

CREATE VIEW tablesync_status WITH (security_barrier = true) AS
SELECT t.replica,
       t.source,
       CASE WHEN NOT t.enabled OR t.home <> tablesync.home() THEN 'paused'
            WHEN last.status = 'running' AND NOT t.loaded THEN 'loading'
            WHEN last.status = 'running' THEN 'running'
            WHEN last.run_id IS NULL THEN 'never_run'
            WHEN last.status IN ('failed', 'crashed', 'cancelled') THEN 'failed'
            WHEN t.freshness < pg_catalog.clock_timestamp() - success.finished_at THEN 'stale'
            ELSE 'ok'
       END AS state,
       success.replica_rows AS rows,
       success.finished_at AS last_success,
       pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - success.finished_at) AS staleness,
       last.run_id AS last_run_id,
       last.inserted,
       last.updated,
       last.deleted,
       last.finished_at - last.started_at AS duration,
       plan.schedule,
       CASE WHEN t.enabled THEN tablesync.cron_next(plan.schedule, pg_catalog.clock_timestamp()) END AS next_run,
       CASE WHEN tablesync.owns(t.replica) THEN
           CASE WHEN t.home <> tablesync.home() THEN 'copied from another database; tablesync_resume() starts it here'
                WHEN last.status = 'crashed' THEN 'the worker of the last run ended unexpectedly; the next run goes on'
                ELSE last.message END
       END AS message,
       t.retry_after,
       verified.oldest_proof
FROM tablesync.replica t
LEFT JOIN tablesync.schedule s ON s.replica = t.replica
CROSS JOIN LATERAL (
    SELECT CASE WHEN t.home = tablesync.home() THEN tablesync.cron_schedule(t.replica, s.schedule) END OFFSET 0
) plan (schedule)
LEFT JOIN LATERAL (
    SELECT r.run_id, tablesync.run_status(r) AS status, r.inserted, r.updated, r.deleted,
           r.started_at, r.finished_at, r.message
    FROM tablesync.run r
    WHERE r.replica = t.replica AND (r.kind <> 'verify' OR r.status = 'running') ORDER BY r.run_id DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT r.finished_at, r.replica_rows
    FROM tablesync.run r WHERE r.replica = t.replica AND r.status = 'succeeded' AND r.kind <> 'verify' ORDER BY r.run_id DESC LIMIT 1
) success ON true
CROSS JOIN LATERAL (
    SELECT CASE WHEN pg_catalog.bool_and(c.verified_at IS NOT NULL) THEN pg_catalog.min(c.verified_at) END
    FROM tablesync.chunk c WHERE c.replica = t.replica
) verified (oldest_proof)
WHERE tablesync.sees(t.replica);
GRANT SELECT ON tablesync_status TO PUBLIC;
COMMENT ON VIEW tablesync_status IS 'one row per replica: its state, freshness and last run';
COMMENT ON COLUMN tablesync_status.state IS 'ok, running, loading, stale, failed, paused or never_run';
COMMENT ON COLUMN tablesync_status.rows IS 'rows of the replica after the last successful run';
COMMENT ON COLUMN tablesync_status.staleness IS 'time since the last successful run ended';
COMMENT ON COLUMN tablesync_status.schedule IS 'cron expression that starts the replica''s runs';
COMMENT ON COLUMN tablesync_status.next_run IS 'when the schedule starts the next run; NULL while paused, or where it can''t be told';
COMMENT ON COLUMN tablesync_status.message IS 'what the last run has to say';
COMMENT ON COLUMN tablesync_status.retry_after IS 'scheduled runs wait until then, because the last ones failed';
COMMENT ON COLUMN tablesync_status.oldest_proof IS 'every column of every row was compared with the source since then; NULL if some never was';

CREATE VIEW tablesync_alerts WITH (security_barrier = true) AS
SELECT a.alert_id,
       a.replica,
       a.kind,
       a.severity,
       a.since,
       CASE WHEN tablesync.owns(a.replica) THEN a.message END AS message,
       CASE WHEN tablesync.owns(a.replica) THEN a.hint END AS hint
FROM tablesync.alert a
WHERE a.closed_at IS NULL AND tablesync.sees(a.replica)
UNION ALL
SELECT NULL,
       c.replica,
       c.kind,
       c.severity,
       c.since,
       c.message,
       c.hint
FROM tablesync.condition c
WHERE NOT EXISTS (SELECT FROM tablesync.alert a
                  WHERE a.replica = c.replica AND a.kind = c.kind AND a.closed_at IS NULL);
GRANT SELECT ON tablesync_alerts TO PUBLIC;
COMMENT ON VIEW tablesync_alerts IS 'one row per problem that is not over';
COMMENT ON COLUMN tablesync_alerts.alert_id IS 'NULL where only this view has noticed: nobody has been told yet';
COMMENT ON COLUMN tablesync_alerts.kind IS 'run_failed, stale, delete_guard, schema_changed, drift, source_went_back or worker_unavailable';
COMMENT ON COLUMN tablesync_alerts.severity IS 'warning: may pass by itself; critical: somebody has to do something';

CREATE VIEW tablesync_alert_history WITH (security_barrier = true) AS
SELECT a.alert_id,
       a.replica,
       a.kind,
       a.severity,
       a.since,
       a.last_seen,
       a.closed_at,
       a.occurrences,
       a.run_id,
       a.sqlstate,
       CASE WHEN tablesync.owns(a.replica) THEN a.message END AS message
FROM tablesync.alert a
WHERE tablesync.sees(a.replica);
GRANT SELECT ON tablesync_alert_history TO PUBLIC;
COMMENT ON VIEW tablesync_alert_history IS 'one row per problem, also of those that are over';
COMMENT ON COLUMN tablesync_alert_history.occurrences IS 'how often it was seen while it was open';
/*
 * totals.sql: counters that only grow, for monitoring
 *
 * Sums over tablesync.run would shrink when old history is deleted, and a
 * counter that shrinks looks to Prometheus like a restart: everything is
 * counted again.  So each run is added up when it ends.
 *
 * No foreign key to tablesync.replica: its check would make the end of a run
 * wait for whoever drops the replica, who waits for the run.
 */

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
);
COMMENT ON TABLE tablesync.total IS 'what all runs of a replica add up to, those no longer in tablesync.run too; read it through the view tablesync_totals';
COMMENT ON COLUMN tablesync.total.failures_in_a_row IS 'runs that have failed or crashed since the last success';
ALTER TABLE tablesync.total ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON tablesync.total USING (tablesync.owns(replica));
GRANT SELECT, INSERT, UPDATE, DELETE ON tablesync.total TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('tablesync.total', '');

CREATE FUNCTION tablesync.count_run()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO tablesync.total AS t
    VALUES (NEW.replica, (NEW.status = 'succeeded')::integer, (NEW.status = 'failed')::integer,
            (NEW.status = 'cancelled')::integer, (NEW.status = 'crashed')::integer, (NEW.status IN ('failed', 'crashed'))::integer,
            NEW.rows_scanned, NEW.inserted, NEW.updated, NEW.deleted,
            coalesce(NEW.finished_at - NEW.started_at, '0'), NEW.source_time)
    ON CONFLICT (replica) DO UPDATE
    SET succeeded = t.succeeded + excluded.succeeded,
        failed = t.failed + excluded.failed,
        cancelled = t.cancelled + excluded.cancelled,
        crashed = t.crashed + excluded.crashed,
        failures_in_a_row = CASE WHEN NEW.status = 'succeeded' THEN 0 ELSE t.failures_in_a_row + excluded.failures_in_a_row END,
        rows_scanned = t.rows_scanned + excluded.rows_scanned,
        inserted = t.inserted + excluded.inserted,
        updated = t.updated + excluded.updated,
        deleted = t.deleted + excluded.deleted,
        duration = t.duration + excluded.duration,
        source_time = t.source_time + excluded.source_time;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.count_run() IS 'trigger: adds a run that has ended to tablesync.total';
CREATE TRIGGER count_run AFTER UPDATE OF status ON tablesync.run
    FOR EACH ROW WHEN (OLD.status = 'running' AND NEW.status <> 'running')
    EXECUTE FUNCTION tablesync.count_run();

CREATE FUNCTION tablesync.forget_total()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM tablesync.total t WHERE t.replica = OLD.replica;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.forget_total() IS 'trigger: a replica that is removed takes its totals with it';
CREATE TRIGGER forget_total AFTER DELETE ON tablesync.replica
    FOR EACH ROW EXECUTE FUNCTION tablesync.forget_total();

/* A crash that no later run has recorded yet is counted already. */
CREATE VIEW tablesync_totals WITH (security_barrier = true) AS
SELECT r.replica,
       coalesce(t.succeeded, 0) AS succeeded,
       coalesce(t.failed, 0) AS failed,
       coalesce(t.cancelled, 0) AS cancelled,
       coalesce(t.crashed, 0) + unrecorded.crashes AS crashed,
       coalesce(t.failures_in_a_row, 0) + unrecorded.crashes AS failures_in_a_row,
       coalesce(t.rows_scanned, 0) AS rows_scanned,
       coalesce(t.inserted, 0) AS inserted,
       coalesce(t.updated, 0) AS updated,
       coalesce(t.deleted, 0) AS deleted,
       coalesce(t.duration, '0') AS duration,
       coalesce(t.source_time, '0') AS source_time
FROM tablesync.replica r
LEFT JOIN tablesync.total t ON t.replica = r.replica
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS crashes
    FROM tablesync.run q
    WHERE q.replica = r.replica AND q.status = 'running' AND tablesync.run_status(q) = 'crashed'
) unrecorded
WHERE tablesync.sees(r.replica);
GRANT SELECT ON tablesync_totals TO PUBLIC;
COMMENT ON VIEW tablesync_totals IS 'one row per replica: what all its runs add up to; the figures only grow, except failures_in_a_row';
COMMENT ON COLUMN tablesync_totals.failures_in_a_row IS 'runs that have failed or crashed since the last success';
COMMENT ON COLUMN tablesync_totals.rows_scanned IS 'rows of the source that runs have compared';
COMMENT ON COLUMN tablesync_totals.duration IS 'time that runs have taken';
COMMENT ON COLUMN tablesync_totals.source_time IS 'time that runs have waited for statements at the source';
/*
 * health.sql: is all well?
 *
 * A problem is a bit, so that many replicas make one number:
 *
 *    1  failed    the last run that has ended did not succeed
 *    2  stale     the last success is older than the replica's freshness
 *    4  missed    the schedule has started no run for tablesync.missed_after, or its job is gone
 *    8  hanging   a run has made no progress for tablesync.hang_after
 *   16  alert     an alert is open
 *   32  blind     nothing to judge: no replica that the current user may see
 *
 * 2 and 8 are critical, an alert is what it says, the others are warnings.
 * Paused replicas are not judged, but for their alerts: a run may have paused
 * them.
 */

CREATE FUNCTION tablesync.is_hanging(progressed_at timestamptz)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_is_hanging';
COMMENT ON FUNCTION tablesync.is_hanging(timestamptz) IS 'whether a moment is longer ago than tablesync.hang_after';

CREATE FUNCTION tablesync.is_missed(expected timestamptz)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_is_missed';
COMMENT ON FUNCTION tablesync.is_missed(timestamptz) IS 'whether a moment is longer ago than tablesync.missed_after';

CREATE VIEW tablesync.health WITH (security_barrier = true) AS
WITH scheduled AS (
    SELECT t.replica, t.state, t.schedule, t.last_success,
           tablesync.cron_next(t.schedule, greatest(s.since, latest.started_at, latest.finished_at, pg_catalog.pg_postmaster_start_time()))
               AS expected,
           s.schedule AS recorded
    FROM tablesync_status t
    LEFT JOIN tablesync.schedule s ON s.replica = t.replica
    LEFT JOIN LATERAL (
        SELECT r.started_at, r.finished_at FROM tablesync.run r WHERE r.replica = t.replica ORDER BY r.run_id DESC LIMIT 1
    ) latest ON true
), problem AS (
    SELECT s.replica, 1 AS flag, 'warning' AS severity,
           pg_catalog.format('run %s %s', ended.run_id,
                             CASE ended.status WHEN 'cancelled' THEN 'was cancelled' ELSE 'has ' || ended.status END) AS problem
    FROM scheduled s
    CROSS JOIN LATERAL (
        SELECT two.run_id, two.status
        FROM (SELECT r.run_id, tablesync.run_status(r) AS status
              FROM tablesync.run r WHERE r.replica = s.replica AND r.kind <> 'verify' ORDER BY r.run_id DESC LIMIT 2) two
        WHERE two.status <> 'running' ORDER BY two.run_id DESC LIMIT 1
    ) ended
    WHERE ended.status <> 'succeeded'
    UNION ALL
    SELECT s.replica, 2, 'critical',
           CASE WHEN s.last_success IS NULL THEN pg_catalog.format('never succeeded, freshness is %s', t.freshness)
                ELSE pg_catalog.format('last success %s ago, freshness is %s',
                                       pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - s.last_success), t.freshness) END
    FROM scheduled s
    JOIN tablesync.replica t ON t.replica = s.replica
    WHERE t.freshness < pg_catalog.clock_timestamp() - coalesce(s.last_success, t.added_at)
    UNION ALL
    SELECT s.replica, 4, 'warning',
           CASE WHEN s.schedule IS NULL THEN pg_catalog.format('pg_cron has no active job for schedule "%s"', s.recorded)
                ELSE pg_catalog.format('schedule "%s" has not started the run of %s', s.schedule, s.expected) END
    FROM scheduled s
    WHERE s.recorded IS NOT NULL
      AND (s.schedule IS NULL
           OR (tablesync.is_missed(s.expected) AND s.state NOT IN ('running', 'loading')))
    UNION ALL
    SELECT s.replica, 8, 'critical',
           pg_catalog.format('run %s has made no progress since %s', p.run_id, pg_catalog.date_trunc('second', p.progressed_at))
    FROM scheduled s
    JOIN tablesync.live_progress() p ON p.replica = s.replica
    WHERE tablesync.is_hanging(p.progressed_at)
    UNION ALL
    SELECT a.replica, 16, a.severity, pg_catalog.format('alert %s since %s', a.kind, pg_catalog.date_trunc('second', a.since))
    FROM tablesync_alerts a
    WHERE a.kind NOT IN ('run_failed', 'stale')    -- bits 1 and 2
)
SELECT s.replica, s.state, p.flag, p.severity, p.problem
FROM scheduled s
LEFT JOIN problem p ON p.replica = s.replica AND (s.state <> 'paused' OR p.flag = 16);
GRANT SELECT ON tablesync.health TO PUBLIC;
COMMENT ON VIEW tablesync.health IS 'one row per replica and problem, and one for a replica without any; tablesync_health() sums it up';
COMMENT ON COLUMN tablesync.health.flag IS 'bit of the problem: 1 failed, 2 stale, 4 missed, 8 hanging, 16 alert';
COMMENT ON COLUMN tablesync.health.severity IS 'warning or critical';
COMMENT ON COLUMN tablesync.health.problem IS 'what is wrong, without anything that a run''s message may quote';

CREATE FUNCTION tablesync_health(OUT status text, OUT flags integer, OUT summary text)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH seen AS MATERIALIZED (
        SELECT h.*, row_number() OVER (ORDER BY h.severity = 'critical' DESC NULLS LAST, h.replica::text, h.flag) AS n
        FROM tablesync.health h
    ), total AS (
        SELECT count(DISTINCT s.replica) AS replicas,
               count(DISTINCT s.replica) FILTER (WHERE s.state = 'paused') AS paused,
               count(s.problem) AS problems,
               coalesce(bit_or(s.flag), 0) | CASE WHEN count(*) = 0 THEN 32 ELSE 0 END AS flags,
               coalesce(bool_or(s.severity = 'critical'), false) AS critical,
               string_agg(s.replica || ': ' || s.problem, '; ' ORDER BY s.n) FILTER (WHERE s.problem IS NOT NULL AND s.n <= 5) AS problem_list
        FROM seen s
    ), verdict AS (
        SELECT CASE WHEN critical THEN 'critical' WHEN flags <> 0 THEN 'warning' ELSE 'ok' END AS status, *
        FROM total
    )
    SELECT status, flags,
           translate(status || ': '
                     || CASE WHEN replicas = 0 THEN format('no replica that role %s may see', current_user)
                             WHEN problems = 0 THEN replicas || CASE replicas WHEN 1 THEN ' replica' ELSE ' replicas' END
                             ELSE problem_list || CASE WHEN problems > 5 THEN format('; and %s more', problems - 5) ELSE '' END END
                     || CASE WHEN paused > 0 THEN format(' (%s paused)', paused) ELSE '' END, E'\n\r', '  ')
    FROM verdict;
$$;
COMMENT ON FUNCTION tablesync_health() IS 'is all well? status is ok, warning or critical; flags adds up 1 failed, 2 stale, 4 missed (schedule), 8 hanging, 16 alert, 32 nothing visible; summary is one line';
/*
 * preflight.sql: the checks of tablesync_check
 *
 * Each is a function tablesync.preflight_<name>(settings).  It returns what it
 * found, perhaps with a hint, or raises what is wrong.  check.sql performs
 * them: the first few in the caller's session, those that need the source in
 * a worker like that of a run.  None of them writes, none reads rows of the
 * source.
 */

CREATE FUNCTION tablesync.ask_source(query text)
RETURNS void
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_ask_source';
COMMENT ON FUNCTION tablesync.ask_source(text) IS 'runs a query that the source must do alone; only in the worker of tablesync_check()';

CREATE FUNCTION tablesync.check_digest(replica regclass, server_version integer)
RETURNS void
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_check_digest';
COMMENT ON FUNCTION tablesync.check_digest(regclass, integer) IS 'an error unless the source would compute digests; only in the worker of tablesync_check()';

CREATE FUNCTION tablesync.worker_slots(OUT used integer, OUT total integer)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_worker_slots';
COMMENT ON FUNCTION tablesync.worker_slots() IS 'background workers that run now, and max_worker_processes';

CREATE FUNCTION tablesync.fail_check(message text, hint text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '%', message
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = coalesce(hint, '');
END
$$;
COMMENT ON FUNCTION tablesync.fail_check(text, text) IS 'what a check raises when it finds a problem';

/* Role that the source knows us as, as far as the user mapping of a role tells us. */
CREATE FUNCTION tablesync.remote_role(role oid, server oid)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT quote_ident(o.option_value)
                     FROM pg_user_mappings m, pg_options_to_table(m.umoptions) o
                     WHERE m.srvid = server AND m.umuser IN (0, role) AND o.option_name = 'user'
                     ORDER BY m.umuser DESC LIMIT 1),
                    '<role of the user mapping>');
$$;
COMMENT ON FUNCTION tablesync.remote_role(oid, oid) IS 'the role at the source that a role here is mapped to';

/* ---- checks made here ---- */

CREATE FUNCTION tablesync.preflight_state(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    resume text := format('SELECT tablesync_resume(%L);', settings.replica);
BEGIN
    IF settings.home <> tablesync.home() THEN
        PERFORM tablesync.fail_check('the replica was copied from another database and is paused', resume);
    ELSIF NOT settings.enabled THEN
        PERFORM tablesync.fail_check('the replica is paused', resume);
    END IF;
    detail := CASE WHEN settings.loaded THEN 'enabled, loaded'
                   WHEN settings.load_position IS NOT NULL THEN 'enabled; the next run goes on with the load'
                   ELSE 'enabled; the next run loads it' END;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_state(tablesync.replica) IS 'check: would a run be started?';

CREATE FUNCTION tablesync.preflight_owner(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = settings.replica);
    role_name name := pg_get_userbyid(table_owner);
    problems text;
    hints text;
BEGIN
    SELECT string_agg(p.problem, '; '), string_agg(p.remedy, ' ')
    INTO problems, hints
    FROM (
        SELECT format('role "%s" may not log in, and workers connect as the owner', role_name),
               format('ALTER ROLE %I LOGIN;', role_name)
        FROM pg_roles r
        WHERE r.oid = table_owner AND NOT r.rolcanlogin AND current_setting('server_version_num')::integer < 170000
        UNION ALL
        SELECT format('role "%s" may not connect to this database', role_name),
               format('GRANT CONNECT ON DATABASE %I TO %I;', current_database(), role_name)
        WHERE NOT has_database_privilege(table_owner, current_database(), 'CONNECT')
        UNION ALL
        SELECT DISTINCT format('role "%s" may not use schema %I', role_name, n.nspname),
               format('GRANT USAGE ON SCHEMA %I TO %I;', n.nspname, role_name)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid IN (settings.replica, settings.source) AND NOT has_schema_privilege(table_owner, n.oid, 'USAGE')
        UNION ALL
        SELECT format('role "%s" may not %s %s', role_name, string_agg(w.privilege, ', '), w.relation),
               format('GRANT %s ON %s TO %I;', string_agg(w.privilege, ', '), w.relation, role_name)
        FROM (VALUES (settings.source, 'SELECT'), (settings.replica, 'SELECT'), (settings.replica, 'INSERT'),
                     (settings.replica, 'UPDATE'), (settings.replica, 'DELETE')) w (relation, privilege)
        WHERE NOT has_table_privilege(table_owner, w.relation, w.privilege)
        GROUP BY w.relation
    ) p (problem, remedy);
    IF problems IS NOT NULL THEN
        PERFORM tablesync.fail_check(problems, hints);
    END IF;
    detail := format('%s may log in, read the foreign table and write the replica', role_name);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_owner(tablesync.replica) IS 'check: may the owner do here what a run does?';

CREATE FUNCTION tablesync.preflight_mapping(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = settings.replica);
    server oid := (tablesync.source_target(settings.source)).server;
BEGIN
    IF server IS NULL THEN
        PERFORM tablesync.fail_check(format('foreign table %s does not exist any more', settings.source),
                                     'Create it again, and add the replica again with tablesync_add().');
    END IF;
    PERFORM tablesync.check_mapping(pg_get_userbyid(table_owner), server);
    detail := format('%s reads as %s', pg_get_userbyid(table_owner), tablesync.remote_role(table_owner, server));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_mapping(tablesync.replica) IS 'check: has the owner a user mapping?';

CREATE FUNCTION tablesync.preflight_worker_slots(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    slots record := tablesync.worker_slots();
BEGIN
    detail := format('%s of %s worker processes are in use', slots.used, slots.total);
    hint := format('ALTER SYSTEM SET max_worker_processes = %s; needs a restart.', slots.total + 8);
    IF slots.used >= slots.total THEN
        PERFORM tablesync.fail_check(detail, hint);
    ELSIF slots.used + settings.workers < slots.total THEN
        hint := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_worker_slots(tablesync.replica) IS 'check: is there a background worker for a run?';

/* Without pg_cron somebody else has to start runs: worth a hint, not a failure. */
CREATE FUNCTION tablesync.preflight_pg_cron(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cron_database text;
    version text := (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'pg_cron');
BEGIN
    BEGIN
        cron_database := current_setting('cron.database_name', true);
    EXCEPTION WHEN insufficient_privilege THEN
        detail := 'pg_cron runs on this server, in a database that only administrators may look up';
        hint := 'An administrator sees it by: SHOW cron.database_name;';
    END;
    IF version IS NOT NULL THEN
        hint := NULL;
        detail := format('pg_cron %s is installed in this database', version);
    ELSIF cron_database IS NOT NULL THEN
        detail := format('pg_cron lives in database %s', cron_database);
        hint := format('Schedule from there: SELECT cron.schedule_in_database(%L, ''0 * * * *'', %L, %L);',
                       'tablesync ' || settings.replica, format('SELECT tablesync_run(%L)', settings.replica), current_database());
    ELSIF detail IS NULL THEN
        detail := 'pg_cron is not installed in this database: runs are started by hand or by other means';
        hint := 'To schedule runs here, add pg_cron to shared_preload_libraries, restart, and CREATE EXTENSION pg_cron.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_pg_cron(tablesync.replica) IS 'check: where is pg_cron?';

/* ---- checks made by a worker, as the owner ---- */

CREATE FUNCTION tablesync.preflight_connection(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server oid := (tablesync.source_target(settings.source)).server;
    server_name name;
    address text;
    answer text;
    message text;
BEGIN
    SELECT s.srvname, (SELECT string_agg(o.option_name || '=' || o.option_value, ' ' ORDER BY o.option_name)
                       FROM pg_options_to_table(s.srvoptions) o
                       WHERE o.option_name IN ('host', 'hostaddr', 'port', 'dbname', 'service'))
    INTO server_name, address
    FROM pg_foreign_server s WHERE s.oid = server;
    EXECUTE format('SELECT setting FROM %s WHERE name = ''server_version_num''', tablesync.source_catalog(server, 'pg_settings'))
    INTO answer;
    detail := format('server "%s" (%s) answers', server_name, coalesce(address, 'libpq''s defaults'));
EXCEPTION
    WHEN connection_exception THEN
        GET STACKED DIAGNOSTICS message = PG_EXCEPTION_DETAIL;
        PERFORM tablesync.fail_check(concat_ws(': ', SQLERRM, nullif(message, '')),
            format('If its address is wrong: ALTER SERVER %1$I OPTIONS (SET host .., SET port .., SET dbname ..); '
                   'if role or password: ALTER USER MAPPING FOR %2$I SERVER %1$I OPTIONS (SET password ..); '
                   'if neither, see pg_hba.conf and CONNECTION LIMIT there, and firewalls.', server_name, current_user));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_connection(tablesync.replica) IS 'check: does the source let the owner in?';

CREATE FUNCTION tablesync.preflight_session(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_source_session(settings.source);
    detail := 'read-only, and errors instead of hidden rows';
END
$$;
COMMENT ON FUNCTION tablesync.preflight_session(tablesync.replica) IS 'check: is the session at the source restricted as a run needs it?';

CREATE FUNCTION tablesync.preflight_server(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version integer := tablesync.check_source_server(settings.source);
BEGIN
    detail := format('PostgreSQL %s.%s, encoding %s on both sides, hash functions agree',
                     version / 10000, version % 10000, current_setting('server_encoding'));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_server(tablesync.replica) IS 'check: version, encoding and hash functions of the source';

CREATE FUNCTION tablesync.preflight_source_table(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    problem text := tablesync.source_kind_problem(relation.relkind, relation.has_children);
BEGIN
    IF problem IS NOT NULL THEN
        PERFORM tablesync.fail_check(problem, 'Replicate the tables behind it.');
    END IF;
    detail := format('%I.%I is a %stable', target.schema_name, target.table_name,
                     CASE relation.relkind WHEN 'p' THEN 'partitioned ' ELSE '' END);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_source_table(tablesync.replica) IS 'check: is there such a table at the source?';

/* Reads no row; the source checks privileges and policies before it reads the first. */
CREATE FUNCTION tablesync.read_nothing(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.ask_source(format('SELECT %s FROM %s LIMIT 0',
        (SELECT string_agg(quote_ident(c.column_name), ', ') FROM tablesync.replica_columns(settings.replica) c), settings.source));
END
$$;
COMMENT ON FUNCTION tablesync.read_nothing(tablesync.replica) IS 'an error unless the owner may read all columns and all rows of the source';

CREATE FUNCTION tablesync.preflight_privileges(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    role_name text := tablesync.remote_role((SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user), target.server);
BEGIN
    PERFORM tablesync.read_nothing(settings);
    detail := format('%s may read %I.%I', role_name, target.schema_name, target.table_name);
EXCEPTION
    WHEN insufficient_privilege THEN
        PERFORM tablesync.fail_check('the source says: ' || SQLERRM,
            format('At the source: GRANT USAGE ON SCHEMA %1$I TO %3$s; GRANT SELECT ON %1$I.%2$I TO %3$s;',
                   target.schema_name, target.table_name, role_name));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_privileges(tablesync.replica) IS 'check: may we read the whole source?';

CREATE FUNCTION tablesync.preflight_row_security(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
BEGIN
    detail := 'off at the source';
    IF relation.row_security THEN
        PERFORM tablesync.read_nothing(settings);
        detail := 'on at the source, but no policy hides rows from us';
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        PERFORM tablesync.fail_check('the source says: ' || SQLERRM,
            format('At the source: ALTER ROLE %s BYPASSRLS; or map to the owner of %I.%I. See also the check of privileges.',
                   tablesync.remote_role((SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user), target.server),
                   target.schema_name, target.table_name));
END
$$;
COMMENT ON FUNCTION tablesync.preflight_row_security(tablesync.replica) IS 'check: would policies hide rows from us?';

CREATE FUNCTION tablesync.preflight_key(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    key_list text := (SELECT string_agg(quote_ident(k), ', ') FROM unnest(settings.key_columns) k);
    attnums text;
    index_name text;
BEGIN
    PERFORM tablesync.source_key(settings.source, settings.key_columns);
    SELECT string_agg(s.c->>'attnum', ' ' ORDER BY k.n) INTO attnums
    FROM unnest(settings.key_columns) WITH ORDINALITY k (name, n)
    JOIN jsonb_array_elements(tablesync.source_shape(settings.source)) s (c) ON s.c->>'column' = k.name;
    -- OFFSET 0: indkey is text only here
    EXECUTE format('SELECT min(q.relname) FROM (SELECT c.relname, i.indkey FROM %s i JOIN %s c ON c.oid = i.indexrelid '
                   'WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL OFFSET 0) q '
                   'WHERE q.indkey || '' '' LIKE %L',
                   tablesync.source_catalog(target.server, 'pg_index'), tablesync.source_catalog(target.server, 'pg_class'),
                   relation.relid, attnums || ' %')
    INTO index_name;
    IF index_name IS NULL THEN
        PERFORM tablesync.fail_check(format('no index of the source begins with (%s) in this order: every page of a load would sort the whole table', key_list),
            format('SELECT tablesync_remove(%L); and add it again with key_columns in the order of an index.', settings.replica));
    END IF;
    detail := format('(%s), by index %I', key_list, index_name);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_key(tablesync.replica) IS 'check: has the source the key, and an index in its order?';

CREATE FUNCTION tablesync.preflight_types(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_source(settings.source, settings.key_columns, settings.version_column,
                                   CASE WHEN settings.adopted THEN 'row' ELSE settings.fingerprint END);
    detail := format('%s columns, each of the same type on both sides; compared by %s', jsonb_array_length(settings.shape),
                     CASE WHEN settings.adopted THEN 'all columns, until a run has succeeded'
                          WHEN settings.fingerprint = 'row' THEN 'all columns'
                          ELSE format('key and %I', settings.version_column) END);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_types(tablesync.replica) IS 'check: can every column be replicated exactly?';

CREATE FUNCTION tablesync.preflight_collation(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    sorted text;
    fuzzy text;
BEGIN
    SELECT string_agg(quote_ident(c.remote_name), ', ' ORDER BY c.attnum) INTO fuzzy
    FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
    LEFT JOIN pg_attribute a ON a.attrelid = settings.replica AND a.attname = c.remote_name AND NOT a.attisdropped
    WHERE c.problem LIKE 'its collation %'
       OR EXISTS (SELECT FROM pg_collation co WHERE co.oid = a.attcollation AND NOT co.collisdeterministic);
    IF fuzzy IS NOT NULL THEN
        PERFORM tablesync.fail_check(format('the collation of column %s is not deterministic: different values count as equal', fuzzy),
                                     'A column like that can''t be replicated exactly. Leave the table out, or change the collation.');
    END IF;
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO sorted
    FROM pg_attribute a
    WHERE a.attrelid = settings.replica AND a.attname = ANY (settings.key_columns) AND a.attcollation <> 0;
    detail := 'the key does not depend on how text is sorted';
    IF sorted IS NOT NULL THEN
        detail := format('key column %s is text, and the two sides may sort it differently', sorted);
        hint := 'Nothing to do. Only key columns before it divide the table into chunks; if it is the first one, one statement reads the whole table.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_collation(tablesync.replica) IS 'check: does a collation get in the way?';

CREATE FUNCTION tablesync.preflight_shape(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changes record;
BEGIN
    SELECT string_agg(s.detail, '; ') AS all_of_them, string_agg(s.problem, '; ') AS problems, string_agg(DISTINCT s.hint, ' ') AS hints
    INTO changes
    FROM tablesync.plan_evolution(settings, tablesync.source_shape(settings.source)) s;
    IF settings.on_schema_change = 'apply' AND changes.problems IS NOT NULL THEN
        PERFORM tablesync.fail_check(changes.problems, changes.hints);
    ELSIF settings.on_schema_change = 'pause' AND changes.all_of_them IS NOT NULL THEN
        PERFORM tablesync.fail_check(changes.all_of_them, 'The next run pauses the replica, as on_schema_change says.');
    END IF;
    detail := CASE WHEN changes.all_of_them IS NULL THEN 'the source is as it was when the replica was built'
              ELSE format('the next run does what on_schema_change says, which is %s: %s', settings.on_schema_change, changes.all_of_them) END;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_shape(tablesync.replica) IS 'check: has the source changed its shape?';

CREATE FUNCTION tablesync.preflight_replica_table(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text := (SELECT string_agg(c.problem, ' ') FROM tablesync.replica_columns(settings.replica) c);
BEGIN
    IF problem IS NOT NULL THEN
        PERFORM tablesync.fail_check(problem, 'Undo the change, or remove the replica with tablesync_remove() and add it again.');
    ELSIF NOT tablesync.has_key_index(settings.replica, settings.key_columns) THEN
        PERFORM tablesync.fail_check('the replica has no unique index on its key: rows would be looked up one by one',
            format('ALTER TABLE %s ADD PRIMARY KEY (%s);', settings.replica,
                   (SELECT string_agg(quote_ident(k), ', ') FROM unnest(settings.key_columns) k)));
    ELSIF (SELECT c.relforcerowsecurity FROM pg_class c WHERE c.oid = settings.replica) THEN
        PERFORM tablesync.fail_check('row security is forced on the owner: policies would hide rows from runs',
            format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY;', settings.replica));
    END IF;
    detail := 'it has the columns of its source, and an index on the key';
END
$$;
COMMENT ON FUNCTION tablesync.preflight_replica_table(tablesync.replica) IS 'check: does the replica fit its source?';

CREATE FUNCTION tablesync.preflight_statements(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_digest(settings.replica, tablesync.check_source_server(settings.source));
    detail := 'the source computes the digests; rows that are equal do not cross the network';
END
$$;
COMMENT ON FUNCTION tablesync.preflight_statements(tablesync.replica) IS 'check: does the source do the work of a run''s statements?';

/* Bytes of a row: the planner's figure, from statistics where there are any. */
CREATE FUNCTION tablesync.row_width(settings tablesync.replica)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT %s FROM %s',
                   (SELECT string_agg(quote_ident(c.column_name), ', ') FROM tablesync.replica_columns(settings.replica) c),
                   settings.replica)
    INTO plan;
    RETURN (plan->0->'Plan'->>'Plan Width')::integer;
END
$$;
COMMENT ON FUNCTION tablesync.row_width(tablesync.replica) IS 'bytes of an average row of a replica, as the planner sees it';

/*
 * What a run costs: by the last ten that compared, else by the speed of a
 * modest machine.  A chunk's digest is one row of some 100 bytes.
 */
CREATE FUNCTION tablesync.preflight_estimate(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows_compared_per_second CONSTANT double precision := 1000000;
    rows_loaded_per_second CONSTANT double precision := 250000;
    target record := tablesync.source_target(settings.source);
    row_count double precision := (tablesync.source_relation(target.server, target.schema_name, target.table_name)).estimated_rows;
    width integer := tablesync.row_width(settings);
    past record;
BEGIN
    SELECT count(*) AS runs, avg(r.rows_scanned) AS row_count, avg(EXTRACT(epoch FROM r.source_time)) AS seconds,
           avg(r.chunks * 100 + (r.inserted + r.updated) * width) AS bytes
    INTO past
    FROM (SELECT * FROM tablesync.run q
          WHERE q.replica = settings.replica AND q.status = 'succeeded' AND q.kind = 'sync'
          ORDER BY q.run_id DESC LIMIT 10) r;
    IF past.runs > 0 THEN
        detail := format('%s rows, about %s over the network, %s s at the source (average of the last %s runs)',
                         round(past.row_count), pg_size_pretty(round(past.bytes)), round(past.seconds, 3), past.runs);
        RETURN;
    END IF;
    IF row_count = 0 THEN
        hint := format('The source has no statistics of it. There: ANALYZE %I.%I;', target.schema_name, target.table_name);
    END IF;
    detail := format('about %s rows; ', row_count::bigint);
    IF NOT settings.loaded THEN
        detail := detail || format('the load transfers about %s in %s s; ',
                                   pg_size_pretty((row_count * width)::bigint), round((row_count / rows_loaded_per_second)::numeric, 2));
    END IF;
    detail := detail || format('a run takes about %s s at the source and transfers about %s bytes for each row that has changed '
                               '(assumed: %s rows compared and %s loaded in a second)',
                               round((row_count / rows_compared_per_second)::numeric, 2), width,
                               rows_compared_per_second, rows_loaded_per_second);
END
$$;
COMMENT ON FUNCTION tablesync.preflight_estimate(tablesync.replica) IS 'check: rows, bytes over the network and seconds at the source of a run';
/*
 * check.sql: tablesync_check, the look before the run
 *
 * One failure does not hide the others: an error of a check is its result.
 */

CREATE FUNCTION tablesync.check_in_worker(replica regclass)
RETURNS jsonb
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_check_in_worker';
COMMENT ON FUNCTION tablesync.check_in_worker(regclass) IS 'rows of tablesync.preflight_source(), found by a worker that is connected as the replica''s owner';

/* Make one check; what it raises becomes its result. */
CREATE FUNCTION tablesync.try_check(settings tablesync.replica, check_name text, OUT ok boolean, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text;
BEGIN
    EXECUTE format('SELECT * FROM tablesync.%I($1)', 'preflight_' || check_name) INTO detail, hint USING settings;
    ok := true;
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
        ok := false;
        detail := concat_ws(': ', message, nullif(detail, ''));
        hint := coalesce(nullif(hint, ''), format('Mend it, then SELECT * FROM tablesync_check(%L);', settings.replica));
END
$$;
COMMENT ON FUNCTION tablesync.try_check(tablesync.replica, text) IS 'makes one check; an error is a result';

/* The worker's part.  Without connection or table the others would only repeat why. */
CREATE FUNCTION tablesync.preflight_source(replica regclass)
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    IF NOT FOUND THEN
        check_name := 'connection';
        ok := false;
        detail := 'a worker does not see the replica';
        hint := 'Commit before you check it.';
        RETURN NEXT;
        RETURN;
    END IF;
    FOREACH check_name IN ARRAY '{connection,server,session,source_table,privileges,row_security,key,types,collation,shape,replica_table,statements,estimate}'::text[] LOOP
        SELECT c.ok, c.detail, c.hint INTO ok, detail, hint FROM tablesync.try_check(settings, check_name) c;
        IF NOT ok AND check_name IN ('connection', 'source_table') THEN
            detail := detail || ' (checks that need this were left out)';
        END IF;
        RETURN NEXT;
        EXIT WHEN NOT ok AND check_name IN ('connection', 'source_table');
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.preflight_source(regclass) IS 'the checks that need the source; made by a worker as the replica''s owner';

/* Start the worker and fetch its rows; that it can't be started is a result too. */
CREATE FUNCTION tablesync.try_worker(settings tablesync.replica)
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text;
BEGIN
    RETURN QUERY
        SELECT a.* FROM jsonb_to_recordset(tablesync.check_in_worker(settings.replica))
            AS a (check_name text, ok boolean, detail text, hint text);
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
        check_name := 'connection';
        ok := false;
        detail := concat_ws(': ', message, nullif(detail, '')) || ' (checks that need this were left out)';
        hint := coalesce(nullif(hint, ''), 'See the other failed checks, and the server log.');
        RETURN NEXT;
END
$$;
COMMENT ON FUNCTION tablesync.try_worker(tablesync.replica) IS 'rows of tablesync.preflight_source(), or why there are none';

CREATE FUNCTION tablesync.check_replicas(wanted regclass)
RETURNS TABLE (replica regclass, check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    IF wanted IS NOT NULL THEN
        PERFORM tablesync.check_replica(wanted);
    END IF;
    FOR settings IN
        SELECT * FROM tablesync.replica t
        WHERE tablesync.owns(t.replica) AND (t.replica = wanted OR wanted IS NULL)
        ORDER BY t.added_at, t.replica
    LOOP
        RETURN QUERY
            SELECT settings.replica, n.name, c.ok, c.detail, c.hint
            FROM unnest('{state,owner,mapping,worker_slots,pg_cron}'::text[]) WITH ORDINALITY n (name, position)
            CROSS JOIN LATERAL tablesync.try_check(settings, n.name) c
            ORDER BY n.position;
        RETURN QUERY
            SELECT settings.replica, w.* FROM tablesync.try_worker(settings) w;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.check_replicas(regclass) IS 'all checks of one replica, or of all';

CREATE FUNCTION tablesync_check(replica regclass DEFAULT NULL)
RETURNS TABLE (replica regclass, check_name text, ok boolean, detail text, hint text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM tablesync.check_replicas($1);
$$;
COMMENT ON FUNCTION tablesync_check(regclass) IS 'would a run work, and what would it cost?  One row per check, with what to do; without an argument for all replicas';
/*
 * add_schema.sql: tablesync_add for many tables at once
 *
 * A table that exists here and holds rows is never taken over by accident:
 * its name may be a coincidence, and a run would replace what it holds.
 */

/* Relations of a schema of the source; a partition names its parent. */
CREATE FUNCTION tablesync.source_tables(server oid, schema_name text)
RETURNS TABLE (table_name text, relkind "char", has_children boolean, parent text, parent_schema text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    classes regclass := tablesync.source_catalog(server, 'pg_class');
    namespaces regclass := tablesync.source_catalog(server, 'pg_namespace');
    parents regclass := tablesync.source_catalog(server, 'pg_inherits');
    schema_found boolean;
BEGIN
    EXECUTE format('SELECT count(*) > 0 FROM %s WHERE nspname = %L', namespaces, schema_name) INTO schema_found;
    IF NOT schema_found THEN
        RAISE EXCEPTION 'the source has no schema %', quote_ident(schema_name)
            USING ERRCODE = 'invalid_schema_name',
                  DETAIL = format('Looked for on server "%s".', (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = server)),
                  HINT = 'Names are taken as they are: no quotes, no folding to lower case.';
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT DISTINCT c.relname, c.relkind, c.relhassubclass AND i.inhparent IS NOT NULL, p.relname, pn.nspname '
        'FROM %1$s c JOIN %2$s n ON n.oid = c.relnamespace '
        'LEFT JOIN (SELECT DISTINCT inhparent FROM %3$s) i ON i.inhparent = c.oid '
        'LEFT JOIN %3$s h ON h.inhrelid = c.oid '
        'LEFT JOIN %1$s p ON p.oid = h.inhparent AND p.relkind = ''p'' '
        'LEFT JOIN %2$s pn ON pn.oid = p.relnamespace '
        'WHERE n.nspname = %4$L AND c.relkind = ANY (''{r,p,v,m,f}'')', classes, namespaces, parents, schema_name);
END
$$;
COMMENT ON FUNCTION tablesync.source_tables(oid, text) IS 'tables, views and foreign tables of a schema of the source';

/* Why a local name can't be given to the replica of a source; NULL if it can. */
CREATE FUNCTION tablesync.name_problem(existing regclass, server oid, remote_schema text, table_name text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known record;
    has_rows boolean;
BEGIN
    IF existing IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT t.* INTO known FROM tablesync.replica r, tablesync.source_target(r.source) t WHERE r.replica = existing;
    IF FOUND THEN
        RETURN CASE WHEN known.server = name_problem.server AND known.schema_name = remote_schema AND known.table_name = name_problem.table_name THEN
                        'it is a replica already'
                    ELSE format('%s is the replica of something else: %I.%I of server "%s"', existing, known.schema_name, known.table_name,
                                (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = known.server)) END;
    END IF;
    IF tablesync.owns(existing) AND (SELECT c.relkind IN ('r', 'p') FROM pg_class c WHERE c.oid = existing) THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', existing) INTO has_rows;
        IF has_rows THEN
            RETURN format('table %s exists and has rows; if a run may replace them, use tablesync_add()', existing);
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.name_problem(regclass, oid, text, text) IS 'why an existing table should not become the replica of a source without being named';

/* Add one of many tables.  The reason tells why it was not added. */
CREATE FUNCTION tablesync.try_add(server name, remote_schema text, table_name text, local_schema name, settings jsonb,
                                  OUT replica regclass, OUT added boolean, OUT reason text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_oid oid := (SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = server);
    replica_name text := format('%I.%I', local_schema, table_name);
    existing regclass := to_regclass(replica_name);
    detail text;
BEGIN
    added := false;
    reason := tablesync.name_problem(existing, server_oid, remote_schema, table_name);
    IF reason IS NOT NULL THEN
        replica := CASE WHEN reason = 'it is a replica already' THEN existing END;
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM tablesync.source_columns(server_oid, remote_schema, table_name) c
                   WHERE c.remote_name = settings->>'version_column' AND c.key_position IS NULL) THEN
        settings := settings - 'version_column';
        settings := jsonb_set(settings, '{fingerprint}', '"row"');
    END IF;
    replica := tablesync.add_replica(replica_name, existing, local_schema,
        tablesync.create_source(replica_name, existing, local_schema, server, format('%I.%I', remote_schema, table_name)),
        true, settings);
    added := true;
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
        replica := NULL;
        added := false;
        reason := concat_ws(': ', reason, nullif(detail, ''));
END
$$;
COMMENT ON FUNCTION tablesync.try_add(name, text, text, name, jsonb) IS 'adds a replica; an error undoes only this one, and is the reason';

/* Fail early with what would otherwise be the reason of every single table. */
CREATE FUNCTION tablesync.check_add_schema(server name, remote_schema text, local_schema text, only_tables name[], except_tables name[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_oid oid := (SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = server);
BEGIN
    IF server IS NULL OR remote_schema IS NULL OR local_schema IS NULL THEN
        RAISE EXCEPTION 'server, remote_schema and local_schema must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF server_oid IS NULL THEN
        RAISE EXCEPTION 'server "%" does not exist', server
            USING ERRCODE = 'undefined_object',
                  HINT = 'CREATE SERVER .. FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host .., dbname ..);';
    ELSIF NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = local_schema) THEN
        RAISE EXCEPTION 'schema "%" does not exist here', local_schema
            USING ERRCODE = 'invalid_schema_name', HINT = format('CREATE SCHEMA %I;', local_schema);
    ELSIF NOT has_schema_privilege(local_schema, 'CREATE') THEN
        RAISE EXCEPTION 'permission denied for schema %', quote_ident(local_schema)
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT CREATE ON SCHEMA %I TO %I;', local_schema, current_user);
    ELSIF only_tables && except_tables THEN
        RAISE EXCEPTION 'a table is named in only_tables and in except_tables' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM tablesync.check_mapping(current_user, server_oid);
    PERFORM tablesync.prepare_server(server);
END
$$;
COMMENT ON FUNCTION tablesync.check_add_schema(name, text, text, name[], name[]) IS 'an error if no table of a schema could be added';

/*
 * A partition comes with its parent.  It gets no row of its own, unless it was
 * asked for or the parent is in another schema.  A name that the source does
 * not have gets one: it is probably a typing error.
 */
CREATE FUNCTION tablesync.add_schema(server name, remote_schema text, local_schema text, only_tables name[], except_tables name[], settings jsonb)
RETURNS TABLE (source text, replica regclass, added boolean, reason text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation record;
BEGIN
    PERFORM tablesync.check_add_schema(server, remote_schema, local_schema, only_tables, except_tables);
    FOR relation IN
        SELECT coalesce(t.table_name, w.name) AS table_name, t.table_name IS NULL AS missing, t.parent, t.parent_schema,
               tablesync.source_kind_problem(t.relkind, t.has_children) AS problem
        FROM tablesync.source_tables((SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = server), remote_schema) t
        FULL JOIN (SELECT DISTINCT u.name::text FROM unnest(only_tables || except_tables) u (name)) w ON w.name = t.table_name
        WHERE t.table_name IS NULL
           OR (only_tables IS NULL OR t.table_name = ANY (only_tables))
              AND (except_tables IS NULL OR t.table_name <> ALL (except_tables))
              AND (only_tables IS NOT NULL OR t.parent IS NULL OR t.parent_schema <> remote_schema)
        ORDER BY 1
    LOOP
        source := format('%I.%I', remote_schema, relation.table_name);
        replica := NULL;
        added := false;
        reason := CASE WHEN relation.missing THEN 'the source has no such table'
                       WHEN relation.problem IS NOT NULL THEN relation.problem
                       WHEN relation.parent IS NOT NULL THEN
                           format('It is a partition of %I.%I, whose replica has its rows.', relation.parent_schema, relation.parent) END;
        IF reason IS NULL THEN
            SELECT a.replica, a.added, a.reason INTO replica, added, reason
            FROM tablesync.try_add(server, remote_schema, relation.table_name, local_schema, settings) a;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.add_schema(name, text, text, name[], name[], jsonb) IS 'adds the tables of a schema of the source, one by one';

CREATE FUNCTION tablesync_add_schema(
    server name,
    remote_schema text,
    local_schema text,
    only_tables name[] DEFAULT NULL,
    except_tables name[] DEFAULT NULL,
    version_column name DEFAULT NULL,
    fingerprint text DEFAULT NULL,
    consistency text DEFAULT 'auto',
    chunk_rows integer DEFAULT NULL,
    max_source_load double precision DEFAULT 1.0,
    max_delete_fraction double precision DEFAULT 0.2,
    on_schema_change text DEFAULT 'apply',
    drop_columns boolean DEFAULT false,
    freshness interval DEFAULT NULL,
    workers integer DEFAULT 2,
    enabled boolean DEFAULT true,
    trust_counters_for interval DEFAULT NULL,
    sync_group text DEFAULT NULL,
    verify_fraction double precision DEFAULT NULL)
RETURNS TABLE (source text, replica regclass, added boolean, reason text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM tablesync.add_schema($1, $2, $3, $4, $5,
        jsonb_build_object('version_column', $6, 'fingerprint', $7, 'consistency', $8, 'chunk_rows', $9, 'max_source_load', $10,
            'max_delete_fraction', $11, 'on_schema_change', $12, 'drop_columns', $13, 'freshness', $14, 'workers', $15, 'enabled', $16,
            'trust_counters_for', $17, 'sync_group', $18, 'verify_fraction', $19));
$$;
COMMENT ON FUNCTION tablesync_add_schema(name, text, text, name[], name[], name, text, text, integer, double precision, double precision, text, boolean, interval, integer, boolean, interval, text, double precision)
    IS 'adds every table of a schema of the source that has a usable key, and says why the others were not added';
