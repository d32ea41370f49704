# docs/monitoring: the queries as a member of pg_monitor, the real
# postgres_exporter, the rules by promtool, and a dashboard and rules that use
# no metric which nobody exports.  Without the two programs, what needs them is
# skipped (test/programs.sh fetches them).

use strict;
use warnings;

use HTTP::Tiny;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TablesyncTest;
use Test::More;

my $docs = "$ENV{TESTDIR}/docs/monitoring";

sub program
{
	my ($name) = @_;
	return grep { -x } map { "$_/$name" } split /:/, $ENV{PATH};
}

# --- the files: queries by name, with their columns; metrics by name ---

my (%queries, %columns, %metrics, $query);
for (split /\n/, slurp_file("$docs/queries.yaml"))
{
	$query = $1 if /^(\w+):$/;
	$queries{$query} .= "$1\n" if /^    (\S.*|\s.*)$/ && !/^    - /;
	next unless /^    - (\w+): \{usage: "(LABEL|GAUGE|COUNTER)", description: "[^"]+"\}$/;
	push @{ $columns{$query} }, $1;
	$metrics{"${query}_$1"} = $2 if $2 ne 'LABEL';
}
is(scalar(keys %queries), 10, 'queries are read');
is(scalar(grep { $metrics{$_} eq 'COUNTER' && !/_total$/ || $metrics{$_} eq 'GAUGE' && /_total$/ } keys %metrics), 0, 'counters end in _total');

