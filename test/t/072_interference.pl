# Who interferes with runs of his own replicas: triggers, locks, columns that are changed, sessions that are ended.  Nothing is
# lost, and the error says what it was.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(target => { conf => 'tablesync.lock_timeout = 2s' });

sub at_source { return $source->safe_psql('postgres', $_[0]); }

# A table at the source, and its replica that has been loaded.
sub make_replica
{
	my ($name, $columns, $select, $arguments) = @_;
	at_source("CREATE TABLE $name ($columns); INSERT INTO $name $select; ANALYZE $name");
	app_sql($target, "SELECT tablesync_add('$name', 'src', 'public.$name'" . ($arguments // '') . ')');
	app_sql($target, "SELECT tablesync_run('$name')");
	return;
}

# A psql of app that is not waited for; its output and errors are put where the last two arguments say.
sub start_psql
{
	my ($sql, $out, $err) = @_;
	return IPC::Run::start([ 'psql', '-XAtq', '-U', 'app', '-d', $target->connstr('postgres'), '-c', $sql ], '<', \undef, '>', $out, '2>', $err);
}

# --- triggers of the replica ---

make_replica('guarded', 'id integer PRIMARY KEY, note text', q{SELECT i, 'n' || i FROM generate_series(1, 100) i});
app_sql($target, q{
	CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	CREATE TRIGGER kept BEFORE DELETE ON guarded FOR EACH ROW EXECUTE FUNCTION keep()});
at_source('DELETE FROM guarded WHERE id = 7');
like(app_fails($target, q{SELECT tablesync_run('guarded')}), qr/replica public.guarded was changed by somebody else during the run\nDETAIL:  1 rows were to be deleted, 0 were\./, 'a trigger that keeps rows');
app_sql($target, 'DROP TRIGGER kept ON guarded');
is(run_counts($target, 'guarded'), 'succeeded|0|0|1', 'without it they go');

# --- a feed whose rows somebody takes away, or holds ---

make_replica('fed', 'id integer PRIMARY KEY, note text', q{SELECT i, 'n' || i FROM generate_series(1, 100) i}, ', feed => true');
my $feed = 'fed_changes';
at_source(q{UPDATE fed SET note = 'x' WHERE id < 4});
app_sql($target, "CREATE TRIGGER kept BEFORE INSERT ON $feed FOR EACH ROW EXECUTE FUNCTION keep()");
like(app_fails($target, q{SELECT tablesync_run('fed')}), qr/DETAIL:  3 rows were to be written to its feed, 0 were\.\nHINT:  .*look for a trigger on \S+ that interferes/, 'a trigger of the feed');
app_sql($target, "DROP TRIGGER kept ON $feed");
is(run_counts($target, 'fed'), 'succeeded|0|3|0', 'without it');

app_sql($target, "SELECT tablesync_alter('fed', keep_changes => '1 second'); SELECT FROM pg_sleep(1.1)");
my $count = "SELECT count(*) > 0 FROM $feed";
my $holder = session($target);
my $log = -s $target->logfile;
$holder->query_safe("BEGIN; LOCK TABLE $feed IN SHARE MODE");
is(run_counts($target, 'fed'), 'succeeded|0|0|0', 'what is too old in a feed that somebody holds');
$holder->query_safe('COMMIT');
like(slurp_file($target->logfile, $log), qr/ERROR:  canceling statement due to lock timeout/, 'stays, and the log says why');
is(app_sql($target, $count), 't', 'so far');
app_sql($target, q{SELECT tablesync_run('fed')});
is(app_sql($target, $count), 'f', 'until the next run');
make_replica('fed_too', 'id integer PRIMARY KEY, note text', q{SELECT i, 'n' || i FROM generate_series(1, 10) i}, ', feed => true');
my $changes = q{SELECT count(*), count(source_time) FROM tablesync_changes('fed_too')};
my $before = app_sql($target, $changes);
app_sql($target, q{SELECT tablesync_alter('fed', feed => false); SELECT tablesync_alter('fed', feed => true)});
is(app_sql($target, $changes), $before, 'a feed that is begun anew takes nothing from another one');

# --- two sessions that need the catalogs of a server at the same time ---

$target->safe_psql('postgres', q{
	CREATE SERVER hidden FOREIGN DATA WRAPPER postgres_fdw;
	SELECT tablesync.prepare_server('hidden');
	CREATE SERVER twin FOREIGN DATA WRAPPER postgres_fdw;
	GRANT USAGE ON FOREIGN SERVER twin TO app});
my $first = session($target, '-U', 'app');
$first->query_safe(q{BEGIN; SELECT tablesync.prepare_server('twin')});
my ($out, $err) = ('', '');
my $second = start_psql(q{SELECT tablesync.prepare_server('twin')}, \$out, \$err);
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT tablesync.prepare_server%' AND wait_event_type = 'Lock'});
$first->query_safe('COMMIT');
$second->finish;
is($err, '', 'one waits for the other');
is($target->safe_psql('postgres', q{
	SELECT s.srvname, bool_or(has_table_privilege('app', k.foreign_table, 'SELECT')) FROM tablesync.source_catalogs k JOIN pg_foreign_server s ON s.oid = k.server
	WHERE s.srvname IN ('hidden', 'twin') GROUP BY 1 ORDER BY 1}), "hidden|f\ntwin|t", 'and who may use a server may read its catalogs, and no others');
$first->quit;

# --- a load that brings NULL ---

at_source(q{
	CREATE TABLE bulky (id integer PRIMARY KEY, note text);
	INSERT INTO bulky SELECT i, nullif('n' || i, 'n110000') FROM generate_series(1, 110000) i;
	ANALYZE bulky});
app_sql($target, q{
	SELECT tablesync_add('bulky', 'src', 'public.bulky');
	ALTER TABLE bulky ALTER COLUMN note SET NOT NULL});
like(app_fails($target, q{SELECT tablesync_run('bulky')}), qr/null value in column "note" of relation "bulky" violates not-null constraint/, 'a load in bulk of what may not be NULL');

# --- a key far away from all others ---

make_replica('dense', 'id bigint PRIMARY KEY, note text', q{SELECT i, 'n' || i FROM generate_series(1, 200000) i}, q{, chunk_rows => 20000, fingerprint => 'xmin'});
# runs read all buckets of the source at once where the last one has found differences
at_source(q{UPDATE dense SET note = 'x'});
is(run_counts($target, 'dense'), 'succeeded|0|200000|0', 'everywhere');
at_source(q{UPDATE dense SET note = 'y'; INSERT INTO dense SELECT i, 'new' FROM generate_series(200001, 230000) i});
is(run_counts($target, 'dense'), 'succeeded|30000|200000|0', 'and behind the end');
at_source(q{UPDATE dense SET note = 'z'; INSERT INTO dense VALUES (9000000000000000000, 'far'), (9000000000000000001, 'too')});
is(run_counts($target, 'dense'), 'succeeded|2|230000|0', 'far behind it');
is_replica($source, $target, 'dense', 'dense', 'dense');

# --- a version that is no time ---

make_replica('numbered', 'id integer PRIMARY KEY, version bigint', 'SELECT i, i FROM generate_series(1, 100) i', q{, version_column => 'version', fingerprint => 'version'});
at_source('DELETE FROM numbered WHERE id = 50; UPDATE numbered SET version = 1000 WHERE id = 1');
is(run_counts($target, 'numbered'), 'succeeded|0|1|1', 'grows');
at_source('UPDATE numbered SET version = 2 WHERE id = 1; DELETE FROM numbered WHERE id = 2');
like(app_fails($target, q{SELECT tablesync_run('numbered')}), qr/TS002: the source of replica public.numbered has gone back in time/, 'and may not shrink');

# --- a check whose process is ended ---

my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE guarded');
($out, $err) = ('', '');
my $check = start_psql(q{SELECT * FROM tablesync_check('guarded')}, \$out, \$err);
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync check'});
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync%' AND wait_event_type = 'Lock'});
$target->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tablesync check'});
$check->finish;
like($out, qr/^guarded\|connection\|f\|the worker that checks replica public.guarded ended before it answered .*\|The server log says why/m, 'a check whose process is ended');
$locker->query_safe('COMMIT');

# --- a run of the queue that can't be begun ---

$holder->query_safe('BEGIN; LOCK TABLE tablesync.all_runs IN SHARE MODE');
my $run = app_sql($target, q{SELECT run_id FROM tablesync_run('guarded', wait => false)});
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event_type = 'Lock'});
$target->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event_type = 'Lock'});
$holder->query_safe('COMMIT');
app_sql($target, "SELECT tablesync_wait($run)");
is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run"), 'cancelled', 'a run that is cancelled before it has begun');

