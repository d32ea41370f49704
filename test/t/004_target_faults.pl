# What may happen to the worker, the target server and the replica.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 1000) i;
	CREATE TABLE steps (id integer PRIMARY KEY, note varchar(10));
	INSERT INTO steps SELECT i, 's' FROM generate_series(1, 2000) i});
app_sql($target, "SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at')");

my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'tablesync run'};
my $waits_at_source = q{SELECT count(*) = 1 FROM pg_stat_activity
	WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'};

sub change_something
{
	$source->safe_psql('postgres', q{UPDATE items SET note = note || '+', updated_at = clock_timestamp() WHERE id % 100 = 0});
	return;
}

sub start_blocked_run
{
	my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
	wait_until($source, $waits_at_source);
	return $run_id;
}

is(run_counts($target, 'items'), 'succeeded|1000|0|0', 'loaded');

# --- one run at a time ---

my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE items');
my $run_id = start_blocked_run();
is(app_sql($target, 'SELECT state FROM tablesync_status'), 'running', 'status: running');
is(app_sql($target, "SELECT run_id, phase, percent IS NULL OR percent BETWEEN 0 AND 100 FROM tablesync_progress"),
	"$run_id|scan|t", 'progress');
is(app_sql($target, "SELECT status, run_id, message FROM tablesync_run('items')"),
	"already running|$run_id|run $run_id is going on", 'a second run does not queue');
is(app_sql($target, "SELECT tablesync_wait($run_id, '0.1 s')"), 'running', 'wait with a timeout');
like(app_fails($target, "SELECT tablesync_remove('items')"), qr/ERROR:  55006: a run for replica public.items is going on/, 'not removed while running');
$locker->query_safe('COMMIT');
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'it ends');

# many callers at once
my @callers = map {
	my ($in, $out, $err) = ('', '', '');
	my $handle = IPC::Run::start(
		[ 'psql', '-XAtq', '-U', 'app', '-d', $target->connstr('postgres'), '-c', "SELECT status FROM tablesync_run('items')" ],
		'<', \$in, '>', \my $o, '2>', \my $e);
	{ handle => $handle, out => \$o, err => \$e };
} 1 .. 30;
$_->{handle}->finish for @callers;
my %statuses;
$statuses{ ${ $_->{out} } =~ s/\n//r . ${ $_->{err} } }++ for @callers;
is(join(',', sort keys %statuses), 'already running,succeeded', '30 calls at once: each either runs or returns at once');

# --- cancelled ---

sub cancelled
{
	my ($run_id, $name) = @_;
	is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'cancelled', "$name: recorded as cancelled");
	wait_until($source, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%'});
	is($target->safe_psql('postgres', 'SELECT count(*) FROM tablesync.live_runs()'), 0, "$name: nothing left behind");
	return;
}

change_something();
$locker->query_safe('BEGIN; LOCK TABLE items');
$run_id = start_blocked_run();
is(app_sql($target, "SELECT tablesync_cancel('items')"), 't', 'tablesync_cancel');
cancelled($run_id, 'tablesync_cancel');
is(app_sql($target, "SELECT tablesync_cancel('items')"), 'f', 'nothing left to cancel');

$run_id = start_blocked_run();
$target->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM ($worker) w");
cancelled($run_id, 'pg_terminate_backend');

# Ctrl-C in psql
my $psql = IPC::Run::start(
	[ 'psql', '-XAtq', '-U', 'app', '-d', $target->connstr('postgres'), '-c', "SELECT * FROM tablesync_run('items')" ],
	'<', \undef, '>', \my $psql_out, '2>', \my $psql_err);
wait_until($source, $waits_at_source);
$psql->signal('INT');
$psql->finish;
like($psql_err, qr/canceling statement due to user request/, 'Ctrl-C in psql');
$run_id = app_sql($target, 'SELECT max(run_id) FROM tablesync_runs');
cancelled($run_id, 'Ctrl-C');

# fast shutdown
$run_id = start_blocked_run();
$target->stop('fast');
$target->start;
is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'cancelled', 'fast shutdown: recorded as cancelled');
$locker->query_safe('COMMIT');
is(run_counts($target, 'items'), 'succeeded|0|10|0', 'the next run is exact');
is_replica($source, $target, 'items', 'items', 'identical');

# --- crashed ---

