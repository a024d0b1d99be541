# Everything a newcomer needs: make demo, make test. Each target sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Each of these starts servers or a cluster of its own and would be timed out by a neighbour, or time it out.
ALONE := $(addprefix tests/test_serve_,app.py archives.py page.py rollover.py) \
	$(addprefix tests/test_cluster_,nodes.py placement.py sharing.py slurm.py stop.py)

# Without its cache of compiled modules each of a run's dozen processes compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: serve help setup demo test lint types format score clean

help:  ## say what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with the tested versions of everything

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## draw slides, train on drawn cells, score the slides, print their table
	rm -rf demo
	@echo '== 1 of 4: draw cells to train on'
	$(BIN)/python -m bloodcells.synthetic --out demo/cells --balanced --slides 8 --cells 100 --seed 1
	@echo '== 2 of 4: draw an archive of slides'
	$(BIN)/python -m bloodcells.synthetic --out demo/slides --slides 8 --cells 200 --seed 2
	@echo '== 3 of 4: train a small model on the drawn cells'
	$(BIN)/python -m jobs.train --store demo/cells --out demo/bundle --epochs 3
	@echo '== 4 of 4: score the archive'
	$(BIN)/python -m jobs.score --store demo/slides --bundle demo/bundle --out demo/run

test: $(READY)  ## run the tests, two at a time; those of whole servers and clusters one by one
	$(BIN)/python -m pytest --durations 15 --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest --durations 15 $(ALONE)

lint: $(READY)  ## check style
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy

format: $(READY)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

score: $(READY)  ## score your own images: make score STORE=folder-or-archive OUT=run-folder
	@test -n "$(STORE)" -a -n "$(OUT)" || { echo "give both: make score STORE=… OUT=…"; exit 2; }
	$(BIN)/python -m jobs.score --store "$(STORE)" --out "$(OUT)"

serve: $(READY)  ## start the endpoint and its page on this machine, http://127.0.0.1:8000
	$(BIN)/python -m serve

clean:  ## remove what was made here, but for .venv
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
