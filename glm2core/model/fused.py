"""Functions of several elementwise operations as one kernel on a GPU, where there is a compiler to make it.

Each operation reads and writes all of its tensor, and on a GPU that is what it costs. On a CPU the functions stay as
they are: there they are a small part of a step, and a compiled one has other last bits.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

TensorFunction = Callable[..., Tensor]


def fused(function: TensorFunction, device: torch.device) -> TensorFunction:
    """`function`, which must be pure and take tensors alone: compiled on a GPU if it can be, elsewhere itself."""
    return _compiled(function) if device.type == "cuda" and has_compiler() else function


@cache
def has_compiler() -> bool:
    """Whether torch.compile has what it needs for a GPU: triton, and a C compiler for the launchers."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "cc", "clang"]
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


class Compiled:
    """A function as torch compiles it at its first call, or as it was where that fails."""

    def __init__(self, function: TensorFunction) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import, and a CPU needs no compiler

        self.plain, self.compiled = function, torch.compile(function, dynamic=True)
        self._failure, self.works = TorchDynamoException, True

    def __call__(self, *tensors: Tensor) -> Tensor:
        if self.works:
            try:
                return self.compiled(*tensors)
            except self._failure:  # a compiler that is there and does not work
                self.works = False
        return self.plain(*tensors)


@cache
def _compiled(function: TensorFunction) -> Compiled:
    return Compiled(function)
