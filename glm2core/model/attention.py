"""Causal grouped-query attention with the fastest kernel for each case.

transformers' `sdpa` function expands keys and values to all query heads whenever there is a mask, and it needs a mask
for every chunk of a long prompt except the first. On the CPU, the functions in this file need neither the expansion nor
this mask. `python -m benchmarks.attention` measures the gain from each choice.

Shapes: `B` batch, `T` query tokens, `K` keys, `H` query heads, `G` key/value heads, `D` channels per head.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glm2core.hardware import product_dtype
from glm2core.model.attention_kernels import chosen_kernel

# Rows of scores per matrix multiplication in `_Blocks`: few enough to fit a core's cache, but enough to be fast.
_TRAINING_ROWS, _READING_ROWS = 256, 512
_SHAPES = 32


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    implementation: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention that is causal by index, which means that query t sees keys up to K - T + t.

    Args:
        module: a module with the attribute `num_key_value_groups` (H / G), which transformers' functions read.
        query: [B, H, T, D].
        key, value: [B, G, K, D].
        attention_mask: a mask in the format of the implementation; None = causal attention without padded keys.
        implementation: sdpa, eager, or any other name that transformers knows.

    Returns:
        Context [B, T, H, D], and weights [B, H, T, K] if the implementation returns them.
    """
    wide = product_dtype(query.dtype, query.device)
    if wide != query.dtype:
        query, key, value = (heads.to(wide) for heads in (query, key, value))
    scaling = query.shape[-1] ** -0.5
    if implementation == "sdpa" and query.device.type == "cpu":
        return _on_cpu(query, key, value, attention_mask, scaling), None
    if implementation == "sdpa" and attention_mask is None and 1 < query.shape[2] < key.shape[2]:
        # This is a later chunk of a prompt. With this bias torch uses the flash kernel; with a mask it would not.
        bias = causal_lower_right(query.shape[2], key.shape[2])
        context = F.scaled_dot_product_attention(query, key, value, bias, scale=scaling, enable_gqa=True)
        return context.transpose(1, 2), None
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, grouped_attention)
    plain = implementation == "sdpa" and attention_mask is None
    with chosen_kernel(query.device) if plain else nullcontext():
        return attend(module, query, key, value, attention_mask, dropout=0.0, scaling=scaling, **kwargs)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The attention function for `attn_implementation="eager"`, with transformers' arguments; see `_by_products`."""
    return _by_products(query, key, value, attention_mask, scaling)


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Compute attention with plain matrix multiplications, without expanding keys and values.

    The query heads of a group are stacked along the tokens, so that one matrix multiplication serves them all.

    Args:
        mask: additive, [B or 1, 1, T, K] or [T, K]; None = every key is seen.

    Returns:
        Context [B, T, H, D] and weights [B, H, T, K].
    """
    batch, heads, tokens, channels = query.shape
    groups, seen = key.shape[1], key.shape[2]
    stacked = (query * scaling).reshape(batch, groups, -1, channels)  # [B, G, H / G * T, D]
    scores = torch.matmul(stacked, key.transpose(2, 3)).view(batch, heads, tokens, seen)
    if mask is not None:
        scores = scores + mask[..., :seen]
    weights = F.softmax(scores, dim=-1)  # [B, H, T, K]; the kernel computes in fp32 and rounds once
    context = torch.matmul(weights.view(batch, groups, -1, seen), value).view(batch, heads, tokens, channels)
    return context.transpose(1, 2), weights


def _on_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Context [B, T, H, D]. `mask` is boolean, True = seen, or None."""
    tokens, seen = query.shape[2], key.shape[2]
    if tokens == 1:
        return _next_token(query, key, value, mask, scaling)
    half = query.dtype != torch.float32
    if mask is None and tokens == seen and half:
        if torch.is_grad_enabled():
            return _BlockedAttention.apply(query, key, value, scaling)
        return _attend(query * scaling, key, value, _READING_ROWS)
    if mask is None and tokens < seen and not torch.is_grad_enabled():
        return _later_chunk(query, key, value, scaling)
    if mask is None and tokens < seen:
        mask = torch.ones(tokens, seen, dtype=torch.bool).tril(seen - tokens)
    context = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return context.transpose(1, 2)


