# Changes that sums of core's own hash functions would not show: hashint8, also
# under timestamps, folds 64 bits to 32 before it hashes.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

# the same 32 bits after folding: one in the high half more, and what that
# flips in the low half
my $h = 190_000;
my $flipped = $h ^ ($h + 1);
my $low = 123_456_789;
my $first = $h * 2**32 + $low;
my $second = ($h + 1) * 2**32 + ($low ^ $flipped);
my $stamp = sub { "timestamp '2000-01-01' + $_[0] * interval '1 microsecond'" };
my $hashes = sub { $source->safe_psql('postgres', "SELECT count(DISTINCT $_[0]) FROM (VALUES ($_[1]), ($_[2])) v (x)") };

is($hashes->('timestamp_hash_extended(x, 0)', $stamp->($first), $stamp->($second)), 1, 'two timestamps that hash alike');
is($hashes->('hashint8extended(x, 0)', 1, 2**32), 1, 'two integers that hash alike');
is($hashes->('hash_numeric_extended(x, 0)', '1.0', '1.00'), 1, 'two numerics that hash alike');
is($hashes->('interval_hash_extended(x, 0)', "interval '1 day'", "interval '24 hours'"), 1, 'two intervals that hash alike');

$source->safe_psql('postgres', qq{
	CREATE TABLE stamped (id integer PRIMARY KEY, note text, updated_at timestamp, seen_at timestamptz);
	INSERT INTO stamped VALUES (1, 'old', @{[ $stamp->($first) ]}), (2, 'old', @{[ $stamp->($second) ]});
	CREATE TABLE keyed (id bigint PRIMARY KEY, updated_at timestamp);
	INSERT INTO keyed VALUES (1, '2021-01-01'), (-1, '2021-01-01'), (5, '2021-01-01');
	CREATE TABLE paired (a bigint, b bigint, n bigint, v interval, PRIMARY KEY (a, b));
	INSERT INTO paired VALUES (1, 1, 1, '1 day'), (2, 2, 2, '2 days'), (3, 3, 3, '3 days')});
app_sql($target, "SELECT tablesync_add('stamped', 'src', 'public.stamped', version_column => 'updated_at')");
app_sql($target, "SELECT tablesync_add('stamped_tz', 'stamped_source', version_column => 'seen_at')");
app_sql($target, "SELECT tablesync_add('keyed', 'src', 'public.keyed', version_column => 'updated_at')");
app_sql($target, "SELECT tablesync_add('paired', 'src', 'public.paired')");
is(run_counts($target, 'stamped'), 'succeeded|2|0|0', 'loaded');
is(run_counts($target, 'keyed'), 'succeeded|3|0|0', 'loaded');
is(run_counts($target, 'paired'), 'succeeded|3|0|0', 'loaded');

$source->safe_psql('postgres', qq{
	UPDATE stamped SET note = 'new', updated_at = @{[ $stamp->($second) ]}, seen_at = 'infinity' WHERE id = 1;
	UPDATE stamped SET note = 'new', updated_at = @{[ $stamp->($first) ]}, seen_at = '-infinity' WHERE id = 2});
is(run_counts($target, 'stamped'), 'succeeded|0|2|0', 'a stamp that hashes like the old one');
is_replica($source, $target, 'stamped', 'stamped', 'identical');
is(run_counts($target, 'stamped_tz'), 'succeeded|2|0|0', 'timestamptz: loaded');
$source->safe_psql('postgres', qq{
	UPDATE stamped SET note = 'tz', seen_at = (@{[ $stamp->($first) ]}) AT TIME ZONE 'UTC'});
is(run_counts($target, 'stamped_tz'), 'succeeded|0|2|0', 'timestamptz: from infinity');
$source->safe_psql('postgres', qq{
	UPDATE stamped SET note = 'tz again', seen_at = (@{[ $stamp->($second) ]}) AT TIME ZONE 'UTC'});
is(run_counts($target, 'stamped_tz'), 'succeeded|0|2|0', 'timestamptz: a stamp that hashes like the old one');
is_replica($source, $target, 'stamped', 'stamped_tz', 'identical');

$source->safe_psql('postgres', 'UPDATE keyed SET id = 4294967296 WHERE id = 1; UPDATE keyed SET id = 4294967296::bigint * 5 WHERE id = 5');
is(run_counts($target, 'keyed'), 'succeeded|2|0|2', 'a key that hashes like the old one');
is_replica($source, $target, 'keyed', 'keyed', 'identical');

$source->safe_psql('postgres', q{
	UPDATE paired SET b = 4294967296 WHERE a = 1;
	UPDATE paired SET n = 4294967296::bigint * 2, v = '48 hours' WHERE a = 2;
	-- the values of two rows swapped: the sum over each column stays
	UPDATE paired SET n = CASE a WHEN 3 THEN 1 ELSE 3 END WHERE a IN (1, 3)});
is(run_counts($target, 'paired'), 'succeeded|1|2|1', 'composite key and columns that hash like the old ones');
is_replica($source, $target, 'paired', 'paired', 'identical');

done_testing();
