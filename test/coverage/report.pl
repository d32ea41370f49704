#!/usr/bin/perl
# report.pl src counts list map: what gcov says of each folder of counts (one for
# each test), added up.  With list, the lines that no test has reached; map is the
# file for the tests of each line, and for the seconds that each takes.

use strict;
use warnings;
use File::Find;

my ($src, $counts, $list, $map) = @ARGV;
my (%reached, %text);    # {file}{line}: tests; what stands there

# gcov wants the notes of the compiler beside the counts
sub link_notes
{
	my ($folder) = @_;
	my @counts;
	find({ no_chdir => 1, wanted => sub { push @counts, substr($_, length($folder) + 1) if /\.gcda$/ } }, $folder);
	foreach (@counts)
	{
		(my $note = $_) =~ s/gcda$/gcno/;
		symlink "$src/$note", "$folder/$note" unless -e "$folder/$note";
	}
	return sort @counts;
}

sub read_counts
{
	my ($test) = @_;
	my @counts = link_notes("$counts/$test") or return;
	my $file;
	chdir $src or die "$src: $!";    # to which the names of our files are relative
	open(my $gcov, '-|', 'gcov', '--stdout', map { "$counts/$test/$_" } @counts) or die "gcov: $!";
	while (<$gcov>)
	{
		/^ *([^:]+?)\*?: *(\d+):(.*)/ or next;
		my ($count, $line, $text) = ($1, $2, $3);
		$file = $text =~ m!^Source:(extension/.*)! ? $1 : undef if $line == 0 && $text =~ /^Source:/;
		next if !defined $file || $line == 0 || $count eq '-';
		$text{$file}{$line} = $text;
		$reached{$file}{$line} //= [];
		push @{ $reached{$file}{$line} }, $test if $count =~ /^\d/;
	}
}

sub percent { return sprintf '%5.1f', $_[1] ? 100 * $_[0] / $_[1] : 100 }

opendir(my $folder, $counts) or die "$counts: $!";
read_counts($_) foreach sort grep { !/^\./ } readdir $folder;
chdir '/';

my ($lines, $covered) = (0, 0);
printf "%-40s %7s %7s %7s\n", 'file', 'lines', 'reached', '%';
foreach my $file (sort keys %reached)
{
	my $all = keys %{ $reached{$file} };
	my $some = grep { @$_ } values %{ $reached{$file} };
	printf "%-40s %7d %7d %7s\n", $file, $all, $some, percent($some, $all);
	$lines += $all;
	$covered += $some;
}
printf "%-40s %7d %7d %7s\n", 'total', $lines, $covered, percent($covered, $lines);

if ($list eq 'yes')
{
	foreach my $file (sort keys %reached)
	{
		print "$file:$_:$text{$file}{$_}\n" foreach sort { $a <=> $b } grep { !@{ $reached{$file}{$_} } } keys %{ $reached{$file} };
	}
}
if ($map)
{
	open(my $out, '>', $map) or die "$map: $!";
	foreach my $file (sort keys %reached)
	{
		print $out "$file:$_ @{ $reached{$file}{$_} }\n" foreach sort { $a <=> $b } keys %{ $reached{$file} };
	}
	foreach my $file (glob "$counts/*/seconds")
	{
		open(my $in, '<', $file) or next;
		my ($test) = $file =~ m!([^/]+)/seconds$!;
		print $out "$test ", <$in>;
	}
	close $out;
}
