# Columns that an index has besides its key (INCLUDE) are none of the key; an
# index that is no key is named, with the reason.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

# --- INCLUDE, in a unique index and in a primary key ---

my %sources = (
	by_index => q{CREATE TABLE by_index (id integer NOT NULL, note text, extra jsonb, other integer);
		CREATE UNIQUE INDEX by_index_key ON by_index (id) INCLUDE (note, other)},
	by_primary_key => q{CREATE TABLE by_primary_key (id integer, note text, extra jsonb, other integer, PRIMARY KEY (id) INCLUDE (note, other))},
	by_two => q{CREATE TABLE by_two (id integer NOT NULL, note text, extra jsonb, other integer NOT NULL);
		CREATE UNIQUE INDEX by_two_key ON by_two (other, id) INCLUDE (extra, note)},
);
my %keys = (by_index => 'id', by_primary_key => 'id', by_two => 'other,id');

for my $table (sort keys %sources)
{
	$source->safe_psql('postgres', "$sources{$table}; INSERT INTO $table SELECT i, CASE WHEN i % 3 > 0 THEN 'note ' || i END,
		CASE WHEN i % 5 > 0 THEN jsonb_build_object('n', i) END, i % 7 FROM generate_series(1, 1000) i");
	for my $fingerprint ('xmin', 'row')
	{
		my $replica = "${table}_$fingerprint";
		my $key = $table eq 'by_primary_key' ? '' : ", key_columns => '{$keys{$table}}'";
		app_sql($target, "SELECT tablesync_add('$replica', 'src', 'public.$table', fingerprint => '$fingerprint'$key)");
		is(app_sql($target, "SELECT array_to_string(key_columns, ',') FROM tablesync.replica WHERE replica = '$replica'::regclass"), $keys{$table}, "$replica: the key");
		is(app_sql($target, "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = '$replica'::regclass AND contype = 'p'") =~ s/ //gr,
			"PRIMARYKEY($keys{$table})", "$replica: a primary key of the key columns only");
		is(run_counts($target, $replica), 'succeeded|1000|0|0', "$replica: loaded");
		is(app_sql($target, "SELECT string_agg(check_name || ': ' || detail, ' ') FROM tablesync_check('$replica') WHERE NOT ok"), '', "$replica: nothing to complain of");
	}
	$source->safe_psql('postgres', "UPDATE $table SET note = 'changed' WHERE id % 100 = 0; UPDATE $table SET note = NULL WHERE id = 101;
		UPDATE $table SET extra = '{\"a\": [1, null]}' WHERE id = 102; UPDATE $table SET extra = NULL WHERE id = 103;
		DELETE FROM $table WHERE id = 104; INSERT INTO $table VALUES (2000, NULL, NULL, 3)");
	is(run_counts($target, "${table}_$_"), 'succeeded|1|13|1', "$table by $_: updates are updates") for 'xmin', 'row';
	is_replica($source, $target, $table, "${table}_$_", "$table by $_: identical") for 'xmin', 'row';
}

# the replica's own index may have INCLUDE columns, too
app_sql($target, q{CREATE TABLE own (id integer NOT NULL, note text, extra jsonb, other integer); CREATE UNIQUE INDEX ON own (id) INCLUDE (note);
	SELECT tablesync_add('own', 'src', 'public.by_index', key_columns => '{id}')});
is(run_counts($target, 'own'), 'succeeded|1000|0|0', 'an index of the replica with INCLUDE');
is_replica($source, $target, 'by_index', 'own', 'identical');
app_sql($target, 'CREATE TABLE not_by (id integer NOT NULL, note text, extra jsonb, other integer); CREATE UNIQUE INDEX ON not_by (note) INCLUDE (id)');
like(app_fails($target, q{SELECT tablesync_add('not_by', 'src', 'public.by_index', key_columns => '{id}')}), qr/It has no primary key or unique index on \(id\)/, 'one that has the key only there');

# --- a run notices that the index has gone, and another with INCLUDE will do ---

$source->safe_psql('postgres', 'DROP INDEX by_index_key; CREATE UNIQUE INDEX by_index_other ON by_index (other, id) INCLUDE (note)');
like(app_fails($target, q{SELECT tablesync_run('by_index_xmin')}), qr/TS003.*No valid unique index of the source is on \(id\) any more/s, 'the key is not unique any more');
$source->safe_psql('postgres', 'CREATE UNIQUE INDEX by_index_new ON by_index (id) INCLUDE (extra)');
is(run_counts($target, 'by_index_xmin'), 'succeeded|0|0|0', 'until there is an index again');

# --- what is no key, and why ---

$source->safe_psql('postgres', q{
	CREATE TABLE none (a integer NOT NULL, b integer NOT NULL, c integer, d integer NOT NULL, e integer NOT NULL, f text NOT NULL, g integer NOT NULL, h text);
	CREATE UNIQUE INDEX none_two ON none (a, b);
	CREATE UNIQUE INDEX none_nulls ON none (c);
	CREATE UNIQUE INDEX "none ""part""" ON none (d) WHERE d > 0;
	ALTER TABLE none ADD CONSTRAINT none_late UNIQUE (e) DEFERRABLE;
	CREATE UNIQUE INDEX none_lower ON none (lower(f));
	CREATE UNIQUE INDEX none_include ON none (a, b) INCLUDE (g, h);
	INSERT INTO none VALUES (1, 1, 1, 1, 1, 'x', 1), (2, 2, 2, 2, 2, 'y', 1)});
$source->psql('postgres', 'CREATE UNIQUE INDEX CONCURRENTLY none_invalid ON none (g)');

sub why
{
	my ($key) = @_;
	my ($detail) = app_fails($target, "SELECT tablesync_add('copy', 'src', 'public.none', key_columns => '$key')") =~ /DETAIL:  (.*)/;
	return $detail =~ s/^A key needs a unique index at the source, on NOT NULL columns, that is neither partial nor deferrable\. ?//r;
}

is(why('{a}'), 'Index none_include has further columns, which are part of the key. Index none_lower has expressions, which are no columns. Index none_two has further columns, which are part of the key.', 'half of a key');
is(why('{c}') =~ s/ Index none_lower.*//r, 'Column c may be NULL.', 'NULLs');
like(why('{d}'), qr/Index "none ""part""" is partial: it says nothing about the rows outside of it\./, 'partial');
like(why('{e}'), qr/Index none_late is deferrable: rows may have the same key for a while\./, 'deferrable');
is(why('{f}'), 'Index none_lower has expressions, which are no columns.', 'an expression');
like(why('{g}'), qr/Index none_include has some of them as INCLUDE columns, which it does not compare\. Index none_invalid is not valid: it was not built to the end\./, 'INCLUDE, and not valid');
like(why('{a,b,g}'), qr/Index none_include has some of them as INCLUDE columns, which it does not compare\./, 'key and INCLUDE columns');
like(why('{a,nothing}'), qr/^There is no column nothing\./, 'a column that is not there');
is(app_sql($target, q{SELECT tablesync_add('copy', 'src', 'public.none', key_columns => '{b,a}')}), 'copy', 'a key');

# --- values that are equal and written differently ---

# bounds of chunks are text: one may end at (10.0, ..) that has begun at (10, ..)
$source->safe_psql('postgres', q{
	CREATE TABLE scales (n numeric, i integer, note text, PRIMARY KEY (n, i));
	INSERT INTO scales SELECT CASE WHEN i % 8 < 4 THEN 10 ELSE 10.0 END, i, 'n' FROM generate_series(1, 60) i;
	CREATE TABLE blanks (b bpchar COLLATE "C", i integer, note text, PRIMARY KEY (b, i));
	INSERT INTO blanks SELECT CASE WHEN i % 8 < 4 THEN 'b' ELSE 'b  ' END, i, 'n' FROM generate_series(1, 60) i});
for my $table (qw(scales blanks))
{
	app_sql($target, "SELECT tablesync_add('$table', 'src', 'public.$table', chunk_rows => 3, verify_fraction => 0.4, max_delete_fraction => 1)");
	run_counts($target, $table);
	is_replica($source, $target, $table, $table, "$table: loaded");
	$source->safe_psql('postgres', "UPDATE $table SET note = 'o' WHERE i % 7 = 0; DELETE FROM $table WHERE i % 7 = 1; INSERT INTO $table SELECT max(@{[ $table eq 'scales' ? 'n' : 'b' ]}), 100 + g, 'p' FROM $table, generate_series(1, 5) g GROUP BY g");
	is(run_counts($target, $table), 'succeeded|5|8|9', "$table: changes");
	is_replica($source, $target, $table, $table, "$table: each row is in one chunk");
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$table')"), 0, "$table: verified");
	is(app_sql($target, "SELECT count(*) FROM $table"), app_sql($target, "SELECT sum(rows) FROM tablesync.chunk WHERE replica = '$table'::regclass"), "$table: chunks have as many rows as the replica");
}

done_testing();
