# The end of a bulk load: a helper builds the indexes, and meanwhile the source
# says by one digest whether it still is what was loaded.  The source never
# waits for a lock here, and whoever fails, the load is completed.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my $rows = 105_000;
my ($source, $target) = start_pair(source => { conf => "autovacuum = off\nlog_statement = all\nlog_line_prefix = '%a: '" });

$source->safe_psql('postgres', qq{
	CREATE TABLE big (id integer PRIMARY KEY, code text, updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO big SELECT i, 'c' || i FROM generate_series(1, $rows) i;
	VACUUM ANALYZE big});

my $helpers = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND query LIKE '%(helper)%'};
my $wants_replica = q{FROM pg_locks WHERE relation = 'big'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted};
my $log_offset = 0;

# Statements that digest the source in the order of its blocks, since this was last asked.
sub digests
{
	my $log = PostgreSQL::Test::Utils::slurp_file($source->logfile, $log_offset);
	$log_offset += length $log;
	return scalar(() = $log =~ /^\tSELECT count\(\*\), sum\(.* FROM public\.big WHERE \(\(ctid >= /mg);
}

# Add the replica and load a part of it.
sub begin_load
{
	my ($settings) = @_;
	app_sql($target, "SELECT tablesync_add('big', 'src', 'public.big', version_column => 'updated_at', fingerprint => 'version', chunk_rows => 20000, max_source_load => 0.05 $settings)");
	my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('big', wait => false)});
	wait_until($target, q{SELECT count(*) FILTER (WHERE loaded) >= 3 FROM tablesync.chunk});
	app_sql($target, q{SELECT tablesync_cancel('big')});
	app_sql($target, "SELECT tablesync_wait($run_id)");
	app_sql($target, q{SELECT tablesync_alter('big', max_source_load => 1)});
	return;
}

my $reader;

# Start the run that completes a load.  A reader of the replica keeps the indexes
# from being built: the helper waits for its lock.
sub start_to_index
{
	$reader = session($target);
	$reader->query_safe('BEGIN; SELECT FROM big LIMIT 1');
	digests();
	my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('big', wait => false)});
	wait_until($target, "SELECT count(*) = 1 $wants_replica");
	return $run_id;
}

sub let_go
{
	$reader->query_safe('COMMIT');
	$reader->quit;
	return;
}

sub ends
{
	my ($run_id, $expected, $name) = @_;
	my $status = app_sql($target, "SELECT tablesync_wait($run_id)");
	is($status . app_sql($target, qq{SELECT ' ' || (inserted < $rows) || ' ' || updated || ' ' || deleted || ' ' || (proof->>'equal')
		FROM tablesync_runs WHERE run_id = $run_id}), $expected, $name);
	is($target->safe_psql('postgres', "SELECT count(*) FROM ($helpers) h"), 0, "$name: no process left");
	return;
}

sub is_complete
{
	my ($name) = @_;
	is(app_sql($target, q{SELECT loaded AND load_indexes IS NULL FROM tablesync.replica}), 't', "$name: complete");
	is(app_sql($target, q{SELECT indisprimary AND indisvalid FROM pg_index WHERE indrelid = 'big'::regclass}), 't', "$name: the primary key is there");
	ok(same_rows($source, $target, 'big'), "$name: identical");
	app_sql($target, q{SELECT tablesync_remove('big', drop_replica => true)});
	return;
}

# --- nothing has changed at the source ---