my $dashboard = decode_json(slurp_file("$docs/dashboard.json"));
my @expressions = map { $_->{expr} } map { @{ $_->{targets} } } @{ $dashboard->{panels} };
my $rules = slurp_file("$docs/alerts.yaml");
my $text = join ' ', @expressions, map { $_->{query}{query} // () } grep { ref $_->{query} } @{ $dashboard->{templating}{list} };
for ([ 'dashboard', $text ], [ 'rules', join ' ', $rules =~ /expr: (.*(?:\n {10}.*)*)/g ])
{
	my ($name, $used) = @$_;
	my %used = map { $_ => 1 } $used =~ /\b(tablesync_\w+)/g;
	cmp_ok(scalar(keys %used), '>', 5, "$name: uses metrics");
	is(join(' ', grep { !$metrics{$_} } sort keys %used), '', "$name: no metric that the queries don't make");
}
my $readme = slurp_file("$docs/README.md");
is(join(' ', grep { my ($suffix) = /tablesync_[a-z]+(_.*)/; $readme !~ /`$_\W/ && $readme !~ /`$suffix`/ } sort keys %metrics), '', 'every metric is documented');
is(join(' ', grep { $readme !~ /`$_`/ } $rules =~ /alert: (\w+)/g), '', 'every alert too');

# --- clusters: a replica that is fine, one that fails, one that never ran, one paused ---

my ($source, $target) = start_pair();
$source->safe_psql('postgres', q{
	CREATE TABLE media (id integer PRIMARY KEY, path text, updated_at timestamp NOT NULL DEFAULT clock_timestamp());
	INSERT INTO media SELECT i, '/' || i FROM generate_series(1, 20) i;
	CREATE TABLE broken (id integer PRIMARY KEY, note text);
	INSERT INTO broken VALUES (1, 'confidential')});
$target->safe_psql('postgres', q{CREATE ROLE metrics LOGIN PASSWORD 'metrics' IN ROLE pg_monitor; CREATE SCHEMA "Odd" AUTHORIZATION app});
app_sql($target, q{
	SELECT tablesync_add('media', 'src', 'public.media', version_column => 'updated_at');
	SELECT tablesync_add('broken', 'src', 'public.broken');
	ALTER TABLE broken ADD CHECK (note = 'public');
	SELECT tablesync_add('"Odd"."Name"', 'src', 'public.media', version_column => 'updated_at');
	SELECT tablesync_add('paused', 'src', 'public.media', version_column => 'updated_at', enabled => false)});
app_sql($target, q{SELECT tablesync_run('media')});
$source->safe_psql('postgres', q{
	INSERT INTO media VALUES (21, '/21'), (22, '/22');
	UPDATE media SET path = '/', updated_at = clock_timestamp() WHERE id = 1;
	DELETE FROM media WHERE id IN (2, 3, 4)});
app_sql($target, q{SELECT tablesync_run('media')});
app_fails($target, q{SELECT tablesync_run('broken')}) for 1 .. 2;

# every query, as the exporter's role
for my $name (sort keys %queries)
{
	(my $sql = $queries{$name}) =~ s/\Aquery: \|\n//;
	my ($rc, $out, $err) = $target->psql('postgres', $sql, extra_params => [ '-U', 'metrics', '-P', 'tuples_only=off', '-P', 'footer=off' ]);
	my ($header) = split /\n/, $out;
	is("$err$header", join('|', @{ $columns{$name} }), "query $name makes its columns");
}

# --- the exporter ---

my $exporter;    # must not outlive a test that dies

END
{
	local $?;
	$exporter->kill_kill if $exporter;
}

sub tests_of_exporter
{
	my ($program) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	local $ENV{DATA_SOURCE_NAME} = 'postgresql://metrics:metrics@127.0.0.1:' . $target->port . '/postgres?sslmode=disable';
	my $log = '';
	$exporter = IPC::Run::start(
		[ $program, "--extend.query-path=$docs/queries.yaml", "--web.listen-address=127.0.0.1:$port", '--disable-default-metrics', '--disable-settings-metrics' ],
		'<', \undef, '>&', \$log);

	# name{labels}, without the server's label => value
	my $scrape = sub {
		my $page;
		for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			$page = HTTP::Tiny->new(timeout => 60)->get("http://127.0.0.1:$port/metrics");
			last if $page->{success} && $page->{content} =~ /^tablesync_extension_info/m;
			IPC::Run::pump_nb($exporter);
			select undef, undef, undef, 0.1;
		}
		die "no metrics: $log" unless $page->{success};
		my %values;
		for (grep { /^tablesync_/ } split /\n/, $page->{content})
		{
			my ($name, $labels, $value) = /^(\w+)\{(.*)\} (\S+)$/ or die "unexpected line: $_";
			$labels =~ s/,?server="[^"]*"//;
			$labels =~ s/^,//;
			$values{"$name\{$labels\}"} = $value;
		}
		return (\%values, $page->{content});
	};

	my ($is, $page) = $scrape->();
	unlike($log, qr/level=error/, 'the exporter reads the file and runs the queries') or diag($log);
	my %exported = map { /^(\w+)/ => 1 } keys %$is;
	is(join(' ', grep { !$exported{$_} && !/progress/ } sort keys %metrics), '', 'every metric is exported');
	is(join(' ', grep { $is->{$_} eq '1' } sort grep { /^tablesync_replica_state/ } keys %$is),
		join(' ', map { "tablesync_replica_state{replica=\"$_->[0]\",state=\"$_->[1]\"}" }
			  [ '\"Odd\".\"Name\"', 'never_run' ], [ 'public.broken', 'failed' ], [ 'public.media', 'ok' ], [ 'public.paused', 'paused' ]),
		'each replica is in one state');
	my $media = sub { my ($metric, @labels) = @_; return $is->{"$metric\{" . join(',', sort 'replica="public.media"', @labels) . '}'} };
	is(join(' ', map { $media->("tablesync_rows_${_}_total") } qw(inserted updated deleted compared)), '22 1 3 39', 'counters of rows');
	is($media->('tablesync_replica_rows'), 19, 'rows');
	is(join(' ', map { $media->('tablesync_runs_total', "status=\"$_\"") } qw(succeeded failed cancelled crashed)), '2 0 0 0', 'runs');
	cmp_ok($media->('tablesync_replica_staleness_seconds'), '<', 600, 'staleness');
	cmp_ok(abs($media->('tablesync_replica_last_success_timestamp_seconds') - time), '<', 600, 'last success');
	cmp_ok($media->('tablesync_replica_last_run_duration_seconds'), '>', 0, 'duration');
	cmp_ok($media->('tablesync_run_seconds_total'), '>=', $media->('tablesync_run_source_seconds_total'), 'time waited for the source is part of the time');
	is($is->{'tablesync_run_failures_in_a_row{replica="public.broken"}'}, 2, 'failures in a row');
	is($is->{'tablesync_replica_staleness_seconds{replica="public.broken"}'}, '+Inf', 'never succeeded: infinitely stale');
	unlike($page, qr/confidential|violates/, 'no message, no value');
	my $open = sub { return join(' ', map { s/^tablesync_open_alerts//r . "=$is->{$_}" } sort grep { /^tablesync_open_alerts/ } keys %$is) };
	my $failed = '{kind="run_failed",replica="public.broken",severity="warning"}=1';
	is($open->(), $failed, 'open alerts');
	is(join(' ', map { $is->{"tablesync_health_$_\{\}"} } qw(status flags)), '1 1', 'health: warning, a run has failed');

	# history is deleted: counters don't shrink
	$target->safe_psql('postgres', 'DELETE FROM tablesync.run');
	($is) = $scrape->();
	is(join(' ', $media->('tablesync_rows_inserted_total'), $media->('tablesync_runs_total', 'status="succeeded"')), '22 2', 'counters survive the history');

	# a live run that waits for a lock
	my $locker = session($source);
	$locker->query_safe('BEGIN; LOCK TABLE media');
	app_sql($target, "SELECT run_id FROM tablesync_run('media', wait => false)");
	wait_until($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE 'tablesync/%' AND wait_event_type = 'Lock'});
	($is) = $scrape->();
	is(join(' ', map { $media->("tablesync_progress_$_", 'phase="scan"') // 'missing' } qw(percent rows throttled_seconds)), '0 0 0', 'progress of a live run');
	cmp_ok($media->('tablesync_progress_running_seconds', 'phase="scan"'), '>', 0, 'and its age');
	is($media->('tablesync_replica_state', 'state="running"'), 1, 'state: running');

	# killed: counted before any run records it, and not again afterwards
	kill 'KILL', $target->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'tablesync run'});
	$locker->query_safe('COMMIT');
	$locker->quit;
	# while the server comes back, psql may end before it has read the query
	for (1 .. 20)
	{
		last if eval { wait_until($target, q{SELECT status = 'crashed' FROM tablesync_runs ORDER BY run_id DESC LIMIT 1}); 1 };
	}
	($is) = $scrape->();
	is(join(' ', $media->('tablesync_runs_total', 'status="crashed"'), $media->('tablesync_run_failures_in_a_row')), '1 1', 'a crash');
	app_sql($target, q{SELECT tablesync_run('media')});
	($is) = $scrape->();
	is(join(' ', $media->('tablesync_runs_total', 'status="crashed"'), $media->('tablesync_run_failures_in_a_row')), '1 0', 'after the next run');

	# an alert that needs somebody, until it is over
	$source->safe_psql('postgres', q{CREATE TABLE renamed (id integer PRIMARY KEY, a text)});
	app_sql($target, q{SELECT tablesync_add('renamed', 'src', 'public.renamed', on_schema_change => 'pause')});
	app_sql($target, q{SELECT tablesync_run('renamed')});
	$source->safe_psql('postgres', q{ALTER TABLE renamed RENAME a TO b});
	app_fails($target, q{SELECT tablesync_run('renamed')});
	($is) = $scrape->();
	is($open->(), "$failed {kind=\"schema_changed\",replica=\"public.renamed\",severity=\"critical\"}=1", 'a critical alert');
	is(join(' ', map { $is->{"tablesync_health_$_\{\}"} } qw(status flags)), '2 16', 'health: critical, although the run has paused its replica');
	app_sql($target, q{ALTER TABLE renamed RENAME a TO b; ALTER FOREIGN TABLE renamed_source RENAME a TO b; SELECT tablesync_resume('renamed')});
	app_sql($target, q{SELECT tablesync_run('renamed')});
	($is) = $scrape->();
	is($open->(), $failed, 'it is over');
	is($is->{'tablesync_health_status{}'}, 0, 'health: ok');

	# removed, dropped: no series is left
	app_sql($target, q{SELECT tablesync_remove('broken'); SELECT tablesync_remove('renamed'); DROP TABLE media; DROP FOREIGN TABLE media_source});
	($is) = $scrape->();
	is(join(' ', grep { /"public\.(media|broken)"/ } keys %$is), '', 'what is removed or dropped vanishes');
	is($target->safe_psql('postgres', q{SELECT count(*) FROM tablesync.total}), 0, 'totals too');
	$exporter->kill_kill;
	undef $exporter;
	return;
}

SKIP:
{
	my ($program) = program('prometheus-postgres-exporter');
	skip('prometheus-postgres-exporter is neither installed nor could it be fetched', 1) unless $program;
	tests_of_exporter($program);
}

# --- rules and expressions ---

SKIP:
{
	my ($promtool) = program('promtool');
	skip('promtool (package prometheus or promtool) is neither installed nor could it be fetched', 1) unless $promtool;

	command_ok([ $promtool, 'check', 'rules', "$docs/alerts.yaml" ], 'promtool: rules');
	command_ok([ $promtool, 'test', 'rules', "$docs/alerts_test.yaml" ], 'promtool: tests of the rules');
	is(join(' ', grep { slurp_file("$docs/alerts_test.yaml") !~ /alertname: $_\n(.*\n)?\s+exp_alerts:\n/ } $rules =~ /alert: (\w+)/g), '', 'each rule is seen to fire');

	# the expressions of the dashboard, as rules
	my $file = PostgreSQL::Test::Utils::tempdir() . '/dashboard.yaml';
	my @records = map { s/\$__rate_interval/5m/gr =~ s/\$replica/.*/gr } @expressions;
	append_to_file($file, encode_json({ groups => [ { name => 'dashboard', rules => [ map { { record => "r$_", expr => $records[$_] } } 0 .. $#records ] } ] }));
	command_ok([ $promtool, 'check', 'rules', $file ], 'promtool: expressions of the dashboard');
}

done_testing();
