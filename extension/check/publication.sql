/*
 * publication.sql: what publications of this database mean for a replica
 *
 * PostgreSQL refuses to update or delete rows of a published table which a
 * subscriber could not find again, or of which nobody could tell whether a filter
 * has let them pass: a run would fail.  It looks at the tables that have the
 * rows, partitions in the place of a partitioned table, and there at what it
 * publishes them as.  The same is looked at here, before a run, and after one
 * that has failed by it.
 */

/* Who publishes a replica, or its partitions, as what, and with which columns and rows. */
CREATE FUNCTION tablesync.published_as(replica regclass)
RETURNS TABLE (relation regclass, publication name, member regclass, columns text[], filter text, filter_columns text[], changes boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH leaf AS (
        SELECT c.oid FROM pg_class c
        WHERE c.oid IN (SELECT $1 UNION SELECT t.relid FROM pg_partition_tree($1) t) AND c.relkind = 'r'
    ), ancestor AS (
        SELECT l.oid AS leaf, l.oid, 1::bigint AS n FROM leaf l
        UNION
        SELECT l.oid, a.relid, a.n FROM leaf l, pg_partition_ancestors(l.oid) WITH ORDINALITY a (relid, n)
    ), published AS (
        SELECT a.leaf, r.prpubid AS publication, a.oid, a.n FROM ancestor a JOIN pg_publication_rel r ON r.prrelid = a.oid
        UNION
        SELECT a.leaf, s.pnpubid, a.oid, a.n
        FROM ancestor a JOIN pg_class c ON c.oid = a.oid JOIN pg_publication_namespace s ON s.pnnspid = c.relnamespace
        UNION
        SELECT l.oid, p.oid, l.oid, 1 FROM leaf l CROSS JOIN pg_publication p WHERE p.puballtables
    ), effective AS (
        SELECT p.leaf, p.publication, CASE WHEN b.pubviaroot THEN (array_agg(p.oid ORDER BY p.n DESC))[1] ELSE p.leaf END AS oid
        FROM published p JOIN pg_publication b ON b.oid = p.publication
        GROUP BY p.leaf, p.publication, b.pubviaroot
    )
    SELECT e.leaf, b.pubname, e.oid,
           CASE WHEN r.prattrs IS NOT NULL THEN
               ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = e.oid AND a.attnum = ANY (r.prattrs) ORDER BY a.attnum) END,
           pg_get_expr(r.prqual, r.prrelid),
           ARRAY(SELECT a.attname::text FROM pg_attribute a    -- no dependency tells them from those of the list
                 WHERE a.attrelid = e.oid AND a.attnum IN (SELECT m[1]::smallint FROM regexp_matches(r.prqual::text, ':varattno (\d+) ', 'g') m) ORDER BY a.attnum),
           b.pubupdate OR b.pubdelete
    FROM effective e
    JOIN pg_publication b ON b.oid = e.publication
    LEFT JOIN pg_publication_rel r ON r.prpubid = e.publication AND r.prrelid = e.oid;
$$;
COMMENT ON FUNCTION tablesync.published_as(regclass) IS 'publications of a replica or its partitions: as which table, with which columns and rows, and whether they publish updates or deletes';

/* The columns by which others find a row again; NULL if there are none. */
CREATE FUNCTION tablesync.identity_columns(relation regclass)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT nullif(ARRAY(SELECT a.attname::text FROM pg_attribute a
                        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                          AND (c.relreplident = 'f' OR EXISTS (
                              SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate AND a.attnum = ANY (i.indkey)
                                AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END))
                        ORDER BY a.attnum), '{}')
    FROM pg_class c WHERE c.oid = $1;
$$;
COMMENT ON FUNCTION tablesync.identity_columns(regclass) IS 'columns of a table''s replica identity, NULL if it has none';

/* What gives a table a replica identity: its key, or what is unique there. */
CREATE FUNCTION tablesync.identity_remedy(relation regclass)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('ALTER TABLE %s REPLICA IDENTITY %s;', $1, coalesce(
        (SELECT CASE WHEN i.indisprimary THEN 'DEFAULT' ELSE format('USING INDEX %I', x.relname) END
         FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
         WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
           AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull)
         ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1), 'FULL'));
$$;
COMMENT ON FUNCTION tablesync.identity_remedy(regclass) IS 'the statement that gives a table a replica identity';

/*
 * Why runs that update or delete rows of a replica fail because of a publication,
 * and what mends it: NULL if they don't.  No remedy shows more rows or columns
 * to subscribers than they see, but for those by which a row is found again.
 */
