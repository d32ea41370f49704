# The target is published by logical decoding: what a run leaves in the WAL for
# others, and what a publication must not do to runs.

use strict;
use warnings;

use JSON::PP;
use TablesyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($source, $target) = start_pair(target => { conf => "wal_level = logical\nmax_wal_senders = 8\nmax_replication_slots = 8" });
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 1000) i});
app_sql($target, q{SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at')});

# --- the instant of the source ---

sub source_clock
{
	return $source->safe_psql('postgres', 'SELECT clock_timestamp()');
}

sub is_between
{
	my ($before, $after, $name) = @_;
	is(app_sql($target, "SELECT source_instant BETWEEN '$before' AND '$after' FROM tablesync_runs ORDER BY run_id DESC LIMIT 1"), 't', $name);
	return;
}

my $before = source_clock();
is(run_counts($target, 'items'), 'succeeded|1000|0|0', 'load');
is_between($before, source_clock(), 'a load began to read when the clock of the source says so');
$before = source_clock();
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'idle');
is_between($before, source_clock(), 'so did a run that has found nothing');
# a look that waits has its snapshot already
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE pg_catalog.pg_stat_bgwriter');
$before = source_clock();
my $slow = app_sql($target, q{SELECT run_id FROM tablesync_run('items', wait => false)});
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'reader' AND wait_event_type = 'Lock'});
my $meanwhile = $locker->query_safe(q{UPDATE items SET note = 'meanwhile', updated_at = clock_timestamp() WHERE id = 5; COMMIT; SELECT clock_timestamp()});
$locker->quit;
is(app_sql($target, "SELECT tablesync_wait($slow)"), 'succeeded', 'a run that has waited');
is(app_sql($target, "SELECT note FROM items WHERE id = 5") eq 'meanwhile' || app_sql($target, "SELECT source_instant BETWEEN '$before' AND '$meanwhile' FROM tablesync_runs WHERE run_id = $slow") eq 't', 1,
	'does not claim what was committed meanwhile');
run_counts($target, 'items');
$source->safe_psql('postgres', q{UPDATE items SET note = 'new', updated_at = now() WHERE id <= 3});
$before = source_clock();
is(run_counts($target, 'items'), 'succeeded|0|3|0', 'sync');
is_between($before, source_clock(), 'and one that has found something');
app_sql($target, q{SELECT tablesync_alter('items', trust_counters_for => '1 hour')});
run_counts($target, 'items');
$before = source_clock();
like(app_sql($target, q{SELECT message FROM tablesync_run('items')}), qr/^not scanned/, 'counters stand still');
is_between($before, source_clock(), 'and one that has not scanned');
app_sql($target, q{SELECT tablesync_alter('items', trust_counters_for => '0')});

# --- messages ---

$target->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('watcher', 'test_decoding')});

# What has been decoded since the last time, transaction by transaction: [message, changes..]; the extension's own tables are left out.
sub transactions
{
	my @transactions;
	my $rows = $target->safe_psql('postgres', q{SELECT data FROM pg_logical_slot_get_changes('watcher', NULL, NULL, 'include-xids', 'off')});
	for my $row (split /\n/, $rows)
	{
		if ($row eq 'BEGIN') { push @transactions, [] }
		elsif ($row =~ /^message: transactional: 1 prefix: tablesync, sz: (\d+) content:(.*)/)
		{
			is($1, length $2, 'the message is as long as it says') if $1 != length $2;
			push @{ $transactions[-1] }, decode_json($2);
		}
		elsif ($row =~ /^table (?!tablesync\.)(.+?): ([A-Z]+):/) { push @{ $transactions[-1] }, "$1 $2" }
	}
	return grep { @$_ } @transactions;
}

