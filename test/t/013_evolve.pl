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
	like($error, qr/ERROR:  TS003: the source of public.$replica has changed its shape\nDETAIL:  $detail\. The replica is paused\.\n/, $name);
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
replicate('added', 'id integer PRIMARY KEY, note text NOT NULL, updated_at timestamp NOT NULL', $rows, "version_column => 'updated_at', fingerprint => 'version'");
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
is(run_counts($target, 'added'), 'succeeded|1|999|1', 'columns without a hash are fetched for all rows');
is_replica($source, $target, 'added', 'added', 'columns without a hash');
is(logged('added'), 'added doc applied, added mood applied, added tail applied', 'logged');
# the table has such columns now: whatever is added is fetched
at_source(q{ALTER TABLE added ADD n bigint; UPDATE added SET n = id * 5});
is(run_counts($target, 'added'), 'succeeded|0|1000|0', 'a column added beside one without a hash');
is_replica($source, $target, 'added', 'added', 'filled');
# the version is never fetched ahead of the other columns
at_source(q{ALTER TABLE added ALTER updated_at TYPE timestamp(6); UPDATE added SET note = 'later', updated_at = '2021-01-03' WHERE id < 100});
is(run_counts($target, 'added'), 'succeeded|0|98|0', 'the version column is widened, and rows change');
is_replica($source, $target, 'added', 'added', 'all of their columns are here');

replicate('byrow', 'id integer PRIMARY KEY, note text', q{SELECT i, 'n' FROM generate_series(1, 100) i}, "fingerprint => 'row'");
at_source(q{ALTER TABLE byrow ADD size integer DEFAULT 7});
is(run_counts($target, 'byrow'), 'succeeded|0|100|0', 'fingerprint row');
is_replica($source, $target, 'byrow', 'byrow', 'fingerprint row');
at_source(q{ALTER TABLE byrow ADD doc xml});
pauses('byrow', "column doc xml was added and can't be replicated exactly: values of type xml can't be compared exactly without fetching them", 'a column that no fingerprint covers');
app_sql($target, "SELECT tablesync_alter('byrow', on_schema_change => 'ignore', enabled => true)");
is(run_counts($target, 'byrow'), 'succeeded|0|0|0', 'left out');

# by xmin they are rows that were written, or are looked at once
replicate('byxmin', 'id integer PRIMARY KEY, note text, updated_at timestamp', q{SELECT i, 'n', '2021-01-01' FROM generate_series(1, 1000) i}, "version_column => 'updated_at'");
at_source(q{ALTER TABLE byxmin ADD size integer DEFAULT 7, ADD doc xml DEFAULT '<a/>', ADD mood mood});
is(run_counts($target, 'byxmin'), 'succeeded|0|1000|0', 'by xmin: values of new columns');
is_replica($source, $target, 'byxmin', 'byxmin', 'without a hash, too');
is(logged('byxmin'), 'added size applied, added doc applied, added mood applied', 'logged');
is(run_counts($target, 'byxmin'), 'succeeded|0|0|0', 'they are known then');
at_source(q{UPDATE byxmin SET doc = '<b/>' WHERE id < 4; UPDATE byxmin SET mood = 'sad' WHERE id = 9; ALTER TABLE byxmin ADD late json});
is(run_counts($target, 'byxmin'), 'succeeded|0|4|0', 'no value of them is overlooked');
is_replica($source, $target, 'byxmin', 'byxmin', 'identical');
at_source(q{ALTER TABLE byxmin ALTER id TYPE bigint, ALTER size TYPE bigint; UPDATE byxmin SET size = 8 WHERE id = 10});
is(run_counts($target, 'byxmin'), 'succeeded|0|1|0', 'rewritten for wider types');
is_replica($source, $target, 'byxmin', 'byxmin', 'identical');
at_source(q{ALTER TABLE byxmin DROP updated_at});
is(run_counts($target, 'byxmin'), 'succeeded|0|0|0', 'a version column that was a hint may go');
is(app_sql($target, "SELECT version_column IS NULL, fingerprint FROM tablesync.replica WHERE replica = 'byxmin'::regclass"), 't|xmin', 'and is none any more');
at_source(q{UPDATE byxmin SET note = 'm' WHERE id = 8});
is(run_counts($target, 'byxmin'), 'succeeded|0|1|0', 'changes are found as before');

# --- apply: types that lose nothing, under views ---

replicate('wide', q{id integer PRIMARY KEY, small smallint, name varchar(5) COLLATE "C", price numeric(6,2), fixed char(3), seen timestamp(0), updated_at timestamp NOT NULL},
	q{SELECT i, i, 'n' || i, i + 0.25, 'x', '2021-01-01', '2021-01-01' FROM generate_series(1, 500) i}, "version_column => 'updated_at'");
