/*
 * source.sql: what a source looks like, read through postgres_fdw
 *
 * A plain reader may read the system catalogs of the source.  One set of
 * foreign tables per server, in schema tablesync, makes them readable here;
 * their name columns are declared text, because comparisons of type name with
 * a constant do not ship.
 */

/* Which catalogs of a source are read, and which of their columns. */
CREATE FUNCTION tablesync.source_catalog_columns()
RETURNS TABLE (name text, columns text)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    VALUES
        ('pg_class', 'oid oid, relname text, relnamespace oid, relfilenode oid, relkind "char", '
                     'relrowsecurity boolean, relhassubclass boolean, reltuples real, relpages integer, relam oid'),
        ('pg_namespace', 'oid oid, nspname text'),
        ('pg_attribute', 'attrelid oid, attname text, attnum smallint, atttypid oid, atttypmod integer, '
                         'attcollation oid, attnotnull boolean, attisdropped boolean, attacl text, attgenerated "char"'),
        ('pg_attrdef', 'adrelid oid, adnum smallint, adbin text'),
        ('pg_constraint', 'conrelid oid, contype "char", convalidated boolean, conkey smallint[]'),
        ('pg_type', 'oid oid, typname text, typnamespace oid, typtype "char", typbasetype oid, '
                    'typtypmod integer, typelem oid'),
        ('pg_enum', 'enumtypid oid, enumlabel text, enumsortorder real'),
        ('pg_collation', 'oid oid, collname text, collnamespace oid, collisdeterministic boolean'),
        ('pg_index', 'indexrelid oid, indrelid oid, indisprimary boolean, indisunique boolean, '
                     'indimmediate boolean, indisvalid boolean, indnkeyatts smallint, indkey int2vector, indpred text, indexprs text'),
        ('pg_inherits', 'inhrelid oid, inhparent oid'),
        ('pg_database', 'datname text, datcollate text, datlocprovider "char"'),
        ('information_schema_catalog_name', 'catalog_name text'),
        ('pg_db_role_setting', 'setconfig text'),
        ('table_privileges', 'table_schema text, table_name text, grantee text, privilege_type text'),
        ('enabled_roles', 'role_name text'),
        ('column_privileges', 'table_schema text, table_name text, column_name text, privilege_type text'),
        ('pg_settings', 'name text, setting text, reset_val text'),
        ('pg_stats', 'schemaname text, tablename text, attname text, inherited boolean, correlation real, histogram_bounds text'),
        ('pg_stat_user_tables', 'relid oid, n_tup_ins bigint, n_tup_upd bigint, n_tup_del bigint'),
        ('pg_stat_database', 'datname text, stats_reset timestamptz'),
        ('pg_stat_activity', 'backend_xid bigint, backend_xmin bigint'),
        ('pg_stat_bgwriter', 'stats_reset timestamptz'),
        ('pg_cursors', 'creation_time timestamptz');
$$;
COMMENT ON FUNCTION tablesync.source_catalog_columns() IS 'names and columns of the foreign tables over a source''s catalogs';

CREATE FUNCTION tablesync.create_source_catalog(server oid)
RETURNS SETOF regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_name name := (SELECT srvname FROM pg_foreign_server WHERE oid = server);
    catalog record;
    table_name text;
BEGIN
    FOR catalog IN
        SELECT v.* FROM tablesync.source_catalog_columns() v
        WHERE NOT EXISTS (SELECT FROM tablesync.source_catalogs c
                          WHERE c.server = $1 AND c.catalog = v.name)
    LOOP
        table_name := left(server_name, 40) || '.' || catalog.name;
        IF to_regclass(format('tablesync.%I', table_name)) IS NOT NULL THEN
            table_name := server || '.' || catalog.name;
        END IF;
        EXECUTE format('CREATE FOREIGN TABLE tablesync.%I (%s) SERVER %I '
                       'OPTIONS (schema_name %L, table_name %L, fetch_size ''1000'', use_remote_estimate ''false'')',
                       table_name, catalog.columns, server_name,
                       CASE WHEN starts_with(catalog.name, 'pg_') THEN 'pg_catalog' ELSE 'information_schema' END, catalog.name);
        EXECUTE format('COMMENT ON FOREIGN TABLE tablesync.%I IS %L', table_name,
                       format('%s of the databases behind foreign server %s', catalog.name, server_name));
        RETURN NEXT format('tablesync.%I', table_name)::regclass;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.create_source_catalog(oid) IS 'creates the missing foreign tables over a server''s system catalogs';

/*
 * Who may use a server may read its catalogs: a row if a table is missing, or
 * a privilege of a role, or if another role has one that may not use the server
 * any more.
 */