# A message as "kind replica inserted/updated/deleted", with * where the run is complete, and g in a group.
sub short
{
	my ($message) = @_;
	return $message unless ref $message;
	my $counts = join('/', map { $message->{$_} // '?' } qw(inserted updated deleted));
	return "$message->{kind} $message->{replica} $counts" . ($message->{complete} ? '*' : '') . (defined $message->{group_run} ? 'g' : '');
}

# A line for each transaction: what it says of itself, and its changes, equal ones that follow each other counted.
sub decoded
{
	my @lines;
	for my $transaction (transactions())
	{
		my @parts;
		for my $part (map { short($_) } @$transaction)
		{
			push @parts, [ $part, 0 ] if !@parts || $parts[-1][0] ne $part;
			$parts[-1][1]++;
		}
		push @lines, join(', ', map { $_->[1] > 1 ? "$_->[1] $_->[0]" : $_->[0] } @parts);
	}
	return join("\n", @lines);
}

$source->safe_psql('postgres', q{UPDATE items SET note = 'newer', updated_at = now() WHERE id <= 3; DELETE FROM items WHERE id = 1000; INSERT INTO items VALUES (1001, 'in'), (1002, 'in')});
run_counts($target, 'items');
my @transactions = transactions();
is(scalar @transactions, 1, 'one transaction');
my %message = %{ $transactions[0][0] };
is(join(' ', sort keys %message), 'complete deleted group_run inserted kind replica run source_time updated', 'members of its message');
is(app_sql($target, "SELECT run_id, source_instant = '$message{source_time}' FROM tablesync_runs ORDER BY run_id DESC LIMIT 1"), "$message{run}|t", 'are those of the run');
like($message{source_time}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/, 'in UTC');
$source->safe_psql('postgres', q{UPDATE items SET note = 'newest', updated_at = now() WHERE id <= 3; DELETE FROM items WHERE id = 1001; INSERT INTO items VALUES (1003, 'in'), (1004, 'in')});
run_counts($target, 'items');
is(decoded(), 'sync public.items 2/3/1*, public.items DELETE, 3 public.items UPDATE, 2 public.items INSERT', 'before the rows');
run_counts($target, 'items');
is(decoded(), 'sync public.items 0/0/0*', 'of a run that has found nothing, too');
app_sql($target, q{SELECT tablesync_alter('items', trust_counters_for => '1 hour')});
run_counts($target, 'items') for 1 .. 2;
is(decoded(), "sync public.items 0/0/0*\nsync public.items 0/0/0*", 'or that has not scanned');
app_sql($target, q{SELECT tablesync_alter('items', trust_counters_for => '0')});
app_sql($target, q{UPDATE items SET note = 'by hand' WHERE id = 5});
is(decoded(), 'public.items UPDATE', 'who else writes has none');
app_sql($target, q{SELECT count(*) FROM tablesync_verify('items')});
is(decoded(), '', 'nor has a verify that only tells');
app_sql($target, q{SELECT count(*) FROM tablesync_verify('items', repair => true)});
is(decoded(), 'verify public.items 0/1/0*, public.items UPDATE', 'one that repairs has');

# before images
my $before_image = q{SELECT string_agg(regexp_replace(data, '^table (\S+): (\w+):.*old-key: (.*) new-tuple:.*$|^table (\S+): (\w+): (.*)$', '\2\5 \3\6'), '; ')
	FROM pg_logical_slot_get_changes('watcher', NULL, NULL, 'include-xids', 'off') WHERE data LIKE 'table public.items: %'};
$source->safe_psql('postgres', q{UPDATE items SET note = 'v1', updated_at = '2024-01-01' WHERE id = 20});
run_counts($target, 'items');
$target->safe_psql('postgres', $before_image);
$target->safe_psql('postgres', 'ALTER TABLE items REPLICA IDENTITY FULL');
$source->safe_psql('postgres', q{UPDATE items SET note = 'v2' WHERE id = 20});
run_counts($target, 'items');
like($target->safe_psql('postgres', $before_image), qr/^UPDATE id\[integer\]:20 note\[text\]:'v1' updated_at/, 'full identity: the row before an update');
$source->safe_psql('postgres', 'DELETE FROM items WHERE id = 20');
run_counts($target, 'items');
like($target->safe_psql('postgres', $before_image), qr/^DELETE id\[integer\]:20 note\[text\]:'v2' updated_at/, 'and before a delete');
$target->safe_psql('postgres', 'ALTER TABLE items REPLICA IDENTITY DEFAULT');
$source->safe_psql('postgres', 'DELETE FROM items WHERE id = 21');
run_counts($target, 'items');
is($target->safe_psql('postgres', $before_image), 'DELETE id[integer]:21', 'usually its key');

# a failed run leaves nothing
app_sql($target, q{ALTER TABLE items ADD CONSTRAINT refused CHECK (note <> 'refused')});
$source->safe_psql('postgres', q{UPDATE items SET note = 'refused', updated_at = now() WHERE id = 7});
app_fails($target, q{SELECT tablesync_run('items')});
is(decoded(), '', 'a run that fails says nothing');
app_sql($target, q{ALTER TABLE items DROP CONSTRAINT refused});
run_counts($target, 'items');
decoded();

# loads: by page and in bulk
$source->safe_psql('postgres', q{CREATE TABLE few (id integer PRIMARY KEY, note text); INSERT INTO few SELECT i, 'n' FROM generate_series(1, 50) i;
	CREATE TABLE many (id integer PRIMARY KEY, note text); INSERT INTO many SELECT i, 'n' FROM generate_series(1, 250000) i; ANALYZE few, many});
app_sql($target, q{SELECT tablesync_add('few', 'src', 'public.few', sync_group => 'g', consistency => 'snapshot'); SELECT tablesync_add('many', 'src', 'public.many', workers => 2)});
is(run_counts($target, 'few'), 'succeeded|50|0|0', 'a load by page');
is(decoded(), "load public.few 50/0/0, 50 public.few INSERT\nload public.few 0/0/0*", 'page by page, and the end');
is(run_counts($target, 'many'), 'succeeded|250000|0|0', 'a load in bulk');
my @parts = transactions();
my $last = pop @parts;
is(short($last->[0]), 'load public.many 0/0/0*', 'the end comes last');
is(join(' ', map { short($_->[0]) } @parts), join(' ', ('load public.many ?/0/0') x @parts), 'ranges don\'t know before how many rows they are');
is(scalar(grep { $_->[0]{source_time} ne $last->[0]{source_time} || $_->[0]{run} != $last->[0]{run} } @parts), 0, 'of one run');
my $loaded = 0;
$loaded += @$_ - 1 for @parts;
is($loaded, 250000, 'all rows are there');

# a load that begins again: somebody has put a key in twice, which a publication would have refused
app_sql($target, q{SELECT tablesync_add('again', 'src', 'public.many', workers => 2, max_source_load => 0.02)});
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('again', wait => false)});
wait_until($target, q{SELECT count(*) FILTER (WHERE loaded) BETWEEN 1 AND count(*) - 1 FROM tablesync.chunk WHERE replica = 'again'::regclass});
app_sql($target, q{INSERT INTO again SELECT * FROM again LIMIT 1; SELECT tablesync_alter('again', max_source_load => 1); SELECT tablesync_cancel('again')});
app_sql($target, "SELECT tablesync_wait($run_id)");
is((split /\|/, run_counts($target, 'again'))[0], 'succeeded', 'begun again');
@parts = map { join(' ', map { short($_) } grep { ref $_ || /TRUNCATE/ } @$_) } transactions();
is(scalar(grep { $_ eq 'public.again TRUNCATE' } @parts), 1, 'TRUNCATE comes without a message');
is($parts[-1], 'load public.again 0/0/0*', 'and the end is told');
is_replica($source, $target, 'many', 'again', 'exact');

