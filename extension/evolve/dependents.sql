/*
 * dependents.sql: views that stand on a replica
 *
 * The type of a column can't change while a view shows it.  So such views are
 * dropped and created again in the transaction of the change; one that would
 * not come back exactly as it was is an error, which undoes all of it.
 */

/* Views above some columns of tables, each after those that it reads. */
CREATE FUNCTION tablesync.dependent_views(relations regclass[], columns name[])
RETURNS regclass[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE reads (reader, object, attnum) AS (
        SELECT w.ev_class, d.refobjid, d.refobjsubid
        FROM pg_depend d
        JOIN pg_rewrite w ON w.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> w.ev_class
    ), above (reader, depth) AS (
        SELECT r.reader, 1
        FROM reads r
        JOIN pg_attribute a ON a.attrelid = r.object AND a.attnum = r.attnum
        WHERE r.object = ANY (relations) AND a.attname = ANY (columns)
        UNION
        SELECT r.reader, above.depth + 1
        FROM above
        JOIN reads r ON r.object = above.reader
    )
    SELECT coalesce(array_agg(v.reader::regclass ORDER BY v.depth, v.reader), '{}')
    FROM (SELECT above.reader, max(above.depth) AS depth FROM above GROUP BY above.reader) v;
$$;
COMMENT ON FUNCTION tablesync.dependent_views(regclass[], name[]) IS 'views that show columns of tables, directly or not, in the order in which they can be created';

/* Privileges on a relation (attnum 0) or on one of its columns, in an order of their own. */
CREATE FUNCTION tablesync.privileges(relation regclass, attnum smallint)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('grantor', pg_get_userbyid(x.grantor),
                                                 'grantee', CASE WHEN x.grantee <> 0 THEN pg_get_userbyid(x.grantee) END,
                                                 'privilege', x.privilege_type,
                                                 'grantable', x.is_grantable)
                              ORDER BY x.grantee, x.privilege_type, x.grantor), '[]')
    FROM pg_class c
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = $2
    CROSS JOIN LATERAL aclexplode(CASE WHEN $2 = 0 THEN coalesce(c.relacl, acldefault('r', c.relowner))
                                       ELSE a.attacl END) x
    WHERE c.oid = relation;
$$;
COMMENT ON FUNCTION tablesync.privileges(regclass, smallint) IS 'privileges granted on a relation, or on a column of it';

/* All that a plain view is, to create it again and to see that it is the same. */
CREATE FUNCTION tablesync.view_state(view regclass)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'name', format('%I.%I', n.nspname, c.relname),
        'owner', pg_get_userbyid(c.relowner),
        'options', coalesce(to_jsonb(c.reloptions), '[]'),
        'privileges', tablesync.privileges(c.oid, 0::smallint),
        'comment', obj_description(c.oid, 'pg_class'),
        'columns', (SELECT jsonb_agg(jsonb_build_object('name', a.attname,
                                                        'privileges', tablesync.privileges(c.oid, a.attnum),
                                                        'comment', col_description(c.oid, a.attnum)) ORDER BY a.attnum)
                    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0))
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = view;
$$;
COMMENT ON FUNCTION tablesync.view_state(regclass) IS 'name, owner, options, privileges, columns and comments of a view';

/* Refuse a view that has more to it than tablesync.create_view() makes. */
CREATE FUNCTION tablesync.check_recreatable(view regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
BEGIN
    SELECT CASE WHEN c.relkind <> 'v' THEN 'is not a plain view'
                WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN 'belongs to another role'
                WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid) THEN 'has triggers'
                WHEN EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN') THEN 'has rules'
                WHEN EXISTS (SELECT FROM pg_attrdef d WHERE d.adrelid = c.oid) THEN 'has column defaults'
                WHEN EXISTS (SELECT FROM pg_seclabel l WHERE l.classoid = 'pg_class'::regclass AND l.objoid = c.oid) THEN 'has security labels'
                WHEN EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
                    THEN 'belongs to an extension'
           END
    INTO problem
    FROM pg_class c WHERE c.oid = view;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '% shows the column and can''t be created again: it %', view, problem
            USING ERRCODE = 'feature_not_supported';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.check_recreatable(regclass) IS 'an error if a view can''t be dropped and created again exactly';

