"""The network's parts: norm, attention, MLP, block and P-tuning prefix, with the released parameter names.

Shapes: `B` batch, `T` tokens, `K` tokens seen (cache included), `H` query heads, `G` key/value
heads, `D` channels per head, `C` hidden channels, `F` channels inside the MLP, `S` the number of requested positions
if not all are requested.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from glm2core.hardware import product_dtype
from glm2core.model.attention import attention
from glm2core.model.config import ChatGLM2Config
from glm2core.model.fused import fused
from glm2core.model.linear import Linear
from glm2core.model.rope import rotate


class Normalization(torch.autograd.Function):
    """The function that RMSNorm computes; backward recomputes it, so that its input is kept instead of two fp32 copies.

    In the 28 blocks of chatglm2-6b these copies would take 0.9 GiB at 500 tokens.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalize [..., C]."""
        ctx.save_for_backward(hidden, weight)
        ctx.eps = eps
        return Normalization.values(hidden, weight, eps)

    @staticmethod
    def values(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale * weight).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needed = ctx.needs_input_grad[:2]
        hidden, weight = (t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True))
        with torch.enable_grad():
            result = Normalization.values(hidden, weight, ctx.eps)
        found = iter(torch.autograd.grad(result, [t for t in (hidden, weight) if t.requires_grad], gradient))
        of_hidden, of_weight = (next(found) if need else None for need in needed)
        return of_hidden, of_weight, None


def normalized_by_torch(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `Normalization` with torch's own function.

    On a GPU, torch's function is one kernel, which computes in fp32 and keeps its input and a scale. On a CPU, that
    function is several kernels, which keep fp32 copies, and its result differs from `Normalization` in the last bits.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return F.rms_norm(hidden, (len(weight),), weight, eps)


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467), computed in fp32."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.device.type == "cuda" and hidden.dtype == self.weight.dtype:
            return normalized_by_torch(hidden, self.weight, self.eps)
        normalized: Tensor = Normalization.apply(hidden, self.weight, self.eps)
        return normalized

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"


class SelfAttention(nn.Module):
    """Grouped-query attention with a fused projection, whose rows are the query, key and value heads in this order."""

    is_causal = True

    def __init__(self, config: ChatGLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads, self.groups, self.channels = (
            config.num_attention_heads,
            config.multi_query_group_num,
            config.kv_channels,
        )
        # transformers' attention functions read this attribute: query heads per key/value head.
        self.num_key_value_groups = self.heads // self.groups
        rows = (self.heads + 2 * self.groups) * self.channels
        self.query_key_value = Linear(config.hidden_size, rows, bias=config.add_qkv_bias)
        self.dense = Linear(self.heads * self.channels, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        rotations: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        kept: Tensor | None = None,
        before: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the context [B, T, C], or only the context [B, S, C] of the positions `kept` [B or 1, S].

        In both cases, keys and values are computed for all tokens.

        Args:
            before: keys and values [B, G, P, D] that precede those of the tokens; they are not added to a cache.
        """
        batch, tokens, _ = hidden.shape
        mixed = self.query_key_value(hidden).view(batch, tokens, -1, self.channels)  # [B, T, H + 2G, D]
        turning, value = mixed.split((self.heads + self.groups, self.groups), dim=2)
        # Queries and keys are rotated together, in one call on [B, T, H + G, D].
        query, key = rotate(turning, rotations).split((self.heads, self.groups), dim=2)
        if kept is not None:
            query = pick(query, kept)  # [B, S, H, D]
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))  # [B, H or G, T, D]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # [B, G, K, D]
        if before is not None:
            key, value = (torch.cat(parts, dim=2) for parts in zip(before, (key, value), strict=True))
        if kept is not None:
            attention_mask = _mask_of(kept, attention_mask, tokens, key.shape[2])
        context, weights = attention(
            self, query, key, value, attention_mask, self.config._attn_implementation or "sdpa", **kwargs
        )
        return self.dense(context.flatten(2)), weights


