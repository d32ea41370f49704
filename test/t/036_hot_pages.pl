# What a run reads of a large table leaves the pages in the source's memory that
# production works with.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => "shared_buffers = 32MB\nautovacuum = off\nmax_wal_size = 4GB" });

plan skip_all => 'pg_buffercache, which tells what is in memory, is not there'
	if $source->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_buffercache'") == 0;
$source->safe_psql('postgres', q{
	CREATE EXTENSION pg_buffercache;
	CREATE TABLE hot (id integer PRIMARY KEY, v text);
	INSERT INTO hot SELECT i, repeat('h', 200) FROM generate_series(1, 45000) i;
	CREATE TABLE large (id integer PRIMARY KEY, v text, updated_at timestamptz);
	INSERT INTO large SELECT i, md5(i::text) || md5(i::text), now() FROM generate_series(1, 300000) i;
	VACUUM ANALYZE});
app_sql($target, "SELECT tablesync_add('large', 'src', 'public.large', chunk_rows => 50000)");
is(run_counts($target, 'large'), 'succeeded|300000|0|0', 'load');
is(run_counts($target, 'large'), 'succeeded|0|0|0', 'and once more');

my $pages = "SELECT count(*) FROM pg_buffercache WHERE relfilenode = pg_relation_filenode('hot') AND relforknumber = 0
	AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())";

# Read the hot table by its index, twice, so that its pages have been used more than once.
sub warm_up
{
	$source->safe_psql('postgres', q{
		SET enable_seqscan = off; SET enable_bitmapscan = off;
		SELECT count(v) FROM hot WHERE id > 0;
		SELECT count(v) FROM hot WHERE id > 0});
	return $source->safe_psql('postgres', $pages);
}

sub keeps_hot_pages
{
	my ($name, $change, $run, $result) = @_;
	# without VACUUM the first reader of a page would clean it up, whoever it is, and a cleaned page takes a buffer
	$source->safe_psql('postgres', $_) for $change ? ($change, 'VACUUM large') : ();
	my $before = warm_up();
	cmp_ok($before, '>', 1200, "$name: the hot pages are there");
	is(app_sql($target, $run), $result, $name);
	my $kept = $source->safe_psql('postgres', $pages) / $before;
	cmp_ok($kept, '>=', 0.95, sprintf('%s: %.1f %% of the hot pages are kept', $name, $kept * 100));
	return;
}

my $sync = "SELECT status, inserted, updated, deleted FROM tablesync_run('large')";
keeps_hot_pages('idle', undef, $sync, 'succeeded|0|0|0');
keeps_hot_pages('few scattered updates', "UPDATE large SET v = 'x' || v WHERE id % 1000 = 1", $sync, 'succeeded|0|300|0');
keeps_hot_pages('many scattered updates', "UPDATE large SET v = 'y' || v WHERE id % 40 = 1", $sync, 'succeeded|0|7500|0');
keeps_hot_pages('many scattered deletes', 'DELETE FROM large WHERE id % 40 = 2', $sync, 'succeeded|0|0|7500');
keeps_hot_pages('idle again', undef, $sync, 'succeeded|0|0|0');
keeps_hot_pages('verify', undef, "SELECT count(*) FROM tablesync_verify('large')", '0');
is_replica($source, $target, 'large', 'large', 'in the end');

done_testing();
