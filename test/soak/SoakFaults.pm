# SoakFaults: what goes wrong while a run goes on, and how it is mended.

package SoakFaults;

use strict;
use warnings;

use Exporter 'import';
use IO::Socket::INET;
use POSIX ();
use SoakLosses;
use SoakTables;
use Time::HiRes qw(time sleep);

our @EXPORT = qw(fault is_early random_fault before_fault);

# Weight and kind.  What takes a cluster down takes a second, so it is rare.
my @kinds = (
	[ 6, 'source session ended' ], [ 4, 'worker ended' ], [ 5, 'cancelled' ], [ 3, 'caller gone' ], [ 8, 'cut' ], [ 3, 'frozen' ], [ 3, 'delayed' ],
	[ 4, 'locked at the source' ], [ 4, 'locked at the target' ], [ 1.5, 'worker killed' ], [ 1, 'source session killed' ],
	[ 1.5, 'workers used up' ], [ 1.5, 'connections used up at the source' ], [ 1.5, 'connections used up at the target' ], [ 1.5, 'connection refused' ],
	[ 1.5, 'server connections used up at the source' ], [ 1, 'server connections used up at the target' ], [ 1, 'database connections used up at the source' ],
	[ 0.7, 'database connections used up at the target' ], [ 2, 'temporary files used up' ],
	[ 3, 'out of memory' ], [ $ENV{SOAK_SMALL_DISK} ? 2 : 0, 'disk full' ],
	[ 1, 'source killed' ], [ 1, 'target killed' ], [ 1, 'source restarted' ], [ 0.7, 'target restarted' ], [ 0.4, 'silent' ]);

my @with_standby = (
	[ 12, 'conflict with recovery' ], [ 4, 'replay paused' ], [ 2, 'source promoted' ]);

sub random_fault
{
	my ($h) = @_;
	my @also = $h->has_standby ? @with_standby : [ 1.5, 'source lost' ];
	if ($h->{place}{kind} =~ /of the target/) { push @also, [ 6, 'target lost' ], [ $h->{nodes}{standby} ? 8 : 0, 'target promoted' ] }
	my @wanted = grep { $_->[0] > 0 && $_->[1] =~ /$ENV{SOAK_FAULT}/ } @kinds, @also;
	return SoakChanges::draw(@wanted ? @wanted : (@kinds, @also));
}

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

