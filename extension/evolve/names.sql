/*
 * names.sql: columns that get other names
 *
 * At the source names are swapped, shifted and used again; here a column of that
 * name may be in the way.
 */

/* Will a name of a table be free after some renames? */
CREATE FUNCTION tablesync.is_moved(relation regclass, name text, statements text[])
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(bool_or(starts_with(s, format('ALTER TABLE %s RENAME COLUMN %I TO ', relation, name))
                            OR starts_with(s, format('ALTER FOREIGN TABLE %s RENAME COLUMN %I TO ', relation, name))), false)
       AND NOT coalesce(bool_or(right(s, length(format(' TO %I', name))) = format(' TO %I', name) AND split_part(s, ' RENAME ', 1) LIKE '%' || relation::text), false)
    FROM unnest(statements) s;
$$;
COMMENT ON FUNCTION tablesync.is_moved(regclass, text, text[]) IS 'whether a column''s name is free after some renames';

/*
 * Renames on one table, in an order that can be typed: a name is taken when
 * nobody has it any more; where names go round in a circle, one waits under a
 * name of its own.  Columns whose names are needed but that get no other
 * ("to" is NULL) are moved aside.  A name that a column has which is not among
 * them is an error: it is not ours to move.
 */
CREATE FUNCTION tablesync.rename_columns(relation regclass, renames jsonb)
RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind text := CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = relation) = 'f' THEN 'ALTER FOREIGN TABLE' ELSE 'ALTER TABLE' END;
    taken text[] := ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped);
    wanted text[] := ARRAY(SELECT r->>'to' FROM jsonb_array_elements(renames) r WHERE r->>'to' IS NOT NULL);
    todo jsonb := (SELECT coalesce(jsonb_agg(r), '[]') FROM jsonb_array_elements(renames) r
                   WHERE r->>'from' <> coalesce(r->>'to', CASE WHEN r->>'from' = ANY (wanted) THEN '' ELSE r->>'from' END));
    statements text[] := '{}';
    next jsonb;
    place text[];
    target text;
    stranger text;
BEGIN
    WHILE todo <> '[]' LOOP
        SELECT r INTO next FROM jsonb_array_elements(todo) WITH ORDINALITY t (r, n)
        WHERE r->>'to' IS NULL OR r->>'to' <> ALL (taken) ORDER BY r->>'to' IS NOT NULL, n LIMIT 1;
        IF FOUND THEN
            target := coalesce(next->>'to', tablesync.unused_name(next->>'from', '_dropped', taken || wanted));
            todo := (SELECT coalesce(jsonb_agg(r), '[]') FROM jsonb_array_elements(todo) r WHERE r <> next);
        ELSE    -- a circle, or what it waits for never gets free
            SELECT r->>'to' INTO stranger FROM jsonb_array_elements(todo) r
            WHERE r->>'to' NOT IN (SELECT o->>'from' FROM jsonb_array_elements(todo) o) LIMIT 1;
            IF FOUND THEN
                RAISE EXCEPTION 'column % of % is in the way of one that the source has renamed', quote_ident(stranger), relation
                    USING ERRCODE = 'duplicate_column',
                    HINT = format(CASE kind WHEN 'ALTER TABLE' THEN '%s %s RENAME COLUMN %I TO %I;' ELSE '%s %s DROP COLUMN %I;' END,
                                  kind, relation, stranger, tablesync.unused_name(stranger, '_own', taken || wanted));
            END IF;
            -- the first whose name another one waits for: under the new one it is not in the way, so this ends
            SELECT r, ARRAY[(n - 1)::text, 'from'] INTO next, place FROM jsonb_array_elements(todo) WITH ORDINALITY t (r, n)
            WHERE r->>'from' IN (SELECT o->>'to' FROM jsonb_array_elements(todo) o) ORDER BY n LIMIT 1;
            target := tablesync.unused_name(next->>'from', '_renamed', taken || wanted);
            todo := jsonb_set(todo, place, to_jsonb(target));
        END IF;
        statements := statements || format('%s %s RENAME COLUMN %I TO %I', kind, relation, next->>'from', target);
        taken := array_append(array_remove(taken, next->>'from'), target);
    END LOOP;
    RETURN statements;
END
$$;
COMMENT ON FUNCTION tablesync.rename_columns(regclass, jsonb) IS 'DDL that renames columns of a table, whatever names they take from each other';

CREATE FUNCTION tablesync.unused_name(name text, suffix text, taken text[])
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.candidate
    FROM (SELECT tablesync.short_name(name, suffix || CASE WHEN n > 1 THEN '_' || n ELSE '' END) AS candidate, n FROM generate_series(1, 2000) n) c
    WHERE c.candidate <> ALL (taken) ORDER BY c.n LIMIT 1;
$$;
COMMENT ON FUNCTION tablesync.unused_name(text, text, text[]) IS 'a name with a suffix that none of some others has';

/* A name of at most 63 bytes that ends with a suffix. */
CREATE FUNCTION tablesync.short_name(name text, suffix text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WHILE octet_length(name || suffix) > 63 AND name <> '' LOOP
        name := left(name, -1);
    END LOOP;
    RETURN name || suffix;
END
$$;
COMMENT ON FUNCTION tablesync.short_name(text, text) IS 'a name with a suffix, cut to the length of a name';

/* The name that a column of a table has now, NULL if it has been dropped. */
CREATE FUNCTION tablesync.name_of(relation regclass, attnum integer)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.attname FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum = $2 AND NOT a.attisdropped;
$$;
COMMENT ON FUNCTION tablesync.name_of(regclass, integer) IS 'name of a column by its number';

/* Which column of the source a column of a foreign table stands for now. */
CREATE FUNCTION tablesync.remote_name(source regclass, attnum integer)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT o.option_value FROM pg_options_to_table(a.attfdwoptions) o WHERE o.option_name = 'column_name'), a.attname)
    FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum = $2 AND NOT a.attisdropped;
