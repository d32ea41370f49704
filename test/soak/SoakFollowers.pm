# SoakFollowers: who follows a replica.  A consumer of its feed, whose work is in the
# target's database, so that it is done exactly once; somebody who asks what the
# replica was before; and exports.

package SoakFollowers;

use strict;
use warnings;

use Exporter 'import';
use SoakModel;

our @EXPORT = qw(followers_begin follow check_followed check_past ask_export check_exports);

# What a consumer does, as in docs/feed.md.  Each position is done once, or it is an error.
my $procedure = <<'EOT';
CREATE PROCEDURE %s.consume(consumer text, replica regclass, state regclass, done regclass) LANGUAGE plpgsql AS $$
DECLARE
	change record;
	reached bigint;
	put text := format('INSERT INTO %%s VALUES ($1, $2)', state);
BEGIN
	LOOP
		reached := NULL;
		FOR change IN SELECT * FROM tablesync_fetch(consumer, 1 + floor(random() * 20)::integer) LOOP
			reached := change.position;
			IF change.value->>'op' = 't' THEN
				EXECUTE format('DELETE FROM %%s', state);
				FOR change IN SELECT * FROM tablesync_envelopes(replica, NULL) LOOP
					reached := change.position;
					EXECUTE put USING change.key, change.value->'after';
				END LOOP;
				EXIT;
			END IF;
			EXECUTE format('INSERT INTO %%s VALUES ($1)', done) USING change.position;
			EXECUTE format('DELETE FROM %%s WHERE key = $1', state) USING change.key;
			IF change.value->>'op' <> 'd' THEN EXECUTE put USING change.key, change.value->'after'; END IF;
		END LOOP;
		EXIT WHEN reached IS NULL;
		PERFORM tablesync_commit(consumer, reached);
		COMMIT;
	END LOOP;
END $$
EOT

sub consumer_of { my ($t) = @_; return "$t->{schema}_$t->{name}"; }

sub call
{
	my ($t) = @_;
	return "CALL $t->{schema}.consume('" . consumer_of($t) . "', '$t->{table}', '$t->{schema}.state_$t->{name}', '$t->{schema}.done_$t->{name}')";
}

sub followers_begin
{
	my ($h) = @_;
	$h->{app}->must(sprintf $procedure, $h->{schema});
	return;
}

