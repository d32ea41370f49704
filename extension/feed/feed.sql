/*
 * feed.sql: the table that changes are written to, from its beginning to its end
 *
 * It belongs to the replica's owner and is an ordinary table: GRANT SELECT on it
 * is all that a reader needs.  Runs write to it (write.c); what is here makes it,
 * lets it follow the replica's columns, and knows it by its OID, so that it may
 * be renamed.  All DDL is done with the rights of the caller, who is a member of
 * the owner.
 */

/* A column of the user's may be called as one of ours: it gets an underscore more, and so does one that looks like that. */
CREATE FUNCTION tablesync.feed_name(column_name text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT column_name || CASE WHEN column_name ~ '^(position|run_id|op)_*$' THEN '_' ELSE '' END;
$$;
COMMENT ON FUNCTION tablesync.feed_name(text) IS 'the name that a replica''s column has in its feed';

/* A domain's constraints would refuse NULL, which every column of a feed must take: it is its base type there. */
CREATE FUNCTION tablesync.base_type(type oid, typmod integer, OUT base oid, OUT base_typmod integer)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    below record;
BEGIN
    base := type;
    base_typmod := typmod;
    LOOP
        SELECT t.typbasetype, t.typtypmod INTO below FROM pg_type t WHERE t.oid = base AND t.typtype = 'd';
        EXIT WHEN NOT FOUND;
        base := below.typbasetype;
        base_typmod := below.typtypmod;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.base_type(oid, integer) IS 'a type and its modifier, or what is below a domain';

/* The columns of a replica that runs bring, as its feed has, or should have them. */
CREATE FUNCTION tablesync.feed_columns(replica regclass)
RETURNS TABLE (column_name text, feed_name text, type oid, typmod integer, definition text, feed_type oid, feed_typmod integer, key_position integer)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.column_name, n.n, b.base, b.base_typmod, format_type(b.base, b.base_typmod), f.atttypid, f.atttypmod, c.key_position
    FROM tablesync.replica t
    CROSS JOIN LATERAL tablesync.replica_columns($1) WITH ORDINALITY c (column_name, type, typmod, nullable, key_position)
    CROSS JOIN LATERAL tablesync.base_type(c.type::oid, c.typmod) b
    CROSS JOIN LATERAL tablesync.feed_name(c.column_name::text) n (n)
    LEFT JOIN pg_attribute f ON f.attrelid = t.feed_table AND f.attname = n.n AND f.attnum > 0 AND NOT f.attisdropped
    WHERE t.replica = $1 AND c.type IS NOT NULL
    ORDER BY c.ordinality;
$$;
COMMENT ON FUNCTION tablesync.feed_columns(regclass) IS 'columns of a replica as its feed should have them, and as it has them';

/* A feed is a plain table of the replica's owner, and has our three columns. */
CREATE FUNCTION tablesync.feed_problem(replica regclass, feed regclass)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN c.oid IS NULL THEN 'It does not exist.'
                WHEN c.relkind <> 'r' OR c.relpersistence = 't' OR c.relispartition THEN 'It is not an ordinary table.'
                WHEN c.relowner <> r.relowner THEN format('It belongs to role %s, the replica to %s.', c.relowner::regrole, r.relowner::regrole)
                WHEN c.relforcerowsecurity THEN 'Its row security is forced on its owner: policies would leave out changes.'
                WHEN (SELECT count(*) FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attgenerated = ''
                        AND (a.attname, a.atttypid) IN (('position', 'int8'::regtype), ('run_id', 'int8'::regtype), ('op', '"char"'::regtype))) < 3
                    THEN 'It lacks one of the columns position bigint, run_id bigint, op "char".' END
    FROM pg_class r LEFT JOIN pg_class c ON c.oid = $2
    WHERE r.oid = $1;
$$;
COMMENT ON FUNCTION tablesync.feed_problem(regclass, regclass) IS 'why a table can''t be the feed of a replica; NULL if it can';

CREATE FUNCTION tablesync.create_feed(replica regclass)
RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record;
    name text;
BEGIN
    SELECT n.nspname, tablesync.short_name(c.relname, '_changes') AS relname, c.relowner::regrole AS owner INTO target
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1;
    name := format('%I.%I', target.nspname, target.relname);
    IF to_regclass(name) IS NOT NULL THEN
        RAISE EXCEPTION 'relation % already exists', name
            USING ERRCODE = 'duplicate_table', DETAIL = format('It is not the feed of %s.', $1),
                  HINT = format('Drop it, or give it another name: ALTER TABLE %s RENAME TO %I;', name,
                                tablesync.unused_name(target.relname, '_old', ARRAY(SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = target.nspname::regnamespace)));
    END IF;
    EXECUTE format('CREATE TABLE %s ("position" bigint NOT NULL, run_id bigint, op "char" NOT NULL%s, PRIMARY KEY ("position", op))', name,
                   (SELECT string_agg(format(', %I %s', c.feed_name, c.definition), '') FROM tablesync.feed_columns($1) c));
    EXECUTE format('COMMENT ON TABLE %s IS %L', name, format('changes that runs have applied to %s, by tablesync', $1));
    EXECUTE format('COMMENT ON COLUMN %s."position" IS %L', name, 'counts changes, without gaps, in the order of commits');
    EXECUTE format('COMMENT ON COLUMN %s.run_id IS %L', name, 'the run that has applied it');
    EXECUTE format('COMMENT ON COLUMN %s.op IS %L', name, 'c: inserted; u: as updated, b: as before that, with the same position; d: deleted; t: start again, the replica has changed otherwise');
    IF target.owner <> current_user::regrole THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %s', name, target.owner);
    END IF;
    RETURN name::regclass;
END
$$;
COMMENT ON FUNCTION tablesync.create_feed(regclass) IS 'creates the table <replica>_changes';

/*
 * Give a feed the columns that its replica has.  What is there under a name, and
 * is of a type that the new values would not fit, keeps its values under another name.
 */
CREATE FUNCTION tablesync.fit_feed(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    feed regclass := (SELECT t.feed_table FROM tablesync.replica t WHERE t.replica = $1);
    c record;
BEGIN
    FOR c IN SELECT * FROM tablesync.feed_columns($1) WHERE (feed_type, feed_typmod) IS DISTINCT FROM (type, typmod) LOOP
        IF c.feed_type IS NOT NULL AND tablesync.widens(c.feed_type, c.feed_typmod, c.type, c.typmod) THEN
            BEGIN
                EXECUTE format('ALTER TABLE %s ALTER COLUMN %I TYPE %s', feed, c.feed_name, c.definition);
                CONTINUE;
            EXCEPTION WHEN feature_not_supported OR dependent_objects_still_exist THEN    -- a view shows it
                NULL;
            END;
        END IF;
        IF c.feed_type IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', feed, c.feed_name,
                           tablesync.unused_name(c.feed_name, '_old', ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = feed AND a.attnum > 0)));
        END IF;
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', feed, c.feed_name, c.definition);
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.fit_feed(regclass) IS 'gives a feed the columns of its replica';

