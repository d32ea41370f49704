/*
 * schedule.sql: runs that pg_cron starts
 *
 * pg_cron keeps its jobs in one database of the cluster and starts them there
 * or in any other.  A job of ours is recognised by its name, which begins with
 * the OIDs of database and replica, so that renaming either harms nothing and
 * two databases never share a job.  What was scheduled is recorded here too,
 * because pg_cron may live in another database, and lets nobody read the jobs
 * of others.
 */

/* Values of one field of a cron expression, in order; NULL if pg_cron might read it in another way. */
CREATE FUNCTION tablesync.cron_field(field text, low integer, high integer, names text[])
RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    range text;
    part text[];
    bounds integer[];
    field_values integer[] := '{}';
BEGIN
    FOREACH range IN ARRAY string_to_array(lower(field), ',') LOOP
        part := regexp_match(range, '^(?:(\*)|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/([0-9]{1,3}))?$');
        IF part[1] IS NOT NULL THEN
            bounds := ARRAY[low, high];
        ELSE
            SELECT array_agg(coalesce(array_position(names, word) - 1 + low,
                                      CASE WHEN word ~ '^[0-9]{1,2}$' THEN word::integer END) ORDER BY n)
            INTO bounds
            FROM unnest(ARRAY[part[2], coalesce(part[3], part[2])]) WITH ORDINALITY w (word, n);
        END IF;
        -- a step needs a range
        IF part[2] IS NOT NULL AND part[3] IS NULL AND part[4] IS NOT NULL
           OR (bounds[1] >= low AND bounds[2] <= high AND bounds[1] <= bounds[2] AND coalesce(part[4], '1')::integer > 0) IS NOT TRUE THEN
            RETURN NULL;
        END IF;
        field_values := field_values || ARRAY(SELECT generate_series(bounds[1], bounds[2], coalesce(part[4], '1')::integer));
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT v FROM unnest(field_values) v ORDER BY v);
END
$$;
COMMENT ON FUNCTION tablesync.cron_field(text, integer, integer, text[]) IS 'values of one field of a cron expression; NULL if in doubt';

/*
 * Where pg_cron lives: cron.database_name is shown to superusers only, and all
 * it tells is which database has the extension.
 */
