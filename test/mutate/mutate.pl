#!/usr/bin/perl
# mutate.pl work built pg_config lanes user: called by mutate.sh, which says what
# the variables of the environment mean.  Draws faults (Mutations.pm), and tries
# each: a copy of the tree that is built already, the fault, make, make install
# into the server of its lane, pg_regress, TAP files until one fails.

use strict;
use warnings;
use File::Basename;
use IO::Handle;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(time);
use Mutations;

my ($work, $built, $there, $lanes, $user) = @ARGV;
my $seed = $ENV{SEED} || int(rand 1_000_000);
my $count = $ENV{MUTANTS} || 100;
my $budget = $ENV{BUDGET} // 90;
my $more = $ENV{MORE} // 600;
my $histories = $ENV{HISTORIES} || 10;
my $suite = $ENV{SUITE} || 'test';
my @as_user = $> == 0 ? ('runuser', '-u', $user, '--') : ();

# What is likely to catch a fault in a folder; then what looks at everything.
my @by_folder = (
	[ qr{/feed|query/feed}, qw(sql 055 058 056 057 059) ], [ qr{/export/}, qw(061) ], [ qr{/memory/}, qw(037 017) ], [ qr{/source/part|query/part|evolve/part|own_col}, qw(060) ],
	[ qr{/source/.*sql}, qw(sql 048 045 024 046 041 060 003) ], [ qr{/source/}, qw(032 006 020 018 003 025 048) ], [ qr{/process/}, qw(004 033 028) ],
	[ qr{/api/.*queue|sched}, qw(033 011) ], [ qr{/api/}, qw(sql 015 014 031 049 028) ], [ qr{/catalog/queue}, qw(033) ], [ qr{/catalog/}, qw(031 017 028 012) ],
	[ qr{/watch/sched}, qw(042 011) ], [ qr{/watch/}, qw(012 011) ], [ qr{/verify/}, qw(021 009) ], [ qr{/evolve/}, qw(056 024 013) ],
	[ qr{/check/pub}, qw(051 014) ], [ qr{/check/}, qw(sql 014 051 040) ], [ qr{/load/}, qw(019 023) ], [ qr{/scan/by_xmin}, qw(035 021) ], [ qr{/scan/}, qw(034 036 018 021) ],
	[ qr{/apply/}, qw(005 004 050 062) ], [ qr{/run/}, qw(033 022 025 004) ], [ qr{/query/}, qw(009 008 034 021 045) ], [ qr{/execute/}, qw(038 034 004 027) ]);
my @always = qw(sql 001 010 035 sql2 002 024);

chdir "$built/src" or die "$built/src: $!";
# pg_regress in two parts: what is quick, and the rest with the isolation tests
my %regress = (sql => [ 'REGRESS=add collation feed manage run', 'ISOLATION=' ], sql2 => ['REGRESS=names types']);
my %tests = map { basename($_) =~ /^(\d+)/ ? ($1 => $_) : () } glob 'test/t/*.pl';
$tests{$_} = $_ foreach keys %regress;
my (%text, %reaching, %seconds);

sub slurp { my ($file) = @_; local $/; open(my $in, '<', $file) or die "$file: $!"; return <$in> }

# "file:line test.." for each line, and "test seconds" for each test
sub read_map
{
	open(my $in, '<', $_[0]) or die "$_[0]: $!";
	while (<$in>)
	{
		chomp;
		my ($place, @tests) = split / /;
		if ($place =~ /:/)
		{
			$reaching{$place} = [ map { /^(\d+)_/ ? $1 : $_ eq 'sql' ? ('sql', 'sql2') : () } @tests ];
		}
		else
		{
			$seconds{$1} = $tests[0] if $place =~ /^(\d+)_/;
		}
	}
}

sub draw
{
	my @all;
	foreach my $file (sort grep { !m!/updates/! } glob 'extension/*.c extension/*/*.c extension/*/*.sql')
	{
		$text{$file} = slurp($file);
		push @all, Mutations::of_file($file, $text{$file});
	}
	srand $seed;
	my $number = 0;
	return map { { %$_, number => ++$number } } Mutations::draw($count, @all);
}

