# Nobody rises by it.  Three roles: a and b own replicas, nobody owns nothing;
# a superuser looks on.  Each part is what one of them tries.

use strict;
use warnings;

use TablesyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source();
$source->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY, v text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO t (id, v) SELECT i, 'v' || i FROM generate_series(1, 200) i;
	CREATE TABLE s (LIKE t INCLUDING ALL);
	INSERT INTO s SELECT id, 'secret of b ' || id FROM t});

my $target = TablesyncTest::new_node('target', conf => '');
my $port = $source->port;

# everything is squatted that a role may have put into public before the extension comes; a superuser's
# own queries below must not use these operators either
$target->safe_psql('postgres', q{
	CREATE ROLE a LOGIN PASSWORD 'a';
	CREATE ROLE b LOGIN PASSWORD 'b';
	CREATE ROLE nobody LOGIN PASSWORD 'n';
	GRANT CREATE ON SCHEMA public TO a, b, nobody});
as('a', q{
	CREATE FUNCTION public.rise(regclass, regclass) RETURNS boolean LANGUAGE plpgsql AS
		$$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN true; EXCEPTION WHEN OTHERS THEN RETURN true; END$$;
	CREATE FUNCTION public.rise(bigint, interval) RETURNS interval LANGUAGE plpgsql AS
		$$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN '1 s'; EXCEPTION WHEN OTHERS THEN RETURN '1 s'; END$$;
	CREATE FUNCTION public.rise(double precision, integer) RETURNS boolean LANGUAGE plpgsql AS
		$$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN true; EXCEPTION WHEN OTHERS THEN RETURN true; END$$;
	CREATE OPERATOR public.= (LEFTARG = regclass, RIGHTARG = regclass, FUNCTION = public.rise);
	CREATE OPERATOR public.* (LEFTARG = bigint, RIGHTARG = interval, FUNCTION = public.rise);
	CREATE OPERATOR public.> (LEFTARG = double precision, RIGHTARG = integer, FUNCTION = public.rise)});
$target->safe_psql('postgres', qq{
	CREATE EXTENSION tablesync CASCADE;
	CREATE SERVER src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	CREATE SERVER spare FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	GRANT USAGE ON FOREIGN SERVER src, spare TO a, b;
	CREATE USER MAPPING FOR PUBLIC SERVER src OPTIONS (user 'reader', password 'read-only');
	CREATE USER MAPPING FOR PUBLIC SERVER spare OPTIONS (user 'reader', password 'read-only');
	CREATE SCHEMA a AUTHORIZATION a;
	CREATE SCHEMA b AUTHORIZATION b});
as('a', q{SELECT tablesync_add('a.t', 'src', 'public.t', version_column => 'updated_at')});
as('b', q{SELECT tablesync_add('b.t', 'src', 'public.s', version_column => 'updated_at')});
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'a runs');
is(as('b', q{SELECT status FROM tablesync_run('b.t')}), 'succeeded', 'b runs');

