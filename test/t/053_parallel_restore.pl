# pg_restore -j: the rows of the extension's tables come in any order, and all of
# them arrive.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text);
	INSERT INTO items SELECT i, 'n' || i FROM generate_series(1, 3000) i});
app_sql($target, "SELECT tablesync_add('r$_', 'src', 'public.items')") for 1 .. 6;
app_sql($target, q{SELECT FROM tablesync_alter('r4', feed => true); SELECT tablesync_consumer_add('reader', 'r4')});
app_sql($target, 'SELECT status FROM tablesync_run()') for 1 .. 2;
app_sql($target, q{UPDATE r1 SET note = 'by hand' WHERE id <= 100; ALTER TABLE r2 ADD CHECK (id <> 5000)});
app_sql($target, q{SELECT count(*) FROM tablesync_verify('r1')});
$source->safe_psql('postgres', 'INSERT INTO items VALUES (5000); ALTER TABLE items ADD COLUMN extra integer');
$target->psql('postgres', 'SELECT status FROM tablesync_run()', extra_params => [ '-U', 'app' ]);    # of r2 it fails
app_sql($target, q{SELECT tablesync_schedule('r3', '0 * * * *', job_id => 1)});

# Tables of the extension that a dump has, with how many rows each has.
my $tables = q{SELECT string_agg(format('%s %s', c.oid::regclass, (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM %s', c.oid::regclass), false, true, '')))[1]), ', '
		ORDER BY c.oid::regclass::text)
	FROM pg_extension e, unnest(e.extconfig) x JOIN pg_class c ON c.oid = x AND c.relkind = 'r' WHERE e.extname = 'tablesync'};
is($target->safe_psql('postgres', q{
	SELECT count(*) FILTER (WHERE g.tgfoid = '"RI_FKey_check_ins"'::regproc AND g.tgenabled <> 'D'), count(*) FILTER (WHERE g.tgname LIKE 'belongs\_to\_%') = count(DISTINCT k.oid)
	FROM pg_extension e JOIN pg_constraint k ON k.conrelid = ANY (e.extconfig) AND k.contype = 'f' JOIN pg_trigger g ON g.tgrelid = k.conrelid WHERE e.extname = 'tablesync'}),
	'0|t', 'no foreign key of a dumped table looks for what may come later');
my $dump = $target->basedir . '/dump';
$target->command_ok([ 'pg_dump', '-U', 'postgres', '-Fc', '-f', $dump, $target->connstr('postgres') ], 'dumped');
my $all = $target->safe_psql('postgres', $tables);
unlike($all, qr/ 0(,|$)/, 'each table has rows') or diag($all);

for my $try (1 .. 4)
{
	$target->safe_psql('postgres', "CREATE DATABASE restored$try");
	$target->command_ok([ 'pg_restore', '-U', 'postgres', '-j', 2 + $try % 3, '-d', $target->connstr("restored$try"), $dump ], "restored by several processes ($try)");
	is($target->safe_psql("restored$try", $tables), $all, 'all rows are there');
}

sub restored
{
	my ($sql) = @_;
	return $target->safe_psql('restored1', $sql, extra_params => [ '-U', 'app' ]);
}

is(restored('SELECT count(*) FROM tablesync_status WHERE state = \'paused\''), 6, 'all replicas, paused');
restored(q{SELECT tablesync_resume(replica) FROM tablesync_status});
is(restored(q{SELECT status, inserted, updated, deleted FROM tablesync_run('r1')}), 'succeeded|0|0|0', 'resumed');
is(restored(q{SELECT count(*) FROM tablesync_verify('r1')}), 0, 'exact');
restored(q{SELECT tablesync_remove('r1')});
is($target->safe_psql('restored1', q{
	SELECT count(*) FROM (SELECT replica FROM tablesync.run UNION ALL SELECT replica FROM tablesync.chunk UNION ALL SELECT replica FROM tablesync.difference
		UNION ALL SELECT replica FROM tablesync.alert UNION ALL SELECT replica FROM tablesync.schema_log) x WHERE replica::text = 'r1'}), 0, 'and removed with all that belongs to it');

# nobody else gets round the check
my ($rc, $stdout, $stderr) = $target->psql('restored1', q{INSERT INTO tablesync.all_runs (replica, kind) VALUES ('r1', 'sync')}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($stderr, qr/ERROR:  23503: row of tablesync\.all_runs belongs to no replica/, 'a run needs its replica');
($rc, $stdout, $stderr) = $target->psql('restored1', q{INSERT INTO tablesync.all_differences (run_id, replica, key, difference, source) VALUES (-1, 'r2', '{}', 'missing here', '{}')},
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($stderr, qr/ERROR:  23503: row of tablesync\.all_differences belongs to no run/, 'a difference its run');

# --- columns and types that have other numbers there ---

$source->safe_psql('postgres', q{
	CREATE TYPE mood AS ENUM ('fine', 'tired');
	CREATE TABLE people (id integer PRIMARY KEY, gone text, a text, b text, mood mood);
	INSERT INTO people SELECT i, 'g', 'a' || i, 'b' || i, 'fine' FROM generate_series(1, 100) i});
$target->safe_psql('postgres', q{CREATE TYPE mood AS ENUM ('fine', 'tired'); ALTER TYPE mood OWNER TO app});
app_sql($target, q{SELECT tablesync_add('people', 'src', 'public.people', drop_columns => true)});
run_counts($target, 'people');
$source->safe_psql('postgres', 'ALTER TABLE people DROP COLUMN gone');
run_counts($target, 'people');
$target->command_ok([ 'pg_dump', '-U', 'postgres', '-Fc', '-f', $dump, $target->connstr('postgres') ], 'dumped');
$target->safe_psql('postgres', 'CREATE DATABASE numbers');
$target->command_ok([ 'pg_restore', '-U', 'postgres', '-d', $target->connstr('numbers'), $dump ], 'restored: no column was dropped there');
sub numbers { return $target->safe_psql('numbers', $_[0], extra_params => [ '-U', 'app' ]) }
numbers(q{SELECT tablesync_resume('people')});
is(numbers(q{SELECT status, updated FROM tablesync_run('people')}), 'succeeded|0', 'resumed');
$source->safe_psql('postgres', q{ALTER TABLE people RENAME a TO c; ALTER TABLE people RENAME b TO a; ALTER TYPE mood ADD VALUE 'well'});
$source->safe_psql('postgres', q{UPDATE people SET mood = 'well', c = 'c' WHERE id < 10; ALTER TABLE people ADD d integer DEFAULT 4});
is(numbers(q{SELECT status, updated FROM tablesync_run('people')}), 'succeeded|100', 'the source changes its shape');
is(numbers('SELECT count(*), sum(hashtextextended(ROW(id, c, a, mood, d)::text, 0)) FROM people'),
	$source->safe_psql('postgres', 'SELECT count(*), sum(hashtextextended(ROW(id, c, a, mood, d)::text, 0)) FROM people'), 'identical');

done_testing();
