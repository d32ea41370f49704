# Many tables of a schema, far away: round trips do not multiply with tables; and
# what adding them would do, without doing it.

use strict;
use warnings;

use Time::HiRes;

use TablesyncProxy;
use TablesyncTest;
use Test::More;

my $tables = $ENV{ADD_TABLES} // 40;
my $distance = $ENV{ADD_DISTANCE} // 5;    # ms for a round trip
my $source = start_source();
my $proxy = TablesyncProxy->start($source->port, $distance);
my $target = start_target($source, port => $proxy->port);

sub counted
{
	my ($sql) = @_;
	$proxy->counts;
	my $began = Time::HiRes::time();
	my $result = app_sql($target, $sql);
	my $seconds = Time::HiRes::time() - $began;
	my ($trips) = $proxy->counts;
	note(sprintf "%.2f s, %d round trips: %s", $seconds, $trips, $sql);
	return ($result, $trips, $seconds);
}

$source->safe_psql('postgres', qq{
	CREATE SCHEMA many;
	CREATE TYPE many.mood AS ENUM ('fine', 'bad');
	DO \$\$
	BEGIN
		FOR i IN 1 .. $tables LOOP
			EXECUTE format('CREATE TABLE many.t%s (id %s PRIMARY KEY, name text COLLATE "C", mood many.mood, amount numeric(10,2) NOT NULL, updated_at timestamptz NOT NULL DEFAULT now())',
				i, (ARRAY['integer', 'bigint', 'text', 'uuid'])[1 + i % 4]);
			EXECUTE format('CREATE INDEX ON many.t%s (amount)', i);
		END LOOP;
	END
	\$\$;
	INSERT INTO many.t1 SELECT i, 'n' || i, 'bad', i FROM generate_series(1, 1000) i;
	INSERT INTO many.t4 SELECT i, 'n' || i, 'bad', i FROM generate_series(1, 20000) i;
	ANALYZE many.t1, many.t4});
$target->safe_psql('postgres', q{CREATE SCHEMA many AUTHORIZATION app; CREATE TYPE many.mood AS ENUM ('fine', 'bad')});


# Names of what is in a schema here.
sub relations
{
	my ($schema) = @_;
	return app_sql($target, "SELECT coalesce(string_agg(relname, ' ' ORDER BY relname COLLATE \"C\"), '') FROM pg_class WHERE relnamespace = '$schema'::regnamespace AND relkind IN ('r', 'f')");
}

# --- what it would be ---

my $add = q{SET client_min_messages = error; SELECT %s FROM tablesync_add_schema('src', 'many', 'many'%s)};
my ($result, $trips) = counted(sprintf $add, 'count(*), count(*) FILTER (WHERE added), count(replica), count(*) FILTER (WHERE reason LIKE \'would be added: by xmin, key (id); %\')', ', dry_run => true');
is($result, "$tables|0|0|$tables", 'a dry run');
cmp_ok($trips, '<=', 75, "with $trips round trips");
is(relations('many'), '', 'leaves nothing behind');
is(app_sql($target, 'SELECT count(*) FROM tablesync.replica'), '0', 'no replica either');
like(app_sql($target, sprintf $add, 'reason', q{, dry_run => true, only_tables => '{t4}'}),
	qr/^would be added: by xmin, key \(id\); 1\d+ kB at the source; about 20000 rows; the load transfers about \d+ kB in 0\.08 s; a run takes about 0\.02 s at the source and transfers about \d+ bytes for each row that has changed/,
	'rows, size, seconds of the load and of a run');
like(app_sql($target, sprintf $add, 'reason', q{, dry_run => true, only_tables => '{t3}'}), qr/about 0 rows; .*The source has no statistics of it\. There: ANALYZE many\.t3;/, 'without statistics');

# --- what it is ---

($result, $trips) = counted(sprintf $add, 'count(*), count(*) FILTER (WHERE added), min(reason)', '');
is($result, "$tables|$tables|", 'all are added');
cmp_ok($trips, '<=', 75, "with $trips round trips");
is(app_sql($target, sprintf $add, "count(*), count(*) FILTER (WHERE added), min(reason), max(reason)", ', dry_run => true'),
	"$tables|0|it is a replica already|it is a replica already", 'a dry run says what is there');
is(app_sql($target, q{SELECT string_agg(DISTINCT r.status, ' '), sum(r.rows) FROM generate_series(1, 4) i, tablesync_run(format('many.t%s', i)::regclass) r}), 'succeeded|21000', 'they run');
is(app_sql($target, q{SELECT count(*) FROM many.t2}) . app_sql($target, q{SELECT count(*), sum(amount) FROM many.t4}), '020000|200010000.00', 'and have their rows');

# --- what differs from table to table is noticed all the same ---

