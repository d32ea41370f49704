# A subscriber of a replica: what docs/publish.md says that it sees of loads, runs,
# groups and changes of shape, with a real subscription in a third cluster.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my $rows = 200_000;
my ($source, $target) = start_pair(target => { conf => "wal_level = logical\nmax_wal_senders = 8\nmax_replication_slots = 8\nfsync = off" });
my $subscriber = TablesyncTest::new_node('subscriber', conf => "wal_retrieve_retry_interval = 100ms\nfsync = off");
my $connection = $target->connstr . ' dbname=postgres user=postgres';

my %definitions = (
	items => 'id integer PRIMARY KEY, note text, updated_at timestamptz NOT NULL DEFAULT now()',
	accounts => 'id integer PRIMARY KEY, balance integer NOT NULL',
	ledger => 'id integer PRIMARY KEY, amount integer NOT NULL',
	big => 'id integer PRIMARY KEY, note text',
	big_race => 'id integer PRIMARY KEY, note text',
	seats => 'id integer PRIMARY KEY, code integer NOT NULL UNIQUE');
$source->safe_psql('postgres', "CREATE TABLE $_ ($definitions{$_})") for sort keys %definitions;
$source->safe_psql('postgres', qq{
	INSERT INTO items (id, note) SELECT i, 'n' || i FROM generate_series(1, 1000) i;
	INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 10) i;
	INSERT INTO ledger SELECT i, 0 FROM generate_series(1, 10) i;
	INSERT INTO big SELECT i, md5(i::text) FROM generate_series(1, $rows) i;
	INSERT INTO big_race SELECT * FROM big;
	INSERT INTO seats SELECT i, i FROM generate_series(1, $rows) i;
	ANALYZE});
$subscriber->safe_psql('postgres', "CREATE TABLE $_ ($definitions{$_})") for sort keys %definitions;
app_sql($target, "SELECT tablesync_add('$_', 'src', 'public.$_', sync_group => 'books', consistency => 'snapshot')") for qw(accounts ledger);
app_sql($target, "CREATE TABLE seats ($definitions{seats})");    # what is unique for the subscriber must be so here
app_sql($target, "SELECT tablesync_add('$_', 'src', 'public.$_', workers => 2)") for qw(items big big_race seats);

# The subscriber has what the source has.
sub arrives
{
	my ($table, $name) = @_;
	$target->wait_for_catchup('shop');
	ok(same_rows($source, $subscriber, $table), $name);
	return;
}

# --- one publication of what others are to see, and a subscription after the load ---

run_counts($target, 'items');
run_counts($target, 'accounts');
$target->safe_psql('postgres', 'CREATE PUBLICATION shop FOR TABLE items, accounts, ledger');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION shop CONNECTION '$connection' PUBLICATION shop");
wait_until($subscriber, q{SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel});
arrives('items', 'what was loaded before is copied');
$source->safe_psql('postgres', q{UPDATE items SET note = 'changed', updated_at = now() WHERE id % 10 = 0; DELETE FROM items WHERE id % 10 = 1; INSERT INTO items SELECT i, 'new' FROM generate_series(1001, 1100) i});
is(run_counts($target, 'items'), 'succeeded|100|100|100', 'a run');
arrives('items', 'arrives');
is($subscriber->safe_psql('postgres', q{SELECT count(DISTINCT xmin::text) FROM items WHERE note IN ('changed', 'new')}), 1, 'as one transaction');

# a group is one transaction, too
$source->safe_psql('postgres', 'UPDATE accounts SET balance = 90 WHERE id = 3; UPDATE ledger SET amount = 10 WHERE id = 3');
run_counts($target, 'accounts');
arrives($_, "group: $_") for qw(accounts ledger);
is($subscriber->safe_psql('postgres', q{SELECT count(DISTINCT x) FROM (SELECT xmin::text FROM accounts WHERE id = 3 UNION ALL SELECT xmin::text FROM ledger WHERE id = 3) t (x)}), 1, 'of all replicas');

# --- who subscribes before a load sees it grow ---

$target->safe_psql('postgres', 'ALTER PUBLICATION shop ADD TABLE big, big_race, seats');
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION shop REFRESH PUBLICATION');
wait_until($subscriber, q{SELECT bool_and(srsubstate = 'r') AND count(*) = 6 FROM pg_subscription_rel});

