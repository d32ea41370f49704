# Runs that pg_cron starts: from the same database (in background workers),
# from another database of the cluster (through connections to localhost, as
# pg_cron does unless told otherwise), and without pg_cron.  Minutes are real,
# so everything that needs one is prepared first and looked at afterwards.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my $source = start_source();
my $here = start_target($source, name => 'here', conf => "shared_preload_libraries = 'pg_cron'\ncron.use_background_workers = on");
my $elsewhere = start_target($source, name => 'elsewhere', conf => "shared_preload_libraries = 'pg_cron'\ncron.database_name = 'cronhome'");
my $without = start_target($source, name => 'without');

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text);
	INSERT INTO items SELECT i, 'n' || i FROM generate_series(1, 100) i;
	CREATE TABLE slow (id integer PRIMARY KEY);
	INSERT INTO slow SELECT i FROM generate_series(1, 100) i;
	CREATE TABLE empty (id integer PRIMARY KEY)});
for my $target ($here, $elsewhere, $without)
{
	$target->safe_psql('postgres', "LOAD 'tablesync'; ALTER ROLE app SET tablesync.lock_timeout = '10min'");
	app_sql($target, q{
		SELECT tablesync_add('items', 'src', 'public.items');
		SELECT tablesync_add('slow', 'src', 'public.slow');
		SELECT tablesync_add('broken', 'items_source');
		ALTER TABLE broken ADD CHECK (id < 0)});
}

# The statement that a hint ends with.
sub statement_of
{
	my ($stderr, $pattern) = @_;
	my ($statement) = $stderr =~ /HINT: .*?($pattern.*?;)/ or die "no statement in: $stderr";
	return $statement;
}

sub status_of
{
	my ($target, $replica) = @_;
	return app_sql($target, "SELECT coalesce(schedule, 'none') || ' ' || coalesce(next_run::text, 'never') FROM tablesync_status WHERE replica = '$replica'::regclass");
}

sub health
{
	my ($target, $replica) = @_;
	return app_sql($target, "SELECT coalesce(sum(flag), 0) FROM tablesync.health WHERE replica = '$replica'::regclass");
}

# --- without pg_cron ---

my $stderr = app_fails($without, "SELECT tablesync_schedule('items', '* * * * *')");
like($stderr, qr/ERROR:  55000: pg_cron is not loaded/, 'without pg_cron: an error');
like($stderr, qr/HINT:  Install it, add pg_cron to shared_preload_libraries, set cron.database_name = 'postgres'/, 'with a hint');
is(app_sql($without, "SELECT tablesync_unschedule('items')"), 'f', 'nothing to unschedule');
is(status_of($without, 'items'), 'none never', 'no schedule');

# --- in the same database ---

# somebody else's schema "cron" is nothing to be called with the rights of the extension's owner
$here->safe_psql('postgres', 'GRANT CREATE ON DATABASE postgres TO app');
app_sql($here, q{
	CREATE SCHEMA cron;
	CREATE TABLE cron.job AS SELECT 7 AS jobid, format('tablesync %s.%s:', oid, 'items'::regclass::oid) AS jobname, 'forged' AS schedule,
		true AS active, datname AS database, 'app' AS username FROM pg_database WHERE datname = 'postgres';
	CREATE FUNCTION cron.unschedule(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN ALTER ROLE app SUPERUSER; RETURN true; END';
	SELECT tablesync.schedule('items', '* * * * *', NULL)});
is(status_of($here, 'items'), 'none never', 'a forged job is not read');
app_sql($here, q{SELECT tablesync_unschedule('items'); DROP SCHEMA cron CASCADE});
is($here->safe_psql('postgres', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'app'}), 'f', 'and a forged function not called');