$target->safe_psql('postgres', q{CREATE ROLE looker; CREATE ROLE granter; CREATE ROLE team; GRANT team TO app; GRANT CREATE ON SCHEMA public TO team});
app_sql($target, q{
	CREATE VIEW "wide ""v""" WITH (security_barrier = true, check_option = local) AS
		SELECT id, name AS "the name", price * 2 AS twice FROM wide WHERE name <> 'none' AND small > -1;
	COMMENT ON VIEW "wide ""v""" IS 'a ''view''';
	COMMENT ON COLUMN "wide ""v""".twice IS 'two';
	GRANT SELECT, UPDATE ON "wide ""v""" TO looker;
	GRANT SELECT ("the name") ON "wide ""v""" TO PUBLIC;
	REVOKE TRUNCATE ON "wide ""v""" FROM app;
	GRANT INSERT ON "wide ""v""" TO looker WITH GRANT OPTION;
	CREATE VIEW wide_sum AS SELECT count(*) AS rows, sum(w.small) AS small FROM wide w JOIN "wide ""v""" v USING (id);
	ALTER VIEW wide_sum OWNER TO team;
	CREATE VIEW wide_fixed AS SELECT fixed, seen FROM wide_source;
	ALTER DEFAULT PRIVILEGES GRANT DELETE ON TABLES TO looker});
my $view_states = q{SELECT string_agg(tablesync.view_state(v)::text, ' ' ORDER BY v::text) FROM unnest(ARRAY['"wide ""v"""', 'wide_sum', 'wide_fixed']::regclass[]) v};
my $states = $target->safe_psql('postgres', $view_states);
at_source(q{ALTER TABLE wide ALTER small TYPE integer, ALTER name TYPE varchar(40), ALTER price TYPE numeric(9,3), ALTER fixed TYPE char(6), ALTER seen TYPE timestamp(3), ALTER id TYPE bigint});
at_source(q{UPDATE wide SET small = 100000, name = repeat('n', 40), price = 123456.789, fixed = 'sixsix', seen = '2021-01-01 00:00:00.123', updated_at = now() WHERE id = 1;
	INSERT INTO wide VALUES (5000000000, 1, 'x', 1, 'y', NULL, now())});
is(run_counts($target, 'wide'), 'succeeded|1|1|0', 'types widened, the key too');
is_replica($source, $target, 'wide', 'wide', 'types widened');
is(logged('wide'), 'retyped id applied, retyped small applied, retyped name applied, collation name recorded, retyped price applied, retyped fixed applied, retyped seen applied', 'logged');
is(columns_of('wide'), 'fixed character(6), id bigint!, name character varying(40), price numeric(9,3), seen timestamp(3) without time zone, small integer, updated_at timestamp without time zone!', 'types');
is(columns_of('wide_source'), columns_of('wide'), 'the foreign table follows');
is($target->safe_psql('postgres', $view_states), $states, 'views have their owner, privileges, options and comments again');
is($target->safe_psql('postgres', q{SELECT twice FROM "wide ""v""" WHERE id = 1}), '246913.578', 'and work');
is($target->safe_psql('postgres', q{SELECT collname FROM pg_attribute a JOIN pg_collation c ON c.oid = attcollation WHERE attrelid = 'wide'::regclass AND attname = 'name'}), 'C', 'the collation stays');
at_source(q{ALTER TABLE wide ALTER small TYPE bigint USING small * 10, ALTER name TYPE text USING upper(name), ALTER price TYPE numeric});
is(run_counts($target, 'wide'), 'succeeded|0|501|0', 'values that changed with the type are found, though no version has moved');
is_replica($source, $target, 'wide', 'wide', 'types changed with USING');
is($target->safe_psql('postgres', $view_states), $states, 'views are as they were');
logged('wide');

