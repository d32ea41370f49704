# tablesync_add_schema(): adds what can be added, says why not otherwise, and
# takes nothing over by accident.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

$source->safe_psql('postgres', q{
	CREATE SCHEMA shop;
	CREATE TYPE shop.mood AS ENUM ('good', 'bad');
	CREATE TABLE shop.customers (id integer PRIMARY KEY, name text, updated_at timestamptz);
	CREATE TABLE shop."Order ""lines""" (order_id integer, line integer, qty integer, PRIMARY KEY (order_id, line));
	CREATE TABLE shop.no_key (id integer);
	CREATE TABLE shop.unique_only (id integer NOT NULL UNIQUE);
	CREATE TABLE shop.moods (id integer PRIMARY KEY, mood shop.mood);
	CREATE TABLE shop.money_key (id money PRIMARY KEY);
	CREATE TABLE shop.secret (id integer PRIMARY KEY);
	CREATE TABLE shop.parent (id integer PRIMARY KEY);
	CREATE TABLE shop.child () INHERITS (shop.parent);
	CREATE TABLE shop.events (day date, id integer, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
	CREATE TABLE shop.events_1 PARTITION OF shop.events FOR VALUES FROM ('2021-01-01') TO ('2021-02-01');
	CREATE TABLE shop.events_2 PARTITION OF shop.events FOR VALUES FROM ('2021-02-01') TO ('2021-03-01') PARTITION BY RANGE (id);
	CREATE TABLE shop.events_2_1 PARTITION OF shop.events_2 DEFAULT;
	CREATE SCHEMA elsewhere;
	CREATE TABLE elsewhere.logs (id integer PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE shop.logs_1 PARTITION OF elsewhere.logs DEFAULT;
	CREATE VIEW shop.everything AS SELECT * FROM shop.customers;
	CREATE MATERIALIZED VIEW shop.totals AS SELECT count(*) FROM shop.customers;
	CREATE SEQUENCE shop.counter;
	CREATE SCHEMA empty;
	REVOKE SELECT ON shop.secret FROM reader;
	INSERT INTO shop.customers SELECT i, 'c' || i, now() FROM generate_series(1, 20) i;
	INSERT INTO shop."Order ""lines""" SELECT i, 1, i FROM generate_series(1, 20) i;
	INSERT INTO shop.events SELECT '2021-01-20'::date + i, i FROM generate_series(1, 20) i});
app_sql($target, 'SELECT 1');
$target->safe_psql('postgres', 'CREATE SCHEMA "local Shop" AUTHORIZATION app');

# Rows that it returns: source|replica|added|reason.
sub add
{
	my ($arguments) = @_;
	my (undef, $stdout, $stderr) = $target->psql('postgres', "SET client_min_messages = error; SELECT * FROM tablesync_add_schema('src', $arguments)",
		extra_params => [ '-U', 'app' ]);
	return $stdout . join("\n", grep { /ERROR|HINT/ } split /\n/, $stderr);
}

# --- everything in it ---

my $added = add(q{'shop', 'local Shop', version_column => 'updated_at', freshness => '1 hour', max_source_load => 0.5});
is($added, <<'ROWS' =~ s/\n\z//r, 'what was added, and why the rest was not');
shop."Order ""lines"""|"local Shop"."Order ""lines"""|t|
shop.child||f|the source shop.child has no primary key: Rows can be told apart only by a key.
shop.customers|"local Shop".customers|t|
shop.events|"local Shop".events|t|
shop.everything||f|It is a view: rewrites of the tables behind it can't be noticed.
shop.logs_1||f|It is a partition of elsewhere.logs, whose replica has its rows.
shop.money_key||f|column id of the source shop.money_key can't be replicated exactly: Reason: type money is not supported in a key.
shop.moods||f|column mood of the source shop.moods can't be replicated exactly: Reason: type shop.mood does not exist here.
shop.no_key||f|the source shop.no_key has no primary key: Rows can be told apart only by a key.
shop.parent||f|It has inheritance children: their rows are outside of its primary key.
shop.secret||f|permission denied for table secret
shop.totals||f|It is a materialized view.
shop.unique_only||f|the source shop.unique_only has no primary key: Rows can be told apart only by a key.
ROWS
is(app_sql($target, q{SELECT relname, relkind FROM pg_class WHERE relnamespace = '"local Shop"'::regnamespace AND relkind IN ('r', 'f') ORDER BY relname COLLATE "C"}),
	qq{Order "lines"|r\nOrder "lines"_source|f\ncustomers|r\ncustomers_source|f\nevents|r\nevents_source|f}, 'a refused table leaves nothing behind');
is(app_sql($target, q{SELECT replica, version_column, fingerprint, freshness, max_source_load FROM tablesync.replica ORDER BY replica::text COLLATE "C"}),
	qq{"local Shop"."Order ""lines"""||xmin|01:00:00|0.5\n"local Shop".customers|updated_at|xmin|01:00:00|0.5\n"local Shop".events||xmin|01:00:00|0.5},
	'settings; the version column where there is one');
is(app_sql($target, q{SELECT string_agg(status || rows, ' ') FROM tablesync_run()}), 'succeeded20 succeeded20 succeeded20', 'they run');
ok(same_rows($source, $target, 'shop.customers', '"local Shop".customers'), 'identical');
ok(same_rows($source, $target, 'shop.events', '"local Shop".events'), 'identical, partitions too');

# --- again, after something was mended ---

$source->safe_psql('postgres', 'GRANT SELECT ON shop.secret TO reader; ALTER TABLE shop.no_key ADD PRIMARY KEY (id)');
is(app_sql($target, q{SELECT source, replica, added, reason FROM tablesync_add_schema('src', 'shop', 'local Shop')
		WHERE added OR reason = 'it is a replica already' ORDER BY added}),
	<<'ROWS' =~ s/\n\z//r, 'only what is new is added');
shop."Order ""lines"""|"local Shop"."Order ""lines"""|f|it is a replica already
shop.customers|"local Shop".customers|f|it is a replica already
shop.events|"local Shop".events|f|it is a replica already
shop.no_key|"local Shop".no_key|t|
shop.secret|"local Shop".secret|t|
ROWS
is(app_sql($target, q{SELECT fingerprint, freshness FROM tablesync.replica WHERE replica = '"local Shop".customers'::regclass}), 'xmin|01:00:00', 'what was there keeps its settings');

# --- some of it ---

$target->safe_psql('postgres', 'CREATE SCHEMA part AUTHORIZATION app; CREATE SCHEMA rest AUTHORIZATION app');
is(add(q{'shop', 'part', only_tables => '{customers,events_1,custommers}'}), <<'ROWS' =~ s/\n\z//r, 'only_tables');
shop.customers|part.customers|t|
shop.custommers||f|the source has no such table
shop.events_1||f|It is a partition of shop.events, whose replica has its rows.
ROWS
is(add(q{'shop', 'rest', except_tables => ARRAY['customers', 'Order "lines"', 'secrets', 'child', 'everything', 'money_key', 'moods', 'parent', 'totals', 'unique_only', 'logs_1']}),
	<<'ROWS' =~ s/\n\z//r, 'except_tables; a name that does not exist is told');
shop.events|rest.events|t|
shop.no_key|rest.no_key|t|
shop.secret|rest.secret|t|
shop.secrets||f|the source has no such table
ROWS
is(add(q{'empty', 'rest'}), '', 'an empty schema');

# --- nothing is taken over by accident ---

$target->safe_psql('postgres', 'CREATE SCHEMA mine AUTHORIZATION app; CREATE SERVER another FOREIGN DATA WRAPPER postgres_fdw');
app_sql($target, q{
	CREATE TABLE mine.customers (id integer PRIMARY KEY, name text, updated_at timestamptz);
	INSERT INTO mine.customers VALUES (-1, 'mine', NULL);
	CREATE TABLE mine.secret (id integer PRIMARY KEY);
	CREATE TABLE mine.no_key (other text);
	CREATE VIEW mine.events AS SELECT 1;
	SELECT tablesync_add('mine."Order ""lines"""', 'src', 'shop.secret')});
is(add(q{'shop', 'mine', only_tables => '{customers,secret,no_key,events,"Order \"lines\""}'}), <<'ROWS' =~ s/\n\z//r, 'names that are taken');
shop."Order ""lines"""||f|mine."Order ""lines""" is the replica of something else: shop.secret of server "src"
shop.customers||f|table mine.customers exists and has rows; if a run may replace them, use tablesync_add()
shop.events||f|table mine.events can't be the replica of mine.events_source: It is not a table.
shop.no_key||f|table mine.no_key can't be the replica of mine.no_key_source: It has no column id.
shop.secret|mine.secret|t|
ROWS
app_sql($target, 'SELECT tablesync_run()');
is(app_sql($target, 'SELECT * FROM mine.customers'), '-1|mine|', 'rows of a user are left alone');

# --- what concerns all of them is an error ---

like(add(q{'shop', 'nowhere'}), qr/ERROR:  schema "nowhere" does not exist here\nHINT:  CREATE SCHEMA nowhere;/, 'no such schema here');
like(add(q{'Shop', 'mine'}), qr/ERROR:  the source has no schema "Shop"/, 'no such schema there');
like(add(q{'shop', 'pg_catalog'}), qr/ERROR:  permission denied for schema pg_catalog/, 'a schema of others');
like(add(q{'shop', 'mine', only_tables => '{a,b}', except_tables => '{b}'}), qr/ERROR:  a table is named in only_tables and in except_tables/, 'contradiction');
like(app_fails($target, q{SELECT tablesync_add_schema('nobody', 'shop', 'mine')}), qr/server "nobody" does not exist/, 'no such server');
$target->safe_psql('postgres', 'CREATE ROLE other LOGIN; CREATE SCHEMA others AUTHORIZATION other');
my (undef, undef, $stderr) = $target->psql('postgres', q{SELECT tablesync_add_schema('src', 'shop', 'others')}, extra_params => [ '-U', 'other' ]);
like($stderr, qr/role "other" has no user mapping for server "src"/, 'another role does not get at the source');

$source->stop;
like(add(q{'shop', 'mine'}), qr/ERROR:  could not connect to server "src"/, 'the source is down: one error, not one for each table');

done_testing();
