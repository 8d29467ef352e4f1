"""Convert the network's config and the names of its weights to transformers' own `GlmForCausalLM`.

transformers, vLLM and llama.cpp's converter load the layout of this class without remote code.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import GlmConfig

from glm2core.errors import UserError
from glm2core.model.config import ChatGLM2Config

_NAMES = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_FUSED = "self_attention.query_key_value."
_LAYER_PREFIX = "transformer.encoder.layers."


def glm_config(config: ChatGLM2Config) -> GlmConfig:
    """The configuration with which `GlmForCausalLM` computes the same function.

    Raises:
        UserError: the network has a P-tuning prefix, which this layout can't hold.
    """
    if config.pre_seq_len:
        raise UserError(
            f"this model has a P-tuning prefix of {config.pre_seq_len} (config: pre_seq_len), which the Glm layout "
            "cannot hold. To get a model that can be exported, tune with train.method full, lora or qlora."
        )
    return GlmConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        hidden_act="silu",
        attention_bias=config.add_qkv_bias,
        max_position_embeddings=config.seq_length,
        rms_norm_eps=config.layernorm_epsilon,
        tie_word_embeddings=False,
        rope_parameters=dict(config.rope_parameters),
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


def glm_state_dict(state_dict: Mapping[str, Tensor], config: ChatGLM2Config) -> dict[str, Tensor]:
    """The weights under `GlmForCausalLM`'s names; the fused projection is split, and no value changes.

    Raises:
        UserError: a tensor has no place in this layout.
    """
    return {name: tensor for key, value in state_dict.items() for name, tensor in _mapped(key, value, config)}


def _mapped(key: str, value: Tensor, config: ChatGLM2Config) -> Iterator[tuple[str, Tensor]]:
    if key in _NAMES:
        yield _NAMES[key], value
        return
    index, _, name = key.removeprefix(_LAYER_PREFIX).partition(".")
    if name.startswith(_FUSED):
        for part, tensor in zip("qkv", _split(value, config), strict=True):
            yield f"model.layers.{index}.self_attn.{part}_proj.{name.removeprefix(_FUSED)}", tensor
    elif name in _LAYER_NAMES:
        yield f"model.layers.{index}.{_LAYER_NAMES[name]}", value
    else:
        raise UserError(f"tensor {key} has no place in the Glm layout")


def _split(fused: Tensor, config: ChatGLM2Config) -> tuple[Tensor, ...]:
    query = config.num_attention_heads * config.kv_channels
    group = config.multi_query_group_num * config.kv_channels
    # The parts are cloned, because safetensors rejects tensors that share memory.
    return tuple(part.clone() for part in torch.split(fused, [query, group, group]))
