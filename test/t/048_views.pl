# Views and materialized views as source, where it is said that they are: what
# proves their keys, what a run notices of them, and what is refused.

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

# The error of a statement: its text, detail and hint.
sub error_of
{
	my ($sql) = @_;
	return join "\n", grep { /ERROR|DETAIL|HINT/ } split /\n/, app_fails($target, $sql);
}

at_source(q{
	CREATE TABLE orders (id integer PRIMARY KEY, customer integer NOT NULL, total numeric(10,2), note text, updated_at timestamptz NOT NULL DEFAULT '2021-01-01');
	INSERT INTO orders SELECT i, i % 40, i, 'note ' || i FROM generate_series(1, 400) i;
	CREATE VIEW open_orders AS SELECT id, customer, total, note FROM orders WHERE id % 2 = 0;
	CREATE VIEW customers AS SELECT customer, count(*) AS orders, sum(total) AS total, max(updated_at) AS updated_at FROM orders GROUP BY customer;
	CREATE VIEW doubles AS SELECT customer, id % 3 AS n, note FROM orders;
	CREATE VIEW nulls AS SELECT nullif(id, 7) AS id, note FROM orders;
	CREATE MATERIALIZED VIEW totals AS SELECT customer, sum(total) AS total FROM orders GROUP BY customer;
	CREATE UNIQUE INDEX totals_key ON totals (customer) INCLUDE (total);
	CREATE MATERIALIZED VIEW bare AS SELECT id, note FROM orders;
	CREATE FOREIGN DATA WRAPPER nothing;
	CREATE SERVER nothing FOREIGN DATA WRAPPER nothing;
	CREATE FOREIGN TABLE far (id integer) SERVER nothing});

# --- what is refused ---

like(error_of(q{SELECT tablesync_add('open_orders', 'src', 'public.open_orders', key_columns => '{id}')}),
	qr/It is a view: rewrites.*HINT:  .*add it with key_columns => '\{\.\.\}', source_is_view => true/s, 'a view is refused, and the hint says how');
like(error_of(q{SELECT tablesync_add('totals', 'src', 'public.totals')}), qr/It is a materialized view\..*source_is_view => true/s, 'a materialized view, too');
like(error_of(q{SELECT tablesync_add('o', 'src', 'public.orders', source_is_view => true)}), qr/It is no view.*Add it without source_is_view/s, 'a table is no view');
like(error_of(q{SELECT tablesync_add('far', 'src', 'public.far', key_columns => '{id}', source_is_view => true)}), qr/It is a foreign table/, 'nor is a foreign table');
like(error_of(q{SELECT tablesync_add('v', 'src', 'public.open_orders', source_is_view => true)}), qr/the key of the view public\.open_orders is not known/, 'a view needs a key');
like(error_of(q{SELECT tablesync_add('v', 'src', 'public.open_orders', key_columns => '{nothing}', source_is_view => true)}), qr/There is no column nothing\./, 'that it has');
like(error_of(q{SELECT tablesync_add('v', 'src', 'public.open_orders', key_columns => '{id,id}', source_is_view => true)}), qr/A column is named twice\./, 'once');
like(error_of(q{SELECT tablesync_add('v', 'src', 'public.doubles', key_columns => '{customer,n}', source_is_view => true)}),
	qr/23505: rows of the source public\.doubles have the same key.*These \(customer, n\), and how many rows have them: \(\d+,\d+,\d+\)/s, 'rows with the same key');
like(error_of(q{SELECT tablesync_add('v', 'src', 'public.nulls', key_columns => '{id}', source_is_view => true)}),
	qr/23502: a row of the source public\.nulls has no key.*Its \(id\) is \(\)/s, 'a row without one');
