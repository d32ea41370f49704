/* open.sql: what a run asks of a source before it reads rows, and what it refuses then */

/* What makes the source's fingerprints comparable with ours. */
CREATE FUNCTION tablesync.check_source_server(source regclass)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    image tablesync.source_image := tablesync.source_image(target.server, target.schema_name, target.table_name);
BEGIN
    IF image.encoding IS NULL OR image.hash IS NULL OR (image.server_version ~ '^[0-9]{5,7}$') IS NOT TRUE THEN
        RAISE EXCEPTION 'the source does not tell its version and encoding'
            USING ERRCODE = 'fdw_error', DETAIL = 'Its view pg_settings has no such rows.',
                  HINT = 'At the source: SELECT name, setting FROM pg_settings WHERE name IN (''server_version_num'', ''server_encoding'');';
    END IF;
    IF image.server_version::integer < 120000 THEN
        RAISE EXCEPTION 'the source runs PostgreSQL %', image.server_version::integer / 10000
            USING ERRCODE = 'feature_not_supported', HINT = 'PostgreSQL 12 or newer is supported.';
    END IF;
    IF image.encoding IS DISTINCT FROM current_setting('server_encoding') THEN
        RAISE EXCEPTION 'the source''s encoding is %, ours is %', image.encoding, current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Fingerprints of text depend on its bytes.',
                  HINT = 'Keep the replica in a database with the source''s encoding.';
    END IF;
    IF image.hash IS DISTINCT FROM hashtextextended('server_version_num', 0) THEN
        RAISE EXCEPTION 'the source''s hash functions differ from ours'
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Fingerprints would never agree; the two machines probably differ in byte order.';
    END IF;
    RETURN image.server_version::integer;
END
$$;
COMMENT ON FUNCTION tablesync.check_source_server(regclass) IS 'server_version_num of the source; an error if its values can''t be compared with ours by hash';

/*
 * Does a connection pooler in between keep the options of our sessions from the
 * source?  Then they are what the role there has; what postgres_fdw sets for its
 * session may be set on another one than that which answers.
 */
CREATE FUNCTION tablesync.is_pooled(server oid, image tablesync.source_image)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT image.options_arrive
        AND NOT EXISTS (SELECT FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o
                        WHERE s.oid = server AND o.option_name = 'options' AND o.option_value <> '');
$$;
COMMENT ON FUNCTION tablesync.is_pooled(oid, tablesync.source_image) IS 'whether the options of a session do not arrive at the source, and that was nobody''s wish';

