# Whatever the key, no statement is as large as the table, and no source that
# keeps answering is taken for a silent one.

use strict;
use warnings;

use IO::Socket::INET;
use POSIX ();
use Socket;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => "autovacuum = off\nlog_statement = all\nlog_line_prefix = '%p '" });

# a database that sorts as people do, next to one that sorts by bytes
$source->safe_psql('postgres', q{CREATE DATABASE people TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'});
$source->safe_psql('people', 'GRANT USAGE ON SCHEMA public TO reader; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader');
$target->safe_psql('postgres', q{
	CREATE SERVER people FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '} . $source->port . q{', dbname 'people');
	GRANT USAGE ON FOREIGN SERVER people TO app;
	CREATE USER MAPPING FOR app SERVER people OPTIONS (user 'reader', password 'read-only')});

# --- an answer that keeps coming, and one that stops ---

# A proxy that lets so many bytes a second through from the source, as a file says.
sub start_proxy
{
	my ($rate_file) = @_;
	my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die $!;
	my $port = $listener->sockport;
	my $pid = fork // die $!;
	return ($port, $pid) if $pid;
	$SIG{TERM} = 'DEFAULT';    # that of PostgreSQL's test modules ends the clusters since 17
	$SIG{CHLD} = 'IGNORE';
	while (my $client = $listener->accept)
	{
		next if fork;
		my $server = IO::Socket::INET->new;
		socket($server, AF_INET, SOCK_STREAM, 0);
		setsockopt($server, SOL_SOCKET, SO_RCVBUF, 4096);    # else the source is rid of its answer at once
		connect($server, pack_sockaddr_in($source->port, inet_aton('127.0.0.1'))) or die $!;
		forward($client, $server, $rate_file);
		POSIX::_exit(0);
	}
	POSIX::_exit(0);
}

sub forward
{
	my ($client, $server, $rate_file) = @_;
	my $readers = '';
	vec($readers, fileno($_), 1) = 1 for $client, $server;
	my $forwarded = 0;
	while (1)
	{
		my $rate = slurp_file($rate_file);
		my $ready = $readers;
		vec($ready, fileno($server), 1) = 0 if $rate == 0 && $forwarded > 100_000;    # not what asks to cancel
		select $ready, undef, undef, 0.1;
		for my $pair ([ $client, $server ], [ $server, $client ])
		{
			my ($from, $to) = @$pair;
			next unless vec($ready, fileno($from), 1);
			my $count = sysread $from, my $bytes, 8192;
			return unless $count;
			for (my $sent = 0; $sent < $count;)
			{
				$sent += syswrite($to, $bytes, $count - $sent, $sent) // return;
			}
			$forwarded += $count;
			select undef, undef, undef, $count / $rate if $from == $server && $rate > 0;
		}
	}
	return;
}

my $rate_file = PostgreSQL::Test::Utils::tempdir() . '/rate';

sub set_rate
{
	my ($rate) = @_;
	open my $file, '>', "$rate_file.new" or die $!;
	print {$file} $rate;
	close $file;
	rename "$rate_file.new", $rate_file or die $!;
	return;
}

set_rate(1e9);
my ($proxy_port, $proxy) = start_proxy($rate_file);
END { kill 'TERM', $proxy if $proxy }

$source->safe_psql('postgres', q{
	CREATE TABLE wide (id integer PRIMARY KEY, note varchar(300));
	INSERT INTO wide SELECT i, repeat('x', 250) FROM generate_series(1, 20000) i});
$target->safe_psql('postgres', qq{
	CREATE SERVER slow FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$proxy_port', dbname 'postgres');
	GRANT USAGE ON FOREIGN SERVER slow TO app;
	CREATE USER MAPPING FOR app SERVER slow OPTIONS (user 'reader', password 'read-only');
	ALTER ROLE app SET tablesync.statement_timeout = '2s'});
app_sql($target, q{SELECT tablesync_add('wide', 'slow', 'public.wide', fingerprint => 'row')});
set_rate(1e6);
my $began = time;
is(run_counts($target, 'wide'), 'succeeded|20000|0|0', 'an answer that takes longer than any statement may, and keeps coming');
cmp_ok(time - $began, '>', 3, 'it took longer than a source may be silent');
is_replica($source, $target, 'wide', 'wide', 'identical');

set_rate(1e9);
app_sql($target, q{SELECT tablesync_remove('wide', drop_replica => true); SELECT tablesync_add('wide', 'slow', 'public.wide', fingerprint => 'row')});
set_rate(1e6);
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('wide', wait => false)});
wait_until($target, q{SELECT phase = 'load' FROM tablesync_progress});
wait_until($source, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND query LIKE 'FETCH%' AND xact_start IS NOT NULL});
set_rate(0);
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'failed', 'one that stops in the middle');
like(app_sql($target, "SELECT sqlstate, message, hint FROM tablesync.run WHERE run_id = $run_id"),
	qr/^08006\|the source (did not answer within|has stopped in the middle of an answer, and said nothing for) 3000 ms\|Look for our session in pg_stat_activity/, 'is given up, with the reason');