CREATE FUNCTION tablesync.source_catalogs_missing(server oid, role oid)
RETURNS SETOF boolean
LANGUAGE plpgsql    -- keeps its plan
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT true
    FROM (SELECT count(*) AS tables, bool_and(has_table_privilege($2, c.foreign_table, 'SELECT')) AS readable,
                 bool_or(EXISTS (SELECT FROM aclexplode(r.relacl) x WHERE x.grantee <> r.relowner
                                 AND (x.grantee = 0 OR NOT has_server_privilege(x.grantee, $1, 'USAGE')))) AS outdated
          FROM tablesync.source_catalogs c JOIN pg_class r ON r.oid = c.foreign_table
          WHERE c.server = $1) k
    WHERE k.tables < (SELECT count(*) FROM tablesync.source_catalog_columns()) OR k.readable IS NOT TRUE OR k.outdated;
END
$$;
COMMENT ON FUNCTION tablesync.source_catalogs_missing(oid, oid) IS 'a row unless the foreign tables over a server''s catalogs are there and readable by a role, and by nobody who may not use the server';

CREATE FUNCTION tablesync.grant_source_catalogs(server oid, role oid)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT DISTINCT k.foreign_table, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS grantee
        FROM tablesync.source_catalogs k JOIN pg_class r ON r.oid = k.foreign_table, aclexplode(r.relacl) x
        WHERE k.server = $1 AND x.grantee <> r.relowner AND (x.grantee = 0 OR NOT has_server_privilege(x.grantee, $1, 'USAGE'))
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', c.foreign_table, c.grantee);
    END LOOP;
    FOR c IN
        SELECT k.foreign_table FROM tablesync.source_catalogs k
        WHERE k.server = $1 AND NOT has_table_privilege($2, k.foreign_table, 'SELECT')
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO %I', c.foreign_table, pg_get_userbyid($2));
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.grant_source_catalogs(oid, oid) IS 'lets a role that may use a server read its catalogs, and nobody who may not';

CREATE FUNCTION tablesync.prepare_server(server name)
RETURNS void
LANGUAGE C STRICT
AS 'MODULE_PATHNAME', 'tsync_prepare_server';
COMMENT ON FUNCTION tablesync.prepare_server(name) IS 'makes the system catalogs of a server''s database readable here; needs USAGE on the server';

CREATE VIEW tablesync.source_catalogs AS
SELECT t.ftserver AS server,
       (SELECT o.option_value FROM pg_catalog.pg_options_to_table(t.ftoptions) o WHERE o.option_name = 'table_name') AS catalog,
       t.ftrelid::pg_catalog.regclass AS foreign_table
FROM pg_catalog.pg_foreign_table t
JOIN pg_catalog.pg_class c ON c.oid = t.ftrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'tablesync';
GRANT SELECT ON tablesync.source_catalogs TO PUBLIC;
COMMENT ON VIEW tablesync.source_catalogs IS 'foreign tables over the system catalogs of sources, per server';

CREATE FUNCTION tablesync.source_catalog(server oid, catalog text)
RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    foreign_table regclass;
BEGIN
    SELECT c.foreign_table INTO foreign_table
    FROM tablesync.source_catalogs c
    WHERE c.server = $1 AND c.catalog = $2;
    IF foreign_table IS NULL THEN
        RAISE EXCEPTION 'the foreign table over % of server "%" is missing',
            catalog, (SELECT srvname FROM pg_foreign_server WHERE oid = server)
            USING ERRCODE = 'undefined_table',
                  HINT = 'Use tablesync.prepare_server() with the name of the server.';
    END IF;
    RETURN foreign_table;
END
$$;
COMMENT ON FUNCTION tablesync.source_catalog(oid, text) IS 'the foreign table over one system catalog of a server';

/* Where a foreign table points to. */
CREATE FUNCTION tablesync.source_target(source regclass, OUT server oid, OUT schema_name text, OUT table_name text)
LANGUAGE plpgsql STABLE    -- keeps its plan
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT t.ftserver,
           coalesce((SELECT option_value FROM pg_options_to_table(t.ftoptions) WHERE option_name = 'schema_name'), n.nspname),
           coalesce((SELECT option_value FROM pg_options_to_table(t.ftoptions) WHERE option_name = 'table_name'), c.relname)
    INTO server, schema_name, table_name
    FROM pg_foreign_table t
    JOIN pg_class c ON c.oid = t.ftrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE t.ftrelid = source;
END
$$;
COMMENT ON FUNCTION tablesync.source_target(regclass) IS 'server and remote name of a foreign table';

CREATE FUNCTION tablesync.source_relation(server oid, schema_name text, table_name text,
    OUT relid oid, OUT relkind "char", OUT relfilenode oid, OUT row_security boolean,
    OUT has_children boolean, OUT estimated_rows double precision)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    image tablesync.source_image := tablesync.source_image(server, schema_name, table_name);
