# Every column of every row: tablesync_verify, its repair, and the share of it
# that each run does (verify_fraction).  By version and by row first, where
# usual runs see least; by xmin in the end.

use strict;
use warnings;

use IPC::Run;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

# Differences as "key difference", sorted; "clean" if there are none.
sub verify
{
	my ($replica, $arguments) = @_;
	$arguments //= '';
	my $rows = app_sql($target, qq{
		SELECT string_agg(x, '; ' ORDER BY x COLLATE "C") FROM (
			SELECT (SELECT string_agg(value, '/' ORDER BY k) FROM jsonb_each_text(key) e (k, value)) || ' ' || difference AS x
			FROM tablesync_verify('$replica'$arguments)) v});
	return $rows eq '' ? 'clean' : $rows;
}

# Change a replica as nobody can notice: a superuser without the trigger.
sub silently
{
	my ($replica, $sql) = @_;
	$target->safe_psql('postgres', qq{
		BEGIN;
		ALTER TABLE $replica DISABLE TRIGGER tablesync_note_write;
		$sql;
		ALTER TABLE $replica ENABLE ALWAYS TRIGGER tablesync_note_write;
		COMMIT});
	return;
}

sub memory_of
{
	my ($replica) = @_;
	return app_sql($target, qq{
		SELECT md5(string_agg(ROW(chunk_no, lower_key, rows, differed, digest, stale, buckets)::text, ';' ORDER BY chunk_no))
		FROM tablesync.chunk WHERE replica = '$replica'::regclass});
}

sub last_message
{
	my ($replica) = @_;
	return app_sql($target, "SELECT message FROM tablesync_runs WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1");
}

$source->safe_psql('postgres', q{
	CREATE TABLE media (id integer PRIMARY KEY, note text, size bigint, updated_at timestamp);
	INSERT INTO media SELECT i, 'n' || i, i, timestamp '2021-01-01' + i * interval '1 min' FROM generate_series(1, 1000) i;
	CREATE TABLE plain (id uuid PRIMARY KEY, note text, "r" numeric, "s" jsonb);
	INSERT INTO plain SELECT md5(i::text)::uuid, 'n' || i, i, jsonb_build_object('i', i) FROM generate_series(1, 1000) i;
	CREATE TABLE pair ("a b" integer, day date, note text, updated_at timestamptz, PRIMARY KEY ("a b", day));
	INSERT INTO pair SELECT i % 20, date '2020-01-01' + i / 20, 'n' || i, '2021-01-01' FROM generate_series(0, 1999) i;
	CREATE TABLE named (name text PRIMARY KEY, note text, version integer);
	INSERT INTO named SELECT 'N"' || i, 'n' || i, i FROM generate_series(1, 500) i;
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
	CREATE TABLE odd (id integer PRIMARY KEY, mood mood, doc xml, spans timestamptz[], plain text, js json, updated_at timestamp);
	INSERT INTO odd SELECT i, 'ok', xml('<i>' || i || '</i>'), ARRAY[timestamptz '2021-01-01'], 'p', '{"a":1}', '2021-01-01' FROM generate_series(1, 300) i});
$target->safe_psql('postgres', q{
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
	CREATE ROLE other LOGIN;
	CREATE ROLE watcher LOGIN IN ROLE pg_monitor});
app_sql($target, q{
	SELECT tablesync_add('media', 'src', 'public.media', version_column => 'updated_at', fingerprint => 'version', chunk_rows => 100);
	SELECT tablesync_add('plain', 'src', 'public.plain', fingerprint => 'row', chunk_rows => 100, consistency => 'chunk');
	SELECT tablesync_add('pair', 'src', 'public.pair', version_column => 'updated_at', fingerprint => 'version', chunk_rows => 100);
	SELECT tablesync_add('named', 'src', 'public.named', version_column => 'version', fingerprint => 'version');
	SELECT tablesync_add('odd', 'src', 'public.odd', version_column => 'updated_at', fingerprint => 'version', chunk_rows => 50)});

like(app_fails($target, q{SELECT * FROM tablesync_verify('media')}), qr/55000.*has not been loaded yet.*HINT:.*tablesync_run/s,
	'what was never loaded can\'t be verified');
like(app_fails($target, q{BEGIN; SELECT * FROM tablesync_verify('media')}), qr/25001.*tablesync_verify\(\) cannot run inside a transaction block/,
	'not in a transaction block');
