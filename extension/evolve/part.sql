/*
 * part.sql: another part of the source is wanted
 *
 * tablesync_alter() changes replica and foreign table at once, in the
 * transaction of its caller and while no run goes on; the next run brings rows and
 * values.  What the source has changed meanwhile is left to runs and their policy.
 */

/* The shape of a replica with other settings: what is known stays as it is known, what is new is as the source has it. */
CREATE FUNCTION tablesync.shape_of_part(settings tablesync.replica)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known jsonb := settings.shape;
BEGIN
    IF settings.columns IS NULL
       OR NOT tablesync.needed_columns(settings) <@ ARRAY(SELECT (s->>'column')::name FROM jsonb_array_elements(known) s
                                                          UNION ALL SELECT jsonb_object_keys(settings.expressions)) THEN
        known := (SELECT jsonb_agg(coalesce(o.o, n.n) ORDER BY (n.n->>'attnum')::integer)
                  FROM jsonb_array_elements(tablesync.source_shape(settings.source)) n (n)
                  LEFT JOIN jsonb_array_elements(settings.shape) o (o)
                      ON CASE WHEN o.o->'table' = n.n->'table' THEN o.o->'attnum' = n.n->'attnum' ELSE o.o->'remote' = n.n->'remote' END);
    END IF;
    IF settings.columns IS NOT NULL THEN
        PERFORM tablesync.check_columns(settings, known);
    END IF;
    RETURN tablesync.wanted_shape(settings, known);
END
$$;
COMMENT ON FUNCTION tablesync.shape_of_part(tablesync.replica) IS 'the shape of a replica with other columns, filter or expressions';

/* A column of the source that the replica is not to show any more. */
CREATE FUNCTION tablesync.plan_hidden(settings tablesync.replica, old jsonb, stays boolean)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := old->>'column';
    mine record := tablesync.local_column(settings.replica, name);
    step tablesync.schema_step;
BEGIN
    step.change := 'dropped';
    step.column_name := name;
    step.detail := format('column %I is not among the columns any more', old->>'remote');
    step.action := CASE WHEN stays OR NOT settings.drop_columns THEN 'kept' ELSE 'dropped' END;
    step.fill := false;
    step.statements := CASE WHEN mine.not_null THEN ARRAY[format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, name)] ELSE '{}' END;
    step.unless_used := CASE WHEN step.action = 'dropped' THEN ARRAY[format('ALTER TABLE %s DROP COLUMN %I', settings.replica, name)] ELSE '{}' END;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_hidden(tablesync.replica, jsonb, boolean) IS 'what to do about a column that a replica is not to show any more';

/* A column that the source is to compute. */
CREATE FUNCTION tablesync.plan_computed(settings tablesync.replica, name name, expression text, type oid, typmod integer)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, plan_computed.name);
    step tablesync.schema_step;
BEGIN
    step.change := 'added';
    step.column_name := plan_computed.name;
    step.detail := format('column %I is computed by the source: %s', plan_computed.name, plan_computed.expression);
    step.action := 'applied';
    step.fill := true;
    step.statements := '{}';
    IF mine.type IS NULL THEN
        step.statements := ARRAY[format('ALTER TABLE %s ADD COLUMN %I %s', settings.replica, plan_computed.name, format_type(plan_computed.type, plan_computed.typmod))];
    ELSIF (mine.type_oid, mine.typmod) <> (plan_computed.type, plan_computed.typmod) OR NOT mine.writable THEN
        RAISE EXCEPTION 'column % of % can''t hold what the source would compute', quote_ident(plan_computed.name), settings.replica
            USING ERRCODE = 'datatype_mismatch',
                  DETAIL = format('It is %s, the expression is %s.', CASE WHEN mine.writable THEN mine.type ELSE 'generated' END, format_type(plan_computed.type, plan_computed.typmod)),
                  HINT = 'Write a cast into the expression, or change the column.';
    ELSIF mine.not_null THEN
        step.statements := ARRAY[format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, plan_computed.name)];
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_computed(tablesync.replica, name, text, oid, integer) IS 'what to do about a column that the source is to compute';

/* DDL for a foreign table whose source's columns are wanted in other numbers. */
CREATE FUNCTION tablesync.foreign_part_statements(settings tablesync.replica, new jsonb, missing boolean)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN missing THEN
        ARRAY(SELECT f FROM jsonb_array_elements(new) n, unnest(tablesync.foreign_column_statements(settings.source, n)) f
              WHERE NOT tablesync.stands_for(settings.source, n->>'column', n->>'remote'))
    ELSE
        ARRAY(SELECT format('ALTER FOREIGN TABLE %s DROP COLUMN %I', settings.source, o->>'column') FROM jsonb_array_elements(settings.shape) o
              WHERE settings.source_created AND tablesync.stands_for(settings.source, o->>'column', o->>'remote')
                AND NOT EXISTS (SELECT FROM jsonb_array_elements(new) n WHERE n->>'column' = o->>'column'))
    END;
$$;
COMMENT ON FUNCTION tablesync.foreign_part_statements(tablesync.replica, jsonb, boolean) IS 'DDL that adds the columns that a foreign table lacks, or drops those that it does not need any more';

