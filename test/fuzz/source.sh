#!/bin/bash
# source.sh: make fuzz-source.  A source whose catalogs and rows are random
# nonsense, INPUTS times (1000); make test does the same a hundred times.

set -euo pipefail
export INPUTS=${INPUTS:-1000} TESTS=test/t/030_lying_source.pl
exec "$(dirname "$0")/../run.sh"