like(app_fails($target, q{SELECT * FROM tablesync_verify(NULL)}), qr/22004/, 'which replica?');
app_sql($target, 'SELECT * FROM tablesync_run()');
is(app_sql($target, 'SELECT count(*) FROM tablesync_status WHERE oldest_proof IS NULL'), 5, 'a load proves nothing about all columns');

# 1. Nothing differs
my %memory = map { $_ => memory_of($_) } qw(media plain pair named odd);
is(verify($_), 'clean', "$_: nothing differs") for sort keys %memory;
is(memory_of($_), $memory{$_}, "$_: what is remembered is untouched") for sort keys %memory;
is(app_sql($target, q{SELECT count(*) FROM tablesync_status WHERE oldest_proof > now() - interval '1 hour'}), 5, 'all are proved now');
is(app_sql($target, q{SELECT string_agg(DISTINCT kind || ' ' || status || ' ' || (proof->>'equal'), ',') FROM tablesync_runs WHERE kind = 'verify'}),
	'verify succeeded true', 'recorded as runs that verify');
is(run_counts($target, 'media'), 'succeeded|0|0|0', 'a usual run has nothing to do');

# 2. The source changes a row and does not say so
$source->safe_psql('postgres', q{
	UPDATE media SET note = 'quiet' WHERE id = 10;
	UPDATE pair SET note = NULL WHERE "a b" = 3 AND day = '2020-01-11';
	UPDATE named SET note = 'quiet' WHERE name = 'N"7';
	UPDATE plain SET r = r + 0.0 WHERE id = md5('7')::uuid});
is(run_counts($target, 'media'), 'succeeded|0|0|0', 'a usual run does not see it');
$memory{media} = memory_of('media');
is(verify('media'), '10 different', 'verify does');
is(app_sql($target, q{SELECT key::text, difference, source->>'note', replica_row->>'note', replica_row->>'size' FROM tablesync_verify('media')}),
	'{"id": 10}|different|quiet|n10|10', 'and tells what differs');
is(verify('pair'), '3/2020-01-11 different', 'composite key');
is(verify('named'), 'N"7 different', 'text key');
is(verify('plain'), md5('7') . ' newer at source', 'without a version column: the replica is as the last run left it');
is(app_sql($target, 'SELECT note FROM media WHERE id = 10'), 'n10', 'the replica stays');
is(app_sql($target, q{SELECT proof->>'equal' || ' ' || message FROM tablesync_runs WHERE replica = 'media'::regclass ORDER BY run_id DESC LIMIT 1}),
	'false 1 rows differ from the source, 0 of them are merely newer there', 'the run says so');
is(memory_of('media'), $memory{media}, 'what is remembered is untouched');
is(app_sql($target, q{SELECT count(*) FILTER (WHERE verified_at = m), count(*) FROM tablesync.chunk, (SELECT max(verified_at) m FROM tablesync.chunk WHERE replica = 'media'::regclass) x WHERE replica = 'media'::regclass})
	=~ s/^(\d+)\|(\d+)$/$2 - $1/er, 1, 'one chunk is not proved by that');
