# Random changes at the source, round after round: after each run the replicas
# must be identical, row by row in text form.
#
# TABLESYNC_SEED repeats a run; TABLESYNC_ROUNDS makes it longer.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my $seed = $ENV{TABLESYNC_SEED} // int(rand(1_000_000));
my $rounds = $ENV{TABLESYNC_ROUNDS} // 60;
srand($seed);
diag("TABLESYNC_SEED=$seed");

# key: column definitions, names and an expression for a random key
# settings: arguments of tablesync_add; where they name no fingerprint it is xmin
my %tables = (
	by_int => {
		key => 'id integer', names => 'id', random => '(random() * 4000 - 2000)::integer',
		settings => "version_column => 'updated_at'" },
	by_int_chunks => {
		key => 'id integer', names => 'id',
		random => '(CASE WHEN random() < 0.02 THEN 2147483647 WHEN random() < 0.02 THEN -2147483648 ELSE random() * 800 END)::integer',
		settings => "fingerprint => 'version', version_column => 'updated_at', chunk_rows => 7, consistency => 'chunk', verify_fraction => 0.3" },
	by_bigint => {
		key => 'id bigint', names => 'id',
		random => '(CASE WHEN random() < 0.5 THEN (random() * 1000)::bigint ELSE (floor(random() * 16)::bigint - 8) * 1152921504606846976 + floor(random() * 20)::bigint END)',
		settings => "chunk_rows => 11" },
	by_smallint => {
		key => 'id smallint', names => 'id', random => '(random() * 65535 - 32768)::smallint',
		settings => "fingerprint => 'row', version_column => 'updated_at', chunk_rows => 50, consistency => 'chunk'" },
	by_uuid => {
		key => 'id uuid', names => 'id', random => 'md5(random()::text)::uuid',
		settings => "version_column => 'updated_at', chunk_rows => 13, verify_fraction => 1" },
	by_numeric => {
		key => 'id numeric', names => 'id',
		random => q{(CASE WHEN random() < 0.02 THEN 'NaN' ELSE round((random() * 300 - 150)::numeric, (random() * 3)::integer) END)::numeric},
		settings => "fingerprint => 'row', chunk_rows => 5" },
	by_date => {
		key => 'id date', names => 'id',
		random => q{CASE WHEN random() < 0.02 THEN 'infinity' WHEN random() < 0.02 THEN '4000-01-01 BC' ELSE date '2000-01-01' + (random() * 2000)::integer END},
		settings => "fingerprint => 'version', version_column => 'updated_at', consistency => 'chunk', chunk_rows => 9" },
	by_timestamptz => {
		key => 'id timestamptz', names => 'id', random => q{timestamptz '2020-01-01' + random() * interval '3 days'},
		settings => "fingerprint => 'row', chunk_rows => 20" },
	by_text => {
		key => 'id text', names => 'id',
		random => q{chr(65 + (random() * 60)::integer) || CASE WHEN random() < 0.5 THEN chr(200 + (random() * 3000)::integer) ELSE '"\\' END || (random() * 50)::integer},
		settings => "fingerprint => 'version', version_column => 'updated_at'" },
	by_char => {
		key => 'id char(4)', names => 'id', random => q{left(chr(97 + (random() * 25)::integer) || CASE WHEN random() < 0.5 THEN ' ' ELSE '' END || (random() * 30)::integer, 4)},
		settings => "consistency => 'chunk'" },
	by_pair => {
		key => 'k1 integer, k2 date', names => 'k1, k2', random => q{(random() * 6)::integer, date '2020-02-01' + (random() * 300)::integer},
		settings => "fingerprint => 'version', version_column => 'updated_at', chunk_rows => 10" },
	by_triple => {
		key => 'k1 smallint, k2 varchar(10), k3 bigint', names => 'k1, k2, k3',
		random => q{(random() * 3)::smallint, chr(97 + (random() * 25)::integer), (random() * 20)::bigint * 4611686018427},
		settings => "chunk_rows => 10, consistency => 'chunk', verify_fraction => 0.5" },
	# dense integers: their buckets are bitmaps
	dense_int => {
		key => 'id integer', names => 'id', random => '(random() * 1500 - 700)::integer', rows => 800,
		settings => "fingerprint => 'version', version_column => 'updated_at', chunk_rows => 200, consistency => 'snapshot'" },
	dense_bigint => {
		key => 'id bigint', names => 'id', random => '9223372036854775807 - (random() * 1200)::bigint', rows => 700,
		settings => "version_column => 'updated_at', chunk_rows => 64" },
	dense_smallint => {
		key => 'id smallint', names => 'id', random => '(-32768 + random() * 900)::smallint', rows => 600,
		settings => "chunk_rows => 200" },
	dense_row => {
		key => 'id integer', names => 'id', random => '(-2147483648 + random() * 1200)::integer', rows => 800,
		settings => "version_column => 'updated_at', fingerprint => 'row', chunk_rows => 64, consistency => 'snapshot'" },
	dense_chunks => {
		key => 'id bigint', names => 'id', random => '(random() * 1200 - 600)::bigint', rows => 800,
		settings => "fingerprint => 'version', version_column => 'updated_at', chunk_rows => 200, consistency => 'chunk'" },
	# many bitmaps in one chunk, of which many differ at once
	dense_large => {
		key => 'id integer', names => 'id', random => '(random() * 60000)::integer', rows => 40000,
		settings => "version_column => 'updated_at', chunk_rows => 100000" },
	# parts: what the replica is to have, as a query over the source, with FILTER for the filter of the moment
	part_rows => {
		key => 'id integer', names => 'id', random => '(random() * 1500)::integer', rows => 800, filter => 'bo',
		settings => "version_column => 'updated_at', chunk_rows => 200", part => 'SELECT * FROM part_rows WHERE FILTER' },
	part_columns => {
		key => 'k1 integer, k2 date', names => 'k1, k2', random => q{(random() * 6)::integer, date '2020-02-01' + (random() * 300)::integer}, filter => 'n > 3',
		settings => "fingerprint => 'row', columns => '{k1,k2,u,t,c,arr,updated_at}', chunk_rows => 30, consistency => 'chunk'",
		part => 'SELECT k1, k2, u, t, c, arr, updated_at FROM part_columns WHERE FILTER' },
	part_computed => {
		key => 'id bigint', names => 'id', random => '(random() * 3000)::bigint', rows => 300, filter => 'id % 2 = 0',
		settings => q{expressions => '{"t": "md5(t)", "v": "left(v, 3)::varchar(20)", "n": "n * 2", "b": "NULL::bytea"}', chunk_rows => 100, verify_fraction => 0.5},
		part => 'SELECT id, u, md5(t) AS t, left(v, 3) AS v, c, n * 2 AS n, f, r, NULL::bytea AS b, j, js, iv, tz, arr, bits, bo, updated_at FROM part_computed WHERE FILTER' },
	part_version => {
		key => 'id integer', names => 'id', random => '(random() * 4000 - 2000)::integer', filter => 'u % 2 = 1 OR u IS NULL',
		settings => q{fingerprint => 'version', version_column => 'updated_at', expressions => '{"t": "upper(t)"}'},
		part => 'SELECT id, u, upper(t) AS t, v, c, n, f, r, b, j, js, iv, tz, arr, bits, bo, updated_at FROM part_version WHERE FILTER' });

