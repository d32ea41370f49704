/*
 * image.sql: what a source's catalogs say of a table, read with one statement
 *
 * postgres_fdw sends a statement for each foreign scan, and needs three round
 * trips for it.  So all catalogs are joined and aggregated at the source.  A join
 * multiplies rows, where we want to add them: each row of pg_settings that is
 * asked for has one of the catalogs at its side, and the others have not.
 *
 * postgres_fdw reads in one snapshot of the source for as long as our
 * transaction lasts, and there a catalog never reads differently.  So the answer
 * is kept for the transaction (image.c), and whoever asks next asks nobody.
 */
CREATE TYPE tablesync.source_image AS (
    -- the server, and the session there
    server_version text, encoding text, row_security text, read_only text, lc_monetary text, hash bigint,
    xmins bigint[],
    -- the table
    relid oid, relkind "char", relfilenode oid, policies boolean, has_children boolean, estimated_rows double precision,
    -- its columns and indexes
    attnums smallint[], attnames text[], atttypids oid[], atttypmods integer[], attnotnulls boolean[], attcollations oid[],
    indkeys bytea[], indnkeyatts smallint[], primaries boolean[], uniques boolean[], immediates boolean[],
    -- collations of its columns; their types, as far as they are not built in, an element for each label; names of indexes
    collnames text[], collnamespaces oid[], colldeterministics boolean[],
    typids oid[], typnames text[], typschemas text[], typtypes "char"[], typbasetypes oid[], typtypmods integer[], typelems oid[],
    labels text[], indnames text[],
    -- its children
    children oid[], childfiles oid[], childparents boolean[]);
COMMENT ON TYPE tablesync.source_image IS 'what a source''s catalogs say of a table; each array has an element for each row of a catalog';

CREATE FUNCTION tablesync.source_image(server oid, schema_name text, table_name text, whole boolean DEFAULT false, horizon boolean DEFAULT false)
RETURNS tablesync.source_image
LANGUAGE C STRICT
AS 'MODULE_PATHNAME', 'tsync_source_image';
COMMENT ON FUNCTION tablesync.source_image(oid, text, text, boolean, boolean) IS 'what a source''s catalogs say of a table, asked once in a transaction; "whole": types or children are likely to matter; "horizon": the oldest transactions of sessions there, too';

/*
 * Ask the source.  Most tables have built-in types, the default collation, and
 * no partitions: the other catalogs are read where they are expected to matter
 * ("whole"), or where the answer shows that they do.
 *
 * The order of the joins is that of the text, here and there (connection.c): a
 * planner that looked for a better one would take longer than the statement.
 * What is done at the source is free of charge, as in execute/ship.c; otherwise
 * postgres_fdw may join here.
 */
CREATE FUNCTION tablesync.fetch_source_image(server oid, schema_name text, table_name text, whole boolean, horizon boolean)
RETURNS tablesync.source_image
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET join_collapse_limit = 1
SET from_collapse_limit = 1
SET seq_page_cost = 0
SET cpu_tuple_cost = 0
SET cpu_operator_cost = 0
SET jit = off
AS $$
DECLARE
    t jsonb := (SELECT jsonb_object_agg(c.catalog, c.foreign_table::text) FROM tablesync.source_catalogs c WHERE c.server = $1);
    image tablesync.source_image;
