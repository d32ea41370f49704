# SoakStates: the states that the source has had since a flight began, and whether
# what readers of the replicas have seen is made of them.
#
# The soak makes all changes itself, one after the other, and reads the source
# after each.  So the list of states is complete.

package SoakStates;

use strict;
use warnings;

use Exporter 'import';
use SoakModel;
use SoakTables;

our @EXPORT = qw(begin_states note_state begin_reads end_reads keys_meanwhile);

# Rows of all tables at one instant, and a time that is not before it.
sub read_source
{
	my ($h) = @_;
	my $tables = { map { $_->{name} => keyed_sql($h->{source}, $_, 'source') } @{ $h->{all} } };
	my $rows = SoakReader::read_once($h->{source}, $tables, 0) // return;
	return { at => $h->{source}->must('SELECT clock_timestamp()'), rows => $rows };
}

sub begin_states
{
	my ($h) = @_;
	$h->{states} = [ read_source($h) ];
	return;
}

# To be called after whatever has committed at the source.
sub note_state
{
	my ($h) = @_;
	return if !$h->{states} || $h->{shaped};
	my $state = read_source($h);
	if (!$state)
	{
		# we do not know: nothing can be said of this flight
		delete $h->{states};
		return;
	}
	my $last = $h->{states}[-1];
	return if !grep { $state->{rows}{$_} ne $last->{rows}{$_} } keys %{ $state->{rows} };
	push @{ $h->{states} }, $state;
	return;
}