sub as
{
	my ($role, $sql) = @_;
	return $target->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

# SQL that must fail with an SQLSTATE; returns what psql prints.
sub refused
{
	my ($role, $sql, $sqlstate, $name) = @_;
	my ($rc, $stdout, $stderr) = $target->psql('postgres', $sql, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	like($stderr, qr/^(psql:\S+ )?ERROR:  $sqlstate/m, $name // "$role: $sql");
	return $stderr;
}

sub nobody_rose
{
	my ($name) = @_;
	is($target->safe_psql('postgres', q{SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper}), 'postgres', "$name: nobody has become a superuser");
	is($target->safe_psql('postgres', q{SELECT pg_postmaster_start_time() = (SELECT min(backend_start) FROM pg_stat_activity) OR count(*) > 0 FROM pg_stat_activity}), 't', "$name: the server is up");
	return;
}

# --- what is bound to, before and after ---

$target->safe_psql('postgres', q{
	SELECT * FROM tablesync_status; SELECT * FROM tablesync_runs; SELECT * FROM tablesync_alerts; SELECT * FROM tablesync_totals;
	SELECT * FROM tablesync_progress; SELECT * FROM tablesync_schema_log; SELECT * FROM tablesync.health; SELECT tablesync_health();
	SELECT tablesync.watch()});
nobody_rose('operators in public');
is($target->safe_psql('postgres', q{
	WITH mine AS (SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
			WHERE e.extname = 'tablesync' AND d.deptype = 'e'),
	parts (classid, objid) AS (SELECT * FROM mine
		UNION SELECT 'pg_rewrite'::regclass, w.oid FROM pg_rewrite w JOIN mine m ON m.classid = 'pg_class'::regclass AND m.objid = w.ev_class
		UNION SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k JOIN mine m ON m.classid = 'pg_class'::regclass AND m.objid = k.conrelid
		UNION SELECT 'pg_trigger'::regclass, g.oid FROM pg_trigger g JOIN mine m ON m.classid = 'pg_class'::regclass AND m.objid = g.tgrelid
		UNION SELECT 'pg_policy'::regclass, p.oid FROM pg_policy p JOIN mine m ON m.classid = 'pg_class'::regclass AND m.objid = p.polrelid
		UNION SELECT 'pg_attrdef'::regclass, f.oid FROM pg_attrdef f JOIN mine m ON m.classid = 'pg_class'::regclass AND m.objid = f.adrelid)
	SELECT string_agg(pg_describe_object(d.classid, d.objid, d.objsubid) || ' needs ' || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), E'\n')
	FROM pg_depend d JOIN parts p ON (p.classid, p.objid) = (d.classid, d.objid)
	WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_class'::regclass, 'pg_type'::regclass, 'pg_cast'::regclass)
	  AND NOT EXISTS (SELECT FROM mine m WHERE (m.classid, m.objid) = (d.refclassid, d.refobjid))
	  AND NOT EXISTS (SELECT FROM pg_type y LEFT JOIN pg_type e ON e.oid = y.typelem JOIN mine m ON m.classid = 'pg_class'::regclass AND m.objid IN (y.typrelid, e.typrelid)
			   OR m.classid = 'pg_type'::regclass AND m.objid = e.oid
			WHERE d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid)
	  AND NOT EXISTS (SELECT FROM pg_index i JOIN mine m ON m.classid = 'pg_class'::regclass AND m.objid = i.indrelid
			WHERE d.refclassid = 'pg_class'::regclass AND i.indexrelid = d.refobjid)}),
	'', 'nothing depends on an object that is not its own');

# a function that would win over tablesync_run(regclass) for a literal
for my $statement (
	'CREATE FUNCTION public.tablesync_run(text) RETURNS text LANGUAGE sql AS $$SELECT 1::text$$',
	'CREATE FUNCTION public.tablesync_run(unknown_one text, VARIADIC more text[]) RETURNS text LANGUAGE sql AS $$SELECT 1::text$$',
	'CREATE PROCEDURE public.tablesync_remove(text) LANGUAGE sql AS $$SELECT 1$$',
	'CREATE AGGREGATE public.tablesync_status(integer) (SFUNC = int4pl, STYPE = integer)')
{
	refused('nobody', $statement, '42939');
}
as('nobody', 'CREATE FUNCTION public.innocent(text) RETURNS text LANGUAGE sql AS $$SELECT 1::text$$');
refused('nobody', 'ALTER FUNCTION public.innocent(text) RENAME TO tablesync_run', '42939');
is($target->safe_psql('postgres', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'a literal means the function of the extension');
nobody_rose('names');

# --- tables ---

for my $table (qw(replica run chunk alert schedule schema_log total difference export stray_write all_replicas all_runs all_chunks all_alerts all_schedules all_schema_changes all_totals all_differences all_exports))
{
	for my $role (qw(a nobody))
	{
		refused($role, "INSERT INTO tablesync.$table DEFAULT VALUES", 42501);
		refused($role, "UPDATE tablesync.$table SET replica = NULL", 42501);
		refused($role, "DELETE FROM tablesync.$table", 42501);
		refused($role, "TRUNCATE tablesync.$table", 42501);
		refused($role, "BEGIN; LOCK TABLE tablesync.$table IN SHARE MODE", 42501);
		refused($role, "CREATE TRIGGER x BEFORE INSERT ON tablesync.$table FOR EACH ROW EXECUTE FUNCTION tablesync.note_write()", 42501);
	}
	refused('a', "SELECT FROM tablesync.$table", 42501) if $table =~ /^all_|stray/;
}
refused('a', "SELECT nextval('tablesync.run_run_id_seq')", 42501, 'numbers of runs are nobody\'s');
refused('a', "SELECT setval('tablesync.run_run_id_seq', 1)", 42501);
is(as('a', q{SELECT string_agg(replica::text, ' ') FROM tablesync.replica}), 't', 'a role reads what is its own');
is(as('nobody', q{SELECT count(*) FROM tablesync.replica, tablesync.run, tablesync.chunk}), 0, 'and nothing else');

# --- functions ---

# every function of the extension, called by a role without rights with NULLs and with edge values
my %edges = (
	bigint => "'-9223372036854775808'", integer => "'-2147483648'", smallint => "'-32768'", oid => "'4294967295'",
	text => "repeat('\"%s\$\$\n', 2000)", name => "repeat('\"', 63)", regclass => "'b.t'", boolean => 'true', jsonb => q{'[{"a": [null]}]'},
	'double precision' => "'NaN'", interval => "'-178000000 years'", 'timestamp with time zone' => "'infinity'", '"char"' => "'x'",
	'text[]' => "'{NULL,NULL}'", 'name[]' => "'{NULL}'", 'bigint[]' => "'{NULL,9223372036854775807}'", 'oid[]' => "'{0,NULL}'",
	'regclass[]' => "'{b.t,NULL}'", 'integer[]' => "'{}'", real => "'NaN'");
my @functions = split /\n/, $target->safe_psql('postgres', q{
	SELECT p.prokind::text || '|' || p.oid::regproc::text || '|' || coalesce((SELECT string_agg(format_type(t, NULL), ',' ORDER BY n)
		FROM unnest(p.proargtypes) WITH ORDINALITY u (t, n)), '')
	FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
	WHERE e.extname = 'tablesync' AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype) ORDER BY 1});
cmp_ok(scalar @functions, '>', 150, 'all functions');
my ($script, $calls) = ("SET statement_timeout = '20s';\n", 0);
for my $function (@functions)
{
	my ($kind, $name, $types) = split /\|/, $function, 3;
	my @types = split /,/, $types;
	next if $name eq 'tablesync_wait';    # waits
	for my $values ([ map { "NULL::$_" } @types ], [ map { exists $edges{$_} ? "($edges{$_})::$_" : /\[\]$/ ? "'{}'::$_" : "NULL::$_" } @types ])
	{
		$script .= sprintf "%s %s(%s);\n", $kind eq 'p' ? 'CALL' : 'SELECT', $name, join(', ', @$values);
		$calls++;
	}
}
my $before = $target->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
my $log = -s $target->logfile;
$target->psql('postgres', $script, extra_params => [ '-U', 'nobody' ], on_error_stop => 0);
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync.alert}), 0, "$calls calls: nothing has changed");
ok(!$target->log_contains('terminated by signal|server process', $log), 'no crash');
is($target->safe_psql('postgres', 'SELECT count(*) FROM tablesync.replica WHERE enabled'), 2, 'b has its replica, a too');
nobody_rose('functions');
# what may be called by everybody, besides what users type: see rights.sql
is($target->safe_psql('postgres', q{
	SELECT string_agg(p.oid::regprocedure::text, ' ') FROM pg_proc p
	WHERE p.pronamespace = 'tablesync'::regnamespace AND has_function_privilege('nobody', p.oid, 'EXECUTE')
	  AND (p.proname ~ '^(record_|settle_|open_alert|close_alert|back_off|log_alert|announce|start_alert|claim|prune|count_run|forget_dropped|watch_step|create_source|grant_|skip_scan|note_drift|finish_)'
		AND p.proname <> 'create_source')}), '', 'what only workers and triggers call, nobody else does');

