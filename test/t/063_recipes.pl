# The recipes of docs/recipes.md, each as it stands there.  TABLESYNC_ROWS is how
# many rows they have; the times are printed.

use strict;
use warnings;

use File::Spec;
use PostgreSQL::Test::Cluster;
use TablesyncTest;
use Test::More;
use Time::HiRes qw(time);

my $rows = $ENV{TABLESYNC_ROWS} // 50_000;
my $source = start_source(conf => 'fsync = off');
$source->safe_psql('postgres', qq{
	CREATE TABLE media (id integer PRIMARY KEY, kind text NOT NULL, bytes bigint NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO media SELECT i, (ARRAY['jpg', 'mp4', 'png'])[i % 3 + 1], (i::bigint * 7919) % 1000000, '2026-01-01Z'::timestamptz + (i % 365) * interval '1 day' + (i % 86400) * interval '1 second' FROM generate_series(1, $rows) i;
	ANALYZE});
my $target = start_target($source, conf => "wal_level = replica\nmax_wal_senders = 4\nfsync = off");
$target->append_conf('pg_hba.conf', 'local replication all trust');
$target->reload;
app_sql($target, q{SELECT tablesync_add('media', 'src', 'public.media', version_column => 'updated_at', feed => true, keep_changes => '30 days')});
is(app_sql($target, q{SELECT status, rows FROM tablesync_run('media')}), "succeeded|$rows", 'the replica');
$target->safe_psql('postgres', 'VACUUM ANALYZE media');

# The recipe's statements, from the documentation.
my $text = PostgreSQL::Test::Utils::slurp_file("$ENV{TESTDIR}/docs/recipes.md");
my %recipe;
$recipe{$1} = $2 while $text =~ /<!-- (\w+) -->\n```sql\n(.*?)```/gs;

# The best of three, in milliseconds.
sub timed
{
	my ($name, $node, $sql) = @_;
	my $best;
	for (1 .. 3)
	{
		my $plan = app_sql($node, "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) $sql");
		my ($time) = $plan =~ /"Execution Time": ([\d.]+)/;
		$best = $time if !defined $best || $time < $best;
	}
	diag(sprintf '%s: %.1f ms', $name, $best);
	return $best;
}

# --- averages per day ---

my $averages = $recipe{averages};
my $slow = timed('averages of a week, without an index', $target, $averages);
my $begin = time;
app_sql($target, $recipe{index});
diag(sprintf 'the index: %.2f s', time - $begin);
$target->safe_psql('postgres', 'VACUUM ANALYZE media');
timed('averages of a week, with one', $target, $averages);
my $plan = app_sql($target, "EXPLAIN $averages");
like($plan, qr/Index Only Scan using media_created_at/, 'the index is used');
is(app_sql($target, $averages) =~ tr/\n//, 6, 'a week has seven days');
$source->safe_psql('postgres', q{UPDATE media SET bytes = 1, updated_at = clock_timestamp() WHERE id % 100 = 0});
my ($run) = app_sql($target, q{SELECT status, updated, duration FROM tablesync_run('media')}) =~ /(.*)/;
my $hundredth = int($rows / 100);
like($run, qr/^succeeded\|$hundredth\|/, 'runs keep it up to date');
diag("a run with that index: $run");

# --- a materialized view, refreshed after each run ---

app_sql($target, $recipe{matview});
timed('averages of a week, from the materialized view', $target, 'SELECT * FROM media_per_day WHERE day >= \'2026-03-01\' AND day < \'2026-03-08\'');
my $listener = session($target, '-U', 'app');
$listener->query_safe('LISTEN tablesync');
$source->safe_psql('postgres', q{UPDATE media SET bytes = 2, updated_at = clock_timestamp() WHERE id % 100 = 0});
app_sql($target, q{SELECT tablesync_run('media')});
like($listener->query_safe('SELECT 1'), qr/"event"\s*:\s*"changes", "replica"\s*:\s*"public.media"/, 'a run with changes is told');
$begin = time;
$listener->query_safe($recipe{refresh});
diag(sprintf 'the refresh: %.2f s', time - $begin);
is(app_sql($target, 'SELECT round(sum(files * average)) = (SELECT sum(bytes) FROM media) FROM media_per_day'), 't', 'the view is what the replica is');
app_sql($target, q{SELECT tablesync_run('media')});
unlike($listener->query_safe('SELECT 1'), qr/"changes"/, 'one without changes is not');
$listener->quit;

# --- a standby ---

$target->backup('base', backup_options => [ '--checkpoint', 'fast' ]);
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($target, 'base', has_streaming => 1);
$standby->start;
$target->wait_for_catchup($standby);
is(app_sql($standby, $averages), app_sql($target, $averages), 'the same at a standby');
timed('averages of a week, at a standby', $standby, $averages);
is(app_sql($standby, $recipe{fresh}), app_sql($target, $recipe{fresh}), 'and as fresh as it says');

# --- rows of a day, as a file ---

my $dir = File::Spec->rel2abs(PostgreSQL::Test::Utils::tempdir());    # 17 gives a relative one
chmod 0700, $dir;
$target->append_conf('postgresql.conf', "tablesync.export_directory = '$dir'");
$target->reload;
for my $format ('csv', 'jsonl')
{
	$begin = time;
	my $export = app_sql($target, "SELECT tablesync_export('media', '2020-01-01', now(), '$format')");
	wait_until($target, "SELECT state = 'FINISHED' FROM tablesync_exports WHERE export_id = $export");
	diag(sprintf 'an export of all rows, %s: %.1f s', $format, time - $begin);
}
my $exported = app_sql($target, $recipe{export});
wait_until($target, "SELECT state = 'FINISHED' FROM tablesync_exports WHERE export_id = $exported");
is(app_sql($target, $recipe{exported}), app_sql($target, q{SELECT count(*) FROM media WHERE updated_at >= date_trunc('day', now(), 'UTC') - interval '1 day' AND updated_at < date_trunc('day', now(), 'UTC')}), 'rows of a day');

# --- a consumer for each service ---

$target->safe_psql('postgres', q{CREATE ROLE search LOGIN; CREATE ROLE cache LOGIN});
app_sql($target, $recipe{grants});
sub as { my ($role, $sql) = @_; return $target->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]) }
as('search', $recipe{service});
as('cache', $recipe{service});
$source->safe_psql('postgres', q{DELETE FROM media WHERE id <= 10});
app_sql($target, q{SELECT tablesync_run('media')});
is(as('search', $recipe{fetch}), as('cache', $recipe{fetch}), 'each gets all changes');
$source->safe_psql('postgres', q{UPDATE media SET bytes = 3, updated_at = clock_timestamp() WHERE id % 20 = 0});
app_sql($target, q{SELECT tablesync_run('media')});
for my $work ('fetch', 'fetch and commit')
{
	$begin = time;
	as('search', $work eq 'fetch' ? $recipe{fetch} : $recipe{commit});
	diag(sprintf 'a thousand changes, %s: %.0f ms', $work, 1000 * (time - $begin));
}
while (as('search', 'SELECT behind FROM tablesync_consumers') > 0) { as('search', $recipe{commit}) }
is(as('search', 'SELECT consumer, behind FROM tablesync_consumers'), 'mine|0', 'one has dealt with them');
is(as('cache', 'SELECT consumer, behind FROM tablesync_consumers'), 'mine|' . (10 + int($rows / 20)), 'the other has not');
is(app_sql($target, 'SELECT count(*) FROM tablesync_consumers'), 2, 'the owner of the replica sees both');

done_testing();
