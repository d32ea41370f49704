# High availability of the target: standbys that serve reads while runs go on, and
# that are promoted in each phase of a run, after one, and without the last one.
# The next run is exact, feeds and consumers go on without a gap, and changes that
# a lost run has told are told again with the same positions, or known to be others.
# A group's changes are one transaction for everybody.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use TablesyncTest;
use Test::More;

my $source = start_source();
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, amount integer NOT NULL);
	INSERT INTO items SELECT i, 10 FROM generate_series(1, 1000) i;
	CREATE TABLE checking (id integer PRIMARY KEY, amount integer NOT NULL);
	CREATE TABLE savings (id integer PRIMARY KEY, amount integer NOT NULL);
	INSERT INTO checking SELECT i, 100 FROM generate_series(1, 30000) i;
	INSERT INTO savings SELECT i, 100 FROM generate_series(1, 30000) i;
	CREATE TABLE many (id integer PRIMARY KEY, note text);
	INSERT INTO many SELECT i, md5(i::text) FROM generate_series(1, 100000) i;
	CREATE TABLE big (id integer PRIMARY KEY, note text);
	INSERT INTO big SELECT i, md5(i::text) FROM generate_series(1, 105000) i;
	ANALYZE});
my $node = start_target($source, name => 'first', conf => "wal_level = logical\nmax_wal_senders = 4\ntablesync.lock_timeout = 60s\nfsync = off\nhot_standby_feedback = on\nmax_standby_streaming_delay = -1");
$node->append_conf('pg_hba.conf', 'local replication all trust');
$node->reload;
app_sql($node, q{
	SELECT tablesync_add('items', 'src', 'public.items', feed => true, keep_changes => '1 day', freshness => '1 day');
	SELECT tablesync_add('checking', 'src', 'public.checking', consistency => 'snapshot', sync_group => 'bank', feed => true);
	SELECT tablesync_add('savings', 'src', 'public.savings', consistency => 'snapshot', sync_group => 'bank', feed => true);
	SELECT tablesync_add('many', 'src', 'public.many', max_delete_fraction => 1);
	SELECT tablesync_add('big', 'src', 'public.big', workers => 2)});
app_sql($node, "SELECT status FROM tablesync_run('$_')") for qw(items checking many);

# A consumer as in docs/feed.md, whose work is in the same transaction: each position once, or an error.
app_sql($node, q{
	CREATE TABLE state (id integer PRIMARY KEY, amount integer);
	CREATE TABLE done (position bigint PRIMARY KEY);
	CREATE TABLE started_again (at timestamptz DEFAULT clock_timestamp());
	CREATE PROCEDURE consume() LANGUAGE plpgsql AS $$
	DECLARE
		change record;
		reached bigint;
	BEGIN
		LOOP
			reached := NULL;
			FOR change IN SELECT * FROM tablesync_fetch('search', 7) LOOP
				reached := change.position;
				IF change.value->>'op' = 't' THEN
					INSERT INTO started_again DEFAULT VALUES;
					DELETE FROM state;
					FOR change IN SELECT * FROM tablesync_envelopes('items', NULL) LOOP
						reached := change.position;
						INSERT INTO state VALUES ((change.key->>'id')::integer, (change.value->'after'->>'amount')::integer);
					END LOOP;
					EXIT;
				END IF;
				INSERT INTO done VALUES (change.position);
				DELETE FROM state s WHERE s.id = (change.key->>'id')::integer;
				INSERT INTO state SELECT (change.key->>'id')::integer, (change.value->'after'->>'amount')::integer WHERE change.value->>'op' <> 'd';
			END LOOP;
			EXIT WHEN reached IS NULL;
			PERFORM tablesync_commit('search', reached);
			COMMIT;
		END LOOP;
	END $$;
	SELECT tablesync_consumer_add('search', 'items', 0);
	CALL consume();
	CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END$$;
	CREATE TRIGGER wait_here AFTER UPDATE ON items FOR EACH STATEMENT EXECUTE FUNCTION wait_here();
	ALTER TABLE items ENABLE ALWAYS TRIGGER wait_here});

my $standbys = 0;

sub standby_of
{
	my ($primary) = @_;
	my $name = 'standby' . ++$standbys;
	$primary->backup($name, backup_options => [ '--checkpoint', 'fast' ]);
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	$standby->start;
	$primary->wait_for_catchup($standby);
	return $standby;
}

sub change_items
{
	$source->safe_psql('postgres', q{
		UPDATE items SET amount = amount + 1 WHERE id % 50 = 0;
		DELETE FROM items WHERE id IN (SELECT id FROM items ORDER BY id LIMIT 3);
		INSERT INTO items SELECT max(id) + 1, 5 FROM items});
}

