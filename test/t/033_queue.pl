# Many replicas: few processes run them, what finds none free waits in the queue,
# and whatever goes wrong with one is not the others' trouble.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(
	source => { conf => "log_connections = on\nmax_connections = 50" },
	target => { conf => "max_worker_processes = 8\nmax_logical_replication_workers = 0" });
my $tables = 40;
$source->safe_psql('postgres', qq{
	SELECT format('CREATE TABLE t%s AS SELECT i AS id, ''n'' || i AS note FROM generate_series(1, 50) i', n) FROM generate_series(1, $tables) n \\gexec
	SELECT format('ALTER TABLE t%s ADD PRIMARY KEY (id)', n) FROM generate_series(1, $tables) n \\gexec});
app_sql($target, "SELECT tablesync_add(format('t%s', n), 'src', format('public.t%s', n)) FROM generate_series(1, $tables) n");

my $workers = q{FROM pg_stat_activity WHERE backend_type = 'tablesync run'};
my $locker = session($source);
my $waits_at_source = q{SELECT count(*) = %d FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%%' AND wait_event_type = 'Lock'};

# How often a log names something since an offset.
sub logged
{
	my ($node, $offset, $pattern) = @_;
	return scalar(() = PostgreSQL::Test::Utils::slurp_file($node->logfile, $offset) =~ /$pattern/g);
}

# No worker of the queue lingers.
sub quiet
{
	wait_until($target, "SELECT count(*) = 0 $workers");
	return;
}

sub state_of
{
	my ($replica) = @_;
	return app_sql($target, "SELECT state FROM tablesync_status WHERE replica = '$replica'::regclass");
}

# --- one call ---

is(app_sql($target, 'SELECT status, count(*), sum(inserted) FROM tablesync_run() GROUP BY 1'), "succeeded|$tables|" . 50 * $tables, 'one call runs all');
is(app_sql($target, 'SELECT count(DISTINCT pid) FROM tablesync.run'), 2, 'by two processes');
is_replica($source, $target, 't7', 't7', 'a replica of many');
my $offset = -s $source->logfile;
$source->safe_psql('postgres', "UPDATE t3 SET note = 'new' WHERE id = 3");
is(app_sql($target, 'SELECT sum(updated) FROM tablesync_run()'), '1', 'again');
is(logged($source, $offset, 'connection authorized: user=reader'), 2, 'over two connections');
is_replica($source, $target, 't3', 't3', 'with a change');

# --- one fails: of itself, by its owner's code, by the end of its worker ---

$source->safe_psql('postgres', 'REVOKE SELECT ON t2 FROM reader');
app_sql($target, q{
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
	CREATE TRIGGER refuse BEFORE UPDATE ON t4 FOR EACH ROW EXECUTE FUNCTION refuse()});
$source->safe_psql('postgres', "UPDATE t4 SET note = 'new' WHERE id = 4; UPDATE t5 SET note = 'new' WHERE id = 5");
my ($rc, $out, $err) = $target->psql('postgres', 'SELECT replica, status, message FROM tablesync_run() ORDER BY run_id', extra_params => [ '-U', 'app', '-v', 'VERBOSITY=verbose' ]);
is($rc, 0, 'two fail: no error');
is(scalar(() = $out =~ /\|succeeded\|/g), $tables - 2, 'all others have run');
like($out, qr/^t2\|failed\|.*permission denied/m, 'one by the source');
like($out, qr/^t4\|failed\|refused$/m, 'one by a trigger');
is(scalar(() = $err =~ /WARNING:  /g), 2, 'a warning for each');
is(app_sql($target, q{SELECT string_agg(replica || ' ' || kind, ', ' ORDER BY replica::text) FROM tablesync_alerts}), 't2 run_failed, t4 run_failed', 'and an alert');
is_replica($source, $target, 't5', 't5', 'a run after a failure');
$source->safe_psql('postgres', 'GRANT SELECT ON t2 TO reader');
app_sql($target, 'DROP TRIGGER refuse ON t4');
is(run_counts($target, $_->[0]), "succeeded|0|$_->[1]|0", "$_->[0] mended") for [ 't2', 0 ], [ 't4', 1 ];

$locker->query_safe('BEGIN; LOCK TABLE t6');
my ($psql_out, $psql_err) = ('', '');
sub start_all
{
	($psql_out, $psql_err) = ('', '');
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-U', 'app', '-d', $target->connstr('postgres'), '-c', 'SELECT replica, status FROM tablesync_run()' ],
		'<', \undef, '>', \$psql_out, '2>', \$psql_err);
	return $psql;
}
my $psql = start_all();
wait_until($source, sprintf($waits_at_source, 1));
wait_until($target, "SELECT count(*) = 1 $workers");    # the other has done the rest
$target->safe_psql('postgres', "SELECT pg_terminate_backend(pid) $workers");
$psql->finish;
like($psql_out, qr/^t6\|cancelled$/m, 'a worker that is terminated takes its run with it');
is(scalar(() = $psql_out =~ /\|succeeded$/mg), $tables - 1, 'and no other');

