/* access.sql: who sees what, and whose names are whose */

/* Access: a user sees and changes what belongs to the replicas of roles that she is a member of. */
CREATE FUNCTION tablesync.owns(replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = $1), false);
$$;
COMMENT ON FUNCTION tablesync.owns(regclass) IS 'whether the current user is a member of the role that owns the replica';

/* Before anything else: on a standby, what was typed is named, and not a statement of ours. */
CREATE FUNCTION tablesync.check_primary(function text)
RETURNS void
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_check_primary_server';
COMMENT ON FUNCTION tablesync.check_primary(text) IS 'an error on a standby, where a function can''t do what it is for';

/* What the views show: members of pg_monitor see how runs go, but no messages. */
CREATE FUNCTION tablesync.sees(replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role('pg_monitor', 'USAGE') OR tablesync.owns(replica);
$$;
COMMENT ON FUNCTION tablesync.sees(regclass) IS 'whether the current user may see the state of a replica';

/* What each role may read of the tables: the rows of its own replicas. */
ALTER TABLE tablesync.replica ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.run ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.queue ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.chunk ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.alert ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.schedule ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.schema_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.total ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.difference ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.fed_run ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.consumer ENABLE ROW LEVEL SECURITY;
ALTER TABLE tablesync.export ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON tablesync.replica USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.run USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.queue USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.chunk USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.alert USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.schedule USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.schema_log USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.total USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.difference USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.fed_run USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.consumer USING (tablesync.owns(replica));
CREATE POLICY owner ON tablesync.export USING (tablesync.owns(replica));
GRANT SELECT ON tablesync.replica, tablesync.run, tablesync.queue, tablesync.chunk, tablesync.alert, tablesync.schedule,
    tablesync.schema_log, tablesync.total, tablesync.difference, tablesync.fed_run, tablesync.consumer, tablesync.export TO PUBLIC;

/*
 * Whoever may create functions in the schema that users' functions are in
 * could make a tablesync_run(text), which would win over tablesync_run(regclass)
 * for a literal: names of ours are nobody else's there.  Superusers may.
 */
CREATE FUNCTION tablesync.keep_names()
RETURNS event_trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    taken text;
BEGIN
    IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        RETURN;
    END IF;
    SELECT p.oid::regprocedure::text INTO taken
    FROM pg_event_trigger_ddl_commands() c
    JOIN pg_proc p ON p.oid = c.objid
    JOIN pg_extension e ON e.extname = 'tablesync' AND e.extnamespace = p.pronamespace
    WHERE c.classid = 'pg_proc'::regclass AND NOT c.in_extension AND starts_with(p.proname, 'tablesync_')
    LIMIT 1;
    IF taken IS NOT NULL THEN
        RAISE EXCEPTION 'names that begin with tablesync_ belong to the extension tablesync in this schema'
            USING ERRCODE = 'reserved_name', DETAIL = format('%s would be called instead of a function of the extension.', taken),
                  HINT = 'Choose another name, or another schema.';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.keep_names() IS 'event trigger: nobody''s function takes the place of one of the extension''s';
REVOKE ALL ON FUNCTION tablesync.keep_names() FROM PUBLIC;
CREATE EVENT TRIGGER tablesync_keep_names ON ddl_command_end
    WHEN TAG IN ('CREATE FUNCTION', 'CREATE PROCEDURE', 'CREATE AGGREGATE', 'ALTER FUNCTION', 'ALTER PROCEDURE', 'ALTER ROUTINE', 'ALTER AGGREGATE')
    EXECUTE FUNCTION tablesync.keep_names();
COMMENT ON EVENT TRIGGER tablesync_keep_names IS 'keeps names of the extension''s functions in its schema from being taken';

/* What somebody has put there before would be called instead, too. */
DO $$
DECLARE
    taken text := (SELECT string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.oid) FROM pg_proc p
                   WHERE p.pronamespace = '@extschema@'::regnamespace AND starts_with(p.proname, 'tablesync_')
                     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'));
BEGIN
    IF taken IS NOT NULL THEN
        RAISE EXCEPTION 'functions with names of the extension exist in schema %', '@extschema@'
            USING ERRCODE = 'duplicate_function', DETAIL = format('They are: %s.', taken),
                  HINT = 'Look at them, and drop them; or CREATE EXTENSION tablesync in a schema in which nobody else may create functions.';
    END IF;
END
$$;
