# PgBouncer between the target and the source, as Debian configures it: it
# refuses the options of a session, or drops them.  Runs do without, check what
# they need, leave nothing behind in pooled sessions, and say what the source's
# DBA can type instead.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
plan skip_all => 'pgbouncer is not installed' unless $pgbouncer;

my $source = start_source(conf => 'log_statement = all');
$source->safe_psql('postgres', q{
	CREATE ROLE other LOGIN PASSWORD 'other';
	GRANT USAGE ON SCHEMA public TO other;
	CREATE TABLE items (id integer PRIMARY KEY, note text, price money, took interval, at timestamptz, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items SELECT i, md5(i::text), i::money, i * interval '1 hour' - interval '1 mon', now(), now() FROM generate_series(1, 20000) i;
	CREATE TABLE plain (id integer PRIMARY KEY, note text, took interval, x float8);
	INSERT INTO plain SELECT i, md5(i::text), i * interval '1 hour' - interval '1 mon', 1.0 / i FROM generate_series(1, 20000) i;
	CREATE TABLE guarded (id integer PRIMARY KEY);
	INSERT INTO guarded SELECT generate_series(1, 10);
	ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
	CREATE POLICY most ON guarded USING (id > 1)});

# Start a pooler; returns its port.
my @poolers;

sub start_pooler
{
	my ($mode, $conf) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	append_to_file("$dir/users.txt", qq{"reader" "read-only"\n"other" "other"\n});
	append_to_file("$dir/pgbouncer.ini", sprintf(<<'INI', $source->port, $port, $dir, $dir, $dir, $mode, $conf // ''));
[databases]
postgres = host=127.0.0.1 port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
logfile = %s/pgbouncer.log
pidfile = %s/pgbouncer.pid
auth_type = scram-sha-256
auth_file = %s/users.txt
pool_mode = %s
%s
INI
	system_or_bail($pgbouncer, '-d', '-q', "$dir/pgbouncer.ini");
	push @poolers, "$dir/pgbouncer.pid";
	return $port;
}

sub stop_poolers
{
	for my $file (splice @poolers) { kill 'INT', split(/\n/, slurp_file($file)) if -e $file; }
	return;
}

END { my $status = $?; stop_poolers(); $? = $status; }

# What another client of a pooler sees.
sub through
{
	my ($port, $user, $password, $sql) = @_;
	local $ENV{PGPASSWORD} = $password;
	my ($out, $err);
	IPC::Run::run([ 'psql', '-XAtq', '-h', '127.0.0.1', '-p', $port, '-U', $user, '-d', 'postgres', '-c', $sql ], '>', \$out, '2>', \$err);
	chomp $out;
	return $out . $err;
}

my $target = start_target($source);
my $shown = q{SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings
	WHERE name IN ('row_security', 'default_transaction_read_only', 'statement_timeout', 'lock_timeout', 'jit', 'enable_sort', 'work_mem', 'geqo_seed', 'search_path')};
my $plain_session = through($source->port, 'other', 'other', $shown);

for my $case ([ 'session', '' ], [ 'session', 'ignore_startup_parameters = options' ], [ 'transaction', '' ], [ 'transaction', 'ignore_startup_parameters = options' ])
{
	my ($mode, $conf) = @$case;
	my $name = "$mode pooling" . ($conf ? ' that drops options' : '');
	my $server = "pooled_$mode" . ($conf ? '_dropping' : '');
	my $port = start_pooler($mode, "$conf\ndefault_pool_size = 3");
	$target->safe_psql('postgres', qq{
		CREATE SERVER $server FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
		GRANT USAGE ON FOREIGN SERVER $server TO app;
		CREATE USER MAPPING FOR app SERVER $server OPTIONS (user 'reader', password 'read-only')});
	my ($rc, $out, $err) = $target->psql('postgres', "SELECT tablesync_add('plain', '$server', 'public.plain', chunk_rows => 3000)", extra_params => [ '-U', 'app' ]);
	is($rc, 0, "$name: added") or diag($err);
	like($err, qr/NOTICE:  a connection pooler keeps the options .*HINT:  At the source: ALTER ROLE reader SET default_transaction_read_only = on;/s, 'it is said at once');
	is((split /\|/, run_counts($target, 'plain'))[0], 'succeeded', 'loaded');
	is_replica($source, $target, 'plain', 'plain', 'identical');
	$source->safe_psql('postgres', q{UPDATE plain SET note = note || '!' WHERE id % 100 = 0; DELETE FROM plain WHERE id = (SELECT min(id) FROM plain); INSERT INTO plain SELECT max(id) + 1, 'new' FROM plain});
	like(run_counts($target, 'plain'), qr/^succeeded\|1\|\d+\|1$/, 'changes');
	is_replica($source, $target, 'plain', 'plain', 'identical');
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('plain')"), 0, 'verified');
	like(app_sql($target, q{SELECT ok, detail, hint FROM tablesync_check('plain') WHERE check_name = 'session'}),
		qr/^t\|a connection pooler keeps .*\|At the source: ALTER ROLE reader SET default_transaction_read_only = on;/, 'the check says what is missing');
	is(app_sql($target, q{SELECT string_agg(check_name || ': ' || detail, ', ') FROM tablesync_check('plain') WHERE NOT ok}), '', 'and that all else is well');
	is(through($port, 'other', 'other', $shown), $plain_session, 'another role sees nothing of us');
	is(through($port, 'reader', 'read-only', $shown), $plain_session, 'nor does another client of our role') if $mode eq 'session';

	# what can't do without
	like(app_fails($target, qq{SELECT tablesync_add('guarded', '$server', 'public.guarded'); SELECT tablesync_run('guarded')}),
		qr/ERROR:  55000: the session at the source is not restricted.*row_security is on.*HINT:  At the source: ALTER ROLE reader SET/s, 'a table with policies is refused');
	like(app_fails($target, qq{SELECT tablesync_add('items', '$server', 'public.items'); SELECT tablesync_run('items')}),
		qr/ERROR:  55000: the session at the source.*lc_monetary/s, 'so is money in another form') if $source->safe_psql('postgres', 'SHOW lc_monetary') ne 'C';

	# a time limit that is kept from here
	$source->safe_psql('postgres', q{UPDATE plain SET note = note || '+' WHERE id = 5});
	my $locker = session($source);
	$locker->query_safe('BEGIN; LOCK TABLE plain');
	$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.statement_timeout = '1s'});
	wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
	my $started = time;
	my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('plain', wait => false)});
	is(app_sql($target, "SELECT tablesync_wait($run_id, '1 minute')"), 'failed', 'a statement that takes too long');
	cmp_ok(time - $started, '<', 30, 'ends');
	$target->safe_psql('postgres', q{ALTER ROLE app RESET tablesync.statement_timeout});
	$locker->query_safe('COMMIT');
	$locker->quit;
	wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
	is(run_counts($target, 'plain'), 'succeeded|0|1|0', 'and the next run goes on');
	$target->safe_psql('postgres', "SELECT tablesync_remove(replica, drop_replica => true) FROM tablesync.replica; DROP SERVER $server CASCADE");
	stop_poolers();
}

