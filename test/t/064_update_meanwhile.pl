# The extension is updated while runs go on: the files of a next version are
# installed, and ALTER EXTENSION .. UPDATE is called, in each phase of a run.  A run
# that is changing its replica ends well, and the update waits for it; any other
# one is refused clearly and changes nothing; the next one is exact.
#
# The target has an installation of its own, so that no other test meets the
# library of the next version.

use strict;
use warnings;

use File::Basename;
use File::Spec;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

# --- an installation, and a next version: with a function that has other arguments, and a column more ---

sub run_or_die { system_or_bail(@_); return; }

sub pg_config { chomp(my $got = qx{pg_config --$_[0]}); return $got; }

my %folder = map { $_ => pg_config($_) } qw(bindir pkglibdir sharedir);
my $common = dirname($folder{bindir});
$common = dirname($common) until !grep { index($_, "$common/") != 0 } values %folder;
my $here = File::Spec->rel2abs(PostgreSQL::Test::Utils::tempdir());    # 17 gives a relative one
for (values %folder)
{
	my $to = $here . dirname(substr $_, length $common);
	run_or_die('mkdir', '-p', $to);
	run_or_die('cp', '-a', $_, $to);
}
my %own = map { $_ => $here . substr($folder{$_}, length $common) } keys %folder;
my $install = dirname($own{bindir});

my $next = "$here/next";
run_or_die('mkdir', $next);
run_or_die('cp', '-a', map({ "$ENV{TESTDIR}/$_" } qw(Makefile tablesync.control extension)), $next);

sub rewrite
{
	my ($file, $change) = @_;
	local $_ = slurp_file($file);
	$change->();
	open my $out, '>', $file or die "$file: $!";
	print $out $_;
	close $out;
	return;
}

my ($version) = slurp_file("$next/tablesync.control") =~ /default_version = '(.*)'/;
my $next_version = "$version.1";
rewrite("$next/tablesync.control", sub { s/default_version = '.*'/default_version = '$next_version'/ });
rewrite("$next/extension/feed/write.c", sub { s/finish_feed\(\$1::regclass, \$2/finish_feed('next', \$1::regclass, \$2/ or die });
run_or_die('make', '-s', '-C', $next, 'with_llvm=no', "PG_CONFIG=$folder{bindir}/pg_config", 'tablesync.so');

# What "make install" does: new files in the place of old ones.
sub install_next
{
	run_or_die('install', '-m', '755', "$next/tablesync.so", "$own{pkglibdir}/tablesync.so");
	run_or_die('install', '-m', '644', "$next/tablesync.control", "$own{sharedir}/extension/");
	open my $script, '>', "$own{sharedir}/extension/tablesync--$version--$next_version.sql" or die;
	print $script <<'SQL';
COMMENT ON EXTENSION tablesync IS 'news';
ALTER TABLE tablesync.replica ADD COLUMN news integer NOT NULL DEFAULT 1;
ALTER FUNCTION tablesync.finish_feed(regclass, bigint, bigint, bigint, timestamptz) RENAME TO finish_feed_before;
CREATE FUNCTION tablesync.finish_feed(news text, replica regclass, run_id bigint, first_position bigint, last_position bigint, source_instant timestamptz)
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'SELECT tablesync.finish_feed_before($2, $3, $4, $5, $6)';
REVOKE ALL ON FUNCTION tablesync.finish_feed(text, regclass, bigint, bigint, bigint, timestamptz) FROM PUBLIC;
SQL
	close $script;
	return;
}

sub install_back
{
	run_or_die('install', '-m', '755', "$folder{pkglibdir}/tablesync.so", "$own{pkglibdir}/tablesync.so");
	run_or_die('install', '-m', '644', "$folder{sharedir}/extension/tablesync.control", "$own{sharedir}/extension/");
	unlink "$own{sharedir}/extension/tablesync--$version--$next_version.sql";
	return;
}

# --- replicas, with a feed ---

my $source = start_source();
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, amount integer NOT NULL);
	INSERT INTO items SELECT i, 10 FROM generate_series(1, 1000) i;
	CREATE TABLE many (id integer PRIMARY KEY, note text);
	INSERT INTO many SELECT i, md5(i::text) FROM generate_series(1, 20000) i;
	CREATE TABLE big (id integer PRIMARY KEY, note text);
	INSERT INTO big SELECT i, md5(i::text) FROM generate_series(1, 120000) i;
	ANALYZE});
