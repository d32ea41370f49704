# The bulk load: several processes, straight into the heap, indexes afterwards.
# Nothing is lost or doubled whatever comes between, the indexes come back as
# they were, and tables for which it does not suit are loaded by page.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my $rows = 105_000;
my ($source, $target) = start_pair(source => { conf => 'autovacuum = off' });

$source->safe_psql('postgres', qq{
	CREATE TABLE big (id bigint PRIMARY KEY, code varchar(20), n integer NOT NULL, u uuid, updated_at timestamp NOT NULL DEFAULT now());
	INSERT INTO big SELECT i * 3 - 50000, CASE WHEN i % 10 > 0 THEN 'c' || i % 1000 END, i, md5(i::text)::uuid FROM generate_series(1, $rows) i;
	ANALYZE big});

sub checksum
{
	my ($node, $table) = @_;
	return $node->safe_psql('postgres', "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $table t");
}

my $content = checksum($source, 'big');

sub indexes
{
	my ($replica) = @_;
	return $target->safe_psql('postgres', qq{
		SELECT pg_get_indexdef(i.indexrelid), i.indisprimary, i.indisunique, i.indimmediate, i.indisvalid, k.conname, pg_get_constraintdef(k.oid), x.reloptions
		FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid LEFT JOIN pg_constraint k ON k.conindid = x.oid
		WHERE i.indrelid = '$replica'::regclass ORDER BY x.relname});
}

# Add a replica of big, with some indexes of its user.
sub add_replica
{
	my ($replica, $settings) = @_;
	app_sql($target, qq{
		SELECT tablesync_add('$replica', 'src', 'public.big', version_column => 'updated_at', max_delete_fraction => 1 $settings);
		CREATE INDEX ${replica}_code ON $replica (code DESC NULLS LAST) INCLUDE (n) WITH (fillfactor = 70);
		ALTER TABLE $replica ADD CONSTRAINT "$replica has one n" UNIQUE NULLS NOT DISTINCT (n);
		CREATE UNIQUE INDEX ON $replica (lower(code), id) WHERE code IS NOT NULL});
	return indexes($replica);
}