# doors open for the owner of a replica only, and let nothing through that concerns others
for my $door (q{tablesync.enable('b.t', false)}, q{tablesync.forget('b.t')}, q{tablesync.alter('b.t', '{"enabled": false}')},
	q{tablesync.schedule('b.t', '* * * * *', 1)}, q{tablesync.unschedule('b.t')}, q{tablesync.watch('b.t')},
	q{tablesync.register('b.t', '{}')}, q{tablesync_cancel('b.t')}, q{tablesync_pause('b.t')})
{
	refused('a', "SELECT $door", 42501);
	refused('nobody', "SELECT $door", 42501);
}
as('a', q{SELECT tablesync.alter('a.t', '{"source": "b.t_source", "source_created": true, "replica": "b.t", "load_indexes": "{1}", "shape": null, "home": "x"}')});
is($target->safe_psql('postgres', q{SELECT source, source_created, load_indexes IS NULL, replica FROM tablesync.replica WHERE replica::oid = 'a.t'::regclass::oid}),
	'a.t_source|t|t|a.t', 'settings that a user may not choose stay');
as('a', q{CREATE TABLE a.forged (id integer PRIMARY KEY)});
as('a', q{SELECT tablesync.register('a.forged', jsonb_build_object('source', 'b.t_source', 'source_created', true, 'key_columns', '{id}'::name[],
	'fingerprint', 'row', 'consistency', 'auto', 'max_source_load', 1, 'max_delete_fraction', 0.2, 'on_schema_change', 'apply', 'drop_columns', false,
	'workers', 2, 'enabled', true, 'shape', '[]'::jsonb, 'loaded', false, 'adopted', false))});
