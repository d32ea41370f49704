# ALTER EXTENSION tablesync UPDATE from 0.1.0: settings, history, alerts and
# schedules are kept, an unfinished load goes on, nothing that was written into
# the old tables is run, and the catalogs are those of a fresh install.  Before
# it, the library refuses what it does not fit, and says what to do.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my $source = start_source();
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 1000) i});
my $target = start_target($source);
$target->safe_psql('postgres', 'CREATE DATABASE old');
my $port = $source->port;

sub old
{
	my ($sql, $role) = @_;
	return $target->safe_psql('old', $sql, extra_params => [ '-U', $role // 'postgres' ]);
}

old(qq{
	CREATE EXTENSION postgres_fdw;
	CREATE EXTENSION tablesync VERSION '0.1.0';
	GRANT CREATE ON SCHEMA public TO app;
	CREATE SERVER src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	GRANT USAGE ON FOREIGN SERVER src TO app;
	CREATE USER MAPPING FOR app SERVER src OPTIONS (user 'reader', password 'read-only');
	SELECT * FROM tablesync.create_source_catalog((SELECT oid FROM pg_foreign_server))});
# what 0.1.0 has left behind: a replica in use, and one in the middle of a bulk load
old(q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL);
	CREATE TABLE loading (id integer NOT NULL, note text, updated_at timestamptz NOT NULL);
	CREATE FOREIGN TABLE items_source (id integer NOT NULL, note text, updated_at timestamptz NOT NULL) SERVER src OPTIONS (schema_name 'public', table_name 'items', fetch_size '3000');
	INSERT INTO items SELECT * FROM items_source WHERE id <= 900}, 'app');
for my $replica (qw(items loading))
{
	old(qq{
		CREATE TRIGGER tablesync_note_write AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON $replica FOR EACH STATEMENT EXECUTE FUNCTION tablesync.note_write();
		ALTER TABLE $replica ENABLE ALWAYS TRIGGER tablesync_note_write;
		ALTER TRIGGER tablesync_note_write ON $replica DEPENDS ON EXTENSION tablesync;
		INSERT INTO tablesync.replica (replica, source, key_columns, version_column, fingerprint, freshness, shape, source_created, loaded)
		SELECT '$replica', 'items_source', '{id}', 'updated_at', 'version', '300000 years',
			(SELECT jsonb_agg(jsonb_build_object('column', c.remote_name, 'remote', c.remote_name, 'attnum', c.attnum, 'table', c.relid::bigint, 'type', format_type(c.type, c.typmod),
				'type_oid', c.type::bigint, 'typmod', c.typmod, 'collation', NULL, 'not_null', c.not_null, 'key', c.key_position, 'problem', NULL) ORDER BY c.attnum)
			 FROM jsonb_to_recordset('[{"remote_name": "id", "attnum": 1, "type": 23, "typmod": -1, "not_null": true, "key_position": 1},
				{"remote_name": "note", "attnum": 2, "type": 25, "typmod": -1, "not_null": false},
				{"remote_name": "updated_at", "attnum": 3, "type": 1184, "typmod": -1, "not_null": true}]')
				c (remote_name text, attnum smallint, type oid, typmod integer, not_null boolean, key_position integer, relid oid)), true, true});
}
my $relid = $source->safe_psql('postgres', q{SELECT 'items'::regclass::oid});
old(qq{
	UPDATE tablesync.replica t SET shape = (SELECT jsonb_agg(c || '{"table": $relid}' ORDER BY n) FROM jsonb_array_elements(t.shape) WITH ORDINALITY s (c, n));
	UPDATE tablesync.replica SET loaded = false, load_indexes = ARRAY['ALTER TABLE loading ADD PRIMARY KEY (id)', 'ALTER ROLE app SUPERUSER'] WHERE replica = 'loading'::regclass;
	INSERT INTO tablesync.chunk (replica, chunk_no, loaded) VALUES ('loading'::regclass, 0, false);
	INSERT INTO tablesync.run (replica, kind, status, finished_at, source_rows, replica_rows, source_digest, replica_digest, message)
		SELECT 'items'::regclass, 'sync', 'succeeded', now(), 900, 900, 1, 1, 'run ' || i FROM generate_series(1, 20) i;
	INSERT INTO tablesync.difference (run_id, replica, key, difference, source, replica_row)
		SELECT r.run_id, r.replica, jsonb_build_object('id', i), 'different', '{}', '{}' FROM (SELECT * FROM tablesync.run ORDER BY run_id DESC LIMIT 2) r, generate_series(1, 3) i;
	INSERT INTO tablesync.alert (replica, kind, severity, message) VALUES ('items'::regclass, 'stale', 'critical', 'old');
	INSERT INTO tablesync.schedule (replica, schedule) VALUES ('items'::regclass, '0 * * * *')});

# --- a new library, and old SQL ---

my $misfit = qr/ERROR:  55000: the library of tablesync 0\.2\.0 does not fit the extension, which is of version (\S+)\nHINT:  Use ALTER EXTENSION tablesync UPDATE\./;