# Consumers for feeds that have none; those of feeds that were switched off, or of another shape, are gone.
sub renew
{
	my ($h, $t) = @_;
	my $remove = "SELECT tablesync_consumer_remove('" . consumer_of($t) . "')";
	if (!$t->{feed} || $h->{shaped})
	{
		# with the replica it may have gone already
		$h->{app}->ask($remove) if delete $t->{followed};
		delete $t->{past};
		return;
	}
	return if $t->{followed};
	$h->{app}->ask($remove);
	my ($state, $done) = map { "$t->{schema}.${_}_$t->{name}" } qw(state done);
	$h->{app}->must("DROP TABLE IF EXISTS $state, $done; CREATE TABLE $state (key jsonb PRIMARY KEY, value jsonb); CREATE TABLE $done (position bigint PRIMARY KEY);
		SELECT tablesync_consumer_add('" . consumer_of($t) . "', '$t->{table}', after => 0)");
	$t->{followed} = 1;
	return;
}

sub judge
{
	my ($answer) = @_;
	violation("a consumer got a change twice: $answer") if $answer =~ /duplicate key value/;
	return;
}

# Consumers work while runs go on.  Returns how to wait for them.
sub follow
{
	my ($h) = @_;
	my @calls = map { call($_) } grep { $_->{followed} } @{ $h->{all} };
	return sub { } if !@calls;
	$h->{follower}->ask('SELECT 1');
	$h->{follower}->send(join ";\n", (@calls, 'SELECT FROM pg_sleep(0.02)') x 8);
	return sub { judge(($h->{follower}->receive)[0]); $h->{follower}->quit; };
}

# After a run: the consumer has what the replica has, and has got it once.
sub check_followed
{
	my ($h, $t) = @_;
	renew($h, $t);
	return if !$t->{followed};
	my ($answer, $ok) = $h->{app}->ask(call($t));
	judge($answer);
	violation("a consumer of $t->{table} fails: $answer") if !$ok;
	my $here = "SELECT key::text, (value->'after')::text FROM tablesync_envelopes('$t->{table}', NULL)";
	my $there = "SELECT key::text, value::text FROM $t->{schema}.state_$t->{name}";
	my $differ = $h->{app}->must("(($here) EXCEPT ($there) LIMIT 2) UNION ALL (SELECT 'but', '') UNION ALL (($there) EXCEPT ($here) LIMIT 2)");
	violation("a consumer of $t->{table} has something else: $differ") if $differ ne 'but|';
	$h->{counts}{'consumers compared'}++;
	return;
}

# The replica as it was after an earlier run, when it is asked for now.
sub check_past
{
	my ($h, $t) = @_;
	return if !$t->{followed};
	my $ask = sub { return $h->{app}->ask("SELECT coalesce(string_agg(a::text, E'\\n' ORDER BY a::text COLLATE \"C\"), '') FROM tablesync_as_of('$t->{table}', '$_[0]') a"); };
	if ($t->{past})
	{
		my ($rows, $ok) = $ask->($t->{past}{at});
		violation("$t->{table} as of $t->{past}{at} is not what it was. " . difference($t->{past}{rows}, $rows)) if $ok && $rows ne $t->{past}{rows};
		violation("$t->{table} as of $t->{past}{at}: $rows") if !$ok && $rows !~ /does not tell how it was/;
		$h->{counts}{ 'replicas as they were' . ($ok ? '' : ', refused') }++;
		return if $ok && rand() < 0.6;
	}
	my $at = $h->{target}->must('SELECT clock_timestamp()');
	my ($rows, $ok) = $ask->($at);
	$t->{past} = $ok ? { at => $at, rows => $rows } : undef;
	return;
}

# Ask for an export of all rows, or of all changes.
sub ask_export
{
	my ($h, $t) = @_;
	return if !$h->{place}{export_directory} || $h->{shaped} || !$t->{ran} || !($t->{version} || $t->{feed});
	my $format = rand() < 0.7 ? 'csv' : 'jsonl';
	my ($id, $ok) = $h->{app}->ask("SELECT tablesync_export('$t->{table}', '0001-01-01', '9000-01-01', '$format')");
	$h->{counts}{ 'exports asked for' . ($ok ? '' : ', refused') }++;
	push @{ $h->{exports} }, { id => $id, table => $t, format => $format } if $ok;
	return;
}

# Each file is there and whole, once its export says so.  Of a quiet replica it has its rows.
sub check_exports
{
	my ($h, $quiet) = @_;
	for my $export (splice @{ $h->{exports} })
	{
		my $t = $export->{table};
		SoakModel::becomes($h->{target}, "SELECT count(*) FROM tablesync_exports WHERE export_id = $export->{id} AND state NOT IN ('FINISHED', 'FAILED')", 0, 3);
		my ($state, $rows, $uri, $message) = split /\|/, $h->{target}->must("SELECT state, rows, uri, message FROM tablesync_exports WHERE export_id = $export->{id}"), 4;
		# it has gone with its replica, or in a restored database
		next if !defined $state;
		$h->{counts}{"export $state"}++;
		violation("an export of $t->{table} has failed: $message") if $state eq 'FAILED' && $quiet;
		next if $state ne 'FINISHED' || $h->{shaped};
		my $path = $uri =~ s{^file://}{}r;
		my $source = $t->{version} ? $t->{table} : "$t->{table}_changes";
		my $got;
		if ($export->{format} eq 'csv')
		{
			$got = $h->{target}->must("DROP TABLE IF EXISTS exported; CREATE TEMP TABLE exported (LIKE $source); COPY exported FROM '$path' (FORMAT csv, HEADER match); SELECT count(*) FROM exported");
			if ($quiet && $t->{version})
			{
				my $differ = $h->{target}->must("SELECT (SELECT count(*) FROM (SELECT e::text FROM exported e EXCEPT ALL SELECT r::text FROM $source r) d)
					+ (SELECT count(*) FROM (SELECT r::text FROM $source r WHERE updated_at IS NOT NULL EXCEPT ALL SELECT e::text FROM exported e) d)");
				violation("$path is not what $source has: $differ rows") if $differ;
			}
		}
		else { $got = () = PostgreSQL::Test::Utils::slurp_file($path) =~ /\n/g; }
		violation("$path has $got rows, and the export says $rows") if $got != $rows;
	}
	return;
}

1;
