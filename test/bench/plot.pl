#!/usr/bin/perl
# plot.pl: draws run time against table size, both logarithmic.
#
#     plot.pl results/sizes.csv >docs/performance.svg
#
# Needs the columns rows, case and seconds; one line per case.  A case whose name
# ends with "(baseline)" is dashed.  The first comment of the file is the subtitle.

use strict;
use warnings;

my ($WIDTH, $HEIGHT) = (800, 520);
my ($LEFT, $RIGHT, $TOP, $BOTTOM) = (70, 590, 70, 460);		# edges of the plot itself
my @COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9');	# told apart by colour-blind readers too
my $BASELINE_COLOUR = '#666666';

my ($subtitle, @points) = read_points();
die "nothing to draw\n" unless @points;
my @x_range = decades(map { $_->{rows} } @points);
my @y_range = decades(map { $_->{seconds} } @points);
draw();

# --- the data ---

# The subtitle, and points { rows, case, seconds } in the order of the file.
sub read_points
{
	my ($first_comment, @names, @found);

	while (my $line = <>)
	{
		chomp $line;
		if ($line =~ /^#\s*(.*)/)
		{
			$first_comment //= $1;
			next;
		}
		my @fields = split /,/, $line;
		if (!@names)
		{
			@names = @fields;
			next;
		}
		my %point;
		@point{@names} = @fields;
		push @found, \%point if ($point{seconds} // '') =~ /^[0-9.]+$/ and $point{seconds} > 0;
	}
	return ($first_comment // '', @found);
}

# The powers of ten that enclose values, as exponents.
sub decades
{
	my @sorted = sort { $a <=> $b } @_;
	my ($low, $high) = (floor10($sorted[0]), -floor10(1 / $sorted[-1]));

	$high++ if $high == $low;
	return ($low, $high);
}

sub floor10
{
	my $exponent = log($_[0]) / log(10) + 1e-9;
	my $whole = int($exponent);
	return $whole > $exponent ? $whole - 1 : $whole;
}

sub cases
{
	my %seen;
	return grep { !$seen{$_}++ } map { $_->{case} } @points;
}

sub points_of
{
	my ($case) = @_;
	return sort { $a->{rows} <=> $b->{rows} } grep { $_->{case} eq $case } @points;
}

# --- where things are ---

sub x_of { return scale($_[0], @x_range, $LEFT, $RIGHT); }
sub y_of { return scale($_[0], @y_range, $BOTTOM, $TOP); }

sub scale
{
	my ($value, $low, $high, $from, $to) = @_;
	return sprintf '%.1f', $from + ($to - $from) * (log($value) / log(10) - $low) / ($high - $low);
}

# --- the drawing ---

sub draw
{
	print qq{<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 $WIDTH $HEIGHT" width="$WIDTH" height="$HEIGHT" font-family="sans-serif" font-size="13" fill="#222222">\n};
	print qq{<title>Run time against table size</title>\n};
	print qq{<rect width="$WIDTH" height="$HEIGHT" fill="#ffffff"/>\n};
	text($LEFT, 28, 'Run time against table size', 'font-size="17" font-weight="bold"');
	text($LEFT, 48, $subtitle, 'font-size="11" fill="#666666"');
	draw_axes();
	draw_cases();
	print "</svg>\n";
	return;
}

sub draw_axes
{
	foreach my $exponent ($x_range[0] .. $x_range[1])
	{
		my $x = x_of(10 ** $exponent);
		line($x, $TOP, $x, $BOTTOM, '#dddddd');
		text($x, $BOTTOM + 20, rows_text($exponent), 'text-anchor="middle"');
	}
	foreach my $exponent ($y_range[0] .. $y_range[1])
	{
		my $y = y_of(10 ** $exponent);
		line($LEFT, $y, $RIGHT, $y, '#dddddd');
		text($LEFT - 8, $y + 4, 10 ** $exponent, 'text-anchor="end"');
		next if $exponent == $y_range[1];
		line($LEFT, y_of($_ * 10 ** $exponent), $RIGHT, y_of($_ * 10 ** $exponent), '#f2f2f2') foreach 2 .. 9;
	}
	line($LEFT, $BOTTOM, $RIGHT, $BOTTOM, '#222222');
	line($LEFT, $TOP, $LEFT, $BOTTOM, '#222222');
	text(($LEFT + $RIGHT) / 2, $BOTTOM + 45, 'rows in the table', 'text-anchor="middle"');
	my $middle = ($TOP + $BOTTOM) / 2;
	text(18, $middle, 'seconds', qq{text-anchor="middle" transform="rotate(-90 18 $middle)"});
	return;
}

# 10 thousand, 1 million, ..
sub rows_text
{
	my ($exponent) = @_;
	my ($unit, $base) = $exponent >= 9 ? ('billion', 9) : $exponent >= 6 ? ('million', 6) : $exponent >= 3 ? ('thousand', 3) : ('', 0);
	return 10 ** ($exponent - $base) . " $unit";
}

# The legend is in the order of the lines' right ends.
sub draw_cases
{
	my @colours = @COLOURS;
	my %style;

	foreach my $case (cases())
	{
		my $baseline = $case =~ /\(baseline\)$/;
		$style{$case} = { colour => $baseline ? $BASELINE_COLOUR : shift @colours // '#000000', dash => $baseline ? '6 4' : 'none' };
		my @places = map { [ x_of($_->{rows}), y_of($_->{seconds}) ] } points_of($case);
		draw_line($style{$case}, @places);
		draw_marks($style{$case}, @places);
	}
	my $y = $TOP + 20;
	foreach my $case (sort { (points_of($b))[-1]{seconds} <=> (points_of($a))[-1]{seconds} } cases())
	{
		draw_line($style{$case}, [ $RIGHT + 20, $y ], [ $RIGHT + 50, $y ]);
		text($RIGHT + 58, $y + 4, $case);
		$y += 24;
	}
	return;
}

sub draw_line
{
	my ($style, @places) = @_;
	my $path = join ' ', map { "$_->[0],$_->[1]" } @places;

	print qq{<polyline points="$path" fill="none" stroke="$style->{colour}" stroke-width="2" stroke-dasharray="$style->{dash}"/>\n};
	return;
}

sub draw_marks
{
	my ($style, @places) = @_;

	print qq{<circle cx="$_->[0]" cy="$_->[1]" r="3.5" fill="$style->{colour}"/>\n} foreach @places;
	return;
}

sub line
{
	my ($x1, $y1, $x2, $y2, $colour) = @_;
	print qq{<line x1="$x1" y1="$y1" x2="$x2" y2="$y2" stroke="$colour"/>\n};
	return;
}

sub text
{
	my ($x, $y, $content, $attributes) = @_;
	my %entity = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;');

	$content =~ s/([&<>])/$entity{$1}/g;
	print qq{<text x="$x" y="$y" } . ($attributes // '') . qq{>$content</text>\n};
	return;
}
