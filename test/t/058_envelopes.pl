# Values of each type in tablesync_envelopes, as Debezium's connector writes them
# by default, and in tablesync_changes; whatever the session has set.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

# type, value as SQL, in an envelope, in a change
my @values = (
	[ 'boolean', 'true', 'true', 'true' ],
	[ 'smallint', '-32768', '-32768', '-32768' ],
	[ 'integer', '2147483647', '2147483647', '2147483647' ],
	[ 'bigint', '-9223372036854775808', '-9223372036854775808', '-9223372036854775808' ],
	[ 'oid', '4294967295', '4294967295', '"4294967295"' ],
	[ 'real', '0.1', '0.1', '0.1' ],
	[ 'double precision', q{'NaN'}, '"NaN"', '"NaN"' ],
	[ 'double precision', q{'-Infinity'}, '"-Infinity"', '"-Infinity"' ],
	[ 'double precision', '0.1::float8 + 0.2::float8', '0.30000000000000004', '0.30000000000000004' ],
	[ 'numeric(10,2)', '123.45', '"MDk="', '123.45' ],
	[ 'numeric(10,2)', '-0.01', '"/w=="', '-0.01' ],
	[ 'numeric(10,2)', '0', '"AA=="', '0.00' ],
	[ 'numeric(10,2)', '1.28', '"AIA="', '1.28' ],
	[ 'numeric(10,2)', '-1.28', '"gA=="', '-1.28' ],
	[ 'numeric(10,2)', '-1.29', '"/38="', '-1.29' ],
	[ 'numeric(10,2)', q{'NaN'}, '"NaN"', '"NaN"' ],
	[ 'numeric(30)', '123456789012345678901234567890', '"AY7pD/bDc+DuTj8K0g=="', '123456789012345678901234567890' ],
	[ 'numeric(5,-2)', '12300', '"ew=="', '12300' ],
	[ 'numeric', '1.50', '{"scale": 1, "value": "Dw=="}', '1.50' ],
	[ 'numeric', '0.00', '{"scale": 0, "value": "AA=="}', '0.00' ],
	[ 'numeric', '1000', '{"scale": 0, "value": "A+g="}', '1000' ],
	[ 'numeric', '-3', '{"scale": 0, "value": "/Q=="}', '-3' ],
	[ 'numeric', q{'NaN'}, '"NaN"', '"NaN"' ],
	[ 'money', q{'$12.34'}, '"BNI="', '"$12.34"' ],
	[ 'text', q{E'a"\\\\\n\u00e4'}, qq{"a\\"\\\\\\n\xc3\xa4"}, qq{"a\\"\\\\\\n\xc3\xa4"} ],
	[ 'varchar(9)', q{'v'}, '"v"', '"v"' ],
	[ 'char(4)', q{'ab'}, '"ab  "', '"ab  "' ],
	[ '"char"', q{'x'}, '"x"', '"x"' ],
	[ 'name', q{'n'}, '"n"', '"n"' ],
	[ 'bytea', q{'\xdeadbeef'}, '"3q2+7w=="', '"\\\\xdeadbeef"' ],
	[ 'bytea', q{decode(repeat('00', 90), 'hex')}, '"' . 'A' x 120 . '"', '"\\\\x' . '0' x 180 . '"' ],
	[ 'json', q{'{"a":  1, "a": "\u0000"}'}, '"{\"a\":  1, \"a\": \"\\\\u0000\"}"', '"{\"a\":  1, \"a\": \"\\\\u0000\"}"' ],
	[ 'jsonb', q{'{"a": [1.50, null]}'}, '"{\"a\": [1.50, null]}"', '{"a": [1.50, null]}' ],
	[ 'uuid', q{'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'}, '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"', '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"' ],
	[ 'xml', q{'<a/>'}, '"<a/>"', '"<a/>"' ],
	[ 'inet', q{'192.168.1.0/24'}, '"192.168.1.0/24"', '"192.168.1.0/24"' ],
	[ 'bit', q{B'1'}, 'true', '"1"' ],
	[ 'bit(10)', q{B'1000000001'}, '"AQI="', '"1000000001"' ],
	[ 'bit(10)', q{B'0000000001'}, '"AQ=="', '"0000000001"' ],
	[ 'bit(10)', q{B'0000000000'}, '""', '"0000000000"' ],
	[ 'bit varying(9)', q{B'101'}, '"BQ=="', '"101"' ],
	[ 'date', q{'1970-01-02'}, '1', '"1970-01-02"' ],
	[ 'date', q{'0044-03-15 BC'}, '-735160', '"0044-03-15 BC"' ],
	[ 'date', q{'infinity'}, '"infinity"', '"infinity"' ],
	[ 'time', q{'00:00:01.5'}, '1500000', '"00:00:01.5"' ],
	[ 'time(3)', q{'24:00'}, '86400000', '"24:00:00"' ],
	[ 'timetz', q{'10:00:00.25+02'}, '"08:00:00.25Z"', '"10:00:00.25+02"' ],
	[ 'timestamp', q{'2018-06-20 13:37:03.123456'}, '1529501823123456', '"2018-06-20T13:37:03.123456"' ],
	[ 'timestamp(3)', q{'2018-06-20 13:37:03.123'}, '1529501823123', '"2018-06-20T13:37:03.123"' ],
	[ 'timestamp', q{'1969-12-31 23:59:59.999999'}, '-1', '"1969-12-31T23:59:59.999999"' ],
	[ 'timestamp', q{'294276-12-31 23:59:59'}, '9224318015999000000', '"294276-12-31T23:59:59"' ],
	[ 'timestamp', q{'-infinity'}, '"-infinity"', '"-infinity"' ],
	[ 'timestamptz', q{'2018-06-20 13:37:03.5+02'}, '"2018-06-20T11:37:03.500000Z"', '"2018-06-20T11:37:03.5+00:00"' ],
	[ 'timestamptz', q{'0044-03-15 00:00:00+00 BC'}, '"-0043-03-15T00:00:00.000000Z"', '"0044-03-15T00:00:00+00:00 BC"' ],
	[ 'timestamptz', q{'12000-01-01 00:00:00+00'}, '"+12000-01-01T00:00:00.000000Z"', '"12000-01-01T00:00:00+00:00"' ],
	[ 'interval', q{'1 year 2 months 3 days 04:05:06.789'}, '37091106789000', '"1 year 2 mons 3 days 04:05:06.789"' ],
	[ 'interval', q{'-1 day'}, '-86400000000', '"-1 days"' ],
	[ 'interval', q{'178000000 years'}, '5617252800000000000000', '"178000000 years"' ],
	[ 'point', q{'(1.5,-2)'}, '{"x": 1.5, "y": -2, "wkb": "AQEAAAAAAAAAAAD4PwAAAAAAAADA", "srid": null}', '"(1.5,-2)"' ],
	[ 'int4range', q{'[1,5)'}, '"[1,5)"', '"[1,5)"' ],
	[ 'tstzrange', q{'[2021-01-01 00:00+00,)'}, '"[\"2021-01-01 00:00:00+00\",)"', '"[\"2021-01-01 00:00:00+00\",)"' ],
	[ 'tsvector', q{'a b'}, q{"'a' 'b'"}, q{"'a' 'b'"} ],
	[ 'integer[]', q{'{1,NULL,3}'}, '[1, null, 3]', '[1, null, 3]' ],
	[ 'integer[]', q{'{}'}, '[]', '[]' ],
	[ 'numeric(10,2)[]', q{'{1.28,NULL}'}, '["AIA=", null]', '[1.28, null]' ],
	[ 'timestamp(3)[]', q{'{"1970-01-01 00:00:01"}'}, '[1000]', '["1970-01-01T00:00:01"]' ],
	[ 'text[]', q{'{"a,b",NULL}'}, '["a,b", null]', '["a,b", null]' ],
	[ 'jsonb[]', q{ARRAY['{"a": 1}']::jsonb[]}, '["{\"a\": 1}"]', '[{"a": 1}]' ],
	[ 'json[]', q{ARRAY['{"a":  1}']::json[]}, '["{\"a\":  1}"]', '"{\"{\\\\\"a\\\\\":  1}\"}"' ],
	[ 'mood', q{'sad'}, '"sad"', '"sad"' ],
	[ 'mood[]', q{'{sad,NULL,"so so"}'}, '["sad", null, "so so"]', '"{sad,NULL,\"so so\"}"' ],
	[ 'positive', '7', '7', '7' ],
	[ 'feeling', q{'sad'}, '"sad"', '"sad"' ]);