# --- what the DBA can type, executed literally ---

my $port = start_pooler('transaction', '');
$target->safe_psql('postgres', qq{
	CREATE SERVER pooled FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	GRANT USAGE ON FOREIGN SERVER pooled TO app;
	CREATE USER MAPPING FOR app SERVER pooled OPTIONS (user 'reader', password 'read-only')});
app_sql($target, q{SELECT tablesync_add('plain', 'pooled', 'public.plain')});
my ($statements) = app_sql($target, q{SELECT hint FROM tablesync_check('plain') WHERE check_name = 'session'}) =~ /At the source: (.*;) Then/;
$source->safe_psql('postgres', $statements);
stop_poolers();
$port = start_pooler('transaction', '');
$target->safe_psql('postgres', "ALTER SERVER pooled OPTIONS (SET port '$port')");
like(app_sql($target, q{SELECT ok, detail, hint IS NULL FROM tablesync_check('plain') WHERE check_name = 'session'}),
	qr/^t\|a connection pooler .*its role makes them read-only, with errors instead of hidden rows.*\|t$/, 'the statements do it');
app_sql($target, q{SELECT tablesync_add('items', 'pooled', 'public.items')});
is(run_counts($target, 'items'), 'succeeded|20000|0|0', 'money too');
is_replica($source, $target, 'items', 'items', 'identical');
like(app_fails($target, q{SELECT tablesync_add('guarded', 'pooled', 'public.guarded'); SELECT tablesync_run('guarded')}), qr/row-level security/, 'and policies are an error');
$source->safe_psql('postgres', q{ALTER ROLE reader SET intervalstyle = 'sql_standard'});
stop_poolers();
$port = start_pooler('transaction', '');
$target->safe_psql('postgres', "ALTER SERVER pooled OPTIONS (SET port '$port')");
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
like(app_fails($target, q{SELECT tablesync_run('plain')}), qr/IntervalStyle is sql_standard/, 'values in another form are refused');
$source->safe_psql('postgres', q{ALTER ROLE reader RESET ALL});
stop_poolers();

# --- statement pooling ---

$port = start_pooler('statement', '');
$target->safe_psql('postgres', "ALTER SERVER pooled OPTIONS (SET port '$port')");
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
like(app_fails($target, q{SELECT tablesync_run('plain')}), qr/ERROR:  0A000: the connection pooler before the source allows no transactions.*HINT:  Let it use pool_mode/s, 'statement pooling is refused clearly');
like(app_fails($target, q{SELECT tablesync_add('another', 'pooled', 'public.plain')}), qr/ERROR:  0A000: the connection pooler before/, 'also when a replica is added');
stop_poolers();

done_testing();
