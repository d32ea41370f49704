# The table of a feed: it follows the columns of its replica, and what owners do
# to it and to the replica: renamed, dropped, emptied, given away, dumped and restored.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();
$source->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, a text, b integer, c varchar(5), d date);
	INSERT INTO item SELECT i, 'a' || i, i, 'c', '2021-01-01' FROM generate_series(1, 10) i});
app_sql($target, q{SELECT tablesync_add('item', 'src', 'public.item', feed => true)});
is(run_counts($target, 'item'), 'succeeded|10|0|0', 'loaded');

sub columns
{
	my ($table) = @_;
	return app_sql($target, "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '$table'::regclass AND attnum > 3 AND NOT attisdropped");
}

sub changed
{
	my ($sql) = @_;
	my $before = app_sql($target, q{SELECT feed_position FROM tablesync.replica WHERE replica::text LIKE '%item%'});
	$source->safe_psql('postgres', $sql);
	app_sql($target, 'SELECT * FROM tablesync_run()');
	my $replica = app_sql($target, q{SELECT replica FROM tablesync.replica WHERE replica::text LIKE '%item%'});
	return app_sql($target, "SELECT op, before, after FROM tablesync_changes('$replica', $before)");
}

# --- columns ---

is(columns('item_changes'), 'id integer, a text, b integer, c character varying(5), d date', 'columns of the replica');
is(app_sql($target, q{SELECT count(*) FROM pg_attribute WHERE attrelid = 'item_changes'::regclass AND attnum > 3 AND (attnotnull OR atthasdef)}), 0, 'nullable, without defaults');
is(app_sql($target, q{SELECT relowner::regrole FROM pg_class WHERE oid = 'item_changes'::regclass}), 'app', 'of its owner');

is(changed(q{UPDATE item SET a = 'x' WHERE id = 1}), 'u|{"a": "a1", "b": 1, "c": "c", "d": "2021-01-01", "id": 1}|{"a": "x", "b": 1, "c": "c", "d": "2021-01-01", "id": 1}', 'a change');
is(changed(q{ALTER TABLE item ADD e numeric(6, 2); UPDATE item SET e = 1.5 WHERE id = 2}),
	'u|{"a": "a2", "b": 2, "c": "c", "d": "2021-01-01", "e": null, "id": 2}|{"a": "a2", "b": 2, "c": "c", "d": "2021-01-01", "e": 1.50, "id": 2}', 'added');
is(changed(q{ALTER TABLE item RENAME a TO t; ALTER TABLE item RENAME b TO a; ALTER TABLE item RENAME t TO b; UPDATE item SET e = 2 WHERE id = 3}),
	'u|{"a": 3, "b": "a3", "c": "c", "d": "2021-01-01", "e": null, "id": 3}|{"a": 3, "b": "a3", "c": "c", "d": "2021-01-01", "e": 2.00, "id": 3}', 'names swapped');
is(app_sql($target, q{SELECT after->>'b' FROM tablesync_changes('item', 1, 1)}), 'x', 'older changes have the new names');
is(changed(q{ALTER TABLE item ALTER a TYPE bigint, ALTER c TYPE varchar(20); UPDATE item SET a = 5000000000, c = 'long enough' WHERE id = 4}),
	'u|{"a": 4, "b": "a4", "c": "c", "d": "2021-01-01", "e": null, "id": 4}|{"a": 5000000000, "b": "a4", "c": "long enough", "d": "2021-01-01", "e": null, "id": 4}', 'widened');
is(columns('item_changes'), 'id integer, b text, a bigint, c character varying(20), d date, e numeric(6,2)', 'as the replica');
is(changed(q{ALTER TABLE item DROP d; UPDATE item SET e = 3 WHERE id = 5}),
	'u|{"a": 5, "b": "a5", "c": "c", "e": null, "id": 5}|{"a": 5, "b": "a5", "c": "c", "e": 3.00, "id": 5}', 'dropped');
is(changed(q{ALTER TABLE item ADD "position" integer, ADD op text, ADD "run_id_" text; UPDATE item SET "position" = 7, op = 'c', "run_id_" = 'r' WHERE id = 6}),
	'u|{"a": 6, "b": "a6", "c": "c", "e": null, "id": 6, "op": null, "run_id_": null, "position": null}|{"a": 6, "b": "a6", "c": "c", "e": null, "id": 6, "op": "c", "run_id_": "r", "position": 7}', 'columns called as those of the feed');
