# SoakSession: a psql that stays open.  A statement takes a millisecond instead of
# the twenty that a new psql takes, and the session may die without harm.

package SoakSession;

use strict;
use warnings;

use Errno;
use IO::Select;
use IPC::Open2;
use Time::HiRes qw(time);

# Longest time for one answer, in seconds: longer is a hang.
our $patience = 120;

# role: who connects to database postgres of a node
sub new
{
	my ($class, $node, $role) = @_;
	return bless { node => $node, role => $role, asked => 0, buffer => '' }, $class;
}

sub connect_to
{
	my ($self) = @_;
	local $ENV{PGAPPNAME} = 'soak';
	$self->{pid} = open2($self->{out}, $self->{in}, 'sh', '-c', 'exec psql "$@" 2>&1', 'psql', '-XAtq', '-U', $self->{role}, '-d',
		$self->{node}->connstr('postgres'));
	$self->{in}->autoflush(1);
	$self->{buffer} = '';
	$self->send(q{SET extra_float_digits = 3; SET timezone = 'UTC'; SET client_min_messages = warning});
	$self->receive;
	return;
}

# Send SQL without waiting for what it says.
sub send
{
	my ($self, $sql) = @_;
	$self->connect_to if !$self->{pid};
	return if !$self->{pid};    # nobody is there
	local $SIG{PIPE} = 'IGNORE';
	$self->{asked}++;
	print { $self->{in} } "$sql\n;\n\\echo end of $self->{asked}\n";
	return;
}

# Is the answer there?  It may be one that psql has ended.
sub ready
{
	my ($self) = @_;
	return 1 if !$self->{pid};
	while (IO::Select->new($self->{out})->can_read(0))
	{
		sysread($self->{out}, $self->{buffer}, 1 << 20, length $self->{buffer}) or return 1;
	}
	return $self->{buffer} =~ /(^|\n)end of $self->{asked}\n/;
}

# The answer to what was sent, and whether it has no error.  A server that has gone is an error.
sub receive
{
	my ($self) = @_;
	return ("FATAL:  no connection", 0) if !$self->{pid};
	my $end = "end of $self->{asked}\n";
	my $until = time + $patience;
	my $select = IO::Select->new($self->{out});
	while ($self->{buffer} !~ /(^|\n)\Q$end\E/)
	{
		my $left = $until - time;
		my $ready = $left > 0 && $select->can_read($left);
		next if !$ready && $!{EINTR} && $left > 0;
		if (!$ready)
		{
			$self->quit;
			die "no answer within $patience s\n";
		}
		if (!sysread($self->{out}, $self->{buffer}, 1 << 20, length $self->{buffer}))
		{
			my $rest = $self->{buffer};
			$self->quit;
			return ("$rest\nFATAL:  psql has ended", 0);
		}
	}
	my $answer = $self->{buffer} =~ s/(^|\n)\Q$end\E.*//sr;
	$self->{buffer} = '';
	$self->quit if $answer =~ /^(FATAL: |WARNING:  terminating connection|server closed the connection|The connection to the server)/m;
	return ($answer, $answer !~ /^(ERROR: |FATAL: |PANIC: |WARNING:  terminating connection|psql: error|server closed the connection|connection to server|You are currently not connected)/m);
}

sub ask
{
	my ($self, $sql) = @_;
	$self->send($sql);
	return $self->receive;
}

# Likewise, where an error is none of what is tested.
sub must
{
	my ($self, $sql) = @_;
	my ($answer, $ok) = $self->ask($sql);
	die "$sql\n$answer\n" if !$ok;
	return $answer;
}

# Interrupt whoever waits for it, as by a terminal that is closed.
sub kill_client
{
	my ($self) = @_;
	kill 'KILL', $self->{pid} if $self->{pid};
	return $self->quit;
}

sub quit
{
	my ($self) = @_;
	return if !$self->{pid};
	local $SIG{PIPE} = 'IGNORE';
	close $self->{in};
	close $self->{out};
	kill 'TERM', $self->{pid};
	waitpid $self->{pid}, 0;
	undef $self->{pid};
	return;
}

1;
