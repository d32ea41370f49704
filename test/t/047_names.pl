# Names that collide: a table that is called like the foreign table of another,
# names that are cut, names that are taken.

use strict;
use warnings;
use utf8;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

my ($long, $alike) = ('a' x 57 . 'b', 'a' x 57 . 'c');
my $itself = 'i' x 56 . '_source';
$source->safe_psql('postgres', qq{
	CREATE SCHEMA crm;
	CREATE TABLE crm.lead (id integer PRIMARY KEY, name text);
	CREATE TABLE crm.lead_source (id integer PRIMARY KEY, name text);
	CREATE TABLE crm.lead_source_2 (id integer PRIMARY KEY, name text);
	CREATE TABLE crm.$long (id integer PRIMARY KEY);
	CREATE TABLE crm.$alike (id integer PRIMARY KEY);
	CREATE TABLE crm.$itself (id integer PRIMARY KEY);
	INSERT INTO crm.lead SELECT i, 'l' || i FROM generate_series(1, 10) i;
	INSERT INTO crm.lead_source SELECT i, 's' || i FROM generate_series(1, 20) i;
	INSERT INTO crm.lead_source_2 SELECT i, 't' || i FROM generate_series(1, 30) i});
$target->safe_psql('postgres', "CREATE SCHEMA $_ AUTHORIZATION app") for qw(crm later old types);

# Foreign tables of the replicas in a schema.
sub foreign_tables
{
	my ($schema) = @_;
	return app_sql($target, qq{SELECT string_agg(r.relname || ' ' || f.relname, ', ' ORDER BY r.relname COLLATE "C")
		FROM tablesync.replica t JOIN pg_class r ON r.oid = t.replica JOIN pg_class f ON f.oid = t.source WHERE r.relnamespace = '$schema'::regnamespace});
}

# --- all tables of a schema ---

is(app_sql($target, q{SELECT count(*), bool_and(added), string_agg(reason, ' ') FROM tablesync_add_schema('src', 'crm', 'crm')}), '6|t|', 'all are added');
is(foreign_tables('crm'), join(', ', "$long " . 'a' x 56 . '_source', "$alike " . 'a' x 54 . '_source_2', "$itself " . 'i' x 54 . '_source_2',
		'lead lead_source_3', 'lead_source lead_source_source', 'lead_source_2 lead_source_2_source'), 'each foreign table has a name of its own');
is(app_sql($target, q{SELECT string_agg(status || rows, ' ' ORDER BY replica::text COLLATE "C") FROM tablesync_run()}),
	'succeeded0 succeeded0 succeeded0 succeeded10 succeeded20 succeeded30', 'they run');
is_replica($source, $target, "crm.$_", "crm.$_", "$_: identical") for qw(lead lead_source lead_source_2);

# --- one table, and the next in another call ---

app_sql($target, q{SELECT tablesync_add('later.lead', 'src', 'crm.lead')});
is(foreign_tables('later'), 'lead lead_source', 'nothing else is known of');
my $error = app_fails($target, q{SELECT tablesync_add('later.lead_source', 'src', 'crm.lead_source')});
like($error, qr/table later\.lead_source can't be the replica.*DETAIL:  It is the foreign table through which replica later\.lead reads its source\./s, 'a table whose name the foreign table has');
my ($rename) = $error =~ /HINT:  (ALTER FOREIGN TABLE .*?;)/;
is($rename, 'ALTER FOREIGN TABLE later.lead_source RENAME TO lead_source_foreign;', 'the hint');
is(app_sql($target, q{SELECT source, added, reason LIKE 'later.lead_source exists. It is the foreign table through which replica later.lead reads its source. ' ||
		'ALTER FOREIGN TABLE later.lead_source RENAME TO lead_source_foreign; %'
		FROM tablesync_add_schema('src', 'crm', 'later', only_tables => '{lead,lead_source}') WHERE reason <> 'it is a replica already'}),
	'crm.lead_source|f|t', 'tablesync_add_schema says it, too');
app_sql($target, "$rename SELECT tablesync_add('later.lead_source', 'src', 'crm.lead_source')");
is(run_counts($target, "later.$_") =~ s/\|.*//r, 'succeeded', "$_: runs") for qw(lead lead_source);
is_replica($source, $target, "crm.$_", "later.$_", "$_: identical") for qw(lead lead_source);

# --- a name that something else has; what is left over is found again ---

app_sql($target, q{CREATE TABLE old.lead_source (mine integer); INSERT INTO old.lead_source VALUES (7); SELECT tablesync_add('old.lead', 'src', 'crm.lead')});
is(foreign_tables('old'), 'lead lead_source_2', 'a table of a user');
is(app_sql($target, 'SELECT mine FROM old.lead_source'), '7', 'it stays as it is');
app_sql($target, q{DROP TABLE old.lead; SELECT tablesync_add('old.lead', 'src', 'crm.lead')});
is(foreign_tables('old'), 'lead lead_source_2', 'the one that was left over');
app_sql($target, q{SELECT tablesync_remove('old.lead'); SELECT tablesync_add('old.lead', 'src', 'crm.lead')});
is(foreign_tables('old'), 'lead lead_source_2', 'removed and added again');
is(app_sql($target, q{SELECT count(*) FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid WHERE c.relnamespace = 'old'::regnamespace}), '1', 'there is one');
$target->safe_psql('postgres', q{CREATE ROLE other LOGIN; GRANT ALL ON SCHEMA old TO other; GRANT USAGE ON FOREIGN SERVER src TO other;
	SET ROLE other; CREATE FOREIGN TABLE old.lead_source_source (id integer, name text) SERVER src OPTIONS (schema_name 'crm', table_name 'lead_source')});
app_sql($target, q{DROP TABLE old.lead_source; SELECT tablesync_add('old.lead_source', 'src', 'crm.lead_source')});
is(foreign_tables('old'), 'lead lead_source_2, lead_source lead_source_source_2', 'a foreign table of somebody else is not taken for one that is left over');
app_sql($target, q{CREATE TYPE types.lead_source AS ENUM ('x'); SELECT tablesync_add('types.lead', 'src', 'crm.lead')});
is(foreign_tables('types'), 'lead lead_source_2', 'a type of that name');

done_testing();
