/*
 * changes.sql: reading a feed
 *
 * Whoever may SELECT the feed reads it, with her own rights.  What she needs to
 * know of it besides (columns, keys, times of runs) is in tables of ours of which
 * she sees nothing: feed_of() looks whether she may read the feed and brings it.
 */

/* What a reader needs to know; arguments that make no sense end here. */
CREATE FUNCTION tablesync.describe_feed(replica regclass, since bigint, most integer)
RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.all_replicas;
    target record;
BEGIN
    SELECT * INTO settings FROM tablesync.all_replicas t WHERE t.replica = $1;
    IF since < 0 OR since > settings.feed_position THEN
        RAISE EXCEPTION 'position % is not in the feed of %', since, $1
            USING ERRCODE = 'invalid_parameter_value', DETAIL = format('Its newest position is %s.', settings.feed_position),
                  HINT = 'Positions count from 0, which is before the first change.'
                         || CASE WHEN since < 0 THEN '' ELSE ' If this one was read from a server that was lost, so was its run: start again.' END;
    ELSIF most < 1 THEN
        RAISE EXCEPTION 'invalid value for max_changes: %', most
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It must be greater than 0.';
    END IF;
    target := tablesync.source_target(settings.source);
    RETURN jsonb_build_object(
        'feed', settings.feed_table::oid::bigint, 'newest', settings.feed_position, 'pruned', settings.feed_pruned,
        'source_time', tablesync.source_time_of((SELECT r.run_id FROM tablesync.all_runs r WHERE r.replica = $1 AND r.status = 'succeeded'
                                                 ORDER BY r.run_id DESC LIMIT 1)),
        'columns', (SELECT jsonb_agg(jsonb_build_object('name', c.column_name, 'feed_name', c.feed_name, 'type', c.type::bigint, 'typmod', c.typmod,
                                                        'feed_type', c.feed_type::bigint, 'feed_typmod', c.feed_typmod, 'key', c.key_position))
                    FROM tablesync.feed_columns($1) c),
        'source', jsonb_build_object('version', (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'tablesync'), 'connector', 'tablesync',
                                     'name', (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = target.server),
                                     'db', (SELECT o.option_value FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o
                                            WHERE s.oid = target.server AND o.option_name = 'dbname'),
                                     'schema', target.schema_name, 'table', target.table_name),
        'runs', (SELECT coalesce(jsonb_agg(jsonb_build_object('run_id', f.run_id, 'first', f.first_position, 'last', f.last_position,
                                                              'applied_at', f.applied_at, 'source_time', f.source_time) ORDER BY f.last_position), '[]')
                 FROM tablesync.all_fed_runs f
                 WHERE f.replica = $1 AND f.last_position > since AND (most IS NULL OR f.first_position <= greatest(since, settings.feed_pruned) + most)));
END
$$;
COMMENT ON FUNCTION tablesync.describe_feed(regclass, bigint, integer) IS 'behind tablesync.feed_of()';

CREATE FUNCTION tablesync.feed_of(replica regclass, since bigint, most integer)
RETURNS jsonb
LANGUAGE C STABLE
AS 'MODULE_PATHNAME', 'tsync_feed_of';
COMMENT ON FUNCTION tablesync.feed_of(regclass, bigint, integer) IS 'what whoever may read a feed needs to know of it; an error for others';

/*
 * Up to where changes are missing after a position: there is none without a
 * successor, so this also notices what the feed's owner has deleted.
 */
CREATE FUNCTION tablesync.missing_until(since bigint, description jsonb)
RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newest bigint := (description->>'newest')::bigint;
    next bigint;
BEGIN
    EXECUTE format('SELECT min(c."position") FROM %s c WHERE c."position" > $1', (description->>'feed')::oid::regclass) INTO next USING since;
    RETURN CASE WHEN since < newest THEN least(next - 1, newest) ELSE since END;
END
$$;
COMMENT ON FUNCTION tablesync.missing_until(bigint, jsonb) IS 'the position itself if the changes after it are there, else the one before the next change';

/*
 * Changes after a position.  Who asks for some that are not kept any more is told
 * to start again, by a row that is in no table.
 */
