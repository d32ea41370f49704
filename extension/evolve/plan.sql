/*
 * plan.sql: what a change of a source's shape asks for
 *
 * A plan compares the shape a replica was built for with the source's new one,
 * and with what replica and foreign table are now: whatever the owner has done
 * by hand needs no statement any more and is accepted.  Making a plan asks
 * only local catalogs and changes nothing.
 *
 * Columns are recognised by their numbers: at the source by "attnum", as long
 * as the table is the same; here by "local" in the replica and "foreign" in the
 * foreign table.  Names say nothing: they are swapped, shifted and used again.
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
CREATE FUNCTION tablesync.foreign_column_statements(source regclass, new jsonb, anew boolean DEFAULT false)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(
        SELECT s FROM (VALUES
            (CASE WHEN anew OR NOT tablesync.stands_for(source, new->>'column', new->>'remote') THEN
                format('ALTER FOREIGN TABLE %s ADD COLUMN %I %s%s%s', source, new->>'column', new->>'type',
                       ' COLLATE pg_catalog.' || quote_ident(new->>'collation'),
                       CASE WHEN (new->>'not_null')::boolean THEN ' NOT NULL' END)
             WHEN f.type <> new->>'type' THEN
                format('ALTER FOREIGN TABLE %s ALTER COLUMN %I TYPE %s%s', source, new->>'column', new->>'type', f."collation") END),
            (CASE WHEN NOT anew AND f.not_null AND NOT (new->>'not_null')::boolean THEN
                format('ALTER FOREIGN TABLE %s ALTER COLUMN %I DROP NOT NULL', source, new->>'column') END)) v (s)
        WHERE s IS NOT NULL)
    FROM tablesync.local_column(source, new->>'column') f;
$$;
COMMENT ON FUNCTION tablesync.foreign_column_statements(regclass, jsonb, boolean) IS 'DDL that makes a foreign table''s column fit the source';

/* A column that the source did not have. */
CREATE FUNCTION tablesync.plan_added(settings tablesync.replica, new jsonb, moves text[])
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- a column of that name may be about to move away
    free_here boolean := tablesync.is_moved(settings.replica, new->>'column', moves);
    free_there boolean := tablesync.is_moved(settings.source, new->>'column', moves);
    mine record := tablesync.local_column(settings.replica, CASE WHEN NOT free_here AND new->>'hidden' IS NULL THEN new->>'column' END);
    on_source text[] := tablesync.foreign_column_statements(settings.source, new, free_there);
    step tablesync.schema_step;
    misfit text := coalesce(new->>'problem', tablesync.type_problem((new->>'type_oid')::oid, false, settings.fingerprint = 'row'),
                            CASE WHEN settings.expressions IS NOT NULL THEN tablesync.grouping_problem((new->>'type_oid')::oid) END);
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
                     'With tablesync_alter(), set fingerprint to xmin if the source is a table, or to version if it sets a column on every change, and name that as version_column. Then resume.' END,
            format('To leave new columns out: SELECT tablesync_alter(%L, on_schema_change => ''ignore'', enabled => true);', settings.replica));
    ELSIF new->>'hidden' IS NOT NULL THEN
        NULL;    -- only the foreign table needs it
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
COMMENT ON FUNCTION tablesync.plan_added(tablesync.replica, jsonb, text[]) IS 'what to do about a column that the source did not have';

/* A shape with the numbers of its columns here: known ones stay, others are found by name. */
CREATE FUNCTION tablesync.with_numbers(shape jsonb, replica regclass, source regclass)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(jsonb_build_object(
               'local', (SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = $2 AND a.attname = c.c->>'column' AND a.attnum > 0 AND NOT a.attisdropped AND c.c->>'hidden' IS NULL),
               'foreign', (SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = $3 AND a.attname = c.c->>'column' AND a.attnum > 0 AND NOT a.attisdropped))
               || c.c ORDER BY c.n)
    FROM jsonb_array_elements(shape) WITH ORDINALITY c (c, n);
$$;
COMMENT ON FUNCTION tablesync.with_numbers(jsonb, regclass, regclass) IS 'a shape with the numbers of its columns in replica and foreign table';

/*
 * A column that the source no longer has.  In a table that was created anew,
 * a new column of the same type may be the old one under another name.
 */
