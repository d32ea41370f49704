/*
 * plan.sql: what a change of a source's shape asks for
 *
 * A plan compares the shape a replica was built for with the source's new one,
 * and with what replica and foreign table are now: whatever the owner has done
 * by hand needs no statement any more and is accepted.  Making a plan asks
 * only local catalogs and changes nothing.
 */

CREATE TYPE tablesync.schema_step AS (
    change text,
    column_name text,
    action text,
    detail text,
    statements text[],
    unless_used text[],
    fill boolean,
    problem text,
    hint text
);
COMMENT ON TYPE tablesync.schema_step IS 'one change of a source''s shape: what a run does about it, or the problem that keeps it from doing so';
COMMENT ON COLUMN tablesync.schema_step.statements IS 'DDL for replica and foreign table';
COMMENT ON COLUMN tablesync.schema_step.unless_used IS 'DDL that is left out where other objects depend on the column';
COMMENT ON COLUMN tablesync.schema_step.fill IS 'whether the column''s values have to be compared or fetched for all rows';
COMMENT ON COLUMN tablesync.schema_step.problem IS 'why the replica pauses; NULL where it need not';

/* Does every value of a type stay the same value under another one?  Where in doubt, no. */
CREATE FUNCTION tablesync.widens(old_type oid, old_typmod integer, new_type oid, new_typmod integer)
RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN old_type = 'int2'::regtype THEN new_type IN ('int4'::regtype, 'int8'::regtype)
        WHEN old_type = 'int4'::regtype THEN new_type = 'int8'::regtype
        WHEN old_type IN ('varchar'::regtype, 'text'::regtype) AND new_type IN ('varchar'::regtype, 'text'::regtype) THEN
            new_typmod = -1 OR (old_typmod <> -1 AND new_typmod >= old_typmod)
        WHEN old_type <> new_type THEN false
        WHEN old_type IN ('bpchar'::regtype, 'varbit'::regtype) THEN
            CASE WHEN old_typmod = -1 THEN new_typmod = -1
                 ELSE new_typmod >= old_typmod OR (new_typmod = -1 AND old_type = 'varbit'::regtype) END
        WHEN old_type = 'numeric'::regtype THEN
            new_typmod = -1 OR (old_typmod <> -1 AND new_scale >= old_scale
                                AND new_precision - new_scale >= old_precision - old_scale)
        WHEN old_type IN ('timestamp'::regtype, 'timestamptz'::regtype, 'time'::regtype, 'timetz'::regtype) THEN
            new_typmod = -1 OR new_typmod >= 6 OR (old_typmod <> -1 AND new_typmod >= old_typmod)
        WHEN old_type = 'interval'::regtype THEN new_typmod = -1
        ELSE false END
    FROM (SELECT (old_typmod - 4) >> 16 & 65535, ((old_typmod - 4) & 2047 # 1024) - 1024,
                 (new_typmod - 4) >> 16 & 65535, ((new_typmod - 4) & 2047 # 1024) - 1024)
         v (old_precision, old_scale, new_precision, new_scale);
$$;
COMMENT ON FUNCTION tablesync.widens(oid, integer, oid, integer) IS 'whether a column can change from one type to another without any value being lost';

CREATE FUNCTION tablesync.local_column(relation regclass, column_name text,
    OUT type text, OUT type_oid oid, OUT typmod integer, OUT not_null boolean, OUT "collation" text, OUT writable boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format_type(a.atttypid, a.atttypmod), a.atttypid, a.atttypmod, a.attnotnull,
           CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE %I.%I', n.nspname, co.collname) ELSE '' END,
           a.attgenerated = '' AND a.attidentity <> 'a'
    FROM (SELECT) always
    LEFT JOIN pg_attribute a ON a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_collation co ON co.oid = a.attcollation
    LEFT JOIN pg_namespace n ON n.oid = co.collnamespace;
$$;
COMMENT ON FUNCTION tablesync.local_column(regclass, text) IS 'type, NOT NULL and collation of a column of a local table; NULLs if there is none';

/* Does a column of a foreign table stand for this column of its source? */
CREATE FUNCTION tablesync.stands_for(source regclass, column_name text, remote_name text)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_attribute a
                   WHERE a.attrelid = source AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
                     AND coalesce((SELECT o.option_value FROM pg_options_to_table(a.attfdwoptions) o
                                   WHERE o.option_name = 'column_name'), a.attname) = remote_name);
$$;
COMMENT ON FUNCTION tablesync.stands_for(regclass, text, text) IS 'whether a foreign table has a column for a column of its source';

/* What to type to do by hand what a run does not dare to do. */
CREATE FUNCTION tablesync.by_hand(replica regclass, statements text[])
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT concat_ws(' ', (SELECT string_agg(s || ';', ' ' ORDER BY n) FROM unnest(statements) WITH ORDINALITY u (s, n)),
                     format('SELECT tablesync_resume(%L);', replica));
$$;
COMMENT ON FUNCTION tablesync.by_hand(regclass, text[]) IS 'statements that lead out of a pause, as text';

CREATE FUNCTION tablesync.add_again(replica regclass)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('Give %1$s the new key, then remove the replica with tablesync_remove(%1$L) and add it again. '
                  'Its rows are kept; the first run compares every column.', replica);
$$;
COMMENT ON FUNCTION tablesync.add_again(regclass) IS 'what to do about a replica whose key has changed at the source';

/* Statements that make a foreign table's column what the source's column is. */
CREATE FUNCTION tablesync.foreign_column_statements(source regclass, new jsonb)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(
        SELECT s FROM (VALUES
            (CASE WHEN NOT tablesync.stands_for(source, new->>'column', new->>'remote') THEN
                format('ALTER FOREIGN TABLE %s ADD COLUMN %I %s%s%s', source, new->>'column', new->>'type',
                       ' COLLATE pg_catalog.' || quote_ident(new->>'collation'),
                       CASE WHEN (new->>'not_null')::boolean THEN ' NOT NULL' END)
             WHEN f.type <> new->>'type' THEN
                format('ALTER FOREIGN TABLE %s ALTER COLUMN %I TYPE %s%s', source, new->>'column', new->>'type', f."collation") END),
            (CASE WHEN f.not_null AND NOT (new->>'not_null')::boolean THEN
                format('ALTER FOREIGN TABLE %s ALTER COLUMN %I DROP NOT NULL', source, new->>'column') END)) v (s)
        WHERE s IS NOT NULL)
    FROM tablesync.local_column(source, new->>'column') f;
$$;
COMMENT ON FUNCTION tablesync.foreign_column_statements(regclass, jsonb) IS 'DDL that makes a foreign table''s column fit the source';

/* A column that the source did not have. */
CREATE FUNCTION tablesync.plan_added(settings tablesync.replica, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, new->>'column');
    on_source text[] := tablesync.foreign_column_statements(settings.source, new);
    step tablesync.schema_step;
    misfit text := coalesce(new->>'problem', tablesync.type_problem((new->>'type_oid')::oid, false, settings.fingerprint = 'row'));
BEGIN
    step.change := 'added';
    step.column_name := new->>'column';
    step.detail := concat_ws(' ', format('column %I', new->>'remote'), new->>'type', 'was added');
    step.fill := true;
    step.action := 'applied';
    step.statements := on_source;
    IF misfit IS NOT NULL THEN
        step.problem := format('%s and can''t be replicated exactly: %s', step.detail, misfit);
        step.hint := concat_ws(' ',
            CASE WHEN new->>'problem' LIKE 'type % here' THEN 'Create the type here like at the source, and resume.'
                 WHEN tablesync.type_problem((new->>'type_oid')::oid, false, false) IS NULL AND new->>'problem' IS NULL THEN
                     'If the source sets a column on every change, name it as version_column with tablesync_alter(), and resume.' END,
            format('To leave new columns out: SELECT tablesync_alter(%L, on_schema_change => ''ignore'', enabled => true);', settings.replica));
    ELSIF mine.type IS NULL THEN
        step.statements := format('ALTER TABLE %s ADD COLUMN %I %s%s', settings.replica, new->>'column', new->>'type',
                                  ' COLLATE pg_catalog.' || quote_ident(new->>'collation')) || on_source;
    ELSIF NOT tablesync.stands_for(settings.source, new->>'column', new->>'remote') THEN
        step.problem := format('%s, and %s has a column of that name already', step.detail, settings.replica);
        step.hint := format('Rename or drop the column of %s. Or, to have its values replaced by the source''s: %s', settings.replica,
                            tablesync.by_hand(settings.replica, on_source));
    ELSIF mine.type <> new->>'type' OR NOT mine.writable THEN
        step.problem := format('%s, and column %I of %s is %s', step.detail, new->>'column', settings.replica,
                               CASE WHEN mine.writable THEN mine.type ELSE 'generated' END);
        step.hint := format('Rename or drop the column of %s. %s', settings.replica, tablesync.by_hand(settings.replica, '{}'));
    ELSE
        step.action := CASE WHEN on_source = '{}' THEN 'accepted' ELSE 'applied' END;
        IF mine.not_null AND NOT (new->>'not_null')::boolean THEN
            step.statements := format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, new->>'column') || on_source;
        END IF;
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_added(tablesync.replica, jsonb) IS 'what to do about a column that the source did not have';

/* Statements that rename a replica's column as the source has done. */
CREATE FUNCTION tablesync.rename_statements(settings tablesync.replica, old jsonb, new jsonb)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN old->>'column' <> old->>'remote' THEN    -- a name of its own here
        ARRAY[format('ALTER FOREIGN TABLE %s ALTER COLUMN %I OPTIONS (SET column_name %L)', settings.source, old->>'column', new->>'remote')]
    ELSE
        ARRAY[format('ALTER TABLE %s RENAME COLUMN %I TO %I', settings.replica, old->>'column', new->>'remote'),
              format('ALTER FOREIGN TABLE %s RENAME COLUMN %I TO %I', settings.source, old->>'column', new->>'remote')]
    END;
$$;
COMMENT ON FUNCTION tablesync.rename_statements(tablesync.replica, jsonb, jsonb) IS 'DDL that renames a column here like at the source';

/*
 * A column that the source no longer has.  In a table that was created anew,
 * a new column of the same type may be the old one under another name.
 */
CREATE FUNCTION tablesync.plan_dropped(settings tablesync.replica, old jsonb, added jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, old->>'column');
    in_source boolean := tablesync.stands_for(settings.source, old->>'column', old->>'remote');
    step tablesync.schema_step;
    may_be jsonb;
BEGIN
    step.change := 'dropped';
    step.column_name := old->>'column';
    step.detail := concat_ws(' ', format('column %I', old->>'remote'), old->>'type', 'was dropped');
    step.statements := CASE WHEN mine.not_null THEN
        ARRAY[format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, old->>'column')] ELSE '{}' END;
    step.fill := false;
    SELECT n INTO may_be FROM jsonb_array_elements(added) n
    WHERE n->>'type' = old->>'type' AND n->'table' <> old->'table' LIMIT 1;
    IF old->>'column' = ANY (settings.key_columns) THEN
        step.problem := format('key column %I was dropped', old->>'remote');
        step.hint := tablesync.add_again(settings.replica);
    ELSIF settings.fingerprint = 'version' AND old->>'column' = settings.version_column THEN
        step.problem := format('version column %I was dropped', old->>'remote');
        step.hint := format('SELECT tablesync_alter(%1$L, fingerprint => ''row''); or name another version_column. Then: %2$s',
                            settings.replica, tablesync.by_hand(settings.replica, '{}'));
    ELSIF may_be IS NOT NULL AND mine.type IS NOT NULL AND settings.on_schema_change <> 'ignore' THEN
        step.problem := format('the table was created anew with column %I instead of %I, which may be the same', may_be->>'remote', old->>'remote');
        step.hint := format('If it was renamed: %s If it is another column, drop column %I of %s and resume.',
                            tablesync.by_hand(settings.replica, tablesync.rename_statements(settings, old, may_be)),
                            old->>'column', settings.replica);
    ELSIF settings.on_schema_change = 'ignore' THEN
        step.action := 'ignored';
    ELSE
        step.action := CASE WHEN mine.type IS NULL THEN 'accepted' WHEN settings.drop_columns THEN 'dropped' ELSE 'kept' END;
        step.unless_used := ARRAY(SELECT s FROM (VALUES
            (CASE WHEN step.action = 'dropped' THEN format('ALTER TABLE %s DROP COLUMN %I', settings.replica, old->>'column') END),
            (CASE WHEN in_source THEN format('ALTER FOREIGN TABLE %s DROP COLUMN %I', settings.source, old->>'column') END)) v (s)
            WHERE s IS NOT NULL);
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_dropped(tablesync.replica, jsonb, jsonb) IS 'what to do about a column that the source no longer has';

/* A column with another name: never done by a run, accepted once the owner has done it. */
CREATE FUNCTION tablesync.plan_renamed(settings tablesync.replica, old jsonb, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before record := tablesync.local_column(settings.replica, old->>'column');
    after record := tablesync.local_column(settings.replica, new->>'column');
    step tablesync.schema_step;
BEGIN
    step.change := 'renamed';
    step.column_name := new->>'column';
    step.detail := format('column %I was renamed to %I', old->>'remote', new->>'remote');
    step.action := 'accepted';
    step.fill := false;
    IF after.type IS NULL OR NOT tablesync.stands_for(settings.source, new->>'column', new->>'remote')
       OR (before.type IS NOT NULL AND old->>'column' <> new->>'column') THEN
        step.problem := step.detail;
        step.hint := tablesync.by_hand(settings.replica, tablesync.rename_statements(settings, old, new));
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_renamed(tablesync.replica, jsonb, jsonb) IS 'what to do about a column that has another name at the source';

/* In words how a column's type has changed; it has not where only the foreign table's differs. */
CREATE FUNCTION tablesync.describe_retyped(remote_name text, old_type text, new_type text, replaced boolean)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN replaced AND old_type IS NOT DISTINCT FROM new_type THEN format('column %I was dropped and added again', remote_name)
                WHEN replaced THEN format('column %I %s was dropped and added again as %s', remote_name, old_type, v.new_type)
                WHEN old_type IS NOT DISTINCT FROM new_type THEN format('column %I is of type %s', remote_name, v.new_type)
                ELSE format('column %I changed its type from %s to %s', remote_name, old_type, v.new_type) END
    FROM (SELECT coalesce(new_type, 'one that is unknown here')) v (new_type);
$$;
COMMENT ON FUNCTION tablesync.describe_retyped(text, text, text, boolean) IS 'how a column''s type has changed, in words';

/* A column with another type, or another column under the same name ("replaced"). */
CREATE FUNCTION tablesync.plan_retyped(settings tablesync.replica, old jsonb, new jsonb, replaced boolean)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, new->>'column');
    is_key boolean := old->>'column' = ANY (settings.key_columns);
    is_hashed boolean := settings.fingerprint = 'row' OR settings.adopted
                         OR coalesce(old->>'column' = ANY (settings.key_columns || settings.version_column), false);
    alike boolean := mine.type_oid = (new->>'type_oid')::oid
                     OR (mine.type_oid IN ('text'::regtype, 'varchar'::regtype) AND (new->>'type_oid')::oid IN ('text'::regtype, 'varchar'::regtype));
    misfit text := coalesce(new->>'problem', tablesync.type_problem((new->>'type_oid')::oid, is_key, is_key OR is_hashed));
    was text := CASE WHEN old->'type' = new->'type' THEN mine.type ELSE old->>'type' END;    -- or ignored then
    on_replica text := format('ALTER TABLE %s ALTER COLUMN %I TYPE %s%s', settings.replica, new->>'column', new->>'type',
                              CASE WHEN mine."collation" <> '' AND (new->>'type_oid')::oid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)
                                   THEN mine."collation" END);
    on_source text[] := tablesync.foreign_column_statements(settings.source, new);
    step tablesync.schema_step;
