"""How optimizers group parameters; the estimate of their memory uses the same rules."""

from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Largest number of elements in one of the blocks of rows into which Adafactor splits a matrix.

4 MiB in fp32, so that a block stays in cache.
"""


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix of a block, not of the embedding or the output layer."""
    return parameter.dim() == 2 and ".layers." in name
