"""Estimates the memory and disk of a training run, and whether it fits."""
