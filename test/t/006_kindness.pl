# What the source sees of a run.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => "log_statement = all\nlog_line_prefix = '%a|%p|%m|'\nlog_connections = on\nlog_disconnections = on" });

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note varchar(20), updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 2000) i});
app_sql($target, "SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at', chunk_rows => 300, consistency => 'chunk')");
is(run_counts($target, 'items'), 'succeeded|2000|0|0', 'loaded');

# --- the session ---

my $ours = q{application_name LIKE 'tablesync/%'};
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE items');
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
wait_until($source, "SELECT count(*) = 1 FROM pg_stat_activity WHERE $ours AND wait_event_type = 'Lock'");
is($source->safe_psql('postgres', "SELECT usename, count(*) FROM pg_stat_activity WHERE $ours GROUP BY 1"), 'reader|1', 'one session, recognisable');
$locker->query_safe('COMMIT');
$locker->quit;
app_sql($target, "SELECT tablesync_wait($run_id)");
wait_until($source, "SELECT count(*) = 0 FROM pg_stat_activity WHERE $ours");
pass('the connection is released after the run');

# --- what it may do there ---

my $log_start = -s $source->logfile;
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'nothing changed');
my $log = PostgreSQL::Test::Utils::slurp_file($source->logfile, $log_start);
my @statements = grep { m{^tablesync/public.items\|} } split /\n/, $log;
cmp_ok(scalar(@statements), '>', 5, 'statements of the run are in the source\'s log');
is(scalar(grep { /statement: (?!START TRANSACTION|COMMIT|SET |DECLARE|FETCH|CLOSE|SELECT|DEALLOCATE|ABORT|SAVEPOINT|RELEASE)/ } @statements), 0, 'it only reads');
is(scalar(grep { /connection authorized/ } split /\n/, $log), 1, 'one connection for the whole run') or diag($log);
# a fixed number of statements, whatever the number of rows
my $chunks = app_sql($target, 'SELECT chunks FROM tablesync_runs ORDER BY run_id DESC LIMIT 1');
cmp_ok($chunks, '>', 3, "several chunks ($chunks)");
is(scalar(grep { /START TRANSACTION/ } @statements), $chunks + 2, 'one transaction for each chunk, two to look at the catalogs');
unlike($log, qr/FETCH 100 /, 'rows are not fetched by the hundred');

# --- snapshot: one transaction for all chunks ---

app_sql($target, "SELECT tablesync_alter('items', consistency => 'snapshot')");
$log_start = -s $source->logfile;
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'nothing changed');
$log = PostgreSQL::Test::Utils::slurp_file($source->logfile, $log_start);
is(scalar(grep { m{^tablesync/public.items\|.*START TRANSACTION} } split /\n/, $log), 2, 'snapshot: one transaction to look, one for the scan; rows seen in it prove that no rewrite hid any');

# --- rests ---

app_sql($target, "SELECT tablesync_alter('items', consistency => 'chunk', max_source_load => 0.1)");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'nothing changed');
is(app_sql($target, 'SELECT duration > 2 * source_time FROM tablesync_runs ORDER BY run_id DESC LIMIT 1'), 't', 'max_source_load 0.1: the source is left alone most of the time');

done_testing();