/* Settings of the source session that a run relies on (connection.c asks for them). */
CREATE FUNCTION tablesync.check_source_session(source regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    image tablesync.source_image := tablesync.source_image(target.server, target.schema_name, target.table_name);
    pooled boolean := tablesync.is_pooled(target.server, image);
    found text;
    missing text;
BEGIN
    SELECT string_agg(format('%s is %s', w.name, coalesce(w.setting, 'unknown')), ', ' ORDER BY w.name DESC),
           string_agg(format('-c %s=%s', w.name, w.value), ' ' ORDER BY w.name DESC)
    INTO found, missing
    FROM (VALUES ('row_security', 'off', image.row_security, coalesce(image.policies OR image.relkind NOT IN ('r', 'p'), false)),
                 ('default_transaction_read_only', 'on', image.read_only, false),
                 ('lc_monetary', 'C', image.lc_monetary, coalesce('{790,791}'::oid[] && image.atttypids, false))) w (name, value, setting, needed)
    WHERE w.setting IS DISTINCT FROM w.value AND (w.needed OR NOT pooled);    -- through a pooler, what this table can't do without
    found := concat_ws(', ', found, CASE WHEN pooled THEN image.unlike END);
    IF found <> '' THEN
        RAISE EXCEPTION 'the session at the source is not restricted as a run needs it'
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = format('There, %s.', found),
                  HINT = CASE WHEN pooled THEN tablesync.pooler_hint(target.server)
                              ELSE (SELECT format('Add "%s" to the option "options" of server "%s", or drop that option.', missing, s.srvname)
                                    FROM pg_foreign_server s WHERE s.oid = target.server) END;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_source_session(regclass) IS 'an error if the session at the source is not restricted as a run needs it';

/*
 * Has the source still a key?  A primary key is part of the shape, whose change
 * is dealt with elsewhere; another unique index has to be looked for.
 */
CREATE FUNCTION tablesync.has_source_key(source regclass, shape jsonb, key_columns name[])
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    attnums integer[] := ARRAY(SELECT (c->>'attnum')::integer FROM jsonb_array_elements(shape) c WHERE c->>'column' = ANY (key_columns) ORDER BY 1);
BEGIN
    RETURN EXISTS (SELECT FROM jsonb_array_elements(shape) c WHERE c->>'key' IS NOT NULL) OR cardinality(attnums) <> cardinality(key_columns)
        OR tablesync.is_source_unique(target.server, target.schema_name, target.table_name, attnums);
END
$$;
COMMENT ON FUNCTION tablesync.has_source_key(regclass, jsonb, name[]) IS 'whether a source has a primary key, or a unique index on the columns that are the key of its replica';

/* Columns of a new shape that the old one does not have and that we may not read: names at the source. */
CREATE FUNCTION tablesync.unreadable_columns(source regclass, old jsonb, new jsonb)
RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    readable text[];
BEGIN
    IF NOT EXISTS (SELECT FROM tablesync.match_columns(old, new) m WHERE m.before IS NULL) THEN
        RETURN NULL;
    END IF;
    EXECUTE format('SELECT array_agg(column_name) FROM %s WHERE table_schema = %L AND table_name = %L AND privilege_type = ''SELECT''',
                   tablesync.source_catalog(target.server, 'column_privileges'), target.schema_name, target.table_name)
    INTO readable;
    IF readable IS NULL THEN    -- not by a grant, but as a superuser, say
        RETURN NULL;
    END IF;
    RETURN (SELECT array_agg(m.after->>'remote') FROM tablesync.match_columns(old, new) m
            WHERE m.before IS NULL AND m.after->>'remote' <> ALL (readable));
END
$$;
COMMENT ON FUNCTION tablesync.unreadable_columns(regclass, jsonb, jsonb) IS 'new columns of a source that we may not read';

/* A run that meets what tablesync_add() would have refused. */
CREATE FUNCTION tablesync.refuse_source(replica regclass, problem text, hint text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'the source of % can''t be replicated exactly any more', replica
        USING ERRCODE = 'TS003', DETAIL = problem, HINT = hint;
END
$$;
COMMENT ON FUNCTION tablesync.refuse_source(regclass, text, text) IS 'raises the error of a run whose source has become one that tablesync_add() refuses';

/*
 * What a run asks before it reads rows; "new_shape" is NULL while the source's
 * shape is the one known.  All that makes a replica inexact is looked at here, by
 * every run: what kind of relation it is, its key, types, labels, collations.
 */
CREATE FUNCTION tablesync.open_source(replica regclass, horizon boolean, OUT server_version integer, OUT estimated_rows double precision,
                                      OUT new_shape jsonb, OUT unreadable text[], OUT identity text, OUT whole boolean, OUT divided boolean, OUT as_known boolean,
                                      OUT look_key text, OUT pooled boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    target record;
    relation record;
    problem text;
    image tablesync.source_image;
    seen tablesync.source_image;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    target := tablesync.source_target(settings.source);
    whole := coalesce(settings.identity LIKE '% %', false)
        OR EXISTS (SELECT FROM jsonb_to_recordset(settings.shape) c ("collation" text, labels text[]) WHERE num_nonnulls(c."collation", c.labels) > 0);
    image := tablesync.source_image(target.server, target.schema_name, target.table_name, whole, horizon);    -- all that follows is in it
    whole := whole OR num_nonnulls(image.typids, image.children) > 0;
    pooled := tablesync.is_pooled(target.server, image);
    -- what looked like this to a run that had nothing to complain of is as good now, unless it takes types of ours; all that is looked at below is in it
    IF NOT whole THEN
        seen := image;
        seen.xmins := NULL;
        seen.xids := NULL;
        seen.stats_reset := NULL;
        seen.instant := NULL;
        seen.estimated_rows := NULL;
        look_key := md5(concat_ws(' ', seen::text, settings.shape::text, settings.key_columns::text, settings.on_schema_change, settings.source::oid,
            current_setting('server_version_num'),
            (SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped, a.attfdwoptions), ',' ORDER BY a.attnum)
             FROM pg_attribute a WHERE a.attrelid = settings.source AND a.attnum > 0)));
    END IF;
    IF look_key = settings.look_key THEN
        IF settings.source_is_view THEN
            PERFORM tablesync.check_null_keys(settings);
        END IF;
        server_version := image.server_version::integer;
        estimated_rows := image.estimated_rows;
        divided := image.relkind <> 'r';
        identity := tablesync.image_identity(image);    -- who is not divided has no other files
        as_known := (server_version, tablesync.files_of(identity)) IS NOT DISTINCT FROM (settings.source_version, settings.identity);
        RETURN;
    END IF;
    server_version := tablesync.check_source_server(settings.source);
    PERFORM tablesync.check_source_session(settings.source);
    relation := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    estimated_rows := relation.estimated_rows;
    new_shape := tablesync.source_shape(settings.source);
    problem := tablesync.source_kind_problem(relation.relkind, relation.has_children, settings.source_is_view);
    IF problem IS NOT NULL AND (settings.source_is_view OR NOT (relation.relkind IN ('v', 'm', 'f') AND settings.shape->0->'table' IS DISTINCT FROM new_shape->0->'table')) THEN
        PERFORM tablesync.refuse_source($1, problem, CASE WHEN settings.source_is_view THEN format('SELECT tablesync_remove(%L); and add it again without source_is_view.', $1)
            ELSE format('Undo it at the source; or replicate the tables behind it, and SELECT tablesync_remove(%L);', $1) END);
    END IF;
    IF NOT settings.source_is_view AND NOT tablesync.has_source_key(settings.source, new_shape, settings.key_columns) THEN
        PERFORM tablesync.refuse_source($1, format('No valid unique index of the source is on (%s) any more, so two rows may have the same key.',
                                                   array_to_string(settings.key_columns, ', ')),
                                        'Ask for the index, or for a primary key, at the source; or remove the replica, and add it again with another key.');
    END IF;
    new_shape := tablesync.wanted_shape(settings, new_shape);
    unreadable := tablesync.unreadable_columns(settings.source, settings.shape, new_shape);
    new_shape := (SELECT jsonb_agg(c.c ORDER BY c.n) FROM jsonb_array_elements(new_shape) WITH ORDINALITY c (c, n)
                  WHERE (c.c->>'remote' = ANY (unreadable)) IS NOT TRUE);
    IF settings.on_schema_change = 'ignore' THEN
        new_shape := tablesync.known_shape(settings.shape, new_shape);
    END IF;
    IF tablesync.shape_core(new_shape) = tablesync.shape_core(settings.shape)
       AND (settings.on_schema_change = 'ignore' OR NOT tablesync.lags_behind(settings.source, new_shape)) THEN
        new_shape := NULL;
    END IF;
    IF settings.source_is_view AND new_shape IS NULL THEN    -- else its columns may not be found yet
        PERFORM tablesync.check_null_keys(settings);
    END IF;
    identity := tablesync.source_identity(settings.source);
    divided := relation.relkind <> 'r' OR relation.has_children;
    as_known := new_shape IS NULL AND unreadable IS NULL
        AND (server_version, tablesync.files_of(identity)) IS NOT DISTINCT FROM (settings.source_version, settings.identity);
    IF num_nonnulls(new_shape, unreadable) > 0 THEN
        look_key := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.open_source(regclass, boolean) IS 'version and estimated rows of the source, its shape if that has changed, new columns that may not be read, its identity, whether it has partitions, whether all of it is as the last run left it, a digest of what has shown that there is nothing to do, and whether a pooler keeps the options of a session from it';

/*
 * End a run without a scan if the source's counters are those from before the
 * last one, the user trusts them for as long, and nobody has written to the
 * replica: it then ends with the proof of that scan.
 */
CREATE FUNCTION tablesync.skip_scan(replica regclass, counters jsonb, run_id bigint, source_usec bigint, source_instant timestamptz)
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
    FROM tablesync.all_replicas t
    JOIN LATERAL (SELECT * FROM tablesync.all_runs l
                  WHERE l.replica = t.replica AND l.status = 'succeeded' AND l.kind <> 'verify' ORDER BY l.run_id DESC LIMIT 1) r
        ON r.source_rows = r.replica_rows AND r.source_digest = r.replica_digest
    WHERE t.replica = $1 AND t.counters = $2 AND t.loaded AND NOT t.adopted AND t.refetch = '{}'
      AND clock_timestamp() - t.counters_at < t.trust_counters_for
      AND t.memory_file = pg_relation_filenode($1) AND tablesync.is_watched($1)
      AND NOT EXISTS (SELECT FROM tablesync.stray_write w WHERE w.replica = $1)
      AND NOT EXISTS (SELECT FROM tablesync.all_chunks c WHERE c.replica = $1 AND (c.stale OR c.digest IS NULL));
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE tablesync.all_runs r
    SET status = 'succeeded', finished_at = clock_timestamp(), consistency = proof.consistency,
        source_time = $4 * interval '1 microsecond', source_instant = $5,
        source_rows = proof.source_rows, source_digest = proof.source_digest,
        replica_rows = proof.replica_rows, replica_digest = proof.replica_digest,
        source_horizon = proof.source_horizon, newest_version = proof.newest_version,
        message = format('not scanned: the source''s counters have not moved since %s', date_trunc('second', proof.counters_at))
    WHERE r.run_id = $3;
    RETURN true;
END
$$;
COMMENT ON FUNCTION tablesync.skip_scan(regclass, jsonb, bigint, bigint, timestamptz) IS 'ends a run without a scan if the source''s counters have not moved; false if they have';
