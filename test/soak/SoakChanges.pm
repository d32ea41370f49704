# SoakChanges: random work at the source, and at the target.
#
# A change is a hash: name, sql, and alone (it can't be in a transaction), shape
# (columns change), excuse (the next run may fail because of it), writes (rows of
# the replica).

package SoakChanges;

use strict;
use warnings;

use Exporter 'import';
use SoakTables;

our @EXPORT = qw(source_change late_change target_change setting stray_write pick draw);

# One of pairs of weight and value.
sub draw
{
	my @kinds = @_;
	my $sum = 0;
	$sum += $_->[0] for @kinds;
	my $at = rand($sum);
	for my $kind (@kinds)
	{
		$at -= $kind->[0];
		return $kind->[1] if $at < 0;
	}
	return $kinds[-1][1];
}

# A condition for some rows, the same ones wherever they lie in the table.
sub pick
{
	my ($t, $count) = @_;
	my $names = key_list($t);
	my $salt = int(rand(1e9));
	return "($names) IN (SELECT $names FROM $t->{table} ORDER BY md5('$salt' || ROW($names)::text) LIMIT $count)";
}

# A stamp that no row had before; it may be older than that of the last change.
sub stamp
{
	my ($t) = @_;
	$t->{stamps}++;
	my $second = $t->{stamps} * (rand() < 0.3 ? -1 : 1);
	return "timestamp '2020-01-01' + interval '$second s'" . (rand() < 0.5 ? ' + random() * interval \'0.5 s\'' : '');
}

sub inserts
{
	my ($source, $t, $count) = @_;
	my @columns = grep { $_->{written} } columns_of($source, $t);
	my %key = map { $_->{name} => $_->{random} } @{ $t->{key} };
	my @values = map {
		my $c = $_;
		$c->{key} ? $key{ $c->{name} }
		  : $c->{name} eq 'updated_at' ? stamp($t)
		  : $c->{name} eq 'u' ? 'CASE WHEN random() < 0.8 THEN (random() * 2000000000)::integer END'
		  : $c->{name} eq 'n' ? '(random() * 200 - 100)::integer'
		  : random_value($c->{type})
	} @columns;
	return "INSERT INTO $t->{table} (" . join(', ', map { $_->{name} } @columns) . ') SELECT ' . join(', ', @values)
	  . " FROM generate_series(1, $count) ON CONFLICT DO NOTHING";
}

sub updates
{
	my ($source, $t, $where, $unstamped) = @_;
	my @columns = grep { $_->{payload} } columns_of($source, $t);
	my %set;
	for (1 .. 1 + int(rand(3)))
	{
		my $c = one_of(@columns) or last;
		$set{ $c->{name} } = $c->{name} eq 'n' ? '(random() * 200 - 100)::integer' : random_value($c->{type});
	}
	$set{updated_at} = stamp($t) if !$unstamped || $t->{fingerprint} eq 'version';
	return "UPDATE $t->{table} SET " . join(', ', map { "$_ = $set{$_}" } sort keys %set) . " WHERE $where";
}

sub names_of { my ($source, $t) = @_; return join ', ', map { $_->{name} } grep { $_->{written} } columns_of($source, $t); }

# Columns whose names and types may change: no settings name them.
sub free_columns
{
	my ($source, $t) = @_;
	return grep { $_->{name} =~ /^[cx]\d/ } columns_of($source, $t);
}