BEGIN
    PERFORM tablesync.source_catalog($1, k.name) FROM tablesync.source_catalog_columns() k WHERE NOT coalesce(t ? k.name, false);    -- an error
    EXECUTE format($sql$
        SELECT max(s.setting) FILTER (WHERE s.name = 'server_version_num'), max(s.setting) FILTER (WHERE s.name = 'server_encoding'),
               max(s.setting) FILTER (WHERE s.name = 'row_security'), max(s.setting) FILTER (WHERE s.name = 'default_transaction_read_only'),
               max(s.setting) FILTER (WHERE s.name = 'lc_monetary'), max(hashtextextended(s.name, 0)) FILTER (WHERE s.name = 'server_version_num'),
               %1$s,
               max(c.oid), (array_agg(c.relkind) FILTER (WHERE s.name = 'lc_monetary'))[1], max(c.relfilenode), bool_or(c.relrowsecurity),
               bool_or(c.relhassubclass), greatest(max(c.reltuples), 0),
               array_agg(a.attnum ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(a.attname ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(a.atttypid ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(a.atttypmod ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(a.attnotnull ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(a.attcollation ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(int2vectorsend(i.indkey) ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL),
               array_agg(i.indnkeyatts ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL),
               array_agg(i.indisprimary ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL),
               array_agg(i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL),
               array_agg(i.indimmediate ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL)
               %2$s
        FROM %3$s s
        LEFT JOIN (%4$s n JOIN %5$s c ON c.relnamespace = n.oid) ON n.nspname = %6$L AND c.relname = %7$L
        LEFT JOIN %8$s a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND s.name = 'server_version_num'
        LEFT JOIN %9$s i ON i.indrelid = c.oid AND s.name = 'row_security'
        %10$s %11$s
        WHERE s.name IN ('server_version_num', 'server_encoding', 'row_security', 'default_transaction_read_only', 'lc_monetary', 'port')
        $sql$,
        CASE WHEN horizon THEN 'array_agg(b.backend_xmin) FILTER (WHERE b.backend_xmin IS NOT NULL)' ELSE 'NULL::bigint[]' END,
        CASE WHEN whole THEN $sql$,
               array_agg(l.collname ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(l.collnamespace ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(l.collisdeterministic ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL),
               array_agg(t.oid ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(t.typname ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(tn.nspname ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(t.typtype ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(t.typbasetype ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(t.typtypmod ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(t.typelem ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(e.enumlabel ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL),
               array_agg(ic.relname ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL),
               array_agg(hc.oid ORDER BY hc.oid) FILTER (WHERE hc.oid IS NOT NULL),
               array_agg(hc.relfilenode ORDER BY hc.oid) FILTER (WHERE hc.oid IS NOT NULL),
               array_agg(hc.relkind = 'p' OR hc.relhassubclass ORDER BY hc.oid) FILTER (WHERE hc.oid IS NOT NULL)
        $sql$ END,
        t->>'pg_settings', t->>'pg_namespace', t->>'pg_class', schema_name, table_name, t->>'pg_attribute', t->>'pg_index',
        CASE WHEN horizon THEN format('LEFT JOIN %s b ON s.name = ''port''', t->>'pg_stat_activity') END,
        CASE WHEN whole THEN format($sql$
            LEFT JOIN %1$s l ON l.oid = a.attcollation AND a.attcollation <> 0 AND a.attcollation <> 100
            LEFT JOIN %2$s u ON u.attrelid = c.oid AND u.attnum > 0 AND NOT u.attisdropped AND u.atttypid >= 10000::oid AND s.name = 'server_encoding'
            LEFT JOIN %3$s t ON t.oid = u.atttypid
            LEFT JOIN %4$s tn ON tn.oid = t.typnamespace
            LEFT JOIN %5$s e ON e.enumtypid = t.oid
            LEFT JOIN %7$s ic ON ic.oid = i.indexrelid
            LEFT JOIN %6$s h ON h.inhparent = c.oid AND s.name = 'default_transaction_read_only'
            LEFT JOIN %7$s hc ON hc.oid = h.inhrelid
            $sql$, t->>'pg_collation', t->>'pg_attribute', t->>'pg_type', t->>'pg_namespace', t->>'pg_enum', t->>'pg_inherits', t->>'pg_class') END)
    INTO image;
    image.has_children := coalesce(image.has_children, false);
    IF NOT whole AND (image.has_children OR 10000 <= ANY (image.atttypids) OR NOT image.attcollations <@ '{0,100}'::oid[]) THEN
        RETURN tablesync.fetch_source_image(server, schema_name, table_name, true, horizon);
    END IF;
    image.has_children := image.has_children AND image.children IS NOT NULL;    -- it may be a thing of the past
    RETURN image;
END
$$;
COMMENT ON FUNCTION tablesync.fetch_source_image(oid, text, text, boolean, boolean) IS 'what a source''s catalogs say of a table, asked anew';

/* Column numbers of an index: a vector can't be aggregated, its binary form can. */
CREATE FUNCTION tablesync.key_attnums(indkey bytea, nkeyatts smallint)
RETURNS integer[]
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    -- 20 bytes of head, then length (4 bytes) and value (2 bytes) of each
    SELECT coalesce(array_agg(get_byte(indkey, 24 + 6 * n) * 256 + get_byte(indkey, 25 + 6 * n) ORDER BY n), '{}')
    FROM generate_series(0, least(nkeyatts::integer, (length(indkey) - 20) / 6) - 1) n;
$$;
COMMENT ON FUNCTION tablesync.key_attnums(bytea, smallint) IS 'numbers of an index''s key columns, from indkey in its binary form';

CREATE FUNCTION tablesync.is_source_unique(server oid, schema_name text, table_name text, attnums integer[])
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    image tablesync.source_image := tablesync.source_image(server, schema_name, table_name);
BEGIN
    RETURN EXISTS (SELECT FROM unnest(image.indkeys, image.indnkeyatts, image.uniques, image.immediates) i (indkey, nkeyatts, is_unique, is_immediate)
                   WHERE i.is_unique AND i.is_immediate
                     AND attnums = (SELECT array_agg(n ORDER BY n) FROM unnest(tablesync.key_attnums(i.indkey, i.nkeyatts)) n));
END
$$;
COMMENT ON FUNCTION tablesync.is_source_unique(oid, text, text, integer[]) IS 'whether a source has a unique index, neither partial nor deferrable, on just these columns (numbers in order)';
