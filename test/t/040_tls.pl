# A source that demands TLS, passwords and certificates: what is wrong with any
# of them ends a run with an error that says what to type, tablesync_check says
# the same, what it says helps, and no password is in anything that is kept.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my ($openssl) = grep { -x } map { "$_/openssl" } split /:/, $ENV{PATH};
plan skip_all => 'openssl is not installed' unless $openssl;
plan skip_all => 'this PostgreSQL is built without TLS' unless `pg_config --configure` =~ /--with-(open)?ssl/;

# --- certificates ---

my $dir = PostgreSQL::Test::Utils::tempdir_short();

sub run_openssl
{
	my ($out, $err);
	IPC::Run::run([ $openssl, @_ ], '>', \$out, '2>', \$err) or die "openssl @_: $err";
	return $out;
}

# A certificate of a private CA for a name; until when, if not for some time.
sub make_certificate
{
	my ($ca, $file, $name, $until) = @_;
	run_openssl('req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-subj', "/CN=$name",
		'-addext', "subjectAltName=DNS:$name", '-keyout', "$dir/$file.key", '-out', "$dir/$file.csr");
	chmod 0600, "$dir/$file.key";
	run_openssl('ca', '-batch', '-notext', '-config', "$dir/ca.conf", '-name', $ca, '-in', "$dir/$file.csr", '-out', "$dir/$file.crt",
		'-startdate', '20200101000000Z', '-enddate', $until // '20900101000000Z');
	return;
}

for my $ca ('our_ca', 'other_ca')
{
	append_to_file("$dir/ca.conf", <<"CONF");
[$ca]
certificate = $dir/$ca.crt
private_key = $dir/$ca.key
database = $dir/$ca.index
rand_serial = yes
new_certs_dir = $dir
default_md = sha256
policy = policy
copy_extensions = copy
unique_subject = no
[policy]
commonName = supplied
CONF
	append_to_file("$dir/$ca.index", '');
	run_openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '3650', '-subj', "/CN=$ca",
		'-keyout', "$dir/$ca.key", '-out', "$dir/$ca.crt");
}
make_certificate('our_ca', 'server', 'source.test');
make_certificate('our_ca', 'expired_server', 'source.test', '20210101000000Z');
make_certificate('our_ca', 'client', 'reader');
make_certificate('our_ca', 'expired_client', 'reader', '20210101000000Z');
make_certificate('our_ca', 'somebody', 'somebody');
make_certificate('other_ca', 'foreign_client', 'reader');

# --- the clusters ---

my $source = start_source();
my $port = $source->port;
$source->append_conf('postgresql.conf', "ssl_ca_file = '$dir/our_ca.crt'\nssl_cert_file = '$dir/server.crt'\nssl_key_file = '$dir/server.key'\nssl = on");
$source->reload;
$source->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, note text);
	INSERT INTO items SELECT i, md5(i::text) FROM generate_series(1, 3000) i});

# What the source asks of whom; all but the first line of pg_hba.conf.
sub demand
{
	my (@lines) = @_;
	my $before = $source->safe_psql('postgres', 'SELECT pg_conf_load_time()');
	unlink $source->data_dir . '/pg_hba.conf';
	$source->append_conf('pg_hba.conf', join("\n", 'local all all trust', @lines, ''));
	$source->reload;
	wait_until($source, "SELECT pg_conf_load_time() <> '$before'");
	return;
}

demand('hostssl all reader 127.0.0.1/32 scram-sha-256');
append_to_file("$dir/service.conf", "[shop]\nhost=source.test\nhostaddr=127.0.0.1\nport=$port\ndbname=postgres\nuser=reader\nsslmode=verify-full\nsslrootcert=$dir/our_ca.crt\n");
append_to_file("$dir/passfile", "source.test:$port:postgres:reader:read-only\n");
append_to_file("$dir/stale_passfile", "source.test:$port:postgres:reader:stale-secret\n");
chmod 0600, "$dir/passfile", "$dir/stale_passfile";
my $target;
{
	local @ENV{qw(PGSERVICEFILE PGPASSFILE)} = ("$dir/service.conf", "$dir/passfile");
	$target = start_target($source);
}

