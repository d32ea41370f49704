/* history.sql: runs that live, runs that have ended, and writes by others than runs */

/* A worker holds an advisory lock of its own kind for as long as it lives (catalog/replicas.c). */
CREATE FUNCTION tablesync.live_runs()
RETURNS TABLE (replica regclass, pid integer)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.objid::regclass, l.pid
    FROM pg_locks l
    WHERE l.locktype = 'advisory'
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.classid = 1953721955
      AND l.objsubid = 3
      AND l.granted
      AND tablesync.sees(l.objid);
$$;
COMMENT ON FUNCTION tablesync.live_runs() IS 'replicas that a worker is running now, with its process id, as far as the current user may see them';

/* The caller's snapshot may be older than the end of the run, so it is looked up again. */
CREATE FUNCTION tablesync.run_status(run_id bigint)
RETURNS text
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'tsync_run_status';
COMMENT ON FUNCTION tablesync.run_status(bigint) IS 'status of a run now; one recorded as running whose worker is gone has crashed; NULL for whom it does not concern';

/* A run that has waited, and will not start: who asks for it later finds how it has ended. */
CREATE FUNCTION tablesync.end_queued(run_id bigint, replica regclass, status text, sqlstate text, message text, detail text, hint text)
RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM tablesync.all_queued q WHERE q.run_id = $1 AND q.replica = $2 RETURNING q.*),
    ended AS (
        INSERT INTO tablesync.all_runs (run_id, replica, kind, status, started_at, finished_at, sqlstate, message, detail, hint, pid)
        SELECT g.run_id, g.replica, CASE WHEN t.loaded THEN 'sync' ELSE 'load' END, $3, now.now, now.now, $4, $5, $6, $7, 0
        FROM gone g JOIN tablesync.all_replicas t ON t.replica = g.replica, (SELECT clock_timestamp()) now (now)
        RETURNING 1)
    SELECT EXISTS (SELECT FROM ended);
$$;
COMMENT ON FUNCTION tablesync.end_queued(bigint, regclass, text, text, text, text, text) IS 'records the end of a run that has waited and will not start; false if it does not wait any more';

/*
 * Delete what is older than a number of runs of a replica, but never a live
 * run, nor the last success of each kind.  Rows that somebody has locked wait
 * for the next time; so does what is more than a worker should delete at once.
 */
CREATE FUNCTION tablesync.prune_runs(replica regclass, keep integer)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM tablesync.all_runs d
    WHERE d.run_id IN (
        SELECT r.run_id
        FROM tablesync.all_runs r
        WHERE r.replica = $1
          AND r.run_id <= (SELECT k.run_id FROM tablesync.all_runs k WHERE k.replica = $1
                           ORDER BY k.run_id DESC OFFSET greatest(keep, 1) LIMIT 1)
          AND r.status <> 'running'
          AND r.run_id NOT IN (SELECT max(s.run_id) FROM tablesync.all_runs s
                               WHERE s.replica = $1 AND s.status = 'succeeded' GROUP BY s.kind)
        ORDER BY r.run_id
        LIMIT 10000
        FOR UPDATE SKIP LOCKED);
$$;
COMMENT ON FUNCTION tablesync.prune_runs(regclass, integer) IS 'deletes the history of a replica beyond a number of runs; the last successes stay';

/* Fires after every statement on a replica, whatever session_replication_role is. */
CREATE FUNCTION tablesync.note_write()
RETURNS trigger
LANGUAGE C SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tsync_note_write';
COMMENT ON FUNCTION tablesync.note_write() IS 'trigger: notes that somebody else than a run has written to a replica';

/*
 * Does every write to a replica leave a note?  Not where rows come through
 * another table (a parent, a partition), from a subscription, whose worker
 * fires no statement triggers, or go by a cascade of a run's own deletes.  And
 * a crash empties an unlogged table.
 */
CREATE FUNCTION tablesync.is_watched(replica regclass)
RETURNS boolean
LANGUAGE plpgsql STABLE    -- keeps its plan
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT c.relkind = 'r' AND c.relpersistence = 'p'
               AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
               AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
               AND NOT EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid)
               AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.confrelid = c.oid AND k.confdeltype IN ('c', 'n', 'd'))
               AND EXISTS (SELECT FROM pg_trigger g
                           WHERE g.tgrelid = c.oid AND g.tgfoid = 'tablesync.note_write'::regproc
                             AND g.tgenabled = 'A' AND g.tgqual IS NULL AND g.tgtype & 61 = 60)    -- each statement, all four kinds
            FROM pg_class c WHERE c.oid = $1);