# Conditions for parts.
my @filters = ('bo', 'n > 3', 'id % 2 = 0', 'u % 2 = 1 OR u IS NULL', 'c <> \'quiet\'', 't IS NOT NULL', "f > 0.3 AND tz < '2030-01-01'", 'NOT bo');

my $payload = q{
	u integer UNIQUE,
	t text, v varchar(20), c char(5), n numeric, f double precision, r real, b bytea, j jsonb, js json,
	iv interval, tz timestamptz, arr integer[], bits bit varying(9), bo boolean,
	updated_at timestamp};
my $random_payload = q{
	CASE WHEN random() < 0.8 THEN (random() * 2000000000)::integer END,
	CASE WHEN random() < 0.9 THEN repeat(chr(32 + (random() * 2000)::integer), (random() * 30)::integer) END,
	CASE WHEN random() < 0.9 THEN left(md5(random()::text), (random() * 20)::integer) END,
	CASE WHEN random() < 0.9 THEN left(md5(random()::text), 3) END,
	CASE WHEN random() < 0.1 THEN 'NaN' WHEN random() < 0.9 THEN round((random() * 10)::numeric, (random() * 2)::integer) END,
	CASE WHEN random() < 0.1 THEN '-0' WHEN random() < 0.1 THEN 'NaN' WHEN random() < 0.1 THEN 0 ELSE random() END,
	CASE WHEN random() < 0.2 THEN '-infinity' ELSE random() END,
	CASE WHEN random() < 0.9 THEN decode(md5(random()::text), 'hex') END,
	CASE WHEN random() < 0.5 THEN jsonb_build_object('a', round(random()::numeric, (random() * 2)::integer)) END,
	CASE WHEN random() < 0.5 THEN json_build_object('a"', random()) END,
	CASE WHEN random() < 0.3 THEN interval '1 day' WHEN random() < 0.5 THEN interval '24 hours' ELSE random() * interval '1 year' END,
	CASE WHEN random() < 0.1 THEN 'infinity' ELSE now() - random() * interval '1 year' END,
	CASE WHEN random() < 0.3 THEN '[3:4]={1,2}'::integer[] WHEN random() < 0.5 THEN ARRAY[1, NULL, 2] END,
	CASE WHEN random() < 0.5 THEN B'101' WHEN random() < 0.5 THEN B'1010' END,
	random() < 0.5,
	CASE WHEN random() < 0.3 THEN TIE ELSE clock_timestamp()::timestamp - random() * interval '10 days' END};