my $types = q{CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE DOMAIN positive AS integer NOT NULL CHECK (VALUE > 0); CREATE DOMAIN feeling AS mood};
my @columns = map { "v$_" } 0 .. $#values;
$source->safe_psql('postgres', qq{
	SET lc_monetary = 'C';
	$types;
	CREATE TABLE v (id integer PRIMARY KEY, } . join(', ', map { "$columns[$_] $values[$_][0]" } 0 .. $#values) . q{);
	CREATE TABLE d (id positive PRIMARY KEY, at timestamptz)});
# a cast of its owner's would be called by to_jsonb
app_sql($target, qq{
	$types;
	CREATE FUNCTION public.as_json(mood) RETURNS json LANGUAGE plpgsql AS \$\$BEGIN RAISE EXCEPTION 'called as %', current_user; END\$\$;
	CREATE CAST (mood AS json) WITH FUNCTION public.as_json(mood);
	CREATE FUNCTION public.as_text(mood) RETURNS text LANGUAGE plpgsql AS \$\$BEGIN RAISE EXCEPTION 'called as %', current_user; END\$\$;
	CREATE CAST (mood AS text) WITH FUNCTION public.as_text(mood)});
app_sql($target, q{SELECT tablesync_add('v', 'src', 'public.v', feed => true); SELECT tablesync_run('v')});
$source->safe_psql('postgres', "SET lc_monetary = 'C'; INSERT INTO v SELECT 1, " . join(', ', map { "$values[$_][1]" } 0 .. $#values));
is(run_counts($target, 'v'), 'succeeded|1|0|0', 'a row of every type');

for my $settings ('', q{SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'escape'; SET extra_float_digits = -15; SET search_path = pg_temp;})
{
	my $envelope = $target->safe_psql('postgres', $settings . 'SELECT ' . join(" || E'\\x01' || ", map { "coalesce((e.value->'after'->'$_')::text, 'missing')" } @columns) . " FROM public.tablesync_envelopes('public.v') e WHERE e.value->>'op' = 'c'");
	my $change = $target->safe_psql('postgres', $settings . 'SELECT ' . join(" || E'\\x01' || ", map { "coalesce((c.after->'$_')::text, 'missing')" } @columns) . " FROM public.tablesync_changes('public.v') c WHERE c.op = 'c'");
	my @envelope = split /\x01/, $envelope;
	my @change = split /\x01/, $change;
	for my $n (0 .. $#values)
	{
		is($envelope[$n], $values[$n][2], "envelope: $values[$n][0] $values[$n][1]");
		is($change[$n], $values[$n][3], "change: $values[$n][0] $values[$n][1]");
	}
}
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync_envelopes('v') c, tablesync_envelopes('v', NULL) r WHERE c.value->>'op' = 'c' AND r.value->'after' = c.value->'after' AND r.key = c.key AND r.position = c.position}), 1, 'the row as it is now: the same');
is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync_changes('v') c, tablesync_as_of('v', now()) r WHERE c.op = 'c' AND r = c.after}), 1, 'likewise');
app_sql($target, q{DELETE FROM v});