# --- the caller gives up ---

my $last_run = app_sql($target, 'SELECT max(run_id) FROM tablesync_runs');
$locker->query_safe('COMMIT; BEGIN; LOCK TABLE t1, t2');
$psql = start_all();
wait_until($source, sprintf($waits_at_source, 2));
$psql->signal('INT');
$psql->finish;
like($psql_err, qr/canceling statement due to user request/, 'the caller is cancelled');
quiet();
is(app_sql($target, "SELECT string_agg(replica || ' ' || status, ', ' ORDER BY run_id) FROM tablesync_runs WHERE run_id > $last_run"), 't1 cancelled, t2 cancelled', 'the runs that went on are, and no other begins');
$locker->query_safe('COMMIT');

# --- the queue ---

$offset = -s $source->logfile;
my $log_offset = -s $target->logfile;
$target->safe_psql('postgres', join(";\n", map { 'SELECT tablesync_run(\'t' . (1 + $_ % $tables) . '\', wait => false)' } 1 .. 300) . ';', extra_params => [ '-U', 'app' ]);
wait_until($target, q{SELECT count(*) = 0 FROM tablesync_progress});
is(app_sql($target, "SELECT string_agg(DISTINCT state, ', ') FROM tablesync_status"), 'ok', '300 calls that do not wait, with 8 processes: no error');
cmp_ok(logged($source, $offset, 'connection authorized: user=reader'), '<=', 10, 'over a few connections');
is(logged($target, $log_offset, 'ERROR|FATAL|PANIC'), 0, 'and nothing in the log');
quiet();