$target->safe_psql('postgres', q{SELECT tablesync_remove('a.forged')});
is($target->safe_psql('postgres', q{SELECT to_regclass('b.t_source')}), 'b.t_source', 'a superuser removes a replica of a, and nothing of b');
my $catalog = $target->safe_psql('postgres', q{SELECT foreign_table FROM tablesync.source_catalogs WHERE catalog = 'pg_class' LIMIT 1});
as('a', qq{SELECT tablesync.register('a.forged', jsonb_build_object('source', '$catalog', 'source_created', true, 'key_columns', '{id}'::name[],
	'fingerprint', 'row', 'consistency', 'auto', 'max_source_load', 1, 'max_delete_fraction', 0.2, 'on_schema_change', 'apply', 'drop_columns', false,
	'workers', 2, 'enabled', true, 'shape', '[]'::jsonb, 'loaded', false, 'adopted', false))});
$target->safe_psql('postgres', q{SELECT tablesync_remove('a.forged', drop_replica => true)});
is($target->safe_psql('postgres', "SELECT to_regclass('$catalog') IS NOT NULL"), 't', 'nor what the extension has made for a server');

# --- a server's catalogs ---

refused('nobody', "SELECT * FROM $catalog", 42501);
is(as('a', "SELECT count(*) > 0 FROM $catalog"), 't', 'who may use the server may read its catalogs');
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync.source_catalogs c JOIN pg_class r ON r.oid = c.foreign_table, aclexplode(r.relacl) x WHERE x.grantee = 0}), 0, 'nothing is granted to PUBLIC');
$target->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER src FROM a');
refused('a', "SELECT tablesync.prepare_server('src')", 42501);
is(as('b', q{SELECT status FROM tablesync_run('b.t')}), 'succeeded', 'b goes on');
refused('a', "SELECT * FROM $catalog", 42501, 'who may not use the server any more has lost them');
$target->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER src TO a');
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'and gets them back');

# under a search_path of her own, before anybody has used the server
as('a', q{
	CREATE FUNCTION a.rise(regclass, oid) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN true; END$$;
	CREATE FUNCTION a.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN ''; END$$;
	CREATE DOMAIN a.oid AS pg_catalog.oid;
	CREATE FUNCTION a.cast_it(regclass) RETURNS a.oid LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN 1; END$$;
	CREATE OPERATOR a.= (LEFTARG = regclass, RIGHTARG = pg_catalog.oid, FUNCTION = a.rise)});
$target->psql('postgres', q{SET search_path = a, pg_catalog; SELECT public.tablesync_add('a.u', 'spare', 'public.t'); SELECT tablesync.prepare_server('spare')},
	extra_params => [ '-U', 'a' ]);
nobody_rose('search_path');

# --- code of the owner's in a type: found when a difference is turned into jsonb ---

$source->safe_psql('postgres', q{CREATE SCHEMA a; CREATE TYPE a.mood AS ENUM ('happy', 'sad'); GRANT USAGE ON SCHEMA a TO reader;
	CREATE TABLE moods (id integer PRIMARY KEY, mood a.mood, updated_at timestamptz NOT NULL); INSERT INTO moods SELECT i, 'happy', now() FROM generate_series(1, 10) i});
