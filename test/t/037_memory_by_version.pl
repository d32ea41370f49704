# What a run remembers of a replica whose rows are compared by their version.

use strict;
use warnings;

use TablesyncTest;
use Test::More;

$ENV{TABLESYNC_FINGERPRINT} = 'version';
require './test/t/017_memory_of_replica.pl';
