/*
 * value.sql: rows as JSON, in two forms
 *
 * What is made here is text of SQL that is run with the rights of whoever reads a
 * feed.  Its columns are of types that others may have made, with casts that
 * to_jsonb() would call: so all that is not built in goes through its output
 * function, which only superusers can make, and so does json, not every text of
 * which is jsonb.
 */

CREATE FUNCTION tablesync.decimal_bytes(value numeric, scale integer)
RETURNS bytea
LANGUAGE C IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_decimal_bytes';
COMMENT ON FUNCTION tablesync.decimal_bytes(numeric, integer) IS 'the unscaled value of a decimal as a big-endian two''s complement, as Kafka Connect has it; NULL of what is no number';

CREATE FUNCTION tablesync.bit_bytes(value bit varying)
RETURNS bytea
LANGUAGE C IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_bit_bytes';
COMMENT ON FUNCTION tablesync.bit_bytes(bit varying) IS 'bits as bytes, the last bit in the first byte, without bytes of zeros at the end, as Debezium has them';

CREATE FUNCTION tablesync.base64(value bytea)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT translate(encode(value, 'base64'), E'\n', '');
$$;
COMMENT ON FUNCTION tablesync.base64(bytea) IS 'bytes in base64, in one line';

CREATE FUNCTION tablesync.iso_instant(value timestamptz)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN NOT isfinite(value) THEN value::text
                ELSE CASE WHEN y.year < 0 THEN '-' || lpad((-y.year)::text, 4, '0')
                          WHEN y.year > 9999 THEN '+' || y.year ELSE lpad(y.year::text, 4, '0') END
                     || to_char(value AT TIME ZONE 'UTC', '-MM-DD"T"HH24:MI:SS.US"Z"') END
    FROM (SELECT CASE WHEN isfinite(value) THEN extract(year FROM value AT TIME ZONE 'UTC')::integer + (extract(year FROM value AT TIME ZONE 'UTC') < 0)::integer END) y (year);
$$;
COMMENT ON FUNCTION tablesync.iso_instant(timestamptz) IS 'an instant as ISO 8601 has it, in UTC with microseconds';

CREATE FUNCTION tablesync.point_wkb(x double precision, y double precision)
RETURNS bytea
LANGUAGE C IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'tsync_point_wkb';
COMMENT ON FUNCTION tablesync.point_wkb(double precision, double precision) IS 'a point as well-known binary, little-endian, as Debezium has it';

/* SQL that makes of a value what to_jsonb() makes of it, without anybody's casts. */
CREATE FUNCTION tablesync.plain_expression(type oid, value text)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN t.oid < 16384 AND t.oid NOT IN ('json'::regtype, 'json[]'::regtype) AND t.typtype IN ('b', 'r', 'm') THEN value
                ELSE format('CASE WHEN %1$s IS NOT NULL THEN pg_catalog.format(''%%s'', %1$s) END', value) END
    FROM pg_type t WHERE t.oid = type;
$$;
COMMENT ON FUNCTION tablesync.plain_expression(oid, text) IS 'SQL for a value in tablesync_changes';

/* SQL that makes of a value what Debezium's PostgreSQL connector and Kafka Connect's JSON converter make of it, by default. */
CREATE FUNCTION tablesync.debezium_expression(type oid, typmod integer, value text)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
    form text;