change_something();
$locker->query_safe('BEGIN; LOCK TABLE items');
$run_id = start_blocked_run();
kill 'KILL', $target->safe_psql('postgres', $worker);
$locker->query_safe('COMMIT');
$target->poll_query_until('postgres', "SELECT count(*) = 0 FROM ($worker) w");
is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'crashed', 'kill -9: crashed');
is(app_sql($target, 'SELECT state FROM tablesync_status'), 'failed', 'status says failed');
is(run_counts($target, 'items'), 'succeeded|0|10|0', 'the next run completes');
is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'crashed', 'and the old one stays crashed');
is_replica($source, $target, 'items', 'items', 'identical');

# --- a load resumes ---

app_sql($target, "SELECT tablesync_add('steps', 'src', 'public.steps', chunk_rows => 50, max_source_load => 0.001)");
my $loading = "SELECT load_position[1]::integer BETWEEN 100 AND 1900 FROM tablesync.replica WHERE replica = 'steps'::regclass";

for my $crash ('worker', 'postmaster')
{
	$run_id = app_sql($target, "SELECT run_id FROM tablesync_run('steps', wait => false)");
	wait_until($target, $loading);
	is(app_sql($target, "SELECT state FROM tablesync_status WHERE replica = 'steps'::regclass"), 'loading', 'status: loading');
	wait_until($target, "SELECT phase = 'load' AND throttled_for > '0' AND percent < 100 AND eta > '0' FROM tablesync_progress");
	my $before = app_sql($target, 'SELECT count(*) FROM steps');
	if ($crash eq 'worker')
	{
		kill 'KILL', $target->safe_psql('postgres', $worker);
		$target->poll_query_until('postgres', "SELECT count(*) = 0 FROM ($worker) w");
	}
	else
	{
		my $postmaster = $target->{_pid};
		my $worker_pid = $target->safe_psql('postgres', $worker);
		$target->kill9;
		# they take a moment to go, and to be reaped
		for (1 .. 300) { last if !kill(0, $postmaster) && !kill(0, $worker_pid); select(undef, undef, undef, 0.1) }
		$target->start;
	}
	is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'crashed', "kill -9 of the $crash: crashed");
	cmp_ok(app_sql($target, 'SELECT count(*) FROM steps'), '>=', $before, 'what was loaded stays');
	$loading =~ s/BETWEEN 100 AND/BETWEEN load_position[1]::integer AND/;
}
# changes behind the position
$source->safe_psql('postgres', "UPDATE steps SET note = 'new' WHERE id < 20; DELETE FROM steps WHERE id = 50");
app_sql($target, "SELECT tablesync_alter('steps', max_source_load => 1)");
my $left = 1999 + 1 - app_sql($target, 'SELECT count(*) FROM steps');
is(run_counts($target, 'steps'), "succeeded|$left|19|1", 'the load goes on where it stopped');
is_replica($source, $target, 'steps', 'steps', 'identical');

# --- a caller is cancelled before the postmaster has started its worker ---

my $postmaster = (split /\n/, PostgreSQL::Test::Utils::slurp_file($target->data_dir . '/postmaster.pid'))[0];
my $superuser = session($target);
my $last_run = app_sql($target, 'SELECT max(run_id) FROM tablesync_runs');
my $caller = session($target, '-U', 'app', '-v', 'ON_ERROR_STOP=0');
my $caller_pid = $caller->query_safe('SELECT pg_backend_pid()');
kill 'STOP', $postmaster;
$caller->query_until(qr/asked/, "\\echo asked\nSELECT tablesync_run('items');\n");
my $waits_for = '';
for (1 .. 500)
{
	$waits_for = $superuser->query_safe("SELECT wait_event FROM pg_stat_activity WHERE pid = $caller_pid AND state = 'active' AND wait_event ILIKE 'BgWorker%'");
	last if $waits_for ne '';
	select undef, undef, undef, 0.02;
}
is(lc $waits_for, 'bgworkershutdown', 'the caller waits for a worker');
$superuser->query_safe("SELECT pg_cancel_backend($caller_pid)");
for (1 .. 500)
{
	last if $superuser->query_safe("SELECT state FROM pg_stat_activity WHERE pid = $caller_pid") eq 'idle';
	select undef, undef, undef, 0.02;
}
kill 'CONT', $postmaster;
$caller->quit;
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'another run meets nobody');
is(app_sql($target, "SELECT count(*) FROM tablesync_runs WHERE run_id > $last_run"), 1, 'and the one that was not started never is');

