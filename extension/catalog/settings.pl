#!/usr/bin/perl
# settings.pl: puts the settings of settings.txt where SQL asks for them.
#
#   settings.pl settings.txt [part.sql ..]
#
# "@settings alter: changed.{name}@" becomes the text after the colon, once for
# each setting that tablesync_alter takes, separated by commas; one a line where
# a line begins with it.  Statements end with a semicolon instead.  Chosen by
# words, all of which must apply: a function that takes the setting, a field that
# is given, a name, or all; "-word" must not apply.  In braces stand the fields of
# settings.txt ("must_be"), and column: the definition of the column; nullable:
# true or false.  '{field}' is a literal.

use strict;
use warnings;

my $fields = 'not null|default|check|must be|off|comment|taken by';
my (@settings, %words);

sub complete
{
	my ($setting) = @_;
	for my $needed (qw(comment taken_by), $setting->{not_null} || defined $setting->{check} ? 'must_be' : ())
	{
		die "settings: $setting->{name} has no $needed\n" unless defined $setting->{$needed};
	}
	for my $function (split ' ', $setting->{taken_by})
	{
		die "settings: $setting->{name}: no function tablesync_$function\n" unless $function =~ /^(add|add_schema|alter)$/;
	}
	$setting->{words} = { map { $_ => 1 } 'all', keys %$setting, $setting->{name}, split ' ', $setting->{taken_by} };
	%words = (%words, %{ $setting->{words} });
	$setting->{column} = join ' ', "$setting->{name} $setting->{type}",
		$setting->{not_null} ? 'NOT NULL' : (),
		defined $setting->{default} ? "DEFAULT $setting->{default}" : (),
		defined $setting->{check} ? "CHECK ($setting->{check})" : ();
	$setting->{nullable} = $setting->{not_null} ? 'false' : 'true';
	$setting->{default} //= 'NULL';
	$setting->{check} //= 'true';
}

sub read_settings
{
	my ($file) = @_;
	open my $text, '<', $file or die "$file: $!\n";
	while (<$text>)
	{
		next if /^#|^\s*$/;
		if (/^(\w+) (\S.*?)\s*$/)
		{
			push @settings, { name => $1, type => $2 };
		}
		elsif (@settings && /^\s+($fields)(?:\s+(\S.*?))?\s*$/)
		{
			my ($field, $value) = ($1, $2 // 'yes');
			$settings[-1]{ $field =~ s/ /_/r } = $value;
		}
		else
		{
			die "settings: $file, line $.: not understood: $_";
		}
	}
	complete($_) for @settings;
}

sub where
{
	return "settings: $ARGV, line $.: ";
}

sub field
{
	my ($setting, $field) = @_;
	return $setting->{$field} // die where(), "$setting->{name} has no $field\n";
}

sub literal
{
	my ($value) = @_;
	return "'" . $value =~ s/'/''/gr . "'";
}

sub expand
{
	my ($choice, $template, $indent) = @_;
	my @chosen = @settings;
	for my $word (split ' ', $choice)
	{
		my ($not, $plain) = $word =~ /^(-?)(\w+)$/ or die where(), "not understood: $word\n";
		die where(), "no setting, field or function is named $plain\n" unless $words{$plain};
		@chosen = grep { !$_->{words}{$plain} == !!$not } @chosen;
	}
	die where(), "nothing is chosen by $choice\n" unless @chosen;
	return join +($template =~ /;$/ ? '' : ',') . (defined $indent ? "\n$indent" : ' '), map {
		my $setting = $_;
		$template =~ s/('?)\{(\w+)\}\1/$1 ? literal(field($setting, $2)) : field($setting, $2)/ger;
	} @chosen;
}

read_settings(shift @ARGV // die "usage: settings.pl settings.txt [part.sql ..]\n");
while (<>)
{
	s/^(\s*)\@settings ([^:\@]+): ([^\@]+)\@/$1 . expand($2, $3, $1)/e;
	s/\@settings ([^:\@]+): ([^\@]+)\@/expand($1, $2)/ge;
	die where(), "not understood: $_" if /\@settings/;
	print;
}
continue
{
	close ARGV if eof;    # lines are counted for each part
}