CREATE FUNCTION tablesync.read_feed(since bigint, most integer, form text, description jsonb)
RETURNS TABLE ("position" bigint, run_id bigint, op text, key jsonb, before jsonb, after jsonb, source_time timestamptz, applied_at timestamptz, first_position bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
AS $$
DECLARE
    newest bigint := (description->>'newest')::bigint;
    present bigint;
    until bigint;
BEGIN
    present := tablesync.missing_until(since, description);
    IF since < present THEN
        RETURN QUERY SELECT present, NULL::bigint, 't', NULL::jsonb, NULL::jsonb, NULL::jsonb, NULL::timestamptz, NULL::timestamptz, NULL::bigint;
        since := present;
        most := most - 1;
    END IF;
    until := CASE WHEN most IS NULL OR most > newest - since THEN newest ELSE since + most END;
    RETURN QUERY EXECUTE format($sql$
        SELECT c."position", c.run_id, c.op::text,
               CASE WHEN c.op <> 't' THEN %2$s END,
               CASE c.op WHEN 'u' THEN CASE WHEN b.op IS NOT NULL THEN %3$s END WHEN 'd' THEN %4$s END,
               CASE WHEN c.op IN ('c', 'u') THEN %4$s END,
               r.source_time, r.applied_at, r.first
        FROM %1$s c
        LEFT JOIN %1$s b ON b."position" = c."position" AND b.op = 'b' AND c.op = 'u'
        LEFT JOIN jsonb_to_recordset($3) r (run_id bigint, first bigint, source_time timestamptz, applied_at timestamptz) ON r.run_id = c.run_id
        WHERE c."position" > $1 AND c."position" <= $2 AND c.op <> 'b'
        ORDER BY c."position"$sql$,
        (description->>'feed')::oid::regclass,
        tablesync.row_expression(description->'columns', form, 'c.', true, true),
        tablesync.row_expression(description->'columns', form, 'b.', true, false),
        tablesync.row_expression(description->'columns', form, 'c.', true, false))
        USING since, until, description->'runs';
END
$$;
COMMENT ON FUNCTION tablesync.read_feed(bigint, integer, text, jsonb) IS 'changes after a position, their rows in a form';

CREATE FUNCTION @extschema@.tablesync_changes(replica regclass, after bigint DEFAULT 0, max_changes integer DEFAULT NULL)
RETURNS TABLE ("position" bigint, run_id bigint, op text, key jsonb, before jsonb, after jsonb, source_time timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f."position", f.run_id, f.op, f.key, f.before, f.after, f.source_time
    FROM tablesync.read_feed(coalesce($2, 0), $3, 'plain', tablesync.feed_of($1, coalesce($2, 0), $3)) f;
$$;
COMMENT ON FUNCTION @extschema@.tablesync_changes(regclass, bigint, integer) IS 'what runs have changed in a replica after a position, one row per change: c inserted, u updated, d deleted, t start again';

CREATE FUNCTION tablesync.milliseconds(instant timestamptz)
RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT trunc(extract(epoch FROM instant) * 1000)::bigint;
$$;
COMMENT ON FUNCTION tablesync.milliseconds(timestamptz) IS 'milliseconds since 1970 in UTC';

/* The rows that a replica has now, as Debezium's snapshot has them, with the position from which on to go on. */
CREATE FUNCTION tablesync.snapshot_envelopes(replica regclass, most integer, description jsonb)
RETURNS TABLE ("position" bigint, key jsonb, value jsonb)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
AS $$
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT $1, %2$s, jsonb_build_object('before', NULL, 'after', %3$s, 'op', 'r', 'ts_ms', $2, 'source', $3, 'transaction', NULL)
        FROM %1$s c LIMIT $4$sql$,
        replica,
        tablesync.row_expression(description->'columns', 'debezium', 'c.', false, true),
        tablesync.row_expression(description->'columns', 'debezium', 'c.', false, false))
        USING (description->>'newest')::bigint, tablesync.milliseconds(statement_timestamp()),
              description->'source' || jsonb_build_object('txId', NULL, 'lsn', description->'newest',
                                                          'ts_ms', tablesync.milliseconds((description->>'source_time')::timestamptz), 'snapshot', 'true'),
              most;
END
$$;
COMMENT ON FUNCTION tablesync.snapshot_envelopes(regclass, integer, jsonb) IS 'the rows of a replica as envelopes';

CREATE FUNCTION tablesync.change_envelopes(since bigint, most integer, description jsonb)
RETURNS TABLE ("position" bigint, key jsonb, value jsonb)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f."position", f.key,
           jsonb_build_object('before', f.before, 'after', f.after, 'op', f.op, 'ts_ms', tablesync.milliseconds(f.applied_at),
                              'source', description->'source' || jsonb_build_object('txId', f.run_id, 'lsn', f."position",
                                                                                    'ts_ms', tablesync.milliseconds(f.source_time), 'snapshot', 'false'),
                              'transaction', CASE WHEN f.run_id IS NOT NULL AND f.first_position IS NOT NULL THEN
                                  jsonb_build_object('id', f.run_id::text, 'total_order', f."position" - f.first_position + 1,
                                                     'data_collection_order', f."position" - f.first_position + 1) END)
    FROM tablesync.read_feed($1, $2, 'debezium', description) f;
$$;
COMMENT ON FUNCTION tablesync.change_envelopes(bigint, integer, jsonb) IS 'changes after a position as envelopes';

CREATE FUNCTION @extschema@.tablesync_envelopes(replica regclass, after bigint DEFAULT 0, max_changes integer DEFAULT NULL)
RETURNS TABLE ("position" bigint, key jsonb, value jsonb)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    description jsonb := tablesync.feed_of($1, $2, $3);
BEGIN
    IF $2 IS NULL THEN
        RETURN QUERY SELECT * FROM tablesync.snapshot_envelopes($1, $3, description);
    ELSE
        RETURN QUERY SELECT * FROM tablesync.change_envelopes($2, $3, description);
    END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_envelopes(regclass, bigint, integer) IS 'changes after a position as Debezium writes them; the replica''s rows, to begin with, where it is NULL';

/*
 * The rows as they were after the last run before an instant: the present ones,
 * but of those that have changed since, what the first change has found.
 */
CREATE FUNCTION @extschema@.tablesync_as_of(replica regclass, at timestamptz)
RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
AS $$
DECLARE
    description jsonb := tablesync.feed_of($1, 0, NULL);
    since bigint;
    broken boolean := true;
BEGIN
    IF at IS NULL THEN
        RAISE EXCEPTION 'at must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    since := (SELECT max(r.last) FROM jsonb_to_recordset(description->'runs') r (last bigint, applied_at timestamptz) WHERE r.applied_at <= at);
    IF since IS NOT NULL AND tablesync.missing_until(since, description) > since THEN
        since := NULL;
    END IF;
    IF since IS NOT NULL THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s c WHERE c."position" > $1 AND c.op = ''t'')', (description->>'feed')::oid::regclass) INTO broken USING since;
    END IF;
    IF broken THEN
        RAISE EXCEPTION 'the feed of % does not tell how it was at %', $1, at
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = CASE WHEN since IS NULL THEN 'It begins later, or its changes of that time are not kept any more.'
                                ELSE 'The replica has changed since in a way that the feed does not show.' END,
                  HINT = format('See from when on it can tell: SELECT * FROM tablesync_changes(%L) WHERE op = ''t'';', $1);
    END IF;
    RETURN QUERY EXECUTE format($sql$
        WITH first AS (SELECT DISTINCT ON (%3$s) * FROM %2$s c WHERE c."position" > $1 AND c.op IN ('c', 'b', 'd') ORDER BY %3$s, c."position")
        SELECT %5$s FROM %1$s c WHERE NOT EXISTS (SELECT FROM first f WHERE %4$s)
        UNION ALL
        SELECT %6$s FROM first c WHERE c.op IN ('b', 'd')$sql$,
        $1, (description->>'feed')::oid::regclass,
        (SELECT string_agg(format('c.%I', c->>'feed_name'), ', ') FROM jsonb_array_elements(description->'columns') c WHERE c->>'key' IS NOT NULL),
        -- a feed has the database's collation; those of keys are deterministic, so any will do
        (SELECT string_agg(format('f.%I OPERATOR(pg_catalog.=) c.%I%s', c->>'feed_name', c->>'name', CASE WHEN t.typcollation <> 0 THEN ' COLLATE pg_catalog."C"' END), ' AND ')
         FROM jsonb_array_elements(description->'columns') c JOIN pg_type t ON t.oid = (c->>'type')::oid WHERE c->>'key' IS NOT NULL),
        tablesync.row_expression(description->'columns', 'plain', 'c.', false, false),
        tablesync.row_expression(description->'columns', 'plain', 'c.', true, false)) USING since;
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_as_of(regclass, timestamptz) IS 'the rows of a replica as they were after the last run before an instant';
