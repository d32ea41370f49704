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

my ($source, $target) = start_pair();

# --- an answer that keeps coming, and one that stops ---

# A proxy that lets so many bytes a second through from the source, as a file says.
sub start_proxy
{
	my ($rate_file) = @_;
	my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die $!;
	my $port = $listener->sockport;
	my $pid = fork // die $!;
	return ($port, $pid) if $pid;
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
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.statement_timeout = '1ms'});
like(app_fails($target, q{SELECT tablesync_run('wide')}),
	qr/ERROR:  57014: a statement took longer at the source than the 1 ms that it may.*DETAIL:  The source reported: canceling statement due to statement timeout\..*HINT:  .*ALTER ROLE app SET tablesync.statement_timeout = /s,
	'a time limit of the source is named');
$target->safe_psql('postgres', q{ALTER ROLE app RESET tablesync.statement_timeout});
is(run_counts($target, 'wide') =~ s/\|.*//r, 'succeeded', 'the next run completes it');
is_replica($source, $target, 'wide', 'wide', 'identical');

done_testing();
