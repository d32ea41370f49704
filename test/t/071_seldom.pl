# What runs seldom meet: tables that are exchanged between two statements, rows that come with old transaction ids,
# odd keys, expressions and settings that are refused.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncProxy;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(target => { conf => 'tablesync.lock_timeout = 60s' });
my $locker = session($source);
my $waits_at_source = q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'};

sub at_source { return $source->safe_psql('postgres', $_[0]); }

# Do what an error's hint says, as app, which it names as a statement.
sub follow_hint
{
	my ($error) = @_;
	my ($hint) = $error =~ /^HINT:  ((?:SELECT|ALTER|TRUNCATE) .*;)$/m or return fail("no hint to follow: $error");
	app_sql($target, $hint);
	return;
}

# --- tables that are exchanged while the source is read ---

# Run a replica, and do something to it while its run waits for a lock at the source; how the run has ended.
sub meanwhile
{
	my ($replica, $role, $sql) = @_;
	$locker->query_safe("BEGIN; LOCK TABLE held");
	my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('$replica', wait => false)");
	wait_until($source, $waits_at_source);
	$target->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
	$locker->query_safe('COMMIT');
	# which need not be app's any more
	$target->safe_psql('postgres', "SELECT tablesync_wait($run_id)");
	return $target->safe_psql('postgres', "SELECT status || ': ' || message FROM tablesync_runs WHERE run_id = $run_id");
}

at_source(q{
	CREATE TABLE held (id integer PRIMARY KEY, note text);
	INSERT INTO held SELECT i, 'n' || i FROM generate_series(1, 500) i});
$target->safe_psql('postgres', 'CREATE ROLE heir; GRANT CREATE ON SCHEMA public TO heir');
app_sql($target, q{
	SELECT tablesync_add('held', 'src', 'public.held', fingerprint => 'row');
	SELECT tablesync_run('held')});
at_source(q{UPDATE held SET note = 'changed' WHERE id < 5});
is(meanwhile('held', 'app', 'ALTER TABLE held RENAME TO hidden'), 'failed: public.held was renamed during the run', 'the replica is renamed during a run');
app_sql($target, 'CREATE TABLE held (id integer PRIMARY KEY, note text)');
is(run_counts($target, 'hidden'), 'succeeded|0|4|0', 'the next run finds it under its new name');
is(app_sql($target, 'SELECT count(*) FROM held'), '0', 'and leaves alone what has the old one');
is_replica($source, $target, 'held', 'hidden', 'renamed');
app_sql($target, 'DROP TABLE held; ALTER TABLE hidden RENAME TO held');
at_source(q{UPDATE held SET note = 'once more' WHERE id < 5});
is(meanwhile('held', 'postgres', 'ALTER TABLE held OWNER TO heir'), 'failed: public.held was given to another owner during the run', 'it is given to somebody else');
$target->safe_psql('postgres', 'ALTER TABLE held OWNER TO app');
is(run_counts($target, 'held'), 'succeeded|0|4|0', 'and back');
is_replica($source, $target, 'held', 'held', 'of its owner again');

# --- a call for all, of whom one belongs to a role that may not log in, which matters to a worker before 17 ---

