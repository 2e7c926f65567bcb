# Everything that a person or a CI calls. Each goal works a second time, as root or with sudo, and leaves the host's own servers alone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Where rustup puts cargo, for shells that do not have it on their PATH; under sudo, also where it put it for the user.
SUDO_HOME := $(if $(SUDO_USER),$(shell getent passwd $(SUDO_USER) | cut -d: -f6))
export PATH := $(HOME)/.cargo/bin:$(if $(SUDO_HOME),$(SUDO_HOME)/.cargo/bin:)$(PATH)
ifneq ($(SUDO_HOME),)
ifeq ($(wildcard $(HOME)/.rustup),)
export RUSTUP_HOME ?= $(SUDO_HOME)/.rustup
endif
endif
# A build from a clean checkout does not need the incremental files, and they are large.
CARGO_INCREMENTAL ?= $(if $(CI),0,1)
export CARGO_INCREMENTAL
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.PHONY: help
help:
	@echo 'make demo      a throwaway PostgreSQL, backed up twice and restored, told step by step (about a minute after the build)'
	@echo 'make test      everything that CI runs (at most 30 minutes with the build, on two cores)'
	@echo 'make test-all  the same, and the heavy rest: 3 GB through the agent, the whole kill matrix, PostgreSQL 10 to 18, its regression database, the Windows build'
	@echo 'make check-windows  compiles the workspace for Windows (cross, without running it; skipped where its parts cannot be had)'
	@echo 'make bench     the product beside other tools: a table of time, CPU, memory and bytes (about forty minutes; BENCH_GB=0.3 BENCH_ROUNDS=1 for a look)'
	@echo 'make build     the program: target/debug/vaultferry'
	@echo 'make lint      format, clippy, documentation'
	@echo 'make setup     installs what the goals above need and is missing; they call it themselves'

.PHONY: setup
setup:
	@scripts/setup

.PHONY: build
build: setup
	cargo build --locked -p vaultferry-agent

.PHONY: demo
demo: build
	@VAULTFERRY_BIN=$(TARGET)/debug/vaultferry deploy/demo/demo

# The program that the end-to-end tests start is built in the same way as the tests are, so that nothing is compiled twice.
.PHONY: test-build
test-build: setup
	cargo build --locked --workspace --all-targets

# The servers and clients of other versions that the tests use; what cannot be had is told, and those tests say that they are skipped.
.PHONY: postgres-versions postgres-versions-all
postgres-versions: setup
	@scripts/setup versions
	@scripts/postgres-versions base
postgres-versions-all: setup
	@scripts/setup versions
	@scripts/postgres-versions all

.PHONY: test
test: test-build postgres-versions
	cargo test --locked --workspace --doc --quiet
	cargo nextest run --locked --workspace
	@echo 'All passed. Heavy tests were skipped: make test-all runs them too.'

.PHONY: test-all
test-all: test-build postgres-versions-all
	cargo test --locked --workspace --doc --quiet
	VAULTFERRY_TEST_ALL=1 cargo nextest run --locked --workspace --profile all
	@$(MAKE) --no-print-directory check-windows
	@echo 'All passed, the heavy tests too.'

# 77: a part cannot be had on this machine; the script has said which.
.PHONY: check-windows
check-windows: setup
	@scripts/check-windows || [ $$? = 77 ]

# Variables given to make (BENCH_GB=0.3) reach it as its environment.
.PHONY: bench
bench: setup
	@scripts/bench

.PHONY: lint
lint: setup
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
