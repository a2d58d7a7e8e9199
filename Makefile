# make train [ARGS="steps=200"] · make test [ARGS="-k loss"] · make lint · make format · make setup · make clean
.PHONY: setup train test lint format lock clean
.DEFAULT_GOAL := help
VENV := .venv/bin
CONFIG ?= configs/alfworld.yaml

.PHONY: help
help:
	@echo 'make setup    .venv with the pinned packages (cpu, or gpu where a GPU is found)'
	@echo 'make train    set up, then train $(CONFIG) or resume it; ARGS="key=value ..." overrides settings'
	@echo 'make test     set up, then run the tests; ARGS goes to pytest'
	@echo 'make lint     check style, formatting and types; make format fixes the first two'
	@echo 'make lock     update all package versions; make clean removes .venv and caches, never runs/'

setup:
	@scripts/setup

train: setup
	$(VENV)/hindsight train $(CONFIG) resume=auto $(ARGS)

test: setup
	$(VENV)/python -m pytest --numprocesses=2 --no-loadscope-reorder --durations=15 $(ARGS)

lint: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

format: setup
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

lock: setup
	scripts/lock

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
