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
is($target->safe_psql('postgres', q{SELECT (SELECT count(*) FROM tablesync.all_differences), (SELECT count(*) FROM tablesync.all_runs)}), '0|0', 'a replica is dropped');
$target->safe_psql('postgres', 'DROP PUBLICATION everything; ALTER ROLE app RESET tablesync.keep_runs');

done_testing();
