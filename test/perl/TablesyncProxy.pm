# TablesyncProxy: a TCP proxy that puts distance between two servers, and counts.
#
# What arrives is passed on half a round trip later, in both directions.  A round
# trip is counted when the client speaks again after the server has; that of TCP's
# own handshake is counted with each connection.

package TablesyncProxy;

use strict;
use warnings;

use Errno qw(EINTR);
use Exporter 'import';
use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw(time sleep);

our @EXPORT_OK = qw(serve);

# Start a proxy for a port of this machine; delay in milliseconds for a round trip.
sub start
{
	my ($class, $port, $delay) = @_;
	my $listener = IO::Socket::INET->new(Listen => 128, LocalAddr => '127.0.0.1', ReuseAddr => 1)
	  or die "could not listen: $!";
	pipe(my $reader, my $writer) or die "pipe: $!";
	my ($command_reader, $command_writer);
	pipe($command_reader, $command_writer) or die "pipe: $!";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		close $reader;
		close $command_writer;
		$writer->autoflush(1);
		eval { serve($listener, $port, $delay / 2000, $command_reader, $writer); 1 } or warn $@;
		require POSIX;
		POSIX::_exit(0);
	}
	close $writer;
	close $command_reader;
	$command_writer->autoflush(1);
	return bless {
		port => $listener->sockport, pid => $pid, commands => $command_writer, answers => $reader
	}, $class;
}

sub port { return $_[0]{port}; }

sub ask
{
	my ($self, $command) = @_;
	print { $self->{commands} } "$command\n";
	my $line = readline($self->{answers}) // die "the proxy has ended";
	chomp $line;
	return split / /, $line;
}

# Round trips, connections since the last call.
sub counts { return $_[0]->ask('counts'); }

# Cut all connections.
sub cut { return $_[0]->ask('cut'); }

sub stop
{
	my ($self) = @_;
	close $self->{commands};
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
}

# The proxy itself: ends when "commands" ends.  Delay in seconds for one way.
sub serve
{
	my ($listener, $port, $delay, $commands, $answers) = @_;
	my $select = IO::Select->new($listener, $commands);
	my (%other, %is_client, %spoke, @waiting);
	my ($round_trips, $connections) = (0, 0);
	my $drop = sub {
		my ($socket) = @_;
		my $peer = delete $other{$socket};
		for my $s (grep { defined } $socket, $peer)
		{
			$select->remove($s);
			delete $other{$s};
			delete $is_client{$s};
			delete $spoke{$s};
			close $s;
		}
	};
	local $SIG{PIPE} = 'IGNORE';
	for (;;)
	{
		my $timeout = @waiting ? $waiting[0][0] - time : undef;
		my @ready = $select->can_read(defined $timeout && $timeout < 0 ? 0 : $timeout);
		my $now = time;
		while (@waiting && $waiting[0][0] <= $now)
		{
			my (undef, $to, $bytes) = @{ shift @waiting };
			next unless $other{$to};
			if ($bytes eq '') { $drop->($to); next; }
			while (length $bytes)
			{
				my $n = syswrite($to, $bytes);
				last unless defined $n || $! == EINTR;
				substr($bytes, 0, $n // 0, '');
			}
		}
		for my $socket (@ready)
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp');
				if (!$server) { close $client; next; }
				for my $s ($client, $server) { setsockopt($s, 6, 1, 1); }    # TCP_NODELAY
				@other{ $client, $server } = ($server, $client);
				$is_client{$client} = 1;
				$spoke{$client} = 'server';
				$connections++;
				$round_trips++;
				$select->add($client, $server);
				next;
			}
			if ($socket == $commands)
			{
				my $n = sysread($commands, my $command, 100);
				return if !$n;
				if ($command =~ /cut/) { $drop->($_) for grep { $is_client{$_} && $other{$_} } $select->handles; }
				print $answers "$round_trips $connections\n";
				($round_trips, $connections) = (0, 0);
				next;
			}
			next unless $other{$socket};
			my $to = $other{$socket};
			my $client = $is_client{$socket} ? $socket : $to;
			my $n = sysread($socket, my $bytes, 65536);
			$bytes = '' unless $n;
			my $who = $client == $socket ? 'client' : 'server';
			$round_trips++ if $who eq 'client' && $spoke{$client} eq 'server' && $bytes ne '' && $bytes  ne "X\x00\x00\x00\x04";
			$spoke{$client} = $who;
			$select->remove($socket) if $bytes eq '';
			push @waiting, [ $now + $delay, $to, $bytes ];
		}
	}
}

1;