# A stamp that the row did not have at the time of an earlier run, but may be
# older, or tied: TIE is the same for all rows of a round.
my $new_stamp = q{CASE WHEN random() < 0.2 THEN TIE ELSE clock_timestamp()::timestamp + (random() - 0.5) * interval '10 days' END};

my ($source, $target) = start_pair();
my $users = session($target, '-U', 'app');    # somebody whose writes to a replica overlap runs
for my $table (sort keys %tables)
{
	my $t = $tables{$table};
	$source->safe_psql('postgres', qq{
		CREATE TABLE $table ($t->{key}, $payload, PRIMARY KEY ($t->{names}));
		CREATE TABLE late_$table ($t->{key}, $payload, PRIMARY KEY ($t->{names}))});
	my $filter = $t->{filter} ? ", filter => \$\$$t->{filter}\$\$" : '';
	app_sql($target, "SELECT tablesync_add('$table', 'src', 'public.$table', $t->{settings}$filter)");
	app_sql($target, "ALTER TABLE $table ADD own integer DEFAULT 5, ADD own_id bigint GENERATED ALWAYS AS IDENTITY") if $t->{part};
	$t->{fingerprint} = $t->{settings} =~ /fingerprint => '(\w+)'/ ? $1 : 'xmin';
	if ($t->{rows})
	{
		my $sql = inserts($table, $t->{rows}) =~ s/(ON CONFLICT)/ORDER BY 1 $1/r;    # in the order of keys
		$sql =~ s/TIE/timestamp '2021-01-01'/g;
		$source->safe_psql('postgres', "SELECT setseed(" . rand() . "); $sql; VACUUM ANALYZE $table");
	}
	# somebody here wants the unique values to be unique too
	app_sql($target, "CREATE UNIQUE INDEX ON $table (u)");
}

sub some_rows
{
	my ($table, $limit) = @_;
	return "ctid = ANY (ARRAY(SELECT ctid FROM $table ORDER BY random() LIMIT $limit))";
}