$locker->query_safe('BEGIN; LOCK TABLE t1, t2');
my %run = map { $_ => app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(t1 t2);
wait_until($source, sprintf($waits_at_source, 2));
is(app_sql($target, "SELECT replica, status, message FROM tablesync_run('t3', wait => false)"), 't3|queued|it waits for one of the workers that tablesync.max_workers allows', 'the third has to wait');
$run{t3} = app_sql($target, "SELECT run_id FROM tablesync_run('t3', wait => false)");
is(app_sql($target, "SELECT run_id FROM tablesync_run('t3', wait => false)"), $run{t3}, 'who asks again is told of the same run');
is(state_of('t3'), 'queued', 'tablesync_status says so');
is(app_sql($target, q{SELECT run_id, replica, phase FROM tablesync_progress WHERE phase = 'queued'}), "$run{t3}|t3|queued", 'and tablesync_progress');
is(app_sql($target, "SELECT tablesync_wait($run{t3}, '0.1 s')"), 'queued', 'and tablesync_wait()');
is(run_counts($target, 't4'), 'succeeded|0|0|0', 'who waits has a process of his own');
like(app_sql($target, "SELECT status FROM tablesync_run('t1', wait => false)"), qr/already running/, 'what runs already is not queued');

# cancel, pause, remove and drop what waits
$run{$_} = app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") for qw(t5 t6 t8 t9 t10);
is(app_sql($target, "SELECT tablesync_cancel('t5')"), 't', 'what waits can be cancelled');
is(app_sql($target, "SELECT tablesync_wait($run{t5})"), 'cancelled', 'and is recorded as that');
is(app_sql($target, "SELECT status, message FROM tablesync_runs WHERE run_id = $run{t5}"), 'cancelled|the run was cancelled before it started', 'with the reason');
app_sql($target, "SELECT tablesync_pause('t6'); SELECT tablesync_remove('t8')");
app_sql($target, 'DROP TABLE t9; ALTER TABLE t10 RENAME TO renamed');
my $canceller = session($target, '-U', 'app');
$canceller->query_safe("BEGIN; SELECT tablesync_cancel('t3')");
is(app_sql($target, "SELECT tablesync_cancel('t2')"), 't', 'a live run is cancelled');
is(app_sql($target, "SELECT tablesync_wait($run{t2})"), 'cancelled', 'while others wait');
is(app_sql($target, "SELECT tablesync_wait($run{t10})"), 'succeeded', 'a run of a replica that was renamed meanwhile; what somebody is cancelling keeps nobody waiting');
is(app_sql($target, "SELECT status, message FROM tablesync_runs WHERE run_id = $run{t6}"), 'cancelled|the replica was paused before the run could start', 'a paused one is not run');
$canceller->query_safe('ROLLBACK');
is(app_sql($target, "SELECT tablesync_wait($run{t3})"), 'succeeded', 'one that was not cancelled after all');
$canceller->quit;
$locker->query_safe('COMMIT');
is(app_sql($target, "SELECT tablesync_wait($run{t1})"), 'succeeded', 'the first one ends');
is(app_sql($target, 'SELECT count(*) FROM tablesync.queue'), 0, 'the queue is empty');
app_sql($target, "SELECT tablesync_resume('t6')");

# --- a worker of the queue ends in the middle of a run ---

quiet();
$locker->query_safe('BEGIN; LOCK TABLE t1, t2');
%run = map { $_ => app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(t1 t2 t3 t4);
wait_until($source, sprintf($waits_at_source, 2));
$target->safe_psql('postgres', "SELECT pg_terminate_backend(pid) $workers");
wait_until($target, 'SELECT count(*) = 0 FROM tablesync_progress');
is(app_sql($target, "SELECT string_agg(status, ' ' ORDER BY run_id) FROM tablesync_runs WHERE run_id IN ($run{t1}, $run{t2}, $run{t3}, $run{t4})"), 'cancelled cancelled succeeded succeeded', 'terminated: the others are run all the same');

# --- a crash ---

quiet();
%run = map { $_ => app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(t1 t2 t3 t4);
wait_until($source, sprintf($waits_at_source, 2));
$target->stop('immediate');
$locker->query_safe('COMMIT');
$target->start;
is(app_sql($target, "SELECT string_agg(replica || ' ' || state, ', ' ORDER BY replica::text) FROM tablesync_status WHERE replica IN ('t1'::regclass, 't3'::regclass)"), 't1 failed, t3 queued', 'after a crash: what ran has crashed, what waited waits');
is(app_sql($target, "SELECT tablesync_wait($run{t1})"), 'crashed', 'the one');
is(app_sql($target, "SELECT tablesync_wait($run{t3})"), 'succeeded', 'who waits for the other has it started');
quiet();
$locker->query_safe('BEGIN; LOCK TABLE t1, t2');
%run = map { $_ => app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(t1 t2 t3);
wait_until($source, sprintf($waits_at_source, 2));
$target->stop('immediate');
$locker->query_safe('COMMIT');
$target->start;
app_sql($target, 'SELECT tablesync.watch()');
wait_until($target, 'SELECT count(*) = 0 FROM tablesync_progress');
is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run{t3}"), 'succeeded', 'or the watchdog has');

# --- owners ---

$target->safe_psql('postgres', qq{
	CREATE ROLE second LOGIN;
	GRANT CREATE ON SCHEMA public TO second;
	GRANT USAGE ON FOREIGN SERVER src TO second;
	CREATE USER MAPPING FOR second SERVER src OPTIONS (user 'reader', password 'read-only')});
sub second_sql { return $target->safe_psql('postgres', $_[0], extra_params => [ '-U', 'second' ]); }
second_sql("SELECT tablesync_add('second_1', 'src', 'public.t1')");
quiet();
$locker->query_safe('BEGIN; LOCK TABLE t1, t2');
%run = map { $_ => app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(t1 t2 t3);
wait_until($source, sprintf($waits_at_source, 2));
$run{second} = second_sql("SELECT run_id FROM tablesync_run('second_1', wait => false)");
is(second_sql('SELECT replica, state FROM tablesync_status'), 'second_1|queued', 'runs of another role wait as well');
$locker->query_safe('COMMIT');
is(second_sql("SELECT tablesync_wait($run{second})"), 'succeeded', 'and have a process in their turn');
is($target->safe_psql('postgres', "SELECT count(*) FROM tablesync.run a JOIN tablesync.run b USING (pid) WHERE a.replica = 'second_1'::regclass AND b.replica <> 'second_1'::regclass AND a.started_at > b.started_at - interval '1 min' AND a.finished_at < b.finished_at + interval '1 min'"), 0, 'one of their own');
is($target->safe_psql('postgres', q{SELECT status, count(*) = (SELECT count(*) FROM tablesync_status) FROM tablesync_run() GROUP BY 1}), 'succeeded|t', 'a superuser\'s call runs those of both');

# --- an owner who may not log in any more, which matters to a worker before 17 ---

quiet();
$locker->query_safe('BEGIN; LOCK TABLE t1, t2');
%run = map { $_ => app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(t1 t2);
wait_until($source, sprintf($waits_at_source, 2));
$run{second} = second_sql("SELECT run_id FROM tablesync_run('second_1', wait => false)");
$target->safe_psql('postgres', 'ALTER ROLE second NOLOGIN');
$locker->query_safe('COMMIT');
wait_until($target, 'SELECT count(*) = 0 FROM tablesync_progress');
is($target->safe_psql('postgres', "SELECT status, sqlstate, message FROM tablesync_runs WHERE run_id = $run{second}"),
	$target->pg_version < 17 ? 'failed|28000|owner second of replica public.second_1 is not permitted to log in' : 'succeeded||',
	'what nobody can run does not wait for ever');
$target->safe_psql('postgres', 'ALTER ROLE second LOGIN');

# --- what a trigger leaves in the session is nothing to the next run ---

quiet();
app_sql($target, q{
	CREATE TABLE seen (replica text, what text);
	CREATE SEQUENCE numbers;
	CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		SET SESSION tablesync.chunk_time = '9s';
		SET SESSION work_mem = '1234kB';
		PERFORM set_config('my.value', 'left', false);
		PERFORM pg_advisory_lock(77);
		PREPARE left_over AS SELECT 1;
		CREATE TEMP TABLE left_over (a integer);
		PERFORM nextval('public.numbers');
		RETURN NULL;
	END $$;
	CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
		current bigint;
	BEGIN
		BEGIN
			current := currval('public.numbers');
		EXCEPTION WHEN object_not_in_prerequisite_state THEN
			NULL;
		END;
		INSERT INTO public.seen SELECT TG_TABLE_NAME, concat_ws(' ', current_setting('work_mem') = '1234kB', coalesce(current_setting('my.value', true), '') = 'left',
			(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77),
			(SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_over'), to_regclass('pg_temp.left_over') IS NOT NULL, current IS NOT NULL,
			(SELECT r.pid = pg_backend_pid() FROM tablesync.run r WHERE r.replica = 'public.t1'::regclass ORDER BY run_id DESC LIMIT 1));
		RETURN NULL;
	END $$;
	CREATE TRIGGER leave AFTER UPDATE ON t1 FOR EACH STATEMENT EXECUTE FUNCTION leave();
	CREATE TRIGGER see AFTER UPDATE ON t2 FOR EACH STATEMENT EXECUTE FUNCTION see()});
$source->safe_psql('postgres', "UPDATE t1 SET note = 'leave' WHERE id = 1; UPDATE t2 SET note = 'see' WHERE id = 1");
$locker->query_safe('BEGIN; LOCK TABLE t3');
app_sql($target, "SELECT tablesync_run('t3', wait => false)");
wait_until($source, sprintf($waits_at_source, 1));
app_sql($target, "SELECT tablesync_run('$_', wait => false)") for qw(t1 t2);
wait_until($target, q{SELECT count(*) = 1 FROM tablesync_progress});
$locker->query_safe('COMMIT');
wait_until($target, q{SELECT count(*) = 0 FROM tablesync_progress});
is(app_sql($target, 'SELECT replica, what FROM seen'), 't2|f f 0 0 f f t', 'settings, locks, statements, tables and numbers are gone in the same process');
is_replica($source, $target, 't2', 't2', 'a replica with such a neighbour');

# --- no process to be had: it waits, and whoever has one makes room ---

app_sql($target, 'DROP TRIGGER leave ON t1; DROP TRIGGER see ON t2');
quiet();
$target->append_conf('postgresql.conf', 'max_worker_processes = 1');
$target->restart;
$locker->query_safe('BEGIN; LOCK TABLE t1');
%run = map { $_ => app_sql($target, "SELECT run_id FROM tablesync_run('$_', wait => false)") } qw(t1 t2 t3);
wait_until($source, sprintf($waits_at_source, 1));
my $scheduled = session($target, '-U', 'app');
$scheduled->query_until(qr/called/, "\\echo called\nCALL tablesync.run_scheduled('t4');\n");
wait_until($target, q{SELECT count(*) = 3 FROM tablesync_progress WHERE phase = 'queued'});
$psql = start_all();
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'TablesyncStart' OR (wait_event = 'Extension' AND query LIKE 'SELECT replica, status FROM tablesync_run()')});
$locker->query_safe('COMMIT');
$psql->finish;
like($psql_out, qr/^t20\|succeeded$/m, 'who waits gets the only process there is');
unlike($psql_out, qr/failed|crashed/, 'for all, but for what runs already');
wait_until($target, q{SELECT count(*) = 0 FROM tablesync_progress});
is(app_sql($target, "SELECT count(*) FROM tablesync_runs WHERE status = 'succeeded' AND run_id IN ($run{t1}, $run{t2}, $run{t3})"), 3, 'and the queue goes on after that');
like($scheduled->query('SELECT 1'), qr/succeeded/, 'so does what pg_cron has called');
$scheduled->quit;
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync.alert WHERE kind = 'worker_unavailable'}), 0, 'nobody is alarmed');

# --- a session that runs the same replica again and again ---

quiet();
my $again = $target->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'app' ]);
$again->set_query_timer_restart;
# The process that has run a replica for this session; the status before it, unless it is "succeeded".
sub pid_of_run
{
	my ($replica) = @_;
	my ($status, $run_id) = split /\|/, $again->query_safe("SELECT status, run_id FROM tablesync_run('$replica')");
	return ($status eq 'succeeded' ? '' : "$status ") . app_sql($target, "SELECT pid FROM tablesync_runs WHERE run_id = $run_id");
}
$offset = -s $source->logfile;
my @pids;
for my $n (1 .. 4)
{
	$source->safe_psql('postgres', "UPDATE t11 SET note = 'again $n' WHERE id = $n; DELETE FROM t11 WHERE id = 10 + $n");
	push @pids, pid_of_run('t11');
	is_replica($source, $target, 't11', 't11', "run $n of a session");
}
isnt($pids[1], $pids[0], 'the process of the first run has not stayed');
is("@pids[2, 3]", "$pids[1] $pids[1]", 'that of the second run has');
is(logged($source, $offset, 'connection authorized: user=reader'), 2, 'with its connection');
is($target->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $pids[1]"), 0, 'and without a lock');
isnt(pid_of_run('t12'), $pids[1], 'it is not for another replica');
quiet();
pass('it is gone after a second');
pid_of_run('t12');
$target->safe_psql('postgres', "SELECT pg_terminate_backend(pid) $workers");
like(pid_of_run('t12'), qr/^\d+$/, 'a run after the end of the process has another one');
$locker->query_safe('BEGIN; LOCK TABLE t12');
$again->query_until(qr/asked/, "\\echo asked\nSELECT status FROM tablesync_run('t12');\n");
wait_until($source, sprintf $waits_at_source, 1);
is(app_sql($target, "SELECT tablesync_cancel('t12')"), 't', 'a run of it is cancelled');
like($again->query('SELECT 1'), qr/1/, 'which its caller learns');
$again->{stderr} = '';
$again->query_until(qr/once more/, "\\echo once more\nSELECT status FROM tablesync_run('t12');\n");
wait_until($source, sprintf $waits_at_source, 1);
$target->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND query LIKE 'SELECT status FROM tablesync_run(%'});
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'SELECT status FROM tablesync_run(%' AND state = 'active'});
quiet();
is(app_sql($target, q{SELECT string_agg(status, ' ') FROM (SELECT status FROM tablesync_runs WHERE replica = 't12'::regclass ORDER BY run_id DESC LIMIT 2) r}), 'cancelled cancelled', 'a caller who gives up ends his run and the process');
$locker->query_safe('COMMIT');
$again->query('SELECT 1');
$again->{stderr} = '';
like(pid_of_run('t12'), qr/^\d+$/, 'and may ask again');
app_sql($target, "SELECT tablesync_pause('t12')");
unlike($again->query("SELECT status FROM tablesync_run('t12')"), qr/succeeded/, 'not for a replica that was paused meanwhile');
$again->{stderr} = '';
app_sql($target, "SELECT tablesync_resume('t12')");
like(pid_of_run('t12'), qr/^\d+$/, 'but once it is resumed');
app_sql($target, q{
	CREATE TABLE set_there (work_mem text, chunk_time text);
	CREATE FUNCTION note_settings() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.set_there VALUES (current_setting('work_mem'), current_setting('tablesync.chunk_time')); RETURN NEW; END $$;
	CREATE TRIGGER note_settings BEFORE UPDATE ON t12 FOR EACH ROW EXECUTE FUNCTION note_settings()});
