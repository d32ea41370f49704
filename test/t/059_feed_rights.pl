# Who may do what with a feed: a role that may SELECT it, one that may not, the
# owner, another owner, a superuser who looks at what somebody has prepared for her.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();
my $port = $source->port;
$source->safe_psql('postgres', q{CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 5) i});
$target->safe_psql('postgres', q{
	CREATE ROLE a LOGIN; CREATE ROLE b LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE assistant LOGIN IN ROLE reader; CREATE ROLE nobody LOGIN; CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
	GRANT USAGE ON FOREIGN SERVER src TO a, b;
	CREATE USER MAPPING FOR a SERVER src OPTIONS (user 'reader', password 'read-only');
	CREATE USER MAPPING FOR b SERVER src OPTIONS (user 'reader', password 'read-only');
	CREATE SCHEMA a AUTHORIZATION a; CREATE SCHEMA b AUTHORIZATION b; GRANT USAGE ON SCHEMA a, b TO PUBLIC});

sub as
{
	my ($role, $sql) = @_;
	return $target->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

sub refused
{
	my ($role, $sql, $state) = @_;
	my ($rc, $stdout, $stderr) = $target->psql('postgres', $sql, extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose', '-v', 'SHOW_CONTEXT=never' ]);
	like($stderr, qr/ERROR:  $state: /, "$role is refused with $state: $sql");
	return $stderr;
}

for my $role ('a', 'b')
{
	as($role, "SELECT tablesync_add('$role.t', 'src', 'public.t', feed => true); SELECT tablesync_run('$role.t')");
}
$source->safe_psql('postgres', q{UPDATE t SET v = 'w' WHERE id < 4});
as($_, "SELECT tablesync_run('$_.t')") for 'a', 'b';

# --- readers ---

my @reading = (q{SELECT * FROM tablesync_changes('a.t')}, q{SELECT * FROM tablesync_envelopes('a.t')}, q{SELECT * FROM tablesync_envelopes('a.t', NULL)},
	q{SELECT * FROM tablesync_as_of('a.t', now())}, q{SELECT tablesync_consumer_add('mine', 'a.t')}, q{SELECT tablesync.add_consumer('mine', 'a.t', 0)},
	q{SELECT tablesync.feed_of('a.t', 0, 1)}, q{TABLE a.t_changes});
refused('nobody', $_, 42501) for @reading;
refused('b', $_, 42501) for @reading;
as('a', 'GRANT SELECT (position, run_id, op) ON a.t_changes TO nobody');
refused('nobody', $_, 42501) for @reading[ 0 .. 6 ];
as('a', 'GRANT SELECT ON a.t_changes TO reader');
is(as('reader', q{SELECT count(*) FROM tablesync_changes('a.t')}), 4, 'who may select it reads it');
is(as('assistant', q{SELECT count(*) FROM tablesync_envelopes('a.t', 1)}), 3, 'so does a member');
refused('reader', q{SELECT * FROM tablesync_envelopes('a.t', NULL)}, 42501);
refused('reader', q{SELECT * FROM tablesync_as_of('a.t', now())}, 42501);
as('a', 'GRANT SELECT ON a.t TO reader');
is(as('reader', q{SELECT count(*) FROM tablesync_envelopes('a.t', NULL)}), 5, 'rows need the right to read them');
is(as('reader', q{SELECT count(*) FROM tablesync_as_of('a.t', now())}), 5, 'as they were, too');
is(as('reader', "SELECT count(*) FROM $_"), 0, "and sees nothing in $_") for qw(tablesync.fed_run tablesync.consumer tablesync.replica);
refused('reader', "SELECT * FROM $_", 42501) for qw(tablesync.all_fed_runs tablesync.all_consumers);
refused('reader', q{INSERT INTO tablesync.consumer (role, consumer, replica, position) VALUES ('reader', 'x', 'a.t', 0)}, 42501);
refused('reader', $_, 42501) for q{SELECT tablesync.record_commit_consumer('a'::regrole, 'x', 1)}, q{SELECT tablesync.prune_feed('a.t', 3)}, q{SELECT tablesync.finish_feed('a.t', 1, 98, 99, now())},
	q{SELECT tablesync.describe_feed('a.t', 0, NULL)}, q{SELECT tablesync.settle_feed('a.t', 1)}, q{SELECT tablesync.start_feed('a.t', 'a.t_changes')}, q{SELECT tablesync.begin_feed('a.t')},
	q{SELECT tablesync_alter('a.t', feed => false)};

# --- consumers ---

is(as('reader', q{SELECT tablesync_consumer_add('mine', 'a.t', 1)}), 1, 'a consumer');
is(as('assistant', q{SELECT count(*) FROM tablesync_fetch('mine')}), 3, 'its role\'s members may use it');
is(as('a', q{SELECT tablesync_consumer_add('mine', 'a.t', 2)}), 2, 'names are each role\'s own');
is(as('a', q{SELECT count(*) FROM tablesync_fetch('mine')}), 2, 'of two one\'s own is meant');
is(as('b', q{SELECT tablesync_consumer_add('mine', 'b.t', 3)}), 3, 'also that of another replica');
refused('nobody', q{SELECT * FROM tablesync_fetch('mine')}, 42704);
refused('nobody', q{SELECT tablesync_commit('mine', 4)}, 42704);
refused('nobody', q{SELECT tablesync_consumer_remove('mine')}, 42704);
is(as($_->[0], q{SELECT string_agg(replica || ' ' || position, ', ' ORDER BY replica::text, position) FROM tablesync_consumers}), $_->[1], "$_->[0] sees")
	for [ 'reader', 'a.t 1' ], [ 'assistant', 'a.t 1' ], [ 'a', 't 1, t 2' ], [ 'b', 't 3' ], [ 'nobody', '' ], [ 'watcher', 'a.t 1, a.t 2, b.t 3' ], [ 'postgres', 'a.t 1, a.t 2, b.t 3' ];
like(refused('postgres', q{SELECT tablesync_commit('mine', 4)}, '42P08'), qr/several roles have a consumer 'mine'\nHINT:  SET ROLE \w+;/, 'who has everybody\'s rights has to say whose');
as('postgres', q{SET ROLE b; SELECT tablesync_commit('mine', 4)});
is(as('b', q{SELECT behind FROM tablesync_consumers}), 0, 'so');
# the right is gone
as('a', 'REVOKE SELECT ON a.t_changes FROM reader');
refused('reader', q{SELECT * FROM tablesync_fetch('mine')}, 42501);
as('a', q{SELECT tablesync_consumer_remove('mine')});
is(as('reader', q{SELECT count(*) FROM tablesync_consumers}), 1, 'the owner has removed her own');
as('a', q{SELECT tablesync_consumer_remove('mine')});
is(as('reader', q{SELECT count(*) FROM tablesync_consumers}), 0, 'then that of others');
# there is an end to them
my $many = q{SELECT tablesync_consumer_add('c' || i, 'a.t', 0) FROM generate_series(1, 1001) i};
as('a', 'GRANT SELECT ON a.t_changes TO reader');
refused('reader', $many, 54000);
is(as('a', q{SELECT count(*) FROM tablesync_consumers}), 0, 'none of them');
as('a', 'REVOKE SELECT ON a.t_changes FROM reader');
# row security of the feed
as('a', 'ALTER TABLE a.t_changes ENABLE ROW LEVEL SECURITY; ALTER TABLE a.t_changes FORCE ROW LEVEL SECURITY');
$source->safe_psql('postgres', q{UPDATE t SET v = 'rls' WHERE id = 5});
like(refused('a', q{SELECT tablesync_run('a.t')}, 55000), qr/row security is forced/, 'forced row security');
as('a', 'ALTER TABLE a.t_changes NO FORCE ROW LEVEL SECURITY; ALTER TABLE a.t_changes DISABLE ROW LEVEL SECURITY');
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'without it');
# a role that is gone
$target->safe_psql('postgres', 'CREATE ROLE fleeting LOGIN; GRANT SELECT ON a.t_changes TO fleeting');
as('fleeting', q{SELECT tablesync_consumer_add('gone', 'a.t', 0)});
$target->safe_psql('postgres', 'REVOKE ALL ON a.t_changes FROM fleeting; DROP ROLE fleeting');
is(as('a', q{SELECT consumer, position FROM tablesync_consumers}), 'gone|0', 'its consumer is still there');
$source->safe_psql('postgres', q{UPDATE t SET v = 'x' WHERE id = 4});
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'runs do not mind');
as('a', q{SELECT tablesync_consumer_remove('gone')});

