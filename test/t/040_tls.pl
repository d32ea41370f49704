# A source that demands TLS and passwords: what has to be set, what is wrong when
# something is wrong, and that no password shows anywhere.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

plan skip_all => 'openssl is not installed' unless grep { -x "$_/openssl" } split /:/, $ENV{PATH};

# --- a CA, and what it has signed ---

my $dir = PostgreSQL::Test::Utils::tempdir();

sub openssl
{
	my (@arguments) = @_;
	system_log('openssl', @arguments) == 0 or die "openssl @arguments";
	return;
}

sub make_ca
{
	my ($name) = @_;
	openssl(qw(req -x509 -newkey rsa:2048 -nodes -days 10 -subj), "/CN=$name", '-keyout', "$dir/$name.key", '-out', "$dir/$name.crt");
	return;
}

# A certificate for a name, for so many days; of the past, where they are negative.
sub make_certificate
{
	my ($file, $name, $days, $ca) = @_;
	openssl(qw(req -newkey rsa:2048 -nodes -subj), "/CN=$name", '-keyout', "$dir/$file.key", '-out', "$dir/$file.csr");
	append_to_file("$dir/$file.ext", "subjectAltName = DNS:$name\n");
	my @when = $days > 0 ? ('-days', $days) : ('-days', $days);
	openssl('x509', '-req', '-in', "$dir/$file.csr", '-CA', "$dir/$ca.crt", '-CAkey', "$dir/$ca.key", '-CAcreateserial', '-extfile', "$dir/$file.ext", @when, '-out', "$dir/$file.crt");
	chmod 0600, "$dir/$file.key";
	return;
}

make_ca($_) for qw(ca other_ca);
make_certificate('server', 'source.example', 10, 'ca');
make_certificate('expired', 'source.example', -1, 'ca');
make_certificate('client', 'reader', 10, 'ca');
make_certificate('client_expired', 'reader', -1, 'ca');

my $source = start_source(conf => "ssl = on\nssl_ca_file = '$dir/ca.crt'\nssl_cert_file = '$dir/server.crt'\nssl_key_file = '$dir/server.key'");
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text);
	INSERT INTO items SELECT i, 'n' || i FROM generate_series(1, 100) i});

# Who may connect to the source.
sub demand
{
	my (@lines) = @_;
	unlink $source->data_dir . '/pg_hba.conf';
	$source->append_conf('pg_hba.conf', join("\n", 'local all all trust', @lines) . "\n");
	$source->reload;
	return;
}

demand('hostssl all all 127.0.0.1/32 scram-sha-256');
my $target = start_target($source);
my $port = $source->port;

sub server_options
{
	my ($options) = @_;
	$target->safe_psql('postgres', "ALTER SERVER src OPTIONS ($options)");
	return;
}

sub mapping_options
{
	my ($options) = @_;
	$target->safe_psql('postgres', "ALTER USER MAPPING FOR app SERVER src OPTIONS ($options)");
	return;
}

# A run fails with a reason, and run and check have a hint that helps.
sub fails_with
{
	my ($reason, $hint, $name) = @_;
	wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
	like(app_fails($target, q{SELECT tablesync_run('items')}), qr/ERROR:  08001: could not connect to server "src".*$reason.*HINT:  $hint/s, $name);
	like(app_sql($target, q{SELECT detail, hint FROM tablesync_check('items') WHERE check_name = 'connection' AND NOT ok}), qr/$reason.*\|$hint/s, "$name: the check says so");
	return;
}

sub runs
{
	my ($name) = @_;
	is((split /\|/, run_counts($target, 'items'))[0], 'succeeded', $name);
	return;
}

# --- verify-full, with a private CA ---

server_options(qq{SET host 'source.example', ADD hostaddr '127.0.0.1', ADD sslmode 'verify-full', ADD sslrootcert '$dir/ca.crt'});
app_sql($target, q{SELECT tablesync_add('items', 'src', 'public.items')});
runs('verify-full, scram');
is($source->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name LIKE 'tablesync/%' AND NOT s.ssl}), 0, 'no session without TLS');

