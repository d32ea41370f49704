-- Who may see and do what.  Replicas belong to "app"; "member" is a member of
-- it, "watcher" of pg_monitor, "other" of nothing.

SELECT plan(68);

-- functions
SELECT is(has_function_privilege('other', p.oid, 'EXECUTE'), true, 'everybody may call ' || p.oid::regprocedure)
FROM pg_proc p
WHERE p.proname = ANY ('{tablesync_add,tablesync_alter,tablesync_remove,tablesync_run,tablesync_wait,tablesync_cancel,tablesync_pause,tablesync_resume}')
  AND p.pronamespace = 'public'::regnamespace
ORDER BY p.oid::regprocedure::text;
SELECT function_privs_are('tablesync', 'create_source_catalog', ARRAY['oid'], 'other', ARRAY[]::text[]);
SELECT function_privs_are('tablesync', 'forget_dropped', ARRAY[]::text[], 'other', ARRAY[]::text[]);

-- all functions, and who may call them
CREATE FUNCTION pg_temp.functions(schema regnamespace, for_everybody boolean) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(DISTINCT p.proname::text COLLATE "C", ' '), '')
    FROM pg_proc p
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'tablesync'
    WHERE p.pronamespace = schema
      AND for_everybody = EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE');
$$;
SELECT is(pg_temp.functions('public', true),
    'tablesync_add tablesync_add_schema tablesync_alter tablesync_as_of tablesync_cancel tablesync_changes '
    'tablesync_check tablesync_commit tablesync_consumer_add tablesync_consumer_remove tablesync_envelopes '
    'tablesync_export tablesync_fetch tablesync_health tablesync_pause tablesync_remove tablesync_resume '
    'tablesync_run tablesync_schedule tablesync_unschedule tablesync_verify tablesync_wait'
    , 'everybody may call, with her own rights');
SELECT is(pg_temp.functions('public', false),
    ''
    , 'nobody but the owner of the extension may call, in public');
SELECT is(pg_temp.functions('tablesync', true),
    'abandon_bulk_load add_again add_consumer add_export add_replica add_schema alter apply_steps ask_sorting '
    'ask_source await_run base64 base_type begin_feed bit_bytes build_indexes by_hand can_bulk_load catalog_hint '
    'change_envelopes change_part check_add_schema check_columns check_comparable check_computed '
    'check_computed_there check_cron check_different_keys check_digest check_existing check_expression '
    'check_in_worker check_mapping check_not_replica check_null_keys check_owner_access check_parts check_permanent '
    'check_primary check_readable check_recreatable check_replica check_replicas check_settings check_source '
    'check_source_kind check_source_server check_source_session check_view check_view_key checked_part '
    'choose_foreign_name column_definitions column_hint column_names columns_of_expression columns_of_replica '
    'commit_consumer computed_columns connection_hint create_feed create_source create_view cron_field cron_home '
    'cron_next cron_schedule debezium_expression decimal_bytes dependent_views describe_addition describe_problems '
    'describe_retyped drop_feed drop_unless_used drop_views due enable end_feed evolve fail_check feed_columns '
    'feed_name feed_of feed_problem fetch_envelopes files_of find_xmin_table first_column_bounds fit_feed '
    'fits_or_fails foreign_column_statements foreign_part_statements foreign_table_problem forget group_members '
    'grouping_problem has_key_index has_source_key has_view_index hold_consumer home identity_columns '
    'identity_remedy idle_slots image_identity index_problem is_array_of is_bytewise is_hanging is_left_over '
    'is_missed is_moved is_pooled is_source_unique is_view iso_instant job_definition job_prefix keep_runs_away '
    'key_attnums key_problem known_shape label_statements lags_behind list_tables live_progress live_runs '
    'local_column local_type match_columns may_be_dropped may_be_left_out milliseconds missing_until name_after '
    'name_of name_problem needed_columns newest_xid note_write null_condition oldest_xid only_unique_index '
    'open_source option_changes owns part_of_source plain_expression plan_added plan_computed plan_dropped '
    'plan_evolution plan_hidden plan_key plan_names plan_nullable plan_part plan_problem plan_retyped point_wkb '
    'pooler_hint preflight_collation preflight_connection preflight_estimate preflight_key preflight_mapping '
    'preflight_owner preflight_pg_cron preflight_privileges preflight_publication preflight_replica_table '
    'preflight_row_security preflight_server preflight_session preflight_shape preflight_source '
    'preflight_source_table preflight_state preflight_statements preflight_types preflight_worker_slots '
    'prepare_server privileges publication_problem published_as queue_run raise_error read_feed read_nothing '
    'readable_tables recreate_hint refuse_column refuse_source refuse_steps refuse_view_key refuse_xmin register '
    'remote_name remote_role remove_consumer rename_columns rename_feed_columns rename_in_expression replica_columns '
    'restore_privileges row_expression row_width rows_of_part run_scheduled run_status schedule schedule_job sees '
    'serve_exports serve_queue set_source_options shape_core shape_here shape_of_part short_name smallest_value '
    'snapshot_envelopes source_bounds source_catalog source_catalog_columns source_columns source_counters '
    'source_identity source_image source_image_statement source_images source_key source_kind_hint '
    'source_kind_problem source_layout source_relation source_shape source_sorts_bytes source_tables source_target '
    'source_time stands_for start_feed subdivide take_part try_add try_check try_worker type_name type_problem '
    'unreadable_columns unschedule unused_name used_columns view_key view_state wanted_name wanted_shape watch '
    'watch_prefix widens with_numbers withdraw_run worker_slots xid_precedes xmin_problem'
    , 'called by the former, with the rights of who called them');
