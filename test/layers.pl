#!/usr/bin/perl
# layers.pl: make layers.  Do dependencies run downhill?  Takes the floors, from
# the ground up, each a list of folders separated by commas; reads the symbols of
# the objects in extension/ with nm.  A file may use what is defined in its own
# folder, as long as that leads to no circle, and in folders of lower floors.
# "make layers LAYERS_LIST=yes" prints what each file uses.

use strict;
use warnings;
use File::Basename;

my ($list, @floors) = @ARGV;
my (%floor_of, %defined_in, %undefined, %uses);
for my $n (0 .. $#floors)
{
	$floor_of{$_} = $n + 1 for split /,/, $floors[$n];
}

my @objects = sort glob 'extension/*.o extension/*/*.o';
die "layers: there are no objects: run make first\n" unless @objects;
for my $object (@objects)
{
	(my $file = $object) =~ s/\.o$/.c/;
	open my $nm, '-|', 'nm', $object or die "nm: $!";
	while (<$nm>)
	{
		my ($type, $symbol) = / (\w) (\w+)$/ or next;
		$defined_in{$symbol} = $file if index('TDBRC', $type) >= 0;
		push @{ $undefined{$file} }, $symbol if $type eq 'U';
	}
	close $nm or die "nm $object failed\n";
}
for my $file (keys %undefined)
{
	for my $symbol (@{ $undefined{$file} })
	{
		my $other = $defined_in{$symbol};
		push @{ $uses{$file}{$other} }, $symbol if $other && $other ne $file;
	}
}

sub folder { my $folder = basename(dirname($_[0])); return $folder eq 'extension' ? '' : $folder }

my $faults = 0;
for my $file (sort keys %uses)
{
	for my $other (sort keys %{ $uses{$file} })
	{
		my ($from, $to) = (folder($file), folder($other));
		my @symbols = sort @{ $uses{$file}{$other} };
		print "$file -> $other: @symbols\n" if $list;
		die "layers: folder $_ has no floor in the Makefile\n" for grep { $_ ne '' && !$floor_of{$_} } $from, $to;
		next if $to eq '' || $from eq $to || ($from ne '' && $floor_of{$from} > $floor_of{$to});
		print "not downhill: $file uses @symbols of $other\n";
		$faults++;
	}
}

# circles of files: Tarjan's strongly connected components
my (%index, %low, %on_stack, @stack);
my $next = 0;
sub visit
{
	my ($file) = @_;
	$index{$file} = $low{$file} = $next++;
	push @stack, $file;
	$on_stack{$file} = 1;
	for my $other (sort keys %{ $uses{$file} // {} })
	{
		if (!defined $index{$other})
		{
			visit($other);
			$low{$file} = $low{$other} if $low{$other} < $low{$file};
		}
		elsif ($on_stack{$other} && $index{$other} < $low{$file})
		{
			$low{$file} = $index{$other};
		}
	}
	return unless $low{$file} == $index{$file};
	my @circle;
	do { push @circle, pop @stack; $on_stack{ $circle[-1] } = 0 } until $circle[-1] eq $file;
	return unless @circle > 1;
	print 'a circle: ', join(', ', sort @circle), "\n";
	$faults++;
}
defined $index{$_} or visit($_) for sort keys %uses;

# headers go the same way
for my $file (sort glob 'extension/*.[ch] extension/*/*.[ch]')
{
	my $from = folder($file);
	open my $text, '<', $file or die "$file: $!";
	while (<$text>)
	{
		my ($header, $to) = m{^#include "((\w+)/\w+\.h)"} or next;
		next unless $floor_of{$to} && -e "extension/$header";    # or it is one of PostgreSQL's
		next if $from eq $to || ($from ne '' && $floor_of{$from} > $floor_of{$to});
		print "not downhill: $file includes $header\n";
		$faults++;
	}
}

print scalar(@objects), " files in ", scalar(keys %floor_of), " folders on ", scalar(@floors), " floors: ",
	$faults ? "$faults faults\n" : "no arrow runs up, no circle\n";
exit($faults ? 1 : 0);
