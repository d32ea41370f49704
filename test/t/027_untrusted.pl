# What a run reads back is not trusted: the foreign table and the replica may
# change under it, its own tables may hold nonsense, the source may lie.  An
# error is right; a crash, a row of somebody else or a wrong replica is not.

use strict;
use warnings;

use TablesyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($source, $target) = start_pair(target => { conf => "log_min_messages = log\nmax_parallel_workers = 4" });
my $rows = 300_000;
$source->safe_psql('postgres', qq{
	CREATE TABLE big (id integer PRIMARY KEY, v text, n integer NOT NULL);
	INSERT INTO big SELECT i, lpad(i::text, 16, '0'), i FROM generate_series(1, $rows) i;
	CREATE TABLE items (id integer PRIMARY KEY, v text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, v) SELECT i, lpad(i::text, 16, '0') FROM generate_series(1, 20000) i;
	ANALYZE});
app_sql($target, q{
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at', max_delete_fraction => 1);
	SELECT * FROM tablesync_run('items')});

my $log = 0;
sub no_crash
{
	my ($name) = @_;
	ok(!$target->log_contains('terminated by signal|terminating any other active server processes', $log), "$name: no crash");
	$log = -s $target->logfile;
	return;
}

sub run_fails
{
	my ($replica, $pattern, $name) = @_;
	like(app_fails($target, "SELECT tablesync_run('$replica')"), $pattern, $name);
	return;
}

sub is_right
{
	my ($replica, $name) = @_;
	like(run_counts($target, $replica), qr/^succeeded/, "$name: the next run succeeds");
	is_replica($source, $target, $replica, $replica, "$name: identical");
	return;
}

my $locker = session($source);

# --- the foreign table changes while a run reads it ---

for my $workers (1, 2)
{
	app_sql($target, qq{SELECT tablesync_add('big', 'src', 'public.big', workers => $workers, max_source_load => 0.05)});
	my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('big', wait => false)});
	wait_until($target, q{SELECT count(*) > 0 FROM tablesync.chunk WHERE replica = 'big'::regclass AND loaded AND rows > 0});
	app_sql($target, 'ALTER FOREIGN TABLE big_source ALTER v TYPE uuid');
	is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'failed', "retyped in a bulk load by $workers");
	no_crash("retyped in a bulk load by $workers");
	is(app_sql($target, q{SELECT count(*) FROM big WHERE length(v) <> 16 OR v !~ '^[0-9]+$'}), 0, 'no bytes of another type');
	app_sql($target, 'ALTER FOREIGN TABLE big_source ALTER v TYPE text');
	app_sql($target, q{SELECT tablesync_alter('big', max_source_load => 1)});
	is_right('big', "retyped in a bulk load by $workers");
	app_sql($target, q{SELECT tablesync_remove('big', drop_replica => true)});
}

# between SCAN's statements in chunk mode
app_sql($target, q{SELECT tablesync_alter('items', consistency => 'chunk', chunk_rows => 100, max_source_load => 0.02, fingerprint => 'row')});
app_sql($target, q{SELECT * FROM tablesync_run('items')});
for my $type ('uuid', 'integer', 'point', 'name')
{
	$source->safe_psql('postgres', q{UPDATE items SET v = lpad((v::bigint + 1)::text, 16, '0')});
	my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('items', wait => false)});
	wait_until($target, q{SELECT coalesce(max(chunks_done), 0) > 3 FROM tablesync_progress WHERE phase = 'scan'});
	app_sql($target, "ALTER FOREIGN TABLE items_source ALTER v TYPE $type");
	is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'failed', "retyped to $type during a scan");
	no_crash("retyped to $type");
	app_sql($target, 'ALTER FOREIGN TABLE items_source ALTER v TYPE text');
}
app_sql($target, q{SELECT tablesync_alter('items', consistency => 'auto', max_source_load => 1, version_column => 'updated_at', chunk_rows => 2000)});
$source->safe_psql('postgres', 'UPDATE items SET updated_at = clock_timestamp()');
is_right('items', 'after all that');

# --- other tables under the same names ---

