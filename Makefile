# Two commands matter: `make run` (the service) and `make test`. Both install what they need into .venv.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
JOBS ?= 2
RUNS ?= ../shared/data/published_runs.json
WRITE ?=
QUICK ?=
DATE ?= $(shell date -u +%F)
SECONDS_OF_FUZZ ?= 600
SEED ?=

.DEFAULT_GOAL := help
.PHONY: help run test check demo bench bench-search bench-online bench-service fuzz validate fit examples clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/service: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev: $(VENV)/service pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(VENV)/service  ## start the service with SQLite at http://HOST:PORT
	$(BIN)/trimtab serve --host $(HOST) --port $(PORT)

test: check  ## everything that CI runs: lint, types, import rules, tests

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

demo: $(VENV)/dev  ## the whole story in one terminal, under three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m api.demo

bench: $(VENV)/dev  ## benchmarks, by hand; timings are ratios within one run
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-search: $(VENV)/dev  ## CPU seconds of the offline search beside those of others
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_search.py

bench-service: $(VENV)/dev  ## the service under many runs, beside its aims; QUICK=--quick for a short one
	$(BIN)/python benchmarks/bench_service.py $(QUICK)

bench-online: $(VENV)/dev  ## the online stage's numbers beside their aims
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_online.py

fuzz: $(VENV)/dev  ## new nonsense to every operation for SECONDS_OF_FUZZ (600), 1,000 runs at once; SEED=N repeats a round
	OMP_NUM_THREADS=1 $(BIN)/python tests/robust/fuzz.py --seconds $(SECONDS_OF_FUZZ) $(if $(SEED),--seed $(SEED))

validate: $(VENV)/service  ## prices against the measured runs in RUNS; WRITE=docs/validation.md renews the document
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/validation.py $(RUNS) $(if $(WRITE),--write $(WRITE))

fit: $(VENV)/dev  ## fit the constants of the presets to RUNS, with DATE in their record
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fit.py $(RUNS) --date $(DATE)

examples: $(VENV)/dev  ## ask the service for the answers that stand as examples in its OpenAPI document
	PYTHONPATH=tests/api OMP_NUM_THREADS=1 $(BIN)/python tests/api/story.py

clean:  ## remove what was built
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