as('a', q{
	CREATE TYPE a.mood AS ENUM ('happy', 'sad');
	CREATE FUNCTION a.to_json(a.mood) RETURNS json LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN '1'; EXCEPTION WHEN OTHERS THEN RETURN to_json(current_user); END$$;
	CREATE CAST (a.mood AS json) WITH FUNCTION a.to_json(a.mood);
	SELECT tablesync_add('a.moods', 'src', 'public.moods', version_column => 'updated_at')});
is(as('a', q{SELECT status FROM tablesync_run('a.moods')}), 'succeeded', 'a replica with a type of its own');
as('a', q{UPDATE a.moods SET mood = 'sad' WHERE id = 1});
is(as('a', q{SELECT difference, source->>'mood' FROM tablesync_verify('a.moods')}), 'different|a', 'its cast is called, as who owns it');
nobody_rose('cast to json');
as('a', q{SELECT tablesync_remove('a.moods', drop_replica => true)});

# --- temporary tables ---

$target->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER src TO nobody');
refused('nobody', q{SELECT tablesync_add('pg_temp.x', 'src', 'public.t')}, '42809', 'a temporary replica');
refused('nobody', q{CREATE TEMP TABLE y (id integer PRIMARY KEY, v text, updated_at timestamptz NOT NULL); SELECT tablesync_add('y', 'src', 'public.t')}, '\w+', 'nor one that exists');
refused('nobody', q{CREATE TEMP TABLE y (id integer PRIMARY KEY); SELECT tablesync.register('y', jsonb_build_object('source', 'b.t_source', 'key_columns', '{id}'::name[]))}, '42809', 'nor by the door');
$target->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER src FROM nobody');

# --- extreme values ---

for my $setting (q{freshness => '300000 years'}, q{freshness => '-1 s'}, q{trust_counters_for => '300000 years'}, q{max_source_load => 'NaN'}, q{max_source_load => 'infinity'},
	q{max_delete_fraction => 'NaN'}, q{verify_fraction => 'infinity'}, q{verify_fraction => 'NaN'}, q{workers => 2147483647}, q{sync_group => repeat('x', 100000), consistency => 'snapshot'})
{
	refused('a', "SELECT tablesync_alter('a.t', $setting)", 22023);
}
as('a', q{SELECT tablesync_alter('a.t', freshness => '100 years')});
is($target->safe_psql('postgres', q{SELECT count(*) > 1 FROM tablesync_status, tablesync_health()}), 't', 'all views work');
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync_alerts}), 0, 'for everybody');
my $run = as('a', q{SELECT max(run_id) FROM tablesync_runs});
is(as('a', "SELECT tablesync_wait($run, '178000000 years'), tablesync_wait($run, '-178000000 years')"), 'succeeded|succeeded', 'a wait beyond all time');
is(as('nobody', "SELECT coalesce(tablesync.run_status($run), 'nothing')"), 'nothing', 'runs of others are nobody\'s business');
is(as('nobody', 'SELECT count(*) FROM tablesync.live_progress()'), 0, 'nor how they go');

# --- what everybody is told ---

my $listener = session($target, '-U', 'nobody');
$listener->query_safe('LISTEN tablesync');
as('a', q{
	CREATE FUNCTION a.tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'row: %', NEW.v USING ERRCODE = '08006'; END$$;
	CREATE TRIGGER tell BEFORE UPDATE ON a.t FOR EACH ROW EXECUTE FUNCTION a.tell()});
$source->safe_psql('postgres', q{UPDATE t SET v = 'my secret', updated_at = clock_timestamp() WHERE id = 1});
$log = -s $target->logfile;
like(refused('a', q{SELECT tablesync_run('a.t')}, '08006', 'the run fails'), qr/row: my secret/, 'its caller reads why');
my $heard = $listener->query_safe('SELECT 1');
like($heard, qr/"event"\s*:\s*"run_failed"/, 'listeners are told');
unlike($heard, qr/my secret/, 'not the row');
unlike(slurp_file($target->logfile, $log), qr/tablesync alert .*my secret/, 'nor is it in the line of the alert');
as('a', 'DROP TRIGGER tell ON a.t');
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'mended');
$listener->quit;

# --- handlers ---

