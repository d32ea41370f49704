/*
 * foreign_name.sql: names of the foreign tables that tablesync_add creates
 *
 * A replica knows its foreign table by OID, so its name is only for people:
 * <replica>_source, unless something else has that name or is about to get it.
 */

/* Does a foreign table of ours read a certain table, and no replica read through it?  Then it is left over from one that was dropped. */
CREATE FUNCTION tablesync.is_left_over(relation regclass, server oid, schema_name text, table_name text)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tablesync.owns(relation)
       AND EXISTS (SELECT FROM tablesync.source_target(relation) t
                   WHERE (t.server, t.schema_name, t.table_name) = ($2, $3, $4))
       AND NOT EXISTS (SELECT FROM tablesync.replica r WHERE r.source = relation);
$$;
COMMENT ON FUNCTION tablesync.is_left_over(regclass, oid, text, text) IS 'whether a foreign table is over a table of a server and belongs to no replica';

/* "avoid" are names that replicas have, or may get; where the table is there already, it is "leftover". */
CREATE FUNCTION tablesync.choose_foreign_name(replica_name text, in_schema text, server oid, schema_name text, table_name text, avoid text[],
                                              OUT name text, OUT leftover regclass)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    FOR n IN 1 .. 1000 LOOP
        name := tablesync.short_name(replica_name, '_source' || CASE WHEN n > 1 THEN '_' || n ELSE '' END);
        leftover := to_regclass(format('%I.%I', in_schema, name));
        IF leftover IS NOT NULL THEN
            EXIT WHEN tablesync.is_left_over(leftover, server, schema_name, table_name);
            leftover := NULL;
        ELSE    -- a table has a type of its name
            EXIT WHEN to_regtype(format('%I.%I', in_schema, name)) IS NULL AND name <> replica_name::name::text AND name <> ALL (avoid);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.choose_foreign_name(text, text, oid, text, text, text[]) IS 'a name for the foreign table of a replica, or the one that it had before';

/* A foreign table that has the name which a replica is to get: what it is, and what to do. */
CREATE FUNCTION tablesync.foreign_table_problem(relation regclass, OUT detail text, OUT hint text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    in_schema oid := (SELECT c.relnamespace FROM pg_class c WHERE c.oid = relation AND c.relkind = 'f');
    its_name text := (SELECT c.relname FROM pg_class c WHERE c.oid = relation);
    other_name text;
BEGIN
    IF in_schema IS NULL THEN
        RETURN;
    END IF;
    detail := coalesce((SELECT format('It is the foreign table through which replica %s reads its source.', r.replica)
                        FROM tablesync.replica r WHERE r.source = relation LIMIT 1), 'It is a foreign table.');
    other_name := tablesync.unused_name(its_name, '_foreign', ARRAY(SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = in_schema));
    hint := format('ALTER FOREIGN TABLE %s RENAME TO %I; and add it again. Replicas find their foreign tables under any name.', relation, other_name);
END
$$;
COMMENT ON FUNCTION tablesync.foreign_table_problem(regclass) IS 'what a foreign table is that has the name of a replica to be, and what to do; NULL if it is none';

/* A foreign table that does not fit its source: one that a replica has is not to be dropped. */
CREATE FUNCTION tablesync.recreate_hint(source regclass)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM tablesync.replica r WHERE r.source = $1) THEN 'Create the foreign table again'
                ELSE format('DROP FOREIGN TABLE %s; and create it again', $1) END
        || ' with IMPORT FOREIGN SCHEMA, or let tablesync_add(replica, server, source) do it.';
$$;
COMMENT ON FUNCTION tablesync.recreate_hint(regclass) IS 'what to do about a foreign table that does not fit its source';
