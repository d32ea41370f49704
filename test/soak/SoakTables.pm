# SoakTables: random tables, random values, and what their replicas are to have.
#
# Everything is drawn with rand(), which the caller has seeded; values that SQL
# makes up come from setseed() with a number of rand().

package SoakTables;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(random_tables columns_of random_value one_of literal key_list wanted_sql wanted_rows replica_sql replica_rows keyed_sql);

# Values by type as format_type() has it.
my %values = (
	'smallint' => '(random() * 65535 - 32768)::smallint',
	'integer' => '(random() * 4e9 - 2e9)::integer',
	'bigint' => '(random() * 1e18 - 5e17)::bigint',
	'numeric' => q{(CASE WHEN random() < 0.1 THEN 'NaN' ELSE round((random() * 10)::numeric, (random() * 3)::integer) END)::numeric},
	'numeric(12,3)' => 'round((random() * 100000)::numeric, 3)',
	'real' => q{(CASE WHEN random() < 0.1 THEN '-0' WHEN random() < 0.1 THEN 'NaN' ELSE random() END)::real},
	'double precision' => q{(CASE WHEN random() < 0.1 THEN '-0' WHEN random() < 0.1 THEN '-infinity' ELSE random() END)::double precision},
	'money' => '(random() * 1000)::numeric::money',
	'text' => q{repeat(chr(32 + (random() * 2000)::integer), (random() * 30)::integer)},
	'character varying(20)' => 'left(md5(random()::text), (random() * 20)::integer)::varchar(20)',
	'character(5)' => 'left(md5(random()::text), (random() * 3)::integer)::char(5)',
	'bytea' => q{decode(md5(random()::text), 'hex')},
	'boolean' => 'random() < 0.5',
	'date' => q{(CASE WHEN random() < 0.1 THEN 'infinity' ELSE date '2000-01-01' + (random() * 9000)::integer END)::date},
	'time without time zone' => q{time '00:00' + random() * interval '1 day'},
	'time with time zone' => q{(time '00:00' + random() * interval '1 day')::timetz},
	'timestamp without time zone' => q{timestamp '2000-01-01' + random() * interval '20 years'},
	'timestamp with time zone' => q{(CASE WHEN random() < 0.1 THEN '-infinity' ELSE timestamptz '2000-01-01' + random() * interval '20 years' END)::timestamptz},
	'interval' => q{CASE WHEN random() < 0.3 THEN interval '1 day' WHEN random() < 0.5 THEN interval '24 hours' ELSE random() * interval '1 year' END},
	'uuid' => 'md5(random()::text)::uuid',
	'bit(5)' => '((random() * 31)::integer)::bit(5)',
	'bit varying(9)' => q{CASE WHEN random() < 0.5 THEN B'101' ELSE B'1010' END::varbit(9)},
	'json' => q{json_build_object('a"', random())},
	'jsonb' => q{jsonb_build_object('a', round(random()::numeric, (random() * 2)::integer))},
	'inet' => q{inet '10.0.0.0/8' + (random() * 1e6)::bigint},
	'cidr' => q{set_masklen(cidr '10.0.0.0/8', 8 + (random())::integer)::cidr},
	'macaddr' => q{(substr(md5(random()::text), 1, 12))::macaddr},
	'macaddr8' => q{(substr(md5(random()::text), 1, 16))::macaddr8},
	'point' => 'point(random(), random())',
	'lseg' => 'lseg(point(random(), 1), point(2, random()))',
	'box' => 'box(point(random(), 1), point(2, random()))',
	'circle' => 'circle(point(random(), 1), random())',
	'polygon' => 'polygon(box(point(random(), 1), point(2, random())))',
	'path' => q{('[(0,1),(' || (random() * 9)::integer || ',3)]')::path},
	'int4range' => q{CASE WHEN random() < 0.2 THEN 'empty' ELSE int4range((random() * 10)::integer, 20) END},
	'numrange' => 'numrange(round(random()::numeric, (random() * 3)::integer), 2)',
	'tstzrange' => q{tstzrange(timestamptz '2020-01-01' + random() * interval '9 days', NULL)},
	'int4multirange' => q{int4multirange(int4range((random() * 9)::integer, 10), int4range(20, 30))},
	'tsvector' => q{to_tsvector('simple', md5(random()::text) || ' the end')},
	'tsquery' => q{(left(md5('a' || random()), 4) || ' & b')::tsquery},
	'xml' => q{('<a>' || (random() * 1000)::integer || '</a>')::xml},
	'integer[]' => q{CASE WHEN random() < 0.3 THEN '[3:4]={1,2}'::integer[] ELSE ARRAY[1, NULL, (random() * 9)::integer] END},
	'text[]' => q{ARRAY[md5(random()::text), NULL, 'a"b']},
	'oid' => '((random() * 2e9)::bigint)::oid',
	'pg_lsn' => q{('0/' || to_hex((random() * 1e9)::bigint))::pg_lsn},
	'name' => 'left(md5(random()::text), 8)::name',
	'"char"' => 'chr(97 + (random() * 20)::integer)::"char"');

