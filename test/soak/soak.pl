# make soak: random histories of sources and replicas with faults, compared with a
# model.  SEED and HISTORY repeat one; KEEP_GOING=1 goes on after a violation.

use strict;
use warnings;

use SoakHistory;
use SoakPlace;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{SEED} ne '' ? $ENV{SEED} : int(rand(1_000_000));
my @numbers = $ENV{HISTORY} ne '' ? split(/[ ,]+/, $ENV{HISTORY}) : (1 .. $ENV{HISTORIES});
my %counts;
my $place;

sub report { Test::More->builder->diag(@_); return; }

sub stop_place
{
	$place->stop if $place;
	undef $place;
	return;
}

sub history
{
	my (%options) = @_;
	my $kind = SoakPlace::kind_of($seed, $options{number});
	stop_place() if $place && $place->{wanted} ne $kind;
	$place //= SoakPlace->start($kind, \%counts);
	$place->{wanted} = $kind;
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
stop_place();
report(sprintf('%d histories in %d s, %d violations (SEED=%s)', $histories, time - $started, $violations, $seed));
report(join '', map { "  $_: $counts{$_}\n" } sort keys %counts);
is($violations, 0, "$histories histories");
done_testing();
