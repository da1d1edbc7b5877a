PYTHON ?= python3
BIN := .venv/bin
# Large blocks kept by the allocator: about twice as fast on a CPU, where every step otherwise maps fresh pages.
TRAIN_ENV := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184

# Each environment asks for constraints/NAME.in, gets what constraints/NAME.txt pins, and lies in .venv-NAME; `test` in .venv.
ENVIRONMENTS := test min eval app batch serve docs release
home = .venv$(filter-out -test,-$(1))
install = $(home)/bin/pip install --quiet --disable-pip-version-check
pytest = OMP_NUM_THREADS=1 $(home)/bin/python -m pytest

# What `make test` and others run, and `make lock` before it writes an environment's pins. Newer pins may need newer lint.
lint = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/mypy constraints/newest.py
everything = $(pytest) -n auto
main = TRITON_INTERPRET=1 $(everything)
suite-test = $(lint) && $(main)
suite-min = $(pytest) -n auto tests/attach tests/pruners tests/cli/test_cli_ask.py tests/scenes/test_embedded.py \
	$(addprefix tests/test_,architectures.py contract.py cost.py families.py host.py prompt.py public.py tokens.py)
suite-eval = $(pytest) -n auto $(addprefix tests/evaluate/test_,answers.py lmms.py harness.py eval.py evaluate_host.py)
suite-app = $(pytest) tests/app
suite-batch = $(pytest) tests/batch
suite-serve = $(pytest) tests/serve
mkdocs = NO_MKDOCS_2_WARNING=1 $(home)/bin/mkdocs
suite-docs = $(mkdocs) build --strict --quiet
suite-release = rm -rf dist && $(home)/bin/python -m build --no-isolation && $(home)/bin/twine check --strict dist/*

.PHONY: help venv environments demo lint test test-thorough test-newest test-transformers test-transformers-min test-eval test-app test-batch \
	test-serve test-serve-thorough lock coverage release docs docs-serve app methods scenes scenes-all scenes-positions scenes-shares fidelity reproduce bench \
	bench-serve bench-kernels bench-gpu bench-gpu-throughput train clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

venv: .venv/ready  ## The virtual environment, by plain pip

environments: $(foreach name,$(ENVIRONMENTS),$(call home,$(name))/ready)  ## All of them; make -j2 environments makes two at a time

demo: venv  ## Ask the embedded model about a picture, with and without pruning, and draw what was kept
	mkdir -p demo-out
	$(BIN)/gprune scenes --sample 6 -o demo-out/scenes
	$(BIN)/gprune ask demo-out/scenes/000.png "what text is written?" --keep 0.5 --compare --picture demo-out/answer.png
	$(BIN)/gprune show demo-out/scenes/000.png --keep 0.5,0.3,0.1 -o demo-out/kept.png
	$(BIN)/gprune verify
	$(BIN)/gprune scenes --method gprune,random --keep 0.3 --limit 70
	@echo "pictures: demo-out/answer.png demo-out/kept.png"

lint: venv  ## Ruff and the type checker
	$(lint)

test: venv  ## Everything that must hold: lint, and the tests, with GPU kernels in Triton's interpreter
	$(call suite-test,test)

test-thorough: venv  ## What `make test` leaves out: the crossings of families beyond the first of each kind
	$(call main,test) -m thorough

coverage: venv  ## Which lines the tests of `make test` run
	$(call main,test) --cov=gprune --cov-report=term:skip-covered

test-newest:  ## The tests with the newest of everything but PyTorch and its Triton, also past the bounds of pyproject.toml
	$(call unbounded,newest,-c constraints/base.in)
	$(call main,newest) -m ""

test-transformers:  ## All tests with any transformers: make test-transformers VERSION=5.23.0
	@test -n "$(VERSION)" || { echo "which? make test-transformers VERSION=5.23.0"; exit 2; }
	mkdir -p build
	grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints/test.txt > build/but-transformers.txt
	$(call unbounded,tf,-c build/but-transformers.txt transformers==$(VERSION))
	$(call everything,tf)

test-transformers-min: .venv-min/ready  ## The tests of what meets transformers, with the lowest that is supported
	$(call suite-min,min)

test-eval: .venv-eval/ready  ## The tests of what runs on lmms-eval
	$(call suite-eval,eval)

test-app: .venv-app/ready  ## The tests of the web page in a real browser
	$(call suite-app,app)

test-batch: .venv-batch/ready  ## The tests of batch jobs on Ray
	$(call suite-batch,batch)

test-serve: .venv-serve/ready  ## The tests of vLLM's plug-in, on a CPU
	$(call suite-serve,serve)

test-serve-thorough: .venv-serve/ready  ## What it leaves out: more families under vLLM
	$(call suite-serve,serve) -m thorough

lock: $(ENVIRONMENTS:%=lock-%)  ## The newest within the bounds, tested, into constraints/*.txt; `make lock-app` for one

lock-%:
	$(call build,$*)
	$(call suite-$*,$*)
	(echo '# Written by `make lock-$*`.' && cat $(call home,$*)/installed.txt) > constraints/$*.txt
	touch $(call home,$*)/ready

# $(call build,NAME,what else pip is told)
define build
$(PYTHON) -m venv --clear $(home)
$(install) -r constraints/$(1).in $(2)
$(home)/bin/pip freeze --exclude-editable | sed 's/+.*//' > $(home)/installed.txt
$(after-$(1))
endef