my $drift = q{SELECT count(*) FROM tablesync_alerts WHERE replica = 'media'::regclass AND kind = 'drift'};
is(app_sql($target, $drift), 1, 'an alert');
is(run_counts($target, 'media'), 'succeeded|0|0|0', 'a usual run');
is(app_sql($target, $drift), 1, 'does not close it');
is(verify('media', ', repair => true'), '10 different', 'repair returns what it mends');
is(verify($_, ', repair => true') =~ s/^.* //r, $_ eq 'plain' ? 'source' : 'different', "$_: repair") for qw(pair named plain);
for (qw(media pair named plain))
{
	is_replica($source, $target, $_, $_, "$_: identical after the repair");
	is(verify($_), 'clean', "$_: nothing differs any more");
	is(run_counts($target, $_), 'succeeded|0|0|0', "$_: a usual run has nothing to do");
	is(last_message($_), '', "$_: and nothing to complain of");
}
is(app_sql($target, $drift), 0, 'the alert is over');

# 3. What the source has changed since the last run
$source->safe_psql('postgres', q{
	UPDATE media SET note = 'changed', updated_at = clock_timestamp() WHERE id = 20;
	UPDATE media SET note = 'older', updated_at = '2020-01-01' WHERE id = 21;
	DELETE FROM media WHERE id IN (30, 530);
	INSERT INTO media VALUES (-5, 'first', 1, '2020-01-01'), (1001, 'last', 1, clock_timestamp());
	UPDATE plain SET note = 'changed' WHERE id = md5('7')::uuid;
	DELETE FROM plain WHERE id = md5('8')::uuid;
	INSERT INTO plain VALUES (md5('1001')::uuid, 'last', 1, NULL)});
is(verify('media'), join('; ', map { "$_ newer at source" } qw(-5 1001 20 21 30 530)), 'changes that no run has seen');
is(verify('plain'), join('; ', map { md5($_) . ' newer at source' } sort { md5($a) cmp md5($b) } qw(7 8 1001)), 'without a version column');
is(run_counts($target, 'media'), 'succeeded|2|2|2', 'the next run takes them over');
is(run_counts($target, 'plain'), 'succeeded|1|1|1', 'the next run takes them over');
is(verify('media'), 'clean', 'then nothing differs');

# 4. Somebody writes to the replica
my $edits = q{
	UPDATE media SET note = 'mine' WHERE id = 40;
	UPDATE media SET updated_at = updated_at + interval '1 hour' WHERE id = 41;
	DELETE FROM media WHERE id = 42;
	INSERT INTO media VALUES (5000, 'mine', 1, '2021-01-01')};
my $found = '40 different; 41 different; 42 missing here; 5000 missing at source';
app_sql($target, $edits);
$source->safe_psql('postgres', q{UPDATE media SET note = 'now', updated_at = clock_timestamp() WHERE id = 700; DELETE FROM media WHERE id = 701});
is(verify('media'), "$found; 700 newer at source; 701 newer at source", 'written by somebody, and chunks that nobody has touched');
is(verify('media', ', repair => true'), "$found; 700 newer at source; 701 newer at source", 'repaired');
is_replica($source, $target, 'media', 'media', 'identical');
is(run_counts($target, 'media'), 'succeeded|0|0|0', 'a usual run has nothing to do');
is(last_message('media'), '', 'and does not take the repair for somebody else\'s change');
silently('media', $edits);
is(run_counts($target, 'media') =~ s/^succeeded.*/succeeded/r, 'succeeded', 'a usual run does not see what was written without the trigger');
silently('media', $edits =~ s/INSERT.*//sr) if app_sql($target, 'SELECT count(*) FROM media WHERE id = 42');
is(verify('media'), $found, 'verify does');
is(verify('media', ', repair => true'), $found, 'and repairs it');
is(verify('media'), 'clean', 'nothing differs any more');
app_sql($target, $edits);
$source->safe_psql('postgres', q{
	DELETE FROM media WHERE id = 43;
	UPDATE media SET note = 'now', updated_at = '2020-01-01' WHERE id = 44;
	INSERT INTO media VALUES (-7, 'new', 1, '2020-01-01')});
is(verify('media'), '-7 newer at source; 40 different; 41 different; 42 missing here; 43 newer at source; 44 newer at source; 5000 missing at source',
	'rows that somebody has touched, among those that the source has changed');
my @keys = split /\n/, app_sql($target, 'SELECT id FROM plain ORDER BY id LIMIT 6');
app_sql($target, qq{UPDATE plain SET note = 'mine' WHERE id = '$keys[0]'; DELETE FROM plain WHERE id = '$keys[1]'; UPDATE plain SET id = '00000000-0000-0000-0000-000000000001' WHERE id = '$keys[2]'});
$source->safe_psql('postgres', qq{UPDATE plain SET note = 'new' WHERE id = '$keys[3]'; DELETE FROM plain WHERE id = '$keys[4]'; INSERT INTO plain VALUES ('00000000-0000-0000-0000-000000000002')});
is(verify('plain'), join('; ', '00000000-0000-0000-0000-000000000001 missing at source', '00000000-0000-0000-0000-000000000002 newer at source',
	"$keys[0] different", "$keys[1] missing here", "$keys[2] missing here", "$keys[3] newer at source", "$keys[4] newer at source"), 'without a version column');
$source->safe_psql('postgres', qq{UPDATE plain SET note = 'new' WHERE id = '$keys[0]'});
like(verify('plain'), qr/$keys[3] different; $keys[4] missing at source/, 'where both sides have changed a row, nobody can tell');
is(run_counts($target, $_) =~ s/\|.*//r, 'succeeded', "$_: the next run takes the changes over") for qw(media plain);
is(verify('media', ', repair => true'), '40 different', 'but no version column tells of a note that was changed here');
is(verify($_), 'clean', "$_: nothing differs any more") for qw(media plain);
app_sql($target, q{TRUNCATE plain});
like(verify('plain'), qr/^(\S+ missing here(; )?){1000}$/, 'an emptied replica');
is(app_sql($target, q{SELECT count(*) FROM tablesync_verify('plain', true)}), 1000, 'filled again');
is_replica($source, $target, 'plain', 'plain', 'identical');

# 5. A run that failed has seen what somebody did, but proved nothing
app_sql($target, q{DELETE FROM media WHERE id = 50});
my $lock = session($source);
$lock->query_safe('BEGIN; LOCK TABLE media');
app_sql($target, q{SELECT * FROM tablesync_run('media', wait => false)});
wait_until($target, q{SELECT EXISTS (SELECT FROM tablesync_progress WHERE phase = 'scan') AND NOT EXISTS (SELECT FROM tablesync.stray_write)});
wait_until($source, q{SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)});

# 6. One at a time; cancelled like other runs
like(app_fails($target, q{SELECT * FROM tablesync_verify('media')}), qr/55006.*can't be verified now.*DETAIL:  run \d+ is going on.*HINT:/s, 'not while a run is going on');
app_sql($target, q{SELECT tablesync_cancel('media')});
wait_until($target, q{SELECT NOT EXISTS (SELECT FROM tablesync.live_runs())});
my ($out, $err) = ('', '');
my $verify = IPC::Run::start [ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $target->connstr('postgres') . ' user=app', '-c', q{SELECT * FROM tablesync_verify('media')} ],
  '>', \$out, '2>', \$err;
wait_until($target, q{SELECT EXISTS (SELECT FROM tablesync_progress p JOIN tablesync_runs r USING (run_id) WHERE r.kind = 'verify' AND r.status = 'running' AND p.phase = 'scan')});
is(app_sql($target, q{SELECT status FROM tablesync_run('media')}), 'already running', 'no run while one verifies');
wait_until($source, q{SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)});
app_sql($target, q{SELECT tablesync_cancel('media')});
$verify->finish;
like($err, qr/57014/, 'verify was cancelled');
is(app_sql($target, q{SELECT status FROM tablesync_runs ORDER BY run_id DESC LIMIT 1}), 'cancelled', 'and recorded as cancelled');
$lock->query_safe('ROLLBACK');
is(verify('media'), '50 missing here', 'what a failed run has seen is not taken for proved');
is(run_counts($target, 'media'), 'succeeded|1|0|0', 'the next run mends it');

# 7. Repair is one transaction
silently('media', q{UPDATE media SET note = 'mine'});
my $reader = session($target);
$reader->query_safe('BEGIN; SELECT FROM media WHERE id = 999 FOR UPDATE');
($out, $err) = ('', '');
$verify = IPC::Run::start [ 'psql', '-XAtq', '-d', $target->connstr('postgres') . ' user=app', '-c', q{SELECT count(*) FROM tablesync_verify('media', repair => true)} ],
  '>', \$out, '2>', \$err;
wait_until($target, q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND backend_type = 'tablesync run')});
my $rows = $source->safe_psql('postgres', 'SELECT count(*) FROM media');
is($target->safe_psql('postgres', q{SELECT count(*) FROM media WHERE note = 'mine'}), $rows, 'readers see nothing of a repair that is not over');
is(app_sql($target, q{SELECT count(*) FROM tablesync.difference d JOIN tablesync_runs r USING (run_id) WHERE r.status = 'running'}), 0, 'nor its differences');
$reader->query_safe('ROLLBACK');
$verify->finish;
is($out, "$rows\n", 'all rows were mended') or diag($err);
is($target->safe_psql('postgres', q{SELECT count(*) FROM media WHERE note = 'mine'}), 0, 'all at once');
$reader->quit;