# --- freshness is of each replica by itself, and of runs that have succeeded and were no verify ---

make_replica('beside', 'id integer PRIMARY KEY, note text', q{SELECT i, 'n' || i FROM generate_series(1, 10) i}, q{, freshness => '1 hour'});
app_sql($target, q{SELECT tablesync_alter('guarded', freshness => '1 hour'); SELECT tablesync_run('guarded')});
$target->safe_psql('postgres', q{
	UPDATE tablesync.all_runs SET started_at = started_at - interval '2 hours', finished_at = finished_at - interval '2 hours' WHERE replica = 'guarded'::regclass});
app_sql($target, q{SELECT tablesync_verify('guarded'); SELECT tablesync_run('beside')});
is(app_sql($target, q{SELECT string_agg(replica || ' ' || kind, ', ') FROM tablesync_alerts WHERE kind = 'stale'}), 'guarded stale', 'an old replica beside a new one');
app_sql($target, q{SELECT tablesync_run('guarded')});
is(app_sql($target, q{SELECT count(*) FROM tablesync_alerts WHERE kind = 'stale'}), 0, 'until it has run');

# --- functions of ours that are called by anybody ---

for my $call (
	[ 'SELECT tablesync.note_write()', 'must be called as a trigger' ],
	[ q{SELECT tablesync.check_expression('guarded', 'id > 1', 'filter')}, 'guarded is not a foreign table' ],
	[ q{SELECT tablesync_cancel(4000000000::oid::regclass)}, 'relation with OID 4000000000 does not exist' ],
	[ q{SELECT tablesync_run(4000000000::oid::regclass)}, 'OID 4000000000 does not exist' ],
	[ q{SELECT tablesync.withdraw_run(4000000000::oid::regclass, 1)}, 'relation with OID 4000000000 does not exist' ])
{
	like(app_fails($target, $call->[0]), qr/$call->[1]/, "which says $call->[1]");
}
is($target->safe_psql('postgres', q{SELECT tablesync.newest_xid('{}') IS NULL, tablesync.log_alert(NULL, 'nothing', NULL)}), 't|', 'nothing of nothing');

$_->quit foreach $holder, $locker;
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});    # none of them hangs
done_testing();