like(error_of(q{SELECT tablesync_add('v', 'src', 'public.open_orders', key_columns => '{id}', source_is_view => true, fingerprint => 'xmin')}), qr/can't be compared by xmin/, 'by xmin');
is(app_sql($target, 'SELECT count(*) FROM tablesync.replica'), '0', 'nothing was added');

# --- what is added ---

my (undef, undef, $notice) = $target->psql('postgres', q{SELECT tablesync_add('open_orders', 'src', 'public.open_orders', key_columns => '{id}', source_is_view => true)}, extra_params => [ '-U', 'app' ]);
like($notice, qr/NOTICE:  the source public\.open_orders is a view\nDETAIL:  That its rows have different keys was found by looking at all of them, which took [\d.]+ s\..*rewritten meanwhile does not show/, 'what is lost is said, and what it costs');
app_sql($target, q{SELECT tablesync_add('customers', 'src', 'public.customers', key_columns => '{customer}', version_column => 'updated_at', source_is_view => true);
	SELECT tablesync_add('totals', 'src', 'public.totals', source_is_view => true);
	SELECT tablesync_add('bare', 'src', 'public.bare', key_columns => '{id}', source_is_view => true, chunk_rows => 100, consistency => 'chunk')});
is(app_sql($target, q{SELECT string_agg(concat_ws(' ', replica, key_columns, fingerprint, source_is_view), ', ' ORDER BY replica::text COLLATE "C") FROM tablesync.replica}),
	'bare {id} row t, customers {customer} version t, open_orders {id} row t, totals {customer} row t', 'keys and fingerprints; the key of a materialized view by its unique index');
like(error_of(q{SELECT tablesync_alter('open_orders', fingerprint => 'xmin')}), qr/can't be compared by xmin/, 'not by xmin later either');
my @replicas = qw(open_orders customers totals bare);
for my $replica (@replicas)
{
	is(run_counts($target, $replica) =~ s/\|.*//r, 'succeeded', "$replica: loaded");
	is_replica($source, $target, $replica, $replica, "$replica: identical");
	is(app_sql($target, "SELECT string_agg(check_name || ': ' || detail, ' ') FROM tablesync_check('$replica') WHERE NOT ok"), '', "$replica: nothing to complain of");
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$replica')"), '0', "$replica: verified");
}
like(app_sql($target, q{SELECT message FROM tablesync_run('open_orders')}), qr/^the source is a view: had the tables behind it been rewritten/, 'the message of a run');
is(app_sql($target, q{SELECT message FROM tablesync_run('totals')}), '', 'a materialized view has files, whose rewrites are noticed');
like(app_sql($target, q{SELECT string_agg(detail, ' ') FROM tablesync_check('open_orders') WHERE check_name IN ('source_table', 'key')}),
	qr/is a view: .*which no index proves/, 'what tablesync_check says of a view');
like(app_sql($target, q{SELECT string_agg(detail, ' ') FROM tablesync_check('totals') WHERE check_name IN ('source_table', 'key')}),
	qr/is a materialized view .*by a unique index/, 'and of a materialized one');

like(app_sql($target, q{SELECT detail FROM tablesync_check('bare') WHERE check_name = 'estimate'}), qr/400 rows/, 'rows as far as they are known');
app_sql($target, q{CREATE SCHEMA imports; IMPORT FOREIGN SCHEMA public LIMIT TO (open_orders) FROM SERVER src INTO imports;
	SELECT tablesync_add('imported', 'imports.open_orders', key_columns => '{id}', source_is_view => true)});
is(run_counts($target, 'imported'), 'succeeded|200|0|0', 'over a foreign table that is there');
app_sql($target, q{SELECT tablesync_remove('imported')});

# --- changes ---

at_source(q{UPDATE orders SET total = total + 1, updated_at = now() WHERE id IN (2, 3); DELETE FROM orders WHERE id = 4; INSERT INTO orders VALUES (1000, 50, 1, NULL, now())});
is(run_counts($target, 'open_orders'), 'succeeded|1|1|1', 'changes of a view');
is_replica($source, $target, 'open_orders', 'open_orders', 'identical');
is(run_counts($target, 'customers') =~ s/\|.*//r, 'succeeded', 'changes of groups');
is(run_counts($target, 'totals'), 'succeeded|0|0|0', 'a materialized view is as it was');
at_source('REFRESH MATERIALIZED VIEW totals; REFRESH MATERIALIZED VIEW CONCURRENTLY totals; REFRESH MATERIALIZED VIEW bare');
is(run_counts($target, 'totals'), 'succeeded|1|3|0', 'until it is refreshed');
is(run_counts($target, 'bare'), 'succeeded|1|0|1', 'also one without an index');
is_replica($source, $target, $_, $_, "$_: identical") for qw(totals bare);

# --- a rewrite of the table behind it: rows that seem to be gone are looked up again ---

my $writer = session($source);
$writer->query_safe("BEGIN; CREATE TEMP TABLE kept AS SELECT * FROM orders; TRUNCATE orders; INSERT INTO orders SELECT * FROM kept");
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('open_orders', wait => false)");
wait_until($source, "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'");
$writer->query_safe('COMMIT');
$writer->quit;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'truncated and filled while the run waits for the table');
is(app_sql($target, "SELECT deleted FROM tablesync_runs WHERE run_id = $run_id"), '0', 'no row is deleted by mistake');
is_replica($source, $target, 'open_orders', 'open_orders', 'identical');
at_source(q{INSERT INTO orders SELECT i, i, i FROM generate_series(2000, 6000) i});
is(run_counts($target, 'open_orders') =~ s/\|.*//r, 'succeeded', 'many more rows');
at_source('DELETE FROM orders WHERE id >= 2000');
like(error_of(q{SELECT tablesync_run('open_orders')}), qr/TS001/, 'the guard against deletes');
is(run_counts($target, 'open_orders', ', force => true') =~ s/\|.*//r, 'succeeded', 'unless it is meant');

# --- rows with the same key, and without one, noticed by runs; none is lost, nothing crashes ---

at_source(q{CREATE TABLE base (id integer, part integer, note text); INSERT INTO base SELECT i, i, 'n' || i FROM generate_series(1, 3000) i;
	CREATE VIEW twice AS SELECT * FROM base; CREATE VIEW pairs AS SELECT id % 50 AS a, part AS b, note FROM base});
app_sql($target, q{SELECT tablesync_add('twice', 'src', 'public.twice', key_columns => '{id}', source_is_view => true, chunk_rows => 500);
	SELECT tablesync_add('pairs', 'src', 'public.pairs', key_columns => '{a,b}', source_is_view => true)});
my %same = (twice => '\(id\), and how many rows have them: \(7,2\)', pairs => '\(a, b\), and how many rows have them: \(7,7,2\)');
for my $loaded (0, 1)
{
	at_source(q{INSERT INTO base VALUES (7, 7, 'again')});
	for my $view (qw(twice pairs))
	{
		like(error_of("SELECT tablesync_run('$view')"),
			qr/23505: rows of the source public\.$view have the same key\nDETAIL:  These $same{$view}\.\nHINT:  .*SELECT tablesync_remove\('public\.$view'\); and add it again/s,
			"$view: the same key " . ($loaded ? 'in a run' : 'in a load'));
	}
	at_source(q{DELETE FROM base WHERE note = 'again'; INSERT INTO base VALUES (NULL, 8, 'none')});
	for my $view (qw(twice pairs))
	{
		like(error_of("SELECT tablesync_run('$view')"), qr/23502: a row of the source public\.$view has no key/, "$view: no key " . ($loaded ? 'in a run' : 'in a load'));
	}
	at_source(q{DELETE FROM base WHERE note = 'none'});
	for my $view (qw(twice pairs))
	{
		is(run_counts($target, $view) =~ s/\|.*//r, 'succeeded', "$view: mended at the source");
		is_replica($source, $target, $view, $view, "$view: identical");
	}
}
at_source(q{UPDATE base SET note = 'changed' WHERE id < 100; INSERT INTO base SELECT 3000 + i, i, 'same' FROM generate_series(1, 2) n, generate_series(1, 100) i});
like(error_of(q{SELECT tablesync_run('twice')}), qr/23505: rows of the source public\.twice have the same key/, 'many new rows in pairs');
is(app_sql($target, q{SELECT count(*) FROM twice WHERE note = 'changed'}), '0', 'nothing was changed');
is(app_sql($target, q{SELECT kind, message FROM tablesync_alerts WHERE replica = 'twice'::regclass}), 'run_failed|rows of the source public.twice have the same key', 'an alert');
at_source(q{DELETE FROM base WHERE note = 'same'});
is(run_counts($target, 'twice'), 'succeeded|0|99|0', 'mended');

# --- a part of a view: its key has to be one among the rows of the part only ---

at_source(q{CREATE TABLE states (id integer, state text, n integer); CREATE VIEW current AS SELECT * FROM states;
	INSERT INTO states SELECT i, s, i FROM generate_series(1, 200) i, unnest('{old,older,new}'::text[]) s; INSERT INTO states VALUES (NULL, 'old', 0)});
like(error_of(q{SELECT tablesync_add('part', 'src', 'public.current', key_columns => '{id}', source_is_view => true)}), qr/2350[25]/, 'the whole view has no such key');
app_sql($target, q{SELECT tablesync_add('part', 'src', 'public.current', key_columns => '{id}', source_is_view => true, filter => $$state = 'new'$$)});
is(run_counts($target, 'part'), 'succeeded|200|0|0', 'a part of it has');
at_source(q{INSERT INTO states VALUES (1, 'old', 9), (NULL, 'older', 1); UPDATE states SET n = 0 WHERE id = 5; UPDATE states SET state = 'old' WHERE id = 6});
is(run_counts($target, 'part'), 'succeeded|0|1|1', 'what is outside of it does not matter');
is(app_sql($target, q{SELECT string_agg(check_name || ': ' || detail, ' ') FROM tablesync_check('part') WHERE NOT ok}), '', 'nothing to complain of');
at_source(q{INSERT INTO states VALUES (7, 'new', 9)});
like(error_of(q{SELECT tablesync_run('part')}), qr/23505: rows of the source public\.current have the same key.*\(id\), and how many rows have them: \(7,2\)/s, 'the same key in it');
at_source(q{DELETE FROM states WHERE id = 7 AND n = 9; INSERT INTO states VALUES (NULL, 'new', 9)});
like(error_of(q{SELECT tablesync_run('part')}), qr/23502: a row of the source public\.current has no key/, 'no key in it');

# --- the view is replaced, or made anew ---

at_source(q{CREATE OR REPLACE VIEW open_orders AS SELECT id, customer, total, note, updated_at, id * 2 AS twice FROM orders WHERE id % 2 = 0});
is(run_counts($target, 'open_orders') =~ s/\|.*//r, 'succeeded', 'columns at the end');
is_replica($source, $target, 'open_orders', 'open_orders', 'identical, with new columns');
at_source(q{ALTER VIEW open_orders RENAME COLUMN note TO remark});
is(run_counts($target, 'open_orders') =~ s/\|.*//r, 'succeeded', 'a column gets another name');
is_replica($source, $target, 'open_orders', 'open_orders', 'identical');
at_source(q{DROP VIEW open_orders; CREATE VIEW open_orders AS SELECT remark, id, customer::bigint, twice, total FROM
	(SELECT id, customer, total, note AS remark, id * 2 AS twice FROM orders) o WHERE id % 2 = 0});
is(run_counts($target, 'open_orders') =~ s/\|.*//r, 'succeeded', 'made anew, with fewer columns and a wider one');
is(app_sql($target, 'SELECT sum(id), sum(customer), sum(total), sum(twice), count(remark) FROM open_orders'),
	$source->safe_psql('postgres', 'SELECT sum(id), sum(customer), sum(total), sum(twice), count(remark) FROM open_orders'), 'values of the right columns');
at_source(q{DROP VIEW open_orders; CREATE VIEW open_orders AS SELECT id AS number, customer::bigint, id * 2 AS twice, total, note AS remark FROM orders WHERE id % 2 = 0});
like(error_of(q{SELECT tablesync_run('open_orders')}), qr/TS003.*key column id was dropped|TS003.*instead of id/s, 'the key is gone');
at_source(q{DROP VIEW open_orders; CREATE TABLE open_orders AS SELECT id, customer::bigint, id * 2 AS twice, total, note AS remark FROM orders WHERE id % 2 = 0; GRANT SELECT ON open_orders TO reader});
app_sql($target, q{SELECT tablesync_resume('open_orders')});
like(error_of(q{SELECT tablesync_run('open_orders')}), qr/TS003.*It is no view, and the replica is that of a view\..*SELECT tablesync_remove\('public\.open_orders'\); and add it again without source_is_view/s,
	'a table is in its place');

# a table whose place a view takes is an error, as ever
at_source('CREATE TABLE was (id integer PRIMARY KEY); INSERT INTO was VALUES (1), (2)');
app_sql($target, q{SELECT tablesync_add('was', 'src', 'public.was')});
app_sql($target, q{SELECT tablesync_run('was')});
at_source('ALTER TABLE was RENAME TO was_table; CREATE VIEW was AS SELECT * FROM was_table');
like(error_of(q{SELECT tablesync_run('was')}), qr/TS003/, 'a table became a view');

# --- policies of the tables behind it hide nothing in silence ---

at_source(q{CREATE TABLE secrets (id integer PRIMARY KEY); INSERT INTO secrets SELECT generate_series(1, 10);
	CREATE ROLE clerk; GRANT SELECT ON secrets TO clerk; GRANT CREATE ON SCHEMA public TO clerk;
	SET ROLE clerk; CREATE VIEW visible AS SELECT id FROM secrets; GRANT SELECT ON visible TO reader});
app_sql($target, q{SELECT tablesync_add('visible', 'src', 'public.visible', key_columns => '{id}', source_is_view => true)});
is(run_counts($target, 'visible'), 'succeeded|10|0|0', 'a view of another role');
at_source(q{ALTER TABLE secrets ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON secrets USING (id < 3)});
like(error_of(q{SELECT tablesync_run('visible')}), qr/row-level security policy/, 'a policy that would hide rows ends the run');
is(app_sql($target, q{SELECT count(*) FROM visible}), '10', 'the rows stay');
like(app_sql($target, q{SELECT detail FROM tablesync_check('visible') WHERE check_name = 'row_security' AND NOT ok}), qr/row-level security policy/, 'tablesync_check says so');

# --- all of a schema ---

at_source(q{CREATE SCHEMA shop; CREATE TABLE shop.items (id integer PRIMARY KEY, n integer);
	CREATE VIEW shop.few AS SELECT * FROM shop.items; CREATE MATERIALIZED VIEW shop.sums AS SELECT n, count(*) FROM shop.items GROUP BY n; CREATE UNIQUE INDEX ON shop.sums (n)});
$target->safe_psql('postgres', 'CREATE SCHEMA shop AUTHORIZATION app');
is(app_sql($target, q{SELECT source, added, reason FROM tablesync_add_schema('src', 'shop', 'shop') WHERE NOT added}),
	qq{shop.few|f|It is a view: rewrites of the tables behind it can't be noticed.\nshop.sums|f|It is a materialized view.}, 'views are left out');
is(app_sql($target, q{SELECT source, added, reason FROM tablesync_add_schema('src', 'shop', 'shop', source_is_view => true)}),
	qq{shop.few|f|the key of the view shop.few is not known: A view has no primary key, and this one not just one unique index either.\n}
	. qq{shop.items|f|it is a replica already\nshop.sums|t|}, 'unless they are asked for, and have a key');
is(app_sql($target, q{SELECT string_agg(replica || ' ' || source_is_view || ' ' || fingerprint, ', ' ORDER BY replica::text) FROM tablesync.replica WHERE replica::text LIKE 'shop.%'}),
	'shop.items false xmin, shop.sums true row', 'each is what it is');

done_testing();
