# SoakModel: what must hold after runs.  Source and replica are read by ourselves,
# not through what tablesync remembers of them.

package SoakModel;

use strict;
use warnings;

use Exporter 'import';
use SoakTables;
use Time::HiRes qw(time sleep);

our @EXPORT = qw(violation check_same check_proof check_runs check_feed check_logs check_alerts check_files check_ends difference keys_of check_kept);

# The end of a history: what the model does not agree with.
sub violation { die "violation: $_[0]\n"; }

# The first rows that only one has.
sub difference
{
	my ($wanted, $got) = @_;
	my %wanted = map { $_ => 1 } split /\n/, $wanted;
	my %got = map { $_ => 1 } split /\n/, $got;
	my @missing = grep { !$got{$_} } sort keys %wanted;
	my @surplus = grep { !$wanted{$_} } sort keys %got;
	my ($missing, $surplus) = (scalar @missing, scalar @surplus);
	splice(@missing, 5) if @missing > 5;
	splice(@surplus, 5) if @surplus > 5;
	return "$missing only at the source:\n" . join("\n", @missing) . "\n$surplus only in the replica:\n" . join("\n", @surplus);
}

sub check_same
{
	my ($h, $t) = @_;
	my $wanted = wanted_rows($h->{source}, $t);
	my $got = replica_rows($h->{source}, $h->{target}, $t);
	violation("$t->{table} is not its source. " . difference($wanted, $got)) if $wanted ne $got;
	return $wanted;
}