def pick(tensor: Tensor, positions: Tensor) -> Tensor:
    """Select `positions` [B or 1, S] from [B, T, ...]; returns [B, S, ...]."""
    if positions.shape[0] == 1:
        return tensor.index_select(1, positions[0])
    return tensor.gather(
        1, positions.view(*positions.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
    )


def _mask_of(kept: Tensor, mask: Tensor | None, tokens: int, seen: int) -> Tensor:
    """The mask [B or 1, 1, S, K] of the queries at `kept`, taken from the mask of all tokens, or causal by index."""
    if mask is not None:
        mask = mask.expand(max(len(mask), len(kept)), -1, -1, -1)
        return pick(mask.transpose(1, 2), kept).transpose(1, 2)
    last = (seen - tokens + kept)[:, None, :, None]  # the key of a query's own position
    return torch.arange(seen, device=kept.device) <= last


def swiglu(both: Tensor) -> Tensor:
    """Map `both` [..., 2F], whose first half is the gate, to silu(gate) * up [..., F] (Shazeer, arXiv:2002.05202)."""
    return fused(_swiglu, both.device)(both)


def swiglu_gradient(both: Tensor, gradient: Tensor) -> Tensor:
    """Compute the gradient of `both` [..., 2F] from the gradient of the result [..., F]."""
    return fused(_swiglu_gradient, both.device)(both, gradient)


def _swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _swiglu_gradient(both: Tensor, gradient: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
    return torch.cat((of_gate, gradient * F.silu(gate)), dim=-1)


class SwiGLU(torch.autograd.Function):
    """The function `swiglu` with a backward that keeps only the input.

    Autograd would also keep silu(gate), which takes 0.4 GiB in the 28 blocks of chatglm2-6b at 500 tokens.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Map [..., 2F], whose first half is the gate, to [..., F]."""
        ctx.save_for_backward(both)
        return swiglu(both)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return swiglu_gradient(ctx.saved_tensors[0], gradient)


class LinearAfterSwiGLU(ABC):
    """A linear layer that computes SwiGLU itself, so that SwiGLU's input is kept for backward, but not its output."""

    @abstractmethod
    def of_gates(self, both: Tensor) -> Tensor:
        """Apply the linear layer to `swiglu(both)`."""


class MLP(nn.Module):
    """Up projection, SwiGLU and down projection; the first F rows of `dense_h_to_4h` compute the gate."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        both = self.dense_h_to_4h(hidden)
        down: nn.Module = self.dense_4h_to_h  # or an adapter around it
        if isinstance(down, LinearAfterSwiGLU):
            return down.of_gates(both)
        return down(SwiGLU.apply(both))


class GLMBlock(GradientCheckpointingLayer):
    """Attention and MLP, each with a norm before it and a residual connection around it."""

    def __init__(self, config: ChatGLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden: Tensor,
        rotations: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        kept: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Map [B, T, C] to [B, T, C], or to [B, S, C] for the positions `kept` [B or 1, S]."""
        attended, _ = self.self_attention(
            self.input_layernorm(hidden), rotations, attention_mask, past_key_values, kept, **kwargs
        )
        hidden = (hidden if kept is None else pick(hidden, kept)) + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class PrefixEncoder(nn.Module):
    """P-tuning v2 (Liu et al. 2021, arXiv:2110.07602).

    In every layer, learned keys and values precede those of the text.
    """

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.layers, self.groups, self.channels = (config.num_layers, config.multi_query_group_num, config.kv_channels)
        assert config.pre_seq_len is not None
        self.length = config.pre_seq_len
        width = self.layers * 2 * self.groups * self.channels
        self.embedding = nn.Embedding(self.length, width)
        self.trans = None
        if config.prefix_projection:
            self.trans = nn.Sequential(Linear(width, config.hidden_size), nn.Tanh(), Linear(config.hidden_size, width))

    def forward(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Return the key and the value for each layer, each [B, G, prefix, D]. The keys are not rotated."""
        weight = self.embedding.weight
        prefix = weight if self.trans is None else self.trans(weight.to(product_dtype(weight.dtype, weight.device)))
        shaped = prefix.view(self.length, self.layers, 2, self.groups, self.channels).permute(1, 2, 3, 0, 4)
        return [(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)) for key, value in shaped]
