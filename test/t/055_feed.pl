# The feed after random changes at the source: replayed, it gives the replica, for
# every fingerprint; positions have no gaps, in the order of commits; what a change
# was before is there; the replica as of an earlier run can be told.
#
# TABLESYNC_SEED repeats a run; TABLESYNC_ROUNDS makes it longer.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my $seed = $ENV{TABLESYNC_SEED} // int(rand(1_000_000));
my $rounds = $ENV{TABLESYNC_ROUNDS} // 12;
srand($seed);
diag("TABLESYNC_SEED=$seed");

my ($source, $target) = start_pair();

# unlike names, types and settings; "position" and "op" are columns of ours, too
my %tables = (
	by_xmin => { key => 'id integer', names => 'id', random => '(random() * 600)::integer', settings => '' },
	by_version => { key => 'id bigint', names => 'id', random => '(random() * 600)::bigint', settings => ", fingerprint => 'version', version_column => 'updated_at', chunk_rows => 100", written => 1 },
	by_row => { key => 'id uuid', names => 'id', random => 'md5((random() * 600)::integer::text)::uuid', settings => ", fingerprint => 'row', consistency => 'chunk', chunk_rows => 50", written => 1 },
	by_pair => { key => 'position integer, op text COLLATE "C"', names => 'position, op', random => '(random() * 20)::integer, chr(65 + (random() * 25)::integer)', settings => ", verify_fraction => 0.5" },
	'"Odd ""name"" %s"' => { key => '"run_id" numeric', names => '"run_id"', random => 'round((random() * 300)::numeric, 1)', settings => '' });

my $payload = q{u integer UNIQUE, t text, v varchar(20), c char(5), n numeric, f double precision, b bytea, j jsonb, js json, iv interval, tz timestamptz,
	arr integer[], bits bit varying(9), bo boolean, run_id_ text, updated_at timestamp};
my $random_payload = q{
	CASE WHEN random() < 0.8 THEN (random() * 2000000000)::integer END, md5(random()::text), left(md5(random()::text), 9), 'ab', round(random()::numeric, (random() * 4)::integer),
	CASE WHEN random() < 0.1 THEN 'NaN' ELSE random() END, decode(md5(random()::text), 'hex'), '{"a": [1, null]}', '{"b":  "\u0000"}', random() * interval '1 year',
	now() - random() * interval '1 year', '{1,NULL,2}', B'101', random() < 0.5, 'mine', clock_timestamp()};

for my $table (sort keys %tables)
{
	my $t = $tables{$table};
	$source->safe_psql('postgres', qq{CREATE TABLE $table ($t->{key}, $payload, PRIMARY KEY ($t->{names}));
		INSERT INTO $table SELECT $t->{random}, $random_payload FROM generate_series(1, 300) ON CONFLICT DO NOTHING});
	app_sql($target, "SELECT tablesync_add('" . $table =~ s/'/''/gr . "', 'src', 'public.$table', feed => true, keep_changes => '1 day'$t->{settings})");
}