CREATE FUNCTION tablesync.plan_dropped(settings tablesync.replica, old jsonb, added jsonb, aside text, foreign_aside text)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := tablesync.name_of(settings.replica, (old->>'local')::integer);    -- now
    mine record := tablesync.local_column(settings.replica, name);
    in_source boolean := tablesync.remote_name(settings.source, (old->>'foreign')::integer) = old->>'remote';
    foreign_name text := tablesync.name_of(settings.source, (old->>'foreign')::integer);
    step tablesync.schema_step;
    may_be jsonb;
BEGIN
    step.change := 'dropped';
    step.column_name := old->>'column';
    step.detail := concat_ws(' ', format('column %I', old->>'remote'), old->>'type', 'was dropped');
    step.statements := CASE WHEN mine.not_null THEN
        ARRAY[format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', settings.replica, aside)] ELSE '{}' END;
    step.fill := false;
    SELECT n INTO may_be FROM jsonb_array_elements(added) n
    WHERE n->>'type' = old->>'type' AND n->'table' <> old->'table' LIMIT 1;
    IF old->>'column' = ANY (tablesync.columns_of_expression(settings.filter)
                             || ARRAY(SELECT unnest(tablesync.columns_of_expression(e.value)) FROM jsonb_each_text(settings.expressions) e)) THEN
        step.problem := format('column %I was dropped, which the filter or an expression needs', old->>'remote');
        step.hint := format('Change the settings: SELECT tablesync_alter(%L, filter => .., expressions => ..); %s',
                            settings.replica, tablesync.by_hand(settings.replica, '{}'));
    ELSIF old->>'column' = ANY (settings.key_columns) THEN
        step.problem := format('key column %I was dropped', old->>'remote');
        step.hint := tablesync.add_again(settings.replica);
    ELSIF settings.fingerprint = 'version' AND old->>'column' = settings.version_column THEN
        step.problem := format('version column %I was dropped', old->>'remote');
        step.hint := format('SELECT tablesync_alter(%1$L, fingerprint => ''row''); or name another version_column. Then: %2$s',
                            settings.replica, tablesync.by_hand(settings.replica, '{}'));
    ELSIF name <> old->>'column' AND EXISTS (SELECT FROM jsonb_array_elements(added) n WHERE n->>'remote' = name) THEN
        step.action := 'accepted';    -- the owner has said that it is another column now
    ELSIF may_be IS NOT NULL AND mine.type IS NOT NULL AND settings.on_schema_change <> 'ignore' THEN
        step.problem := format('the table was created anew with column %I instead of %I, which may be the same', may_be->>'remote', old->>'remote');
        step.hint := format('If it was renamed: %s If it is another column, drop column %I of %s and resume.',
                            tablesync.by_hand(settings.replica, ARRAY[format('ALTER TABLE %s RENAME COLUMN %I TO %I', settings.replica, name, may_be->>'remote'),
                                                                  format('ALTER FOREIGN TABLE %s RENAME COLUMN %I TO %I', settings.source, foreign_name, may_be->>'remote')]),
                            old->>'column', settings.replica);
    ELSIF settings.on_schema_change = 'ignore' THEN
        step.action := 'ignored';
    ELSE
        step.action := CASE WHEN mine.type IS NULL THEN 'accepted' WHEN settings.drop_columns THEN 'dropped' ELSE 'kept' END;
        step.unless_used := ARRAY(SELECT s FROM (VALUES
            (CASE WHEN step.action = 'dropped' THEN format('ALTER TABLE %s DROP COLUMN %I', settings.replica, aside) END),
            (CASE WHEN in_source THEN format('ALTER FOREIGN TABLE %s DROP COLUMN %I', settings.source, foreign_aside) END)) v (s)
            WHERE s IS NOT NULL);
    END IF;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_dropped(tablesync.replica, jsonb, jsonb, text, text) IS 'what to do about a column that the source no longer has';

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

/* Is every value of a type, read as another, either the same value or an error?  Never rounded or cut. */
CREATE FUNCTION tablesync.fits_or_fails(type oid, typmod integer, read_as oid, read_as_typmod integer)
RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tablesync.widens($1, $2, $3, $4)
        OR $1 IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) AND $3 IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
        OR $1 IN ('varchar'::regtype, 'text'::regtype) AND $3 IN ('varchar'::regtype, 'text'::regtype);
$$;
COMMENT ON FUNCTION tablesync.fits_or_fails(oid, integer, oid, integer) IS 'whether values of one type can be read as another without being rounded or cut silently';