$target->safe_psql('postgres', q{
	CREATE FUNCTION b.handler(jsonb) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'SELECT';
	ALTER FUNCTION b.handler(jsonb) OWNER TO b;
	GRANT USAGE ON SCHEMA b TO PUBLIC;
	LOAD 'tablesync';
	ALTER ROLE a SET tablesync.alert_handler = 'b.handler(jsonb)'});
$source->safe_psql('postgres', 'REVOKE SELECT ON t FROM reader');
$log = -s $target->logfile;
refused('a', q{SELECT tablesync_run('a.t')}, 42501, 'the run fails');
$target->wait_for_log(qr/alert_handler b.handler\(jsonb\) can't be called: b.handler\(jsonb\) belongs neither/, $log);
$source->safe_psql('postgres', 'GRANT SELECT ON t TO reader');
$target->safe_psql('postgres', 'ALTER ROLE a RESET tablesync.alert_handler');
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'a handler of a third role is not called');

# --- a dump by who may read everything and nothing else ---

$target->safe_psql('postgres', q{CREATE ROLE backup LOGIN PASSWORD 'x' IN ROLE pg_read_all_data; GRANT USAGE ON FOREIGN SERVER src TO backup});
for my $options ([], ['--enable-row-security'])
{
	my ($out, $err) = run_command([ 'pg_dump', '-h', $target->host, '-p', $target->port, '-U', 'backup', '--include-foreign-data=nothing', @$options, 'postgres' ]);
	($out, $err) = run_command([ 'pg_dump', '-h', $target->host, '-p', $target->port, '-U', 'backup', @$options, 'postgres' ]);
	is($err, '', "pg_dump @$options");
	like($out, qr/^COPY tablesync.all_replicas .*\n(?:a|b)\.t\t/m, 'has the replicas');
}

# --- cancelling ---

my $locker = session($source);
for my $attempt (1 .. 6)
{
	$locker->query_safe('BEGIN; LOCK TABLE t');
	$run = as('a', q{SELECT run_id FROM tablesync_run('a.t', wait => false)});
	wait_until($source, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
	my @sessions = map { session($target, '-U', $_) } qw(a postgres);
	$_->query_until(qr//, "SELECT tablesync_cancel('a.t'); SELECT tablesync_cancel('a.t');\n") for @sessions;
	is(as('a', "SELECT tablesync_wait($run)"), 'cancelled', "cancelled twice at once, attempt $attempt");
	$_->quit for @sessions;
	$locker->query_safe('ROLLBACK');
}

# another owner in the middle of a run
$target->safe_psql('postgres', 'GRANT CREATE, USAGE ON SCHEMA a TO b');
$locker->query_safe('BEGIN; LOCK TABLE t');
$run = as('a', q{SELECT run_id FROM tablesync_run('a.t', wait => false)});
wait_until($source, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
my $changing = session($target);
$changing->query_until(qr//, "ALTER TABLE a.t OWNER TO b;\n");
is(as('b', q{SELECT coalesce((SELECT tablesync_cancel('a.t') WHERE EXISTS (SELECT FROM pg_class WHERE oid = 'a.t'::regclass AND relowner = 'b'::regrole)), true)}), 't', 'the new owner may cancel');
$locker->query_safe('ROLLBACK');
wait_until($target, q{SELECT relowner = 'b'::regrole FROM pg_class WHERE oid = 'a.t'::regclass});
isnt($target->safe_psql('postgres', "SELECT tablesync_wait($run)"), 'crashed', 'the run is recorded as what it was');
$changing->quit;
$target->safe_psql('postgres', 'ALTER TABLE a.t OWNER TO a');
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'all is well');

# --- six first replicas of a new server at once ---

$target->safe_psql('postgres', qq{
	CREATE SERVER fresh FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	GRANT USAGE ON FOREIGN SERVER fresh TO a;
	CREATE USER MAPPING FOR a SERVER fresh OPTIONS (user 'reader', password 'read-only')});
my @adding = map { session($target, '-U', 'a') } 1 .. 6;
$adding[$_]->query_until(qr//, "SELECT tablesync_add('a.n$_', 'fresh', 'public.t');\n") for 0 .. 5;
wait_until($target, q{SELECT count(*) = 6 FROM tablesync.replica WHERE replica::text LIKE 'a.n%'});
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync.replica WHERE replica::text LIKE 'a.n%'}), 6, 'all six are added');
$_->quit for @adding;

nobody_rose('at the end');
done_testing();