CREATE FUNCTION tablesync.column_names(relation regclass)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_object_agg(a.attnum, a.attname), '{}') FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;
$$;
COMMENT ON FUNCTION tablesync.column_names(regclass) IS 'names of a table''s columns by their numbers';

/* After names of a replica's columns have changed: older changes stay readable under the new ones.  The rest is fit_feed's. */
CREATE FUNCTION tablesync.rename_feed_columns(settings tablesync.replica, before jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    renames jsonb;
    statement text;
BEGIN
    IF NOT settings.feed OR settings.feed_table IS NULL OR tablesync.feed_problem(settings.replica, settings.feed_table) IS NOT NULL
       OR tablesync.column_names(settings.replica) = before THEN
        RETURN;
    END IF;
    -- what is in the way of a name, and has no new one itself, is moved aside
    SELECT jsonb_agg(jsonb_build_object('from', f.attname, 'to', coalesce(tablesync.feed_name(n.attname::text), CASE WHEN f.attname IN ('position', 'run_id', 'op') THEN f.attname END))
                     ORDER BY f.attnum)
    INTO renames
    FROM pg_attribute f
    LEFT JOIN jsonb_each_text(before) b ON tablesync.feed_name(b.value) = f.attname
    LEFT JOIN pg_attribute n ON n.attrelid = settings.replica AND n.attnum = b.key::smallint AND NOT n.attisdropped
    WHERE f.attrelid = settings.feed_table AND f.attnum > 0 AND NOT f.attisdropped;
    FOREACH statement IN ARRAY tablesync.rename_columns(settings.feed_table, renames) LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.rename_feed_columns(tablesync.replica, jsonb) IS 'lets a feed follow renamed columns of its replica';

/* The feed begins, or goes on after a pause; of a replica that has rows already its first row says to start with these. */
CREATE FUNCTION tablesync.record_start_feed(replica regclass, feed regclass)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text := tablesync.feed_problem($1, $2);
    settings tablesync.all_replicas;
BEGIN
    IF problem IS NOT NULL OR $1 = $2 THEN
        RAISE EXCEPTION '% can''t be the feed of %', $2, $1
            USING ERRCODE = 'wrong_object_type', DETAIL = coalesce(problem, 'It is the replica.');
    END IF;
    UPDATE tablesync.all_replicas t
    SET feed = true, feed_table = $2, feed_position = t.feed_position + t.loaded::integer, feed_starts_again = false,
        feed_pruned = CASE WHEN t.feed_table = $2 THEN t.feed_pruned ELSE t.feed_position END
    WHERE t.replica = $1
    RETURNING * INTO settings;
    DELETE FROM tablesync.all_fed_runs f WHERE f.replica = $1 AND f.last_position <= settings.feed_pruned;    -- of another table
    IF NOT settings.loaded THEN
        RETURN NULL;
    END IF;
    INSERT INTO tablesync.all_fed_runs (replica, first_position, last_position) VALUES ($1, settings.feed_position, settings.feed_position);
    RETURN settings.feed_position;
END
$$;
COMMENT ON FUNCTION tablesync.record_start_feed(regclass, regclass) IS 'behind the door tablesync.start_feed()';

CREATE FUNCTION tablesync.start_feed(replica regclass, feed regclass)
RETURNS bigint
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.start_feed(regclass, regclass) IS 'door for tablesync_alter(): notes which table is the feed; returns the position of its first row, NULL if that comes with the load';

CREATE FUNCTION tablesync.begin_feed(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    known boolean;
    problem text;
    first_position bigint;
BEGIN
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', $1);    -- no run is in APPLY
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    known := settings.feed_table IS NOT NULL AND EXISTS (SELECT FROM pg_class c WHERE c.oid = settings.feed_table);
    IF known AND settings.feed THEN
        RETURN;
    END IF;
    problem := tablesync.feed_problem($1, settings.feed_table);
    IF known AND problem IS NOT NULL THEN
        RAISE EXCEPTION '% can''t be the feed of %', settings.feed_table, $1
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = problem,
                  HINT = format('DROP TABLE %s;', settings.feed_table);
    END IF;
    settings.feed_table := CASE WHEN known THEN settings.feed_table ELSE tablesync.create_feed($1) END;
    first_position := tablesync.start_feed($1, settings.feed_table);
    PERFORM tablesync.fit_feed($1);
    IF first_position IS NOT NULL THEN
        EXECUTE format('INSERT INTO %s ("position", op) VALUES ($1, ''t'')', settings.feed_table) USING first_position;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.begin_feed(regclass) IS 'switches the feed of a replica on';

/* A feed without a row is of no use to anybody. */
CREATE FUNCTION tablesync.drop_feed(settings tablesync.replica, whole boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_rows boolean;
BEGIN
    IF settings.feed_table IS NULL OR tablesync.feed_problem(settings.replica, settings.feed_table) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', settings.feed_table);
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', settings.feed_table) INTO has_rows;
    IF whole OR NOT has_rows THEN
        EXECUTE format('DROP TABLE %s', settings.feed_table);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.drop_feed(tablesync.replica, boolean) IS 'drops the feed of a replica, if it is empty or its replica goes with it';

CREATE FUNCTION tablesync.end_feed(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    IF settings.feed THEN
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', $1);    -- no run is in APPLY
        PERFORM tablesync.drop_feed(settings, false);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.end_feed(regclass) IS 'what tablesync_alter does before it switches a feed off';

/* When the source was as a run has made the replica.  A run takes its snapshot of the source after it has begun. */
CREATE FUNCTION tablesync.source_time_of(run_id bigint)
RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(r.source_instant, r.started_at) FROM tablesync.all_runs r WHERE r.run_id = $1;
$$;
COMMENT ON FUNCTION tablesync.source_time_of(bigint) IS 'the instant of the source that a run brings';

/* What a run has written, in its transaction; its own row does not have the source's clock yet, which may not be known. */
CREATE FUNCTION tablesync.finish_feed(replica regclass, run_id bigint, first_position bigint, last_position bigint, source_instant timestamptz)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE tablesync.all_replicas t SET feed_position = $4, feed_starts_again = false WHERE t.replica = $1;
    INSERT INTO tablesync.all_fed_runs (replica, first_position, last_position, run_id, source_time)
    VALUES ($1, $3, $4, $2, coalesce($5, tablesync.source_time_of($2)));
$$;
COMMENT ON FUNCTION tablesync.finish_feed(regclass, bigint, bigint, bigint, timestamptz) IS 'notes up to which position a run has written to the feed';

/*
 * Up to where changes may go now, in one transaction: what is older than
 * keep_changes; where that is not set, what all consumers have committed.
 */
CREATE FUNCTION tablesync.prunable(replica regclass, batch integer)
RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT least(p.until, t.feed_pruned + $2)
    FROM tablesync.all_replicas t
    CROSS JOIN LATERAL (
        SELECT CASE WHEN t.keep_changes IS NOT NULL THEN
                   (SELECT max(f.last_position) FROM tablesync.all_fed_runs f
                    WHERE f.replica = t.replica AND f.applied_at < clock_timestamp() - t.keep_changes)
               ELSE (SELECT min(c."position") FROM tablesync.all_consumers c WHERE c.replica = t.replica) END
    ) p (until)
    WHERE t.replica = $1 AND t.feed AND t.feed_table IS NOT NULL AND p.until > t.feed_pruned;
$$;
COMMENT ON FUNCTION tablesync.prunable(regclass, integer) IS 'up to which position the next batch of changes may be deleted; NULL or no row: nothing';

/* The last run that is gone stays known: the replica as of then can still be told. */
CREATE FUNCTION tablesync.prune_feed(replica regclass, until bigint)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE tablesync.all_replicas t SET feed_pruned = $2 WHERE t.replica = $1;
    DELETE FROM tablesync.all_fed_runs f WHERE f.replica = $1 AND f.last_position < $2;
$$;
COMMENT ON FUNCTION tablesync.prune_feed(regclass, bigint) IS 'notes that changes up to a position have been deleted';
