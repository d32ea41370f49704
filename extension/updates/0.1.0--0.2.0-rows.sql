
/*
 * 0.1.0--0.2.0-rows.sql: what comes after catalog.sql
 *
 * Tables are copied column by column, by name; what 0.1.0 did not have gets its
 * default.
 */
DO $$
DECLARE
    t record;
    columns text;
    unfinished record;
BEGIN
    FOR unfinished IN SELECT r.replica, s.statement FROM tablesync.old_replica r, unnest(r.load_indexes) s (statement) LOOP
        RAISE WARNING 'an unfinished load of % has dropped an index that has to be created by hand, if it is not that of the key', unfinished.replica
            USING DETAIL = format('According to what is recorded: %s', unfinished.statement),
                  HINT = 'Its owner may have written that record: read it before you run it.';
    END LOOP;
    UPDATE tablesync.old_replica SET freshness = NULL WHERE freshness > '100 years';
    UPDATE tablesync.old_replica SET trust_counters_for = NULL WHERE trust_counters_for > '100 years';
    UPDATE tablesync.old_replica SET sync_group = left(sync_group, 200) WHERE length(sync_group) > 200;
    DELETE FROM tablesync.old_schedule WHERE length(schedule) > 200;
    FOR t IN SELECT * FROM (VALUES ('replica', 'all_replicas'), ('run', 'all_runs'), ('chunk', 'all_chunks'), ('stray_write', 'stray_write'),
                                   ('alert', 'all_alerts'), ('schedule', 'all_schedules'), ('schema_log', 'all_schema_changes'),
                                   ('total', 'all_totals'), ('difference', 'all_differences')) v (old, new) LOOP
        SELECT string_agg(quote_ident(n.attname), ', ' ORDER BY n.attnum) INTO columns
        FROM pg_attribute n
        JOIN pg_attribute o ON o.attrelid = format('tablesync.%I', 'old_' || t.old)::regclass AND o.attname = n.attname AND NOT o.attisdropped
        WHERE n.attrelid = format('tablesync.%I', t.new)::regclass AND n.attnum > 0 AND n.attname <> 'load_indexes';
        EXECUTE format('INSERT INTO tablesync.%I (%s)%s SELECT %s FROM tablesync.%I', t.new, columns,
                       CASE WHEN t.old = 'stray_write' THEN ' OVERRIDING SYSTEM VALUE' END, columns, 'old_' || t.old);
    END LOOP;
    UPDATE tablesync.all_replicas n SET load_indexes = '{}' FROM tablesync.old_replica o
    WHERE o.replica = n.replica AND o.load_indexes IS NOT NULL;
    PERFORM setval('tablesync.run_run_id_seq', s.last_value, s.is_called) FROM tablesync.old_run_run_id_seq s;
    PERFORM setval('tablesync.alert_alert_id_seq', s.last_value, s.is_called) FROM tablesync.old_alert_alert_id_seq s;
    PERFORM setval('tablesync.schema_log_log_id_seq', s.last_value, s.is_called) FROM tablesync.old_schema_log_log_id_seq s;
    PERFORM setval('tablesync.stray_write_write_id_seq', s.last_value, s.is_called) FROM tablesync.old_stray_write_write_id_seq s;
    DROP TABLE tablesync.old_difference, tablesync.old_total, tablesync.old_schema_log, tablesync.old_schedule, tablesync.old_alert,
        tablesync.old_stray_write, tablesync.old_chunk, tablesync.old_run, tablesync.old_replica;
END
$$;
