# Consumers of a feed while the source changes and runs go on: new ones begin
# exactly, two processes of one do everything once, those that fall behind are
# told, old changes go, and nothing is lost when the worker is killed in APPLY.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();
$source->safe_psql('postgres', q{
	CREATE TABLE checking (id integer PRIMARY KEY, amount integer NOT NULL, at timestamptz);
	CREATE TABLE savings (id integer PRIMARY KEY, amount integer NOT NULL, at timestamptz);
	INSERT INTO checking SELECT i, 100, now() FROM generate_series(1, 300) i;
	INSERT INTO savings SELECT i, 100, now() FROM generate_series(1, 300) i});
app_sql($target, "SELECT tablesync_add('$_', 'src', 'public.$_', consistency => 'snapshot', sync_group => 'bank', feed => true, keep_changes => '1 day')") for qw(checking savings);
app_sql($target, 'SELECT * FROM tablesync_run()');

# What a consumer does, as docs/feed.md has it; "done" has each position once, or fails.
app_sql($target, q{
	CREATE TABLE state (name text, id integer, amount integer, PRIMARY KEY (name, id));
	CREATE TABLE done (name text, position bigint, PRIMARY KEY (name, position));
	CREATE FUNCTION step(name text, replica regclass) RETURNS boolean LANGUAGE plpgsql AS $$
	DECLARE
		change record;
		reached bigint;
	BEGIN
		FOR change IN SELECT * FROM tablesync_fetch(name, 50) LOOP
			reached := change.position;
			IF change.value->>'op' = 't' THEN
				DELETE FROM state s WHERE s.name = step.name;
				FOR change IN SELECT * FROM tablesync_envelopes(replica, NULL) LOOP
					reached := change.position;
					INSERT INTO state VALUES (name, (change.key->>'id')::integer, (change.value->'after'->>'amount')::integer);
				END LOOP;
				EXIT;
			END IF;
			INSERT INTO done VALUES (name, change.position);
			DELETE FROM state s WHERE s.name = step.name AND s.id = (change.key->>'id')::integer;
			INSERT INTO state SELECT name, (change.key->>'id')::integer, (change.value->'after'->>'amount')::integer WHERE change.value->>'op' <> 'd';
		END LOOP;
		PERFORM tablesync_commit(name, reached) WHERE reached IS NOT NULL;
		RETURN reached IS NOT NULL;
	END $$;
	CREATE PROCEDURE consume(name text, replica regclass) LANGUAGE plpgsql AS $$
	DECLARE
		more boolean;
	BEGIN
		LOOP
			more := step(name, replica);
			COMMIT;
			EXIT WHEN NOT more;
		END LOOP;
	END $$;
	SELECT tablesync_consumer_add('from the start', 'checking', 0), tablesync_consumer_add('two', 'checking', 0), tablesync_consumer_add('other side', 'savings', 0)});

sub has
{
	my ($name) = @_;
	return app_sql($target, qq{SELECT count(*), sum(amount), sum(hashint4extended(id, amount)) FROM state WHERE name = '$name'});
}

sub replica_has
{
	my ($replica) = @_;
	return app_sql($target, "SELECT count(*), sum(amount), sum(hashint4extended(id, amount)) FROM $replica");
}

# --- under load ---

