# Alerts: each kind opens once, stays one row, and closes when it is over;
# listeners and the handler are told, others learn nothing; after failures
# scheduled runs back off; a source that went back in time deletes nothing.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(target => { conf => "max_logical_replication_workers = 0\nmax_worker_processes = 4" });

$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 3000) i;
	CREATE TABLE parts (id integer PRIMARY KEY, note text);
	INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 100) i});
$target->safe_psql('postgres', q{
	CREATE ROLE other LOGIN;
	CREATE ROLE watcher LOGIN IN ROLE pg_monitor});
app_sql($target, q{
	SELECT tablesync_add('items', 'src', 'public.items', version_column => 'updated_at');
	SELECT tablesync_add('parts', 'src', 'public.parts');
	CREATE TABLE handled (n serial, who name, payload jsonb);
	CREATE FUNCTION on_alert(payload jsonb) RETURNS void LANGUAGE sql AS
		'INSERT INTO public.handled (who, payload) VALUES (current_user, payload)'});
$target->safe_psql('postgres', q{LOAD 'tablesync'; ALTER ROLE app SET tablesync.alert_handler = 'public.on_alert(jsonb)'});
is(run_counts($target, 'items'), 'succeeded|3000|0|0', 'loaded');
is(run_counts($target, 'parts'), 'succeeded|100|0|0', 'loaded');

sub open_alerts
{
	return app_sql($target, 'SELECT replica, kind, severity FROM tablesync_alerts ORDER BY 1, 2');
}

sub change_item
{
	$source->safe_psql('postgres', q{UPDATE items SET note = note || '+', updated_at = clock_timestamp() WHERE id = 1});
	return;
}

sub as_role
{
	my ($role, $sql) = @_;
	return $target->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

# Wait until the handler knows everything; returns what it was called for.
sub handled
{
	wait_until($target, q{SELECT NOT EXISTS (SELECT FROM tablesync.untold_alerts())
		AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'tablesync alert')});
	my $calls = app_sql($target, q{SELECT string_agg((payload->>'event') || ' ' || (payload->>'kind'), ', ' ORDER BY n) FROM handled});
	app_sql($target, 'TRUNCATE handled');
	return $calls;
}

is(open_alerts(), '', 'no alert while all is well');
is(app_sql($target, 'SELECT tablesync.watch()'), 0, 'nothing to watch');

# --- run_failed, with a message that quotes a row ---

my $listener = session($target, '-U', 'other');
$listener->query_safe('LISTEN tablesync');
app_sql($target, q{
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN RAISE EXCEPTION 'refused: %', NEW.note; END$$;
	CREATE TRIGGER refuse BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION refuse()});
change_item();
my $log = -s $target->logfile;
like(app_fails($target, "SELECT tablesync_run('items')"), qr/refused: n1\+/, 'run fails');
is(open_alerts(), 'items|run_failed|warning', 'an alert');
ok($target->log_contains('WARNING:  tablesync alert run_failed for replica public.items opened: see tablesync_runs', $log), 'a line in the log, without the row');
is(handled(), 'alert_opened run_failed', 'the handler is called');
app_fails($target, "SELECT tablesync_run('items')");
is(app_sql($target, q{SELECT replica, kind, message, occurrences, closed_at FROM tablesync.alert}),
	'items|run_failed|refused: n1+|2|', 'a second failure: the same row');

my $heard = $listener->query('SELECT 1');
my @opened = $heard =~ /alert_opened/g;
is(scalar @opened, 1, 'listeners hear of it, once');
like($heard, qr/"kind": "run_failed"/, 'and of what kind it is');
unlike($heard, qr/n1/, 'but no values of rows');
is(as_role('watcher', 'SELECT replica, kind, message, hint FROM tablesync_alerts'), 'items|run_failed||', 'pg_monitor: sees the alert, not the message');
is(as_role('other', 'SELECT count(*) FROM tablesync_alerts') . as_role('other', 'SELECT count(*) FROM tablesync_alert_history')
	. as_role('other', 'SELECT count(*) FROM tablesync.alert') . as_role('other', 'SELECT tablesync.watch()'), '0000', 'others see nothing');
isnt($target->psql('postgres', q{SELECT tablesync.open_alert('items', 'drift', 'warning', 'invented')}, extra_params => [ '-U', 'other' ]), 0, 'others open no alerts');
isnt($target->psql('postgres', q{SELECT tablesync.close_alert('items', 'run_failed')}, extra_params => [ '-U', 'app' ]), 0, 'nor does anybody close one');

# --- back-off ---