my $before = pid_of_run('t12');
is(pid_of_run('t12'), $before, 'it stays');
$target->append_conf('postgresql.conf', 'work_mem = 5MB');
$target->reload;
$source->safe_psql('postgres', "UPDATE t12 SET note = 'reloaded' WHERE id = 1");
is(pid_of_run('t12'), $before, 'it follows the configuration');
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.chunk_time = '2s'});
$source->safe_psql('postgres', "UPDATE t12 SET note = 'set' WHERE id = 1");
isnt(pid_of_run('t12'), $before, 'what is set for its role since is for another one');
is(app_sql($target, q{SELECT string_agg(work_mem || ' ' || chunk_time, ', ' ORDER BY ctid) FROM set_there}), '5MB 250ms, 5MB 2s', 'so each run has the settings of its time');
$target->safe_psql('postgres', 'ALTER ROLE app RESET tablesync.chunk_time');
eval { $again->quit };
quiet();

# --- memory ---

app_sql($target, 'SELECT count(*) FROM tablesync_run()');
$target->append_conf('postgresql.conf', "max_worker_processes = 8\ntablesync.max_workers = 1");
$target->restart;
my $caller = session($target, '-U', 'app');
my ($first_kb, $last_kb);
# as many calls as it takes, one after the other, so that the worker never waits for long
for my $n (1 .. 5000)
{
	my $replica = 't' . (11 + $n % 20);
	$caller->query_safe("SELECT tablesync_run('$replica', wait => false)");
	next if $n % 20;
	my ($pid, $runs) = split /\|/, $caller->query_safe('SELECT pid, count(*) FROM tablesync.run WHERE pid IN (SELECT pid FROM tablesync.live_runs()) GROUP BY pid');
	next if !$runs;
	my ($kb) = eval { PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") } =~ /RssAnon:\s+(\d+) kB/ or next;
	$first_kb = $kb if $runs < 60;
	$last_kb = $kb;
	last if $runs >= 300;
}
cmp_ok($last_kb - $first_kb, '<', 500, "the memory of a process does not grow: $first_kb kB after 60 runs, $last_kb kB after 300");
$caller->quit;

$locker->quit;
done_testing();
