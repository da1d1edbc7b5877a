PYTHON ?= python3
BIN := .venv/bin
# Large blocks kept by the allocator: about twice as fast on a CPU, where every step otherwise maps fresh pages.
TRAIN_ENV := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184

.PHONY: help venv demo test test-transformers-min lint scenes train clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

venv: .venv/ready  ## The virtual environment, by plain pip

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[draw,test]'
	touch $@

demo: venv  ## Ask the embedded model about a picture, with and without pruning, and draw what was kept
	mkdir -p demo-out
	$(BIN)/gprune scenes --sample 6 -o demo-out/scenes
	$(BIN)/gprune ask demo-out/scenes/000.png "what text is written?" --keep 0.5 --compare --picture demo-out/answer.png
	$(BIN)/gprune show demo-out/scenes/000.png --keep 0.5,0.3,0.1 -o demo-out/kept.png
	$(BIN)/gprune scenes --method gprune,random --keep 0.3 --limit 70
	@echo "pictures: demo-out/answer.png demo-out/kept.png"

lint: venv  ## Ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## Everything that must hold
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-transformers-min: .venv-min/ready  ## The tests with the lowest supported transformers, in an environment of its own
	OMP_NUM_THREADS=1 .venv-min/bin/python -m pytest -n auto

.venv-min/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[draw,test]' 'transformers==5.19.0'
	touch $@

scenes: venv  ## The table of the README, from the test set
	$(BIN)/gprune scenes --method all,gprune:init=ones,tome:where=tokens --keep 0.5,0.3,0.1 --seeds 3 \
		-o benchmarks/results/scenes

train: venv  ## Train the embedded model from its seed (resumable; some 90 minutes on two cores)
	$(TRAIN_ENV) $(BIN)/python -m gprune.scenes.train --out runs/scenes

clean:  ## Everything that was made, but not the trained runs
	rm -rf .venv .venv-min demo-out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
