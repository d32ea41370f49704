# Publications that would make runs fail: tablesync_check finds them, a run that
# has failed says the same, and what they say mends it.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair(target => { conf => "wal_level = logical\nmax_wal_senders = 4\nmax_replication_slots = 4" });
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, code integer NOT NULL UNIQUE, region text, note text);
	INSERT INTO items SELECT i, i, 'r' || i % 3, 'n' FROM generate_series(1, 100) i;
	CREATE TABLE parts (id integer, region text, note text, PRIMARY KEY (id));
	INSERT INTO parts SELECT i, 'r', 'n' FROM generate_series(1, 100) i});
app_sql($target, q{
	SELECT tablesync_add('items', 'src', 'public.items');
	CREATE TABLE parts (id integer, region text, note text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (50);
	CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (50) TO (1000);
	SELECT tablesync_add('parts', 'src', 'public.parts')});
run_counts($target, $_) for qw(items parts);

sub publish
{
	my ($sql) = @_;
	return $target->safe_psql('postgres', $sql);
}

# Ok, detail and hint of the check.
sub checked
{
	my ($replica) = @_;
	return app_sql($target, "SELECT ok, detail, hint FROM tablesync_check('$replica') WHERE check_name = 'publication'");
}

my $change = 0;

sub change
{
	my ($table) = @_;
	$change++;
	$source->safe_psql('postgres', "UPDATE $table SET note = note || '+', region = 'x' WHERE id IN (3, 70)");
	return;
}

# Nothing is wrong, and a run that updates succeeds.
sub is_fine
{
	my ($replica, $name) = @_;
	like(checked($replica), qr/^t\|(not published|published by [\w, ]+)\|$/, "$name: nothing is wrong");
	change($replica);
	is(run_counts($target, $replica), 'succeeded|0|2|0', "$name: and a run updates");
	return;
}

# The check finds a problem, a run fails by it and has the same hint, which mends it.
sub is_found
{
	my ($replica, $problem, $remedy, $name) = @_;
	is(checked($replica), "f|runs that update or delete fail: $problem|$remedy", "$name: found");
	change($replica);
	my $error = app_fails($target, "SELECT tablesync_run('$replica')");
	like($error, qr/cannot update table "\w+"/, "$name: a run fails");
	my ($hint) = $error =~ /^HINT:  (.*)$/m;
	is($hint, $remedy, "$name: and says the same");
	publish($hint);
	is(run_counts($target, $replica), 'succeeded|0|2|0', "$name: which mends it");
	is_replica($source, $target, $replica, $replica, $name);
	is_fine($replica, $name);
	return;
}

is_fine('items', 'not published');
publish('CREATE PUBLICATION plain FOR TABLE items, parts');
is_fine('items', 'published');
is_fine('parts', 'partitions are published');

# --- filters ---

publish(q{CREATE PUBLICATION filtered FOR TABLE items WHERE (region <> 'r9' AND id > 0)});
is_found('items', 'publication "filtered" filters rows of public.items by region, outside of its replica identity',
	'ALTER TABLE public.items REPLICA IDENTITY FULL;', 'filter');
publish('DROP PUBLICATION filtered; ALTER TABLE items REPLICA IDENTITY DEFAULT; CREATE PUBLICATION keys FOR TABLE items WHERE (id > 0)');
is_fine('items', 'a filter of the key');
publish(q{DROP PUBLICATION keys; CREATE PUBLICATION adds FOR TABLE items WHERE (region <> 'r9') WITH (publish = 'insert, truncate')});
is_fine('items', 'a filter where no update is published');
publish('DROP PUBLICATION adds');

# --- column lists ---

publish(q{CREATE PUBLICATION listed FOR TABLE items (note, region) WHERE (id > 0)});
is_found('items', 'the column list of publication "listed" lacks id of the replica identity of public.items',
	'ALTER PUBLICATION listed DROP TABLE public.items; ALTER PUBLICATION listed ADD TABLE public.items (id, region, note) WHERE ((id > 0));', 'list');
publish('ALTER TABLE items REPLICA IDENTITY FULL');
is_found('items', 'publication "listed" has a column list for public.items, whose replica identity is full',
	'ALTER PUBLICATION listed DROP TABLE public.items;', 'list and filter');
publish('ALTER PUBLICATION listed ADD TABLE items (id, note)');
is_found('items', 'publication "listed" has a column list for public.items, whose replica identity is full',
	'ALTER TABLE public.items REPLICA IDENTITY DEFAULT;', 'list and full identity');
publish(q{CREATE PUBLICATION "the filter" FOR TABLE items WHERE (region <> 'r9')});
is_found('items', 'publication "the filter" filters rows of public.items by region, outside of its replica identity',
	'ALTER PUBLICATION "the filter" DROP TABLE public.items;', 'a filter beside a list');
publish('DROP PUBLICATION listed, "the filter"');

# --- identity ---

publish('ALTER TABLE items REPLICA IDENTITY NOTHING');
is_found('items', 'publication "plain" publishes updates or deletes of public.items, which has no replica identity',
	'ALTER TABLE public.items REPLICA IDENTITY DEFAULT;', 'nothing');
publish('ALTER TABLE items DROP CONSTRAINT items_pkey, ADD CONSTRAINT items_id_key UNIQUE (id), ALTER id SET NOT NULL');
is_found('items', 'publication "plain" publishes updates or deletes of public.items, which has no replica identity',
	'ALTER TABLE public.items REPLICA IDENTITY USING INDEX items_id_key;', 'no primary key');

# --- partitions ---

publish(q{ALTER TABLE parts_2 REPLICA IDENTITY NOTHING});
is_found('parts', 'publication "plain" publishes updates or deletes of public.parts_2, which has no replica identity',
	'ALTER TABLE public.parts_2 REPLICA IDENTITY DEFAULT;', 'a partition');
publish(q{CREATE PUBLICATION root FOR TABLE parts WHERE (region <> 'r9') WITH (publish_via_partition_root)});
is_found('parts', 'publication "root" filters rows of public.parts_1 by region, outside of its replica identity; publication "root" filters rows of public.parts_2 by region, outside of its replica identity',
	'ALTER TABLE public.parts_1 REPLICA IDENTITY FULL; ALTER TABLE public.parts_2 REPLICA IDENTITY FULL;', 'partitions by their root');
publish('DROP PUBLICATION root, plain');
publish('CREATE PUBLICATION schema FOR TABLES IN SCHEMA public');
is_fine($_, 'a schema') for qw(items parts);
publish('DROP PUBLICATION schema; CREATE PUBLICATION everything FOR ALL TABLES');
is_fine($_, 'everything') for qw(items parts);

# --- slots, and a server that does not publish ---

$target->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('forgotten', 'pgoutput')});
like(checked('items'), qr/^t\|published by everything; nobody reads from slot "forgotten", which holds back \d+ (bytes|kB) of WAL\|If nobody comes back for it: SELECT pg_drop_replication_slot\('forgotten'\);$/,
	'a slot that nobody reads from');
is(app_sql($target, 'SELECT is_large FROM tablesync.idle_slots(1)'), 't', 'is a failure where it is large');
$target->safe_psql('postgres', q{CREATE DATABASE other; SELECT pg_drop_replication_slot('forgotten')});
$target->safe_psql('other', q{SELECT pg_create_logical_replication_slot('elsewhere', 'pgoutput')});
is(checked('items'), 't|published by everything|', 'that of another database is not ours');
$target->safe_psql('other', q{SELECT pg_drop_replication_slot('elsewhere')});
$target->append_conf('postgresql.conf', 'wal_level = replica');
$target->restart;
is(checked('items'), 't|published by everything; nobody can subscribe to it while wal_level is replica|ALTER SYSTEM SET wal_level = logical; needs a restart.', 'wal_level');
publish('ALTER TABLE items REPLICA IDENTITY NOTHING');
like(checked('items'), qr/^f\|runs that update or delete fail/, 'which does not help a run');

done_testing();