# --- the envelope ---

my ($seconds, $port) = (time, $source->port);
my $envelope = app_sql($target, q{SELECT value - 'after' FROM tablesync_envelopes('v') WHERE value->>'op' = 'c'});
like($envelope, qr/^\{"op": "c", "ts_ms": \d{13}, "before": null, "source": \{"db": "postgres", "lsn": 2, "name": "src", "txId": 2, "table": "v", "ts_ms": \d{13}, "schema": "public", "version": "0.2.0", "snapshot": "false", "connector": "tablesync"\}, "transaction": \{"id": "2", "total_order": 1, "data_collection_order": 1\}\}$/, 'all of it');
is(app_sql($target, q{SELECT key FROM tablesync_envelopes('v')}), "\n{\"id\": 1}", 'keys');
is(app_sql($target, q{SELECT e.value->>'ts_ms' = trunc(extract(epoch FROM f.applied_at) * 1000)::text AND e.value->'source'->>'ts_ms' = trunc(extract(epoch FROM r.source_instant) * 1000)::text AND r.source_instant > r.started_at - interval '1 s'
	FROM tablesync_envelopes('v') e, tablesync.fed_run f, tablesync_runs r WHERE e.value->>'op' = 'c' AND f.run_id = 2 AND r.run_id = 2}), 't', 'when it was applied, and the source\'s time');
$source->safe_psql('postgres', q{INSERT INTO d VALUES (1, 'epoch'), (2, 'epoch')});
app_sql($target, q{SELECT tablesync_add('d', 'src', 'public.d', feed => true); SELECT tablesync_run('d')});
$source->safe_psql('postgres', q{UPDATE d SET at = 'infinity' WHERE id = 1; DELETE FROM d WHERE id = 2});
app_sql($target, q{SELECT tablesync_run('d')});
is(app_sql($target, q{SELECT value->>'op', key, value->'before', value->'after', value->'transaction'->'total_order' FROM tablesync_envelopes('d')}),
	"t||null|null|1\nd|{\"id\": 2}|{\"at\": \"1970-01-01T00:00:00.000000Z\", \"id\": 2}|null|1\nu|{\"id\": 1}|{\"at\": \"1970-01-01T00:00:00.000000Z\", \"id\": 1}|{\"at\": \"infinity\", \"id\": 1}|2",
	'update and delete');
is(app_sql($target, q{SELECT count(*), min(position), bool_and(value->'source'->>'snapshot' = 'true' AND value->'transaction' = 'null') FROM tablesync_envelopes('d', NULL)}), '1|3|t', 'rows');

done_testing();
