"""Fuse several elementwise operations into one kernel on a GPU, if there is a compiler.

Each operation reads and writes its whole tensor, and on a GPU this dominates the operation's cost. On a CPU the
functions stay unchanged, because they take only a small part of a step there, and because the results of compiled
functions differ in the last bits.
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
    """Compile `function` on a GPU if possible; otherwise return it unchanged.

    The function must be pure and take only tensors.
    """
    return _compiled(function) if device.type == "cuda" and has_compiler() else function


@cache
def has_compiler() -> bool:
    """Whether torch.compile's requirements for a GPU are met: triton, and a C compiler for the launchers."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "cc", "clang"]
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


class Compiled:
    """A function that torch compiles at its first call; if compiling fails, it runs unchanged."""

    def __init__(self, function: TensorFunction) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import, and a CPU needs no compiler

        self.plain, self.compiled = function, torch.compile(function, dynamic=True)
        self._failure, self.works = TorchDynamoException, True

    def __call__(self, *tensors: Tensor) -> Tensor:
        if self.works:
            try:
                return self.compiled(*tensors)
            except self._failure:  # the compiler is installed but does not work
                self.works = False
        return self.plain(*tensors)


@cache
def _compiled(function: TensorFunction) -> Compiled:
    return Compiled(function)