CREATE FUNCTION tablesync.cron_home(OUT database text, OUT here boolean, OUT zone text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    database := current_setting('cron.database_name', true);
    -- who has the extension has its schema: nobody else can have put a "cron" there
    here := coalesce(database = current_database(), false) AND EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_cron');
    zone := coalesce(nullif(current_setting('cron.timezone', true), ''), 'GMT');    -- before pg_cron 1.6 always GMT
END
$$;
COMMENT ON FUNCTION tablesync.cron_home() IS 'database of pg_cron (NULL if it is not loaded), whether that is this one, and its time zone';

/*
 * When pg_cron starts a job for the first time after a moment.  NULL if never,
 * or if in doubt: an expression that is not plain, or a change of the clock.
 * pg_cron 1.4 accepts @yearly, but never starts it.
 */
CREATE FUNCTION tablesync.cron_next(schedule text, after timestamptz, zone text DEFAULT NULL)
RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    zone_name text := coalesce(zone, (SELECT h.zone FROM tablesync.cron_home() h));
    field text[] := regexp_split_to_array(btrim(CASE schedule WHEN '@hourly' THEN '0 * * * *'
                                                              WHEN '@daily' THEN '0 0 * * *'
                                                              WHEN '@midnight' THEN '0 0 * * *'
                                                              WHEN '@weekly' THEN '0 0 * * 0'
                                                              WHEN '@monthly' THEN '0 0 1 * *'
                                                              ELSE schedule END, E' \t'), '[ \t]+');
    minutes integer[] := tablesync.cron_field(field[1], 0, 59, '{}');
    hours integer[] := tablesync.cron_field(field[2], 0, 23, '{}');
    month_days integer[] := tablesync.cron_field(field[3], 1, 31, '{}');
    months integer[] := tablesync.cron_field(field[4], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}');
    week_days integer[] := tablesync.cron_field(field[5], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}');
    any_day boolean := field[3] LIKE '*%' OR field[5] LIKE '*%';
    earliest timestamp := date_trunc('minute', after AT TIME ZONE zone_name) + interval '1 minute';
    day date := earliest::date;
    on_month_day boolean;
    on_week_day boolean;
    minute_of_day integer;
    next_start timestamptz;
BEGIN
    IF cardinality(field) <> 5 OR minutes IS NULL OR hours IS NULL OR month_days IS NULL OR months IS NULL OR week_days IS NULL
       OR earliest IS NULL OR NOT isfinite(earliest) THEN
        RETURN NULL;
    END IF;
    FOR n IN 0 .. 3000 LOOP    -- 29 February may be eight years away
        on_month_day := EXTRACT(day FROM day)::integer = ANY (month_days);
        on_week_day := EXTRACT(dow FROM day)::integer = ANY (week_days) OR EXTRACT(isodow FROM day)::integer = ANY (week_days);
        IF EXTRACT(month FROM day)::integer = ANY (months)
           AND (on_month_day AND on_week_day OR NOT any_day AND (on_month_day OR on_week_day)) THEN
            minute_of_day := CASE WHEN n > 0 THEN hours[1] * 60 + minutes[1] ELSE
                (SELECT least((SELECT min(h.hour * 60 + m.minute) FROM unnest(minutes) m (minute)
                               WHERE h.hour = ANY (hours) AND m.minute >= EXTRACT(minute FROM earliest)),
                              (SELECT min(later) * 60 + minutes[1] FROM unnest(hours) later WHERE later > h.hour))
                 FROM (SELECT EXTRACT(hour FROM earliest)::integer) h (hour)) END;
            EXIT WHEN minute_of_day IS NOT NULL;
        END IF;
        day := day + 1;
    END LOOP;
    next_start := (day + minute_of_day * interval '1 minute') AT TIME ZONE zone_name;
    -- hours that the clock skips or repeats
    IF next_start AT TIME ZONE zone_name <> day + minute_of_day * interval '1 minute'
       OR (next_start - after < interval '1 day'
           AND (next_start AT TIME ZONE zone_name) - (after AT TIME ZONE zone_name) <> next_start - after) THEN
        RETURN NULL;
    END IF;
    RETURN next_start;
END
$$;
COMMENT ON FUNCTION tablesync.cron_next(text, timestamptz, text) IS 'first start by a cron expression after a moment; NULL if never or in doubt';

/* Every job of a replica has a name that begins like this. */
CREATE FUNCTION tablesync.job_prefix(replica oid)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('tablesync %s.%s:', d.oid, replica) FROM pg_database d WHERE d.datname = current_database();
$$;
COMMENT ON FUNCTION tablesync.job_prefix(oid) IS 'how names of a replica''s jobs begin: OIDs of database and replica';

/* How names of the jobs begin that watch over the replicas of one role each. */
CREATE FUNCTION tablesync.watch_prefix()
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('tablesync watch %s.', d.oid) FROM pg_database d WHERE d.datname = current_database();
$$;
COMMENT ON FUNCTION tablesync.watch_prefix() IS 'how names of the watchdogs'' jobs begin; the OID of the role follows';

/* Name, command, database and role of the job for a replica, and of the watchdog for its owner. */
CREATE FUNCTION tablesync.job_definition(replica regclass, OUT name text, OUT command text, OUT database text, OUT role name,
                                         OUT watch_name text, OUT watch_command text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    name := format('%s %s.%s', tablesync.job_prefix(replica), current_database(), replica);
    WHILE octet_length(name) > 63 LOOP    -- pg_cron's column is of type name
        name := left(name, -1);
    END LOOP;
    command := format('CALL tablesync.run_scheduled(%s)', replica::oid);
    database := current_database();
    role := (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = replica);
    watch_name := tablesync.watch_prefix() || (SELECT c.relowner FROM pg_class c WHERE c.oid = replica);
    watch_command := 'SELECT tablesync.watch()';
END
$$;
COMMENT ON FUNCTION tablesync.job_definition(regclass) IS 'what pg_cron has to know to run a replica';

/*
 * What pg_cron will do for a replica, as far as it can be known: its own job
 * where it lives in this database, else what was recorded.  NULL if the job is
 * gone or switched off, or pg_cron not loaded.
 *
 * Jobs are read with the definer's rights, so the rights of who asks are looked
 * up by name; who may not see the replica gets back what he brought.
 */
CREATE FUNCTION tablesync.cron_schedule(replica regclass, recorded text)
RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home record := tablesync.cron_home();
    asking name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    replica_owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = replica);
BEGIN
    IF home.database IS NULL AND pg_is_in_recovery() THEN    -- pg_cron is loaded at the primary, or is to be after a promotion
        RETURN recorded;
    END IF;
    IF recorded IS NULL OR home.database IS NULL THEN
        RETURN NULL;
    END IF;
    IF home.database <> current_database()
       OR (pg_has_role(asking, 'pg_monitor', 'USAGE') OR pg_has_role(asking, replica_owner, 'USAGE')) IS NOT TRUE THEN
        RETURN recorded;
    END IF;
    IF NOT home.here THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT j.schedule FROM cron.job j JOIN pg_roles r ON r.rolname = j.username
            WHERE starts_with(j.jobname::text, tablesync.job_prefix(replica))
              AND j.active AND j.database = current_database() AND pg_has_role(r.oid, replica_owner, 'USAGE')
            ORDER BY j.jobid LIMIT 1);
