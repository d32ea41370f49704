# A hot standby of the target: what its views say while runs go on at the primary,
# what can't be done there, and what becomes of a run that a promotion cuts off.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use TablesyncTest;
use Test::More;

my $source = start_source();
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 1000) i;
	CREATE TABLE many (id integer PRIMARY KEY, note text);
	INSERT INTO many SELECT i, md5(i::text) FROM generate_series(1, 600000) i;
	ANALYZE});
my $primary = start_target($source,
	conf => "wal_level = replica\nmax_wal_senders = 4\ntablesync.lock_timeout = 60s\nfsync = off\nshared_preload_libraries = 'pg_cron'\ncron.use_background_workers = on");
$primary->append_conf('pg_hba.conf', 'local replication all trust');
$primary->reload;
$primary->safe_psql('postgres', 'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO app');
app_sql($primary, q{
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at', freshness => '1 day', feed => true);
	SELECT tablesync_add('many', 'src', 'public.many', workers => 2, max_source_load => 1);
	SELECT tablesync_schedule('items', '0 0 1 1 *')});
run_counts($primary, 'items');

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$standby->start;

sub both
{
	my ($sql) = @_;
	$primary->wait_for_catchup($standby);
	return app_sql($standby, $sql) . ' / ' . app_sql($primary, $sql);
}

# --- nothing goes on ---

my $status = q{SELECT state, rows, schedule, message FROM tablesync_status WHERE replica = 'items'::regclass};
is(both($status), 'ok|1000|0 0 1 1 *| / ok|1000|0 0 1 1 *|', 'the same state');
is(both('SELECT status FROM tablesync_health()'), 'ok / ok', 'all is well');
is(app_sql($standby, 'SELECT tablesync.watch(), tablesync.serve_queue(), tablesync.serve_exports()'), '0|0|0', 'nothing to do there');
is(app_sql($standby, q{SELECT tablesync.prepare_server('src')}), '', 'foreign tables over the catalogs of a source are made at the primary');
is(app_sql($standby, q{SELECT string_agg(check_name, ' ') FROM tablesync_check('items') WHERE NOT ok}), 'connection', 'checks of the source are the primary\'s');
like(app_sql($standby, q{SELECT detail || hint FROM tablesync_check('items') WHERE NOT ok}), qr/^cannot use tablesync_check\(\) on a standby .*Use it on the primary server/, 'and say so');

# --- a run goes on at the primary ---

sub start_blocked_run
{
	$source->safe_psql('postgres', q{UPDATE items SET note = note || '+', updated_at = now() WHERE id <= 10; DELETE FROM items WHERE id = (SELECT max(id) FROM items)});
	my $locker = session($source);
	$locker->query_safe('BEGIN; LOCK TABLE items');
	my $run_id = app_sql($primary, q{SELECT run_id FROM tablesync_run('items', wait => false)});
	wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
	$primary->wait_for_catchup($standby);
	return ($locker, $run_id);
}

my ($locker, $run_id) = start_blocked_run();
is(both(q{SELECT state, message FROM tablesync_status WHERE replica = 'items'::regclass}), 'running| / running|', 'running');
is(both("SELECT status, sqlstate, message, duration > '0' FROM tablesync_runs WHERE run_id = $run_id"), 'running|||t / running|||t', 'the run');
is(both('SELECT status FROM tablesync_health()'), 'ok / ok', 'all is well');
is(both('SELECT count(*) FROM tablesync_alerts'), '0 / 0', 'no alert');
is(both(q{SELECT crashed, failures_in_a_row FROM tablesync_totals WHERE replica = 'items'::regclass}), '0|0 / 0|0', 'no crash is counted');
is(app_sql($standby, "SELECT tablesync_wait($run_id, '50 ms')"), 'running', 'it can be waited for');
is(app_sql($standby, 'SELECT count(*) FROM tablesync_progress'), 0, 'how far it is only the primary knows');

# --- what can't be done on a standby ---