# The same for the main tests, without the upper bounds of pyproject.toml.
define unbounded
$(PYTHON) -m venv --clear $(home)
$(install) packaging
$(home)/bin/python constraints/newest.py draw test > $(home)/wanted.txt
$(install) -r $(home)/wanted.txt $(2)
$(install) --no-deps -e .
@echo "tested here:" && $(home)/bin/pip freeze | \
	grep -iE '^(torch|triton|transformers|tokenizers|huggingface.hub|safetensors|accelerate|peft|numpy|pillow|pytest)=='
endef

.venv/ready: constraints/test.in constraints/test.txt constraints/base.in pyproject.toml
	$(call build,test,-c constraints/test.txt)
	touch $@

.venv-%/ready: constraints/%.in constraints/%.txt constraints/base.in pyproject.toml
	$(call build,$*,-c constraints/$*.txt)
	touch $@

# lmms-eval brings torchvision, and timm on top. Where torchvision is of another build than PyTorch, as beside a CPU build,
# it cannot be imported, nor can what looks for the two: transformers and accelerate. Without them all works.
define after-eval
$(home)/bin/python -c 'import torchvision' 2>/dev/null || $(home)/bin/pip uninstall --quiet --yes torchvision timm
endef

# vLLM's models import torchvision, of which PyPI has a build for GPUs; beside a CPU build of PyTorch it needs help. What
# else vLLM brings of that kind cannot be imported either, and is not needed.
define after-serve
$(home)/bin/pip uninstall --quiet --yes torchaudio torchcodec
cp tests/serve/torchvision_on_cpu.py $(home)/lib/python3*/site-packages/
echo 'import torchvision_on_cpu' > $$(echo $(home)/lib/python3*/site-packages)/torchvision_on_cpu.pth
endef

.venv-serve/ready: tests/serve/torchvision_on_cpu.py

docs: .venv-docs/ready  ## The documentation as a site, in build/site
	$(call suite-docs,docs)

docs-serve: .venv-docs/ready  ## The same at http://127.0.0.1:8000, anew with every change
	$(call mkdocs,docs) serve

release: .venv-release/ready  ## A version as a wheel and an archive in dist, checked; nothing is uploaded
	$(call suite-release,release)
	@version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/gprune/__init__.py); \
	echo "checked; next: git tag -a v$$version -m 'gprune $$version', then twine upload dist/*"

app: .venv-app/ready  ## The web page
	.venv-app/bin/gprune app

bench-serve: .venv-serve/ready  ## The table of docs/serving.md: the embedded model served, with and without pruning
	OMP_NUM_THREADS=1 .venv-serve/bin/python benchmarks/serving.py -o benchmarks/results/serving_cpu

methods: venv  ## What `gprune methods` lists, anew from the classes and the table of families
	mkdir -p build
	$(BIN)/python -m gprune.catalog > build/methods.jsonl && mv build/methods.jsonl src/gprune/methods.jsonl