BEGIN
    step.change := CASE WHEN replaced THEN 'replaced' ELSE 'retyped' END;
    step.column_name := new->>'column';
    step.detail := tablesync.describe_retyped(new->>'remote', was, new->>'type', replaced);
    step.fill := true;
    step.statements := on_source;
    step.action := 'applied';
    IF replaced AND (is_key OR (settings.fingerprint = 'version' AND old->>'column' = settings.version_column)) THEN
        step.problem := format('%s column %I was dropped and added again', CASE WHEN is_key THEN 'key' ELSE 'version' END, new->>'remote');
        step.hint := format('Remove the replica with tablesync_remove(%L) and add it again. Its rows are kept; the first run compares every column.',
                            settings.replica);
    ELSIF misfit IS NOT NULL THEN
        step.problem := format('%s and can''t be replicated exactly: %s', step.detail, misfit);
        step.hint := coalesce(CASE WHEN new->>'problem' LIKE 'type % here' THEN 'Create the type here like at the source, and resume.' END,
                              'Undo the change at the source, or name another key, version column or fingerprint.');
    ELSIF mine.type = new->>'type' OR mine.type IS NULL THEN
        step.action := CASE WHEN on_source = '{}' THEN 'accepted' ELSE 'applied' END;
    ELSIF settings.on_schema_change = 'ignore' AND (alike OR NOT is_hashed) THEN
        step.action := 'ignored';
        step.statements := '{}';
    ELSIF settings.on_schema_change <> 'ignore'
          AND tablesync.widens(mine.type_oid, mine.typmod, (new->>'type_oid')::oid, (new->>'typmod')::integer) THEN
        step.statements := on_replica || on_source;
    ELSE
        step.problem := step.detail;
        step.hint := tablesync.by_hand(settings.replica, format('%s USING %I::%s', on_replica, new->>'column', new->>'type') || on_source);
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_retyped(tablesync.replica, jsonb, jsonb, boolean) IS 'what to do about a column whose type has changed at the source';

