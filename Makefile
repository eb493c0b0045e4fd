# `make` alone lists the targets. Everything happens in .venv; nothing but Python 3.11+ with venv is needed.
PYTHON ?= python3
BIN := .venv/bin
UV ?= $(firstword $(wildcard $(BIN)/uv) uv)
LOCK = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	--no-emit-package tickbus pyproject.toml
.PHONY: help setup demo test lint format soak bench docs lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile

setup: .venv/.ready ## make .venv from requirements.lock; does nothing when nothing changed

.venv/.ready: requirements.lock pyproject.toml shared/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tickbus needs Python 3.11 or newer; say which: make PYTHON=python3.12")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check --only-binary :all: --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e shared -e .
	@touch $@

demo: setup ## everything on this machine, with a simulated market; ARGS="--seconds 30" ends it by itself
	$(BIN)/tickbus demo $(ARGS)

test: setup ## all tests; ARGS="-k bars" picks some; without a server they need they skip here, and fail in CI
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## style, types and formatting, as CI asks for them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## mend what a machine can mend of lint's findings
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

soak: setup ## random faults on the whole system, then a checker over all ledgers; ARGS="--minutes 10 --seed 1234 --faults kill,pause"
	PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

bench: setup ## speed as ratios to peers and floors on this machine; ARGS="--help" says more
	$(BIN)/python -m benchmarks $(ARGS)

docs: setup ## write the generated pages again
	$(BIN)/python docs/generate.py

lock: ## pin the newest dependencies that the pyproject files allow; needs uv (pip install uv)
	$(LOCK) --extra dev --upgrade -o requirements.lock
	$(LOCK) --extra image -c requirements.lock -o deploy/requirements.lock

clean: ## remove .venv and every cache; recorded data stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