# Keys have few values, so that they are met again.
my %keys = (
	'smallint' => '(random() * 200 - 100)::smallint',
	'integer' => '(CASE WHEN random() < 0.02 THEN 2147483647 WHEN random() < 0.02 THEN -2147483648 ELSE random() * 400 - 200 END)::integer',
	'bigint' => '(CASE WHEN random() < 0.7 THEN random() * 300 ELSE (floor(random() * 14) - 7) * 1e18 END)::bigint',
	'uuid' => 'md5((random() * 300)::integer::text)::uuid',
	'date' => q{(CASE WHEN random() < 0.03 THEN 'infinity' WHEN random() < 0.03 THEN '4000-01-01 BC' ELSE date '2000-01-01' + (random() * 300)::integer END)::date},
	'timestamp without time zone' => q{timestamp '2020-01-01' + (random() * 300)::integer * interval '1 minute 0.000001 s'},
	'timestamp with time zone' => q{timestamptz '2020-01-01' + (random() * 300)::integer * interval '1 minute'},
	'numeric' => q{(CASE WHEN random() < 0.02 THEN 'NaN' ELSE round((random() * 30)::numeric, (random() * 2)::integer) END)::numeric},
	'text' => q{chr(65 + (random() * 60)::integer) || CASE WHEN random() < 0.5 THEN chr(200 + (random() * 3000)::integer) ELSE '"\\' END},
	'character varying(20)' => q{left(md5((random() * 300)::integer::text), 1 + (random() * 6)::integer)::varchar(20)},
	'character(5)' => q{(chr(97 + (random() * 25)::integer) || CASE WHEN random() < 0.5 THEN ' ' ELSE '' END || (random() * 30)::integer)::char(5)});

