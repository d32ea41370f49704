# A source that goes back in time, because somebody reads from a standby that
# lags or a failover has lost transactions, deletes nothing from the replica.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(source => { conf => "wal_level = replica\nmax_wal_senders = 4" });
$source->append_conf('pg_hba.conf', 'local replication all trust');
$source->reload;
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamp NOT NULL DEFAULT clock_timestamp());
	INSERT INTO items (id, note) SELECT i, 'n' FROM generate_series(1, 500) i;
	CREATE TABLE plain (id integer PRIMARY KEY, note text);
	INSERT INTO plain SELECT i, 'n' FROM generate_series(1, 500) i;
	CREATE TABLE altered (id integer PRIMARY KEY, note text);
	INSERT INTO altered SELECT i, 'n' FROM generate_series(1, 500) i});
app_sql($target, q{
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at');
	SELECT tablesync_add('plain', 'src', 'public.plain');
	SELECT tablesync_add('altered', 'src', 'public.altered', drop_columns => true)});
is(run_counts($target, $_), 'succeeded|500|0|0', 'loaded') for qw(items plain altered);

$source->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($source, 'base', has_streaming => 1);
$standby->start;

# A standby to which nothing comes any more.
sub copy_of
{
	my ($node, $name) = @_;
	$node->backup($name);
	my $copy = PostgreSQL::Test::Cluster->new($name);
	$copy->init_from_backup($node, $name, has_streaming => 1);
	$copy->append_conf('postgresql.conf', "primary_conninfo = ''\nautovacuum = off");
	$copy->start;
	return $copy;
}

my $next_id = 1001;

# 20 new rows and 10 updates in each table
sub change_something
{
	for my $table (qw(items plain))
	{
		$source->safe_psql('postgres', "INSERT INTO $table (id, note) SELECT i, 'new' FROM generate_series($next_id, $next_id + 19) i");
		$source->safe_psql('postgres', "UPDATE $table SET note = note || '+'" . ($table eq 'items' ? ', updated_at = clock_timestamp()' : '') . ' WHERE id <= 10');
	}
	$next_id += 20;
	return;
}

sub connect_to
{
	my ($node) = @_;
	my $port = $node->port;
	$target->safe_psql('postgres', "ALTER SERVER src OPTIONS (SET port '$port')");
	return;
}

sub replica_sums
{
	return app_sql($target, q{SELECT (SELECT count(*) || ' ' || sum(hashtext(i::text)) FROM items i), (SELECT count(*) || ' ' || sum(hashtext(p::text)) FROM plain p)});
}

my $refused = qr/ERROR:  TS002: the source of replica public.\w+ has gone back in time/;

# --- what happens to newest rows every day is no reason to stop ---

change_something();
is(run_counts($target, $_), 'succeeded|20|10|0', 'changes') for qw(items plain);
$source->safe_psql('postgres', q{INSERT INTO items (id, note) VALUES (900, 'newest')});
is(run_counts($target, 'items'), 'succeeded|1|0|0', 'a new row');
$source->safe_psql('postgres', 'DELETE FROM items WHERE updated_at >= (SELECT max(updated_at) FROM items)');
is(run_counts($target, 'items'), 'succeeded|0|0|1', 'the newest row deleted');
$source->safe_psql('postgres', q{
	DELETE FROM items WHERE id = 100;
	UPDATE items SET note = 'older', updated_at = updated_at - interval '1 day' WHERE id = 1005});
is(run_counts($target, 'items'), 'succeeded|0|1|1', 'an older stamp, as clock skew leaves behind');
app_sql($target, q{UPDATE items SET updated_at = now() + interval '1 hour' WHERE id = 7});
$source->safe_psql('postgres', 'DELETE FROM items WHERE id = 101');
is(run_counts($target, 'items'), 'succeeded|0|1|1', 'a newer stamp that somebody wrote to the replica');
is_replica($source, $target, 'items', 'items', 'identical');

# --- a standby that lags ---