my $feed = q{SELECT feed_position FROM tablesync.replica WHERE replica = 'items'::regclass};

# All is as it should be after a run of the items: the replica, its feed, the consumer, which has not started again.
sub goes_on
{
	my ($name) = @_;
	like(run_counts($node, 'items'), qr/^succeeded\|/, "$name: the next run");
	is_replica($source, $node, 'items', 'items', "$name: is exact");
	app_sql($node, 'CALL consume()');
	is(app_sql($node, 'SELECT count(*) FROM (TABLE state EXCEPT TABLE items) d') . app_sql($node, 'SELECT count(*) FROM (TABLE items EXCEPT TABLE state) d'), '00', "$name: the consumer has the same");
	is(app_sql($node, 'SELECT count(*) FROM started_again'), 1, "$name: without starting again");
	is(app_sql($node, q{SELECT behind FROM tablesync_consumers}), 0, "$name: and is not behind");
	is(app_sql($node, q{SELECT count(*) FROM tablesync_alerts}), 0, "$name: no alert is left");
	return;
}

# --- a group's changes are one transaction: here, for who decodes, at a standby, in the feeds ---

my $standby = standby_of($node);
$node->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('watcher', 'test_decoding')});
$source->safe_psql('postgres', 'UPDATE checking SET amount = amount - 1; UPDATE savings SET amount = amount + 1');
my $sum = q{SELECT (SELECT sum(amount) FROM checking) || ' ' || (SELECT sum(amount) FROM savings)};
my $run_id = app_sql($node, q{SELECT run_id FROM tablesync_run('checking', wait => false)});
my %seen;
for (1 .. 600)
{
	$seen{ app_sql($standby, $sum) }++;
	last if $seen{'2970000 3030000'};
	select undef, undef, undef, 0.02;
}
is(join(', ', sort keys %seen), '2970000 3030000, 3000000 3000000', 'readers of a standby see 60,000 changes of a group at once, or none');
is(app_sql($node, "SELECT tablesync_wait($run_id)"), 'succeeded', 'the run');
is($node->safe_psql('postgres', q{SELECT count(DISTINCT xid::text), count(*) FROM pg_logical_slot_get_changes('watcher', NULL, NULL, 'include-xids', '1') WHERE data ~ '^table public.(checking|savings):'}), '1|60000', 'so does who decodes');
$node->safe_psql('postgres', q{SELECT pg_drop_replication_slot('watcher')});
is(app_sql($node, q{SELECT count(DISTINCT r.group_run_id), count(DISTINCT r.run_id), sum(n) FROM tablesync.run r JOIN (SELECT run_id, count(*) AS n FROM checking_changes WHERE op = 'u' GROUP BY run_id
	UNION ALL SELECT run_id, count(*) FROM savings_changes WHERE op = 'u' GROUP BY run_id) c USING (run_id)}), '1|2|60000', 'the feeds tell by group_run_id what belongs together');

# --- what a standby serves ---

change_items();
run_counts($node, 'items');
$node->wait_for_catchup($standby);
for my $sql (q{SELECT count(*), max(position) FROM tablesync_changes('items')}, q{SELECT count(*), max(position) FROM tablesync_envelopes('items', NULL)}, q{SELECT count(*) FROM tablesync_as_of('items', now())},
	'SELECT count(*) FROM items_changes', 'SELECT consumer, position, newest FROM tablesync_consumers', 'SELECT count(*), max(run_id) FROM tablesync_runs', 'SELECT count(*), sum(amount) FROM items',
	'SELECT count(*) FROM tablesync_exports')
{
	is(app_sql($standby, $sql), app_sql($node, $sql), "the same at the standby: $sql");
}
like(app_fails($standby, q{SELECT tablesync_export('items', '2026-01-01', '2026-01-02')}), qr/cannot use tablesync_export\(\) on a standby\nHINT:  Use it on the primary/, 'exports are the primary\'s');

# --- promoted after a run, and in each phase of one ---

# The standby becomes the server; what the old one had not sent is lost with it.
sub fail_over
{
	my ($new) = @_;
	$node->stop('immediate');
	$new->promote;
	$node = $new;
	return;
}

app_sql($node, 'CALL consume()');
$node->wait_for_catchup($standby);
fail_over($standby);
my $position = app_sql($node, $feed);
change_items();
goes_on('after a run');
is(app_sql($node, "SELECT count(*), max(position) FROM tablesync_changes('items', $position)"), app_sql($node, "SELECT inserted + updated + deleted, feed_position FROM tablesync_runs, tablesync.replica t WHERE t.replica = 'items'::regclass AND tablesync_runs.replica = t.replica ORDER BY run_id DESC LIMIT 1"),
	'who has read up to the last position goes on with the next change');

