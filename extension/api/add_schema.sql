/*
 * add_schema.sql: tablesync_add for many tables at once
 *
 * A table that exists here and holds rows is never taken over by accident:
 * its name may be a coincidence, and a run would replace what it holds.
 */

/* Relations of a schema of the source; a partition names its parent. */
CREATE FUNCTION tablesync.source_tables(server oid, schema_name text)
RETURNS TABLE (table_name text, relkind "char", has_children boolean, pages integer, parent text, parent_schema text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    classes regclass := tablesync.source_catalog(server, 'pg_class');
    namespaces regclass := tablesync.source_catalog(server, 'pg_namespace');
    parents regclass := tablesync.source_catalog(server, 'pg_inherits');
    schema_found boolean;
BEGIN
    EXECUTE format('SELECT count(*) > 0 FROM %s WHERE nspname = %L', namespaces, schema_name) INTO schema_found;
    IF NOT schema_found THEN
        RAISE EXCEPTION 'the source has no schema %', quote_ident(schema_name)
            USING ERRCODE = 'invalid_schema_name',
                  DETAIL = format('Looked for on server "%s".', (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = server)),
                  HINT = 'Names are taken as they are: no quotes, no folding to lower case.';
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT DISTINCT c.relname, c.relkind, c.relhassubclass AND i.inhparent IS NOT NULL, c.relpages, p.relname, pn.nspname '
        'FROM %1$s c JOIN %2$s n ON n.oid = c.relnamespace '
        'LEFT JOIN (SELECT DISTINCT inhparent FROM %3$s) i ON i.inhparent = c.oid '
        'LEFT JOIN %3$s h ON h.inhrelid = c.oid '
        'LEFT JOIN %1$s p ON p.oid = h.inhparent AND p.relkind = ''p'' '
        'LEFT JOIN %2$s pn ON pn.oid = p.relnamespace '
        'WHERE n.nspname = %4$L AND c.relkind = ANY (''{r,p,v,m,f}'')', classes, namespaces, parents, schema_name);
END
$$;
COMMENT ON FUNCTION tablesync.source_tables(oid, text) IS 'tables, views and foreign tables of a schema of the source';

