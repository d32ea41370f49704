# The worker's private memory is bounded by bytes, not by rows: large rows and
# many rows both stay under 256 MB, at load and when everything changes.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

plan skip_all => '/proc is needed' unless -r "/proc/$$/status";

my $limit = 256;
my $rows = $ENV{TABLESYNC_ROWS} // 500000;	# below 100000 nothing spills to disk
my ($source, $target) = start_pair();
my ($postmaster) = split /\n/, PostgreSQL::Test::Utils::slurp_file($target->data_dir . '/postmaster.pid');

$source->safe_psql('postgres', qq{
	CREATE TABLE large (id integer PRIMARY KEY, body bytea, note text, updated_at timestamp);
	ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
	INSERT INTO large SELECT i, decode(repeat(md5(i::text), 20 * 65536), 'hex'), 'n', clock_timestamp() FROM generate_series(1, 16) i;
	CREATE TABLE many (id bigint PRIMARY KEY, note text, updated_at timestamp);
	INSERT INTO many SELECT i * 1000, md5(i::text), clock_timestamp() FROM generate_series(1, $rows) i});

# Run a replica and watch its worker; returns status and peak in MB.
sub run_watched
{
	my ($replica) = @_;
	my ($out, $err) = ('', '');
	my $psql = IPC::Run::start(
		[ 'psql', '-XAtq', '-U', 'app', '-d', $target->connstr('postgres'), '-c', "SELECT status, inserted, updated, deleted FROM tablesync_run('$replica', force => true)" ],
		'<', \undef, '>', \$out, '2>', \$err);
	my $pid = '';
	my $peak = 0;
	while ($psql->pumpable)
	{
		eval { $psql->pump_nb; };    # dies if psql has just ended
		($pid) = map { m{/proc/(\d+)/} } grep { is_worker($_) } glob('/proc/[0-9]*/cmdline') unless $pid;
		if ($pid and my $status = slurp("/proc/$pid/status"))
		{
			my ($kb) = $status =~ /^RssAnon:\s+(\d+)/m;
			$peak = $kb if ($kb // 0) > $peak;
		}
		select(undef, undef, undef, 0.005);
	}
	$psql->finish;
	chomp $out;
	return ("$out$err", int($peak / 1024));
}

# Is it a worker of our target?  Other tests may run at the same time.
sub is_worker
{
	my ($cmdline) = @_;
	return 0 unless (slurp($cmdline) // '') =~ /tablesync run/;
	my $status = slurp($cmdline =~ s/cmdline$/status/r) // '';
	my ($parent) = $status =~ /^PPid:\s+(\d+)/m;
	return ($parent // 0) == $postmaster;
}

sub slurp
{
	my ($file) = @_;
	open(my $handle, '<', $file) or return;
	local $/;
	my $content = <$handle>;
	close $handle;
	return $content;
}

sub stays_small
{
	my ($replica, $expected, $name) = @_;
	my ($result, $peak) = run_watched($replica);
	is($result, $expected, $name);
	cmp_ok($peak, '>', 1, "$name: watched");
	cmp_ok($peak, '<', $limit, "$name: $peak MB of private memory");
	return;
}

app_sql($target, "SELECT tablesync_add('large', 'src', 'public.large', version_column => 'updated_at')");
app_sql($target, "SELECT tablesync_add('many', 'src', 'public.many', version_column => 'updated_at')");
stays_small('large', 'succeeded|16|0|0', 'load of large rows');
stays_small('many', "succeeded|$rows|0|0", 'load of many rows');
$source->safe_psql('postgres', q{
	UPDATE large SET note = 'm', updated_at = clock_timestamp();
	UPDATE many SET note = 'm', updated_at = clock_timestamp()});
stays_small('large', 'succeeded|0|16|0', 'update of large rows');
stays_small('many', "succeeded|0|$rows|0", 'update of many rows');
$source->safe_psql('postgres', 'TRUNCATE many; INSERT INTO many SELECT -i, NULL, NULL FROM generate_series(1, 300000) i');
stays_small('many', "succeeded|300000|0|$rows", 'every row replaced');
is_replica($source, $target, 'many', 'many', 'identical');
is($target->safe_psql('postgres', 'SELECT sum(hashtext(encode(body, \'hex\'))) FROM large'),
	$source->safe_psql('postgres', 'SELECT sum(hashtext(encode(body, \'hex\'))) FROM large'), 'large values arrived');

done_testing();
