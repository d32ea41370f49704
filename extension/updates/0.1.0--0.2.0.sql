/*
 * 0.1.0--0.2.0.sql: what comes before the parts of the install script, see Makefile
 *
 * All functions and views are made anew.  The rows of the tables move into
 * tables that are made by catalog.sql, so that an updated database is what a
 * fresh one would be.  Whatever a role could write into its own rows in 0.1.0 is
 * taken over as data, and nothing of it is run.
 */

\echo Use "ALTER EXTENSION tablesync UPDATE" to load this file. \quit

SET LOCAL search_path TO pg_catalog, pg_temp;

/* Transactions that are changing a replica end first; no other one changes anything after this (tsync_hold_version). */
COMMENT ON EXTENSION tablesync IS 'an exact, always fresh copy of a table you can only read';

DROP EVENT TRIGGER tablesync_forget_dropped;
DROP TRIGGER follow_schedule ON tablesync.schedule;
DROP TRIGGER renew_schedule ON tablesync.replica;
DROP TRIGGER count_run ON tablesync.run;
DROP TRIGGER forget_total ON tablesync.replica;
DROP POLICY owner ON tablesync.replica;
DROP POLICY owner ON tablesync.run;
DROP POLICY owner ON tablesync.chunk;
DROP POLICY owner ON tablesync.stray_write;
DROP POLICY owner ON tablesync.alert;
DROP POLICY owner ON tablesync.schedule;
DROP POLICY owner ON tablesync.schema_log;
DROP POLICY owner ON tablesync.total;
DROP POLICY owner ON tablesync.difference;
DROP VIEW tablesync.health, @extschema@.tablesync_alerts, @extschema@.tablesync_alert_history, tablesync.condition, @extschema@.tablesync_status,
    @extschema@.tablesync_runs, @extschema@.tablesync_progress, @extschema@.tablesync_totals, @extschema@.tablesync_schema_log;

/* Everybody could read the catalogs of every source; they are made anew for whoever may use a server. */
DO $$
DECLARE
    t regclass;
BEGIN
    FOR t IN SELECT c.foreign_table FROM tablesync.source_catalogs c LOOP
        EXECUTE format('DROP FOREIGN TABLE %s', t);
    END LOOP;
END
$$;
DROP VIEW tablesync.source_catalogs;

/* Functions, but for those that a trigger of a replica or a default needs. */
DO $$
DECLARE
    f record;
BEGIN
    FOR f IN
        SELECT p.oid::regprocedure AS name, p.prokind = 'p' AS is_procedure
        FROM pg_depend d
        JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid AND e.extname = 'tablesync'
        JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
        WHERE d.deptype = 'e' AND p.oid NOT IN ('tablesync.home()'::regprocedure, 'tablesync.note_write()'::regprocedure)
    LOOP
        EXECUTE format('DROP %s %s', CASE WHEN f.is_procedure THEN 'PROCEDURE' ELSE 'FUNCTION' END, f.name);
    END LOOP;
END
$$;
DROP TYPE tablesync.schema_step;

/* Out of the way of catalog.sql, with all that has a name in the schema; NOT NULL has one since 18. */
DO $$
DECLARE
    t text;
    i record;
BEGIN
    FOREACH t IN ARRAY '{replica,run,chunk,stray_write,alert,schedule,schema_log,total,difference}'::text[] LOOP
        FOR i IN SELECT x.indexrelid::regclass AS name, c.relname FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
                 WHERE x.indrelid = format('tablesync.%I', t)::regclass LOOP
            EXECUTE format('ALTER INDEX %s RENAME TO %I', i.name, 'old_' || i.relname);
        END LOOP;
        FOR i IN SELECT k.conname FROM pg_constraint k WHERE k.conrelid = format('tablesync.%I', t)::regclass AND k.contype IN ('c', 'f', 'n') LOOP
            EXECUTE format('ALTER TABLE tablesync.%I RENAME CONSTRAINT %I TO %I', t, i.conname, 'old_' || i.conname);
        END LOOP;
        EXECUTE format('ALTER EXTENSION tablesync DROP TABLE tablesync.%I', t);
        EXECUTE format('ALTER TABLE tablesync.%I RENAME TO %I', t, 'old_' || t);
    END LOOP;
    FOREACH t IN ARRAY '{run_run_id_seq,alert_alert_id_seq,schema_log_log_id_seq,stray_write_write_id_seq}'::text[] LOOP
        EXECUTE format('ALTER EXTENSION tablesync DROP SEQUENCE tablesync.%I', t);
        EXECUTE format('ALTER SEQUENCE tablesync.%I RENAME TO %I', t, 'old_' || t);
    END LOOP;
END
$$;
