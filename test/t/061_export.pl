# Exports: windows of a replica, or of its feed, written to files by a worker that
# is connected as the role that asks; whole files or none, whatever crashes.

use strict;
use warnings;

use File::Spec;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my $source = start_source();
$source->safe_psql('postgres', q{
	CREATE TABLE events (id integer PRIMARY KEY, note text, data json, num numeric, at timestamptz NOT NULL);
	INSERT INTO events SELECT i, 'n' || i, '{"a": 1}', i, '2026-01-01 00:00Z'::timestamptz + i * interval '1 hour' FROM generate_series(0, 99) i;
	UPDATE events SET note = 'back\slash "quote", comma' || E'\nnewline\r\ttab' || ' \n ' || chr(1) || chr(2) || ' \.',
		data = ('{"b":' || E'\n' || ' [1,  2], "\u0000": "\\\\"}')::json WHERE id = 24;
	UPDATE events SET note = NULL, num = 'NaN' WHERE id = 25;
	UPDATE events SET note = '' WHERE id = 26;
	UPDATE events SET note = '\.' WHERE id = 27;
	CREATE TABLE plain (id integer PRIMARY KEY, note text);
	INSERT INTO plain SELECT i, 'p' || i FROM generate_series(1, 10) i;
	CREATE TABLE nothing (LIKE plain INCLUDING ALL)});
my $target = start_target($source, conf => "restart_after_crash = on\n");
my $dir = File::Spec->rel2abs(PostgreSQL::Test::Utils::tempdir());    # 17 gives a relative one
chmod 0700, $dir;
my $port = $target->port;
$target->safe_psql('postgres', q{CREATE ROLE clerk LOGIN; CREATE ROLE stranger LOGIN; CREATE ROLE grp; GRANT grp TO clerk});
app_sql($target, q{
	SELECT tablesync_add('events', 'src', 'public.events', version_column => 'at');
	SELECT tablesync_add('plain', 'src', 'public.plain', feed => true);
	SELECT tablesync_add('nothing', 'src', 'public.nothing');
	SELECT * FROM tablesync_run();
	GRANT SELECT ON events, plain_changes TO clerk;
	CREATE TABLE other (id integer)});