SELECT is(pg_temp.functions('tablesync', false),
    'alert_kind alert_payload announce_alert back_off before_drop check_belonging claim_alert claim_range '
    'close_alert count_run create_source_catalog describe_feed drop_xmin_table end_jobs end_queued export_note '
    'export_of_changes export_of_rows export_query export_relation find_consumer finish_feed '
    'follow_schedule forget_dropped forget_total grant_source_catalogs has_alert_handler instant_literal '
    'is_export_live is_watched keep_names log_alert log_steps memory_columns note_consumers '
    'note_drift open_alert plan_export prunable prune_feed prune_runs public_message record_add_consumer '
    'record_add_export record_alter record_bulk_load record_commit_consumer record_enable record_evolution '
    'record_fail_export record_finish_export record_forget record_forget_export record_hold_consumer record_identity '
    'record_register record_remove_consumer record_schedule record_start_feed record_take_export record_take_part '
    'record_unreadable record_unschedule record_waiting_exports record_watch renamed_part renew_schedule restored_shape retry_delay '
    'settle_failure settle_feed settle_run settle_success skip_scan source_catalogs_missing source_time_of '
    'start_alert_worker untold_alerts want_filled watch_drop watch_step watch_steps with_settings xmin_columns '
    'xmin_table'
    , 'called by the extension only');
SELECT is((SELECT string_agg(p.oid::regprocedure::text, ' ' ORDER BY p.proname COLLATE "C") FROM pg_proc p
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'tablesync' WHERE p.prosecdef),
    'tablesync.before_drop() tablesync.cron_home() tablesync.cron_schedule(regclass,text) tablesync.follow_schedule() tablesync.forget_dropped() tablesync.note_write()',
    'with the rights of the extension''s owner');

-- views and tables
SELECT table_privs_are('public', v, 'other', ARRAY['SELECT']) FROM unnest(ARRAY['tablesync_status', 'tablesync_runs', 'tablesync_progress']) v;
SELECT schema_privs_are('tablesync', 'other', ARRAY['USAGE']);
SELECT is(relrowsecurity, true, 'row level security of ' || oid::regclass)
FROM pg_class WHERE oid = ANY ('{tablesync.replica,tablesync.run,tablesync.chunk}'::regclass[]) ORDER BY oid::regclass::text;

-- the owner
SET ROLE app;
SELECT results_eq('SELECT replica FROM tablesync.replica ORDER BY replica::text', ARRAY['broken'::regclass, 'media'::regclass], 'owner: sees her replicas');
SELECT isnt_empty('SELECT * FROM tablesync_runs WHERE message IS NOT NULL', 'owner: reads messages');
SELECT isnt_empty('SELECT * FROM tablesync.chunk', 'owner: sees chunks');
SELECT is((SELECT status FROM tablesync_run('media')), 'succeeded', 'owner: runs');
SELECT lives_ok($$SELECT tablesync_pause('media')$$, 'owner: pauses');
SELECT lives_ok($$SELECT tablesync_resume('media')$$, 'owner: resumes');
SELECT lives_ok($$SELECT tablesync_cancel('media')$$, 'owner: cancels');
RESET ROLE;

-- a member of the owner
SET ROLE member;
SELECT results_eq('SELECT replica FROM tablesync_status ORDER BY replica::text', ARRAY['broken'::regclass, 'media'::regclass], 'member: sees the replicas');
SELECT isnt_empty('SELECT * FROM tablesync_runs WHERE message IS NOT NULL', 'member: reads messages');
SELECT is((SELECT status FROM tablesync_run('media')), 'succeeded', 'member: runs');
SELECT lives_ok($$SELECT tablesync_alter('media', workers => 1)$$, 'member: alters');
SELECT is(tablesync_wait((SELECT max(run_id) FROM tablesync_runs WHERE replica = 'media'::regclass)), 'succeeded', 'member: waits');
RESET ROLE;