$stderr = app_fails($here, "SELECT tablesync_schedule('items', '* * * * *')");
like($stderr, qr/ERROR:  55000: extension pg_cron does not exist/, 'extension is missing');
$here->safe_psql('postgres', statement_of($stderr, 'CREATE EXTENSION'));
$stderr = app_fails($here, "SELECT tablesync_schedule('items', '* * * * *')");
like($stderr, qr/ERROR:  42501: role "app" may not use pg_cron/, 'pg_cron is not granted');
$here->safe_psql('postgres', statement_of($stderr, 'GRANT'));
like(app_fails($here, "SELECT tablesync_schedule('items', '* * * *')"), qr/invalid schedule: \* \* \* \*/, 'pg_cron refuses a schedule');
is(status_of($here, 'items'), 'none never', 'which is not recorded');

my $job = app_sql($here, "SELECT tablesync_schedule('items', '0 4 * * *')");
like($job, qr/^\d+$/, 'returns the number of the job');
like(status_of($here, 'items'), qr/^0 4 \* \* \* \d{4}-\d\d-\d\d 04:00:00\+00$/, 'schedule and next run');
is(app_sql($here, "SELECT tablesync_schedule('items', '30 * * * *')"), $job, 'the same job has another schedule');
like(status_of($here, 'items'), qr/^30 \* \* \* \* .*:30:00/, 'which is shown');
$here->safe_psql('postgres', 'CREATE ROLE member LOGIN IN ROLE app');
is($here->safe_psql('postgres', "BEGIN; SELECT tablesync_schedule('items', '31 * * * *'); SELECT current_user; COMMIT", extra_params => [ '-U', 'member' ]), "$job\nmember", 'a member of the owner changes it, and is himself again');
is($here->safe_psql('postgres', "SELECT tablesync_schedule('items', '32 * * * *')"), $job, 'a superuser changes it');
is($here->safe_psql('postgres', 'SELECT string_agg(DISTINCT username || schedule, $$,$$) FROM cron.job WHERE jobname !~ $$watch$$'), 'app32 * * * *', 'the job runs as the owner');
$here->safe_psql('postgres', 'CREATE ROLE watcher LOGIN IN ROLE pg_monitor');
is($here->safe_psql('postgres', q{SELECT schedule FROM tablesync_status WHERE replica = 'items'::regclass}, extra_params => [ '-U', 'watcher' ]), '32 * * * *', 'who watches sees it, without rights in pg_cron');
$here->safe_psql('postgres', 'CREATE ROLE other LOGIN; GRANT USAGE ON SCHEMA cron TO other');
like(($here->psql('postgres', "SELECT tablesync_schedule('items', '* * * * *')", extra_params => [ '-U', 'other' ]))[2],
	qr/must be owner of table/, 'nobody else does');

is($here->safe_psql('postgres', q{SELECT string_agg(username || ' ' || schedule || ' ' || command, ', ') FROM cron.job WHERE jobname ~ 'watch'}),
	'app * * * * * SELECT tablesync.watch()', 'a watchdog comes with the first schedule of an owner');

# drift: pg_cron is told what tablesync does not hear
$here->safe_psql('postgres', "SELECT cron.alter_job($job, schedule => '33 * * * *')");
like(status_of($here, 'items'), qr/^33 \* \* \* \* .*:33:00/, 'a schedule changed in pg_cron is shown');
$here->safe_psql('postgres', "SELECT cron.alter_job($job, active => false)");
is(status_of($here, 'items') . health($here, 'items'), 'none never4', 'a job switched off is no schedule');
$here->safe_psql('postgres', "SELECT cron.unschedule($job)");
is(status_of($here, 'items') . health($here, 'items'), 'none never4', 'nor is a job that is gone');
like(app_sql($here, 'SELECT summary FROM tablesync_health()'), qr/^warning: public.items: pg_cron has no active job for schedule "32 \* \* \* \*"$/, 'health says so');

