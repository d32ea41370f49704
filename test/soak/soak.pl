# make soak: random histories of sources and replicas with faults, compared with a
# model.  SEED and HISTORY repeat one; KEEP_GOING=1 goes on after a violation.

use strict;
use warnings;

use SoakHistory;
use SoakProxy;
use SoakReader;
use TablesyncTest;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{SEED} ne '' ? $ENV{SEED} : int(rand(1_000_000));
my @numbers = $ENV{HISTORY} ne '' ? split(/[ ,]+/, $ENV{HISTORY}) : (1 .. $ENV{HISTORIES});
my %counts;
my $generation = 0;
my $place;

sub report { Test::More->builder->diag(@_); return; }

# A pair of clusters, with a proxy in between.
sub start_place
{
	my $number = $generation++ ? "_$generation" : '';
	my $source = start_source(name => "source$number", conf => "log_line_prefix = '%m [%p] %u|%a '\nmax_connections = 50\nfsync = off");
	$source->safe_psql('postgres', q{ALTER ROLE reader SET log_statement = 'all'; ALTER ROLE postgres SET lock_timeout = '700ms'});
	my $proxy = SoakProxy->start($source->port);
	my $target = start_target($source, name => "target$number", port => $proxy->port, conf => 'fsync = off');
	$target->safe_psql('postgres', q{
		ALTER ROLE app SET tablesync.retry_timeout = '4s';
		ALTER ROLE app SET tablesync.statement_timeout = '3s';
		ALTER ROLE app SET tablesync.lock_timeout = '2s';
		CREATE TABLE soak_filler (a integer, page text) WITH (parallel_workers = 64);
		ALTER TABLE soak_filler ALTER page SET STORAGE PLAIN;
		INSERT INTO soak_filler SELECT i, repeat('x', 5000) FROM generate_series(1, 64) i;
		ANALYZE soak_filler});
	my $small_disk;
	if ($ENV{SOAK_SMALL_DISK})
	{
		$small_disk = "$ENV{SOAK_SMALL_DISK}/$generation";
		mkdir $small_disk or die "$small_disk: $!";
		$target->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$small_disk'");
		$target->safe_psql('postgres', 'GRANT CREATE ON TABLESPACE small TO app');
	}
	return { nodes => { source => $source, target => $target }, reader => SoakReader->start($target, $ENV{TMPDIR}), proxy => $proxy, small_disk => $small_disk, counts => \%counts, at => {} };
}

sub stop_place
{
	$place->{$_}->stop for qw(proxy reader);
	for my $node (values %{ $place->{nodes} }) { $node->stop('immediate', fail_ok => 1); }
	system('rm', '-rf', $place->{small_disk}) if $place->{small_disk};
	undef $place;
	return;
}

sub history
{
	my (%options) = @_;
	$place //= start_place();
	my $h = SoakHistory->new($place, seed => $seed, faults => $ENV{FAULTS} ne 'no', %options);
	my $error = $h->run;
	stop_place() if defined $error;    # nothing of it is to be met again
	return ($h, $error);
}

# Leave out one part after the other of a history that fails, and keep what still does.
sub reduce
{
	my ($number, $failed, $first) = @_;
	my $until = time + $ENV{REDUCE};
	my $rounds = $failed->{round} // 1;
	my %skip;
	my @operations = grep { /^(\d+)/ && $1 <= $rounds } @{ $failed->{operations} };
	my $best = $failed;
	my $size = int((@operations + 1) / 2);
	my $tries = 0;
	while ($size >= 1 && time < $until)
	{
		my $shorter = 0;
		for (my $at = 0; $at < @operations && time < $until; )
		{
			my @out = @operations[ $at .. ($at + $size > @operations ? $#operations : $at + $size - 1) ];
			my ($h, $error) = history(number => $number, rounds => $rounds, skip => { %skip, map { $_ => 1 } @out });
			$tries++;
			if (defined $error && ($error =~ /^violation/ || $first !~ /^violation/))
			{
				@skip{@out} = (1) x @out;
				my %out = map { $_ => 1 } @out;
				@operations = grep { !$out{$_} } @operations;
				$best = $h;
				$best->{error} = $error;
				$shorter = 1;
			}
			else { $at += $size }
		}
		$size = $size == 1 && !$shorter ? 0 : $size > 1 ? int(($size + 1) / 2) : 1;
	}
	report("shortest that still fails, after $tries tries: operations @{ $best->{operations} }");
	return $best;
}

sub write_down
{
	my ($h, $name, $error) = @_;
	my $file = "$ENV{TMPDIR}/$name.sql";
	open my $out, '>:utf8', $file or die "$file: $!";
	print $out "-- $_\n" for "SEED=$seed HISTORY=$h->{number}, round " . ($h->{round} // 0), split /\n/, $error;
	print $out "$_\n" for @{ $h->{log} };
	close $out;
	report("what was done is in $file");
	return;
}

report("SEED=$seed");
my $violations = 0;
my $interrupted;
$SIG{INT} = $SIG{TERM} = sub { $interrupted = 1; };
my $started = time;
my $histories = 0;
for my $number (@numbers)
{
	my $began = time;
	my ($h, $error) = history(number => $number);
	note(sprintf('history %d: %.1f s', $number, time - $began));
	$histories++;
	if (defined $error)
	{
		$violations++;
		report("SEED=$seed HISTORY=$number, round " . ($h->{round} // 0) . ": $error");
		write_down($h, "soak-$seed-$number", $error);
		if ($ENV{REDUCE} > 0)
		{
			my $shortest = reduce($number, $h, $error);
			write_down($shortest, "soak-$seed-$number-reduced", $shortest->{error} // $error);
		}
		last if !$ENV{KEEP_GOING};
	}
	last if $interrupted;
	report("$histories histories, " . int(time - $started) . ' s') if $histories % 50 == 0;
}
stop_place() if $place;
report(sprintf('%d histories in %d s, %d violations (SEED=%s)', $histories, time - $started, $violations, $seed));
report(join '', map { "  $_: $counts{$_}\n" } sort keys %counts);
is($violations, 0, "$histories histories");
done_testing();
