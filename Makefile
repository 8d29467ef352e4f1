# Commands of the project. Each first sets up .venv if it is missing or out of date.
PYTHON ?= python3
# Stages, dvc and pytest run with .venv's Python, whether or not it is activated
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Tests run in parallel: waiting OpenMP threads should soon sleep (glm2core/process.py says more)
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 1000

.PHONY: help setup setup-dev repro ui promote test test-slow lint format bench bench-train base longcontext lock

help:
	@echo "make repro      set up and run the pipeline (dvc repro) on the embedded data"
	@echo "make ui         MLflow's pages of all runs, on a free port"
	@echo "make promote    register the tuned model in MLflow's model registry"
	@echo "make test       set up and run the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the measurements of benchmarks/, each figure a ratio of one run"
	@echo "make bench-train  training against other ways, and the 6.24 B network (hours)"
	@echo "make base       rebuild the embedded base model (five hours)"
	@echo "make longcontext  the long-context claim with its controls (several hours on two cores)"
	@echo "make setup      only set up .venv, for running; TORCH=cpu or TORCH=cuda chooses torch's build"
	@echo "make setup-dev  add what tests and lint need (make test and make lint do it)"

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

# Rewrites requirements.lock and requirements-dev.lock from the packages in .venv
lock: setup-dev
	@python scripts/lock.py