sub inserts
{
	my ($table, $count) = @_;
	my $t = $tables{$table};
	return "INSERT INTO $table SELECT $t->{random}, $random_payload FROM generate_series(1, $count) ON CONFLICT DO NOTHING";
}

# A random write to the replica as SQL, by somebody who should not.
sub stray_write
{
	my ($table) = @_;
	my $few = 1 + int(rand(4));
	my @kinds = (
		"DELETE FROM $table WHERE " . some_rows($table, $few),
		"UPDATE $table SET updated_at = 'epoch', c = 'mine' WHERE " . some_rows($table, $few),
		"UPDATE $table SET updated_at = NULL, c = 'mine' WHERE " . some_rows($table, $few),
		"TRUNCATE $table",
		"CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT * FROM $table; TRUNCATE $table; INSERT INTO $table OVERRIDING SYSTEM VALUE SELECT * FROM mine OFFSET 1");
	return $kinds[ int(rand(@kinds)) ];
}

# Another fingerprint from the next run on.
sub switch_fingerprint
{
	my ($table) = @_;
	my $t = $tables{$table};
	my @kinds = ('xmin', 'row', $t->{settings} =~ /version_column/ ? 'version' : ());
	my $kind = $kinds[ int(rand(@kinds)) ];
	app_sql($target, "SELECT tablesync_alter('$table', fingerprint => '$kind')");
	$t->{fingerprint} = $kind;
	return;
}

# Other rows from the next run on.
sub change_filter
{
	my ($table) = @_;
	my $t = $tables{$table};
	do { $t->{filter} = $filters[ int(rand(@filters)) ] } while $t->{filter} =~ /\bid\b/ && $t->{names} ne 'id';
	app_sql($target, "SELECT tablesync_alter('$table', filter => \$\$$t->{filter}\$\$)");
	return;
}

# Has the replica what it is to have?
sub is_same
{
	my ($table) = @_;
	my $t = $tables{$table};
	return same_rows($source, $target, $table, $table) if !$t->{part};
	my ($columns) = $t->{part} =~ /^SELECT (.*) FROM/;
	$columns =~ s/\w+\([^)]*\) AS |n \* 2 AS |NULL::bytea AS //g;
	return same_rows($source, $target, '(' . $t->{part} =~ s/FILTER/$t->{filter}/r . ')', "(SELECT $columns FROM $table)");
}

# Write to the replica before a run, or return what is to be written during it.
sub write_to_replica
{
	my ($table) = @_;
	my $sql = stray_write($table);
	my $way = int(rand(8)) - 1;
	return $sql if $way <= 0;
	if ($way == 1) { app_sql($target, "BEGIN; $sql; ROLLBACK") }
	elsif ($way == 2) { app_sql($target, "BEGIN; SAVEPOINT a; $sql; ROLLBACK TO a; DELETE FROM $table WHERE " . some_rows($table, 1) . '; COMMIT') }
	elsif ($way == 3) { $target->safe_psql('postgres', "BEGIN; SET LOCAL session_replication_role = replica; $sql; COMMIT") }
	elsif ($way == 4)
	{
		# three rows go, two of them come back
		my $names = $tables{$table}{names};
		my $first = "FROM $table ORDER BY $names LIMIT 3";
		my (@rows) = split /\n/, app_sql($target, "COPY (SELECT * $first) TO STDOUT");
		pop @rows;
		app_sql($target, "DELETE FROM $table WHERE ($names) IN (SELECT $names $first); COPY $table FROM STDIN;\n" . join('', map { "$_\n" } @rows) . "\\.\n");
	}
	else { app_sql($target, "BEGIN; $sql; COMMIT") }
	return;
}

# Run a replica while somebody writes to it, if there is something to write.
# Whether the write comes before or after, the run after it makes it undone.
sub run_with_writer
{
	my ($table, $write) = @_;
	return run_counts($target, $table, ', force => true') if !defined $write;
	$users->query_safe("BEGIN; $write");
	my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('$table', wait => false, force => true)");
	select undef, undef, undef, rand(0.3);
	$users->query_safe(rand() < 0.3 ? 'ROLLBACK' : 'COMMIT');
	app_sql($target, "SELECT tablesync_wait($run_id)");
	return run_counts($target, $table, ', force => true');
}