# A call of each function that is in the library, with arguments that are not NULL.
sub refused_calls
{
	my ($database, $version, $works) = @_;
	my %got;
	my @calls = split /\n/, $target->safe_psql($database, q{
		SELECT format('%s(%s)', p.oid::regproc, (SELECT string_agg(format('%L::%s', CASE
				WHEN t IN ('oid'::regtype, 'regclass'::regtype) THEN '1259' WHEN t = 'boolean'::regtype THEN 'true' WHEN t = 'jsonb'::regtype THEN '{}'
				WHEN t = 'interval'::regtype THEN '1 s' WHEN t = 'timestamptz'::regtype THEN 'now' WHEN t::regtype::text LIKE '%[]' THEN '{1}' ELSE '1' END, t::regtype), ', ' ORDER BY n)
			FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a (t, n)))
		FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'c'
		JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
		JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'tablesync'
		WHERE p.prorettype <> 'trigger'::regtype});
	for my $call (@calls)
	{
		my ($rc, $stdout, $stderr) = $target->psql($database, "SELECT $call", extra_params => [ '-v', 'VERBOSITY=verbose' ]);
		$got{$call} = $stderr unless $stderr =~ $misfit && $1 eq $version;
	}
	cmp_ok(scalar @calls, '>', 15, 'many functions');
	is(join(' ', sort keys %got), $works, "the library refuses the SQL of $version") or diag(values %got);
}

sub refused
{
	my ($sql) = @_;
	my ($rc, $stdout, $stderr) = $target->psql('old', $sql, extra_params => [ '-U', 'app', '-v', 'VERBOSITY=verbose' ]);
	like($stderr, $misfit, "refused: $sql");
}

refused_calls('old', '0.1.0', 'tablesync.home()');
refused($_) for "SELECT tablesync_run('items')", 'SELECT tablesync_run()', "SELECT tablesync_run('items', wait => false)", "SELECT tablesync_verify('items')",
	"CALL tablesync.run_scheduled('items'::regclass)", "SELECT tablesync_add('more', 'src', 'public.items')", 'TABLE tablesync_progress', 'SELECT * FROM tablesync_health()';
like(old(q{SELECT string_agg(detail, ' ') FROM tablesync_check('items') WHERE NOT ok}, 'app'), qr/does not fit the extension, which is of version 0\.1\.0/, 'tablesync_check says so');
is(old("SELECT count(*) FROM $_", 'app') >= 0, 1, "view $_ can be read")
	for qw(tablesync_status tablesync_runs tablesync_totals tablesync_alert_history tablesync_schema_log);
old(q{UPDATE items SET note = 'by hand', updated_at = now() WHERE id = 1}, 'app');
is(old('SELECT count(*) FROM tablesync.stray_write'), 1, 'whoever writes to a replica is noted');
old('CREATE TABLE gone (); DROP TABLE gone', 'app');

my ($rc, $stdout, $stderr) = $target->psql('old', 'ALTER EXTENSION tablesync UPDATE');
is($rc, 0, 'updated') or diag($stderr);
like($stderr, qr/WARNING:  an unfinished load of public.loading has dropped an index.*ALTER ROLE app SUPERUSER/s, 'what is recorded is shown');
is(old(q{SELECT rolsuper FROM pg_roles WHERE rolname = 'app'}), 'f', 'and not run');
is(old(q{SELECT extversion FROM pg_extension WHERE extname = 'tablesync'}), '0.2.0', 'version');

# --- the catalogs ---

