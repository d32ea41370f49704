#!/usr/bin/perl
# events.pl: what a consumer makes of the changes of a table.  Reads lines of key,
# tab and Debezium's envelope, from whatever brought them.
#
# events.pl rows <table>: the rows that there are after all changes, from empty
# events.pl new <table>: how many rows came (op c), by format and hour
# events.pl changes <table> [ops]: each insert, update and delete (cud), once
# events.pl values <table>: rows that came by a load or a snapshot, each once
# events.pl count <table>: how many changes, and how many of them came again
# events.pl runs: numbers of runs whose messages say that they are complete
# events.pl sort: rows of the source, one JSON object a line, as "rows" prints them

use strict;
use warnings;
use JSON::PP;
use MIME::Base64;

my ($what, $table, $ops) = @ARGV;
$ops //= 'cud';
my $json = JSON::PP->new->canonical->allow_nonref;

my (%seen, %rows, %new, @changes, %values, %runs);
my ($all, $again) = (0, 0);
my $snapshot = '';

# A number of many digits is text to JSON::PP, and a number where an exponent makes it short.
sub plain
{
	my ($value) = @_;
	if (ref $value eq 'HASH') { $_ = plain($_) for values %$value }
	elsif (ref $value eq 'ARRAY') { $_ = plain($_) for @$value }
	elsif (defined $value && !ref $value && $value =~ /^-?\d{20,}$/) { $value += 0 }
	return $value;
}

sub apply
{
	my ($key, $event) = @_;
	my ($op, $lsn) = ($event->{op}, $event->{source}{lsn});

	# A snapshot that is taken again, for want of a slot, says nothing of rows that went meanwhile.
	if ($op eq 't' || $op eq 'r' && $snapshot ne $lsn)
	{
		%rows = ();
		$snapshot = $lsn;
	}
	return if $op eq 't';
	if ($op eq 'd') { delete $rows{$key} }
	else { $rows{$key} = $event->{after} }
	return;
}

sub hour
{
	my ($micros) = @_;
	return 'none' if !defined $micros;
	my (undef, undef, $hour, $day, $month, $year) = gmtime($micros / 1_000_000);
	return sprintf '%04d-%02d-%02d %02d', $year + 1900, $month + 1, $day, $hour;
}

sub message
{
	my ($message) = @_;
	return if $message->{prefix} ne 'tablesync';
	my $run = $json->decode(decode_base64($message->{content}));
	$runs{ $run->{run} }++ if $run->{complete};
	return;
}

sub take
{
	my ($line) = @_;
	my ($key, $value) = split /\t/, $line, 2;
	return if !defined $value || $value !~ /^\{/;    # a tombstone
	my $event = plain($json->decode($value));
	return message($event->{message}) if $event->{op} eq 'm';
	return if ($event->{source}{table} // '') ne ($table // '');
	$key = $json->encode($json->decode($key)) if $key =~ /^\{/;
	$all++;

	# What makes a consumer idempotent: the same change is at the same place of the log.
	if ($seen{"$event->{source}{lsn} $event->{op} $key"}++) { $again++; return }
	apply($key, $event);
	my ($op, $after) = @$event{qw(op after)};
	$values{ $json->encode($after) }++ if $op eq 'r' || $op eq 'c';
	$new{ ($after->{format} // 'none') . "\t" . hour($after->{updated_at}) }++ if $op eq 'c';
	push @changes, join "\t", $key, $op, map { $json->encode($_) } @$event{qw(before after)} if $op =~ /^[$ops]$/;
	return;
}

if ($what eq 'sort')
{
	print sort map { $json->encode($json->decode($_)) . "\n" } <STDIN>;
	exit;
}
while (my $line = <STDIN>)
{
	last if $line !~ /\n\z/;    # still being written
	chomp $line;
	take($line);
}
if ($what eq 'rows') { print sort map { $json->encode($_) . "\n" } values %rows }
elsif ($what eq 'new') { print map { "$_\t$new{$_}\n" } sort keys %new }
elsif ($what eq 'changes') { print sort map { "$_\n" } @changes }
elsif ($what eq 'values') { print sort map { "$_\n" } keys %values }
elsif ($what eq 'runs') { print map { "$_\n" } sort { $a <=> $b } keys %runs }
elsif ($what eq 'count') { print "$all $again\n" }
else { die "events.pl: what is $what?\n" }