# Is a replica loaded, with each of its indexes as before and complete?
sub is_loaded
{
	my ($replica, $indexes, $name) = @_;
	is(checksum($target, $replica), $content, "$name: identical");
	is(indexes($replica), $indexes, "$name: indexes");
	my $by_index = $target->safe_psql('postgres', qq{
		SET enable_seqscan = off; SET enable_bitmapscan = off;
		SELECT (SELECT count(*) FROM $replica WHERE id IS NOT NULL) = $rows AND (SELECT count(*) FROM $replica WHERE n IS NOT NULL) = $rows
			AND (SELECT count(code) FROM (SELECT code FROM $replica ORDER BY code DESC NULLS LAST) o) = $rows * 9 / 10});
	is($by_index, 't', "$name: by index");
	is(app_sql($target, qq{SELECT (proof->>'equal')::boolean AND status = 'succeeded' FROM tablesync_runs
		WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1}), 't', "$name: proved");
	is(app_sql($target, "SELECT loaded AND NOT adopted AND load_indexes IS NULL FROM tablesync.replica WHERE replica = '$replica'::regclass"),
		't', "$name: complete");
	# but for that of the queue, which waits a second for another run
	ok($target->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'}), "$name: no process left");
	app_sql($target, "SELECT tablesync_remove('$replica', drop_replica => true)");
	return;
}

sub start_run
{
	my ($replica) = @_;
	return app_sql($target, "SELECT run_id FROM tablesync_run('$replica', wait => false)");
}

sub ends
{
	my ($run_id) = @_;
	return app_sql($target, "SELECT tablesync_wait($run_id)");
}

sub wait_for_ranges
{
	my ($replica, $count) = @_;
	wait_until($target, "SELECT count(*) FILTER (WHERE loaded) >= $count AND count(*) FILTER (WHERE NOT loaded) > 0 FROM tablesync.chunk WHERE replica = '$replica'::regclass");
	return;
}

my $workers = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'tablesync run'};
my $at_source = q{FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'};

# Kill a process of the target and wait until the server has restarted.
sub kill_and_recover
{
	my ($pid) = @_;
	kill 'KILL', $pid;
	for (1 .. 1000)
	{
		my $left = eval { $target->psql('postgres', "SELECT count(*) FROM ($workers) w", stdout => \my $out); $out };
		return if defined $left && $left eq '0';
		select undef, undef, undef, 0.05;
	}
	die 'the target does not come back';
}

sub processes_at_source
{
	my ($count) = @_;
	wait_until($source, "SELECT count(*) = $count $at_source");
	return;
}

# Process ids of the leader of a load, who holds the run lock, or of its helpers.
sub processes
{
	my ($kind) = @_;
	my $in = $kind eq 'helper' ? 'NOT IN' : 'IN';
	return split /\n/, $target->safe_psql('postgres', "SELECT pid FROM ($workers) w WHERE pid $in (SELECT l.pid FROM tablesync.live_runs() l)");
}

# --- one process, two, four ---

# Start a load and stop it after some ranges: the next run starts with ranges,
# and a lock at the source holds all of its processes.
sub begin_load
{
	my ($replica, $settings) = @_;
	app_sql($target, "SELECT tablesync_alter('$replica', max_source_load => 0.05)");
	my $run_id = start_run($replica);
	wait_for_ranges($replica, 3);
	app_sql($target, "SELECT tablesync_cancel('$replica')");
	is(ends($run_id), 'cancelled', "$replica: begun");
	app_sql($target, "SELECT tablesync_alter('$replica', max_source_load => 1)");
	return;
}

my $locker = session($source);
for my $count (1, 2, 4)
{
	my $indexes = add_replica("by_$count", ", workers => $count");
	begin_load("by_$count");
	is($target->safe_psql('postgres', "SELECT count(*) FROM pg_index WHERE indrelid = 'by_$count'::regclass AND (indisready OR indisvalid)"), 0,
		"$count processes: nobody keeps the indexes up to date");
	my $loaded = app_sql($target, "SELECT count(*) FROM by_$count");
	$locker->query_safe('BEGIN; LOCK TABLE big');
	my $run_id = start_run("by_$count");
	processes_at_source($count);
	is(app_sql($target, 'SELECT phase FROM tablesync_progress'), 'load', 'phase load');
	$locker->query_safe('COMMIT');
	is(ends($run_id), 'succeeded', "$count processes");
	is(app_sql($target, "SELECT kind, inserted, updated, deleted FROM tablesync_runs WHERE run_id = $run_id"),
		'load|' . ($rows - $loaded) . '|0|0', 'counted');
	is_loaded("by_$count", $indexes, "$count processes");
}

# --- renamed, and moved to another schema, in the middle ---

my $renamed = add_replica('first_name', ', workers => 2');
begin_load('first_name');
$target->safe_psql('postgres', 'CREATE SCHEMA elsewhere AUTHORIZATION app');
app_sql($target, q{ALTER TABLE first_name RENAME TO second_name; ALTER TABLE second_name SET SCHEMA elsewhere; ALTER INDEX elsewhere.first_name_code RENAME TO other_code});
$renamed =~ s/INDEX first_name_code ON public.first_name/INDEX other_code ON elsewhere.second_name/;
$renamed =~ s/ON public\.first_name/ON elsewhere.second_name/g;
like(run_counts($target, 'elsewhere.second_name'), qr/^succeeded\|[1-9]\d*\|0\|0$/, 'the load goes on under another name');
is_loaded('elsewhere.second_name', join("\n", sort { $a =~ /other_code/ <=> $b =~ /other_code/ } split /\n/, $renamed), 'renamed');

add_replica('first_name', ', workers => 2');
begin_load('first_name');
app_sql($target, 'ALTER TABLE first_name RENAME TO second_name');
app_sql($target, q{SELECT tablesync_remove('second_name')});
is(app_sql($target, q{SELECT count(*) FILTER (WHERE indisvalid AND indisready), count(*) FROM pg_index WHERE indrelid = 'second_name'::regclass}), '4|4', 'removed under another name: with its indexes');
app_sql($target, 'DROP TABLE second_name');

# --- interrupted again and again, and resumed ---

my $indexes = add_replica('again', ', max_source_load => 0.05');
my $done = 0;
for my $interruption (
	[ 'pg_terminate_backend', 'cancelled', sub { $target->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM ($workers) w") } ],
	[ 'tablesync_cancel', 'cancelled', sub { app_sql($target, "SELECT tablesync_cancel('again')") } ],
	[ 'source crashes', 'failed', sub { $locker->quit; $source->stop('immediate') } ],
	[ 'kill -9', 'crashed', sub { kill_and_recover(processes('leader')) } ])
{
	my ($name, $status, $interrupt) = @$interruption;
	my $run_id = start_run('again');
	wait_for_ranges('again', $done + 5);
	$interrupt->();
	is(ends($run_id), $status, "$name: $status");
	($done, my $loaded) = split /\|/, app_sql($target, "SELECT count(*), sum(rows) FROM tablesync.chunk WHERE replica = 'again'::regclass AND loaded");
	cmp_ok($done, '>=', 5, "$name: ranges loaded");
	is(app_sql($target, 'SELECT count(*) FROM again'), $loaded, "$name: the rows of these are there, no others");
	is(app_sql($target, 'SELECT state FROM tablesync_status'), 'failed', "$name: status");
	if ($name eq 'source crashes')
	{
		$source->start;
		$locker = session($source);
	}
}

# with helpers
app_sql($target, "SELECT tablesync_alter('again', max_source_load => 1, workers => 3)");
for my $victim ('helper killed', 'leader terminated')
{
	$locker->query_safe('BEGIN; LOCK TABLE big');
	my $run_id = start_run('again');
	processes_at_source(3);
	if ($victim eq 'helper killed')
	{
		kill_and_recover((processes('helper'))[0]);
		is(app_sql($target, "SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'crashed', "$victim: crashed");
	}
	else
	{
		$target->safe_psql('postgres', 'SELECT pg_terminate_backend(' . (processes('leader'))[0] . ')');
		is(ends($run_id), 'cancelled', "$victim: cancelled");
		wait_until($target, "SELECT count(*) = 0 FROM ($workers) w");
	}
	$locker->query_safe('COMMIT');
}
$locker->query_safe('BEGIN; LOCK TABLE big');
my $run_id = start_run('again');
processes_at_source(3);
$target->safe_psql('postgres', 'SELECT pg_terminate_backend(' . (processes('helper'))[0] . ')');
$locker->query_safe('COMMIT');
is(ends($run_id), 'succeeded', 'a helper terminated: the others go on');
cmp_ok(app_sql($target, "SELECT inserted FROM tablesync_runs WHERE run_id = $run_id"), '<', $rows, 'only what was left is loaded');
is_loaded('again', $indexes, 'interrupted');

$locker->quit;

# --- fewer processes than wanted ---

$source->safe_psql('postgres', 'ALTER ROLE reader CONNECTION LIMIT 1');
$indexes = add_replica('alone', ', workers => 4');
is(run_counts($target, 'alone'), "succeeded|$rows|0|0", 'one connection to the source');
is_loaded('alone', $indexes, 'one connection');
$source->safe_psql('postgres', 'ALTER ROLE reader CONNECTION LIMIT -1');

# --- what users do meanwhile ---

sub in_the_middle
{
	my ($name, $expected, $sql, $check) = @_;
	my $indexes = add_replica('middle');
	begin_load('middle');
	app_sql($target, $sql);
	like(run_counts($target, 'middle'), $expected, $name);
	$check->() if $check;
	is_loaded('middle', $indexes, $name);
	return;
}

in_the_middle('rows of others', qr/^succeeded\|\d+\|0\|1$/, q{INSERT INTO middle VALUES (-9000000, 'mine', -1, NULL, now()); DELETE FROM middle WHERE n BETWEEN 1 AND 99});
in_the_middle('the same key twice', qr/^succeeded\|$rows\|0\|0$/, q{INSERT INTO middle SELECT * FROM middle_source WHERE n > 104990});
in_the_middle('an index is created', qr/^succeeded\|\d+\|0\|0$/, 'CREATE UNIQUE INDEX mine ON middle (id)', sub {
	is($target->safe_psql('postgres', q{SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM middle WHERE id > -10000000}), $rows, 'and knows all rows');
	app_sql($target, 'DROP INDEX mine') });
in_the_middle('a trigger and a check are created', qr/^succeeded\|\d+\|0\|0$/, q{
	CREATE TABLE seen (n integer);
	CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.seen VALUES (NEW.n); RETURN NEW; END';
	ALTER TABLE middle ADD CONSTRAINT positive CHECK (n > 0);
	CREATE TRIGGER note BEFORE INSERT ON middle FOR EACH ROW EXECUTE FUNCTION note()}, sub {
	cmp_ok(app_sql($target, 'SELECT count(*) FROM seen'), '>', 1000, 'and fires') });

# removed in the middle
$indexes = add_replica('left_off');
begin_load('left_off');
app_sql($target, "SELECT tablesync_remove('left_off')");
is(indexes('left_off'), $indexes, 'tablesync_remove() gives the indexes back');
cmp_ok(app_sql($target, 'SELECT count(*) FROM left_off'), '>', 0, 'the rows stay');
app_sql($target, 'DROP TABLE left_off');

add_replica('left_off');
begin_load('left_off');
app_sql($target, 'INSERT INTO left_off SELECT * FROM left_off LIMIT 1');
my ($rc, $out, $err) = $target->psql('postgres', "SELECT tablesync_remove('left_off')", extra_params => [ '-U', 'app' ]);
is($rc, 0, 'removed although the key is not unique');
like($err, qr/WARNING:  index public.left_off_pkey of table public.left_off could not be built\nDETAIL:  could not create unique index "left_off_pkey"\nHINT:  Mend the rows, then: REINDEX INDEX public.left_off_pkey;/,
	'with a warning that says how to build it');
app_sql($target, 'DELETE FROM left_off l USING left_off m WHERE l.id = m.id AND l.ctid > m.ctid; REINDEX INDEX public.left_off_pkey');
is(app_sql($target, q{SELECT indisvalid FROM pg_index WHERE indexrelid = 'left_off_pkey'::regclass}), 't', 'which works');
app_sql($target, 'DROP TABLE left_off');

# --- tables that are loaded by page ---

app_sql($target, q{
	CREATE TABLE big_like (id bigint PRIMARY KEY, code varchar(20), n integer NOT NULL, u uuid, updated_at timestamp NOT NULL);
	CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	CREATE TABLE ns (n integer PRIMARY KEY)});
my %unsuitable = (
	trigger => 'CREATE TRIGGER t BEFORE INSERT ON x FOR EACH ROW EXECUTE FUNCTION pass()',
	check => 'ALTER TABLE x ADD CHECK (n > 0)',
	foreign_key => 'ALTER TABLE x ADD FOREIGN KEY (n) REFERENCES ns',
	referenced => 'CREATE TABLE y (id bigint REFERENCES x)',
	exclusion => 'ALTER TABLE x ADD EXCLUDE USING btree (n WITH =)',
	rule => 'CREATE RULE r AS ON INSERT TO x DO ALSO NOTHING',
	child => 'CREATE TABLE y () INHERITS (x)',
	deferrable => 'ALTER TABLE x ADD UNIQUE (n) DEFERRABLE',
	view => 'CREATE VIEW y AS SELECT id, code FROM x GROUP BY id');
for my $name (sort keys %unsuitable)
{
	app_sql($target, qq{
		CREATE TABLE x (LIKE big_like INCLUDING INDEXES);
		$unsuitable{$name};
		SELECT tablesync_add('x', 'src', 'public.big', version_column => 'updated_at')});
	is(app_sql($target, q{SELECT tablesync.can_bulk_load('x')}), 'f', "not in bulk: $name");
	app_sql($target, q{SELECT tablesync_remove('x'); DROP TABLE x CASCADE; DROP TABLE IF EXISTS y});
}
app_sql($target, qq{
	CREATE TABLE x (LIKE big_like INCLUDING INDEXES) PARTITION BY RANGE (id);
	CREATE TABLE x_1 PARTITION OF x FOR VALUES FROM (MINVALUE) TO (0);
	CREATE TABLE x_2 PARTITION OF x DEFAULT;
	SELECT tablesync_add('x', 'src', 'public.big', version_column => 'updated_at')});
is(run_counts($target, 'x'), "succeeded|$rows|0|0", 'partitioned: loaded by page');
is(checksum($target, 'x'), $content, 'identical');
app_sql($target, "SELECT tablesync_remove('x', drop_replica => true)");

# --- keys and statistics of all sorts ---

sub loads
{
	my ($name, $definition, $select, $more) = @_;
	$source->safe_psql('postgres', qq{
		CREATE TABLE keyed ($definition, updated_at timestamp NOT NULL DEFAULT now());
		INSERT INTO keyed SELECT $select FROM generate_series(1, 101000) i;
		ANALYZE keyed;
		@{[ $more // 'SELECT' ]}});
	app_sql($target, "SELECT tablesync_add('keyed', 'src', 'public.keyed', version_column => 'updated_at')");
	my ($result, $ranges) = (run_counts($target, 'keyed'), app_sql($target, 'SELECT count(*) FROM tablesync.chunk'));
	my $count = $source->safe_psql('postgres', 'SELECT count(*) FROM keyed');
	is($result, "succeeded|$count|0|0", "$name: loaded");
	is(checksum($target, 'keyed'), checksum($source, 'keyed'), "$name: identical");
	is(run_counts($target, 'keyed'), 'succeeded|0|0|0', "$name: equal");
	app_sql($target, "SELECT tablesync_remove('keyed', drop_replica => true)");
	$source->safe_psql('postgres', 'DROP TABLE keyed');
	return;
}

loads('uuid', 'id uuid PRIMARY KEY', 'md5(i::text)::uuid');
loads('integers at their limits, statistics from before', 'id integer PRIMARY KEY', 'i - 60000',
	'INSERT INTO keyed SELECT i FROM generate_series(41001, 81000) i; INSERT INTO keyed VALUES (2147483647), (-2147483648)');
loads('bigints at their limits', 'id bigint PRIMARY KEY', '(i - 50500) * 182622766329724::bigint',
	'INSERT INTO keyed VALUES (9223372036854775807), (-9223372036854775808)');
loads('integer, numeric', 'a integer, b numeric(20,2), PRIMARY KEY (a, b)', 'i / 10, -i');
loads('integer, varchar, date', q{a integer, b varchar(9), c date, PRIMARY KEY (a, b, c)}, q{i / 100, i % 10, CASE WHEN i % 100 = 0 THEN date '-infinity' ELSE date '2000-01-01' + i END});
loads('date, smallint', 'd date, s smallint, PRIMARY KEY (d, s)', q{date '2000-01-01' + i / 300, (i % 300 - 32768)::smallint});

# --- no slot for a helper ---

$target->append_conf('postgresql.conf', 'max_worker_processes = 2');    # one is the logical replication launcher's
$target->restart;
$indexes = add_replica('no_slot', ', workers => 4');
is(run_counts($target, 'no_slot'), "succeeded|$rows|0|0", 'no slot for a helper');
is_loaded('no_slot', $indexes, 'no slot');

unlike(PostgreSQL::Test::Utils::slurp_file($target->logfile), qr/signal 11|signal 6/, 'nothing has crashed but what we have killed');
done_testing();