# 8. Columns without a hash are compared too
$source->safe_psql('postgres', q{
	UPDATE odd SET mood = 'sad' WHERE id = 1;
	UPDATE odd SET doc = xml('<i>2</i>') WHERE id = 3;
	UPDATE odd SET spans = ARRAY[timestamptz '2021-01-01', 'infinity'] WHERE id = 70;
	UPDATE odd SET plain = 'q', mood = NULL, js = '"\\u0000"' WHERE id = 200;
	UPDATE odd SET mood = 'happy', updated_at = '2022-01-01' WHERE id = 201});
is(verify('odd'), '1 different; 200 different; 201 newer at source; 3 different; 70 different', 'enum, xml, array of timestamps');
is(app_sql($target, q{SELECT source->'js', source->'mood', length(source->>'plain'), replica_row->>'js', replica_row->'spans' FROM tablesync_verify('odd') WHERE key = '{"id": 200}'}),
	'"\\"\\\\u0000\\""|null|1|{"a":1}|["2021-01-01T00:00:00+00:00"]', 'whole rows, whatever is in them');
is(verify('odd', ', repair => true'), '1 different; 200 different; 201 newer at source; 3 different; 70 different', 'repaired');
is_replica($source, $target, 'odd', 'odd', 'identical');
is(verify('odd'), 'clean', 'nothing differs any more');

