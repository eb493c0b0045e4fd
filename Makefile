# `make` alone lists the targets. Everything happens in .venv; nothing but Python 3.11+ with venv is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV ?= $(firstword $(wildcard $(BIN)/uv) uv)
LOCK = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	--no-emit-package tickbus pyproject.toml
OLDEST = .venv-oldest-readers
.PHONY: help setup demo test oldest test-oldest-readers lint format soak fuzz bench docs lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile

setup: $(VENV)/.ready ## create .venv from requirements.lock; does nothing if nothing has changed

$(VENV)/.ready: requirements.lock pyproject.toml shared/pyproject.toml shared/tickbus/version.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tickbus needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@echo "setting up $(VENV) from requirements.lock" >&2
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --only-binary :all: --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e shared -e .
	@touch $@

demo: setup ## run everything on this machine, with a simulated market; ARGS="--seconds 30" ends it by itself
	@$(BIN)/tickbus demo $(ARGS)

test: setup ## run all tests; ARGS="-k bars" picks some; those whose server is missing are skipped, and fail in CI
	$(BIN)/python -m pytest $(ARGS)

oldest: setup ## run the library's tests on the oldest versions that it allows
	$(BIN)/python -m pip install -q --disable-pip-version-check --only-binary :all: --no-deps --upgrade \
		--target $(VENV)-oldest -r requirements-oldest.txt
	PYTHONPATH=$(VENV)-oldest $(BIN)/python -m pytest tests/tickbus tests/wire $(ARGS)

test-oldest-readers: ## run recipes and reader with the oldest DuckDB, Polars, pandas and pyarrow, in a venv of their own
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q --disable-pip-version-check --only-binary :all: -r tests/docs/oldest.txt \
		hatchling editables hypothesis pytest pytest-asyncio pytest-timeout pytest-xdist
	$(OLDEST)/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation -e "shared[service]" -e .
	$(OLDEST)/bin/python -m pytest -W default tests/docs/test_recipes.py tests/recorder/test_readers.py tests/archive $(ARGS)

lint: setup ## check style, formatting, spelling and types, as CI does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup ## fix what a machine can fix of lint's findings
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

soak: setup ## inject random faults into the whole system, then check all ledgers; ARGS="--minutes 10 --seed 1234 --faults kill,pause"
	PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

fuzz: setup ## feed hostile input to everything that reads what others write; ARGS="--minutes 60 --seed 1234 --targets mapper,reader"
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

bench: setup ## measure speed as ratios to peers and lower bounds on this machine; ARGS="--help" lists the options
	$(BIN)/python -m benchmarks $(ARGS)

docs: setup ## regenerate the generated pages
	$(BIN)/python docs/generate.py

lock: ## pin the newest dependencies that the pyproject files allow; needs uv (pip install uv)
	$(LOCK) --extra dev --upgrade -o requirements.lock
	$(LOCK) --extra image -c requirements.lock -o deploy/requirements.lock

clean: ## remove .venv and all caches; recorded data stays
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
