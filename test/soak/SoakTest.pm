# SoakTest: a history that was reduced, as a TAP file.  It does what was done one
# after the other: what went wrong in the middle of a run is left to be added by hand.

package SoakTest;

use strict;
use warnings;

my $head = <<'EOT';
use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();
$source->safe_psql('postgres', 'CREATE SCHEMA %1$s');
$target->safe_psql('postgres', 'CREATE SCHEMA %1$s AUTHORIZATION app');

# Sessions with transactions that stay open, by name.
my %%open = (late => session($source), other_target => session($target, '-U', 'app'));

sub step
{
	my ($where, $sql) = @_;
	my $here = $where =~ /^(source|late|other_source)$/ ? $source : $target;
	return $open{$where}->query($sql) if $open{$where};
	my ($rc, $stdout, $stderr) = $here->psql('postgres', $sql, extra_params => $where =~ /^(app|runner)$/ ? [ '-U', 'app' ] : []);
	note("$stdout\n$stderr");
	return;
}

# A run, or several, at the target.
sub succeeds
{
	my ($sql) = @_;
	my ($rc, $stdout, $stderr) = $target->psql('postgres', $sql, extra_params => [ '-U', 'app' ]);
	return ok($rc == 0 && $stdout !~ /^(?!succeeded)/m, $sql) || diag("$stdout\n$stderr");
}

# Rows of the source that the replica is to have, and its own: each statement sorts them.
sub is_same
{
	my ($name, $wanted, $got) = @_;
	$_ = "SET extra_float_digits = 3; $_" for $wanted, $got;
	return is($target->safe_psql('postgres', $got), $source->safe_psql('postgres', $wanted), $name);
}

EOT

# steps: where and what, in their order
sub write_test
{
	my ($file, $title, $schema, $steps) = @_;
	open my $out, '>:utf8', $file or die "$file: $!";
	print $out map { "# $_\n" } split /\n/, $title;
	printf $out $head, $schema;
	for my $step (@$steps)
	{
		my ($where, @what) = @$step;
		my $call = { same => 'is_same', succeeds => 'succeeds' }->{$where};
		my @arguments = map { quote($_) } $call ? @what : ($where, @what);
		$call //= 'step';
		print $out "$call(" . join(', ', @arguments) . ");\n";
	}
	print $out "\$_->quit for values %open;\ndone_testing();\n";
	close $out;
	return;
}

sub quote
{
	my ($text) = @_;
	return "'" . $text =~ s/([\\'])/\\$1/gr . "'";
}

1;
