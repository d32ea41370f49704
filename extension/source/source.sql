/*
 * source.sql: a source's catalogs, read through postgres_fdw
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
        ('pg_stat_activity', 'backend_xid bigint, backend_xmin bigint, xact_start timestamptz, state text, query text'),
        ('pg_stat_bgwriter', 'stats_reset timestamptz');
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
