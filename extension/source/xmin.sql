/*
 * xmin.sql: which transaction has written each row of a source
 *
 * A row's xmin is a system column, which postgres_fdw does not ship; a column of
 * type xid with the remote name xmin it does.  Users' foreign tables are not to
 * have such a column, so each replica that is compared by xmin has another
 * foreign table of its own, in schema tablesync, with the key and xmin.
 */

/* Why a source's rows can't be compared by xmin; NULL if they can.  "readable": it is known that we may read all of them. */
CREATE FUNCTION tablesync.xmin_problem(source regclass, readable boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    image tablesync.source_image := tablesync.source_image(target.server, target.schema_name, target.table_name);
BEGIN
    IF tablesync.check_source_server(source) < 130000 THEN
        RETURN 'the source runs a PostgreSQL before 13';
    ELSIF (image.relkind IN ('r', 'p') AND image.access_method IN (0, 2)) IS NOT TRUE THEN    -- heap, or divided into heaps
        RETURN 'the source is not a table whose rows have an xmin';
    END IF;
    IF NOT readable THEN
        EXECUTE format('SELECT ctid FROM %s LIMIT 0', source);    -- a system column, too
    END IF;
    RETURN NULL;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN 'the source grants SELECT on its columns only, which does not include xmin';
END
$$;
COMMENT ON FUNCTION tablesync.xmin_problem(regclass, boolean) IS 'why the rows of a source can''t be compared by xmin; NULL if they can';

CREATE FUNCTION tablesync.refuse_xmin(source regclass, problem text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'the rows of source % can''t be compared by xmin', source
        USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = format('Reason: %s.', problem),
              HINT = 'Leave the setting fingerprint out, or set it to version or row.';
END
$$;
COMMENT ON FUNCTION tablesync.refuse_xmin(regclass, text) IS 'raises the error for a source whose rows can''t be compared by xmin';

/* The foreign table with key and xmin that a replica has; NULL if there is none. */
CREATE FUNCTION tablesync.find_xmin_table(replica regclass)
RETURNS regclass
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT d.objid::regclass
    FROM pg_depend d
    JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'f' AND c.relnamespace = 'tablesync'::regnamespace
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'a';
$$;
COMMENT ON FUNCTION tablesync.find_xmin_table(regclass) IS 'the foreign table through which xmin of a replica''s source is read';

/* Columns of a replica's foreign table that are its key or in its filter, and xmin under a name that none of them has. */
CREATE FUNCTION tablesync.xmin_columns(settings tablesync.all_replicas)
RETURNS TABLE (name name, type oid, typmod integer, "collation" oid, remote_name text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.attname, a.atttypid, a.atttypmod, a.attcollation,
           coalesce((SELECT o.option_value FROM pg_options_to_table(a.attfdwoptions) o WHERE o.option_name = 'column_name'), a.attname)
    FROM pg_attribute a
    WHERE a.attrelid = settings.source AND NOT a.attisdropped
      AND a.attname = ANY (settings.key_columns || tablesync.columns_of_expression(settings.filter))
    UNION ALL
    SELECT 'row_' || repeat('_', (SELECT count(*)::integer FROM unnest(settings.key_columns || tablesync.columns_of_expression(settings.filter)) k
                                  WHERE k ~ '^row_+xmin$')) || 'xmin', 'xid'::regtype, -1, 0, 'xmin'
    ORDER BY 1;
$$;
COMMENT ON FUNCTION tablesync.xmin_columns(tablesync.all_replicas) IS 'columns of the foreign table through which xmin of a replica''s source is read';

CREATE FUNCTION tablesync.drop_xmin_table(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    existing regclass := tablesync.find_xmin_table($1);
BEGIN
    IF existing IS NOT NULL THEN
        EXECUTE format('DROP FOREIGN TABLE %s', existing);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.drop_xmin_table(regclass) IS 'drops the foreign table through which xmin of a replica''s source was read';

/*
 * The foreign table through which xmin of a replica's source is read: the one
 * that there is, if it is as it has to be, else a new one.  It belongs to the
 * extension's owner; the replica's owner may read it, who may use the server.
 */
CREATE FUNCTION tablesync.xmin_table(replica regclass, OUT relation oid, OUT xmin_column name, OUT created boolean, OUT server oid)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.all_replicas;
    target record;
    role oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = $1);
    existing regclass := tablesync.find_xmin_table($1);
    name text := $1::oid || '.xmin';
BEGIN
    SELECT * INTO settings FROM tablesync.all_replicas t WHERE t.replica = $1;
    target := tablesync.source_target(settings.source);
    server := target.server;
    xmin_column := (SELECT x.name FROM tablesync.xmin_columns(settings) x WHERE x.remote_name = 'xmin' AND x.type = 'xid'::regtype);
    created := NOT (existing IS NOT NULL AND tablesync.source_target(existing) IS NOT DISTINCT FROM target
                    AND has_table_privilege(role, existing, 'SELECT')
                    AND NOT EXISTS (
                        SELECT FROM (SELECT a.attname, a.atttypid, a.atttypmod, a.attcollation,
                                            (SELECT o.option_value FROM pg_options_to_table(a.attfdwoptions) o WHERE o.option_name = 'column_name') AS remote_name
                                     FROM pg_attribute a WHERE a.attrelid = existing AND a.attnum > 0 AND NOT a.attisdropped) h
                        FULL JOIN tablesync.xmin_columns(settings) x ON x.name = h.attname
                        WHERE (h.attname, h.atttypid, h.atttypmod, h.attcollation, h.remote_name)
                              IS DISTINCT FROM (x.name, x.type, x.typmod, x."collation", x.remote_name)));
    relation := existing;
    IF NOT created THEN
        RETURN;
    END IF;
    IF NOT has_server_privilege(role, server, 'USAGE') THEN
        RAISE EXCEPTION 'role "%" may not use server "%"', pg_get_userbyid(role), (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = server)
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT USAGE ON FOREIGN SERVER %I TO %I;', (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = server), pg_get_userbyid(role));
    END IF;
    PERFORM tablesync.drop_xmin_table($1);
    EXECUTE format('DROP FOREIGN TABLE IF EXISTS tablesync.%I', name);    -- of a dump, or of another replica with this OID
    EXECUTE format('CREATE FOREIGN TABLE tablesync.%I (%s) SERVER %I OPTIONS (schema_name %L, table_name %L, fetch_size ''3000'', use_remote_estimate ''false'')',
                   name,
                   (SELECT string_agg(format('%I %s OPTIONS (column_name %L)%s', x.name, format_type(x.type, x.typmod), x.remote_name,
                                             CASE WHEN x."collation" <> t.typcollation THEN
                                                 format(' COLLATE %I.%I', n.nspname, co.collname) END), ', ')
                    FROM tablesync.xmin_columns(settings) x JOIN pg_type t ON t.oid = x.type
                    LEFT JOIN pg_collation co ON co.oid = x."collation" LEFT JOIN pg_namespace n ON n.oid = co.collnamespace),
                   (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = server), target.schema_name, target.table_name);
    relation := format('tablesync.%I', name)::regclass;
    EXECUTE format('COMMENT ON FOREIGN TABLE tablesync.%I IS %L', name, format('key and xmin of the source of replica %s', $1));
    EXECUTE format('GRANT SELECT ON tablesync.%I TO %I', name, pg_get_userbyid(role));
END
$$;
COMMENT ON FUNCTION tablesync.xmin_table(regclass) IS 'the foreign table through which xmin of a replica''s source is read; makes it if it is missing or not as it has to be';