sub admin { return $target->safe_psql('postgres', $_[0]); }

# No process of an earlier run is left, with its connection.
sub be_alone
{
	wait_until($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
	return;
}

# A run and a check fail, for a reason and with a hint, which is returned.
sub refused
{
	my ($name, $why, $hint) = @_;
	be_alone();
	my $stderr = app_fails($target, "SELECT tablesync_run('items')");
	like($stderr, qr/ERROR:  (?:08001: could not connect to server "src"|2F003: password is required).*$why.*HINT:  .*$hint/s, "$name: a run fails and says what to do");
	my $told = app_sql($target, q{SELECT hint FROM tablesync_check('items') WHERE NOT ok AND check_name = 'connection'});
	is($told, app_sql($target, q{SELECT hint FROM tablesync.run ORDER BY run_id DESC LIMIT 1}), "$name: tablesync_check says the same");
	diag("$name\n$stderr") if $ENV{TLS_SHOW};
	return $told;
}

# What a hint says works, as it stands, but for values that it can't know.
sub obey
{
	my ($hint, $statement, @values) = @_;
	my ($sql) = $hint =~ /($statement.*?;)/;
	$sql =~ s/'\.\.'/"'" . shift(@values) . "'"/e while @values;
	diag("obeyed: $sql") if $ENV{TLS_SHOW};
	admin($sql);
	return;
}

sub works
{
	my ($name) = @_;
	be_alone();
	is((split /\|/, run_counts($target, 'items'))[0], 'succeeded', "$name: it works");
	is(app_sql($target, q{SELECT string_agg(check_name || ': ' || detail, ', ') FROM tablesync_check('items') WHERE NOT ok}), '', "$name: the check says so");
	return;
}

# --- TLS and a password ---

my $listener = session($target, '-U', 'app');
$listener->query_safe('LISTEN tablesync');
app_sql($target, q{SELECT tablesync_add('items', 'src', 'public.items')});
works('by itself');
admin(qq{ALTER SERVER src OPTIONS (ADD sslmode 'disable')});
my $hint = refused('without TLS', 'no pg_hba.conf entry for host', 'ALTER SERVER src OPTIONS \(SET sslmode');
obey($hint, 'ALTER SERVER', "$dir/gone.crt");
$hint = refused('no file of the CA', 'root certificate file ".*gone.crt" does not exist', 'ALTER SERVER src OPTIONS \(SET sslrootcert');
obey($hint, 'ALTER SERVER', "$dir/our_ca.crt");
$hint = refused('another name', 'server certificate for "source.test".* does not match host name "127.0.0.1"', 'ALTER SERVER src OPTIONS');
obey($hint, 'ALTER SERVER');
works('the name, at that address');
is_replica($source, $target, 'items', 'items', 'identical, through TLS with verify-full');

admin(qq{ALTER SERVER src OPTIONS (SET sslrootcert '$dir/other_ca.crt')});
$hint = refused('wrong CA', 'certificate verify failed', 'openssl s_client');
sub ask_openssl { my ($command) = $_[0] =~ /(openssl .*?) -- /; return `$command`; }
like(ask_openssl($hint), qr/unable to get local issuer certificate|unable to verify the first certificate|self.signed/, 'openssl says that it is another CA');
obey($hint, 'ALTER SERVER', "$dir/our_ca.crt");
works('the right CA');

sub let_source_show
{
	my ($file) = @_;
	$source->append_conf('postgresql.conf', "ssl_cert_file = '$dir/$file.crt'\nssl_key_file = '$dir/$file.key'");
	$source->restart;
	return;
}
let_source_show('expired_server');
$hint = refused('expired server certificate', 'certificate verify failed', 'openssl s_client');
like(ask_openssl($hint), qr/certificate has expired/, 'openssl says that it has expired');
let_source_show('server');
works('renewed');

$source->safe_psql('postgres', q{ALTER ROLE reader PASSWORD 'rotated-secret'});
$hint = refused('password rotated', 'password authentication failed for user "reader"', 'ALTER USER MAPPING');
obey($hint, 'ALTER USER MAPPING', 'rotated-secret');
works('the new password');
app_sql($target, q{ALTER USER MAPPING FOR app SERVER src OPTIONS (DROP password)});
$hint = refused('no password', 'Non-superusers must provide a password|password or GSSAPI', 'ALTER USER MAPPING FOR app SERVER src OPTIONS \(ADD password ');
my ($rc, $stdout, $stderr) = $target->psql('postgres', q{SELECT tablesync_add('more', 'src', 'public.items')}, extra_params => [ '-U', 'app' ]);
like($stderr, qr/ERROR:  password is required|password or GSSAPI/, 'tablesync_add says why, too');
obey($hint, 'ALTER USER MAPPING', 'rotated-secret');
works('a password');

demand('hostssl all somebody 127.0.0.1/32 scram-sha-256');
$hint = refused('not in pg_hba.conf', 'no pg_hba.conf entry for host "127.0.0.1", user "reader"', 'hostssl "postgres" "reader" 127.0.0.1/32 scram-sha-256');
demand($hint =~ /(hostssl .*?) -- /);
works('the line of the hint');

# --- client certificates ---

demand('hostssl all reader 127.0.0.1/32 scram-sha-256 clientcert=verify-full');
$hint = refused('client certificate wanted', 'connection requires a valid client certificate', 'Type as a superuser: ALTER USER MAPPING');
is(($target->psql('postgres', q{ALTER USER MAPPING FOR app SERVER src OPTIONS (ADD sslcert '/tmp/x')}, extra_params => [ '-U', 'app' ]))[0], 3, 'it takes a superuser');
obey($hint, 'ALTER USER MAPPING', "$dir/client.crt", "$dir/client.key");
works('password and certificate');
is_replica($source, $target, 'items', 'items', 'identical, with a client certificate');

for my $case ([ 'expired_client', 'expired client certificate', 'certificate expired', qr/notAfter=Jan  1 00:00:00 2021/ ],
	[ 'foreign_client', 'client certificate of another CA', 'alert unknown ca', qr/issuer=CN = other_ca|issuer=CN=other_ca/ ])
{
	my ($file, $name, $why, $found) = @$case;
	admin(qq{ALTER USER MAPPING FOR app SERVER src OPTIONS (SET sslcert '$dir/$file.crt', SET sslkey '$dir/$file.key')});
	$hint = refused($name, $why, 'openssl x509');
	like(ask_openssl($hint), $found, 'openssl says why');
	obey($hint, 'ALTER USER MAPPING', "$dir/client.crt", "$dir/client.key");
	works("not: $name");
}
chmod 0644, "$dir/client.key";
$hint = refused('a key that others may read', 'private key file ".*client.key" has group or world access', 'chmod 600');
chmod 0600, "$dir/client.key";

demand('hostssl all reader 127.0.0.1/32 cert');
$hint = refused('certificate instead of a password', 'Non-superuser cannot connect if the server does not request a password|password or GSSAPI', 'ALTER USER MAPPING');
obey($hint, 'ALTER USER MAPPING');
works('by certificate');
admin(q{ALTER USER MAPPING FOR app SERVER src OPTIONS (DROP password)});
works('by certificate alone');
is_replica($source, $target, 'items', 'items', 'identical, without a password');
admin(qq{ALTER USER MAPPING FOR app SERVER src OPTIONS (SET sslcert '$dir/somebody.crt', SET sslkey '$dir/somebody.key')});
$hint = refused("somebody else's certificate", 'certificate authentication failed for user "reader"', 'openssl x509');
like(ask_openssl($hint), qr/subject=CN ?= ?somebody/, 'openssl says whose it is');
obey($hint, 'ALTER USER MAPPING', "$dir/client.crt", "$dir/client.key");
works('our own');

# --- a service and a passfile ---

demand('hostssl all reader 127.0.0.1/32 scram-sha-256');
$source->safe_psql('postgres', q{ALTER ROLE reader PASSWORD 'read-only'});
admin(qq{
	ALTER SERVER src OPTIONS (ADD service 'shop', DROP host, DROP port, DROP dbname, DROP sslmode, DROP sslrootcert, DROP hostaddr);
	ALTER USER MAPPING FOR app SERVER src OPTIONS (DROP sslcert, DROP sslkey, DROP user, DROP password_required)});
$hint = refused('a passfile alone', 'Non-superusers must provide a password|password or GSSAPI', 'as a superuser: ALTER USER MAPPING');
obey($hint =~ s/.*as a superuser: //r, 'ALTER USER MAPPING');
works('service and passfile of the server');
admin(qq{ALTER SERVER src OPTIONS (ADD passfile '$dir/stale_passfile')});
$hint = refused('a stale passfile', 'password authentication failed.*password retrieved from file ".*stale_passfile"', 'Write the password of role');
unlike($hint, qr/stale-secret/, 'which is not quoted');
append_to_file("$dir/stale_passfile.new", "source.test:$port:postgres:reader:read-only\n");
chmod 0600, "$dir/stale_passfile.new";
rename "$dir/stale_passfile.new", "$dir/stale_passfile";
works('a new passfile');
admin(qq{ALTER SERVER src OPTIONS (SET passfile '$dir/nowhere')});
$hint = refused('no passfile', 'no password supplied', 'as a superuser: ALTER USER MAPPING FOR app SERVER src OPTIONS \(ADD password ');
admin(q{ALTER SERVER src OPTIONS (DROP passfile, SET service 'shopp')});
$hint = refused('no such service', 'definition of service "shopp" not found', 'PGSERVICEFILE');
obey($hint, 'ALTER SERVER', 'shop');
works('service');
is_replica($source, $target, 'items', 'items', 'identical, through a service');

# --- interrupted through TLS ---

my $locker = session($source);
$source->safe_psql('postgres', q{UPDATE items SET note = note || '+' WHERE id % 10 = 0});
$locker->query_safe('BEGIN; LOCK TABLE items');
be_alone();
my $run_id = app_sql($target, q{SELECT run_id FROM tablesync_run('items', wait => false)});
wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE ssl AND application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
$locker->quit;
$source->restart;
is(app_sql($target, "SELECT tablesync_wait($run_id)"), 'succeeded', 'a restart of the source under a run');
is_replica($source, $target, 'items', 'items', 'identical');

$source->safe_psql('postgres', 'ALTER ROLE reader CONNECTION LIMIT 0');
$target->safe_psql('postgres', 'ALTER ROLE app SET tablesync.retry_timeout = 0');
$hint = refused('no connection left', 'too many connections for role "reader"', 'ALTER ROLE');
$source->safe_psql('postgres', $hint =~ /(ALTER ROLE .*?;)/);
works('connections');
$source->stop;
refused('the source is down', 'Connection refused', 'Run again when the source answers.*ALTER SERVER src');

# --- no password in anything that is kept ---

my $secret = 'read-only|rotated-secret|stale-secret';
for my $what ('tablesync.run', 'tablesync_runs', 'tablesync_alerts', 'tablesync_alert_history', 'tablesync_status', q{tablesync_check('items')})
{
	is(app_sql($target, "SELECT count(*) FROM $what t WHERE t::text ~ '$secret'"), 0, "no password in $what");
}
my $heard = $listener->query('SELECT 1');
like($heard, qr/run_failed/, 'listeners have heard of failed runs');
unlike($heard, qr/$secret/, 'and of no password');
$listener->quit;
my $log = slurp_file($target->logfile);
like($log, qr/password authentication failed/, 'the log has the errors');
unlike($log, qr/$secret/, 'and no password');

done_testing();