BEGIN
    relid := image.relid;
    relkind := image.relkind;
    relfilenode := image.relfilenode;
    row_security := image.policies;
    has_children := image.has_children;
    estimated_rows := image.estimated_rows;
    IF relid IS NULL THEN
        RAISE EXCEPTION 'the source has no table %.%', quote_ident(schema_name), quote_ident(table_name)
            USING ERRCODE = 'undefined_table',
                  DETAIL = format('Looked for on server "%s".', (SELECT srvname FROM pg_foreign_server WHERE oid = server)),
                  HINT = 'It may have been dropped or renamed, or the server may point to another database.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.source_relation(oid, text, text) IS 'a table''s row in the source''s pg_class';

/*
 * Which files hold a source's rows, and what its columns are.  TRUNCATE, ALTER
 * TABLE, attached and detached partitions change it.
 */
CREATE FUNCTION tablesync.source_identity(source regclass, whole boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    image tablesync.source_image := tablesync.source_image(target.server, target.schema_name, target.table_name, whole);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    identity text := tablesync.image_identity(image);
    seen oid[] := ARRAY[relation.relid];
    parents oid[];
    found oid[];
    files text;
BEGIN
    IF NOT relation.has_children THEN
        RETURN identity;
    END IF;
    SELECT array_agg(c.oid), string_agg(format('%s:%s', c.oid, c.file), ' ' ORDER BY c.oid), array_agg(c.oid) FILTER (WHERE c.is_parent)
    INTO found, files, parents
    FROM unnest(image.children, image.childfiles, image.childparents) c (oid, file, is_parent);
    LOOP
        IF found && seen OR cardinality(seen) > 100000 THEN
            RAISE EXCEPTION 'partitions of the source %.% make no sense', quote_ident(target.schema_name), quote_ident(target.table_name)
                USING ERRCODE = 'fdw_error', DETAIL = 'Its catalogs say that a table is a partition of itself, or they are too many.';
        END IF;
        seen := seen || found;
        identity := concat_ws(' ', identity, files);
        EXIT WHEN coalesce(cardinality(parents), 0) = 0;
        EXECUTE format('SELECT array_agg(c.oid), string_agg(format(''%%s:%%s'', c.oid, c.relfilenode), '' '' ORDER BY c.oid) '
                       'FROM %s i JOIN %s c ON c.oid = i.inhrelid WHERE i.inhparent = ANY (%L::oid[])',
                       tablesync.source_catalog(target.server, 'pg_inherits'),
                       tablesync.source_catalog(target.server, 'pg_class'), parents)
        INTO found, files;
        parents := found;
    END LOOP;
    RETURN identity;
END
$$;
COMMENT ON FUNCTION tablesync.source_identity(regclass, boolean) IS 'OIDs and file nodes of a source table and its partitions, and a digest of its columns';

CREATE FUNCTION tablesync.files_of(identity text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(f, ' ' ORDER BY n) FROM regexp_split_to_table(identity, ' ') WITH ORDINALITY u (f, n) WHERE f ~ '^[0-9]+:[0-9]+(:-?[0-9]+)?$';
$$;
COMMENT ON FUNCTION tablesync.files_of(text) IS 'the part of a source''s identity that is remembered: OIDs, file nodes, and a digest of expressions';

/*
 * In how many blocks a source keeps its rows, 0 if that is not known, whether
 * they lie about in the order of their keys, how many blocks the server keeps in
 * memory, and how many rows it has ever changed, as far as its counters tell.
 */
CREATE FUNCTION tablesync.source_layout(replica regclass, OUT blocks bigint, OUT clustered boolean, OUT shared_buffers bigint, OUT changes bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    target record;
    first_key text;
    column_grants boolean;
    relid oid;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    target := tablesync.source_target(settings.source);
    first_key := (SELECT c->>'remote' FROM jsonb_array_elements(settings.shape) c
                  WHERE c->>'column' = settings.key_columns[1]);
    EXECUTE format('SELECT c.oid, greatest(c.relpages, 0), EXISTS (SELECT FROM %s a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL) '
                   'FROM %s c JOIN %s n ON n.oid = c.relnamespace '
                   'WHERE c.relname = %L AND n.nspname = %L AND c.relkind = ''r''',
                   tablesync.source_catalog(target.server, 'pg_attribute'), tablesync.source_catalog(target.server, 'pg_class'),
                   tablesync.source_catalog(target.server, 'pg_namespace'), target.table_name, target.schema_name)
    INTO relid, blocks, column_grants;
    IF blocks > 0 AND column_grants THEN
        BEGIN    -- grants on columns do not include where a row is
            EXECUTE format('SELECT ctid FROM %s LIMIT 0', settings.source);
        EXCEPTION WHEN insufficient_privilege THEN
            blocks := 0;
        END;
    END IF;
    BEGIN    -- only a hint
        EXECUTE format('SELECT correlation > 0.9 FROM %s '
                       'WHERE schemaname = %L AND tablename = %L AND attname = %L AND NOT inherited',
                       tablesync.source_catalog(target.server, 'pg_stats'), target.schema_name, target.table_name, first_key)
        INTO clustered;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
    EXECUTE format('SELECT setting FROM %s WHERE name = ''shared_buffers''', tablesync.source_catalog(target.server, 'pg_settings'))
    INTO shared_buffers;
    BEGIN    -- only a hint, too
        EXECUTE format('SELECT n_tup_ins + n_tup_upd + n_tup_del FROM %s WHERE relid = %L',
                       tablesync.source_catalog(target.server, 'pg_stat_user_tables'), relid)
        INTO changes;
    EXCEPTION WHEN insufficient_privilege OR numeric_value_out_of_range THEN
        NULL;
    END;
    blocks := coalesce(blocks, 0);
    clustered := coalesce(clustered, false);
END
$$;
COMMENT ON FUNCTION tablesync.source_layout(regclass) IS 'blocks of a replica''s source, whether its rows lie in the order of their keys, blocks of the server''s memory, and rows ever changed';

/*
 * What moves when a source changes: statistics counters, their resets (a crash
 * is one, and shows in pg_stat_bgwriter), and the files that hold the rows.
 * NULL where the counters do not tell: a standby's never move, and before
 * PostgreSQL 14 a source does not say whether it is one.
 */
CREATE FUNCTION tablesync.source_counters(source regclass)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    relation record := tablesync.source_relation(target.server, target.schema_name, target.table_name);
    uncounted bigint;
    counters record;
    resets text;
BEGIN
    EXECUTE format('SELECT max(s.setting) FILTER (WHERE s.name = ''in_hot_standby'') AS standby, max(s.setting) FILTER (WHERE s.name = ''track_counts'') AS track_counts, '
                   'max(u.n_tup_ins) AS n_tup_ins, max(u.n_tup_upd) AS n_tup_upd, max(u.n_tup_del) AS n_tup_del, max(b.stats_reset) AS reset, '
                   'array_agg(d.datname) FILTER (WHERE d.stats_reset IS NOT NULL) AS names, array_agg(d.stats_reset) FILTER (WHERE d.stats_reset IS NOT NULL) AS resets '
                   'FROM %s s LEFT JOIN %s u ON u.relid = %s AND s.name = ''track_counts'' '
                   'LEFT JOIN %s d ON d.stats_reset IS NOT NULL AND s.name = ''in_hot_standby'' LEFT JOIN %s b ON s.name = ''port'' '
                   'WHERE s.name IN (''in_hot_standby'', ''track_counts'', ''port'')',
                   tablesync.source_catalog(target.server, 'pg_settings'), tablesync.source_catalog(target.server, 'pg_stat_user_tables'), relation.relid,
                   tablesync.source_catalog(target.server, 'pg_stat_database'), tablesync.source_catalog(target.server, 'pg_stat_bgwriter'))
    INTO counters;
    IF counters.track_counts IS DISTINCT FROM 'on' OR counters.standby IS DISTINCT FROM 'off' OR relation.has_children OR relation.relkind <> 'r'
       OR counters.n_tup_ins IS NULL THEN
        RETURN NULL;
    END IF;
    -- what a session sets for itself nobody can see
    EXECUTE format('SELECT count(*) FROM (SELECT setconfig FROM %s OFFSET 0) s WHERE setconfig ~* ''track_counts=(?!on|true|yes|1)''',
                   tablesync.source_catalog(target.server, 'pg_db_role_setting'))
    INTO uncounted;
    IF uncounted > 0 THEN
        RETURN NULL;
    END IF;
    resets := (SELECT string_agg(concat_ws(' ', r.name, extract(epoch FROM r.reset)), ' ' ORDER BY r.name)
               FROM (SELECT * FROM unnest(counters.names, counters.resets) UNION ALL SELECT NULL, counters.reset) r (name, reset)
               WHERE r.reset IS NOT NULL);
    RETURN jsonb_build_object('inserted', counters.n_tup_ins, 'updated', counters.n_tup_upd, 'deleted', counters.n_tup_del,
                              'resets', resets, 'identity', tablesync.source_identity(source));
END
$$;
COMMENT ON FUNCTION tablesync.source_counters(regclass) IS 'statistics counters of a source, with what else must not have moved for them to mean anything';

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
