/* refuse.sql: what tablesync_add, tablesync_alter and runs refuse of sources, tables and settings */

/* Key columns of a source by their remote names: the primary key, or what the user says, if it is unique. */
CREATE FUNCTION tablesync.source_key(source regclass, key_columns name[])
RETURNS name[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    shape jsonb := tablesync.source_shape(source);
    primary_key name[];
    attnums integer[];
BEGIN
    SELECT array_agg((c->>'column')::name ORDER BY (c->>'key')::integer)
    INTO primary_key
    FROM jsonb_array_elements(shape) c
    WHERE c->>'key' IS NOT NULL;
    IF key_columns IS NULL AND primary_key IS NULL THEN
        RAISE EXCEPTION 'the source %.% has no primary key', quote_ident(target.schema_name), quote_ident(target.table_name)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Rows can be told apart only by a key.',
                  HINT = 'If NOT NULL columns of it have a unique index, name them as key_columns.';
    END IF;
    IF key_columns IS NULL OR key_columns = primary_key THEN
        RETURN primary_key;
    END IF;

    SELECT array_agg(c.attnum::integer ORDER BY c.attnum)
    INTO attnums
    FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
    JOIN jsonb_array_elements(shape) s ON s->>'remote' = c.remote_name
    WHERE s->>'column' = ANY (key_columns) AND c.not_null;
    IF NOT tablesync.is_source_unique(target.server, target.schema_name, target.table_name, attnums) OR cardinality(attnums) IS DISTINCT FROM cardinality(key_columns) THEN
        RAISE EXCEPTION 'columns % are not a key of the source %.%', key_columns, quote_ident(target.schema_name), quote_ident(target.table_name)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = tablesync.key_problem(source, shape, key_columns),
                  HINT = CASE WHEN primary_key IS NOT NULL THEN format('The primary key is (%s).', array_to_string(primary_key, ', '))
                         ELSE 'Name all columns of such an index as key_columns.' END;
    END IF;
    RETURN key_columns;
END
$$;
COMMENT ON FUNCTION tablesync.source_key(regclass, name[]) IS 'the key columns of a source; an error if it has none';

CREATE FUNCTION tablesync.is_view(relkind "char")
RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT $1 IN ('v', 'm');
$$;
COMMENT ON FUNCTION tablesync.is_view("char") IS 'whether a kind of relation is a view, or a materialized view';

/* Why a relation of the source can't be a source; a view can, where it is said to be one. */
CREATE FUNCTION tablesync.source_kind_problem(relkind "char", has_children boolean, source_is_view boolean DEFAULT false)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN source_is_view AND tablesync.is_view(relkind) THEN NULL
                WHEN relkind = 'v' THEN 'It is a view: rewrites of the tables behind it can''t be noticed.'
                WHEN relkind = 'm' THEN 'It is a materialized view.'
                WHEN relkind = 'f' THEN 'It is a foreign table: one snapshot of it does not exist.'
                WHEN source_is_view THEN 'It is no view, and the replica is that of a view.'
                WHEN relkind = 'r' AND has_children THEN 'It has inheritance children: their rows are outside of its primary key.'
                WHEN relkind NOT IN ('r', 'p') THEN 'It is not a table.' END;
$$;
COMMENT ON FUNCTION tablesync.source_kind_problem("char", boolean, boolean) IS 'why a kind of relation can''t be replicated exactly; NULL if it can';

CREATE FUNCTION tablesync.source_kind_hint(relkind "char", source_is_view boolean)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN tablesync.is_view(relkind) THEN 'Replicate the tables behind it; or, if its rows can be told apart by some columns of it, '
                                                     'add it with key_columns => ''{..}'', source_is_view => true.'
                WHEN source_is_view AND relkind IN ('r', 'p') THEN 'Add it without source_is_view.'
                ELSE 'Replicate the tables behind it.' END;
$$;
COMMENT ON FUNCTION tablesync.source_kind_hint("char", boolean) IS 'what to do about a kind of relation that can''t be replicated exactly';

/* Refuse a source that is not a plain or partitioned table, or a view that is said to be one. */
CREATE FUNCTION tablesync.check_source_kind(server oid, schema_name text, table_name text, source_is_view boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation record := tablesync.source_relation(server, schema_name, table_name);
    source_name text := quote_ident(schema_name) || '.' || quote_ident(table_name);
    problem text := tablesync.source_kind_problem(relation.relkind, relation.has_children, coalesce(source_is_view, false));
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'the source % is not a table that can be replicated exactly', source_name
            USING ERRCODE = 'wrong_object_type', DETAIL = problem,
                  HINT = tablesync.source_kind_hint(relation.relkind, coalesce(source_is_view, false));
    END IF;
    IF relation.row_security THEN
        RAISE WARNING 'row security is enabled on the source %', source_name
            USING DETAIL = 'Runs set row_security to off and fail if a policy would hide rows from them.',
                  HINT = 'Ask for a role with BYPASSRLS, or read the table as its owner.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_source_kind(oid, text, text, boolean) IS 'an error if a source is not of a kind that can be replicated';

/* What to do about a column of which tablesync.source_columns() says that it is a problem. */
CREATE FUNCTION tablesync.column_hint(problem text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN problem LIKE 'type %' THEN 'Create the type here like at the source, or leave the table out.' END;
$$;
COMMENT ON FUNCTION tablesync.column_hint(text) IS 'what to do about a problem of a source''s column';

CREATE FUNCTION tablesync.refuse_column(column_name text, source_name text, problem text, hint text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF hint IS NULL THEN
        RAISE EXCEPTION 'column % of the source % can''t be replicated exactly', column_name, source_name
            USING ERRCODE = 'feature_not_supported', DETAIL = format('Reason: %s.', problem);
    END IF;
    RAISE EXCEPTION 'column % of the source % can''t be replicated exactly', column_name, source_name
        USING ERRCODE = 'feature_not_supported', DETAIL = format('Reason: %s.', problem), HINT = hint;
END
$$;
COMMENT ON FUNCTION tablesync.refuse_column(text, text, text, text) IS 'raises the error for a column that can''t be replicated exactly';

/* Refuse a source that can't be replicated exactly. */
CREATE FUNCTION tablesync.check_source(source regclass, key_columns name[], version_column name, fingerprint text, shape jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(source);
    source_name text := quote_ident(target.schema_name) || '.' || quote_ident(target.table_name);
    misfit record;
BEGIN
    SELECT q.* INTO misfit
    FROM (
        SELECT c.attnum, format('%I', c.remote_name) AS name,
               coalesce(c.problem,
                        CASE WHEN a.attname IS NULL THEN 'the foreign table has no such column' END,
                        CASE WHEN (a.atttypid, a.atttypmod) <> (c.type, c.typmod) THEN
                            format('its type is %s, and %s in the foreign table',
                                   format_type(c.type, c.typmod), format_type(a.atttypid, a.atttypmod)) END,
                        CASE WHEN NOT co.collisdeterministic THEN 'its collation in the foreign table is not deterministic' END,
                        tablesync.type_problem(c.type, u.key, u.key OR u.hashed)) AS problem,
               CASE WHEN c.problem IS NOT NULL THEN tablesync.column_hint(c.problem)
                    WHEN a.attname IS NULL OR (a.atttypid, a.atttypmod) <> (c.type, c.typmod) OR NOT co.collisdeterministic THEN
                        tablesync.recreate_hint(source)
                    WHEN tablesync.type_problem(c.type, false, false) IS NOT NULL THEN NULL    -- not at all
                    WHEN u.key THEN 'Types of keys are smallint, integer, bigint, numeric, uuid, date, timestamp, timestamptz, text, varchar and char.'
                    WHEN fingerprint = 'row' THEN 'Set fingerprint to xmin if the source is a table, or to version if it sets a column on every change, and name that as version_column.'
                    ELSE 'Choose another version column, or none.' END AS hint
        FROM tablesync.source_columns(target.server, target.schema_name, target.table_name) c
        LEFT JOIN pg_attribute a
            ON a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped
           AND c.remote_name = coalesce((SELECT option_value FROM pg_options_to_table(a.attfdwoptions)
                                         WHERE option_name = 'column_name'), a.attname)
        LEFT JOIN pg_collation co ON co.oid = a.attcollation
        JOIN jsonb_array_elements(shape) s (c) ON s.c->>'remote' = c.remote_name    -- all others are none of our business
        CROSS JOIN LATERAL (SELECT coalesce(a.attname = ANY (key_columns), false),
                                   s.c->>'hidden' IS NULL AND fingerprint = 'row' OR coalesce(a.attname = version_column, false)) u (key, hashed)
    ) q
    WHERE q.problem IS NOT NULL
    ORDER BY q.attnum LIMIT 1;
    IF FOUND THEN
        PERFORM tablesync.refuse_column(misfit.name, source_name, misfit.problem, misfit.hint);
    END IF;

    SELECT a.attname INTO misfit
    FROM pg_attribute a
    WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped
      AND NOT EXISTS (SELECT FROM jsonb_array_elements(tablesync.source_shape(source)) s
                      WHERE s->>'column' = a.attname AND s->>'remote' =
                            coalesce((SELECT option_value FROM pg_options_to_table(a.attfdwoptions)
                                      WHERE option_name = 'column_name'), a.attname))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'column % of foreign table % does not exist in the source %', quote_ident(misfit.attname), source, source_name
            USING ERRCODE = 'undefined_column',
                  HINT = 'Create the foreign table again with IMPORT FOREIGN SCHEMA.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_source(regclass, name[], name, text, jsonb) IS 'an error if a source can''t be replicated exactly';

/* May we read the columns that a replica shows or uses? */
CREATE FUNCTION tablesync.check_readable(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := tablesync.source_target(settings.source);
    readable name[];
BEGIN
    EXECUTE format('SELECT %s FROM %s LIMIT 0',
                   (SELECT string_agg(format('%I', s->>'column'), ', ') FROM jsonb_array_elements(settings.shape) s
                    WHERE tablesync.stands_for(settings.source, s->>'column', s->>'remote')), settings.source);
EXCEPTION WHEN insufficient_privilege THEN
    IF NOT has_table_privilege(settings.source, 'SELECT') THEN
        RAISE;
    END IF;
    EXECUTE format('SELECT array_agg(column_name) FROM %s WHERE table_schema = %L AND table_name = %L AND privilege_type = ''SELECT''',
                   tablesync.source_catalog(target.server, 'column_privileges'), target.schema_name, target.table_name)
    INTO readable;
    readable := ARRAY(SELECT (s->>'column')::name FROM jsonb_array_elements(tablesync.source_shape(settings.source)) s
                      WHERE s->>'remote' = ANY (readable) ORDER BY (s->>'attnum')::integer);
    IF NOT settings.key_columns <@ readable
       OR NOT EXISTS (SELECT FROM jsonb_array_elements(settings.shape) s WHERE s->>'column' <> ALL (readable)) THEN    -- it is not a matter of columns
        RAISE;
    END IF;
    RAISE EXCEPTION 'the source does not let us read every column that is wanted'
        USING ERRCODE = 'insufficient_privilege', DETAIL = format('It says: %s.', SQLERRM),
              HINT = format('To replicate what may be read: columns => %L', readable);
END
$$;
COMMENT ON FUNCTION tablesync.check_readable(tablesync.replica) IS 'an error unless all columns that a replica shows or uses may be read';

CREATE FUNCTION tablesync.has_key_index(replica regclass, key_columns name[])
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_index i
        WHERE i.indrelid = replica AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
          AND ARRAY(SELECT a.attname FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, n)
                    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                    WHERE k.n <= i.indnkeyatts ORDER BY a.attname)
            = ARRAY(SELECT k FROM unnest(key_columns) k ORDER BY k));
$$;
COMMENT ON FUNCTION tablesync.has_key_index(regclass, name[]) IS 'whether a table has a unique index on the key columns';

/* Can a row be inserted without a value for a column?  Then the replica may have it although the source does not. */
CREATE FUNCTION tablesync.may_be_left_out(relation regclass, attnum smallint)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT (a.attnotnull OR t.typnotnull) OR a.atthasdef OR a.attidentity <> '' OR t.typdefaultbin IS NOT NULL
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = $1 AND a.attnum = $2;
$$;
COMMENT ON FUNCTION tablesync.may_be_left_out(regclass, smallint) IS 'whether a row can be inserted without a value for a column';

/* Refuse an existing table that does not fit the shape of its source, column by column; further columns are its own. */
CREATE FUNCTION tablesync.check_existing(replica regclass, settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
    remedy text;
BEGIN
    SELECT CASE WHEN c.relkind NOT IN ('r', 'p') THEN 'It is not a table.'
                WHEN c.relpersistence = 't' THEN 'It is a temporary table: a background worker can''t see it.' END
    INTO problem
    FROM pg_class c WHERE c.oid = replica;
    SELECT coalesce(p.detail, problem), p.hint INTO problem, remedy FROM tablesync.foreign_table_problem(replica) p;

    IF problem IS NULL THEN
        SELECT CASE WHEN r.attname IS NULL THEN format('It has no column %I.', s."column")
                    WHEN s."column" IS NULL THEN
                        format('Its column %I does not exist in the source, and no row can be inserted without it: it is NOT NULL and has no default.', r.attname)
                    WHEN format_type(r.atttypid, r.atttypmod) <> s.type THEN
                        format('Its column %I has type %s, the source has %s.', r.attname, format_type(r.atttypid, r.atttypmod), s.type)
                    WHEN r.attnotnull AND NOT s.not_null AND NOT s."column" = ANY (settings.key_columns) THEN
                        format('Its column %I is NOT NULL, the source''s is not.', r.attname)
                    WHEN r.attgenerated <> '' THEN format('Its column %I is generated.', r.attname)
                    WHEN r.attidentity = 'a' THEN
                        format('Its column %I is GENERATED ALWAYS AS IDENTITY; BY DEFAULT would do.', r.attname)
                    WHEN NOT co.collisdeterministic THEN format('The collation of its column %I is not deterministic.', r.attname)
               END
        INTO problem
        FROM tablesync.columns_of_replica(settings) s
        FULL JOIN (SELECT * FROM pg_attribute WHERE attrelid = replica AND attnum > 0 AND NOT attisdropped) r
            ON r.attname = s."column"
        LEFT JOIN pg_collation co ON co.oid = r.attcollation
        WHERE r.attname IS NULL
           OR CASE WHEN s."column" IS NULL THEN NOT tablesync.may_be_left_out(replica, r.attnum)
                   ELSE format_type(r.atttypid, r.atttypmod) <> s.type
                        OR (r.attnotnull AND NOT s.not_null AND NOT s."column" = ANY (settings.key_columns))
                        OR r.attgenerated <> '' OR r.attidentity = 'a' OR NOT co.collisdeterministic END
        ORDER BY r.attnum LIMIT 1;
    END IF;

    IF problem IS NULL AND NOT tablesync.has_key_index(replica, settings.key_columns) THEN
        problem := format('It has no primary key or unique index on (%s).',
                          (SELECT string_agg(quote_ident(k), ', ') FROM unnest(settings.key_columns) k));
    END IF;
    IF problem IS NULL THEN
        SELECT format('Its key column %I is not NOT NULL.', r.attname) INTO problem
        FROM pg_attribute r
        WHERE r.attrelid = replica AND r.attname = ANY (settings.key_columns) AND NOT r.attnotnull LIMIT 1;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'table % can''t be the replica of %', replica, settings.source
            USING ERRCODE = 'datatype_mismatch', DETAIL = problem,
                  HINT = coalesce(remedy, 'Change the table, or name one that does not exist: tablesync_add() creates it like the source.');
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_existing(regclass, tablesync.replica) IS 'an error if an existing table can''t hold an exact copy of a source';

CREATE FUNCTION tablesync.check_mapping(role_name name, server oid)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    server_name name := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = server);
BEGIN
    IF NOT EXISTS (SELECT FROM pg_user_mappings m
                   WHERE m.srvid = server AND m.umuser IN (0, (SELECT r.oid FROM pg_roles r WHERE r.rolname = role_name))) THEN
        RAISE EXCEPTION 'role "%" has no user mapping for server "%"', role_name, server_name
            USING ERRCODE = 'undefined_object',
                  DETAIL = 'tablesync_add() connects to the source as the current user, runs connect as the replica''s owner.',
                  HINT = format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (user .., password ..);', role_name, server_name);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_mapping(name, oid) IS 'an error if a role has no user mapping for a server';

CREATE FUNCTION tablesync.check_owner_access(owner oid, source regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_name name := pg_get_userbyid(owner);
BEGIN
    PERFORM tablesync.check_mapping(role_name, (tablesync.source_target(source)).server);
    IF NOT has_server_privilege(owner, (tablesync.source_target(source)).server, 'USAGE') THEN
        RAISE EXCEPTION 'role "%" may not use server "%"', role_name,
                (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = (tablesync.source_target(source)).server)
            USING ERRCODE = 'insufficient_privilege', DETAIL = 'Runs read the source as the replica''s owner.',
                  HINT = format('GRANT USAGE ON FOREIGN SERVER %I TO %I;',
                                (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = (tablesync.source_target(source)).server), role_name);
    END IF;
    IF NOT has_table_privilege(owner, source, 'SELECT') THEN
        RAISE EXCEPTION 'role "%" may not read foreign table %', role_name, source
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT SELECT ON %s TO %I;', source, role_name);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_owner_access(oid, regclass) IS 'an error if the owner of a replica can''t read its source';

/* Say what is wrong with settings that the table's constraints would refuse: a condition that is NULL refuses nothing. */
CREATE FUNCTION tablesync.check_settings(settings tablesync.replica)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    setting text;
    value text;
    wanted text;
BEGIN
    SELECT v.setting, v.value, v.wanted INTO setting, value, wanted
    FROM (SELECT (settings).*) s, LATERAL (VALUES
        @settings must_be: ('{name}', {name}::text, '{must_be}', ({name} IS NOT NULL OR {nullable}) AND ({check}) IS NOT FALSE)@
    ) v (setting, value, wanted, valid)
    WHERE NOT v.valid LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'invalid value for %: %', setting, coalesce(quote_literal(value), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = format('It must be %s.', wanted);
    END IF;
    IF settings.sync_group IS NOT NULL AND settings.consistency <> 'snapshot' THEN
        RAISE EXCEPTION 'a sync_group needs consistency snapshot'
            USING ERRCODE = 'invalid_parameter_value',
                  DETAIL = 'Its replicas are read in one snapshot of the source, and changed in one transaction here.',
                  HINT = 'Set consistency => ''snapshot'' as well.';
    END IF;
    IF settings.fingerprint = 'version' AND settings.version_column IS NULL THEN
        RAISE EXCEPTION 'fingerprint version needs a version column'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name one as version_column, or use fingerprint xmin or row.';
    END IF;
    IF settings.version_column = ANY (settings.key_columns)
       OR (settings.version_column IS NOT NULL
           AND NOT EXISTS (SELECT FROM jsonb_array_elements(settings.shape) c WHERE c->>'column' = settings.version_column)) THEN
        RAISE EXCEPTION 'column "%" can''t be the version column', settings.version_column
            USING ERRCODE = 'invalid_parameter_value',
                  DETAIL = 'The version column is a column of the source outside of its key.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_settings(tablesync.replica) IS 'an error if a setting of a replica is not valid';

CREATE FUNCTION tablesync.check_permanent(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (SELECT c.relpersistence = 't' FROM pg_class c WHERE c.oid = $1) THEN
        RAISE EXCEPTION 'table % can''t be a replica', $1
            USING ERRCODE = 'wrong_object_type', DETAIL = 'It is a temporary table: a background worker can''t see it.',
                  HINT = 'Name a schema in which you may create tables.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_permanent(regclass) IS 'an error if a table is temporary';

CREATE FUNCTION tablesync.check_not_replica(existing regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM tablesync.replica t WHERE t.replica = existing) THEN
        RAISE EXCEPTION '% is a replica already', existing
            USING ERRCODE = 'duplicate_object', HINT = 'Change its settings with tablesync_alter().';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_not_replica(regclass) IS 'an error if a table is a replica';