# Processes that do nothing but take the places of workers, for some seconds.
sub take_all_workers
{
	my ($h) = @_;
	my $busy = "FROM pg_stat_activity WHERE backend_type = 'parallel worker'";
	my $session = SoakSession->new($h->{nodes}{target}, 'postgres');
	$session->must('SET max_parallel_workers = 64; SET max_parallel_workers_per_gather = 64; SET min_parallel_table_scan_size = 0;
		SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET parallel_leader_participation = off');
	$session->send('SELECT count(*) FROM soak_filler WHERE pg_sleep(1) IS NULL');
	SoakModel::becomes($h->{target}, "SELECT count(*) > 8 $busy", 't', 2);
	sleep 0.02;
	return sub {
		$h->{target}->must("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT count(*) FROM soak_filler%' AND pid <> pg_backend_pid()");
		$session->quit;
		SoakModel::becomes($h->{target}, "SELECT count(*) $busy", 0, 10);
	};
}

# Runs of ours get so little memory beyond what they have that some piece of it is refused.
sub limit_memory
{
	my ($h, $run) = @_;
	my @pids = split / /, $h->{target}->must("SELECT coalesce(string_agg(pid::text, ' '), '') FROM pg_stat_activity WHERE $run");
	my %limited;
	for my $pid (@pids)
	{
		my $status = eval { PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") } // next;
		my ($kb) = $status =~ /^VmSize:\s+(\d+)/m or next;
		$limited{$pid} = system("prlimit --pid $pid --as=" . 1024 * ($kb + int(rand(400))) . ': 2>/dev/null') == 0;
	}
	$h->{counts}{'workers with little memory'} += keys %limited;
	return sub { system("prlimit --pid $_ --as=unlimited: 2>/dev/null") for grep { -d "/proc/$_" } keys %limited; };
}

# A file that takes the rest of the small disk.
sub fill_disk
{
	my ($h) = @_;
	my $file = "$h->{small_disk}/full";
	system("dd if=/dev/zero of=$file bs=4096 2>/dev/null");
	return sub { unlink $file; };
}

# A process that takes every place for a session at a server, for a second or two: none of these gives its password.
sub take_all_connections
{
	my ($h, $where) = @_;
	$h->{$_}->ask('SELECT 1') for $h->sessions_of($where);    # ours are there already
	my $port = $h->{nodes}{ $where eq 'source' ? 'served' : $where }->port;
	my $seconds = rand(2);
	pipe(my $full, my $filled) or die "pipe: $!";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		my @sockets;
		while (@sockets < 64)
		{
			my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp') or last;
			print $socket pack('NN', 8 + length("user\0reader\0database\0postgres\0\0"), 3 << 16) . "user\0reader\0database\0postgres\0\0";
			$socket->flush;
			push @sockets, $socket;
			# asked for a password it has a place, refused there is none
			sysread($socket, my $answer, 1) or last;
			last if $answer eq 'E';
		}
		syswrite $filled, scalar(@sockets);
		sleep $seconds;
		POSIX::_exit(0);
	}
	close $filled;
	sysread $full, my $count, 10;
	$h->{counts}{"sessions taken at the $where"} += $count // 0;
	return sub { kill 'KILL', $pid; waitpid $pid, 0; };
}

sub limit_database
{
	my ($h, $where) = @_;
	# of one session more than those that are there, or of none
	$h->{$where}->must('ALTER DATABASE postgres CONNECTION LIMIT ' . one_of(0, 1, 3));
	return sub { $h->{$where}->must('ALTER DATABASE postgres CONNECTION LIMIT -1') };
}

# What does not fit into little memory may not go into files, either.
sub limit_files
{
	my ($h) = @_;
	my $t = one_of(grep { !$_->{only} } @{ $h->{all} });
	$h->change('source', { name => 'many wide rows', sql => "UPDATE $t->{table} SET s = repeat(md5(random()::text), 12), updated_at = " . SoakChanges::stamp($t) }, 'files') if $t;
	SoakStates::note_state($h);
	my %set = (work_mem => q{'64kB'}, hash_mem_multiplier => 1, temp_file_limit => one_of(0, "'64kB'", "'256kB'"));
	$h->{target}->must("ALTER ROLE app SET $_ = $set{$_}") for sort keys %set;
	return sub { $h->{target}->must("ALTER ROLE app RESET $_") for sort keys %set };
}

sub limit_role
{
	my ($h, $where, $role, $limit) = @_;
	$h->{$where}->must("ALTER ROLE $role CONNECTION LIMIT $limit");
	return sub { $h->{$where}->must("ALTER ROLE $role CONNECTION LIMIT -1") };
}

# What has to be there before the flight, so that something can go wrong in it.
sub before_fault
{
	my ($h, $kind, $round) = @_;
	cut_off_source($h, $round) if $kind eq 'source lost';
	cut_off_target($h) if $kind eq 'target lost';
	return;
}

# What goes wrong before the run begins; all else goes wrong in the middle of it.
sub is_early { my ($kind) = @_; return $kind =~ /used up|^disk/; }

# Let something go wrong.  Returns how to make it undone.
sub fault
{
	my ($h, $t, $kind) = @_;
	my ($source, $target, $proxy) = @$h{qw(source target proxy)};
	my $ours = "usename = 'reader'";
	my $run = "backend_type = 'tablesync run'";
	if ($kind eq 'source session ended') { $h->{served}->must("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE $ours") }
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
	elsif ($kind =~ /^(server|database) connections used up at the (\w+)/) { return $1 eq 'server' ? take_all_connections($h, $2) : limit_database($h, $2) }
	elsif ($kind eq 'temporary files used up') { return limit_files($h) }
	elsif ($kind eq 'workers used up') { return take_all_workers($h) }
	elsif ($kind eq 'connections used up at the source') { return limit_role($h, 'source', 'reader', int(rand(2))) }
	elsif ($kind eq 'connections used up at the target') { return limit_role($h, 'target', 'app', 0) }
	elsif ($kind eq 'connection refused') { return limit_role($h, 'source', 'reader', 0) }
	elsif ($kind eq 'out of memory') { return limit_memory($h, $run) }
	elsif ($kind eq 'disk full') { return fill_disk($h) if $h->{small_disk} }
	elsif ($kind eq 'worker killed') { kill_processes($h, 'target', $run) }
	elsif ($kind eq 'source session killed') { kill_processes($h, 'served', $ours) }
	elsif ($kind eq 'conflict with recovery')
	{
		$h->change('source', { name => 'delete', sql => "DELETE FROM $t->{table} WHERE " . SoakChanges::pick($t, 20) }, 'conflict');
		SoakStates::note_state($h);
		$h->change('source', { name => 'vacuum', sql => "VACUUM (INDEX_CLEANUP on) $t->{table}", alone => 1 }, 'conflict');
	}
	elsif ($kind eq 'replay paused')
	{
		$h->{served}->must('SELECT pg_wal_replay_pause()');
		sleep rand(0.3);
		return sub { $h->{served}->must('SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END') };
	}
	elsif ($kind eq 'source lost') { lose_source($h) }
	elsif ($kind eq 'target lost') { lose_target($h) }
	elsif ($kind =~ /^(\w+) promoted/) { $h->promote($1) }
	elsif ($kind =~ /^(\w+) killed/) { kill_postmaster($h, $1 eq 'source' ? 'served' : $1) }
	elsif ($kind =~ /^(\w+) restarted/)
	{
		my $name = $1 eq 'source' ? 'served' : $1;
		$h->{nodes}{$name}->stop(rand() < 0.5 ? 'fast' : 'immediate');
		sleep rand(0.3);
		$h->{nodes}{$name}->start;
		wait_for($h, $name);
	}
	return;
}

1;
