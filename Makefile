# GridCPR: `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
# The profile of what is tested: dev or release.
PROFILE ?= dev
SKIP_LOG := $(CURDIR)/target/skipped.txt
HAVE_NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)
ifeq ($(HAVE_NEXTEST),yes)
# One more at a time than there are processors: many of them wait most of the time.
RUN_TESTS = $(CARGO) nextest run --cargo-profile $(PROFILE) --test-threads $$(($$(nproc) + 1))
else
RUN_TESTS = $(CARGO) test --profile $(PROFILE)
endif

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: fuzz header bench-app bench-grid compat install-library reference help setup build install demo test test-all bench compat-zdtm compat-dmtcp lint man clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Install what the tests need (Debian packages; quick when all is there)
	@scripts/install-packages

build: ## Build everything for use, into target/release
	$(CARGO) build --release --workspace

install: build install-library ## Install commands, library, header, man pages and systemd units below PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 target/release/cpr $(DESTDIR)$(PREFIX)/bin/cpr
	install -m 755 target/release/cprd $(DESTDIR)$(PREFIX)/bin/cprd
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in cprd cprd-grid cprd-node; do \
		sed -e 's|@PREFIX@|$(PREFIX)|' crates/cprd/systemd/$$unit.service.in \
			>$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service || exit 1; done
	target/release/cpr man --dir $(DESTDIR)$(PREFIX)/share/man/man1

# Where the library was built.
BUILT ?= target/release

# Without building anything: what `install` installs for programs.
install-library:
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/man/man3
	install -m 755 $(BUILT)/libgridcpr.so $(DESTDIR)$(LIBDIR)/libgridcpr.so.$(VERSION)
	ln -sf libgridcpr.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libgridcpr.so.0
	ln -sf libgridcpr.so.0 $(DESTDIR)$(LIBDIR)/libgridcpr.so
	install -m 644 $(BUILT)/libgridcpr.a $(DESTDIR)$(LIBDIR)/libgridcpr.a
	install -m 644 crates/gridcpr/include/gridcpr.h crates/gridcpr/include/gridcpr.hpp bindings/fortran/gridcpr.f90 \
		$(DESTDIR)$(PREFIX)/include
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@VERSION@|$(VERSION)|' crates/gridcpr/gridcpr.pc.in \
		>$(DESTDIR)$(LIBDIR)/pkgconfig/gridcpr.pc
	install -m 644 crates/gridcpr/gridcpr.3 crates/gridcpr/gridcpr_app.3 crates/gridcpr/gridcpr_image.3 \
		$(DESTDIR)$(PREFIX)/share/man/man3
	for function in $$(sed -n 's/^symbol //p' crates/gridcpr/include/gridcpr.abi); do \
		page=gridcpr; for more in gridcpr_app gridcpr_image; do \
			if [[ $$function == $${more}_* ]]; then page=$$more; fi; done; \
		echo ".so man3/$$page.3" >$(DESTDIR)$(PREFIX)/share/man/man3/$$function.3 || exit 1; done

demo: build ## Watch a simulation survive a crash, alone and in a grid (two minutes)
	@scripts/demo target/release/cpr

# The summary of the tests is cargo's or nextest's own. What was skipped is listed after it.
define run_tests
@mkdir -p target && rm -f $(SKIP_LOG)
@rc=0; GRIDCPR_SKIP_LOG=$(SKIP_LOG) $(RUN_TESTS) --workspace --no-fail-fast || rc=$$?; \
	if [ -s $(SKIP_LOG) ]; then echo; sort -u $(SKIP_LOG); fi; exit $$rc
endef

test: setup ## Run the quick tests (under 35 minutes on two cores)
	$(run_tests)

test-all: export GRIDCPR_SLOW = 1
test-all: export GRIDCPR_WORKLOAD_SCALE = 300
test-all: setup ## Run all tests: workloads three times as long, and the slow suites
	$(run_tests)

bench: build setup ## Measure freeze, checkpoint and restart times; BENCH="--quick" and the like are passed on
	@target/release/cpr-bench --label "$$(git describe --always --dirty 2>/dev/null || echo unknown)" $(BENCH)

bench-app: build setup ## Measure checkpoints that a program writes itself, in memory and on disk
	@mkdir -p target/bench-app && cp target/release/libgridcpr.so target/bench-app/libgridcpr.so.0
	@gcc -O2 -Wall -Wextra -I crates/gridcpr/include -o target/bench-app/bench scripts/bench-app.c \
		target/bench-app/libgridcpr.so.0 -Wl,-rpath,$(CURDIR)/target/bench-app
	@for directory in /dev/shm /var/tmp; do echo "$$directory:"; target/bench-app/bench $$directory; \
		GRIDCPR_LIBRARY=target/bench-app/libgridcpr.so.0 PYTHONPATH=bindings/python PYTHONDONTWRITEBYTECODE=1 \
		/usr/bin/python3 scripts/bench-app.py $$directory; done

bench-grid: ## Measure the service of a grid with 10 000 jobs and 100 000 checkpoints; DATABASE=postgres://… takes that one
	$(CARGO) run --release -q -p cpr-grid --example bench_grid -- $(DATABASE)

compat-zdtm: build ## Run CRIU's zdtm programs against cpr: ZDTM=DIR, a built test/zdtm of its source; as root
	@test -n "$(ZDTM)" || { echo "usage: make compat-zdtm ZDTM=DIR" >&2; exit 2; }
	scripts/zdtm $(ZDTM) --isolate --cpr target/release/cpr --json target/zdtm.json

compat-dmtcp: build ## Run DMTCP's test programs against cpr: DMTCP=DIR, the built directory test of its source
	@test -n "$(DMTCP)" || { echo "usage: make compat-dmtcp DMTCP=DIR" >&2; exit 2; }
	scripts/dmtcp $(DMTCP) --cpr target/release/cpr --json target/dmtcp.json

compat: build setup ## Try kernel objects and stock programs, and compare with docs/coverage.md
	@scripts/install-packages --programs
	@scripts/compat target/release/cpr $(or $(COMPAT),--check)

fuzz: ## Fuzz all that reads files of strangers: FUZZ="SECONDS [TARGET ...]"; needs nightly Rust and cargo-fuzz
	@scripts/fuzz $(FUZZ)

lint: ## Check format, clippy and layers
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	scripts/check-layers

header: ## Write gridcpr.h anew from the sources of the library (a test compares the two)
	UPDATE_HEADER=1 $(CARGO) test -q --workspace --test header

reference: ## Make the reference of libgridcpr for every language, as HTML below target/reference
	@scripts/reference target/reference

man: ## Write the man pages into target/man
	$(CARGO) run -q -p cpr-cli -- man --dir target/man

clean: ## Remove everything that was built
	$(CARGO) clean
