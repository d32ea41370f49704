/*
 * connection.sql: what to type where libpq, or the source, refuses a connection
 *
 * There is no SQLSTATE for it, only text, English where lc_messages is.  What of
 * the other side's is repeated here stands in quotes, or consists of harmless
 * characters; no value of a secret option is.
 */

/* Changes of options, whether they are there (SET) or not (ADD). */
CREATE FUNCTION tablesync.option_changes(options jsonb, changes text[])
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT '(' || string_agg(format('%s %I %L', CASE WHEN options ? changes[i] THEN 'SET' ELSE 'ADD' END, changes[i], changes[i + 1]), ', ' ORDER BY i) || ')'
    FROM generate_series(1, cardinality(changes), 2) i;
$$;
COMMENT ON FUNCTION tablesync.option_changes(jsonb, text[]) IS 'what stands after OPTIONS to give options new values: names and values by turns';

CREATE FUNCTION tablesync.connection_hint(server oid, why text)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings record;    -- of the server
    mapping record;
    role text;          -- there
    server_option text;
    mapping_option text;
    superuser_option text;
    ca_file text;
    parts text[];
BEGIN
    SELECT quote_ident(s.srvname) AS name, quote_ident(pg_get_userbyid(s.srvowner)) AS owner,
           coalesce((SELECT jsonb_object_agg(o.option_name, o.option_value) FROM pg_options_to_table(s.srvoptions) o), '{}') AS options
    INTO settings FROM pg_foreign_server s WHERE s.oid = server;
    -- options of a mapping for PUBLIC are not everybody's to see; it has a password, or none would do
    SELECT CASE m.umuser WHEN 0 THEN 'PUBLIC' ELSE quote_ident(m.usename) END AS role,
           coalesce((SELECT jsonb_object_agg(o.option_name, true) FROM pg_options_to_table(m.umoptions) o),
                    CASE WHEN m.umuser = 0 THEN '{"password": true}' ELSE '{}' END::jsonb) AS options
    INTO mapping FROM pg_user_mappings m
    WHERE m.srvid = server AND m.umuser IN (0, current_user::regrole) ORDER BY m.umuser DESC LIMIT 1;
    role := tablesync.remote_role(current_user::regrole, server);
    IF role LIKE '<%' THEN    -- a service may name it
        role := coalesce(quote_ident((regexp_match(why, '(?:user|role) "([^"\n]+)"'))[1]), role);
    END IF;
    server_option := format('as %s: ALTER SERVER %s OPTIONS ', settings.owner, settings.name);
    superuser_option := format('as a superuser: ALTER USER MAPPING FOR %s SERVER %s OPTIONS ', mapping.role, settings.name);
    -- a mapping with these can be altered by superusers only, whatever is altered
    mapping_option := CASE WHEN mapping.options ?| '{sslcert,sslkey,password_required}' THEN superuser_option
                           ELSE regexp_replace(superuser_option, '^.*?: ', '') END;
    ca_file := settings.options->>'sslrootcert';

    IF why ~ 'password retrieved from file' THEN
        RETURN format('Write the password of role %s into that file, which the server here reads for each connection; or: %s;', role,
                      mapping_option || tablesync.option_changes(mapping.options, '{password,..}'));
    ELSIF why ~ 'password authentication failed|no password supplied' THEN
        RETURN mapping_option || tablesync.option_changes(mapping.options, '{password,..}') || ';';
    ELSIF why ~ 'does not request a password' THEN
        RETURN format('If that is as it should be, %s; or let pg_hba.conf of the source ask role %s for a password.',
                      superuser_option || tablesync.option_changes(mapping.options, '{password_required,false}'), role);
    ELSIF why ~ 'must provide a password|password is required|password or GSSAPI' THEN
        RETURN format('%s; or, where a certificate, a passfile or a service lets us in, %s;',
                      mapping_option || tablesync.option_changes(mapping.options, '{password,..}'),
                      superuser_option || tablesync.option_changes(mapping.options, '{password_required,false}'));
    ELSIF why ~ 'does not match host name' THEN
        parts := regexp_match(why, 'server certificate for "([[:alnum:]._:-]+)".* does not match host name "([[:alnum:]._:-]+)"');
        RETURN format('If what the certificate names is the server that you mean, %s;', server_option
            || tablesync.option_changes(settings.options, ARRAY['host', coalesce(parts[1], '..')]
                -- the name need not be known here
                || CASE WHEN parts[2] ~ '^[0-9.]+$|:' AND NOT settings.options ? 'hostaddr' THEN ARRAY['hostaddr', parts[2]] ELSE '{}' END));
    ELSIF why ~ 'certificate verify failed' THEN
        parts := regexp_match(why, 'server at "([[:alnum:]._:-]+)"(?: \(([0-9a-fA-F.:]+)\))?, port (\d+)');
        RETURN format('In a shell of the server here, this says why: openssl s_client -starttls postgres -connect %s:%s%s </dev/null 2>/dev/null | grep Verif'
                      ' -- If it has expired, the DBA of the source has to renew it. If another CA has signed it, %s;',
                      CASE WHEN coalesce(parts[2], parts[1]) ~ ':' THEN format('[%s]', coalesce(parts[2], parts[1])) ELSE coalesce(parts[2], parts[1], '<host>') END,
                      coalesce(parts[3], '5432'),
                      CASE WHEN ca_file = 'system' THEN '' ELSE ' -CAfile ' || coalesce(quote_literal(ca_file), '~/.postgresql/root.crt') END,
                      server_option || tablesync.option_changes(settings.options, '{sslrootcert,..}'));
    ELSIF why ~ 'root certificate file' THEN
        RETURN format('The server here reads that file, and its user has to be able to. If it is another one, %s;',
                      server_option || tablesync.option_changes(settings.options, '{sslrootcert,..}'));
    ELSIF why ~ 'requires a valid client certificate' THEN
        RETURN format('Type %s; The server here reads these files.', superuser_option || tablesync.option_changes(mapping.options, '{sslcert,..,sslkey,..}'));
    ELSIF why ~ 'certificate file|private key file' THEN
        RETURN format('The server here reads that file; it must be its user''s own, and a key nobody else''s (chmod 600). If it is another one, %s;',
                      superuser_option || tablesync.option_changes(mapping.options, '{sslcert,..,sslkey,..}'));
    ELSIF why ~ 'certificate authentication failed|alert .*(certificate|unknown ca)' THEN
        RETURN format('The source does not accept our certificate. In a shell of the server here, this says whose it is, by whom, and until when: openssl x509 -noout -subject -issuer -enddate -in %s'
                      ' -- Its common name must be role %s, or what pg_ident.conf there says. Another one, %s;',
                      coalesce((SELECT quote_literal(o.option_value) FROM pg_user_mappings m, pg_options_to_table(m.umoptions) o
                                WHERE m.srvid = server AND m.umuser IN (0, current_user::regrole) AND o.option_name = 'sslcert' ORDER BY m.umuser DESC LIMIT 1),
                               quote_literal(settings.options->>'sslcert'), '~/.postgresql/postgresql.crt'),
                      role, superuser_option || tablesync.option_changes(mapping.options, '{sslcert,..,sslkey,..}'));
    ELSIF why ~ 'pg_hba.conf' AND settings.options->>'sslmode' = 'disable' THEN
        RETURN format('The source may want TLS, %s;', server_option || tablesync.option_changes(settings.options, '{sslmode,verify-full,sslrootcert,..}'));
    ELSIF why ~ 'pg_hba.conf' THEN
        parts := regexp_match(why, 'host "([0-9a-fA-F.:]+)", user "([^"\n]+)", database "([^"\n]+)"');
        RETURN format('Let the DBA of the source add a line to pg_hba.conf, before those that reject us: %s "%s" "%s" %s scram-sha-256 -- and then SELECT pg_reload_conf();',
                      CASE WHEN why ~ 'SSL on|SSL encryption' THEN 'hostssl' ELSE 'host' END,
                      coalesce(parts[3], '<database>'), coalesce(parts[2], role),
                      coalesce(parts[1] || CASE WHEN parts[1] ~ ':' THEN '/128' ELSE '/32' END, '<our address>'));
    ELSIF why ~ 'does not support SSL' THEN
        RETURN 'At the source, which needs ssl_cert_file and ssl_key_file for it: ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();';
    ELSIF why ~ 'too many connections for role' THEN
        RETURN format('Run again when others have ended; or, at the source: ALTER ROLE %s CONNECTION LIMIT 10; or more, see docs/source-dba.md.', role);
    ELSIF why ~ 'service' THEN
        RETURN format('The server here reads the file that PGSERVICEFILE in its environment names, or ~/.pg_service.conf, and pg_service.conf in its sysconfdir. If the service has another name, %s;',
                      server_option || tablesync.option_changes(settings.options, '{service,..}'));
    END IF;
    RETURN format('Run again when the source answers; tablesync.retry_timeout says how long a run goes on to ask it. '
                  'If its address is wrong, %s; if role or password: %s; if neither, see pg_hba.conf and CONNECTION LIMIT there, and firewalls.',
                  server_option || tablesync.option_changes(settings.options, '{host,..,port,..,dbname,..}'),
                  mapping_option || tablesync.option_changes(mapping.options, '{user,..,password,..}'));
END
$$;
COMMENT ON FUNCTION tablesync.connection_hint(oid, text) IS 'what the current user can do about a connection to a source that was refused, by what was said';