# Two processes of one thread each do more than one of two; what is in the folder is not measured again.
SCENES = $(BIN)/gprune scenes --seeds 1 --against auto -o benchmarks/results/scenes_auto \
	--method auto,graphvote,graphcover,divprune,tome:where=tokens,uniform,random,gprune
scenes: venv  ## The table of the README, of more methods, on 2,100 test questions; delete the folder's cells to measure anew
	OMP_NUM_THREADS=1 $(SCENES) --keep 0.5,0.2 >/dev/null 2>&1 & OMP_NUM_THREADS=1 $(SCENES) --keep 0.3,0.1,0.05 && wait
	$(SCENES) --keep 0.5,0.3,0.2,0.1,0.05

scenes-all: venv  ## Every method on the first 700 test questions: what the page's curves show
	$(BIN)/gprune scenes --seeds 3 --limit 700 -o benchmarks/results/scenes \
		--method all,gprune:init=ones,tome:where=tokens --keep 0.5,0.3,0.1

scenes-positions: venv  ## The table of docs/scenes.md: kept tokens at their own positions, and renumbered
	$(BIN)/gprune scenes -o benchmarks/results/scenes_positions --keep 0.3 --seeds 1 --method \
		gprune,gprune:positions=contiguous,graphcover,graphcover:positions=contiguous,random,random:positions=contiguous

scenes-shares: venv  ## The table of docs/methods.md: the tiles of an image with shares of their own
	$(BIN)/gprune scenes -o benchmarks/results/scenes_shares --keep 0.3,0.1 --seeds 1 --limit 700 --method \
		gprune,gprune:shares=global,graphvote,graphvote:shares=global,graphcover,graphcover:shares=global

fidelity: venv  ## The tables of docs/fidelity.md: how far pruned answers stay, and whether that orders methods as accuracy does
	$(BIN)/gprune fidelity --plot docs/images/fidelity.png -o runs/fidelity
	$(BIN)/gprune fidelity --method all,gprune:init=ones,tome:where=tokens --limit 210 --batch-size 8 -o runs/fidelity_all
	for run in fidelity fidelity_all; do \
		cp runs/$$run/rows.json benchmarks/results/$$run.json; cp runs/$$run/table.md benchmarks/results/$$run.md; done
	$(BIN)/python benchmarks/fidelity.py

reproduce: venv  ## The paper's tables and figures on the embedded model; delete the folder's cells to measure anew
	$(BIN)/gprune reproduce all --limit 700 -o benchmarks/results/reproduction

bench: venv  ## The table of docs/throughput.md: how fast a model of 0.5 B answers on this CPU
	CUDA_VISIBLE_DEVICES= $(BIN)/gprune bench -o benchmarks/results/throughput_cpu

# With GPU_PYTHON=python3 the two below need no network: a Python with torch, triton, transformers and Pillow does.
GPU_RUN = PYTHONPATH=src $(or $(GPU_PYTHON),$(BIN)/python)
bench-gpu-throughput: $(if $(GPU_PYTHON),,venv)  ## The paper's throughput column, on a GPU: its architecture with random weights
	$(GPU_RUN) -m gprune bench --model llava-next-8b -o benchmarks/results/throughput_gpu

bench-kernels: venv  ## The ranking and set methods beside the bare product; the selection beside the prefill; decoding
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/sets.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/decoding.py

bench-gpu: $(if $(GPU_PYTHON),,venv)  ## All rows that need a GPU, in under eight minutes: kernels, selection, the paper's throughput column
	$(GPU_RUN) benchmarks/kernels.py
	$(GPU_RUN) benchmarks/sets.py
	$(GPU_RUN) benchmarks/selection.py
	$(MAKE) bench-gpu-throughput

train: venv  ## Train the embedded model from its seed (resumable; some 90 minutes on two cores)
	$(TRAIN_ENV) $(BIN)/python -m gprune.scenes.train --out runs/scenes

clean:  ## Everything that was made, but not the trained runs
	rm -rf .venv .venv-* demo-out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
