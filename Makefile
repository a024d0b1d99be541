# Everything a newcomer needs: make demo, make test. Each target sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types format score clean

help:  ## say what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with the tested versions of everything

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## draw slides, train on drawn cells, score the slides, print their table
	$(BIN)/python -m jobs.demo --out demo

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest

lint: $(READY)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy

format: $(READY)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

score: $(READY)  ## score your own images: make score STORE=folder-or-archive OUT=run-folder
	@test -n "$(STORE)" -a -n "$(OUT)" || { echo "give both: make score STORE=… OUT=…"; exit 2; }
	$(BIN)/python -m jobs.score --store "$(STORE)" --out "$(OUT)"

clean:  ## remove what was made here, but for .venv
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