$target->safe_psql('postgres', q{
	CREATE ROLE landlord LOGIN PASSWORD 'l';
	CREATE SCHEMA rented AUTHORIZATION landlord;
	GRANT CREATE, USAGE ON SCHEMA rented TO app;
	GRANT USAGE ON SCHEMA rented TO PUBLIC});
app_sql($target, q{
	SELECT tablesync_add('rented.items', 'src', 'public.items', version_column => 'updated_at');
	SELECT * FROM tablesync_run('rented.items')});
my $swap = q{
	DROP TABLE rented.items CASCADE;
	CREATE FUNCTION rented.rise() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO rented.caught VALUES (current_user); RETURN NEW; END$$;
	CREATE TABLE rented.caught (who text);
	GRANT ALL ON rented.caught TO PUBLIC;
	CREATE TABLE rented.items (id integer PRIMARY KEY, v text, updated_at timestamptz NOT NULL);
	CREATE TRIGGER rise BEFORE INSERT OR UPDATE OR DELETE ON rented.items FOR EACH ROW EXECUTE FUNCTION rented.rise();
	GRANT ALL ON rented.items TO PUBLIC};
$source->safe_psql('postgres', q{UPDATE items SET v = 'x', updated_at = clock_timestamp() WHERE id % 7 = 0});
$locker->query_safe('BEGIN; LOCK TABLE items');
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('rented.items', wait => false)});
wait_until($source, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
my $landlord = session($target, '-U', 'landlord');
$landlord->query_until(qr//, "$swap;\n");
wait_until($target, q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted} ) if 0;
$locker->query_safe('ROLLBACK');
wait_until($target, q{SELECT to_regclass('rented.caught') IS NOT NULL});
wait_until($target, q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'tablesync%')});
$landlord->quit;
is($target->safe_psql('postgres', 'SELECT count(*) FROM rented.caught'), 0, 'a table put in the place of the replica runs no code of its owner');
no_crash('swapped');

# --- nonsense in our own tables ---

my $good = $target->safe_psql('postgres', q{SELECT max(chunk_no) FROM tablesync.chunk WHERE replica = 'items'::regclass});
cmp_ok($good, '>', 3, 'several chunks');
my @nonsense = (
	(map { "UPDATE tablesync.chunk SET lower_key = $_ WHERE replica = 'items'::regclass AND chunk_no = 2" }
		"'{}'", "'{NULL}'", "'{1,2}'", "'{{1},{2}}'", "'{abc}'", "'{99999999999999999999}'", "'{-5}'", "'{\"\"}'", "ARRAY[repeat('9', 100000)]", "'[5:5]={700}'"),
	(map { "UPDATE tablesync.chunk SET $_ WHERE replica = 'items'::regclass" }
		q{buckets = '\x00', bucket_shift = 6, bucket_mask = -1}, q{buckets = '', bucket_shift = 6, bucket_mask = -1},
		q{buckets = '\xffffffffffffffffffffffffffffffffffffffffffffffff', bucket_shift = 6, bucket_mask = -1},
		q{buckets = decode(repeat('7f', 24000), 'hex'), bucket_shift = 32767, bucket_mask = -1},
		q{buckets = decode(repeat('7f', 24000), 'hex'), bucket_shift = -1, bucket_mask = -9223372036854775808},
		q{buckets = decode(repeat('00', 24), 'hex'), bucket_shift = 63, bucket_mask = 9223372036854775807},
		q{rows = 9223372036854775807}, q{rows = 0}, q{digest = -9223372036854775808}, q{digest = NULL}, q{verified_at = 'infinity'}, q{stale = true, digest = 1}, q{differed = true}),
	(map { "UPDATE tablesync.replica SET $_ WHERE replica = 'items'::regclass" }
		q{watermark = 'infinity'}, q{watermark = 'nonsense'}, q{scan_rate = 'NaN'}, q{scan_rate = 'infinity'}, q{scan_rate = -1}, q{scan_rate = 1e-300}, q{memory_key = repeat('x', 100000)}, q{memory_file = 4294967295},
		q{counters = '[]', counters_at = 'infinity', trust_counters_for = '1 h'}, q{counters_at = '-infinity'}, q{consecutive_failures = 2147483647, retry_after = 'infinity'},
		q{load_position = '{}', loaded = false}, q{load_position = '{NULL}', loaded = false}, q{load_position = '{1,2,3}', loaded = false}, q{load_position = '{abc}', loaded = false},
		q{load_indexes = '{0,NULL}', loaded = false}, q{refetch = '{nothing,v}'}, q{key_columns = '{nothing}'}, q{key_columns = '{v}'}, q{version_column = 'nothing'}, q{bounds_key = 'text'}, q{chunk_rows = 2147483647}, q{chunk_rows = 1}),
	(map { "UPDATE tablesync.run SET $_ WHERE replica = 'items'::regclass AND status = 'succeeded'" }
		q{newest_version = 'infinity'}, q{newest_version = 'nonsense'}, q{source_horizon = -9223372036854775808}, q{source_horizon = 9223372036854775807},
		q{replica_digest = 1}, q{source_rows = -1, replica_rows = -1}),
	"DELETE FROM tablesync.chunk WHERE replica = 'items'::regclass AND chunk_no = 1",
	"UPDATE tablesync.chunk SET chunk_no = chunk_no + 1000000 WHERE replica = 'items'::regclass AND chunk_no > 0",
	"INSERT INTO tablesync.chunk (replica, chunk_no, lower_key) VALUES ('items', 2147483647, '{1}')");
