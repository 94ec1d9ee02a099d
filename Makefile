# make demo   environment, installation, and a real ImageNet network quantized before your eyes
# make test   environment, installation, the tests
# make test-slow  the tests that take longer, and only these
# make docs   the site, into site/, with warnings as errors; then every code block of its tutorials and notebooks
# make lint   ruff (rules and format) and mypy
# make format ruff's fixes and formatting, applied
# make clean  removes the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-slow docs lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/python demo/demo.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m pytest -m tutorials --numprocesses 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

# The stamps depend on pyproject.toml: what is installed follows it, and nothing is installed twice.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing brecq[$*] into $(VENV); PyTorch makes this take a few minutes the first time"
	$(BIN)/python -m pip install --quiet --quiet --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
