#!/usr/bin/perl
# includes.pl: part of make lint.  Which #include lines of extension/ are of no
# use?  Those of whose header a file uses no name, and without which it still
# compiles.  The first is read off the header's text, so that only few files have
# to be compiled; a header whose name a file uses stays, even where another header
# brings it too.  Takes the command that compiles, without a file.

use strict;
use warnings;

my @compile = @ARGV;
my @folders = map { /^-I(.+)/ ? $1 : () } @compile;
my (%declares, $unused);

sub slurp
{
	open my $in, '<', $_[0] or die "$_[0]: $!";
	local $/;
	return <$in>;
}

# The names that a header declares itself.
sub declared_in
{
	my ($header) = @_;
	return $declares{$header} if $declares{$header};
	my ($path) = grep { -e } map { "$_/$header" } @folders;
	return $declares{$header} = undef unless $path;
	my $text = slurp($path) =~ s{/\*.*?\*/}{}gsr;
	# a catalog's OIDs and columns are in a generated part of its header, types of atomics in one per compiler
	my %names = map { %{ declared_in($_) // {} } } $text =~ m{^#\s*include "(\S+_d\.h|port/atomics/\S+\.h)"}mg;
	$names{$_} = 1 for $text =~ /^\s*#\s*define\s+(\w+)/mg, $text =~ /^[^\n#]*?\b(\w+)\s*\(/mg,
		$text =~ /\b(?:struct|union|enum)\s+(\w+)/g, $text =~ /(\w+)\s*;/g, $text =~ /(\w+)(?:\[\w*\])+\s*;/g,
		$text =~ /^\s+(\w+)\s*(?:=[^,}\n]*)?,?\s*$/mg;
	return $declares{$header} = \%names;
}

# Does a file compile without one of its lines?  In a copy beside it, so that it finds its headers.
sub compiles
{
	my ($file, @lines) = @_;
	(my $copy = $file) =~ s{([^/]+)$}{.without_$1};
	open my $out, '>', $copy or die "$copy: $!";
	print $out @lines;
	close $out;
	my $failed = system("@compile -fsyntax-only '$copy' >/dev/null 2>&1");
	unlink $copy;
	return !$failed;
}

for my $file (sort glob 'extension/*.[ch] extension/*/*.[ch]')
{
	my @lines = split /^/, slurp($file);
	my $code = join('', grep { !/^#include/ } @lines) =~ s{/\*.*?\*/}{}gsr;
	my %used = map { $_ => 1 } $code =~ /\b([A-Za-z_]\w+)\b/g;

	for my $n (reverse 0 .. $#lines)
	{
		my ($header) = $lines[$n] =~ /^#include ["<](.+)[">]/ or next;
		next if $header eq 'tablesync.h' || $header eq 'postgres.h';
		next if $header eq 'compat.h';    # what another version needs of it is not seen here
		my $names = declared_in($header) or next;    # of the C library
		next if grep { $used{$_} } keys %$names;
		my @without = @lines;
		splice @without, $n, 1;
		# a header is only read; what it would break shows in those that include it
		next if $file =~ /\.c$/ && !compiles($file, @without);
		printf "%s:%d: nothing of %s is used\n", $file, $n + 1, $header;
		@lines = @without if $file =~ /\.c$/;
		$unused++;
	}
}
exit($unused ? 1 : 0);
