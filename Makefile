# What a user and the CI run. Everything is installed into .venv; nothing outside this folder is touched but the
# cache of the bundled model. `make train ARGS="..."` passes arguments on to the recipe.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv train test test-slow check clean

help:
	@echo "make train      train the bundled model on a small task (installs first)"
	@echo "make venv       install into $(VENV)"
	@echo "make test       the tests that take seconds"
	@echo "make test-slow  the proofs that take minutes"
	@echo "make check      format, lint, types and the floors of the house"
	@echo "make clean      remove caches and builds (not $(VENV), not runs/)"

venv: $(STAMP)

# torch comes first, so that an index or a wheel chosen for it (pip's own settings) is settled before the rest.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "loragym needs Python 3.11 or newer as $(PYTHON); name another with: make venv PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

train: $(STAMP)
	$(BIN)/loragym train rl_basic $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

# mypy finds a package by its folder's name, and this folder may be called anything: hence the link.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/src && ln -sfn $(CURDIR) $(VENV)/src/loragym
	MYPYPATH=$(VENV)/src $(BIN)/mypy --package loragym
	$(BIN)/python tests/floors.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
