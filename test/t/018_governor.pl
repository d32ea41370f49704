# What a source has to bear: no statement takes long in chunk mode, chunks
# shrink where it is slow, rests grow, and people can see why.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => "log_min_duration_statement = 0\nautovacuum = off" });

# The source is slow because numbers in jsonb take long to be hashed: all 2500
# rows 400 ms, on a machine like this.
my ($ms) = $source->safe_psql('postgres', q{
	EXPLAIN (ANALYZE, TIMING off) SELECT count(hashtextextended(encode(jsonb_send(j), 'hex'), 0))
	FROM generate_series(1, 500), (SELECT jsonb_agg(n) AS j FROM generate_series(1, 1000) n OFFSET 0) one})
	=~ /Execution Time: ([\d.]+) ms/;
my $numbers = int(400 * 1000 * 500 / 2500 / $ms) + 1;
my $body = "(SELECT jsonb_agg(n) FROM generate_series(1, $numbers) n)";
diag("$numbers numbers in a row");
$source->safe_psql('postgres', qq{
	CREATE TABLE slow (id integer PRIMARY KEY, body jsonb);
	ALTER TABLE slow ALTER body SET STORAGE EXTERNAL;
	INSERT INTO slow SELECT i, $body FROM generate_series(1, 300) i;
	CREATE TABLE tiny (id integer PRIMARY KEY, body jsonb);
	INSERT INTO tiny SELECT i, '"b"' FROM generate_series(1, 60) i});
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.chunk_time = '50ms'});    # statements end after 200 ms
app_sql($target, q{
	SELECT tablesync_add('slow', 'src', 'public.slow', fingerprint => 'row', consistency => 'chunk', chunk_rows => 1000000, max_delete_fraction => 1);
	SELECT tablesync_add('tiny', 'src', 'public.tiny', consistency => 'chunk');
	ALTER TABLE slow ALTER body SET STORAGE EXTERNAL});    # no time for compression
is(run_counts($target, 'slow'), 'succeeded|300|0|0', 'loaded');
is(run_counts($target, 'tiny'), 'succeeded|60|0|0', 'loaded');

my $log_start = 0;

# Longest statement of a run at the source since the last call, in ms, and how
# many were cancelled because they took too long.
sub statements
{
	my $log = PostgreSQL::Test::Utils::slurp_file($source->logfile, $log_start);
	$log_start = -s $source->logfile;
	my ($longest) = sort { $b <=> $a } map { /tablesync\/.* duration: ([\d.]+) ms/ ? $1 : () } split /\n/, $log;
	my $cancelled = () = $log =~ /tablesync\/.*canceling statement due to statement timeout/g;
	return ($longest, $cancelled);
}

# Rows of each side, as one number.
sub is_equal
{
	my ($name) = @_;
	my $sum = 'SELECT count(*), sum(hashtextextended(t::text, 0)) FROM slow t';
	is($target->safe_psql('postgres', $sum), $source->safe_psql('postgres', $sum), $name);
	return;
}

sub last_run
{
	my ($replica, $column) = @_;
	return app_sql($target, "SELECT $column FROM tablesync_runs WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1");
}

# --- many new rows at the end, where the replica has no keys to cut at ---

statements();
$source->safe_psql('postgres', "INSERT INTO slow SELECT i, $body FROM generate_series(301, 2500) i");
is(run_counts($target, 'slow'), 'succeeded|2200|0|0', 'a chunk that has grown at the source only');
is_equal('identical');
my ($longest, $cancelled) = statements();
cmp_ok($cancelled, '>=', 1, 'the source took too long at first');
cmp_ok($longest, '<', 300, 'no statement took much longer than four times chunk_time');
cmp_ok(last_run('slow', 'chunks'), '>', 2, 'the chunk was cut');

# --- one chunk with an even number of rows ---