$target->safe_psql('postgres', q{
	CREATE TABLE keep_replica AS SELECT * FROM tablesync.replica WHERE replica = 'items'::regclass;
	CREATE TABLE keep_chunk AS SELECT * FROM tablesync.chunk WHERE replica = 'items'::regclass;
	CREATE TABLE keep_run AS SELECT * FROM tablesync.run WHERE replica = 'items'::regclass});
for my $nonsense (@nonsense)
{
	my ($set) = $nonsense =~ /SET (.{1,70})/;
	$set //= $nonsense;
	$source->safe_psql('postgres', q{UPDATE items SET v = v || '.', updated_at = clock_timestamp() WHERE id % 997 = 0; DELETE FROM items WHERE id = (SELECT max(id) FROM items)});
	my ($rc, $out, $err) = $target->psql('postgres', $nonsense);
	if ($rc != 0)
	{
		like($err, qr/violates|out of range|invalid/, "$set: a constraint refuses it");
		next;
	}
	($rc, $out, $err) = $target->psql('postgres', q{SET statement_timeout = '60s'; SELECT status FROM tablesync_run('items', force => true)}, extra_params => [ '-U', 'app' ]);
	no_crash($set);
	unlike($err, qr/statement timeout/, "$set: ends");
	my $same = TablesyncTest::same_rows($source, $target, 'items', 'items');
	ok($rc != 0 || $same, "$set: right, or an error") or diag($err);
	$target->safe_psql('postgres', q{SELECT * FROM tablesync_status; SELECT * FROM tablesync_alerts; SELECT tablesync_health(); SELECT * FROM tablesync_runs});
	next if $rc == 0;
	# put it right again, as a superuser who has made a mistake would
	$target->safe_psql('postgres', q{
		SET session_replication_role = replica;
		DELETE FROM tablesync.chunk WHERE replica = 'items'::regclass;
		DELETE FROM tablesync.replica WHERE replica = 'items'::regclass;
		DELETE FROM tablesync.run WHERE replica = 'items'::regclass;
		INSERT INTO tablesync.replica SELECT * FROM keep_replica;
		INSERT INTO tablesync.run SELECT * FROM keep_run;
		INSERT INTO tablesync.chunk SELECT * FROM keep_chunk;
		UPDATE tablesync.chunk SET stale = true;
		UPDATE tablesync.replica SET adopted = true WHERE replica = 'items'::regclass});
}
like($target->psql('postgres', q{SELECT status FROM tablesync_run('items', force => true)}) . '', qr/^0$/, 'all is well in the end');
is_right('items', 'nonsense');

# --- a source that lies ---