END
$$;
COMMENT ON FUNCTION tablesync.is_watched(regclass) IS 'whether every write to a replica leaves a note in tablesync.stray_write';

/*
 * Rows belong to a replica, or to a run.  Their foreign keys delete them with it;
 * that it is there when they come is checked here, and not by the key itself: a
 * parallel pg_restore brings the rows of an extension's tables in any order.
 * (A dump says that they depend on each other, but pg_restore has the entries of
 * data depend on nothing but their tables.)  So what a superuser brings by COPY is
 * taken as it comes, and has its replica when the restore is over.  (pg_upgrade
 * makes the keys anew, and they check again: more than that is not lost by it.)
 */
CREATE FUNCTION tablesync.check_belonging()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- as a foreign key does: locked, so that it stays there
    IF TG_ARGV[0] = 'run' THEN
        PERFORM FROM tablesync.all_runs r WHERE r.run_id = NEW.run_id FOR KEY SHARE;
    ELSE
        PERFORM FROM tablesync.all_replicas t WHERE t.replica = NEW.replica FOR KEY SHARE;
    END IF;
    IF NOT FOUND AND NOT (coalesce(starts_with(current_query(), 'COPY tablesync.'), false)
                          AND (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = session_user)) THEN
        RAISE EXCEPTION 'row of %.% belongs to no %', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]
            USING ERRCODE = 'foreign_key_violation',
                  DETAIL = CASE TG_ARGV[0] WHEN 'run' THEN format('There is no run %s.', NEW.run_id) ELSE format('%s is not a replica.', NEW.replica) END;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.check_belonging() IS 'trigger: a row needs its replica, or its run, unless it comes from a dump';
DO $$
DECLARE
    key record;
BEGIN
    FOR key IN
        SELECT k.conrelid::regclass AS relation, CASE k.confrelid WHEN 'tablesync.all_replicas'::regclass THEN 'replica' WHEN 'tablesync.all_runs'::regclass THEN 'run' END AS kind,
               g.tgname AS its_check
        FROM pg_extension e
        JOIN pg_constraint k ON k.conrelid = ANY (e.extconfig) AND k.contype = 'f'
        JOIN pg_trigger g ON g.tgconstraint = k.oid AND g.tgrelid = k.conrelid AND g.tgfoid = '"RI_FKey_check_ins"'::regproc
        WHERE e.extname = 'tablesync'
    LOOP
        ASSERT key.kind IS NOT NULL, format('rows of %s belong to what check_belonging() does not know', key.relation);
        EXECUTE format('CREATE TRIGGER belongs_to_%s AFTER INSERT ON %s FOR EACH ROW EXECUTE FUNCTION tablesync.check_belonging(%L)', key.kind, key.relation, key.kind);
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', key.relation, key.its_check);
    END LOOP;
END
$$;

/* A dropped replica takes its settings and history with it. */
CREATE FUNCTION tablesync.forget_dropped()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM tablesync.all_replicas r
    USING pg_event_trigger_dropped_objects() d
    WHERE d.classid = 'pg_class'::regclass
      AND d.objsubid = 0
      AND r.replica = d.objid::regclass;
    -- as is a feed without its table
    UPDATE tablesync.all_replicas r
    SET feed = false, feed_table = NULL
    FROM pg_event_trigger_dropped_objects() d
    WHERE d.classid = 'pg_class'::regclass
      AND d.objsubid = 0
      AND r.feed_table = d.objid::regclass;
END
$$;
COMMENT ON FUNCTION tablesync.forget_dropped() IS 'event trigger: removes settings and history of dropped replicas, and ends feeds whose table was dropped';
REVOKE ALL ON FUNCTION tablesync.forget_dropped() FROM PUBLIC;
CREATE EVENT TRIGGER tablesync_forget_dropped ON sql_drop
    EXECUTE FUNCTION tablesync.forget_dropped();
COMMENT ON EVENT TRIGGER tablesync_forget_dropped IS 'removes tablesync''s settings and history of dropped tables';
