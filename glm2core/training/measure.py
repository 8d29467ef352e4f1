"""What training costs: model operations, and the machine's own matrix rate."""

import time
from dataclasses import dataclass
from typing import Any

import torch

# Large enough to reach the machine's rate, small enough to take milliseconds.
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_TRIALS = 5


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
    """Operations a second of a large square matrix product: the best of a few."""
    side = _MATRIX_SIDE[device.type]
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    torch.matmul(a, b)
    best = min(_seconds_of_product(a, b) for _ in range(_TRIALS))
    return 2 * side**3 / best


def _seconds_of_product(a: torch.Tensor, b: torch.Tensor) -> float:
    _synchronize(a.device)
    start = time.perf_counter()
    torch.matmul(a, b)
    _synchronize(a.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
