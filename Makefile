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

# Each part goes on where it was interrupted, and is not run again once its model is there.
FULL := out/demo-full
resume = $(if $(wildcard $(1)/run/recalibration.json),--resume)
demo-full: $(FULL)/3/model/config.json  ## the demo after the whole recalibration, run here (an hour and a half on two cores)
	$(BIN)/drope extend --config recipes/demo-full.yaml --continue-from $(FULL)/3/model --out $(FULL)/demo $(ARGS)

$(FULL)/1/model/config.json: | $(STAMP)
	$(BIN)/drope recalibrate --config recipes/bundled/recalibrate-1.yaml --out $(FULL)/1 $(call resume,$(FULL)/1)
$(FULL)/2/model/config.json: $(FULL)/1/model/config.json
	$(BIN)/drope recalibrate $(FULL)/1/model --config recipes/bundled/recalibrate-2.yaml --out $(FULL)/2 $(call resume,$(FULL)/2)
$(FULL)/3/model/config.json: $(FULL)/2/model/config.json
	$(BIN)/drope recalibrate $(FULL)/2/model --config recipes/bundled/recalibrate-3.yaml --out $(FULL)/3 $(call resume,$(FULL)/3)

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
