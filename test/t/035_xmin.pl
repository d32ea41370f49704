# fingerprint xmin: every committed change is found, whatever it touches, and
# nothing else is taken for one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

$source->safe_psql('postgres', q{
	CREATE TABLE thing (id integer PRIMARY KEY, v text, x xml, r int4range, f float8[], j json, updated_at timestamptz);
	INSERT INTO thing SELECT i, md5(i::text), '<a/>', int4range(i, i + 5), ARRAY[i, 0.5], '{"a": 1}', '2024-01-01'::timestamptz + i * interval '1 s' FROM generate_series(1, 20000) i});
app_sql($target, "SELECT tablesync_add('thing', 'src', 'public.thing', version_column => 'updated_at')");
is(app_sql($target, "SELECT fingerprint FROM tablesync.replica"), 'xmin', 'xmin is the default');
is(run_counts($target, 'thing'), 'succeeded|20000|0|0', 'loads');
is_replica($source, $target, 'thing', 'thing', 'load');
is(run_counts($target, 'thing'), 'succeeded|0|0|0', 'idle');
$source->safe_psql('postgres', q{UPDATE thing SET v = 'no stamp' WHERE id = 17});
is(run_counts($target, 'thing'), 'succeeded|0|1|0', 'an update without a stamp');
$source->safe_psql('postgres', q{UPDATE thing SET updated_at = '2001-01-01' WHERE id = 18});
is(run_counts($target, 'thing'), 'succeeded|0|1|0', 'a stamp that is set back');
$source->safe_psql('postgres', q{UPDATE thing SET x = '<b/>' WHERE id = 19; UPDATE thing SET r = '[1,2)' WHERE id = 20; UPDATE thing SET f = '{NaN}' WHERE id = 21; UPDATE thing SET j = '{"a":  1}' WHERE id = 22});
is(run_counts($target, 'thing'), 'succeeded|0|4|0', 'columns of any type');
$source->safe_psql('postgres', q{UPDATE thing SET v = v WHERE id < 300});
is(run_counts($target, 'thing'), 'succeeded|0|0|0', 'updates that change nothing');
$source->safe_psql('postgres', q{DELETE FROM thing WHERE id % 100 = 1; INSERT INTO thing SELECT i, 'new' FROM generate_series(20001, 20100) i});
is(run_counts($target, 'thing'), 'succeeded|100|0|200', 'inserts and deletes');
is_replica($source, $target, 'thing', 'thing', 'after changes');
is(run_counts($target, 'thing'), 'succeeded|0|0|0', 'idle');
$source->safe_psql('postgres', 'VACUUM FULL thing');
is(app_sql($target, "SELECT status, inserted, updated, deleted, message FROM tablesync_run('thing')"), 'succeeded|0|0|0|', 'VACUUM FULL');
$source->safe_psql('postgres', 'VACUUM FREEZE thing');
is(app_sql($target, "SELECT status, inserted, updated, deleted, message FROM tablesync_run('thing')"), 'succeeded|0|0|0|', 'FREEZE');
$source->safe_psql('postgres', q{ALTER TABLE thing ALTER v TYPE text USING v || ''});
like(app_sql($target, "SELECT status, inserted, updated, deleted, message FROM tablesync_run('thing')"),
	qr/^succeeded\|0\|0\|0\|most rows of 1 of 1 chunks were written anew .* every column of these was compared$/, 'rewriting ALTER TABLE');
is_replica($source, $target, 'thing', 'thing', 'after a rewrite');
app_sql($target, q{UPDATE thing SET v = 'stranger' WHERE id = 50; DELETE FROM thing WHERE id = 51; INSERT INTO thing VALUES (1000000, 'x')});
is(app_sql($target, "SELECT status, inserted, updated, deleted, message FROM tablesync_run('thing')"),
	'succeeded|1|1|1|somebody else had changed the replica in 1 of 1 chunks; it was repaired', 'strangers');
is_replica($source, $target, 'thing', 'thing', 'after strangers');
is(run_counts($target, 'thing'), 'succeeded|0|0|0', 'idle');

# --- somebody else has written to the replica before the load was over ---

$source->safe_psql('postgres', q{
	CREATE TABLE early (id integer PRIMARY KEY, v text);
	INSERT INTO early SELECT i, 'v' || i FROM generate_series(1, 1000) i});
app_sql($target, q{
	SELECT tablesync_add('early', 'src', 'public.early');
	CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE public.early SET v = 'mine' WHERE id = 7;
		RETURN NULL;
	END $$;
	CREATE TRIGGER meddle AFTER INSERT ON early FOR EACH STATEMENT EXECUTE FUNCTION meddle()});
like(run_counts($target, 'early'), qr/^succeeded\|/, 'a load with somebody else writing');
is_replica($source, $target, 'early', 'early', 'what he has written is undone');

# --- rows that were written anew, where every run verifies ---

$source->safe_psql('postgres', q{
	CREATE TABLE proved (id integer PRIMARY KEY, v text);
	INSERT INTO proved SELECT i, 'v' || i FROM generate_series(1, 2000) i});
app_sql($target, "SELECT tablesync_add('proved', 'src', 'public.proved', chunk_rows => 500, verify_fraction => 1)");
is(run_counts($target, 'proved'), 'succeeded|2000|0|0', 'every run verifies');
$source->safe_psql('postgres', 'UPDATE proved SET v = v WHERE id < 100');
is(run_counts($target, 'proved'), 'succeeded|0|0|0', 'nothing has changed');
app_sql($target, "SELECT tablesync_alter('proved', verify_fraction => 0)");
is(app_sql($target, "SELECT status, updated, message FROM tablesync_run('proved')"), 'succeeded|0|', 'and that is remembered');

# --- every row of a table of several chunks was changed ---

$source->safe_psql('postgres', q{
	CREATE TABLE whole (id integer PRIMARY KEY, v text);
	INSERT INTO whole SELECT i, repeat('v', 100) || i FROM generate_series(1, 20000) i});
$source->safe_psql('postgres', 'VACUUM ANALYZE whole');
app_sql($target, "SELECT tablesync_add('whole', 'src', 'public.whole', chunk_rows => 5000)");
is(run_counts($target, 'whole'), 'succeeded|20000|0|0', 'several chunks');
$source->safe_psql('postgres', q{UPDATE whole SET v = 'u' || v});
is(run_counts($target, 'whole'), 'succeeded|0|20000|0', 'all of them were changed: that is no damaged index');
is_replica($source, $target, 'whole', 'whole', 'which they are here, too');

done_testing();
