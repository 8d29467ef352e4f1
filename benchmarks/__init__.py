"""Benchmarks. Each of them is a module that can be run."""

from glm2core.process import prepare_process

# Called here, because each benchmark loads torch, and torch reads these settings when it is loaded.
prepare_process()