CREATE FUNCTION tablesync.publication_problem(replica regclass, OUT problem text, OUT remedy text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p record;
    found text;
    mend text;
BEGIN
    FOR p IN
        SELECT x.*, n.unlisted, n.unidentified, c.relreplident = 'f' AS is_full,
               bool_or(x.columns IS NOT NULL) OVER same AS is_listed, bool_or(x.filter IS NOT NULL) OVER same AS is_filtered,
               format('ALTER PUBLICATION %I DROP TABLE %s;', x.publication, x.member) AS leave
        FROM (SELECT a.*, tablesync.identity_columns(a.relation) AS identity FROM tablesync.published_as($1) a WHERE a.changes) x
        JOIN pg_class c ON c.oid = x.relation
        CROSS JOIN LATERAL (SELECT ARRAY(SELECT i FROM unnest(x.identity) i WHERE i <> ALL (x.columns)),
                                   ARRAY(SELECT f FROM unnest(x.filter_columns) f WHERE f <> ALL (coalesce(x.identity, '{}')))) n (unlisted, unidentified)
        WINDOW same AS (PARTITION BY x.relation)
        ORDER BY x.publication, x.relation::oid
    LOOP
        IF p.is_full AND p.columns IS NOT NULL THEN
            found := format('publication "%s" has a column list for %s, whose replica identity is full', p.publication, p.relation);
            mend := CASE WHEN p.is_filtered THEN p.leave ELSE tablesync.identity_remedy(p.relation) END;
        ELSIF p.unlisted <> '{}' THEN
            found := format('the column list of publication "%s" lacks %s of the replica identity of %s',
                            p.publication, array_to_string(p.unlisted, ', '), p.relation);
            mend := format('%s ALTER PUBLICATION %I ADD TABLE %s (%s)%s;', p.leave, p.publication, p.member,
                           (SELECT string_agg(quote_ident(c), ', ' ORDER BY n) FROM unnest(p.unlisted || p.columns) WITH ORDINALITY u (c, n)),
                           ' WHERE (' || p.filter || ')');
        ELSIF p.unidentified <> '{}' THEN
            found := format('publication "%s" filters rows of %s by %s, outside of its replica identity',
                            p.publication, p.relation, array_to_string(p.unidentified, ', '));
            mend := CASE WHEN p.is_listed THEN p.leave ELSE format('ALTER TABLE %s REPLICA IDENTITY FULL;', p.relation) END;
        ELSIF p.identity IS NULL THEN
            found := format('publication "%s" publishes updates or deletes of %s, which has no replica identity', p.publication, p.relation);
            mend := tablesync.identity_remedy(p.relation);
        ELSE
            CONTINUE;
        END IF;
        problem := concat_ws('; ', problem, found);
        remedy := CASE WHEN strpos(remedy, mend) > 0 THEN remedy ELSE concat_ws(' ', remedy, mend) END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.publication_problem(regclass) IS 'why runs that update or delete rows of a replica fail because of a publication, and the statements that mend it; NULL if they don''t';

/*
 * Slots of this database that nobody reads from: they keep WAL from being
 * removed, and runs write much of it.  "large": bytes that are no small matter.
 */
CREATE FUNCTION tablesync.idle_slots(large bigint DEFAULT 10737418240, OUT description text, OUT remedy text, OUT is_large boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format(CASE WHEN s.wal_status = 'lost' THEN 'slot "%s" has lost WAL that it needs'
                                  ELSE 'nobody reads from slot "%s", which holds back %s of WAL' END, s.slot_name, pg_size_pretty(h.held)),
                      '; ' ORDER BY s.slot_name),
           'If nobody comes back for it: ' || string_agg(format('SELECT pg_drop_replication_slot(%L);', s.slot_name), ' ' ORDER BY s.slot_name),
           coalesce(bool_or(h.held >= large OR s.wal_status = 'lost'), false)
    FROM pg_replication_slots s,
         LATERAL (SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn)::bigint) h (held)
    WHERE s.slot_type = 'logical' AND s.database = current_database() AND NOT s.active AND NOT s.temporary;
$$;
COMMENT ON FUNCTION tablesync.idle_slots(bigint) IS 'logical slots of this database that nobody reads from, and whether one of them holds back much WAL';

CREATE FUNCTION tablesync.preflight_publication(settings tablesync.replica, OUT detail text, OUT hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    broken record := tablesync.publication_problem(settings.replica);
    slots record := tablesync.idle_slots();
    publications text := (SELECT string_agg(DISTINCT quote_ident(p.publication), ', ') FROM tablesync.published_as(settings.replica) p);
BEGIN
    IF broken.problem IS NOT NULL THEN
        PERFORM tablesync.fail_check('runs that update or delete fail: ' || broken.problem, broken.remedy);
    ELSIF slots.is_large THEN
        PERFORM tablesync.fail_check(slots.description, slots.remedy);
    END IF;
    detail := concat_ws('; ', coalesce('published by ' || publications, 'not published'),
                        CASE WHEN publications IS NOT NULL AND current_setting('wal_level') <> 'logical' THEN
                            format('nobody can subscribe to it while wal_level is %s', current_setting('wal_level')) END,
                        slots.description);
    hint := concat_ws(' ', CASE WHEN publications IS NOT NULL AND current_setting('wal_level') <> 'logical' THEN
                               'ALTER SYSTEM SET wal_level = logical; needs a restart.' END, slots.remedy);
    hint := nullif(hint, '');
END
$$;
COMMENT ON FUNCTION tablesync.preflight_publication(tablesync.replica) IS 'check: does a publication keep runs from changing rows?';