$source->wait_for_catchup($standby);
connect_to($standby);
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'a standby that does not lag');
connect_to($source);
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
wait_until($standby, q{SELECT pg_get_wal_replay_pause_state() = 'paused'});
change_something();
is(run_counts($target, $_), 'succeeded|20|10|0', 'changes') for qw(items plain);
my $before = replica_sums();
$source->safe_psql('postgres', 'ALTER TABLE altered ADD extra integer; UPDATE altered SET extra = id WHERE id <= 10');
is(run_counts($target, 'altered'), 'succeeded|0|10|0', 'a new column');
connect_to($standby);
like(app_fails($target, q{SELECT tablesync_run('altered')}), qr/$refused.*transaction counter.*Its columns have changed; nothing was changed/s, 'a column that the source does not have yet: refused');
is(app_sql($target, 'SELECT sum(extra) FROM altered'), 55, 'and kept');
like(app_fails($target, "SELECT tablesync_run('$_')"), qr/$refused.*transaction counter.*20 rows would be deleted and 10 updated/s, "$_: refused") for qw(items plain);
app_fails($target, "SELECT tablesync_run('items')");
is(replica_sums(), $before, 'nothing changed');
is(app_sql($target, q{SELECT a.replica, kind, severity, occurrences, hint LIKE '%tablesync_run(%, force => true)%' FROM tablesync_alerts JOIN tablesync.alert a USING (alert_id, kind, severity, hint) WHERE kind <> 'drift' ORDER BY 1}),
	"items|source_went_back|critical|2|t\nplain|source_went_back|critical|1|t\naltered|source_went_back|critical|1|t", 'alerts');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
$source->wait_for_catchup($standby);
is(run_counts($target, $_), 'succeeded|0|0|0', 'caught up') for qw(items plain altered);
is(app_sql($target, 'SELECT count(*) FROM tablesync_alerts'), 0, 'closed');

# --- a failover that loses transactions ---

connect_to($source);
$standby->stop;
change_something();
is(run_counts($target, $_), 'succeeded|20|10|0', 'changes') for qw(items plain);
$before = replica_sums();
$source->stop('immediate');
$standby->start;
$standby->promote;
connect_to($standby);
like(app_fails($target, "SELECT tablesync_run('$_')"), $refused, "$_: refused") for qw(items plain);

# its transaction counter may be ahead by the time of the next run
$standby->safe_psql('postgres', 'DO $$BEGIN FOR i IN 1..300 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$');
like(app_fails($target, "SELECT tablesync_run('items')"), qr/$refused.*Rows have older versions than they had/s, 'by the versions of its rows');
is(replica_sums(), $before, 'nothing changed');
is(run_counts($target, 'items', ', force => true'), 'succeeded|0|10|20', 'somebody insists');
is_replica($standby, $target, 'items', 'items', 'identical');
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'and that is that');
is(app_sql($target, q{SELECT count(*) FROM tablesync_alerts WHERE replica = 'items'::regclass}), 0, 'closed');

# --- what only looks like it ---

$standby->safe_psql('postgres', q{UPDATE items SET updated_at = now() + interval '10 years' WHERE id = 300});
is(run_counts($target, 'items'), 'succeeded|0|1|0', 'a stamp in the future');
$standby->safe_psql('postgres', q{UPDATE items SET updated_at = now() WHERE id = 300; DELETE FROM items WHERE id = 301});
is(run_counts($target, 'items'), 'succeeded|0|1|1', 'is set right');

# 2^31 transactions later the counter seems to be behind
$standby->safe_psql('postgres', 'DELETE FROM items WHERE id = 302');
$target->safe_psql('postgres', q{UPDATE tablesync.all_runs SET source_horizon = (source_horizon + 2000000000) % 4294967296
	WHERE run_id = (SELECT max(run_id) FROM tablesync.all_runs WHERE replica = 'items'::regclass AND status = 'succeeded')});