# a forged record removes nobody else's job
my $backup = $here->safe_psql('postgres', "SELECT cron.schedule('backup', '0 0 1 1 *', 'SELECT 1')");
app_sql($here, "SELECT tablesync_schedule('items', '32 * * * *'); SELECT tablesync.schedule('items', '32 * * * *', $backup); SELECT tablesync_unschedule('items')");
is($here->safe_psql('postgres', 'SELECT string_agg(jobname, $$,$$) FROM cron.job'), 'backup', 'jobs of others stay');
$here->safe_psql('postgres', "SELECT cron.unschedule($backup)");

# a new owner: the old one's job is of no use, and makes way
$here->safe_psql('postgres', "SELECT tablesync_schedule('items', '34 * * * *'); CREATE ROLE heir LOGIN; GRANT USAGE ON SCHEMA cron TO heir");
$here->safe_psql('postgres', 'GRANT CREATE ON SCHEMA public TO heir; ALTER TABLE items OWNER TO heir');
is($here->safe_psql('postgres', "SELECT schedule IS NULL FROM tablesync_status WHERE replica = 'items'::regclass"), 't', 'the job of the old owner is no schedule');
$here->safe_psql('postgres', "SELECT tablesync_schedule('items', '35 * * * *')", extra_params => [ '-U', 'heir' ]);
is($here->safe_psql('postgres', 'SELECT string_agg(username || schedule, $$,$$) FROM cron.job WHERE jobname !~ $$watch$$'), 'heir35 * * * *', 'the job of the new owner takes its place');
$here->safe_psql('postgres', 'ALTER TABLE items OWNER TO app');

# renamed: the old name is free for another replica, whose job is another one
$job = app_sql($here, "SELECT tablesync_schedule('items', '* * * * *')");
app_sql($here, q{ALTER TABLE items RENAME TO "it's ""items"""});
app_sql($here, "SELECT tablesync_add('items', 'items_source')");
isnt(app_sql($here, "SELECT tablesync_schedule('items', '0 0 1 1 *')"), $job, 'another replica of that name has a job of its own');
is(app_sql($here, q{SELECT tablesync_schedule('"it''s ""items"""', '* * * * *') IS NOT NULL}), 't', 'scheduled by its new name');
is($here->safe_psql('postgres', q{SELECT string_agg(schedule, ',' ORDER BY jobid) FROM cron.job WHERE jobname !~ 'watch'}), '0 0 1 1 *,* * * * *', 'no job is left over');
$job = $here->safe_psql('postgres', q{SELECT jobid FROM cron.job WHERE schedule = '* * * * *' AND jobname !~ 'watch'});
app_sql($here, q{ALTER TABLE "it's ""items""" RENAME TO "50% ""items"""});

my $broken_job = app_sql($here, "SELECT tablesync_schedule('broken', '* * * * *')");

# --- in another database ---

$elsewhere->safe_psql('postgres', 'CREATE DATABASE cronhome');
unlink $elsewhere->data_dir . '/pg_hba.conf';
$elsewhere->append_conf('pg_hba.conf', "local all all trust\nhost all app localhost trust\n");
$elsewhere->reload;
$elsewhere->safe_psql('cronhome', 'CREATE EXTENSION pg_cron');

# As its owner would do by hand: the statement in the hint, and the one after it.
sub schedule_elsewhere
{
	my ($replica, $schedule) = @_;
	my $stderr = app_fails($elsewhere, "SELECT tablesync_schedule('$replica', '$schedule')");
	like($stderr, qr/ERROR:  55000: pg_cron is in database "cronhome", not in this one/, "$replica: pg_cron is elsewhere");
	my $job = $elsewhere->safe_psql('cronhome', statement_of($stderr, 'SELECT cron.schedule_in_database'));
	my $record = statement_of($stderr, 'SELECT tablesync_schedule');
	$record =~ s/<number>/$job/ or die $record;
	is(app_sql($elsewhere, $record), $job, "$replica: recorded");
	return $job;
}

