# What a run remembers of the replica: it does not read it again while nobody
# else writes to it, and notices whoever does.  By xmin, and by version
# (037_memory_by_version.pl).

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my $fingerprint = $ENV{TABLESYNC_FINGERPRINT} // 'xmin';
my ($source, $target) = start_pair();

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO items SELECT i, 'n' || i, now() - interval '1 day' FROM generate_series(1, 20000) i});
app_sql($target, qq{
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at', fingerprint => '$fingerprint', chunk_rows => 2000, max_delete_fraction => 1);
	CREATE TABLE twins (note text)});

sub change_something
{
	$source->safe_psql('postgres', q{UPDATE items SET note = note || '+', updated_at = clock_timestamp() WHERE id % 4000 = 0});
	return;
}

my $user;    # a session that stays

# Rows of the replica that have been read so far.  The statistics are complete
# when our sessions, whose psql ends before them, and workers have ended.
sub rows_read
{
	my ($replica) = @_;
	wait_until($target, 'SELECT count(*) = ' . ($user ? 1 : 0) . q{ FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()});
	return $target->safe_psql('postgres',
		"SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relid = '$replica'::regclass");
}

# Run a replica; returns the counts and the rows read on the way.
sub run_and_read
{
	my ($replica) = @_;
	my $before = rows_read($replica);
	my $counts = run_counts($target, $replica);
	return ($counts, rows_read($replica) - $before);
}

# How a run ends that somebody has started.
sub report
{
	my ($run_id) = @_;
	my $status = app_sql($target, "SELECT tablesync_wait($run_id)");
	return "$status|" . app_sql($target, "SELECT inserted, updated, deleted FROM tablesync_runs WHERE run_id = $run_id");
}

sub last_message
{
	my ($replica) = @_;
	return app_sql($target, "SELECT coalesce(message, '') FROM tablesync_runs WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1");
}

# The next run finds nothing, and reads at most the ends of the replica's keys.
sub is_untouched
{
	my ($name) = @_;
	my ($counts, $read) = run_and_read('items');
	is($counts . ($read <= 2 ? ' unread' : " read $read"), 'succeeded|0|0|0 unread', $name);
	return;
}

# The next run repairs, says so, and the one after it reads nothing again.
sub is_repaired
{
	my ($counts, $name) = @_;
	is(run_counts($target, 'items'), "succeeded|$counts", "$name: repaired");
	like(last_message('items'), qr/somebody else had changed the replica in \d+ of \d+ chunks; it was repaired/, "$name: and reported");
	is_replica($source, $target, 'items', 'items', "$name: identical");
	is_untouched("$name: remembered again");
	return;
}

is(run_counts($target, 'items'), 'succeeded|20000|0|0', 'loaded');
app_sql($target, 'ANALYZE items');
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'chunks settle');
is_untouched('nothing has changed: the replica is not read');
change_something();
my ($counts, $read) = run_and_read('items');
is($counts, 'succeeded|0|5|0', 'five rows have changed');
cmp_ok($read, '<=', 5 * 2500 + 1000, 'only the chunks of these are read');
is_untouched('and what they hold is known again');
change_something();
($counts, $read) = run_and_read('items');
is($counts, 'succeeded|0|5|0', 'five rows have changed');
cmp_ok($read, '<=', 100, 'of chunks that changed before, only the rows that change are read');
is_replica($source, $target, 'items', 'items', 'identical');
is(last_message('items'), '', 'nothing to report');

# --- who else writes ---

app_sql($target, "UPDATE items SET updated_at = 'epoch' WHERE id <= 3");
is_repaired('0|3|0', 'UPDATE');
app_sql($target, 'DELETE FROM items WHERE id BETWEEN 600 AND 604');
is_repaired('5|0|0', 'DELETE');
app_sql($target, 'INSERT INTO items VALUES (-1, NULL, now()), (99999, NULL, now())');
is_repaired('0|0|2', 'INSERT');
app_sql($target, "COPY items FROM STDIN;\n-2\tcopied\tepoch\n\\.\n");
is_repaired('0|0|1', 'COPY');
app_sql($target, q{MERGE INTO items USING (VALUES (7), (-7)) v (id) ON v.id = items.id
	WHEN MATCHED THEN UPDATE SET updated_at = 'epoch' WHEN NOT MATCHED THEN INSERT VALUES (-7, '', now())});
