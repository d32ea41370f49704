#!/bin/bash
# each.sh: runs one TAP file for coverage.sh, which keeps the counts of each apart.
perl_lib=$(dirname "$PG_REGRESS")/../perl
GCOV_PREFIX=$TSYNC_COVERAGE/$(basename "$1" .pl)
export GCOV_PREFIX PERL5LIB=test/perl:$perl_lib
exec perl "$@"
