"""The initial weights of a network that is made from scratch."""

import math
from typing import Literal, cast

import torch
from torch import Generator, Tensor

from glm2core.errors import UserError
from glm2core.model.layers import GLMBlock, SelfAttention
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.model.rope import inverse_frequencies

_QUERY_KEY_CORRELATION = 0.8
_POSITIONAL_PAIRS = 5
_POSITIONAL_BIAS = 3.0
_OFFSETS = (1, 2, 3, 4, 6, 8, 10, 12)


@torch.no_grad()
def initialize(model: ChatGLM2ForCausalLM, kind: Literal["default", "retrieval"], seed: int) -> None:
    """Initialize all weights in place; the same seed gives the same fp32 values, which are then rounded.

    `default` draws matrices from N(0, initializer_range), and sets biases to 0 and norms to 1.

    `retrieval` lets small networks learn within minutes to find a line in a long text, instead of staying
    at chance for a long time.

    - The output layer and the last projections of attention and MLP are zero, so that every block starts as the
      identity and nothing has to be unlearned first.

    - Embeddings are drawn from N(0, 1), and all other matrices from N(0, 1 / inputs).

    - In each layer, the query weights of a head are 0.8 x the key weights of its group + 0.6 x noise. So equal tokens
      attend to each other from the start, which a head needs to match a key.

    - In the first layer, biases on the five fastest rotary pairs make each head initially attend to the token
      1, 2, 3, ... places back. Composing with the previous token is the other half of an induction head (Olsson et al.
      2022, arXiv:2209.11895).

    Raises:
        UserError: the kind is unknown.
    """
    generator = Generator().manual_seed(seed)
    if kind == "default":
        _default(model, generator)
    elif kind == "retrieval":
        _retrieval(model, generator)
    else:
        raise UserError(f"model.initialization must be one of default, retrieval; got {kind!r}")


def _default(model: ChatGLM2ForCausalLM, generator: Generator) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            _normal(parameter, model.config.initializer_range, generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _retrieval(model: ChatGLM2ForCausalLM, generator: Generator) -> None:
    _default(model, generator)
    network = model.transformer
    blocks = cast("list[GLMBlock]", list(network.encoder.layers))
    _normal(network.embedding.word_embeddings.weight, 1.0, generator)
    network.output_layer.weight.zero_()
    for block in blocks:
        block.self_attention.dense.weight.zero_()
        block.mlp.dense_4h_to_h.weight.zero_()
        for linear in (block.mlp.dense_h_to_4h, block.self_attention.query_key_value):
            _normal(linear.weight, linear.in_features**-0.5, generator)
        _correlate_queries(block.self_attention)
    _look_back(blocks[0].self_attention)


def _normal(parameter: Tensor, deviation: float, generator: Generator) -> None:
    """Draw row by row, so that half-precision weights get rounded fp32 values without a whole fp32 copy."""
    for row in parameter:
        row.copy_(torch.randn(row.shape, generator=generator) * deviation)


def _correlate_queries(attention: SelfAttention) -> None:
    query, key = _query_and_key(attention.query_key_value.weight, attention)  # [G, H / G, D, C], [G, 1, D, C]
    noise = math.sqrt(1 - _QUERY_KEY_CORRELATION**2)
    query.copy_(_QUERY_KEY_CORRELATION * key + noise * query)


def _look_back(attention: SelfAttention) -> None:
    """Biases whose product is largest if the key is `offset` tokens before the query.

    A key at position j is (b, 0) rotated by j * f, and a query at position i is (b, 0) rotated by (i - offset) * f.
    Their product, b^2 cos((i - offset - j) * f), is largest at j = i - offset.
    """
    if not attention.config.add_qkv_bias:
        return
    query, key = _query_and_key(attention.query_key_value.bias, attention)  # [G, H / G, D], [G, 1, D]
    config = attention.config
    fastest = inverse_frequencies(config.rope_parameters, config.rotary_channels)[0][:_POSITIONAL_PAIRS]
    channels = 2 * len(fastest)
    key[..., 0:channels:2] = _POSITIONAL_BIAS
    for head in range(attention.heads):
        back = -_OFFSETS[head % len(_OFFSETS)] * fastest
        group, member = divmod(head, attention.num_key_value_groups)
        query[group, member, :channels] = _POSITIONAL_BIAS * torch.stack((back.cos(), back.sin()), dim=-1).flatten()


def _query_and_key(rows: Tensor, attention: SelfAttention) -> tuple[Tensor, Tensor]:
    """Views of the query rows [G, H / G, D, ...] and of the key rows [G, 1, D, ...]."""
    heads, groups, channels = attention.heads, attention.groups, attention.channels
    query = rows[: heads * channels].view(groups, -1, channels, *rows.shape[1:])
    key = rows[heads * channels : (heads + groups) * channels].view(groups, 1, channels, *rows.shape[1:])
    return query, key
