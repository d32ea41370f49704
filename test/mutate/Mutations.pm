# Mutations.pm: the small faults that make mutate can put into our code.  Each is
# a place in a file and what comes there instead.  Comments, includes, messages
# and what only words them are left alone.

package Mutations;

use strict;
use warnings;

# Kinds, and how often one is drawn.
our %weight = (comparison => 5, off_by_one => 3, call => 6, assignment => 3, negation => 5, junction => 4, lock => 2, constant => 4, extreme => 1,
	jump => 1, term => 5, coalesce => 2, right => 2, null => 2);

my %turned = ('<' => '<=', '<=' => '<', '>' => '>=', '>=' => '>', '==' => '!=', '!=' => '==', '<>' => '=', '=' => '<>');
my $message = qr/\b(?:ereport|elog|errmsg|errdetail|errhint|Assert|StaticAssertStmt|gettext_noop)\b/;
my $not_a_term = qr/(?:AND|OR|THEN|LOOP|ORDER|GROUP|HAVING|LIMIT|UNION|EXCEPT|FOR|RETURNING|ON|END|WHEN|ELSE|JOIN|LEFT|CROSS|WHERE|INTO|AS|IS)\b/;

# All faults that a file offers: {file, line, at, length, new, kind}.
sub of_file
{
	my ($file, $text) = @_;
	my @found;
	my $add = sub {
		my ($kind, $at, $length, $new) = @_;
		push @found, { file => $file, line => 1 + (substr($text, 0, $at) =~ tr/\n//), at => $at, length => $length, new => $new, kind => $kind };
	};
	if ($file =~ /\.sql$/)
	{
		in_sql(bare_sql($text), $add);
	}
	else
	{
		in_c(bare_c($text), $add);
		in_strings(strings_of_c($text), $add);
	}
	return @found;
}

sub blank { (my $s = $_[0]) =~ s/[^\n]/ /g; return $s }

# From an open parenthesis to its other end; undef if there is none.
sub closing
{
	my ($text, $at) = @_;
	my $depth = 0;
	pos($$text) = $at;
	while ($$text =~ /([()])/g)
	{
		$depth += $1 eq '(' ? 1 : -1;
		return pos($$text) - 1 if $depth == 0;
	}
	return;
}

# C without comments, strings and messages; every place stays where it is.
sub bare_c
{
	my ($text) = @_;
	$text =~ s{(/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')}{blank($1)}gse;
	$text =~ s{^(\#(?!define).*)$}{blank($1)}gme;
	return without_messages($text);
}

sub without_messages
{
	my ($text) = @_;
	my @calls;
	push @calls, $-[0] while $text =~ /$message\s*\(/g;
	foreach my $at (@calls)
	{
		my $end = closing(\$text, index($text, '(', $at)) // next;
		substr($text, $at, $end + 1 - $at) = blank(substr($text, $at, $end + 1 - $at));
	}
	return $text;
}

# What C has in its strings, if it looks like SQL, and nothing else.
sub strings_of_c
{
	my ($text) = @_;
	$text =~ s{/\*.*?\*/}{blank($&)}gse;
	my $masked = $text;
	# a parenthesis in a string is not one of C
	$masked =~ s{"((?:\\.|[^"\\\n])*)"}{'"' . blank($1) . '"'}gse;
	my $code = without_messages($masked);
	my $strings = blank($text);
	while ($text =~ /"((?:\\.|[^"\\\n])*)"/g)
	{
		substr($strings, $-[1], length $1) = $1 if substr($code, $-[0], 1) eq '"';
	}
	return $strings;
}

sub bare_sql
{
	my ($text) = @_;
	# a string is a value, so it stays one
	$text =~ s{(/\*.*?\*/|--[^\n]*|'(?:[^']|'')*')}{my $s = $1; $s =~ /^'/ ? $s =~ s/[^\n']/q/gr : blank($s)}gse;
	$text =~ s{^\s*(?:COMMENT ON|RAISE|USING|.*\b(?:HINT|DETAIL|MESSAGE|ERRCODE) *=|SET search_path).*$}{blank($&)}gme;
	return $text;
}

sub in_both
{
	my ($text, $add) = @_;
	$add->('off_by_one', $-[0], length $&, '') while $text =~ / [-+] 1\b(?!\.)/g;
	$add->('constant', $-[1], length $1, $1 eq 'true' ? 'false' : 'true') while $text =~ /\b(?:= |return |RETURN |:= |, )(true|false)\b/g;
	$add->('constant', $-[1], length $1, $1 + 1) while $text =~ /(?:[-(=+*\/<>] |, |return )(\d{1,9})(?=[;,) ])/g;
}

sub in_c
{
	my ($text, $add) = @_;
	in_both($text, $add);
	$add->('comparison', $-[1], length $1, $turned{$1}) while $text =~ / (<=?|>=?|==|!=) /g;
	$add->('junction', $-[0], 2, $& eq '&&' ? '||' : '&&') while $text =~ /&&|\|\|/g;
	$add->('constant', $-[1], length $1, $1 * 2) while $text =~ /^#define \w+\s+(\d+)$/gm;
	$add->('extreme', $-[1], 3, $1 eq 'Max' ? 'Min' : 'Max') while $text =~ /\b(Max|Min)\(/g;
	$add->('jump', $-[1], length $1, ';') while $text =~ /^\t+(continue;|break;)$/gm;
	$add->('lock', $-[0], length $&, 'AccessShareLock') while $text =~ /\b(?:Row|Share|ShareUpdate|ShareRow|Access)?ExclusiveLock\b|\b(?:Row)?ShareLock\b/g;
	$add->('call', $-[1], length $1, ';')
		while $text =~ /(?<=[;{})e])[ \t]*\n(?=\t+(?!pfree|list_free|appendS|reset|PG_|foreach|for_|init|CHECK_FOR|return|MemoryContextDelete)[a-z])\t+(\w+\([^;{}]*\);)$/gm;
	$add->('assignment', $-[1], length $1, ';') while $text =~ /^\t+(\w+(?:->|\.)[\w.>-]+ (?:[-|&+]?=) [^;{}]*;)$/gm;
	my @conditions;
	push @conditions, $-[1] while $text =~ /\b(?:if|while) (\()/g;
	foreach my $at (@conditions)
	{
		my $end = closing(\$text, $at) // next;
		$add->('negation', $at, $end + 1 - $at, [ '(!(', '))' ]);
	}
}

# SQL that C code sends.
sub in_strings
{
	my ($text, $add) = @_;
	$add->('lock', $-[0], length $&, '') while $text =~ / FOR (?:NO KEY )?(?:UPDATE|SHARE)(?: SKIP LOCKED| NOWAIT)?/g;
	$add->('lock', $-[1], length $1, 'ACCESS SHARE') while $text =~ /\bIN ((?:ACCESS |SHARE ROW |ROW |SHARE UPDATE )?(?:EXCLUSIVE|SHARE)) MODE/g;
	$add->('null', $-[0], length $&, $1 ? 'IS DISTINCT FROM' : 'IS NOT DISTINCT FROM') while $text =~ /\bIS (NOT )?DISTINCT FROM\b/g;
	$add->('null', $-[0], length $&, $1 ? 'IS NULL' : 'IS NOT NULL') while $text =~ /\bIS (NOT )?NULL\b/g;
	$add->('junction', $-[1], 3, 'OR') while $text =~ / (AND) /g;
	$add->('comparison', $-[1], length $1, $turned{$1}) while $text =~ /(?<=[\w)]) (<=?|>=?|<>) (?=[\w(\$%'])/g;
	$add->('comparison', $-[1], length $1, $turned{$1}) while $text =~ /(?:WHERE|AND) [\w.]+ (=) (?=[\w(\$%'])/g;
	# a term of a condition, as far as it is in one string
	$add->('term', $-[1], length $1, 'true') while $text =~ /\b(?:WHERE|AND) ((?!%)[\w.]+ (?:=|<|>|<=|>=|<>) \$?[\w.]+)(?=$| AND| {2}|\))/gm;
	$add->('term', $-[1], length $1, 'true') while $text =~ /\b(?:WHERE|AND) ((?:NOT )?[\w.]+(?: IS (?:NOT )?NULL)?)(?= AND)/gm;
}

sub in_sql
{
	my ($text, $add) = @_;
	in_both($text, $add);
	in_strings($text, $add);
	$add->('comparison', $-[1], length $1, '<>') while $text =~ /(?:ON|CASE WHEN|IF|OR|NOT) [\w.]+ (=) (?=[\w(\$'])/g;
	$add->('junction', $-[1], 2, 'AND') while $text =~ / (OR) (?!REPLACE)/g;
	$add->('lock', $-[1], length $1, 'PERFORM 1') while $text =~ /(PERFORM pg_advisory_\w+\([^;]*\))(?=;)/g;
	$add->('call', $-[1], length $1, 'NULL;') while $text =~ /^\s+(PERFORM [^;]*;)$/gm;
	$add->('call', $-[1], length $1, 'NULL;') while $text =~ /^\s+((?:UPDATE|DELETE|INSERT) [^;]*;)$/gm;
	$add->('right', $-[0], length $&, '') while $text =~ /^(?:REVOKE|GRANT) [^;]*;$/gm;
	$add->('right', $-[0], length $&, '') while $text =~ / SECURITY DEFINER\b/g;
	$add->('negation', $-[1], length $1, [ 'NOT (', ')' ]) while $text =~ /\b(?:IF|ELSIF|EXIT WHEN|CASE WHEN) (?!NOT FOUND)(\S[^;\n]*?)(?= THEN\b|;)/g;
	$add->('negation', $-[1], length $1, 'FOUND') while $text =~ /\b(NOT FOUND)\b/g;
	terms($text, $add);
	my @calls;
	push @calls, $+[0] - 1 while $text =~ /\bcoalesce\(/g;
	foreach my $at (@calls)
	{
		my $end = closing(\$text, $at) // next;
		my $comma = last_comma($text, $at + 1, $end) // next;
		$add->('coalesce', $at + 1, $end - $at - 1, [ 'swap', $comma - $at - 1 ]);
	}
}

# The comma before the last argument, if it is one of the outermost.
sub last_comma
{
	my ($text, $from, $to) = @_;
	my ($depth, $comma) = (0);
	foreach my $at ($from .. $to - 1)
	{
		my $c = substr($text, $at, 1);
		$depth++ if $c eq '(' || $c eq '[';
		$depth-- if $c eq ')' || $c eq ']';
		$comma = $at if $c eq ',' && $depth == 0;
	}
	return $comma;
}

# Terms of conditions, which become true: from AND or WHERE to where the term ends.
sub terms
{
	my ($text, $add) = @_;
	my @starts;
	push @starts, $+[0] while $text =~ /\b(?:AND|WHERE)\s+/g;
	foreach my $from (@starts)
	{
		next if substr($text, 0, $from) =~ /\bBETWEEN\s+\S+\s+AND\s+\z/;
		my ($depth, $to) = (0);
		for (my $at = $from; $at < length $text; $at++)
		{
			my $c = substr($text, $at, 1);
			$depth++ if $c eq '(';
			$depth-- if $c eq ')';
			if ($depth < 0 || ($depth == 0 && ($c =~ /[;,]/ || substr($text, $at, 20) =~ /^\s+$not_a_term/ && substr($text, $at, 20) !~ /^\s+IS\b/)))
			{
				$to = $at;
				last;
			}
		}
		$add->('term', $from, $to - $from, 'true') if $to && $to - $from < 300;
	}
}

# The text of a file with a fault in it.
sub applied
{
	my ($text, $fault) = @_;
	my $old = substr($text, $fault->{at}, $fault->{length});
	my $new = $fault->{new};
	if (ref $new && $new->[0] eq 'swap')
	{
		my ($first, $last) = (substr($old, 0, $new->[1]), substr($old, $new->[1] + 1));
		$last =~ s/^\s+//;
		$new = "$last, $first";
	}
	elsif (ref $new)
	{
		my ($before, $after) = @$new;
		$new = $before . ($before =~ /^\(/ ? substr($old, 1, -1) : $old) . $after;
	}
	$new .= "\n" x (($old =~ tr/\n//) - ($new =~ tr/\n//));    # line numbers stay
	substr($text, $fault->{at}, $fault->{length}) = $new;
	s/\s+/ /g foreach $old, $new;
	$fault->{change} = length $new && $new ne ' ' ? "$old -> $new" : "$old left out";
	return $text;
}

# Draw faults: a kind first, so that the rare ones have their share.
sub draw
{
	my ($count, @all) = @_;
	my (%of, @drawn, %taken);
	push @{ $of{ $_->{kind} } }, $_ foreach @all;
	my @kinds = map { ($_) x ($of{$_} ? $weight{$_} : 0) } sort keys %weight;
	while (@drawn < $count && @drawn < @all)
	{
		my $of = $of{ $kinds[ rand @kinds ] };
		my $fault = $of->[ rand @$of ];
		push @drawn, $fault unless $taken{"$fault->{file} $fault->{at} $fault->{kind}"}++;
	}
	return @drawn;
}

1;