like(app_fails($target, "SELECT tablesync_run('items')"), qr/$refused.*transaction counter/s, 'a counter far behind that was seen just now');
$target->safe_psql('postgres', q{UPDATE tablesync.all_runs SET finished_at = finished_at - interval '25 days', started_at = started_at - interval '25 days'
	WHERE replica = 'items'::regclass AND status = 'succeeded'});
is(run_counts($target, 'items'), 'succeeded|0|0|1', 'and one that was seen 25 days ago');

# --- a failover that loses transactions in the middle of a run ---

app_sql($target, q{SELECT tablesync_alter('plain', consistency => 'chunk', chunk_rows => 100)});
is(run_counts($target, 'plain', ', force => true'), 'succeeded|0|10|20', 'all is well again');
my $next = copy_of($standby, 'next');
my ($old_port, $new_port) = ($standby->port, $next->port);
$target->safe_psql('postgres', "ALTER SERVER src OPTIONS (SET host '127.0.0.1,127.0.0.1', SET port '$old_port,$new_port', ADD target_session_attrs 'primary')");
$source = $standby;
change_something();
is(run_counts($target, $_), 'succeeded|20|10|0', 'changes') for qw(items plain);
$before = replica_sums();

# A run that has looked at the old server waits there for its first rows.
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE items, plain');
$source->safe_psql('postgres', "DO \$\$BEGIN PERFORM pg_current_xact_id(); END\$\$");
app_sql($target, "SELECT tablesync_run('$_', wait => false)") for qw(items plain);
wait_until($source, q{SELECT count(*) = 2 FROM pg_stat_activity WHERE usename = 'reader' AND wait_event_type = 'Lock'});
$source->stop('immediate');
$next->promote;
eval { $locker->quit };
wait_until($target, q{SELECT count(*) = 0 FROM tablesync_runs WHERE status = 'running'});
is(app_sql($target, "SELECT status, sqlstate FROM tablesync_runs WHERE replica = '$_'::regclass ORDER BY run_id DESC LIMIT 1"), 'failed|TS002', "$_: a run that is interrupted does not go on with an older source") for qw(items plain);
is(replica_sums(), $before, 'nothing changed');
is(run_counts($target, $_, ', force => true'), 'succeeded|0|10|20', "$_: somebody insists") for qw(items plain);
is_replica($next, $target, $_, $_, "$_ is identical") for qw(items plain);

# --- the application does what was lost again, with other values, and the same ids of transactions come ---

$target->safe_psql('postgres', q{ALTER SERVER src OPTIONS (DROP target_session_attrs, SET host '127.0.0.1')});
for my $consistency (qw(auto chunk))
{
	$source = $next;
	connect_to($source);
	app_sql($target, "SELECT tablesync_alter('plain', consistency => '$consistency')");
	is(run_counts($target, 'plain'), 'succeeded|0|0|0', 'before');
	$next = copy_of($source, "next_$consistency");
	$source->safe_psql('postgres', q{UPDATE plain SET note = note || 'lost' WHERE id = 5});
	is(run_counts($target, 'plain'), 'succeeded|0|1|0', 'what will be lost');
	my $xmin = $source->safe_psql('postgres', 'SELECT xmin FROM plain WHERE id = 5');
	$source->stop('immediate');
	$next->promote;
	connect_to($next);
	# one id a call, like whatever else may have needed one
	1 while $next->safe_psql('postgres', 'SELECT pg_snapshot_xmax(pg_current_snapshot())') < $xmin && $next->safe_psql('postgres', 'SELECT pg_current_xact_id()');
	$next->safe_psql('postgres', q{UPDATE plain SET note = note || 'again' WHERE id = 5});
	is($next->safe_psql('postgres', 'SELECT xmin FROM plain WHERE id = 5'), $xmin, 'the id comes again');
	is(run_counts($target, 'plain'), 'succeeded|0|1|0', "$consistency: and yet the other value is found");
	is_replica($next, $target, 'plain', 'plain', "$consistency: identical");
}

done_testing();
