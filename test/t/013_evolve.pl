# The source changes its shape: the replica follows, pauses or ignores it.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

# A source table with some rows, and its replica, loaded.
sub replicate
{
	my ($name, $columns, $rows, $settings) = @_;
	$source->safe_psql('postgres', "CREATE TABLE $name ($columns); INSERT INTO $name $rows");
	app_sql($target, "SELECT tablesync_add('$name', 'src', 'public.$name'" . ($settings ? ", $settings" : '') . ')');
	like(run_counts($target, $name), qr/^succeeded/, "$name: loaded");
	return;
}

sub at_source { my ($sql) = @_; $source->safe_psql('postgres', $sql); return; }

# Names, types and NOT NULL of a table's columns.
sub columns_of
{
	my ($table) = @_;
	return $target->safe_psql('postgres', qq{
		SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN '!' ELSE '' END, ', ' ORDER BY attname)
		FROM pg_attribute WHERE attrelid = '$table'::regclass AND attnum > 0 AND NOT attisdropped});
}

# What the log says about a replica since the last look.
my %seen;
sub logged
{
	my ($replica) = @_;
	my $since = $seen{$replica} // 0;
	$seen{$replica} = $target->safe_psql('postgres', 'SELECT coalesce(max(log_id), 0) FROM tablesync.schema_log');
	return app_sql($target, qq{
		SELECT string_agg(concat_ws(' ', change, column_name, action), ', ' ORDER BY log_id)
		FROM tablesync.schema_log WHERE replica = '$replica'::regclass AND log_id > $since});
}

# Columns of the source, in its order, from both sides.
sub same_columns
{
	my ($table, $columns, $name) = @_;
	my $sql = "SELECT $columns FROM $table ORDER BY id";
	is($target->safe_psql('postgres', $sql), $source->safe_psql('postgres', $sql), $name);
	return;
}

# A run must pause the replica; returns the error.
sub pauses
{
	my ($replica, $detail, $name) = @_;
	my $rows = $target->safe_psql('postgres', "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM $replica t");
	my $columns = columns_of($replica) . columns_of("${replica}_source");
	my $error = app_fails($target, "SELECT tablesync_run('$replica')");
	like($error, qr/ERROR:  42804: the source of public.$replica has changed its shape\nDETAIL:  $detail\. The replica is paused\.\n/, $name);
	is($target->safe_psql('postgres', "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM $replica t"), $rows, "$name: the replica stays");
	is(columns_of($replica) . columns_of("${replica}_source"), $columns, "$name: nothing is half done");
	is(app_sql($target, "SELECT state FROM tablesync_status WHERE replica = '$replica'::regclass"), 'paused', "$name: paused");
	like(logged($replica), qr/ paused$/, "$name: logged");
	like(app_fails($target, "SELECT tablesync_run('$replica')"), qr/is paused/, "$name: stays paused");
	return $error;
}

# Do what the hint of an error says.
sub follow_hint
{
	my ($error) = @_;
	my ($statements) = $error =~ /^HINT:  (.*?;)$/m or die "no hint: $error";
	app_sql($target, $statements);
	return;
}

# --- apply: columns added, for all rows, by each kind of fingerprint ---

my $rows = q{SELECT i, 'n' || i, '2021-01-01' FROM generate_series(1, 1000) i};
replicate('added', 'id integer PRIMARY KEY, note text NOT NULL, updated_at timestamp NOT NULL', $rows, "version_column => 'updated_at'");
at_source(q{ALTER TABLE added ADD "full ""100%"" name" varchar(20) COLLATE "C" NOT NULL DEFAULT 'x', ADD amount numeric(10,2);
	UPDATE added SET "full ""100%"" name" = 'name ' || id, amount = id WHERE id % 3 > 0});
is(run_counts($target, 'added'), 'succeeded|0|1000|0', 'a column added: filled for all rows though no version has moved');
is_replica($source, $target, 'added', 'added', 'column added');
is(logged('added'), 'added full "100%" name applied, added amount applied', 'logged');
is(columns_of('added'), 'amount numeric(10,2), full "100%" name character varying(20), id integer!, note text!, updated_at timestamp without time zone!',
	'types; NOT NULL is not taken over where there are rows');
is($target->safe_psql('postgres', q{SELECT collname FROM pg_attribute a JOIN pg_collation c ON c.oid = attcollation WHERE attrelid = 'added'::regclass AND attname LIKE 'full%'}), 'C', 'collation');
is($target->safe_psql('postgres', q{SELECT count(*) FROM pg_attrdef WHERE adrelid = 'added'::regclass}), 0, 'no default is copied');
is(run_counts($target, 'added'), 'succeeded|0|0|0', 'the next run trusts the version again');

# types that nothing but fetching can compare
at_source(q{CREATE TYPE mood AS ENUM ('sad', 'happy');
	ALTER TABLE added ADD doc json, ADD mood mood DEFAULT 'happy', ADD tail xml;
	UPDATE added SET doc = json_build_object('id', id), tail = '<a/>' WHERE id % 2 = 0});
my $error = pauses('added', "column mood was added and can't be replicated exactly: type public.mood does not exist here", 'a type that is missing here');
like($error, qr/HINT:  Create the type here like at the source, and resume\. To leave new columns out: SELECT tablesync_alter\('public\.added', on_schema_change => 'ignore', enabled => true\);/, 'and what to do');
app_sql($target, q{CREATE TYPE mood AS ENUM ('sad', 'happy'); SELECT tablesync_resume('added')});
at_source(q{UPDATE added SET note = 'moved', updated_at = '2021-01-02' WHERE id = 5; DELETE FROM added WHERE id = 6; INSERT INTO added VALUES (2000, 'new', '2021-01-02', 'x', NULL, NULL, 'sad', NULL)});
is(run_counts($target, 'added'), 'succeeded|1|1|1', 'columns without a hash are fetched for all rows');
is_replica($source, $target, 'added', 'added', 'columns without a hash');
is(logged('added'), 'added doc applied, added mood applied, added tail applied', 'logged');
# the table has such columns now: whatever is added is fetched
at_source(q{ALTER TABLE added ADD n bigint; UPDATE added SET n = id * 5});
is(run_counts($target, 'added'), 'succeeded|0|0|0', 'a column added beside one without a hash');
is_replica($source, $target, 'added', 'added', 'filled');
# the version is never fetched ahead of the other columns
at_source(q{ALTER TABLE added ALTER updated_at TYPE timestamp(6); UPDATE added SET note = 'later', updated_at = '2021-01-03' WHERE id < 100});
is(run_counts($target, 'added'), 'succeeded|0|98|0', 'the version column is widened, and rows change');
is_replica($source, $target, 'added', 'added', 'all of their columns are here');

replicate('byrow', 'id integer PRIMARY KEY, note text', q{SELECT i, 'n' FROM generate_series(1, 100) i});
at_source(q{ALTER TABLE byrow ADD size integer DEFAULT 7});
is(run_counts($target, 'byrow'), 'succeeded|0|100|0', 'fingerprint row');
is_replica($source, $target, 'byrow', 'byrow', 'fingerprint row');
at_source(q{ALTER TABLE byrow ADD doc json});
pauses('byrow', "column doc json was added and can't be replicated exactly: values of type json can't be compared exactly without fetching them", 'a column that no fingerprint covers');
app_sql($target, "SELECT tablesync_alter('byrow', on_schema_change => 'ignore', enabled => true)");
is(run_counts($target, 'byrow'), 'succeeded|0|0|0', 'left out');

done_testing();