/* A column with another type, or another column under the same name ("replaced"). */
CREATE FUNCTION tablesync.plan_retyped(settings tablesync.replica, old jsonb, new jsonb, replaced boolean)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, CASE WHEN new->>'hidden' IS NULL THEN new->>'column' END);
    is_key boolean := old->>'column' = ANY (settings.key_columns);
    is_hashed boolean := new->>'hidden' IS NULL AND (settings.fingerprint = 'row' OR settings.adopted)
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
    ELSIF settings.on_schema_change = 'ignore' AND (alike OR NOT is_hashed)
          AND tablesync.fits_or_fails((new->>'type_oid')::oid, (new->>'typmod')::integer, mine.type_oid, mine.typmod) THEN
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

/* What to type to give an enum type the labels that it has at the source; NULL if that takes more than adding and renaming. */
CREATE FUNCTION tablesync.label_statements(type oid, labels text[])
RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine text[] := ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = type ORDER BY e.enumsortorder);
    common text[] := ARRAY(SELECT l FROM unnest(labels) WITH ORDINALITY u (l, n) WHERE l = ANY (mine) ORDER BY n);
    statements text[] := '{}';
    waiting text[] := mine;
    turn integer;
BEGIN
    IF common = mine THEN    -- some were added
        FOR n IN 1 .. cardinality(labels) LOOP
            CONTINUE WHEN labels[n] = ANY (mine);
            statements := statements || format('ALTER TYPE %s ADD VALUE %L%s', type::regtype, labels[n],
                CASE WHEN n > 1 THEN format(' AFTER %L', labels[n - 1])
                     WHEN cardinality(mine) > 0 THEN format(' BEFORE %L', mine[1]) ELSE '' END);
        END LOOP;
        RETURN statements;
    ELSIF cardinality(labels) <> cardinality(mine) THEN
        RETURN NULL;
    END IF;
    WHILE waiting <> labels LOOP    -- renamed: a label is taken when nobody has it any more
        SELECT n INTO turn FROM generate_series(1, cardinality(labels)) n
        WHERE waiting[n] <> labels[n] AND labels[n] <> ALL (waiting) LIMIT 1;
        IF FOUND THEN
            statements := statements || format('ALTER TYPE %s RENAME VALUE %L TO %L', type::regtype, waiting[turn], labels[turn]);
            waiting[turn] := labels[turn];
        ELSE
            SELECT n INTO turn FROM generate_series(1, cardinality(labels)) n WHERE waiting[n] <> labels[n] LIMIT 1;
            statements := statements || format('ALTER TYPE %s RENAME VALUE %L TO %L', type::regtype, waiting[turn],
                                               tablesync.unused_name(waiting[turn], '_renamed', waiting || labels));
            waiting[turn] := tablesync.unused_name(waiting[turn], '_renamed', waiting || labels);
        END IF;
    END LOOP;
    RETURN statements;
END
$$;
COMMENT ON FUNCTION tablesync.label_statements(oid, text[]) IS 'DDL that gives an enum type here the labels of the source''s';

/*
 * A column whose values would not be what they are at the source: other labels
 * of an enum, a collation that is not deterministic.  Labels that were only
 * added are added here, if the type is ours.
 */
