# Types of extensions with modifiers, like geometry(Point,4326): every way to add
# a table gives its columns the same ones.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

# A type of extensions is one that is not built in, so one made of built-in functions will do.
sub create_type
{
	my ($node, $schema, $name, $like) = @_;
	my $type = "$schema.$name";
	my %of = (varchar => [ 'varcharin', 'varcharout', 'varcharrecv', 'varcharsend', 'varchartypmodin', 'varchartypmodout' ],
		numeric => [ 'numeric_in', 'numeric_out', 'numeric_recv', 'numeric_send', 'numerictypmodin', 'numerictypmodout' ]);
	my ($in, $out, $recv, $send, $modin, $modout) = @{ $of{$like} };
	my $functions = "$schema." . ($name =~ s/\W//gr);
	$node->safe_psql('postgres', qq{
		SET client_min_messages = error;
		CREATE TYPE $type;
		CREATE FUNCTION ${functions}_in(cstring, oid, integer) RETURNS $type IMMUTABLE STRICT LANGUAGE internal AS '$in';
		CREATE FUNCTION ${functions}_out($type) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS '$out';
		CREATE FUNCTION ${functions}_recv(internal, oid, integer) RETURNS $type IMMUTABLE STRICT LANGUAGE internal AS '$recv';
		CREATE FUNCTION ${functions}_send($type) RETURNS bytea IMMUTABLE STRICT LANGUAGE internal AS '$send';
		CREATE TYPE $type (INPUT = ${functions}_in, OUTPUT = ${functions}_out, RECEIVE = ${functions}_recv, SEND = ${functions}_send,
			TYPMOD_IN = $modin, TYPMOD_OUT = $modout, LIKE = pg_catalog.$like)});
	return;
}

for my $node ($source, $target)
{
	$node->safe_psql('postgres', 'CREATE SCHEMA gis; CREATE SCHEMA "Odd ""one"""; GRANT USAGE ON SCHEMA gis, "Odd ""one""" TO PUBLIC');
	create_type($node, 'gis', 'shape', 'varchar');
	create_type($node, 'gis', 'varchar', 'numeric');    # a name that means something else without its schema
	create_type($node, '"Odd ""one"""', '"Ty(p)e, ""quoted"""', 'varchar');
	$node->safe_psql('postgres', 'CREATE DOMAIN gis.short AS gis.shape(12)');
}
# a name that the array type has here only
$source->safe_psql('postgres', 'CREATE TYPE gis._measure AS ENUM (\'x\')');
create_type($source, 'gis', 'measure', 'numeric');
create_type($target, 'gis', 'measure', 'numeric');
isnt($source->safe_psql('postgres', q{SELECT typname FROM pg_type WHERE oid = 'gis.measure[]'::regtype}),
	$target->safe_psql('postgres', q{SELECT typname FROM pg_type WHERE oid = 'gis.measure[]'::regtype}), 'array types of different names');

$source->safe_psql('postgres', q{
	CREATE SCHEMA shop;
	CREATE TABLE shop.places (
		id integer PRIMARY KEY, plain gis.shape, point gis.shape(40), points gis.shape(40)[], amount gis.varchar(10,2),
		odd "Odd ""one"""."Ty(p)e, ""quoted"""(7), short gis.short, measures gis.measure(8,3)[]);
	INSERT INTO shop.places SELECT i, ('p' || i)::gis.shape, ('POINT(' || i || ' 1)')::gis.shape, ARRAY['a' || i, NULL, 'b']::gis.shape[], (i / 7.0)::numeric(10,2)::text::gis.varchar(10,2),
		('odd' || i % 10)::"Odd ""one"""."Ty(p)e, ""quoted""", 'short', ARRAY['1.500']::gis.measure[] FROM generate_series(1, 500) i});
app_sql($target, 'SELECT 1');
$target->safe_psql('postgres', 'CREATE SCHEMA copies AUTHORIZATION app');

my $types = q{id integer, plain gis.shape, point gis.shape(40), points gis.shape(40)[], amount gis."varchar"(10,2), odd "Odd ""one"""."Ty(p)e, ""quoted"""(7), short gis.shape(12), measures gis.measure(8,3)[]};

sub types_of
{
	my ($table) = @_;
	return app_sql($target, qq{SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
		FROM pg_attribute WHERE attrelid = '$table'::regclass AND attnum > 0 AND NOT attisdropped});
}

# --- each way to add ---

app_sql($target, q{SELECT tablesync_add('places', 'src', 'shop.places')});
is(app_sql($target, q{SELECT added, reason FROM tablesync_add_schema('src', 'shop', 'copies')}), 't|', 'by tablesync_add_schema');
$target->safe_psql('postgres', 'CREATE SCHEMA imports AUTHORIZATION app');
app_sql($target, q{IMPORT FOREIGN SCHEMA shop FROM SERVER src INTO imports});
is(types_of('imports.places'), $types =~ s/gis\.shape\(12\)/gis.short/r, 'what IMPORT FOREIGN SCHEMA makes of it: all but the domain');
app_sql($target, q{ALTER FOREIGN TABLE imports.places ALTER short TYPE gis.shape(12); SELECT tablesync_add('imported', 'imports.places')});
for my $replica ('places', 'copies.places', 'imported')
{
	is(types_of($replica), $types, "$replica: types of the replica");
	is(types_of(app_sql($target, "SELECT source FROM tablesync.replica WHERE replica = '$replica'::regclass")), $types, "$replica: types of the foreign table");
	is(run_counts($target, $replica), 'succeeded|500|0|0', "$replica: loaded");
	is(app_sql($target, "SELECT string_agg(check_name || ': ' || detail, ' ') FROM tablesync_check('$replica') WHERE NOT ok"), '', "$replica: nothing to complain of");
}

# --- the server's option "extensions" is not set: such columns are fetched, and compared by value ---

$source->safe_psql('postgres', q{UPDATE shop.places SET point = 'POINT(0 0)' WHERE id = 7; UPDATE shop.places SET points = NULL WHERE id = 8;
	UPDATE shop.places SET point = point WHERE id = 9; DELETE FROM shop.places WHERE id = 10});
is(run_counts($target, $_), 'succeeded|0|2|1', "$_: changes") for 'places', 'copies.places', 'imported';
is_replica($source, $target, 'shop.places', $_, "$_: identical") for 'places', 'copies.places', 'imported';
app_sql($target, q{UPDATE places SET point = 'POINT(9 9)' WHERE id = 20});
is(run_counts($target, 'places'), 'succeeded|0|1|0', 'repaired');
is(app_sql($target, q{SELECT count(*) FROM tablesync_verify('places')}), '0', 'verified');
like(app_fails($target, q{SELECT tablesync_add('by_row', 'src', 'shop.places', fingerprint => 'row')}), qr/HINT:  Set fingerprint to xmin/, 'by row it can not be compared');

# --- the modifier changes ---

$source->safe_psql('postgres', 'ALTER TABLE shop.places ALTER point TYPE gis.shape(50); ALTER TABLE shop.places ADD more gis.shape(5)');
my $error = app_fails($target, q{SELECT tablesync_run('places')});
like($error, qr/TS003.*column point changed its type from gis\.shape\(40\) to gis\.shape\(50\)/s, 'a wider one is not known to be wider');
my ($hint) = $error =~ /HINT:  (.*)/;
app_sql($target, $hint);
is(run_counts($target, 'places') =~ s/\|.*//r, 'succeeded', 'after what the hint says');
is_replica($source, $target, 'shop.places', 'places', 'identical, with the new column');
is(types_of('places'), ($types =~ s/shape\(40\),/shape(50),/r) . ', more gis.shape(5)', 'the types of the source');

# --- a foreign table that is left over with the old types: what the hint says can be typed, whatever was called ---

app_sql($target, q{DROP TABLE imported});
like(app_fails($target, q{SELECT tablesync_add('again', 'imports.places')}),
	qr/its type is gis\.shape\(50\), and gis\.shape\(40\) in the foreign table.*HINT:  DROP FOREIGN TABLE imports\.places; and create it again/s, 'by foreign table');
app_sql($target, q{DROP TABLE copies.places});
$error = app_fails($target, q{SELECT tablesync_add('copies.places', 'src', 'shop.places')});
like($error, qr/its type is gis\.shape\(50\), and gis\.shape\(40\) in the foreign table/, 'by server');
my ($drop) = $error =~ /HINT:  (DROP FOREIGN TABLE .*?;)/;
app_sql($target, "$drop SELECT tablesync_add('copies.places', 'src', 'shop.places')");
is(run_counts($target, 'copies.places'), 'succeeded|499|0|0', 'after what the hint says');

# --- a type that has no modifiers here ---

create_type($source, 'gis', 'other', 'varchar');
$target->safe_psql('postgres', q{CREATE TYPE gis.other AS ENUM ('a')});
$source->safe_psql('postgres', 'CREATE TABLE shop.others (id integer PRIMARY KEY, o gis.other(3))');
like(app_fails($target, q{SELECT tablesync_add('others', 'src', 'shop.others')}), qr/type modifier is not allowed for type|has no modifier/, 'a type that is another one here');

done_testing();