END
$$;
COMMENT ON FUNCTION tablesync.cron_schedule(regclass, text) IS 'schedule by which pg_cron runs a replica now; the recorded one where that can''t be known';

/*
 * Does a start that pg_cron makes now have anything to do?  Starts that were
 * due during a long run come all at once when it is over; the first one makes
 * the replica fresh, and the others find here that none was due since then.
 */
CREATE FUNCTION tablesync.due(replica regclass)
RETURNS SETOF regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_start timestamptz;
    next_start timestamptz;
BEGIN
    PERFORM tablesync.check_replica($1);
    SELECT r.started_at INTO last_start FROM tablesync.run r WHERE r.replica = $1 ORDER BY r.run_id DESC LIMIT 1;
    SELECT tablesync.cron_next(tablesync.cron_schedule(s.replica, s.schedule), last_start) INTO next_start
    FROM tablesync.schedule s WHERE s.replica = $1;
    IF next_start IS NULL OR next_start <= clock_timestamp()
       OR EXISTS (SELECT FROM tablesync.live_runs() l WHERE l.replica = $1) THEN
        RETURN NEXT $1;
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.due(regclass) IS 'the replica, unless a run has started since its schedule was last due';

/*
 * Jobs follow the record: without a record no job, and never two.  A replica
 * can be dropped whatever has become of pg_cron.
 */
CREATE FUNCTION tablesync.follow_schedule()
RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home record := tablesync.cron_home();
    replica oid := coalesce(NEW.replica, OLD.replica);
BEGIN
    IF home.here THEN
        PERFORM cron.unschedule(j.jobid) FROM cron.job j
        WHERE starts_with(j.jobname::text, tablesync.job_prefix(replica)) AND j.jobid IS DISTINCT FROM NEW.cron_job_id;
        PERFORM cron.unschedule(j.jobid) FROM cron.job j    -- watchdogs with nothing left to watch
        WHERE starts_with(j.jobname::text, tablesync.watch_prefix())
          AND NOT EXISTS (SELECT FROM tablesync.all_schedules s JOIN pg_class c ON c.oid = s.replica
                          WHERE tablesync.watch_prefix() || c.relowner = j.jobname::text);
    ELSIF home.database IS NOT NULL AND (TG_OP = 'DELETE' AND OLD.cron_job_id IS NOT NULL OR OLD.cron_job_id <> NEW.cron_job_id) THEN
        RAISE WARNING 'job % of pg_cron is still there', OLD.cron_job_id
            USING DETAIL = format('pg_cron is in database "%s".', home.database),
                  HINT = format('In that database: SELECT cron.unschedule(%s);', OLD.cron_job_id);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'jobs "%" of pg_cron could not be unscheduled: %', tablesync.job_prefix(replica), SQLERRM
        USING HINT = 'Look for them in cron.job.';
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.follow_schedule() IS 'trigger: unschedules the jobs of a replica that its schedule does not name';
REVOKE ALL ON FUNCTION tablesync.follow_schedule() FROM PUBLIC;
CREATE TRIGGER follow_schedule AFTER INSERT OR DELETE OR UPDATE OF cron_job_id ON tablesync.all_schedules
    FOR EACH ROW EXECUTE FUNCTION tablesync.follow_schedule();

/* A paused replica missed no start; a restored one has no job here. */
CREATE FUNCTION tablesync.renew_schedule()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    forgotten text;
BEGIN
    IF NEW.home = OLD.home THEN
        UPDATE tablesync.all_schedules s SET since = clock_timestamp() WHERE s.replica = NEW.replica;
        RETURN NULL;
    END IF;
    UPDATE tablesync.all_schedules s SET cron_job_id = NULL WHERE s.replica = NEW.replica;    -- that number means nothing here
    DELETE FROM tablesync.all_schedules s WHERE s.replica = NEW.replica RETURNING s.schedule INTO forgotten;
    IF FOUND THEN
        RAISE NOTICE 'replica % is not scheduled here', NEW.replica
            USING HINT = format('SELECT tablesync_schedule(%L, %L);', NEW.replica, forgotten);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tablesync.renew_schedule() IS 'trigger: a schedule counts from when its replica is resumed';