is(app_sql($target, q{SELECT consecutive_failures, retry_after - clock_timestamp() BETWEEN '20 s' AND '30 s' FROM tablesync.replica WHERE replica = 'items'::regclass}),
	'2|t', 'two failures: half a minute');
is(app_sql($target, q{SELECT state, retry_after > now() FROM tablesync_status WHERE replica = 'items'::regclass}), 'failed|t', 'the status says so');
my $last_run = app_sql($target, 'SELECT max(run_id) FROM tablesync_runs WHERE replica = \'items\'::regclass');
$target->restart;
is(app_sql($target, 'SELECT replica, status FROM tablesync_run() ORDER BY 1'), "items|backing off\nparts|succeeded", 'tablesync_run() leaves it alone, also after a restart');
like(app_sql($target, q{CALL tablesync.run_scheduled('items')}), qr/^backing off\|consecutive failures: 2; the next try is due at 20/, 'so does a scheduled run');
is(app_sql($target, "SELECT max(run_id) FROM tablesync_runs WHERE replica = 'items'::regclass"), $last_run, 'no run was made');
like(app_sql($target, 'SELECT replica, status FROM tablesync_run(force => true) ORDER BY 1'), qr/^items\|failed\nparts\|succeeded$/, 'unless it is forced');
like(app_fails($target, "SELECT tablesync_run('items')"), qr/refused/, 'a manual run does not wait');
$target->safe_psql('postgres', q{UPDATE tablesync.replica SET retry_after = now()});
like(app_fails($target, q{CALL tablesync.run_scheduled('items')}), qr/ERROR:  P0001: refused/, 'nor does a scheduled one when its time has come, and it fails like tablesync_run()');
is($target->safe_psql('postgres', q{SELECT failures, tablesync.retry_delay(failures, '08006', NULL) FROM unnest('{1,2,3,6,7,100}'::integer[]) failures}),
	"1|00:00:15\n2|00:00:30\n3|00:01:00\n6|00:08:00\n7|00:15:00\n100|00:15:00", 'exponential');

$listener->quit;
$listener = session($target, '-U', 'other');
$listener->query_safe('LISTEN tablesync');
app_sql($target, 'DROP TRIGGER refuse ON items');
is(run_counts($target, 'items'), 'succeeded|0|1|0', 'a success');
is(open_alerts(), '', 'closes the alert');
like($listener->query('SELECT 1'), qr/alert_closed/, 'listeners hear of it');
is(handled(), 'alert_closed run_failed', 'the handler is called');
is(app_sql($target, q{SELECT occurrences, closed_at IS NOT NULL FROM tablesync_alert_history}), '5|t', 'history stays');
is(app_sql($target, q{SELECT consecutive_failures, retry_after FROM tablesync.replica WHERE replica = 'items'::regclass}), '0|', 'no back-off any more');
$listener->quit;

# a cancelled run is no failure
my $locker = session($source);
$locker->query_safe('BEGIN; LOCK TABLE items');
my $run_id = app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
app_sql($target, "SELECT tablesync_cancel('items')");
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'cancelled', 'cancelled');
is(open_alerts(), '', 'a cancelled run opens no alert');

# --- crashed ---

my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'tablesync run'};
app_sql($target, "SELECT run_id FROM tablesync_run('items', wait => false)");
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
kill 'KILL', $target->safe_psql('postgres', $worker);
$locker->query_safe('COMMIT');
wait_until($target, "SELECT count(*) = 0 FROM ($worker) w");
is(app_sql($target, 'SELECT alert_id, replica, kind FROM tablesync_alerts'), '|items|run_failed', 'crashed: the view notices');
is(app_sql($target, 'SELECT tablesync.watch()') . app_sql($target, 'SELECT tablesync.watch()'), '10', 'watch() opens the alert, once');
is(app_sql($target, 'SELECT alert_id IS NOT NULL, replica, kind FROM tablesync_alerts'), 't|items|run_failed', 'now it has an id');
is(app_sql($target, q{SELECT consecutive_failures FROM tablesync.replica WHERE replica = 'items'::regclass}), 1, 'and is a failure to back off after');
is(handled(), 'alert_opened run_failed', 'the handler hears of it from watch()');
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'the next run');
is(open_alerts(), '', 'closes it');
is(handled(), 'alert_closed run_failed', 'the handler is called');

# --- delete_guard, schema_changed ---

