# trust_counters_for: while the source's statistics counters do not move, a run
# does not scan; whatever might hide a change makes it scan.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => "wal_level = replica\nmax_wal_senders = 4\nautovacuum = off" });

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 1000) i;
	CREATE TABLE parts (id integer PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE parts_1 PARTITION OF parts DEFAULT;
	INSERT INTO parts SELECT generate_series(1, 10)});
app_sql($target, q{
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at', max_delete_fraction => 1, trust_counters_for => '1 hour');
	SELECT tablesync_add('parts', 'src', 'public.parts', trust_counters_for => '1 hour')});

# Scans of the source's table, after our sessions there have ended.
sub scans
{
	my ($table) = @_;
	wait_until($source, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%'});
	return $source->safe_psql('postgres', "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = '$table'");
}

sub counters
{
	return $source->safe_psql('postgres', q{SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relname = 'items'});
}

# Change the source; a session reports what it has done a moment after it has ended.
sub change
{
	my ($sql) = @_;
	my $before = counters();
	$source->safe_psql('postgres', $sql);
	wait_until($source, "SELECT n_tup_ins + n_tup_upd + n_tup_del > $before FROM pg_stat_user_tables WHERE relname = 'items'");
	return;
}

sub is_skipped
{
	my ($name) = @_;
	my $before = scans('items');
	is(run_counts($target, 'items'), 'succeeded|0|0|0', "$name: skipped");
	is(scans('items'), $before, "$name: the source's table was not touched");
	like(app_sql($target, 'SELECT message FROM tablesync_status WHERE replica = \'items\'::regclass'),
		qr/^not scanned: the source's counters have not moved since \d{4}-/, "$name: and says so");
	is_replica($source, $target, 'items', 'items', "$name: recorded with a proof");
	return;
}

# The next run scans, with this result; the one after it does not.
sub is_scanned
{
	my ($counts, $name) = @_;
	is(run_counts($target, 'items'), "succeeded|$counts", "$name: scanned");
	is(app_sql($target, 'SELECT message LIKE \'not scanned%\' FROM tablesync_status WHERE replica = \'items\'::regclass') || 'f', 'f', "$name: not skipped");
	is_replica($source, $target, 'items', 'items', "$name: identical");
	is_skipped($name);
	return;
}

is(run_counts($target, 'items'), 'succeeded|1000|0|0', 'loaded');
is_scanned('0|0|0', 'after a load');
is_skipped('again');
my $proof = q{SELECT proof FROM tablesync_runs WHERE replica = 'items'::regclass AND kind <> 'verify' ORDER BY run_id DESC LIMIT 1};
my $proved = app_sql($target, $proof);
app_sql($target, q{SELECT tablesync_verify('items')});
is_skipped('after a verify');
is(app_sql($target, $proof), $proved, 'by the proof of the run that has scanned, not by that of the verify');
$target->safe_psql('postgres', q{UPDATE tablesync.all_runs SET replica_digest = replica_digest + 1 WHERE run_id = (SELECT max(run_id) FROM tablesync.all_runs WHERE replica = 'items'::regclass)});
is_scanned('0|0|0', 'a run without a proof');
is(app_sql($target, q{SELECT rows, state FROM tablesync_status WHERE replica = 'items'::regclass}), '1000|ok', 'status');

change('INSERT INTO items VALUES (2000)');
is_scanned('1|0|0', 'INSERT');
change('UPDATE items SET updated_at = clock_timestamp() WHERE id = 1');
is_scanned('0|1|0', 'UPDATE');
change('DELETE FROM items WHERE id = 2');
is_scanned('0|0|1', 'DELETE');
change("COPY items FROM STDIN;\n3000\tcopied\tepoch\n\\.\n");
is_scanned('1|0|0', 'COPY');
change('BEGIN; DELETE FROM items; ROLLBACK');
is_scanned('0|0|0', 'rolled back');

# a transaction that is open during a scan
my $writer = session($source);
$writer->query_safe('BEGIN; UPDATE items SET updated_at = clock_timestamp() WHERE id = 5');
change('UPDATE items SET updated_at = clock_timestamp() WHERE id = 6');
is(run_counts($target, 'items'), 'succeeded|0|1|0', 'a scan while somebody writes');
my $before = counters();
$writer->query_safe('COMMIT');
$writer->quit;
wait_until($source, "SELECT n_tup_ins + n_tup_upd + n_tup_del > $before FROM pg_stat_user_tables WHERE relname = 'items'");
is_scanned('0|1|0', 'and commits after it');

# other files
$source->safe_psql('postgres', 'CREATE TABLE saved AS SELECT * FROM items; TRUNCATE items');
is_scanned('0|0|1001', 'TRUNCATE');
change('INSERT INTO items SELECT * FROM saved');
is_scanned('1001|0|0', 'filled again');
$source->safe_psql('postgres', "ALTER TABLE items ALTER note TYPE text USING note || ''");
is_scanned('0|0|0', 'rewritten');

# counters that start again
$source->safe_psql('postgres', "SELECT pg_stat_reset_single_table_counters('items'::regclass)");
is_scanned('0|0|0', 'counters of the table reset');
$source->safe_psql('postgres', 'SELECT pg_stat_reset()');
is_scanned('0|0|0', 'all counters reset');
for my $crash (1, 2)
{
	# the second time, nothing but the date of the crash tells
	change('UPDATE items SET updated_at = clock_timestamp() WHERE id = 7') if $crash == 2;
	$source->stop('immediate');
	$source->start;
	is_scanned($crash == 2 ? '0|1|0' : '0|0|0', "crash $crash of the source");
}

# the replica
app_sql($target, 'DELETE FROM items WHERE id = 9');
is_scanned('1|0|0', 'somebody writes to the replica');
app_sql($target, 'VACUUM FULL items');
is_scanned('0|0|0', 'the replica is rewritten');
$target->safe_psql('postgres', "DELETE FROM tablesync.chunk WHERE replica = 'items'::regclass");
$target->safe_psql('postgres', q{ALTER TABLE items DISABLE TRIGGER tablesync_note_write; DELETE FROM items WHERE id = 11});
is(run_counts($target, 'items'), 'succeeded|1|0|0', 'nobody watches the replica');
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'still nobody does');
is(app_sql($target, "SELECT message IS NULL FROM tablesync_status WHERE replica = 'items'::regclass"), 't', 'and the scan is not skipped');
app_sql($target, 'ALTER TABLE items ENABLE ALWAYS TRIGGER tablesync_note_write');

# settings
run_counts($target, 'items');
is_skipped('watched again');
app_sql($target, "UPDATE items SET note = 'mine' WHERE id = 12");
is_scanned('0|1|0', 'a note of the replica has changed');
app_sql($target, "SELECT tablesync_alter('items', fingerprint => 'version')");
is_scanned('0|0|0', 'fingerprint version');
app_sql($target, "UPDATE items SET note = 'mine' WHERE id = 12");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'not seen by version');
like(app_sql($target, q{SELECT message FROM tablesync_status WHERE replica = 'items'::regclass}), qr/^somebody|^$/, 'scanned, for somebody had written');
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'not scanned');
like(app_sql($target, q{SELECT message FROM tablesync_status WHERE replica = 'items'::regclass}), qr/^not scanned/, 'again skipped');
app_sql($target, "SELECT tablesync_alter('items', fingerprint => 'row')");
is_scanned('0|1|0', 'fingerprint row');
app_sql($target, "SELECT tablesync_alter('items', fingerprint => 'xmin')");
is_scanned('0|0|0', 'fingerprint xmin again');
app_sql($target, "SELECT tablesync_alter('items', trust_counters_for => '1 microsecond')");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'run');
is(app_sql($target, "SELECT message IS NULL FROM tablesync_status WHERE replica = 'items'::regclass"), 't', 'expired');