def _next_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Compute attention for one query token, which is up to 12 times faster than in the general case.

    The heads of a group are treated as if they were tokens, so that the group's keys are read only once.
    """
    batch, heads, _, channels = query.shape
    stacked = query.reshape(batch, key.shape[1], -1, channels)  # [B, G, H / G, D]
    context = F.scaled_dot_product_attention(stacked, key, value, mask, scale=scaling)
    return context.reshape(batch, 1, heads, channels)


def _later_chunk(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Compute attention for a later chunk of a prompt, without gradients.

    It needs no T x K mask and is about twice as fast as with such a mask. Every token sees all earlier chunks, so these
    need no mask, and within the chunk attention is plainly causal. The two parts are merged into one softmax with their
    log-sum-exps, as in ring attention (Liu et al. 2023, arXiv:2310.01889). Only torch's operator itself, which is
    called here, returns the log-sum-exps.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    before = key.shape[2] - query.shape[2]
    past, past_sum = flash(query, key[:, :, :before], value[:, :, :before], scale=scaling)
    own, own_sum = flash(query, key[:, :, before:], value[:, :, before:], is_causal=True, scale=scaling)
    share = torch.sigmoid(own_sum - past_sum).unsqueeze(-1)  # [B, H, T, 1], of the chunk itself
    return torch.lerp(past, own, share.to(past.dtype)).transpose(1, 2)


class _BlockedAttention(torch.autograd.Function):
    """Causal attention in half precision with `_Blocks`; backward recomputes the scores.

    As in Dao et al. 2022 (arXiv:2205.14135), no T x T matrix is kept. The backward of the CPU's flash kernel is slow in
    half precision. This class is 1.8 to 3 times faster for up to 256 tokens, and 1.3 times faster for 2,048 tokens.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [B, H, T, D], key and value [B, G, T, D] -> context [B, T, H, D]."""
        scaled = query * scaling
        ctx.save_for_backward(scaled, key, value)
        ctx.scaling = scaling
        return _attend(scaled, key, value, _TRAINING_ROWS)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        scaled, key, value = ctx.saved_tensors
        blocks = _Blocks(scaled, key, _TRAINING_ROWS)
        gradient = gradient.transpose(1, 2).unflatten(1, (key.shape[1], -1))  # [B, G, H / G, T, D]
        of_query = torch.empty_like(blocks.query)
        # These are sums over all blocks, in fp32 so that no block's contribution is rounded away
        of_key, of_value = (torch.zeros(key.shape, dtype=torch.float32) for _ in range(2))
        for block in blocks:
            seen = blocks.seen(block)
            probabilities = blocks.probabilities(block)
            queries, gradients = blocks.query[..., block, :].flatten(2, 3), gradient[..., block, :].flatten(2, 3)
            of_value[:, :, seen] += torch.matmul(probabilities.mT, gradients)
            of_probabilities = torch.matmul(gradients, value[:, :, seen].mT)
            of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
            of_query[..., block, :] = torch.matmul(of_scores, key[:, :, seen]).view_as(of_query[..., block, :])
            of_key[:, :, seen] += torch.matmul(of_scores.mT, queries)
        return (of_query * ctx.scaling).flatten(1, 2), of_key.to(key.dtype), of_value.to(key.dtype), None


def _attend(scaled: Tensor, key: Tensor, value: Tensor, rows: int) -> Tensor:
    """Compute the context [B, T, H, D] of scaled queries [B, H, T, D].

    Reading 16,384 tokens is 1.4 times faster than with the flash kernel.
    """
    blocks = _Blocks(scaled, key, rows)
    context = torch.empty_like(blocks.query)
    for block in blocks:
        attended = torch.matmul(blocks.probabilities(block), value[:, :, blocks.seen(block)])
        context[..., block, :] = attended.view_as(context[..., block, :])
    return context.flatten(1, 2).transpose(1, 2)


class _Blocks:
    """Causal scores from matrix multiplications, for one block of query tokens at a time.

    A block is multiplied with the keys up to the block's own end, or slightly further, which halves the work. The ends
    are rounded up because oneDNN keeps a kernel for every shape. With rounded ends, a long text needs only `_SHAPES`
    shapes instead of one shape for each block. The query heads of a group are stacked, so that one matrix
    multiplication serves them all. Scores and probabilities have one buffer each, because new memory for every block
    would cost as much time as a matrix multiplication.

    Scores are stored in half precision, where values near 100 are rounded to multiples of 0.5. Softmax gives the same
    result if a constant is subtracted from all scores of a row. So each token's score with itself is subtracted from
    its row before rounding, by one extra channel in the matrix multiplication. Heads that attend to a token's
    neighbours have their largest scores close to this value. The shift makes the context's error ten times smaller.

    Args:
        query: [B, H, T, D], scaled.
        key: [B, G, T, D].
        rows: number of rows of scores in a block, over all heads of a group.
    """

    def __init__(self, query: Tensor, key: Tensor, rows: int) -> None:
        self.query = query.unflatten(1, (key.shape[1], -1))  # [B, G, H / G, T, D]
        own = (self.query * key.unsqueeze(2)).sum(-1, keepdim=True)  # [B, G, H / G, T, 1]
        self._lowered = torch.cat((self.query, -own), dim=-1)
        self._keys_and_one = torch.cat((key, torch.ones_like(key[..., :1])), dim=-1)  # [B, G, T, D + 1]
        batch, groups, heads, tokens, _ = self.query.shape
        self._size = min(tokens, max(16, rows // heads))
        self._step = self._size * max(1, tokens // (_SHAPES * self._size))
        self._later = torch.full((self._size, self._step + self._size), float("-inf"), dtype=query.dtype).triu(1)
        self._scores = torch.empty(batch * groups * heads * self._size * tokens, dtype=query.dtype)
        self._probabilities = torch.empty_like(self._scores)

    def __iter__(self) -> Iterator[slice]:
        tokens = self.query.shape[3]
        return (slice(start, min(start + self._size, tokens)) for start in range(0, tokens, self._size))

    def seen(self, block: slice) -> slice:
        """Return the slice of the keys that a block sees."""
        return slice(0, min(self.query.shape[3], math.ceil(block.stop / self._step) * self._step))

    def probabilities(self, block: slice) -> Tensor:
        """Return a block's attention weights, [B, G, H / G * block, keys], which are valid until the next call."""
        queries = self._lowered[..., block, :].flatten(2, 3)  # [B, G, H / G * block, D + 1]
        keys = self.seen(block).stop
        size, shape = block.stop - block.start, (*queries.shape[:3], keys)
        scores, probabilities = (
            buffer[: math.prod(shape)].view(shape) for buffer in (self._scores, self._probabilities)
        )
        torch.matmul(queries, self._keys_and_one[:, :, :keys].mT, out=scores)
        scores.unflatten(2, (-1, size))[..., block.start :].add_(self._later[:size, : keys - block.start])
        return torch.softmax(scores, dim=-1, out=probabilities)