-- another role
SET ROLE other;
SELECT is_empty('SELECT * FROM ' || t, 'other: sees nothing in ' || t)
FROM unnest(ARRAY['tablesync.replica', 'tablesync.run', 'tablesync.chunk', 'tablesync_status', 'tablesync_runs', 'tablesync_progress']) t;
SELECT is((SELECT count(*) FROM tablesync_run()), 0::bigint, 'other: has no replica to run');
SELECT throws_ok(sql, NULL, NULL, 'other: ' || sql) FROM unnest(ARRAY[
    $$SELECT tablesync_alter('media', workers => 2)$$,
    $$SELECT tablesync_remove('media')$$,
    $$SELECT tablesync_cancel('media')$$,
    $$SELECT tablesync_pause('media')$$,
    $$SELECT tablesync_resume('media')$$]) sql;
SELECT throws_ok($$SELECT tablesync_add('mine', 'src', 'public.media')$$, '42501', NULL, 'other: can''t use a server of others');
SELECT throws_ok($$SELECT tablesync_add('media', 'media_source')$$, '42501', NULL, 'other: can''t add a table of others');
SELECT throws_ok($$INSERT INTO tablesync.run (replica, kind) VALUES ('media'::regclass, 'sync')$$, '42501', NULL, 'other: can''t invent a run');
SELECT throws_ok($$INSERT INTO tablesync.chunk (replica, chunk_no) VALUES ('media'::regclass, 0)$$, '42501', NULL, 'other: can''t invent a chunk');
SELECT throws_ok($$INSERT INTO tablesync.replica (replica, source, key_columns, fingerprint, shape)
                   VALUES ('media_source'::regclass, 'media_source'::regclass, '{id}', 'row', '[]')$$, '42501', NULL, 'other: can''t invent a replica');
SELECT throws_ok($$UPDATE tablesync.replica SET max_delete_fraction = 1$$, '42501', NULL, 'other: changes no setting');
SELECT throws_ok($$DELETE FROM tablesync.run$$, '42501', NULL, 'other: deletes no history');
-- throws_ok() would run it in a subtransaction, where it is refused anyway
\set ON_ERROR_STOP off
SELECT * FROM tablesync_run('media');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_SQLSTATE', '42501'::text, 'other: tablesync_run');
RESET ROLE;

-- a member of pg_monitor
SET ROLE watcher;
SELECT results_eq('SELECT replica, state FROM tablesync_status ORDER BY replica::text',
                  $$VALUES ('broken'::regclass, 'failed'), ('media', 'ok')$$, 'watcher: sees states');
SELECT isnt_empty($$SELECT FROM tablesync_runs WHERE status = 'failed' AND sqlstate = '23514'$$, 'watcher: sees that a run has failed');
SELECT is_empty('SELECT FROM tablesync_status WHERE message IS NOT NULL', 'watcher: reads no message in tablesync_status');
SELECT is_empty('SELECT FROM tablesync_runs WHERE message IS NOT NULL', 'watcher: reads no message in tablesync_runs');
CREATE FUNCTION pg_temp.readable_messages() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT count(*) FROM tablesync.run WHERE message IS NOT NULL OR detail IS NOT NULL);
EXCEPTION WHEN insufficient_privilege THEN
    RETURN 0;
END
$$;
SELECT is(pg_temp.readable_messages(), 0::bigint, 'watcher: nor in the table behind, where details quote rows');
SELECT is_empty('SELECT FROM tablesync.chunk WHERE lower_key IS NOT NULL', 'watcher: sees no keys');
SELECT throws_ok(sql, '42501', NULL, 'watcher: ' || sql) FROM unnest(ARRAY[
    $$SELECT tablesync_alter('media', workers => 2)$$,
    $$SELECT tablesync_remove('media')$$,
    $$SELECT tablesync_cancel('media')$$,
    $$SELECT tablesync_pause('media')$$]) sql;
\set ON_ERROR_STOP off
SELECT * FROM tablesync_run('media');
\set ON_ERROR_STOP on
SELECT is(:'LAST_ERROR_SQLSTATE', '42501'::text, 'watcher: tablesync_run');
RESET ROLE;

-- a new owner: the old one is out, the new one in
ALTER TABLE media OWNER TO other;
SET ROLE app;
SELECT is_empty($$SELECT FROM tablesync_status WHERE replica = 'media'::regclass$$, 'old owner: does not see the replica any more');
SET ROLE other;
SELECT results_eq('SELECT replica FROM tablesync_status', ARRAY['media'::regclass], 'new owner: sees it');
RESET ROLE;
ALTER TABLE media OWNER TO app;

SELECT * FROM finish();