my $target = start_target($source, install_path => $install, conf => "tablesync.lock_timeout = 60s\nfsync = off\nlog_min_messages = fatal");

# A database as the old version has made it, whose replica "items" is loaded.
sub start_anew
{
	install_back();
	$target->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid();
		DROP EXTENSION IF EXISTS tablesync CASCADE; DROP OWNED BY app; CREATE EXTENSION tablesync; GRANT CREATE ON SCHEMA public TO app; GRANT USAGE ON FOREIGN SERVER src TO app;
		CREATE USER MAPPING IF NOT EXISTS FOR app SERVER src OPTIONS (user 'reader', password 'read-only')});
	app_sql($target, q{SELECT tablesync_add('items', 'src', 'public.items', feed => true)});
	app_sql($target, q{SELECT status FROM tablesync_run('items')});
	app_sql($target, q{
		CREATE OR REPLACE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END$$;
		CREATE TRIGGER wait_here AFTER UPDATE ON items FOR EACH STATEMENT EXECUTE FUNCTION wait_here();
		ALTER TABLE items ENABLE ALWAYS TRIGGER wait_here});
	$source->safe_psql('postgres', 'UPDATE items SET amount = amount + 1 WHERE id % 10 = 0; DELETE FROM items WHERE id = (SELECT min(id) FROM items); INSERT INTO items SELECT max(id) + 1, 5 FROM items');
	return;
}

# The run that did not end is told of; the next one, of a new session, is exact.
sub goes_on
{
	my ($phase, $replica) = @_;
	like(app_sql($target, "SELECT status FROM tablesync_run('$replica')"), qr/^succeeded$/, "$phase: the next run");
	is_replica($source, $target, $replica, $replica, "$phase: is exact");
	is(app_sql($target, 'SELECT count(*) FROM tablesync_alerts'), 0, "$phase: no alert is left");
	return;
}

my $update = "ALTER EXTENSION tablesync UPDATE";
my $last = q{SELECT status, sqlstate, message FROM tablesync_runs ORDER BY run_id DESC LIMIT 1};
my $told = qr/tablesync was updated from version \Q$version to $next_version\E during the run/;

sub update_soon
{
	my $updater = session($target);
	$updater->query_until(qr//, "$update;\n");
	wait_until($target, qq{SELECT count(*) = 1 FROM pg_stat_activity WHERE query = '$update;' AND wait_event_type = 'Lock'});
	return $updater;
}

# --- SCAN: refused ---

start_anew();
my $caller = session($target, '-v', 'ON_ERROR_STOP=0');
$caller->query_safe("SET ROLE app; SELECT count(*) FROM tablesync_run('items')");
$source->safe_psql('postgres', 'UPDATE items SET amount = amount + 1 WHERE id % 7 = 0');
my $before = app_sql($target, 'SELECT sum(amount) FROM items');
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE items');
app_sql($target, q{SELECT tablesync_run('items', wait => false)});
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
install_next();
like(app_fails($target, q{SELECT tablesync_run('items')}), qr/ERROR:  55000: the library of tablesync \Q$next_version does not fit the extension, which is of version $version\E\nHINT:  Use ALTER EXTENSION tablesync UPDATE/,
	'new files, old SQL: new sessions are refused, and told what to do');
my $updater = update_soon();
$locker->quit;
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
like(app_sql($target, $last), qr/^failed\|55000\|$told/, 'SCAN: the run says why it has failed');
is(app_sql($target, 'SELECT sum(amount) FROM items'), $before, 'SCAN: and has changed nothing');
$updater->quit;
$caller->query(q{SELECT * FROM tablesync_run('items')});
like($caller->{stderr}, qr/ERROR:  the library of tablesync \Q$version does not fit the extension, which is of version $next_version\E\nHINT:  .* Sessions that were there before have to connect again/, 'a session of before is refused, and told why');
eval { $caller->quit };
goes_on('SCAN', 'items');

# --- APPLY: the update waits, the run ends well ---

start_anew();
my $holder = session($target);
$holder->query_safe('BEGIN; SELECT pg_advisory_xact_lock(42)');
app_sql($target, q{SELECT tablesync_run('items', wait => false)});
wait_until($target, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event = 'advisory'});
install_next();
$updater = update_soon();
$holder->quit;
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
wait_until($target, qq{SELECT extversion = '$next_version' FROM pg_extension WHERE extname = 'tablesync'});
$updater->quit;
like(app_sql($target, $last), qr/^succeeded\|/, 'APPLY: the run ends well');
is_replica($source, $target, 'items', 'items', 'APPLY: and is exact');
$source->safe_psql('postgres', 'UPDATE items SET amount = amount + 1 WHERE id % 9 = 0');
goes_on('APPLY', 'items');