# a failure in between
app_sql($target, "SELECT tablesync_alter('items', trust_counters_for => '1 hour')");
run_counts($target, 'items');
$source->safe_psql('postgres', 'REVOKE SELECT ON items FROM reader');
is_skipped('no privilege needed for counters');
change('UPDATE items SET updated_at = clock_timestamp() WHERE id = 13');
like(app_fails($target, "SELECT tablesync_run('items')"), qr/permission denied/, 'a scan fails');
$source->safe_psql('postgres', 'GRANT SELECT ON items TO reader');
is_scanned('0|1|0', 'the next one finds what it would have');

# sources whose counters do not tell
like(run_counts($target, 'parts'), qr/^succeeded/, 'partitioned');
is(run_counts($target, 'parts'), 'succeeded|0|0|0', 'partitioned') for 1 .. 2;
is(app_sql($target, "SELECT message IS NULL FROM tablesync_status WHERE replica = 'parts'::regclass"), 't', 'partitioned: never skipped');

$source->append_conf('pg_hba.conf', "local replication all trust\n");
$source->reload;
$source->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($source, 'copy', has_streaming => 1);
$standby->start;
$target->safe_psql('postgres', "ALTER SERVER src OPTIONS (SET port '" . $standby->port . "')");
for my $id (14, 15)
{
	$source->safe_psql('postgres', "UPDATE items SET updated_at = clock_timestamp() WHERE id = $id");
	$source->wait_for_catchup($standby, 'replay', $source->lsn('write'));
	is(run_counts($target, 'items'), 'succeeded|0|1|0', 'a standby: never skipped');
}
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'a standby: scanned');
like(app_sql($target, "SELECT message FROM tablesync_status WHERE replica = 'items'::regclass"), qr/^the source is a hot standby on which no transaction has ended/, 'a standby: never skipped');
$standby->stop('immediate');

done_testing();
