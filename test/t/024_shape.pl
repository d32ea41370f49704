# What owners of a source do with its columns, keys and types: each ends well,
# and each hint is typed as it is.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();
$target->safe_psql('postgres', 'GRANT CREATE ON DATABASE postgres TO app');

sub at_source
{
	my ($sql) = @_;
	$source->safe_psql('postgres', $sql);
	return;
}

# A table at the source with 100 rows, and its replica.
sub replicate
{
	my ($name, $columns, $values, $settings) = @_;
	at_source("CREATE TABLE $name (id integer PRIMARY KEY, $columns, updated_at timestamptz NOT NULL DEFAULT '2021-01-01'); INSERT INTO $name SELECT i, $values FROM generate_series(1, 100) i");
	app_sql($target, "SELECT tablesync_add('$name', 'src', 'public.$name', version_column => 'updated_at' $settings); SELECT * FROM tablesync_run('$name')");
	return;
}

# Rows of both sides, by the columns of the source.
sub is_same
{
	my ($name, $what) = @_;
	my $columns = $source->safe_psql('postgres', "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '$name'::regclass AND attnum > 0 AND NOT attisdropped");
	my $query = "SELECT $columns FROM $name ORDER BY 1";
	is($target->safe_psql('postgres', $query), $source->safe_psql('postgres', $query), "$what: every value is right");
	return;
}

# Run; where it pauses, type what the hint says and run again.
sub ends_well
{
	my ($name, $what) = @_;
	for my $attempt (1 .. 3)
	{
		my ($rc, $out, $err) = $target->psql('postgres', "SELECT status FROM tablesync_run('$name')", extra_params => [ '-U', 'app' ]);
		if ($rc == 0)
		{
			is($out, 'succeeded', "$what: succeeds");
			is_same($name, $what);
			return;
		}
		my ($hint) = $err =~ /HINT:  (.*)/ or last;
		my ($hrc, $hout, $herr) = $target->psql('postgres', $hint, extra_params => [ '-U', 'app' ]);
		is($hrc, 0, "$what: the hint can be typed") or do { diag("$hint\n$herr"); last };
	}
	fail("$what: ends well");
	return;
}

# --- names ---

