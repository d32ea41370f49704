/*
 * part.sql: a part of a source: some columns, some rows, columns that it computes
 *
 * The settings columns, filter and expressions say which part a replica is a
 * copy of.  The shape of such a replica has the columns of the source that it
 * shows and, "hidden", those that only filter, expressions or the version need.
 * Filter and expressions are kept in the words of the server (expression.c).
 */

CREATE FUNCTION tablesync.columns_of_expression(expression text)
RETURNS name[]
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_columns_of_expression';
COMMENT ON FUNCTION tablesync.columns_of_expression(text) IS 'names of the columns in an SQL expression; an error if the text is none';

CREATE FUNCTION tablesync.rename_in_expression(expression text, old_names name[], new_names name[])
RETURNS text
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_rename_in_expression';
COMMENT ON FUNCTION tablesync.rename_in_expression(text, name[], name[]) IS 'an SQL expression over columns that have got other names';

CREATE FUNCTION tablesync.check_expression(source regclass, expression text, setting text,
    OUT canonical text, OUT type oid, OUT typmod integer, OUT is_constant boolean)
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_check_expression';
COMMENT ON FUNCTION tablesync.check_expression(regclass, text, text) IS 'an expression over a foreign table in the server''s words, and its type; an error unless it may be that of a setting';

CREATE FUNCTION tablesync.keep_runs_away(replica regclass)
RETURNS boolean
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_keep_runs_away';
COMMENT ON FUNCTION tablesync.keep_runs_away(regclass) IS 'no run of a replica begins until the transaction ends; false if one goes on';

/* Columns of the source that the settings of a replica name, besides those that it shows. */
CREATE FUNCTION tablesync.used_columns(settings tablesync.replica)
RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(DISTINCT u.name), '{}')
    FROM (SELECT unnest(settings.key_columns)
          UNION ALL SELECT settings.version_column
          UNION ALL SELECT unnest(tablesync.columns_of_expression(settings.filter))
          UNION ALL SELECT unnest(tablesync.columns_of_expression(e.value)) FROM jsonb_each_text(CASE WHEN jsonb_typeof(settings.expressions) = 'object' THEN settings.expressions END) e) u (name)
    WHERE u.name IS NOT NULL;
$$;
COMMENT ON FUNCTION tablesync.used_columns(tablesync.replica) IS 'columns of the source that are the key or the version, or are named in filter and expressions';

/* Columns of a source, by the names that they have here, that a replica needs at all; NULL: all of them. */
CREATE FUNCTION tablesync.needed_columns(settings tablesync.replica)
RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN settings.columns IS NOT NULL THEN settings.columns || tablesync.used_columns(settings) END;
$$;
COMMENT ON FUNCTION tablesync.needed_columns(tablesync.replica) IS 'columns of the source that a replica shows or uses; NULL: all of them';

/* The part of a source's shape that concerns a replica, by its settings; a column is known by the name that it has here. */
CREATE FUNCTION tablesync.wanted_shape(settings tablesync.replica, shape jsonb)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN num_nonnulls(settings.columns, settings.expressions) = 0 THEN shape ELSE
        (SELECT coalesce(jsonb_agg(w.entry || CASE WHEN w.shown THEN '{}' ELSE '{"hidden": true}' END::jsonb ORDER BY w.n), '[]')
         FROM (SELECT s.s - 'hidden' AS entry, s.n, k.name,
                      (settings.columns IS NULL OR k.name = ANY (settings.columns))
                          AND NOT coalesce(settings.expressions ? k.name::text, false) AS shown
               FROM jsonb_array_elements(shape) WITH ORDINALITY s (s, n),
                    LATERAL (SELECT coalesce((SELECT o->>'column' FROM jsonb_array_elements(settings.shape) o
                                              WHERE CASE WHEN o->'table' = s.s->'table' THEN o->'attnum' = s.s->'attnum'
                                                         ELSE o->'remote' = s.s->'remote' END LIMIT 1), s.s->>'column')::name) k (name)) w
         WHERE w.shown OR w.name = ANY (tablesync.used_columns(settings))) END;
$$;
COMMENT ON FUNCTION tablesync.wanted_shape(tablesync.replica, jsonb) IS 'the part of a source''s shape that a replica shows or uses';