# a run that nobody waits for is in the queue, whenever its worker comes
$caller = session($target, '-U', 'app');
kill 'STOP', $postmaster;
$run_id = $caller->query_safe("SELECT run_id FROM tablesync_run('items', wait => false)");
is($caller->query_safe('SELECT run_id, phase FROM tablesync_progress'), "$run_id|queued", 'wait => false: the caller does not wait for a worker');
kill 'CONT', $postmaster;
is($caller->query_safe("SELECT tablesync_wait($run_id)"), 'succeeded', 'which comes');
$caller->quit;
$superuser->quit;

# --- the replica is locked, or written to ---

change_something();
my $user = session($target);
$user->query_safe("BEGIN; UPDATE items SET note = 'mine' WHERE id = 1");
$run_id = app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event_type = 'Lock'});
is($source->safe_psql('postgres', q{SELECT state, backend_xmin IS NULL, xact_start IS NULL FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%'}),
	'idle|t|t', 'no transaction is open at the source while we wait for a lock');
$user->query_safe('COMMIT');
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'the run goes on when the lock is gone');
is_replica($source, $target, 'items', 'items', 'and has seen what was written meanwhile');
app_sql($target, "UPDATE items SET note = 'mine' WHERE id = 1");
is(run_counts($target, 'items'), 'succeeded|0|1|0', 'so is an edit between two runs');
is_replica($source, $target, 'items', 'items', 'identical');
app_sql($target, "SELECT tablesync_alter('items', fingerprint => 'version')");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'another fingerprint');
app_sql($target, "UPDATE items SET note = 'mine' WHERE id = 1");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'an edit that leaves the version alone is not seen by version');
app_sql($target, "SELECT tablesync_alter('items', fingerprint => 'row')");
is(run_counts($target, 'items'), 'succeeded|0|1|0', 'and repaired by row');
is_replica($source, $target, 'items', 'items', 'identical');
app_sql($target, "SELECT tablesync_alter('items', fingerprint => 'xmin')");

app_sql($target, "DELETE FROM items WHERE id <= 10; INSERT INTO items VALUES (-5, 'mine', now())");
is(run_counts($target, 'items'), 'succeeded|10|0|1', 'edits of the replica are repaired');

change_something();
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.lock_timeout = '50ms'});
$user->query_safe('BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE');
like(app_fails($target, "SELECT tablesync_run('items')"), qr/ERROR:  55P03: canceling statement due to lock timeout/, 'lock held for too long');
$user->query_safe('COMMIT');
$user->quit;
$target->safe_psql('postgres', 'ALTER ROLE app RESET tablesync.lock_timeout');
is(run_counts($target, 'items'), 'succeeded|0|10|0', 'next time it works');

# --- rows that were there before the first run ---

app_sql($target, q{
	CREATE TABLE mine AS SELECT * FROM items;
	ALTER TABLE mine ADD PRIMARY KEY (id);
	ALTER TABLE mine ALTER updated_at SET NOT NULL;
	UPDATE mine SET note = 'stale' WHERE id % 7 = 0;
	SELECT tablesync_add('mine', 'items_source', version_column => 'updated_at')});
is(run_counts($target, 'mine'), 'succeeded|0|142|0', 'the first run trusts no version');
is_replica($source, $target, 'items', 'mine', 'adopted rows are identical');
is(run_counts($target, 'mine'), 'succeeded|0|0|0', 'later ones do');
app_sql($target, "SELECT tablesync_remove('mine', drop_replica => true)");

app_sql($target, q{
	SELECT tablesync_add('mine', 'items_source', version_column => 'updated_at', chunk_rows => 100);
	INSERT INTO mine SELECT id, 'mine', updated_at FROM items WHERE id = 500});
is(run_counts($target, 'mine'), 'succeeded|999|1|0', 'a row of somebody else before the load');
is_replica($source, $target, 'items', 'mine', 'identical');
app_sql($target, "SELECT tablesync_remove('mine', drop_replica => true)");

# NULLs that the source can't have
app_sql($target, q{
	CREATE TABLE mine (id integer PRIMARY KEY, note text, updated_at timestamp);
	SELECT tablesync_add('mine', 'items_source', version_column => 'updated_at', chunk_rows => 100)});
is(run_counts($target, 'mine'), 'succeeded|1000|0|0', 'a replica that allows more than its source');
app_sql($target, 'UPDATE mine SET updated_at = NULL');
is(run_counts($target, 'mine'), 'succeeded|0|1000|0', 'NULLs of somebody else are repaired');
is_replica($source, $target, 'items', 'mine', 'identical');
app_sql($target, "SELECT tablesync_remove('mine', drop_replica => true)");