my $script = $source->basedir . '/transfer.sql';
append_to_file($script, q{
\set a random(1, 300)
\set b random(1, 300)
\set new random(301, 2000000000)
\set old random(301, 2000000000)
BEGIN;
UPDATE checking SET amount = amount - 3, at = clock_timestamp() WHERE id = :a;
UPDATE savings SET amount = amount + 3, at = clock_timestamp() WHERE id = :b;
INSERT INTO checking VALUES (:new, 0, clock_timestamp()) ON CONFLICT DO NOTHING;
DELETE FROM checking WHERE id = (SELECT min(id) FROM checking WHERE id > :old);
COMMIT;
});
my ($out, $err) = ('', '');
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', '2', '-T', '10', '-R', '300', '-f', $script, $source->connstr('postgres') ], '<', \undef, '>', \$out, '2>', \$err);
my @workers = map { session($target, '-U', 'app') } 1, 2;
my $listener = session($target, '-U', 'app');
$listener->query_safe('LISTEN tablesync');
my ($runs, @late, %sums) = (0);
while ($load->pumpable)
{
	eval { $load->pump_nb };
	$_->query_until(qr//, "CALL consume('two', 'checking');\n") for @workers;
	app_sql($target, 'SELECT * FROM tablesync_run()');
	$runs++;
	# one more consumer, in the middle of it: with the rows, and from there on
	my $name = "new $runs";
	app_sql($target, qq{
		BEGIN ISOLATION LEVEL REPEATABLE READ;
		SELECT tablesync_consumer_add('$name', 'checking');
		SELECT pg_sleep(0.05);
		INSERT INTO state SELECT '$name', id, amount FROM checking;
		COMMIT});
	push @late, $name;
	app_sql($target, "CALL consume('from the start', 'checking'); CALL consume('other side', 'savings')");
	# both at the end of the same run
	$sums{ app_sql($target, q{SELECT sum(amount) FROM state WHERE name IN ('from the start', 'other side')}) }++;
}
$load->finish;
cmp_ok($runs, '>', 5, "$runs runs");
app_sql($target, 'SELECT * FROM tablesync_run()');
$_->query_safe('SELECT 1') for @workers;    # they have ended
app_sql($target, "CALL consume('$_', 'checking')") for 'from the start', 'two', @late;
app_sql($target, "CALL consume('other side', 'savings')");
my $checking = replica_has('checking');
is(has('from the start'), $checking, 'a consumer from the start has what the replica has');
is(has('two'), $checking, 'so has one with two processes');
is(join(' ', grep { has($_) ne $checking } @late), '', scalar(@late) . ' that began in between');
is(has('other side'), replica_has('savings'), 'and that of the other replica');
is(app_sql($target, q{SELECT count(*) = max(position) - min(position) + 1 FROM done WHERE name = 'two'}), 't', 'two processes have done everything, and once');
is(app_sql($target, q{SELECT count(*) FROM (SELECT run_id FROM checking_changes GROUP BY run_id) c WHERE run_id NOT IN (SELECT run_id FROM tablesync_runs WHERE status = 'succeeded')}), 0, 'changes of runs that have succeeded');
is_deeply([ keys %sums ], [60000], 'a group\'s runs are in both feeds, or in none') or diag(explain(\%sums));
my @heard = $listener->query_safe('SELECT 1') =~ /"event"\s*:\s*"changes"/g;
cmp_ok(scalar @heard, '>', 5, 'consumers are woken');
is(app_sql($target, q{SELECT count(*), min(behind), max(behind), max(lag) FROM tablesync_consumers WHERE consumer LIKE 'new%'}), @late . '|0|0|00:00:00', 'nobody is behind');
$_->quit for @workers, $listener;

# the same until it is committed, also after a consumer was killed
$source->safe_psql('postgres', 'UPDATE checking SET amount = 7 WHERE id BETWEEN 1 AND 5');
app_sql($target, 'SELECT * FROM tablesync_run()');
my $fetch = q{SELECT string_agg(position || ' ' || (value->>'op'), ',') FROM tablesync_fetch('two', 3)};
my $first = app_sql($target, $fetch);
like($first, qr/^\d+ u,\d+ u,\d+ u$/, 'as many as asked for');
is(app_sql($target, $fetch), $first, 'the same again');
my $killed = session($target, '-U', 'app');
my $pid = $killed->query_safe('SELECT pg_backend_pid()');
$killed->query_safe(q{BEGIN; SELECT step('two', 'checking')});
$target->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
wait_until($target, "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
is(app_sql($target, $fetch), $first, 'also after a consumer has died at it');
eval { $killed->quit };
is(app_sql($target, q{SELECT behind FROM tablesync_consumers WHERE consumer = 'two'}), 5, 'so far behind');

# --- crashes and cancelled runs in APPLY ---

app_sql($target, q{
	CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END$$;
	CREATE TRIGGER wait_here AFTER UPDATE ON checking FOR EACH STATEMENT EXECUTE FUNCTION wait_here();
	ALTER TABLE checking ENABLE ALWAYS TRIGGER wait_here});
my $newest = app_sql($target, q{SELECT feed_position FROM tablesync.replica WHERE replica = 'checking'::regclass});
for my $end ('cancel', 'terminate', 'kill')
{
	my $holder = session($target);
	$holder->query_safe('BEGIN; SELECT pg_advisory_xact_lock(42)');
	$source->safe_psql('postgres', 'UPDATE checking SET amount = amount + 1 WHERE id BETWEEN 1 AND 10; UPDATE savings SET amount = amount + 1 WHERE id < 5');
	my $run = app_sql($target, q{SELECT run_id FROM tablesync_run('checking', wait => false)});
	wait_until($target, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event = 'advisory'});
	my $worker = $target->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event = 'advisory'});
	is(app_sql($target, q{SELECT feed_position FROM tablesync.replica WHERE replica = 'checking'::regclass}), $newest, "$end: nothing is seen of what APPLY has written");
	if ($end eq 'kill') { kill 'KILL', $worker }
	elsif ($end eq 'terminate') { $target->safe_psql('postgres', "SELECT pg_terminate_backend($worker)") }
	else { app_sql($target, q{SELECT tablesync_cancel('checking')}) }
	eval { $holder->quit };
	$target->poll_query_until('postgres', 'SELECT true') or die;
	wait_until($target, "SELECT tablesync.run_status($run) <> 'running'");
	isnt(app_sql($target, "SELECT tablesync_wait($run)"), 'succeeded', "$end: the run has not");
	is(app_sql($target, q{SELECT count(*) FROM checking_changes c JOIN tablesync.replica t ON t.feed_table = 'checking_changes'::regclass WHERE c.position > t.feed_position}), 0, "$end: nor its changes");
	is(app_sql($target, q{SELECT string_agg(status, ',') FROM tablesync_run()}), 'succeeded,succeeded', "$end: the next run");
	for my $feed (qw(checking savings))
	{
		is(app_sql($target, "SELECT count(DISTINCT position) = max(position) AND max(position) = (SELECT feed_position FROM tablesync.replica WHERE replica = '$feed'::regclass) FROM ${feed}_changes"), 't', "$end: no gap in $feed");
	}
	$newest = app_sql($target, q{SELECT feed_position FROM tablesync.replica WHERE replica = 'checking'::regclass});
}
app_sql($target, 'DROP TRIGGER wait_here ON checking');
app_sql($target, "CALL consume('from the start', 'checking'); CALL consume('other side', 'savings')");
is(has('from the start'), replica_has('checking'), 'consumers have it all');
is(has('other side'), replica_has('savings'), 'of both');

