# Whatever drops the extension takes its jobs of pg_cron along, in the same
# transaction.  Where pg_cron lives in another database, a warning has the
# statement that does it.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my $source = start_source();
$source->safe_psql('postgres', 'CREATE TABLE items (id integer PRIMARY KEY); INSERT INTO items VALUES (1)');
my $port = $source->port;

# The extension, which belongs to role admin, with two replicas.
sub set_up
{
	my ($node, $schema) = @_;
	$schema //= 'public';
	$node->safe_psql('postgres', qq{
		SET client_min_messages = warning;
		CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA public;
		CREATE SERVER IF NOT EXISTS src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
		GRANT USAGE ON FOREIGN SERVER src TO app;
		CREATE USER MAPPING IF NOT EXISTS FOR app SERVER src OPTIONS (user 'reader', password 'read-only');
		SET ROLE admin;
		CREATE EXTENSION tablesync SCHEMA $schema});
	app_sql($node, qq{
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS one, two;
		DROP FOREIGN TABLE IF EXISTS one_source, two_source;
		SELECT $schema.tablesync_add('public.one', 'src', 'public.items');
		SELECT $schema.tablesync_add('public.two', 'src', 'public.items')});
}

my $others = 'nightly tablesync,tablesync 1.2: template1';
my $ours = "nightly tablesync,tablesync 1.2: template1,tablesync N: postgres.public.one,tablesync N: postgres.public.two,tablesync watch N";

sub jobs
{
	my ($node, $database) = @_;
	return $node->safe_psql($database, q{SELECT string_agg(regexp_replace(jobname, '\d+\.\d{3,}', 'N'), ',' ORDER BY jobname COLLATE "C") FROM cron.job});
}

# The statement that a hint ends with.
sub statement_of
{
	my ($stderr, $pattern) = @_;
	my ($statement) = $stderr =~ /HINT: .*?($pattern.*?;)/ or die "no statement in: $stderr";
	return $statement;
}

# --- pg_cron in the same database ---

my $here = start_target($source, name => 'here', conf => "shared_preload_libraries = 'pg_cron'\ncron.use_background_workers = on");
$here->safe_psql('postgres', q{
	DROP EXTENSION tablesync;
	CREATE EXTENSION pg_cron;
	GRANT USAGE ON SCHEMA cron TO app;
	CREATE ROLE admin LOGIN SUPERUSER;
	CREATE ROLE dba LOGIN;
	GRANT CREATE ON DATABASE postgres TO dba, app;
	SELECT cron.schedule('nightly tablesync', '0 0 1 1 *', 'SELECT 1');
	SELECT cron.schedule('tablesync 1.2: template1', '0 0 1 1 *', 'SELECT 1')});

sub set_up_here
{
	my ($schema) = @_;
	set_up($here, $schema);
	$schema //= 'public';
	app_sql($here, "SELECT $schema.tablesync_schedule(r, '0 0 1 1 *') FROM unnest('{public.one,public.two}'::regclass[]) r");
}

