# make demo     install what users get, and show everything once, on synthetic images, in demo/
# make test     unit tests, then the tests on real images (skipped where AMSAM_DATA has none); PROCESSES=1 for one at a time
# make label-env    install the MONAI Label server into an environment of its own, .venv-label
# make test-label   its tests, with real clients
# make attack   bad and odd input by the hundred, all of it: tried, held, failed
# make check    what CI checks without running the code: lint, format, types, the import floors, known vulnerabilities
# make format   let ruff mend what it can
# make clean    remove caches, builds and demo/ (the environment stays: rm -rf .venv)

PYTHON ?= python3
PROCESSES ?= logical
VENV   := .venv
LABEL  := .venv-label
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test attack label-env test-label check format clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed
	$(BIN)/amsam demo -o demo

# As many processes as there are cores, four at most, with one thread of torch each: threads of two processes that share
# cores wait for each other. The tests of a file stay in one process, as they share what is expensive to make.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist loadfile

label-env: $(LABEL)/.installed

# One thread of torch a process: server, training and tests run side by side.
test-label: $(LABEL)/.installed
	OMP_NUM_THREADS=1 $(LABEL)/bin/python -m pytest tests/label

# One thread of torch a process: a case is small, and the processes are many.
attack: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.attack

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python .ci/audit.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist demo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path './$(VENV)*' -prune -o -type d -name __pycache__ -exec rm -rf {} +

# One stamp per kind of install: pip runs again only when pyproject.toml has changed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "amsam-med needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	  echo "Name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(LABEL)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python -m pip install --quiet --editable '.[label-dev]'
	$(LABEL)/bin/python -m pip check
	@touch $@
