# A part of a table: some columns, some rows, columns that the source computes.
# The source grants what is needed and no more.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

sub at_source
{
	my ($sql) = @_;
	return $source->safe_psql('postgres', $sql);
}

# Does the replica have what a query over the source returns?  Columns in any order.
sub is_part
{
	my ($replica, $query, $what) = @_;
	my %here = map { $_ => 1 } split /\n/, $target->safe_psql('postgres', "SELECT to_jsonb(r) FROM (SELECT * FROM $replica) r");
	my %there = map { $_ => 1 } split /\n/, $source->safe_psql('postgres', "SELECT to_jsonb(r) FROM ($query) r");
	my @surplus = grep { !$there{$_} } sort keys %here;
	my @missing = grep { !$here{$_} } sort keys %there;
	return is(@surplus . ' ' . @missing, '0 0', "$what: every value is right")
		|| diag(join "\n", 'only here:', @surplus[ 0 .. ($#surplus > 2 ? 2 : $#surplus) ], 'only there:', @missing[ 0 .. ($#missing > 2 ? 2 : $#missing) ]);
}

sub runs
{
	my ($replica, $counts, $what) = @_;
	return is(run_counts($target, $replica), "succeeded|$counts", $what);
}

sub message
{
	my ($replica) = @_;
	return app_sql($target, "SELECT message FROM tablesync_runs WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1");
}

at_source(q{
	CREATE TABLE people (id integer PRIMARY KEY, name text, email text, tenant integer NOT NULL, born date, note xml, updated_at timestamptz NOT NULL DEFAULT '2021-01-01');
	INSERT INTO people SELECT i, 'name ' || i, 'p' || i || '@example.org', i % 5, date '1970-01-01' + i, xmlparse(content '<a/>') FROM generate_series(1, 1000) i;
	REVOKE ALL ON people FROM reader, PUBLIC;
	GRANT SELECT (id, name, tenant, updated_at) ON people TO reader;
});

# --- columns ---
like(app_fails($target, "SELECT tablesync_add('people', 'src', 'public.people')"),
	qr/HINT:  To replicate what may be read: columns => '\{id,name,tenant,updated_at\}'/, 'a source that grants some columns');
app_sql($target, "SELECT tablesync_add('people', 'src', 'public.people', columns => '{id,name,tenant}', version_column => 'updated_at', fingerprint => 'row')");
is(app_sql($target, "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'people'::regclass AND attnum > 0"), 'id name tenant', 'the replica has just these');
is(app_sql($target, "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'people_source'::regclass AND attnum > 0"), 'id name tenant updated_at', 'the foreign table has the version, too');
runs('people', '1000|0|0', 'load of some columns');
is_part('people', 'SELECT id, name, tenant FROM people', 'load');
at_source(q{UPDATE people SET name = 'new' WHERE id = 7; UPDATE people SET email = 'x' WHERE id = 8; DELETE FROM people WHERE id = 9; INSERT INTO people VALUES (2000, 'n', 'e', 1)});
runs('people', '1|1|1', 'a column that is not ours does not count');
is_part('people', 'SELECT id, name, tenant FROM people', 'sync');
is(app_sql($target, "SELECT string_agg(check_name || ': ' || detail, '; ') FROM tablesync_check('people') WHERE NOT ok"), '', 'the check finds nothing');
is(app_sql($target, "SELECT count(*) FROM tablesync_verify('people')"), '0', 'verify, too');

# the source adds a column without a grant, then grants it
at_source('ALTER TABLE people ADD COLUMN secret text DEFAULT \'s\'');
runs('people', '0|0|0', 'a new column without a grant');
at_source('ALTER TABLE people RENAME name TO full_name');
runs('people', '0|0|0', 'a renamed column');
is_part('people', 'SELECT id, full_name, tenant FROM people', 'rename');
is(app_sql($target, "SELECT columns FROM tablesync.replica WHERE replica = 'people'::regclass"), '{id,full_name,tenant}', 'the setting follows');
at_source('GRANT SELECT (secret, born) ON people TO reader');
app_sql($target, "SELECT FROM tablesync_alter('people', columns => '{id,full_name,tenant,secret,born}')");
runs('people', '0|1000|0', 'columns taken in later are filled');
is_part('people', 'SELECT id, full_name, tenant, secret, born FROM people', 'alter');
app_sql($target, "SELECT FROM tablesync_alter('people', columns => '{id,full_name,born}')");
at_source("UPDATE people SET tenant = 99 WHERE id = 3; REVOKE SELECT (tenant, secret) ON people FROM reader; GRANT SELECT (born) ON people TO reader");
runs('people', '0|0|0', 'a column left out later');
is(app_sql($target, 'SELECT tenant FROM people WHERE id = 3'), '3', 'it keeps its values');
app_sql($target, "INSERT INTO people (id) VALUES (-1)");
runs('people', '0|0|1', 'and need not be given');
is(app_sql($target, "SELECT string_agg(concat_ws(' ', change, \"column\", action, detail), '; ' ORDER BY at, \"column\") FROM tablesync_schema_log WHERE replica = 'people'::regclass AND change <> 'renamed'"),
	'added born applied column born is among the columns now; added secret applied column secret is among the columns now; '
	. 'dropped tenant kept column tenant is not among the columns any more; dropped secret kept column secret is not among the columns any more', 'the log says it');
for my $bad ([ q{columns => '{id,nope}'}, qr/42703.*the source has no column 'nope'/ ],
	[ q{columns => '{full_name}'}, qr/key column 'id' is not among them/ ])
{
	like(app_fails($target, "SELECT tablesync_alter('people', $bad->[0])"), $bad->[1], "bad: $bad->[0]");
	like(app_fails($target, "SELECT tablesync_add('more_people', 'src', 'public.people', $bad->[0])"), $bad->[1], "neither to begin with: $bad->[0]");
}
is_part('people', 'SELECT id, full_name, CASE id WHEN 3 THEN 3 ELSE tenant END AS tenant, secret, born FROM people', 'errors change nothing');


# --- filter ---
at_source(q{
	CREATE TABLE orders (id integer PRIMARY KEY, tenant integer NOT NULL, amount numeric(10,2), at timestamptz, state text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO orders SELECT i, i % 10, i, timestamptz '2024-01-01' + i * interval '1 hour', CASE i % 3 WHEN 0 THEN 'open' ELSE 'done' END FROM generate_series(1, 20000) i;
	ANALYZE orders;
});
for my $fingerprint (qw(xmin version row))
{
	my $orders = "orders_by_$fingerprint";
	at_source('UPDATE orders SET tenant = 1, updated_at = now() WHERE id = 5; UPDATE orders SET tenant = 7, updated_at = now() WHERE id IN (7, 8)');
	app_sql($target, qq{SELECT tablesync_add('$orders', 'src', 'public.orders', version_column => 'updated_at', fingerprint => '$fingerprint', filter => 'tenant = 7')});
	runs($orders, '2001|0|0', "$fingerprint: load of some rows");
	is_part($orders, 'SELECT * FROM orders WHERE tenant = 7', $fingerprint);
	is(app_sql($target, "SELECT string_agg(check_name || ': ' || detail, '; ') FROM tablesync_check('$orders') WHERE NOT ok"), '', "$fingerprint: the check finds nothing");
	runs($orders, '0|0|0', "$fingerprint: nothing changed");
	at_source(q{UPDATE orders SET tenant = 3, updated_at = now() WHERE id = 7; UPDATE orders SET tenant = 7, updated_at = now() WHERE id = 5; UPDATE orders SET amount = -1, updated_at = now() WHERE id = 17;
		UPDATE orders SET amount = -2, updated_at = now() WHERE id = 18; DELETE FROM orders WHERE id IN (27, 28)});
	runs($orders, '1|1|2', "$fingerprint: rows come into the filter and leave it");
	is_part($orders, 'SELECT * FROM orders WHERE tenant = 7', "$fingerprint, after changes");
	app_sql($target, "DELETE FROM $orders WHERE id = 107; INSERT INTO $orders (id, tenant, updated_at) SELECT 106, 7, now(); UPDATE $orders SET amount = 3, updated_at = now() WHERE id = 117");
	runs($orders, '1|1|1', "$fingerprint: strangers' writes are repaired");
	is_part($orders, 'SELECT * FROM orders WHERE tenant = 7', "$fingerprint, repaired");
	at_source('INSERT INTO orders SELECT i, i % 10 FROM unnest(ARRAY[27, 28]) i');
	app_sql($target, "SELECT FROM tablesync_alter('$orders', filter => 'tenant IN (3, 7) AND at < ''2025-01-01''')");
	is(run_counts($target, $orders) =~ s/\|\d+\|/|n|/r, "succeeded|n|0|1122", "$fingerprint: another filter");
	is_part($orders, "SELECT * FROM orders WHERE tenant IN (3, 7) AND at < '2025-01-01'", "$fingerprint, another filter");
	like(message($orders), qr/1122 rows were removed because they are outside of the new filter/, "$fingerprint: the run says so");
	runs($orders, '0|0|0', "$fingerprint: nothing changed");
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$orders')"), '0', "$fingerprint: verify finds nothing");
	at_source('ALTER TABLE orders RENAME tenant TO "Tenant No"');
	runs($orders, '0|0|0', "$fingerprint: a column of the filter is renamed");
	is(app_sql($target, "SELECT filter FROM tablesync.replica WHERE replica = '$orders'::regclass"),
		q{(("Tenant No" = ANY (ARRAY[3, 7])) AND (at < '2025-01-01 00:00:00+00'::timestamp with time zone))}, "$fingerprint: the setting follows");
	at_source('ALTER TABLE orders ALTER "Tenant No" TYPE bigint');
	runs($orders, '0|0|0', "$fingerprint: a column of the filter gets another type");
	at_source('ALTER TABLE orders ALTER "Tenant No" TYPE integer; ALTER TABLE orders RENAME "Tenant No" TO tenant');
	like(app_fails($target, "SELECT tablesync_run('$orders')"), qr/changed its type from bigint to integer/, "$fingerprint: and a narrower one");
	app_sql($target, "ALTER TABLE $orders ALTER \"Tenant No\" TYPE integer; ALTER FOREIGN TABLE ${orders}_source ALTER \"Tenant No\" TYPE integer; SELECT tablesync_resume('$orders')");
	runs($orders, '0|0|0', "$fingerprint: back again");
	app_sql($target, "SELECT FROM tablesync_alter('$orders', filter => '')");
	is(run_counts($target, $orders) =~ s/\|\d+\|/|n|/r, 'succeeded|n|0|0', "$fingerprint: no filter");
	is_part($orders, 'SELECT * FROM orders', "$fingerprint, no filter");
	# all rows are still there, so this is no accident; a source that loses them is one
	app_sql($target, "SELECT FROM tablesync_alter('$orders', filter => 'id % 100 = 7')");
	is(run_counts($target, $orders) =~ s/\|\d+$/|n/r, 'succeeded|0|0|n', "$fingerprint: a scaled-down copy, without force");
	is_part($orders, 'SELECT * FROM orders WHERE id % 100 = 7', "$fingerprint, scaled down");
	app_sql($target, "SELECT FROM tablesync_alter('$orders', filter => 'id > 0')");
	run_counts($target, $orders);
	app_sql($target, "SELECT FROM tablesync_alter('$orders', filter => 'id < 19000')");
	at_source('CREATE TABLE kept AS SELECT * FROM orders; DELETE FROM orders WHERE id < 10000');
	like(app_fails($target, "SELECT tablesync_run('$orders')"), qr/run would delete 9\d\d\d of \d+ rows/, "$fingerprint: the guard counts what is gone");
	at_source('INSERT INTO orders SELECT * FROM kept WHERE id < 10000; DROP TABLE kept');
	is(run_counts($target, $orders) =~ s/\|\d+\|\d+\|/|n|n|/r, 'succeeded|n|n|1001', "$fingerprint: and lets go what is outside");
	app_sql($target, "SELECT tablesync_remove('$orders', drop_replica => true)");
	$target->psql('postgres', "DROP FOREIGN TABLE IF EXISTS ${orders}_source");
}

# the filter may need columns that the replica does not have
app_sql($target, q{SELECT tablesync_add('open_orders', 'src', 'public.orders', columns => '{id,amount}', filter => $$state = 'open'$$)});
like(run_counts($target, 'open_orders'), qr/^succeeded\|6\d\d\d\|0\|0$/, 'filtered by a column that is not shown');
is_part('open_orders', "SELECT id, amount FROM orders WHERE state = 'open'", 'hidden');
at_source("ALTER TABLE orders RENAME state TO status; UPDATE orders SET status = 'open' WHERE id = 1");
runs('open_orders', '1|0|0', 'which is renamed');
is_part('open_orders', "SELECT id, amount FROM orders WHERE status = 'open'", 'hidden and renamed');
at_source('ALTER TABLE orders DROP status');
like(app_fails($target, "SELECT tablesync_run('open_orders')"), qr/column status was dropped, which the filter or an expression needs/, 'which is dropped');
app_sql($target, "SELECT FROM tablesync_alter('open_orders', filter => 'id % 2 = 0'); SELECT tablesync_resume('open_orders')");
run_counts($target, 'open_orders');
is_part('open_orders', 'SELECT id, amount FROM orders WHERE id % 2 = 0', 'another filter leads out');

for my $bad (
	[ 'id', qr/42804.*argument of filter must be type boolean, not type integer/ ],
	[ 'id > random()', qr/42P17.*random\(\) is not immutable/ ],
	[ 'amount > 0 AND now() > timestamptz \'2020-01-01\'', qr/42P17.*now\(\) is not immutable/ ],
	[ 'id IN (SELECT 1)', qr/0A000.*it has a subquery/ ],
	[ 'nope = 1', qr/42703.*column "nope" does not exist|42703.*no column 'nope'/ ],
	[ 'id = 1; DROP TABLE orders', qr/42601.*syntax error at or near ";"/ ],
	[ 'id = 1) OR (true', qr/42601.*syntax error at or near "\)"/ ],
	[ 'id = 1 FROM pg_class', qr/42601.*it is not just one expression/ ],
	[ 'id = 1 ORDER BY 1', qr/42601.*it is not just one expression/ ],
	[ 'id = $1', qr/42P02.*it has a parameter/ ],
	[ 'true, false', qr/42601.*it is not just one expression/ ],
	[ '*', qr/42601/ ],
	[ 'open_orders_source.* IS NULL', qr/42601/ ],
	[ 'true', qr/42P10.*it has no column/ ],
	[ "ctid > '(0,0)'", qr/42P10.*it has a system column/ ],
	[ 'count(*) > 1', qr/42803.*aggregate functions are not allowed in WHERE/ ],
	[ 'public.tablesync_cancel(id)', qr/not built in/ ],
	[ 'id::text = \'1\'', qr/0A000.*the source can't compute it/ ],
	[ 'coalesce(id, 1) = 1', qr/0A000.*the source can't compute it/ ],
	[ 'extract(year FROM at AT TIME ZONE \'UTC\') = 2024', qr/0A000.*the source can't compute it|42703/ ],
	[ 'id > 0 AND ' . 'id > 0 AND ' x 1000 . 'id > 0', qr/22023.*invalid value for filter/ ],
	[ '(' x 3000 . 'id > 0' . ')' x 3000, qr/54001|rc 0/ ])
{
	my ($filter, $error) = @$bad;
	my $before = app_sql($target, "SELECT t::text FROM tablesync.replica t WHERE replica = 'open_orders'::regclass");
	my ($rc, $out, $err) = $target->psql('postgres', "BEGIN; SELECT tablesync_alter('open_orders', filter => \$filter\$$filter\$filter\$); ROLLBACK", extra_params => [ '-U', 'app', '-v', 'VERBOSITY=verbose' ]);
	like($err || "rc $rc", $error, 'bad: ' . substr $filter, 0, 60);
	is(app_sql($target, "SELECT t::text FROM tablesync.replica t WHERE replica = 'open_orders'::regclass"), $before, 'and nothing has changed');
}


# --- columns that the source computes ---
at_source(q{
	CREATE TYPE mood AS ENUM ('sad', 'happy');
	CREATE TABLE patients (id integer PRIMARY KEY, email text, phone varchar(20), born date, weight numeric(6,2), tags text[], doc jsonb, raw json, flag boolean, u uuid, pin char(4), m mood, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO patients SELECT i, 'p' || i || '@example.org', '+49' || i, date '1970-01-01' + i, i / 7.0, ARRAY['a', NULL, i::text], jsonb_build_object('i', i), '{"a":  1}', i % 2 = 0, md5(i::text)::uuid, i % 100, 'sad' FROM generate_series(1, 3000) i;
	INSERT INTO patients (id) VALUES (-1);
});
$source->append_conf('postgresql.conf', 'log_statement = all');
$source->reload;
my $masked = q{SELECT id, md5(email) AS email, left(phone, 5) AS phone, born, weight, tags, doc, raw, flag, u, pin, updated_at, 'hidden'::text AS mood FROM patients};
my $settings = q{expressions => '{"email": "md5(email)", "phone": "left(phone, 5)", "mood": "''hidden''"}', columns => '{id,born,weight,tags,doc,raw,flag,u,pin,updated_at}'};
for my $fingerprint (qw(xmin version))
{
	my $patients = "patients_by_$fingerprint";
	my $log = -s $source->logfile;
	app_sql($target, "SELECT tablesync_add('$patients', 'src', 'public.patients', version_column => 'updated_at', fingerprint => '$fingerprint', $settings)");
	runs($patients, '3001|0|0', "$fingerprint: load with computed columns");
	is_part($patients, $masked, $fingerprint);
	at_source(q{UPDATE patients SET email = 'new', updated_at = clock_timestamp() WHERE id = 4; UPDATE patients SET phone = '+4911', born = 'today', updated_at = clock_timestamp() WHERE id = 11; DELETE FROM patients WHERE id = (SELECT max(id) - 10 FROM patients); INSERT INTO patients SELECT 1 + max(id), 'x' FROM patients});
	runs($patients, '1|2|1', "$fingerprint: changes");
	is_part($patients, $masked, "$fingerprint, after changes");
	app_sql($target, "UPDATE $patients SET email = 'plain', updated_at = now() WHERE id = 20");
	runs($patients, '0|1|0', "$fingerprint: strangers' writes are repaired");
	is(app_sql($target, "SELECT string_agg(check_name || ': ' || detail, '; ') FROM tablesync_check('$patients') WHERE NOT ok"), '', "$fingerprint: the check finds nothing");
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$patients')"), '0', "$fingerprint: verify finds nothing");
	# what has crossed the network is what the source was asked for
	my @asked = grep { /DECLARE|SELECT/ && /patients/ && !/pg_catalog"?\.pg_|pg_attribute/ } split /\n/, slurp_file($source->logfile, $log);
	my @plain = grep { /SELECT [^()]*\bemail\b/ || /SELECT (?:(?!FROM).)*(?<!md5\()\bemail\b(?!\))/ } grep { !/LIMIT 0\b/ && !/060_part\.pl/ } @asked;
	is("@plain[0 .. ($#plain > 2 ? 2 : $#plain)]", '', "$fingerprint: no statement asks for the plain value");
	cmp_ok(scalar(@asked), '>', 5, "$fingerprint: of many");
	app_sql($target, qq{SELECT FROM tablesync_alter('$patients', expressions => '{"email": "upper(md5(email))", "phone": "left(phone, 5)"}')});
	like(run_counts($target, $patients), qr/^succeeded\|0\|\d+\|0$/, "$fingerprint: another expression");
	is_part($patients, $masked =~ s/md5\(email\)/upper(md5(email))/r, "$fingerprint, another expression");
	at_source('ALTER TABLE patients RENAME email TO mail');
	runs($patients, '0|0|0', "$fingerprint: what is computed from is renamed");
	is_part($patients, $masked =~ s/md5\(email\)/upper(md5(mail))/r, "$fingerprint, renamed");
	is(app_sql($target, "SELECT expressions->>'email' FROM tablesync.replica WHERE replica = '$patients'::regclass"), 'upper(md5(mail))', "$fingerprint: the setting follows");
	at_source('ALTER TABLE patients RENAME mail TO email');
	runs($patients, '0|0|0', "$fingerprint: and back");
	app_sql($target, "SELECT FROM tablesync_alter('$patients', expressions => '{}', columns => '{id,email,born,updated_at}')");
	like(run_counts($target, $patients), qr/^succeeded\|0\|\d+\|0$/, "$fingerprint: no expressions");
	app_sql($target, "SELECT tablesync_remove('$patients', drop_replica => true)");
}
for my $bad (
	[ q{expressions => '{"id": "id + 1"}'}, qr/22023.*'id' is the key or the version column/ ],
	[ q{expressions => '{"email": 1}'}, qr/22023.*invalid value for expressions/ ],
	[ q{expressions => '{"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee1": "1", "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee2": "2"}'}, qr/42622.*the name of column 'e+1' is too long/ ],
	[ q{expressions => '["email"]'}, qr/22023.*invalid value for expressions/ ],
	[ q{expressions => '{"email": "md5(nope)"}'}, qr/42703.*"?nope/ ],
	[ q{expressions => '{"email": "(SELECT 1)"}'}, qr/0A000.*it has a subquery/ ],
	[ q{expressions => '{"email": "count(*)"}'}, qr/42803/ ],
	[ q{expressions => '{"email": "row_number() OVER ()"}'}, qr/42P20/ ],
	[ q{expressions => '{"email": "clock_timestamp()"}'}, qr/42P17/ ],
	[ q{expressions => '{"email": "email, phone"}'}, qr/42601/ ],
	[ q{expressions => '{"email": "id::text"}'}, qr/0A000.*can't compute it/ ],
	[ q{expressions => '{"phone": "m"}'}, qr/0A000.*column 'phone' would have type/ ],
	[ q{expressions => '{"email": "md5(email)"}'}, qr/0A000.*column 'm' can't be fetched together.*not built in/s ])
{
	at_source(q{SELECT 1});
	$target->psql('postgres', "CREATE TYPE mood AS ENUM ('sad', 'happy')");
	like(app_fails($target, "SELECT tablesync_add('bad', 'src', 'public.patients', fingerprint => 'xmin', $bad->[0])"), $bad->[1], "bad: $bad->[0]");
}
is($target->safe_psql('postgres', "SELECT to_regclass('bad'), to_regclass('bad_source')"), '|', 'nothing is left of them');

# --- columns of the replica's own ---
at_source('CREATE TABLE items (id integer PRIMARY KEY, name text); INSERT INTO items SELECT i, \'name \' || i FROM generate_series(1, 150000) i; ANALYZE items');
for my $bulk (1, 0)
{
	app_sql($target, qq{
		CREATE TABLE items (mark text, id integer PRIMARY KEY, seen timestamptz NOT NULL DEFAULT now(), gone integer, serial bigint GENERATED ALWAYS AS IDENTITY, name text,
			words tsvector GENERATED ALWAYS AS (to_tsvector('simple', name)) STORED, priority integer DEFAULT 5 NOT NULL);
		ALTER TABLE items DROP gone});
	app_sql($target, 'CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$; CREATE TRIGGER t BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION nothing()') if !$bulk;
	is(app_sql($target, "SELECT tablesync_add('items', 'src', 'public.items')"), 'items', 'a table with columns of its own');
	is(app_sql($target, "SELECT tablesync.can_bulk_load('items')"), $bulk ? 't' : 'f', 'which can be loaded in bulk, or not');
	runs('items', '150000|0|0', 'load');
	is(app_sql($target, "SELECT count(*), count(DISTINCT serial), min(serial) > 0, count(seen), count(mark), bool_and(words = to_tsvector('simple', name)), min(priority), max(priority) FROM items"),
		'150000|150000|t|150000|0|t|5|5', 'they have their defaults');
	app_sql($target, "UPDATE items SET mark = 'mine', priority = 9 WHERE id <= 10");
	my $before = app_sql($target, "SELECT serial, seen, mark, priority FROM items WHERE id = 3");
	at_source("UPDATE items SET name = 'other words' || repeat(' ', id) WHERE id IN (3, 4); DELETE FROM items WHERE id = 5; INSERT INTO items VALUES (-1, 'neu')");
	runs('items', '1|2|1', 'changes');
	is(app_sql($target, "SELECT words FROM items WHERE id = 3"), "'other':1 'words':2", 'what is generated follows');
	is(app_sql($target, "SELECT serial, seen, mark, priority FROM items WHERE id = 3"), $before, 'the others are kept');
	# rows that swap a unique value can't be updated one after the other
	app_sql($target, 'CREATE UNIQUE INDEX ON items (name)');
	at_source("UPDATE items SET name = 'a' WHERE id = 3; UPDATE items SET name = 'b' WHERE id = 4");
	runs('items', '0|2|0', 'unique values');
	at_source("UPDATE items SET name = CASE id WHEN 3 THEN 'b' ELSE 'a' END WHERE id IN (3, 4)");
	runs('items', '0|2|0', 'unique values are swapped');
	is(app_sql($target, "SELECT serial, seen, mark, priority FROM items WHERE id = 3"), $before, 'the others are kept then, too');
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('items')"), '0', 'they are not compared');
	app_sql($target, "ALTER TABLE items ADD flag boolean, ADD name_length integer GENERATED ALWAYS AS (length(name)) STORED");
	runs('items', '0|0|0', 'further ones');
	at_source('ALTER TABLE items ADD mark integer');
	like(app_fails($target, "SELECT tablesync_run('items')"), qr/column mark integer was added, and public\.items has a column of that name already/, 'the source gets one of that name');
	app_sql($target, "ALTER TABLE items RENAME mark TO my_mark; SELECT tablesync_resume('items')");
	runs('items', '0|0|0', 'which is renamed here');
	is(app_sql($target, "SELECT my_mark, mark FROM items WHERE id = 3"), 'mine|', 'and kept');
	app_sql($target, "SELECT tablesync_remove('items', drop_replica => true)");
	at_source("ALTER TABLE items DROP mark; UPDATE items SET name = 'name ' || id WHERE id IN (3, 4); INSERT INTO items VALUES (5, 'x'); DELETE FROM items WHERE id = -1");
}
for my $bad ([ 'must integer NOT NULL', qr/42804.*Its column must does not exist in the source, and no row can be inserted without it/s ],
	[ 'must never', qr/Its column must does not exist in the source/ ])
{
	app_sql($target, "DROP TABLE IF EXISTS items; DROP DOMAIN IF EXISTS never; CREATE DOMAIN never AS integer NOT NULL; CREATE TABLE items (id integer PRIMARY KEY, name text, $bad->[0])");
	like(app_fails($target, "SELECT tablesync_add('items', 'src', 'public.items')"), $bad->[1], "bad: $bad->[0]");
}


# --- grants on all columns, one by one, and no setting ---
at_source(q{
	CREATE TABLE granted (id integer PRIMARY KEY, name text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO granted SELECT i, 'name ' || i FROM generate_series(1, 100) i;
	REVOKE ALL ON granted FROM reader;
	GRANT SELECT (id, name, updated_at) ON granted TO reader});
app_sql($target, "SELECT tablesync_add('granted', 'src', 'public.granted', version_column => 'updated_at')");
runs('granted', '100|0|0', 'all columns are granted one by one');
at_source("ALTER TABLE granted ADD secret text NOT NULL DEFAULT 's'");
runs('granted', '0|0|0', 'a new column without a grant is left out');
is(app_sql($target, "SELECT change, \"column\", action, detail FROM tablesync_schema_log WHERE replica = 'granted'::regclass"),
	'added|secret|ignored|column secret was added, and we may not read it', 'which is noted');
at_source("UPDATE granted SET name = 'new', secret = 't', updated_at = clock_timestamp() WHERE id = 1");
runs('granted', '0|1|0', 'runs go on');
is_part('granted', 'SELECT id, name, updated_at FROM granted', 'without it');
at_source('GRANT SELECT (secret) ON granted TO reader');
like(run_counts($target, 'granted'), qr/^succeeded\|0\|\d+\|0$/, 'granted later, it is taken in');
is_part('granted', 'SELECT * FROM granted', 'and filled');
at_source('REVOKE SELECT (name) ON granted FROM reader; UPDATE granted SET updated_at = clock_timestamp() WHERE id = 2');
like(app_fails($target, "SELECT tablesync_run('granted')"), qr/permission denied for table granted/, 'a grant that is revoked');
like(app_sql($target, "SELECT hint FROM tablesync_check('granted') WHERE check_name = 'privileges'"), qr/GRANT SELECT ON public\.granted TO reader;/, 'the check has the statement');
app_sql($target, "SELECT FROM tablesync_alter('granted', columns => '{id,secret,updated_at}')");
runs('granted', '0|1|0', 'or the column is left out');
at_source('REVOKE SELECT (secret) ON granted FROM reader');
my $hint = app_sql($target, "SELECT hint FROM tablesync_check('granted') WHERE check_name = 'privileges'");
like($hint, qr/GRANT SELECT \(id, updated_at, secret\) ON public\.granted TO reader;/, 'the check names the columns');
at_source($hint =~ s/^At the source: //r);
runs('granted', '0|0|0', 'that can be typed');

# --- foreign tables of one's own, with some columns, other names and computed ones ---
app_sql($target, q{
	CREATE FOREIGN TABLE mine (number integer OPTIONS (column_name 'id') NOT NULL, label text OPTIONS (column_name 'name'))
		SERVER src OPTIONS (schema_name 'public', table_name 'items');
	SELECT tablesync_add('labels', 'mine', columns => '{number,label}', filter => 'number % 1000 = 1', expressions => '{"digest": "md5(label)", "kind": "''item''", "half": "number / 2"}')});
runs('labels', '150|0|0', 'over a foreign table that has some columns');
is_part('labels', q{SELECT id AS number, name AS label, md5(name) AS digest, 'item' AS kind, id / 2 AS half FROM items WHERE id % 1000 = 1}, 'names of one\'s own');
at_source("UPDATE items SET name = 'new' WHERE id IN (1, 2)");
runs('labels', '0|1|0', 'and changes');
app_sql($target, q{SELECT FROM tablesync_alter('labels', expressions => '{"digest": "upper(label)", "third": "number / 3"}')});
runs('labels', '0|150|0', 'further ones');
is_part('labels', q{SELECT id AS number, name AS label, upper(name) AS digest, 'item' AS kind, id / 2 AS half, id / 3 AS third FROM items WHERE id % 1000 = 1}, 'those that are not computed any more keep their values');
like(app_fails($target, q{SELECT tablesync_alter('labels', expressions => '{"half": "label"}')}), qr/42804.*column half of public\.labels can't hold.*It is integer, the expression is text/s, 'a type that does not fit');

# --- many tables in one call ---
$target->safe_psql('postgres', 'CREATE SCHEMA part AUTHORIZATION app');
is(app_sql($target, q{SELECT source, added, reason FROM tablesync_add_schema('src', 'public', 'part', only_tables => '{items,orders,patients}',
	columns => '{"items": ["id"], "patients": ["id", "born"]}', filter => '{"orders": "id % 2 = 0", "nope": "x"}', expressions => '{"patients": {"email": "md5(email)"}}')}),
	"public.items|t|\npublic.nope|f|the source has no such table\npublic.orders|t|\npublic.patients|t|", 'columns, filters and expressions by table');
run_counts($target, "part.$_") for qw(items orders patients);
is_part('part.items', 'SELECT id FROM items', 'some columns');
is_part('part.orders', 'SELECT * FROM orders WHERE id % 2 = 0', 'some rows');
is_part('part.patients', 'SELECT id, born, md5(email) AS email FROM patients', 'computed');
like(app_fails($target, "SELECT tablesync_add_schema('src', 'public', 'part', columns => '[\"id\"]')"), qr/22023.*HINT:  It must be an object with a value for each table by its name: \{"customers": \["id", "name"\]\}/s, 'bad input');

# --- what the documentation shows ---
app_sql($target, q{SELECT tablesync_add('shown', 'src', 'public.patients', columns => '{id}', expressions => $${
    "email": "md5(email)",
    "phone": "left(phone, 2)",
    "born": "date '1900-01-01' + (born - date '1900-01-01') / 3650 * 3650",
    "weight": "NULL::text"
}$$)});
run_counts($target, 'shown');
is_part('shown', q{SELECT id, md5(email) AS email, left(phone, 2) AS phone, date '1900-01-01' + (born - date '1900-01-01') / 3650 * 3650 AS born, NULL::text AS weight FROM patients}, 'pseudonyms');

# --- a part of a view ---
at_source(q{CREATE VIEW seen AS SELECT id, email, born, weight FROM patients WHERE id > 0;
	CREATE MATERIALIZED VIEW kept AS SELECT * FROM seen; CREATE UNIQUE INDEX ON kept (id)});
for my $view (qw(seen kept))
{
	app_sql($target, qq{SELECT tablesync_add('$view', 'src', 'public.$view', key_columns => '{id}', source_is_view => true, columns => '{id,born}', filter => 'weight > 100', expressions => '{"email": "md5(email)"}')});
	like(run_counts($target, $view), qr/^succeeded\|2\d\d\d\|0\|0$/, "$view: load");
	is_part($view, "SELECT id, born, md5(email) AS email FROM $view WHERE weight > 100", $view);
	at_source("UPDATE patients SET email = email || 'x' WHERE id % 100 = 1; DELETE FROM patients WHERE id % 500 = 2; REFRESH MATERIALIZED VIEW kept");
	like(run_counts($target, $view), qr/^succeeded\|0\|2\d\|[4-6]$/, "$view: changes");
	is_part($view, "SELECT id, born, md5(email) AS email FROM $view WHERE weight > 100", "$view, after changes");
	at_source("INSERT INTO patients (id, email, weight) SELECT 500 * i + 2, 'again', 500 FROM generate_series(0, 5) i; REFRESH MATERIALIZED VIEW kept");
}

# --- the feed of a part ---
app_sql($target, q{SELECT tablesync_add('fed', 'src', 'public.patients', columns => '{id,born}', filter => 'weight > 100', expressions => '{"email": "md5(email)"}', feed => true)});
run_counts($target, 'fed');
app_sql($target, 'ALTER TABLE fed ADD mine text');
at_source(q{UPDATE patients SET weight = 0 WHERE id = 801; UPDATE patients SET email = 'fed' WHERE id = 802; UPDATE patients SET weight = 200 WHERE id = 3; UPDATE patients SET weight = weight + 1 WHERE id = 803});
runs('fed', '1|1|1', 'changes of a part');
is(app_sql($target, q{SELECT string_agg(concat_ws(' ', op, key->>'id', before->>'email', after->>'email'), ', ' ORDER BY position) FROM tablesync_changes('fed', 1)}),
	$source->safe_psql('postgres', q{SELECT concat_ws(', ', (SELECT concat_ws(' ', 'd', id, md5(email)) FROM patients WHERE id = 801), (SELECT concat_ws(' ', 'u', 802, md5('p802@example.org'), md5('fed'))),
		(SELECT concat_ws(' ', 'c', id, md5(email)) FROM patients WHERE id = 3))}) =~ s/u 802 \S+ /u 802 OLD /r =~ s/OLD/app_sql($target, q{SELECT before->>'email' FROM tablesync_changes('fed', 1) WHERE op = 'u'})/er, 'its feed has what leaves the filter, and no plain value');

# --- keys with modifiers beside columns that the source computes ---
$source->safe_psql('postgres', q{
	CREATE TABLE coded (code varchar(20), day char(5), price numeric(8, 2), note text, updated_at timestamptz, PRIMARY KEY (code, day, price));
	INSERT INTO coded SELECT 'c' || i, i, i / 7.0, 'n' || i, now() FROM generate_series(1, 50) i;
	GRANT SELECT ON coded TO reader});
for my $fingerprint (qw(xmin row version))
{
	my $coded = "coded_$fingerprint";
	app_sql($target, qq{SELECT tablesync_add('$coded', 'src', 'public.coded', fingerprint => '$fingerprint', version_column => 'updated_at', verify_fraction => 1, feed => true, expressions => '{"note": "upper(note)"}')});
	runs($coded, '50|0|0', "keys with modifiers: $fingerprint");
}
$source->safe_psql('postgres', q{UPDATE coded SET note = 'x', updated_at = clock_timestamp() WHERE day < '2'; INSERT INTO coded VALUES ('new', 'n', 1, 'n', now()); DELETE FROM coded WHERE day IN ('46', '47')});
for my $fingerprint (qw(xmin row version))
{
	my $coded = "coded_$fingerprint";
	like(run_counts($target, $coded), qr/^succeeded\|1\|11\|2$/, "changes of them: $fingerprint");
	app_sql($target, "DELETE FROM $coded WHERE code = 'c2'");
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$coded', repair => true)"), 1, "a verify that repairs: $fingerprint");
	is(app_sql($target, "SELECT md5(string_agg($coded\::text, '' ORDER BY $coded\::text)) FROM $coded"),
		$source->safe_psql('postgres', 'SELECT md5(string_agg(c::text, \'\' ORDER BY c::text)) FROM (SELECT code, day, price, upper(note), updated_at FROM coded) c'), "the same: $fingerprint");
}

# --- not while a run goes on ---
my $holder = session($source);
$holder->query_safe('BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE');
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('labels', wait => false)");
wait_until($target, "SELECT EXISTS (SELECT FROM tablesync.live_runs() WHERE replica = 'labels'::regclass)");
like(app_fails($target, "SELECT tablesync_alter('labels', filter => 'number = 1')"), qr/55006.*a run for replica public\.labels is going on/, 'not while a run goes on');
$holder->query_safe('COMMIT');
$holder->quit;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'which ends well');
# and no run begins meanwhile
my $changer = session($target, '-U', 'app');
$changer->query_safe("BEGIN; SELECT tablesync_alter('labels', filter => 'number = 1')");
is(app_sql($target, "SELECT status FROM tablesync_run('labels')"), 'already running', 'no run begins while it is changed');
$changer->query_safe('COMMIT');
$changer->quit;
runs('labels', '0|0|149', 'the next one has the filter');

# --- rights ---
$target->safe_psql('postgres', 'CREATE ROLE other LOGIN');
for my $sql ("tablesync_alter('labels', filter => 'number = 1')", "tablesync.keep_runs_away('labels')", "tablesync.check_expression('mine', 'number', 'x')",
	"tablesync.take_part('labels', '[]', '[]')", "tablesync.change_part(NULL, NULL)", "tablesync.check_expression(0, 'a', 'b')", "tablesync.rename_in_expression('a', '{a}', '{}')")
{
	my ($rc, $out, $err) = $target->psql('postgres', "SELECT $sql", extra_params => [ '-U', 'other' ]);
	isnt($rc, 0, "somebody else: $sql");
}
is($target->safe_psql('postgres', q{SELECT tablesync.rename_in_expression('a + "A b" + f(a) + aa', '{a,"A b"}', '{"x y",a}')}), '"x y" + a + f("x y") + aa', 'names in an expression');

done_testing();
