/*
 * shape.sql: columns of a source, with the types that they have here
 *
 * The shape of a source is what a run compares between two looks, and what a
 * replica was built for (tablesync.replica.shape).
 */

/* Names of array types say little: they make way for others. */
CREATE FUNCTION tablesync.is_array_of(type oid, element oid)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_type t JOIN pg_type e ON e.oid = t.typelem
                   WHERE t.oid = type AND (element IS NULL OR e.oid = element OR e.typtype = 'd'));
$$;
COMMENT ON FUNCTION tablesync.is_array_of(oid, oid) IS 'whether a type is that of arrays of an element type, or of a domain';

/* The local type for a column of the source, or why there is none. */
CREATE FUNCTION tablesync.local_type(server oid, remote_type oid, remote_typmod integer, image tablesync.source_image,
    OUT type oid, OUT typmod integer, OUT problem text, OUT labels text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    remote record;
    element oid;
    depth integer := 0;
BEGIN
    type := remote_type;
    typmod := remote_typmod;
    WHILE type >= 10000 LOOP    -- built-in types have the same OID everywhere
        depth := depth + 1;
        IF depth > 100 THEN
            problem := format('type %s of the source is a domain without end', remote_type);
            RETURN;
        END IF;
        SELECT k.oid, k.typname, k.nspname, k.typtype, k.typbasetype, k.typtypmod, k.typelem, array_agg(k.label ORDER BY k.n) AS labels
        INTO remote
        FROM unnest(image.typids, image.typnames, image.typschemas, image.typtypes, image.typbasetypes, image.typtypmods, image.typelems, image.labels)
            WITH ORDINALITY k (oid, typname, nspname, typtype, typbasetype, typtypmod, typelem, label, n)
        WHERE k.oid = type
        GROUP BY 1, 2, 3, 4, 5, 6, 7;
        IF NOT FOUND THEN    -- the type of a domain's or an array's elements
            EXECUTE format('SELECT t.oid, t.typname, n.nspname, t.typtype, t.typbasetype, t.typtypmod, t.typelem, '
                           'array_agg(e.enumlabel ORDER BY e.enumsortorder) AS labels '
                           'FROM %s t JOIN %s n ON n.oid = t.typnamespace LEFT JOIN %s e ON e.enumtypid = t.oid WHERE t.oid = %s '
                           'GROUP BY 1, 2, 3, 4, 5, 6, 7',
                           tablesync.source_catalog(server, 'pg_type'),
                           tablesync.source_catalog(server, 'pg_namespace'),
                           tablesync.source_catalog(server, 'pg_enum'), type)
            INTO remote;
        END IF;
        IF remote.typtype = 'd' THEN
            type := remote.typbasetype;
            typmod := remote.typtypmod;
            CONTINUE;
        END IF;
        type := to_regtype(format('%I.%I', remote.nspname, remote.typname));
        IF remote.typelem <> 0 THEN
            SELECT e.problem, e.labels, e.type INTO problem, labels, element FROM tablesync.local_type(server, remote.typelem, -1, image) e;
            IF remote.typname LIKE '\_%' AND NOT tablesync.is_array_of(type, element) THEN    -- which has got another name here
                type := (SELECT nullif(t.typarray, 0) FROM pg_type t WHERE t.oid = element);
            END IF;
        END IF;
        IF type IS NULL THEN
            problem := coalesce(problem, format('type %I.%I does not exist here', remote.nspname, remote.typname));
        ELSIF remote.typtype = 'e' THEN
            labels := remote.labels;
            IF labels IS DISTINCT FROM ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = type ORDER BY enumsortorder) THEN
                problem := format('type %I.%I has other labels here', remote.nspname, remote.typname);
            END IF;
        END IF;
        RETURN;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = type) THEN
        problem := format('the source''s built-in type %s is unknown here', type);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.local_type(oid, oid, integer, tablesync.source_image) IS 'the local type that holds values of a source''s type exactly; domains become their base type';

/* Is a collation of ours the order of bytes? */
CREATE FUNCTION tablesync.is_bytewise("collation" oid)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE c.collprovider
               WHEN 'd' THEN (SELECT d.datlocprovider = 'b' OR (d.datlocprovider = 'c' AND d.datcollate IN ('C', 'POSIX')) FROM pg_database d WHERE d.datname = current_database())
               WHEN 'b' THEN true    -- PostgreSQL's own, since 17, whatever is its locale
               ELSE c.collname IN ('C', 'POSIX', 'ucs_basic')
           END
    FROM pg_collation c
    WHERE c.oid = $1 AND c.collnamespace = 'pg_catalog'::regnamespace;