# what can't be recreated exactly
sub view_pauses
{
	my ($create, $reason, $drop) = @_;
	$target->safe_psql('postgres', $create);
	at_source('ALTER TABLE wide ALTER fixed TYPE char(9)');
	pauses('wide', "column fixed changed its type from character\\(6\\) to character\\(9\\): $reason", $reason);
	at_source('ALTER TABLE wide ALTER fixed TYPE char(6)');
	$target->safe_psql('postgres', $drop);
	app_sql($target, "SELECT tablesync_resume('wide')");
	like(run_counts($target, 'wide'), qr/^succeeded/, 'undone at the source');
	return;
}
view_pauses('CREATE VIEW others AS SELECT fixed FROM wide', q{public.others shows the column and can't be created again: it belongs to another role}, 'DROP VIEW others');
view_pauses('CREATE MATERIALIZED VIEW mat AS SELECT fixed FROM wide; ALTER TABLE mat OWNER TO app', q{public.mat shows the column and can't be created again: it is not a plain view}, 'DROP MATERIALIZED VIEW mat');
view_pauses('CREATE VIEW ruled AS SELECT fixed FROM wide; ALTER VIEW ruled OWNER TO app; CREATE RULE r AS ON INSERT TO ruled DO INSTEAD NOTHING', q{public.ruled shows the column and can't be created again: it has rules}, 'DROP VIEW ruled');
view_pauses('CREATE VIEW chained AS SELECT fixed FROM wide; ALTER VIEW chained OWNER TO app; GRANT SELECT ON chained TO granter WITH GRANT OPTION; SET ROLE granter; GRANT SELECT ON chained TO looker', 'view public.chained would not be the same again', 'DROP VIEW chained');
is($target->safe_psql('postgres', $view_states), $states, 'the other views are as they were');

# --- apply: NOT NULL, dropped columns ---

replicate('nulls', 'id integer PRIMARY KEY, a integer NOT NULL, b integer, c text NOT NULL, updated_at timestamp NOT NULL',
	q{SELECT i, i, i, 'c', '2021-01-01' FROM generate_series(1, 100) i}, "version_column => 'updated_at'");
at_source(q{ALTER TABLE nulls ALTER a DROP NOT NULL, ALTER b SET NOT NULL; UPDATE nulls SET a = NULL, updated_at = now() WHERE id < 10});
is(run_counts($target, 'nulls'), 'succeeded|0|9|0', 'NOT NULL relaxed');
is_replica($source, $target, 'nulls', 'nulls', 'NOT NULL relaxed');
is(logged('nulls'), 'nullable a applied, not_null b recorded', 'NOT NULL set: recorded');
is(columns_of('nulls'), 'a integer, b integer, c text!, id integer!, updated_at timestamp without time zone!', 'a replica never gains NOT NULL');

app_sql($target, 'CREATE VIEW nulls_c AS SELECT id, c FROM nulls');
at_source(q{ALTER TABLE nulls DROP c; INSERT INTO nulls VALUES (101, 1, 1, now())});
is(run_counts($target, 'nulls'), 'succeeded|1|0|0', 'a column dropped');
is(logged('nulls'), 'dropped c kept', 'kept');
is(columns_of('nulls'), 'a integer, b integer, c text, id integer!, updated_at timestamp without time zone!', 'as nullable');
is($target->safe_psql('postgres', 'SELECT count(c), count(*) FROM nulls_c'), '100|101', 'with its values, and views');
same_columns('nulls', 'id, a, b, updated_at', 'the others are exact');
is(run_counts($target, 'nulls'), 'succeeded|0|0|0', 'and not compared any more');
at_source('ALTER TABLE nulls ADD c text');
$error = pauses('nulls', 'column c text was added, and public.nulls has a column of that name already', 'a column comes back');
like($error, qr/HINT:  Rename or drop the column of public\.nulls\. Or, to have its values replaced by the source's: ALTER FOREIGN TABLE public\.nulls_source ADD COLUMN c text; SELECT tablesync_resume\('public\.nulls'\);/, 'two ways out');
app_sql($target, q{ALTER FOREIGN TABLE nulls_source ADD COLUMN c text; SELECT tablesync_resume('nulls')});
is(run_counts($target, 'nulls'), 'succeeded|0|100|0', 'values replaced');
same_columns('nulls', 'id, a, b, c, updated_at', 'as the source has it');
is(logged('nulls'), 'added c accepted', 'accepted');

app_sql($target, q{SELECT tablesync_alter('nulls', drop_columns => true)});
at_source(q{ALTER TABLE nulls DROP b, DROP c});
is(run_counts($target, 'nulls'), 'succeeded|0|0|0', 'columns dropped');
is(logged('nulls'), 'dropped b dropped, dropped c kept', 'dropped with drop_columns, unless a view shows it');
is(columns_of('nulls'), 'a integer, c text, id integer!, updated_at timestamp without time zone!', 'columns');
like(app_sql($target, q{SELECT detail FROM tablesync_schema_log WHERE action = 'kept' ORDER BY at DESC LIMIT 1}), qr/column c text was dropped; cannot drop column c of table (public\.)?nulls because other objects depend on it/, 'why');

at_source(q{ALTER TABLE nulls DROP a; ALTER TABLE nulls ADD a integer; UPDATE nulls SET a = -id});
is(run_counts($target, 'nulls'), 'succeeded|0|101|0', 'dropped and added again: another column');
is(logged('nulls'), 'replaced a accepted', 'logged');
same_columns('nulls', 'id, a, updated_at', 'its values are the new ones');

# --- apply: what only the owner can do ---

replicate('things', 'id integer PRIMARY KEY, price numeric, name varchar(20), qty integer, updated_at timestamp NOT NULL',
	q{SELECT i, i / 4.0, 'n' || i, i, '2021-01-01' FROM generate_series(1, 100) i}, "version_column => 'updated_at', fingerprint => 'version'");
app_sql($target, 'CREATE VIEW priced AS SELECT id, price FROM things');
at_source('ALTER TABLE things RENAME price TO cost');
app_sql($target, q{SELECT tablesync_alter('things', on_schema_change => 'pause')});
$error = pauses('things', 'column price was renamed to cost', 'a rename');
like($error, qr/HINT:  ALTER TABLE public\.things RENAME COLUMN price TO cost; ALTER FOREIGN TABLE public\.things_source RENAME COLUMN price TO cost; SELECT tablesync_resume\('public\.things'\);/, 'the statements');
follow_hint($error);
is(run_counts($target, 'things'), 'succeeded|0|0|0', 'renamed by hand: goes on without touching a row');
is(logged('things'), 'renamed cost accepted', 'accepted');
is_replica($source, $target, 'things', 'things', 'renamed');
is($target->safe_psql('postgres', 'SELECT sum(price)::numeric(10,2) FROM priced'), '1262.50', 'views follow');

at_source('ALTER TABLE things RENAME cost TO "Cost ""%"""');
$error = pauses('things', 'column cost was renamed to "Cost ""%"""', 'a rename that is kept out');
app_sql($target, q{ALTER FOREIGN TABLE things_source ALTER COLUMN cost OPTIONS (ADD column_name 'Cost "%"'); SELECT tablesync_resume('things')});
is(run_counts($target, 'things'), 'succeeded|0|0|0', 'the column keeps its name here');
is(logged('things'), 'renamed cost accepted', 'accepted');
at_source('ALTER TABLE things RENAME "Cost ""%""" TO price');
$error = pauses('things', 'column "Cost ""%""" was renamed to price', 'renamed once more');
follow_hint($error);
is(run_counts($target, 'things'), 'succeeded|0|0|0', 'the hint respects the name here');
logged('things');
same_columns('things', 'id, name, qty, updated_at', 'exact');

at_source('ALTER TABLE things RENAME id TO thing_id; ALTER TABLE things RENAME updated_at TO changed_at');
$error = pauses('things', 'column id was renamed to thing_id; column updated_at was renamed to changed_at', 'key and version renamed');
follow_hint($error);
at_source(q{UPDATE things SET name = 'new', changed_at = now() WHERE thing_id = 7; DELETE FROM things WHERE thing_id = 8});
is(run_counts($target, 'things'), 'succeeded|0|1|1', 'goes on with the new names');
is(app_sql($target, "SELECT key_columns, version_column FROM tablesync.replica WHERE replica = 'things'::regclass"), '{thing_id}|changed_at', 'settings follow');
at_source('ALTER TABLE things RENAME thing_id TO id; ALTER TABLE things RENAME changed_at TO updated_at');
app_sql($target, q{ALTER TABLE things RENAME thing_id TO id; ALTER TABLE things RENAME changed_at TO updated_at;
	ALTER FOREIGN TABLE things_source RENAME thing_id TO id; ALTER FOREIGN TABLE things_source RENAME changed_at TO updated_at});
is(run_counts($target, 'things'), 'succeeded|0|0|0', 'renamed on both sides before anybody noticed');
logged('things');
# names that change places
at_source('ALTER TABLE things RENAME name TO x; ALTER TABLE things ALTER qty TYPE varchar(20); ALTER TABLE things RENAME qty TO name; ALTER TABLE things RENAME x TO qty');
$error = pauses('things', 'column qty changed its type from integer to character varying\(20\); column name was renamed to qty; column qty was renamed to name', 'names that change places');
at_source('ALTER TABLE things RENAME name TO x; ALTER TABLE things RENAME qty TO name; ALTER TABLE things RENAME x TO qty; ALTER TABLE things ALTER qty TYPE integer USING qty::integer');
app_sql($target, "SELECT tablesync_resume('things')");
is(run_counts($target, 'things'), 'succeeded|0|0|0', 'undone at the source');
logged('things');

app_sql($target, q{SELECT tablesync_alter('things', on_schema_change => 'apply')});
at_source('ALTER TABLE things ALTER name TYPE varchar(10), ALTER qty TYPE text');
$error = pauses('things', 'column name changed its type from character varying\(20\) to character varying\(10\); column qty changed its type from integer to text', 'narrowed and retyped');
like($error, qr/HINT:  ALTER TABLE public\.things ALTER COLUMN name TYPE character varying\(10\) USING name::character varying\(10\); ALTER FOREIGN TABLE public\.things_source ALTER COLUMN name TYPE character varying\(10\); ALTER TABLE public\.things ALTER COLUMN qty TYPE text USING qty::text;/, 'the statements');
follow_hint($error);
at_source(q{UPDATE things SET qty = 'many' WHERE id = 1});
is(run_counts($target, 'things'), 'succeeded|0|1|0', 'done by hand: compared in every column');
is(logged('things'), 'retyped name accepted, retyped qty accepted', 'accepted');
same_columns('things', 'id, name, qty, updated_at', 'exact');

at_source('ALTER TABLE things DROP updated_at');
$error = pauses('things', 'version column updated_at was dropped', 'no version any more');
like($error, qr/HINT:  SELECT tablesync_alter\('public\.things', fingerprint => 'row'\); or name another version_column\. Then: SELECT tablesync_resume\('public\.things'\);/, 'what to do');
app_sql($target, "SELECT tablesync_alter('things', fingerprint => 'row'); SELECT tablesync_resume('things')");
at_source(q{UPDATE things SET qty = 'few' WHERE id = 2});
is(run_counts($target, 'things'), 'succeeded|0|1|0', 'goes on by row');
is(app_sql($target, "SELECT version_column IS NULL FROM tablesync.replica WHERE replica = 'things'::regclass"), 't', 'without a version column');
logged('things');

at_source('ALTER TABLE things DROP CONSTRAINT things_pkey, ADD PRIMARY KEY (id, name)');
$error = pauses('things', 'the primary key is now \(id, name\)', 'another key');
like($error, qr/HINT:  Give public\.things the new key, then remove the replica with tablesync_remove\('public\.things'\) and add it again\. Its rows are kept; the first run compares every column\.\n/, 'what to do');
at_source('ALTER TABLE things DROP CONSTRAINT things_pkey, ALTER name DROP NOT NULL, ADD PRIMARY KEY (id)');
app_sql($target, "SELECT tablesync_resume('things')");
is(run_counts($target, 'things'), 'succeeded|0|0|0', 'undone at the source');
at_source('ALTER TABLE things DROP id; ALTER TABLE things ADD id serial PRIMARY KEY');
pauses('things', 'key column id was dropped and added again', 'another key column under the same name');

# a table that was created anew, with other column numbers
replicate('anew', 'junk integer, id integer PRIMARY KEY, a text, b text, updated_at timestamp NOT NULL', q{SELECT i, i, 'a', 'b' || i, '2021-01-01' FROM generate_series(1, 50) i}, "version_column => 'updated_at'");
at_source('ALTER TABLE anew DROP junk');
is(run_counts($target, 'anew'), 'succeeded|0|0|0', 'a column dropped');
logged('anew');
at_source('CREATE TABLE copied AS SELECT * FROM anew; DROP TABLE anew; ALTER TABLE copied RENAME TO anew; ALTER TABLE anew ADD PRIMARY KEY (id), ALTER updated_at SET NOT NULL');
is(run_counts($target, 'anew'), 'succeeded|0|0|0', 'created anew with the same columns');
is(logged('anew'), '', 'no change of shape');
at_source('CREATE TABLE copied AS SELECT id, a, b AS c, updated_at FROM anew; DROP TABLE anew; ALTER TABLE copied RENAME TO anew; ALTER TABLE anew ADD PRIMARY KEY (id), ALTER updated_at SET NOT NULL');
$error = pauses('anew', 'the table was created anew with column c instead of b, which may be the same', 'perhaps a rename');
app_sql($target, q{ALTER TABLE anew RENAME COLUMN b TO c; ALTER FOREIGN TABLE anew_source RENAME COLUMN b TO c; SELECT tablesync_resume('anew')});
is(run_counts($target, 'anew'), 'succeeded|0|0|0', 'renamed by hand');
same_columns('anew', 'id, a, c, updated_at', 'exact');

# --- pause: everything waits for the owner ---

replicate('careful', 'id integer PRIMARY KEY, a varchar(5), b integer NOT NULL, c integer, updated_at timestamp NOT NULL',
	q{SELECT i, 'a', i, i, '2021-01-01' FROM generate_series(1, 100) i}, "version_column => 'updated_at', on_schema_change => 'pause'");
at_source('ALTER TABLE careful ALTER c SET NOT NULL');
is(run_counts($target, 'careful'), 'succeeded|0|0|0', 'where nothing is to do there is nothing to wait for');
is(logged('careful'), 'not_null c recorded', 'recorded');
at_source('ALTER TABLE careful ADD d integer DEFAULT 4, ALTER a TYPE text, ALTER b DROP NOT NULL, DROP c');
$error = pauses('careful', 'column a changed its type from character varying\(5\) to text; column b is no longer NOT NULL; column c integer was dropped; column d integer was added', 'policy pause');
follow_hint($error);
at_source('UPDATE careful SET b = NULL WHERE id = 9');
is(run_counts($target, 'careful'), 'succeeded|0|100|0', 'goes on when they are done by hand');
is(logged('careful'), 'retyped a accepted, nullable b accepted, dropped c kept, added d accepted', 'accepted');
same_columns('careful', 'id, a, b, d, updated_at', 'exact');
at_source('ALTER TABLE careful ADD e integer DEFAULT 5');
pauses('careful', 'column e integer was added', 'policy pause');
app_sql($target, "SELECT tablesync_alter('careful', on_schema_change => 'apply'); SELECT tablesync_resume('careful')");
is(run_counts($target, 'careful'), 'succeeded|0|100|0', 'or by policy apply');
same_columns('careful', 'id, a, b, d, e, updated_at', 'exact');

# --- ignore: the known columns go on ---

replicate('rough', 'id integer PRIMARY KEY, a varchar(5), b integer NOT NULL, c integer, updated_at timestamp NOT NULL',
	q{SELECT i, 'a', i, i, '2021-01-01' FROM generate_series(1, 100) i}, "version_column => 'updated_at', on_schema_change => 'ignore'");
at_source(q{ALTER TABLE rough ADD d xml, DROP b, ALTER c TYPE bigint, ALTER a TYPE varchar(7);
	INSERT INTO rough (id, a, c, updated_at) VALUES (101, 'seven', 1, now())});
is(run_counts($target, 'rough'), 'succeeded|1|0|0', 'policy ignore');
is(logged('rough'), 'retyped a ignored, retyped c ignored, dropped b ignored', 'logged');
is(columns_of('rough'), 'a character varying(5), b integer, c integer, id integer!, updated_at timestamp without time zone!', 'only NOT NULL of what is missing goes');
same_columns('rough', 'id, a, c, updated_at', 'exact');
is(run_counts($target, 'rough'), 'succeeded|0|0|0', 'goes on');
is(logged('rough'), '', 'and logs nothing new');
at_source(q{UPDATE rough SET c = 5000000000, updated_at = now() WHERE id = 1});
like(app_fails($target, "SELECT tablesync_run('rough')"), qr/ERROR:  22003: value "5000000000" is out of range for type integer/, 'a value that does not fit');
at_source(q{UPDATE rough SET c = 5, updated_at = now() WHERE id = 1});
is(run_counts($target, 'rough'), 'succeeded|0|1|0', 'one that does');
is(app_sql($target, "SELECT count(*) FROM tablesync_verify('rough')"), 0, 'verify compares the values of a column whose hash is another one there');
at_source(q{UPDATE rough SET c = 6 WHERE id = 2});
app_sql($target, 'UPDATE rough SET c = 7 WHERE id = 3');
is(app_sql($target, "SELECT string_agg(key->>'id' || ' ' || difference, ', ' ORDER BY key->>'id') FROM tablesync_verify('rough', repair => true)"), '2 newer at source, 3 different', 'and finds what differs');
is(app_sql($target, "SELECT count(*) FROM tablesync_verify('rough')"), 0, 'and repairs it');
app_sql($target, q{SELECT tablesync_alter('rough', on_schema_change => 'apply')});
at_source('ALTER TABLE rough DROP d');
is(run_counts($target, 'rough'), 'succeeded|0|0|0', 'policy apply makes up for what was ignored');
is(columns_of('rough'), 'a character varying(7), b integer, c bigint, id integer!, updated_at timestamp without time zone!', 'types');
is(logged('rough'), 'retyped a applied, retyped c applied', 'logged');
app_sql($target, q{SELECT tablesync_alter('rough', on_schema_change => 'ignore')});
at_source('ALTER TABLE rough RENAME a TO z');
is(run_counts($target, 'rough'), 'succeeded|0|0|0', 'renamed: the column keeps its name here');
is(logged('rough'), 'renamed a applied', 'logged');
at_source(q{ALTER TABLE rough ALTER updated_at TYPE timestamptz});
pauses('rough', 'column updated_at changed its type from timestamp without time zone to timestamp with time zone', 'so does a version column of another type');

# --- partitioned replicas, columns of the user's own, shared foreign tables ---

at_source(q{CREATE TABLE parts (id integer, note varchar(10), k integer NOT NULL, updated_at timestamp NOT NULL, PRIMARY KEY (id, k));
	INSERT INTO parts SELECT i, 'n', i % 10, '2021-01-01' FROM generate_series(1, 200) i});
app_sql($target, q{
	CREATE TABLE parts (updated_at timestamp NOT NULL, k integer NOT NULL, id integer NOT NULL, note varchar(10), PRIMARY KEY (k, id)) PARTITION BY RANGE (k);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (5);
	CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (5) TO (100);
	SELECT tablesync_add('parts', 'src', 'public.parts', version_column => 'updated_at');
	SELECT tablesync_add('parts_copy', 'parts_source', version_column => 'updated_at');
	ALTER TABLE parts ADD mine integer DEFAULT 42, ADD twice integer GENERATED ALWAYS AS (id * 2) STORED});
is(run_counts($target, 'parts'), 'succeeded|200|0|0', 'partitioned: loaded');
is(run_counts($target, 'parts_copy'), 'succeeded|200|0|0', 'another replica of the same foreign table');
at_source(q{ALTER TABLE parts ADD extra text DEFAULT 'e', ALTER k TYPE bigint, DROP note; ALTER TABLE parts ADD note text});
$error = app_fails($target, "SELECT tablesync_run('parts')");
like($error, qr/DETAIL:  .*cannot alter column "k" because it is part of the partition key of relation "parts"/, 'a partition key');
is(columns_of('parts_source'), 'id integer!, k integer!, note character varying(10), updated_at timestamp without time zone!', 'nothing is half done');
at_source('ALTER TABLE parts ALTER k TYPE integer');
app_sql($target, "SELECT tablesync_resume('parts')");
is(run_counts($target, 'parts'), 'succeeded|0|200|0', 'partitioned');
same_columns('parts', 'id, k, note, extra, updated_at', 'exact');
is($target->safe_psql('postgres', 'SELECT count(*) FROM parts WHERE mine = 42 AND twice = id * 2'), 200, 'columns of the user\'s own stay');
is(run_counts($target, 'parts_copy'), 'succeeded|0|200|0', 'the other replica follows too');
is($target->safe_psql('postgres', 'SELECT count(*) FROM (SELECT id, k, note, extra, updated_at FROM parts_copy EXCEPT SELECT id, k, note, extra, updated_at FROM parts) d'), 0, 'exact');
at_source('ALTER TABLE parts ADD mine integer');
$error = app_fails($target, "SELECT tablesync_run('parts')");
like($error, qr/column mine integer was added, and public\.parts has a column of that name already/, 'a column of the user\'s own is not overwritten');
app_sql($target, "ALTER TABLE parts RENAME mine TO my_own; SELECT tablesync_resume('parts')");
is(run_counts($target, 'parts'), 'succeeded|0|0|0', 'renamed');
is($target->safe_psql('postgres', 'SELECT count(*) FROM parts WHERE my_own = 42 AND mine IS NULL'), 200, 'both are there');

# a foreign table that belongs to somebody else
at_source(q{CREATE TABLE lent (id integer PRIMARY KEY, note varchar(5)); INSERT INTO lent SELECT i, 'n' FROM generate_series(1, 10) i});
$target->safe_psql('postgres', q{CREATE FOREIGN TABLE lent_source (id integer NOT NULL, note varchar(5)) SERVER src OPTIONS (table_name 'lent', fetch_size '3000');
	GRANT SELECT ON lent_source TO app});
app_sql($target, q{SELECT tablesync_add('lent', 'lent_source')});
is(run_counts($target, 'lent'), 'succeeded|10|0|0', 'a foreign table of another role');
at_source(q{ALTER TABLE lent ADD more integer DEFAULT 1, ALTER note TYPE text});
$error = pauses('lent', 'column note changed its type from character varying\(5\) to text: must be owner of foreign table lent_source; column more integer was added: must be owner of foreign table lent_source', 'a foreign table that the owner may not alter');
$error =~ /^HINT:  (.*?;)$/m;
$target->safe_psql('postgres', $1);
is(run_counts($target, 'lent'), 'succeeded|0|10|0', 'altered by somebody who may');
is_replica($source, $target, 'lent', 'lent', 'exact');

# --- locks: nobody waits at the source ---

my $reader = session($target);
$reader->query_safe('BEGIN; SELECT count(*) FROM wide');
at_source('ALTER TABLE wide ADD late integer DEFAULT 1');
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('wide', wait => false)");
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event_type = 'Lock'});
is($source->safe_psql('postgres', q{SELECT state, backend_xmin IS NULL, xact_start IS NULL FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%'}),
	'idle|t|t', 'no transaction is open at the source while we wait for a lock');
$reader->query_safe('COMMIT');
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'goes on when the lock is gone');
is_replica($source, $target, 'wide', 'wide', 'exact');
$reader->query_safe('BEGIN; SELECT count(*) FROM wide');
at_source('ALTER TABLE wide DROP late');
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.lock_timeout = '50ms'});
like(app_fails($target, "SELECT tablesync_run('wide')"), qr/ERROR:  55P03: could not lock replica public\.wide to follow a change of its source/, 'a lock held for too long');
$target->safe_psql('postgres', 'ALTER ROLE app RESET tablesync.lock_timeout');
$reader->query_safe('COMMIT');
$reader->quit;
is(app_sql($target, "SELECT enabled FROM tablesync.replica WHERE replica = 'wide'::regclass"), 't', 'is no reason to pause');
is(run_counts($target, 'wide'), 'succeeded|0|0|0', 'the next run follows');

# --- while a run goes on ---

# Runs slowly; something happens at the source between two chunks.
sub between_chunks
{
	my ($replica, $sql) = @_;
	app_sql($target, "SELECT tablesync_alter('$replica', max_source_load => 0.01)");
	my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('$replica', wait => false)");
	wait_until($target, "SELECT phase IN ('scan', 'load') AND chunks_done >= 2 FROM tablesync_progress WHERE run_id = $run_id");
	at_source($sql);
	app_sql($target, "SELECT tablesync_alter('$replica', max_source_load => 1)");
	my $status = app_sql($target, "SELECT tablesync_wait($run_id)");
	return $status . ' ' . app_sql($target, "SELECT message FROM tablesync_runs WHERE run_id = $run_id");
}

replicate('chunky', 'id integer PRIMARY KEY, a integer, b text, c integer NOT NULL, updated_at timestamp NOT NULL',
	q{SELECT i, i, 'b' || i, i, '2021-01-01' FROM generate_series(1, 1000) i}, "consistency => 'chunk', fingerprint => 'row', chunk_rows => 50");
is(between_chunks('chunky', q{ALTER TABLE chunky ADD d integer DEFAULT 4; UPDATE chunky SET a = -1 WHERE id IN (1, 1000)}), 'succeeded ', 'added between two chunks');
is_replica($source, $target, 'chunky', 'chunky', 'added between two chunks');
is(between_chunks('chunky', q{ALTER TABLE chunky DROP d, ALTER c TYPE bigint USING c * 2}), 'succeeded ', 'dropped and widened between two chunks');
same_columns('chunky', 'id, a, b, c, updated_at', 'dropped between two chunks');
is(between_chunks('chunky', q{ALTER TABLE chunky ALTER c DROP NOT NULL; UPDATE chunky SET c = NULL WHERE id % 2 = 0}), 'succeeded ', 'NULLs come between two chunks');
same_columns('chunky', 'id, a, b, c, updated_at', 'NULLs come between two chunks');
is(between_chunks('chunky', q{BEGIN; ALTER TABLE chunky RENAME a TO x; ALTER TABLE chunky RENAME c TO a; ALTER TABLE chunky RENAME x TO c; COMMIT}), 'succeeded ', 'names change places between two chunks');
same_columns('chunky', 'id, a, b, c, updated_at', 'names change places between two chunks');
is(columns_of('chunky') =~ s/.*?(a \w+).*?(c \w+).*/$1, $2/r, 'a bigint, c integer', 'the columns change places with their types');
at_source('BEGIN; ALTER TABLE chunky RENAME a TO x; ALTER TABLE chunky RENAME c TO a; ALTER TABLE chunky RENAME x TO c; COMMIT');
app_sql($target, q{SELECT tablesync_alter('chunky', version_column => 'updated_at')});
is(between_chunks('chunky', q{ALTER TABLE chunky DROP a; ALTER TABLE chunky ADD a integer DEFAULT 3; ALTER TABLE chunky ADD e xml DEFAULT '<e/>'; UPDATE chunky SET b = 'new', updated_at = now() WHERE id = 500}), 'succeeded ', 'replaced between two chunks');
same_columns('chunky', 'id, a, b, c, e, updated_at', 'replaced between two chunks');

# a load that is under way
at_source(q{CREATE TABLE loading (id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL); INSERT INTO loading SELECT i, 'n', '2021-01-01' FROM generate_series(1, 2000) i});
app_sql($target, q{SELECT tablesync_add('loading', 'src', 'public.loading', chunk_rows => 50, version_column => 'updated_at', fingerprint => 'version')});
is(between_chunks('loading', q{ALTER TABLE loading ADD d integer DEFAULT 4; ALTER TABLE loading DROP note}), 'succeeded ', 'changed between two pages of a load');
same_columns('loading', 'id, d, updated_at', 'changed between two pages of a load');

app_sql($target, q{SELECT tablesync_remove('loading', drop_replica => true); SELECT tablesync_add('loading', 'src', 'public.loading', chunk_rows => 50, version_column => 'updated_at', fingerprint => 'version', max_source_load => 0.01)});
$run_id = app_sql($target, "SELECT run_id FROM tablesync_run('loading', wait => false)");
wait_until($target, "SELECT load_position[1]::integer BETWEEN 100 AND 1900 FROM tablesync.replica WHERE replica = 'loading'::regclass");
app_sql($target, "SELECT tablesync_cancel('loading'); SELECT tablesync_wait($run_id); SELECT tablesync_alter('loading', max_source_load => 1)");
at_source(q{ALTER TABLE loading ADD e text DEFAULT 'e'; ALTER TABLE loading ADD f xml DEFAULT '<f/>'});
like(run_counts($target, 'loading'), qr/^succeeded/, 'a load goes on with new columns');
is_replica($source, $target, 'loading', 'loading', 'which the rows loaded before have too');

# --- who may see the log ---

is($target->safe_psql('postgres', q{SET ROLE looker; SELECT (SELECT count(*) FROM tablesync_schema_log), (SELECT count(*) FROM tablesync.schema_log)}), '0|0', 'others see nothing');
$target->safe_psql('postgres', 'GRANT pg_monitor TO looker');
is($target->safe_psql('postgres', q{SET ROLE looker; SELECT count(*) > 0, count(detail) FROM tablesync_schema_log}), 't|0', 'pg_monitor sees what happened, without details');

done_testing();
