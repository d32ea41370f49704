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