/* The columns that a source computes, with their types. */
CREATE FUNCTION tablesync.computed_columns(settings tablesync.replica)
RETURNS TABLE (name name, expression text, type oid, typmod integer, is_constant boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.key::name, c.canonical, c.type, c.typmod, c.is_constant
    FROM jsonb_each_text(settings.expressions) e, tablesync.check_expression(settings.source, e.value, 'expressions') c;
$$;
COMMENT ON FUNCTION tablesync.computed_columns(tablesync.replica) IS 'columns of a replica that its source computes';

/* What a run puts into its statements: the filter, which has no column, and the computed columns. */
CREATE FUNCTION tablesync.part_of_source(replica regclass)
RETURNS TABLE (column_name name, expression text, type oid, is_constant boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    RETURN QUERY SELECT NULL::name, c.canonical, c.type, c.is_constant FROM tablesync.check_expression(settings.source, settings.filter, 'filter') c
                 WHERE c.canonical IS NOT NULL
                 UNION ALL
                 SELECT c.name, c.expression, c.type, c.is_constant FROM tablesync.computed_columns(settings) c;
END
$$;
COMMENT ON FUNCTION tablesync.part_of_source(regclass) IS 'filter and computed columns of a replica, as they fit its foreign table';

/* The columns that a replica is to have, for CREATE TABLE or to compare with: those it shows, and those that are computed. */
CREATE FUNCTION tablesync.columns_of_replica(settings tablesync.replica)
RETURNS TABLE ("column" name, type text, not_null boolean, definition text, ordinality bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT (s.c->>'column')::name, s.c->>'type', (s.c->>'not_null')::boolean,
           format('%I %s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                  CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE pg_catalog.%I', co.collname) END,
                  CASE WHEN (s.c->>'not_null')::boolean THEN ' NOT NULL' END), s.n
    FROM jsonb_array_elements(settings.shape) WITH ORDINALITY s (c, n)
    LEFT JOIN pg_attribute a ON a.attrelid = settings.source AND a.attname = s.c->>'column' AND NOT a.attisdropped
    LEFT JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_collation co ON co.oid = a.attcollation
    WHERE s.c->>'hidden' IS NULL
    UNION ALL
    SELECT c.name, format_type(c.type, c.typmod), false, format('%I %s', c.name, format_type(c.type, c.typmod)),
           coalesce((SELECT s.n FROM jsonb_array_elements(settings.shape) WITH ORDINALITY s (c, n) WHERE s.c->>'column' = c.name), 10000)
    FROM tablesync.computed_columns(settings) c;
$$;
COMMENT ON FUNCTION tablesync.columns_of_replica(tablesync.replica) IS 'columns that a replica has by its settings, with their definitions';

/* Does the source compute an expression, or would every row be fetched? */
CREATE FUNCTION tablesync.check_computed_there(source regclass, setting text, condition text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s WHERE %s', source, condition) INTO plan;
    IF plan->0->'Plan'->>'Node Type' <> 'Foreign Scan' OR plan->0->'Plan'->'Filter' IS NOT NULL THEN
        RAISE EXCEPTION 'invalid value for %: the source can''t compute it', setting
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = format('postgres_fdw would fetch every row in order to compute it here: %s.', coalesce(plan->0->'Plan'->>'Filter', condition)),
                  HINT = 'Types of extensions and enums, conversions to and from text, COALESCE, functions whose only text is a constant (date_trunc, extract) '
                         'and collations other than those of columns do not ship.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_computed_there(regclass, text, text) IS 'an error unless a condition over a foreign table is computed by the source';

/* Why columns of a type can't be fetched together with computed ones (query/part.c); NULL if they can. */
CREATE FUNCTION tablesync.grouping_problem(type oid)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN t.oid >= 10000 THEN format('its type %s is not built in', format_type(t.oid, NULL))
                WHEN t.typelem <> 0 AND t.typlen = -1 AND NOT EXISTS (
                    SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
                    WHERE m.amname = 'btree' AND o.opcdefault
                      AND o.opcintype IN (t.typelem, CASE t.typelem WHEN 'varchar'::regtype THEN 'text'::regtype END)) THEN
                    format('arrays of %s have no order', format_type(t.typelem, NULL)) END
    FROM pg_type t WHERE t.oid = $1;
$$;
COMMENT ON FUNCTION tablesync.grouping_problem(oid) IS 'why columns of a type can''t be fetched together with columns that the source computes; NULL if they can';

/* An error if a replica's columns are not those of its source. */
CREATE FUNCTION tablesync.check_columns(settings tablesync.replica, shape jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    missing name;
BEGIN
    SELECT n INTO missing FROM unnest(settings.columns) n
    WHERE NOT coalesce(settings.expressions ? n::text, false)
      AND NOT EXISTS (SELECT FROM jsonb_array_elements(shape) s WHERE s->>'column' = n) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'invalid value for columns: the source has no column %', quote_nullable(missing)
            USING ERRCODE = 'undefined_column',
                  HINT = format('Its columns are: %s.', (SELECT string_agg(s->>'column', ', ' ORDER BY (s->>'attnum')::integer) FROM jsonb_array_elements(shape) s));
    END IF;
    SELECT k INTO missing FROM unnest(settings.key_columns) k WHERE k <> ALL (settings.columns) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'invalid value for columns: key column % is not among them', quote_literal(missing)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('Add it: columns => %L', settings.key_columns || settings.columns);
    END IF;
    IF settings.fingerprint = 'version' AND settings.version_column <> ALL (settings.columns) THEN
        RAISE EXCEPTION 'invalid value for columns: version column % is not among them', quote_literal(settings.version_column)
            USING ERRCODE = 'invalid_parameter_value', DETAIL = 'By fingerprint version, rows of both sides are compared by it.',
                  HINT = 'Add it, or use another fingerprint.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_columns(tablesync.replica, jsonb) IS 'an error if the setting columns does not fit the source';

/* An error if a column can't be computed by its source. */
CREATE FUNCTION tablesync.check_computed(settings tablesync.replica, shape jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    computed record;
    misfit record;
BEGIN
    FOR computed IN SELECT * FROM tablesync.computed_columns(settings) LOOP
        IF computed.name = ANY (settings.key_columns || settings.version_column) THEN
            RAISE EXCEPTION 'invalid value for expressions: % is the key or the version column', quote_literal(computed.name)
                USING ERRCODE = 'invalid_parameter_value', DETAIL = 'Rows are found by them at the source.';
        ELSIF computed.name = '' THEN
            RAISE EXCEPTION 'invalid value for expressions: a column has no name' USING ERRCODE = 'invalid_parameter_value';
        ELSIF computed.type >= 10000 OR tablesync.type_problem(computed.type, false, true) IS NOT NULL THEN
            RAISE EXCEPTION 'invalid value for expressions: column % would have type %', quote_literal(computed.name), format_type(computed.type, computed.typmod)
                USING ERRCODE = 'feature_not_supported', DETAIL = 'Values of that type can''t be compared with the source''s by fingerprint.';
        END IF;
        CONTINUE WHEN computed.is_constant;
        PERFORM tablesync.check_computed_there(settings.source, 'expressions', format('(ARRAY[%s])[1] IS NOT NULL', computed.expression));
        SELECT s->>'column' AS name, tablesync.grouping_problem((s->>'type_oid')::oid) AS problem INTO misfit
        FROM jsonb_array_elements(tablesync.wanted_shape(settings, shape)) s
        WHERE s->>'hidden' IS NULL AND tablesync.grouping_problem((s->>'type_oid')::oid) IS NOT NULL LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'column % can''t be fetched together with columns that the source computes', quote_literal(misfit.name)
                USING ERRCODE = 'feature_not_supported', DETAIL = format('Reason: %s.', misfit.problem),
                      HINT = 'Leave it out with the setting columns, or give it a constant as its expression.';
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.check_computed(tablesync.replica, jsonb) IS 'an error if the setting expressions does not fit the source';

/* Settings whose filter and expressions are in the server's words; an error if they, or the columns, do not fit the source. */
CREATE FUNCTION tablesync.checked_part(settings tablesync.replica, shape jsonb)
RETURNS tablesync.replica
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    too_long text;
BEGIN
    IF settings.columns IS NOT NULL THEN
        settings.columns := ARRAY(SELECT n FROM unnest(settings.columns) WITH ORDINALITY u (n, i) GROUP BY n ORDER BY min(i));
        PERFORM tablesync.check_columns(settings, shape);
    END IF;
    IF settings.filter IS NOT NULL THEN
        settings.filter := (tablesync.check_expression(settings.source, settings.filter, 'filter')).canonical;
        PERFORM tablesync.check_computed_there(settings.source, 'filter', settings.filter);
    END IF;
    IF settings.expressions IS NOT NULL THEN
        too_long := (SELECT k FROM jsonb_object_keys(settings.expressions) k WHERE octet_length(k) > current_setting('max_identifier_length')::integer LIMIT 1);
        IF too_long IS NOT NULL THEN    -- cut, it could be another one's name
            RAISE EXCEPTION 'invalid value for expressions: the name of column % is too long', quote_literal(too_long)
                USING ERRCODE = 'name_too_long', DETAIL = format('Names have at most %s bytes.', current_setting('max_identifier_length'));
        END IF;
        PERFORM tablesync.check_computed(settings, shape);
        settings.expressions := (SELECT jsonb_object_agg(c.name, c.expression) FROM tablesync.computed_columns(settings) c);
    END IF;
    RETURN settings;
END
$$;
COMMENT ON FUNCTION tablesync.checked_part(tablesync.replica, jsonb) IS 'settings whose columns, filter and expressions are checked, in the server''s words';

/* The settings of a replica when columns have got other names. */
CREATE FUNCTION tablesync.renamed_part(settings tablesync.all_replicas, old_names name[], new_names name[],
    OUT columns name[], OUT filter text, OUT expressions jsonb)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN settings.columns IS NOT NULL THEN
               ARRAY(SELECT coalesce(new_names[array_position(old_names, c.c)], c.c) FROM unnest(settings.columns) WITH ORDINALITY c (c, n) ORDER BY c.n) END,
           tablesync.rename_in_expression(settings.filter, old_names, new_names),
           (SELECT jsonb_object_agg(e.key, tablesync.rename_in_expression(e.value, old_names, new_names)) FROM jsonb_each_text(settings.expressions) e);
$$;
COMMENT ON FUNCTION tablesync.renamed_part(tablesync.all_replicas, name[], name[]) IS 'columns, filter and expressions when columns of the source have got other names here';