like(columns('item_changes'), qr/position_ integer, op_ text, run_id__ text$/, 'have another name there');
is(changed(q{ALTER TABLE item RENAME "position" TO pos; ALTER TABLE item RENAME b TO op_; UPDATE item SET pos = 8 WHERE id = 6}) =~ s/.*\|//r,
	'{"a": 6, "c": "c", "e": null, "id": 6, "op": "c", "op_": "a6", "pos": 8, "run_id_": "r"}', 'renamed');
# the source does what needs its owner: he does it, in his way
$source->safe_psql('postgres', q{ALTER TABLE item ALTER a TYPE text});
like(app_fails($target, q{SELECT tablesync_run('item')}), qr/TS003/, 'a type that is not wider pauses');
app_sql($target, q{ALTER TABLE item ALTER a TYPE text; ALTER FOREIGN TABLE item_source ALTER a TYPE text; SELECT tablesync_resume('item')});
is(changed(q{UPDATE item SET a = 'six' WHERE id = 6}) =~ s/\|.*(?=\|)//r, 'u|{"a": "six", "c": "c", "e": null, "id": 6, "op": "c", "op_": "a6", "pos": 8, "run_id_": "r"}', 'another type');
like(columns('item_changes'), qr/a_old bigint.*, a text/, 'what was there keeps its values');
# a view on it
app_sql($target, 'CREATE VIEW seen AS SELECT c FROM item_changes');
is(changed(q{ALTER TABLE item ALTER c TYPE varchar(30); UPDATE item SET c = repeat('c', 30) WHERE id = 7}) =~ s/\|.*(?=\|)//r,
	'u|{"a": "7", "c": "cccccccccccccccccccccccccccccc", "e": null, "id": 7, "op": null, "op_": "a7", "pos": null, "run_id_": null}', 'a view shows a column that is widened');
# an owner who drops a column
app_sql($target, 'ALTER TABLE item_changes DROP pos');
is(app_sql($target, q{SELECT count(*) FILTER (WHERE after ? 'pos'), count(after) FROM tablesync_changes('item')}) =~ /^(\d+)\|\1$/ ? 1 : 0, 1, 'a column that is not there reads as null');
like(changed(q{UPDATE item SET pos = 9 WHERE id = 7}), qr/"pos": 9.*"run_id_"/, 'and comes back');

# --- off and on ---

my $newest = app_sql($target, q{SELECT feed_position FROM tablesync.replica});
app_sql($target, q{SELECT tablesync_alter('item', feed => false)});
is(app_sql($target, q{SELECT max(position) FROM item_changes}), $newest, 'switched off, the table stays');
like(app_fails($target, q{SELECT * FROM tablesync_changes('item')}), qr/ERROR:  55000: public.item has no feed\nHINT:  The owner of a replica switches it on: SELECT tablesync_alter\('public.item', feed => true\);/, 'it is none any more');
$source->safe_psql('postgres', q{UPDATE item SET pos = 10 WHERE id = 7});
is(run_counts($target, 'item'), 'succeeded|0|1|0', 'a run without it');
is(app_sql($target, q{SELECT max(position) FROM item_changes}), $newest, 'writes nothing');
app_sql($target, q{SELECT tablesync_alter('item', feed => true); SELECT tablesync_alter('item', feed => true)});
is(app_sql($target, "SELECT position - $newest, op FROM tablesync_changes('item', $newest)"), '1|t', 'on again: start again');
app_sql($target, q{BEGIN; SELECT tablesync_alter('item', feed => false); ROLLBACK});
like(changed(q{UPDATE item SET pos = 11 WHERE id = 7}), qr/^u.*"pos": 11/, 'and goes on');

# an empty one goes
$source->safe_psql('postgres', 'CREATE TABLE other (id integer PRIMARY KEY, v text); INSERT INTO other VALUES (1, 1)');
app_sql($target, q{SELECT tablesync_add('other', 'src', 'public.other', feed => true); SELECT tablesync_alter('other', feed => false)});
is(app_sql($target, q{SELECT to_regclass('other_changes') IS NULL}), 't', 'an empty table is dropped');
app_sql($target, q{SELECT * FROM tablesync_run('other')});
app_sql($target, q{SELECT tablesync_alter('other', feed => true)});
is(app_sql($target, q{SELECT position, run_id IS NULL, op FROM other_changes}), '1|t|t', 'the feed of a replica that has rows begins with: start again');
# rows from before the first run
app_sql($target, q{SELECT tablesync_remove('other'); DROP TABLE other_changes; SELECT tablesync_add('other', 'src', 'public.other', feed => true)});
is(app_sql($target, q{SELECT position, run_id IS NULL, op FROM other_changes}), '1|t|t', 'so does that of a table which had rows');

# --- names ---

app_sql($target, q{SELECT tablesync_remove('other', drop_replica => true)});
is(app_sql($target, q{SELECT to_regclass('other_changes') IS NULL}), 't', 'drop_replica drops the feed, too');
app_sql($target, q{CREATE TABLE other_changes (mine integer)});
like(app_fails($target, q{SELECT tablesync_add('other', 'src', 'public.other', feed => true)}),
	qr/ERROR:  42P07: relation public.other_changes already exists\nDETAIL:  It is not the feed of public.other.\nHINT:  Drop it, or give it another name: ALTER TABLE public.other_changes RENAME TO other_changes_old;/, 'a table that is not ours');
is(app_sql($target, q{SELECT to_regclass('other') IS NULL}), 't', 'nothing was done');
app_sql($target, q{ALTER TABLE public.other_changes RENAME TO other_changes_old});
my $long = "\xc3\xa4" x 31;
$source->safe_psql('postgres', qq{CREATE TABLE "$long" (id integer PRIMARY KEY, "$long" text); INSERT INTO "$long" VALUES (1, 'x')});
app_sql($target, qq{SELECT tablesync_add('"$long"', 'src', 'public."$long"', feed => true)});
app_sql($target, qq{SELECT tablesync_run('"$long"')});
is(app_sql($target, q{SELECT octet_length(relname) <= 63 AND relname LIKE '%\_changes' FROM pg_class c JOIN tablesync.replica t ON t.feed_table = c.oid WHERE t.replica::text LIKE '%ä%'}), 't', 'a name that is too long is cut');
is(app_sql($target, qq{SELECT op FROM tablesync_changes('"$long"')}), 't', 'and written to');
app_sql($target, qq{SELECT tablesync_remove('"$long"', drop_replica => true)});

# renamed, both of them, and moved into another schema
$target->safe_psql('postgres', q{CREATE SCHEMA elsewhere AUTHORIZATION app});
app_sql($target, q{ALTER TABLE item RENAME TO item_two; ALTER TABLE item_changes RENAME TO news; ALTER TABLE news SET SCHEMA elsewhere});
like(changed(q{UPDATE item SET pos = 12 WHERE id = 7}), qr/^u.*"pos": 12/, 'renamed');
is(app_sql($target, q{SELECT count(*) > 0 FROM elsewhere.news WHERE pos = 12}), 't', 'where it has been moved to');
app_sql($target, q{ALTER TABLE elsewhere.news SET SCHEMA public; ALTER TABLE news RENAME TO item_changes; ALTER TABLE item_two RENAME TO item});

# --- whose ---

$target->safe_psql('postgres', q{CREATE ROLE heir LOGIN PASSWORD 'x'; GRANT CREATE ON SCHEMA public TO heir; ALTER TABLE item_changes OWNER TO heir});
$source->safe_psql('postgres', q{UPDATE item SET pos = 13 WHERE id = 7});
like(app_fails($target, q{SELECT tablesync_run('item')}),
	qr/ERROR:  55000: the feed of replica public.item can't be written to\nDETAIL:  It belongs to role heir, the replica to app.\nHINT:  ALTER TABLE public.item_changes OWNER TO app;/, 'a feed of somebody else is not written to');
$target->safe_psql('postgres', q{ALTER TABLE public.item_changes OWNER TO app});
is(run_counts($target, 'item'), 'succeeded|0|1|0', 'the hint helps');

# --- what its owner deletes ---

$newest = app_sql($target, q{SELECT feed_position FROM tablesync.replica});
app_sql($target, q{SELECT tablesync_consumer_add('reader', 'item', 3)});
app_sql($target, q{DELETE FROM item_changes WHERE position <= 5});
is(app_sql($target, q{SELECT position, value->>'op' FROM tablesync_fetch('reader', 3)}), '5|t', 'changes that are gone are noticed');
is(app_sql($target, q{SELECT position, op FROM tablesync_changes('item', 0, 2)}), "5|t\n6|u", 'by everybody');
app_sql($target, q{TRUNCATE item_changes});
is(app_sql($target, q{SELECT position, value->>'op' FROM tablesync_fetch('reader')}), "$newest|t", 'all of them');
is(app_sql($target, "SELECT count(*) FROM tablesync_changes('item', $newest)"), 0, 'who has read all misses nothing');
like(app_fails($target, q{SELECT * FROM tablesync_as_of('item', (SELECT max(started_at) FROM tablesync_runs WHERE replica = 'item'::regclass AND updated > 0))}), qr/ERROR:  55000: the feed of public.item does not tell how it was/, 'what was, it can not tell');
like(changed(q{UPDATE item SET pos = 14 WHERE id = 7}), qr/^u.*"pos": 14/, 'it goes on');

# dropped
app_sql($target, q{DROP TABLE item_changes CASCADE});
is(app_sql($target, q{SELECT feed, feed_table FROM tablesync.replica WHERE replica = 'item'::regclass}), 'f|', 'a feed that is dropped is off');
$source->safe_psql('postgres', q{UPDATE item SET pos = 15 WHERE id = 7});
is(run_counts($target, 'item'), 'succeeded|0|1|0', 'runs go on without it');
like(app_fails($target, q{SELECT * FROM tablesync_fetch('reader')}), qr/has no feed/, 'consumers are told');
$newest = app_sql($target, q{SELECT feed_position FROM tablesync.replica});
app_sql($target, q{SELECT tablesync_alter('item', feed => true)});
is(app_sql($target, "SELECT position - $newest, op FROM tablesync_changes('item', $newest)"), '1|t', 'another one begins, and its positions go on');
is(app_sql($target, q{SELECT value->>'op' FROM tablesync_fetch('reader')}), 't', 'consumers start again');
like(changed(q{UPDATE item SET pos = 16 WHERE id = 7}), qr/^u.*"pos": 16/, 'then it goes on');

# --- other writes ---

app_sql($target, q{DELETE FROM item WHERE id = 1});
is(changed(q{DELETE FROM item WHERE id = 1}), 't||', 'where others write to the replica, the feed says to start again');
is(changed(q{UPDATE item SET pos = 17 WHERE id = 7}) =~ s/\|.*//r, 'u', 'once');

# --- a part of a table, computed values, columns of one's own ---

$source->safe_psql('postgres', q{CREATE TABLE people (id integer PRIMARY KEY, name text, email text, born date);
	INSERT INTO people SELECT i, 'n' || i, 'e' || i, '2000-01-01' FROM generate_series(1, 10) i});
app_sql($target, q{SELECT tablesync_add('people', 'src', 'public.people', columns => '{id,name}', filter => 'id < 8', expressions => '{"hash": "md5(email)"}', feed => true);
	SELECT tablesync_run('people'); ALTER TABLE people ADD note text DEFAULT 'mine'});
is(columns('people_changes'), 'id integer, name text, hash text', 'what runs bring');
$source->safe_psql('postgres', q{UPDATE people SET email = 'x', born = now() WHERE id = 1; UPDATE people SET id = 20 WHERE id = 2; UPDATE people SET name = 'y' WHERE id = 9});
is(run_counts($target, 'people'), 'succeeded|0|1|1', 'some of it');
is(app_sql($target, q{SELECT op, after FROM tablesync_changes('people', 1)}), qq(d|\nu|{"id": 1, "hash": "9dd4e461268c8034f5c8564e155c67a6", "name": "n1"}), 'is in the feed');
is(app_sql($target, q{SELECT value->'after' FROM tablesync_envelopes('people', NULL) WHERE key->>'id' = '1'}), '{"id": 1, "hash": "9dd4e461268c8034f5c8564e155c67a6", "name": "n1"}', 'so it is in rows');
app_sql($target, q{SELECT tablesync_alter('people', columns => '{id,name,born}', filter => 'id < 5', expressions => '{"hash": "md5(email)", "initial": "left(name, 1)"}'); SELECT tablesync_run('people')});
is(app_sql($target, q{SELECT count(*) FILTER (WHERE op = 'd') || ' ' || count(*) FILTER (WHERE op = 'u'), max(after->>'initial'), min(after->>'born') FROM tablesync_changes('people', 3)}), '3 3|n|2000-01-01', 'another part');
is(columns('people_changes'), 'id integer, name text, hash text, born date, initial text', 'its columns');
app_sql($target, q{SELECT tablesync_remove('people', drop_replica => true)});

# columns of one's own are nobody else's business
sub noted { return $target->safe_psql('postgres', 'SELECT count(*) FROM tablesync.stray_write') }
app_sql($target, q{ALTER TABLE item ADD own integer DEFAULT 1, ADD also_own text});
my $news = q{SELECT feed_position, (SELECT count(*) FROM item_changes WHERE op = 't') FROM tablesync.replica WHERE replica = 'item'::regclass};
app_sql($target, q{INSERT INTO item (id, c) SELECT id, c FROM item LIMIT 0});
is(noted(), 1, 'an INSERT is noted');
is(run_counts($target, 'item'), 'succeeded|0|0|0', 'a run');
my $quiet = app_sql($target, $news);
app_sql($target, q{UPDATE item SET own = id, also_own = 'y'; UPDATE item SET own = 3 WHERE id = 7});
is(noted(), 0, 'an UPDATE of own columns is not');
is(run_counts($target, 'item'), 'succeeded|0|0|0', 'nothing to do');
is(app_sql($target, $news), $quiet, 'nor to say');
for my $write (q{UPDATE item SET own = 1, c = c}, q{UPDATE item SET c = 'z' WHERE id = 7}, q{BEGIN; UPDATE item SET own = 2; UPDATE item SET c = 'z' WHERE id = 7; COMMIT},
	q{INSERT INTO item (id) VALUES (7) ON CONFLICT (id) DO UPDATE SET own = 5}, q{DELETE FROM item WHERE id = 7}, q{TRUNCATE item})
{
	app_sql($target, $write);
	is(noted(), 1, "noted: $write");
	like(run_counts($target, 'item', ', force => true'), qr/^succeeded/, 'which is undone');
}
app_sql($target, q{ALTER TABLE item RENAME c TO renamed; UPDATE item SET renamed = 'z' WHERE id = 7; ALTER TABLE item RENAME renamed TO c});
is(noted(), 1, 'noted: a column that is renamed for a moment');
app_sql($target, q{SELECT tablesync_run('item')});
app_sql($target, q{ALTER TABLE item RENAME c TO before; ALTER TABLE item ADD c varchar(30); UPDATE item SET c = before; ALTER TABLE item DROP before});
is(noted(), 1, 'noted: one that is made anew');
app_sql($target, q{SELECT tablesync_run('item')});
app_sql($target, q{UPDATE item SET c = 'z' WHERE id = 7});
is(noted(), 1, 'also later');
app_sql($target, q{SELECT tablesync_run('item');
	CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.c := 'meddled'; RETURN NEW; END$$;
	CREATE TRIGGER meddle BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION meddle(); UPDATE item SET own = 9 WHERE id = 7; DROP TRIGGER meddle ON item});
is(noted(), 1, 'noted: where a trigger may change more');
like(changed(q{UPDATE item SET pos = 33 WHERE id = 6}), qr/^t/, 'and the feed starts again');
ok(same_rows($source, $target, '(SELECT id, c, pos FROM item)', '(SELECT id, c, pos FROM item)'), 'all is well');

# --- dump and restore ---

my $dump = $target->basedir . '/feed.sql';
command_ok([ 'pg_dump', '-f', $dump, $target->connstr('postgres') ], 'dumped');
$target->safe_psql('postgres', 'CREATE DATABASE copy');
command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $target->connstr('copy') ], 'restored');
my $state = q{SELECT t.feed, t.feed_table, t.feed_position, (SELECT max(position) FROM item_changes), (SELECT string_agg(consumer || ' ' || position, ',') FROM tablesync_consumers) FROM tablesync.replica t WHERE replica = 'item'::regclass};
is($target->safe_psql('copy', $state), $target->safe_psql('postgres', $state), 'with feed and consumers');
$source->safe_psql('postgres', q{UPDATE item SET pos = 18 WHERE id = 7});
is($target->safe_psql('copy', q{SELECT tablesync_resume('item'); SELECT status FROM tablesync_run('item'); SELECT op FROM tablesync_changes('item') ORDER BY position DESC LIMIT 1}, extra_params => [ '-U', 'app' ]),
	"\nsucceeded\nu", 'which goes on there');

# --- gone ---

app_sql($target, q{SELECT tablesync_remove('item')});
is(app_sql($target, q{SELECT count(*) > 0 FROM item_changes}), 't', 'without its replica it is a table');
is(app_sql($target, q{SELECT count(*) FROM tablesync_consumers}), 0, 'and has no consumers');

done_testing();
