/* add.sql: tablesync_add */

/*
 * A type as DDL names it: with its schema, unless that is pg_catalog, and with its
 * modifier.  The number is the source's, and a function of the type makes text of
 * it: an error if that is anything else than the name of the type.
 */
CREATE FUNCTION tablesync.type_name(type oid, typmod integer)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := format_type(type, typmod);
BEGIN
    IF type < 16384 OR to_regtype(name) = type THEN
        RETURN name;
    END IF;
    RAISE EXCEPTION 'type % has no modifier % here', type::regtype, typmod
        USING ERRCODE = 'undefined_object',
              DETAIL = format('As text it is %s.', quote_literal(left(name, 200))),
              HINT = 'Create the type here like at the source.';
END
$$;
COMMENT ON FUNCTION tablesync.type_name(oid, integer) IS 'name of a type with its schema and modifier, for DDL';

/* Definitions of the columns of a source, for CREATE [FOREIGN] TABLE. */
CREATE FUNCTION tablesync.column_definitions(server oid, schema_name text, table_name text, needed name[])
RETURNS text
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('%I %s%s%s', c.remote_name,
                             tablesync.type_name(c.type, c.typmod),
                             CASE WHEN c."collation" IS NOT NULL THEN
                                 format(' COLLATE pg_catalog.%I', (SELECT collname FROM pg_collation WHERE oid = c."collation")) END,
                             CASE WHEN c.not_null THEN ' NOT NULL' END), ', ' ORDER BY c.attnum)
    FROM tablesync.source_columns(server, schema_name, table_name) c
    WHERE needed IS NULL OR c.remote_name = ANY (needed);
$$;
COMMENT ON FUNCTION tablesync.column_definitions(oid, text, text, name[]) IS 'column definitions of a source, or of some of its columns, with names, types, collations and NOT NULL, nothing else';

/*
 * Options that runs need: rows fetched by the thousand where nobody has
 * decided otherwise, and the planner's own estimates, with which every
 * statement ships.
 */
