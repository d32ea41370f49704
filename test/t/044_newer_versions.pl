# What only 17 and 18 have: owners who may not log in, PostgreSQL's own order of
# text; virtual columns, NOT NULL that is not true of all rows, temporal keys.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(target => { conf => "shared_preload_libraries = 'pg_cron'" });
plan(skip_all => 'PostgreSQL 17 or newer is needed') if $target->pg_version < 17;

sub at_source { return $source->safe_psql('postgres', $_[0]) }
sub as_app { return $target->safe_psql('postgres', "SET ROLE app; $_[0]") }    # who may have no LOGIN

# --- an owner who may not log in ---

at_source('CREATE TABLE items (id integer PRIMARY KEY, note text); INSERT INTO items SELECT i, i FROM generate_series(1, 100) i');
$target->safe_psql('postgres', 'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO app');
app_sql($target, q{SELECT tablesync_add('items', 'src', 'public.items')});
$target->safe_psql('postgres', 'ALTER ROLE app NOLOGIN');
is(as_app(q{SELECT status, inserted FROM tablesync_run('items')}), 'succeeded|100', 'no LOGIN: a run');
is(as_app(q{SELECT count(*) FROM tablesync_verify('items')}), 0, 'a verify');
is(as_app(q{SELECT detail FROM tablesync_check('items') WHERE check_name = 'owner'}) =~ s/;.*//r, 'app may read the foreign table and write the replica', 'a check');
my (undef, undef, $stderr) = $target->psql('postgres', q{SET ROLE app; SELECT tablesync_schedule('items', '* * * * *')});
like($stderr, qr/ERROR:  role "app" may not log in\nDETAIL:  pg_cron connects as the owner of the replica\.\nHINT:  ALTER ROLE app LOGIN;/, 'no schedule');
$target->safe_psql('postgres', 'ALTER ROLE app LOGIN');
app_sql($target, q{SELECT tablesync_schedule('items', '0 0 1 1 *')});
$target->safe_psql('postgres', 'ALTER ROLE app NOLOGIN');
is(as_app(q{SELECT detail, hint FROM tablesync_check('items') WHERE NOT ok}), 'role "app" may not log in, and pg_cron connects as the owner|ALTER ROLE app LOGIN;', 'where there is one, the check tells');
$target->safe_psql('postgres', 'ALTER ROLE app LOGIN');
is(app_sql($target, q{SELECT count(*) FROM tablesync_check('items') WHERE NOT ok}), 0, 'its remedy');

# --- text that PostgreSQL sorts itself ---

my $text = q{translate(md5(i::text), '0123456789abcdef', 'aAbBäÄzZ-_ ''"\éß')};
for my $database ($target->pg_version < 18 ? 'C.UTF-8' : ('C.UTF-8', 'PG_UNICODE_FAST'))
{
	(my $name = lc $database) =~ s/\W/_/g;
	$source->safe_psql('postgres', qq{CREATE DATABASE $name TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE '$database'});
	$source->safe_psql($name, qq{
		CREATE TABLE words (word text PRIMARY KEY, said text COLLATE pg_c_utf8 UNIQUE NOT NULL, seq integer);
		INSERT INTO words SELECT $text, $text, i FROM generate_series(1, 3000) i;
		GRANT SELECT ON words TO reader});
	$target->safe_psql('postgres', qq{
		CREATE SERVER $name FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '@{[ $source->port ]}', dbname '$name');
		GRANT USAGE ON FOREIGN SERVER $name TO app;
		CREATE USER MAPPING FOR app SERVER $name OPTIONS (user 'reader', password 'read-only');
		CREATE DATABASE here_$name TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE '$database'});
	for my $key (qw(word said))
	{
		my $replica = "${name}_$key";
		app_sql($target, "SELECT tablesync_add('$replica', '$name', 'public.words', key_columns => '{$key}', chunk_rows => 500)");
		is(run_counts($target, $replica), 'succeeded|3000|0|0', "$database, by $key: loaded");
		is(run_counts($target, $replica), 'succeeded|0|0|0', 'nothing to do');
		cmp_ok(app_sql($target, "SELECT count(*) FROM tablesync.chunk WHERE replica = '$replica'::regclass"), '>', 3, 'in chunks');
	}
	$source->safe_psql($name, qq{
		DELETE FROM words WHERE seq % 50 = 7; UPDATE words SET seq = -seq WHERE seq % 50 = 8;
		INSERT INTO words SELECT $text, $text, i FROM generate_series(3001, 3060) i});
	for my $key (qw(word said))
	{
		my $replica = "${name}_$key";
		is(run_counts($target, $replica), 'succeeded|60|60|60', 'changes');
		is(app_sql($target, "SELECT count(*) FROM tablesync_verify('$replica')"), 0, 'identical');
	}

	# and a replica in a database that sorts so
	$target->safe_psql("here_$name", qq{
		CREATE EXTENSION tablesync CASCADE;
		CREATE SERVER src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '@{[ $source->port ]}', dbname '$name');
		CREATE USER MAPPING FOR postgres SERVER src OPTIONS (user 'reader', password 'read-only');
		SELECT tablesync_add('words', 'src', 'public.words', chunk_rows => 500)});
	is($target->safe_psql("here_$name", q{SELECT status, inserted FROM tablesync_run('words')}), 'succeeded|3000', 'such a database here');
	$source->safe_psql($name, 'UPDATE words SET seq = 0 WHERE seq > 0 AND seq <= 3000 AND seq % 100 = 9');
	is($target->safe_psql("here_$name", q{SELECT status, updated FROM tablesync_run('words')}), 'succeeded|30', 'changes');
	cmp_ok($target->safe_psql("here_$name", 'SELECT count(*) FROM tablesync.chunk'), '>', 3, 'in chunks');
	is($target->safe_psql("here_$name", q{SELECT count(*) FROM tablesync_verify('words')}), 0, 'identical');
}