# One random change as SQL.
sub change
{
	my ($table) = @_;
	my $t = $tables{$table};
	my $few = 1 + int(rand(5));
	my $by_row = $t->{fingerprint} ne 'version';
	my @kinds = (
		sub { inserts($table, $few) },
		sub { inserts($table, 1 + int(rand(200))) },
		sub { "UPDATE $table SET t = md5(random()::text), f = '-0', updated_at = $new_stamp WHERE " . some_rows($table, $few) },
		sub { "UPDATE $table SET n = n + 1.00, j = '{\"a\": 1.0}', updated_at = $new_stamp WHERE " . some_rows($table, 50) },
		sub { "DELETE FROM $table WHERE " . some_rows($table, $few) },
		sub { "DELETE FROM $table WHERE " . some_rows($table, 60) },
		# key reused: the row goes, another one with its key comes
		sub { "CREATE TEMP TABLE reused AS SELECT * FROM $table LIMIT 3; DELETE FROM $table WHERE ($t->{names}) IN (SELECT $t->{names} FROM reused);"
			. "UPDATE reused SET t = 'reused', updated_at = $new_stamp; INSERT INTO $table SELECT * FROM reused; DROP TABLE reused" },
		# unique values swapped between two rows
		sub { "CREATE TEMP TABLE swapped AS SELECT $t->{names}, u FROM $table WHERE u IS NOT NULL ORDER BY random() LIMIT 2;"
			. "UPDATE $table SET u = NULL, updated_at = $new_stamp WHERE ($t->{names}) IN (SELECT $t->{names} FROM swapped);"
			. "UPDATE $table x SET u = s.u FROM swapped s WHERE (SELECT count(*) FROM swapped) = 2 AND (" . join(', ', map { "x.$_" } split /, /, $t->{names})
			. ") IN (SELECT $t->{names} FROM swapped o WHERE o.u <> s.u); DROP TABLE swapped" },
		# a key changes
		sub { "CREATE TEMP TABLE moved AS SELECT * FROM $table ORDER BY random() LIMIT 1; DELETE FROM $table WHERE ($t->{names}) IN (SELECT $t->{names} FROM moved);"
			. "INSERT INTO $table SELECT $t->{random}, " . join(', ', map { "m.$_" } qw(u t v c n f r b j js iv tz arr bits bo updated_at)) . " FROM moved m ON CONFLICT DO NOTHING; DROP TABLE moved" },
		# without touching the version column
		sub { $by_row ? "UPDATE $table SET c = 'quiet', f = CASE WHEN f = 0 THEN -f ELSE f END, arr = '[5:6]={1,2}' WHERE " . some_rows($table, 3) : 'SELECT 1' },
		# values that are equal and yet not the same
		sub { $by_row ? "UPDATE $table SET n = n * 1.0, f = '-0', iv = '24 hours', j = '{\"a\": 1.00}', bits = bits || B'0' WHERE length(bits) < 9 AND " . some_rows($table, 9) : 'SELECT 1' },
		sub { $table eq 'by_numeric' ? "UPDATE by_numeric SET id = id * 1.0 WHERE scale(id) < 9 AND " . some_rows($table, 4) : 'SELECT 1' },
	);
	my $sql = $kinds[ int(rand(@kinds)) ]->();
	$sql = "TRUNCATE $table" if rand() < 0.01;
	$sql = "BEGIN; TRUNCATE $table; " . inserts($table, 30) . "; COMMIT" if rand() < 0.02;
	# most of a dense table, so that most of its buckets differ
	$sql = "UPDATE $table SET t = 'wave', updated_at = $new_stamp WHERE random() < " . (rand() < 0.5 ? 0.9 : 0.025) if $t->{rows} && rand() < 0.2;
	$sql = "VACUUM FULL $table" if rand() < 0.01;
	# rows written anew that are the same
	$sql = "UPDATE $table SET t = t WHERE random() < " . rand() if rand() < 0.02;
	$sql = "ALTER TABLE $table ALTER t TYPE text USING t || ''" if rand() < 0.01;
	$sql = "CLUSTER $table USING ${table}_pkey" if rand() < 0.01;
	$sql = "UPDATE $table SET updated_at = $new_stamp" if rand() < 0.01;
	return $sql;
}