# The tests for a fault, what is likely to catch it first.
sub tests_for
{
	my ($fault) = @_;
	return grep { $tests{$_} } split ' ', $ENV{TESTS} if $ENV{TESTS};
	my @likely = map { my ($which, @of) = @$_; $fault->{file} =~ $which ? @of : () } @by_folder;
	my %seen;
	# what takes minutes comes after what may catch it in seconds
	my @long = grep { ($seconds{$_} // 0) > $budget } @likely;
	my %long = map { $_ => 1 } @long;
	my @order = grep { $tests{$_} && !$seen{$_}++ } (grep { !$long{$_} } @likely), @always, @long, sort { ($seconds{$a} // 30) <=> ($seconds{$b} // 30) || $a cmp $b } keys %tests;
	my $reaching = $reaching{"$fault->{file}:$fault->{line}"};
	return @order if !%reaching || $fault->{file} =~ /sql$/ || !$reaching;    # a line without code may be part of a statement
	my %is = map { $_ => 1 } @$reaching;
	return grep { $is{$_} } @order;
}

# In a lane: runs a command for at most some seconds, output to a file; its exit code.
sub run_for
{
	my ($seconds, $log, @command) = @_;
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', $log) or die "$log: $!";
		open(STDERR, '>&', \*STDOUT);
		exec('timeout', '-k', '5', $seconds, @command) or POSIX::_exit(127);
	}
	waitpid $pid, 0;
	return $? >> 8 || $? & 127;
}

# Seconds after which a test hangs.
sub longest { return $seconds{ $_[0] } ? 60 + 3 * $seconds{ $_[0] } : 240 }

sub bindir { return dirname("$_[0]$there") }

# Servers that a test has left: those of this lane, and only those.
sub end_servers
{
	my ($lane) = @_;
	foreach my $file (grep { -e } glob("$lane/src/tmp_check/*/pgdata/postmaster.pid $lane/src/tmp_check/*/*/postmaster.pid $lane/data/postmaster.pid"))
	{
		my ($pid) = slurp($file) =~ /^(\d+)/ or next;
		my $command = -e "/proc/$pid/cmdline" ? slurp("/proc/$pid/cmdline") : '';
		kill 'QUIT', $pid if index($command, $lane) >= 0;
	}
}

sub build
{
	my ($lane, $fault) = @_;
	my $text = Mutations::applied($text{ $fault->{file} }, $fault);
	chdir $work or die "$work: $!";
	system('rm', '-rf', "$lane/src", "$lane/data") == 0 or die "rm: $?";
	system('cp', '-a', "$built/src", "$lane/src") == 0 or die "cp: $?";
	open(my $out, '>', "$lane/src/$fault->{file}") or die "$fault->{file}: $!";
	print $out $text;
	close $out;
	my @make = ('make', '-s', '-C', "$lane/src", "PG_CONFIG=$lane$there", 'with_llvm=no');
	return 0 if run_for(300, "$lane/build.log", @make) || run_for(60, "$lane/build.log", @make, 'install');
	system('chown', '-R', $user, "$lane/src") if $> == 0;
	return 1;
}

sub first_failure
{
	my ($log) = @_;
	my $text = slurp($log);
	return $1 if $text =~ /^\s*not ok \d+ - (.*)/m;
	return $1 if $text =~ /^test (\S+) .*FAILED/m;
	return (grep { /\S/ && !/^ok|^#\s*$/ } split /\n/, $text)[-1] // '';
}

# A server for pg_regress, as long as a function runs that gets its address.
sub with_server
{
	my ($lane, $function) = @_;
	my $ctl = bindir($lane) . '/pg_ctl';
	my $socket = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die "port: $!";
	my $port = $socket->sockport;
	close $socket;
	system('rm', '-rf', "$lane/data");
	system('cp', '-a', "$built/template", "$lane/data");
	run_for(60, "$lane/start.log", @as_user, $ctl, '-D', "$lane/data", '-l', "$lane/src/server.log", '-w', 'start', '-o',
		"-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off -c max_worker_processes=16")
	  and die 'no server: ' . slurp("$lane/start.log");
	my $verdict = $function->('PGHOST=127.0.0.1', "PGPORT=$port", 'PGUSER=postgres');
	run_for(60, "$lane/stop.log", @as_user, $ctl, '-D', "$lane/data", '-m', 'immediate', '-w', 'stop');
	return $verdict;
}

# Can the extension be created?  Where its SQL can't, the fault is none to count.
sub create
{
	my ($lane, $fault) = @_;
	return with_server($lane, sub {
		run_for(60, "$lane/test.log", 'env', @_, bindir($lane) . '/psql', qw(-X -q -d postgres -v ON_ERROR_STOP=1 -c),
			'CREATE EXTENSION tablesync CASCADE') or return;
		return $fault->{file} =~ /sql$/ ? 'invalid' : 'CREATE EXTENSION: ' . first_failure("$lane/test.log");
	});
}

sub regress
{
	my ($lane, $part) = @_;
	return with_server($lane, sub {
		my $code = run_for(120, "$lane/test.log", @as_user, 'env', @_, 'make', '-s', '-C', "$lane/src", "PG_CONFIG=$lane$there", 'with_llvm=no',
			@{ $regress{$part} }, 'installcheck') or return;
		return 'pg_regress: ' . ($code >= 124 ? 'hangs' : first_failure("$lane/test.log"));
	});
}

sub environment
{
	my ($lane) = @_;
	my $pgxs = dirname(`$lane$there --pgxs`) . '/../..';
	return ('env', 'PATH=' . bindir($lane) . ":$ENV{PATH}", "PG_REGRESS=$pgxs/src/test/regress/pg_regress", "TESTDIR=$lane/src", "TMPDIR=$lane/tmp",
		'PG_TEST_TIMEOUT_DEFAULT=120', 'TABLESYNC_ROUNDS=12', "PG_TEST_PORT_DIR=$work/ports", "PERL5LIB=test/perl:test/soak:$pgxs/src/test/perl");
}

# One of the tests: what it says, or undef if it is content.
sub tap
{
	my ($lane, $test) = @_;
	return regress($lane, $test) if $regress{$test};
	chdir "$lane/src" or die "$lane/src: $!";
	my $code = run_for(longest($test), "$lane/test.log", @as_user, environment($lane), 'perl', $tests{$test});
	end_servers($lane);
	system('rm', '-rf', "$lane/src/tmp_check", glob "$lane/tmp/*");
	return if $code == 0;
	return basename($tests{$test}) . ': ' . ($code >= 124 && $code != 255 ? 'hangs' : first_failure("$lane/test.log"));
}

sub soak
{
	my ($lane) = @_;
	chdir "$lane/src" or die "$lane/src: $!";
	my $code = run_for(60 + 40 * $histories, "$lane/test.log", @as_user, environment($lane), "HISTORIES=$histories", 'SEED=1', 'HISTORY=', 'FAULTS=yes', 'KEEP_GOING=',
		'REDUCE=0', 'perl', 'test/soak/soak.pl');
	end_servers($lane);
	return if $code == 0;
	my ($why) = slurp("$lane/test.log") =~ /^(?:# )?(.*(?:violation|VIOLATION).*)/m;
	return 'soak: ' . ($code >= 124 && $code != 255 ? 'hangs' : $why // first_failure("$lane/test.log"));
}

sub verdict
{
	my ($lane, $fault) = @_;
	build($lane, $fault) or return 'invalid';
	return soak($lane) // 'SURVIVED' if $suite eq 'soak';
	my $begun = time;
	my $verdict = create($lane, $fault);
	return $verdict if $verdict;
	my @tests = tests_for($fault);
	while (@tests && time - $begun < $budget)
	{
		$verdict = tap($lane, shift @tests) and return $verdict;
	}
	return 'SURVIVED' unless $more;
	$begun = time;
	while (@tests && time - $begun < $more)
	{
		$verdict = tap($lane, shift @tests) and return "later $verdict";
	}
	$verdict = soak($lane) and return "later $verdict";
	return 'SURVIVED' . (@tests ? " (not tried: @tests)" : '');
}

sub lane
{
	my ($lane, $to, @faults) = @_;
	mkdir "$lane/tmp";
	chmod 0777, "$lane/tmp";
	foreach my $fault (@faults)
	{
		my $begun = time;
		my $verdict = verdict($lane, $fault);
		my $change = $fault->{change} =~ s/^(.{150}).*/$1../r;
		my $line = sprintf "%4d  %s:%d  %s: %s  |  %s  (%d s)\n", $fault->{number}, $fault->{file}, $fault->{line}, $fault->{kind}, $change, substr($verdict, 0, 150), time - $begun;
		syswrite $to, $line;
	}
}

read_map($ENV{COVERAGE_MAP}) if $ENV{COVERAGE_MAP};
my @faults = draw();
if ($ENV{MUTANT})
{
	my %wanted = map { $_ => 1 } split ' ', $ENV{MUTANT};
	@faults = grep { $wanted{ $_->{number} } } @faults;
}
print "SEED=$seed, ", scalar(@faults), " faults\n";
mkdir "$work/ports";
chmod 0777, "$work/ports";
pipe(my $from, my $to) or die "pipe: $!";
foreach my $number (1 .. $lanes)
{
	next if fork;
	close $from;
	lane("$work/lane$number", $to, @faults[ grep { $_ % $lanes == $number - 1 } 0 .. $#faults ]);
	POSIX::_exit(0);
}
close $to;

my ($invalid, $survived, $caught) = (0, 0, 0);
STDOUT->autoflush;
open(my $results, '>>', $ENV{RESULTS} || '/dev/null') or die "$ENV{RESULTS}: $!";
$results->autoflush;
while (my $line = <$from>)
{
	print $line;
	print $results "SEED=$seed $line";
	($line =~ /\|  invalid/ ? $invalid : $line =~ /\|  SURVIVED/ ? $survived : $caught)++;
}
1 while wait != -1;
printf "%d faults: %d caught, %d survived (%.1f %% caught); %d more can't be built\n", $caught + $survived, $caught, $survived,
	100 * $caught / ($caught + $survived || 1), $invalid;