sub one_of { return $_[ int(rand(@_)) ]; }
sub literal { my ($text) = @_; return "'" . $text =~ s/'/''/gr . "'" }

sub random_value
{
	my ($type) = @_;
	return "(enum_range(NULL::$type))[1 + floor(random() * array_length(enum_range(NULL::$type), 1))::integer]" if $type =~ /\.mood_/;
	return 'CASE WHEN random() < 0.85 THEN ' . ($values{$type} // 'NULL') . ' END';
}

sub key_list { my ($t, $alias) = @_; return join ', ', map { ($alias // '') . $_->{name} } @{ $t->{key} }; }

# Tables of a history: what creates them, and how their replicas are added.
sub random_tables
{
	my ($schema) = @_;
	my $group = rand() < 0.2;
	return map { random_table($schema, "t$_", $group) } 1 .. ($group ? 2 : 1) + int(rand(2));
}

sub random_table
{
	my ($schema, $name, $group) = @_;
	my %t = (name => $name, schema => $schema, table => "$schema.$name", stale => 1);
	my $many = rand() < 0.04;
	my $keys = $many ? 32 : 1 + int(rand() ** 2 * 4);
	for my $i (1 .. $keys)
	{
		my $type = $many ? one_of('smallint', 'integer') : one_of(sort keys %keys);
		push @{ $t{key} }, { name => "k$i", type => $type,
			random => $many ? "(random() * 0.6)::$type" : $keys > 2 ? $keys{$type} =~ s/\b(?:200|300|400)\b/6/gr : $keys{$type} };
	}
	my %chosen = map { one_of(sort keys %values) => 1 } 1 .. 2 + int(rand(9));
	my $i = 0;
	my @columns = map { 'c' . ++$i . " $_" } sort keys %chosen;
	push @columns, "n integer", "s text", 'updated_at timestamp';
	# an order of columns that is not that of the key
	my @all = ((map { "$_->{name} $_->{type}" } @{ $t{key} }), @columns);
	push @all, splice(@all, 0, 1) if rand() < 0.3;
	push @all, 'u integer UNIQUE' if !($t{partitioned} = rand() < 0.15 && $keys < 32) && rand() < 0.5;
	push @all, 'g bigint GENERATED ALWAYS AS (n::bigint * 2) STORED' if rand() < 0.2;
	push @all, 'e1 ' . ($t{enum} = "$schema.mood_$name") if rand() < 0.15;
	my $names = key_list(\%t);
	$t{create} = "CREATE TABLE $t{table} (" . join(', ', @all) . ", PRIMARY KEY ($names))";
	if ($t{partitioned})
	{
		$t{create} .= " PARTITION BY HASH (k1)";
		$t{create} .= ";\nCREATE TABLE $t{table}_$_ PARTITION OF $t{table} FOR VALUES WITH (MODULUS 3, REMAINDER $_)" for 0 .. 2;
	}
	$t{fingerprint} = one_of('xmin', 'xmin', 'xmin', 'version', 'row');
	my @settings = ("fingerprint => '$t{fingerprint}'", "max_delete_fraction => 1", "drop_columns => true");
	push @settings, "version_column => 'updated_at'" if $t{version} = $t{fingerprint} eq 'version' || rand() < 0.3;
	if ($group) { push @settings, "consistency => 'snapshot'", "sync_group => '$schema'"; $t{group} = 1; }
	else { push @settings, "consistency => '" . one_of('auto', 'snapshot', 'chunk') . "'"; }
	push @settings, 'chunk_rows => ' . one_of(1, 3, 7, 20, 64, 200, 5000) if rand() < 0.7;
	push @settings, 'verify_fraction => ' . one_of(0.3, 1) if rand() < 0.15;
	push @settings, 'feed => true' if $t{feed} = rand() < 0.5;
	# else changes go when the consumer has them
	push @settings, "keep_changes => '1 day'" if rand() < 0.6;
	$t{expressions} = {};
	if (rand() < 0.2)
	{
		$t{part} = 1;
		$t{filter} = random_filter(\%t) if rand() < 0.7;
		push @settings, 'filter => ' . literal($t{filter}) if $t{filter};
		$t{expressions} = { s => one_of('md5(s)', 'left(s, 2)', 'upper(s)') } if rand() < 0.4 && !$t{enum};
		push @settings, qq[expressions => '{"s": "$t{expressions}{s}"}'] if $t{expressions}{s};
		if (rand() < 0.4)
		{
			$t{only} = [ (map { $_->{name} } @{ $t{key} }), 'n', 'updated_at', grep { rand() < 0.5 } map { /^(\w+)/ } grep { /^c\d/ } @columns ];
			delete $t{expressions}{s};
			@settings = grep { !/^expressions/ } @settings;
			push @settings, "columns => '{" . join(',', @{ $t{only} }) . "}'";
		}
	}
	$t{own} = rand() < 0.15;
	$t{unique_here} = rand() < 0.5 && $t{create} =~ /\bu integer/ && !$t{only};
	$t{small_disk} = rand() < 0.15;
	$t{add} = "SELECT tablesync_add('$t{table}', 'src', '$t{table}', " . join(', ', @settings) . ')';
	return \%t;
}

sub random_filter
{
	my ($t) = @_;
	return one_of('n > 0', 'n IS NOT NULL', 'n % 2 = 0', "updated_at > '2020-01-01 00:10'", 's IS NULL OR n < 0');
}

# Columns of the source as they are now: name, type, written (whether one may write it), changeable (not named by settings)
sub columns_of
{
	my ($source, $t) = @_;
	return @{ $t->{columns} } if !$t->{stale};
	my %key = map { $_->{name} => 1 } @{ $t->{key} };
	my @columns;
	for my $line (split /\n/, $source->must("SELECT attname, attgenerated = '', format_type(atttypid, atttypmod) FROM pg_attribute
		WHERE attrelid = '$t->{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"))
	{
		my ($name, $written, $type) = split /\|/, $line, 3;
		push @columns, { name => $name, type => $type, written => $written eq 't', key => $key{$name},
			payload => !$key{$name} && $written eq 't' && $name !~ /^(u|updated_at)$/ };
	}
	$t->{columns} = \@columns;
	$t->{stale} = 0;
	return @columns;
}

# Columns that the replica is to have, in an order of their own.
sub replicated
{
	my ($source, $t) = @_;
	my %only = map { $_ => 1 } @{ $t->{only} // [] };
	return sort grep { !$t->{only} || $only{$_} } map { $_->{name} } columns_of($source, $t);
}

# The rows that the replica is to have, as text: one that is the same means the same.
sub wanted_sql
{
	my ($source, $t) = @_;
	my @list = map { $t->{expressions}{$_} // $_ } replicated($source, $t);
	my $where = $t->{filter} ? "WHERE $t->{filter}" : '';
	return 'SELECT ROW(' . join(', ', @list) . qq{)::text COLLATE "C" FROM $t->{table} $where ORDER BY 1};
}

sub wanted_rows { my ($source, $t) = @_; return $source->must(wanted_sql($source, $t)); }

# The rows that the replica has.  Columns that it lacks are an error.
sub replica_sql { my ($source, $t) = @_; return 'SELECT ROW(' . join(', ', replicated($source, $t)) . qq{)::text COLLATE "C" FROM $t->{table} ORDER BY 1}; }

sub replica_rows { my ($source, $target, $t) = @_; return $target->must(replica_sql($source, $t)); }

# SQL for the rows of the source (those that the replica is to have) or of the replica, each after its key.
sub keyed_sql
{
	my ($source, $t, $side) = @_;
	my $wanted = $side eq 'source';
	my @list = map { $wanted && $t->{expressions}{$_} || $_ } replicated($source, $t);
	my $where = $wanted && $t->{filter} ? "WHERE $t->{filter}" : '';
	return 'SELECT (ROW(' . key_list($t) . ")::text || E'\\001' || ROW(" . join(', ', @list) . qq{)::text) COLLATE "C" FROM $t->{table} $where ORDER BY 1};
}

1;