is_repaired('0|1|1', 'MERGE');
app_sql($target, 'TRUNCATE items');
is_repaired('20000|0|0', 'TRUNCATE');
$target->safe_psql('postgres', "SET session_replication_role = replica; DELETE FROM items WHERE id = 77");
is_repaired('1|0|0', 'session_replication_role = replica');
app_sql($target, q{BEGIN; SAVEPOINT a; DELETE FROM items WHERE id = 1; ROLLBACK TO a; DELETE FROM items WHERE id = 2; COMMIT});
is_repaired('1|0|0', 'after a rolled-back subtransaction');
app_sql($target, q{BEGIN; DELETE FROM items WHERE id = 1; SAVEPOINT a; DELETE FROM items WHERE id = 2; ROLLBACK TO a; COMMIT});
is_repaired('1|0|0', 'before a rolled-back subtransaction');
app_sql($target, q{DO $$ BEGIN
	FOR i IN 1 .. 3 LOOP BEGIN DELETE FROM items WHERE id = i; IF i <> 2 THEN RAISE 'no'; END IF; EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$});
is_repaired('1|0|0', 'in a loop of subtransactions');
app_sql($target, q{
	CREATE FUNCTION write_too() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM items WHERE id = 5; RETURN NULL; END';
	CREATE TRIGGER write_too AFTER INSERT ON twins EXECUTE FUNCTION write_too();
	INSERT INTO twins VALUES (1)});
is_repaired('1|0|0', 'from a trigger of another table');

# not committed: nothing to notice
app_sql($target, 'BEGIN; DELETE FROM items; TRUNCATE items; ROLLBACK');
is_untouched('rolled back: the replica is not read');

# rewritten: the rows are the same
for my $rewrite ('VACUUM FULL items', 'CLUSTER items USING items_pkey', "ALTER TABLE items ALTER note TYPE text USING note || ''")
{
	app_sql($target, $rewrite);
	($counts, $read) = run_and_read('items');
	is($counts, 'succeeded|0|0|0', $rewrite);
	cmp_ok($read, '>=', 20000, 'read once more');
	is(last_message('items'), '', 'nothing to report');
}
is_untouched('and then no more');

# a column that comes back empty, with no statement on any row
app_sql($target, "SELECT tablesync_alter('items', fingerprint => 'row')");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'by row');
app_sql($target, 'ALTER TABLE items DROP note; ALTER TABLE items ADD note text');
is(run_counts($target, 'items'), 'succeeded|0|20000|0', 'column dropped and added again');
is($target->safe_psql('postgres', 'SELECT count(*) FROM items WHERE note IS NULL'), 0, 'filled');
app_sql($target, "SELECT tablesync_alter('items', fingerprint => '$fingerprint')");
is(run_counts($target, 'items'), 'succeeded|0|0|0', "by $fingerprint");
app_sql($target, qq{
	SELECT tablesync_remove('items', drop_replica => true);
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at', fingerprint => '$fingerprint', chunk_rows => 500, max_delete_fraction => 1)});
$source->safe_psql('postgres', 'DELETE FROM items WHERE id > 5000');
is(run_counts($target, 'items'), 'succeeded|5000|0|0', 'loaded again');
app_sql($target, 'ANALYZE items');
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'chunks settle');

# --- while a run is going on ---

my $locker = session($source);
$source->safe_psql('postgres', 'UPDATE items SET updated_at = clock_timestamp() WHERE id = 1');
$locker->query_safe('BEGIN; LOCK TABLE items');
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
app_sql($target, "UPDATE items SET updated_at = 'epoch' WHERE id = 4000; DELETE FROM items WHERE id = 4001");
$locker->query_safe('COMMIT');
$locker->quit;
is(report($run_id),
	'succeeded|1|2|0', 'somebody writes between the start of a run and APPLY');
is_replica($source, $target, 'items', 'items', 'identical');

$user = session($target);
$user->query_safe("BEGIN; DELETE FROM items WHERE id = 4002");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'a run while somebody writes');
$user->query_safe('COMMIT');
is_repaired('1|0|0', 'committed after a run');
$user->query_safe("BEGIN; DELETE FROM items WHERE id = 4002");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'a run while somebody writes');
$user->query_safe('ROLLBACK');
is_untouched('rolled back after a run');
$user->query_safe("BEGIN; DELETE FROM items WHERE id = 4003");
$source->safe_psql('postgres', 'UPDATE items SET updated_at = clock_timestamp() WHERE id = 10');
$run_id = app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event_type = 'Lock'});
$user->query_safe('COMMIT');
$user->quit;
undef $user;
is(report($run_id),
	'succeeded|1|1|0', 'committed while the run waits for it');
