# SoakFaults: what goes wrong while a run goes on, and how it is mended.

package SoakFaults;

use strict;
use warnings;

use Exporter 'import';
use SoakTables;
use Time::HiRes qw(time sleep);

our @EXPORT = qw(fault mend random_fault);

# Weight and kind.  What takes a cluster down takes a second, so it is rare.
my @kinds = (
	[ 6, 'source session ended' ], [ 4, 'worker ended' ], [ 5, 'cancelled' ], [ 3, 'caller gone' ], [ 8, 'cut' ], [ 3, 'frozen' ], [ 3, 'delayed' ],
	[ 4, 'locked at the source' ], [ 4, 'locked at the target' ], [ 1.5, 'worker killed' ], [ 1, 'source session killed' ],
	[ 1, 'source killed' ], [ 1, 'target killed' ], [ 1, 'source restarted' ], [ 0.7, 'target restarted' ], [ 0.4, 'silent' ]);

sub random_fault { return SoakChanges::draw(@kinds); }

# Wait until a cluster lets us in again.
sub wait_for
{
	my ($h, $name) = @_;
	my $until = time + 60;
	my $node = $h->{nodes}{$name};
	while (time < $until)
	{
		my ($rc) = $node->psql('postgres', 'SELECT 1', on_error_stop => 0);
		return $h->forget_sessions($name) if $rc == 0;
		sleep 0.05;
	}
	die "$name does not start\n";
}

sub kill_postmaster
{
	my ($h, $name) = @_;
	my $node = $h->{nodes}{$name};
	$h->{crashed}{$name} = 1;
	$node->kill9;
	for (1 .. 100)
	{
		# processes of the old one may still be there
		last if $node->start(fail_ok => 1);
		undef $node->{_pid};
		sleep 0.1;
	}
	return wait_for($h, $name);
}

sub kill_processes
{
	my ($h, $name, $condition) = @_;
	my $pids = $h->{$name}->must("SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE $condition") or return 0;
	$h->{crashed}{$name} = 1;
	kill 'KILL', split / /, $pids;
	# the postmaster notices it, and lets nobody in until it has begun again; a process may have ended before
	my $until = time + 3;
	my $any = join '|', split / /, $pids;
	sleep 0.05 until time > $until || PostgreSQL::Test::Utils::slurp_file($h->{nodes}{$name}->logfile, $h->{at}{$name} // 0) =~ /PID (?:$any)\) was terminated/;
	sleep 0.1;
	return wait_for($h, $name);
}

# Let something go wrong.  Returns how to make it undone.
sub fault
{
	my ($h, $t, $kind) = @_;
	my ($source, $target, $proxy) = @$h{qw(source target proxy)};
	my $ours = "usename = 'reader'";
	my $run = "backend_type = 'tablesync run'";
	if ($kind eq 'source session ended') { $source->must("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $ours") }
	elsif ($kind eq 'worker ended') { $target->must("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $run") }
	elsif ($kind eq 'cancelled') { $target->must("SELECT tablesync_cancel('$t->{table}')") }
	elsif ($kind eq 'caller gone') { $h->{runner}->kill_client }
	elsif ($kind eq 'cut') { $proxy->command('cut ' . int(rand() ** 3 * 30000)); return sub { $proxy->command('whole') } }
	elsif ($kind eq 'frozen') { $proxy->command('freeze'); sleep rand(0.5); $proxy->command('thaw') }
	elsif ($kind eq 'silent') { $proxy->command('freeze'); sleep 4; $proxy->command('thaw') }
	elsif ($kind eq 'delayed') { $proxy->command('delay ' . int(rand(10))); return sub { $proxy->command('delay 0') } }
	elsif ($kind eq 'locked at the source')
	{
		$h->{other_source}->ask("BEGIN; LOCK TABLE $t->{table} IN ACCESS EXCLUSIVE MODE");
		sleep rand(0.4);
		$h->{other_source}->ask('COMMIT');
	}
	elsif ($kind eq 'locked at the target')
	{
		$h->{other_target}->ask("BEGIN; LOCK TABLE $t->{table} IN " . one_of('SHARE', 'ACCESS EXCLUSIVE', 'ROW EXCLUSIVE') . ' MODE');
		sleep rand(0.4);
		$h->{other_target}->ask('COMMIT');
	}
	elsif ($kind eq 'worker killed') { kill_processes($h, 'target', $run) }
	elsif ($kind eq 'source session killed') { kill_processes($h, 'source', $ours) }
	elsif ($kind =~ /^(\w+) killed/) { kill_postmaster($h, $1) }
	elsif ($kind =~ /^(\w+) restarted/)
	{
		my $name = $1;
		$h->{nodes}{$name}->stop(rand() < 0.5 ? 'fast' : 'immediate');
		sleep rand(0.3);
		$h->{nodes}{$name}->start;
		wait_for($h, $name);
	}
	return;
}

1;
