"""Estimates how much memory and disk space a training run needs, and whether this machine has enough."""
