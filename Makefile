# Turku. `make demo` shows it working on this machine, `make test` proves it.
#
# Needs make, root or sudo, and Debian 12, Ubuntu 24.04 or alike. What else is needed is installed
# by its package name, and said before.

# The Python to use: the `python3` on the PATH if it is 3.10 to 3.13, else the distribution's.
PYTHON ?=
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin

# As pip does when it installs: a command that starts every five minutes isn't compiled each time.
COMPILE := $(BIN)/python -m compileall -q lib/turku_core

# charms: the base and the architecture that they are for.
BASE ?= ubuntu@24.04
ARCH ?= amd64
# demo: the tree to back up. Empty: /usr/share/doc.
SOURCE ?=
# bench: where to write the table as JSON as well. Empty: nowhere.
JSON ?=

.PHONY: help
help:  ## Say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: local-packages $(VENV)/.ready-local  ## Back up a real tree on this machine, restore it, compare (SOURCE=/path)
	@$(COMPILE)
	@$(BIN)/turku-local demo $(if $(SOURCE),--source '$(SOURCE)')

.PHONY: test
test: test-packages model-packages $(VENV)/.ready-dev other-environments  ## Lint, then run the tests, fast ones first; the last line counts them
	@$(COMPILE)
	@$(BIN)/python tools/run_tests.py lint unit integration model

.PHONY: test-all
test-all: test-packages model-packages kernel-packages $(VENV)/.ready-dev other-environments  ## The same, and the tests that take many minutes
	@$(COMPILE)
	@$(BIN)/python tools/run_tests.py lint unit integration model model-slow

integration: other-environments
.PHONY: lint unit integration
lint unit integration: test-packages $(VENV)/.ready-dev  ## Only that part of `make test`
	@$(COMPILE)
	@$(BIN)/python tools/run_tests.py $@

.PHONY: test-model
test-model: test-packages model-packages $(VENV)/.ready-dev  ## The packed charms on machines that boot systemd (as root)
	@$(COMPILE)
	@$(BIN)/python tools/run_tests.py model

.PHONY: faults
faults: test-packages $(VENV)/.ready-dev $(VENV)/fuzz/.ready  ## Try every fault, many times over, and print what was lost
	@$(COMPILE)
	@TURKU_FAULTS=full $(BIN)/python tools/run_tests.py faults

.PHONY: bench
bench: local-packages $(VENV)/.ready-local  ## Measure against bare rsync, side by side (JSON=path)
	@$(COMPILE)
	@$(BIN)/python -m benchmarks $(if $(JSON),--json '$(JSON)')

.PHONY: charms
charms: $(VENV)/.ready-local  ## Pack the charms into build/ (BASE=ubuntu@22.04 ARCH=arm64)
	@$(BIN)/python -m tools.pack_charms --base '$(BASE)' --arch '$(ARCH)'

.PHONY: format
format: $(VENV)/.ready-dev  ## Format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

.PHONY: reference
reference: $(VENV)/.ready-dev  ## Write the reference pages that are made from the charms' own files
	@$(BIN)/python tools/make_reference.py

# A distribution's packages. Nothing is done, and no root needed, when everything is there.
.PHONY: local-packages test-packages model-packages kernel-packages
local-packages:
	@tools/install-packages local
test-packages:
	@tools/install-packages test
model-packages:
	@tools/install-packages model
kernel-packages:
	@tools/install-packages kernel

$(VENV)/.ready-local: requirements/local.txt lib/pyproject.toml tools/make-venv
	@PYTHON='$(PYTHON)' tools/make-venv $(VENV) requirements/local.txt
	@touch $@

$(VENV)/.ready-dev: requirements/dev.txt lib/pyproject.toml tools/make-venv
	@PYTHON='$(PYTHON)' tools/make-venv $(VENV) requirements/dev.txt
	@touch $@ $(VENV)/.ready-local

# Environments that can't be the tests' own: charmcraft's, for the test that packs with it, and that
# of the tests on a Juju controller.
.PHONY: other-environments
other-environments: test-packages $(VENV)/.ready-dev $(VENV)/juju/.ready
	@PIP='$(BIN)/python -m pip' tools/make-charmcraft $(VENV)/charmcraft

$(VENV)/juju/.ready: requirements/juju.txt | $(VENV)/.ready-dev
	@echo 'Installing $< into $(@D)'
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(@D)/bin/python \
	    install -qq --require-hashes -r $<
	@touch $@

# The fuzzer, beside the tests' environment: it has releases for one kind of processor only.
$(VENV)/fuzz/.ready: requirements/fuzz.txt | $(VENV)/.ready-dev
	@echo 'Installing $< into $(@D)'
	@mkdir -p $(@D)
	@if [ "$$(uname -m)" = x86_64 ]; then $(BIN)/python -m pip --disable-pip-version-check \
	    install -qq --no-deps --upgrade --require-hashes --target $(@D) -r $<; fi
	@touch $@

# The lock files, for every Python from 3.10 on. Each release of a dependency is pinned by hash.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	--no-emit-index-url --no-header

CHARM_INPUTS := $(wildcard charms/*/requirements.in)

.PHONY: lock
lock:  ## Bring the lock files up to date (needs an environment made by `make lint` before)
	$(LOCK) --all-extras lib/pyproject.toml requirements/local.in requirements/build.in \
	    requirements/dev.in $(CHARM_INPUTS) -o requirements/dev.txt
	$(LOCK) --extra agent --extra storage --extra api lib/pyproject.toml requirements/local.in \
	    -c requirements/dev.txt -o requirements/local.txt
	$(LOCK) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	for name in charmcraft juju fuzz; do \
	    $(LOCK) requirements/$$name.in -o requirements/$$name.txt || exit; \
	done
	for role in agent storage api; do \
	    $(LOCK) --extra $$role lib/pyproject.toml -c requirements/dev.txt -o requirements/$$role.txt \
	    && $(LOCK) --extra $$role --extra charm lib/pyproject.toml charms/turku-$$role/requirements.in \
	        -c requirements/dev.txt -o charms/turku-$$role/requirements.txt || exit; \
	done

.PHONY: clean
clean:  ## Remove what was made here
	rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist \
	    charms/*/{parts,stage,prime,overlay} charms/*/*.charm
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