server_options(q{SET host 'other.example'});
fails_with('server certificate for "source.example" does not match host name "other.example"', 'Connect by the name in the certificate: ALTER SERVER src OPTIONS \(SET host ', 'another name');
server_options(qq{SET host 'source.example', SET sslrootcert '$dir/other_ca.crt'});
fails_with('certificate verify failed', 'The source\'s certificate is not signed by the CA in sslrootcert, or has expired', 'another CA');
server_options(qq{SET sslrootcert '$dir/missing.crt'});
fails_with('root certificate file', 'Put the certificate of the source\'s CA into a file .* ALTER SERVER src OPTIONS \(SET sslrootcert ', 'no CA');
server_options(qq{SET sslrootcert '$dir/ca.crt'});
runs('mended');

$source->safe_psql('postgres', "ALTER SYSTEM SET ssl_cert_file = '$dir/expired.crt'");
$source->safe_psql('postgres', "ALTER SYSTEM SET ssl_key_file = '$dir/expired.key'");
$source->reload;
fails_with('certificate verify failed', '.* or has expired', 'an expired certificate');
$source->safe_psql('postgres', 'ALTER SYSTEM RESET ALL');
$source->reload;
runs('renewed');

server_options(q{SET sslmode 'disable'});
fails_with('no encryption', 'The source demands TLS: ALTER SERVER src OPTIONS \(SET sslmode \'require\'\)', 'without TLS');
server_options(q{SET sslmode 'verify-full'});

# --- passwords ---

$source->safe_psql('postgres', q{ALTER ROLE reader PASSWORD 'rotated-secret'});
fails_with('password authentication failed', 'If the password was changed there: ALTER USER MAPPING FOR app SERVER src OPTIONS \(SET password ', 'a rotated password');
mapping_options(q{SET password 'rotated-secret'});
runs('follows the rotation');
my $passfile = "$dir/passfile";
append_to_file($passfile, "source.example:$port:postgres:reader:rotated-secret\n127.0.0.1:$port:postgres:reader:rotated-secret\n");
chmod 0600, $passfile;
mapping_options(q{DROP password});
like(app_fails($target, q{SELECT tablesync_run('items')}), qr/ERROR:  2F003: password.* required.*HINT:  ALTER USER MAPPING FOR app SERVER src OPTIONS \(ADD password /s, 'no password: postgres_fdw refuses');
mapping_options(q{ADD password_required 'false'});
fails_with('no password supplied', 'ALTER USER MAPPING FOR app SERVER src OPTIONS \(ADD password ', 'no password');
server_options(qq{ADD passfile '$passfile'});
runs('a password file');
server_options(q{DROP passfile});

# --- client certificates ---

demand('hostssl all reader 127.0.0.1/32 cert');
fails_with('certificate', 'The source demands a client certificate that names the role reader', 'no client certificate');
mapping_options(qq{ADD sslcert '$dir/client.crt', ADD sslkey '$dir/client.key'});
runs('a client certificate');
mapping_options(qq{SET sslcert '$dir/client_expired.crt', SET sslkey '$dir/client_expired.key'});
fails_with('certificate expired', 'Our client certificate has expired', 'an expired client certificate');
mapping_options(qq{SET sslcert '$dir/client.crt', SET sslkey '$dir/client.key'});
runs('renewed');

# --- who may connect, and how often ---

demand('hostssl all other 127.0.0.1/32 scram-sha-256');
fails_with('no pg_hba.conf entry', 'Let the source\'s DBA allow role reader from this address', 'not allowed');
demand('hostssl all all 127.0.0.1/32 cert');
$source->safe_psql('postgres', 'ALTER ROLE reader CONNECTION LIMIT 0');
$target->safe_psql('postgres', q{ALTER ROLE app SET tablesync.retry_timeout = '1 s'});
fails_with('too many connections for role "reader"', 'At the source: ALTER ROLE reader CONNECTION LIMIT 10;', 'no connection left');
$source->safe_psql('postgres', 'ALTER ROLE reader CONNECTION LIMIT 10');
runs('there is one');

# --- nobody learns a password ---

my $everything = $target->safe_psql('postgres', q{
	SELECT string_agg(t::text, ' ') FROM (
		SELECT r::text FROM tablesync.all_runs r UNION ALL SELECT a::text FROM tablesync.alert a
		UNION ALL SELECT s::text FROM tablesync_status s UNION ALL SELECT c::text FROM tablesync_check() c) t (t)});
unlike($everything, qr/rotated-secret|read-only'/, 'not in tables or views');
my $log = slurp_file($target->logfile);
$log =~ s/^.*(STATEMENT|LOG:  statement):.*$//mg;
unlike($log, qr/rotated-secret/, 'not in the log');

done_testing();
