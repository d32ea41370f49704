# SoakProxy: a TCP proxy between target and source that does what networks do:
# cuts connections after so many bytes, says nothing for a while, takes its time.

package SoakProxy;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw(time sleep);

sub start
{
	my ($class, $port) = @_;
	my $listener = IO::Socket::INET->new(Listen => 128, LocalAddr => '127.0.0.1', ReuseAddr => 1) or die "could not listen: $!";
	pipe(my $reader, my $writer) or die "pipe: $!";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		close $writer;
		eval { serve($listener, $port, $reader); 1 } or warn $@;
		require POSIX;
		POSIX::_exit(0);
	}
	close $reader;
	$writer->autoflush(1);
	return bless { port => $listener->sockport, pid => $pid, commands => $writer }, $class;
}

sub port { return $_[0]{port}; }

# port N (where the source is from now on), cut N (after N bytes from the source), freeze, thaw, delay MILLISECONDS (for each piece that the source sends)
sub command
{
	my ($self, $command) = @_;
	local $SIG{PIPE} = 'IGNORE';
	print { $self->{commands} } "$command\n";
	return;
}

sub stop
{
	my ($self) = @_;
	close $self->{commands};
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

# The proxy itself: ends when "commands" ends.
sub serve
{
	my ($listener, $port, $commands) = @_;
	my $all = IO::Select->new($listener, $commands);
	my $only_commands = IO::Select->new($commands);
	my (%other, %is_client);
	my ($frozen, $bytes_left, $delay) = (0, undef, 0);
	my $drop = sub {
		my @both = grep { defined } ($_[0], $other{ $_[0] });
		for my $s (@both)
		{
			$all->remove($s);
			delete $other{$s};
			delete $is_client{$s};
			close $s;
		}
	};
	local $SIG{PIPE} = 'IGNORE';
	for (;;)
	{
		my @ready = ($frozen ? $only_commands : $all)->can_read;
		for my $socket (@ready)
		{
			if ($socket == $commands)
			{
				sysread($commands, my $lines, 1000) or return;
				for my $command (split /\n/, $lines)
				{
					$port = $1 if $command =~ /^port (\d+)/;
					$frozen = 1 if $command eq 'freeze';
					$frozen = 0 if $command eq 'thaw';
					$bytes_left = $1 if $command =~ /^cut (\d+)/;
					$delay = $1 / 1000 if $command =~ /^delay (\d+)/;
					undef $bytes_left if $command eq 'whole';
				}
				last;
			}
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp');
				if (!$server) { close $client; next; }
				setsockopt($_, 6, 1, 1) for $client, $server;    # TCP_NODELAY
				@other{ $client, $server } = ($server, $client);
				$is_client{$client} = 1;
				$all->add($client, $server);
				next;
			}
			my $to = $other{$socket} or next;
			if (!sysread($socket, my $bytes, 65536)) { $drop->($socket); }
			else
			{
				if (!$is_client{$socket})
				{
					sleep $delay if $delay;
					if (defined $bytes_left)
					{
						$bytes = substr($bytes, 0, $bytes_left) if length $bytes > $bytes_left;
						$bytes_left -= length $bytes;
					}
				}
				while (length $bytes)
				{
					my $n = syswrite($to, $bytes) // last;
					substr($bytes, 0, $n, '');
				}
				if (defined $bytes_left && $bytes_left <= 0)
				{
					undef $bytes_left;
					$drop->($_) for grep { ref && $is_client{$_} } $all->handles;
				}
			}
		}
	}
	return;
}

1;