# 9. The guard, and a source that is emptied
$source->safe_psql('postgres', 'CREATE TABLE pair_kept AS TABLE pair; TRUNCATE pair');
is(app_sql($target, q{SELECT difference, count(*) FROM tablesync_verify('pair') GROUP BY 1}), 'newer at source|2000', 'an emptied source is reported');
like(app_fails($target, q{SELECT * FROM tablesync_verify('pair', repair => true)}), qr/would delete 2000 of 2000/, 'but repair deletes no more than a run may');
is(app_sql($target, 'SELECT count(*) FROM pair'), 2000, 'nothing is deleted');
$source->safe_psql('postgres', 'INSERT INTO pair TABLE pair_kept');
is(verify('pair'), 'clean', 'nothing differs');

# 10. Others see nothing
for my $role (qw(other watcher))
{
	is($target->safe_psql('postgres', 'SELECT count(*) FROM tablesync.difference', extra_params => [ '-U', $role ]), 0, "$role: sees no rows of others");
	my ($rc, undef, $error) = $target->psql('postgres', q{SELECT * FROM tablesync_verify('media')}, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	like($error, qr/42501/, "$role: may not verify");
}
cmp_ok(app_sql($target, 'SELECT count(*) FROM tablesync.difference'), '>', 1000, 'the owner does');
$target->safe_psql('postgres', q{DELETE FROM tablesync.run r WHERE kind = 'verify' AND run_id = (SELECT min(run_id) FROM tablesync.difference)});
is(app_sql($target, 'SELECT count(*) FROM tablesync.difference d WHERE NOT EXISTS (SELECT FROM tablesync.run r WHERE r.run_id = d.run_id)'), 0, 'differences go with their run');

# 11. The source is never still
my $busy = q{
	DO $$
	BEGIN
		FOR i IN 1 .. 4000 LOOP
			UPDATE media SET note = 'busy' || i, updated_at = clock_timestamp() WHERE id = 1 + i * 7 % 1000;
			DELETE FROM media WHERE id = 1 + i * 13 % 1000;
			INSERT INTO media VALUES (1 + i * 13 % 1000, 'again' || i, i, clock_timestamp()) ON CONFLICT DO NOTHING;
			UPDATE plain SET note = 'busy' || i WHERE id = md5((i % 900)::text)::uuid;
			COMMIT;
		END LOOP;
	END $$};
my $writer = IPC::Run::start [ 'psql', '-XAtq', '-d', $source->connstr('postgres'), '-c', $busy ], '>', \my $ignored, '2>', \my $trouble;
my $bad = '';
for my $round (1 .. 4)
{
	for my $replica (qw(media plain))
	{
		my $repair = $round % 2 ? 'false' : 'true';
		$bad .= app_sql($target, "SELECT key, difference, source, replica_row FROM tablesync_verify('$replica', $repair) WHERE difference <> 'newer at source'");
		app_sql($target, "SELECT * FROM tablesync_run('$replica')") if $round == 2;
	}
}
$writer->finish;
is($bad, '', 'nothing is called different that is merely new');
app_sql($target, 'SELECT * FROM tablesync_run()');
is(verify($_), 'clean', "$_: equal in the end") for qw(media plain);

# 12. A share of it with every run
app_sql($target, "SELECT tablesync_alter('$_', verify_fraction => 0.25)") for qw(media plain odd);
like(app_fails($target, q{SELECT tablesync_alter('media', verify_fraction => 1.5)}), qr/22023.*verify_fraction/, 'a share is at most 1');
for my $replica (qw(media plain odd))
{
	my ($chunks, $before) = split /\|/, app_sql($target, qq{
		SELECT (SELECT count(*) FROM tablesync.chunk WHERE replica = t.replica), oldest_proof FROM tablesync_status t WHERE replica = '$replica'::regclass});
	cmp_ok($chunks, '>=', $replica eq 'odd' ? 4 : 8, "$replica: $chunks chunks");
	if ($replica eq 'odd') { $source->safe_psql('postgres', q{UPDATE odd SET mood = 'sad' WHERE id IN (5, 295)}) }
	elsif ($replica eq 'plain') { silently('plain', q{UPDATE plain SET note = 'drift' WHERE id IN ((SELECT min(id::text) FROM plain)::uuid, (SELECT max(id::text) FROM plain)::uuid)}) }
	else
	{
		silently('media', q{UPDATE media SET note = 'drift' WHERE id = 740; DELETE FROM media WHERE id = 500; INSERT INTO media VALUES (1e6, 'drift')});
		$source->safe_psql('postgres', q{UPDATE media SET note = 'quiet' WHERE id = 20});
	}
	my ($drifted, $most, $told) = (0, 0, 0);
	for my $run (1 .. 4)
	{
		$source->safe_psql('postgres', qq{UPDATE media SET note = 'run $run', updated_at = clock_timestamp() WHERE id IN (21, 741)});
		my $message = app_sql($target, "SELECT message FROM tablesync_run('$replica')");
		$told += $1 if $message =~ /^(\d+) rows had drifted/;
		my $verified = app_sql($target, qq{
			SELECT count(*) FROM tablesync.chunk WHERE replica = '$replica'::regclass
			AND verified_at >= (SELECT max(started_at) FROM tablesync_runs WHERE replica = '$replica'::regclass)});
		$most = $verified if $verified > $most;
	}
	$drifted = $replica eq 'media' ? 4 : 2;
	is($told, $drifted, "$replica: all that has drifted is found in four runs, and nothing else");
	is(app_sql($target, qq{SELECT count(*) FROM tablesync.difference d JOIN tablesync_runs r USING (run_id)
		WHERE d.replica = '$replica'::regclass AND r.kind = 'sync' AND d.difference <> 'newer at source'}), $drifted, "$replica: and recorded");
	ok(same_rows($source, $target, $replica), "$replica: identical");
	cmp_ok($most, '<=', $chunks / 4 + 2, "$replica: no run verifies more than its share");
	is(app_sql($target, "SELECT oldest_proof > '$before' FROM tablesync_status WHERE replica = '$replica'::regclass"), 't', "$replica: the oldest proof moves");
	is(verify($replica), 'clean', "$replica: verify agrees");
}

# chunks are cut anew: their proofs stay true
my $before = app_sql($target, q{SELECT oldest_proof FROM tablesync_status WHERE replica = 'media'::regclass});
app_sql($target, q{SELECT tablesync_alter('media', chunk_rows => 30, verify_fraction => 0)});
app_sql($target, q{SELECT * FROM tablesync_run('media')});
cmp_ok(app_sql($target, q{SELECT count(*) FROM tablesync.chunk WHERE replica = 'media'::regclass}), '>', 15, 'smaller chunks');
is(app_sql($target, q{SELECT oldest_proof FROM tablesync_status WHERE replica = 'media'::regclass}), $before, 'pieces are as proved as the whole');
app_sql($target, q{SELECT tablesync_alter('media', chunk_rows => 500)});
app_sql($target, q{SELECT * FROM tablesync_run('media')});
is(app_sql($target, q{SELECT oldest_proof FROM tablesync_status WHERE replica = 'media'::regclass}), $before, 'so is what they make together');

# 13. By xmin: what a usual run has seen needs no version, and what it has not is newer
$source->safe_psql('postgres', q{
	CREATE TABLE written (id integer PRIMARY KEY, note text, mood mood, doc xml, updated_at timestamp);
	INSERT INTO written SELECT i, 'n' || i, 'ok', '<a/>', '2021-01-01' FROM generate_series(1, 1000) i});
app_sql($target, q{SELECT tablesync_add('written', 'src', 'public.written', version_column => 'updated_at', chunk_rows => 100)});
is(run_counts($target, 'written'), 'succeeded|1000|0|0', 'xmin: loaded');
is(verify('written'), 'clean', 'xmin: nothing differs');
$source->safe_psql('postgres', q{UPDATE written SET note = 'quiet' WHERE id = 10; UPDATE written SET doc = '<b/>' WHERE id = 11; UPDATE written SET mood = 'sad' WHERE id = 12});
is(verify('written'), '10 newer at source; 11 newer at source; 12 newer at source', 'xmin: the replica is as the last run left it');
is(run_counts($target, 'written'), 'succeeded|0|3|0', 'xmin: a usual run sees what is changed quietly');
is(verify('written'), 'clean', 'xmin: so verify has nothing to find');
$source->safe_psql('postgres', q{
	UPDATE written SET note = 'changed' WHERE id = 20;
	UPDATE written SET note = note WHERE id = 22;
	DELETE FROM written WHERE id IN (30, 530);
	INSERT INTO written VALUES (-5, 'first'), (1001, 'last')});
is(verify('written'), join('; ', map { "$_ newer at source" } qw(-5 1001 20 30 530)), 'xmin: changes that no run has seen');
is(run_counts($target, 'written'), 'succeeded|2|1|2', 'xmin: the next run takes them over');
is(verify('written'), 'clean', 'xmin: then nothing differs');
my $touches = q{
	UPDATE written SET note = 'mine' WHERE id = 40;
	UPDATE written SET doc = '<mine/>' WHERE id = 41;
	DELETE FROM written WHERE id = 42;
	INSERT INTO written VALUES (5000, 'mine')};
app_sql($target, $touches);
$source->safe_psql('postgres', q{UPDATE written SET note = 'now' WHERE id = 700; INSERT INTO written VALUES (701, 'now') ON CONFLICT (id) DO UPDATE SET note = 'now'});
is(verify('written'), "$found; 700 newer at source; 701 newer at source", 'xmin: written by somebody, and changed at the source');
is(verify('written', ', repair => true'), "$found; 700 newer at source; 701 newer at source", 'xmin: repaired');
is_replica($source, $target, 'written', 'written', 'xmin: identical');
is(run_counts($target, 'written'), 'succeeded|0|0|0', 'xmin: a usual run has nothing to do');
is(last_message('written'), '', 'xmin: and nothing to report');
silently('written', $touches);
is(verify('written'), $found, 'xmin: what leaves no note, too');
is(verify('written', ', repair => true'), $found, 'xmin: and that is repaired');
is_replica($source, $target, 'written', 'written', 'xmin: identical');
app_sql($target, q{SELECT tablesync_alter('written', verify_fraction => 1)});
silently('written', q{UPDATE written SET mood = 'happy' WHERE id = 60});
is(run_counts($target, 'written'), 'succeeded|0|1|0', 'xmin: each run verifies');
like(last_message('written'), qr/^1 rows had drifted/, 'xmin: and says what it has found');

sub md5
{
	my ($text) = @_;
	my $hex = $source->safe_psql('postgres', "SELECT md5('$text')::uuid");
	return $hex;
}

# --- another fingerprint than that of the last success, and no version column ---

$source->safe_psql('postgres', q{CREATE TABLE switched (id integer PRIMARY KEY, v text); INSERT INTO switched SELECT i, 'v' FROM generate_series(1, 100) i});
app_sql($target, q{SELECT tablesync_add('switched', 'src', 'public.switched', fingerprint => 'row', verify_fraction => 1)});
is(run_counts($target, 'switched'), 'succeeded|100|0|0', 'loaded');
app_sql($target, q{SELECT tablesync_alter('switched', fingerprint => 'xmin')});
$source->safe_psql('postgres', q{UPDATE switched SET v = 'w' WHERE id = 7});
is(run_counts($target, 'switched'), 'succeeded|0|1|0', 'from row to xmin, with verify_fraction');
is_replica($source, $target, 'switched', 'switched', 'identical');

done_testing();
