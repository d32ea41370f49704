/* key.sql: why columns of a source are not a key of it */

/* In which way a unique index of a source comes near to being one on some columns: NULL if it does not, or if it is one. */
CREATE FUNCTION tablesync.index_problem(wanted integer[], attnums integer[], nkeyatts integer, is_partial boolean, has_expressions boolean,
                                        is_immediate boolean, is_valid boolean)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN wanted = '{}' OR NOT k.columns <@ wanted AND NOT wanted <@ attnums THEN NULL
                WHEN has_expressions THEN CASE WHEN k.columns <@ wanted THEN 'has expressions, which are no columns' END
                WHEN NOT wanted <@ k.columns AND wanted <@ attnums THEN 'has some of them as INCLUDE columns, which it does not compare'
                WHEN NOT wanted <@ k.columns THEN NULL
                WHEN NOT k.columns <@ wanted THEN 'has further columns, which are part of the key'
                WHEN is_partial THEN 'is partial: it says nothing about the rows outside of it'
                WHEN NOT is_immediate THEN 'is deferrable: rows may have the same key for a while'
                WHEN NOT is_valid THEN 'is not valid: it was not built to the end' END
    FROM (SELECT array_remove(attnums[:nkeyatts], 0)) k (columns);
$$;
COMMENT ON FUNCTION tablesync.index_problem(integer[], integer[], integer, boolean, boolean, boolean, boolean)
    IS 'what keeps a unique index of a source from being a key on some columns (their numbers), as the rest of a sentence';

/* Asks the source once more: whoever gets here is told why, and ends. */
CREATE FUNCTION tablesync.key_problem(source regclass, shape jsonb, key_columns name[])
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    wanted integer[];
    of_columns text;
    of_indexes text;
BEGIN
    SELECT array_agg((s.c->>'attnum')::integer) FILTER (WHERE s.c IS NOT NULL),
           string_agg(CASE WHEN s.c IS NULL THEN format('There is no column %I.', k.name)
                           WHEN NOT (s.c->>'not_null')::boolean THEN format('Column %I may be NULL.', k.name) END, ' ' ORDER BY k.name)
    INTO wanted, of_columns
    FROM (SELECT DISTINCT u.name FROM unnest(key_columns) u (name)) k
    LEFT JOIN jsonb_array_elements(shape) s (c) ON s.c->>'column' = k.name;
    EXECUTE format($sql$
        SELECT string_agg(format('Index %%I %%s.', left(q.relname, 63), q.problem), ' ' ORDER BY q.relname)
        FROM (SELECT c.relname, tablesync.index_problem(%3$L, v.attnums, i.indnkeyatts, i.indpred IS NOT NULL, i.indexprs IS NOT NULL,
                                                        i.indimmediate, i.indisvalid) AS problem
              FROM %1$s i JOIN %2$s c ON c.oid = i.indexrelid
              CROSS JOIN LATERAL (SELECT ARRAY(SELECT n::integer FROM unnest(i.indkey::smallint[]) n)) v (attnums)
              WHERE i.indrelid = %4$s AND i.indisunique
              ORDER BY 2, 1 LIMIT 5) q
        WHERE q.problem IS NOT NULL
        $sql$, tablesync.source_catalog(target.server, 'pg_index'), tablesync.source_catalog(target.server, 'pg_class'),
        coalesce(wanted, '{}'), relation.relid)
    INTO of_indexes;
    RETURN concat_ws(' ', 'A key needs a unique index at the source, on NOT NULL columns, that is neither partial nor deferrable.', of_columns, of_indexes);
END
$$;
COMMENT ON FUNCTION tablesync.key_problem(regclass, jsonb, name[]) IS 'why columns are not a key of a source: which of them, which index, and what it lacks';
