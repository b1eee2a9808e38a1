# Every target sets up what it needs: a fresh machine with Python 3.11+ and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv test slow engines demo demo-full lint format typecheck clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## */\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP)  ## .venv with the locked versions

# torch goes first and alone, so that a CPU build that the machine offers is taken and kept; all else follows the lock.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "drope needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

test: $(STAMP)  ## the test suite (ARGS="-k needles" passes options to pytest)
	$(BIN)/python -m pytest $(ARGS)

slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

engines: $(STAMP)  ## every family on the real engines (installs llama.cpp and mlx-lm)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,llama-cpp,mlx]'
	$(BIN)/python -m pytest -m 'engines or not slow' tests/export $(ARGS)

demo: $(STAMP)  ## the whole pipeline on the bundled model (SHORT=1: a few minutes, fewer trials)
ifdef SHORT
	$(BIN)/drope extend --config recipes/demo-short.yaml --out out/demo-short $(ARGS)
else
	$(BIN)/drope extend --config recipes/demo.yaml --out out/demo $(ARGS)
endif

demo-full: $(STAMP)  ## the demo with the whole recalibration run
	$(BIN)/drope extend --config recipes/demo-full.yaml --out out/demo-full $(ARGS)

lint: $(STAMP)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)  ## types
	$(BIN)/mypy

clean:  ## remove .venv, caches and everything under out/
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