sub opens_and_closes
{
	my ($kind, $break, $mend, $error, $force, $pauses) = @_;
	$source->safe_psql('postgres', $break);
	like(app_fails($target, "SELECT tablesync_run('items')"), $error, "$kind: run fails");
	app_fails($target, "SELECT tablesync_run('items')");
	is(open_alerts(), "items|$kind|critical", "$kind: one alert");
	is(app_sql($target, 'SELECT occurrences FROM tablesync.alert WHERE closed_at IS NULL'), $pauses ? 1 : 2, "$kind: seen " . ($pauses ? 'once, for runs are paused' : 'twice'));
	is(handled(), "alert_opened $kind", "$kind: the handler is called once");
	$source->safe_psql('postgres', $mend) if $mend;
	app_sql($target, "SELECT tablesync_resume('items')") if $pauses;
	like(run_counts($target, 'items', $force), qr/^succeeded/, "$kind: mended");
	is(open_alerts(), '', "$kind: closed");
	is(handled(), "alert_closed $kind", "$kind: the handler is called");
	return;
}
opens_and_closes('delete_guard', 'DELETE FROM items WHERE id > 1500', undef, qr/ERROR:  TS001: run would delete 1500/, ', force => true');
opens_and_closes('schema_changed', 'ALTER TABLE items ALTER note TYPE varchar(50)', 'ALTER TABLE items ALTER note TYPE text', qr/ERROR:  TS003: /, undef, 1);

# --- what only a person can mend ---

for my $trouble ([ 'REVOKE SELECT ON items FROM reader', 'GRANT SELECT ON items TO reader' ],
	[ q{ALTER ROLE reader PASSWORD 'rotated'}, q{ALTER ROLE reader PASSWORD 'read-only'} ])
{
	my ($break, $mend) = @$trouble;
	$source->safe_psql('postgres', $break);
	app_fails($target, "SELECT tablesync_run('items')");
	is(app_sql($target, q{SELECT consecutive_failures, retry_after > clock_timestamp() + interval '4 min 50 s' FROM tablesync.replica WHERE replica = 'items'::regclass}),
		'1|t', "not again within 5 minutes: $break");
	$source->safe_psql('postgres', $mend);
	is(run_counts($target, 'items'), 'succeeded|0|0|0', 'mended');
	handled();
}

# --- stale ---

app_sql($target, "SELECT tablesync_alter('items', freshness => '1 ms')");
is(app_sql($target, 'SELECT alert_id, replica, kind, severity FROM tablesync_alerts'), '|items|stale|critical', 'stale: the view notices without a run');
my $watching = session($target, '-U', 'app');
$watching->query_safe('SET client_min_messages = error; BEGIN');
$watching->query_safe('SELECT tablesync.watch()');
is(app_sql($target, 'SELECT tablesync.watch()'), 0, 'two at a time: the other gives up soon');
$watching->query_safe('COMMIT');
$watching->quit;
is(app_sql($target, 'SELECT tablesync.watch()'), 0, 'watch() opens it once');
is(app_sql($target, q{SELECT occurrences, closed_at FROM tablesync.alert WHERE kind = 'stale'}), '1|', 'one row');
is(handled(), 'alert_opened stale', 'stale: handler');
app_sql($target, "SELECT tablesync_pause('items')");
is(app_sql($target, 'SELECT tablesync.watch()'), 1, 'a paused replica is not stale');
is(open_alerts(), '', 'closed');
app_sql($target, "SELECT tablesync_resume('items')");
is(app_sql($target, 'SELECT tablesync.watch()'), 1, 'opened again');
app_sql($target, "SELECT tablesync_alter('items', freshness => '1 hour')");
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'run');
is(open_alerts(), '', 'a success closes it');
handled();

# --- drift: others open and close it ---

$target->safe_psql('postgres', q{SELECT tablesync.open_alert('items', 'drift', 'warning', 'somebody wrote to the replica')});
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'run');
is(open_alerts(), 'items|drift|warning', 'drift outlives a success');
is($target->safe_psql('postgres', q{SELECT tablesync.close_alert('items', 'drift')}) . $target->safe_psql('postgres', q{SELECT tablesync.close_alert('items', 'drift')}), 'tf', 'closed once');
handled();

# --- worker_unavailable ---

