# The three-hour example, as a user would go through it.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

$source->safe_psql('postgres', q{
	CREATE TABLE media (
		id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		s3_path varchar(1024), format varchar(5), type smallint, updated_at timestamp);
	INSERT INTO media (s3_path, format, type, updated_at) VALUES
		('/a.jpg', 'jpg', 1, '2021-01-01 00:20'),
		('/b.jpg', 'jpg', 1, '2021-01-01 00:20'),
		('/c.jpg', 'jpg', 1, '2021-01-01 00:30')});
is(app_sql($target, "SELECT tablesync_add('media', 'src', 'public.media', version_column => 'updated_at')"),
	'media', 'replica added from server and name');
is(app_sql($target, "SELECT state FROM tablesync_status"), 'never_run', 'never run');
is(run_counts($target, 'media'), 'succeeded|3|0|0', 'hour 1: loaded');
is_replica($source, $target, 'media', 'media', 'hour 1: identical');

$source->safe_psql('postgres', q{
	UPDATE media SET s3_path = '/xx.jpg', updated_at = '2021-01-01 01:21' WHERE id = 1;
	INSERT INTO media (s3_path, format, type, updated_at) VALUES
		('/d.mp4', 'mp4', 2, '2021-01-01 01:30'), ('/e.jpg', 'jpg', 1, '2021-01-01 01:40')});
is(run_counts($target, 'media'), 'succeeded|2|1|0', 'hour 2: 2 inserted, 1 updated');
is_replica($source, $target, 'media', 'media', 'hour 2: identical');

# row 6 is older than the second run: whoever asks for updated_at > last run never sees it
$source->safe_psql('postgres', q{
	UPDATE media SET s3_path = '/zz.gif', format = 'gif', updated_at = '2021-01-01 02:30' WHERE id = 2;
	DELETE FROM media WHERE id = 3;
	INSERT INTO media (s3_path, format, type, updated_at) VALUES ('/f.jpg', 'jpg', 1, '2021-01-01 01:40')});
is(run_counts($target, 'media'), 'succeeded|1|1|1', 'hour 3: 1 inserted, 1 updated, 1 deleted');
is_replica($source, $target, 'media', 'media', 'hour 3: identical');

is(app_sql($target, "SELECT state, rows, inserted, updated, deleted FROM tablesync_status"),
	'ok|5|1|1|1', 'status');

# a run that finds nothing writes nothing to the replica
wait_until($target, q{SELECT n_tup_ins + n_tup_upd + n_tup_del = 9 FROM pg_stat_user_tables WHERE relname = 'media'});
is(run_counts($target, 'media'), 'succeeded|0|0|0', 'nothing to do');
is($target->safe_psql('postgres', q{
		SELECT pg_stat_force_next_flush();
		SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relname = 'media'}),
	"\n9", 'and nothing written');

# the types are the source's
is(app_sql($target, q{
		SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END, ', ' ORDER BY attnum)
		FROM pg_attribute WHERE attrelid = 'media'::regclass AND attnum > 0}),
	'id integer not null, s3_path character varying(1024), format character varying(5), type smallint, updated_at timestamp without time zone',
	'replica has the source\'s types');

done_testing();