begin_load('');
my $run_id = start_to_index();
wait_until($target, q{SELECT phase = 'index' AND rows_scanned = 0 AND rows_estimated > 0 FROM tablesync_progress});
wait_until($source, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND xact_start IS NOT NULL});
my $asked;
for (1 .. 300)
{
	last if ($asked += digests()) >= 5;
	select undef, undef, undef, 0.1;
}
cmp_ok($asked, '>=', 5, 'the source is asked for its digest while the index is not there');
wait_until($source, q{SELECT count(*) > 0 AND count(*) FILTER (WHERE xact_start IS NOT NULL) = 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%'});
is($target->safe_psql('postgres', "SELECT count(*) $wants_replica"), 1, 'and does not wait for a lock here');
$source->safe_psql('postgres', q{
	UPDATE big SET code = 'changed', updated_at = clock_timestamp() WHERE id = 5;
	DELETE FROM big WHERE id = 60000;
	INSERT INTO big VALUES (200000, 'new')});
let_go();
ends($run_id, 'succeeded true 0 0 true', 'the digest is the proof of the load');
is(digests(), 0, 'and the only one');
is(app_sql($target, qq{SELECT consistency || ' ' || (proof->'source'->>'rows') FROM tablesync_runs WHERE run_id = $run_id}), "snapshot $rows", 'of one snapshot, before the changes');
is(app_sql($target, q{SELECT count(*) FROM big WHERE code IN ('changed', 'new')}), 0, 'the replica is what the source was then');
is(run_counts($target, 'big'), 'succeeded|1|1|1', 'the next run finds what has changed since');
is_complete('unchanged');

# --- it has changed since it was loaded ---

begin_load('');
$source->safe_psql('postgres', q{
	UPDATE big SET code = 'changed again', updated_at = clock_timestamp() WHERE id = 7;
	DELETE FROM big WHERE id = 8;
	INSERT INTO big VALUES (-1, 'new')});
$run_id = start_to_index();
let_go();
ends($run_id, 'succeeded true 1 1 true', 'changes since rows were loaded are found by the same run');
cmp_ok(digests(), '<=', 6, 'which does not ask for the digest of all rows again');
is_complete('changed');

# --- the answer is not believed for longer than it holds ---

begin_load('');
app_sql($target, q{INSERT INTO big VALUES (-5, 'mine', now())});
$run_id = start_to_index();
let_go();
ends($run_id, 'succeeded true 0 1 true', 'a row of somebody else in the replica');
is_complete('row of somebody else');

begin_load('');
$run_id = start_to_index();
for (1 .. 300)
{
	last if digests() >= 1;
	select undef, undef, undef, 0.1;
}
$source->safe_psql('postgres', 'DELETE FROM big WHERE id = 77');
$source->safe_psql('postgres', 'VACUUM FULL big');
$source->safe_psql('postgres', 'ANALYZE big');
let_go();
ends($run_id, 'succeeded true 0 1 true', 'the source is rewritten after its answer: scanned again');
is_complete('rewritten');

# --- the helper ends, the run ends ---

begin_load('');
$run_id = start_to_index();
$target->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM ($helpers) h");
wait_until($target, "SELECT count(*) = 0 FROM ($helpers) h");
wait_until($target, "SELECT count(*) = 1 $wants_replica");
let_go();
ends($run_id, 'succeeded true 0 0 true', 'without its helper a run builds the index itself');
is_complete('helper terminated');

begin_load('');
$run_id = start_to_index();
app_sql($target, q{SELECT tablesync_cancel('big')});
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'cancelled', 'cancelled');
wait_until($target, "SELECT count(*) = 0 FROM ($helpers) h");
let_go();
is(app_sql($target, q{SELECT loaded FROM tablesync.replica}), 'f', 'not loaded yet');
is(run_counts($target, 'big'), 'succeeded|0|0|0', 'the next run has only the index to build');
is_complete('cancelled');

begin_load('');
$run_id = start_to_index();
$source->stop('immediate');
let_go();
wait_until($target, "SELECT count(*) = 0 FROM ($helpers) h");
like(app_sql($target, "SELECT tablesync_wait($run_id)"), qr/failed|succeeded/, 'the source has gone');
$source->start;
$log_offset = 0;
like(run_counts($target, 'big'), qr/^succeeded\|0\|0\|0$/, 'the next run completes the load');
is_complete('source crashed');

# all rows are there, and the digest waits for a lock at the source
begin_load('');
$run_id = start_to_index();
app_sql($target, q{SELECT tablesync_cancel('big')});
app_sql($target, "SELECT tablesync_wait($run_id)");
wait_until($target, "SELECT count(*) = 0 FROM ($helpers) h");
let_go();
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE big');
$run_id = start_to_index();
my $waits = q{FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'};
wait_until($source, "SELECT count(*) = 1 $waits");
$source->safe_psql('postgres', "SELECT pg_terminate_backend(pid) $waits");
wait_until($source, "SELECT count(*) = 0 $waits");
$locker->query_safe('COMMIT');
$locker->quit;
is($target->safe_psql('postgres', "SELECT count(*) $wants_replica"), 1, 'the helper does not mind that the source could not answer');
let_go();
ends($run_id, 'succeeded true 0 0 true', 'nor does the run');
is_complete('no answer');

# --- where no snapshot of all rows is wanted, or nobody helps ---

begin_load(q{, consistency => 'chunk'});
$run_id = start_to_index();
select undef, undef, undef, 0.5;
is(digests(), 0, 'chunk by chunk: nobody asks for one digest');
let_go();
ends($run_id, 'succeeded true 0 0 true', 'chunk by chunk');
is(app_sql($target, "SELECT consistency FROM tablesync_runs WHERE run_id = $run_id"), 'chunk', 'and so it says');
is_complete('chunk by chunk');

begin_load(q{, workers => 1});
$run_id = start_to_index();
is($target->safe_psql('postgres', "SELECT count(*) FROM ($helpers) h"), 0, 'one process: no helper');
is(digests(), 0, 'and the source is asked when the index is there');
let_go();
ends($run_id, 'succeeded true 0 0 true', 'one process');
is_complete('one process');

# --- a source of unknown speed ---

# at a million rows a second, which is assumed of a source that nobody knows,
# its scan would take longer than a snapshot may be old
$source->safe_psql('postgres', q{
	INSERT INTO big SELECT i, 'c' || i FROM generate_series(300000, 900000) i;
	VACUUM ANALYZE big});
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.max_snapshot_age = '600ms'});
app_sql($target, q{SELECT tablesync_add('big', 'src', 'public.big', version_column => 'updated_at', fingerprint => 'version')});
like(run_counts($target, 'big'), qr/^succeeded\|\d+\|0\|0$/, 'loaded');
is(app_sql($target, q{SELECT consistency FROM tablesync_runs ORDER BY run_id DESC LIMIT 1}), 'snapshot', 'the source is found to be fast enough for one snapshot');
$target->safe_psql('postgres', 'ALTER ROLE app RESET tablesync.max_snapshot_age');
is_complete('unknown speed');

unlike(PostgreSQL::Test::Utils::slurp_file($target->logfile), qr/signal 11|signal 6|PANIC/, 'nothing has crashed');
done_testing();