app_sql($target, q{SELECT tablesync_alter('big', max_source_load => 0.05)});
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('big', wait => false)});
wait_until($target, q{SELECT count(*) FILTER (WHERE loaded) BETWEEN 1 AND count(*) - 1 FROM tablesync.chunk WHERE replica = 'big'::regclass});
is($target->safe_psql('postgres', q{SELECT bool_or(indisready) FROM pg_index WHERE indrelid = 'big'::regclass}), 'f', 'in bulk: nobody checks the key meanwhile');
my $refused = app_fails($target, q{INSERT INTO big VALUES (1, 'twice')});
like($refused, qr/ERROR:  55000: replica public\.big can't be written to while it is loaded\nDETAIL:  It is published, .*\nHINT:  Wait for the load, or complete it: SELECT tablesync_run\('public\.big'\);/, 'so who is published may not insert');
$target->safe_psql('postgres', 'ALTER TABLE big REPLICA IDENTITY FULL');
like(app_fails($target, q{UPDATE big SET id = 2 WHERE id = 1}), qr/can't be written to while it is loaded/, 'nor update');
$target->safe_psql('postgres', 'ALTER TABLE big REPLICA IDENTITY DEFAULT');
app_sql($target, q{SELECT tablesync_cancel('big')});
app_sql($target, "SELECT tablesync_wait($run_id)");
app_fails($target, q{INSERT INTO big VALUES (1, 'twice')});
app_sql($target, q{SELECT tablesync_alter('big', max_source_load => 1)});
like(run_counts($target, 'big'), qr/^succeeded\|\d+\|0\|0$/, 'the load is completed');
arrives('big', 'and arrives');
app_sql($target, q{INSERT INTO big VALUES (-1, 'by hand')});
is(run_counts($target, 'big'), 'succeeded|0|0|1', 'afterwards it can be written to');
arrives('big', 'and what is put right arrives, too');

# somebody has put a row in just before
my $stranger = session($target, '-U', 'app');
$stranger->query_safe(q{BEGIN; INSERT INTO big_race VALUES (5, 'first')});
$run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('big_race', wait => false)});
wait_until($target, q{SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted AND relation = 'big_race'::regclass});
$stranger->query_safe('COMMIT');
$stranger->quit;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'a row that came before the load had locked the replica');
is_replica($source, $target, 'big_race', 'big_race', 'is put right');
arrives('big_race', 'and the subscriber follows');

# values that may move between ranges
is(app_sql($target, q{SELECT tablesync.can_bulk_load('seats')}), 'f', 'another unique column: not in bulk while it is published');
$target->safe_psql('postgres', 'ALTER PUBLICATION shop DROP TABLE seats');
is(app_sql($target, q{SELECT tablesync.can_bulk_load('seats')}), 't', 'in bulk while it is not');
$target->safe_psql('postgres', 'ALTER PUBLICATION shop ADD TABLE seats');
is(run_counts($target, 'seats'), "succeeded|$rows|0|0", 'loaded');
arrives('seats', 'arrives');

# --- unique values that are swapped are deleted and inserted ---

$source->safe_psql('postgres', q{UPDATE seats SET code = -code WHERE id <= 2; UPDATE seats SET code = 3 - id WHERE id <= 2});
is(run_counts($target, 'seats'), 'succeeded|0|2|0', 'swapped');
arrives('seats', 'arrives');

# --- a new shape is for the subscriber to follow ---

$source->safe_psql('postgres', q{ALTER TABLE items ADD COLUMN extra integer; UPDATE items SET extra = 1, updated_at = now() WHERE id <= 20; });
run_counts($target, 'items');
my $log = -s $subscriber->logfile;
wait_until($target, q{SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 'items'::regclass AND attname = 'extra'});
$subscriber->wait_for_log(qr/logical replication target relation "public.items" is missing replicated column: "extra"/, 0);
$subscriber->safe_psql('postgres', 'ALTER TABLE items ADD COLUMN extra integer');
arrives('items', 'once it has the column, it goes on');

# --- all tables: those of the extension, too ---

$target->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
my ($rc, $stdout, $stderr) = $subscriber->psql('postgres', "CREATE SUBSCRIPTION everything CONNECTION '$connection' PUBLICATION everything");
like($stderr, qr/(relation|schema) "tablesync[\w.]*" does not exist/, 'a publication of all tables has those of the extension');

# --- pgoutput hands messages to those who ask for them ---

$target->safe_psql('postgres', q{DROP PUBLICATION everything; SELECT pg_create_logical_replication_slot('watcher', 'pgoutput')});
$source->safe_psql('postgres', q{UPDATE items SET note = 'told', updated_at = now() WHERE id = 2});
run_counts($target, 'items');
is($target->safe_psql('postgres', qq{
	SELECT string_agg(chr(get_byte(data, 0)), '' ORDER BY n)
	FROM pg_logical_slot_peek_binary_changes('watcher', NULL, NULL, 'proto_version', '1', 'publication_names', 'shop', 'messages', '$_') WITH ORDINALITY x (lsn, xid, data, n)
	WHERE chr(get_byte(data, 0)) <> 'R'}), $_ eq 'true' ? 'BMUC' : 'BUC', "messages $_") for qw(true false);

$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION shop');
done_testing();
