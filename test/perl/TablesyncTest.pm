# TablesyncTest: a source and a target cluster, and what the tests do to them.
#
# The source listens on TCP and asks for passwords; role "reader" may SELECT
# and nothing else.  The target has the extension, a foreign server "src" and
# role "app", not a superuser, that owns the replicas.

package TablesyncTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(start_pair start_source start_target app_sql app_fails run_counts same_rows is_replica wait_until session);

sub write_hba
{
	my ($node) = @_;
	unlink $node->data_dir . '/pg_hba.conf';
	$node->append_conf('pg_hba.conf',
		"local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
}

sub new_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, $options{install_path} ? (install_path => $options{install_path}) : ());
	$node->init(extra => [ '--no-locale', '-E', $options{encoding} // 'UTF8' ]);
	$node->append_conf('postgresql.conf', <<"CONF");
listen_addresses = '127.0.0.1'
password_encryption = 'scram-sha-256'
max_worker_processes = 16
log_statement = none
log_min_messages = warning
autovacuum_naptime = 1s
restart_after_crash = on
$options{conf}
CONF
	write_hba($node);
	$node->start;
	return $node;
}

# A source with role reader; conf is added to postgresql.conf.
sub start_source
{
	my (%options) = @_;
	my $source = new_node($options{name} // 'source', conf => '', %options);
	$source->safe_psql('postgres', q{
		CREATE ROLE reader LOGIN PASSWORD 'read-only';
		ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader;
		ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO reader});
	return $source;
}

# A target with the extension and a server "src" to the source.
sub start_target
{
	my ($source, %options) = @_;
	my $target = new_node($options{name} // 'target', conf => '', %options);
	my $port = $options{port} // $source->port;
	$target->safe_psql('postgres', qq{
		CREATE EXTENSION tablesync CASCADE;
		CREATE ROLE app LOGIN PASSWORD 'app';
		GRANT CREATE ON SCHEMA public TO app;
		CREATE SERVER src FOREIGN DATA WRAPPER postgres_fdw
			OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
		GRANT USAGE ON FOREIGN SERVER src TO app;
		CREATE USER MAPPING FOR app SERVER src OPTIONS (user 'reader', password 'read-only')});
	return $target;
}

sub start_pair
{
	my (%options) = @_;
	my $source = start_source(%{ $options{source} // {} });
	return ($source, start_target($source, %{ $options{target} // {} }));
}

# Run SQL at the target as role app; dies on an error.
sub app_sql
{
	my ($target, $sql) = @_;
	return $target->safe_psql('postgres', $sql, extra_params => [ '-U', 'app' ]);
}

# Run SQL at the target as role app that must fail; returns what psql prints.
sub app_fails
{
	my ($target, $sql) = @_;
	my ($rc, $stdout, $stderr) = $target->psql('postgres', $sql,
		extra_params => [ '-U', 'app', '-v', 'VERBOSITY=verbose' ]);
	isnt($rc, 0, "fails: $sql");
	return $stderr;
}

# Run a replica; returns "status|inserted|updated|deleted".
sub run_counts
{
	my ($target, $replica, $arguments) = @_;
	$arguments //= '';
	return app_sql($target,
		"SELECT status, inserted, updated, deleted FROM tablesync_run('$replica'$arguments)");
}

# All rows of a table in text form, in an order that does not depend on collations.
sub rows_of
{
	my ($node, $table, $order) = @_;
	$order //= 't::text COLLATE "C"';
	return $node->safe_psql('postgres', qq{
		SET extra_float_digits = 3;
		SELECT t::text FROM $table t ORDER BY $order});
}

# Are source and replica the same, row by row?  Tells the first differences.
sub same_rows
{
	my ($source, $target, $source_table, $replica) = @_;
	my $wanted = rows_of($source, $source_table);
	my $got = rows_of($target, $replica // $source_table);
	return 1 if $wanted eq $got;
	my %wanted = map { $_ => 1 } split /\n/, $wanted;
	my %got = map { $_ => 1 } split /\n/, $got;
	my @missing = grep { !$got{$_} } sort keys %wanted;
	my @surplus = grep { !$wanted{$_} } sort keys %got;
	splice(@missing, 5) if @missing > 5;
	splice(@surplus, 5) if @surplus > 5;
	diag("only at the source: @missing\nonly in the replica: @surplus");
	return 0;
}

# Test that a run leaves the replica identical, and that the run proves it.
sub is_replica
{
	my ($source, $target, $source_table, $replica, $name) = @_;
	my $proof = app_sql($target, qq{
		SELECT status || ' ' || (proof->>'equal') || ' ' || (proof->'source'->>'rows')
		FROM tablesync_runs WHERE replica = '$replica'::regclass ORDER BY run_id DESC LIMIT 1});
	my $rows = $source->safe_psql('postgres', "SELECT count(*) FROM $source_table");
	my $ok = same_rows($source, $target, $source_table, $replica);
	is($proof . ($ok ? ' identical' : ' different'), "succeeded true $rows identical", $name);
	return $ok;
}

# A psql session that stays open; each query has the whole timeout for itself.
sub session
{
	my ($node, @params) = @_;
	my $session = $node->background_psql('postgres', extra_params => [@params]);
	$session->set_query_timer_restart;
	return $session;
}

# Wait until a query at a node returns t.
sub wait_until
{
	my ($node, $query) = @_;
	$node->poll_query_until('postgres', $query) or die "timed out: $query";
}

1;