$$;
COMMENT ON FUNCTION tablesync.is_bytewise(oid) IS 'whether text of a collation is sorted by its bytes';

/*
 * Does the source's database sort text by its bytes, where a column has no
 * collation of its own?  Then we can sort it alike, whatever its version is.
 */
CREATE FUNCTION tablesync.ask_sorting(server oid)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_providers boolean;
    sorts_bytes boolean;
BEGIN
    EXECUTE format('SELECT setting::integer >= 150000 FROM %s WHERE name = ''server_version_num''', tablesync.source_catalog(server, 'pg_settings'))
    INTO has_providers;
    EXECUTE format('SELECT d.datcollate IN (''C'', ''POSIX'') %s FROM %s d WHERE d.datname = (SELECT catalog_name FROM %s)',
                   CASE WHEN has_providers THEN 'AND d.datlocprovider = ''c'' OR d.datlocprovider = ''b''' END,
                   tablesync.source_catalog(server, 'pg_database'), tablesync.source_catalog(server, 'information_schema_catalog_name'))
    INTO sorts_bytes;
    RETURN coalesce(sorts_bytes, false);
END
$$;
COMMENT ON FUNCTION tablesync.ask_sorting(oid) IS 'asks whether the default collation of a source''s database is the order of bytes';

CREATE FUNCTION tablesync.source_sorts_bytes(server oid)
RETURNS boolean
LANGUAGE C STRICT
AS 'MODULE_PATHNAME', 'tsync_source_sorts_bytes';
COMMENT ON FUNCTION tablesync.source_sorts_bytes(oid) IS 'whether the default collation of a source''s database is the order of bytes, asked once in a transaction';

/* Columns of a source table as the source's catalogs have them. */
CREATE FUNCTION tablesync.source_columns(server oid, schema_name text, table_name text)
RETURNS TABLE (attnum smallint, remote_name text, type oid, typmod integer, "collation" oid, bytewise boolean,
               not_null boolean, key_position integer, problem text, relid oid, labels text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation record := tablesync.source_relation(server, schema_name, table_name);
    image tablesync.source_image := tablesync.source_image(server, schema_name, table_name);
    attribute record;
    key_attnums integer[];
    local record;
    names text[] := '{}';
    sorts_bytes boolean;
BEGIN
    key_attnums := (SELECT tablesync.key_attnums(i.indkey, i.indnkeyatts)
                    FROM unnest(image.indkeys, image.indnkeyatts, image.primaries) i (indkey, indnkeyatts, is_primary) WHERE i.is_primary LIMIT 1);
    FOR attribute IN
        SELECT a.* FROM unnest(image.attnums, image.attnames, image.atttypids, image.atttypmods, image.attnotnulls, image.attcollations,
                               image.collnames, image.collnamespaces, image.colldeterministics)
            a (attnum, attname, atttypid, atttypmod, attnotnull, attcollation, collname, collnamespace, is_deterministic)
        ORDER BY a.attnum
    LOOP
        IF attribute.attname = ANY (names) OR attribute.attnum <= attnum OR attribute.attnum > 1600
           OR num_nulls(attribute.attname, attribute.atttypid, attribute.atttypmod, attribute.attnotnull, attribute.attcollation) > 0 THEN
            RAISE EXCEPTION 'the source''s catalogs list columns of %.% that no table can have', quote_ident(schema_name), quote_ident(table_name)
                USING ERRCODE = 'fdw_error',
                      DETAIL = format('Column %s is called %s.', attribute.attnum, quote_nullable(left(attribute.attname, 63))),
                      HINT = 'Look at the foreign tables over the source''s catalogs: SELECT * FROM tablesync.source_catalogs;';
        END IF;
        names := names || attribute.attname;
        local := tablesync.local_type(server, attribute.atttypid, attribute.atttypmod, image);
        attnum := attribute.attnum;
        remote_name := attribute.attname;
        type := local.type;
        typmod := local.typmod;
        not_null := attribute.attnotnull;
        key_position := array_position(key_attnums, attribute.attnum);
        problem := local.problem;
        labels := local.labels;
        relid := relation.relid;
        "collation" := NULL;
        bytewise := NULL;
        IF attribute.attcollation = 100 AND key_position IS NOT NULL THEN
            sorts_bytes := coalesce(sorts_bytes, tablesync.source_sorts_bytes(server));
            bytewise := sorts_bytes;
        END IF;
        IF attribute.attcollation NOT IN (0, 100) THEN     -- not the default collation
            "collation" := (SELECT l.oid FROM pg_collation l
                            WHERE l.collname::text = attribute.collname AND attribute.collnamespace = 11
                              AND l.collnamespace = 'pg_catalog'::regnamespace
                              AND l.collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database())));
            bytewise := tablesync.is_bytewise("collation");
            IF NOT attribute.is_deterministic THEN
                problem := 'its collation is not deterministic: different values count as equal';
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.source_columns(oid, text, text) IS 'columns of a source table with their local types, from the source''s catalogs';