# --- a table of somebody else as feed ---

as('b', q{CREATE TABLE b.secret (position bigint, run_id bigint, op "char", id integer, v text)});
refused('a', q{SELECT tablesync.start_feed('a.t', 'b.secret')}, 42809);
refused('a', q{SELECT tablesync.start_feed('b.t', 'a.t_changes')}, 42501);
refused('a', q{SELECT tablesync.start_feed('a.t', 'a.t')}, 42809);
refused('a', q{SELECT tablesync.start_feed('a.t', 'pg_class')}, 42809);
as('a', 'CREATE TABLE a.mine (position bigint, run_id bigint, op "char")');
as('a', q{SELECT tablesync.start_feed('a.t', 'a.mine')});
$target->safe_psql('postgres', 'ALTER TABLE a.mine OWNER TO b');
$source->safe_psql('postgres', q{UPDATE t SET v = 'y' WHERE id = 4});
like(refused('a', q{SELECT tablesync_run('a.t')}, 55000), qr/It belongs to role b, the replica to a/, 'given away: not written to');
is($target->safe_psql('postgres', 'SELECT count(*) FROM a.mine'), 0, 'nothing');
as('b', 'DROP TABLE a.mine');
is(as('a', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'and gone');

# --- what a superuser looks at ---

as('a', q{
	DROP TABLE a.t_changes;
	SELECT tablesync_alter('a.t', feed => true);
	CREATE FUNCTION a.rise() RETURNS boolean LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN true; END$$;
	GRANT SELECT ON ALL TABLES IN SCHEMA a TO PUBLIC});
# until PostgreSQL 15 a table that is empty and has no index can be made a view
as('a', q{CREATE TABLE a.trap ("position" bigint, run_id bigint, op "char", id integer, v text); GRANT SELECT ON a.trap TO PUBLIC; SELECT tablesync.start_feed('a.t', 'a.trap')});
my ($rc) = $target->psql('postgres', q{CREATE RULE "_RETURN" AS ON SELECT TO a.trap DO INSTEAD SELECT NULL::bigint AS "position", NULL::bigint AS run_id, NULL::"char" AS op, NULL::integer AS id, NULL::text AS v WHERE a.rise()},
	extra_params => [ '-U', 'a' ]);
SKIP:
{
	skip 'a table can not be made a view', 5 if $rc != 0;
	refused('postgres', $_, 42809) for q{SELECT * FROM tablesync_changes('a.t')}, q{SELECT * FROM tablesync_envelopes('a.t')}, q{SELECT * FROM tablesync_as_of('a.t', now())}, q{SELECT tablesync_consumer_add('mine', 'a.t')};
	refused('a', q{SELECT tablesync_alter('a.t', feed => false); SELECT tablesync_alter('a.t', feed => true)}, 55000);
}
as('a', $rc == 0 ? 'DROP VIEW a.trap' : 'DROP TABLE a.trap');
as('a', q{DROP TABLE a.t_changes; SELECT tablesync_alter('a.t', feed => true)});
# policies, rules and triggers on the feed
my $feed = as('a', q{SELECT feed_table FROM tablesync.replica});
as('a', qq{CREATE FUNCTION a.rise_too() RETURNS trigger LANGUAGE plpgsql AS \$\$BEGIN EXECUTE 'ALTER ROLE a SUPERUSER'; RETURN NEW; END\$\$;
	CREATE TRIGGER rise BEFORE INSERT OR DELETE ON $feed FOR EACH ROW EXECUTE FUNCTION a.rise_too()});
$source->safe_psql('postgres', q{UPDATE t SET v = 'z' WHERE id = 4});
like(refused('postgres', q{SELECT tablesync_run('a.t')}, 42501), qr/must be superuser|permission denied to alter role/, 'a trigger on the feed runs as its owner, whoever asks for the run');
as('a', qq{DROP TRIGGER rise ON $feed});
is($target->safe_psql('postgres', q{SELECT status FROM tablesync_run('a.t')}), 'succeeded', 'without it');
$target->safe_psql('postgres', q{SELECT count(*) FROM tablesync_changes('a.t'); SELECT tablesync_remove('a.t', drop_replica => true)});
is($target->safe_psql('postgres', q{SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolsuper}), 'postgres', 'nobody has risen');

done_testing();
