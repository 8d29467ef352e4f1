"""The network's operations, counted from its shapes."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Cost:
    """The operations that a batch needs, without the implementation's extra work (padding and recomputation).

    Args:
        config: the network's configuration.
        backward_factor: number of a linear layer's matrix multiplications in backward for each one in forward, which is
            2, or 1 if weights are frozen and only the activations' gradient is needed; 0 = forward only. Attention has
            no weights, so its backward takes twice the operations of its forward even if weights are frozen.
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
        # Scores and context, of which only the causal half is needed.
        attention = 2 * attended * c.num_layers * int((lengths * lengths).sum())
        output = 2 * c.padded_vocab_size * c.hidden_size * supervised
        backward_of_attention = 2 if self.backward_factor else 0
        return float((1 + self.backward_factor) * (linears + output) + (1 + backward_of_attention) * attention)
