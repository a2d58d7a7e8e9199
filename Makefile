# make train [ARGS="steps=200"] · make test [ARGS="-k loss"] · make lint · make format · make setup · make clean
.PHONY: setup train test chaos bench bench-quick lint format docs viewer lock clean
.DEFAULT_GOAL := help
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run on the CPU: where .venv holds the GPU packages, they have an environment of their own.
GPUS := $(shell nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
TEST_VENV ?= $(if $(filter-out 0,$(GPUS)),.venv-cpu,$(VENV))
CONFIG ?= configs/alfworld.yaml

.PHONY: help
help:
	@echo 'make setup    .venv with the pinned packages (cpu, or gpu where a GPU is found)'
	@echo 'make train    set up, then train $(CONFIG) or resume it; ARGS="key=value ..." overrides settings'
	@echo 'make test     set up, then run the tests; ARGS goes to pytest'
	@echo 'make chaos    kill every kind of process of a small run, which must end as if nothing had happened'
	@echo 'make bench    measure every ratio of benchmarks/rows.py into benchmarks/RESULTS.md, in about 45 minutes'
	@echo 'make bench-quick  measure within five minutes those that are alike on all machines; fail if one fell by over 25 %'
	@echo 'make lint     check style, formatting, types, docstrings and imports; make format fixes the first two'
	@echo 'make docs     build the documentation as a site in site/; a broken link is an error'
	@echo 'make viewer   build the web page of `hindsight view` again (needs node and npm)'
	@echo 'make lock     update all package versions; make clean removes .venv*, .bench/, site/ and caches, never runs/'

setup:
	@VENV=$(VENV) scripts/setup

train: setup
	$(BIN)/hindsight train $(CONFIG) resume=auto $(ARGS)

test:
	@VARIANT=cpu VENV=$(TEST_VENV) scripts/setup
	$(TEST_VENV)/bin/python -m pytest --numprocesses=2 --no-loadscope-reorder --durations=15 $(ARGS)

chaos:
	@VARIANT=cpu VENV=$(TEST_VENV) scripts/setup
	CUDA_VISIBLE_DEVICES= $(TEST_VENV)/bin/python -m benchmarks.chaos $(ARGS)

bench:
	@VARIANT=cpu VENV=$(TEST_VENV) scripts/setup
	@$(TEST_VENV)/bin/uv pip install --quiet --python $(TEST_VENV)/bin/python --target .bench/site-packages --no-deps \
		-r requirements/bench.txt || echo 'bench: without TRL, whose rows are not measured'
	@$(TEST_VENV)/bin/python -m hindsight envs install appworld || echo 'bench: without AppWorld, whose row is not measured'
	CUDA_VISIBLE_DEVICES= $(TEST_VENV)/bin/python -m benchmarks.bench $(ARGS)

bench-quick:
	@VARIANT=cpu VENV=$(TEST_VENV) scripts/setup
	CUDA_VISIBLE_DEVICES= $(TEST_VENV)/bin/python -m benchmarks.bench --quick $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet --numprocesses=0 tests/test_layout.py tests/test_imports.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs:
	@scripts/docs

viewer:
	cd cluster/report/viewer && npm install --no-package-lock --no-audit --no-fund && npm run build

lock: setup
	scripts/lock

clean:
	rm -rf .venv .venv-cpu .venv-docs .bench site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