CREATE TRIGGER renew_schedule AFTER UPDATE OF enabled, home ON tablesync.all_replicas
    FOR EACH ROW WHEN (NEW.enabled AND (NOT OLD.enabled OR NEW.home <> OLD.home))
    EXECUTE FUNCTION tablesync.renew_schedule();

/* An error with the way out unless pg_cron can be used from here. */
CREATE FUNCTION tablesync.check_cron(replica regclass, schedule text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home record := tablesync.cron_home();
    job record := tablesync.job_definition(replica);
BEGIN
    IF home.database IS NULL THEN
        RAISE EXCEPTION 'pg_cron is not loaded'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Schedules are kept and started by the extension pg_cron.',
                  HINT = format('Install it, add pg_cron to shared_preload_libraries, set cron.database_name = %L, restart the server '
                                'and use CREATE EXTENSION pg_cron; or let another scheduler call tablesync_run(%L).',
                                current_database(), replica);
    ELSIF home.database <> current_database() THEN
        RAISE EXCEPTION 'pg_cron is in database "%", not in this one', home.database
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Jobs of pg_cron can be made only there.',
                  HINT = format('As a superuser in database "%s": SELECT cron.schedule_in_database(%L, %L, %L, %L, %L); '
                                'Then here, with the number that it returns: SELECT tablesync_schedule(%L, %L, job_id => <number>);',
                                home.database, job.name, schedule, job.command, job.database, job.role, replica, schedule);
    ELSIF NOT home.here THEN
        RAISE EXCEPTION 'extension pg_cron does not exist'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'As a superuser in this database: CREATE EXTENSION pg_cron;';
    ELSIF NOT (SELECT r.rolcanlogin FROM pg_roles r WHERE r.rolname = job.role) THEN
        RAISE EXCEPTION 'role "%" may not log in', job.role
            USING ERRCODE = 'invalid_authorization_specification', DETAIL = 'pg_cron connects as the owner of the replica.',
                  HINT = format('ALTER ROLE %I LOGIN; the role needs no password.', job.role);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_cron(regclass, text) IS 'an error unless pg_cron can be used from this database';

/* Have pg_cron start runs of a replica as the replica's owner. */
CREATE FUNCTION tablesync.schedule_job(replica regclass, schedule text)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job record := tablesync.job_definition(replica);
    previous_role text := current_setting('role');
    job_id bigint;
BEGIN
    IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        PERFORM cron.schedule_in_database(job.watch_name, '* * * * *', job.watch_command, job.database, job.role::text, true);
        RETURN cron.schedule_in_database(job.name, schedule, job.command, job.database, job.role::text, true);
    END IF;
    IF NOT has_schema_privilege(job.role, 'cron', 'USAGE') THEN
        RAISE EXCEPTION 'role "%" may not use pg_cron', job.role
            USING ERRCODE = 'insufficient_privilege', DETAIL = 'The job belongs to the owner of the replica.',
                  HINT = format('As a superuser in this database: GRANT USAGE ON SCHEMA cron TO %I;', job.role);
    END IF;
    PERFORM set_config('role', job.role, true);    -- only superusers may name another role
    PERFORM cron.schedule(job.watch_name, '* * * * *', job.watch_command);
    job_id := cron.schedule(job.name, schedule, job.command);
    PERFORM set_config('role', previous_role, true);
    RETURN job_id;
END
$$;
COMMENT ON FUNCTION tablesync.schedule_job(regclass, text) IS 'creates or changes the job for a replica in pg_cron';

CREATE FUNCTION tablesync.record_schedule(replica regclass, schedule text, job_id bigint)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO tablesync.all_schedules AS s (replica, schedule, cron_job_id) VALUES ($1, $2, $3)
    ON CONFLICT (replica) DO UPDATE SET schedule = excluded.schedule, cron_job_id = excluded.cron_job_id, since = excluded.since;
$$;
COMMENT ON FUNCTION tablesync.record_schedule(regclass, text, bigint) IS 'behind the door tablesync.schedule()';

CREATE FUNCTION tablesync.schedule(replica regclass, schedule text, job_id bigint)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.schedule(regclass, text, bigint) IS 'door for tablesync_schedule()';

CREATE FUNCTION tablesync.record_unschedule(replica regclass)
RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM tablesync.all_schedules s WHERE s.replica = $1 RETURNING 1)
    SELECT EXISTS (SELECT FROM gone);
