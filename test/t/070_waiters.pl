# Who waits for runs, in a call for all replicas or as pg_cron does: what is said of replicas that are taken away
# from under the caller, of runs that he gives up, and where no process can be had.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(target => { conf => "max_worker_processes = 8\nmax_logical_replication_workers = 0\ntablesync.max_workers = 1\ntablesync.lock_timeout = 60s" });
$source->safe_psql('postgres', q{
	SELECT format('CREATE TABLE t%s AS SELECT i AS id, ''n'' || i AS note FROM generate_series(1, 50) i', n) FROM generate_series(1, 6) n \gexec
	SELECT format('ALTER TABLE t%s ADD PRIMARY KEY (id)', n) FROM generate_series(1, 6) n \gexec});
app_sql($target, "SELECT tablesync_add(format('t%s', n), 'src', format('public.t%s', n)) FROM generate_series(1, 6) n");

my $locker = session($source);
my $waits_at_source = q{SELECT count(*) = %d FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%%' AND wait_event_type = 'Lock'};

# A psql of app that is not waited for; its output and errors are put where the last two arguments say.
sub start_psql
{
	my ($sql, $out, $err) = @_;
	return IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-U', 'app', '-d', $target->connstr('postgres'), '-c', $sql ], '<', \undef, '>', $out, '2>', $err);
}

sub status_of
{
	my ($replica) = @_;
	return app_sql($target, "SELECT status FROM tablesync_runs WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1");
}

# --- a call for all that does not wait ---

app_sql($target, "SELECT tablesync_pause('t5')");
is(app_sql($target, q{SELECT replica, status IN ('started', 'queued') FROM tablesync_run(wait => false) ORDER BY 1}), join("\n", map { "$_|t" } qw(t1 t2 t3 t4 t6)),
	'all but what is paused are begun, or wait');
wait_until($target, 'SELECT count(*) = 0 FROM tablesync_progress');
is_replica($source, $target, $_, $_, "$_ is run for nobody") for qw(t1 t6);
is(status_of('t5'), '', 'what is paused is not');
app_sql($target, "SELECT tablesync_resume('t5')");

# --- replicas that are taken from a call for all before their turn ---

$locker->query_safe('BEGIN; LOCK TABLE t1');
my ($out, $err, $out_two, $err_two) = ('') x 4;
my $all = start_psql('SELECT replica, status, message FROM tablesync_run()', \$out, \$err);
wait_until($source, sprintf $waits_at_source, 1);
app_sql($target, "SELECT tablesync_pause('t2')");
$locker->query_safe('LOCK TABLE t3');
my $one = start_psql(q{SELECT status FROM tablesync_run('t3')}, \$out_two, \$err_two);
wait_until($source, sprintf $waits_at_source, 2);
$locker->query_safe('SAVEPOINT a');
app_sql($target, q{SELECT tablesync_cancel('t1')});
$all->finish;
like($out, qr/^t2\|failed\|replica (?:public\.)?t2 is paused$/m, 'one that was paused meanwhile');
like($out, qr/^t3\|already running\|run \d+ is going on$/m, 'one that somebody else runs');
like($out, qr/^t1\|cancelled/m, 'one that was cancelled');
like($out, qr/^t6\|succeeded/m, 'and the others have run');
like($err, qr/WARNING:  55000: .*t2.* is paused.*HINT:  Use tablesync_resume/s, 'with the reason');
$locker->query_safe('COMMIT');
$one->finish;
is($out_two, "succeeded\n", 'the other run ends well');
app_sql($target, "SELECT tablesync_resume('t2')");

# --- one that is dropped as soon as its run lets go of it ---

$source->safe_psql('postgres', q{UPDATE t6 SET note = 'new' WHERE id = 1});
$locker->query_safe('BEGIN; LOCK TABLE t6');
($out, $err) = ('') x 2;
$all = start_psql('SELECT replica, status, message FROM tablesync_run()', \$out, \$err);
wait_until($source, sprintf $waits_at_source, 1);
my $dropper = session($target, '-U', 'app');
$dropper->query_until(qr/asked/, "\\echo asked\nDROP TABLE t6;\n");
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'DROP TABLE t6%' AND wait_event_type = 'Lock'});
$locker->query_safe('COMMIT');
$all->finish;
$dropper->query_safe('SELECT 1');    # has ended, too
$dropper->quit;
like($out, qr/^\d+\|failed\|background worker for replica with OID \d+ ended before it could record its run$/m, 'a replica that is gone after its run has failed');