my %held = (
	SCAN => sub {
		my $locker = session($source);
		$locker->query_safe('BEGIN; LOCK TABLE items');
		app_sql($node, q{SELECT tablesync_run('items', wait => false)});
		wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
		return sub { $locker->quit };
	},
	APPLY => sub {
		my $holder = session($node);
		$holder->query_safe('BEGIN; SELECT pg_advisory_xact_lock(42)');
		app_sql($node, q{SELECT tablesync_run('items', wait => false)});
		wait_until($node, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run' AND wait_event = 'advisory'});
		return sub { eval { $holder->quit } };
	},
	CONFIRM => sub {
		$source->safe_psql('postgres', 'DELETE FROM many WHERE id % 2 = 0');
		app_sql($node, q{SELECT tablesync_alter('many', consistency => 'snapshot', chunk_rows => 10000, max_source_load => 0.02); SELECT tablesync_run('many', wait => false)});
		wait_until($node, q{SELECT phase = 'scan' AND rows_scanned > 0 FROM tablesync_progress WHERE replica = 'many'::regclass});
		# behind the transaction of SCAN, before that of CONFIRM
		my $locker = session($source);
		$locker->query_until(qr//, "BEGIN; LOCK TABLE many;\n");
		wait_until($node, q{SELECT phase = 'confirm' FROM tablesync_progress WHERE replica = 'many'::regclass});
		return sub {
			$locker->quit;
			app_sql($node, q{SELECT tablesync_alter('many', max_source_load => 1)});
			is(run_counts($node, 'many'), 'succeeded|0|0|50000', 'CONFIRM: the next run deletes what is gone');
			is_replica($source, $node, 'many', 'many', 'CONFIRM: and is exact');
		};
	},
	'index build' => sub {
		my $reader = session($node);
		$reader->query_safe('BEGIN; SELECT FROM big LIMIT 1');
		app_sql($node, q{SELECT tablesync_run('big', wait => false)});
		wait_until($node, q{SELECT count(*) = 1 FROM pg_locks WHERE relation = 'big'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted});
		return sub {
			eval { $reader->quit };
			is(app_sql($node, q{SELECT status FROM tablesync_run('big')}), 'succeeded', 'index build: the load is completed');
			is_replica($source, $node, 'big', 'big', 'index build: and exact');
			is(app_sql($node, q{SELECT bool_and(indisvalid AND indisready) FROM pg_index WHERE indrelid = 'big'::regclass}), 't', 'index build: with its index');
		};
	});
for my $phase ('SCAN', 'APPLY', 'CONFIRM', 'index build')
{
	$standby = standby_of($node);
	change_items();
	my $let_go = $held{$phase}->();
	$node->wait_for_catchup($standby);
	fail_over($standby);
	is(app_sql($node, q{SELECT status FROM tablesync_runs ORDER BY run_id DESC LIMIT 1}), 'crashed', "$phase: the run that was cut off");
	$let_go->();
	goes_on($phase);
}

# --- promoted without the last run, which others have read ---

# A consumer whose work is elsewhere: it keeps the last change there, and compares, as in docs/feed.md.
sub after_connect
{
	my ($lsn, $run_id, $ts_ms) = @_;
	my $changes = q{SELECT position AS p, value->'source'->>'txId' AS run, value->'source'->>'ts_ms' AS ts FROM tablesync_fetch('search', 1000)};
	return app_sql($node, qq{WITH f AS MATERIALIZED ($changes)
		SELECT CASE WHEN (SELECT min(p) FROM f) = $lsn + 1 OR (SELECT count(*) FROM f) = 0 AND (SELECT position FROM tablesync_consumers) = $lsn THEN 'go on'
			WHEN EXISTS (SELECT FROM f WHERE (p, run, ts) = ($lsn, '$run_id', '$ts_ms')) THEN 'go on after it' ELSE 'start again' END});
}

my $last_change = q{SELECT position || '|' || run_id || '|' || tablesync.milliseconds(source_time) FROM tablesync_changes('items') ORDER BY position DESC LIMIT 1};
my $told = q{SELECT position, op, key, after FROM tablesync_changes('items', %s)};

# Runs the items while the standby does not get it; returns what the feed tells of it.
sub lose_a_run
{
	$standby = standby_of($node);
	$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
	$standby->reload;
	wait_until($node, 'SELECT count(*) = 0 FROM pg_stat_replication');
	my $before = app_sql($node, $feed);
	$source->safe_psql('postgres', $_[0]);
	run_counts($node, 'items');
	my @last = split /\|/, app_sql($node, $last_change);
	is(after_connect(@last), 'go on after it', 'a consumer that had no time to commit goes on after the last change');
	app_sql($node, 'CALL consume()');
	is(after_connect(@last), 'go on', 'one that has goes on');
	my $changes = app_sql($node, sprintf $told, $before);
	cmp_ok(scalar(split /\n/, $changes), '>', 2, 'changes that will be lost');
	fail_over($standby);
	is(app_sql($node, $feed), $before, 'they are');
	is(after_connect(@last), 'start again', 'a consumer of the old server learns it');
	return ($before, $changes, @last);
}

my $then = app_sql($node, 'SELECT clock_timestamp()');
my $rows_then = app_sql($node, 'SELECT count(*), sum(amount) FROM items');
my ($before, $changes, @last) = lose_a_run(q{INSERT INTO items VALUES (5001, 1), (5000, 1); UPDATE items SET amount = amount + 1 WHERE id % 90 = 0; DELETE FROM items WHERE id % 130 = 0});
goes_on('a run is lost');
is(app_sql($node, sprintf $told, $before), $changes, 'what it said is said again with the same positions');

# it is not if the source has changed its mind
$then = app_sql($node, 'SELECT clock_timestamp()');
$rows_then = app_sql($node, 'SELECT count(*), sum(amount) FROM items');
($before, $changes, @last) = lose_a_run(q{INSERT INTO items VALUES (5002, 1), (5003, 1), (5004, 1)});
my $lost = $last[0];
like(app_fails($node, "SELECT * FROM tablesync_changes('items', $lost)"), qr/ERROR:  22023: position $lost is not in the feed of public.items\nDETAIL:  .*\nHINT:  .* If this one was read from a server that was lost, so was its run: start again\./, 'who has read them is told');
like(app_fails($node, "SELECT tablesync_commit('search', $lost)"), qr/ERROR:  22023: position $lost is not in the feed/, 'and can\'t commit them');
$source->safe_psql('postgres', 'DELETE FROM items WHERE id >= 5000; UPDATE items SET amount = amount + 1 WHERE id % 20 = 0');
run_counts($node, 'items');
cmp_ok(app_sql($node, $feed), '>', $lost, 'the same positions stand for other changes');
is(after_connect(@last), 'start again', 'a consumer of the old server learns it, also then');
isnt(app_sql($node, qq{SELECT run_id || '|' || tablesync.milliseconds(source_time) FROM tablesync_changes('items', $lost - 1, 1)}), "$last[1]|$last[2]", 'so does who reads by positions of its own');
goes_on('another run is lost');
is(app_sql($node, q{SELECT count(DISTINCT position) = max(position) - min(position) + 1 FROM items_changes}), 't', 'positions have no gap');
is(app_sql($node, "SELECT count(*), sum((row->>'amount')::integer) FROM tablesync_as_of('items', '$then') a (row)"), $rows_then, 'the replica as it was before');
app_sql($node, q{SELECT tablesync_consumer_remove('search'); SELECT tablesync_alter('items', keep_changes => '1 ms')});
change_items();
run_counts($node, 'items');
run_counts($node, 'items');
is(app_sql($node, "SELECT count(*) FROM items_changes WHERE position <= $lost"), 0, 'what is old is deleted');

# the next run of a group
$source->safe_psql('postgres', 'UPDATE checking SET amount = amount + 1 WHERE id <= 10; UPDATE savings SET amount = amount - 1 WHERE id <= 10');
is(app_sql($node, q{SELECT string_agg(status || ' ' || updated, ', ') FROM tablesync_run('savings')}), 'succeeded 10, succeeded 10', 'a group goes on');
is_replica($source, $node, $_, $_, "$_ is exact") for qw(checking savings);

# --- alerts, and the queue ---

$source->safe_psql('postgres', 'REVOKE SELECT ON items FROM reader');
app_fails($node, q{SELECT tablesync_run('items')});
$standby = standby_of($node);
fail_over($standby);
is(app_sql($node, 'SELECT kind FROM tablesync_alerts'), 'run_failed', 'an alert is open after a promotion');
$source->safe_psql('postgres', 'GRANT SELECT ON items TO reader');
$run_id = app_sql($node, q{SELECT run_id FROM tablesync_run('items', wait => false)});
is(app_sql($node, "SELECT tablesync_wait($run_id)"), 'succeeded', 'the queue is served');
wait_until($node, 'SELECT count(*) = 0 FROM tablesync_alerts');
is(app_sql($node, 'SELECT status FROM tablesync_health()'), 'ok', 'all is well');

done_testing();
