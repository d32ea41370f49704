/* load.sql: what a bulk load (bulk.c) prepares and finishes */

/* The smallest value of a type, as text, for the inner columns of a composite key's bound; NULL if there is none. */
CREATE FUNCTION tablesync.smallest_value(type oid)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT v.smallest
    FROM (VALUES ('int2'::regtype::oid, '-32768'), ('int4'::regtype::oid, '-2147483648'), ('int8'::regtype::oid, '-9223372036854775808'),
                 ('date'::regtype::oid, '-infinity'), ('timestamp'::regtype::oid, '-infinity'), ('timestamptz'::regtype::oid, '-infinity'),
                 ('uuid'::regtype::oid, '00000000-0000-0000-0000-000000000000')) v (type, smallest)
    WHERE v.type = $1;
$$;
COMMENT ON FUNCTION tablesync.smallest_value(oid) IS 'smallest value of a key''s type as text, NULL if unknown';

/* Integers that cut what lies between some integers into pieces of about so many rows; multiples of 64, for bitmaps. */
CREATE FUNCTION tablesync.subdivide(bounds bigint[], rows double precision, piece_rows bigint)
RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(b::text ORDER BY b)
    FROM (SELECT DISTINCT (bounds[i] + trunc((bounds[i + 1]::numeric - bounds[i]) * p / pieces))::bigint & ~63::bigint AS b
          FROM (SELECT greatest(least(ceil(rows / greatest(cardinality(bounds) - 1, 1) / piece_rows), 100000), 1)::integer) s (pieces),
               generate_series(1, cardinality(bounds) - 1) i,
               generate_series(0, s.pieces - 1) p) d
    WHERE b > bounds[1];
$$;
COMMENT ON FUNCTION tablesync.subdivide(bigint[], double precision, bigint) IS 'bounds of ranges with about so many rows each, aligned to multiples of 64';

/*
 * Values of the first key column that cut a source into ranges of about the
 * same number of rows, in ascending order: from its statistics, or between the
 * smallest and the largest integer.  NULL where nothing is known.
 */
CREATE FUNCTION tablesync.first_column_bounds(replica regclass, rows double precision, range_rows bigint)
RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings tablesync.replica;
    target record;
    first_key jsonb;
    histogram text[];
    smallest bigint;
    largest bigint;
    known bigint[];
    step numeric;
BEGIN
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    target := tablesync.source_target(settings.source);
    first_key := (SELECT c FROM jsonb_array_elements(settings.shape) c WHERE c->>'column' = settings.key_columns[1]);
    BEGIN
        EXECUTE format('SELECT histogram_bounds::text[] FROM %s WHERE schemaname = %L AND tablename = %L AND attname = %L '
                       'ORDER BY inherited DESC LIMIT 1',
                       tablesync.source_catalog(target.server, 'pg_stats'), target.schema_name, target.table_name, first_key->>'remote')
        INTO histogram;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;    -- only a hint
    END;
    IF first_key->>'type' NOT IN ('smallint', 'integer', 'bigint') THEN
        RETURN histogram[2:cardinality(histogram) - 1];
    END IF;
    EXECUTE format('SELECT min(%1$I), max(%1$I) FROM %2$s%3$s', first_key->>'column', settings.source, ' WHERE ' || settings.filter) INTO smallest, largest;
    IF smallest IS NULL OR largest = smallest THEN
        RETURN NULL;
    END IF;
    known := (SELECT array_agg(b::bigint ORDER BY b::bigint) FROM unnest(histogram) b WHERE b::bigint BETWEEN smallest AND largest);
    IF cardinality(known) > 1 THEN      -- rows may have come at the end since
        step := (known[cardinality(known)]::numeric - known[1]) / (cardinality(known) - 1);
        known := known || ARRAY(SELECT g::bigint FROM generate_series(known[cardinality(known)] + step, largest, greatest(step, 1)) g
                                LIMIT 10 * cardinality(known));
        RETURN tablesync.subdivide(known || largest, rows, range_rows);
    END IF;
    RETURN tablesync.subdivide(ARRAY[smallest, largest], rows, range_rows);