# --- as pg_cron calls: given up while it waits, and while it is run ---

sub call_until
{
	my ($replica, $where) = @_;
	my ($call_out, $call_err) = ('', '');
	my $call = start_psql("CALL tablesync.run_scheduled('$replica')", \$call_out, \$call_err);
	wait_until($target, qq{SELECT count(*) = 1 FROM tablesync_progress WHERE replica = '$replica'::regclass AND (phase = 'queued') = $where});
	return ($call, \$call_out, \$call_err);
}
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
$locker->query_safe('BEGIN; LOCK TABLE t1');
my ($running, $running_out, $running_err) = call_until('t1', 'false');
wait_until($source, sprintf $waits_at_source, 1);
my ($waiting, $waiting_out, $waiting_err) = call_until('t2', 'true');
$waiting->signal('INT');
$waiting->finish;
like($$waiting_err, qr/57014: canceling statement due to user request/, 'a call is cancelled while its run waits');
is(status_of('t2'), 'cancelled', 'which does not wait any more');
is(app_sql($target, q{SELECT string_agg(replica::text, ' ') FROM tablesync_progress}), 't1', 'nor keeps another from running');

# --- the replica is removed meanwhile ---

($waiting, $waiting_out, $waiting_err) = call_until('t4', 'true');
app_sql($target, q{SELECT tablesync_remove('t4')});
$waiting->finish;
like($$waiting_err, qr/42704: run \d+ of relation \d+ does not exist any more.*HINT:  Was the replica removed meanwhile/s, 'a replica is removed while its run waits');

$running->signal('INT');
$running->finish;
like($$running_err, qr/57014: canceling statement due to user request/, 'a call is cancelled while its run goes on');
wait_until($target, 'SELECT count(*) = 0 FROM tablesync_progress');
is(status_of('t1'), 'cancelled', 'which ends it');
$locker->query_safe('COMMIT');
like(app_sql($target, q{SELECT tablesync.withdraw_run('t1', 1)}), qr/^f$/, 'a run that has ended long ago can not be given up');

# --- the history is shortened, but for what somebody holds ---

my $holder = session($target);
$holder->query_safe(q{BEGIN; SELECT FROM tablesync.all_runs WHERE run_id = (SELECT min(run_id) FROM tablesync.all_runs WHERE replica = 't1'::regclass AND status <> 'succeeded') FOR UPDATE});
my $runs = app_sql($target, q{SELECT count(*) FROM tablesync_runs WHERE replica = 't1'::regclass});
is($target->safe_psql('postgres', q{
	SET lock_timeout = '2s';
	SELECT tablesync.prune_runs('t1', 1);
	SELECT count(*), count(*) FILTER (WHERE r.run_id = m.first) FROM tablesync.all_runs r, (SELECT min(run_id) AS first FROM tablesync.all_runs WHERE replica = 't1'::regclass AND status <> 'succeeded') m WHERE r.replica = 't1'::regclass}) =~ s/^\n//r,
	'4|1', "of $runs runs the last, the last successes and the one that is held stay: nobody waits");
$holder->quit;

# --- somebody else has every process that there is ---

wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
$target->append_conf('postgresql.conf', "max_worker_processes = 1\nmax_logical_replication_workers = 1");
$target->restart;
($waiting, $waiting_out, $waiting_err) = call_until('t3', 'true');
my ($session_out, $session_err) = ('', '');
my $session = start_psql(q{SELECT tablesync_run('t5')}, \$session_out, \$session_err);
$_->finish foreach $waiting, $session;
like($$waiting_err, qr/53000: no background worker is available.*HINT:  Increase max_worker_processes/s, 'who calls as pg_cron does is told after a while');
like($session_err, qr/53000: no background worker is available/, 'and so is who waits himself');
is(app_sql($target, q{SELECT string_agg(DISTINCT replica || ' ' || kind, ', ') FROM tablesync_alerts WHERE kind = 'worker_unavailable'}), 't3 worker_unavailable', 'an alert is opened');
is(app_sql($target, q{SELECT count(*) FROM tablesync_progress}), 0, 'and nothing waits for ever');

$locker->quit;
done_testing();
