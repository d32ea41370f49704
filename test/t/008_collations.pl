# Text keys are exact although source and target sort differently; encodings
# that differ are refused.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

my ($source, $target) = start_pair();

# a database that sorts as people do, next to one that sorts by bytes
$source->safe_psql('postgres', q{
	CREATE DATABASE people TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US';
	CREATE DATABASE western TEMPLATE template0 ENCODING 'LATIN1'});
$source->safe_psql('people', q{
	GRANT USAGE ON SCHEMA public TO reader;
	ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader;
	CREATE TABLE words (word text PRIMARY KEY, lang varchar(2) NOT NULL, note text, updated_at timestamp);
	CREATE TABLE pairs (a integer, word varchar(20), b text COLLATE "C", PRIMARY KEY (a, word, b));
	CREATE TABLE fuzzy (id integer PRIMARY KEY, word text)});
is($source->safe_psql('people', "SELECT 'a' < 'B'") . $target->safe_psql('postgres', "SELECT 'a' < 'B'"), 'tf', 'the two sort differently');

$target->safe_psql('postgres', 'CREATE SERVER people FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host \'127.0.0.1\', port \'' . $source->port . q{', dbname 'people', use_remote_estimate 'true');
	CREATE SERVER western FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '} . $source->port . q{', dbname 'western');
	GRANT USAGE ON FOREIGN SERVER people, western TO app;
	CREATE USER MAPPING FOR app SERVER people OPTIONS (user 'reader', password 'read-only');
	CREATE USER MAPPING FOR app SERVER western OPTIONS (user 'reader', password 'read-only')});

my $word = q{translate(md5(i::text), '0123456789abcdef', 'aAbBäÄzZ-_ éÉßñ.') };
$source->safe_psql('people', qq{
	INSERT INTO words SELECT $word, 'en', 'n' || i, clock_timestamp() FROM generate_series(1, 30000) i;
	INSERT INTO pairs SELECT i % 3, left($word, 20), substr($word, 10) FROM generate_series(1, 5000) i ON CONFLICT DO NOTHING});

# rows compared in an order that both sides agree on
sub same
{
	my ($table) = @_;
	my $rows = qq{SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $table t};
	return $source->safe_psql('people', $rows) eq $target->safe_psql('postgres', $rows);
}

app_sql($target, "SELECT tablesync_add('words', 'people', 'public.words', version_column => 'updated_at', chunk_rows => 100)");
app_sql($target, "SELECT tablesync_add('pairs', 'people', 'public.pairs', chunk_rows => 100)");
is(run_counts($target, 'words'), 'succeeded|30000|0|0', 'text key: loaded in pages of 100');
like(run_counts($target, 'pairs'), qr/^succeeded\|\d+\|0\|0/, 'composite key: loaded');
ok(same('words') && same('pairs'), 'identical');

$source->safe_psql('people', q{
	DELETE FROM words WHERE hashtext(word) % 50 = 0;
	UPDATE words SET word = upper(word) || 'Z', updated_at = clock_timestamp() WHERE hashtext(word) % 51 = 0;
	UPDATE words SET note = 'changed', updated_at = clock_timestamp() WHERE hashtext(word) % 52 = 0;
	UPDATE pairs SET b = b || 'x' WHERE hashtext(word) % 50 = 0});
my $changes = run_counts($target, 'words');
like($changes, qr/^succeeded\|[1-9]\d*\|[1-9]\d*\|[1-9]\d*$/, "text key: changes ($changes)");
like(run_counts($target, 'pairs'), qr/^succeeded\|([1-9]\d*)\|0\|\1$/, 'composite key: changes');
ok(same('words') && same('pairs'), 'identical');

# a collation that takes different strings for equal
$source->safe_psql('people', q{
	CREATE COLLATION ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
	ALTER TABLE fuzzy ALTER word TYPE text COLLATE ignore_case});
like(app_fails($target, "SELECT tablesync_add('fuzzy', 'people', 'public.fuzzy')"),
	qr/ERROR:  0A000: column word of the source public.fuzzy can't be replicated exactly.*not deterministic/s, 'nondeterministic collation');

$source->safe_psql('western', 'GRANT USAGE ON SCHEMA public TO reader; CREATE TABLE t (id integer PRIMARY KEY, w text); GRANT SELECT ON t TO reader');
like(app_fails($target, "SELECT tablesync_add('t', 'western', 'public.t')"),
	qr/ERROR:  0A000: the source's encoding is LATIN1, ours is UTF8.*HINT:  Keep the replica in a database with the source's encoding/s, 'other encoding');
is($target->safe_psql('postgres', "SELECT count(*) FROM pg_class WHERE relname IN ('t', 't_source', 'fuzzy', 'fuzzy_source')"), 0, 'a refusal leaves nothing behind');

done_testing();
