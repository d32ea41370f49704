/*
 * consumer.sql: who reads a feed, and how far each has come
 *
 * A consumer is a name that a role has given, and a position.  Its functions are
 * called by that role, or a member of it; doors (look.c) tell what is behind them
 * who calls.
 */

/* The consumer of a name: one's own first; who has the rights of several roles must say which. */
CREATE FUNCTION tablesync.find_consumer(caller oid, consumer text, also_of_own_replicas boolean)
RETURNS tablesync.all_consumers
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_ones tablesync.all_consumers[];
BEGIN
    found_ones := ARRAY(SELECT c FROM tablesync.all_consumers c
                        WHERE c.consumer = $2
                          AND (c.role = $1 OR pg_has_role($1, c.role, 'USAGE')
                               OR also_of_own_replicas AND EXISTS (SELECT FROM pg_class r WHERE r.oid = c.replica AND pg_has_role($1, r.relowner, 'USAGE')))
                        ORDER BY c.role = $1 DESC);
    IF cardinality(found_ones) = 0 THEN
        RAISE EXCEPTION 'there is no consumer %', coalesce(quote_literal(consumer), 'NULL')
            USING ERRCODE = 'undefined_object', HINT = 'Consumers are listed in tablesync_consumers; a new one: SELECT tablesync_consumer_add(''name'', ''replica'');';
    ELSIF cardinality(found_ones) > 1 AND (found_ones[1]).role <> $1 THEN
        RAISE EXCEPTION 'several roles have a consumer %', quote_literal(consumer)
            USING ERRCODE = 'ambiguous_parameter', HINT = format('SET ROLE %s;', (found_ones[1]).role);
    END IF;
    RETURN found_ones[1];
END
$$;
COMMENT ON FUNCTION tablesync.find_consumer(oid, text, boolean) IS 'the consumer that a role means by a name';

