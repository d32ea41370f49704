/* rights.sql: what anybody may call; all other functions are called by ours, as the extension's owner, or by nobody */

DO $$
DECLARE
    f record;
    for_everybody CONSTANT text[] := '{
        home,owns,sees,check_primary,live_runs,run_status,note_write,live_progress,is_hanging,is_missed,
        source_target,source_image,source_images,source_image_statement,files_of,image_identity,key_attnums,is_source_unique,newest_xid,oldest_xid,source_relation,source_catalog,prepare_server,source_identity,source_layout,source_counters,is_array_of,local_type,
        is_bytewise,ask_sorting,source_sorts_bytes,source_columns,type_problem,source_shape,shape_core,lags_behind,known_shape,replica_columns,check_source_server,
        check_source_session,is_pooled,pooler_hint,catalog_hint,option_changes,connection_hint,open_source,xmin_problem,refuse_xmin,find_xmin_table,has_source_key,unreadable_columns,refuse_source,source_catalog_columns,xid_precedes,source_time,
        source_key,index_problem,key_problem,is_view,null_condition,refuse_view_key,check_null_keys,check_different_keys,check_view_key,check_view,rows_of_part,has_view_index,
        only_unique_index,view_key,source_kind_problem,source_kind_hint,check_source_kind,column_hint,refuse_column,check_source,has_key_index,check_existing,may_be_left_out,check_readable,check_parts,
        columns_of_expression,rename_in_expression,check_expression,keep_runs_away,used_columns,needed_columns,wanted_shape,computed_columns,part_of_source,
        columns_of_replica,check_computed_there,grouping_problem,check_columns,check_computed,checked_part,
        shape_of_part,plan_hidden,plan_computed,foreign_part_statements,plan_part,change_part,take_part,
        type_name,column_definitions,check_mapping,check_owner_access,set_source_options,check_settings,check_not_replica,check_permanent,
        is_left_over,choose_foreign_name,foreign_table_problem,recreate_hint,add_replica,create_source,register,source_tables,name_problem,readable_tables,describe_addition,try_add,check_add_schema,list_tables,add_schema,
        check_replica,check_comparable,alter,forget,enable,may_be_dropped,group_members,
        smallest_value,subdivide,first_column_bounds,source_bounds,can_bulk_load,build_indexes,abandon_bulk_load,
        widens,local_column,stands_for,by_hand,add_again,foreign_column_statements,plan_added,plan_dropped,rename_columns,unused_name,short_name,with_numbers,
        name_of,remote_name,wanted_name,plan_names,name_after,is_moved,fits_or_fails,label_statements,plan_problem,shape_here,describe_retyped,plan_retyped,plan_nullable,match_columns,plan_key,plan_evolution,
        drop_unless_used,apply_steps,refuse_steps,describe_problems,evolve,
        dependent_views,privileges,view_state,check_recreatable,drop_views,restore_privileges,create_view,
        cron_field,cron_home,cron_next,job_prefix,watch_prefix,job_definition,cron_schedule,due,check_cron,schedule_job,schedule,
        unschedule,watch,serve_queue,queue_run,await_run,withdraw_run,raise_error,run_scheduled,
        ask_source,check_digest,worker_slots,fail_check,remote_role,preflight_state,preflight_owner,preflight_mapping,
        preflight_worker_slots,preflight_pg_cron,published_as,identity_columns,identity_remedy,publication_problem,idle_slots,preflight_publication,preflight_connection,preflight_session,preflight_server,preflight_source_table,
        read_nothing,preflight_privileges,preflight_row_security,preflight_key,preflight_types,preflight_collation,preflight_shape,
        preflight_replica_table,preflight_statements,row_width,preflight_estimate,check_in_worker,try_check,preflight_source,
        try_worker,check_replicas,
        feed_name,base_type,feed_columns,feed_problem,create_feed,fit_feed,column_names,rename_feed_columns,start_feed,begin_feed,drop_feed,end_feed,
        decimal_bytes,bit_bytes,point_wkb,base64,iso_instant,plain_expression,debezium_expression,row_expression,
        feed_of,missing_until,read_feed,milliseconds,snapshot_envelopes,change_envelopes,fetch_envelopes,
        add_consumer,remove_consumer,hold_consumer,commit_consumer,
        add_export,serve_exports}';
BEGIN
    REVOKE ALL ON ALL ROUTINES IN SCHEMA tablesync FROM PUBLIC;
    FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p
             WHERE p.pronamespace = 'tablesync'::regnamespace AND p.proname = ANY (for_everybody) LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO PUBLIC', f.name);
    END LOOP;
END
$$;
