# A source that lies: its catalogs and rows are views of random nonsense, a few
# lies at a time.  An error of the run is right; a crash, a run that does not
# end, memory without bound, or a replica that is not right once the lies are
# over is not.
#
# make fuzz-source INPUTS=10000 tries more; TABLESYNC_SEED repeats a run.

use strict;
use warnings;

use IPC::Run;
use List::Util qw(max);
use TablesyncTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed = $ENV{TABLESYNC_SEED} // int(rand(1_000_000));
my $inputs = $ENV{INPUTS} // 100;
srand($seed);
diag("TABLESYNC_SEED=$seed, $inputs inputs");

my $max_kb = 300 * 1024;
my $max_seconds = 300;    # five attempts, each of which looks and scans, for tablesync.max_snapshot_age at most
my $inputs_between_truths = 25;

my ($source, $target) = start_pair(
	source => { conf => 'shared_buffers = 16MB' },
	target => { conf => "shared_buffers = 16MB\nlog_min_messages = log" });
my @hostile = (q{a"b'c$$d}, q{x%s%n%d}, "line\nfeed", q{'; DROP TABLE items; --}, ('"' x 63), ('é' x 31), q{$tsync$}, 'pg_temp', 'ctid', 'fingerprint');

sub pick { return $_[ rand @_ ]; }
sub literal { my ($text) = @_; $text =~ s/'/''/g; return "'$text'"; }

# Expressions that stand for a column of a type.
my @integers = qw(0 -1 1 NULL 32767 -32768 2147483647 -2147483648 (random()*1e9)::bigint);
my %lies = (
	'oid' => [ 0, 'NULL', 4294967295, '(random()*4e9)::bigint', 16, 25, 26, 2950, 1700 ],
	'smallint' => [ 0, -1, 'NULL', 32767, -32768, '(random()*1600)::integer' ],
	'integer' => \@integers, 'public.amount' => \@integers,
	'bigint' => [ @integers, '9223372036854775807', "'-9223372036854775808'::bigint" ],
	'real' => [ map { "'$_'" } qw(NaN Infinity -Infinity -1 0 3e38 1e-38 1e15) ],
	'boolean' => [ 'NULL', 'true', 'false', 'random() < 0.5' ],
	'int2vector' => [ map { "'$_'::int2vector" } '', '1', '2 3', '0', '-1', '32767 -32768', '1 1 1', join(' ', 1 .. 33), join(' ', 1 .. 1600) ],
	'smallint[]' => [ map { "'$_'::smallint[]" } '{}', '{1}', '{NULL}', '{2,3}', '{' . join(',', 1 .. 1600) . '}' ],
	'xid' => [ map { "'$_'::xid" } qw(0 1 2 3 2147483647 4294967295) ],
	'"char"' => [ map { literal($_) } '', qw(r v m f p S e d c x n) ],
	'timestamptz' => [ "'infinity'", "'-infinity'", 'NULL', "'4714-11-24 BC'", 'clock_timestamp()' ],
	'text' => [ 'NULL', "''", "repeat('x', 5000000)", "'{}'", "'{1,NULL,2}'", "'{{1},{2}}'", "'{\"'", "'1 2 3'", "'-1'", "'99999999999999999999'", map { literal($_) } @hostile ],
);

my %catalogs;
for my $line (split /\n/, $target->safe_psql('postgres', 'SELECT name, columns FROM tablesync.source_catalog_columns()'))
{
	my ($name, $columns) = split /\|/, $line;
	$catalogs{$name} = [ map { [ split / /, $_, 2 ] } split /, /, $columns ];
}
my @catalog_names = sort keys %catalogs;

# The view lies.items passes for the table public.items in everything else: the two schemas' names are swapped.
my $swapped = q{CASE x.%1$s WHEN 'public' THEN 'lies' WHEN 'lies' THEN 'public' ELSE x.%1$s::text END};
my %true = (nspname => sprintf($swapped, 'nspname'), schemaname => sprintf($swapped, 'schemaname'), table_schema => sprintf($swapped, 'table_schema'), backend_xmin => 'x.backend_xmin::text', backend_xid => 'x.backend_xid::text');

# A view of a catalog (or of rows); lies: expressions by column.
sub view_sql
{
	my ($name, $from, $columns, $lies, $tail) = @_;
	my $list = join ', ', map {
		my ($column, $type) = @$_;
		my $true = $true{$column} // ($type eq 'text' ? "x.$column\::text" : "x.$column");
		($lies->{$column} ? "($lies->{$column})::$type" : "($true)::$type") . " AS $column"
	} @$columns;
	return "DROP VIEW IF EXISTS lies.$name; CREATE VIEW lies.$name AS SELECT $list FROM $from x $tail; GRANT SELECT ON lies.$name TO reader;\n";
}

# The schema and name of a catalog.
sub home_of { my ($name) = @_; return ($name =~ /^pg_/ ? 'pg_catalog' : 'information_schema') . ".$name"; }

sub true_view { my ($name) = @_; return view_sql($name, home_of($name), $catalogs{$name}, {}, ''); }

# Some rows for one, none, or more columns than a table can have.
sub random_tail
{
	my ($name) = @_;
	my $r = rand;
	return 'WHERE false' if $r < 0.05;
	return 'WHERE random() < 0.5' if $r < 0.1;
	return 'CROSS JOIN generate_series(1, ' . pick(2, 3, 20) . ') g' if $r < 0.2;
	return q{UNION ALL SELECT 'public.items'::regclass::oid, left(chr(97 + g % 26) || g || } . literal(pick(@hostile)) . q{, 40), (3 + g)::smallint, 25::oid, -1, 100::oid, false, false, NULL, '' FROM generate_series(1, } . pick(1, 10, 1600, 5000) . ') g'
		if $name eq 'pg_attribute' && $r < 0.5;
	return '';
}

sub random_lies
{
	my ($columns) = @_;
	my %chosen;
	for (1 .. 1 + int rand 2)
	{
		my ($column, $type) = @{ pick(@$columns) };
		my $lie = pick(@{ $lies{$type} });
		$chosen{$column} = rand() < 0.5 ? $lie : "CASE WHEN random() < 0.1 THEN $lie ELSE x.$column END";
		$chosen{$column} = $lie if $type eq '"char"' || $type eq 'text';    # of one type without a cast
	}
	return \%chosen;
}

my @row_columns = ([ 'id', 'bigint' ], [ 'v', 'text' ], [ 'n', 'public.amount' ], [ 'updated_at', 'timestamptz' ], [ 'ctid', 'tid' ], [ 'xmin', 'xid' ]);
my $true_rows = view_sql('items', 'public.items', \@row_columns, {}, '');

# Rows that lie, in number too; a wide one now and then.
sub lying_rows
{
	my $lies = random_lies([ @row_columns[0 .. 3, 5] ]);
	delete $lies->{v};
	$lies->{v} = pick('NULL', "'other'", "CASE WHEN id = 5 THEN repeat('x', 5000000) ELSE v END", 'random()::text') if rand() < 0.4;
	my $tail = pick('', '', 'WHERE false', 'WHERE random() < 0.7', 'CROSS JOIN generate_series(1, 50) g', 'LIMIT 3');
	return view_sql('items', 'public.items', \@row_columns, $lies, $tail);
}

$source->safe_psql('postgres', q{
	CREATE SCHEMA lies; GRANT USAGE ON SCHEMA lies TO reader;
	CREATE DOMAIN number AS integer; CREATE DOMAIN amount AS number;
	CREATE TABLE items (id bigint PRIMARY KEY, v text, n amount, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, v, n) SELECT i, 'v' || i, i FROM generate_series(1, 3000) i;
	ANALYZE} . ";\n$true_rows" . join('', map { true_view($_) } @catalog_names));

my %settings = (
	pausing => q{on_schema_change => 'pause', fingerprint => 'row'},
	applying => q{on_schema_change => 'apply', version_column => 'updated_at', fingerprint => 'version', chunk_rows => 400},
	by_xmin => q{on_schema_change => 'apply', fingerprint => 'xmin', chunk_rows => 400},
	by_chunk => q{on_schema_change => 'ignore', version_column => 'updated_at', consistency => 'chunk', chunk_rows => 1000});
my @replicas = sort keys %settings;

sub add
{
	my ($replica) = @_;
	return app_sql($target, "SELECT tablesync_add('$replica', 'src', 'lies.items', key_columns => '{id}', max_delete_fraction => 1, $settings{$replica})");
}
$target->safe_psql('postgres', q{
	SELECT tablesync.prepare_server('src');
	DO $$
	DECLARE c record;
	BEGIN
		FOR c IN SELECT foreign_table FROM tablesync.source_catalogs LOOP
			EXECUTE format('ALTER FOREIGN TABLE %s OPTIONS (SET schema_name ''lies'')', c.foreign_table);
		END LOOP;
	END$$});
add($_) for @replicas;

# Workers of the target: pid and peak of memory in kB.
sub workers
{
	my %peak;
	for my $children (glob '/proc/' . $target->{_pid} . '/task/*/children')
	{
		open my $fh, '<', $children or next;
		for my $pid (split ' ', <$fh> // '')
		{
			open my $command, '<', "/proc/$pid/cmdline" or next;
			next unless (<$command> // '') =~ /tablesync run/;
			open my $status, '<', "/proc/$pid/status" or next;
			my ($kb) = join('', <$status>) =~ /VmHWM:\s+(\d+)/;
			$peak{$pid} = $kb // 0;
		}
	}
	return %peak;
}

my $peak = 0;
my $peak_at = 'no run';
my %outcomes;

# Run a replica until its worker is gone; whatever the outcome, it ends.  Who waits for a run gets a process for it alone.
sub run_to_its_end
{
	my ($replica, $story) = @_;
	my $started = time;
	my ($out, $err);
	my $psql = IPC::Run::start(
		[ $target->installed_command('psql'), '-XAt', '-d', $target->connstr('postgres'), '-U', 'app', '-c', "SELECT status FROM tablesync_run('$replica')" ],
		'>', \$out, '2>', \$err);
	while ($psql->pumpable && time - $started <= $max_seconds)
	{
		my %workers = workers();
		my $kb = max(0, values %workers);
		($peak, $peak_at) = ($kb, "$replica, $story") if $kb > $peak;
		eval { $psql->pump_nb; };    # dies if psql has just ended
		usleep(5000);
	}
	if (time - $started <= $max_seconds)
	{
		$psql->finish;
		return 1;
	}
	fail("ends: $story");
	app_sql($target, "SELECT tablesync_cancel('$replica')");
	$psql->kill_kill;
	return 0;
}

# With the truth back, is every replica right, perhaps after it is resumed or made again?
sub truth
{
	$source->safe_psql('postgres', $true_rows . join('', map { true_view($_) } @catalog_names));
	# all rows: a value that was a lie under a true stamp is a change that nobody stamped
	$source->safe_psql('postgres', q{UPDATE items SET n = n + (random() < 0.1)::integer, updated_at = clock_timestamp()});
	for my $replica (@replicas)
	{
		$target->psql('postgres', "SELECT tablesync_resume('$replica')", extra_params => [ '-U', 'app' ]);
		my ($rc, $out, $err) = $target->psql('postgres', "SELECT status FROM tablesync_run('$replica', force => true)", extra_params => [ '-U', 'app', '-v', 'VERBOSITY=verbose' ]);
		if ($rc == 0)
		{
			is($out, 'succeeded', "$replica: the run after the lies is one");
			$outcomes{right}++;
			# a column that a lie has dropped is a new one when it is back, and "ignore" leaves it out
			my $columns = app_sql($target, "SELECT string_agg(c->>'column', ', ' ORDER BY c->>'column') FROM tablesync.replica, jsonb_array_elements(shape) c WHERE replica = '$replica'::regclass");
			my $sql = "SELECT md5(string_agg(r::text, chr(10) ORDER BY r.id)) FROM (SELECT $columns FROM %s) r";
			is($target->safe_psql('postgres', sprintf $sql, $replica), $source->safe_psql('postgres', sprintf $sql, 'items'), "$replica is right when the lies are over");
			next;
		}
		unlike($err, qr/XX000|21000|more than one row/, "$replica: if it is not right, the error says why");
		$outcomes{ $err =~ /ERROR:\s+(.{0,50})/ ? $1 : 'error' }++;
		my $foreign = app_sql($target, "SELECT source FROM tablesync.replica WHERE replica = '$replica'::regclass");
		app_sql($target, "SELECT tablesync_remove('$replica', drop_replica => true); DROP FOREIGN TABLE IF EXISTS $foreign");
		add($replica);
		like(run_counts($target, $replica), qr/^succeeded/, "$replica is made again");
	}
	return;
}

truth();

# a table that is its own parent, a domain that is made of itself, a column twice; names without end, many times
my %circles = (
	'its own parent' => [
		view_sql('pg_class', 'pg_catalog.pg_class', $catalogs{pg_class}, { relhassubclass => 'true' }, ''),
		q{DROP VIEW lies.pg_inherits; CREATE VIEW lies.pg_inherits AS SELECT c.oid AS inhrelid, c.oid AS inhparent FROM pg_class c; GRANT SELECT ON lies.pg_inherits TO reader} ],
	'made of itself' => [ view_sql('pg_type', 'pg_catalog.pg_type', $catalogs{pg_type}, { typbasetype => 'x.oid' }, '') ],
	'of a long name' => [ view_sql('pg_attribute', 'pg_catalog.pg_attribute', $catalogs{pg_attribute}, { attname => q{repeat('x', 5000000)} }, 'CROSS JOIN generate_series(1, 10) g') ],
	'of a long type' => [ view_sql('pg_type', 'pg_catalog.pg_type', $catalogs{pg_type}, { typname => q{repeat('x', 5000000)} }, 'CROSS JOIN generate_series(1, 20) g') ],
	'twice' => [ view_sql('pg_attribute', 'pg_catalog.pg_attribute', $catalogs{pg_attribute}, {}, 'CROSS JOIN generate_series(1, 2) g') ]);
for my $circle (sort keys %circles)
{
	$source->safe_psql('postgres', $_) for @{ $circles{$circle} };
	for my $replica (@replicas)
	{
		BAIL_OUT("a source with something $circle: the run does not end") unless run_to_its_end($replica, $circle);
	}
	truth();
}

# a source that takes too long to say what it is, is not asked again in the same run
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.max_snapshot_age = '2s'});
$source->safe_psql('postgres', view_sql('pg_index', 'pg_catalog.pg_index', $catalogs{pg_index}, {}, 'WHERE pg_sleep(0.5) IS NOT NULL'));
for my $replica (@replicas)
{
	my $logged = -s $source->logfile;
	my ($rc, $out, $err) = $target->psql('postgres', "SELECT * FROM tablesync_run('$replica')", extra_params => [ '-U', 'app' ]);
	like($err, qr/a statement took longer at the source than it may/, "$replica: a look that takes too long fails");
	my $log = PostgreSQL::Test::Utils::slurp_file($source->logfile, $logged);
	my @cancelled = $log =~ /canceling statement due to statement timeout/g;
	is(scalar @cancelled, 1, "$replica: it is not tried twice");
}
$target->safe_psql('postgres', q{ALTER ROLE app RESET tablesync.max_snapshot_age});
truth();

for my $input (1 .. $inputs)
{
	my @lies;
	for my $name (map { pick(@catalog_names, qw(pg_class pg_attribute pg_attribute pg_index pg_stats)) } 1 .. 1 + int rand 2)
	{
		push @lies, view_sql($name, home_of($name), $catalogs{$name}, random_lies($catalogs{$name}), random_tail($name));
	}
	push @lies, lying_rows() if rand() < 0.4;
	my $kept = 0;
	for my $lie (@lies)
	{
		my ($rc, $out, $err) = $source->psql('postgres', "BEGIN; $lie COMMIT");
		$kept += $rc == 0;
	}
	$outcomes{'lies told'} += $kept;
	$outcomes{'lies the source itself refused'} += @lies - $kept;
	my $replica = pick(@replicas);
	last unless run_to_its_end($replica, "input $input of seed $seed: @lies");
	if ($input % $inputs_between_truths == 0 || $input == $inputs)
	{
		ok(!$target->log_contains('terminated by signal|terminating any other active server processes'), "no crash up to input $input")
			or last;
		truth();
	}
	else
	{
		$source->safe_psql('postgres', $true_rows . join('', map { true_view($_) } @catalog_names)) if rand() < 0.5;
	}
}
diag("$_: $outcomes{$_}") for sort keys %outcomes;
diag('runs: ' . $target->safe_psql('postgres', q{SELECT string_agg(s.status || ' ' || s.n, ', ') FROM (SELECT status, count(*) AS n FROM tablesync_runs GROUP BY 1) s}));
diag("peak of a worker: $peak kB");
cmp_ok($peak, '<', $max_kb, 'memory of a worker is bounded') or diag("at $peak_at");
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync_runs WHERE status = 'crashed'}), 0, 'no run has crashed');
done_testing();
