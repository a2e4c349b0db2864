# `make serve` and `make test` need Python 3.11+ and make, nothing else: they create .venv and install into it.
PYTHON ?= python3
VENV := .venv
MINUTES ?= 30
EXAMPLES ?= 20
# One more than processors, because tests also wait for servers; at most 8.
WORKERS ?= $(shell n=$$(($$(getconf _NPROCESSORS_ONLN) + 1)); echo $$((n > 8 ? 8 : n)))
PARALLEL ?= --numprocesses $(WORKERS) --dist worksteal
BIN := $(VENV)/bin
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help serve test quick lint readme models models-table trunks eval trainers ui ui-test ui-pictures ray-test monitoring-test flex-test gpu-test fuzz storm soak clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

serve: $(VENV)/.base  ## serve the models in models/ on 127.0.0.1:8000
	$(BIN)/reward-service serve

test: lint  ## check style and types, run the whole suite
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(VENV)/.dev  ## run the tests that need no server, no trained model and no sweep over models (about a minute)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not server and not trained and not sweep'

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

models: $(VENV)/.train  ## rebuild the checkpoints in models/ from packages and models/recipe/data (about an hour on two cores)
	$(BIN)/python -m models.recipe

eval: $(VENV)/.train  ## train and judge the four folds that `make models` leaves out (some 80 minutes), write all figures into the cards
	$(BIN)/python -m models.recipe.folds 1 2 3 4
	$(BIN)/python -m models.recipe.report

models-table: $(VENV)/.dev  ## measure every family of docs/models.md and write its table
	$(BIN)/python -m tests.families.table

trunks: $(VENV)/.dev  ## write app/checkpoints/trunks.json: what the installed transformers calls the parts of each model type
	$(BIN)/python -m tests.trunk_table

readme: $(VENV)/.dev  ## write the settings, the API reference and the answers of the curl examples into README.md and docs/
	$(BIN)/python -m tests.settings_table
	$(BIN)/python -m tests.api_reference
	$(BIN)/python -m tests.examples

trainers: $(VENV)/.dev  ## real TRL runs, other trainers' own code and the examples against a running server; reward rules against verl's and TRL's
	$(INSTALL) --editable '.[dev,trainers]'
	$(BIN)/python -m tests.trainers.packages
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

monitoring-test: $(VENV)/.dev  ## deploy/: alerts and dashboard in a real Prometheus, the proxies' samples (Debian's prometheus, nginx, caddy)
	@for each in prometheus promtool nginx caddy openssl; do command -v $$each >/dev/null || { \
		echo "no $$each; apt-get install prometheus nginx-light caddy openssl" >&2; exit 1; }; done
	$(BIN)/python -m pytest tests/monitoring

flex-test: $(VENV)/.dev  ## the GPU's attention, compiled for the CPU: equal scores, few compilations (Debian's package g++)
	@command -v g++ >/dev/null || { echo "no g++; apt-get install g++" >&2; exit 1; }
	$(BIN)/python -m pytest tests/flex

gpu-test:  ## on a GPU: scores equal to transformers', compilations, memory (any Python with torch and transformers)
	$(GPU_PYTHON) -m benchmarks.gpu.equality

fuzz: $(VENV)/.dev  ## invent requests for every route: schemathesis over the OpenAPI document, Hypothesis over the parsers
	$(INSTALL) --editable '.[dev,fuzz]'
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz

storm: $(VENV)/.bench  ## 4,000 requests at once, then slow, silent, huge and vanishing clients; prints tables
	$(BIN)/python -m benchmarks.storm

soak: $(VENV)/.bench  ## MINUTES of mixed traffic at 80 % of what the service can do; fails where anything grows
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

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[bench]'
	@touch $@ $(VENV)/.base