$$;
COMMENT ON FUNCTION tablesync.remote_name(regclass, integer) IS 'the source''s column behind a column of a foreign table';

/*
 * The name a column that stays is to have here: the source's, unless it has one
 * of its own, or the policy leaves names alone.
 */
CREATE FUNCTION tablesync.wanted_name(settings tablesync.replica, before jsonb, after jsonb)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN settings.on_schema_change = 'ignore' OR before->>'column' <> before->>'remote'
                     OR n.options    -- by hand
                THEN n.name ELSE after->>'remote' END
    FROM (SELECT coalesce(tablesync.name_of(settings.replica, (before->>'local')::integer), before->>'column') AS name,
                 EXISTS (SELECT FROM pg_attribute a, pg_options_to_table(a.attfdwoptions) o
                         WHERE a.attrelid = settings.source AND a.attnum = (before->>'foreign')::integer AND o.option_name = 'column_name'
                           AND o.option_value = after->>'remote') AS options) n;
$$;
COMMENT ON FUNCTION tablesync.wanted_name(tablesync.replica, jsonb, jsonb) IS 'the name of a column here whose name at the source has changed';

/* Renames of columns that stay, and what they push aside; all statements are the first step's. */
CREATE FUNCTION tablesync.plan_names(settings tablesync.replica, new jsonb)
RETURNS SETOF tablesync.schema_step
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m record;
    step tablesync.schema_step;
    of_replica jsonb := '[]';
    of_source jsonb := '[]';
    options text[] := '{}';
    statements text[];
    name text;
    foreign_name text;
    wanted text;
    steps tablesync.schema_step[] := '{}';
BEGIN
    FOR m IN SELECT * FROM tablesync.match_columns(settings.shape, new) x WHERE x.before IS NOT NULL
             ORDER BY (x.before->>'attnum')::integer LOOP
        name := tablesync.name_of(settings.replica, (m.before->>'local')::integer);
        foreign_name := tablesync.name_of(settings.source, (m.before->>'foreign')::integer);
        wanted := CASE WHEN m.after IS NOT NULL AND NOT m.replaced THEN tablesync.wanted_name(settings, m.before, m.after) END;
        IF name IS NOT NULL AND NOT (m.after IS NOT NULL AND m.replaced) THEN
            of_replica := of_replica || jsonb_build_object('from', name, 'to', wanted);
        END IF;
        IF foreign_name IS NOT NULL AND NOT (m.after IS NOT NULL AND m.replaced) THEN
            -- a column that stands for another one now is nobody's to push aside
            CONTINUE WHEN m.after IS NULL AND tablesync.remote_name(settings.source, (m.before->>'foreign')::integer) IS DISTINCT FROM m.before->>'remote';
            of_source := of_source || jsonb_build_object('from', foreign_name, 'to', wanted);
        END IF;
        CONTINUE WHEN m.after IS NULL OR m.replaced OR m.before->'remote' = m.after->'remote';
        IF wanted <> m.after->>'remote' AND tablesync.remote_name(settings.source, (m.before->>'foreign')::integer) <> m.after->>'remote' THEN
            options := options || format('ALTER FOREIGN TABLE %s ALTER COLUMN %I OPTIONS (%s column_name %L)', settings.source, wanted,
                CASE WHEN EXISTS (SELECT FROM pg_attribute a, pg_options_to_table(a.attfdwoptions) o
                                  WHERE a.attrelid = settings.source AND a.attnum = (m.before->>'foreign')::integer AND o.option_name = 'column_name')
                     THEN 'SET' ELSE 'ADD' END, m.after->>'remote');
        END IF;
        steps := steps || ROW('renamed', wanted, 'accepted', format('column %I was renamed to %I', m.before->>'remote', m.after->>'remote'),
                              '{}'::text[], NULL, false, NULL, NULL)::tablesync.schema_step;
    END LOOP;
    statements := tablesync.rename_columns(settings.replica, of_replica) || tablesync.rename_columns(settings.source, of_source) || options;
    FOR n IN 1 .. cardinality(steps) LOOP
        step := steps[n];
        IF statements <> '{}' THEN
            step.action := 'applied';
        END IF;
        IF n = 1 THEN
            step.statements := statements;
        END IF;
        RETURN NEXT step;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.plan_names(tablesync.replica, jsonb) IS 'what to do about columns that have other names at the source';

/* The name that a column will have after some renames. */
CREATE FUNCTION tablesync.name_after(relation regclass, attnum integer, statements text[])
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := tablesync.name_of(relation, attnum);
    statement text;
    moved text[];
BEGIN
    FOREACH statement IN ARRAY coalesce(statements, '{}') LOOP
        IF starts_with(statement, format('ALTER TABLE %s RENAME COLUMN %I TO ', relation, name))
           OR starts_with(statement, format('ALTER FOREIGN TABLE %s RENAME COLUMN %I TO ', relation, name)) THEN
            moved := parse_ident(split_part(statement, format(' RENAME COLUMN %I TO ', name), 2));
            name := moved[1];
        END IF;
    END LOOP;
    RETURN name;
END
$$;
COMMENT ON FUNCTION tablesync.name_after(regclass, integer, text[]) IS 'the name that a column will have after some renames';