$target->append_conf('postgresql.conf', 'max_worker_processes = 0');
$target->restart;
like(app_fails($target, q{CALL tablesync.run_scheduled('items')}), qr/ERROR:  53000: no background worker is available.*HINT:  Increase max_worker_processes/s, 'no worker: a scheduled run fails');
is(open_alerts(), 'items|worker_unavailable|warning', 'and yet leaves an alert');
like(app_sql($target, q{SELECT status FROM tablesync_run() WHERE replica = 'items'::regclass}), qr/^failed$/, 'tablesync_run() goes on');
is(app_sql($target, q{SELECT kind, occurrences FROM tablesync.alert WHERE closed_at IS NULL AND replica = 'items'::regclass}), 'worker_unavailable|2', 'seen twice');
like(app_fails($target, q{SELECT tablesync_run('items', wait => false)}), qr/ERROR:  53000: no background worker is available/, 'nor does anything wait where no process can come');
is(app_sql($target, 'SELECT count(*) FROM handled'), 0, 'the handler had no worker either');
$locker->quit;
$target->append_conf('postgresql.conf', 'max_worker_processes = 8');
$target->restart;
app_sql($target, 'SELECT tablesync.watch()');
is(handled(), 'alert_opened worker_unavailable, alert_opened worker_unavailable', 'watch() makes up for it: one for each replica');
is(run_counts($target, 'items'), 'succeeded|0|0|0', 'a worker again');
is(run_counts($target, 'parts'), 'succeeded|0|0|0', 'for both');
is(open_alerts(), '', 'closed');
app_sql($target, 'TRUNCATE handled');

# --- handlers that go wrong ---

sub with_handler
{
	my ($handler, $log_line) = @_;
	$target->safe_psql('postgres', "LOAD 'tablesync'; ALTER ROLE app SET tablesync.alert_handler = '$handler'");
	my $offset = -s $target->logfile;
	my $started = time;
	$source->safe_psql('postgres', 'REVOKE SELECT ON parts FROM reader');
	like(app_fails($target, "SELECT tablesync_run('parts')"), qr/42501/, "handler $handler: the run's error is the run's");
	$source->safe_psql('postgres', 'GRANT SELECT ON parts TO reader');
	is(run_counts($target, 'parts'), 'succeeded|0|0|0', "handler $handler: the next run is fine");
	cmp_ok(time - $started, '<', 8, "handler $handler: nobody waits for it");
	is(open_alerts(), '', "handler $handler: alerts open and close");
	$target->wait_for_log($log_line, $offset);
	return;
}
app_sql($target, q{
	CREATE FUNCTION fails(jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no pager'; END$$;
	CREATE FUNCTION hangs(jsonb) RETURNS void LANGUAGE sql AS 'LOCK TABLE public.handled; SELECT pg_sleep(600)';
	CREATE FUNCTION wrong(integer) RETURNS void LANGUAGE sql AS ''});
my $failed = qr/WARNING:  tablesync.alert_handler public/;
with_handler('public.fails(jsonb)', qr/$failed.fails\(jsonb\) failed with SQLSTATE P0001/);
with_handler('public.missing(jsonb)', qr/$failed.missing\(jsonb\) can't be called: function "public.missing\(jsonb\)" does not exist/);
with_handler('public.wrong(integer)', qr/$failed.wrong\(integer\) can't be called: public.wrong\(integer\) is not a function that takes one jsonb/);
$target->safe_psql('postgres', 'CREATE FUNCTION foreign_one(jsonb) RETURNS void LANGUAGE sql AS $$$$; ALTER FUNCTION foreign_one(jsonb) OWNER TO other');
with_handler('public.foreign_one(jsonb)', qr/$failed.foreign_one\(jsonb\) can't be called: public.foreign_one\(jsonb\) belongs neither to the replica's owner/);
$target->safe_psql('postgres', 'CREATE FUNCTION closed(jsonb) RETURNS void LANGUAGE sql AS $$$$; REVOKE EXECUTE ON FUNCTION closed(jsonb) FROM PUBLIC');
with_handler('public.closed(jsonb)', qr/$failed.closed\(jsonb\) can't be called: permission denied for function public.closed\(jsonb\)/);
like(app_fails($target, q{LOAD 'tablesync'; ALTER ROLE app SET tablesync.alert_handler = 'public.on_alert(jsonb)'}), qr/42501/, 'only a superuser names the handler');
with_handler('public.hangs(jsonb)', qr/$failed.hangs\(jsonb\) failed with SQLSTATE 57014/);
# a worker that has the hanging handler yet would take the next alert, too
wait_until($target, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync alert'");

# a handler set by a superuser for all has the owner's rights only
$target->safe_psql('postgres', q{
	ALTER ROLE app RESET tablesync.alert_handler;
	LOAD 'tablesync';
	ALTER SYSTEM SET tablesync.alert_handler = 'public.on_alert(jsonb)'});
$target->reload;
wait_until($target, "SELECT current_setting('tablesync.alert_handler', true) = 'public.on_alert(jsonb)'");
app_sql($target, "SELECT tablesync_alter('items', freshness => '1 ms')");
is($target->safe_psql('postgres', 'SELECT tablesync.watch()'), 1, 'a superuser watches');
wait_until($target, 'SELECT count(*) > 0 FROM handled');
is(app_sql($target, 'SELECT DISTINCT who FROM handled'), 'app', 'the handler runs as the owner');

done_testing();