# The last run that has succeeded says that both sides were equal, and how many rows that were.
sub check_proof
{
	my ($h, $t) = @_;
	# not lines of text: values have such ends, too
	my $rows = $h->{source}->must("SELECT count(*) FROM $t->{table}" . ($t->{filter} ? " WHERE $t->{filter}" : ''));
	my $proof = $h->{target}->must("SELECT (proof->>'equal') || ' ' || (proof->'source'->>'rows') FROM tablesync_runs
		WHERE replica = '$t->{table}'::regclass AND status = 'succeeded' AND kind <> 'verify' ORDER BY run_id DESC LIMIT 1");
	return if $proof eq "true $rows";
	my $runs = $h->{target}->must("SELECT jsonb_strip_nulls(to_jsonb(r)) FROM tablesync_runs r WHERE replica = '$t->{table}'::regclass ORDER BY run_id DESC LIMIT 3");
	violation("$t->{table}: $rows rows, and the proof says $proof. The last runs:\n$runs");
	return;
}

# Runs since the last look: none has met what can't happen.
sub check_runs
{
	my ($h) = @_;
	my $last = $h->{last_run} // 0;
	for my $line (split /\n/, $h->{target}->must("SELECT run_id, status, coalesce(sqlstate, '-'), replace(coalesce(message, ''), E'\\n', ' ') FROM tablesync_runs WHERE run_id > $last ORDER BY run_id"))
	{
		my ($run_id, $status, $sqlstate, $message) = split /\|/, $line, 4;
		$h->{counts}{"run $status"}++;
		$h->{counts}{"error $sqlstate"}++ if $sqlstate ne '-';
		violation("run $run_id is still running") if $status eq 'running';
		violation("run $run_id: $sqlstate $message") if $sqlstate =~ /^XX/ && !$h->{may_lie};
		$h->{last_run} = $run_id;
	}
	return;
}

# Alerts are those of the last run that was not cancelled.
sub check_alerts
{
	my ($h, $t, $quiet) = @_;
	my ($status, $kind) = split /\|/, $h->{target}->must("SELECT status, tablesync.alert_kind(sqlstate) FROM tablesync_runs
		WHERE replica = '$t->{table}'::regclass AND kind <> 'verify' AND status <> 'cancelled' ORDER BY run_id DESC LIMIT 1");
	return if !defined $status || $status eq 'running';
	my %open = map { $_ => 1 } split /\n/, $h->{target}->must("SELECT kind FROM tablesync_alerts WHERE replica = '$t->{table}'::regclass");
	if ($status eq 'succeeded')
	{
		# what a success does not end, or what can be wrong without a run
		delete @open{ 'drift', 'consumer_behind', $quiet ? () : 'worker_unavailable' };
		violation("$t->{table}: the last run has succeeded, and there are alerts: " . join(' ', sort keys %open)) if %open;
	}
	elsif (!$open{$kind}) { violation("$t->{table}: the last run $status, and there is no alert $kind, but: " . join(' ', sort keys %open)) }
	$h->{counts}{"alert $kind"}++ if $status ne 'succeeded';
	return;
}

# No temporary file is left at the target, and no file of a relation that is no more.
sub check_files
{
	my ($h) = @_;
	my $node = $h->{nodes}{target};
	return if $h->{place}{has_crashed} || $h->{place}{kind} =~ /promoted/;
	my $data = $node->data_dir;
	my @left = glob("$data/base/pgsql_tmp/*");
	violation("temporary files are left: @left") if @left;
	my $database = $h->{target}->must('SELECT oid FROM pg_database WHERE datname = current_database()');
	my %known = map { $_ => 1 } split /\n/, $h->{target}->must('SELECT pg_relation_filenode(oid) FROM pg_class WHERE pg_relation_filenode(oid) IS NOT NULL');
	# what was dropped is empty until the next checkpoint
	@left = grep { m{/(\d+)[^/]*$} && !$known{$1} && -s $_ } glob("$data/base/$database/[0-9]*");
	violation("files of no relation are left: @left") if @left;
	return;
}

sub feed_of { my ($t) = @_; return "$t->{table}_changes"; }

# The feed since the last time that we had the replica's rows, applied to these, gives its rows.
sub check_feed
{
	my ($h, $t) = @_;
	return delete $t->{base} if !$t->{feed};
	my ($feed, $target) = (feed_of($t), $h->{target});
	# what consumers have is deleted, from the first one on
	my $gaps = $target->must("SELECT count(DISTINCT position), coalesce(min(position) - 1, feed_position), coalesce(max(position), feed_position)
		FROM tablesync.replica t LEFT JOIN $feed ON true WHERE replica = '$t->{table}'::regclass GROUP BY feed_position");
	my ($positions, $gone, $newest) = split /\|/, $gaps;
	violation("$feed: $positions positions after $gone, and the newest is $newest") if $positions != $newest - $gone;
	delete $t->{base} if defined $t->{base} && $t->{base} < $gone;
	my $columns = join ', ', SoakTables::replicated($h->{source}, $t);
	my $shape = join ', ', map { "$_->{name} $_->{type}" } columns_of($h->{source}, $t);
	my $base = "$t->{schema}.base_$t->{name}";
	if (defined $t->{base} && $t->{base_shape} eq $shape
		&& $target->must("SELECT count(*) FROM $feed WHERE position > $t->{base} AND op = 't'") == 0)
	{
		my $names = key_list($t);
		my $row = "ROW($columns)::text";
		my $since = "SELECT * FROM $feed WHERE position > $t->{base}";
		my $rows = replica_rows($h->{source}, $target, $t);
		if ($newest == $t->{base})
		{
			# a feed gets a new column with the first change that has it
			my $replayed = $target->must(qq{SELECT $row COLLATE "C" FROM $base ORDER BY 1});
			violation("$feed has nothing since $t->{base}, and the replica has changed. " . difference($replayed, $rows)) if $replayed ne $rows;
			return;
		}
		my $replayed = $target->must(qq{SELECT $row COLLATE "C" FROM (
			SELECT $columns FROM $base WHERE ($names) NOT IN (SELECT $names FROM $feed WHERE position > $t->{base})
			UNION ALL SELECT $columns FROM (SELECT DISTINCT ON ($names) * FROM ($since) f WHERE op <> 'b' ORDER BY $names, position DESC) f WHERE op IN ('c', 'u')) r ORDER BY 1});
		violation("$feed from $t->{base} to $newest is not the replica. " . difference($replayed, $rows)) if $replayed ne $rows;
		my $wrong = $target->must(qq{WITH first AS (SELECT DISTINCT ON ($names) op, $names, $row AS row FROM ($since) f ORDER BY $names, position, op)
			SELECT f.op, f.row, b.row FROM first f LEFT JOIN (SELECT $names, $row AS row FROM $base) b USING ($names)
			WHERE f.op NOT IN ('b', 'c', 'd') OR (f.op = 'c') <> (b.row IS NULL) OR (f.op <> 'c' AND f.row <> b.row) LIMIT 3});
		violation("$feed after $t->{base}: what was there before is told wrongly: $wrong") if $wrong ne '';
		$h->{counts}{'feeds replayed'}++;
	}
	$target->must("DROP TABLE IF EXISTS $base; CREATE TABLE $base AS SELECT $columns FROM $t->{table}");
	@$t{ 'base', 'base_shape' } = ($newest, $shape);
	return;
}

# Keys of the rows that the replica is to have, or has.
sub keys_of
{
	my ($session, $t, $filter) = @_;
	my $where = $filter ? "WHERE $filter" : '';
	my ($keys, $ok) = $session->ask('SELECT ROW(' . key_list($t) . ")::text FROM $t->{table} $where");
	return $ok ? { map { $_ => 1 } split /\n/, $keys } : undef;
}

# Nothing was deleted that was there at all instants: in each of the sets.
sub check_kept
{
	my ($h, $t, @sets) = @_;
	my $after = keys_of($h->{target}, $t) // return;
	return if grep { !defined } @sets;
	my $first = shift @sets;
	my @lost = grep { my $key = $_; !$after->{$key} && !grep { !$_->{$key} } @sets } sort keys %$first;
	violation("$t->{table}: rows are gone that were there all the time: @lost[0 .. ($#lost > 4 ? 4 : $#lost)]") if @lost;
	return;
}

# New lines of a node's log.
sub new_lines
{
	my ($h, $name) = @_;
	open my $file, '<', $h->{nodes}{$name}->logfile or die "log of $name: $!";
	seek $file, $h->{at}{$name} // 0, 0;
	my @lines = <$file>;
	$h->{at}{$name} = tell $file;
	close $file;
	return @lines;
}

# Statements at the source are ones that read; nothing has crashed but what was made to.
sub check_logs
{
	my ($h) = @_;
	for my $line (new_lines($h, 'served'))
	{
		violation("the source crashed: $line") if $line =~ /PANIC|TRAP|terminated by signal/ && !$h->{crashed}{served};
		next if $line !~ / reader\|.*LOG:  (?:statement|execute [^:]*|duration[^:]*): (.*)/;
		violation("a statement for the source: $1")
		  if $1 !~ /^\s*(SELECT|SET|SHOW|START TRANSACTION|BEGIN|COMMIT|ROLLBACK|ABORT|SAVEPOINT|RELEASE|DECLARE \w+ CURSOR FOR|FETCH|CLOSE|MOVE|DEALLOCATE|DISCARD|EXPLAIN)\b/i;
		$h->{counts}{'statements at the source'}++;
	}
	for my $line (new_lines($h, 'target'))
	{
		$h->{place}{has_crashed} = 1 if $line =~ /PANIC|terminated by signal|was interrupted; last known up/;
		violation("the target crashed: $line") if $line =~ /PANIC|TRAP|terminated by signal|WARNING: .*leak/ && !$h->{crashed}{target};
	}
	delete $h->{crashed};
	return;
}

# Wait until a query has an answer.
sub becomes
{
	my ($session, $query, $wanted, $seconds) = @_;
	my $until = time + $seconds;
	my $got;
	do { $got = $session->must($query); return if $got eq $wanted; sleep 0.1 } while time < $until;
	return $got;
}

# Nothing is left of a history.
sub check_ends
{
	my ($h) = @_;
	my $left = becomes($h->{served}, "SELECT string_agg(application_name || ' ' || state, ', ') FROM pg_stat_activity WHERE usename = 'reader'", '', 5);
	violation("connections are left at the source: $left") if $left;
	$left = becomes($h->{target}, "SELECT string_agg(backend_type || ' ' || coalesce(query, ''), ', ') FROM pg_stat_activity WHERE backend_type LIKE 'tablesync%'", '', 5);
	violation("processes are left: $left") if $left;
	$left = $h->{target}->must("SELECT string_agg(l::text, ', ') FROM pg_locks l WHERE locktype = 'advisory'");
	violation("locks are left: $left") if $left;
	$left = $h->{target}->must(q{SELECT (SELECT count(*) FROM tablesync.replica) || ' ' || (SELECT count(*) FROM tablesync.run) || ' ' || (SELECT count(*) FROM tablesync.chunk)
		|| ' ' || (SELECT count(*) FROM tablesync.queue)});
	violation("rows of replicas, runs, chunks, queue are left: $left") if $left ne '0 0 0 0';
	return;
}

1;
