"""Benchmarks; each is a module to run."""

from glm2core.process import prepare_process

# Here, because each of them loads torch, and torch reads these settings when it is loaded.
prepare_process()
