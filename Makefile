# Every target first brings .venv up to date, so that a fresh clone needs nothing but Python 3.11 and make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help install runtime train test test-rest test-all test-engines test-versions faults gpu gpu-pack image docs check format clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --quiet --compile

# These three and the torch of requirements.txt fit only together.
TORCHREC := torchrec==1.8.0
FBGEMM_CPU := fbgemm-gpu-cpu==1.8.0
FBGEMM_CUDA := fbgemm-gpu==1.8.0

# Whose kernels fbgemm brings: "auto" asks the driver; an image, which is built where no GPU is, says "cpu" or "cuda".
DEVICE ?= auto
IMAGE ?= infnet-rec

QUICKSTART := runs/quickstart
# Two ranks, on two GPUs or on none; one where there is one GPU.
RANKS ?= $(shell gpus=$$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true); echo $$((gpus == 1 ? 1 : 2)))
# Two workers of one thread each; tests that start ranks share one of them.
PYTEST_ARGS ?= -q -n 2 --dist loadscope --durations 10
# INFNET_REC_LANE: what cannot start fails, where it would be skipped otherwise.
PYTEST := INFNET_REC_LANE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed-dev ## make .venv with everything that running, testing and checking need
	@echo "make install: .venv is ready; next: make train, make test"

runtime: .venv/installed ## make .venv with what running needs and no more; DEVICE=cpu or cuda where no GPU tells
	@echo "make runtime: .venv is ready"

train: .venv/installed $(QUICKSTART)/store/manifest.json ## generate a small log, build its store, train on RANKS ranks
	@run=$(QUICKSTART)/run-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/infnet-rec train configs/quickstart.toml --ranks $(RANKS) --run-dir $$run

test: .venv/installed-dev ## run the first lane, in minutes; PYTEST_ARGS="-q -k metrics" for some of it
	@$(PYTEST) -m "not rest and not engines" $(PYTEST_ARGS) || { status=$$?; echo "make test: FAILED"; exit $$status; }
	echo "make test: passed"

test-rest: .venv/installed-dev ## run what the first lane leaves out, and its properties with more examples
	@$(PYTEST) -m "(rest or hypothesis) and not engines" --hypothesis-profile full $(PYTEST_ARGS) || \
		{ status=$$?; echo "make test-rest: FAILED"; exit $$status; }
	echo "make test-rest: passed"

test-all: .venv/installed-dev ## run all tests that need no other engine
	@$(PYTEST) -m "not engines" --hypothesis-profile full $(PYTEST_ARGS) || \
		{ status=$$?; echo "make test-all: FAILED"; exit $$status; }
	echo "make test-all: passed"

test-versions: .venv/installed-dev ## run all tests beside the oldest torch, torchrec and fbgemm that are allowed (6 GB); writes benchmarks/results/versions.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.versions

test-engines: .venv/installed-dev ## jobs on a real Slurm of two nodes, as root (apt-get install slurm-wlm munge iproute2); writes benchmarks/results/slurm.md
	@export INFNET_REC_ENGINES=1 INFNET_REC_ENGINES_RESULTS=benchmarks/results/slurm.md OMP_NUM_THREADS=1
	$(BIN)/python -m pytest -q tests/engines
	echo "make test-engines: passed"

faults: .venv/installed-dev ## kill, hang and damage real runs, some hundred times; writes benchmarks/results/faults.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults

gpu: .venv/installed-dev $(QUICKSTART)/store/manifest.json ## prove the package on a GPU in minutes, or say why not; GPU_ARGS="--rehearse" on a CPU
	@$(BIN)/python -m benchmarks.gpu $(GPU_ARGS)

gpu-pack: .venv/installed-dev $(QUICKSTART)/store/manifest.json ## pack what a GPU machine without a package index lacks into .gpu
	@$(BIN)/python -m benchmarks.gpu.pack --out .gpu $(PACK_ARGS)

image: ## build a container image; DEVICE=cuda for GPUs
	@docker build --target $(patsubst auto,cpu,$(DEVICE)) --tag $(IMAGE):$(patsubst auto,cpu,$(DEVICE)) .

docs: .venv/installed-docs ## make the site of the documentation in build/site, strictly
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet
	echo "make docs: build/site/index.html"

check: .venv/installed-dev ## formatting, lint, types, direction of imports, dead code
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m vulture
	echo "make check: passed"

format: .venv/installed-dev ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

clean: ## remove .venv and what tools left behind; runs/ stays
	@rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A finished installation ends with its stamp. Where there is none, .venv may be half unpacked in ways that pip takes
# for complete, so it is made anew; where there is one that is older than the requirements, pip brings .venv up to date.
.venv/installed: requirements.txt pyproject.toml
	@if [ ! -e $@ ]; then
		python=$$(for p in python3.11 python3; do
			"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$p" && break
		done) || { echo "make: Python 3.11 is needed; neither python3.11 nor python3 on PATH is that version" >&2; exit 1; }
		echo "make: installing into .venv; this takes a minute or more"
		"$$python" -m venv --clear .venv
	fi
	rm -f $@ .venv/installed-dev
	$(INSTALL) -r requirements.txt
	# CUDA kernels load only beside a CUDA torch; the CPU kernels load beside either.
	fbgemm=$(FBGEMM_CPU) other=$(FBGEMM_CUDA)
	if [ "$(DEVICE)" != cuda ] && [ "$(DEVICE)" != cpu ] && [ "$(DEVICE)" != auto ]; then
		echo "make: DEVICE=$(DEVICE): is auto, cpu or cuda" >&2; exit 2
	fi
	on_cuda() { $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; }
	if [ "$(DEVICE)" = cuda ] && ! on_cuda; then
		echo "make: DEVICE=cuda: pip found a torch for the CPU; let it see an index with CUDA builds" >&2; exit 1
	fi
	if [ "$(DEVICE)" = cuda ] || { [ "$(DEVICE)" = auto ] && nvidia-smi -L >/dev/null 2>&1 && on_cuda; }; then
		fbgemm=$(FBGEMM_CUDA) other=$(FBGEMM_CPU)
	fi
	# Both unpack into the same folder, so removing one breaks the other.
	if $(PIP) show --quiet $${other%==*} 2>/dev/null; then
		$(PIP) uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu
	fi
	$(INSTALL) --no-deps $$fbgemm $(TORCHREC)
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	@$(INSTALL) -r requirements-dev.txt
	touch $@

.venv/installed-docs: requirements-docs.txt .venv/installed-dev
	@$(INSTALL) -r requirements-docs.txt
	touch $@

$(QUICKSTART)/raw: | .venv/installed
	@rm -rf $@.partial
	$(BIN)/infnet-rec data generate --dataset kuairand-pure --examples 60000 --seed 1 --out $@.partial
	mv $@.partial $@

$(QUICKSTART)/store/manifest.json: | $(QUICKSTART)/raw
	@$(BIN)/infnet-rec data build configs/datasets/kuairand_pure.toml --raw $(QUICKSTART)/raw --out $(QUICKSTART)/store