# a column that no fingerprint covers, and a name that has to be quoted
$source->safe_psql('postgres', q{CREATE TABLE "a ""b" (id integer PRIMARY KEY, v integer); INSERT INTO "a ""b" SELECT i, i FROM generate_series(1, 3) i});
app_sql($target, q{SELECT tablesync_add('"a ""b"', 'src', 'public."a ""b"', fingerprint => 'version', version_column => 'v')});
run_counts($target, '"a ""b"');
decoded();
$source->safe_psql('postgres', q{ALTER TABLE "a ""b" ADD COLUMN j xml DEFAULT '<a/>'});
run_counts($target, '"a ""b"');
is(decoded(), q{sync public."a ""b" 0/3/0*, 3 public."a ""b" UPDATE}, 'a column that is fetched for all rows');

# a feed is written in the same transaction
app_sql($target, q{SELECT tablesync_add('fed', 'src', 'public.few', feed => true)});
run_counts($target, 'fed');
$source->safe_psql('postgres', q{UPDATE few SET note = 'fed' WHERE id < 3});
decoded();
run_counts($target, 'fed');
is(decoded(), 'sync public.fed 0/2/0*, 4 public.fed_changes INSERT, 2 public.fed UPDATE', 'a feed is part of the transaction');

# a group
app_sql($target, q{SELECT tablesync_alter('items', sync_group => 'g', consistency => 'snapshot')});
$source->safe_psql('postgres', q{UPDATE items SET note = 'group', updated_at = now() WHERE id = 3; UPDATE few SET note = 'group' WHERE id < 3});
run_counts($target, 'few');
is(decoded(), 'sync public.few 0/2/0*g, 2 public.few UPDATE, sync public.items 0/1/0*g, public.items UPDATE', 'a group is one transaction with a message for each replica');
app_sql($target, q{SELECT tablesync_alter('items', sync_group => '')});
$target->safe_psql('postgres', q{SELECT pg_drop_replication_slot('watcher')});