# Keys that a table has had in the states of the flight that has ended; nothing if they are unknown.
sub keys_meanwhile
{
	my ($h, $t) = @_;
	return map { by_key($_->{rows}{ $t->{name} }) } @{ $h->{states_before} // [] };
}

sub sql_of_replicas { my ($h) = @_; return { map { $_->{name} => keyed_sql($h->{source}, $_, 'replica') } @{ $h->{all} } }; }

# Let the reader begin.
sub begin_reads
{
	my ($h) = @_;
	begin_states($h);
	my $sql = sql_of_replicas($h);
	$h->{first_read} = SoakReader::read_once($h->{app}, $sql, 0);
	# columns that are still to come
	return delete $h->{states} if !$h->{first_read};
	$h->{was_loaded} = { map { $_->{name} => $h->{target}->must("SELECT loaded FROM tablesync.replica WHERE replica = '$_->{table}'::regclass") eq 't' } @{ $h->{all} } };
	$h->{reader}->begin($sql);
	$h->{reading} = 1;
	return;
}

# Let it end, and look at what it has seen.  written: the name of a table whose replica somebody has written to
sub end_reads
{
	my ($h, $written) = @_;
	return if !delete $h->{reading};
	my ($count, $memory, $age, @seen) = $h->{reader}->end;
	violation("a worker had $memory kB of private memory") if $memory > 64 * 1024;
	# max_snapshot_age, then a statement until its timeout
	violation("a transaction at the source was $age s old") if $age > 10;
	$h->{counts}{'largest worker, in kB'} = $memory if $memory > ($h->{counts}{'largest worker, in kB'} // 0);
	$h->{counts}{'oldest transaction at the source, in s'} = $age if $age > ($h->{counts}{'oldest transaction at the source, in s'} // 0);
	my $states = $h->{states_before} = delete $h->{states};
	return if !$states || $h->{shaped};
	my $last = SoakReader::read_once($h->{app}, sql_of_replicas($h), 0) // return;
	$h->{counts}{'reads of replicas'} += $count;
	$h->{counts}{'reads of replicas that differ from the one before'} += @seen;
	$h->{counts}{'states of sources meanwhile'} += @$states;
	my @reads = ($h->{first_read}, @seen, $last);
	my @tables = grep { $_->{name} ne ($written // '') } @{ $h->{all} };
	my (@together, @alone);
	for my $t (@tables)
	{
		my $mode = mode_of($h, $t);
		if ($mode eq 'snapshot') { push @{ $t->{group} ? \@together : \@alone }, $t }
		else { check_rows($h, $t, $states, \@reads, $mode) }
		check_instant($h, $t, $states, $last, $mode);
	}
	check_instants($h, [$_], $states, \@reads) for @alone;
	check_instants($h, \@together, $states, \@reads) if @together;
	return;
}

# How runs since the last look have read the source: snapshot, chunk or load.
sub mode_of
{
	my ($h, $t) = @_;
	return 'load' if !$h->{was_loaded}{ $t->{name} };
	my $chunks = $h->{target}->must("SELECT count(*) FROM tablesync_runs WHERE run_id > $h->{last_run} AND replica = '$t->{table}'::regclass AND consistency = 'chunk'");
	return $chunks ? 'chunk' : 'snapshot';
}

# Reads are the replicas as they were, and then states of the source, in their order.
sub check_instants
{
	my ($h, $tables, $states, $reads) = @_;
	my @names = map { $_->{name} } @$tables;
	my $text = sub { my ($rows) = @_; return join "\x02", map { $rows->{$_} } @names };
	my @possible = map { $text->($_) } $reads->[0], map { $_->{rows} } @$states;
	my $at = 0;
	for my $i (1 .. $#$reads)
	{
		my $got = $text->($reads->[$i]);
		my ($found) = grep { $possible[$_] eq $got } $at .. $#possible;
		if (!defined $found)
		{
			my ($earlier) = grep { $possible[$_] eq $got } 0 .. $at - 1;
			violation("a reader of @names (read $i of $#$reads) goes back, from state $at to state $earlier of $#possible") if defined $earlier;
			my @told = sort { length $a <=> length $b } map { "\nBeside state $_: " . difference($possible[$_] =~ s/\x02/\n/gr, $got =~ s/\x02/\n/gr) } $at .. $#possible;
			violation("what a reader of @names has seen (read $i of $#$reads) is none of the $#possible states since state $at. " . join('', @told[ 0 .. ($#told > 1 ? 1 : $#told) ]));
		}
		$h->{counts}{'states that readers met'}++ if $found != $at;
		$at = $found;
	}
	return;
}

# Rows by key.
sub by_key { my ($rows) = @_; return { map { /^([^\x01]*)\x01(.*)\z/s } split /\n/, $rows }; }

# Each row that was seen is one that its key had, and what was there all the time was seen.
sub check_rows
{
	my ($h, $t, $states, $reads, $mode) = @_;
	my $name = $t->{name};
	my @versions = map { by_key($_) } $reads->[0]{$name}, map { $_->{rows}{$name} } @$states;
	my %had;
	for my $versions (@versions) { $had{$_}{ $versions->{$_} } = 1 for keys %$versions; }
	my @always = grep { my $key = $_; keys %{ $had{$key} } == 1 && !grep { !exists $_->{$key} } @versions } keys %had;
	for my $i (1 .. $#$reads)
	{
		my $seen = by_key($reads->[$i]{$name});
		my $lines = () = $reads->[$i]{$name} =~ /\x01/g;
		violation("a reader of $t->{table} has seen a key twice: $lines rows, " . keys(%$seen) . ' keys') if $lines != keys %$seen;
		for my $key (sort keys %$seen)
		{
			violation("a reader of $t->{table} ($mode, read $i of $#$reads) has seen a row that its key never had: $seen->{$key}\nBut: " . join("\n", sort keys %{ $had{$key} // {} }))
			  if !$had{$key}{ $seen->{$key} };
		}
		next if $mode eq 'load';
		my @missing = grep { !exists $seen->{$_} } @always;
		violation("a reader of $t->{table} (read $i of $#$reads) has not seen rows that were there all the time: @missing") if @missing;
	}
	return;
}

# What was committed before a run began to read the source is in the replica.
sub check_instant
{
	my ($h, $t, $states, $last, $mode) = @_;
	my $name = $t->{name};
	return if $h->{place}{kind} =~ /of the source/;    # what had arrived there is unknown
	# a row that was deleted and inserted again is left to the next run
	my $instant = $h->{target}->must("SELECT CASE WHEN coalesce(message, '') !~ 'deleted and inserted again' THEN source_instant END FROM tablesync_runs WHERE run_id > $h->{last_run} AND replica = '$t->{table}'::regclass
		AND status = 'succeeded' AND kind <> 'verify' ORDER BY run_id DESC LIMIT 1");
	return if $instant eq '';
	my $before = grep { $_->{at} lt $instant } @$states;
	my @since = map { $_->{rows}{$name} } @$states[ ($before > 0 ? $before - 1 : 0) .. $#$states ];
	$h->{counts}{'instants of runs'}++;
	return if grep { $_ eq $last->{$name} } @since;
	violation("$t->{table}: what was committed before $instant, when the run began to read, is not in the replica. " . difference($since[0], $last->{$name})) if $mode eq 'snapshot';
	my @versions = map { by_key($_) } @since;
	my $seen = by_key($last->{$name});
	my %all = map { %$_ } @versions, $seen;
	for my $key (sort keys %all)
	{
		my $row = $seen->{$key};
		violation("$t->{table} ($mode): what was committed before $instant is not in the replica: " . ($row // "no row $key"))
		  if !grep { defined $row ? defined $_->{$key} && $_->{$key} eq $row : !exists $_->{$key} } @versions;
	}
	return;
}

1;
