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

my $rows = $ENV{STANDBY_ROWS} // 300_000;
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
	$interrupted++ if $message =~ /the source was asked again (once|\d+ times)(, the last time)?,? because of: canceling statement due to conflict with recovery/;
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

# --- a run that gives up says what helps ---

$target->safe_psql('postgres', 'ALTER ROLE app SET tablesync.retry_timeout = 0');
app_sql($target, q{SELECT tablesync_alter('items', consistency => 'snapshot')});
$churn = start_churning();
my $stderr = '';
for (1 .. 50)
{
	$target->psql('postgres', q{SELECT tablesync_run('items')}, extra_params => [ '-U', 'app' ], stderr => \$stderr);
	last if $stderr =~ /canceling statement/;
}
$churn->signal('TERM');
$churn->finish;
like($stderr, qr/ERROR:  canceling statement due to conflict with recovery\n.*HINT:  .*hot_standby_feedback = on there, or increase max_standby_streaming_delay/s, 'the hint');
$target->safe_psql('postgres', 'ALTER ROLE app RESET tablesync.retry_timeout');
app_sql($target, q{SELECT tablesync_alter('items', consistency => 'auto')});

# --- recovery is paused ---

$primary->wait_for_catchup($standby);
is(run_counts($target, 'few'), 'succeeded|50|0|0', 'loaded');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
wait_until($standby, q{SELECT pg_get_wal_replay_pause_state() = 'paused'});
$primary->safe_psql('postgres', q{UPDATE few SET note = 'unseen' WHERE id = 1});
run_counts($target, 'few');
is(run_counts($target, 'few'), 'succeeded|0|0|0', 'paused');
is(last_message('few'), 'the source is a hot standby on which no transaction has ended since the last run: its primary is quiet, or its recovery is paused', 'and it says so');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
$primary->wait_for_catchup($standby);
is(run_counts($target, 'few'), 'succeeded|0|1|0', 'resumed');
is(last_message('few'), '', 'nothing to say');

# --- no connection is left ---

$primary->safe_psql('postgres', 'ALTER ROLE reader CONNECTION LIMIT 1');
$primary->wait_for_catchup($standby);
sleep 2;    # our own connection stays for a second
my $reader = $standby->background_psql('postgres', extra_params => [ '-U', 'reader', '-h', '127.0.0.1' ]);
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('few', wait => false)});
wait_until($target, "SELECT reason LIKE 'the source can''t be reached (SQLSTATE 08001): asking again' FROM tablesync_progress WHERE run_id = $run_id");
$reader->quit;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'the run waits for a connection');
like(last_message('few'), qr/^the source was asked again .* because of: could not connect to server "src": .*too many connections for role "reader"/, 'and says so');
$primary->safe_psql('postgres', 'ALTER ROLE reader CONNECTION LIMIT -1');
$primary->wait_for_catchup($standby);

# Begin a run of few that waits for a lock which the primary has, as all of it does after a while.
my $locker;

sub start_blocked_run
{
	$locker = session($primary);
	$primary->safe_psql('postgres', q{UPDATE few SET note = note || '+' WHERE id % 10 = 0; DELETE FROM few WHERE id = (SELECT max(id) FROM few)});
	$locker->query_safe('BEGIN; LOCK TABLE few');
	$primary->safe_psql('postgres', 'SELECT pg_switch_wal()');
	wait_until($standby, q{SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'few'::regclass});
	my $id = app_sql($target, q{SELECT run_id FROM tablesync_run('few', wait => false)});
	wait_until($standby, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
	return $id;
}

# --- a restart ---

$run_id = start_blocked_run();
$standby->restart;
$locker->query_safe('COMMIT');
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'restarted during the run');
like(last_message('few'), qr/^the source was asked again /, 'and says so');
is_replica($standby, $target, 'few', 'few', 'identical');
$locker->quit;

# --- another copy of the primary in its place ---

my $rebuilt = PostgreSQL::Test::Cluster->new('rebuilt');
$primary->backup('second');
$rebuilt->init_from_backup($primary, 'second', has_streaming => 1);
$rebuilt->start;
$primary->safe_psql('postgres', q{UPDATE few SET note = note || '-' WHERE id % 7 = 0});
$primary->wait_for_catchup($rebuilt);
$target->safe_psql('postgres', "ALTER SERVER src OPTIONS (SET port '" . $rebuilt->port . "')");
like(run_counts($target, 'few'), qr/^succeeded\|0\|[67]\|0$/, 'rebuilt');
is_replica($rebuilt, $target, 'few', 'few', 'identical');
$target->safe_psql('postgres', "ALTER SERVER src OPTIONS (SET port '" . $standby->port . "')");
$rebuilt->stop('immediate');
$primary->wait_for_catchup($standby);
is(run_counts($target, 'few'), 'succeeded|0|0|0', 'and back');

# --- a promotion ---

$run_id = start_blocked_run();
$primary->stop('immediate');
$standby->promote;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'promoted during the run');
is_replica($standby, $target, 'few', 'few', 'identical');
$standby->safe_psql('postgres', q{DELETE FROM items WHERE id % 1000 = 1; UPDATE few SET note = 'p'});
is(run_counts($target, 'few'), 'succeeded|0|48|0', 'changes of the new primary');
like(run_counts($target, 'items'), qr/^succeeded/, 'changes of the new primary');
is_replica($standby, $target, 'items', 'items', 'identical');
is(app_sql($target, q{SELECT count(*) FROM tablesync_alerts WHERE kind <> 'drift'}), 0, 'no alert is left');

done_testing();