# --- everything is published ---

is($target->safe_psql('postgres', q{
	SELECT string_agg(c.relname, ' ') FROM pg_class c
	WHERE c.relnamespace = 'tablesync'::regnamespace AND c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)}),
	'', 'each table of the extension has a key');
$target->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES; ALTER ROLE app SET tablesync.keep_runs = 3');
app_sql($target, q{
	CREATE TABLE more (LIKE items INCLUDING ALL);
	SELECT tablesync_add('more', 'src', 'public.items', version_column => 'updated_at')});
run_counts($target, 'more');
app_sql($target, q{UPDATE items SET note = 'by hand' WHERE id <= 10; UPDATE more SET note = 'by hand' WHERE id <= 10});
is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$_')"), 10, "$_: differences") for qw(items more);
is(app_sql($target, q{SELECT count(*), count(DISTINCT (run_id, difference_no)) FROM tablesync.difference}), '20|20', 'are numbered');
is(run_counts($target, 'items'), 'succeeded|0|10|0', 'the next run repairs them');
run_counts($target, 'items') for 1 .. 4;
is(app_sql($target, q{SELECT count(*) FROM tablesync.difference d JOIN tablesync.run r USING (run_id) WHERE r.replica = 'items'::regclass}), 10,
	'the last success of each kind stays');
app_sql($target, q{UPDATE items SET note = 'by hand' WHERE id = 5});
app_sql($target, q{SELECT count(*) FROM tablesync_verify('items')});
run_counts($target, 'items') for 1 .. 5;
is(app_sql($target, q{SELECT count(*) FROM tablesync.difference d JOIN tablesync.run r USING (run_id) WHERE r.replica = 'items'::regclass}), 1,
	'runs are pruned, with their differences');
app_sql($target, q{SELECT tablesync_remove('more')});
is(app_sql($target, q{SELECT count(*) FROM tablesync.difference d WHERE d.replica::oid NOT IN (SELECT replica FROM tablesync.replica)}), 0, 'a replica is removed');
app_sql($target, q{DROP TABLE items, more; SELECT tablesync_add('items', 'items_source', version_column => 'updated_at')});
is($target->safe_psql('postgres', q{SELECT (SELECT count(*) FROM tablesync.all_differences), (SELECT count(*) FROM tablesync.all_runs WHERE replica::oid NOT IN (SELECT oid FROM pg_class))}), '0|0', 'a replica is dropped');
$target->safe_psql('postgres', 'DROP PUBLICATION everything; ALTER ROLE app RESET tablesync.keep_runs');

done_testing();
