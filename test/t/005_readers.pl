# Readers of the replica see one run or the next, never half of one: money
# moves between accounts at the source all the time, the total never changes.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my $accounts = 5000;
my $seconds = $ENV{TABLESYNC_SECONDS} // 10;
my ($source, $target) = start_pair();

$source->safe_psql('postgres', qq{
	CREATE TABLE accounts (id integer PRIMARY KEY, amount integer NOT NULL, updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO accounts (id, amount) SELECT i, 100 FROM generate_series(1, $accounts) i});
app_sql($target, "SELECT tablesync_add('accounts', 'src', 'public.accounts', version_column => 'updated_at', consistency => 'snapshot', chunk_rows => 700, max_delete_fraction => 1)");
is(run_counts($target, 'accounts'), "succeeded|$accounts|0|0", 'loaded');

# Transfers between the lower accounts; the upper ones move to the key with the
# other sign and back.
my $transfer = $source->basedir . '/transfer.sql';
append_to_file($transfer, qq{
\\set a random(1, 2000)
\\set b random(1, 2000)
\\set m random(2001, $accounts)
\\set move random(0, 3) = 0
BEGIN;
UPDATE accounts SET amount = amount - 1, updated_at = clock_timestamp() WHERE id = least(:a, :b);
UPDATE accounts SET amount = amount + 1, updated_at = clock_timestamp() WHERE id = greatest(:a, :b);
COMMIT;
\\if :move
UPDATE accounts SET id = -id, updated_at = clock_timestamp() WHERE abs(id) = :m;
\\endif
});
my $total = $target->basedir . '/total.sql';
append_to_file($total, "SELECT 1 / (count(*) = $accounts AND sum(amount) = 100 * $accounts)::integer FROM accounts;\n");

sub pgbench
{
	my ($node, $script, $user, @options) = @_;
	my ($out, $err) = ('', '');
	return { out => \$out, err => \$err, handle => IPC::Run::start(
		[ 'pgbench', '-n', '-U', $user, '-f', $script, '-T', $seconds, @options, '-p', $node->port, '-h', $node->host, 'postgres' ],
		'<', \undef, '>', \$out, '2>', \$err) };
}

my $writers = pgbench($source, $transfer, 'postgres', '-c', 3, '-R', 200);
my $readers = pgbench($target, $total, 'app', '-c', 2, '-R', 200);
my ($runs, $changed, $failed) = (0, 0, 0);
my $until = time + $seconds;
while (time < $until)
{
	my (undef, $inserted, $updated, $deleted) = split /\|/, eval { run_counts($target, 'accounts') } // do { diag($@); $failed++; next };
	$runs++;
	$changed += $inserted + $updated + $deleted;
}
$_->{handle}->finish for ($writers, $readers);
my ($reads) = ${ $readers->{out} } =~ /number of transactions actually processed: (\d+)/;
diag("$runs runs with $changed changes, $reads reads");
is($failed, 0, 'no run failed');
cmp_ok($changed, '>', 100, 'runs had something to do');
cmp_ok($reads // 0, '>', 100, 'readers read');
is($source->safe_psql('postgres', 'SELECT count(*), sum(amount) FROM accounts'),
	$accounts . '|' . 100 * $accounts, 'the source keeps its total');
is(${ $readers->{err} } =~ /(ERROR.*)/ ? $1 : '', '', 'no reader saw a torn state');
app_sql($target, "SELECT tablesync_run('accounts')");
is_replica($source, $target, 'accounts', 'accounts', 'identical in the end');

# by version, columns of another partitioning are fetched for all rows, where one has no exact hash
$source->safe_psql('postgres', q{
	CREATE TABLE parts (id integer PRIMARY KEY, note text, body xml, updated_at integer) PARTITION BY HASH (id);
	CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	INSERT INTO parts SELECT i, 'a', '<a/>', 1 FROM generate_series(1, 60000) i});
app_sql($target, q{SELECT tablesync_add('parts', 'src', 'public.parts', version_column => 'updated_at', fingerprint => 'version', consistency => 'snapshot', max_delete_fraction => 1)});
run_counts($target, 'parts');
$source->safe_psql('postgres', q{BEGIN; UPDATE parts SET note = 'b', updated_at = 2; UPDATE parts SET body = '<b/>' WHERE id <= 30000; ALTER TABLE parts DETACH PARTITION parts_1; COMMIT});
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('parts', wait => false)});
my $reader = session($target, '-U', 'app');
my %seen;
do { $seen{ $reader->query_safe(q{SELECT string_agg(DISTINCT concat_ws(' ', note, body, updated_at), ', ') || ' of ' || count(*) FROM parts}) }++ }
	while app_sql($target, "SELECT tablesync_wait($run_id, '1 ms')") eq 'running';
$reader->quit;
is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'succeeded', 'the run of other partitions');
delete $seen{$_} for 'a <a/> 1 of 60000', 'b <a/> 2, b <b/> 2 of ' . $source->safe_psql('postgres', 'SELECT count(*) FROM parts');
is(join('; ', keys %seen), '', 'nothing but before and after was read');
is_replica($source, $target, 'parts', 'parts', 'identical after other partitions');

done_testing();
