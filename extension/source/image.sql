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
    server_version text, encoding text, row_security text, read_only text, lc_monetary text, standby text, options_arrive boolean, unlike text, hash bigint,
    xmins bigint[], xids bigint[], stats_reset timestamptz, instant timestamptz,
    -- the table
    relid oid, relkind "char", relfilenode oid, access_method oid, policies boolean, has_children boolean, estimated_rows double precision,
    -- its columns and indexes
    attnums smallint[], attnames text[], atttypids oid[], atttypmods integer[], attnotnulls boolean[], attcollations oid[], expressions bigint,
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

CREATE FUNCTION tablesync.source_images(server oid, schema_name text, names text[])
RETURNS integer
LANGUAGE C STRICT
AS 'MODULE_PATHNAME', 'tsync_source_images';
COMMENT ON FUNCTION tablesync.source_images(oid, text, text[]) IS 'asks a source what its catalogs say of some tables, for tablesync.source_image() in the same transaction; returns of how many it has learned';

/*
 * The statement that asks a source: $1 is the schema of a table there, $2 its
 * name.  Most tables have built-in types, the default collation, and no
 * partitions: the other catalogs are read where they are expected to matter
 * ("whole"), or where the answer's second column says that they do.
 *
 * No answer is more than the image of a table can be, such as 100,000 partitions,
 * or as many labels of 63 bytes.  What is larger was made up, and would be copied
 * many times here; so the source counts first.  Where it is asked for some tables
 * at once, those of which there is more to say are left out, and asked for one by one.
 *
 * The clock of the source is read from the beginning of our transaction there:
 * now() would not be asked there, and the statement itself begins after its
 * snapshot was taken.  Of the sessions that pg_stat_activity shows, ours is one of
 * those that fetch from a catalog at this moment; the oldest of them is no later.
 * What was committed before is seen by all that is read after it.
 *
 * Since 18 a column that says NOT NULL may have older NULLs, while a constraint
 * is NOT VALID; and a virtual generated column may get other values without a
 * row being written, by another expression.
 *
 * The order of the joins is that of the text, here (image.c) and there
 * (connection.c): a planner that looked for a better one would take longer than
 * the statement.
 */