CREATE FUNCTION tablesync.set_source_options(source regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    of_table jsonb;
    of_server jsonb;
    changes text[] := '{}';
    change text;
BEGIN
    SELECT coalesce((SELECT jsonb_object_agg(option_name, option_value) FROM pg_options_to_table(t.ftoptions)), '{}'),
           coalesce((SELECT jsonb_object_agg(option_name, option_value) FROM pg_options_to_table(s.srvoptions)), '{}')
    INTO of_table, of_server
    FROM pg_foreign_table t JOIN pg_foreign_server s ON s.oid = t.ftserver
    WHERE t.ftrelid = source;
    IF NOT (of_server || of_table) ? 'fetch_size' THEN
        changes := array_append(changes, 'ADD fetch_size ''3000''');
    END IF;
    IF (of_table->>'use_remote_estimate')::boolean THEN
        changes := array_append(changes, 'SET use_remote_estimate ''false''');
    ELSIF NOT of_table ? 'use_remote_estimate' AND (of_server->>'use_remote_estimate')::boolean THEN
        changes := array_append(changes, 'ADD use_remote_estimate ''false''');
    END IF;
    FOREACH change IN ARRAY changes LOOP
        IF tablesync.owns(source) THEN
            EXECUTE format('ALTER FOREIGN TABLE %s OPTIONS (%s)', source, change);
        ELSE
            RAISE WARNING 'an option of foreign table % does not suit runs', source
                USING HINT = format('ALTER FOREIGN TABLE %s OPTIONS (%s);', source, change);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.set_source_options(regclass) IS 'gives a foreign table the options that runs need';

/*
 * Behind the door tablesync.register().  The caller owns the replica; all else
 * is only what it says, and concerns nobody else.
 */
CREATE FUNCTION tablesync.record_register(replica regclass, settings jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted tablesync.replica := jsonb_populate_record(NULL::tablesync.replica, settings);
BEGIN
    IF (SELECT c.relkind NOT IN ('r', 'p') OR c.relpersistence = 't' FROM pg_class c WHERE c.oid = $1) THEN
        RAISE EXCEPTION '% is not a table that a background worker can see', $1 USING ERRCODE = 'wrong_object_type';
    ELSIF NOT EXISTS (SELECT FROM pg_foreign_table f WHERE f.ftrelid = wanted.source) THEN
        RAISE EXCEPTION '% is not a foreign table', wanted.source USING ERRCODE = 'wrong_object_type';
    END IF;
    wanted.replica := $1;
    wanted.source_is_view := coalesce(wanted.source_is_view, false);
    wanted.feed := coalesce(wanted.feed, false);
    PERFORM tablesync.check_settings(wanted);
    INSERT INTO tablesync.all_replicas (replica, source, shape, source_created, loaded, adopted,
                                        @settings all: {name}@)
    VALUES (wanted.replica, wanted.source, wanted.shape, wanted.source_created, wanted.loaded, wanted.adopted,
            @settings all: wanted.{name}@);
    PERFORM tablesync.grant_source_catalogs(f.ftserver, c.relowner)
    FROM pg_foreign_table f, pg_class c
    WHERE f.ftrelid = wanted.source AND c.oid = $1 AND has_server_privilege(c.relowner, f.ftserver, 'USAGE');
END
$$;
COMMENT ON FUNCTION tablesync.record_register(regclass, jsonb) IS 'behind the door tablesync.register()';

CREATE FUNCTION tablesync.register(replica regclass, settings jsonb)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.register(regclass, jsonb) IS 'door for tablesync_add()';

/* Add a replica; "home_schema" is where a name without schema is created; "readable": it is known that we may read all of the source. */
CREATE FUNCTION tablesync.add_replica(replica_name text, existing regclass, home_schema name,
                                      source regclass, source_created boolean, settings jsonb, readable boolean DEFAULT false)
RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record;
    name_parts text[] := parse_ident(replica_name);
    wanted tablesync.replica;
    whole_shape jsonb;
    suggestion text;
    no_xmin text;
    has_rows boolean := false;
BEGIN
    PERFORM tablesync.check_primary('tablesync_add()');
    IF replica_name IS NULL OR source IS NULL THEN
        RAISE EXCEPTION 'replica and source must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM tablesync.check_not_replica(existing);
    IF existing IS NOT NULL AND NOT tablesync.owns(existing) THEN
        RAISE EXCEPTION 'must be owner of table %', existing USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_foreign_table t JOIN pg_foreign_server s ON s.oid = t.ftserver
                   JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
                   JOIN pg_proc p ON p.oid = w.fdwhandler
                   WHERE t.ftrelid = source AND p.proname = 'postgres_fdw_handler') THEN
        RAISE EXCEPTION '% is not a foreign table of postgres_fdw', source
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'Create one with IMPORT FOREIGN SCHEMA, or use tablesync_add(replica, server, source).';
    END IF;
    target := tablesync.source_target(source);
    PERFORM tablesync.check_mapping(current_user, target.server);
    PERFORM tablesync.prepare_server((SELECT srvname FROM pg_foreign_server WHERE oid = target.server));
    PERFORM tablesync.check_source_server(source);
    wanted := jsonb_populate_record(NULL::tablesync.replica, settings);
    wanted.source_is_view := coalesce(wanted.source_is_view, false);
    IF NOT source_created THEN
        PERFORM tablesync.check_source_kind(target.server, target.schema_name, target.table_name, wanted.source_is_view);
    END IF;

    wanted.source := source;
    wanted.source_created := source_created;
    wanted.drop_columns := coalesce(wanted.drop_columns, false);
    wanted.feed := coalesce(wanted.feed, false);
    no_xmin := CASE WHEN coalesce(wanted.fingerprint, 'xmin') = 'xmin' THEN tablesync.xmin_problem(source, readable) END;
    wanted.fingerprint := coalesce(wanted.fingerprint, CASE WHEN no_xmin IS NULL THEN 'xmin' WHEN wanted.version_column IS NULL THEN 'row' ELSE 'version' END);
    whole_shape := tablesync.source_shape(source);
    wanted.shape := whole_shape;
    wanted.key_columns := CASE WHEN wanted.source_is_view THEN tablesync.view_key(source, wanted.shape, wanted.key_columns)
                               ELSE tablesync.source_key(source, wanted.key_columns) END;
    PERFORM tablesync.check_settings(wanted);
    wanted.shape := tablesync.wanted_shape(wanted, wanted.shape);
    wanted := tablesync.checked_part(wanted, whole_shape);
    IF NOT readable THEN
        PERFORM tablesync.check_readable(wanted);
    END IF;
    IF wanted.fingerprint = 'xmin' AND no_xmin IS NOT NULL THEN
        PERFORM tablesync.refuse_xmin(source, no_xmin);
    END IF;
    IF wanted.source_is_view THEN
        PERFORM tablesync.check_view(wanted);
    END IF;
    PERFORM tablesync.check_source(source, wanted.key_columns, wanted.version_column, wanted.fingerprint, wanted.shape);

    IF existing IS NULL THEN
        EXECUTE format('CREATE TABLE %I.%I (%s, PRIMARY KEY (%s))',
                       CASE WHEN cardinality(name_parts) > 1 THEN name_parts[1] ELSE home_schema END,
                       name_parts[cardinality(name_parts)],
                       (SELECT string_agg(c.definition, ', ' ORDER BY c.ordinality, c."column") FROM tablesync.columns_of_replica(wanted) c),
                       (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(wanted.key_columns) WITH ORDINALITY u (k, n)));
        wanted.replica := format('%I.%I', CASE WHEN cardinality(name_parts) > 1 THEN name_parts[1] ELSE home_schema END,
                                 name_parts[cardinality(name_parts)])::regclass;
    ELSE
        wanted.replica := existing;
        PERFORM tablesync.check_existing(existing, wanted);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', existing) INTO has_rows;
        IF has_rows AND wanted.fingerprint <> 'xmin' AND EXISTS (SELECT FROM tablesync.columns_of_replica(wanted) c
                                JOIN pg_attribute a ON a.attrelid = existing AND a.attname = c."column"
                                WHERE tablesync.type_problem(nullif(a.atttypid, 0), false, true) IS NOT NULL) THEN
            RAISE EXCEPTION 'the rows of table % can''t be compared with its source', existing
                USING ERRCODE = 'feature_not_supported',
                      DETAIL = (SELECT format('Column %I: %s.', a.attname, tablesync.type_problem(nullif(a.atttypid, 0), false, true))
                                FROM tablesync.columns_of_replica(wanted) c
                                JOIN pg_attribute a ON a.attrelid = existing AND a.attname = c."column"
                                WHERE tablesync.type_problem(nullif(a.atttypid, 0), false, true) IS NOT NULL LIMIT 1),
                      HINT = format('TRUNCATE %s; the first run loads it again.', existing);
        END IF;
    END IF;
    PERFORM tablesync.check_permanent(wanted.replica);
    PERFORM tablesync.check_owner_access((SELECT relowner FROM pg_class WHERE oid = wanted.replica), source);
    PERFORM tablesync.set_source_options(source);
    wanted.shape := tablesync.with_numbers(wanted.shape, wanted.replica, source);
    wanted.loaded := has_rows;
    wanted.adopted := has_rows;
    PERFORM tablesync.register(wanted.replica, to_jsonb(wanted));

    -- fires whatever session_replication_role is
    EXECUTE format('CREATE OR REPLACE TRIGGER tablesync_note_write AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION tablesync.note_write()', wanted.replica);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER tablesync_note_write', wanted.replica);
    EXECUTE format('ALTER TRIGGER tablesync_note_write ON %s DEPENDS ON EXTENSION tablesync', wanted.replica);
    EXECUTE format('COMMENT ON TRIGGER tablesync_note_write ON %s IS %L', wanted.replica,
                   'tells tablesync that somebody else than a run has written to the replica');

    IF wanted.feed THEN
        PERFORM tablesync.begin_feed(wanted.replica);
    END IF;

    IF wanted.version_column IS NULL THEN
        SELECT c->>'column' INTO suggestion
        FROM jsonb_array_elements(wanted.shape) c
        WHERE c->>'type' LIKE 'timestamp%' AND NOT c->>'column' = ANY (wanted.key_columns)
          AND c->>'column' IN ('updated_at', 'modified_at', 'last_modified', 'last_modified_at', 'last_updated',
                               'last_update', 'changed_at', 'updated_on', 'modified_on', 'mtime')
        LIMIT 1;
        IF suggestion IS NOT NULL AND wanted.fingerprint = 'xmin' THEN
            RAISE NOTICE 'column "%" may tell the version of a row', suggestion
                USING HINT = format('If the source sets it on every insert and update, runs can also tell by it that the source has gone back in time: SELECT tablesync_alter(%L, version_column => %L);',
                                    wanted.replica, suggestion);
        ELSIF suggestion IS NOT NULL THEN
            RAISE NOTICE 'every column of every row is compared; column "%" may make runs faster', suggestion
                USING HINT = format('If the source sets it on every insert and update: SELECT tablesync_alter(%L, version_column => %L);',
                                    wanted.replica, suggestion);
        END IF;
    END IF;
    RETURN wanted.replica;
END
$$;
COMMENT ON FUNCTION tablesync.add_replica(text, regclass, name, regclass, boolean, jsonb, boolean) IS 'checks a source, creates or checks the replica, and registers it';

/* Create the foreign table for a source next to its replica; "avoid" are names that are not to be taken. */
CREATE FUNCTION tablesync.create_source(replica_name text, existing regclass, home_schema name, server name, source_name text,
                                        settings jsonb, avoid text[] DEFAULT '{}')
RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    replica_parts text[] := parse_ident(replica_name);
    source_parts text[] := parse_ident(source_name);
    server_oid oid := (SELECT oid FROM pg_foreign_server WHERE srvname = server);
    foreign_schema text := CASE WHEN cardinality(replica_parts) > 1 THEN replica_parts[1] ELSE home_schema END;
    wanted tablesync.replica := jsonb_populate_record(NULL::tablesync.replica, settings);
    needed name[];
    misfit record;
    chosen record;
BEGIN
    PERFORM tablesync.check_primary('tablesync_add()');
    IF replica_name IS NULL OR server IS NULL OR source_name IS NULL THEN
        RAISE EXCEPTION 'replica, server and source must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM tablesync.check_not_replica(existing);
    IF server_oid IS NULL THEN
        RAISE EXCEPTION 'server "%" does not exist', server
            USING ERRCODE = 'undefined_object',
                  HINT = 'CREATE SERVER .. FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host .., dbname ..);';
    END IF;
    IF cardinality(source_parts) <> 2 THEN
        RAISE EXCEPTION 'source "%" is not of the form schema.table', source_name
            USING ERRCODE = 'invalid_name', HINT = 'For example ''public.media''.';
    END IF;
    PERFORM tablesync.check_mapping(current_user, server_oid);
    PERFORM tablesync.prepare_server(server);
    PERFORM tablesync.check_source_kind(server_oid, source_parts[1], source_parts[2], coalesce(wanted.source_is_view, false));
    IF wanted.key_columns IS NULL THEN
        wanted.key_columns := ARRAY(SELECT c.remote_name FROM tablesync.source_columns(server_oid, source_parts[1], source_parts[2]) c
                                    WHERE c.key_position IS NOT NULL);
    END IF;
    needed := tablesync.needed_columns(wanted);
    SELECT c.remote_name, c.problem INTO misfit
    FROM tablesync.source_columns(server_oid, source_parts[1], source_parts[2]) c
    WHERE c.problem IS NOT NULL AND (needed IS NULL OR c.remote_name = ANY (needed)) ORDER BY c.attnum LIMIT 1;
    IF FOUND THEN
        PERFORM tablesync.refuse_column(quote_ident(misfit.remote_name), source_name, misfit.problem,
                                        tablesync.column_hint(misfit.problem));
    END IF;
    SELECT * INTO chosen
    FROM tablesync.choose_foreign_name(replica_parts[cardinality(replica_parts)], foreign_schema, server_oid, source_parts[1], source_parts[2], avoid);
    IF chosen.leftover IS NOT NULL THEN    -- from a replica that was dropped
        RETURN chosen.leftover;
    END IF;
    EXECUTE format('CREATE FOREIGN TABLE %I.%I (%s) SERVER %I OPTIONS (schema_name %L, table_name %L, fetch_size ''3000'')',
                   foreign_schema, chosen.name,
                   tablesync.column_definitions(server_oid, source_parts[1], source_parts[2], needed),
                   server, source_parts[1], source_parts[2]);
    RETURN format('%I.%I', foreign_schema, chosen.name)::regclass;
END
$$;
COMMENT ON FUNCTION tablesync.create_source(text, regclass, name, name, text, jsonb, text[]) IS 'creates the foreign table <replica>_source over a table of a server';

CREATE FUNCTION @extschema@.tablesync_add(
    replica text,
    source regclass,
    @settings add: {name} {type} DEFAULT {default}@)
RETURNS regclass
LANGUAGE sql
BEGIN ATOMIC
    SELECT tablesync.add_replica(replica, pg_catalog.to_regclass(replica), pg_catalog.current_schema(), source, false,
        pg_catalog.jsonb_build_object(
            @settings add: '{name}', {name}@));
END;
COMMENT ON FUNCTION @extschema@.tablesync_add(text, regclass, @settings add: {type}@)
    IS 'makes a table the replica of an existing foreign table; creates it if it does not exist';

CREATE FUNCTION @extschema@.tablesync_add(
    replica text,
    server name,
    source text,
    @settings add: {name} {type} DEFAULT {default}@)
RETURNS regclass
LANGUAGE sql
BEGIN ATOMIC
    SELECT tablesync.add_replica(replica, pg_catalog.to_regclass(replica), pg_catalog.current_schema(),
        tablesync.create_source(replica, pg_catalog.to_regclass(replica), pg_catalog.current_schema(), server, source,
            pg_catalog.jsonb_build_object(
                @settings add: '{name}', {name}@)), true,
        pg_catalog.jsonb_build_object(
            @settings add: '{name}', {name}@));
END;
COMMENT ON FUNCTION @extschema@.tablesync_add(text, name, text, @settings add: {type}@)
    IS 'makes a table the replica of schema.table on a server; creates the foreign table <replica>_source too';