CREATE FUNCTION tablesync.record_add_consumer(caller oid, consumer text, replica regclass, after bigint)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.all_replicas;
BEGIN
    SELECT * INTO settings FROM tablesync.all_replicas t WHERE t.replica = $3;
    IF NOT coalesce(settings.feed AND has_table_privilege($1, settings.feed_table::oid, 'SELECT'), false) THEN
        RAISE EXCEPTION 'permission denied for the feed of %', $3 USING ERRCODE = 'insufficient_privilege';
    ELSIF consumer IS NULL OR consumer = '' OR length(consumer) > 200 THEN
        RAISE EXCEPTION 'invalid value for consumer: %', coalesce(quote_literal(left(consumer, 300)), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It must be a name of 1 to 200 characters.';
    ELSIF EXISTS (SELECT FROM tablesync.all_consumers c WHERE c.role = $1 AND c.consumer = $2) THEN
        RAISE EXCEPTION 'consumer % exists already', quote_literal(consumer)
            USING ERRCODE = 'duplicate_object', HINT = format('To begin anew: SELECT tablesync_consumer_remove(%L);', consumer);
    ELSIF (SELECT count(*) FROM tablesync.all_consumers c WHERE c.replica = $3) >= 1000 THEN    -- each run looks at all of them
        RAISE EXCEPTION 'the feed of % has 1000 consumers', $3
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Remove those that are gone: SELECT consumer, lag FROM tablesync_consumers ORDER BY lag DESC;';
    END IF;
    INSERT INTO tablesync.all_consumers (role, consumer, replica, "position")
    VALUES ($1, $2, $3, coalesce($4, settings.feed_position));
    RETURN coalesce($4, settings.feed_position);
END
$$;
COMMENT ON FUNCTION tablesync.record_add_consumer(oid, text, regclass, bigint) IS 'behind the door tablesync.add_consumer()';

CREATE FUNCTION tablesync.add_consumer(consumer text, replica regclass, after bigint)
RETURNS bigint
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_role_door';
COMMENT ON FUNCTION tablesync.add_consumer(text, regclass, bigint) IS 'door for tablesync_consumer_add(); returns the position of the consumer';

CREATE FUNCTION @extschema@.tablesync_consumer_add(consumer text, replica regclass, after bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_primary('tablesync_consumer_add()');
    PERFORM tablesync.feed_of($2, $3, NULL);    -- is there one, is it readable, and has it such a position?
    RETURN tablesync.add_consumer($1, $2, $3);
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_consumer_add(text, regclass, bigint) IS 'adds a consumer of a replica''s feed, from a position on, or from the newest; returns the position';

CREATE FUNCTION tablesync.record_remove_consumer(caller oid, consumer text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    it tablesync.all_consumers := tablesync.find_consumer($1, $2, true);
BEGIN
    DELETE FROM tablesync.all_consumers c WHERE c.role = it.role AND c.consumer = it.consumer;
END
$$;
COMMENT ON FUNCTION tablesync.record_remove_consumer(oid, text) IS 'behind the door tablesync.remove_consumer()';

CREATE FUNCTION tablesync.remove_consumer(consumer text)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_role_door';
COMMENT ON FUNCTION tablesync.remove_consumer(text) IS 'door for tablesync_consumer_remove()';

CREATE FUNCTION @extschema@.tablesync_consumer_remove(consumer text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tablesync.check_primary('tablesync_consumer_remove()');
    SELECT tablesync.remove_consumer($1);
$$;
COMMENT ON FUNCTION @extschema@.tablesync_consumer_remove(text) IS 'removes a consumer; the owner of a replica may remove those of its feed';

/* Until the transaction ends nobody else fetches or commits for this consumer: what it does with the changes is done once. */
CREATE FUNCTION tablesync.record_hold_consumer(caller oid, consumer text)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    it tablesync.all_consumers := tablesync.find_consumer($1, $2, false);
BEGIN
    SELECT * INTO it FROM tablesync.all_consumers c WHERE c.role = it.role AND c.consumer = it.consumer FOR UPDATE;
    IF NOT FOUND THEN
        it := tablesync.find_consumer($1, $2, false);    -- it was removed while we waited
    END IF;
    RETURN jsonb_build_object('replica', it.replica::oid::bigint, 'position', it."position");
END
$$;
COMMENT ON FUNCTION tablesync.record_hold_consumer(oid, text) IS 'behind the door tablesync.hold_consumer()';

CREATE FUNCTION tablesync.hold_consumer(consumer text)
RETURNS jsonb
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_role_door';
COMMENT ON FUNCTION tablesync.hold_consumer(text) IS 'door for tablesync_fetch(): what a consumer reads, and how far it has come; locked until the transaction ends';

/*
 * Of one snapshot: runs delete old changes.  Who is to start again gets nothing but the row that says so: all else
 * is in the rows that she will read then.
 */
CREATE FUNCTION tablesync.fetch_envelopes(replica regclass, since bigint, most integer)
RETURNS TABLE ("position" bigint, key jsonb, value jsonb)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT w."position", w.key, w.value
    FROM (SELECT e.*, max(e."position") FILTER (WHERE e.value->>'op' = 't') OVER ()
          FROM tablesync.change_envelopes($2, $3, tablesync.feed_of($1, $2, $3)) e) w ("position", key, value, start)
    WHERE w.start IS NULL OR w."position" = w.start AND w.value->>'op' = 't';
$$;
COMMENT ON FUNCTION tablesync.fetch_envelopes(regclass, bigint, integer) IS 'what tablesync_fetch returns for a consumer that has come so far';

CREATE FUNCTION @extschema@.tablesync_fetch(consumer text, max_changes integer DEFAULT 1000)
RETURNS TABLE ("position" bigint, key jsonb, value jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held jsonb;
BEGIN
    PERFORM tablesync.check_primary('tablesync_fetch()');
    held := tablesync.hold_consumer($1);
    RETURN QUERY SELECT * FROM tablesync.fetch_envelopes((held->>'replica')::oid::regclass, (held->>'position')::bigint, $2);
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_fetch(text, integer) IS 'the next changes for a consumer, as tablesync_envelopes returns them; the same again until it commits';

CREATE FUNCTION tablesync.record_commit_consumer(caller oid, consumer text, "position" bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held jsonb := tablesync.record_hold_consumer($1, $2);
    it tablesync.all_consumers := tablesync.find_consumer($1, $2, false);
    newest bigint := (SELECT t.feed_position FROM tablesync.all_replicas t WHERE t.replica = it.replica);
BEGIN
    IF $3 IS NULL THEN
        RAISE EXCEPTION 'position must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF $3 > newest THEN
        RAISE EXCEPTION 'position % is not in the feed of %', $3, it.replica
            USING ERRCODE = 'invalid_parameter_value', DETAIL = format('Its newest position is %s.', newest),
                  HINT = 'Commit the position of the last row that tablesync_fetch has returned. If a server was lost that has returned this one, so was its run: start again.';
    ELSIF $3 < (held->>'position')::bigint THEN
        RAISE EXCEPTION 'consumer % has already committed position %', quote_literal(consumer), held->>'position'
            USING ERRCODE = 'invalid_parameter_value', DETAIL = format('Position %s lies before it.', $3),
                  HINT = format('To read changes again: SELECT tablesync_consumer_remove(%1$L), tablesync_consumer_add(%1$L, %2$L, %3$s);', consumer, it.replica, greatest($3, 0));
    END IF;
    UPDATE tablesync.all_consumers c SET "position" = $3, committed_at = clock_timestamp()
    WHERE c.role = it.role AND c.consumer = it.consumer;
END
$$;
COMMENT ON FUNCTION tablesync.record_commit_consumer(oid, text, bigint) IS 'behind the door tablesync.commit_consumer()';

CREATE FUNCTION tablesync.commit_consumer(consumer text, "position" bigint)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_role_door';
COMMENT ON FUNCTION tablesync.commit_consumer(text, bigint) IS 'door for tablesync_commit()';

CREATE FUNCTION @extschema@.tablesync_commit(consumer text, "position" bigint)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tablesync.check_primary('tablesync_commit()');
    SELECT tablesync.commit_consumer($1, $2);
$$;
COMMENT ON FUNCTION @extschema@.tablesync_commit(text, bigint) IS 'notes that a consumer has dealt with all changes up to a position';

CREATE VIEW @extschema@.tablesync_consumers WITH (security_barrier = true) AS
SELECT c.consumer,
       c.replica,
       c."position",
       t.feed_position AS newest,
       t.feed_position - c."position" AS behind,
       coalesce(pg_catalog.clock_timestamp() - missed.applied_at, '0') AS lag
FROM tablesync.all_consumers c
JOIN tablesync.all_replicas t ON t.replica = c.replica
LEFT JOIN LATERAL (
    SELECT f.applied_at FROM tablesync.all_fed_runs f
    WHERE f.replica = c.replica AND f.last_position > c."position" ORDER BY f.last_position LIMIT 1
) missed ON true
WHERE pg_catalog.pg_has_role(c.role, 'USAGE') OR tablesync.sees(c.replica);
GRANT SELECT ON @extschema@.tablesync_consumers TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_consumers IS 'one row per consumer of a feed, and how far behind it is';
COMMENT ON COLUMN @extschema@.tablesync_consumers.consumer IS 'its name';
COMMENT ON COLUMN @extschema@.tablesync_consumers.replica IS 'the replica whose feed it reads';
COMMENT ON COLUMN @extschema@.tablesync_consumers."position" IS 'the last change that it has committed';
COMMENT ON COLUMN @extschema@.tablesync_consumers.newest IS 'the newest change in the feed';
COMMENT ON COLUMN @extschema@.tablesync_consumers.behind IS 'changes that it has not committed';
COMMENT ON COLUMN @extschema@.tablesync_consumers.lag IS 'time since the oldest of them was applied';

/* Consumers that have lost changes, or will soon: opens and closes the alert. */
CREATE FUNCTION tablesync.note_consumers(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    late text;
BEGIN
    SELECT string_agg(format('%s of role %s', quote_literal(c.consumer), c.role), ', ' ORDER BY c.role, c.consumer) INTO late
    FROM tablesync.all_consumers c
    JOIN tablesync.all_replicas t ON t.replica = c.replica
    WHERE c.replica = $1
      -- one that is new may begin where nothing is left, and is told to start
      AND (c.committed_at IS NOT NULL OR c.added_at < clock_timestamp() - coalesce(t.keep_changes, '1 day'))
      AND (c."position" < t.feed_pruned
           OR (SELECT f.applied_at FROM tablesync.all_fed_runs f WHERE f.replica = $1 AND f.last_position > c."position" ORDER BY f.last_position LIMIT 1)
              < clock_timestamp() - t.keep_changes);
    IF late IS NOT NULL THEN
        PERFORM tablesync.open_alert($1, 'consumer_behind', 'warning', format('consumers of the feed are behind for longer than keep_changes: %s', late),
                                     'Their next tablesync_fetch says to start again. Who is gone for good: SELECT tablesync_consumer_remove(consumer) FROM tablesync_consumers WHERE ..;');
    ELSIF EXISTS (SELECT FROM tablesync.all_alerts a WHERE a.replica = $1 AND a.kind = 'consumer_behind' AND a.closed_at IS NULL) THEN
        PERFORM tablesync.close_alert($1, 'consumer_behind');
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.note_consumers(regclass) IS 'opens or closes the alert about consumers that have fallen behind';

/* After a run: tells listeners that it has brought changes, and looks after the consumers. */
CREATE FUNCTION tablesync.settle_feed(replica regclass, run_id bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('tablesync', json_build_object('event', 'changes', 'replica', f.replica, 'run_id', f.run_id, 'position', f.last_position)::text)
    FROM tablesync.all_fed_runs f
    WHERE f.replica = $1 AND f.last_position = (SELECT t.feed_position FROM tablesync.all_replicas t WHERE t.replica = $1) AND f.run_id = $2;
    PERFORM tablesync.note_consumers($1);
END
$$;
COMMENT ON FUNCTION tablesync.settle_feed(regclass, bigint) IS 'wakes consumers after a run, and opens or closes the alert about them';