set_rate(1e9);

# what the source has ended itself is not called silence
$target->safe_psql('postgres', q{ALTER SERVER slow OPTIONS (ADD options '-c row_security=off -c default_transaction_read_only=on -c lc_monetary=C -c statement_timeout=1')});
like(app_fails($target, q{SELECT tablesync_run('wide')}),
	qr/ERROR:  57014: a statement took longer at the source than it may.*DETAIL:  The source reported: canceling statement due to statement timeout\. The limit is 2000 ms, unless .*HINT:  .*ALTER ROLE app SET tablesync.statement_timeout = /s,
	'a time limit of the source is named');
$target->safe_psql('postgres', q{ALTER SERVER slow OPTIONS (DROP options); ALTER ROLE app RESET tablesync.statement_timeout});
is(run_counts($target, 'wide') =~ s/\|.*//r, 'succeeded', 'the next run completes it');
is_replica($source, $target, 'wide', 'wide', 'identical');
kill 'TERM', $proxy;
undef $proxy;

# --- a load is cut, whatever the key ---

my $text = q{translate(md5(i::text), '0123456789abcdef', 'aAbBäÄzZ-_ ''"\éß')};
my %keys = (
	# nearly all rows are those of one tenant
	tenants => { columns => 'tenant integer, id bigint', names => 'tenant, id', key => 'CASE WHEN i % 100 = 0 THEN i % 7 ELSE 3 END, i', rows => 420_000 },
	# the first column says nothing, and nobody knows a smallest numeric
	numbers => { columns => 'kind smallint, n numeric, at timestamptz', names => 'kind, n, at',
		key => q{1, CASE WHEN i % 3 = 0 THEN 'NaN'::numeric ELSE i % 1000 / 7.0 END, timestamptz '2020-01-01' + i * interval '1 s'}, rows => 120_000 },
	days => { columns => 'day date, u uuid', names => 'day, u', key => q{date '2020-01-01' + i % 2, md5(i::text)::uuid}, rows => 120_000 },
	# text, in a database with another order than ours, with ours, and with a collation that says so
	words => { database => 'people', columns => 'word text', names => 'word', key => $text, rows => 320_000 },
	places => { database => 'people', columns => 'a smallint, place varchar(40)', names => 'a, place', key => "i % 3, $text", rows => 120_000 },
	codes => { database => 'people', columns => 'code text COLLATE "C", id integer', names => 'code, id', key => "left($text, 1), i", rows => 120_000 },
	bytes => { columns => 'word char(34), id integer', names => 'word, id', key => "$text, i", rows => 120_000 });

sub database_of { return $keys{ $_[0] }{database} // 'postgres' }

# Are source and replica the same, row by row, in an order that both sides agree on?
sub is_same
{
	my ($table, $name) = @_;
	my $rows = "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $table t";
	my $wanted = $source->safe_psql(database_of($table), $rows);
	is($target->safe_psql('postgres', $rows), $wanted, $name);
	is(app_sql($target, qq{SELECT (proof->>'equal')::boolean AND status = 'succeeded' FROM tablesync_runs
		WHERE replica = '$table'::regclass ORDER BY run_id DESC LIMIT 1}), 't', "$name, and proved");
	return;
}

my $log_offset = 0;

# Statements that read whole rows of a table, since this was last asked, and processes that sent them.
sub reads
{
	my ($table) = @_;
	my $log = slurp_file($source->logfile, $log_offset);
	$log_offset += length $log;
	my (%statements, %processes);
	while ($log =~ /^(\d+) LOG:  [^\n]*\n\tSELECT (?!count|array_)([^\n]* FROM public\.$table WHERE \(\((?!ctid)[^\n]*)/mg)
	{
		$processes{$1} = 1;
		$statements{$2} = 1;
	}
	return (scalar keys %statements, scalar keys %processes);
}

for my $table (sort keys %keys)
{
	my $k = $keys{$table};
	$source->safe_psql(database_of($table), qq{
		CREATE TABLE $table ($k->{columns}, note varchar(50), seq integer, PRIMARY KEY ($k->{names}));
		INSERT INTO $table SELECT $k->{key}, 'note ' || i, i FROM generate_series(1, 110000) i;
		VACUUM ANALYZE $table;    -- which is the last that the statistics hear of it
		INSERT INTO $table SELECT $k->{key}, 'note ' || i, i FROM generate_series(110001, $k->{rows}) i});
	my $server = $k->{database} ? 'people' : 'src';
	app_sql($target, "SELECT tablesync_add('$table', '$server', 'public.$table', fingerprint => 'row', workers => 3, chunk_rows => 20000)");
}

# two of them are stopped in the middle: what is left is shared among processes
for my $table (qw(tenants words))
{
	my $k = $keys{$table};
	my $locker = $source->background_psql(database_of($table));
	app_sql($target, "SELECT tablesync_alter('$table', max_source_load => 0.05)");
	my $run = app_sql($target, "SELECT run_id FROM tablesync_run('$table', wait => false)");
	wait_until($target, "SELECT count(*) FILTER (WHERE loaded) >= 1 FROM tablesync.chunk WHERE replica = '$table'::regclass");
	app_sql($target, "SELECT tablesync_cancel('$table')");
	is(app_sql($target, "SELECT tablesync_wait($run)"), 'cancelled', "$table: begun");
	my ($ranges, $largest) = split /\|/, app_sql($target, "SELECT count(*), max(rows) FROM tablesync.chunk WHERE replica = '$table'::regclass");
	cmp_ok($ranges, '>=', int($k->{rows} / 100_000), "$table: $ranges ranges");
	cmp_ok($largest, '<', 200_000, "$table: none of them is large");
	app_sql($target, "SELECT tablesync_alter('$table', max_source_load => 1)");
	$locker->query_safe("BEGIN; LOCK TABLE $table");
	$run = app_sql($target, "SELECT run_id FROM tablesync_run('$table', wait => false)");
	wait_until($source, q{SELECT count(*) = 3 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
	$locker->query_safe('COMMIT');
	$locker->quit;
	is(app_sql($target, "SELECT tablesync_wait($run)"), 'succeeded', "$table: three processes load the rest");
	is_same($table, "$table: identical");
}

for my $table (grep { !/tenants|words/ } sort keys %keys)
{
	reads($table);
	is(run_counts($target, $table), "succeeded|$keys{$table}{rows}|0|0", "$table: loaded");
	my ($statements, $processes) = reads($table);
	cmp_ok($statements, '>=', 2, "$table: by $statements statements");
	cmp_ok($statements, '<', 20, "$table: which are no pages");
	is_same($table, "$table: identical");
}

# --- and so is a scan, where both sides sort the key alike ---

my $chunks = q{SELECT count(*) FROM tablesync.chunk WHERE replica = };
for my $table (sort keys %keys)
{
	is(run_counts($target, $table), 'succeeded|0|0|0', "$table: nothing to do");
	my $count = app_sql($target, "$chunks '$table'::regclass");
	if ($table eq 'words') { is($count, 1, "$table: one chunk") }
	else { cmp_ok($count, '>=', $table eq 'places' ? 1 : $keys{$table}{rows} / 60_000, "$table: $count chunks") }
}

# --- nothing is missed: random changes, in one snapshot and chunk by chunk ---

my $seed = $ENV{TABLESYNC_SEED} // time;
srand $seed;
for my $round (1 .. 2)
{
	for my $table (sort keys %keys)
	{
		my $k = $keys{$table};
		my $some = "seq % 5003 = " . int(rand(5003));
		my $more = $k->{rows} + $round * 1000;
		my $key = $k->{key} =~ s/\bi\b/(i + $more)/gr;
		$source->safe_psql(database_of($table), qq{
			DELETE FROM $table WHERE $some;
			UPDATE $table SET note = 'changed ' || $round WHERE seq % 4001 = @{[ int(rand(4001)) ]};
			INSERT INTO $table SELECT $key, 'new', i FROM generate_series(1, 30) i ON CONFLICT DO NOTHING});
		app_sql($target, "SELECT tablesync_alter('$table', consistency => '@{[ rand() < 0.5 ? 'chunk' : 'snapshot' ]}')");
		like(run_counts($target, $table), qr/^succeeded\|[1-9]\d*\|[1-9]\d*\|[1-9]\d*$/, "$table: changes (seed $seed)");
		is_same($table, "$table: identical after them");
	}
}
for my $table (qw(tenants words codes))
{
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$table')"), 0, "$table: verified");
}

# --- a column that says how it is sorted, in a database here that sorts otherwise ---

$target->safe_psql('postgres', q{CREATE DATABASE people TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'});
$target->safe_psql('people', q{
	CREATE EXTENSION tablesync CASCADE;
	GRANT CREATE ON SCHEMA public TO app;
	CREATE SERVER people FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '} . $source->port . q{', dbname 'people');
	GRANT USAGE ON FOREIGN SERVER people TO app;
	CREATE USER MAPPING FOR app SERVER people OPTIONS (user 'reader', password 'read-only')});
sub people_sql { return $target->safe_psql('people', $_[0], extra_params => [ '-U', 'app' ]) }

$source->safe_psql('people', qq{
	CREATE TABLE mixed (code text COLLATE "C", id integer, note text, plain text, PRIMARY KEY (code, id));
	INSERT INTO mixed SELECT left($text, 3), i, 'n', $text FROM generate_series(1, 3000) i});
people_sql(q{SELECT tablesync_add('mixed', 'people', 'public.mixed', chunk_rows => 100)});
is(people_sql(q{SELECT status, inserted FROM tablesync_run('mixed')}), 'succeeded|3000', 'sorted otherwise here: loaded');
cmp_ok(people_sql(q{SELECT count(*) FROM tablesync.chunk WHERE lower_key IS NOT NULL}), '>', 10, 'in chunks');
$source->safe_psql('people', q{UPDATE mixed SET note = 'changed' WHERE id % 50 = 7; DELETE FROM mixed WHERE id % 50 = 8; INSERT INTO mixed SELECT code, id + 10000, 'new' FROM mixed WHERE id % 50 = 9});
is(people_sql(q{SELECT status, inserted, updated, deleted FROM tablesync_run('mixed')}), 'succeeded|60|60|60', 'changes');
people_sql(q{UPDATE mixed SET note = 'mine' WHERE id % 50 = 17; DELETE FROM mixed WHERE id % 50 = 18; INSERT INTO mixed SELECT code, id + 20000, 'mine' FROM mixed WHERE id % 50 = 19 AND id < 10000});
is(people_sql(q{SELECT difference, count(*) FROM tablesync_verify('mixed', repair => true) GROUP BY 1 ORDER BY 1}),
	"different|60\nmissing at source|60\nmissing here|60", 'what somebody has written here');
is(people_sql(q{SELECT count(*) FROM tablesync_verify('mixed')}), 0, 'verified');
is(people_sql('SELECT count(*), sum(hashtextextended(t::text, 0)) FROM mixed t'),
	$source->safe_psql('people', 'SELECT count(*), sum(hashtextextended(t::text, 0)) FROM mixed t'), 'identical');

done_testing();