/* Drop views, the last first; returns what is needed to create them again. */
CREATE FUNCTION tablesync.drop_views(views regclass[])
RETURNS jsonb[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    view regclass;
    states jsonb[] := '{}';
BEGIN
    FOREACH view IN ARRAY views LOOP
        PERFORM tablesync.check_recreatable(view);
        states := array_append(states, jsonb_build_object('state', tablesync.view_state(view),
                                                          'definition', pg_get_viewdef(view)));
    END LOOP;
    FOR n IN REVERSE cardinality(views) .. 1 LOOP
        EXECUTE format('DROP VIEW %s', views[n]);
    END LOOP;
    RETURN states;
END
$$;
COMMENT ON FUNCTION tablesync.drop_views(regclass[]) IS 'drops views and returns what they were';

/* Make the privileges on a view, or on a column of it, those that it had. */
CREATE FUNCTION tablesync.restore_privileges(view regclass, column_name name, wanted jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    attnum smallint := coalesce((SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = view AND a.attname = column_name), 0);
    part text := CASE WHEN column_name IS NULL THEN '' ELSE format(' (%I)', column_name) END;
    p jsonb;
BEGIN
    IF tablesync.privileges(view, attnum) = wanted THEN
        RETURN;
    END IF;
    FOR p IN SELECT x.p FROM jsonb_array_elements(tablesync.privileges(view, attnum)) x (p) LOOP   -- by default
        EXECUTE format('REVOKE %s%s ON %s FROM %s', p->>'privilege', part, view, coalesce(quote_ident(p->>'grantee'), 'PUBLIC'));
    END LOOP;
    FOR p IN SELECT x.p FROM jsonb_array_elements(wanted) x (p) LOOP
        EXECUTE format('GRANT %s%s ON %s TO %s%s', p->>'privilege', part, view, coalesce(quote_ident(p->>'grantee'), 'PUBLIC'),
                       CASE WHEN (p->>'grantable')::boolean AND p->>'grantee' <> p->>'grantor' THEN ' WITH GRANT OPTION' END);
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.restore_privileges(regclass, name, jsonb) IS 'grants and revokes until the privileges on a view are those given';

/* Create a view again; an error if it is not what it was. */
CREATE FUNCTION tablesync.create_view(state jsonb, definition text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    view regclass;
    view_column jsonb;
BEGIN
    EXECUTE format('CREATE VIEW %s%s AS %s', state->>'name',
                   (SELECT ' WITH (' || string_agg(format('%I = %L', o.option_name, o.option_value), ', ') || ')'
                    FROM pg_options_to_table(ARRAY(SELECT jsonb_array_elements_text(state->'options'))) o),
                   definition);
    view := (state->>'name')::regclass;
    IF state->>'owner' <> current_user THEN
        EXECUTE format('ALTER VIEW %s OWNER TO %I', view, state->>'owner');
    END IF;
    PERFORM tablesync.restore_privileges(view, NULL, state->'privileges');
    IF state->>'comment' IS NOT NULL THEN
        EXECUTE format('COMMENT ON VIEW %s IS %L', view, state->>'comment');
    END IF;
    FOR view_column IN SELECT c.c FROM jsonb_array_elements(state->'columns') c (c) LOOP
        IF view_column->>'comment' IS NOT NULL THEN
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', view, view_column->>'name', view_column->>'comment');
        END IF;
        PERFORM tablesync.restore_privileges(view, (view_column->>'name')::name, view_column->'privileges');
    END LOOP;
    IF tablesync.view_state(view) <> state THEN
        RAISE EXCEPTION 'view % would not be the same again', view USING ERRCODE = 'feature_not_supported';
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.create_view(jsonb, text) IS 'creates a view that tablesync.drop_views() has dropped; an error if it would not be the same';