# The extension is dropped without a warning, and only the jobs of others are left.
sub dropped_by
{
	my ($statement, $role) = @_;
	is(jobs($here, 'postgres'), $ours, 'there are jobs');
	my ($rc, $stdout, $stderr) = $here->psql('postgres', "SET client_min_messages = warning; $statement", extra_params => [ '-U', $role // 'postgres' ]);
	is("$rc$stderr", '0', "done: $statement");
	is($here->safe_psql('postgres', q{SELECT count(*) FROM pg_extension WHERE extname = 'tablesync'}), 0, 'the extension is gone');
	is(jobs($here, 'postgres'), $others, 'and its jobs');
}

set_up_here();
app_sql($here, "SELECT tablesync_run('one')");
dropped_by('DROP EXTENSION tablesync');
is(app_sql($here, q{INSERT INTO one VALUES (2); SELECT count(*) || ' ' || (SELECT count(*) FROM one_source) FROM one}), '2 1', 'the replica is an ordinary table, the foreign table stays');
set_up_here();
dropped_by(q{DO 'BEGIN EXECUTE ''DROP EXTENSION tablesync CASCADE''; END'});
set_up_here();
dropped_by('DROP EXTENSION postgres_fdw CASCADE');
set_up_here();
dropped_by('DROP OWNED BY admin CASCADE', 'admin');
# by the owner of the schema, who owns nothing of the extension
$here->safe_psql('postgres', 'CREATE SCHEMA house AUTHORIZATION dba; GRANT USAGE ON SCHEMA house TO app');
set_up_here('house');
dropped_by('DROP SCHEMA house CASCADE', 'dba');

# what is not dropped after all keeps its jobs
set_up_here();
$here->safe_psql('postgres', 'BEGIN; DROP EXTENSION tablesync; ROLLBACK');
is(jobs($here, 'postgres'), $ours, 'a drop that is rolled back');
isnt($here->psql('postgres', 'DROP EXTENSION postgres_fdw'), 0, 'a drop that is refused');
isnt($here->psql('postgres', 'DROP EXTENSION tablesync', extra_params => [ '-U', 'app' ]), 0, 'a drop by somebody who may not');
$here->safe_psql('postgres', q{
	CREATE SCHEMA other;
	CREATE TABLE other.t ();
	DROP SCHEMA other CASCADE;
	CREATE TABLE t ();
	DROP TABLE t});
is(jobs($here, 'postgres'), $ours, 'the jobs are still there');

# the library is gone
$here->safe_psql('postgres', q{
	SET allow_system_table_mods = on;
	UPDATE pg_proc SET probin = '$libdir/no_such_library' WHERE proname = 'watch_drop'});
my ($rc, $stdout, $stderr) = $here->psql('postgres', 'DROP EXTENSION tablesync');
like("$rc$stderr", qr/^0.*WARNING:  if this drops the extension tablesync, its jobs of pg_cron stay: could not access file.*HINT:  Look for them in cron.job/s,
	'without the library: dropped with a warning');
is($here->safe_psql('postgres', q{SELECT count(cron.unschedule(jobid)) FROM cron.job WHERE command LIKE '%tablesync.%'}), 3, 'which is right');

set_up_here();
($rc, $stdout, $stderr) = $here->psql('postgres', 'SET client_min_messages = warning; DROP EXTENSION pg_cron, tablesync');
is("$rc$stderr", '0', 'pg_cron goes with the extension');

# a superuser who drops the extension runs nobody else's code
set_up($here);
app_sql($here, q{
	CREATE SCHEMA cron;
	CREATE TABLE cron.job AS SELECT 7 AS jobid, format('tablesync %s.1:', oid) AS jobname FROM pg_database WHERE datname = 'postgres';
	CREATE FUNCTION cron.unschedule(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN ALTER ROLE app SUPERUSER; RETURN true; END'});
$here->safe_psql('postgres', 'DROP EXTENSION tablesync');
is($here->safe_psql('postgres', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'app'}), 'f', 'a forged function is not called');

# --- pg_cron in another database ---

my $elsewhere = start_target($source, name => 'elsewhere', conf => "shared_preload_libraries = 'pg_cron'\ncron.database_name = 'cronhome'");
($rc, $stdout, $stderr) = $elsewhere->psql('postgres', 'DROP EXTENSION tablesync');
is("$rc$stderr", '0', 'nothing scheduled, no warning');
$elsewhere->safe_psql('postgres', 'CREATE ROLE admin SUPERUSER; CREATE DATABASE cronhome');
$elsewhere->safe_psql('cronhome', q{
	CREATE EXTENSION pg_cron;
	SELECT cron.schedule('nightly tablesync', '0 0 1 1 *', 'SELECT 1');
	SELECT cron.schedule('tablesync 1.2: template1', '0 0 1 1 *', 'SELECT 1')});

sub set_up_elsewhere
{
	set_up($elsewhere);
	for my $replica (qw(one two))
	{
		my $hint = app_fails($elsewhere, "SELECT tablesync_schedule('$replica', '0 0 1 1 *')");
		my $job = $elsewhere->safe_psql('cronhome', statement_of($hint, 'SELECT cron.schedule_in_database'));
		app_sql($elsewhere, "SELECT tablesync_schedule('$replica', '0 0 1 1 *', job_id => $job)");
	}
	# as docs/operations.md has it
	$elsewhere->safe_psql('cronhome', q{SELECT cron.schedule_in_database('tablesync watch postgres app', '* * * * *', 'SELECT tablesync.watch()', 'postgres', 'app')});
}

sub warned_by
{
	my ($detail) = @_;
	my ($rc, $stdout, $stderr) = $elsewhere->psql('postgres', 'DROP EXTENSION tablesync');
	like("$rc$stderr", qr/^0.*WARNING:  jobs of pg_cron for replicas of this database are still there.*DETAIL:  $detail.*HINT:  In /s, 'dropped with a warning');
	is(() = $stderr =~ /WARNING/g, 1, 'only one');
	return statement_of($stderr, 'SELECT cron.unschedule');
}

set_up_elsewhere();
$elsewhere->safe_psql('cronhome', warned_by('pg_cron is in database "cronhome".'));
is(jobs($elsewhere, 'cronhome'), $others, 'whose statement leaves only the jobs of others');

set_up_elsewhere();
$elsewhere->adjust_conf('postgresql.conf', $_) for qw(shared_preload_libraries cron.database_name);
$elsewhere->restart;
my $statement = warned_by('pg_cron is not loaded.');
$elsewhere->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_cron'\ncron.database_name = 'cronhome'");
$elsewhere->restart;
$elsewhere->safe_psql('cronhome', $statement);
is(jobs($elsewhere, 'cronhome'), $others, 'pg_cron was not loaded: likewise, later');

done_testing();
