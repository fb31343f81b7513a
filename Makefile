# `make quickstart`, `make test` and `make wheel-test` each start from a bare clone and need nothing but Python >= 3.11.

PYTHON ?= python3
# Where PyTorch comes from when it is not installed yet; this index holds the CPU builds.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin
PIP := $(BIN)/pip -qq --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
TRANSFORMERS := $(shell grep '^transformers==' constraints.txt)
SDIST := $(subst ==,-,$(TRANSFORMERS))
# The fast tests run in two processes; one thread each keeps them from fighting over two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

.PHONY: help install quickstart examples test test-slow test-gpu wheel-test robustness bench bench-gpu docs findings lint format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: .venv/.installed ## make .venv with the pinned versions

quickstart: install ## train two small models on the text that ships, in five to seven minutes
	$(BIN)/eem quickstart --output runs/quickstart

examples: install ## train once what the notebooks of examples/ load
	cd examples && ../$(BIN)/eem quickstart --output quickstart --max-steps 60

test: lint .venv/transformers-tests ## lint, import contracts and the fast tests
	$(PYTEST) -m "not slow and not gpu"

test-slow: install .venv/transformers-tests ## the tests that take more than a few seconds
	$(PYTEST) -m "slow and not gpu"
	TEST_DEVICE=cpu $(PYTEST) -m gpu

test-gpu: install ## models, losses, estimators and generation on a GPU against the CPU; skipped without one
	$(BIN)/pytest -m gpu

wheel-test: install ## build the wheel, install it in a fresh environment, use it from an empty folder
	.ci/wheel-test $(BIN)/python

bench: install ## speed and memory against their floors; exits with 1 if one is missed
	$(BIN)/python benchmarks/speed.py --output records

bench-gpu: install ## training, token mixing, head, entropies and generation on a GPU, in ten minutes at most
	$(BIN)/python benchmarks/gpu.py --output records

robustness: install ## kills, double starts, damaged inputs, full disks: the long rounds of tests/robustness
	ROBUSTNESS=100 $(BIN)/pytest tests/robustness

docs: install ## the site, into site/
	@$(PIP) install --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

findings: ## show what surprised us in libraries, each script from scratch (long; outside CI)
	@for script in findings/[a-z]*.sh; do echo "$$script"; bash "$$script" || exit 1; done

lint: install ## ruff, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo

format: install ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what these targets made, .venv included
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache

# PyTorch first and at its exact version: any wider request would fetch the CUDA build and gigabytes with it.
# A build that is already installed, or that pip finds on this disk, is kept.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the pinned dependencies into .venv"
	@$(PIP) install --no-index --no-deps "$(TORCH)" 2>/dev/null \
		|| $(PIP) install --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	@$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@

# transformers tests its own models with classes that only its source distribution holds; ours must pass them too.
.venv/transformers-tests: .venv/.installed
	@rm -rf $@ $@.part
	@mkdir $@.part && cd $@.part \
		&& ../bin/pip -qq download --no-deps --no-build-isolation --no-binary transformers "$(TRANSFORMERS)" \
		&& tar -xzf "$(SDIST).tar.gz" --strip-components 1 "$(SDIST)/tests" && rm "$(SDIST).tar.gz" \
		&& touch tests/__init__.py \
		&& cd ../.. && mv $@.part $@ \
		|| echo "transformers' own tests could not be fetched: the tests that need them are skipped"