END
$$;
COMMENT ON FUNCTION tablesync.first_column_bounds(regclass, double precision, bigint) IS 'values of the first key column that cut a source into ranges of about the same size';

/* The same as bounds of all key columns, one after the other: inner columns have their smallest value.  NULL where one has none. */
CREATE FUNCTION tablesync.source_bounds(replica regclass, rows double precision, range_rows bigint)
RETURNS text[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH inner_columns AS (
        SELECT array_agg(tablesync.smallest_value(a.atttypid) ORDER BY k.n) AS smallest
        FROM tablesync.replica t, unnest(t.key_columns) WITH ORDINALITY k (name, n)
        JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = k.name
        WHERE t.replica = $1 AND k.n > 1)
    SELECT array_agg(v.value ORDER BY b.n, v.n)
    FROM inner_columns i, unnest(tablesync.first_column_bounds($1, $2, $3)) WITH ORDINALITY b (bound, n),
         unnest(ARRAY[b.bound] || i.smallest) WITH ORDINALITY v (value, n)
    WHERE array_position(i.smallest, NULL) IS NULL;
$$;
COMMENT ON FUNCTION tablesync.source_bounds(regclass, double precision, bigint) IS 'bounds of all key columns that cut a source into ranges of about the same size, by statistics of the first one';

/*
 * Can rows be put straight into the heap of an empty replica, and its indexes
 * be built afterwards?  Only where nothing else happens on an INSERT, no other
 * object needs an index meanwhile, and every property of an index comes back.
 * Where it is published, nor must a unique value be there twice, not even until
 * the load begins again: subscribers would stop at it.
 */
CREATE FUNCTION tablesync.can_bulk_load(replica regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.relkind = 'r' AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap')
       AND NOT c.relispartition AND NOT c.relhasrules AND NOT c.relhassubclass AND c.reloftype = 0
       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
       AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgfoid <> 'tablesync.note_write'::regproc)
       AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype NOT IN ('p', 'u', 'n'))
       AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                       WHERE i.indrelid = c.oid
                         AND (NOT i.indisvalid    -- a foreign key of others looks rows up by it
                              OR EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'n' AND d.refobjid IN (x.oid, (SELECT k.oid FROM pg_constraint k WHERE k.conindid = x.oid)))))
       AND NOT EXISTS (SELECT FROM tablesync.replica_columns($1) s
                       LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = s.column_name AND NOT a.attisdropped
                       WHERE a.attname IS NULL OR a.attgenerated <> '')
       AND NOT (current_setting('wal_level') = 'logical'
                AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique
                            AND NOT ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)) @> t.key_columns)
                AND EXISTS (SELECT FROM tablesync.published_as(c.oid)))
    FROM tablesync.replica t JOIN pg_class c ON c.oid = t.replica
    WHERE t.replica = $1;
$$;
COMMENT ON FUNCTION tablesync.can_bulk_load(regclass) IS 'whether rows can be put straight into the heap of an empty replica';

/* Note which indexes of an empty replica are not kept up to date from here on, and plan its ranges, by bounds of so many columns. */
CREATE FUNCTION tablesync.record_bulk_load(replica regclass, indexes oid[], bounds text[], columns integer)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE tablesync.all_replicas t SET load_indexes = indexes WHERE t.replica = $1;
    DELETE FROM tablesync.all_chunks c WHERE c.replica = $1;
    INSERT INTO tablesync.all_chunks (replica, chunk_no, lower_key, loaded)
    SELECT $1, n, CASE WHEN n > 0 THEN bounds[(n - 1) * columns + 1:n * columns] END, false
    FROM generate_series(0, cardinality(bounds) / columns) n;