# --- what is kept ---

app_sql($target, q{SELECT tablesync_alter('savings', keep_changes => '0')});    # by consumers alone
my $kept = q{SELECT min(position) FROM savings_changes};
app_sql($target, q{SELECT tablesync_consumer_add('slow', 'savings', 2)});
app_sql($target, q{SELECT tablesync_run('savings')});
is(app_sql($target, $kept), 3, 'what a consumer has not committed is kept');
app_sql($target, q{SELECT tablesync_commit('slow', newest - 1) FROM tablesync_consumers WHERE consumer = 'slow'; SELECT * FROM tablesync_run('savings')});
is(app_sql($target, "SELECT min(c.position) = max(t.feed_position) FROM savings_changes c, tablesync.replica t WHERE t.replica = 'savings'::regclass"), 't', 'what all have committed is not');
is(app_sql($target, q{SELECT position > 10, op FROM tablesync_changes('savings', 0, 1)}), 't|t', 'who asks for it is told');
is(app_sql($target, q{SELECT count(*) FROM tablesync.fed_run WHERE replica = 'savings'::regclass AND last_position < (SELECT feed_pruned FROM tablesync.replica t WHERE t.replica = 'savings'::regclass)}), 0, 'nor is more known of its runs');
app_sql($target, q{SELECT tablesync_consumer_remove('slow'), tablesync_consumer_remove('other side')});

app_sql($target, q{SELECT tablesync_alter('checking', keep_changes => '1 hour')});
app_sql($target, q{SELECT tablesync_run('checking')});
is(app_sql($target, q{SELECT min(position) FROM checking_changes}), 1, 'changes of the last hour are kept');
is(app_sql($target, q{SELECT count(*) FROM tablesync_alerts}), 0, 'no alert');
$target->safe_psql('postgres', q{UPDATE tablesync.all_fed_runs SET applied_at = applied_at - interval '2 hours' WHERE replica = 'checking'::regclass});
$source->safe_psql('postgres', 'UPDATE checking SET amount = 8 WHERE id = 9');
app_sql($target, q{SELECT tablesync_run('checking')});
is(app_sql($target, q{SELECT count(*) FROM checking_changes}), 2, 'older ones are not: the last update is left');
like(app_sql($target, q{SELECT kind, severity, message FROM tablesync_alerts WHERE replica = 'checking'::regclass}), qr/^consumer_behind\|warning\|consumers of the feed are behind for longer than keep_changes: .*'two' of role app/, 'who is behind is reported');
app_sql($target, q{SELECT tablesync_consumer_add('late', 'checking', 0)});
app_sql($target, q{SELECT tablesync_run('checking')});
unlike(app_sql($target, q{SELECT message FROM tablesync_alerts WHERE replica = 'checking'::regclass}), qr/'late'/, 'not who has just come');
is(app_sql($target, q{SELECT value->>'op' FROM tablesync_fetch('late')}), 't', 'and is told to start');
app_sql($target, q{SELECT tablesync_consumer_remove('late')});
is(app_sql($target, q{SELECT value->>'op' FROM tablesync_fetch('two')}), 't', 'as is who has lost changes');
app_sql($target, "CALL consume('$_', 'checking')") for 'from the start', 'two', @late;
is(has('two'), replica_has('checking'), 'which it does');
app_sql($target, q{SELECT tablesync_run('checking')});
is(app_sql($target, q{SELECT count(*) FROM tablesync_alerts}), 0, 'the alert is closed');

done_testing();