if ($target->pg_version < 18)
{
	done_testing();
	exit;
}

# --- virtual generated columns: another expression writes no row ---

at_source(q{
	CREATE TABLE virtual (id integer PRIMARY KEY, a integer, g integer GENERATED ALWAYS AS (a * 2) VIRTUAL,
		updated_at timestamptz NOT NULL DEFAULT '2021-01-01');
	INSERT INTO virtual (id, a) SELECT i, i FROM generate_series(1, 60000) i});
my %ways = (xmin => '', row => '', version => ", version_column => 'updated_at'");
for my $fingerprint (sort keys %ways)
{
	app_sql($target, "SELECT tablesync_add('by_$fingerprint', 'src', 'public.virtual', fingerprint => '$fingerprint'$ways{$fingerprint})");
	is(run_counts($target, "by_$fingerprint"), 'succeeded|60000|0|0', "virtual columns, by $fingerprint: loaded");
}
at_source('UPDATE virtual SET a = -a, updated_at = now() WHERE id % 1000 = 0');
is(run_counts($target, "by_$_"), 'succeeded|0|60|0', "by $_: changes") for sort keys %ways;
at_source('ALTER TABLE virtual ALTER g SET EXPRESSION AS (CASE WHEN id % 2 = 0 THEN a * 3 ELSE a * 2 END)');
for my $fingerprint (sort keys %ways)
{
	is(run_counts($target, "by_$fingerprint"), 'succeeded|0|30000|0', "by $fingerprint: another expression");
	is(run_counts($target, "by_$fingerprint"), 'succeeded|0|0|0', 'only once');
	is(app_sql($target, "SELECT count(*) FROM tablesync_verify('by_$fingerprint')"), 0, 'identical');
}