$$;
COMMENT ON FUNCTION tablesync.record_bulk_load(regclass, oid[], text[], integer) IS 'plans the ranges that a bulk load brings';

/*
 * Claim the next range of a load for this transaction; no row if all are
 * loaded or being loaded, or the load is over.
 */
CREATE FUNCTION tablesync.claim_range(replica regclass)
RETURNS TABLE (chunk_no integer, lower_key text[], upper_key text[])
LANGUAGE plpgsql    -- which keeps the plan
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    UPDATE tablesync.all_chunks c SET loaded = true
    WHERE c.replica = $1
      AND EXISTS (SELECT FROM tablesync.all_replicas t WHERE t.replica = $1 AND t.load_indexes IS NOT NULL)
      AND c.chunk_no = (SELECT n.chunk_no FROM tablesync.all_chunks n WHERE n.replica = $1 AND NOT n.loaded
                        ORDER BY n.chunk_no LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING c.chunk_no, c.lower_key,
              (SELECT u.lower_key FROM tablesync.all_chunks u WHERE u.replica = $1 AND u.chunk_no = c.chunk_no + 1);
END
$$;
COMMENT ON FUNCTION tablesync.claim_range(regclass) IS 'takes the next range of a load for the current transaction';

/*
 * Build the indexes that a load has not kept up to date.  Those of a replica
 * that was restored from a dump in the middle of its load are not there at
 * all; without one on its key it can't be kept.
 */
CREATE FUNCTION tablesync.build_indexes(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET default_tablespace = ''
AS $$
DECLARE
    settings tablesync.replica;
    helpers integer;
    index regclass;
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', $1);    -- until nobody loads any more
    SELECT * INTO settings FROM tablesync.replica t WHERE t.replica = $1;
    helpers := settings.workers - 1;
    IF EXISTS (SELECT FROM pg_class c, unnest(c.reloptions) o WHERE c.oid = $1 AND o LIKE 'parallel_workers=%') THEN
        helpers := 0;    -- somebody has decided
    END IF;
    IF helpers > 0 THEN    -- or each would have to have 32 MB
        EXECUTE format('ALTER TABLE %s SET (parallel_workers = %s)', $1, helpers);
    END IF;
    FOR index IN SELECT i.indexrelid::regclass FROM pg_index i
                 WHERE i.indrelid = $1 AND NOT i.indisready ORDER BY i.indisprimary DESC, i.indexrelid LOOP
        EXECUTE format('REINDEX INDEX %s', index);
    END LOOP;
    IF NOT tablesync.has_key_index($1, settings.key_columns) THEN
        EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (%s)', $1,
                       (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(settings.key_columns) WITH ORDINALITY u (k, n)));
    END IF;
    IF helpers > 0 THEN
        EXECUTE format('ALTER TABLE %s RESET (parallel_workers)', $1);
    END IF;
END
$$;
COMMENT ON FUNCTION tablesync.build_indexes(regclass) IS 'builds the indexes that a bulk load has not kept up to date';

/* Give a replica that is removed in the middle of its load its indexes back, as far as its rows allow. */
CREATE FUNCTION tablesync.abandon_bulk_load(replica regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    index regclass;
BEGIN
    IF NOT EXISTS (SELECT FROM tablesync.replica t WHERE t.replica = $1 AND t.load_indexes IS NOT NULL) THEN
        RETURN;
    END IF;
    FOR index IN SELECT i.indexrelid::regclass FROM pg_index i WHERE i.indrelid = $1 AND NOT i.indisready LOOP
        BEGIN
            EXECUTE format('REINDEX INDEX %s', index);
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            RAISE WARNING 'index % of table % could not be built', index, $1
                USING DETAIL = SQLERRM, HINT = format('Mend the rows, then: REINDEX INDEX %s;', index);
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tablesync.abandon_bulk_load(regclass) IS 'builds the indexes that an unfinished load has not kept up to date, as far as the rows allow';