is_replica($source, $target, 'items', 'items', 'identical');

# --- crash ---

app_sql($target, 'DELETE FROM items WHERE id = 123');
$target->stop('immediate');
$target->start;
is_repaired('1|0|0', 'crash after a write');
$target->stop('immediate');
$target->start;
is_untouched('crash after a run');

# --- what is remembered is wrong ---

my $chunk = "tablesync.chunk SET %s WHERE replica = 'items'::regclass";
my %damage = (
	'digest changed' => 'digest = digest + 1',
	'rows changed' => 'rows = rows + 1',
	'buckets cut off' => 'buckets = substr(buckets, 1, 24)',
	'odd length' => 'buckets = substr(buckets, 1, 77)',
	'no buckets' => q{buckets = ''},
	'not bitmaps' => 'bucket_mask = 1023',
	'other bitmaps' => 'bucket_shift = 5',
	'shift out of range' => 'bucket_shift = 99, bucket_mask = 7',
	'a digest in a bucket changed' => 'buckets = set_byte(buckets, 20, 255 - get_byte(buckets, 20))',
	'a bucket moved' => 'buckets = set_byte(buckets, 7, get_byte(buckets, 7) + 100)',
	'all buckets moved' => q{buckets = (SELECT string_agg(int8send(('x' || encode(substr(buckets, 1 + 24 * i, 8), 'hex'))::bit(64)::bigint + 1) || substr(buckets, 9 + 24 * i, 16), ''::bytea ORDER BY i)
		FROM generate_series(0, length(buckets) / 24 - 1) i)},
	'two bits swapped' => 'buckets = set_bit(set_bit(buckets, 64, get_bit(buckets, 65)), 65, get_bit(buckets, 64))',
	'everything called known' => q{digest = 0, rows = 0, stale = false, buckets = '', bucket_shift = 6, bucket_mask = -1});
for my $name (sort keys %damage)
{
	# twice: chunks that are new are compared by all columns
	for my $note (qw(y z))
	{
		$source->safe_psql('postgres', qq{UPDATE items SET note = '$note', updated_at = clock_timestamp() WHERE id % 400 = 3});
		run_counts($target, 'items');
	}
	is($target->safe_psql('postgres', "SELECT count(*) FROM tablesync.chunk WHERE replica = 'items'::regclass AND buckets IS NULL"),
		0, "$name: buckets are remembered");
	$target->safe_psql('postgres', 'UPDATE ' . sprintf($chunk, $damage{$name}));
	# changes next to each other, of all kinds
	$source->safe_psql('postgres', q{
		WITH d AS (DELETE FROM items WHERE id % 1000 = 999)
		INSERT INTO items (id) SELECT max(id) + 1 FROM items;
		UPDATE items SET note = 'x', updated_at = clock_timestamp() WHERE id % 1000 = 3});
	my $result = run_counts($target, 'items');
	like($result, qr/^succeeded\|/, "$name: succeeded");
	is_replica($source, $target, 'items', 'items', "$name: identical");
	$source->safe_psql('postgres', q{INSERT INTO items SELECT i, 'back' FROM generate_series(999, 4999, 1000) i});
}
like(run_counts($target, 'items'), qr/^succeeded/, 'all back');

for my $gone ('chunk_no = 0', 'chunk_no = 3', 'chunk_no > 4', 'true')
{
	$target->safe_psql('postgres', "DELETE FROM tablesync.chunk WHERE replica = 'items'::regclass AND $gone");
	app_sql($target, 'DELETE FROM items WHERE id IN (2, 3300)');
	change_something();
	like(run_counts($target, 'items'), qr/^succeeded\|2\|\d+\|0$/, "chunks gone: $gone");
	is_replica($source, $target, 'items', 'items', 'identical');
}

# --- replicas whose writers leave no note ---

# trigger disabled, as --disable-triggers does, or dropped
app_sql($target, 'ALTER TABLE items DISABLE TRIGGER ALL; DELETE FROM items WHERE id = 11; ALTER TABLE items ENABLE TRIGGER ALL');
is(run_counts($target, 'items'), 'succeeded|1|0|0', 'trigger disabled for a while');
app_sql($target, 'ALTER TABLE items DISABLE TRIGGER tablesync_note_write; DELETE FROM items WHERE id = 11');
is(run_counts($target, 'items'), 'succeeded|1|0|0', 'trigger disabled');
app_sql($target, 'DROP TRIGGER tablesync_note_write ON items; DELETE FROM items WHERE id = 11');
is(run_counts($target, 'items'), 'succeeded|1|0|0', 'trigger dropped');
app_sql($target, 'DELETE FROM items WHERE id = 11');
is(run_counts($target, 'items'), 'succeeded|1|0|0', 'and still');
app_sql($target, "SELECT tablesync_remove('items', drop_replica => true)");

