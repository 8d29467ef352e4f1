"""The network's operations, counted from its shapes."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Cost:
    """Operations that a batch needs, not counting extra work of the implementation (padding, recomputation).

    Args:
        config: the network's configuration.
        backward_factor: number of products of a linear layer in backward for each product in forward: 2, or 1 if
            weights are frozen and only the gradient of the activations is needed; 0 = forward only. Attention has no
            weights, so its backward takes twice its forward in both cases.
    """

    config: Any
    backward_factor: int

    def operations(self, lengths: torch.Tensor, supervised: int) -> float:
        """Operations of forward and backward over rows of `lengths` tokens, with `supervised` tokens in the loss."""
        c = self.config
        attended = c.num_attention_heads * c.kv_channels
        keys_and_values = 2 * c.multi_query_group_num * c.kv_channels
        block = c.hidden_size * (2 * attended + keys_and_values + 3 * c.ffn_hidden_size)
        linears = 2 * block * c.num_layers * int(lengths.sum())
        # Scores and context, only the causal half.
        attention = 2 * attended * c.num_layers * int((lengths * lengths).sum())
        output = 2 * c.padded_vocab_size * c.hidden_size * supervised
        backward_of_attention = 2 if self.backward_factor else 0
        return float((1 + self.backward_factor) * (linears + output) + (1 + backward_of_attention) * attention)
