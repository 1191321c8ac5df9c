# bpfseal: every target installs what it needs and says what it does.  `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-full lint format fuzz bench install system clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(STAMP) system ## the main job: signed one-liners on kernels that require signatures (about a minute or two)
	$(BIN)/python examples/demo.py

test: $(STAMP) system lint ## all tests (unit, this kernel, test kernels under QEMU)
	$(BIN)/python tools/run_tests.py --durations=15

test-full: $(STAMP) system ## the long campaigns too
	$(BIN)/python -m pytest -q

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(STAMP) ## fuzzers, FUZZ_SECONDS each (default 600)
	for f in tests/fuzz/fuzz_*.py; do $(BIN)/python $$f --seconds $${FUZZ_SECONDS:-600} || exit 1; done

bench: $(STAMP) system ## figures side by side with bpftrace, into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

install: $(STAMP) ## a virtual environment with an editable install

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

system: ## Debian packages for the test kernels and symbols (needs root; skips what is there)
	@bash tools/system-packages.sh

clean: ## remove what the targets made here
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
