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
CREATE FUNCTION tablesync.newest_xid(xids bigint[])
RETURNS bigint
LANGUAGE C IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_newest_xid';
COMMENT ON FUNCTION tablesync.newest_xid(bigint[]) IS 'the newest of some transaction ids, modulo 2^32';

CREATE FUNCTION tablesync.oldest_xid(xids bigint[])
RETURNS bigint
LANGUAGE C IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_oldest_xid';
COMMENT ON FUNCTION tablesync.oldest_xid(bigint[]) IS 'the oldest of some transaction ids, modulo 2^32';

/*
 * What a run must know before it believes that rows are gone; and what tells
 * whether a transaction id means what it meant: the oldest and the newest in use,
 * and since when the server's statistics are counted, which a crash, a failover
 * and a restored backup change.
 */
CREATE FUNCTION tablesync.source_time(replica regclass, ask boolean, OUT horizon bigint, OUT went_back boolean, OUT newest_version text,
                                      OUT oldest_xid bigint, OUT newest_xid bigint, OUT epoch text, OUT stands_still boolean,
                                      OUT source_instant timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_horizon bigint;
    seen_at timestamptz;
    image tablesync.source_image;
BEGIN
    IF ask THEN
        SELECT i.* INTO image
        FROM tablesync.replica t, tablesync.source_target(t.source) s, tablesync.source_image(s.server, s.schema_name, s.table_name, horizon => true) i
        WHERE t.replica = $1;
        horizon := tablesync.newest_xid(image.xmins);
        oldest_xid := tablesync.oldest_xid(image.xmins);
        newest_xid := tablesync.newest_xid(image.xids);
        epoch := extract(epoch FROM image.stats_reset)::text;
        source_instant := CASE WHEN isfinite(image.instant) THEN image.instant END;
    END IF;
    SELECT r.source_horizon, r.newest_version, r.finished_at INTO last_horizon, newest_version, seen_at
    FROM tablesync.run r
    WHERE r.replica = $1 AND r.status = 'succeeded' AND r.source_horizon IS NOT NULL
    ORDER BY r.run_id DESC LIMIT 1;
    -- the counter is modulo 2^32: 25,000 transactions a second come round to "before" in a day
    stands_still := coalesce(image.standby = 'on' AND horizon = last_horizon, false);    -- 14 and later tell
    went_back := coalesce(tablesync.xid_precedes(horizon, last_horizon) AND seen_at > clock_timestamp() - interval '1 day', false);
END
$$;
COMMENT ON FUNCTION tablesync.source_time(regclass, boolean) IS 'how far the source has come (if it is to be asked), whether the last success had seen it further, the newest version that was seen, whether it is a standby on which nothing has ended since, and what its clock says';
