"""Measurements, each a module to run."""

from glm2core.process import prepare_process

# Here, for each of them loads torch, and torch reads what this sets as it is loaded.
prepare_process()