my $catalogs = q{
	SELECT format('%s %s %s %s %s %s %s', p.oid::regprocedure, p.prosecdef, p.provolatile, p.proisstrict, p.proconfig, p.proacl, md5(p.prosrc || coalesce(p.probin, '') || coalesce(pg_get_function_sqlbody(p.oid), '')))
	FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'tablesync'
	UNION ALL SELECT format('%s %s %s %s %s', c.oid::regclass, c.relkind, c.relacl, c.relrowsecurity, obj_description(c.oid, 'pg_class')) FROM pg_class c WHERE c.relnamespace = 'tablesync'::regnamespace AND c.relkind <> 'f' OR c.relname LIKE 'tablesync\_%'
	UNION ALL SELECT format('%s.%s %s %s %s %s %s', a.attrelid::regclass, a.attname, a.attnum, a.atttypid::regtype, a.attnotnull, pg_get_expr(f.adbin, f.adrelid), col_description(a.attrelid, a.attnum))
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef f ON (f.adrelid, f.adnum) = (a.attrelid, a.attnum)
	WHERE (c.relnamespace = 'tablesync'::regnamespace AND c.relkind <> 'f' OR c.relname LIKE 'tablesync\_%') AND a.attnum > 0 AND NOT a.attisdropped
	UNION ALL SELECT format('%s %s %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid)) FROM pg_constraint k WHERE k.connamespace = 'tablesync'::regnamespace
	UNION ALL SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'tablesync'::regnamespace
	UNION ALL SELECT pg_get_triggerdef(g.oid) FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid WHERE c.relnamespace = 'tablesync'::regnamespace AND NOT g.tgisinternal
	UNION ALL SELECT format('%s %s %s', p.polrelid::regclass, p.polname, pg_get_expr(p.polqual, p.polrelid)) FROM pg_policy p
	UNION ALL SELECT format('%s %s %s %s', v.evtname, v.evtevent, v.evttags, v.evtfoid::regproc) FROM pg_event_trigger v
	UNION ALL SELECT format('%s %s', c.oid::regclass, pg_get_viewdef(c.oid)) FROM pg_class c WHERE c.relkind = 'v' AND (c.relnamespace = 'tablesync'::regnamespace OR c.relname LIKE 'tablesync\_%')
	UNION ALL SELECT format('dumped %s', x::regclass) FROM pg_extension e, unnest(e.extconfig) x WHERE e.extname = 'tablesync'
	UNION ALL SELECT format('member %s', pg_describe_object(d.classid, d.objid, d.objsubid)) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'tablesync' WHERE d.deptype = 'e'
	ORDER BY 1};
my %fresh = map { $_ => 1 } split /\n/, $target->safe_psql('postgres', $catalogs);
my %updated = map { $_ => 1 } split /\n/, old($catalogs);
cmp_ok(keys %fresh, '>', 400, 'many objects');
is(join("\n", grep { !$updated{$_} } sort keys %fresh), '', 'nothing that a fresh install has is missing');
is(join("\n", grep { !$fresh{$_} } sort keys %updated), '', 'and nothing is left over');

# --- what it was used for ---

is(old(q{SELECT count(*), max(message) FROM tablesync_runs WHERE replica = 'items'::regclass}, 'app'), '20|run 9', 'history');
is(old(q{SELECT string_agg(d.key->>'id', ' ' ORDER BY d.run_id, d.key->'id'), count(DISTINCT d.difference_no) FROM tablesync.difference d}, 'app'), '1 2 3 1 2 3|6', 'differences, numbered');
is(old(q{SELECT kind, message FROM tablesync_alerts WHERE replica = 'items'::regclass}, 'app'), 'stale|old', 'alerts');
is(old(q{SELECT schedule FROM tablesync.schedule}, 'app'), '0 * * * *', 'schedules');
is(old(q{SELECT freshness IS NULL FROM tablesync.replica WHERE replica = 'items'::regclass}, 'app'), 't', 'a setting that made views fail is reset');
is(old(q{SELECT run_id, status, inserted FROM tablesync_run('items')}, 'app'), '21|succeeded|100', 'the next run goes on where the last one ended');
is(old(q{SELECT status, inserted FROM tablesync_run('loading')}, 'app'), 'succeeded|1000', 'the unfinished load is completed');
is(old(q{SELECT indisprimary AND indisvalid FROM pg_index WHERE indrelid = 'loading'::regclass}), 't', 'with its key');
is(old(q{SELECT count(*) FROM (TABLE items EXCEPT TABLE items_source) x}, 'app') . old(q{SELECT count(*) FROM (TABLE items_source EXCEPT TABLE loading) x}, 'app'), '00', 'both are right');
is(old('SELECT count(*) FROM tablesync.source_catalogs c JOIN pg_class r ON r.oid = c.foreign_table, aclexplode(r.relacl) x WHERE x.grantee = 0'), 0, 'nothing of the source is for everybody');
old('DROP EXTENSION tablesync');

# --- an old library, and new SQL ---

$target->safe_psql('postgres', q{UPDATE pg_extension SET extversion = '0.3.0' WHERE extname = 'tablesync'});
refused_calls('postgres', '0.3.0', 'tablesync.home() tablesync.watch_drop()');
$target->safe_psql('postgres', q{UPDATE pg_extension SET extversion = '0.2.0' WHERE extname = 'tablesync'});

# a process that serves the queue leaves to others what it finds after an update
$target->append_conf('postgresql.conf', 'tablesync.max_workers = 1');
$target->reload;
app_sql($target, qq{SELECT tablesync_add('$_', 'src', 'public.items')}) for qw(first second);
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE items');
my ($first, $second) = map { app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(first second);
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
$target->safe_psql('postgres', q{UPDATE pg_extension SET extversion = '0.3.0' WHERE extname = 'tablesync'});
$locker->query_safe('COMMIT');
$locker->quit;
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
is(app_sql($target, q{SELECT string_agg(run_id || status, ' ') || (SELECT string_agg(' ' || run_id, '') FROM tablesync.queue) FROM tablesync.run}), "${first}failed $second", 'a run that had changed nothing yet ends, the next one waits');
$target->safe_psql('postgres', q{UPDATE pg_extension SET extversion = '0.2.0' WHERE extname = 'tablesync'});
like(app_sql($target, "SELECT message FROM tablesync_runs WHERE run_id = $first"), qr/^tablesync was updated from version 0\.2\.0 to 0\.3\.0 during the run/, 'and why');
is(app_sql($target, "SELECT tablesync_wait($second)"), 'succeeded', 'for a process that fits');

done_testing();
