"""Compare matrix multiplications with bf16 weights, widened to fp32 block by block, and with fp32 weights on this CPU.

    python -m benchmarks.products            the released network's linear layers, on 500 tokens and on one
    GLM2CORE_CPU=avx2 python -m benchmarks.products     as on a CPU without bf16 arithmetic

The two are timed alternately. `share` is the share of the fp32 matrix rate that forward and backward reach together; it
should be 60% or more.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import print_machine
from glm2core.model.linear import widened_linear
from glm2core.training.measure import product_rate

# Output and input channels
SHAPES = {"down, 4096 x 13696": (4096, 13696), "up, 27392 x 4096": (27392, 4096)}
TOKENS = 500
TRIALS = 3

Product = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    print_machine()
    print(f"{'linear':<20}{'tokens':>8}{'fp32 ms':>10}{'widened ms':>12}{'share':>8}")
    for name, (outputs, inputs) in SHAPES.items():
        weight = torch.randn(outputs, inputs).to(torch.bfloat16)
        wide = weight.float()
        rate = product_rate(torch.float32, torch.device("cpu"))
        for tokens in (TOKENS, 1):
            training = tokens > 1
            x = torch.randn(tokens, inputs)
            fp32 = _seconds(F.linear, x, wide, training=training)
            widened = _seconds(widened_linear, x, weight, training=training)
            operations = (6 if training else 2) * tokens * weight.numel()
            share = f"{operations / widened / rate:.0%}" if training else ""
            print(f"{name:<20}{tokens:>8}{1e3 * fp32:>10.1f}{1e3 * widened:>12.1f}{share:>8}", flush=True)


def _seconds(product: Product, x: Tensor, weight: Tensor, *, training: bool) -> float:
    """Return the seconds of forward and, in training, of backward for input and weight; the best of a few runs."""
    x, weight = (tensor.detach().requires_grad_(training) for tensor in (x, weight))
    gradient = torch.randn(len(x), len(weight))
    best = float("inf")
    for _ in range(TRIALS):
        started = time.perf_counter()
        made = product(x, weight)
        if training:
            torch.autograd.grad(made, (x, weight), gradient)
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main()