$source->safe_psql('postgres', q{
	CREATE FUNCTION lie(integer, integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT CASE WHEN $1 % 1000 = 0 THEN 2147483647 ELSE pg_catalog.int4shr($1, $2) END';
	CREATE FUNCTION lie8(bigint, integer) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 9223372036854775807';
	CREATE FUNCTION lie_null(integer, integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT NULL::integer';
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO reader;
	CREATE TABLE wide (id bigint PRIMARY KEY, v text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO wide (id, v) SELECT i, 'v' FROM generate_series(1, 30000) i;
	ANALYZE wide});
app_sql($target, q{
	SELECT tablesync_add('wide', 'src', 'public.wide', version_column => 'updated_at', chunk_rows => 3000);
	SELECT * FROM tablesync_run('wide')});
my %operator = (items => q{'>>(integer,integer)'}, wide => q{'>>(bigint,integer)'});
my %true = (items => 'pg_catalog.int4shr', wide => 'pg_catalog.int8shr');
for my $lie ([ 'items', 'lie(integer,integer)' ], [ 'items', 'lie_null(integer,integer)' ], [ 'wide', 'lie8(bigint,integer)' ])
{
	my ($table, $function) = @$lie;
	$source->safe_psql('postgres', "UPDATE $table SET v = 'w', updated_at = clock_timestamp() WHERE id % 3 = 0");
	run_counts($target, $table);
	$source->safe_psql('postgres', "UPDATE $table SET v = 'u', updated_at = clock_timestamp() WHERE id % 2 = 0");
	$source->safe_psql('postgres', "UPDATE pg_operator SET oprcode = '$function'::regprocedure WHERE oid = $operator{$table}::regoperator");
	my ($rc, $out, $err) = $target->psql('postgres', "SET statement_timeout = '60s'; SELECT status FROM tablesync_run('$table')", extra_params => [ '-U', 'app' ]);
	no_crash("bucket numbers by $function");
	unlike($err, qr/statement timeout/, "$function: ends");
	$source->safe_psql('postgres', "UPDATE pg_operator SET oprcode = '$true{$table}'::regproc WHERE oid = $operator{$table}::regoperator");
	ok($rc != 0 || TablesyncTest::same_rows($source, $target, $table), "$function: an error, or right");
	is_right($table, $function);
}

# rows of other keys than were asked for, more rows, and NULLs: a view takes the table's place
for my $view ('SELECT id + 1 AS id, v, updated_at FROM true_wide', 'SELECT * FROM true_wide UNION ALL SELECT * FROM true_wide', 'SELECT NULL::bigint AS id, v, updated_at FROM true_wide',
	'SELECT * FROM true_wide WHERE random() < 0.5', q{SELECT id, repeat('x', (random() * 100)::integer) AS v, clock_timestamp() AS updated_at FROM true_wide})
{
	$source->safe_psql('postgres', "ALTER TABLE wide RENAME TO true_wide; CREATE VIEW wide AS $view; GRANT SELECT ON wide TO reader");
	$target->psql('postgres', "SET statement_timeout = '90s'; SELECT status FROM tablesync_run('wide')", extra_params => [ '-U', 'app' ]);
	no_crash($view);
	$source->safe_psql('postgres', 'DROP VIEW wide; ALTER TABLE true_wide RENAME TO wide');
	$source->safe_psql('postgres', 'UPDATE wide SET updated_at = clock_timestamp()');
	app_sql($target, q{SELECT tablesync_resume('wide')});    # a view has no key: seen before a row was read
	like(app_sql($target, q{SELECT status FROM tablesync_run('wide', force => true)}), qr/^succeeded/, 'the next run succeeds');
	is_replica($source, $target, 'wide', 'wide', 'identical');
}

# keys that were not asked for
$source->safe_psql('postgres', q{
	CREATE FUNCTION lie_equal(bigint, bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.int8eq($1, $2) OR $1 % 7 = 0';
	GRANT EXECUTE ON FUNCTION lie_equal TO reader;
	ALTER ROLE reader SET enable_indexscan = off; ALTER ROLE reader SET enable_bitmapscan = off; ALTER ROLE reader SET enable_indexonlyscan = off});
for my $columns ("v = 'k', updated_at = clock_timestamp()", "v = 'l'")
{
	$source->safe_psql('postgres', "UPDATE wide SET $columns WHERE id % 500 = 1; DELETE FROM wide WHERE id % 900 = 3; INSERT INTO wide (id, v) VALUES (100000 + (SELECT count(*) FROM wide), 'new')");
	$source->safe_psql('postgres', "UPDATE pg_operator SET oprcode = 'lie_equal'::regproc WHERE oid = '=(bigint,bigint)'::regoperator");
	$target->psql('postgres', "SET statement_timeout = '90s'; SELECT status FROM tablesync_run('wide')", extra_params => [ '-U', 'app' ]);
	$source->safe_psql('postgres', "UPDATE pg_operator SET oprcode = 'pg_catalog.int8eq'::regproc WHERE oid = '=(bigint,bigint)'::regoperator");
	no_crash('keys that were not asked for');
	$source->safe_psql('postgres', 'UPDATE wide SET updated_at = clock_timestamp()');
	is_right('wide', 'keys that were not asked for');
}
$source->safe_psql('postgres', 'ALTER ROLE reader RESET ALL');

# --- a key that changes its type, by the hint ---

for my $change ([ 'text', 'id::text' ], [ 'uuid', "lpad(id::text, 32, '0')::uuid" ], [ 'numeric', 'id::numeric' ])
{
	my ($type, $using) = @$change;
	$source->safe_psql('postgres', "CREATE TABLE keyed (id integer PRIMARY KEY, v text, updated_at timestamptz NOT NULL DEFAULT now()); INSERT INTO keyed (id, v) SELECT i, 'v' FROM generate_series(1, 5000) i");
	app_sql($target, q{
		SELECT tablesync_add('keyed', 'src', 'public.keyed', version_column => 'updated_at', chunk_rows => 300);
		SELECT * FROM tablesync_run('keyed')});
	$source->safe_psql('postgres', "UPDATE keyed SET v = 'w', updated_at = clock_timestamp() WHERE id % 100 = 0");
	run_counts($target, 'keyed');
	$source->safe_psql('postgres', "ALTER TABLE keyed ALTER id TYPE $type USING $using");
	my $error = app_fails($target, q{SELECT tablesync_run('keyed')});
	like($error, qr/TS003/, "key to $type: pauses");
	my ($hint) = $error =~ /HINT:  (.*)/;
	$hint =~ s/USING id::uuid/USING lpad(id::text, 32, '0')::uuid/;
	app_sql($target, $hint);
	is_right('keyed', "key to $type by the hint");
	no_crash("key to $type");
	app_sql($target, q{SELECT tablesync_remove('keyed', drop_replica => true)});
	$source->safe_psql('postgres', 'DROP TABLE keyed');
}

# --- limits ---

$target->safe_psql('postgres', q{LOAD 'tablesync'; ALTER ROLE app SET tablesync.statement_timeout = 2147483647; ALTER ROLE app SET tablesync.lock_timeout = 2147483647; ALTER ROLE app SET tablesync.max_snapshot_age = 2147483647});
is_right('items', 'the largest timeouts');
$target->safe_psql('postgres', q{ALTER ROLE app RESET ALL});

# settings that a trigger of the owner leaves behind
app_sql($target, q{
	CREATE FUNCTION leaves() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		SET search_path = public; SET datestyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo'; SET extra_float_digits = -10; SET bytea_output = escape;
		SET default_transaction_read_only = on; SET statement_timeout = 1; SET row_security = off; SET intervalstyle = sql_standard;
		CREATE TEMP TABLE IF NOT EXISTS pg_class (x integer);
		RETURN NULL;
	END$$;
	CREATE TRIGGER leaves AFTER INSERT OR UPDATE OR DELETE ON items EXECUTE FUNCTION leaves();
	SELECT tablesync_alter('items', verify_fraction => 1)});
$source->safe_psql('postgres', q{UPDATE items SET v = 'z', updated_at = clock_timestamp() WHERE id % 11 = 0});
is_right('items', 'settings left behind');
is_right('items', 'and again');

no_crash('at the end');
done_testing();
