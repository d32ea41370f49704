/*
 * plpgsql.sql: part of make lint.  What plpgsql_check says of our functions, a
 * line per finding, and what it says for no reason of ours, with the reason.
 */
SET client_min_messages = warning;
CREATE EXTENSION plpgsql_check;
CREATE EXTENSION pg_cron;
CREATE EXTENSION tablesync CASCADE;

CREATE TEMPORARY TABLE exception (function text, message text, detail text, reason text);
INSERT INTO exception VALUES
    ('%', 'target type is different type than source type', 'cast "text" value to "%[]" type',
     'a literal like ''{}'', which the type''s input function reads once'),
    ('%', 'target type is different type than source type', 'cast "text" value to "jsonb" type', 'the same'),
    ('tablesync.preflight\_%', 'unmodified OUT variable "hint"', '%', 'a check whose hint is the same for all its results is NULL'),
    ('tablesync.local_type(%', 'cannot determinate a result of dynamic SQL', '%', 'the foreign tables over catalogs have other names for each server'),
    ('tablesync.source_counters(%', 'cannot determinate a result of dynamic SQL', '%', 'the same'),
    ('tablesync.source_counters(%', 'record "counters" is not assigned yet', '%', 'the same'),
    ('tablesync.check\_%\_keys(%', 'cannot determinate a result of dynamic SQL', '%', 'columns of a key are what they are'),
    ('tablesync.source_tables(%', 'OUT variable % is maybe unmodified', '%', 'the same; RETURN QUERY EXECUTE sets them'),
    ('tablesync.snapshot\_envelopes(%', 'OUT variable % is maybe unmodified', '%', 'RETURN QUERY EXECUTE sets them, of a replica');

/* A trigger function is checked with a table that it is for. */
CREATE TEMPORARY TABLE finding AS
SELECT p.oid::regprocedure::text AS function, f.*
FROM pg_proc p
JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'plpgsql'
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid AND e.extname = 'tablesync'
CROSS JOIN LATERAL plpgsql_check_function_tb(p.oid, relid =>
    CASE WHEN p.prorettype = 'trigger'::regtype THEN (SELECT min(t.tgrelid::oid) FROM pg_trigger t WHERE t.tgfoid = p.oid) ELSE 0 END) f;

SELECT f.function || ':' || coalesce(f.lineno, 0) || ': ' || f.level || ': ' || f.message || coalesce(' (' || f.detail || ')', '')
FROM finding f
WHERE NOT EXISTS (SELECT FROM exception e
                  WHERE f.function LIKE e.function AND f.message LIKE e.message AND coalesce(f.detail, '') LIKE e.detail)
ORDER BY 1;
SELECT 'an exception that is none any more: ' || e.function || ' ' || e.message
FROM exception e
WHERE NOT EXISTS (SELECT FROM finding f
                  WHERE f.function LIKE e.function AND f.message LIKE e.message AND coalesce(f.detail, '') LIKE e.detail)
ORDER BY 1;