my $slow_job = schedule_elsewhere('slow', '* * * * *');
my $failing_job = schedule_elsewhere('broken', '*/1 * * * *');
app_sql($elsewhere, "SELECT tablesync_schedule('items', '* * * * *', job_id => 99)");
like(status_of($elsewhere, 'slow'), qr/^\* \* \* \* \* \d{4}-/, 'schedule and next run from what was recorded');
like(app_fails($here, "SELECT tablesync_schedule('broken', '* * * * *', 7)"), qr/22023: job_id is only for a job/, 'no job_id where pg_cron lives');

# --- the minutes ---

my $started = time;
# here: a run that began before cron's minute
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE slow');
my $manual = app_sql($here, "SELECT run_id FROM tablesync_run('slow', wait => false)");
wait_until($source, q{SELECT count(*) >= 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
my $overlapping_job = app_sql($here, "SELECT tablesync_schedule('slow', '* * * * *')");

sub details
{
	my ($target, $database, $job, $columns) = @_;
	return $target->safe_psql($database, "SELECT $columns FROM cron.job_run_details WHERE jobid = $job AND end_time IS NOT NULL ORDER BY runid");
}

wait_until($here, "SELECT count(*) FILTER (WHERE end_time IS NOT NULL) >= 1 FROM cron.job_run_details WHERE jobid = $_")
	for ($job, $broken_job, $overlapping_job);
is_replica($source, $here, 'items', '"50% ""items"""', 'a minute later the renamed replica is loaded');
like((split /\n/, details($here, 'postgres', $job, q{status || ' ' || return_message}))[0], qr/^succeeded CALL$/, 'its job has succeeded');
like(details($here, 'postgres', $broken_job, q{status || ' ' || return_message}),
	qr/^failed ERROR: new row for relation "broken" violates check constraint/, 'a failed run is a failed row with the message of the worker');
is((split /\n/, details($here, 'postgres', $overlapping_job, q{status || ' ' || return_message || ' ' || (end_time - start_time < '10 s')}))[0],
	'succeeded CALL true', 'a minute that finds a run going returns at once as success');
is(app_sql($here, q{SELECT string_agg(run_id || status, ',') FROM tablesync_runs WHERE replica = 'slow'::regclass}), "${manual}running", 'and starts no run');
is(app_sql($here, q{SELECT status FROM tablesync_run('slow')}), 'already running', 'it is told "already running"');

# changes follow by themselves
$source->safe_psql('postgres', q{UPDATE items SET note = 'new' WHERE id = 7; DELETE FROM items WHERE id = 8; INSERT INTO items VALUES (-1, 'first')});
my $before = $here->safe_psql('postgres', "SELECT count(*) FROM cron.job_run_details WHERE jobid = $job");

# a run without progress
# a lock timeout at the source, after which it is asked again, is progress
my $hangs = '';
for (1 .. 50)
{
	last if ($hangs = app_sql($here, q{SET tablesync.hang_after = '1s'; SELECT flag || severity FROM tablesync.health WHERE replica = 'slow'::regclass})) ne '';
	select undef, undef, undef, 0.2;
}
is($hangs, '8critical', 'a run hangs');
is(health($here, 'slow'), 0, 'not for a patient observer');

# elsewhere: the first minute's run waits for the source; two more minutes pass
wait_until($elsewhere, q{SELECT count(*) = 1 FROM tablesync_runs WHERE replica = 'slow'::regclass AND status = 'running'});
my $minutes = "SELECT date_trunc('minute', clock_timestamp()) >= date_trunc('minute', started_at) + interval '2 minutes'
	AND EXTRACT(second FROM clock_timestamp()) BETWEEN 3 AND 40 FROM tablesync_runs WHERE replica = 'slow'::regclass";
wait_until($elsewhere, $minutes);
is($elsewhere->safe_psql('cronhome', "SELECT count(*) FROM cron.job_run_details WHERE jobid = $slow_job"), 1, 'pg_cron keeps the starts of two minutes back');
$locker->query_safe('COMMIT');
$locker->quit;
wait_until($elsewhere, "SELECT count(*) >= 2 FROM tablesync_runs WHERE replica = 'slow'::regclass AND status = 'succeeded'");
$elsewhere->poll_query_until('cronhome', "SELECT count(*) >= 3 FROM cron.job_run_details WHERE jobid = $slow_job AND end_time IS NOT NULL") or die;
is(details($elsewhere, 'cronhome', $slow_job, q{status || ' ' || return_message}), "succeeded 1 row\nsucceeded 1 row\nsucceeded 1 row", 'they come all at once');
is(app_sql($elsewhere, q{SELECT count(*) FROM tablesync_runs WHERE replica = 'slow'::regclass}), 2, 'and cost one run');
like((split /\n/, details($elsewhere, 'cronhome', $failing_job, q{status || ' ' || return_message}))[0],
	qr/^failed ERROR:  new row for relation "broken" violates check constraint/, 'a failed run through a connection');

wait_until($here, "SELECT count(*) FILTER (WHERE end_time IS NOT NULL) > $before FROM cron.job_run_details WHERE jobid = $job");
is_replica($source, $here, 'items', '"50% ""items"""', 'the replica has followed by itself');

# a schedule that never fires: its job is not there, and nobody here can see it
{
	local $ENV{PGOPTIONS} = '-c tablesync.missed_after=1s';
	wait_until($elsewhere, q{SELECT count(*) = 1 FROM tablesync.health WHERE replica = 'items'::regclass AND flag = 4});
	like(app_sql($elsewhere, q{SELECT summary FROM tablesync_health()}),
		qr/public.items: schedule "\* \* \* \* \*" has not started the run of \d{4}-/, 'a schedule that never fires');
}
is(health($elsewhere, 'items'), 0, 'not for a patient observer');
is(app_sql($elsewhere, q{SET tablesync.missed_after = '90s'; SELECT count(*) FROM tablesync.health WHERE flag = 4 AND replica <> 'items'::regclass}),
	0, 'the others have missed nothing');
note('minutes took ' . (time - $started) . ' s');

# --- the end of schedules ---

is(app_sql($here, "SELECT tablesync_unschedule('slow')"), 't', 'unscheduled');
is(app_sql($here, "SELECT tablesync_unschedule('slow')"), 'f', 'only once');
app_sql($here, "SELECT tablesync_remove('items')");
app_sql($here, q{DROP TABLE "50% ""items"""});
is($here->safe_psql('postgres', 'SELECT string_agg(jobid::text, $$,$$) FROM cron.job WHERE jobname !~ $$watch$$'), $broken_job, 'removed and dropped replicas leave no job');
app_sql($here, q{SELECT tablesync_schedule('slow', '0 * * * *')});
app_sql($here, q{SELECT tablesync_pause('slow')});
is(status_of($here, 'slow') . health($here, 'slow'), '0 * * * * never0', 'paused: scheduled, but no next run');
app_sql($here, q{SELECT tablesync_resume('slow')});
like(status_of($here, 'slow'), qr/:00:00/, 'resumed');
$here->safe_psql('postgres', 'DROP EXTENSION pg_cron');
is(status_of($here, 'slow') . health($here, 'slow'), 'none never4', 'pg_cron dropped: no schedule');
app_sql($here, q{SELECT tablesync_remove('broken'); DROP TABLE slow});
is(app_sql($here, 'SELECT count(*) FROM tablesync_status'), 0, 'replicas go without pg_cron, too');

my ($rc, $stdout, $warning) = $elsewhere->psql('postgres', "SELECT tablesync_unschedule('broken')", extra_params => [ '-U', 'app' ]);
is($stdout, 't', 'elsewhere: unscheduled');
$elsewhere->safe_psql('cronhome', statement_of($warning, 'SELECT cron.unschedule'));
is($elsewhere->safe_psql('cronhome', 'SELECT string_agg(jobid::text, $$,$$) FROM cron.job'), $slow_job, 'with the statement of the warning the job is gone');
# restored from a dump: the job is the original's, and must not be offered for removal
$elsewhere->safe_psql('postgres', q{SET session_replication_role = replica; UPDATE tablesync.replica SET home = 'of the original' WHERE replica = 'slow'::regclass});
($rc, $stdout, $warning) = $elsewhere->psql('postgres', q{SELECT tablesync_resume('slow')}, extra_params => [ '-U', 'app' ]);
like("$rc$warning", qr/^0.*NOTICE:  replica public.slow is not scheduled here/s, 'a restored replica has to be scheduled again');
unlike($warning, qr/is still there/, 'and the job of the original is left alone');
app_sql($elsewhere, "SELECT tablesync_schedule('slow', '0 * * * *', job_id => $slow_job)");
($rc, $stdout, $warning) = $elsewhere->psql('postgres', 'DROP TABLE slow', extra_params => [ '-U', 'app' ]);
like("$rc$warning", qr/^0.*WARNING:  job $slow_job of pg_cron is still there/s, 'a dropped replica warns of its job');

# --- history ---

$without->safe_psql('postgres', "LOAD 'tablesync'; ALTER ROLE app SET tablesync.keep_runs = 3");
is(run_counts($without, 'items'), 'succeeded|100|0|0', 'loaded');
run_counts($without, 'items') for 1 .. 5;
is(app_sql($without, q{SELECT string_agg(kind || ' ' || status, ',' ORDER BY run_id) FROM tablesync_runs WHERE replica = 'items'::regclass}),
	'load succeeded,sync succeeded,sync succeeded,sync succeeded', 'history: as many runs as are kept, and the load');
app_sql($without, 'ALTER TABLE items ADD CHECK (id < 1000)');
$source->safe_psql('postgres', 'INSERT INTO items VALUES (1000)');
app_fails($without, "SELECT tablesync_run('items')") for 1 .. 5;
is(app_sql($without, q{SELECT string_agg(kind || ' ' || status, ',' ORDER BY run_id) FROM tablesync_runs WHERE replica = 'items'::regclass}),
	'load succeeded,sync succeeded,sync failed,sync failed,sync failed', 'the last success stays');
is(app_sql($without, q{SELECT rows FROM tablesync_status WHERE replica = 'items'::regclass}), 100, 'so its rows are still known');
$without->safe_psql('postgres', "LOAD 'tablesync'; ALTER ROLE app SET tablesync.keep_runs = -1");
app_fails($without, "SELECT tablesync_run('items')");
is(app_sql($without, q{SELECT count(*) FROM tablesync_runs WHERE replica = 'items'::regclass}), 6, '-1 keeps all');

# --- health ---

is(app_sql($without, 'SELECT status, flags FROM tablesync_health()'), 'warning|1', 'a failed run is a warning');
app_sql($without, q{SELECT tablesync_alter('items', freshness => '1 ms')});
like(app_sql($without, 'SELECT * FROM tablesync_health()'),
	qr/^critical\|3\|critical: public.items: last success 00:00:\d\d ago, freshness is 00:00:00.001; public.items: run \d+ has failed$/, 'stale is critical');
app_sql($without, q{SELECT tablesync_pause('items')});
is(app_sql($without, 'SELECT * FROM tablesync_health()'), 'ok|0|ok: 3 replicas (1 paused)', 'paused replicas are not judged');
$without->safe_psql('postgres', 'CREATE ROLE other LOGIN');
is($without->safe_psql('postgres', 'SELECT * FROM tablesync_health()', extra_params => [ '-U', 'other' ]),
	'warning|32|warning: no replica that role other may see', 'who sees nothing is told so');

done_testing();