for my $call (
	q{tablesync_run('items')}, q{tablesync_run()}, q{tablesync_run('items', wait => false)}, q{tablesync_verify('items')}, q{tablesync_cancel('items')},
	q{tablesync_pause('items')}, q{tablesync_resume('items')}, q{tablesync_alter('items', workers => 3)}, q{tablesync_remove('items')},
	q{tablesync_schedule('items', '* * * * *')}, q{tablesync_unschedule('items')},
	q{tablesync_add('more', 'src', 'public.items')}, q{tablesync_add('more', 'items_source')}, q{tablesync_add_schema('src', 'public', 'public')},
	q{tablesync_consumer_add('c', 'items')}, q{tablesync_consumer_remove('c')}, q{tablesync_fetch('c')}, q{tablesync_commit('c', 1)}, q{tablesync_export('items', '2026-01-01', '2026-01-02')},
	q{tablesync.run_scheduled('items')})
{
	my ($name) = $call =~ /^([\w.]+)/;
	my $error = app_fails($standby, ($name =~ /run_scheduled/ ? 'CALL ' : 'SELECT * FROM ') . $call);
	like($error, qr/ERROR:  25006: cannot use \Q$name\E\(\) on a standby\nHINT:  Use it on the primary server\. It works here after a promotion\.\n/, "refused: $call");
	unlike($error, qr/SQL statement "(?!SELECT tablesync\.(add|create|check_primary))/, 'no statement of ours is shown');
}
like(app_fails($standby, q{SELECT tablesync.enable('items', false)}), qr/cannot use tablesync\.enable\(\) on a standby/, 'nor through a door');

# --- the run ends ---

$locker->query_safe('COMMIT');
$locker->quit;
is(app_sql($standby, "SELECT tablesync_wait($run_id)"), 'succeeded', 'its end arrives');
is(both($status), 'ok|999|0 0 1 1 *| / ok|999|0 0 1 1 *|', 'as it was');

# the feed is read there, too
is(both(q{SELECT count(*), max(position) FROM tablesync_changes('items')}), '12|12 / 12|12', 'changes');
is(both(q{SELECT count(*), max(position) FROM tablesync_envelopes('items', 10)}), '2|12 / 2|12', 'envelopes');
is(both(q{SELECT count(*), max(position) FROM tablesync_envelopes('items', NULL)}), '999|12 / 999|12', 'rows');
is(both(q{SELECT count(*) FROM tablesync_as_of('items', (SELECT min(applied_at) FROM tablesync.fed_run))}), '1000 / 1000', 'rows as they were');
is(both('SELECT count(*) FROM tablesync_consumers'), '0 / 0', 'consumers');

# a run that has crashed at the primary, of which nobody has taken note there, looks as if it went on
($locker, $run_id) = start_blocked_run();
$primary->stop('immediate');
$primary->start;
is(both("SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'running / crashed', 'crashed');
app_sql($primary, 'SELECT tablesync.watch()');
$locker->query_safe('COMMIT');
$locker->quit;
run_counts($primary, 'items');
is(both("SELECT status FROM tablesync_runs WHERE run_id = $run_id"), 'crashed / crashed', 'noted by the next run');

# --- a promotion in the middle of a run, and of a load ---

app_sql($primary, q{SELECT tablesync_alter('many', max_source_load => 0.02)});    # so that it takes long
my $load_id = app_sql($primary, q{SELECT run_id FROM tablesync_run('many', wait => false)});
wait_until($primary, q{SELECT count(*) FILTER (WHERE loaded) BETWEEN 1 AND count(*) - 1 FROM tablesync.chunk WHERE replica = 'many'::regclass});
($locker, $run_id) = start_blocked_run();
is(app_sql($standby, q{SELECT string_agg(state, ' ' ORDER BY replica::text) FROM tablesync_status}), 'running loading', 'a run and a load go on');
$primary->stop('immediate');
$standby->promote;
is(app_sql($standby, "SELECT string_agg(status, ' ') FROM tablesync_runs WHERE run_id IN ($run_id, $load_id)"), 'crashed crashed', 'cut off, they have crashed');
like(app_sql($standby, 'SELECT summary FROM tablesync_health()'), qr/^warning: /, 'which is told');
$locker->query_safe('COMMIT');
$locker->quit;
like(run_counts($standby, 'items'), qr/^succeeded\|0\|10\|1$/, 'the next run');
is_replica($source, $standby, 'items', 'items', 'is exact');
app_sql($standby, q{SELECT tablesync_alter('many', max_source_load => 1)});
my ($state, $inserted) = split /\|/, run_counts($standby, 'many');
is($state, 'succeeded', 'the load goes on');
cmp_ok($inserted, '<', 600000, 'where it was');
is_replica($source, $standby, 'many', 'many', 'and is exact');
is(app_sql($standby, q{SELECT count(*) FROM pg_index WHERE indrelid = 'many'::regclass AND indisprimary AND indisvalid AND indisready}), 1, 'with its index');
app_sql($standby, q{SELECT tablesync_pause('items'); SELECT tablesync_resume('items')});
is(app_sql($standby, q{SELECT count(*) FROM tablesync_alerts}), 0, 'all alerts are over');

done_testing();
