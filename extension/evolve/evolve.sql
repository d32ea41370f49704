/*
 * evolve.sql: a replica follows the shape of its source
 *
 * A run finds a new shape before it reads rows.  Then one local transaction,
 * which does not touch the source, either changes replica, foreign table and
 * settings and logs it, or pauses the replica and says what to do.  evolve()
 * plans and does the DDL, with the rights of the replica's owner;
 * record_evolution() writes what has become of it, with those of the extension's.
 */

CREATE VIEW @extschema@.tablesync_schema_log WITH (security_barrier = true) AS
SELECT l.replica,
       l.at,
       l.change,
       l.column_name AS "column",
       l.action,
       CASE WHEN tablesync.owns(l.replica) THEN l.detail END AS detail
FROM tablesync.all_schema_changes l
WHERE tablesync.sees(l.replica);
GRANT SELECT ON @extschema@.tablesync_schema_log TO PUBLIC;
COMMENT ON VIEW @extschema@.tablesync_schema_log IS 'one row per change of a source''s shape, and what a run did about it';
COMMENT ON COLUMN @extschema@.tablesync_schema_log.change IS 'added, dropped, renamed, retyped, replaced (dropped and added again), nullable, not_null, key or collation';
COMMENT ON COLUMN @extschema@.tablesync_schema_log.action IS 'applied, kept, dropped, ignored, recorded, accepted or paused';