$$;
COMMENT ON FUNCTION tablesync.record_unschedule(regclass) IS 'behind the door tablesync.unschedule()';

CREATE FUNCTION tablesync.unschedule(replica regclass)
RETURNS boolean
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_door';
COMMENT ON FUNCTION tablesync.unschedule(regclass) IS 'door for tablesync_unschedule()';

CREATE FUNCTION @extschema@.tablesync_schedule(replica regclass, schedule text, job_id bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_job_id bigint := job_id;
BEGIN
    PERFORM tablesync.check_primary('tablesync_schedule()');
    PERFORM tablesync.check_replica($1);
    IF schedule IS NULL THEN
        RAISE EXCEPTION 'schedule must not be NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = format('Use tablesync_unschedule(%L) to end a schedule.', $1);
    END IF;
    IF job_id IS NULL THEN
        PERFORM tablesync.check_cron($1, $2);
        new_job_id := tablesync.schedule_job($1, $2);
    ELSIF (SELECT h.here FROM tablesync.cron_home() h) THEN
        RAISE EXCEPTION 'job_id is only for a job that was scheduled in another database'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'pg_cron is in this database: leave job_id out.';
    END IF;
    PERFORM tablesync.schedule($1, $2, new_job_id);
    RETURN new_job_id;
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_schedule(regclass, text, bigint)
    IS 'lets pg_cron run a replica by a cron expression; returns the job''s number (job_id records a job that was made where pg_cron lives)';

CREATE FUNCTION @extschema@.tablesync_unschedule(replica regclass)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.check_primary('tablesync_unschedule()');
    PERFORM tablesync.check_replica($1);
    RETURN tablesync.unschedule($1);
END
$$;
COMMENT ON FUNCTION @extschema@.tablesync_unschedule(regclass) IS 'ends the schedule of a replica; false if it has none';

/*
 * The jobs of this database go with the extension: they would fail for ever.
 * Called while all of it is still there; a drop fails for nothing that is here.
 */
CREATE FUNCTION tablesync.end_jobs()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home record := tablesync.cron_home();
BEGIN
    IF home.here THEN
        PERFORM cron.unschedule(j.jobid) FROM cron.job j, pg_database d
        WHERE d.datname = current_database()
          AND (starts_with(j.jobname::text, format('tablesync %s.', d.oid)) OR starts_with(j.jobname::text, tablesync.watch_prefix()));
    ELSIF home.database IS DISTINCT FROM current_database() AND EXISTS (SELECT FROM tablesync.all_schedules s WHERE s.cron_job_id IS NOT NULL) THEN
        RAISE WARNING 'jobs of pg_cron for replicas of this database are still there'
            USING DETAIL = coalesce('pg_cron is in database "' || home.database || '".', 'pg_cron is not loaded.'),
                  HINT = format('In %s: SELECT cron.unschedule(jobid) FROM cron.job WHERE database = %L AND command LIKE ''%%tablesync.%%'';',
                                CASE WHEN home.database IS NULL THEN 'its database, once it is loaded' ELSE 'that database' END, current_database());
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'jobs of pg_cron for replicas of this database could not be unscheduled: %', SQLERRM
        USING HINT = 'Look for them in cron.job.';
END
$$;
COMMENT ON FUNCTION tablesync.end_jobs() IS 'unschedules all jobs of this database, or says where they are';

CREATE FUNCTION tablesync.watch_drop()
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'tsync_watch_drop';
COMMENT ON FUNCTION tablesync.watch_drop() IS 'has tablesync.end_jobs() called when the current statement drops the extension';

/* In PL/pgSQL, so that all can be dropped when the library is gone. */
CREATE FUNCTION tablesync.before_drop()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tablesync.watch_drop();
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'if this drops the extension tablesync, its jobs of pg_cron stay: %', SQLERRM
        USING HINT = 'Look for them in cron.job.';
END
$$;
COMMENT ON FUNCTION tablesync.before_drop() IS 'event trigger: a statement begins that may drop the extension';
REVOKE ALL ON FUNCTION tablesync.before_drop() FROM PUBLIC;
CREATE EVENT TRIGGER tablesync_before_drop ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION', 'DROP SCHEMA', 'DROP OWNED')
    EXECUTE FUNCTION tablesync.before_drop();
COMMENT ON EVENT TRIGGER tablesync_before_drop IS 'ends schedules when the extension is dropped';