/* All that other settings ask of the replica's columns, as steps. */
CREATE FUNCTION tablesync.plan_part(before tablesync.replica, after tablesync.replica)
RETURNS SETOF tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    entry record;
    step tablesync.schema_step;
BEGIN
    after.on_schema_change := 'apply';
    FOR entry IN
        SELECT o.o AS old, n.n AS new FROM jsonb_array_elements(before.shape) o (o)
        FULL JOIN jsonb_array_elements(after.shape) n (n) ON n.n->'attnum' = o.o->'attnum'
        WHERE (o.o IS NOT NULL AND o.o->>'hidden' IS NULL) <> (n.n IS NOT NULL AND n.n->>'hidden' IS NULL)
        ORDER BY (coalesce(n.n, o.o)->>'attnum')::integer
    LOOP
        IF entry.new IS NOT NULL AND entry.new->>'hidden' IS NULL THEN
            step := tablesync.plan_added(after, entry.new, NULL);
            step.detail := format('column %I is among the columns now', entry.new->>'remote');
            IF step.problem IS NOT NULL THEN
                RAISE EXCEPTION 'column % can''t be taken into %', quote_ident(entry.new->>'column'), after.replica
                    USING ERRCODE = 'feature_not_supported', DETAIL = format('Reason: %s.', step.problem), HINT = step.hint;
            END IF;
            RETURN NEXT step;
        ELSE
            RETURN NEXT tablesync.plan_hidden(before, entry.old, coalesce(after.expressions ? (entry.old->>'column'), false));
        END IF;
    END LOOP;
    FOR entry IN SELECT c.* FROM tablesync.computed_columns(after) c
                 WHERE before.expressions->>c.name::text IS DISTINCT FROM after.expressions->>c.name::text LOOP
        RETURN NEXT tablesync.plan_computed(after, entry.name, entry.expression, entry.type, entry.typmod);
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.plan_part(tablesync.replica, tablesync.replica) IS 'what other columns and expressions of a replica ask for';

/* Give replica and foreign table the columns that changed settings want; returns the settings as they are to be kept, and the steps. */
CREATE FUNCTION tablesync.change_part(before tablesync.replica, after tablesync.replica)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    statement text;
    steps jsonb;
BEGIN
    IF NOT tablesync.keep_runs_away(before.replica) THEN
        RAISE EXCEPTION 'a run for replica % is going on', before.replica
            USING ERRCODE = 'object_in_use', HINT = format('Wait for it, or use tablesync_cancel(%L).', before.replica);
    ELSIF NOT before.loaded AND num_nonnulls(before.load_position, before.load_indexes) > 0 THEN
        RAISE EXCEPTION 'the load of replica % has not finished', before.replica
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'Rows that it has brought are of the part that was wanted before.',
                  HINT = format('SELECT * FROM tablesync_run(%L); or remove the replica, empty it, and add it again.', before.replica);
    END IF;
    settings := after;
    settings.shape := tablesync.shape_of_part(after);
    FOREACH statement IN ARRAY tablesync.foreign_part_statements(before, settings.shape, true) LOOP
        EXECUTE statement;
    END LOOP;
    settings := tablesync.checked_part(settings, settings.shape);
    steps := to_jsonb(tablesync.apply_steps(before, ARRAY(SELECT s FROM tablesync.plan_part(before, settings) s)));
    FOREACH statement IN ARRAY tablesync.foreign_part_statements(before, settings.shape, false) LOOP
        BEGIN
            EXECUTE statement;
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            NULL;    -- it may stay
        END;
    END LOOP;
    settings.shape := tablesync.with_numbers((SELECT jsonb_agg(s - '{local,foreign}'::text[] ORDER BY n) FROM jsonb_array_elements(settings.shape) WITH ORDINALITY u (s, n)),
                                             settings.replica, settings.source);
    RETURN jsonb_build_object('settings', to_jsonb(settings), 'steps', steps);
END
$$;
COMMENT ON FUNCTION tablesync.change_part(tablesync.replica, tablesync.replica) IS 'gives replica and foreign table the columns that changed settings want';

CREATE FUNCTION tablesync.record_take_part(replica regclass, shape jsonb, steps jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.all_replicas;
    done tablesync.schema_step[] := ARRAY(SELECT s FROM jsonb_populate_recordset(NULL::tablesync.schema_step, steps) s);
BEGIN
    UPDATE tablesync.all_replicas t SET shape = $2, look_key = NULL, counters = NULL WHERE t.replica = $1 RETURNING * INTO settings;
    PERFORM tablesync.log_steps($1, NULL, done, false);
    PERFORM tablesync.want_filled(settings, settings.shape, ARRAY(SELECT s.column_name FROM unnest(done) s WHERE s.fill),
                                  NOT tablesync.lags_behind(settings.source, settings.shape));
END
$$;
COMMENT ON FUNCTION tablesync.record_take_part(regclass, jsonb, jsonb) IS 'behind the door tablesync.take_part()';

CREATE FUNCTION tablesync.take_part(replica regclass, shape jsonb, steps jsonb)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.take_part(regclass, jsonb, jsonb) IS 'door for tablesync_alter(): remembers the part of the source that is wanted now';