CREATE FUNCTION tablesync.plan_problem(settings tablesync.replica, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    labels text[] := CASE WHEN jsonb_typeof(new->'labels') = 'array' THEN ARRAY(SELECT jsonb_array_elements_text(new->'labels')) END;
    enum oid := (SELECT CASE WHEN t.typelem <> 0 AND t.typtype = 'b' THEN t.typelem ELSE t.oid END FROM pg_type t WHERE t.oid = (new->>'type_oid')::oid);
    wanted text[] := CASE WHEN labels IS NOT NULL THEN tablesync.label_statements(enum, labels) END;
    step tablesync.schema_step;
BEGIN
    step.change := CASE WHEN labels IS NOT NULL THEN 'labels' ELSE 'collation' END;
    step.column_name := new->>'column';
    step.detail := format('column %I: %s', new->>'remote', new->>'problem');
    -- a label that was renamed while its old name was given to another looks like one that was added; xmin compares all columns after a DDL of ours anyway
    step.fill := settings.fingerprint = 'version';
    step.statements := '{}';
    IF wanted[1] LIKE 'ALTER TYPE % ADD VALUE %' AND settings.on_schema_change = 'apply'
       AND (SELECT pg_has_role(t.typowner, 'USAGE') FROM pg_type t WHERE t.oid = enum) THEN
        step.action := 'applied';
        step.statements := wanted;
        RETURN step;
    END IF;
    step.problem := step.detail;
    step.hint := CASE WHEN wanted IS NOT NULL THEN tablesync.by_hand(settings.replica, wanted)
                      WHEN labels IS NOT NULL THEN format('Give type %s the labels (%s), in this order. %s', enum::regtype,
                          (SELECT string_agg(quote_literal(l), ', ' ORDER BY n) FROM unnest(labels) WITH ORDINALITY u (l, n)),
                          tablesync.by_hand(settings.replica, '{}'))
                      ELSE format('Undo the change at the source. %s', tablesync.by_hand(settings.replica, '{}')) END;
    RETURN step;
END
$$;
COMMENT ON FUNCTION tablesync.plan_problem(tablesync.replica, jsonb) IS 'what to do about a column whose values would not be exact here';

/* A column whose NOT NULL has changed.  A replica never gains one: that would read all of it under a lock. */
CREATE FUNCTION tablesync.plan_nullable(settings tablesync.replica, old jsonb, new jsonb)
RETURNS tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mine record := tablesync.local_column(settings.replica, CASE WHEN new->>'hidden' IS NULL THEN new->>'column' END);
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

/*
 * All that has changed, in an order that suits DDL.  Columns that stay are changed
 * under the names that they have; then names change, and what they push out of
 * the way moves aside; then what the source has dropped, and new columns.
 */
CREATE FUNCTION tablesync.plan_evolution(settings tablesync.replica, new jsonb)
RETURNS SETOF tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m record;
    now_here jsonb;
    added jsonb;
    renames tablesync.schema_step[];
    moves text[];
BEGIN
    settings.shape := tablesync.with_numbers(settings.shape, settings.replica, settings.source);
    added := (SELECT coalesce(jsonb_agg(a.after), '[]') FROM tablesync.match_columns(settings.shape, new) a WHERE a.before IS NULL);
    renames := ARRAY(SELECT s FROM tablesync.plan_names(settings, new) s);
    moves := (SELECT s.statements FROM unnest(renames) s LIMIT 1);
    RETURN QUERY SELECT * FROM tablesync.plan_key(settings, new);

    FOR m IN SELECT * FROM tablesync.match_columns(settings.shape, new) x WHERE x.after IS NOT NULL AND x.before IS NOT NULL
             ORDER BY (x.after->>'attnum')::integer LOOP
        -- under the names of before the renames
        now_here := m.after || jsonb_build_object(
            'column', coalesce(CASE WHEN NOT m.replaced THEN tablesync.name_of(settings.replica, (m.before->>'local')::integer) END, m.before->>'column'),
            'remote', coalesce(CASE WHEN NOT m.replaced THEN tablesync.remote_name(settings.source, (m.before->>'foreign')::integer) END, m.after->>'remote'));
        IF m.replaced OR m.before->'type' <> m.after->'type'
           OR (settings.on_schema_change <> 'ignore' AND tablesync.lags_behind(settings.source, jsonb_build_array(now_here))) THEN
            RETURN NEXT tablesync.plan_retyped(settings, m.before, now_here, m.replaced);
        ELSIF m.after->>'problem' IS NOT NULL THEN
            RETURN NEXT tablesync.plan_problem(settings, now_here);
        END IF;
        IF m.before->'not_null' <> m.after->'not_null' THEN
            RETURN NEXT tablesync.plan_nullable(settings, m.before, now_here);
        END IF;
        IF m.before->'collation' <> m.after->'collation' THEN
            RETURN NEXT (ROW('collation', now_here->>'column', 'recorded',
                             format('the collation of column %I changed', m.after->>'remote'),
                             NULL, NULL, false, NULL, NULL)::tablesync.schema_step);
        END IF;
    END LOOP;
    RETURN QUERY SELECT * FROM unnest(renames);
    FOR m IN SELECT * FROM tablesync.match_columns(settings.shape, new) x WHERE x.after IS NULL
             ORDER BY (x.before->>'attnum')::integer LOOP
        RETURN NEXT tablesync.plan_dropped(settings, m.before, added,
            tablesync.name_after(settings.replica, (m.before->>'local')::integer, moves),
            tablesync.name_after(settings.source, (m.before->>'foreign')::integer, moves));
    END LOOP;
    FOR m IN SELECT * FROM tablesync.match_columns(settings.shape, new) x WHERE x.before IS NULL
             ORDER BY (x.after->>'attnum')::integer LOOP
        RETURN NEXT tablesync.plan_added(settings, m.after, moves);
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.plan_evolution(tablesync.replica, jsonb) IS 'what a source''s new shape asks for, one row per change';
