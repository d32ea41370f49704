#!/bin/bash
# sanitize.sh: make test-sanitize.  Runs the tests with UndefinedBehaviorSanitizer
# in our objects: an overflow, a bad shift, a misaligned or NULL access ends the
# process, and the test with it.  PostgreSQL itself is as it is; its macros are
# compiled into our objects and looked at, too.  What is installed is built with
# it and is slower: make clean install brings the usual library back.

set -euo pipefail
# -fno-wrapv: PostgreSQL's own flags let integers wrap around, and we may not
export TSYNC_CFLAGS="-fno-wrapv -fsanitize=undefined -fno-sanitize-recover=undefined ${TSYNC_CFLAGS:-}"
export TSYNC_LDFLAGS="-fsanitize=undefined -static-libubsan"
exec "$(dirname "$0")/run.sh"
