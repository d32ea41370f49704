# Whatever the planner believes of a foreign table, the source does the work:
# statistics of any kind, estimates of the source's, costs, keys of many columns.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => 'log_statement = all' });

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, a integer NOT NULL, b integer NOT NULL, note text, updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO items (id, a, b, note) SELECT i, i % 10, i % 10, 'n' || i FROM generate_series(1, 5000) i;
	ANALYZE items});

my %replicas = (by_version => 'version', by_row => 'row', by_xmin => 'xmin');

# Changes here and there, at one end, and gone ones; each run must see just them, and fetch no more than that.
sub run_all
{
	my ($believed) = @_;
	$source->safe_psql('postgres', q{
		UPDATE items SET note = note || '!', updated_at = clock_timestamp() WHERE id % 499 = 0;
		INSERT INTO items (id, a, b, note) SELECT max(id) + 1, 1, 1, 'new' FROM items;
		DELETE FROM items WHERE id IN (SELECT id FROM items WHERE a = 7 LIMIT 2)});
	for my $replica (sort keys %replicas)
	{
		like(run_counts($target, $replica), qr/^succeeded\|1\|\d+\|2$/, "$replica: a run, $believed");
		is_replica($source, $target, 'items', $replica, "$replica: identical, $believed");
		app_sql($target, "SELECT tablesync_verify('$replica')");
		is(app_sql($target, "SELECT string_agg(check_name || ' ' || coalesce(detail, ''), ', ') FROM tablesync_check('$replica') WHERE check_name = 'statements' AND NOT ok"), '', "$replica: check says so, too, $believed");
	}
	return;
}

for my $replica (sort keys %replicas)
{
	app_sql($target, "SELECT tablesync_add('$replica', 'src', 'public.items', version_column => 'updated_at', fingerprint => '$replicas{$replica}', chunk_rows => 1000)");
	is(run_counts($target, $replica), 'succeeded|5000|0|0', "$replica: loaded");
}
run_all('nothing believed');

my @foreign = split /\n/, app_sql($target, 'SELECT source FROM tablesync.replica');
sub on_each { my ($sql) = @_; app_sql($target, join '; ', map { sprintf $sql, $_ } @foreign); return; }

on_each('ANALYZE %s');
run_all('with statistics of the foreign table');
$target->safe_psql('postgres', join '; ', map { "CREATE STATISTICS ${_}_stats (ndistinct, dependencies, mcv) ON id, a, b FROM $_; CREATE STATISTICS ${_}_expression ON (id >> 6) FROM $_; ANALYZE $_" } @foreign);
run_all('with extended statistics');
on_each(q{ALTER FOREIGN TABLE %s OPTIONS (SET use_remote_estimate 'true')}) if app_sql($target, "SELECT count(*) FROM pg_foreign_table WHERE 'use_remote_estimate=false' = ANY (ftoptions) AND ftrelid = '$foreign[0]'::regclass") eq '1';
on_each(q{ALTER FOREIGN TABLE %s OPTIONS (ADD use_remote_estimate 'true')}) if app_sql($target, "SELECT count(*) FROM pg_foreign_table WHERE array_to_string(ftoptions, ' ') LIKE '%use_remote_estimate%' AND ftrelid = '$foreign[0]'::regclass") eq '0';
run_all('with the estimates of the source');
on_each(q{ALTER FOREIGN TABLE %s OPTIONS (DROP use_remote_estimate)});
for my $costs ([ 0, 0 ], [ '1e15', '1e10' ], [ 0, '1e10' ])
{
	$target->safe_psql('postgres', "ALTER SERVER src OPTIONS (ADD fdw_startup_cost '$costs->[0]', ADD fdw_tuple_cost '$costs->[1]')");
	run_all("costs @$costs");
	$target->safe_psql('postgres', 'ALTER SERVER src OPTIONS (DROP fdw_startup_cost, DROP fdw_tuple_cost)');
}
$target->safe_psql('postgres', q{
	ALTER ROLE app SET enable_hashagg = off; ALTER ROLE app SET enable_sort = off;
	ALTER ROLE app SET cpu_tuple_cost = 1000; ALTER ROLE app SET seq_page_cost = 0; ALTER ROLE app SET random_page_cost = 1e9});
run_all('with odd settings of the owner');
$target->safe_psql('postgres', 'ALTER ROLE app RESET ALL');

# --- keys of many columns ---

my @types = ('integer', 'bigint', 'smallint', 'text', 'uuid', 'numeric', 'date', 'timestamptz');
my %values = (
	integer => 'i', bigint => 'i::bigint', smallint => '(i %% 100)::smallint', text => q{'k' || i %% 7}, uuid => 'md5(i::text)::uuid',
	numeric => 'i / 4.0', date => q{'2020-01-01'::date + i %% 50}, timestamptz => q{'2020-01-01'::timestamptz + i * interval '1 s'});
$values{$_} =~ s/%%/%/g for keys %values;

for my $ncolumns (1, 2, 5, 7, 8, 12, 20, 32)
{
	# the last column tells rows apart
	my @key = map { $types[ $_ % @types ] } 1 .. $ncolumns - 1;
	push @key, 'integer';
	my $name = "keys_$ncolumns";
	my @columns = map { "k$_" } 1 .. $ncolumns;
	my $definition = join ', ', map { "$columns[$_] $key[$_]" } 0 .. $#key;
	my $select = join ', ', map { $values{ $key[$_] } } 0 .. $#key;
	my $list = join ', ', @columns;
	$source->safe_psql('postgres', qq{
		CREATE TABLE $name ($definition, v text, PRIMARY KEY ($list));
		INSERT INTO $name SELECT $select, 'v' || i FROM generate_series(1, 1500) i; ANALYZE $name});
	app_sql($target, "SELECT tablesync_add('$name', 'src', 'public.$name', chunk_rows => 400)");
	is(run_counts($target, $name), 'succeeded|1500|0|0', "a key of $ncolumns columns: loaded");
	for my $fingerprint ('xmin', 'row')
	{
		app_sql($target, "SELECT tablesync_alter('$name', fingerprint => '$fingerprint')");
		is(run_counts($target, $name), 'succeeded|0|0|0', "and nothing to do, by $fingerprint");
		$source->safe_psql('postgres', qq{
			DELETE FROM $name WHERE k$ncolumns = (SELECT max(k$ncolumns) FROM $name);
			UPDATE $name SET v = v || '!' WHERE k$ncolumns % 300 = 1});
		is(run_counts($target, $name), 'succeeded|0|5|1', 'changes');
		is(app_sql($target, "SELECT tablesync_verify('$name')"), app_sql($target, "SELECT tablesync_verify('$name')"), 'verified');
	}
	is_replica($source, $target, $name, $name, "a key of $ncolumns columns: identical");
}

done_testing();