my @kinds = (
	[ plain => 'id integer PRIMARY KEY, note text', 't|' ],
	[ columns => 'id integer PRIMARY KEY, note text', 't|' ],
	[ hidden => 'id integer PRIMARY KEY, note text', 'f|permission denied for table hidden' ],
	[ half => 'id integer PRIMARY KEY, note text', 'f|the source does not let us read every column that is wanted: It says: permission denied for table half.' ],
	[ no_key => 'id integer, note text', 'f|the source mixed.no_key has no primary key: Rows can be told apart only by a key.' ],
	[ enums => 'id integer PRIMARY KEY, mood many.mood, moods many.mood[], short mixed.short', 't|' ],
	[ labelled => 'id integer PRIMARY KEY, label mixed.labels', 't|' ],
	[ collated => 'id text COLLATE "POSIX" PRIMARY KEY, "odd ""name""" numeric(8,3)', 't|' ],
	[ '"Odd ""table"""' => 'id integer PRIMARY KEY, name varchar(5)', 't|' ],
	[ zoned => 'id integer PRIMARY KEY, note text', 't|' ]);
my $labels = join ', ', map { "'label $_'" } 1 .. 10_500;    # more than the batch brings
$source->safe_psql('postgres', "CREATE SCHEMA mixed; CREATE DOMAIN mixed.short AS varchar(7); CREATE TYPE mixed.labels AS ENUM ($labels);"
	. join(';', map { "CREATE TABLE mixed.$_->[0] ($_->[1]); INSERT INTO mixed.$_->[0] (id) SELECT '7'::" . ($_->[0] eq 'collated' ? 'text' : 'integer') } @kinds)
	. q{; REVOKE ALL ON mixed.hidden, mixed.columns, mixed.half FROM reader; GRANT SELECT (id, note) ON mixed.columns TO reader; GRANT SELECT (id) ON mixed.half TO reader;
	REVOKE ALL ON mixed.zoned FROM reader; GRANT SELECT ON mixed.zoned TO PUBLIC;
	CREATE TABLE mixed.parts (id integer PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE mixed.parts_1 PARTITION OF mixed.parts DEFAULT});
$target->safe_psql('postgres', "CREATE SCHEMA mixed; GRANT ALL ON SCHEMA mixed TO app; CREATE TYPE mixed.labels AS ENUM ($labels)");
my $wanted = join "\n", sort(map({ "mixed.$_->[0]|$_->[2]" } @kinds), 'mixed.parts|t|');
is(app_sql($target, q{SELECT source, added, regexp_replace(reason, '^would be added.*', '') FROM tablesync_add_schema('src', 'mixed', 'mixed', dry_run => true) ORDER BY source COLLATE "C"}),
	$wanted =~ s/\|t\|/|f|/gr, 'what would be added, and what not');
is(relations('mixed'), '', 'nothing is left behind');
is(app_sql($target, q{SELECT source, added, reason FROM tablesync_add_schema('src', 'mixed', 'mixed') ORDER BY source COLLATE "C"}), $wanted, 'what is added, and what not');
is(app_sql($target, q{SELECT replica, fingerprint FROM tablesync.replica WHERE fingerprint <> 'xmin'}), 'mixed.columns|row', 'a table whose columns only may be read');
is(app_sql($target, q{SELECT string_agg(DISTINCT r.status || r.rows, ' ') FROM tablesync.replica t JOIN pg_class c ON c.oid = t.replica AND c.relnamespace = 'mixed'::regnamespace,
		tablesync_run(t.replica) r}), 'succeeded0 succeeded1', 'they run');

# what is asked for some tables at once is what is asked for one
my $server = app_sql($target, q{SELECT oid FROM pg_foreign_server WHERE srvname = 'src'});
my $all_names = q{ARRAY['plain', 'columns', 'hidden', 'half', 'no_key', 'enums', 'labelled', 'collated', 'Odd "table"', 'zoned', 'parts', 'parts_1', 'missing']};
my $images = "SELECT n, md5(tablesync.source_image($server, 'mixed', n, true)::text) FROM unnest($all_names) n";
my $connect = "SELECT count(*) > 0 FROM tablesync.source_tables($server, 'mixed')";
is(app_sql($target, "$connect; BEGIN; SELECT tablesync.source_images($server, 'mixed', $all_names); $images; COMMIT"), app_sql($target, "$connect; SELECT 11; $images"), 'the same answers');
($result, $trips) = counted("BEGIN; SELECT tablesync.source_images($server, 'mixed', $all_names); $images WHERE n NOT IN ('labelled', 'missing'); COMMIT");
cmp_ok($trips, '<=', 16, "from one statement ($trips round trips)");

# who may not use the schema there is told for each table
$source->safe_psql('postgres', 'REVOKE USAGE ON SCHEMA mixed FROM reader');
$target->safe_psql('postgres', 'CREATE SCHEMA others AUTHORIZATION app');
is(app_sql($target, q{SELECT count(*) > 5, bool_or(added), string_agg(DISTINCT reason, ' ') FILTER (WHERE reason LIKE '%schema%') FROM tablesync_add_schema('src', 'mixed', 'others', except_tables => '{half}')}),
	't|f|permission denied for schema mixed', 'a schema that we may not use');

$proxy->stop;
done_testing();
