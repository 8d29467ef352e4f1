"""The network's parameters as optimizers take them; the estimate of their memory counts the same."""

from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Adafactor takes a matrix as blocks of rows of N elements: 4 MiB in fp32, so that passes over one stay in a cache."""


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between hidden channels: one of a block, not the embedding or the output."""
    return parameter.dim() == 2 and ".layers." in name