$target->safe_psql('postgres', "DELETE FROM tablesync.chunk WHERE replica = 'slow'::regclass");
$source->safe_psql('postgres', q{UPDATE slow SET body = '"new"' WHERE id % 800 = 600});
statements();
is(run_counts($target, 'slow'), 'succeeded|0|3|0', 'halved');
is_equal('identical');
($longest, $cancelled) = statements();
cmp_ok($cancelled, '>=', 1, 'the source took too long at first');
cmp_ok($longest, '<', 300, 'no statement took much longer than four times chunk_time');
cmp_ok(last_run('slow', 'chunks'), '>', 1, 'into several');
is(last_run('slow', 'consistency'), 'chunk', 'each with a snapshot of its own');

# one with an upper bound: the replica tells where to cut
$target->safe_psql('postgres', q{
	DELETE FROM tablesync.chunk WHERE replica = 'slow'::regclass;
	INSERT INTO tablesync.chunk (replica, chunk_no, lower_key, rows) VALUES ('slow', 0, NULL, 2000), ('slow', 1, '{2001}', 500)});
$source->safe_psql('postgres', q{UPDATE slow SET body = '"newer"' WHERE id % 800 = 600});
is(run_counts($target, 'slow'), 'succeeded|0|3|0', 'halved by the keys of the replica');
is_equal('identical');
(undef, $cancelled) = statements();
cmp_ok($cancelled, '>=', 1, 'the source took too long at first');
cmp_ok(last_run('slow', 'chunks'), '>', 2, 'into several');

# --- a chunk that can't be made smaller ---

$source->safe_psql('postgres', q{
	UPDATE tiny SET body = (SELECT jsonb_agg(n) FROM generate_series(1, 100000) n) WHERE id = 1;
	UPDATE tiny SET body = (SELECT body FROM tiny WHERE id = 1)});
like(app_fails($target, "SELECT tablesync_run('tiny')"),
	qr/ERROR:  57014: the source of public.tiny can't answer for 60 rows within 200 ms\nDETAIL:  The chunk can't be made smaller.\nHINT:  Increase tablesync.chunk_time/,
	'a chunk that can not be made smaller');
is($target->safe_psql('postgres', q{SELECT count(*) FROM tiny WHERE body = '"b"'}), 60, 'nothing changed');
$source->safe_psql('postgres', q{UPDATE tiny SET body = '"c"'});
is(run_counts($target, 'tiny'), 'succeeded|0|60|0', 'works when the rows are small again');

# --- locked ---

my $waits = q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'};
my $locker = session($source);
for my $timeout ('30s', '0')
{
	$target->safe_psql('postgres', "ALTER ROLE app SET tablesync.lock_timeout = '$timeout'");
	$source->safe_psql('postgres', "UPDATE tiny SET body = body || '\"d\"' WHERE id < 4");
	$locker->query_safe('BEGIN; LOCK TABLE tiny');
	my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('tiny', wait => false)");
	for (1 .. 3)
	{
		wait_until($source, $waits);
		select undef, undef, undef, 0.3;    # longer than a statement may wait
	}
	is(app_sql($target, "SELECT tablesync_wait($run_id, '0.1 s')"), 'running', "lock_timeout $timeout: goes on waiting");
	$locker->query_safe('COMMIT');
	is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', "lock_timeout $timeout: succeeds when the lock is gone");
	is_replica($source, $target, 'tiny', 'tiny', 'identical');
}
$target->safe_psql('postgres', "ALTER ROLE app SET tablesync.lock_timeout = '400ms'");
$locker->query_safe('BEGIN; LOCK TABLE tiny');
like(app_fails($target, "SELECT tablesync_run('tiny')"), qr/ERROR:  55P03: canceling statement due to lock timeout/, 'locked for too long');
$locker->query_safe('COMMIT');
$locker->quit;
$target->safe_psql('postgres', 'ALTER ROLE app RESET tablesync.lock_timeout');
is(run_counts($target, 'tiny'), 'succeeded|0|0|0', 'works again');

# --- the snapshot of a whole source ---