/* A column whose NOT NULL has changed.  A replica never gains one: that would read all of it under a lock. */
CREATE FUNCTION tablesync.plan_nullable(settings tablesync.replica, old jsonb, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, new->>'column');
    step tablesync.schema_step;
BEGIN
    step.column_name := new->>'column';
    step.fill := false;
    IF (new->>'not_null')::boolean THEN
        step.change := 'not_null';
        step.detail := format('column %I became NOT NULL', new->>'remote');
        step.action := 'recorded';
        RETURN step;
    END IF;
    step.change := 'nullable';
    step.detail := format('column %I is no longer NOT NULL', new->>'remote');
    IF old->>'column' = ANY (settings.key_columns) THEN
        step.problem := format('key column %I is no longer NOT NULL', new->>'remote');
        step.hint := tablesync.add_again(settings.replica);
        RETURN step;
    END IF;
    step.statements := CASE WHEN mine.not_null THEN
                           ARRAY[format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, new->>'column')] ELSE '{}' END
                       || CASE WHEN (tablesync.local_column(settings.source, new->>'column')).not_null THEN
                           ARRAY[format('ALTER FOREIGN TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.source, new->>'column')] ELSE '{}' END;
    step.action := CASE WHEN step.statements = '{}' THEN 'accepted' ELSE 'applied' END;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_nullable(tablesync.replica, jsonb, jsonb) IS 'what to do about a column that has become NOT NULL, or is so no longer';

/* Columns of two shapes that are the same column: the same number in the same table, else the same name. */
CREATE FUNCTION tablesync.match_columns(old jsonb, new jsonb)
RETURNS TABLE (before jsonb, after jsonb, replaced boolean)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH matched AS (
        SELECT o.o, n.n
        FROM jsonb_array_elements(old) o (o)
        FULL JOIN jsonb_array_elements(new) n (n)
            ON CASE WHEN old->0->'table' = new->0->'table' THEN o.o->'attnum' ELSE o.o->'remote' END
             = CASE WHEN old->0->'table' = new->0->'table' THEN n.n->'attnum' ELSE n.n->'remote' END
    )
    SELECT m.o, m.n, false FROM matched m WHERE m.o IS NOT NULL AND m.n IS NOT NULL
    UNION ALL
    SELECT o.o, n.n, o.o IS NOT NULL AND n.n IS NOT NULL
    FROM (SELECT m.o FROM matched m WHERE m.n IS NULL) o
    FULL JOIN (SELECT m.n FROM matched m WHERE m.o IS NULL) n ON o.o->'remote' = n.n->'remote';
$$;
COMMENT ON FUNCTION tablesync.match_columns(jsonb, jsonb) IS 'pairs of columns of two shapes; NULL where one has none';

/* A primary key that has changed matters where it is the replica's key. */
CREATE FUNCTION tablesync.plan_key(settings tablesync.replica, new jsonb)
RETURNS SETOF tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was name[];
    step tablesync.schema_step;
BEGIN
    IF NOT EXISTS (SELECT FROM tablesync.match_columns(settings.shape, new) m
                   WHERE m.before->>'key' IS DISTINCT FROM m.after->>'key') THEN
        RETURN;
    END IF;
    was := ARRAY(SELECT (c->>'column')::name FROM jsonb_array_elements(settings.shape) c
                 WHERE c->>'key' IS NOT NULL ORDER BY (c->>'key')::integer);
    step.change := 'key';
    step.detail := coalesce((SELECT format('the primary key is now (%s)', string_agg(quote_ident(c->>'remote'), ', ' ORDER BY (c->>'key')::integer))
                             FROM jsonb_array_elements(new) c WHERE c->>'key' IS NOT NULL HAVING count(*) > 0),
                            'the primary key was dropped');
    step.action := 'recorded';
    step.fill := false;
    IF was = settings.key_columns THEN
        step.problem := step.detail;
        step.hint := tablesync.add_again(settings.replica);
    END IF;
    RETURN NEXT step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_key(tablesync.replica, jsonb) IS 'what to do about a primary key that has changed';

/* All that has changed, in an order that suits DDL: key, dropped, the others. */
CREATE FUNCTION tablesync.plan_evolution(settings tablesync.replica, new jsonb)
RETURNS SETOF tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m record;
    step tablesync.schema_step;
    added jsonb := (SELECT coalesce(jsonb_agg(a.after), '[]') FROM tablesync.match_columns(settings.shape, new) a WHERE a.before IS NULL);
BEGIN
    RETURN QUERY SELECT * FROM tablesync.plan_key(settings, new);
    FOR m IN SELECT * FROM tablesync.match_columns(settings.shape, new) x
             ORDER BY x.after IS NOT NULL, (coalesce(x.after, x.before)->>'attnum')::integer
    LOOP
        IF m.after IS NULL THEN
            RETURN NEXT tablesync.plan_dropped(settings, m.before, added);
            CONTINUE;
        ELSIF m.before IS NULL THEN
            RETURN NEXT tablesync.plan_added(settings, m.after);
            CONTINUE;
        END IF;
        IF (m.before->'remote', m.before->'column') <> (m.after->'remote', m.after->'column') THEN
            step := tablesync.plan_renamed(settings, m.before, m.after);
            RETURN NEXT step;
            CONTINUE WHEN step.problem IS NOT NULL;
        END IF;
        IF m.replaced OR m.before->'type' <> m.after->'type'
           OR (settings.on_schema_change <> 'ignore' AND tablesync.lags_behind(settings.source, jsonb_build_array(m.after))) THEN
            RETURN NEXT tablesync.plan_retyped(settings, m.before, m.after, m.replaced);
        END IF;
        IF m.before->'not_null' <> m.after->'not_null' THEN
            RETURN NEXT tablesync.plan_nullable(settings, m.before, m.after);
        END IF;
        IF m.before->'collation' <> m.after->'collation' THEN
            RETURN NEXT (ROW('collation', m.after->>'column', 'recorded',
                             format('the collation of column %I changed', m.after->>'remote'),
                             NULL, NULL, false, NULL, NULL)::tablesync.schema_step);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.plan_evolution(tablesync.replica, jsonb) IS 'what a source''s new shape asks for, one row per change';
