"""The place of each weight in a GGUF file, and the keys that make llama.cpp compute the same function.

Two of llama.cpp's architectures fit this family. `chatglm` takes the tensors unchanged, but it requires that heads x
channels equal the hidden size, as in all released models. `llama` accepts other shapes. Its files contain query, key
and value as separate tensors, and the MLP's gate and up matrices as separate tensors, too. If RoPE is scaled, or if it
rotates only some of the channels, its frequencies are stored as factors (`rope_freqs`). Both architectures rotate the
same interleaved pairs of channels as this family, so nothing is permuted.

Shapes: `D` channels per head, `R` rotary channels, `F` channels inside the MLP.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glm2core.model.config import ChatGLM2Config
from glm2core.model.rope import BASE, inverse_frequencies

_NEVER_TURNS = 1e30  # a divisor so large that the angle vanishes
_PLAIN = {
    "transformer.embedding.word_embeddings": "token_embd",
    "transformer.encoder.final_layernorm": "output_norm",
    "transformer.output_layer": "output",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


class Part(NamedTuple):
    """A tensor in the file, made of rows of one network tensor, sometimes multiplied by one factor per row."""

    name: str  # in the file, with .weight or .bias
    released: str
    rows: slice = slice(None)
    factors: Tensor | None = None  # [rows]

    def of(self, tensor: Tensor) -> Tensor:
        """Take this part from a weight [O, I], from a bias [O] or from a LoRA's matrix B [O, r]."""
        part = tensor[self.rows]
        if self.factors is None:
            return part
        return part.float() * (self.factors if part.ndim == 1 else self.factors[:, None])


def architecture(config: ChatGLM2Config) -> str:
    """Return the name of the llama.cpp architecture that computes the same function as the network."""
    fits = config.num_attention_heads * config.kv_channels == config.hidden_size
    return "chatglm" if fits else "llama"


def parts(config: ChatGLM2Config, released: list[str]) -> list[Part]:
    """Return all parts of the tensors named in `released`, in the order of that list."""
    return [part for name in released for part in _parts(config, name)]


def rope_factors(config: ChatGLM2Config) -> Tensor | None:
    """Return the tensor `rope_freqs` [D / 2], or None for `chatglm`, which does not use it.

    llama.cpp computes unscaled angles for all channels of a head, and divides them by this tensor.
    """
    if architecture(config) == "chatglm":
        return None
    frequencies, _ = inverse_frequencies(config.rope_parameters, config.rotary_channels)
    pairs = torch.arange(config.kv_channels // 2, dtype=torch.float64)
    assumed = BASE ** (-2 * pairs / config.kv_channels)
    factors = torch.full_like(assumed, _NEVER_TURNS)
    factors[: len(frequencies)] = assumed[: len(frequencies)] / frequencies.double()
    return factors.float()


def keys(config: ChatGLM2Config) -> dict[str, Any]:
    """The file's keys for shapes and positions, without the prefix that names the architecture."""
    return {
        "context_length": config.seq_length,  # the whole scaled range, at which a server's slot is capped
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.ffn_hidden_size,
        "block_count": config.num_layers,
        "vocab_size": config.padded_vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.multi_query_group_num,
        "attention.layer_norm_rms_epsilon": float(config.layernorm_epsilon),
        "attention.key_length": config.kv_channels,
        "attention.value_length": config.kv_channels,
        **_rope_keys(config),
    }


def _rope_keys(config: ChatGLM2Config) -> dict[str, Any]:
    if architecture(config) == "llama":  # all scaling is in rope_freqs
        return {"rope.dimension_count": config.kv_channels, "rope.freq_base": BASE}
    rope = config.rope_parameters
    found: dict[str, Any] = {
        "rope.dimension_count": config.rotary_channels,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] != "default":
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        found["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    return found


def _parts(config: ChatGLM2Config, released: str) -> Iterator[Part]:
    module, _, kind = released.rpartition(".")
    if module in _PLAIN:
        yield Part(f"{_PLAIN[module]}.{kind}", released)
        return
    index, _, inner = module.removeprefix("transformer.encoder.layers.").partition(".")
    name = _IN_LAYER[inner]
    split = _SPLITS.get(name) if architecture(config) == "llama" else None
    if split is None:
        yield Part(f"blk.{index}.{name}.{kind}", released)
        return
    for piece, rows, factors in split(config):
        yield Part(f"blk.{index}.{piece}.{kind}", released, rows, factors)


def _attention_rows(config: ChatGLM2Config) -> list[tuple[str, slice, Tensor | None]]:
    query, group = (n * config.kv_channels for n in (config.num_attention_heads, config.multi_query_group_num))
    return [
        ("attn_q", slice(0, query), _turned_factors(config, config.num_attention_heads)),
        ("attn_k", slice(query, query + group), _turned_factors(config, config.multi_query_group_num)),
        ("attn_v", slice(query + group, query + 2 * group), None),
    ]


def _gate_rows(config: ChatGLM2Config) -> list[tuple[str, slice, Tensor | None]]:
    inner = config.ffn_hidden_size
    return [("ffn_gate", slice(0, inner), None), ("ffn_up", slice(inner, 2 * inner), None)]


def _turned_factors(config: ChatGLM2Config, heads: int) -> Tensor | None:
    """Apply YaRN's factor only to rotary rows, because llama.cpp would apply it to all channels of a head."""
    _, factor = inverse_frequencies(config.rope_parameters, config.rotary_channels)
    if factor == 1:
        return None
    of_head = torch.ones(config.kv_channels)
    of_head[: config.rotary_channels] = factor
    return of_head.repeat(heads)


_SPLITS = {"attn_qkv": _attention_rows, "ffn_up": _gate_rows}
