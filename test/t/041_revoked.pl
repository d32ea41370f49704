# A source that has taken from everybody what PostgreSQL lets everybody read.
# Each error says which statement of its DBA gives it back, and that does it.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 2000) i});
app_sql($target, q{SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at')});
is(run_counts($target, 'items'), 'succeeded|2000|0|0', 'loaded');

for my $catalog (qw(pg_settings pg_class pg_attribute pg_index pg_namespace))
{
	$source->safe_psql('postgres', "REVOKE ALL ON $catalog FROM PUBLIC");
	my $error = app_fails($target, q{SELECT tablesync_run('items')});
	like($error, qr/ERROR:  42501: permission denied for (view|table) $catalog/, "$catalog: refused");
	my ($hint) = $error =~ /HINT:  At the source: (.*;)$/m;
	is($hint, "GRANT SELECT ON pg_catalog.$catalog TO reader;", 'with a statement');
	is(app_sql($target, q{SELECT check_name, ok, hint FROM tablesync_check('items') WHERE NOT ok}), "connection|f|At the source: $hint", 'the check says so, too');
	$source->safe_psql('postgres', $hint);
	is(run_counts($target, 'items'), 'succeeded|0|0|0', 'which helps');
	is(app_sql($target, q{SELECT count(*) FROM tablesync_check('items') WHERE NOT ok OR hint LIKE '%GRANT%'}), 0, 'the check is content');
}

for my $catalog (qw(pg_stat_activity pg_stat_bgwriter))
{
	$source->safe_psql('postgres', "REVOKE ALL ON $catalog FROM PUBLIC; UPDATE items SET note = note || '+' WHERE id = 7; DELETE FROM items WHERE id = (SELECT max(id) FROM items)");
	is(run_counts($target, 'items'), 'succeeded|0|1|1', "$catalog: a run does without");
	like(app_sql($target, q{SELECT message FROM tablesync_runs ORDER BY run_id DESC LIMIT 1}), qr/^the source does not show how far it has come, so every column was compared/, 'and says so');
	is_replica($source, $target, 'items', 'items', 'identical');
	my ($ok, $hint) = split /\|/, app_sql($target, q{SELECT ok, hint FROM tablesync_check('items') WHERE check_name = 'connection'});
	is("$ok $hint", "t At the source: GRANT SELECT ON pg_catalog.$catalog TO reader;", 'the check has a statement');
	$source->safe_psql('postgres', $hint =~ s/At the source: //r);
	run_counts($target, 'items');
	$source->safe_psql('postgres', q{UPDATE items SET note = note || '+' WHERE id = 8});
	is(run_counts($target, 'items'), 'succeeded|0|1|0', 'and again by xmin');
	is(app_sql($target, q{SELECT count(*) FROM tablesync_runs WHERE message IS NOT NULL AND run_id = (SELECT max(run_id) FROM tablesync_runs)}), 0, 'without a word');
}

done_testing();