# --- who listens hears of failures, but no values ---

app_sql($target, q{ALTER TABLE items ADD CONSTRAINT short CHECK (length(note) < 20)});
$source->safe_psql('postgres', q{UPDATE items SET note = 'secret secret secret secret', updated_at = clock_timestamp() WHERE id = 7});
my $listener = session($target);
$listener->query_safe('LISTEN tablesync');
like(app_fails($target, "SELECT tablesync_run('items')"), qr/ERROR:  23514: .*"short"\nDETAIL:  Failing row contains \(7, secret/s, 'the owner sees the row that fails');
my $heard = $listener->query('SELECT 1');
like($heard, qr/"event" : "run_failed".*"replica" : "public.items", "sqlstate" : "23514"/, 'others hear that the run has failed');
unlike($heard, qr/secret|short/, 'and not why');
$listener->quit;
app_sql($target, 'ALTER TABLE items DROP CONSTRAINT short');
is(run_counts($target, 'items'), 'succeeded|0|1|0', 'mended');

# --- dropped ---

# by xmin the run holds the replica while it asks the source (execute/hold.c), so
# who drops it waits for the answer; then the drop comes first, and the run, which
# needs the replica again to apply, has nothing to record
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'nothing to do');
change_something();
$locker->query_safe('BEGIN; LOCK TABLE items');
$psql = IPC::Run::start(
	[ 'psql', '-XAtq', '-U', 'app', '-d', $target->connstr('postgres'), '-c', "SELECT * FROM tablesync_run('items')" ],
	'<', \undef, '>', \$psql_out, '2>', \$psql_err);
wait_until($source, $waits_at_source);
$run_id = app_sql($target, 'SELECT max(run_id) FROM tablesync_runs');
my $dropper = session($target, '-U', 'app');
$dropper->query_until(qr/asked/, "\\echo asked\nDROP TABLE items;\n");
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'DROP TABLE items%' AND wait_event_type = 'Lock'});
$locker->query_safe('COMMIT');
$locker->quit;
$psql->finish;
$dropper->query_safe('SELECT 1');	# has ended, too
$dropper->quit;
like($psql_err, qr/ERROR:  background worker for replica with OID \d+ ended before it could record its run/, 'replica dropped while running: the caller gets an error');
is(app_sql($target, "SELECT count(*) FROM tablesync_runs WHERE run_id = $run_id"), 0, 'the history goes with it');
is($target->safe_psql('postgres', "SELECT count(*) FROM ($worker) w"), 0, 'the worker has ended');
unlike(PostgreSQL::Test::Utils::slurp_file($target->logfile), qr/signal 11|signal 6/, 'and nothing has crashed but what we have killed');

# --- no slot ---

$target->append_conf('postgresql.conf', 'max_worker_processes = 0');
$target->restart;
like(app_fails($target, "SELECT tablesync_run('steps')"),
	qr/ERROR:  53000: no background worker is available for replica public.steps.*HINT:  Increase max_worker_processes/s, 'no worker slot');
$target->append_conf('postgresql.conf', 'max_worker_processes = 16');
$target->restart;

# --- restored from a dump: configuration and history kept, paused ---

my $dump = $target->basedir . '/dump.sql';
$target->command_ok([ 'pg_dump', '-U', 'postgres', '-f', $dump, $target->connstr('postgres') ], 'dumped');
$target->safe_psql('postgres', 'CREATE DATABASE restored');
$target->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-U', 'postgres', '-f', $dump, '-d', $target->connstr('restored') ], 'restored');
is($target->safe_psql('restored', 'SELECT replica, state, rows FROM tablesync_status'), 'steps|paused|1999', 'restored replicas are paused');
is($target->safe_psql('restored', "SELECT count(*) > 2 FROM tablesync_runs"), 't', 'with their history');
my ($rc, $out, $err) = $target->psql('restored', "SELECT tablesync_run('steps')", extra_params => [ '-U', 'app' ]);
like($err, qr/replica public.steps was copied from another database\nHINT:  Use tablesync_resume\('public.steps'\)/, 'and say so');
$target->psql('restored', "SELECT tablesync_resume('steps')", extra_params => [ '-U', 'app' ]);
is($target->safe_psql('restored', "SELECT status, inserted FROM tablesync_run('steps')", extra_params => [ '-U', 'app' ]),
	'succeeded|0', 'resumed');

done_testing();