sub as
{
	my ($role, $sql) = @_;
	return $target->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

sub refused
{
	my ($role, $sql, $like, $name) = @_;
	my ($rc, $stdout, $stderr) = $target->psql('postgres', $sql, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	like($stderr, $like, $name // "$role: $sql");
	return;
}

# Ask for an export and wait for its end; returns its row of tablesync_exports.
sub export_as
{
	my ($role, $arguments) = @_;
	return ended(as($role, "SELECT tablesync_export($arguments)"));
}

sub ended
{
	my ($id) = @_;
	wait_until($target, "SELECT state IN ('FINISHED', 'FAILED') FROM tablesync_exports WHERE export_id = $id");
	my %row = (id => $id);
	@row{qw(state uri rows attempts message)} = split /\x1f/, $target->safe_psql('postgres', "SELECT state, coalesce(uri, ''), coalesce(rows, -1), attempts, coalesce(message, '') FROM tablesync_exports WHERE export_id = $id",
		extra_params => [ '-F', "\x1f" ]);
	($row{path} = $row{uri}) =~ s{^file://}{};
	return \%row;
}

sub files { return join ' ', sort map { s{.*/}{}r } glob "$dir/*" }

my $window = q{'2026-01-02 00:00Z', '2026-01-02 06:00Z'};

# --- without a directory ---

refused('app', "SELECT tablesync_export('events', $window)", qr/ERROR:  55000: this server writes no exports\nDETAIL:  tablesync.export_directory is not set.\nHINT:  In postgresql.conf: /, 'refused without a directory');
$target->append_conf('postgresql.conf', "tablesync.export_directory = '$dir'\n");
$target->reload;
refused('app', "SELECT tablesync.serve_exports(); SET tablesync.export_directory = '/tmp'", qr/ERROR:  55P02: /, 'the directory is the server\'s');

# --- csv ---

my $export = export_as('app', "'events', $window");
is("@$export{qw(state rows attempts)}", 'FINISHED 6 1', 'csv: finished');
like($export->{message}, qr/^$/, 'csv: nothing more to say: the last run has come further');
like($export->{uri}, qr{^file://\Q$dir\E/\d+-\d+-\d+-\d+\.csv$}, 'csv: where it is');
is(sprintf('%04o', (stat $export->{path})[2] & 07777), '0600', 'csv: for the server only');
$target->safe_psql('postgres', "CREATE TABLE back (LIKE events); COPY back FROM '$export->{path}' (FORMAT csv, HEADER match)");
is($target->safe_psql('postgres', q{SELECT count(*) FROM (SELECT (e.*)::text FROM events e WHERE at >= '2026-01-02 00:00Z' AND at < '2026-01-02 06:00Z' EXCEPT SELECT (b.*)::text FROM back b) d}), 0, 'csv: read back, the same rows');
is($target->safe_psql('postgres', 'SELECT count(*), min(id), max(id) FROM back'), '6|24|29', 'csv: the first instant is in, the last is not');
is(files(), $export->{path} =~ s{.*/}{}r, 'no other file');

# --- jsonl ---

$export = export_as('clerk', "'events', $window, 'jsonl'");
is("@$export{qw(state rows)}", 'FINISHED 6', 'jsonl: finished');
my @lines = split /\n/, slurp_file($export->{path});
is(scalar @lines, 6, 'jsonl: a line each');
is($target->safe_psql('postgres', "SELECT count(*) FROM (SELECT line::jsonb FROM unnest(string_to_array(rtrim(pg_read_file('$export->{path}'), E'\\n'), E'\\n')) line) l
	JOIN events e ON (l.line->>'id')::integer = e.id WHERE l.line->>'note' IS NOT DISTINCT FROM e.note AND l.line->>'data' = e.data::text AND l.line->'num' = to_jsonb(e.num) AND (l.line->>'at')::timestamptz = e.at
	AND l.line->>'at' LIKE '%+00:00'"), 6, 'jsonl: each the row that it was, in UTC');

# --- bad requests ---

my $before = $target->safe_psql('postgres', 'SELECT count(*) FROM tablesync_exports');
refused('app', $_->[0], $_->[1]) for (
	[ q{SELECT tablesync_export('events', '2026-01-02', '2026-01-01')}, qr/ERROR:  22023: the window of an export ends before it begins\nDETAIL:  .*\nHINT:  from_time must be before to_time\./ ],
	[ q{SELECT tablesync_export('events', '2026-01-02', '2026-01-02')}, qr/ERROR:  22023: the window of an export ends before it begins/ ],
	[ q{SELECT tablesync_export('events', NULL, '2026-01-02')}, qr/ERROR:  22023: the window of an export needs two finite times\nHINT:  SELECT/ ],
	[ q{SELECT tablesync_export('events', '-infinity', '2026-01-02')}, qr/ERROR:  22023: the window of an export needs two finite times/ ],
	[ q{SELECT tablesync_export('events', '2026-01-01', '2026-01-02', 'xml')}, qr/ERROR:  22023: invalid value for format: 'xml'\nHINT:  It must be csv or jsonl\./ ],
	[ q{SELECT tablesync_export('events', '2026-01-01', '2026-01-02', NULL)}, qr/ERROR:  22023: invalid value for format: NULL/ ],
	[ q{SELECT tablesync_export(NULL, '2026-01-01', '2026-01-02')}, qr/ERROR:  22004: replica must not be NULL/ ],
	[ q{SELECT tablesync_export('other', '2026-01-01', '2026-01-02')}, qr/ERROR:  42704: public.other is not a replica\nHINT:  Replicas are listed/ ],
	[ q{SELECT tablesync_export('nothing', '2026-01-01', '2026-01-02')}, qr/ERROR:  55000: public.nothing has nothing that tells when its rows were changed\nDETAIL:  .*\nHINT:  .*tablesync_alter\('public.nothing', feed => true\);/ ]);
refused('stranger', $_, qr/ERROR:  42501: permission denied for table /) for
	(q{SELECT tablesync_export('events', '2026-01-01', '2026-01-02')}, q{SELECT tablesync_export('plain', '2026-01-01', '2026-01-02')}, q{SELECT tablesync_export('other', '2026-01-01', '2026-01-02')},
	q{SELECT tablesync_export('pg_authid', '2026-01-01', '2026-01-02')});
refused('stranger', 'SELECT tablesync_export(0, now(), now() + \'1 s\')', qr/ERROR:  42501/);
if ($target->pg_version < 17)
{
	as('app', 'GRANT SELECT ON events TO grp');
	refused('clerk', "SET ROLE grp; SELECT tablesync_export('events', $window)", qr/ERROR:  28000: role grp is not permitted to log in/, 'a role that can\'t connect');
}
is($target->safe_psql('postgres', 'SELECT count(*) FROM tablesync_exports'), $before, 'nothing has come of them');
is(as('stranger', 'SELECT count(*) FROM tablesync_exports'), 0, 'others see nothing');
is(as('clerk', 'SELECT count(*) FROM tablesync_exports'), 1, 'who has asked sees hers');
is(as('app', 'SELECT count(*) FROM tablesync_exports'), 2, 'the owner of the replica sees all of it');
refused('stranger', $_, qr/ERROR:  42501/) for ('SELECT tablesync.record_forget_export(1)', q{SELECT tablesync.record_add_export(10, 'events', now(), now(), 'csv')}, 'SELECT * FROM tablesync.all_exports',
	q{UPDATE tablesync.export SET state = 'FAILED'}, 'SELECT tablesync.record_take_export(1, 10)', q{SELECT tablesync.export_query(1)});

# a transaction that is undone has asked for nothing
as('app', "BEGIN; SELECT tablesync_export('events', $window); ROLLBACK");
is($target->safe_psql('postgres', 'SELECT count(*) FROM tablesync_exports'), $before, 'undone');

# --- the feed ---

my $begin = $source->safe_psql('postgres', 'SELECT clock_timestamp()');
$source->safe_psql('postgres', q{UPDATE plain SET note = E'new\\\n' WHERE id = 1; DELETE FROM plain WHERE id = 2; INSERT INTO plain VALUES (11, 'p11')});
run_counts($target, 'plain');
my $middle = $source->safe_psql('postgres', 'SELECT clock_timestamp()');
$source->safe_psql('postgres', q{UPDATE plain SET note = 'later' WHERE id = 1});
run_counts($target, 'plain');
$export = export_as('clerk', "'plain', '$begin', '$middle'");
is("@$export{qw(state rows)}", 'FINISHED 4', 'changes: finished');
$target->safe_psql('postgres', "CREATE TABLE changes_back (LIKE plain_changes); COPY changes_back FROM '$export->{path}' (FORMAT csv, HEADER match)");
is($target->safe_psql('postgres', q{SELECT string_agg(op::text || id, ' ' ORDER BY position, op) FROM changes_back}), 'd2 b1 u1 c11', 'changes: of the run in the window');
is($target->safe_psql('postgres', q{SELECT count(*) FROM changes_back b JOIN plain_changes c USING (position, run_id, op) WHERE b.note = c.note}), 4, 'changes: as they are in the feed');
$export = export_as('clerk', "'plain', '2020-01-01', '$middle', 'jsonl'");
is($target->safe_psql('postgres', "SELECT string_agg(concat((line->>'op'), (line->'row'->>'id')), ' ') FROM (SELECT line::jsonb FROM unnest(string_to_array(rtrim(pg_read_file('$export->{path}'), E'\\n'), E'\\n')) line) l"),
	't d2 b1 u1 c11', 'changes: as JSON, in order');
$export = export_as('clerk', "'plain', '2020-01-01', '2020-01-02'");
is("@$export{qw(state rows)}", 'FINISHED 0', 'changes: none');
$export = export_as('clerk', "'plain', '2020-01-01', '2100-01-01'");
like($export->{message}, qr/^as the source was at .*, before the end of the window$/, 'a window that is not over yet is told');
is($export->{message} =~ /at (.*),/ ? $1 : '', $target->safe_psql('postgres', q{SET timezone = 'UTC'; SELECT source_instant FROM tablesync_runs WHERE replica = 'plain'::regclass AND status = 'succeeded' ORDER BY run_id DESC LIMIT 1}), 'with the instant of the last run');
app_sql($target, q{SELECT tablesync_alter('plain', keep_changes => '1 ms'); SELECT tablesync_run('plain')});
refused('clerk', "SELECT tablesync_export('plain', '$begin', '2100-01-01')", qr/ERROR:  22023: the feed of public.plain does not go back to .*\nDETAIL:  Changes are kept that are newer than .*\nHINT:  The setting keep_changes/, 'changes that are gone');

# --- rights at the time of reading; policies ---

as('app', q{CREATE POLICY hide_one ON events TO clerk USING (id <> 25); CREATE POLICY all_of_it ON events TO app USING (true); ALTER TABLE events ENABLE ROW LEVEL SECURITY});
$export = export_as('clerk', "'events', $window");
is("@$export{qw(state rows)}", 'FINISHED 5', 'a policy hides rows from who asks');
as('app', 'ALTER TABLE events DISABLE ROW LEVEL SECURITY; DROP POLICY hide_one ON events');

# whoever asks as a superuser does not run code of the owner's
as('app', q{CREATE TYPE mood AS ENUM ('happy');
	CREATE FUNCTION rise(mood) RETURNS json LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; RETURN '1'; END$$;
	CREATE CAST (mood AS json) WITH FUNCTION rise(mood);
	ALTER TABLE events ADD COLUMN mine mood DEFAULT 'happy'});
$export = export_as('postgres', "'events', $window, 'jsonl'");
is("@$export{qw(state rows)}", 'FINISHED 6', 'a column of a type of the owner\'s');
is($target->safe_psql('postgres', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'app'}), 'f', 'whose cast was not called');
as('app', 'ALTER TABLE events DROP COLUMN mine');
as('app', q{CREATE FUNCTION rise_to_text(mood) RETURNS text LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; RETURN 'c'; END$$;
	CREATE CAST (mood AS text) WITH FUNCTION rise_to_text(mood);
	ALTER TABLE plain_changes RENAME op TO op_old; ALTER TABLE plain_changes ADD op mood DEFAULT 'happy'});
refused('postgres', q{SELECT tablesync_export('plain', now() - interval '1 ms', now(), 'jsonl')}, qr/ERROR:  55000: public.plain_changes can't be the feed of public.plain\n/, 'a feed with a column of such a type');
is($target->safe_psql('postgres', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'app'}), 'f', 'nobody has risen');
as('app', 'ALTER TABLE plain_changes DROP op; ALTER TABLE plain_changes RENAME op_old TO op');
# and one that gets it as the worker begins
my $changer = session($target, '-U', 'app');
$changer->query_safe(q{BEGIN; LOCK TABLE plain_changes});
my $raced = $target->safe_psql('postgres', q{SELECT tablesync_export('plain', clock_timestamp(), '2100-01-01', 'jsonl')});
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync export' AND wait_event_type = 'Lock'});
$changer->query_safe(q{ALTER TABLE plain_changes RENAME op TO op_old; ALTER TABLE plain_changes ADD op mood DEFAULT 'happy'; COMMIT});
$export = ended($raced);
like("@$export{qw(state message)}", qr/^FAILED public.plain_changes can't be the feed of public.plain/, 'what is locked is looked at again');
is($target->safe_psql('postgres', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'app'}), 'f', 'nobody has risen');
$changer->query_safe('ALTER TABLE plain_changes DROP op; ALTER TABLE plain_changes RENAME op_old TO op');
$changer->quit;

# rights that are gone when the worker reads
my $locker = session($target, '-U', 'app');
$locker->query_safe('BEGIN; LOCK TABLE events');
my $id = as('clerk', "SELECT tablesync_export('events', $window)");
wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync export' AND usename = 'clerk' AND wait_event_type = 'Lock'});
is(as('clerk', "SELECT state, attempts FROM tablesync_exports WHERE export_id = $id"), 'STARTED|1', 'started');
$locker->query_safe('REVOKE SELECT ON events FROM clerk, grp; COMMIT');
$export = ended($id);
is("@$export{qw(state rows message)}", 'FAILED -1 permission denied for table public.events', 'not with rights that are gone, and not tried again');
as('app', 'GRANT SELECT ON events TO clerk');

# --- crashes ---

sub blocked_export
{
	$locker->query_safe('BEGIN; LOCK TABLE events');
	my $blocked = as('clerk', "SELECT tablesync_export('events', $window)");
	wait_until($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tablesync export' AND wait_event_type = 'Lock'});
	return $blocked;
}
$id = blocked_export();
like(files(), qr/-$id-\d+\.csv\.1\.part/, 'a part while it is written');
$target->stop('immediate');
$locker->quit;
like(files(), qr/-$id-\d+\.csv\.1\.part/, 'which a crash leaves');
unlike(files(), qr/-$id-\d+\.csv( |$)/, 'and no more');
$target->start;
is(as('clerk', "SELECT state, attempts FROM tablesync_exports WHERE export_id = $id"), 'STARTED|1', 'recorded as it was');
run_counts($target, 'nothing');    # whoever looks next
$export = ended($id);
is("@$export{qw(state rows attempts)}", 'FINISHED 6 2', 'the end of a run has it tried again');
unlike(files(), qr/part/, 'no part is left');

# a worker that is told to end leaves its export to the next
$locker = session($target, '-U', 'app');
$id = blocked_export();
$target->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tablesync export'});
wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync export'});
$locker->query_safe('COMMIT');
app_sql($target, 'SELECT tablesync.watch()');
$export = ended($id);
is("@$export{qw(state rows attempts)}", 'FINISHED 6 2', 'the watchdog has it tried again');
unlike(files(), qr/part/, 'no part is left');

# one that is cancelled is not tried again
$id = blocked_export();
as('clerk', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tablesync export'});
$export = ended($id);
is("@$export{qw(state attempts message)}", 'FAILED 1 canceling statement due to user request', 'cancelled');
$locker->query_safe('COMMIT');
unlike(files(), qr/part/, 'no part is left');

# the next attempt comes later each time
$id = $target->safe_psql('postgres', "INSERT INTO tablesync.all_exports (role, replica, from_time, to_time, format, state, file, attempts) VALUES ('clerk', 'events', $window, 'csv', 'STARTED', '1-2-3-5.csv', 1) RETURNING export_id");
for ([ 1, 1 ], [ 2, 5 ], [ 4, 125 ])
{
	my ($attempts, $seconds) = @$_;
	is($target->safe_psql('postgres', "
		BEGIN;
		UPDATE tablesync.all_exports SET state = 'STARTED', attempts = $attempts WHERE export_id = $id;
		SELECT tablesync.record_fail_export($id, 'it has failed', true);
		SELECT state, due_at - interval '$seconds s' BETWEEN now() AND clock_timestamp() FROM tablesync.all_exports WHERE export_id = $id;
		ROLLBACK") =~ s/^\n//r, 'NOT_STARTED|t', "attempt $attempts is followed after $seconds s");
}
$target->safe_psql('postgres', "DELETE FROM tablesync.all_exports WHERE export_id = $id");

# always crashing
$target->safe_psql('postgres', "INSERT INTO tablesync.all_exports (role, replica, from_time, to_time, format, state, file, attempts) VALUES ('clerk', 'events', $window, 'csv', 'STARTED', '1-2-3-4.csv', 5)");
$id = $target->safe_psql('postgres', 'SELECT max(export_id) FROM tablesync.all_exports');
app_sql($target, 'SELECT tablesync.serve_exports()');
$export = ended($id);
is("@$export{qw(state attempts message)}", 'FAILED 5 the worker of the last attempt ended unexpectedly', 'an export that takes its worker with it each time is given up');

# --- the directory ---

{
	chmod 0777, $dir;
	$export = export_as('clerk', "'events', $window");
	like("@$export{qw(state message)}", qr/^FAILED ".*" is no directory that only the user of the server may write to$/, 'a directory that others may write to');
	chmod 0700, $dir;
	chmod 0500, $dir;
	$id = as('clerk', "SELECT tablesync_export('events', $window)");
	wait_until($target, "SELECT attempts = 1 AND state = 'NOT_STARTED' AND message LIKE 'could not create file%' FROM tablesync_exports WHERE export_id = $id");
	chmod 0700, $dir;
	is(ended($id)->{state}, 'FINISHED', 'a directory that may be written to again');
	rename $dir, "$dir.away" or die;
	$id = as('clerk', "SELECT tablesync_export('events', $window)");
	wait_until($target, "SELECT attempts = 1 AND state = 'NOT_STARTED' AND message LIKE 'could not look at directory%' FROM tablesync_exports WHERE export_id = $id");
	# another's export need not wait for the next attempt
	rename "$dir.away", $dir or die;
	$export = export_as('app', "'events', $window");
	is("@$export{qw(state rows)}", 'FINISHED 6', 'meanwhile another');
	$export = ended($id);
	is("@$export{qw(state rows)} " . ($export->{attempts} > 1), 'FINISHED 6 1', 'a directory that comes back: tried again');
}

# --- many at once; workers of runs are not taken ---

my $newest = $target->safe_psql('postgres', 'SELECT max(export_id) FROM tablesync_exports');
as('clerk', "SELECT tablesync_export('events', $window) FROM generate_series(1, 20)");
as('app', "SELECT tablesync_export('events', $window, 'jsonl') FROM generate_series(1, 20)");
is(run_counts($target, 'nothing'), 'succeeded|0|0|0', 'a run meanwhile');
wait_until($target, q{SELECT bool_and(state IN ('FINISHED', 'FAILED')) FROM tablesync_exports});
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync_exports WHERE state = 'FINISHED' AND export_id > } . $newest), 40, 'forty exports of two roles');
$locker->query_safe('BEGIN; LOCK TABLE events');
as('clerk', "SELECT tablesync_export('events', $window) FROM generate_series(1, 100)");
refused('clerk', "SELECT tablesync_export('events', $window)", qr/ERROR:  54000: role clerk has too many exports that have not finished/, 'a role may not fill the queue');
is($target->safe_psql('postgres', q{SELECT count(*) <= 1 FROM pg_stat_activity WHERE backend_type = 'tablesync export'}), 't', 'one worker');
$locker->query_safe('COMMIT');
$locker->quit;
wait_until($target, q{SELECT bool_and(state = 'FINISHED') FROM tablesync_exports WHERE export_id > (SELECT max(export_id) - 100 FROM tablesync_exports)});

# --- what is kept ---

$target->append_conf('postgresql.conf', "tablesync.keep_exports = 0\ntablesync.export_file_mode = 0640\n");
$target->reload;
as('clerk', "SELECT tablesync_export('events', $window)");
wait_until($target, 'SELECT count(*) = 0 FROM tablesync_exports');
is(files(), '', 'files go with their exports');
$target->append_conf('postgresql.conf', "tablesync.keep_exports = -1\n");
$target->reload;
$export = export_as('clerk', "'events', $window");
is(sprintf('%04o', (stat $export->{path})[2] & 07777), '0640', 'permissions as they are set');

# a replica that is removed takes its exports along, not their files
app_sql($target, q{SELECT tablesync_remove('events')});
is($target->safe_psql('postgres', 'SELECT count(*) FROM tablesync_exports'), 0, 'removed');
ok(-f $export->{path}, 'the file stays');

# --- a directory whose name is no part of a URI as it is ---

mkdir "$dir/o d\xc3\xa4 %", 0700 or die;
$target->append_conf('postgresql.conf', "tablesync.export_directory = '$dir/o d\xc3\xa4 %'\n");
$target->restart;
$export = export_as('app', "'plain', now(), '2100-01-01'");
like($export->{uri}, qr{^file:///.*/o%20d%C3%A4%20%25/[^/ ]+\.csv$}, 'a URI has %XX for what it must not have');
ok(-e ($export->{path} =~ s/%([0-9A-F]{2})/chr hex $1/ger), 'and names the file');

done_testing();
