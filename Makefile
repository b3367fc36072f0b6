# make demo · make test · make test-all · make lint · make docs · make bench · make clean
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# two test processes of one thread each finish before one of two threads
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test test-slow test-all lint docs bench clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# the tests that are not marked slow: within five minutes on two cores
test: $(VENV)/.installed-dev
	$(TESTS) -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(TESTS) -m slow

test-all: $(VENV)/.installed-dev
	$(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the site in build/site; broken links and docstrings that do not render are errors
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run_all.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[demo]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[demo,dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
