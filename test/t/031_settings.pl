# What has to be written twice says the same: settings and phases in the
# reference and in comments; and a mistake in the description of the settings
# stops the build.

use strict;
use warnings;

use File::Temp;
use IPC::Run;
use Test::More;

my $root = $ENV{TESTDIR};
my $description = "$root/extension/catalog/settings.txt";

sub text
{
	my ($path) = @_;
	local $/;
	open my $file, '<', "$root/$path" or die "$path: $!";
	return scalar <$file>;
}

# What settings.pl says of SQL, given a description.
sub expand
{
	my ($sql, $settings) = @_;
	my ($stdout, $stderr) = ('', '');
	my $part = File::Temp->new;    # no pipe: a description that is refused leaves the SQL unread
	print {$part} $sql;
	close $part;
	IPC::Run::run [ 'perl', "$root/extension/catalog/settings.pl", $settings // $description, "$part" ], '>', \$stdout, '2>', \$stderr;
	return $stderr || $stdout;
}

# --- settings ---

my ($table) = text('docs/reference.md') =~ /\n## Settings of a replica\n(.*?)\n## /s;
my @documented = sort $table =~ /^\| `(\w+ [^`]+)`/mg;
is(join("\n", @documented), join("\n", sort split /,\n/, expand('@settings all: {name} {type}@')), 'the reference has each setting, with its type');
my @fixed = sort $table =~ /^\| `(\w+) [^`]+` \*/mg;
is("@fixed", join(' ', sort split /,\n/, expand('@settings all -alter: {name}@')), 'and says which can\'t be changed');

my @builds = (
	[ '@settings alter -off freshness: {name} {type} {default} {column}@;', 'freshness interval NULL freshness interval CHECK (freshness > \'0\' AND freshness <= \'100 years\');' ],
	[ '@settings fingerprint: \'{comment}\', {nullable}@', q{'what a row''s 64-bit fingerprint covers: xmin (key and the transaction that wrote it), version (key and version column) or row (all columns)', false} ],
	[ "    \@settings off: {name} := {off};\@\n", "    trust_counters_for := '0';\n    sync_group := '';\n    columns := '{}';\n    filter := '';\n    expressions := '{}';\n    keep_changes := '0';\n" ],
	[ 'IN (@settings off: {off}@)', q{IN ('0', '', '{}', '', '{}', '0')} ]);
is(expand($_->[0]), $_->[1], "expanded: $_->[0]") for @builds;
my @mistakes = (
	[ '@settings altr: {name}@', qr/no setting, field or function is named altr/ ],
	[ '@settings all: {nmae}@', qr/has no nmae/ ],
	[ '@settings alter {name}', qr/not understood/ ],
	[ '@settings alter key_columns: {name}@', qr/nothing is chosen/ ]);
like(expand($_->[0]), $_->[1], "refused: $_->[0]") for @mistakes;

my $scratch = "$ENV{TMPDIR}/settings.$$.txt";
sub described
{
	my ($text) = @_;
	open my $file, '>', $scratch or die "$scratch: $!";
	print $file $text;
	close $file;
	return expand('@settings all: {name}@', $scratch);
}
is(described("a text\n  comment c\n  taken by alter\n"), 'a', 'a short description');
like(described("a text\n  comment c\n"), qr/a has no taken_by/, 'nobody takes it');
like(described("a text\n  comment c\n  taken by aler\n"), qr/no function tablesync_aler/, 'a function that does not exist');
like(described("a text\n  not null\n  comment c\n  taken by alter\n"), qr/a has no must_be/, 'a value can be bad, and no word for it');
like(described("a text\n  comment c\n  taken by alter\n  defualt 1\n"), qr/not understood:   defualt/, 'a field that does not exist');
unlink $scratch;

# --- phases; progress.c does not compile without a name for each ---

my ($names) = text('extension/process/progress.c') =~ /\nphase_name\(.*?\n\{(.*?)\n\}/s;
my @phases = ('queued', $names =~ /return "(\w+)";/g);
cmp_ok(@phases, '>', 5, 'phases');
my ($comment) = text('extension/watch/views.sql') =~ /COMMENT ON COLUMN \S+tablesync_progress\.phase IS '([^']*)'/;
is($comment, join(', ', @phases[ 0 .. $#phases - 1 ]) . " or $phases[-1]", 'in the comment of tablesync_progress');
my ($reference) = text('docs/reference.md') =~ /^\| `tablesync_progress` \|[^(]*`phase` \(([^)]*)\)/m;
is($reference, join(', ', map { "`$_`" } @phases), 'in the reference');

done_testing();