# what an unfinished load has brought is old
app_sql($target, q{SELECT tablesync_add('stopped', 'src', 'public.virtual', max_source_load => 0.02)});
my $run = app_sql($target, q{SELECT run_id FROM tablesync_run('stopped', wait => false)});
wait_until($target, q{SELECT load_position IS NOT NULL FROM tablesync.replica WHERE replica = 'stopped'::regclass});
app_sql($target, q{SELECT tablesync_cancel('stopped')});
is(app_sql($target, "SELECT tablesync_wait($run)"), 'cancelled', 'a load is interrupted');
is(app_sql($target, q{SELECT loaded FROM tablesync.replica WHERE replica = 'stopped'::regclass}), 'f', 'in the middle');
at_source('ALTER TABLE virtual ALTER g SET EXPRESSION AS (a * 5)');
app_sql($target, q{SELECT tablesync_alter('stopped', max_source_load => 1)});
like(run_counts($target, 'stopped'), qr/^succeeded/, 'it goes on');
is(app_sql($target, q{SELECT count(*) FROM tablesync_verify('stopped')}), 0, 'identical');

# --- NOT NULL that is not true of all rows ---

at_source(q{
	CREATE TABLE doubtful (id integer PRIMARY KEY, v integer, k integer UNIQUE);
	INSERT INTO doubtful SELECT i, nullif(i % 2, 0), nullif(i, 7) FROM generate_series(1, 100) i;
	ALTER TABLE doubtful ADD CONSTRAINT v_there NOT NULL v NOT VALID, ADD CONSTRAINT k_there NOT NULL k NOT VALID;
	GRANT SELECT ON doubtful TO reader});
app_sql($target, q{SELECT tablesync_add('doubtful', 'src', 'public.doubtful')});
is(run_counts($target, 'doubtful'), 'succeeded|100|0|0', 'NOT NULL, NOT VALID: loaded');
is_replica($source, $target, 'doubtful', 'doubtful', 'with its NULLs');
like(app_fails($target, q{SELECT tablesync_add('by_k', 'src', 'public.doubtful', key_columns => '{k}')}),
	qr/ERROR:  55000: columns \{k\} are not a key of the source public\.doubtful/, 'and no key');
at_source('UPDATE doubtful SET v = 0 WHERE v IS NULL; UPDATE doubtful SET k = 7 WHERE k IS NULL; ALTER TABLE doubtful VALIDATE CONSTRAINT v_there, VALIDATE CONSTRAINT k_there');
is(run_counts($target, 'doubtful'), 'succeeded|0|51|0', 'validated');
is(app_sql($target, q{SELECT count(*) FROM tablesync_schema_log WHERE replica = 'doubtful'::regclass AND change = 'not_null'}), 2, 'is a change of the source');
app_sql($target, q{SELECT tablesync_add('by_k', 'src', 'public.doubtful', key_columns => '{k}')});
is(run_counts($target, 'by_k'), 'succeeded|100|0|0', 'and a key');

# --- temporal keys ---

at_source(q{
	CREATE EXTENSION btree_gist;
	CREATE TABLE prices (item integer, valid daterange, price integer, PRIMARY KEY (item, valid WITHOUT OVERLAPS));
	INSERT INTO prices VALUES (1, '[2020-01-01,2020-02-01)', 1), (1, '[2020-02-01,2020-03-01)', 2);
	CREATE TABLE numbered (n integer PRIMARY KEY, item integer, valid daterange, UNIQUE (item, valid WITHOUT OVERLAPS));
	INSERT INTO numbered VALUES (1, 1, '[2020-01-01,2020-02-01)'), (2, 1, '[2020-02-01,2020-03-01)')});
like(app_fails($target, q{SELECT tablesync_add('prices', 'src', 'public.prices')}),
	qr/column valid of the source public\.prices can't be replicated exactly.*type daterange is not supported in a key/s, 'a temporal key is refused');
like(app_fails($target, q{SELECT tablesync_add('prices', 'src', 'public.prices', key_columns => '{item}')}), qr/columns \{item\} are not a key/, 'part of it, too');
app_sql($target, q{SELECT tablesync_add('numbered', 'src', 'public.numbered')});
is(run_counts($target, 'numbered'), 'succeeded|2|0|0', 'beside another key it is no matter');
at_source(q{UPDATE numbered SET valid = '[2020-01-01,2020-01-20)' WHERE n = 1});
is(run_counts($target, 'numbered'), 'succeeded|0|1|0', 'changes');
is_replica($source, $target, 'numbered', 'numbered', 'identical');

done_testing();
