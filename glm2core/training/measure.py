"""What training costs: model operations, and the machine's own matrix rate."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from glm2core.hardware import product_dtype

_SMALLEST_SIDE, _LARGEST_SIDE = 256, 8192
_LONG_ENOUGH = 0.005  # seconds of a product that reaches the machine's rate
_SECONDS = 0.3  # in all


@dataclass(frozen=True)
class Cost:
    """Operations that a batch needs, whatever the implementation does besides (padding, recomputation).

    Args:
        config: the network's configuration.
        backward_factor: backward's share relative to forward: 2, or 1 where weights are frozen and only
            the gradient of the activations is needed.
    """

    config: Any
    backward_factor: int

    def operations(self, lengths: torch.Tensor, supervised: int) -> float:
        """Of forward and backward over rows of `lengths` real tokens, `supervised` of them in the loss."""
        c = self.config
        attended = c.num_attention_heads * c.kv_channels
        keys_and_values = 2 * c.multi_query_group_num * c.kv_channels
        block = c.hidden_size * (2 * attended + keys_and_values + 3 * c.ffn_hidden_size)
        linears = 2 * block * c.num_layers * int(lengths.sum())
        # Scores and context, over the causal half.
        attention = 2 * attended * c.num_layers * int((lengths * lengths).sum())
        output = 2 * c.padded_vocab_size * c.hidden_size * supervised
        return float((1 + self.backward_factor) * (linears + attention + output))


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the products that weights in `dtype` take part in on `device`."""
    return product_rate(product_dtype(dtype, device), device)


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a product of square random matrices in `dtype`: the best within a third of a second.

    The side grows as long as a product is over in milliseconds, so that emulated arithmetic is measured as well.
    """
    end = time.perf_counter() + _SECONDS
    side, best = _SMALLEST_SIDE, 0.0
    a, b = _random_matrices(side, dtype, device)
    torch.matmul(a, b)  # the first in a process takes longer
    while True:
        seconds = _seconds_of_product(a, b)
        best = max(best, 2 * side**3 / seconds)
        if time.perf_counter() > end:
            return best
        if seconds < _LONG_ENOUGH and side < _LARGEST_SIDE:
            side *= 2
            a, b = _random_matrices(side, dtype, device)


def _random_matrices(side: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Values of all magnitudes: zeros and ones are easier on a chip's power, and so on its clock.
    generator = torch.Generator(device).manual_seed(0)  # the run's own random numbers are left alone
    drawn = torch.randn(2, side, side, dtype=torch.float32, device=device, generator=generator).to(dtype)
    return drawn[0], drawn[1]


def _seconds_of_product(a: torch.Tensor, b: torch.Tensor) -> float:
    _synchronize(a.device)
    start = time.perf_counter()
    torch.matmul(a, b)
    _synchronize(a.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
