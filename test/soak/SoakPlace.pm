# SoakPlace: the clusters that histories go on in, a proxy between them, and a
# process that reads.  Some have a standby: of the source, which runs then read
# instead of it, or of the target, which takes its place.
#
# nodes: source (where changes are made), served (what runs read), target, and standby (of the target).

package SoakPlace;

use strict;
use warnings;

use Digest::MD5 qw(md5);
use PostgreSQL::Test::Cluster;
use SoakProxy;
use SoakReader;
use TablesyncTest;

my $generation = 0;
my $copies = 0;

my $streaming = "wal_level = replica\nmax_wal_senders = 5\nwal_keep_size = 64MB\n";

# What kind of place a history has: the same for ten of them, so that it need not be made for each.
sub kind_of
{
	my ($seed, $number) = @_;
	srand(unpack 'N', md5("$seed/place/" . int($number / 10)));
	return $ENV{SOAK_PLACE} if $ENV{SOAK_PLACE};
	return 'plain' if $ENV{FAULTS} eq 'no' || rand() > 1 / 6;
	return rand() < 0.5 ? 'standby of the source' : 'standby of the target';
}

sub start
{
	my ($class, $kind, $counts) = @_;
	my $number = $generation++ ? "_$generation" : '';
	my $of_source = $kind eq 'standby of the source';
	my $of_target = $kind eq 'standby of the target';
	my $source = start_source(name => "source$number", conf => $streaming . "log_line_prefix = '%m [%p] %u|%a '\nmax_connections = 20\nfsync = off");
	$source->safe_psql('postgres', q{ALTER ROLE reader SET log_statement = 'all'; ALTER ROLE postgres SET lock_timeout = '700ms'});
	my $served = $of_source ? standby_of($source, "served$number", "max_standby_streaming_delay = 0\nhot_standby_feedback = off") : $source;
	my $proxy = SoakProxy->start($served->port);
	my $target = start_target($source, name => "target$number", port => $proxy->port, conf => ($of_target ? $streaming : '') . "fsync = off\nmax_connections = 20");
	prepare_target($target);
	my %place = (kind => $kind, nodes => { source => $source, served => $served, target => $target }, proxy => $proxy, counts => $counts, at => {}, stopped => []);
	if ($of_target)
	{
		$place{nodes}{standby} = standby_of($target, "standby$number", "synchronous_standby_names = ''");
		$target->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = '*'");
		$target->reload;
	}
	elsif ($ENV{SOAK_SMALL_DISK}) { $place{small_disk} = small_disk($target) }
	$place{reader} = SoakReader->start($target, $served, $ENV{TMPDIR});
	$counts->{"place: $kind"}++;
	return bless \%place, $class;
}

sub prepare_target
{
	my ($target) = @_;
	$target->safe_psql('postgres', q{
		ALTER ROLE app SET tablesync.retry_timeout = '4s';
		ALTER ROLE app SET tablesync.statement_timeout = '3s';
		ALTER ROLE app SET tablesync.lock_timeout = '2s';
		ALTER ROLE app SET tablesync.max_snapshot_age = '6s';
		CREATE TABLE soak_filler (a integer, page text) WITH (parallel_workers = 64);
		ALTER TABLE soak_filler ALTER page SET STORAGE PLAIN;
		INSERT INTO soak_filler SELECT i, repeat('x', 5000) FROM generate_series(1, 64) i;
		ANALYZE soak_filler});
	return;
}

sub standby_of
{
	my ($node, $name, $conf) = @_;
	$node->append_conf('pg_hba.conf', 'local replication all trust');
	$node->reload;
	$node->backup($name);
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($node, $name, has_streaming => 1);
	$standby->append_conf('postgresql.conf', "$conf\nwal_retrieve_retry_interval = 100ms");
	$standby->start;
	return $standby;
}

# A copy of the source, or of the target, that gets nothing of what is committed from here on.
sub cut_off
{
	my ($place, $what) = @_;
	my $nodes = $place->{nodes};
	my $node = $nodes->{$what};
	if ($what eq 'target')
	{
		$node->wait_for_catchup($nodes->{standby}) if $nodes->{standby};
		$node->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
		$node->reload;
	}
	my $alone = "primary_conninfo = ''";
	if ($what eq 'target' && $nodes->{standby})
	{
		$nodes->{standby}->append_conf('postgresql.conf', $alone);
		$nodes->{standby}->reload;
		$node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_replication') or die "the standby stays\n";
	}
	else { $nodes->{ $what eq 'target' ? 'standby' : 'spare' } = standby_of($node, $what . '_copy_' . ++$copies, $alone) }
	return;
}

sub small_disk
{
	my ($target) = @_;
	my $folder = "$ENV{SOAK_SMALL_DISK}/$generation";
	mkdir $folder or die "$folder: $!";
	$target->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$folder'");
	$target->safe_psql('postgres', 'GRANT CREATE ON TABLESPACE small TO app');
	return $folder;
}

# The standby of the source, or of the target, takes its place; the old one is gone.
sub promote
{
	my ($place, $what) = @_;
	my $nodes = $place->{nodes};
	if ($what eq 'source' && $nodes->{spare})
	{
		push @{ $place->{stopped} }, $nodes->{source};
		$nodes->{source}->stop('immediate');
		$nodes->{source} = $nodes->{served} = delete $nodes->{spare};
		$place->{at}{served} = -s $nodes->{source}->logfile;
		$nodes->{source}->promote;
		$place->{proxy}->command('port ' . $nodes->{source}->port);
		$place->{reader}->source_is_at($nodes->{source}->port);
		return;
	}
	elsif ($what eq 'source')
	{
		push @{ $place->{stopped} }, $nodes->{source};
		$nodes->{source}->stop('fast');
		$nodes->{served}->promote;
		$nodes->{source} = $nodes->{served};
	}
	else
	{
		push @{ $place->{stopped} }, $nodes->{target};
		$nodes->{target}->stop('immediate');
		$nodes->{target} = delete $nodes->{standby};
		$place->{at}{target} = -s $nodes->{target}->logfile;
		$nodes->{target}->promote;
		$place->{reader}->stop;
		$place->{reader} = SoakReader->start($nodes->{target}, $nodes->{served}, $ENV{TMPDIR});
	}
	$place->{kind} .= ', promoted';
	return;
}

sub stop
{
	my ($place) = @_;
	$place->{$_}->stop for qw(proxy reader);
	my %seen;
	for my $node (grep { !$seen{$_}++ } values %{ $place->{nodes} }) { $node->stop('immediate', fail_ok => 1); }
	system('rm', '-rf', $place->{small_disk}) if $place->{small_disk};
	for my $node (grep { defined && !$seen{$_}++ } @{ $place->{stopped} }) { $node->clean_node; }
	return;
}

1;
