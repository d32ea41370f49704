# SoakHistory: one history, from its tables to their end.
#
# Each operation has a name of its own (round.kind.number) and a generator of its
# own, seeded by seed, history and that name: so one may be left out, and the others
# stay what they were.

package SoakHistory;

use strict;
use warnings;

use parent 'SoakFlight';

use Digest::MD5 qw(md5);
use SoakChanges;
use SoakDumps;
use SoakLosses;
use SoakModel;
use SoakSession;
use SoakStates;
use SoakTables;
use Time::HiRes qw(time sleep);

# place: nodes, proxy; options: seed, number, skip (names of operations), rounds (at most), faults (whether)
sub new
{
	my ($class, $place, %options) = @_;
	my $h = bless {
		%$place, place => $place, %options, schema => "h$options{number}", log => [], operations => [], counts => $place->{counts} // {} }, $class;
	$h->{$_} = SoakSession->new($h->{nodes}{source}, 'postgres') for qw(source other_source late);
	$h->{served} = SoakSession->new($h->{nodes}{served}, 'postgres');
	$h->{target} = SoakSession->new($h->{nodes}{target}, 'postgres');
	$h->{$_} = SoakSession->new($h->{nodes}{target}, 'app') for qw(app runner other_target);
	return $h;
}

# Sessions at a node, but for the one that waits for a run.
sub sessions_of
{
	my ($h, $name) = @_;
	return qw(target app other_target) if $name eq 'target';
	return 'served' if $name eq 'served' && $h->has_standby;
	return qw(source other_source late served);
}

sub forget_sessions
{
	my ($h, $name) = @_;
	my @sessions = $h->sessions_of($name);
	$h->{$_}->quit for @sessions;
	delete $h->{late_table} if grep { $_ eq 'late' } @sessions;
	return;
}

# Do runs read a standby of the source?
sub has_standby { my ($h) = @_; return $h->{nodes}{served} != $h->{nodes}{source}; }

# Wait until what runs read is what we have written.
sub catch_up
{
	my ($h) = @_;
	return if !$h->has_standby;
	my $wanted = $h->{source}->must('SELECT pg_current_wal_insert_lsn()');
	my $behind = SoakModel::becomes($h->{served}, "SELECT pg_last_wal_replay_lsn() >= '$wanted'", 't', 30);
	die "the standby of the source does not get to $wanted\n" if $behind;
	return;
}

# A standby takes the place of its primary.
sub promote
{
	my ($h, $what) = @_;
	$h->forget_sessions($what);
	delete @$h{qw(reading states)} if $what eq 'target';    # the reader has gone with it
	$h->{place}->promote($what);
	$h->{$_} = $h->{place}{$_} for qw(nodes reader at);
	for my $session (qw(source other_source late served)) { $h->{$session}{node} = $h->{nodes}{source} if $what eq 'source'; }
	for my $session (qw(target app other_target runner)) { $h->{$session}{node} = $h->{nodes}{target} if $what eq 'target'; }
	$h->forget_sessions($what);
	$h->{runner}->quit if $what eq 'target';
	return;
}

sub seed
{
	my ($h, $name) = @_;
	srand(unpack 'N', md5("$h->{seed}/$h->{number}/$name"));
	return;
}

# Begin an operation; false if it is to be left out.
sub begins
{
	my ($h, $name) = @_;
	$h->seed($name);
	return 0 if $h->{skip}{$name};
	push @{ $h->{operations} }, $name;
	return 1;
}

sub note { my ($h, $line) = @_; push @{ $h->{log} }, $line; return; }

# Likewise, for a test that does the same.
sub step { my ($h, @step) = @_; push @{ $h->{steps} }, [@step]; return; }

# Do something in a session, as one transaction unless it is alone.  An error leaves nothing.
sub change
{
	my ($h, $session, $change, $name) = @_;
	my $sql = 'SELECT setseed(' . sprintf('%.6f', rand()) . ');' . ($change->{alone} ? " $change->{sql}" : " BEGIN; $change->{sql}; COMMIT");
	my ($answer, $ok) = $h->{$session}->ask($sql);
	$h->note("-- $name, at $session: $change->{name}" . ($ok ? '' : ', fails: ' . $answer =~ s/\n/ /gr) . "\n$sql;");
	$h->step($session, $sql) if $ok;
	$h->{$session}->ask('ROLLBACK') if !$ok;
	$h->{counts}{'changes'}++;
	$h->{counts}{'changes that failed'}++ if !$ok;
	if ($ENV{SOAK_DEBUG} && !$ok) { Test::More::diag("$change->{name}: $answer\n$sql"); }
	return $ok;
}

sub make_tables
{
	my ($h) = @_;
	$h->seed('tables');
	my $schema = $h->{schema};
	$h->{source}->must("DROP SCHEMA IF EXISTS $schema CASCADE; CREATE SCHEMA $schema");
	$h->{target}->must("DROP SCHEMA IF EXISTS $schema CASCADE; CREATE SCHEMA $schema AUTHORIZATION app");
	$h->{target}->must("ALTER ROLE app SET tablesync.lock_timeout = '2s'");
	$h->{all} = [ random_tables($schema) ];
	for my $t (@{ $h->{all} })
	{
		if ($t->{enum})
		{
			my $type = "CREATE TYPE $t->{enum} AS ENUM ('a', 'b', 'c')";
			$h->note("-- at both\n$type;");
			for (qw(source app)) { $h->{$_}->must($type); $h->step($_, $type); }
		}
		$h->note("-- at the source\n$t->{create};");
		$h->{source}->must($t->{create});
		$h->step('source', $t->{create});
		$h->seed("rows.$t->{name}");
		my $rows = int(rand() ** 2 * ($t->{add} =~ m{chunk_rows => [1-7]\b} ? 60 : 600));
		$t->{original} = { map { $_ => $t->{$_} } qw(fingerprint filter expressions feed) };
		$h->change('source', { name => 'first rows', sql => SoakChanges::inserts($h->{source}, $t, $rows) }, 'rows');
		$h->add($t);
	}
	return;
}

sub add
{
	my ($h, $t) = @_;
	$h->note("-- at the target\n$t->{add};");
	my ($answer, $ok) = $h->{app}->ask($t->{add});
	if (!$ok && $answer =~ /can't be replicated exactly/)
	{
		# a type without an exact hash
		$t->{add} =~ s/fingerprint => 'row'/fingerprint => 'xmin'/;
		$t->{original}{fingerprint} = 'xmin';
		$h->note("-- refused; then\n$t->{add};");
		$h->{app}->must($t->{add});
	}
	elsif (!$ok && $answer =~ /can't be compared with its source/)
	{
		$h->note("-- refused; then\nTRUNCATE $t->{table}; $t->{add};");
		$h->{app}->must("TRUNCATE $t->{table}; $t->{add}");
	}
	elsif (!$ok) { die "$t->{add}\n$answer\n" }
	$h->step('app', $t->{add});
	@$t{ keys %{ $t->{original} } } = values %{ $t->{original} };
	delete $t->{base};
	my @extra;
	push @extra, "ALTER TABLE $t->{table} ADD IF NOT EXISTS own integer DEFAULT 5, ADD IF NOT EXISTS own_id bigint GENERATED BY DEFAULT AS IDENTITY" if $t->{own};
	push @extra, "CREATE UNIQUE INDEX IF NOT EXISTS $t->{name}_u ON $t->{table} (u)" if $t->{unique_here};
	push @extra, "ALTER TABLE $t->{table} SET TABLESPACE small" if $t->{small_disk} && $h->{small_disk};
	for (@extra) { $h->note("$_;"); $h->step('app', $_); $h->{app}->must($_); }
	return;
}

# Rows of both sides, by table.
sub states
{
	my ($h) = @_;
	my %states;
	for my $t (@{ $h->{all} })
	{
		my ($rows, $ok) = $h->{target}->ask('SELECT ROW(' . join(', ', SoakTables::replicated($h->{source}, $t)) . qq{)::text COLLATE "C" FROM $t->{table} ORDER BY 1});
		$states{ $t->{name} } = {
			wanted => wanted_rows($h->{source}, $t), replica => $ok ? $rows : undef,
			source_keys => keys_of($h->{source}, $t, $t->{filter}), keys => keys_of($h->{target}, $t) };
	}
	return \%states;
}

# Changes of a round, at both sides.  Returns what is to be undone.
sub work
{
	my ($h, $round) = @_;
	my @undo;
	for my $i (1 .. 2)
	{
		$h->seed("$round.target.$i");
		next if rand() < 0.7 || $round == 1;
		next if !$h->begins("$round.target.$i");
		rand();
		my $t = one_of(@{ $h->{all} });
		push @undo, $h->work_at_target($t, target_change($t), "$round.target.$i");
	}
	$h->seed("$round.late");
	if ($h->{late_table})
	{
		$h->late_commits;
	}
	elsif (rand() < 0.2 && $h->begins("$round.late"))
	{
		my $t = one_of(@{ $h->{all} });
		my $sql = 'SELECT setseed(' . rand() . '); BEGIN; ' . late_change($h->{source}, $t);
		$h->note("-- late, in a session of its own, commits in the next round\n$sql;");
		my (undef, $ok) = $h->{late}->ask($sql);
		if ($ok) { $h->{late_table} = $t; $h->step('late', $sql); } else { $h->{late}->ask('ROLLBACK') }
	}
	$h->seed("$round.source");
	for my $i (1 .. 1 + int(rand(4)))
	{
		next if !$h->begins("$round.source.$i");
		my $t = one_of(@{ $h->{all} });
		my $change = source_change($h->{source}, $t);
		my $ok = $change->{restore} ? restore_table($h, $t, "$round.source.$i") : $h->change('source', $change, "$round.source.$i");
		$t->{stale} = 1 if $change->{shape};
		$h->{shaped} = 1 if $change->{shape};
		$t->{label} = $change->{label} if $ok && $change->{label};
		if ($ok && $change->{undo}) { push @undo, [ $change->{undo_at} // 'source', $change->{undo} ] }
	}
	return @undo;
}

# Whatever was done to the replica, verify finds what differs, and a repair mends it.
sub verify_at_target
{
	my ($h, $t, $change, $name) = @_;
	$h->catch_up;
	return if $change->{repair} && ($h->{excused} || !$t->{ran});
	if ($change->{sql})
	{
		my ($answer, $ok) = $h->{target}->ask($change->{sql});
		$h->note("-- $name, at target, as a superuser: $change->{name}" . ($ok ? '' : ', fails: ' . $answer =~ s/\n/ /gr) . "\n$change->{sql};");
		$h->step('target', $change->{sql}) if $ok;
		$h->{target}->ask('ROLLBACK') if !$ok;
		delete $t->{base};    # nor does the feed tell of it
	}
	$h->note("-- $name, at target: verify");
	my $same = wanted_rows($h->{source}, $t) eq replica_rows($h->{source}, $h->{target}, $t);
	my ($answer, $ok) = $h->{app}->ask("SELECT count(*) FROM tablesync_verify('$t->{table}'" . ($change->{repair} ? ', repair => true' : '') . ')');
	violation("verify of $t->{table} fails: $answer") if !$ok && !$h->{excused};
	violation("verify of $t->{table} finds $answer, and it is " . ($same ? 'equal' : 'different')) if $ok && ($answer eq '0') != $same;
	$h->step('app', "SELECT * FROM tablesync_verify('$t->{table}'" . ($change->{repair} ? ', repair => true' : '') . ')');
	$h->{counts}{"verify finds what is " . ($same ? 'equal' : 'different')}++ if $ok;
	check_same($h, $t) if $ok && $change->{repair};
	return;
}

sub work_at_target
{
	my ($h, $t, $change, $name) = @_;
	if ($change->{verify})
	{
		$h->verify_at_target($t, $change, $name);
		return;
	}
	return restore_target($h) if $change->{restore};
	my $ok = $h->change($change->{as} // 'app', $change, $name);
	return if !$ok && $h->{log}[-1] =~ /can't be compared exactly/;
	violation("$change->{name} fails: $h->{log}[-1]") if !$ok && !$change->{writes};
	if ($change->{add})
	{
		$h->{app}->must("DROP TABLE IF EXISTS $t->{table}_changes");
		$h->step('app', "DROP TABLE IF EXISTS $t->{table}_changes");
		$h->add($t);
	}
	$t->{$_} = $change->{set}{$_} for keys %{ $change->{set} };
	return if !$change->{excuse};
	$h->{excused} = 1;
	return [ 'app', $change->{undo} ];
}

# A run of a quiet source: it succeeds, and the replica is its source.
sub quiet_run
{
	my ($h, $round) = @_;
	$h->seed("$round.run");
	$h->catch_up;
	begin_reads($h) if rand() < 0.25;
	my $session = rand() < 0.3 ? 'runner' : 'app';
	# a run of all leaves out replicas that a flight has paused
	my @runs = rand() < 0.3 && !$h->{shaped} ? ('') : map { "'$_->{table}'" } @{ $h->{all} };
	for my $which (@runs)
	{
		my $sql = "SELECT status, inserted, updated, deleted, message FROM tablesync_run($which" . ($which ? ', ' : '') . 'force => true)';
		my ($answer, $ok) = $h->{$session}->ask($sql);
		$h->step($ok || !$h->{shaped} ? 'succeeds' : 'app', $sql);
		$h->note("-- round $round, at the target\n$sql;\n-- " . $answer =~ s/\n/\n-- /gr);
		push @runs, map { "'$_->{table}'" } @{ $h->{all} } if $ok && $answer =~ /^backing off/m;
		next if $ok && $answer !~ /^(?!succeeded|backing off)/m;
		violation("a run failed: $answer") if !$h->{shaped};
		$h->after_shape;
	}
	end_reads($h);
	for (@{ $h->{all} }) { $_->{ran} = 1 }
	return;
}

# A shape that could not be followed has paused replicas: they begin anew.
sub after_shape
{
	my ($h) = @_;
	end_reads($h);
	for my $t (@{ $h->{all} })
	{
		my $paused = $h->{target}->must("SELECT NOT enabled OR (SELECT sqlstate FROM tablesync.run r WHERE r.replica = x.replica ORDER BY run_id DESC LIMIT 1) IS NOT DISTINCT FROM 'TS003'
			FROM tablesync.replica x WHERE replica = '$t->{table}'::regclass");
		next if $paused ne 't';
		$h->{counts}{'shapes that were not followed'}++;
		$h->note("-- $t->{table} is paused: made anew");
		my $labels = $t->{enum} && $h->{source}->must("SELECT string_agg(quote_literal(l), ', ' ORDER BY n) FROM unnest(enum_range(NULL::$t->{enum})) WITH ORDINALITY u (l, n)");
		for ("SELECT tablesync_remove('$t->{table}', drop_replica => true); DROP FOREIGN TABLE IF EXISTS $t->{table}_source", "DROP TABLE IF EXISTS $t->{table}_changes",
			$labels ? "DROP TYPE IF EXISTS $t->{enum} CASCADE; CREATE TYPE $t->{enum} AS ENUM ($labels)" : ())
		{
			$h->{app}->must($_);
			$h->step('app', $_);
		}
		$h->add($t);
	}
	for my $t (@{ $h->{all} })
	{
		my $sql = "SELECT status FROM tablesync_run('$t->{table}', force => true)";
		$h->step('succeeds', $sql);
		my ($answer, $ok) = $h->{app}->ask($sql);
		violation("a run failed after all: $answer") if !$ok;
	}
	return;
}

sub round
{
	my ($h, $round) = @_;
	delete @$h{qw(excused shaped)};
	my @undo = @{ $h->{undo} = [ $h->work($round) ] };
	$h->flight($round, scalar @undo);
	while (my $undo = shift @{ $h->{undo} })
	{
		$h->note("-- at $undo->[0]\n$undo->[1];");
		$h->step(@$undo);
		$h->{ $undo->[0] }->must($undo->[1]);
	}
	delete $h->{excused};
	$h->quiet_run($round);
	$h->step('same', "round $round: $_->{table}", wanted_sql($h->{source}, $_), replica_sql($h->{source}, $_)) for @{ $h->{all} };
	for my $t (@{ $h->{all} })
	{
		check_same($h, $t);
		check_proof($h, $t);
	}
	check_retold($h);
	check_feed($h, $_) for @{ $h->{all} };
	check_alerts($h, $_, 1) for @{ $h->{all} };
	check_runs($h);
	check_logs($h);
	$h->{counts}{rounds}++;
	return;
}

sub finish
{
	my ($h) = @_;
	for my $t (@{ $h->{all} })
	{
		my $found = $h->{app}->must("SELECT count(*) FROM tablesync_verify('$t->{table}')");
		violation("verify of $t->{table} finds $found differences in the end") if $found;
	}
	$h->{app}->must("SELECT tablesync_remove('$_->{table}', drop_replica => true)") for @{ $h->{all} };
	$h->{$_}->quit for qw(app runner other_target other_source late);
	check_ends($h);
	check_logs($h);
	check_files($h);
	return;
}

# Returns undef, or what was violated.
sub run
{
	my ($h) = @_;
	my $done = eval {
		$h->{last_run} = $h->{target}->must('SELECT coalesce(max(run_id), 0) FROM tablesync.run');
		check_logs({ %$h, crashed => { served => 1, target => 1 } }) if !$h->{at}{served};
		$h->make_tables;
		$h->seed('rounds');
		my $rounds = 5 + int(rand(11));
		$rounds = $h->{rounds} if $h->{rounds} && $h->{rounds} < $rounds;
		for my $round (1 .. $rounds)
		{
			$h->{round} = $round;
			$h->round($round);
		}
		$h->finish;
		1;
	};
	my $error = $done ? undef : $@;
	$h->steps_to_the_end if !$done;
	$h->{reader}->end if delete $h->{reading};
	eval { $h->clean_up; 1 } or $error //= $@;
	return $error;
}

# What a test does after what was done until a violation: it runs once more and compares, as with a quiet source.
sub steps_to_the_end
{
	my ($h) = @_;
	$h->step(@$_) for @{ $h->{undo} // [] };
	$h->step('late', 'COMMIT') if $h->{late_table};
	for my $t (@{ $h->{all} // [] })
	{
		my $queries = eval { [ wanted_sql($h->{source}, $t), replica_sql($h->{source}, $t) ] } // next;
		$h->step('succeeds', "SELECT status, message FROM tablesync_run('$t->{table}', force => true)");
		$h->step('same', "in the end: $t->{table}", @$queries);
	}
	return;
}

sub clean_up
{
	my ($h) = @_;
	$h->{late}->quit;
	for my $name (qw(target source)) { $h->{$name}->ask("SET lock_timeout = '10s'; DROP SCHEMA IF EXISTS $h->{schema} CASCADE"); }
	$h->{$_}->quit for $h->sessions_of('source'), $h->sessions_of('target'), 'runner', 'served';
	return;
}

1;