my $columns = '(id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL)';
sub add_replica
{
	my ($replica) = @_;
	app_sql($target, "SELECT tablesync_add('$replica', 'src', 'public.items', version_column => 'updated_at', fingerprint => '$fingerprint', chunk_rows => 500)");
	like(run_counts($target, $replica), qr/^succeeded\|50\d\d\|0\|0$/, "$replica loaded");
	is(run_counts($target, $replica), 'succeeded|0|0|0', "$replica is equal");
	return;
}

app_sql($target, qq{
	CREATE TABLE parted $columns PARTITION BY RANGE (id);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (3000);
	CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (3000) TO (MAXVALUE)});
add_replica('parted');
app_sql($target, "DELETE FROM parted_1 WHERE id = 5; TRUNCATE parted_2");
like(run_counts($target, 'parted'), qr/^succeeded\|20\d\d\|0\|0$/, 'written to by its partitions');
is_replica($source, $target, 'items', 'parted', 'identical');

# between SCAN and APPLY, too
change_something();
$user = session($target);
$user->query_safe("BEGIN; DELETE FROM parted_1 WHERE id = 50");
$run_id = app_sql($target, "SELECT run_id FROM tablesync_run('parted', wait => false)");
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event_type = 'Lock'});
$user->query_safe('COMMIT');
$user->quit;
undef $user;
is(report($run_id),
	'succeeded|1|1|0', 'written to by a partition between SCAN and APPLY');
is_replica($source, $target, 'items', 'parted', 'identical');

app_sql($target, qq{CREATE TABLE child $columns; CREATE TABLE parent (id integer); ALTER TABLE child INHERIT parent});
add_replica('child');
app_sql($target, 'DELETE FROM parent WHERE id <= 10');
is(run_counts($target, 'child'), 'succeeded|10|0|0', 'written to by its parent');
is_replica($source, $target, 'items', 'child', 'identical');

app_sql($target, qq{CREATE UNLOGGED TABLE fleeting $columns});
add_replica('fleeting');
$target->stop('immediate');
$target->start;
like(run_counts($target, 'fleeting'), qr/^succeeded\|50\d\d\|0\|0$/, 'unlogged, emptied by a crash');
is_replica($source, $target, 'items', 'fleeting', 'identical');

app_sql($target, "CREATE TABLE plain $columns");
add_replica('plain');
is($target->safe_psql('postgres', q{SELECT string_agg(replica::text, ',') FROM tablesync.replica WHERE tablesync.is_watched(replica)}),
	'plain', 'only what is watched is trusted');

# --- another version column ---

$source->safe_psql('postgres', q{
	CREATE TABLE versions (id integer PRIMARY KEY, a timestamp, b bigint, c uuid, d bytea, e timestamp NOT NULL DEFAULT '4713-01-01 BC');
	INSERT INTO versions SELECT i, now(), i, gen_random_uuid(), '\x01' FROM generate_series(1, 300) i});
app_sql($target, qq{SELECT tablesync_add('versions', 'src', 'public.versions', version_column => 'a', fingerprint => '$fingerprint')});
is(run_counts($target, 'versions'), 'succeeded|300|0|0', 'loaded');
for my $column (qw(b c d e a))
{
	app_sql($target, "SELECT tablesync_alter('versions', version_column => '$column')");
	my $new = { a => 'clock_timestamp()', b => 'b + 1000', c => 'gen_random_uuid()', d => q{d || '\x01'}, e => q{e + interval '1 s'} }->{$column};
	is(run_counts($target, 'versions'), 'succeeded|0|0|0', "version column $column");
	$source->safe_psql('postgres', "UPDATE versions SET $column = $new WHERE id <= 3");
	is(run_counts($target, 'versions'), 'succeeded|0|3|0', "version column $column: updates");
}
is_replica($source, $target, 'versions', 'versions', 'identical');

unlike(PostgreSQL::Test::Utils::slurp_file($target->logfile), qr/signal 11|signal 6/, 'nothing has crashed');
done_testing();
