"""The grouping of parameters for optimizers, shared with the estimate of their memory."""

from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Adafactor splits a matrix into blocks of rows of N elements: 4 MiB in fp32, so that a block stays in cache."""


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between hidden channels: one of a block, not the embedding or the output."""
    return parameter.dim() == 2 and ".layers." in name
