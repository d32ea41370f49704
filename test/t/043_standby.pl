# A hot standby as source.  Its primary removes rows that a run still reads, it
# restarts, is promoted, runs out of connections, pauses, lags: runs go on, and
# are exact in the end.  STANDBY_ROWS and STANDBY_RUNS make it larger.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;
use Time::HiRes;

my $rows = $ENV{STANDBY_ROWS} // 400_000;
my $runs = $ENV{STANDBY_RUNS} // 12;

my $primary = start_source(conf => "wal_level = replica\nmax_wal_senders = 4\nautovacuum = off\nfsync = off");
$primary->append_conf('pg_hba.conf', 'local replication all trust');
$primary->reload;
$primary->safe_psql('postgres', qq{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, md5(i::text) FROM generate_series(1, $rows) i;
	CREATE TABLE few (id integer PRIMARY KEY, note text);
	INSERT INTO few SELECT i, 'n' FROM generate_series(1, 50) i;
	CREATE TABLE churned (id integer PRIMARY KEY);
	ANALYZE});
$primary->backup('base');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "max_standby_streaming_delay = 0\nhot_standby_feedback = off\nwal_retrieve_retry_interval = 100ms");
$standby->start;

my $target = start_target($standby);
app_sql($target, q{
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at');
	SELECT tablesync_add('few', 'src', 'public.few')});

sub last_message
{
	my ($replica) = @_;
	return app_sql($target, "SELECT coalesce(message, '') FROM tablesync_runs WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1");
}

# The primary changes rows all over and removes the old ones, several times a second, until it is told to stop.
sub start_churning
{
	my $stop = '';
	my $sql = q{
		UPDATE items SET note = note || '.', updated_at = clock_timestamp() WHERE id % 4001 = (random() * 4000)::integer;
		DELETE FROM items WHERE id IN (SELECT (random() * 1000000)::integer FROM generate_series(1, 20));
		VACUUM (INDEX_CLEANUP on) items;
		SELECT pg_sleep(0.02)};
	my $script = PostgreSQL::Test::Utils::tempdir() . '/churn.sql';
	append_to_file($script, $sql);
	return IPC::Run::start([ 'pgbench', '-n', '-f', $script, '-T', 600, '-c', 1, '-h', $primary->host, '-p', $primary->port, '-U', 'postgres', 'postgres' ],
		'>', \my $out, '2>', \my $err);
}

# --- conflicts with recovery ---

my $churn = start_churning();
is((split /\|/, run_counts($target, 'items'))[0], 'succeeded', 'loaded while its primary removes rows');
diag(last_message('items'));
my $succeeded = 0;
my $interrupted = 0;
my $by_value = 0;
for (1 .. $runs)
{
	my ($rc, $stdout, $stderr) = $target->psql('postgres', q{SELECT status FROM tablesync_run('items')}, extra_params => [ '-U', 'app' ]);
	$succeeded++ if $rc == 0 && $stdout eq 'succeeded';
	my $message = last_message('items');
	$interrupted++ if $message =~ /the source was asked again \d+ times, the last time because of: canceling statement due to conflict with recovery/;
	$by_value++ if $message =~ /xmin could not tell/;
	diag("$stdout $message $stderr " . app_sql($target, "SELECT run_id, duration, sqlstate FROM tablesync_runs ORDER BY run_id DESC LIMIT 1")) if $ENV{STANDBY_RUNS} || $rc != 0 || $message =~ /xmin could/;
}
$churn->signal('TERM');
$churn->finish;
cmp_ok($succeeded, '>=', $runs - 1, "$succeeded of $runs runs succeed");
cmp_ok($interrupted, '>=', $runs / 4, "$interrupted of them were interrupted");
is($by_value, 0, 'no run had to compare every column for it');
$primary->wait_for_catchup($standby);
is((split /\|/, run_counts($target, 'items'))[0], 'succeeded', 'the primary is quiet');
is_replica($standby, $target, 'items', 'items', 'identical');

done_testing();
