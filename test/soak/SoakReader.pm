# SoakReader: a process that reads replicas again and again, as an application
# does, each time in one snapshot, and keeps what it has seen.

package SoakReader;

use strict;
use warnings;

use IO::Handle;
use IO::Select;
use List::Util qw(max);
use POSIX ();
use SoakSession;
use Storable qw(store retrieve);
use Time::HiRes qw(sleep);

# node: where it reads, as role app; served: the source as runs read it; folder: for its files
sub start
{
	my ($class, $node, $served, $folder) = @_;
	pipe(my $commands, my $to_child) or die "pipe: $!";
	pipe(my $from_child, my $answers) or die "pipe: $!";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		close $to_child;
		close $from_child;
		$answers->autoflush(1);
		srand($$);
		$SIG{INT} = $SIG{TERM} = 'DEFAULT';
		eval { serve($node, $served, $commands, $answers); 1 } or warn $@;
		POSIX::_exit(0);
	}
	close $commands;
	close $answers;
	$to_child->autoflush(1);
	return bless { pid => $pid, commands => $to_child, answers => $from_child, file => "$folder/reads.$pid" }, $class;
}

# Begin to read: tables by name, each with the SQL that shows its rows.
sub begin
{
	my ($self, $tables) = @_;
	store($tables, "$self->{file}.tables");
	return $self->command("begin $self->{file}");
}

# End it; returns how many reads there were, the private memory of the largest process
# of ours (in kB), the age of the oldest transaction at the source (in seconds), and what
# was seen, in order: rows as text by name of the table, each read that differs from the
# one before.
sub end
{
	my ($self) = @_;
	$self->command('end');
	my $seen = retrieve("$self->{file}.seen");
	unlink "$self->{file}.seen", "$self->{file}.tables";
	return @$seen;
}

# The source has another port from now on.
sub source_is_at
{
	my ($self, $port) = @_;
	store(\$port, "$self->{file}.moving");
	return rename "$self->{file}.moving", "$self->{file}.port";
}

sub command
{
	my ($self, $command) = @_;
	local $SIG{PIPE} = 'IGNORE';
	print { $self->{commands} } "$command\n";
	my $answer = readline($self->{answers}) // die "the reader has gone\n";
	return;
}

sub stop
{
	my ($self) = @_;
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

# One read of all tables.  Undefined if it fails: servers come and go here.
sub read_once
{
	my ($session, $tables, $pause) = @_;
	my @names = sort keys %$tables;
	my ($answer, $ok) = $session->ask("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT s FROM pg_sleep($pause) s WHERE s::text = 'no'"
		  . join('', map { "; SELECT E'\\002$_'; $tables->{$_}" } @names) . '; COMMIT');
	if (!$ok)
	{
		$session->ask('ROLLBACK') if $session->{pid};
		return;
	}
	return { map { /^(\w+)\n?(.*)\z/s ? ($1 => $2 =~ s/\n\z//r) : () } split /^\x02/m, $answer };
}

# Private memory of the largest worker, in kB; a page that it shares with others is none.
sub largest_worker
{
	my ($session) = @_;
	my $largest = 0;
	my ($pids, $ok) = $session->ask("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'tablesync%'");
	for my $pid ($ok ? split /\n/, $pids : ())
	{
		open my $status, '<', "/proc/$pid/status" or next;
		my ($kb) = join('', <$status>) =~ /^RssAnon:\s+(\d+)/m;
		close $status;
		$largest = $kb if ($kb // 0) > $largest;
	}
	return $largest;
}

sub oldest_transaction
{
	my ($session) = @_;
	my ($age, $ok) = $session->ask("SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0) FROM pg_stat_activity WHERE usename = 'reader'");
	return $ok ? $age : 0;
}

# The process itself: ends when "commands" ends.
sub serve
{
	my ($node, $served, $commands, $answers) = @_;
	my $session = SoakSession->new($node, 'app');
	my $source = SoakSession->new($served, 'postgres');
	my $select = IO::Select->new($commands);
	while (defined(my $command = readline $commands))
	{
		my ($file) = $command =~ /^begin (.*)/ or die "what is $command";
		my $tables = retrieve("$file.tables");
		my (@seen, $last);
		my ($reads, $memory, $age, $tries) = (0, 0, 0, 0);
		print {$answers} "begun\n";
		until ($select->can_read(0))
		{
			my $read = read_once($session, $tables, sprintf('%.4f', rand() ** 2 * 0.01));
			my $all = $read && join "\x03", map { "$_\x02$read->{$_}" } sort keys %$read;
			if ($read && ++$reads && (!defined $last || $all ne $last))
			{
				push @seen, $read;
				$last = $all;
			}
			if ($tries++ % 3 == 0)
			{
				$memory = max($memory, largest_worker($session));
				if (-e "$file.port")
				{
					$served->{_port} = ${ retrieve("$file.port") };
					unlink "$file.port";
					$source->quit;
				}
				$age = max($age, oldest_transaction($source));
			}
			sleep 0.002 + rand(0.01);
		}
		readline $commands;
		store([ $reads, $memory, $age, @seen ], "$file.seen");
		print {$answers} "ended\n";
	}
	return;
}

1;
