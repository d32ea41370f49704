#!/bin/bash
# each.sh: runs one TAP file for coverage.sh, which keeps the counts of each apart,
# and how many seconds it takes.
perl_lib=$(dirname "$PG_REGRESS")/../perl
GCOV_PREFIX=$TSYNC_COVERAGE/$(basename "$1" .pl)
export GCOV_PREFIX PERL5LIB=test/perl:$perl_lib
mkdir -p "$GCOV_PREFIX"
perl "$@"
status=$?
echo $SECONDS >"$GCOV_PREFIX/seconds"
exit $status
