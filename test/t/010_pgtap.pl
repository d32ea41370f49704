# The public contract in pgTAP: every file of test/pgtap against one pair of
# clusters.  Replica "media" is fine, "broken" can't be loaded; see
# privileges.sql for the roles.

use strict;
use warnings;

use IPC::Run;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

$source->safe_psql('postgres', q{
	CREATE TABLE media (id integer PRIMARY KEY, path text, updated_at timestamp);
	INSERT INTO media SELECT i, '/' || i, '2021-01-01' FROM generate_series(1, 3) i});
$target->safe_psql('postgres', q{
	CREATE EXTENSION pgtap;
	CREATE ROLE member IN ROLE app;
	CREATE ROLE watcher IN ROLE pg_monitor;
	CREATE ROLE other;
	CREATE USER MAPPING FOR other SERVER src OPTIONS (user 'reader', password 'read-only');
	GRANT CREATE ON SCHEMA public TO other});
app_sql($target, q{
	SELECT tablesync_add('media', 'src', 'public.media', version_column => 'updated_at');
	SELECT tablesync_add('broken', 'media_source', version_column => 'updated_at');
	ALTER TABLE broken ADD CHECK (id < 0)});
app_sql($target, q{SELECT tablesync_run('media')});
app_fails($target, q{SELECT tablesync_run('broken')});

# What is wrong with the output of one file; nothing if all is well.
sub problems
{
	my ($rc, $stdout, $stderr) = @_;
	my @lines = split /\n/, $stdout;
	my @problems = grep { /^not ok|^#/ } @lines;
	my ($planned) = map { /^1\.\.(\d+)$/ ? $1 : () } @lines;
	my $run = grep { /^(not )?ok \d+/ } @lines;
	push @problems, 'no plan' unless defined $planned;
	push @problems, "planned $planned tests, ran $run" if defined $planned && $planned != $run;
	push @problems, "psql exited with $rc: $stderr" if $rc != 0;
	return @problems;
}

my @files = sort glob "$ENV{TESTDIR}/test/pgtap/*.sql";
cmp_ok(@files, '>', 0, 'there are pgTAP files');
for my $file (@files)
{
	my ($stdout, $stderr) = ('', '');
	my $result = IPC::Run::run [
		'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $target->connstr('postgres'), '-f', $file ],
	  '>', \$stdout, '2>', \$stderr;
	my @problems = problems($result ? 0 : $? >> 8, $stdout, $stderr);
	(my $name = $file) =~ s{.*/}{};
	ok(!@problems, "pgTAP: $name") or diag(join "\n", @problems);
}

done_testing();
