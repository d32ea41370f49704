# tablesync_check(): each thing that can be wrong is found, with a remedy that
# works, while the other checks go on; and looking changes nothing.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => "log_statement = all\nlog_line_prefix = '%a|'" });

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note varchar(20), updated_at timestamp NOT NULL DEFAULT now())
		WITH (autovacuum_enabled = false);
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 500) i;
	CREATE TABLE pairs (a integer, b text, v integer, PRIMARY KEY (a, b));
	INSERT INTO pairs SELECT i, i, i FROM generate_series(1, 10) i});
app_sql($target, "SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at')");
app_sql($target, "SELECT tablesync_add('pairs', 'src', 'public.pairs')");

my $all = 'state owner mapping worker_slots pg_cron publication connection server session source_table privileges row_security key types '
	. 'collation shape replica_table statements estimate';

# Names of the checks of a replica that fail.
sub failed
{
	my ($replica) = @_;
	return app_sql($target, "SELECT string_agg(check_name, ' ') FROM tablesync_check('$replica') WHERE NOT ok");
}

# Detail and hint of one check.
sub told
{
	my ($replica, $check) = @_;
	return app_sql($target, "SELECT detail || ' HINT: ' || coalesce(hint, '') FROM tablesync_check('$replica') WHERE check_name = '$check'");
}

# The hint of a check, for those that are statements.
sub remedy
{
	my ($replica, $check) = @_;
	my $hint = app_sql($target, "SELECT hint FROM tablesync_check('$replica') WHERE check_name = '$check' AND NOT ok");
	$hint =~ s/^At the source: //;
	return $hint;
}

