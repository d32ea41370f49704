# SoakDumps: a table of the source that is restored from a dump, and the target's
# database.

package SoakDumps;

use strict;
use warnings;

use Exporter 'import';
use SoakChanges;
use SoakTables;

our @EXPORT = qw(restore_table restore_target);

# A program of PostgreSQL; true if it succeeds.
sub runs
{
	my ($h, @command) = @_;
	my $log = "$ENV{TMPDIR}/dump.log";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		open STDOUT, '>>', $log;
		open STDERR, '>&', \*STDOUT;
		exec { $command[0] } @command or POSIX::_exit(127);
	}
	waitpid $pid, 0;
	$h->note("-- @command" . ($? ? ", fails: $?" : ''));
	return $? == 0;
}

# Dump a table, drop it, and restore it: the same rows in another table, or older ones.
sub restore_table
{
	my ($h, $t, $name) = @_;
	my $older = rand() < 0.4;
	my $file = "$ENV{TMPDIR}/table.dump";
	$h->{counts}{$older ? 'tables restored from an older dump' : 'tables restored'}++;
	my $node = $h->{nodes}{source}->connstr('postgres');
	runs($h, 'pg_dump', '-d', $node, '-t', "$t->{table}*", '-f', $file) or die "pg_dump fails\n";
	if ($older)
	{
		$h->change('source', { name => $_->{name}, sql => $_->{sql} }, $name)
		  for { name => 'insert', sql => SoakChanges::inserts($h->{source}, $t, 3) }, { name => 'update', sql => SoakChanges::updates($h->{source}, $t, pick($t, 4)) };
	}
	# a late transaction may have a lock
	runs($h, 'psql', '-XAtq', '-1', '-v', 'ON_ERROR_STOP=1', '-d', $node, '-c', "DROP TABLE $t->{table}", '-f', $file);
	unlink $file;
	return;
}

# Dump the target's database and go on in one that was restored.
sub restore_target
{
	my ($h) = @_;
	my $target = $h->{nodes}{target};
	my $file = "$ENV{TMPDIR}/target.dump";
	$h->{counts}{'targets restored from a dump'}++;
	$h->forget_sessions('target');
	$h->{runner}->quit;
	runs($h, 'pg_dump', '-Fc', '-d', $target->connstr('postgres'), '-f', $file) or die "pg_dump fails, see $ENV{TMPDIR}/dump.log\n";
	my $others = 'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid()';
	$target->safe_psql('template1', 'CREATE DATABASE restored TEMPLATE template0');
	runs($h, 'pg_restore', '--exit-on-error', '-d', $target->connstr('restored'), $file) or die "pg_restore fails, see $ENV{TMPDIR}/dump.log\n";
	unlink $file;
	$target->safe_psql('template1', "$others; ALTER DATABASE postgres RENAME TO gone; ALTER DATABASE restored RENAME TO postgres; DROP DATABASE gone WITH (FORCE)");
	my $others_run = $h->{target}->must("SELECT count(*) FROM tablesync_status WHERE state <> 'paused'");
	SoakModel::violation("$others_run replicas are not paused in a restored database") if $others_run;
	$h->{app}->must("SELECT tablesync_resume('$_->{table}')") for @{ $h->{all} };
	return;
}

1;
