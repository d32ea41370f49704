/*
 * horizon.sql: how far the source's time has come
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
    FOR seen IN EXECUTE    -- no server has so many sessions
        format('SELECT backend_xmin FROM %s WHERE backend_xmin IS NOT NULL LIMIT 10000',
               tablesync.source_catalog(target.server, 'pg_stat_activity'))
    LOOP
        IF horizon IS NULL OR tablesync.xid_precedes(horizon, seen) THEN
            horizon := seen;
        END IF;
    END LOOP;
    RETURN horizon;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN NULL;    -- then the versions alone have to tell
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
    seen_at timestamptz;
BEGIN
    horizon := (SELECT tablesync.source_horizon(t.source) FROM tablesync.replica t WHERE t.replica = $1);
    SELECT r.source_horizon, r.newest_version, r.finished_at INTO last_horizon, newest_version, seen_at
    FROM tablesync.run r
    WHERE r.replica = $1 AND r.status = 'succeeded' AND r.source_horizon IS NOT NULL
    ORDER BY r.run_id DESC LIMIT 1;
    -- the counter is modulo 2^32: 25,000 transactions a second come round to "before" in a day
    went_back := coalesce(tablesync.xid_precedes(horizon, last_horizon) AND seen_at > clock_timestamp() - interval '1 day', false);
END
$$;
COMMENT ON FUNCTION tablesync.source_time(regclass) IS 'how far the source has come, whether the last success had seen it further, and the newest version that was seen';
