# SoakFlight: runs while something goes wrong, or somebody writes at either side,
# and readers read.

package SoakFlight;

use strict;
use warnings;

use SoakChanges;
use SoakFaults;
use SoakLosses;
use SoakModel;
use SoakStates;
use SoakTables;
use Time::HiRes qw(time sleep);

# What may happen is drawn first, so that each of it may be left out.
sub flight
{
	my ($h, $round, $excused) = @_;
	$h->seed("$round.flight");
	my ($with_fault, $busy, $with_writer) = ($h->{faults} && rand() < ($h->{place}{kind} eq 'plain' ? 0.3 : 0.5), rand() < 0.3, rand() < 0.08);
	my $t = one_of(@{ $h->{all} });
	my ($all, $delay, $kind) = (rand() < 0.3, rand() ** 2 * 0.3, random_fault($h));
	my $runs = $busy ? 1 + int(rand(4)) : 1;
	my %plan = (table => $t, changes => $busy ? 4 + int(rand(12)) : 0, shapes => rand() < 0.1, round => $round, all => $all, pause => rand(0.04), done => 0, written => $with_writer);
	$with_fault &&= $h->begins("$round.fault");
	$with_writer &&= $h->begins("$round.writer");
	return if !$with_fault && !$busy && !$with_writer && !$excused;

	$h->catch_up;
	before_fault($h, $kind, $round) if $with_fault;
	my $before = $h->states;
	begin_reads($h);
	delete $h->{states_before};
	my $sql = join ";\n", ('SELECT status, message FROM tablesync_run(' . ($all ? '' : "'$t->{table}'") . ')') x $runs;
	$h->note("-- round $round, at the target" . ($with_fault ? ", with a fault after $delay s: $kind" : '') . ($busy ? ', and changes meanwhile' : '') . "\n$sql;");
	my $undo;
	my $go_wrong = sub { $h->{counts}{"fault: $kind"}++; $undo = fault($h, $t, $kind); $with_fault = 2; $plan{done}++ if $kind =~ /^conflict|^source lost|^temporary/; };
	$h->{runner}->ask('SELECT 1');
	$go_wrong->() if $with_fault && is_early($kind);
	$h->writer_begins($t, $round) if $with_writer;
	# a run of many small chunks takes long enough
	$h->{proxy}->command('delay ' . ($busy && rand() < 0.5 ? 3 : 1)) if ($with_fault || $busy) && !grep { $_->{add} =~ /chunk_rows => [1-7]\b/ } @{ $h->{all} };
	$h->step('runner', $sql);
	$h->{runner}->send($sql);
	my $until = time + $delay;
	$h->meanwhile(\%plan) or sleep 0.005 while time < $until;
	$go_wrong->() if $with_fault == 1;
	$h->writer_ends if $with_writer;
	while (!$h->{runner}->ready && $h->meanwhile(\%plan)) { }
	my ($answer, $ok) = $h->{runner}{pid} ? $h->{runner}->receive : ('', 0);
	$h->{runner}->quit if $with_fault;    # its server may have gone after the answer
	$undo->() if $undo;
	$h->{proxy}->command('delay 0');
	$h->note('-- ' . $answer =~ s/\n/\n-- /gr);
	$h->settle;
	# a process that could not open its alert leaves that to others
	$h->{target}->must('SELECT tablesync.watch()') if $with_fault && $kind =~ /memory|worker|disk/;
	if (!$h->{crashed}{target} && $kind !~ /^target/) { check_alerts($h, $_) for @{ $h->{all} }; }
	end_reads($h, $with_writer ? $t->{name} : undef);
	$h->after_flight($before, $plan{done}, $with_writer, $ok || $with_fault || $plan{done} || $excused || $h->{shaped}, $answer);
	check_lost($h, $before, $excused);
	if ($h->{retold})
	{
		# nothing of the lost runs is there
		my $after = $h->states;
		for (map { $_->{name} } @{ $h->{all} })
		{
			violation("$_: not what it was before the runs that were lost") if ($after->{$_}{replica} // '') ne ($before->{$_}{replica} // '');
		}
	}
	return;
}

# Somebody writes to the replica, and commits when the run has begun.
sub writer_begins
{
	my ($h, $t, $round) = @_;
	$h->seed("$round.writer");
	my $writes = stray_write($t) =~ s/COMMIT$|ROLLBACK$//r;
	$h->note("-- meanwhile at the target: $writes;");
	$h->{other_target}->ask($writes);
	$h->step('other_target', $writes);
	return;
}

sub writer_ends
{
	my ($h) = @_;
	my $how = rand() < 0.3 ? 'ROLLBACK' : 'COMMIT';
	$h->{other_target}->ask($how);
	$h->step('other_target', $how);
	return;
}

# The next change at the source while a run goes on; false if there is none any more.
sub meanwhile
{
	my ($h, $plan) = @_;
	return 0 if $plan->{changes} <= 0;
	my $name = "$plan->{round}.meanwhile." . $plan->{changes}--;
	return 1 if !$h->begins($name);
	sleep $plan->{pause};
	if ($h->{late_table} && rand() < 0.3)
	{
		$h->late_commits;
		note_state($h);
		return 1;
	}
	my $t = $plan->{all} || rand() < 0.3 ? one_of(@{ $h->{all} }) : $plan->{table};
	return $h->meanwhile_here($t, $name) if rand() < 0.06 && !$plan->{written};    # it would wait for the writer, who waits for us
	my $change = source_change($h->{source}, $t);
	return 1 if $change->{excuse} || $change->{shape} && !$plan->{shapes};
	$t->{stale} = $h->{shaped} = 1 if $change->{shape};
	$plan->{done}++;
	note_state($h) if $h->change('source', $change, $name);
	return 1;
}

# Somebody changes a setting while a run goes on, or verifies the replica; both may be refused.
sub meanwhile_here
{
	my ($h, $t, $name) = @_;
	my $sql = rand() < 0.6 ? setting($t) : "SELECT count(*) FROM tablesync_verify('$t->{table}')";
	my ($answer, $ok) = $h->{app}->ask($sql);
	$h->step('app', $sql);
	$h->note("-- $name, at the target\n$sql;\n-- " . $answer =~ s/\n/\n-- /gr);
	$h->{counts}{ 'at the target during a run: ' . ($sql =~ /tablesync_(\w+)/)[0] . ($ok ? '' : ', refused') }++;
	return 1;
}

sub late_commits
{
	my ($h) = @_;
	$h->{late}->ask('COMMIT');
	$h->note('-- the late transaction commits');
	$h->step('late', 'COMMIT');
	delete $h->{late_table};
	return;
}

# Wait until no run goes on any more.
sub settle
{
	my ($h) = @_;
	my $left = SoakModel::becomes($h->{target}, "SELECT (SELECT count(*) FROM tablesync_progress) + (SELECT count(*) FROM tablesync.live_runs())
		+ (SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND query LIKE '%tablesync_run(%' AND state = 'active')", 0, 30);
	violation("a run does not end: $left") if $left;
	return;
}

sub after_flight
{
	my ($h, $before, $with_change, $with_writer, $expected, $answer) = @_;
	violation("a run failed without reason: $answer") if !$expected;
	my $after = $h->states;
	for my $t (@{ $h->{all} })
	{
		my ($old, $new) = ($before->{ $t->{name} }, $after->{ $t->{name} });
		my $loaded = $h->{target}->must("SELECT loaded FROM tablesync.replica WHERE replica = '$t->{table}'::regclass");
		next if $loaded ne 't' || !$t->{ran} || $with_writer || !defined $new->{replica};
		my @meanwhile = keys_meanwhile($h, $t);
		next if $with_change && !@meanwhile;    # what was deleted and inserted again is unknown
		check_kept($h, $t, $old->{keys}, $old->{source_keys}, $new->{source_keys}, @meanwhile);
		next if $h->{shaped} || $with_change;
		violation("$t->{table} is neither what it was nor what its source is. " . difference($new->{wanted}, $new->{replica}))
		  if $new->{replica} ne $old->{replica} && $new->{replica} ne $new->{wanted};
	}
	return;
}

1;
