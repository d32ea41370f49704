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

done_testing();
