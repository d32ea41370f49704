# SoakLosses: a server that is lost with what it had committed last.  Somebody has a
# copy of it that gets nothing any more; the server goes on, and runs with it; then
# it is gone, and the copy takes its place.

package SoakLosses;

use strict;
use warnings;

use Exporter 'import';
use SoakChanges;
use SoakModel;
use SoakStates;
use SoakTables;

our @EXPORT = qw(cut_off_source lose_source check_lost cut_off_target lose_target check_retold);

# The newest row of each replica's successful runs: what the source's counter was.
sub horizon
{
	my ($h, $t) = @_;
	return $h->{target}->must("SELECT source_horizon FROM tablesync.run WHERE replica = '$t->{table}'::regclass AND status = 'succeeded' AND source_horizon IS NOT NULL ORDER BY run_id DESC LIMIT 1");
}

# The first number of a transaction that is none yet; asking uses none up.
sub counter { my ($h) = @_; return $h->{source}->must('SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint & 4294967295'); }

# From here on, what is committed at the source will be lost; runs read some of it.
sub cut_off_source
{
	my ($h, $round) = @_;
	$h->{place}->cut_off('source');
	for my $i (1 .. 1 + int(rand(4)))
	{
		my $name = "$round.lost.$i";
		next if !$h->begins($name);
		my $t = one_of(@{ $h->{all} });
		my $change = source_change($h->{source}, $t);
		next if $change->{excuse} || $change->{shape};
		push @{ $h->{lost_changes} }, [ $change, $name ] if $h->change('source', $change, $name);
	}
	$h->seed("$round.lost");
	if (rand() < 0.6)
	{
		my $sql = 'SELECT replica, status, message FROM tablesync_run()';
		my ($answer) = $h->{app}->ask($sql);
		$h->note("-- at the target, what will be lost is read\n$sql;\n-- " . $answer =~ s/\n/\n-- /gr);
	}
	return;
}

# The copy takes the place of the source, which has another state now.
sub lose_source
{
	my ($h) = @_;
	$h->note('-- the source is lost');
	$h->{lost} = { map { $_->{name} => { horizon => horizon($h, $_) } } @{ $h->{all} } };
	$h->{lost}{$_->{name}}{keys} = keys_of($h->{source}, $_, $_->{filter}) for @{ $h->{all} };
	SoakModel::check_logs($h);
	$h->promote('source');
	note_state($h);
	# the same rows get other values, in transactions of the same numbers
	my $changes = delete $h->{lost_changes} // [];
	for (rand() < 0.5 ? @$changes : ())
	{
		my ($change, $name) = @$_;
		# later: by version nobody sees other values under the same stamp
		my $sql = $change->{sql} =~ s/(timestamp '2020-01-01' \+ interval ')(-?\d+) s'/sprintf("%s%d s'", $1, $2 + 100_000)/ger;
		note_state($h) if $h->change('source', { %$change, sql => $sql }, "again $name");
	}
	return;
}

# Runs that nobody has forced delete and update nothing, if the source's counter tells that it went back; then they are told to.
sub check_lost
{
	my ($h, $before, $excused) = @_;
	my $lost = delete $h->{lost} or return;
	my $now = counter($h);
	for my $t (@{ $h->{all} })
	{
		next if $h->{shaped} || $excused || !$t->{ran};
		my $horizon = $lost->{ $t->{name} }{horizon};
		my $keys = $before->{ $t->{name} }{keys};
		my $source_keys = keys_of($h->{source}, $t, $t->{filter});
		my $behind = $horizon ne '' && $now < $horizon;
		$h->{counts}{ 'sources that were lost: ' . ($behind ? 'the counter tells' : 'the counter does not tell') }++;
		if ($behind)
		{
			# in the replica before, at the source until it was lost
			my $after = keys_of($h->{target}, $t);
			my @gone = grep { !$source_keys->{$_} && !$after->{$_} && $lost->{ $t->{name} }{keys}{$_} } sort keys %$keys;
			violation("$t->{table}: the source has gone back in time (counter $now, was $horizon), and rows were deleted: @gone") if @gone;
		}
		my ($wanted, $had) = (wanted_rows($h->{source}, $t), replica_rows($h->{source}, $h->{target}, $t));
		my %has = map { $_ => 1 } split /\n/, $wanted;
		my $only_inserts = !grep { !$has{$_} } split /\n/, $had;
		my $sql = "SELECT status, inserted, updated, deleted FROM tablesync_run('$t->{table}')";
		my ($answer, $ok) = $h->{app}->ask($sql);
		$h->note("-- the source is another one, at the target\n$sql;\n-- " . $answer =~ s/\n/\n-- /gr);
		my $got = replica_rows($h->{source}, $h->{target}, $t);
		my $told = $answer =~ /has gone back in time/;
		$h->{counts}{ 'runs of a source that was lost: ' . ($ok ? $only_inserts ? 'nothing to be lost here' : 'succeeded' : $told ? 'refused' : 'other errors') }++;
		violation("$t->{table}: the source has gone back in time (counter $now, was $horizon), and a run deletes or updates: $answer") if $ok && $behind && !$only_inserts && !$t->{group};
		violation("$t->{table}: a run of a source that was lost fails: $answer") if !$ok && !$told;
		violation("$t->{table}: a run was refused, and has changed the replica. " . difference($had, $got)) if !$ok && $got ne $had;
		violation("$t->{table}: a run of a source that was lost has succeeded, and the replica is not the source. " . difference($wanted, $got)) if $ok && $got ne $wanted;
		check_alerts($h, $t);
	}
	return;
}

# What a feed says of its changes since the replica was last looked at.
sub told
{
	my ($h, $t) = @_;
	return {} if !$t->{feed} || !defined $t->{base};
	my ($told, $ok) = $h->{target}->ask("SELECT position || ' ' || run_id || ' ' || coalesce(source_time::text, '-'), md5(op || coalesce(key::text, '') || coalesce(after::text, '')) FROM tablesync_changes('$t->{table}', $t->{base})");
	return $ok ? { map { /^(.*)\|(\w+)$/ ? ($1 => $2) : () } split /\n/, $told } : {};
}

# From here on, what runs do will be lost with the target.
sub cut_off_target
{
	my ($h) = @_;
	$h->{place}->cut_off('target');
	return;
}

sub lose_target
{
	my ($h) = @_;
	$h->note('-- the target is lost');
	my $told = { map { $_->{name} => told($h, $_) } @{ $h->{all} } };
	$h->promote('target');
	$h->{retold} = $told;
	$h->{last_run} = $h->{target}->must('SELECT coalesce(max(run_id), 0) FROM tablesync.run');
	return;
}

# Nothing of the lost runs is there.  Then, after the next run: a change with position, run and instant of a lost one is that one.
sub check_retold
{
	my ($h) = @_;
	my $lost = delete $h->{retold} or return;
	for my $t (@{ $h->{all} })
	{
		my ($was, $is) = ($lost->{ $t->{name} }, told($h, $t));
		my @same = grep { exists $is->{$_} } keys %$was;
		my @other = grep { $is->{$_} ne $was->{$_} } @same;
		violation("$t->{table}_changes: a lost run has told something else with the same position, run and instant: @other") if @other;
		my $lost_positions = keys(%$was) - @same;
		$h->{counts}{'changes that were lost with the target'} += $lost_positions;
	}
	return;
}

1;