CREATE FUNCTION tablesync.source_image_statement(server oid, whole boolean, horizon boolean, several boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t jsonb := (SELECT jsonb_object_agg(c.catalog, c.foreign_table::text) FROM tablesync.source_catalogs c WHERE c.server = $1);
BEGIN
    PERFORM tablesync.source_catalog($1, k.name) FROM tablesync.source_catalog_columns() k WHERE NOT coalesce(t ? k.name, false);    -- an error
    RETURN format($sql$
        SELECT ROW(server_version, encoding, row_security, read_only, lc_monetary, standby, options_arrive, unlike, hash, xmins, xids, stats_reset, instant,
                   relid, relkind, relfilenode, access_method, policies, has_children, estimated_rows,
                   attnums, attnames, atttypids, atttypmods, attnotnulls, attcollations, expressions, indkeys, indnkeyatts, primaries, uniques, immediates,
                   collnames, collnamespaces, colldeterministics, typids, typnames, typschemas, typtypes, typbasetypes, typtypmods, typelems,
                   labels, indnames, children, childfiles, childparents)::tablesync.source_image,
               coalesce(has_children OR 10000 <= ANY (atttypids) OR NOT attcollations <@ '{0,100}'::oid[], false), relname
        FROM (
            SELECT %14$s AS relname, max(s.setting) FILTER (WHERE s.name = 'server_version_num') AS server_version,
                   max(s.setting) FILTER (WHERE s.name = 'server_encoding') AS encoding,
                   max(s.setting) FILTER (WHERE s.name = 'row_security') AS row_security,
                   max(s.setting) FILTER (WHERE s.name = 'default_transaction_read_only') AS read_only,
                   max(s.setting) FILTER (WHERE s.name = 'lc_monetary') AS lc_monetary,
                   max(s.setting) FILTER (WHERE s.name = 'in_hot_standby') AS standby,
                   coalesce(bool_or(s.name = 'geqo_seed' AND s.setting = '0.815'), false) AS options_arrive,    -- connection.c sets it
                   string_agg(s.name || ' is ' || s.reset_val, ', ' ORDER BY s.name)
                       FILTER (WHERE (s.name = 'DateStyle' AND s.reset_val NOT IN ('ISO, MDY', 'ISO, DMY', 'ISO, YMD'))
                                  OR (s.name = 'IntervalStyle' AND s.reset_val <> 'postgres')
                                  OR (s.name = 'extra_float_digits' AND s.reset_val NOT IN ('1', '2', '3'))) AS unlike,
                   max(hashtextextended(s.name, 0)) FILTER (WHERE s.name = 'server_version_num') AS hash,
                   %1$s,
                   max(c.oid) AS relid, (array_agg(c.relkind) FILTER (WHERE s.name = 'lc_monetary'))[1] AS relkind,
                   max(c.relfilenode) AS relfilenode, max(c.relam) AS access_method, bool_or(c.relrowsecurity) AS policies,
                   coalesce(bool_or(c.relhassubclass), false)%2$s AS has_children, greatest(max(c.reltuples), 0) AS estimated_rows,
                   array_agg(a.attnum ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS attnums,
                   array_agg(a.attname ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS attnames,
                   array_agg(a.atttypid ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS atttypids,
                   array_agg(a.atttypmod ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS atttypmods,
                   array_agg(a.attnotnull AND k.conrelid IS NULL ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS attnotnulls,
                   array_agg(a.attcollation ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS attcollations,
                   hashtextextended(string_agg(d.adbin, ' ' ORDER BY a.attnum), 0) AS expressions,
                   array_agg(int2vectorsend(i.indkey) ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL) AS indkeys,
                   array_agg(i.indnkeyatts ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL) AS indnkeyatts,
                   array_agg(i.indisprimary ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL) AS primaries,
                   array_agg(i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL ORDER BY i.indexrelid)
                       FILTER (WHERE i.indrelid IS NOT NULL) AS uniques,
                   array_agg(i.indimmediate ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL) AS immediates,
                   %3$s
            FROM %4$s s
            LEFT JOIN (%5$s n JOIN %6$s c ON c.relnamespace = n.oid) ON n.nspname = $1 AND c.relname = %15$s
            LEFT JOIN %7$s a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND s.name = 'server_version_num'
            LEFT JOIN %8$s k ON k.conrelid = a.attrelid AND k.conkey = ARRAY[a.attnum] AND k.contype = 'n' AND NOT k.convalidated
            LEFT JOIN %9$s d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated = 'v'
            LEFT JOIN %10$s i ON i.indrelid = c.oid AND s.name = 'row_security'
            %11$s %12$s
            WHERE s.name IN ('server_version_num', 'server_encoding', 'row_security', 'default_transaction_read_only', 'lc_monetary', 'in_hot_standby', 'geqo_seed',
                             'DateStyle', 'IntervalStyle', 'extra_float_digits', 'port')
            %16$s HAVING count(*) <= %17$s AND %13$s) answer
        $sql$,
        CASE WHEN horizon THEN 'array_agg(b.backend_xmin) FILTER (WHERE b.backend_xmin IS NOT NULL) AS xmins, '
                               'array_agg(b.backend_xid) FILTER (WHERE b.backend_xid IS NOT NULL) AS xids, max(g.stats_reset) AS stats_reset, '
                               'min(b.xact_start) FILTER (WHERE b.state = ''active'' AND b.query LIKE ''FETCH 1000 FROM c%'') AS instant'
             ELSE 'NULL::bigint[] AS xmins, NULL::bigint[] AS xids, NULL::timestamptz AS stats_reset, NULL::timestamptz AS instant' END,
        CASE WHEN whole THEN ' AND count(hc.oid) > 0' END,    -- it may be a thing of the past
        CASE WHEN whole THEN $sql$
                   array_agg(l.collname ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS collnames,
                   array_agg(l.collnamespace ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS collnamespaces,
                   array_agg(l.collisdeterministic ORDER BY a.attnum) FILTER (WHERE a.attrelid IS NOT NULL) AS colldeterministics,
                   array_agg(t.oid ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS typids,
                   array_agg(t.typname ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS typnames,
                   array_agg(tn.nspname ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS typschemas,
                   array_agg(t.typtype ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS typtypes,
                   array_agg(t.typbasetype ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS typbasetypes,
                   array_agg(t.typtypmod ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS typtypmods,
                   array_agg(t.typelem ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS typelems,
                   array_agg(e.enumlabel ORDER BY t.oid, e.enumsortorder) FILTER (WHERE t.oid IS NOT NULL) AS labels,
                   array_agg(ic.relname ORDER BY i.indexrelid) FILTER (WHERE i.indrelid IS NOT NULL) AS indnames,
                   array_agg(hc.oid ORDER BY hc.oid) FILTER (WHERE hc.oid IS NOT NULL) AS children,
                   array_agg(hc.relfilenode ORDER BY hc.oid) FILTER (WHERE hc.oid IS NOT NULL) AS childfiles,
                   array_agg(hc.relkind = 'p' OR hc.relhassubclass ORDER BY hc.oid) FILTER (WHERE hc.oid IS NOT NULL) AS childparents
        $sql$ ELSE $sql$
                   NULL::text[] AS collnames, NULL::oid[] AS collnamespaces, NULL::boolean[] AS colldeterministics,
                   NULL::oid[] AS typids, NULL::text[] AS typnames, NULL::text[] AS typschemas, NULL::"char"[] AS typtypes,
                   NULL::oid[] AS typbasetypes, NULL::integer[] AS typtypmods, NULL::oid[] AS typelems, NULL::text[] AS labels,
                   NULL::text[] AS indnames, NULL::oid[] AS children, NULL::oid[] AS childfiles, NULL::boolean[] AS childparents
        $sql$ END,
        t->>'pg_settings', t->>'pg_namespace', t->>'pg_class', t->>'pg_attribute', t->>'pg_constraint', t->>'pg_attrdef', t->>'pg_index',
        CASE WHEN horizon THEN format('LEFT JOIN %s b ON s.name = ''port'' LEFT JOIN %s g ON s.name = ''port''',
                                      t->>'pg_stat_activity', t->>'pg_stat_bgwriter') END,
        CASE WHEN whole THEN format($sql$
            LEFT JOIN %1$s l ON l.oid = a.attcollation AND a.attcollation <> 0 AND a.attcollation <> 100
            LEFT JOIN %2$s u ON u.attrelid = c.oid AND u.attnum > 0 AND NOT u.attisdropped AND u.atttypid >= 10000::oid AND s.name = 'server_encoding'
            LEFT JOIN %3$s t ON t.oid = u.atttypid
            LEFT JOIN %4$s tn ON tn.oid = t.typnamespace
            LEFT JOIN %5$s e ON e.enumtypid = t.oid
            LEFT JOIN %7$s ic ON ic.oid = i.indexrelid
            LEFT JOIN %6$s h ON h.inhparent = c.oid AND s.name = 'default_transaction_read_only'
            LEFT JOIN %7$s hc ON hc.oid = h.inhrelid
            $sql$, t->>'pg_collation', t->>'pg_attribute', t->>'pg_type', t->>'pg_namespace', t->>'pg_enum', t->>'pg_inherits', t->>'pg_class') END,
        (SELECT string_agg(format('(sum(octet_length(%1$s)) IS NULL OR sum(octet_length(%1$s)) <= %2$s)', n.name, CASE WHEN several THEN 200000 ELSE 8000000 END), ' AND ')
         FROM unnest(CASE WHEN whole THEN '{s.setting,a.attname,l.collname,t.typname,tn.nspname,e.enumlabel,ic.relname}'::text[]
                          ELSE '{s.setting,a.attname}' END) n (name)),
        CASE WHEN several THEN 'c.relname' ELSE 'NULL::text' END, CASE WHEN several THEN 'ANY ($2)' ELSE '$2' END,
        CASE WHEN several THEN 'GROUP BY c.relname' END, CASE WHEN several THEN 10000 ELSE 250000 END);
END
$$;
COMMENT ON FUNCTION tablesync.source_image_statement(oid, boolean, boolean, boolean) IS 'the statement that asks what a source''s catalogs say of a table, and whether that leaves out what matters; "several": of some tables, and their names';

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

/* The identity of a table without children: OID, file node, what its virtual columns are, and a digest of its columns. */
CREATE FUNCTION tablesync.image_identity(image tablesync.source_image)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- no server has such long names, and one that lies is not to fill our memory
    SELECT concat_ws(' ', concat_ws(':', image.relid, image.relfilenode, image.expressions),
        (SELECT md5(string_agg(concat_ws(' ', a.attnum, a.atttypid, a.atttypmod, a.attnotnull,
                                         CASE WHEN octet_length(a.attname) > 63 THEN md5(a.attname) ELSE a.attname END), ',' ORDER BY a.attnum))
         FROM unnest(image.attnums, image.attnames, image.atttypids, image.atttypmods, image.attnotnulls)
             a (attnum, attname, atttypid, atttypmod, attnotnull)));
$$;
COMMENT ON FUNCTION tablesync.image_identity(tablesync.source_image) IS 'OID and file node of a source table, and a digest of its columns';

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