for my $chunk_rows (1000000, 400)    # one statement that takes too long, and many
{
	app_sql($target, "SELECT tablesync_alter('slow', consistency => 'auto', chunk_rows => $chunk_rows)");
	is(run_counts($target, 'slow'), 'succeeded|0|0|0', 'auto');
	is(last_run('slow', 'consistency'), 'snapshot', 'auto: one snapshot, if it is expected to be short');
	$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.max_snapshot_age = '100ms'});
	$source->safe_psql('postgres', q{UPDATE slow SET body = body || '"!"' WHERE id % 800 = 600});
	is(run_counts($target, 'slow'), 'succeeded|0|3|0', 'auto: goes on chunk by chunk when it is too long');
	is_equal('identical');
	is(last_run('slow', 'consistency'), 'chunk', 'and says so');
	like(last_run('slow', 'message'), qr/a snapshot of the whole source took too long, each chunk had its own/, 'with the reason');
	app_sql($target, "SELECT tablesync_alter('slow', consistency => 'snapshot')");
	$source->safe_psql('postgres', q{UPDATE slow SET body = body || '"!"' WHERE id % 800 = 600});
	like(app_fails($target, "SELECT tablesync_run('slow')"),
		qr/ERROR:  72000: scan of the source of public.slow takes longer than tablesync.max_snapshot_age\nDETAIL:  After 100 ms the source must be free to vacuum again.\nHINT:  Increase tablesync.max_snapshot_age, or set consistency to auto or chunk./,
		'snapshot: a clear error');
	$target->safe_psql('postgres', 'ALTER ROLE app RESET tablesync.max_snapshot_age');
	is(run_counts($target, 'slow'), 'succeeded|0|3|0', 'with more time it works');
}

# --- slower than usual ---

app_sql($target, q{SELECT tablesync_alter('slow', consistency => 'chunk', chunk_rows => 800)});
is(run_counts($target, 'slow'), 'succeeded|0|0|0', 'as usual');
is(last_run('slow', 'message IS NULL'), 't', 'nothing to report');
$target->safe_psql('postgres', q{UPDATE tablesync.replica SET scan_rate = (
	SELECT 20 * rows_scanned / nullif(EXTRACT(epoch FROM source_time), 0) FROM tablesync_runs WHERE replica = 'slow'::regclass ORDER BY run_id DESC LIMIT 1)
	WHERE replica = 'slow'::regclass});
my $usual = app_sql($target, q{SELECT scan_rate FROM tablesync.replica WHERE replica = 'slow'::regclass});
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('slow', wait => false)");
wait_until($target, q{SELECT reason ~ '^the source takes \d+\.\d times as long per row as usual$' AND throttled_for > '0.1 s' AND phase = 'scan' FROM tablesync_progress});
pass('slowness shows while it runs');
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'succeeded');
like(last_run('slow', 'message'), qr/^the source took up to \d+\.\d times as long per row as usual$/, 'and afterwards');
is(app_sql($target, q{SELECT scan_rate FROM tablesync.replica WHERE replica = 'slow'::regclass}), $usual, 'a slow run does not change what is usual');
$target->safe_psql('postgres', q{UPDATE tablesync.replica SET scan_rate = NULL});

# --- max_source_load ---

app_sql($target, q{SELECT tablesync_alter('slow', max_source_load => 0.2, chunk_rows => 400)});
run_counts($target, 'slow');
$run_id = app_sql($target, "SELECT run_id FROM tablesync_run('slow', wait => false)");
wait_until($target, q{SELECT throttled_for > '0' FROM tablesync_progress});
my $throttled = app_sql($target, 'SELECT EXTRACT(epoch FROM throttled_for) FROM tablesync_progress');
wait_until($target, "SELECT throttled_for > $throttled * interval '1 s' AND reason IS NULL FROM tablesync_progress");
pass('throttled_for grows');
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'succeeded');
is(last_run('slow', "duration > 3.5 * source_time"), 't', 'the source was busy for a fifth of the time at most');
is(last_run('slow', 'message IS NULL'), 't', 'which is nothing to report');
is_equal('identical');

done_testing();