SKIP:
{
	skip 'no collations of ICU here', 1
		if $source->safe_psql('postgres', q{SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'}) == 0;
	$source->safe_psql('postgres', q{CREATE TABLE words (b text COLLATE "und-x-icu" PRIMARY KEY)});
	app_sql($target, "SELECT tablesync_add('words', 'src', 'public.words')");
	like(told('words', 'collation'), qr/^key column b is text, .*HINT: Nothing to do/, 'text key that may be sorted differently');
	app_sql($target, "SELECT tablesync_remove('words', drop_replica => true)");
}

# --- all is well: everything is looked at, nothing is read or changed ---

my $state = q{SELECT md5(string_agg(x, '')) FROM (
	SELECT t::text FROM tablesync.replica t UNION ALL SELECT t::text FROM tablesync.run t UNION ALL SELECT t::text FROM tablesync.chunk t
	UNION ALL SELECT oid || relfilenode::text FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'tablesync'::regnamespace)) q (x)};
my $before = $target->safe_psql('postgres', $state);
my $log_start = -s $source->logfile;
is(app_sql($target, "SELECT string_agg(check_name, ' '), bool_and(ok), count(hint) FROM tablesync_check('items') WHERE check_name <> 'pg_cron'"),
	($all =~ s/pg_cron //r) . '|t|1', 'every check is ok before the first run');
like(told('items', 'estimate'), qr/^about 0 rows; .*HINT: The source has no statistics of it. There: ANALYZE public.items;$/, 'no statistics, no estimate');
like(told('items', 'connection'), qr/^server "src" \(dbname=postgres host=127.0.0.1 port=\d+\) answers HINT: $/, 'connection');
like(told('items', 'mapping'), qr/^app reads as reader/, 'mapping');
like(told('items', 'key'), qr/^\(id\), by index items_pkey/, 'key');
like(told('items', 'server'), qr/^PostgreSQL \d+\.\d+, encoding UTF8/, 'server');
like(told('items', 'pg_cron'), qr/not installed in this database.*HINT: To schedule/, 'pg_cron is only a hint');
is(app_sql($target, "SELECT bool_and(ok) FROM tablesync_check() WHERE check_name = 'pg_cron'"), 't', 'and no failure');
like(told('pairs', 'collation'), qr/^the key does not depend on how text is sorted/, 'text key, sorted by its bytes on both sides');
my $log = PostgreSQL::Test::Utils::slurp_file($source->logfile, $log_start);
my @ours = map { s/\n\t/ /gr } $log =~ m{^(tablesync/public\.items\|.*(?:\n\t.*)*)}mg;
cmp_ok(scalar(@ours), '>', 10, 'the session at the source is recognisable');
is(scalar(grep { /FROM public\.items/ && !/LIMIT 0::bigint|LIMIT 0$|LIMIT 0[^\d]/ } @ours), 0, 'no row of the source is read')
	or diag(join "\n", grep { /FROM public\.items/ } @ours);
cmp_ok(scalar(grep { /FROM public\.items/ } split /\n/, $log), '>', 0, 'but privileges are tried');
is(scalar(grep { /statement: (?!START TRANSACTION|COMMIT|SET |DECLARE|FETCH|CLOSE|SELECT|DEALLOCATE|ABORT|SAVEPOINT|RELEASE|ROLLBACK)/ } @ours), 0, 'it only reads there');
is($target->safe_psql('postgres', $state), $before, 'it changes nothing here');
is(app_sql($target, "BEGIN READ ONLY; SELECT bool_and(ok) FROM tablesync_check(); COMMIT"), 't', 'it may be called in a read-only transaction');
wait_until($source, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%'});
pass('the connection is released');

# whoever asks, the owner's access is what counts: a superuser has no user mapping here
is($target->safe_psql('postgres', 'SELECT count(DISTINCT replica), bool_and(ok) FROM tablesync_check()'), '2|t', 'as a superuser');
like(told('items', 'owner'), qr/others may create functions, which is no good: app HINT: $/, 'who may create next to the functions that people type is named');
$target->safe_psql('postgres', 'CREATE ROLE stranger LOGIN');
is($target->safe_psql('postgres', 'SELECT count(*) FROM tablesync_check()', extra_params => [ '-U', 'stranger' ]), 0, 'a stranger sees no replica');
my ($rc, undef, $stderr) = $target->psql('postgres', q{SELECT tablesync_check('items')}, extra_params => [ '-U', 'stranger' ]);
like($stderr, qr/must be owner of table public.items/, 'nor may she name one');
($rc, undef, $stderr) = $target->psql('postgres', q{SELECT tablesync.check_in_worker('items')}, extra_params => [ '-U', 'stranger' ]);
like($stderr, qr/must be owner/, 'nor by the way behind');
($rc, undef, $stderr) = $target->psql('postgres', q{SELECT tablesync.ask_source('SELECT 1')}, extra_params => [ '-U', 'app' ]);
like($stderr, qr/works only in the worker of tablesync_check/, 'nobody talks to the source by it');

app_sql($target, 'SELECT tablesync_run()');
app_sql($target, 'SELECT tablesync_run()');
like(told('items', 'estimate'), qr/^500 rows, about \d+ bytes over the network, [\d.]+ s at the source \(average of the last 1 runs\) HINT: $/, 'estimate by what runs took');

# --- at the source ---

my $admin = $source->safe_psql('postgres', 'SELECT current_user');
$source->safe_psql('postgres', 'REVOKE SELECT ON items FROM reader');
is(failed('items'), 'privileges', 'SELECT revoked: found, and nothing else');
is(remedy('items', 'privileges'), 'GRANT USAGE ON SCHEMA public TO reader; GRANT SELECT ON public.items TO reader;', 'the remedy');
$source->safe_psql('postgres', 'GRANT SELECT (id, note) ON items TO reader');
is(failed('items'), 'privileges', 'SELECT on some columns does not do');
$source->safe_psql('postgres', remedy('items', 'privileges'));
is(failed('items'), '', 'mended');

$source->safe_psql('postgres', 'ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON items USING (id < 5)');
like(failed('items'), qr/row_security/, 'a policy that hides rows');
like(told('items', 'row_security'), qr/HINT: At the source: ALTER ROLE reader BYPASSRLS;/, 'its remedy');
$source->safe_psql('postgres', 'ALTER ROLE reader BYPASSRLS');
is(failed('items'), '', 'mended');
like(told('items', 'row_security'), qr/^on at the source, but no policy hides rows/, 'on, and no harm');
$source->safe_psql('postgres', 'ALTER ROLE reader NOBYPASSRLS; ALTER TABLE items DISABLE ROW LEVEL SECURITY');

$source->safe_psql('postgres', 'ALTER TABLE items ADD extra text, ALTER note TYPE varchar(30)');
like(failed('items'), qr/^types shape|^types|shape/, 'a changed shape');
like(told('items', 'shape'), qr/the next run does what on_schema_change says, which is apply: column note changed its type from .*; column extra text was added/, 'says how');
$source->safe_psql('postgres', 'ALTER TABLE items DROP extra, ALTER note TYPE varchar(20)');

# a key whose columns no index has in that order
$source->safe_psql('postgres', 'ALTER TABLE pairs DROP CONSTRAINT pairs_pkey; ALTER TABLE pairs ADD UNIQUE (b, a)');
like(failed('pairs'), qr/\bkey\b/, 'no index in the order of the key');
like(told('pairs', 'key'), qr/no index of the source begins with \(a, b\) in this order/, 'says so');
$source->safe_psql('postgres', 'ALTER TABLE pairs DROP CONSTRAINT pairs_b_a_key');
like(told('pairs', 'key'), qr/not a key of the source.*HINT: Name all columns of such an index as key_columns/, 'no key at all');
$source->safe_psql('postgres', 'ALTER TABLE pairs ADD PRIMARY KEY (a, b)');
is(failed('pairs'), '', 'mended');

$source->safe_psql('postgres', 'ALTER TABLE items RENAME TO things');
is(failed('items'), 'source_table', 'renamed at the source');
like(told('items', 'source_table'), qr/^the source has no table public.items.*checks that need this were left out.*HINT: It may have been dropped or renamed/, 'says so');
$source->safe_psql('postgres', 'ALTER TABLE things RENAME TO items');

# --- the connection ---

$source->safe_psql('postgres', q{ALTER ROLE reader PASSWORD 'rotated'});
is(failed('items'), 'connection', 'password rotated');
like(told('items', 'connection'), qr/could not connect to server "src": .*password authentication failed for user "reader".*HINT: .*ALTER USER MAPPING FOR app SERVER src OPTIONS \(SET password '\.\.'\)/s, 'says so');
unlike(told('items', 'connection'), qr/read-only/, 'but not the password');
$source->safe_psql('postgres', q{ALTER ROLE reader PASSWORD 'read-only'});
is(failed('items'), '', 'mended');

$target->safe_psql('postgres', q{ALTER SERVER src OPTIONS (ADD options '-c statement_timeout=1min')});
is(failed('items'), 'session', 'options of the server replace ours');
like(told('items', 'session'), qr/HINT: Add "-c row_security=off .*" to the option "options" of server "src"/, 'its remedy');
$target->safe_psql('postgres', 'ALTER SERVER src OPTIONS (DROP options)');

$target->safe_psql('postgres', 'DROP USER MAPPING FOR app SERVER src');
is(failed('items'), 'mapping connection', 'no user mapping');
like(told('items', 'mapping'), qr/HINT: CREATE USER MAPPING FOR app SERVER src OPTIONS \(user \.\., password \.\.\);/, 'its remedy');
$target->safe_psql('postgres', q{CREATE USER MAPPING FOR app SERVER src OPTIONS (user 'reader', password 'read-only')});

# --- here ---

# several at once, none hides another; the hints do as they stand
$target->safe_psql('postgres', 'ALTER ROLE app NOLOGIN; REVOKE INSERT, DELETE ON items FROM app; REVOKE SELECT ON items_source FROM app');
my $as_admin = q{SELECT string_agg(check_name, ' ') FROM tablesync_check('items') WHERE NOT ok};
# a worker may connect as a role without LOGIN since 17, and then looks further
is($target->safe_psql('postgres', $as_admin), $target->pg_version < 17 ? 'owner connection' : 'owner privileges', 'no login, no privileges');
$target->safe_psql('postgres', $target->safe_psql('postgres', q{SELECT hint FROM tablesync_check('items') WHERE check_name = 'owner'}));
is($target->safe_psql('postgres', $as_admin), '', 'the hint mends all of it');
$target->safe_psql('postgres', 'ALTER ROLE app LOGIN');    # we connect as it

app_sql($target, q{SELECT tablesync_pause('items'); ALTER TABLE items DROP CONSTRAINT items_pkey});
is(failed('items'), 'state replica_table', 'paused, no key index');
app_sql($target, remedy('items', $_)) for qw(state replica_table);
is(failed('items'), '', 'mended by the hints');

app_sql($target, 'ALTER TABLE pairs ALTER v TYPE bigint');
is(failed('pairs'), 'replica_table statements', 'the replica was changed');
app_sql($target, 'ALTER TABLE pairs ALTER v TYPE integer');

is(app_sql($target, q{BEGIN; SELECT tablesync_add('again', 'src', 'public.items');
	SELECT check_name, hint FROM tablesync_check('again') WHERE NOT ok; ROLLBACK}),
	"again\nconnection|Commit before you check it.", 'not committed yet');

# --- a source that does not answer, a caller that does not wait ---

my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE items');
my $caller = session($target, '-U', 'app');
$caller->query_until(qr/asked/, "\\echo asked\nSELECT check_name FROM tablesync_check('items') WHERE NOT ok;\n");
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
$target->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%tablesync_check%' AND pid <> pg_backend_pid()});
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync check'});
wait_until($source, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'tablesync/public.items'});
pass('the worker goes away with the caller, and so does the session at the source');
eval { $caller->quit };
$locker->query_safe('COMMIT');
$locker->quit;

# --- pg_cron, here and in another database ---

$target->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_cron'\ncron.database_name = 'jobs'");
$target->restart;
$target->safe_psql('postgres', 'CREATE DATABASE jobs');
like($target->safe_psql('postgres', q{SELECT detail || hint FROM tablesync_check('items') WHERE check_name = 'pg_cron'}),
	qr/^pg_cron lives in database jobs.*SELECT cron.schedule_in_database\('tablesync public.items', '0 \* \* \* \*', 'SELECT tablesync_run\(''public.items''\)', 'postgres'\);/,
	'pg_cron in another database');
like(told('items', 'pg_cron'), qr/^pg_cron runs on this server.*HINT: An administrator sees it by: SHOW cron.database_name;/, 'who may not know where is told as much');
$target->append_conf('postgresql.conf', "cron.database_name = 'postgres'");
$target->restart;
$target->safe_psql('postgres', 'CREATE EXTENSION pg_cron');
like(told('items', 'pg_cron'), qr/^pg_cron \S+ is installed in this database HINT: $/, 'pg_cron in this database');
$target->safe_psql('postgres', 'DROP EXTENSION pg_cron');

# --- no worker ---

$target->append_conf('postgresql.conf', "shared_preload_libraries = ''\nmax_worker_processes = 1\nmax_logical_replication_workers = 0");
$target->restart;
is(failed('items'), '', 'one worker is enough');
my $hold = session($source);
$hold->query_safe('BEGIN; LOCK TABLE items');
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
is(failed('pairs'), 'worker_slots connection', 'no worker left');
like(told('pairs', 'worker_slots'), qr/^1 of 1 worker processes are in use HINT: ALTER SYSTEM SET max_worker_processes = 9; needs a restart/, 'its remedy');
$hold->query_safe('COMMIT');
$hold->quit;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'the run is not disturbed');
is(failed('items'), 'worker_slots', 'a process of the queue that waits for more makes room for a check');
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});

$source->stop;
is(failed('items'), 'connection', 'the source is down');
like(told('items', 'connection'), qr/Connection refused.*HINT: .*ALTER SERVER src OPTIONS/s, 'says so');

done_testing();