sub name
{
	my ($table) = @_;
	return $table =~ /"$/ ? $table =~ s/"$/_changes"/r : $table . "_changes";
}
sub literal { my ($text) = @_; return "'" . $text =~ s/'/''/gr . "'" }

sub change
{
	my ($table) = @_;
	my $t = $tables{$table};
	my $some = "ctid = ANY (ARRAY(SELECT ctid FROM $table ORDER BY random() LIMIT " . (1 + int(rand(40))) . '))';
	my @kinds = (
		"INSERT INTO $table SELECT $t->{random}, $random_payload FROM generate_series(1, 30) ON CONFLICT DO NOTHING",
		"UPDATE $table SET t = md5(random()::text), n = n + 1, updated_at = clock_timestamp() WHERE $some",
		"UPDATE $table SET u = NULL, j = NULL, updated_at = clock_timestamp() WHERE $some",
		"DELETE FROM $table WHERE $some",
		# the key stays, the row does not
		"WITH gone AS (DELETE FROM $table WHERE $some RETURNING *) SELECT count(*) FROM gone",
		# unique values change places
		"CREATE TEMP TABLE s AS SELECT ctid AS c, u, lead(u) OVER (ORDER BY u) AS next FROM $table WHERE u IS NOT NULL ORDER BY u LIMIT 5; "
			. "UPDATE $table SET u = NULL WHERE u IN (SELECT u FROM s); UPDATE $table x SET u = s.next, updated_at = clock_timestamp() FROM s WHERE x.ctid = s.c; DROP TABLE s",
		# nothing, really
		"UPDATE $table SET t = t WHERE $some");
	return $kinds[ int(rand(@kinds)) ];
}

# A consumer, as docs/feed.md has it: keeps a copy in the table state.
app_sql($target, q{
	CREATE TABLE state (name text, key jsonb, row jsonb, PRIMARY KEY (name, key));
	CREATE PROCEDURE consume(name text, replica regclass) LANGUAGE plpgsql AS $$
	DECLARE
		change record;
		reached bigint;
	BEGIN
		LOOP
			reached := NULL;
			FOR change IN SELECT * FROM tablesync_fetch(name, 100) LOOP
				reached := change.position;
				IF change.value->>'op' = 't' THEN
					DELETE FROM state s WHERE s.name = consume.name;
					FOR change IN SELECT * FROM tablesync_envelopes(replica, NULL) LOOP
						reached := change.position;
						INSERT INTO state VALUES (name, change.key, change.value->'after');
					END LOOP;
				ELSIF change.value->>'op' = 'd' THEN
					DELETE FROM state s WHERE s.name = consume.name AND s.key = change.key;
				ELSE
					INSERT INTO state VALUES (name, change.key, change.value->'after')
					ON CONFLICT ON CONSTRAINT state_pkey DO UPDATE SET row = excluded.row;
				END IF;
			END LOOP;
			EXIT WHEN reached IS NULL;
			PERFORM tablesync_commit(name, reached);
			COMMIT;
		END LOOP;
	END $$});

# What its consumer has, and what the replica has.
sub replayed
{
	my ($table) = @_;
	my $name = literal($table);
	app_sql($target, "CALL consume($name, $name)");
	return app_sql($target, "SELECT coalesce(md5(string_agg(row::text, E'\n' ORDER BY row::text COLLATE \"C\")), 'empty') FROM state WHERE name = $name");
}

sub consumable
{
	my ($table) = @_;
	return app_sql($target, 'SELECT coalesce(md5(string_agg((value->\'after\')::text, E\'\n\' ORDER BY (value->\'after\')::text COLLATE "C")), \'empty\') FROM tablesync_envelopes(' . literal($table) . ', NULL)');
}

sub is_now
{
	my ($table) = @_;
	return app_sql($target, 'SELECT coalesce(md5(string_agg(row::text, E\'\n\' ORDER BY row::text COLLATE "C")), \'empty\') FROM tablesync_as_of(' . literal($table) . ", now()) a (row)");
}

app_sql($target, 'SELECT * FROM tablesync_run()');
my %then;
for my $table (sort keys %tables)
{
	my $changes = name($table);
	is(app_sql($target, "SELECT string_agg(op::text, ',') FROM $changes"), 't', "$table: a load is one row");
	app_sql($target, 'SELECT tablesync_consumer_add(' . literal($table) . ', ' . literal($table) . ', 0)');
}

my $failed = 0;
for my $round (1 .. $rounds)
{
	for my $table (sort keys %tables)
	{
		my $sql = 'SELECT setseed(' . rand() . ');' . join ';', map { change($table) } 1 .. 1 + int(rand(3));
		$source->safe_psql('postgres', $sql);
		# somebody writes to the replica, too
		app_sql($target, "DELETE FROM $table WHERE ctid = ANY (ARRAY(SELECT ctid FROM $table LIMIT 2)); UPDATE $table SET c = 'mine', updated_at = 'epoch' WHERE ctid = ANY (ARRAY(SELECT ctid FROM $table ORDER BY ctid DESC LIMIT 2))")
			if $tables{$table}{written} && rand() < 0.3;
		$then{$table}{ app_sql($target, 'SELECT clock_timestamp()') } = is_now($table) if !$tables{$table}{written} && rand() < 0.3;
	}
	app_sql($target, "SELECT tablesync_cancel('by_xmin')") if rand() < 0.1;
	app_sql($target, 'SELECT * FROM tablesync_run()');
	for my $table (sort keys %tables)
	{
		my ($is, $replayed) = (consumable($table), replayed($table));
		next if $is eq $replayed;
		fail("round $round: $table replayed");
		$failed = 1;
	}
	last if $failed;
}
ok(!$failed, "$rounds rounds, replayed");

for my $table (sort keys %tables)
{
	my $changes = name($table);
	ok(same_rows($source, $target, $table, $table), "$table: identical");
	is(app_sql($target, "SELECT count(DISTINCT position) = max(position) AND min(position) = 1 AND max(position) > 10 FROM $changes"), 't', "$table: positions have no gaps");
	is(app_sql($target, "SELECT count(*) FROM (SELECT run_id < lag(run_id) OVER (ORDER BY position) AS back FROM $changes) s WHERE back"), 0, "$table: in the order of the runs");
	is(app_sql($target, "SELECT max(position) - feed_position FROM $changes, tablesync.replica WHERE replica = " . literal($table) . '::regclass GROUP BY feed_position'), 0, "$table: counted in its row");
	is(app_sql($target, "SELECT count(*) FROM $changes u LEFT JOIN $changes b ON b.position = u.position AND b.op = 'b' WHERE u.op = 'u' AND b.op IS NULL"), 0, "$table: each update has its row before");
	# what was before is what the last change has left
	is(app_sql($target, "WITH s AS (SELECT *, count(*) FILTER (WHERE op = 't') OVER (ORDER BY position) AS start FROM tablesync_changes(" . literal($table) . ")),
		c AS (SELECT *, lag(after) OVER (PARTITION BY start, key ORDER BY position) AS left_behind, lag(op) OVER (PARTITION BY start, key ORDER BY position) AS last_op FROM s)
		SELECT count(*) FROM c WHERE before IS NOT NULL AND last_op IN ('c', 'u') AND before <> left_behind"), 0, "$table: before is what was");
	is(app_sql($target, "SELECT count(*) FROM tablesync_changes(" . literal($table) . ") WHERE (op = 'c') <> (before IS NULL AND after IS NOT NULL) OR (op = 'd') <> (before IS NOT NULL AND after IS NULL) OR op = 'u' AND after = before"), 0,
		"$table: before and after are those of the op, and an update changes something");
	# inserted, updated and deleted are those of the runs
	is(app_sql($target, "SELECT count(*) FROM tablesync_runs r WHERE replica = " . literal($table) . "::regclass AND kind = 'sync' AND status = 'succeeded' AND NOT EXISTS (SELECT FROM $changes c WHERE c.run_id = r.run_id AND op = 't')
		AND (inserted, updated, deleted) <> (SELECT count(*) FILTER (WHERE op = 'c'), count(*) FILTER (WHERE op = 'u'), count(*) FILTER (WHERE op = 'd') FROM $changes c WHERE c.run_id = r.run_id)"), 0, "$table: as many as the runs say");
	for my $at (sort keys %{ $then{$table} })
	{
		is(app_sql($target, 'SELECT coalesce(md5(string_agg(row::text, E\'\n\' ORDER BY row::text COLLATE "C")), \'empty\') FROM tablesync_as_of(' . literal($table) . ", '$at') a (row)"), $then{$table}{$at}, "$table: as of $at");
	}
}
is(app_sql($target, q{SELECT count(*) > 20 AND bool_and(f.source_time = r.source_instant) FROM tablesync.fed_run f JOIN tablesync_runs r USING (run_id)}), 't', 'each run has its instant of the source');
# a run that finds nothing writes nothing
my $before = app_sql($target, 'SELECT max(position) FROM by_xmin_changes');
app_sql($target, q{SELECT tablesync_run('by_xmin')});
is(app_sql($target, 'SELECT max(position) FROM by_xmin_changes'), $before, 'an idle run writes nothing');

done_testing();