sub source_change
{
	my ($source, $t) = @_;
	my $few = 1 + int(rand(5));
	my $table = $t->{table};
	my $names = key_list($t);
	my $all = names_of($source, $t);
	my @free = $t->{only} ? () : free_columns($source, $t);
	my $c = @free ? one_of(@free) : undef;
	my $d = @free ? one_of(@free) : undef;
	my $number = ++$t->{added};
	my $label = $t->{label} // 'c';
	return draw(
		[ 14, { name => 'insert', sql => inserts($source, $t, $few) } ],
		[ 6, { name => 'insert many', sql => inserts($source, $t, 1 + int(rand(80))) } ],
		[ 16, { name => 'update', sql => updates($source, $t, pick($t, $few)) } ],
		[ 6, { name => 'update without stamp', sql => updates($source, $t, pick($t, $few), 1) } ],
		[ 5, { name => 'update many', sql => updates($source, $t, 'random() < ' . rand(), rand() < 0.3) } ],
		[ 12, { name => 'delete', sql => "DELETE FROM $table WHERE " . pick($t, $few) } ],
		[ 4, { name => 'delete many', sql => "DELETE FROM $table WHERE " . pick($t, 60) } ],
		[ 5, { name => 'key used again', sql => "CREATE TEMP TABLE reused ON COMMIT DROP AS SELECT $all FROM $table WHERE " . pick($t, 3)
			. "; DELETE FROM $table WHERE ($names) IN (SELECT $names FROM reused); UPDATE reused SET s = 'reused', updated_at = " . stamp($t)
			. "; INSERT INTO $table ($all) SELECT * FROM reused" } ],
		[ 5, { name => 'key changed', sql => "UPDATE $table SET $t->{key}[0]{name} = $t->{key}[0]{random}, updated_at = " . stamp($t) . ' WHERE ' . pick($t, 1) } ],
		[ 5, { name => 'keys swapped', sql => swap($t, $all) } ],
		[ 4, { name => 'unique values swapped', sql => $table && (grep { $_->{name} eq 'u' } columns_of($source, $t)) ? swap_unique($t) : 'SELECT 1' } ],
		[ 5, { name => 'subtransactions', sql => 'SAVEPOINT a; ' . updates($source, $t, pick($t, $few)) . "; SAVEPOINT b; DELETE FROM $table; ROLLBACK TO b; "
			. inserts($source, $t, 3) . '; RELEASE a; SAVEPOINT c; ' . updates($source, $t, pick($t, 2)) . '; ROLLBACK TO c; ' . updates($source, $t, pick($t, 2)) } ],
		[ 2, { name => 'rolled back', sql => updates($source, $t, pick($t, 20)) . '; ROLLBACK; BEGIN' } ],
		[ 2, { name => 'update without effect', sql => "UPDATE $table SET n = n WHERE random() < " . rand() } ],
		[ 1, { name => 'truncate', sql => "TRUNCATE $table" } ],
		[ 3, { name => 'truncate and load', sql => "CREATE TEMP TABLE saved ON COMMIT DROP AS SELECT $all FROM $table; TRUNCATE $table; INSERT INTO $table ($all) SELECT * FROM saved" } ],
		[ 2, { name => 'truncate and other rows', sql => "TRUNCATE $table; " . inserts($source, $t, 40) } ],
		[ 2, { name => 'vacuum full', sql => "VACUUM FULL $table", alone => 1 } ],
		[ 3, { name => 'vacuum', sql => "VACUUM (ANALYZE" . one_of('', ', FREEZE') . ") $table", alone => 1 } ],
		[ 1, { name => 'cluster', sql => $t->{partitioned} ? "ANALYZE $table" : "CLUSTER $table USING $t->{name}_pkey", alone => 1 } ],
		[ 2, { name => 'rewrite', sql => "ALTER TABLE $table ALTER s TYPE text USING s || ''" } ],
		[ 2, { name => 'column added', shape => 1, sql => "ALTER TABLE $table ADD x$number " . one_of('integer', 'text', "integer DEFAULT 7", "text DEFAULT 'new'",
			'numeric NOT NULL DEFAULT 1.50', 'timestamp without time zone DEFAULT now()', 'uuid DEFAULT gen_random_uuid()') } ],
		[ @free ? 2 : 0, { name => 'column renamed', shape => 1, sql => $c ? "ALTER TABLE $table RENAME $c->{name} TO x$number" : '' } ],
		[ @free ? 1 : 0, { name => 'column dropped', shape => 1, sql => $c ? "ALTER TABLE $table DROP $c->{name}" : '' } ],
		[ @free ? 1 : 0, { name => 'column dropped and added', shape => 1, sql => $c ? "ALTER TABLE $table DROP $c->{name}, ADD $c->{name} $c->{type}" : '' } ],
		[ @free && $c->{name} ne $d->{name} ? 1 : 0, { name => 'columns change names', shape => 1, sql => $c ?
			"ALTER TABLE $table RENAME $c->{name} TO swapping; ALTER TABLE $table RENAME $d->{name} TO $c->{name}; ALTER TABLE $table RENAME swapping TO $d->{name}" : '' } ],
		[ @free ? 2 : 0, { name => 'column retyped', shape => 1, sql => $c ? "ALTER TABLE $table ALTER $c->{name} DROP DEFAULT, ALTER $c->{name} TYPE "
			. ($c->{type} eq 'integer' ? 'bigint' : $c->{type} eq 'character varying(20)' ? 'text' : "text USING $c->{name}::text") : '' } ],
		[ @free ? 1 : 0, { name => 'column renamed, and its name used again', shape => 1, sql => $c ? "ALTER TABLE $table RENAME $c->{name} TO x$number; ALTER TABLE $table ADD $c->{name} $c->{type}" : '' } ],
		[ $t->{enum} ? 5 : 0, { name => 'label added', shape => 1, alone => 1, sql => 'ALTER TYPE ' . ($t->{enum} // '') . " ADD VALUE 'new $number'" . one_of('', " BEFORE 'a'", " AFTER 'a'") } ],
		[ $t->{enum} ? 5 : 0, { name => 'label renamed', shape => 1, excuse => 1, label => "renamed $number", %{ renamed_label($t, $label, "renamed $number") } } ],
		[ 2, { name => 'restored from a dump', shape => 1, restore => 1, excuse => 1, undo => 'SELECT 1', sql => '' } ],
		[ 1, { name => 'granted by column', shape => 1, excuse => 1, undo => "REVOKE SELECT ON $table FROM reader; GRANT SELECT ON $table TO reader",
			sql => "REVOKE SELECT ON $table FROM reader; GRANT SELECT (" . join(', ', grep { rand() < 0.8 } map { $_->{name} } columns_of($source, $t)) . ", updated_at) ON $table TO reader" } ],
		[ 1, { name => 'revoked', excuse => 1, undo => "GRANT SELECT ON $table TO reader", sql => "REVOKE SELECT ON $table FROM reader" } ],
		[ $t->{partitioned} ? 4 : 0, { name => 'partition detached', sql => "ALTER TABLE $table DETACH PARTITION ${table}_1" } ],
		[ $t->{partitioned} ? 6 : 0, { name => 'partition attached', sql => "ALTER TABLE $table ATTACH PARTITION ${table}_1 FOR VALUES WITH (MODULUS 3, REMAINDER 1)" } ]);
}

# A label gets another name, and sometimes a new one the old name.  Where a run has paused the replica for it, somebody does the same here.
sub renamed_label
{
	my ($t, $old, $new) = @_;
	my $type = $t->{enum} // 'none';
	return { sql => "ALTER TYPE $type RENAME VALUE '$old' TO '$new'" . (rand() < 0.5 ? "; ALTER TYPE $type ADD VALUE '$old'" : ''), undo_at => 'app',
		undo => "DO \$\$ BEGIN IF NOT EXISTS (SELECT FROM pg_enum WHERE enumtypid = '$type'::regtype AND enumlabel = '$new') THEN ALTER TYPE $type RENAME VALUE '$old' TO '$new'; END IF; END \$\$; SELECT tablesync_resume('$t->{table}')" };
}

# What two rows have besides their keys changes places.
sub swap
{
	my ($t, $all) = @_;
	my @keys = map { $_->{name} } @{ $t->{key} };
	my $names = join ', ', @keys;
	my %key = map { $_ => 1 } @keys;
	my @rest = grep { !$key{$_} } split /, /, $all;
	return "CREATE TEMP TABLE a ON COMMIT DROP AS SELECT $all, row_number() OVER () AS number_ FROM $t->{table} WHERE " . pick($t, 2)
	  . "; UPDATE a SET updated_at = " . stamp($t)
	  . "; DELETE FROM $t->{table} WHERE ($names) IN (SELECT $names FROM a); INSERT INTO $t->{table} (" . join(', ', @keys, @rest) . ') SELECT '
	  . join(', ', map({ "x.$_" } @keys), map { "y.$_" } @rest) . ' FROM a x JOIN a y ON x.number_ <> y.number_ OR (SELECT count(*) FROM a) = 1';
}

sub swap_unique
{
	my ($t) = @_;
	my $names = key_list($t);
	my $same = join ' AND ', map { "x.$_->{name} = a.$_->{name}" } @{ $t->{key} };
	return "CREATE TEMP TABLE a ON COMMIT DROP AS SELECT $names, u, lead(u, 1, first) OVER (ORDER BY u) AS next FROM (SELECT $names, u, min(u) OVER () AS first FROM $t->{table} WHERE u IS NOT NULL AND "
	  . pick($t, 6) . ") s; UPDATE $t->{table} x SET u = NULL FROM a WHERE $same; UPDATE $t->{table} x SET u = next, updated_at = " . stamp($t) . " FROM a WHERE $same";
}

# Rows that somebody writes now and commits later.
sub late_change
{
	my ($source, $t) = @_;
	return rand() < 0.5 ? inserts($source, $t, 5) : updates($source, $t, pick($t, 2));
}

# A write to the replica by somebody who should not.
sub stray_write
{
	my ($t) = @_;
	my $few = 1 + int(rand(4));
	my $sql = one_of(
		"DELETE FROM $t->{table} WHERE " . pick($t, $few),
		"UPDATE $t->{table} SET updated_at = 'epoch', n = 4711 WHERE " . pick($t, $few),
		# a version that stays hides what somebody does to the replica
		"UPDATE $t->{table} SET n = n + 1" . ($t->{fingerprint} eq 'version' ? ", updated_at = 'epoch'" : '') . ' WHERE ' . pick($t, $few),
		"TRUNCATE $t->{table}",
		"DELETE FROM $t->{table}");
	my $way = int(rand(6));
	return "BEGIN; $sql; ROLLBACK" if $way == 0;
	return "BEGIN; SAVEPOINT a; $sql; ROLLBACK TO a; DELETE FROM $t->{table} WHERE " . pick($t, 1) . '; COMMIT' if $way == 1;
	return "BEGIN; CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT * FROM $t->{table} WHERE " . pick($t, 3)
	  . "; DELETE FROM $t->{table} WHERE (" . key_list($t) . ') IN (SELECT ' . key_list($t) . " FROM mine); INSERT INTO $t->{table} SELECT * FROM mine; COMMIT" if $way == 2 && !$t->{own};
	return "BEGIN; $sql; COMMIT";
}

# A setting that somebody changes while a run goes on.
sub setting
{
	my ($t) = @_;
	return "SELECT tablesync_alter('$t->{table}', " . one_of('chunk_rows => ' . one_of(2, 30, 500), 'verify_fraction => ' . one_of(0, 0.4), 'max_source_load => ' . one_of(0.5, 1),
		$t->{group} ? () : "consistency => '" . one_of('auto', 'snapshot', 'chunk') . "'") . ')';
}

sub target_change
{
	my ($t) = @_;
	my $alter = "SELECT tablesync_alter('$t->{table}', ";
	my $kind = one_of('xmin', 'row', $t->{version} ? 'version' : ());
	my $filter = one_of('n > 0', 'n IS NOT NULL', 'n % 2 = 0', "updated_at > '2020-01-01 00:10'", 's IS NULL OR n < 0', '');
	return draw(
		[ 8, { name => 'stray write', sql => stray_write($t), writes => 1, alone => 1 } ],
		[ 2, { name => 'chunk_rows', sql => $alter . 'chunk_rows => ' . one_of(5, 20, 1000) . ')' } ],
		[ 2, { name => 'fingerprint', sql => $alter . "fingerprint => '$kind')", set => { fingerprint => $kind } } ],
		[ $t->{group} ? 0 : 2, { name => 'consistency', sql => $alter . "consistency => '" . one_of('auto', 'snapshot', 'chunk') . "')" } ],
		[ 1, { name => 'verify_fraction', sql => $alter . 'verify_fraction => ' . one_of(0, 0.5, 1) . ')' } ],
		[ $t->{part} ? 4 : 0, { name => 'filter', sql => $alter . 'filter => ' . literal($filter) . ')', set => { filter => $filter } } ],
		[ $t->{expressions}{s} ? 2 : 0, { name => 'expressions', sql => $alter . q{expressions => '{"s": "lower(s)"}')}, set => { expressions => { s => 'lower(s)' } } } ],
		[ 1, { name => 'pause', sql => "SELECT tablesync_pause('$t->{table}')", undo => "SELECT tablesync_resume('$t->{table}')", excuse => 1 } ],
		[ 2, { name => 'verify', verify => 1, sql => '' } ],
		[ 0.5, { name => 'restore', restore => 1, sql => '' } ],
		[ 1, { name => 'lock_timeout', sql => 'ALTER ROLE app SET tablesync.lock_timeout = ' . one_of("'2s'", "'300ms'", 0) } ],
		[ 1, { name => 'remove and add', sql => "SELECT tablesync_remove('$t->{table}'); DROP FOREIGN TABLE IF EXISTS $t->{table}_source", add => 1 } ],
		[ 2, { name => 'feed', sql => $alter . 'feed => ' . ($t->{feed} ? 'false' : 'true') . ')', set => { feed => !$t->{feed} } } ]);
}

1;
