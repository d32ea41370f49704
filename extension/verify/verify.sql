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
        IF (SELECT r.kind FROM tablesync.all_runs r WHERE r.run_id = $2) = 'verify'
           OR NOT EXISTS (SELECT FROM tablesync.all_alerts a JOIN tablesync.all_runs r ON r.run_id = a.run_id
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

CREATE FUNCTION @extschema@.tablesync_verify(replica regclass, repair boolean DEFAULT false)
RETURNS TABLE (key jsonb, difference text, source jsonb, replica_row jsonb)
LANGUAGE C VOLATILE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_verify';
COMMENT ON FUNCTION @extschema@.tablesync_verify(regclass, boolean) IS 'compares every column of every row with the source and returns the rows that differ; repair makes them equal';