BEGIN
    SELECT b.base, b.base_typmod INTO type, typmod FROM tablesync.base_type(type, typmod) b;
    SELECT p.typelem, p.typsubscript = 'array_subscript_handler'::regproc AND p.typelem <> 0 AS is_array INTO t FROM pg_type p WHERE p.oid = type;
    IF t.is_array THEN
        RETURN format('CASE WHEN %1$s IS NOT NULL THEN coalesce((SELECT jsonb_agg(%2$s ORDER BY n) FROM unnest(%1$s) WITH ORDINALITY e (e, n)), ''[]'') END', value,
                      tablesync.debezium_expression(t.typelem, typmod, 'e.e'));
    END IF;
    form := CASE
        WHEN type IN ('bool'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'float4'::regtype, 'float8'::regtype) THEN '%1$s'
        WHEN type = 'oid'::regtype THEN '%1$s::int8'
        WHEN type = 'numeric'::regtype AND typmod > 0 THEN format('coalesce(tablesync.base64(tablesync.decimal_bytes(%%1$s, %s)), %%1$s::text)', ((typmod - 4) & 2047 # 1024) - 1024)
        WHEN type = 'numeric'::regtype THEN
            'CASE WHEN scale(%1$s) IS NULL THEN to_jsonb(%1$s::text) ELSE jsonb_build_object(''scale'', min_scale(%1$s), ''value'', tablesync.base64(tablesync.decimal_bytes(%1$s, min_scale(%1$s)))) END'
        WHEN type = 'money'::regtype THEN 'tablesync.base64(tablesync.decimal_bytes(%1$s::numeric, 2))'
        WHEN type = 'bytea'::regtype THEN 'tablesync.base64(%1$s)'
        WHEN type = 'bit'::regtype AND typmod = 1 THEN '%1$s = B''1'''
        WHEN type IN ('bit'::regtype, 'varbit'::regtype) THEN 'tablesync.base64(tablesync.bit_bytes(%1$s))'
        WHEN type = 'date'::regtype THEN 'CASE WHEN isfinite(%1$s) THEN to_jsonb(%1$s - date ''1970-01-01'') ELSE to_jsonb(%1$s::text) END'
        WHEN type = 'time'::regtype AND typmod BETWEEN 0 AND 3 THEN '(extract(epoch FROM %1$s) * 1000)::int8'
        WHEN type = 'time'::regtype THEN '(extract(epoch FROM %1$s) * 1000000)::int8'
        WHEN type = 'timetz'::regtype THEN '(timezone(''UTC'', %1$s)::time::text || ''Z'')'
        WHEN type = 'timestamp'::regtype THEN
            format('CASE WHEN isfinite(%%1$s) THEN to_jsonb(trunc(extract(epoch FROM %%1$s) * %s)) ELSE to_jsonb(%%1$s::text) END', CASE WHEN typmod BETWEEN 0 AND 3 THEN 1000 ELSE 1000000 END)
        WHEN type = 'timestamptz'::regtype THEN 'tablesync.iso_instant(%1$s)'
        WHEN type = 'interval'::regtype THEN
            'CASE WHEN isfinite(%1$s) THEN to_jsonb(trunc((extract(year FROM %1$s) * 12 + extract(month FROM %1$s)) * 2629800000000 + extract(day FROM %1$s) * 86400000000'
            ' + extract(hour FROM %1$s) * 3600000000 + extract(minute FROM %1$s) * 60000000 + extract(microseconds FROM %1$s))) ELSE to_jsonb(%1$s::text) END'
        WHEN type = 'point'::regtype THEN
            'CASE WHEN %1$s IS NOT NULL THEN jsonb_build_object(''x'', %1$s[0], ''y'', %1$s[1], ''wkb'', tablesync.base64(tablesync.point_wkb(%1$s[0], %1$s[1])), ''srid'', NULL) END'
        ELSE 'CASE WHEN %1$s IS NOT NULL THEN format(''%%s'', %1$s) END' END;
    RETURN format('(' || form || ')', value);
END
$$;
COMMENT ON FUNCTION tablesync.debezium_expression(oid, integer, text) IS 'SQL for a value in tablesync_envelopes';

/*
 * SQL that makes a row an object.  "columns" are those of describe_feed(); of
 * those whose source is missing there is NULL.
 */
CREATE FUNCTION tablesync.row_expression(columns jsonb, form text, prefix text, of_feed boolean, keys_only boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('(SELECT to_jsonb(o) FROM (SELECT %s) o)', string_agg(format('%s AS %I',
               CASE WHEN v.value IS NULL THEN 'NULL'
                    WHEN form = 'debezium' THEN tablesync.debezium_expression(v.type, v.typmod, v.value)
                    ELSE tablesync.plain_expression(v.type, v.value) END, c->>'name'), ', ' ORDER BY n))
    FROM jsonb_array_elements(columns) WITH ORDINALITY u (c, n)
    CROSS JOIN LATERAL (
        SELECT prefix || CASE WHEN NOT of_feed THEN quote_ident(c->>'name') WHEN c->>'feed_type' IS NOT NULL THEN quote_ident(c->>'feed_name') END,
               CASE WHEN of_feed THEN c->>'feed_type' ELSE c->>'type' END::oid,
               CASE WHEN of_feed THEN c->>'feed_typmod' ELSE c->>'typmod' END::integer
    ) v (value, type, typmod)
    WHERE NOT keys_only OR c->>'key' IS NOT NULL;
$$;
COMMENT ON FUNCTION tablesync.row_expression(jsonb, text, text, boolean, boolean) IS 'SQL that makes a row, or its key, a JSON object';
