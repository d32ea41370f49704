# How often a run asks its source, which may be far away.

use strict;
use warnings;

use TablesyncProxy;
use TablesyncTest;
use Test::More;

my $source = start_source(conf => "log_statement = all\nlog_line_prefix = '%a|'");
my $proxy = TablesyncProxy->start($source->port, 20);
my $target = start_target($source, port => $proxy->port);

# Run SQL as app; returns its result, round trips and connections.
sub counted
{
	my ($sql) = @_;
	$proxy->counts;
	my $result = app_sql($target, $sql);
	return ($result, $proxy->counts);
}

# --- tables of different kinds ---

$source->safe_psql('postgres', q{
	CREATE TYPE mood AS ENUM ('fine', 'bad');
	CREATE DOMAIN short AS varchar(20);
	CREATE TABLE plain (id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL DEFAULT now());
	CREATE TABLE typed (id integer PRIMARY KEY, mood mood, note text COLLATE "C", short short, updated_at timestamp NOT NULL DEFAULT now());
	CREATE TABLE parts (id integer PRIMARY KEY, note text) PARTITION BY RANGE (id);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (30);
	CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (30) TO (100);
	INSERT INTO plain SELECT i, 'n' || i FROM generate_series(1, 50) i;
	INSERT INTO typed SELECT i, 'fine', 'n' || i, 's' FROM generate_series(1, 50) i;
	INSERT INTO parts SELECT i, 'n' || i FROM generate_series(1, 50) i});
$target->safe_psql('postgres', "CREATE TYPE mood AS ENUM ('fine', 'bad')");
app_sql($target, "SELECT tablesync_add('$_', 'src', 'public.$_', version_column => 'updated_at')") for qw(plain typed);
app_sql($target, "SELECT tablesync_add('$_', 'src', 'public.$_', fingerprint => 'row')") for qw(parts);
app_sql($target, 'SELECT tablesync_run()') for 1 .. 2;

for my $table (qw(plain typed))
{
	my ($status, $round_trips, $connections) = counted("SELECT status, inserted + updated + deleted FROM tablesync_run('$table')");
	is("$status $connections", 'succeeded|0 1', "$table: nothing has changed");
	cmp_ok($round_trips, '<=', 18, "$table: ten round trips to connect, eight to look and to scan");
	is(app_sql($target, "SELECT source_time > 0.8 * duration - interval '150 ms' AND source_time > interval '0.3 s' FROM tablesync_runs ORDER BY run_id DESC LIMIT 1"),
		't', "$table: source_time is all the time that the run has waited");
	is_replica($source, $target, $table, $table, "$table: proved");
}

# a partition is a file of its own: one that is hidden would not show in the sum of all
my ($status, $round_trips) = counted("SELECT status FROM tablesync_run('parts')");
is($status, 'succeeded', 'parts: nothing has changed');
cmp_ok($round_trips, '<=', 23, 'parts: the second look at the files is not left out');

# --- what the look must still see ---

$source->safe_psql('postgres', "UPDATE plain SET note = 'new', updated_at = now() WHERE id = 7");
($status, $round_trips) = counted("SELECT status, updated FROM tablesync_run('plain')");
is($status, 'succeeded|1', 'one change is found');
cmp_ok($round_trips, '<=', 40, "with $round_trips round trips");
is_replica($source, $target, 'plain', 'plain', 'changed row');

$source->safe_psql('postgres', 'ALTER TABLE plain ADD COLUMN extra integer DEFAULT 3');
is(run_counts($target, 'plain'), 'succeeded|0|50|0', 'a column is added');
is(app_sql($target, 'SELECT count(extra) FROM plain WHERE extra = 3'), '50', 'and its values are taken over');
$source->safe_psql('postgres', 'VACUUM FULL plain');
is(run_counts($target, 'plain'), 'succeeded|0|0|0', 'other files');
is_replica($source, $target, 'plain', 'plain', 'a rewrite at the source');
$source->safe_psql('postgres', "ALTER TYPE mood RENAME VALUE 'bad' TO 'worse'");
like(app_fails($target, "SELECT tablesync_run('typed')"), qr/TS003/, 'a label that is renamed is noticed');
$target->safe_psql('postgres', "ALTER TYPE mood RENAME VALUE 'bad' TO 'worse'");
app_sql($target, "SELECT tablesync_resume('typed')");
is(run_counts($target, 'typed'), 'succeeded|0|0|0', 'and followed by hand');
$source->safe_psql('postgres', 'TRUNCATE plain');
like(run_counts($target, 'plain'), qr/succeeded\|0\|0\|50/, 'a table that has been emptied');
($status, $round_trips) = counted("SELECT status FROM tablesync_run('plain')");
cmp_ok($round_trips, '>', 18, 'no rows prove nothing: an empty source is looked at twice');

# --- rewritten while it is read: rows that a snapshot does not see are not gone ---

$source->safe_psql('postgres', "INSERT INTO plain SELECT i, 'n' || i FROM generate_series(1, 50) i");
is(run_counts($target, 'plain'), 'succeeded|50|0|0', 'it is filled again');
my $writer = session($source);
$writer->query_safe("BEGIN; TRUNCATE plain; INSERT INTO plain SELECT i, 'n' || i, now() FROM generate_series(1, 50) i");
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('plain', wait => false)");
wait_until($source, "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'");
$writer->query_safe('COMMIT');
$writer->quit;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'truncated and filled while the run waits for the table');
is(app_sql($target, "SELECT deleted FROM tablesync_runs WHERE run_id = $run_id"), '0', 'no row is deleted by mistake');
is_replica($source, $target, 'plain', 'plain', 'as the source is now');

# --- a source that hides its sessions, counters that are trusted ---

$source->safe_psql('postgres', 'REVOKE SELECT ON pg_stat_activity FROM PUBLIC');
is(run_counts($target, 'plain'), 'succeeded|0|0|0', 'a source that hides its sessions');
is(app_sql($target, 'SELECT source_horizon IS NULL FROM tablesync.run ORDER BY run_id DESC LIMIT 1'), 't', 'does without how far it has come');
$source->safe_psql('postgres', 'GRANT SELECT ON pg_stat_activity TO PUBLIC');
app_sql($target, "SELECT tablesync_alter('plain', trust_counters_for => '1 day')");
app_sql($target, "SELECT tablesync_run('plain')");
$source->safe_psql('postgres', 'SELECT pg_stat_force_next_flush()');
($status, $round_trips) = counted("SELECT status, message LIKE 'not scanned%' FROM tablesync_run('plain')");
is($status, 'succeeded|t', 'counters stand still');
cmp_ok($round_trips, '<=', 21, 'one transaction for the catalogs and the counters');

# --- tablesync_check ---

my ($checks, $check_trips) = counted("SELECT bool_and(ok) FROM tablesync_check('plain')");
is($checks, 't', 'tablesync_check finds nothing');
cmp_ok($check_trips, '<=', 35, "with $check_trips round trips");

$proxy->stop;
done_testing();
