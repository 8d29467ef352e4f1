"""How optimizers group parameters; the estimate of the optimizers' memory uses the same rules."""

from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""The largest number of elements in a block, when Adafactor splits a matrix into blocks of rows.

A block takes at most 4 MiB in fp32, so that it stays in cache.
"""


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix in one of the network's blocks, not in the embedding or the output layer."""
    return parameter.dim() == 2 and ".layers." in name