# A transaction that is open during one run and commits before the next: its
# rows carry stamps from before the run.
my $late = session($source);
my $late_table;

sub open_late
{
	my ($table) = @_;
	my $t = $tables{$table};
	$late_table = $table;
	$late->query_safe("BEGIN; SELECT now()");
	my $rows = "SELECT $t->{random}, $random_payload FROM generate_series(1, 5)";
	$rows =~ s/TIE/NULL/g;
	$late->query_safe("INSERT INTO late_$table SELECT * FROM ($rows) s ON CONFLICT DO NOTHING");
	$late->query_safe("UPDATE late_$table SET u = NULL, updated_at = now()::timestamp");
	return;
}

sub commit_late
{
	$late->query_safe("INSERT INTO $late_table SELECT * FROM late_$late_table ON CONFLICT DO NOTHING; TRUNCATE late_$late_table; COMMIT");
	my $table = $late_table;
	undef $late_table;
	return $table;
}

my $failed = 0;
for my $round (1 .. $rounds)
{
	my @names = sort keys %tables;
	my %touched = map { $names[ int(rand(@names)) ] => 1 } 1 .. 3;

	if ($late_table) { $touched{ commit_late() } = 1 }
	elsif (rand() < 0.3) { open_late($names[ int(rand(@names)) ]) }

	for my $table (sort keys %touched)
	{
		switch_fingerprint($table) if rand() < 0.05 && !($tables{$table}{part} && $table ne 'part_rows');
		change_filter($table) if $tables{$table}{part} && rand() < 0.2;
		my $sql = 'SELECT setseed(' . rand() . ')';
		if (rand() < 0.1)
		{
			# to NULL or infinity and back, alone in its round: a row whose stamp is
			# the same in two runs counts as unchanged
			my $special = rand() < 0.5 ? 'NULL' : "'infinity'";
			$sql .= ";\nUPDATE $table SET v = md5(random()::text)::varchar(9), updated_at = $special WHERE updated_at IS DISTINCT FROM $special AND " . some_rows($table, 9);
		}
		else
		{
			$sql .= ";\n" . change($table) for 1 .. 1 + int(rand(3));
		}
		my $tie = "timestamp '2021-01-01' + interval '$round s'";
		$sql =~ s/TIE/$tie/g;
		$source->safe_psql('postgres', $sql);
		$source->safe_psql('postgres', "VACUUM ANALYZE $table") if rand() < 0.25;    # the order of blocks is used then
		my $overlapping = rand() < 0.15 ? write_to_replica($table) : undef;

		my $result = eval { run_with_writer($table, $overlapping) } // "died: $@";
		if ($result !~ /^succeeded/ || !is_same($table))
		{
			fail("round $round, table $table: $result\n$sql");
			$failed = 1;
		}
	}
	last if $failed;
}
commit_late() if $late_table;
$late->quit;
$users->quit;
ok(!$failed, "$rounds rounds of random changes (seed $seed)");

app_sql($target, 'SELECT * FROM tablesync_run()');
for my $table (sort keys %tables)
{
	if ($tables{$table}{part}) { ok(is_same($table), "$table is what it is to be in the end") }
	else { is_replica($source, $target, $table, $table, "$table is identical in the end") }
}
is(app_sql($target, "SELECT count(*) FROM tablesync_runs WHERE status <> 'succeeded' OR NOT (proof->>'equal')::boolean"),
	0, 'every run proved that it left both sides equal');

done_testing();