# --- a caller waits for a run, the update for a lock of the caller's, the run for the update: the caller goes ---

for my $call (q{SELECT status FROM tablesync_run('items')}, 'SELECT status FROM tablesync_run()', q{SELECT * FROM tablesync_verify('items')})
{
	start_anew();
	$locker = session($source);
	$locker->query_safe('BEGIN; LOCK TABLE items');
	$caller = session($target, '-v', 'ON_ERROR_STOP=0');
	$caller->query_safe('SET ROLE app');
	$caller->query_until(qr//, "$call;\n\\echo returned\n");
	wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
	install_next();
	$updater = session($target);
	$updater->query_until(qr//, "BEGIN; COMMENT ON EXTENSION tablesync IS 'soon'; LOCK TABLE tablesync.all_replicas, tablesync.replica; COMMIT; $update;\n");
	$caller->query_until(qr/returned/, '');
	like($caller->{stderr}, qr/ERROR:  tablesync is being updated\nDETAIL:  .*\nHINT:  Nothing is lost\. Connect again, and run again/, "$call: is ended");
	$caller->quit;
	wait_until($target, qq{SELECT extversion = '$next_version' FROM pg_extension WHERE extname = 'tablesync'});
	$locker->quit;
	wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
	$updater->quit;
	like(app_sql($target, q{SELECT status FROM tablesync_runs ORDER BY run_id DESC LIMIT 1}), qr/^(cancelled|failed|crashed)$/, "$call: so is its run");
	is(app_sql($target, q{SELECT status FROM tablesync_run('items')}), 'succeeded', "$call: the next one");
	is_replica($source, $target, 'items', 'items', "$call: is exact");
}

# --- a load, page by page: what it has loaded stays, and it goes on there ---

start_anew();
app_sql($target, q{SELECT tablesync_add('many', 'src', 'public.many', chunk_rows => 500, max_source_load => 0.05); SELECT tablesync_run('many', wait => false)});
wait_until($target, q{SELECT count(*) > 0 FROM many});
install_next();
$target->safe_psql('postgres', $update);
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
my $loaded = app_sql($target, 'SELECT count(*) FROM many');
cmp_ok($loaded, '<', 20000, "load: it was interrupted, after $loaded rows");
like(app_sql($target, $last), qr/^failed\|55000\|$told/, 'load: the run says why it has failed');
app_sql($target, q{SELECT tablesync_alter('many', max_source_load => 1)});
is(app_sql($target, q{SELECT status, inserted FROM tablesync_run('many')}), 'succeeded|' . (20000 - $loaded), 'load: the next run goes on where it has ended');
goes_on('load', 'many');

# --- a bulk load with a helper, while it builds its index ---

start_anew();
app_sql($target, q{SELECT tablesync_add('big', 'src', 'public.big', workers => 2)});
my $reader = session($target);
$reader->query_safe('BEGIN; SELECT FROM big LIMIT 1');
app_sql($target, q{SELECT tablesync_run('big', wait => false)});
wait_until($target, q{SELECT count(*) > 0 FROM pg_locks WHERE relation = 'big'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted});
install_next();
$updater = update_soon();
$reader->quit;
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'tablesync%'});
wait_until($target, qq{SELECT extversion = '$next_version' FROM pg_extension WHERE extname = 'tablesync'});
$updater->quit;
like(app_sql($target, $last), qr/^failed\|55000\|$told/, 'bulk load: its indexes are complete, the rest is refused');
goes_on('bulk load', 'big');
is(app_sql($target, q{SELECT bool_and(indisvalid AND indisready) FROM pg_index WHERE indrelid = 'big'::regclass}), 't', 'bulk load: with its index');

done_testing();
