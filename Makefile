# tablesync: PGXS makefile. make, make install and make installcheck work as
# usual; make demo, make test and make bench set up a fresh Debian machine
# themselves.

EXTENSION = tablesync
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" tablesync.control)
MODULE_big = tablesync
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard extension/*.c extension/*/*.c)))
PG_CPPFLAGS = -I$(srcdir)/extension -DTSYNC_VERSION='"$(EXTVERSION)"'
SQL_PARTS = $(addprefix extension/,catalog/catalog.sql catalog/access.sql catalog/history.sql check/publication.sql api/foreign_name.sql api/refuse.sql api/add.sql \
    api/api.sql verify/verify.sql source/image.sql source/source.sql source/shape.sql source/open.sql source/key.sql source/view.sql source/part.sql source/connection.sql source/xmin.sql load/load.sql source/horizon.sql \
    evolve/dependents.sql evolve/plan.sql evolve/names.sql evolve/evolve.sql evolve/part.sql watch/alert.sql watch/schedule.sql api/queue.sql \
    watch/views.sql feed/feed.sql feed/value.sql feed/changes.sql feed/consumer.sql export/export.sql watch/totals.sql watch/health.sql check/preflight.sql check/check.sql \
    api/add_schema.sql catalog/rights.sql)
BUILT_SQL = tablesync--$(EXTVERSION).sql
UPDATE_SQL = tablesync--0.1.0--$(EXTVERSION).sql
DATA_built = $(BUILT_SQL) $(UPDATE_SQL)
DATA = $(wildcard extension/updates/tablesync--*.sql)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers -Wno-declaration-after-statement $(TSYNC_CFLAGS)
SHLIB_LINK = $(TSYNC_LDFLAGS)
EXTRA_CLEAN = $(BUILT_SQL) $(UPDATE_SQL) output_iso tmp_check

# Folders of extension/, from the ground up: each uses only what lies below it.
FLOORS = query process execute catalog,source,watch,api memory,verify,evolve,check,feed,export scan,apply load run

REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
REGRESS_OPTS = --load-extension=postgres_fdw
ISOLATION = $(patsubst test/isolation/specs/%.spec,%,$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

# The targets that set a machine up must work before PostgreSQL is there.
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
$(OBJS): $(wildcard extension/*.h extension/*/*.h)
extension/tablesync.o extension/tablesync.bc: tablesync.control
else
all install installcheck:
	@echo "PostgreSQL's server headers are missing: install postgresql-server-dev-15, or set PG_CONFIG" >&2; false
endif

# One description of the settings, which settings.pl puts where SQL asks for it.
SETTINGS = extension/catalog/settings.txt extension/catalog/settings.pl
WITH_SETTINGS = perl extension/catalog/settings.pl extension/catalog/settings.txt

$(BUILT_SQL): $(SQL_PARTS) $(SETTINGS) tablesync.control
	$(WITH_SETTINGS) $(SQL_PARTS) >$@

# The last step of an update is what a fresh install is, around the old rows.
$(UPDATE_SQL): $(SQL_PARTS) $(SETTINGS) $(wildcard extension/updates/0.1.0--*.sql) tablesync.control
	{ cat extension/updates/0.1.0--$(EXTVERSION).sql; \
	  grep -v '^CREATE SCHEMA\|^.echo Use' extension/catalog/catalog.sql; cat extension/updates/0.1.0--$(EXTVERSION)-rows.sql; \
	  cat $(filter-out %/catalog.sql,$(SQL_PARTS)); } | sed 's/^CREATE FUNCTION/CREATE OR REPLACE FUNCTION/' | $(WITH_SETTINGS) >$@

.PHONY: layers lint typedefs format format-check demo test test-assert test-sanitize test-coverage mutate test-versions test-package test-pipeline dist fuzz fuzz-source soak bench bench-far bench-impact bench-plot bench-feed pgspot sql-parts
sql-parts:
	@echo $(SQL_PARTS)
layers: all
	@test/layers.pl '$(LAYERS_LIST)' $(FLOORS)
lint:
	@test/lint.sh
typedefs: all
	@test/typedefs.sh
format format-check:
	@test/format.sh $@
pgspot:
	@test/pgspot.sh
demo:
	@test/demo/demo.sh
bench:
	@test/bench/bench.sh
bench-far:
	@test/bench/far.sh
bench-impact:
	@test/bench/impact.sh
bench-feed:
	@test/bench/feed.sh
bench-plot:
	@test/bench/sizes.sh
test:
	@test/run.sh
test-assert:
	@test/assert.sh
test-sanitize:
	@test/sanitize.sh
test-coverage:
	@test/coverage/coverage.sh
mutate:
	@test/mutate/mutate.sh
test-versions:
	@test/versions.sh
test-package:
	@test/package.sh
test-pipeline:
	@test/pipeline/pipeline.sh
dist:
	git archive --format=zip --prefix=tablesync-$(EXTVERSION)/ -o tablesync-$(EXTVERSION).zip HEAD
fuzz:
	@test/fuzz/fuzz.sh
fuzz-source:
	@test/fuzz/source.sh
soak:
	@test/soak/soak.sh