CREATE FUNCTION tablesync.log_steps(replica regclass, run_id bigint, steps tablesync.schema_step[], paused boolean)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO tablesync.all_schema_changes (replica, run_id, change, column_name, action, detail)
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
CREATE FUNCTION tablesync.want_filled(settings tablesync.all_replicas, new_shape jsonb, filled name[], hashed boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF filled = '{}' OR settings.fingerprint = 'row' OR (NOT settings.loaded AND settings.load_position IS NULL) THEN
        RETURN;
    END IF;
    IF settings.fingerprint = 'xmin'
       OR (hashed AND NOT EXISTS (SELECT FROM jsonb_array_elements(new_shape) c
                                  WHERE c->>'hidden' IS NULL AND tablesync.type_problem((c->>'type_oid')::oid, false, true) IS NOT NULL)) THEN
        UPDATE tablesync.all_replicas t SET adopted = true WHERE t.replica = settings.replica;
    ELSE
        UPDATE tablesync.all_replicas t
        SET refetch = ARRAY(SELECT unnest(t.refetch) UNION SELECT unnest(filled)
                            EXCEPT SELECT unnest(t.key_columns || t.version_column))
        WHERE t.replica = settings.replica;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.want_filled(tablesync.all_replicas, jsonb, name[], boolean) IS 'sees to it that a run brings the values of changed columns for all rows';

/* Do what a plan says; returns the steps as they were done. */
CREATE FUNCTION tablesync.apply_steps(settings tablesync.replica, steps tablesync.schema_step[])
RETURNS tablesync.schema_step[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    statement text;
    view jsonb;
    views jsonb[] := '{}';
    retyped name[];
    names jsonb := tablesync.column_names(settings.replica);
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
    PERFORM tablesync.rename_feed_columns(settings, names);
    RETURN steps;
END
$$;
COMMENT ON FUNCTION tablesync.apply_steps(tablesync.replica, tablesync.schema_step[]) IS 'changes replica and foreign table as planned';

/* Mark what the policy, or an error, keeps a run from doing as a problem. */
CREATE FUNCTION tablesync.refuse_steps(settings tablesync.replica, steps tablesync.schema_step[], reason text)
RETURNS tablesync.schema_step[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(ROW(s.change, s.column_name, s.action, s.detail, s.statements, s.unless_used, s.fill,
                         coalesce(s.problem, CASE WHEN w.to_do <> '{}' OR s.change = 'renamed' AND s.action = 'applied' THEN concat_ws(': ', s.detail, reason) END),
                         coalesce(s.hint, CASE WHEN w.to_do <> '{}' THEN tablesync.by_hand(settings.replica, w.to_do) END))::tablesync.schema_step
                     ORDER BY s.ordinality)
    FROM unnest(steps) WITH ORDINALITY s, LATERAL (SELECT s.statements || coalesce(s.unless_used, '{}')) w (to_do);
$$;
COMMENT ON FUNCTION tablesync.refuse_steps(tablesync.replica, tablesync.schema_step[], text) IS 'turns the steps of a plan that would change something into problems';

/* A shape of a source with names and numbers of its columns as they are here now. */
CREATE FUNCTION tablesync.shape_here(shape jsonb, replica regclass, source regclass)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tablesync.with_numbers(
        (SELECT jsonb_agg(c.c || jsonb_build_object('problem', NULL, 'column',
                    coalesce((SELECT a.attname FROM pg_attribute a
                              WHERE a.attrelid = $3 AND a.attnum > 0 AND NOT a.attisdropped
                                AND tablesync.remote_name($3, a.attnum) = c.c->>'remote' LIMIT 1), c.c->>'remote')) ORDER BY c.n)
         FROM jsonb_array_elements(shape) WITH ORDINALITY c (c, n)), $2, $3);
$$;
COMMENT ON FUNCTION tablesync.shape_here(jsonb, regclass, regclass) IS 'a source''s shape with names and numbers of its columns in replica and foreign table';

/* Why a replica is paused, and what to do about it, in words. */
CREATE FUNCTION tablesync.describe_problems(settings tablesync.replica, steps tablesync.schema_step[], OUT problem text, OUT hint text)
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
END
$$;
COMMENT ON FUNCTION tablesync.describe_problems(tablesync.replica, tablesync.schema_step[]) IS 'why a change of a source''s shape pauses a replica, and what to do';

/*
 * What a run does about a new shape: the DDL, if it can go on; else "problem"
 * says why not.  The steps are for record_evolution().
 */
CREATE FUNCTION tablesync.evolve(replica regclass, new_shape jsonb, OUT problem text, OUT hint text, OUT steps jsonb, OUT shape jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    planned tablesync.schema_step[];
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    planned := ARRAY(SELECT s FROM tablesync.plan_evolution(settings, new_shape) s);
    IF settings.on_schema_change = 'pause' THEN
        planned := tablesync.refuse_steps(settings, planned, NULL);
    END IF;
    IF NOT EXISTS (SELECT FROM unnest(planned) s WHERE s.problem IS NOT NULL) THEN
        BEGIN
            steps := to_jsonb(tablesync.apply_steps(settings, planned));
            shape := tablesync.shape_here(new_shape, settings.replica, settings.source);
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
                planned := tablesync.refuse_steps(settings, planned, SQLERRM);
                IF NOT EXISTS (SELECT FROM unnest(planned) s WHERE s.problem IS NOT NULL) THEN
                    RAISE;
                END IF;
        END;
    END IF;
    SELECT p.problem, p.hint INTO problem, hint FROM tablesync.describe_problems(settings, planned) p;
    steps := to_jsonb(planned);
END
$$;
COMMENT ON FUNCTION tablesync.evolve(regclass, jsonb) IS 'makes a replica follow its source''s new shape, or says why not, and what to do';

/* Remember the new shape of a source that a replica has followed, or pause the replica. */
CREATE FUNCTION tablesync.record_evolution(replica regclass, new_shape jsonb, run_id bigint, steps jsonb, paused boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.all_replicas;
    done tablesync.schema_step[] := ARRAY(SELECT s FROM jsonb_populate_recordset(NULL::tablesync.schema_step, steps) s);
    renamed jsonb;
    old_names name[];
    new_names name[];
BEGIN
    PERFORM tablesync.log_steps($1, run_id, done, paused);
    SELECT * INTO settings FROM tablesync.all_replicas t WHERE t.replica = $1 FOR UPDATE;
    IF paused THEN
        UPDATE tablesync.all_replicas t SET enabled = false WHERE t.replica = $1;
        -- when the labels are the same again nobody sees which of them were renamed
        PERFORM tablesync.want_filled(settings, new_shape, ARRAY(SELECT s.column_name FROM unnest(done) s WHERE s.change = 'labels'),
                                      NOT tablesync.lags_behind(settings.source, new_shape));
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM tablesync.match_columns(settings.shape, new_shape) m
               WHERE m.before->>'column' = settings.version_column AND m.before->'type' <> m.after->'type') THEN
        -- versions of another type say nothing any more
        UPDATE tablesync.all_replicas t SET watermark = NULL WHERE t.replica = $1;
        UPDATE tablesync.all_runs r SET newest_version = NULL WHERE r.replica = $1 AND r.newest_version IS NOT NULL;
    END IF;
    SELECT coalesce(jsonb_object_agg(m.before->>'column', m.after->>'column'), '{}'),
           array_agg(m.before->>'column'), array_agg(m.after->>'column') INTO renamed, old_names, new_names
    FROM tablesync.match_columns(settings.shape, new_shape) m
    WHERE m.before IS NOT NULL AND m.after IS NOT NULL;
    UPDATE tablesync.all_replicas t
    SET shape = new_shape,
        key_columns = ARRAY(SELECT coalesce(renamed->>k.k::text, k.k)::name FROM unnest(t.key_columns) WITH ORDINALITY k (k, n) ORDER BY k.n),
        version_column = renamed->>t.version_column::text,
        (columns, filter, expressions) = (SELECT p.columns, p.filter, p.expressions FROM tablesync.renamed_part(t, old_names, new_names) p),
        refetch = ARRAY(SELECT (renamed->>k.k::text)::name FROM unnest(t.refetch) k (k) WHERE renamed ? k.k::text)
    WHERE t.replica = $1;
    IF EXISTS (SELECT FROM unnest(done) s WHERE cardinality(s.statements) > 0) THEN    -- our own DDL is no stranger's write
        UPDATE tablesync.all_chunks c SET digest = NULL, stale = false, buckets = NULL, bucket_shift = NULL, bucket_mask = NULL
        WHERE c.replica = $1;
    END IF;
    PERFORM tablesync.want_filled(settings, new_shape, ARRAY(SELECT s.column_name FROM unnest(done) s WHERE s.fill),
                                  NOT tablesync.lags_behind(settings.source, new_shape));
    PERFORM tablesync.close_alert($1, 'schema_changed');
END
$$;
COMMENT ON FUNCTION tablesync.record_evolution(regclass, jsonb, bigint, jsonb, boolean) IS 'remembers the new shape of a source, or pauses a replica because of it';

/* Note once which new columns of a source are left out because they may not be read. */
CREATE FUNCTION tablesync.record_unreadable(replica regclass, run_id bigint, columns text[])
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO tablesync.all_schema_changes (replica, run_id, change, column_name, action, detail)
    SELECT $1, $2, 'added', c, 'ignored', format('column %I was added, and we may not read it', c)
    FROM unnest(columns) c
    WHERE NOT EXISTS (SELECT FROM tablesync.all_schema_changes l
                      WHERE l.replica = $1 AND l.change = 'added' AND l.column_name = c AND l.action = 'ignored');
$$;
COMMENT ON FUNCTION tablesync.record_unreadable(regclass, bigint, text[]) IS 'logs new columns that are left out because they may not be read';

/*
 * Remember which tables and files hold the source's rows.  Where they are others
 * than those that the last runs have read, rows may have the same versions and
 * other values: true if all columns have to be compared once.  So it is where a
 * virtual generated column has got another expression.
 */
CREATE FUNCTION tablesync.record_identity(replica regclass, source_identity text, server_version integer)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.all_replicas;
    files text := tablesync.files_of(source_identity);
    tables_are_others boolean;
    expressions_are_others boolean;
BEGIN
    SELECT * INTO settings FROM tablesync.all_replicas t WHERE t.replica = $1;
    UPDATE tablesync.all_replicas t SET source_version = server_version WHERE t.replica = $1 AND t.source_version IS DISTINCT FROM server_version;
    IF settings.identity IS NOT DISTINCT FROM files THEN
        RETURN false;
    END IF;
    UPDATE tablesync.all_replicas t SET identity = files WHERE t.replica = $1;
    -- of virtual columns, whose values no row has: xmin does not tell, and what an unfinished load has brought is old, too
    expressions_are_others := split_part(split_part(settings.identity, ' ', 1), ':', 3) <> split_part(split_part(files, ' ', 1), ':', 3);
    IF settings.fingerprint = 'xmin' AND expressions_are_others THEN
        UPDATE tablesync.all_replicas t SET adopted = true WHERE t.replica = $1;
        RETURN true;
    END IF;
    IF settings.identity IS NULL OR NOT settings.loaded OR settings.fingerprint IN ('xmin', 'row') THEN
        RETURN false;
    END IF;
    tables_are_others := regexp_replace(settings.identity, ':[^ ]*', '', 'g') <> regexp_replace(files, ':[^ ]*', '', 'g');
    IF NOT EXISTS (SELECT FROM jsonb_array_elements(settings.shape) c
                   WHERE c->>'hidden' IS NULL AND tablesync.type_problem((c->>'type_oid')::oid, false, true) IS NOT NULL)
       AND NOT (settings.on_schema_change = 'ignore' AND tablesync.lags_behind(settings.source, settings.shape)) THEN
        UPDATE tablesync.all_replicas t SET adopted = true WHERE t.replica = $1;
    ELSIF tables_are_others OR expressions_are_others THEN    -- a mere rewrite is not worth fetching all
        UPDATE tablesync.all_replicas t
        SET refetch = ARRAY(SELECT c.column_name FROM tablesync.replica_columns(t.replica) c
                            WHERE c.column_name <> ALL (t.key_columns || t.version_column))
        WHERE t.replica = $1;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION tablesync.record_identity(regclass, text, integer) IS 'remembers the files of a source and the version of its server; true if they are others, so that all columns have to be compared once';
