/*
 * view.sql: a view as source
 *
 * A view has rows, and nothing else that a run relies on elsewhere: no files that
 * tell of a rewrite, no xmin, no index that proves its key.  That no two rows have
 * the same key is proved by each run that succeeds, for the replica's rows have
 * different keys and are as many; so a view is asked for it, which means to make
 * and to sort all of it, only when it is added and when a run has come to nothing.
 * A row without a key would be in no range of keys; each run asks for one.
 */

/* What a row without a key is like. */
CREATE FUNCTION tablesync.null_condition(key_columns name[])
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('%I IS NULL', k), ' OR ' ORDER BY n) FROM unnest(key_columns) WITH ORDINALITY u (k, n);
$$;
COMMENT ON FUNCTION tablesync.null_condition(name[]) IS 'condition that a column of a key is NULL';

/* Raises the error for a view whose rows do not have different keys. */
CREATE FUNCTION tablesync.refuse_view_key(settings tablesync.replica, seen text, has_null boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    source_name text := quote_ident(target.schema_name) || '.' || quote_ident(target.table_name);
    key_list text := (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(settings.key_columns) WITH ORDINALITY u (k, n));
    remedy text := CASE WHEN settings.replica IS NULL THEN 'name other key_columns.'
                        ELSE format('SELECT tablesync_remove(%L); and add it again with other key_columns. Nothing was changed.', settings.replica) END;
BEGIN
    IF has_null THEN
        RAISE EXCEPTION 'a row of the source % has no key', source_name
            USING ERRCODE = 'not_null_violation', DETAIL = format('Its (%s) is %s.', key_list, left(seen, 200)),
                  HINT = 'Leave such rows out of the view; or ' || remedy;
    END IF;
    RAISE EXCEPTION 'rows of the source % have the same key', source_name
        USING ERRCODE = 'unique_violation', DETAIL = format('These (%s), and how many rows have them: %s.', key_list, left(seen, 200)),
              HINT = 'Let the view have one row for each key; or ' || remedy;
END
$$;
COMMENT ON FUNCTION tablesync.refuse_view_key(tablesync.replica, text, boolean) IS 'raises the error for a view with NULLs, or the same values, in its key';

/* Rows of a source that a replica is to have, as what stands after FROM, with room for another condition. */
CREATE FUNCTION tablesync.rows_of_part(settings tablesync.replica)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format('%s WHERE (%s)', settings.source,
                  coalesce((SELECT c.canonical FROM tablesync.check_expression(settings.source, settings.filter, 'filter') c), 'true'));
END
$$;
COMMENT ON FUNCTION tablesync.rows_of_part(tablesync.replica) IS 'what stands after FROM to have the rows of a source that a replica is to have';

/* An error if a row of a view has no key; the source reads until it finds one. */
CREATE FUNCTION tablesync.check_null_keys(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_row record;
BEGIN
    FOR found_row IN
        EXECUTE format('SELECT %s FROM %s AND (%s) LIMIT 1',
                       (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(settings.key_columns) WITH ORDINALITY u (k, n)),
                       tablesync.rows_of_part(settings), tablesync.null_condition(settings.key_columns))
    LOOP
        PERFORM tablesync.refuse_view_key(settings, found_row::text, true);
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.check_null_keys(tablesync.replica) IS 'an error if a row of a view has NULL in its key';

/*
 * An error if two rows of a view have the same key, or one has none.  The source
 * makes groups of all rows; a plan that would do that here is no alternative,
 * whoever's session this is.  (A LIMIT would make it one.)
 */
CREATE FUNCTION tablesync.check_different_keys(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text := (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(settings.key_columns) WITH ORDINALITY u (k, n));
    query text := format('SELECT %1$s, count(*) FROM %2$s GROUP BY %1$s HAVING count(*) > 1 OR %3$s', keys, tablesync.rows_of_part(settings),
                         tablesync.null_condition(settings.key_columns));
    plan json;
    found_row record;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT JSON) ' || query INTO plan;
    IF plan::text ~ '"Node Type": "(Aggregate|Group)"' THEN
        RAISE EXCEPTION 'postgres_fdw would not ship a statement to the source'
            USING ERRCODE = 'fdw_error', DETAIL = format('To look for rows with the same (%s), all of them would be fetched.', keys);
    END IF;
    FOR found_row IN EXECUTE query LOOP
        PERFORM tablesync.check_null_keys(settings);
        PERFORM tablesync.refuse_view_key(settings, found_row::text, false);
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.check_different_keys(tablesync.replica) IS 'an error if two rows of a view have the same key, or one has none';

/* For a run that has come to nothing: the reason may be that the key of its view is none. */
CREATE FUNCTION tablesync.check_view_key(replica regclass)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tablesync.check_different_keys(t) FROM tablesync.replica t WHERE t.replica = $1 AND t.source_is_view;
$$;
COMMENT ON FUNCTION tablesync.check_view_key(regclass) IS 'an error if the source of a replica is a view whose rows do not have different keys';

/* Does a unique index prove the key?  Only materialized views have one. */
CREATE FUNCTION tablesync.has_view_index(source regclass, shape jsonb, key_columns name[])
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
BEGIN
    RETURN tablesync.is_source_unique(target.server, target.schema_name, target.table_name,
        ARRAY(SELECT (c->>'attnum')::integer FROM jsonb_array_elements(shape) c WHERE c->>'column' = ANY (key_columns) ORDER BY 1));
END
$$;
COMMENT ON FUNCTION tablesync.has_view_index(regclass, jsonb, name[]) IS 'whether a materialized view has a unique index on the columns that are the key of its replica';

/* Columns of the only unique index that a materialized view has; NULL if there is none, or more than one. */
CREATE FUNCTION tablesync.only_unique_index(source regclass, shape jsonb)
RETURNS name[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    image tablesync.source_image := tablesync.source_image(target.server, target.schema_name, target.table_name);
    found name[];
BEGIN
    SELECT array_agg((c->>'column')::name ORDER BY a.n) INTO found
    FROM (SELECT tablesync.key_attnums(i.indkey, i.nkeyatts) AS attnums, count(*) OVER () AS indexes
          FROM unnest(image.indkeys, image.indnkeyatts, image.uniques, image.immediates) i (indkey, nkeyatts, is_unique, is_immediate)
          WHERE i.is_unique AND i.is_immediate) i,
         unnest(i.attnums) WITH ORDINALITY a (attnum, n)
    JOIN jsonb_array_elements(shape) c ON (c->>'attnum')::integer = a.attnum
    WHERE i.indexes = 1;
    RETURN found;
END
$$;
COMMENT ON FUNCTION tablesync.only_unique_index(regclass, jsonb) IS 'columns of the only unique index of a materialized view';

/* Key columns of a view: what the user says. */
CREATE FUNCTION tablesync.view_key(source regclass, shape jsonb, key_columns name[])
RETURNS name[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    source_name text := quote_ident(target.schema_name) || '.' || quote_ident(target.table_name);
    chosen name[] := coalesce(key_columns, tablesync.only_unique_index(source, shape));
    missing text := (SELECT string_agg(quote_ident(k), ', ') FROM unnest(chosen) k
                     WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(shape) c WHERE c->>'column' = k));
BEGIN
    IF coalesce(cardinality(chosen), 0) = 0 THEN
        RAISE EXCEPTION 'the key of the view % is not known', source_name
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'A view has no primary key, and this one not just one unique index either.',
                  HINT = 'Name the columns by which its rows can be told apart as key_columns.';
    ELSIF missing IS NOT NULL OR cardinality(chosen) <> (SELECT count(DISTINCT k) FROM unnest(chosen) k) THEN
        RAISE EXCEPTION 'columns % are not a key of the source %', chosen, source_name
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = coalesce('There is no column ' || missing || '.', 'A column is named twice.');
    END IF;
    RETURN chosen;
END
$$;
COMMENT ON FUNCTION tablesync.view_key(regclass, jsonb, name[]) IS 'the key columns of a view, as they are named, or those of its only unique index';

/* What the rows of a view say of its key, when it is added. */
CREATE FUNCTION tablesync.check_view(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    started timestamptz := clock_timestamp();
    proved boolean := tablesync.has_view_index(settings.source, tablesync.source_shape(settings.source), settings.key_columns);
BEGIN
    IF proved THEN
        PERFORM tablesync.check_null_keys(settings);
    ELSE
        PERFORM tablesync.check_different_keys(settings);
    END IF;
    RAISE NOTICE 'the source %.% is a view', quote_ident(target.schema_name), quote_ident(target.table_name)
        USING DETAIL = CASE WHEN proved THEN 'A unique index proves its key. Which of its rows have changed only comparing them tells.'
                       ELSE format('That its rows have different keys was found by looking at all of them, which took %s s. Which of them have changed only comparing them tells, '
                                   'and that the tables behind it are rewritten meanwhile does not show; rows that seem to be gone are looked up again.',
                                   round(extract(epoch FROM clock_timestamp() - started)::numeric, 3)) END,
              HINT = 'A statement for each chunk makes the view, or what of it has such keys: see that an index of its tables helps with the key.';
END
$$;
COMMENT ON FUNCTION tablesync.check_view(tablesync.replica) IS 'an error if rows of a view have the same key, or none; says what is different with a view';
