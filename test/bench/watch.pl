#!/usr/bin/perl
# watch.pl: what something costs, from its start until the end of standard input.
#
#     watch.pl source-folder target-folder psql [arguments for the source]
#
# prints "ready" when it watches, and at the end one line:
#
#     cpu hit read age memory
#
# cpu     seconds of processor time of all processes of the source cluster, but
#         for the session that watches
# hit     buffers of user tables and their indexes at the source found in
# read    shared_buffers, and not found there
# age     seconds: the oldest transaction of any other session at the source,
#         looked at every 50 ms
# memory  MB: the largest RssAnon (private memory) of any worker of tablesync at
#         the target, looked at every 20 ms
#
# It watches from outside: /proc, and one session at the source.

use strict;
use warnings;

use IO::Select;
use IPC::Open2;
use POSIX ();
use Time::HiRes qw(sleep time);

my $MEMORY_INTERVAL = 0.02;
my $AGE_INTERVAL = 0.05;
my $LEAVE_TIMEOUT = 2;		# seconds for sessions to end, which is when they hand in their counters

my ($source_folder, $target_folder, @psql) = @ARGV;
my ($source, $target) = (postmaster($source_folder), postmaster($target_folder));
open2(my $answers, my $queries, @psql);
my $own_backend = ask('SELECT pg_backend_pid()');

my ($oldest, $largest) = (0, 0);
my %worker;		# pids of tablesync's workers
my @before = (cpu_seconds(), buffers());

watch();
wait_for_sessions();
my @after = (cpu_seconds(), buffers());
printf "%.3f %d %d %.3f %.1f\n", (map { $after[$_] - $before[$_] } 0 .. 2), $oldest, $largest / 1024;

sub watch
{
	my $input = IO::Select->new(\*STDIN);
	my $next_age = 0;

	$| = 1;
	print "ready\n";
	until ($input->can_read($MEMORY_INTERVAL))
	{
		look_at_workers();
		next if time < $next_age;
		look_at_sessions();
		$next_age = time + $AGE_INTERVAL;
	}
	return;
}

sub look_at_workers
{
	foreach my $pid (children($target))
	{
		$worker{$pid} ||= slurp("/proc/$pid/cmdline") =~ /^postgres: tablesync /;
		next unless $worker{$pid};
		my ($kb) = slurp("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m;
		$largest = $kb if ($kb // 0) > $largest;
	}
	return;
}

# A walsender that copies a table shows a snapshot, but no start of a transaction.
sub look_at_sessions
{
	my $age = ask(q{
		SELECT coalesce(max(EXTRACT(epoch FROM clock_timestamp()
		                    - coalesce(xact_start, CASE WHEN backend_xmin IS NOT NULL THEN query_start END))), 0) FROM }
		. other_sessions());
	$oldest = $age if $age > $oldest;
	return;
}

# The function below the view: the view would join two catalogs every time.
sub other_sessions
{
	return "pg_stat_get_activity(NULL) WHERE backend_type IN ('client backend', 'walsender') AND pid <> $own_backend";
}

# A walsender of logical replication stays; it is waited for until the timeout.
sub wait_for_sessions
{
	my $deadline = time + $LEAVE_TIMEOUT;

	sleep 0.01 while ask('SELECT count(*) FROM ' . other_sessions()) and time < $deadline;
	sleep 0.02;
	return;
}

# Ended processes count in the postmaster's own figures.
sub cpu_seconds
{
	my $ticks = ticks($source, 11 .. 14);		# utime stime cutime cstime

	$ticks += ticks($_, 11, 12) foreach grep { $_ != $own_backend } children($source);
	return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK);
}

sub ticks
{
	my ($pid, @fields) = @_;
	my ($rest) = slurp("/proc/$pid/stat") =~ /\) (.*)/ or return 0;		# what follows the name of the process
	my $sum = 0;

	$sum += $_ foreach (split / /, $rest)[@fields];
	return $sum;
}

sub buffers
{
	return split / /, ask(q{
		SELECT coalesce(sum(heap_blks_hit + coalesce(idx_blks_hit, 0) + coalesce(toast_blks_hit, 0)), 0)::bigint || ' ' ||
		       coalesce(sum(heap_blks_read + coalesce(idx_blks_read, 0) + coalesce(toast_blks_read, 0)), 0)::bigint
		FROM pg_statio_user_tables});
}

sub ask
{
	my ($query) = @_;

	print $queries "$query;\n";
	$queries->flush;
	my $answer = <$answers>;
	die "the session at the source has ended\n" unless defined $answer;
	chomp $answer;
	return $answer;
}

sub postmaster
{
	my ($folder) = @_;
	my ($pid) = slurp("$folder/postmaster.pid") =~ /^(\d+)/ or die "no server runs in $folder\n";

	return $pid;
}

sub children
{
	my ($pid) = @_;

	return split ' ', slurp("/proc/$pid/task/$pid/children");
}

# Content of a file; nothing if the process has just ended.
sub slurp
{
	my ($file) = @_;

	open(my $handle, '<', $file) or return '';
	local $/;
	my $content = <$handle>;
	return $content // '';
}