CREATE FUNCTION tablesync.type_problem(type oid, key boolean, hashed boolean)
RETURNS text
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_type_problem';
COMMENT ON FUNCTION tablesync.type_problem(oid, boolean, boolean) IS 'why a column of a type can''t be replicated exactly, as part of a key, or compared by fingerprint; NULL if it can';

/*
 * The shape of a foreign table's source, for comparison between runs.  The
 * OID of the table tells whether column numbers of two shapes mean the same.
 */
CREATE FUNCTION tablesync.source_shape(source regclass)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    shape jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object(
               'column', coalesce(a.attname::text, c.remote_name),
               'remote', c.remote_name,
               'table', c.relid::bigint,
               'attnum', c.attnum,
               'type', format_type(c.type, c.typmod),
               'type_oid', c.type::bigint,
               'typmod', c.typmod,
               'collation', (SELECT co.collname FROM pg_collation co WHERE co.oid = c."collation"),
               'bytewise', c.bytewise,
               'not_null', c.not_null,
               'key', c.key_position,
               'labels', c.labels,
               'problem', c.problem) ORDER BY c.attnum)
    INTO shape
    FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
    LEFT JOIN pg_attribute a
        ON a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped
       AND c.remote_name = coalesce((SELECT option_value FROM pg_options_to_table(a.attfdwoptions)
                                     WHERE option_name = 'column_name'), a.attname);
    RETURN shape;
END
$$;
COMMENT ON FUNCTION tablesync.source_shape(regclass) IS 'names, types, collations, NOT NULL and key of the source''s columns as jsonb';

/*
 * A shape in a database that was restored from a dump, where columns have other
 * numbers, for those that were dropped are not there, and types other OIDs.
 */
CREATE FUNCTION tablesync.restored_shape(shape jsonb, replica regclass, source regclass)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(c.c - '{local,foreign}'::text[] || jsonb_strip_nulls(jsonb_build_object(
               'local', (SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = $2 AND a.attname = c.c->>'column' AND a.attnum > 0 AND NOT a.attisdropped AND c.c->>'hidden' IS NULL),
               'foreign', (SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = $3 AND a.attname = c.c->>'column' AND a.attnum > 0 AND NOT a.attisdropped),
               'type_oid', CASE WHEN (c.c->>'type_oid')::bigint >= 16384 THEN to_regtype(c.c->>'type')::oid::bigint END)) ORDER BY c.n)
    FROM jsonb_array_elements(shape) WITH ORDINALITY c (c, n);
$$;
COMMENT ON FUNCTION tablesync.restored_shape(jsonb, regclass, regclass) IS 'a shape with the numbers that columns and types have in a restored database';

/* The part of a shape whose change is a change of the source; the rest is for building columns here. */
CREATE FUNCTION tablesync.shape_core(shape jsonb)
RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(c.c - '{type_oid,typmod,labels,local,foreign,bytewise}'::text[] || jsonb_build_object('problem', c.c->'problem') ||
                     CASE WHEN c.c->'key' <> 'null' AND c.c->'bytewise' = 'true' THEN '{"bytewise": true}' ELSE '{}' END::jsonb ORDER BY c.n)
    FROM jsonb_array_elements(shape) WITH ORDINALITY c (c, n);
$$;
COMMENT ON FUNCTION tablesync.shape_core(jsonb) IS 'what two shapes of a source are compared by';

