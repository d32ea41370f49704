# Replicas of one sync_group: one snapshot of the source, one transaction here.
# Money moves between two tables at the source; the sum over both replicas is
# the same for every reader at any time.

use strict;
use warnings;

use IPC::Run;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

$source->safe_psql('postgres', q{
	CREATE TABLE checking (id integer PRIMARY KEY, amount integer NOT NULL, updated_at timestamp);
	CREATE TABLE savings (id integer PRIMARY KEY, amount integer NOT NULL, updated_at timestamp);
	CREATE TABLE transfer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account integer NOT NULL REFERENCES checking, note varchar(20));
	INSERT INTO checking SELECT i, 1000, clock_timestamp() FROM generate_series(1, 500) i;
	INSERT INTO savings SELECT i, 1000, clock_timestamp() FROM generate_series(1, 500) i});
my $total = 1000 * 1000;

my $group = "consistency => 'snapshot', sync_group => 'bank'";
app_sql($target, "SELECT tablesync_add('checking', 'src', 'public.checking', version_column => 'updated_at', chunk_rows => 50, $group)");
app_sql($target, "SELECT tablesync_add('savings', 'src', 'public.savings', version_column => 'updated_at', chunk_rows => 70, $group)");
app_sql($target, "SELECT tablesync_add('transfer', 'src', 'public.transfer', $group)");
app_sql($target, 'ALTER TABLE transfer ADD FOREIGN KEY (account) REFERENCES checking DEFERRABLE INITIALLY DEFERRED');

is(app_sql($target, "SELECT string_agg(replica || ' ' || status || ' ' || rows, ', ' ORDER BY replica::text) FROM tablesync_run('savings')"),
	'checking succeeded 500, savings succeeded 500, transfer succeeded 0', 'one run is a run of the whole group');
is(app_sql($target, 'SELECT count(DISTINCT pid), count(DISTINCT consistency), bool_and(proof->\'equal\' = \'true\') FROM tablesync_runs'),
	'1|1|t', 'by one process, in one snapshot');

# one statement of SQL with a body for pgbench: random transfers, some with a new account
my $script = $source->basedir . '/transfer.sql';
PostgreSQL::Test::Utils::append_to_file($script, q{
\set a random(1, 500)
\set b random(1, 500)
\set amount random(1, 100)
\set new random(501, 2000000000)
BEGIN;
UPDATE checking SET amount = amount - :amount, updated_at = clock_timestamp() WHERE id = :a;
UPDATE savings SET amount = amount + :amount, updated_at = clock_timestamp() WHERE id = :b;
INSERT INTO checking VALUES (:new, 0, clock_timestamp()) ON CONFLICT DO NOTHING;
INSERT INTO transfer (account, note) VALUES (:new, 'new');
COMMIT;
});

my $sum = 'SELECT (SELECT sum(amount) FROM checking) + (SELECT sum(amount) FROM savings)';
my ($out, $err) = ('', '');
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', '2', '-T', '12', '-R', '300', '-f', $script, $source->connstr('postgres') ],
	'<', \undef, '>', \$out, '2>', \$err);
my $reader = session($target, '-U', 'app');
my %sums;
my %differing;
my $runs = 0;
while ($load->pumpable)
{
	eval { $load->pump_nb; };    # dies if psql has just ended
	my $result = app_sql($target, "SELECT string_agg(status, ',') FROM tablesync_run()");
	$runs++;
	is($result, 'succeeded,succeeded,succeeded', 'the group has run') if $result ne 'succeeded,succeeded,succeeded';
	$sums{ $reader->query_safe($sum) }++;
	$differing{ $reader->query_safe('SELECT count(*) FROM transfer t WHERE NOT EXISTS (SELECT FROM checking c WHERE c.id = t.account)') }++;
}
$load->finish;
cmp_ok($runs, '>', 5, "$runs runs while money moved");
is_deeply([ keys %sums ], [$total], 'the sum over both replicas never changed') or diag(explain(\%sums));
is_deeply([ keys %differing ], [0], 'no transfer without its account');

# a failure of one is a failure of all
$source->safe_psql('postgres', 'REVOKE SELECT ON savings FROM reader; UPDATE checking SET amount = amount + 1, updated_at = clock_timestamp() WHERE id = 1; UPDATE savings SET amount = amount - 1, updated_at = clock_timestamp() WHERE id = 1');
like(app_fails($target, "SELECT tablesync_run('checking')"), qr/ERROR:  42501: permission denied for table savings/, 'one member fails');
is(app_sql($target, "SELECT string_agg(DISTINCT status, ',') FROM (SELECT status FROM tablesync_runs ORDER BY run_id DESC LIMIT 3) r"), 'failed', 'all of them have failed');
is(app_sql($target, $sum), $total, 'nothing was changed');
$source->safe_psql('postgres', 'GRANT SELECT ON savings TO reader');
is(app_sql($target, "SELECT string_agg(status, ',') FROM tablesync_run('checking')"), 'succeeded,succeeded,succeeded', 'and works again');
is_replica($source, $target, $_, $_, "$_ is identical") for qw(checking savings transfer);

# one of them after the other, it would not hold
app_sql($target, "SELECT tablesync_alter(r, sync_group => '') FROM unnest('{checking,savings,transfer}'::regclass[]) r");
$source->safe_psql('postgres', 'UPDATE savings SET amount = amount + 5, updated_at = clock_timestamp() WHERE id = 2; UPDATE checking SET amount = amount - 5, updated_at = clock_timestamp() WHERE id = 2');
is(app_sql($target, "SELECT count(*) FROM tablesync_run('checking')"), 1, 'without a group a run is alone');
isnt(app_sql($target, $sum), $total, 'and the sum is broken until the other has run');

# refused
like(app_fails($target, "SELECT tablesync_alter('savings', consistency => 'auto', sync_group => 'bank')"),
	qr/ERROR:  22023: a sync_group needs consistency snapshot/, 'a group needs a snapshot');

# two starts at once: one does it
app_sql($target, "SELECT tablesync_alter(r, sync_group => 'bank') FROM unnest('{checking,savings,transfer}'::regclass[]) r");
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE savings');
my $run = app_sql($target, "SELECT run_id FROM tablesync_run('checking', wait => false)");
wait_until($source, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'tablesync%'");
is(app_sql($target, "SELECT status FROM tablesync_run('transfer')"), 'already running', 'a member is being run with its group');
$locker->query_safe('COMMIT');
is(app_sql($target, "SELECT tablesync_wait($run)"), 'succeeded', 'the group has run');
$locker->quit;
$reader->quit;

done_testing();