for my $policy ('apply', 'pause', 'ignore')
{
	my $settings = ", on_schema_change => '$policy'";
	replicate("price_$policy", 'price integer', 'i', $settings);
	at_source("ALTER TABLE price_$policy ADD price_new integer; UPDATE price_$policy SET price_new = price * 100, updated_at = now()");
	if ($policy ne 'ignore')
	{
		ends_well("price_$policy", "$policy: a column added");
		at_source("ALTER TABLE price_$policy DROP price; ALTER TABLE price_$policy RENAME price_new TO price");
		ends_well("price_$policy", "$policy: which takes the place of another");
		is($target->safe_psql('postgres', "SELECT sum(price) FROM price_$policy"), 505000, 'the values of the right one');
	}
	next if $policy eq 'ignore';

	replicate("swapped_$policy", 'a integer, b integer, c text', "i, -i, 'c'", $settings);
	at_source("ALTER TABLE swapped_$policy RENAME a TO x; ALTER TABLE swapped_$policy RENAME b TO a; ALTER TABLE swapped_$policy RENAME x TO b");
	ends_well("swapped_$policy", "$policy: names swapped");
	at_source("ALTER TABLE swapped_$policy RENAME c TO d; ALTER TABLE swapped_$policy RENAME b TO c; ALTER TABLE swapped_$policy RENAME a TO b");
	ends_well("swapped_$policy", "$policy: names shifted");
	at_source("ALTER TABLE swapped_$policy RENAME d TO e; ALTER TABLE swapped_$policy ADD d text DEFAULT 'new'");
	ends_well("swapped_$policy", "$policy: an old name taken by a new column");
	at_source("ALTER TABLE swapped_$policy RENAME d TO x; ALTER TABLE swapped_$policy RENAME e TO d; ALTER TABLE swapped_$policy RENAME b TO e; ALTER TABLE swapped_$policy RENAME x TO b; ALTER TABLE swapped_$policy ALTER c TYPE bigint; ALTER TABLE swapped_$policy ADD f date");
	ends_well("swapped_$policy", "$policy: all at once");
	is(app_sql($target, "SELECT count(*) FROM swapped_$policy"), 100, 'no row was lost');
}
# dropped with the right to drop
replicate('price_dropped', 'price integer', 'i', ', drop_columns => true');
at_source('ALTER TABLE price_dropped ADD price_new integer; UPDATE price_dropped SET price_new = price * 100, updated_at = now()');
ends_well('price_dropped', 'drop_columns');
at_source('ALTER TABLE price_dropped DROP price; ALTER TABLE price_dropped RENAME price_new TO price');
ends_well('price_dropped', 'drop_columns: another takes the place');
is(app_sql($target, q{SELECT string_agg(attname, ' ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'price_dropped'::regclass AND attnum > 0 AND NOT attisdropped}), 'id price updated_at', 'only the dropped one is gone');
# done by hand before anybody noticed, in an order of one's own
replicate('by_hand', 'a integer, b integer', 'i, -i', ", on_schema_change => 'pause'");
at_source('ALTER TABLE by_hand RENAME a TO x; ALTER TABLE by_hand RENAME b TO a; ALTER TABLE by_hand RENAME x TO b');
app_sql($target, q{
	ALTER FOREIGN TABLE by_hand_source RENAME b TO y; ALTER FOREIGN TABLE by_hand_source RENAME a TO b; ALTER FOREIGN TABLE by_hand_source RENAME y TO a;
	ALTER TABLE by_hand RENAME a TO z; ALTER TABLE by_hand RENAME b TO a; ALTER TABLE by_hand RENAME z TO b});
is(run_counts($target, 'by_hand'), 'succeeded|0|0|0', 'done by hand: accepted');
is_same('by_hand', 'done by hand');

# a name that a column has which is not the source's
replicate('in_the_way', 'a integer', 'i');
app_sql($target, 'ALTER TABLE in_the_way ADD b integer');
at_source('ALTER TABLE in_the_way RENAME a TO b');
for my $attempt (1 .. 2)
{
	my ($rc, $out, $err) = $target->psql('postgres', "SET statement_timeout = '30s'; SELECT status FROM tablesync_run('in_the_way')", extra_params => [ '-U', 'app' ]);
	like($err, qr/column b of public\.in_the_way is in the way of one that the source has renamed/, "a name that another column has: an error, $attempt");
}
ends_well('in_the_way', 'a name that another column has');
is(app_sql($target, q{SELECT string_agg(attname, ' ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'in_the_way'::regclass AND attnum > 0 AND NOT attisdropped}), 'b b_own id updated_at', 'which is kept');
# two columns for one name, before a circle: an error, too, and no waiting for ever
app_sql($target, 'CREATE TABLE two_for_one (x integer, a integer, b integer)');
my ($two_rc, $two_out, $two_err) = $target->psql('postgres', q{SET statement_timeout = '20s';
	SELECT tablesync.rename_columns('two_for_one', '[{"from": "x", "to": "a"}, {"from": "a", "to": "b"}, {"from": "b", "to": "a"}]')});
like($two_err, qr/column a of public\.two_for_one is in the way/, 'two columns for one name');
app_sql($target, 'ALTER FOREIGN TABLE in_the_way_source ADD c integer');
at_source('ALTER TABLE in_the_way RENAME b TO c');
ends_well('in_the_way', 'one of the foreign table');

# --- labels ---

for my $node ($source, $target)
{
	$node->safe_psql('postgres', q{CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')});
}
$target->safe_psql('postgres', 'ALTER TYPE mood OWNER TO app');
replicate('moods', 'm mood, n integer', q{(ARRAY['sad', 'ok', 'happy'])[i % 3 + 1]::mood, i}, '');
at_source(q{ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'});
ends_well('moods', 'a label renamed');
at_source(q{ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'happy' TO 'sad'; ALTER TYPE mood RENAME VALUE 'x' TO 'happy'});
ends_well('moods', 'labels swapped');
at_source(q{ALTER TYPE mood ADD VALUE 'glad' AFTER 'fine'; ALTER TYPE mood ADD VALUE 'bored' BEFORE 'happy'; ALTER TYPE mood ADD VALUE 'last'});
is(run_counts($target, 'moods'), 'succeeded|0|0|0', 'labels added: the run adds them here');
at_source(q{UPDATE moods SET m = 'last', updated_at = now() WHERE id = 1; UPDATE moods SET m = 'bored', updated_at = now() WHERE id = 2});
ends_well('moods', 'labels added');
is(app_sql($target, q{SELECT string_agg(change || ' ' || action, ', ' ORDER BY at) FROM tablesync_schema_log WHERE replica = 'moods'::regclass}), 'labels paused, labels paused, labels applied', 'logged');

# as far as names tell, "fine" was added before another one
for my $fingerprint (qw(version xmin))
{
	$source->safe_psql('postgres', "DROP TYPE IF EXISTS weather CASCADE; CREATE TYPE weather AS ENUM ('wet', 'dry')");
	$target->safe_psql('postgres', "DROP TYPE IF EXISTS weather CASCADE; CREATE TYPE weather AS ENUM ('wet', 'dry'); ALTER TYPE weather OWNER TO app");
	replicate("weather_$fingerprint", 'w weather', q{(ARRAY['wet', 'dry'])[i % 2 + 1]::weather}, ", fingerprint => '$fingerprint'");
	at_source(q{ALTER TYPE weather RENAME VALUE 'dry' TO 'fine'; ALTER TYPE weather ADD VALUE 'dry'});
	app_sql($target, "SELECT tablesync_run('weather_$fingerprint')");
	is_replica($source, $target, "weather_$fingerprint", "weather_$fingerprint", "by $fingerprint: a label renamed, and another one gets its name");
}

# a label renamed, and another one gets its name: what is to be typed can't tell
for my $fingerprint (qw(version xmin))
{
	$source->safe_psql('postgres', "DROP TYPE IF EXISTS weather CASCADE; CREATE TYPE weather AS ENUM ('wet', 'dry')");
	$target->safe_psql('postgres', "DROP TYPE IF EXISTS weather CASCADE; CREATE TYPE weather AS ENUM ('wet', 'dry')");
	replicate("typed_$fingerprint", 'w weather', q{(ARRAY['wet', 'dry'])[i % 2 + 1]::weather}, ", fingerprint => '$fingerprint'");
	at_source(q{ALTER TYPE weather RENAME VALUE 'dry' TO 'fine'; ALTER TYPE weather ADD VALUE 'dry'});
	my ($hint) = app_fails($target, "SELECT tablesync_run('typed_$fingerprint')") =~ /HINT:  (.*)/;
	$target->safe_psql('postgres', $_) for split /(?<=;) /, $hint;
	app_sql($target, "SELECT tablesync_run('typed_$fingerprint')");
	is_replica($source, $target, "typed_$fingerprint", "typed_$fingerprint", "by $fingerprint: likewise, typed by hand");
}

# --- what makes a source one that add would refuse ---

sub refuses
{
	my ($name, $what, $pattern, $undo) = @_;
	my $error = app_fails($target, "SELECT tablesync_run('$name')");
	like($error, qr/ERROR:  TS003.*$pattern/s, "$what: the run says so");
	like(app_sql($target, "SELECT kind || ' ' || message || hint FROM tablesync_alerts WHERE replica = '$name'::regclass"), qr/^schema_changed ./, "$what: an alert");
	at_source($undo);
	app_sql($target, "SELECT tablesync_resume('$name')");
	ends_well($name, "$what undone");
	is(app_sql($target, "SELECT count(*) FROM tablesync_alerts WHERE replica = '$name'::regclass"), 0, "$what: over");
	return;
}

replicate('family', 'v integer', 'i', '');
at_source('CREATE TABLE child () INHERITS (family); INSERT INTO child VALUES (1000, 1, now())');
refuses('family', 'an inheritance child', 'inheritance children', 'DROP TABLE child');

at_source(q{CREATE TABLE uniq (id integer NOT NULL, v integer, updated_at timestamptz NOT NULL DEFAULT now()); CREATE UNIQUE INDEX uniq_id ON uniq (id) INCLUDE (v); INSERT INTO uniq SELECT i, CASE WHEN i % 3 = 0 THEN NULL ELSE i END FROM generate_series(1, 100) i});
app_sql($target, q{SELECT tablesync_add('uniq', 'src', 'public.uniq', key_columns => '{id}', version_column => 'updated_at')});
ends_well('uniq', 'a unique index that includes another column');
at_source('UPDATE uniq SET v = 7, updated_at = clock_timestamp() WHERE id = 5');
is(run_counts($target, 'uniq'), 'succeeded|0|1|0', 'an update of what is included is an update');
at_source('DROP INDEX uniq_id; INSERT INTO uniq VALUES (1, 2)');
refuses('uniq', 'the unique index dropped', 'unique index', 'DELETE FROM uniq WHERE id = 1 AND v = 2; CREATE UNIQUE INDEX ON uniq (id)');

at_source(q{CREATE TABLE included (id integer, v integer, j jsonb, updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id) INCLUDE (v, j, updated_at)); INSERT INTO included SELECT i, nullif(i, 3), '{}' FROM generate_series(1, 100) i});
app_sql($target, q{SELECT tablesync_add('included', 'src', 'public.included', version_column => 'updated_at')});
ends_well('included', 'a primary key that includes other columns');
is(app_sql($target, q{SELECT key_columns FROM tablesync.replica WHERE replica = 'included'::regclass}), '{id}', 'they are no key columns');
is(app_sql($target, q{SELECT count(*) FROM tablesync_verify('included')}), 0, 'verified');

at_source(q{CREATE COLLATION fuzzy (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE texts (id text PRIMARY KEY, v integer, updated_at timestamptz NOT NULL DEFAULT now()); INSERT INTO texts SELECT 'k' || i, i FROM generate_series(1, 100) i});
app_sql($target, q{SELECT tablesync_add('texts', 'src', 'public.texts', version_column => 'updated_at')});
ends_well('texts', 'a text key');
at_source('ALTER TABLE texts ALTER id TYPE text COLLATE fuzzy');
refuses('texts', 'a collation that is not deterministic', 'not deterministic', 'ALTER TABLE texts ALTER id TYPE text COLLATE "default"');

# --- rights ---

replicate('granted', 'v integer', 'i', '');
at_source('REVOKE SELECT ON granted FROM reader; GRANT SELECT (id, v, updated_at) ON granted TO reader');
like(app_fails($target, q{SELECT tablesync_run('granted')}), qr/ERROR:  42501: permission denied for table granted\nDETAIL:  The source reported this\.\nHINT:  Rows are compared by xmin, which grants on single columns do not include\. /,
	'xmin is no column that could be granted');
is(app_sql($target, q{SELECT string_agg(check_name, ' ') FROM tablesync_check('granted') WHERE NOT ok}), 'privileges', 'the check knows');
app_sql($target, q{SELECT tablesync_alter('granted', fingerprint => 'version')});
is(run_counts($target, 'granted'), 'succeeded|0|0|0', 'version will do');
at_source(q{ALTER TABLE granted ADD secret text DEFAULT 'x'; UPDATE granted SET v = v + 1, updated_at = now() WHERE id < 10});
is(run_counts($target, 'granted'), 'succeeded|0|9|0', 'a new column that may not be read is left out');
is(app_sql($target, q{SELECT count(*) FROM pg_attribute WHERE attrelid = 'granted'::regclass AND attname = 'secret'}), 0, 'nothing was changed here');
is(run_counts($target, 'granted'), 'succeeded|0|0|0', 'and so it goes on');
is(app_sql($target, q{SELECT count(*), min("column"), min(action) FROM tablesync_schema_log WHERE replica = 'granted'::regclass}), '1|secret|ignored', 'with a note');
at_source('GRANT SELECT (secret) ON granted TO reader');
ends_well('granted', 'readable now');

at_source(q{CREATE TABLE wide_grants (id integer PRIMARY KEY, v text, updated_at timestamptz NOT NULL DEFAULT now()); INSERT INTO wide_grants SELECT i, 'v' FROM generate_series(1, 600000) i; ANALYZE wide_grants; REVOKE ALL ON wide_grants FROM reader; GRANT SELECT (id, v, updated_at) ON wide_grants TO reader});
app_sql($target, q{SELECT tablesync_add('wide_grants', 'src', 'public.wide_grants', version_column => 'updated_at')});
is(app_sql($target, q{SELECT fingerprint FROM tablesync.replica WHERE replica = 'wide_grants'::regclass}), 'version', 'grants on each column instead of the table');
is(run_counts($target, 'wide_grants'), 'succeeded|600000|0|0', 'which load');
at_source('UPDATE wide_grants SET updated_at = now() WHERE id % 60000 = 0');
is(run_counts($target, 'wide_grants'), 'succeeded|0|10|0', 'and again');
app_sql($target, q{SELECT tablesync_remove('wide_grants', drop_replica => true)});

at_source('REVOKE SELECT ON pg_stats, pg_stat_activity FROM PUBLIC; REVOKE EXECUTE ON FUNCTION pg_stat_get_activity FROM PUBLIC');
at_source('UPDATE granted SET v = 0, updated_at = now() WHERE id = 20');
ends_well('granted', 'statistics that may not be read');
at_source('GRANT SELECT ON pg_stats, pg_stat_activity TO PUBLIC; GRANT EXECUTE ON FUNCTION pg_stat_get_activity TO PUBLIC');

# --- values ---

replicate('finer', 'a numeric(6,2), b char(3), c varchar(3)', q{i / 4.0, 'x', 'y'}, '');
at_source('ALTER TABLE finer ALTER a TYPE numeric(8,3), ALTER b TYPE char(5), ALTER c TYPE varchar(5)');
ends_well('finer', 'wider types');
ends_well('finer', 'and the run after it');
is(app_sql($target, q{SELECT count(*) FROM tablesync_alert_history WHERE replica = 'finer'::regclass}), 0, 'nobody else is blamed');

for my $case ([ 'numeric(6,2)', 'numeric(8,4)', '1.2345' ], [ 'timestamp(0)', 'timestamp', q{'2021-01-01 10:00:00.123'} ], [ 'real', 'double precision', '0.1234567890123' ], [ 'date', 'timestamp', q{'2021-01-01 10:11'} ])
{
	my ($old, $new, $value) = @$case;
	(my $name = "ignoring_$old") =~ s/\W/_/g;
	replicate($name, "v $old", 'NULL', ", on_schema_change => 'ignore'");
	at_source("ALTER TABLE $name ALTER v TYPE $new; UPDATE $name SET v = $value, updated_at = now() WHERE id < 5");
	ends_well($name, "ignore, and $old becomes $new");
}

# --- another table under the same name ---

replicate('again', 'v integer', 'i', '');
at_source(q{CREATE TABLE other (LIKE again INCLUDING ALL); INSERT INTO other SELECT id, v + 1, updated_at FROM again; DROP TABLE again; ALTER TABLE other RENAME TO again; GRANT SELECT ON again TO reader});
ends_well('again', 'dropped and created again with the same stamps');
at_source(q{CREATE TABLE backup AS SELECT * FROM again; TRUNCATE again; INSERT INTO again SELECT id, v * 2, updated_at FROM backup});
ends_well('again', 'emptied and filled again with the same stamps');
at_source(q{CREATE TABLE parts (id integer, k integer, v integer, updated_at timestamptz NOT NULL DEFAULT '2021-01-01', PRIMARY KEY (id, k)) PARTITION BY LIST (k);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1); CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2);
	INSERT INTO parts SELECT i, i % 2 + 1, i FROM generate_series(1, 100) i});
app_sql($target, q{SELECT tablesync_add('parts', 'src', 'public.parts', version_column => 'updated_at')});
ends_well('parts', 'partitions');
at_source(q{CREATE TABLE p2 AS SELECT id, k, v + 1 AS v, updated_at FROM parts_2; DROP TABLE parts_2; CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2); INSERT INTO parts SELECT * FROM p2});
ends_well('parts', 'a partition dropped and created again');

# --- odds and ends ---

app_sql($target, q{SELECT tablesync_remove('again')});
app_sql($target, q{CREATE TRIGGER tablesync_note_write AFTER INSERT ON again FOR EACH STATEMENT EXECUTE FUNCTION tablesync.note_write()});
app_sql($target, q{SELECT tablesync_add('again', 'src', 'public.again', version_column => 'updated_at')});
ends_well('again', 'a trigger that a dump has brought back');

$target->safe_psql('postgres', q{CREATE DATABASE quoted; ALTER DATABASE quoted SET quote_all_identifiers = on});
my $port = $source->port;
$target->safe_psql('quoted', qq{
	CREATE SCHEMA "Odd ""schema"; CREATE EXTENSION postgres_fdw SCHEMA "Odd ""schema"; CREATE EXTENSION tablesync;
	CREATE SERVER src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
	CREATE USER MAPPING FOR postgres SERVER src OPTIONS (user 'reader', password 'read-only')});
at_source(q{CREATE TABLE large AS SELECT i AS id, 'v'::text AS v FROM generate_series(1, 150000) i; ALTER TABLE large ADD PRIMARY KEY (id); ANALYZE large});
$target->safe_psql('quoted', q{SELECT tablesync_add('large', 'src', 'public.large')});
is($target->safe_psql('quoted', q{SELECT status FROM tablesync_run('large')}), 'succeeded', 'postgres_fdw in a schema that needs quotes');

replicate('counted', 'v integer', 'i', ", trust_counters_for => '1 day'");
run_counts($target, 'counted');
at_source('CREATE ROLE uncounted SUPERUSER LOGIN; ALTER ROLE uncounted SET track_counts = off');
$source->safe_psql('postgres', q{UPDATE counted SET v = -1, updated_at = now() WHERE id = 1}, extra_params => [ '-U', 'uncounted' ]);
ends_well('counted', 'a writer whose changes are not counted');

# --- a table with a dropped column, that has rows, becomes a replica again ---

replicate('kept', 'a text, b text', "'a', 'b'", ", fingerprint => 'version', drop_columns => true");
at_source('ALTER TABLE kept DROP b');
ends_well('kept', 'a column is dropped on both sides');
app_sql($target, q{SELECT tablesync_remove('kept')});
app_sql($target, q{SET enable_nestloop = off;
	SELECT tablesync_add('kept', 'src', 'public.kept', version_column => 'updated_at', fingerprint => 'version')});
ends_well('kept', 'a table with a dropped column is added');

done_testing();