/* Did on_schema_change "ignore" leave a foreign table behind with the types that its source once had? */
CREATE FUNCTION tablesync.lags_behind(source regclass, shape jsonb)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM jsonb_to_recordset(shape) AS s ("column" name, type text)
                   JOIN pg_attribute f ON f.attrelid = source AND f.attname = s."column" AND NOT f.attisdropped
                   WHERE format_type(f.atttypid, f.atttypmod) <> s.type);
$$;
COMMENT ON FUNCTION tablesync.lags_behind(regclass, jsonb) IS 'whether a foreign table has other types than a shape of its source';

/* With on_schema_change "ignore" new columns are none of our business; a renamed one is not new. */
CREATE FUNCTION tablesync.known_shape(old jsonb, new jsonb)
RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_agg(n.n ORDER BY n.i), '[]')
    FROM jsonb_array_elements(new) WITH ORDINALITY n (n, i)
    WHERE EXISTS (SELECT FROM jsonb_array_elements(old) o (o)
                  WHERE o.o->'remote' = n.n->'remote'
                     OR (o.o->'table' = n.n->'table' AND o.o->'attnum' = n.n->'attnum'));
$$;
COMMENT ON FUNCTION tablesync.known_shape(jsonb, jsonb) IS 'a source''s new shape without the columns that the old one does not have';

/* Columns that a replica has in common with its source. */
CREATE FUNCTION tablesync.replica_columns(replica regclass)
RETURNS TABLE (column_name name, type bigint, typmod integer, nullable boolean, key_position integer,
               is_version boolean, problem text, refetch boolean, other_type boolean, bytewise_collation bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- those of the source, and then those that it computes
    SELECT s."column",
           r.atttypid::bigint,
           r.atttypmod,
           NOT (s.not_null AND r.attnotnull),
           array_position(t.key_columns, s."column"),
           s."column" = t.version_column,
           CASE WHEN f.attname IS NULL AND NOT s.computed THEN format('Foreign table %s has no column %I.', t.source, s."column")
                WHEN r.attname IS NULL THEN format('Table %s has no column %I.', t.replica, s."column")
                WHEN (r.atttypid, r.atttypmod) <> (f.atttypid, f.atttypmod) AND NOT s.computed THEN
                    format('Column %I has type %s in %s and type %s in foreign table %s.', s."column",
                           format_type(r.atttypid, r.atttypmod), t.replica,
                           format_type(f.atttypid, f.atttypmod), t.source)
           END,
           s."column" = ANY (t.refetch),
           NOT s.computed AND regexp_replace(s.type, '\([^)]*\)', '') <> regexp_replace(format_type(f.atttypid, f.atttypmod), '\([^)]*\)', '')
               AND NOT (f.atttypid IN ('text'::regtype, 'varchar'::regtype) AND s.type ~ '^(text|character varying)(\(\d+\))?$'),
           CASE WHEN s.bytewise AND tablesync.is_bytewise(r.attcollation) THEN r.attcollation::bigint END
    FROM tablesync.replica t
    CROSS JOIN LATERAL (
        SELECT c."column", c.not_null, c.type, c.bytewise, c.ordinality, false AS computed
        FROM ROWS FROM (jsonb_to_recordset(t.shape) AS ("column" name, not_null boolean, type text, bytewise boolean, hidden boolean))
            WITH ORDINALITY AS c ("column", not_null, type, bytewise, hidden, ordinality)
        WHERE c.hidden IS NOT TRUE
        UNION ALL
        SELECT e::name, false, NULL, NULL, 10000 + row_number() OVER (ORDER BY e), true FROM jsonb_object_keys(t.expressions) e
    ) s
    -- LIMIT: looked up one by one, where a join would read all of pg_attribute
    LEFT JOIN LATERAL (SELECT * FROM pg_attribute a WHERE a.attrelid = t.source AND a.attname = s."column" AND NOT a.attisdropped LIMIT 1) f ON true
    LEFT JOIN LATERAL (SELECT * FROM pg_attribute a WHERE a.attrelid = t.replica AND a.attname = s."column" AND NOT a.attisdropped LIMIT 1) r ON true
    WHERE t.replica = $1
    ORDER BY s.ordinality;
$$;
COMMENT ON FUNCTION tablesync.replica_columns(regclass) IS 'columns of a replica in the order of its source, with what no longer fits';
