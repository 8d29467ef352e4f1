# Commands of the project. Each sets up .venv first when it is missing or out of date.
PYTHON ?= python3
# Stages run as `python`, dvc and pytest of .venv, whether or not it is activated
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Tests run side by side: OpenMP threads that wait should soon sleep (stages/runner.py says more)
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 1000

.PHONY: help setup setup-dev repro ui promote test test-slow lint format bench bench-train base longcontext lock

help:
	@echo "make repro      set up and run the pipeline (dvc repro) on the embedded data"
	@echo "make ui         MLflow's pages of all runs, on a free port"
	@echo "make promote    keep the tuned model as a version in MLflow's model registry"
	@echo "make test       set up and run the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the measurements of benchmarks/, each figure a ratio of one run"
	@echo "make bench-train  training against other ways, and the 6.24 B network (hours)"
	@echo "make base       make the embedded base model anew (35 minutes or more)"
	@echo "make longcontext  the long-context claim with its controls (one to two hours on two cores)"
	@echo "make setup      only set up .venv, with what running needs; TORCH=cpu or TORCH=cuda chooses torch's build"
	@echo "make setup-dev  what tests and lint need besides (make test and make lint do it)"

setup:
	@$(PYTHON) scripts/setup.py $(if $(TORCH),--torch $(TORCH))

setup-dev:
	@$(PYTHON) scripts/setup.py dev $(if $(TORCH),--torch $(TORCH))

repro: setup
	@echo "repro: running the pipeline: convert, tokenize, train, evaluate"
	@dvc repro
	@python -m glm2core figures

ui: setup
	@python -m glm2core ui

promote: setup
	@python -m glm2core promote

test: setup-dev
	@echo "test: running the tests (make test-slow runs those that take minutes)"
	@python -m pytest -n 2 --dist loadgroup

test-slow: setup-dev
	@python -m pytest -m slow

lint: setup-dev
	@ruff check .
	@ruff format --check .
	@mypy

format: setup-dev
	@ruff check --fix .
	@ruff format .

bench: setup-dev
	@for name in products attention lora data evaluate pipeline; do echo "== $$name"; python -m benchmarks.$$name || exit 1; done

bench-train: setup-dev
	@python -m benchmarks.train

base: setup
	@python scripts/base.py

longcontext: setup
	@python -m benchmarks.long_context $(if $(LONGEVAL),--longeval $(LONGEVAL))

# Writes requirements.lock and requirements-dev.lock anew from what .venv holds
lock: setup-dev
	@python scripts/lock.py