at_source('CREATE TABLE fresh (id integer PRIMARY KEY); INSERT INTO fresh VALUES (1)');
app_sql($target, q{SELECT tablesync_add('fresh', 'src', 'public.fresh')});
SKIP:
{
	skip 'owners need not log in', 5 if $target->pg_version >= 17;
	$target->safe_psql('postgres', 'ALTER TABLE fresh OWNER TO heir');
	my ($rc, $out, $err) = $target->psql('postgres', 'SELECT replica, status, message FROM tablesync_run() ORDER BY 1', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($out, qr/^fresh\|failed\|owner "heir" of replica public\.fresh is not permitted to log in$/m, 'an owner who may not log in');
	like($out, qr/^held\|succeeded\|/m, 'does not keep others from being run');
	like($err, qr/WARNING:  28000: owner "heir" of replica/, 'and there is a warning');
	($rc, $out, $err) = $target->psql('postgres', q{SELECT replica, status IN ('queued', 'started') FROM tablesync_run(wait => false) ORDER BY 1}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	is($out, "held|t\nfresh|f", 'neither do they if nobody waits');
	like($err, qr/WARNING:  28000: owner "heir" of replica/, 'with a warning, too');
	wait_until($target, 'SELECT count(*) = 0 FROM tablesync_progress');
	$target->safe_psql('postgres', 'ALTER TABLE fresh OWNER TO app');
}
is(run_counts($target, 'fresh'), 'succeeded|1|0|0', 'of its owner again');

# --- waiting for a run that nobody knows ---

is(app_sql($target, q{SELECT tablesync_wait(1000000, '0.1 s')}), 'started', 'a run that is not known yet may be about to start');
like(app_fails($target, 'SELECT tablesync_wait(1000000)'), qr/42704: run 1000000 does not exist.*HINT:  See tablesync_runs/s, 'after a while it is not');

# --- tablesync_check() of a replica that asks for xmin ---

at_source(q{
	CREATE TABLE checked (id integer PRIMARY KEY, j json, note text);
	INSERT INTO checked SELECT i, '{}', 'n' || i FROM generate_series(1, 500) i});
app_sql($target, q{
	SELECT tablesync_add('checked', 'src', 'public.checked', fingerprint => 'xmin');
	SELECT tablesync_run('checked')});
is(app_sql($target, q{SELECT count(*) FROM tablesync_check('checked') WHERE NOT ok AND check_name <> 'pg_cron'}), 0, 'tablesync_check() of a replica by xmin that has been run');

app_sql($target, q{
	CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	CREATE TRIGGER on_change BEFORE UPDATE ON checked FOR EACH ROW EXECUTE FUNCTION leave();
	CREATE TRIGGER off BEFORE UPDATE ON checked FOR EACH ROW EXECUTE FUNCTION leave();
	CREATE TRIGGER replica_only BEFORE UPDATE ON checked FOR EACH ROW EXECUTE FUNCTION leave();
	CREATE TRIGGER of_statement BEFORE UPDATE ON checked FOR EACH STATEMENT EXECUTE FUNCTION leave();
	CREATE TRIGGER later AFTER UPDATE ON checked FOR EACH ROW EXECUTE FUNCTION leave();
	ALTER TABLE checked DISABLE TRIGGER off, ENABLE REPLICA TRIGGER replica_only});
like(app_sql($target, q{SELECT detail FROM tablesync_check('checked') WHERE check_name = 'replica_table'}), qr/what its BEFORE triggers change differs from the source: on_change$/,
	'it names the triggers that would change what is written, and no others');
app_sql($target, 'DROP FUNCTION leave() CASCADE');
# its statement over the foreign table with xmin is planned, too: here it could not be
my $xmin_table = $target->safe_psql('postgres', q{SELECT tablesync.find_xmin_table('checked')});
$target->safe_psql('postgres', "ALTER FOREIGN TABLE $xmin_table ALTER COLUMN id TYPE text");
is(app_sql($target, q{SELECT check_name FROM tablesync_check('checked') WHERE NOT ok AND check_name <> 'pg_cron'}), 'statements', 'tablesync_check() looks at the statement with xmin');
is(run_counts($target, 'checked'), 'succeeded|0|0|0', 'a run makes that foreign table again');
is(app_sql($target, q{SELECT count(*) FROM tablesync_check('checked') WHERE NOT ok AND check_name <> 'pg_cron'}), 0, 'which is as it has to be then');

# --- what can not be compared before a run ---

at_source('ALTER TABLE checked ADD COLUMN more integer DEFAULT 7');
my $err = app_fails($target, q{SELECT * FROM tablesync_verify('checked')});
like($err, qr/55000: the columns of the source of public\.checked have changed.*DETAIL:  Replica and source can't be compared before a run has followed the change/s, 'a verify does not follow new columns');
follow_hint($err);
is(app_sql($target, q{SELECT count(*) FROM tablesync_verify('checked')}), 0, 'after the run of the hint there is nothing to find');
is_replica($source, $target, 'checked', 'checked', 'with the new column');

# --- both sides have changed a row, whose stamp is NULL or becomes it ---

at_source(q{CREATE TABLE stamped (id integer PRIMARY KEY, note text, updated_at timestamptz); INSERT INTO stamped SELECT i, 'n', '2020-01-01' FROM generate_series(1, 4) i});
app_sql($target, q{SELECT tablesync_add('stamped', 'src', 'public.stamped', fingerprint => 'version', version_column => 'updated_at')});
is(run_counts($target, 'stamped'), 'succeeded|4|0|0', 'rows with a stamp');
app_sql($target, q{UPDATE stamped SET note = 'mine', updated_at = CASE WHEN id > 2 THEN timestamptz '2019-01-01' END});
at_source(q{
	UPDATE stamped SET note = 'theirs', updated_at = clock_timestamp() WHERE id IN (2, 4);
	UPDATE stamped SET note = 'theirs', updated_at = NULL WHERE id IN (1, 3)});
is(app_sql($target, q{SELECT string_agg(concat_ws(' ', key->>'id', difference), ', ' ORDER BY key->>'id') FROM tablesync_verify('stamped')}),
	'1 different, 2 newer at source, 3 different, 4 newer at source', 'a stamp that has come is newer, one that is gone is not');

# --- policies and a foreign table that is gone ---

app_sql($target, 'ALTER TABLE held ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY');
$err = app_fails($target, q{SELECT tablesync_run('held')});
like($err, qr/55000: row security of replica public\.held is forced on its owner.*DETAIL:  Policies would hide rows/s, 'forced row security');
follow_hint($err);
is(run_counts($target, 'held'), 'succeeded|0|0|0', 'without it');
app_sql($target, 'DROP FOREIGN TABLE fresh_source');
like(app_fails($target, q{SELECT tablesync_run('fresh')}), qr/the foreign table of replica public\.fresh does not exist any more/, 'a foreign table that was dropped');

# --- a replica that has rows before it has been loaded ---

at_source('CREATE TABLE kept (id integer PRIMARY KEY, x xml, updated_at timestamptz); INSERT INTO kept VALUES (1, \'<a/>\', now())');
app_sql($target, q{
	SELECT tablesync_add('kept', 'src', 'public.kept', version_column => 'updated_at', fingerprint => 'version');
	INSERT INTO kept VALUES (2, '<b/>', now())});
$err = app_fails($target, q{SELECT tablesync_run('kept')});
like($err, qr/55000: replica public\.kept holds rows that no run has loaded.*DETAIL:  Column x can't be compared/s, 'rows of somebody else, of a type without a hash');
like($err, qr/HINT:  Empty it, and run again: TRUNCATE public\.kept;/, 'and what to do about them');
app_sql($target, 'TRUNCATE public.kept');
is(run_counts($target, 'kept'), 'succeeded|1|0|0', 'without them');

# --- rows that are gone, and come again before the run has looked twice ---

my $proxy = TablesyncProxy->start($source->port, 30);
my $proxy_port = $proxy->port;
$target->safe_psql('postgres', qq{
	CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$proxy_port', dbname 'postgres');
	GRANT USAGE ON FOREIGN SERVER far TO app;
	CREATE USER MAPPING FOR app SERVER far OPTIONS (user 'reader', password 'read-only')});
at_source('CREATE TABLE again (id integer PRIMARY KEY, note text); INSERT INTO again SELECT i, \'n\' FROM generate_series(1, 2000) i');
app_sql($target, q{SELECT tablesync_add('again', 'far', 'public.again', fingerprint => 'row', consistency => 'chunk', chunk_rows => 100, feed => true)});
is(run_counts($target, 'again'), 'succeeded|2000|0|0', 'a source far away');
at_source('DELETE FROM again WHERE id < 4');
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('again', wait => false)});
wait_until($target, q{SELECT count(*) = 1 FROM tablesync_progress WHERE phase = 'scan' AND chunks_done >= 2});
at_source(q{INSERT INTO again VALUES (2, 'back')});
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'one of three comes again meanwhile');
is(app_sql($target, "SELECT deleted, message FROM tablesync_runs WHERE run_id = $run_id"), '2|1 rows were deleted and inserted again at the source during the run; the next run takes them over', 'which the run says');
is(app_sql($target, q{SELECT string_agg(op::text || id, ' ' ORDER BY position) FROM again_changes WHERE op <> 't'}), 'd1 d3', 'the feed has the others');
is(run_counts($target, 'again'), 'succeeded|0|1|0', 'and the next run does');
is_replica($source, $target, 'again', 'again', 'again');
$proxy->stop;

# --- keys that are called as a column of our own statements ---

at_source(q{
	CREATE TABLE named (fingerprint integer, fingerprint_ text COLLATE "C", bucket integer, rows integer, PRIMARY KEY (fingerprint, fingerprint_, bucket, rows), note text, updated_at timestamptz);
	INSERT INTO named SELECT i % 10, 'k' || i, i, i, 'n', now() FROM generate_series(1, 1000) i});
for my $fingerprint (qw(row version xmin))
{
	app_sql($target, qq{SELECT tablesync_add('named_$fingerprint', 'src', 'public.named', fingerprint => '$fingerprint', version_column => 'updated_at')});
	is(run_counts($target, "named_$fingerprint"), 'succeeded|1000|0|0', "a key that is called fingerprint, by $fingerprint");
}
at_source(q{
	UPDATE named SET note = 'changed', updated_at = clock_timestamp() WHERE rows % 100 = 1;
	DELETE FROM named WHERE rows % 100 = 2;
	INSERT INTO named SELECT 1, 'new' || i, i, i, 'n', clock_timestamp() FROM generate_series(1, 5) i});
for my $fingerprint (qw(row version xmin))
{
	is(run_counts($target, "named_$fingerprint"), 'succeeded|5|10|10', "changes of it by $fingerprint");
	is_replica($source, $target, 'named', "named_$fingerprint", "the same by $fingerprint");
}

# --- by xmin: rows come, and others go, whose transactions ended long ago ---

at_source(q{
	CREATE TABLE parted (k text COLLATE "C", part integer, note text, PRIMARY KEY (k, part)) PARTITION BY LIST (part);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
	CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
	CREATE TABLE parted_3 (LIKE parted INCLUDING ALL);
	INSERT INTO parted SELECT md5(i::text), 1 + i % 2, 'n' || i FROM generate_series(1, 400) i;
	INSERT INTO parted_3 SELECT md5(i::text), 3, 'old' FROM generate_series(1, 200) i});
app_sql($target, q{SELECT tablesync_add('parted', 'src', 'public.parted', fingerprint => 'xmin', max_delete_fraction => 1)});
is(run_counts($target, 'parted'), 'succeeded|400|0|0', 'a load by xmin');
is(run_counts($target, 'parted'), 'succeeded|0|0|0', 'again');
at_source('ALTER TABLE parted ATTACH PARTITION parted_3 FOR VALUES IN (3)');
is(run_counts($target, 'parted'), 'succeeded|200|0|0', 'old rows come');
is_replica($source, $target, 'parted', 'parted', 'all of them');
at_source('ALTER TABLE parted DETACH PARTITION parted_3; UPDATE parted SET note = note WHERE part = 1');
is(run_counts($target, 'parted'), 'succeeded|0|0|200', 'they go, while others are written anew');
is_replica($source, $target, 'parted', 'parted', 'none of them is left');
at_source(q{
	ALTER TABLE parted DETACH PARTITION parted_2;
	ALTER TABLE parted ATTACH PARTITION parted_3 FOR VALUES IN (3);
	UPDATE parted SET note = 'new' WHERE part = 1});
is(run_counts($target, 'parted'), 'succeeded|200|200|200', 'as many come as go');
is_replica($source, $target, 'parted', 'parted', 'old rows for old rows');
at_source(q{
	DELETE FROM parted WHERE part = 1 AND note = 'new' AND k < '8';
	ALTER TABLE parted DETACH PARTITION parted_3;
	ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
	INSERT INTO parted SELECT md5(i::text), 1, 'newest' FROM generate_series(1001, 1100) i});
like(run_counts($target, 'parted'), qr/^succeeded\|300\|0\|/, 'and once more, with new ones and deleted ones');
is_replica($source, $target, 'parted', 'parted', 'in the same buckets');

# --- partitions of partitions ---

at_source(q{
	CREATE TABLE deep (id integer, part integer, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
	CREATE TABLE deep_1 PARTITION OF deep FOR VALUES IN (1) PARTITION BY RANGE (id);
	CREATE TABLE deep_1_1 PARTITION OF deep_1 FOR VALUES FROM (0) TO (1000);
	CREATE TABLE deep_1_2 PARTITION OF deep_1 FOR VALUES FROM (1000) TO (2000);
	INSERT INTO deep SELECT i, 1 FROM generate_series(1, 1999) i});
app_sql($target, q{SELECT tablesync_add('deep', 'src', 'public.deep')});
is(run_counts($target, 'deep'), 'succeeded|1999|0|0', 'a partition that is partitioned');
my $identity = q{SELECT tablesync.source_identity('deep_source')};
my $before = app_sql($target, $identity);
is(app_sql($target, $identity), $before, 'a source stays what it is');
at_source('VACUUM FULL deep_1_2');
isnt(app_sql($target, $identity), $before, 'until a partition of a partition is rewritten');

# --- a view that fails in the middle ---

at_source(q{
	CREATE TABLE behind (id integer PRIMARY KEY, note text);
	INSERT INTO behind SELECT i, 'n' || i FROM generate_series(1, 5000) i;
	ANALYZE behind;
	CREATE VIEW failing AS SELECT id, note FROM behind});
app_sql($target, q{SELECT tablesync_add('failing', 'src', 'public.failing', key_columns => '{id}', source_is_view => true)});
at_source('CREATE OR REPLACE VIEW failing AS SELECT id, note FROM behind WHERE 1 / (id - 1777) IS NOT NULL');
like(app_fails($target, q{SELECT tablesync_run('failing')}), qr/in the row that follows key \(id\)=\(1776\) in the source's order/, 'the key before the row is named');

# --- ranges of a bulk load with more bytes than one statement may read ---

# Two ranges, of half the rows each.  The first ends early in the second value of a; cut in pieces by b alone, it would go on into the third.
at_source(q{
	CREATE TABLE wide (a integer, b integer, note text, PRIMARY KEY (a, b));
	INSERT INTO wide SELECT v.a, b, repeat(chr(64 + b % 50), 500) FROM (VALUES (1, 51600), (2, 34200), (3, 34200)) v (a, rows), generate_series(1, v.rows) b;
	ANALYZE wide;
	ALTER DATABASE postgres SET log_statement = 'all'});
my $log = -s $source->logfile;
app_sql($target, q{SELECT tablesync_add('wide', 'src', 'public.wide')});
is(run_counts($target, 'wide'), 'succeeded|120000|0|0', 'a bulk load of wide rows');
at_source('ALTER DATABASE postgres RESET log_statement');
unlike(slurp_file($source->logfile, $log), qr/FROM public\.wide .* LIMIT \d{3,}::bigint$/m, 'whose pieces bring no row twice, so that it need not start over page by page');
is($target->safe_psql('postgres', 'SELECT count(*), sum(hashtextextended(w::text, 0)) FROM wide w'), at_source('SELECT count(*), sum(hashtextextended(w::text, 0)) FROM wide w'), 'each is there once');
is(run_counts($target, 'wide'), 'succeeded|0|0|0', 'and a run finds nothing');

# --- columns that are gone have no name ---

app_sql($target, 'CREATE TABLE lost (a integer, b integer); ALTER TABLE lost DROP COLUMN b');
is($target->safe_psql('postgres', q{SELECT tablesync.name_of('lost', 1), coalesce(tablesync.name_of('lost', 2), 'none'), coalesce(tablesync.name_of('lost', 3), 'none')}), 'a|none|none', 'neither that of before nor the one that the catalog gives them');

# --- expressions that are refused ---

for (
	[ 'id::information_schema.cardinal_number > 0', 'it has a domain' ],
	[ 'id > 0 AND CURRENT_DATE > date \'2020-01-01\'', 'it is not immutable' ],
	[ 'id > 0 AS x', 'it is not just one expression' ],
	[ 'held.* IS NOT NULL', 'columns have to be named one by one' ],
  )
{
	like(app_fails($target, q{SELECT tablesync_add('refused', 'src', 'public.held', filter => $f$} . $_->[0] . q{$f$)}), qr/$_->[1]/, "a filter is refused: $_->[1]");
}

# --- settings that are refused ---

my (undef, undef, $refusal) = $target->psql('postgres', q{
	LOAD 'tablesync';
	ALTER SYSTEM SET tablesync.export_directory = 'exports'});
like($refusal, qr/invalid value for parameter "tablesync\.export_directory".*DETAIL:  It must be an absolute path, or empty/s, 'a relative directory');

$locker->quit;
done_testing();