/* Why a local name can't be given to the replica of a source; NULL if it can. */
CREATE FUNCTION tablesync.name_problem(existing regclass, server oid, remote_schema text, table_name text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known record;
    has_rows boolean;
BEGIN
    IF existing IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT t.* INTO known FROM tablesync.replica r, tablesync.source_target(r.source) t WHERE r.replica = existing;
    IF FOUND THEN
        RETURN CASE WHEN known.server = name_problem.server AND known.schema_name = remote_schema AND known.table_name = name_problem.table_name THEN
                        'it is a replica already'
                    ELSE format('%s is the replica of something else: %I.%I of server "%s"', existing, known.schema_name, known.table_name,
                                (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = known.server)) END;
    END IF;
    IF (SELECT c.relkind = 'f' FROM pg_class c WHERE c.oid = existing) THEN
        RETURN (SELECT concat_ws(' ', existing::text || ' exists.', p.detail, p.hint) FROM tablesync.foreign_table_problem(existing) p);
    END IF;
    IF tablesync.owns(existing) AND (SELECT c.relkind IN ('r', 'p') FROM pg_class c WHERE c.oid = existing) THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', existing) INTO has_rows;
        IF has_rows THEN
            RETURN format('table %s exists and has rows; if a run may replace them, use tablesync_add()', existing);
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.name_problem(regclass, oid, text, text) IS 'why an existing table should not become the replica of a source without being named';

/* Tables of a schema of the source that we may read as a whole, as far as it is a matter of grants; others are tried. */
CREATE FUNCTION tablesync.readable_tables(server oid, schema_name text)
RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text[];
BEGIN
    EXECUTE format('SELECT array_agg(DISTINCT p.table_name) FROM %s p LEFT JOIN %s r ON r.role_name = p.grantee '
                   'WHERE p.table_schema = %L AND p.privilege_type = ''SELECT'' AND (p.grantee = ''PUBLIC'' OR r.role_name IS NOT NULL)',
                   tablesync.source_catalog(server, 'table_privileges'), tablesync.source_catalog(server, 'enabled_roles'), schema_name)
    INTO names;
    RETURN coalesce(names, '{}');
EXCEPTION WHEN insufficient_privilege THEN
    RETURN '{}';
END
$$;
COMMENT ON FUNCTION tablesync.readable_tables(oid, text) IS 'tables of a schema of the source on which we have SELECT';

/* What adding a table would bring; in the transaction that has added it, before that is undone. */
CREATE FUNCTION tablesync.describe_addition(replica regclass, pages integer)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    estimate record;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    estimate := tablesync.preflight_estimate(settings);
    RETURN format('would be added: by %s, key (%s)%s; ', settings.fingerprint,
                  (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(settings.key_columns) WITH ORDINALITY u (k, n)),
                  CASE WHEN pages > 0 THEN format('; %s at the source', pg_size_pretty(pages * 8192::bigint)) ELSE '' END)
        || concat_ws('. ', estimate.detail, estimate.hint);
END
$$;
COMMENT ON FUNCTION tablesync.describe_addition(regclass, integer) IS 'how a table would be added, and what load and runs would cost';

/*
 * Add one of many tables.  The reason tells why it was not added; with "dry_run",
 * what it would be, for everything is done and undone again.
 */
CREATE FUNCTION tablesync.try_add(server name, remote_schema text, relation jsonb, local_schema name, avoid text[], settings jsonb, dry_run boolean,
                                  OUT replica regclass, OUT added boolean, OUT reason text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_oid oid := (SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = server);
    table_name text := relation->>'table_name';
    replica_name text := format('%I.%I', local_schema, table_name);
    existing regclass := to_regclass(replica_name);
    detail text;
BEGIN
    added := false;
    reason := tablesync.name_problem(existing, server_oid, remote_schema, table_name);
    IF reason IS NOT NULL THEN
        replica := CASE WHEN reason = 'it is a replica already' THEN existing END;
        RETURN;
    END IF;
    settings := settings || jsonb_build_object('source_is_view', tablesync.is_view((relation->>'relkind')::"char"));    -- no matter for tables
    IF NOT EXISTS (SELECT FROM tablesync.source_columns(server_oid, remote_schema, table_name) c
                   WHERE c.remote_name = settings->>'version_column' AND c.key_position IS NULL) THEN
        settings := settings - 'version_column';
        IF settings->>'fingerprint' = 'version' THEN
            settings := settings - 'fingerprint';    -- whatever is best for a table without one
        END IF;
    END IF;
    replica := tablesync.add_replica(replica_name, existing, local_schema,
        tablesync.create_source(replica_name, existing, local_schema, server, format('%I.%I', remote_schema, table_name), settings, avoid),
        true, settings, (relation->>'readable')::boolean);
    IF dry_run THEN
        RAISE EXCEPTION USING ERRCODE = 'triggered_action_exception', MESSAGE = tablesync.describe_addition(replica, (relation->>'pages')::integer);
    END IF;
    added := true;
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
        replica := NULL;
        added := false;
        reason := concat_ws(': ', reason, nullif(detail, ''));
END
$$;
COMMENT ON FUNCTION tablesync.try_add(name, text, jsonb, name, text[], jsonb, boolean) IS 'adds a replica; an error undoes only this one, and is the reason; or tells what that would be';

/* Fail early with what would otherwise be the reason of every single table. */
CREATE FUNCTION tablesync.check_add_schema(server name, remote_schema text, local_schema text, only_tables name[], except_tables name[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_oid oid := (SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = server);
BEGIN
    IF server IS NULL OR remote_schema IS NULL OR local_schema IS NULL THEN
        RAISE EXCEPTION 'server, remote_schema and local_schema must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF server_oid IS NULL THEN
        RAISE EXCEPTION 'server "%" does not exist', server
            USING ERRCODE = 'undefined_object',
                  HINT = 'CREATE SERVER .. FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host .., dbname ..);';
    ELSIF NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = local_schema) THEN
        RAISE EXCEPTION 'schema "%" does not exist here', local_schema
            USING ERRCODE = 'invalid_schema_name', HINT = format('CREATE SCHEMA %I;', local_schema);
    ELSIF NOT has_schema_privilege(local_schema, 'CREATE') THEN
        RAISE EXCEPTION 'permission denied for schema %', quote_ident(local_schema)
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT CREATE ON SCHEMA %I TO %I;', local_schema, current_user);
    ELSIF only_tables && except_tables THEN
        RAISE EXCEPTION 'a table is named in only_tables and in except_tables' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM tablesync.check_mapping(current_user, server_oid);
    PERFORM tablesync.prepare_server(server);
END
$$;
COMMENT ON FUNCTION tablesync.check_add_schema(name, text, text, name[], name[]) IS 'an error if no table of a schema could be added';

/* Settings that are given for each table by its name. */
CREATE FUNCTION tablesync.check_parts(parts jsonb)
RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    misfit text;
BEGIN
    SELECT p.key INTO misfit FROM jsonb_each(parts) p WHERE jsonb_typeof(p.value) NOT IN ('object', 'null') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'invalid value for %: %', misfit, quote_literal(left(parts->>misfit, 100))
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('It must be an object with a value for each table by its name: %s.',
                                CASE misfit WHEN 'columns' THEN '{"customers": ["id", "name"]}' WHEN 'filter' THEN '{"customers": "id % 100 = 7"}'
                                            ELSE '{"customers": {"email": "md5(email)"}}' END);
    END IF;
    RETURN parts;
END
$$;
COMMENT ON FUNCTION tablesync.check_parts(jsonb) IS 'settings of single tables; an error unless they are given by name';

/*
 * A partition comes with its parent.  It gets no row of its own, unless it was
 * asked for or the parent is in another schema.  A name that the source does
 * not have gets one: it is probably a typing error.
 */
CREATE FUNCTION tablesync.list_tables(all_tables jsonb, remote_schema text, only_tables name[], except_tables name[], part_tables name[], with_views boolean)
RETURNS TABLE (table_name text, relkind "char", pages integer, reason text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(t.table_name, w.name), t.relkind, t.pages,
           CASE WHEN t.table_name IS NULL THEN 'the source has no such table'
                ELSE coalesce(tablesync.source_kind_problem(t.relkind, t.has_children, with_views AND tablesync.is_view(t.relkind)),
                              CASE WHEN t.parent IS NOT NULL THEN
                                  format('It is a partition of %I.%I, whose replica has its rows.', t.parent_schema, t.parent) END) END
    FROM jsonb_to_recordset(all_tables) AS t (table_name text, relkind "char", has_children boolean, pages integer, parent text, parent_schema text)
    FULL JOIN (SELECT DISTINCT u.name::text FROM unnest(only_tables || except_tables || part_tables) u (name)) w ON w.name = t.table_name
    WHERE t.table_name IS NULL
       OR (only_tables IS NULL OR t.table_name = ANY (only_tables))
          AND (except_tables IS NULL OR t.table_name <> ALL (except_tables))
          AND (only_tables IS NOT NULL OR t.parent IS NULL OR t.parent_schema <> remote_schema);
$$;
COMMENT ON FUNCTION tablesync.list_tables(jsonb, text, name[], name[], name[], boolean) IS 'tables of a schema of the source that somebody means, and why one can''t be added in any case';

/*
 * What all tables have in common is asked of the source at once: what its
 * catalogs say of them, by the hundred, and which we may read.  That we may use
 * their schema the first one shows that was added without relying on it.
 */
CREATE FUNCTION tablesync.add_schema(server name, remote_schema text, local_schema text, only_tables name[], except_tables name[], settings jsonb, parts jsonb, dry_run boolean)
RETURNS TABLE (source text, replica regclass, added boolean, reason text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    at_once CONSTANT integer := 100;
    server_oid oid := (SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = server);
    all_tables jsonb;
    tables jsonb;
    avoid text[];
    wanted text[];
    readable text[] := '{}';
    schema_tried boolean := false;
    relation jsonb;
BEGIN
    PERFORM tablesync.check_primary('tablesync_add_schema()');
    PERFORM tablesync.check_add_schema(server, remote_schema, local_schema, only_tables, except_tables);
    SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]'), coalesce(array_agg(t.table_name), '{}')    -- any of them may be added later
    INTO all_tables, avoid
    FROM tablesync.source_tables(server_oid, remote_schema) t;
    SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY t.table_name), '[]'), coalesce(array_agg(t.table_name) FILTER (WHERE t.reason IS NULL), '{}')
    INTO tables, wanted
    FROM tablesync.list_tables(all_tables, remote_schema, only_tables, except_tables,
        ARRAY(SELECT jsonb_object_keys(p.value)::name FROM jsonb_each(parts) p WHERE p.value <> 'null'), coalesce((settings->>'source_is_view')::boolean, false)) t;
    IF cardinality(wanted) > 1 THEN
        PERFORM tablesync.source_images(server_oid, remote_schema, wanted[n:n + at_once - 1]) FROM generate_series(1, cardinality(wanted), at_once) n;
        readable := tablesync.readable_tables(server_oid, remote_schema);
    END IF;
    FOR relation IN SELECT t FROM jsonb_array_elements(tables) t LOOP
        source := format('%I.%I', remote_schema, relation->>'table_name');
        replica := NULL;
        added := false;
        reason := relation->>'reason';
        IF reason IS NULL THEN
            relation := relation || jsonb_build_object('readable', schema_tried AND relation->>'table_name' = ANY (readable));
            SELECT a.replica, a.added, a.reason INTO replica, added, reason
            FROM tablesync.try_add(server, remote_schema, relation, local_schema, avoid,
                settings || coalesce((SELECT jsonb_object_agg(p.key, p.value->(relation->>'table_name')) FROM jsonb_each(parts) p
                                      WHERE p.value ? (relation->>'table_name')), '{}'), dry_run) a;
            schema_tried := schema_tried OR added OR reason LIKE 'would be added: %';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.add_schema(name, text, text, name[], name[], jsonb, jsonb, boolean) IS 'adds the tables of a schema of the source, one by one';

CREATE FUNCTION @extschema@.tablesync_add_schema(
    server name,
    remote_schema text,
    local_schema text,
    only_tables name[] DEFAULT NULL,
    except_tables name[] DEFAULT NULL,
    @settings add_schema: {name} {type} DEFAULT {default}@,
    columns jsonb DEFAULT NULL,
    filter jsonb DEFAULT NULL,
    expressions jsonb DEFAULT NULL,
    dry_run boolean DEFAULT false)
RETURNS TABLE (source text, replica regclass, added boolean, reason text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM tablesync.add_schema($1, $2, $3, $4, $5,
        jsonb_build_object(
            @settings add_schema: '{name}', {name}@),
        tablesync.check_parts(jsonb_build_object('columns', columns, 'filter', filter, 'expressions', expressions)), dry_run);
$$;
COMMENT ON FUNCTION @extschema@.tablesync_add_schema(name, text, text, name[], name[], @settings add_schema: {type}@, jsonb, jsonb, jsonb, boolean)
    IS 'adds every table of a schema of the source that has a usable key, and says why the others were not added; with dry_run, only what would be';
