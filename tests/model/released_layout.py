"""Tiny checkpoints in the layout of the released ones, random weights inside.

    python -m tests.model.released_layout OUT

writes every member of the family, sharded .bin and safetensors, and one with a P-tuning prefix.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# What the released config.json files say beside the sizes.
RELEASED_KEYS: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLMModel"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
    "use_cache": True,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "transformers_version": "4.30.2",
    "torch_dtype": "float16",
    "quantization_bit": 0,
    "pre_seq_len": None,
    "prefix_projection": False,
    "interleaved_qkv": False,
}
SIZES: dict[str, Any] = {
    "num_layers": 3,
    "padded_vocab_size": 320,
    "hidden_size": 64,
    "ffn_hidden_size": 172,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
}
MEMBERS: dict[str, dict[str, Any]] = {
    "chatglm2-6b": {"_name_or_path": "THUDM/chatglm2-6b", "seq_length": 32768},
    "chatglm2-6b-32k": {"_name_or_path": "THUDM/chatglm2-6b-32k", "seq_length": 32768, "rope_ratio": 16},
    "codegeex2-6b": {"_name_or_path": "THUDM/codegeex2-6b", "seq_length": 8192, "torch_dtype": "bfloat16"},
    "chatglm3-6b": {"_name_or_path": "THUDM/chatglm3-6b", "seq_length": 8192},
    "chatglm3-6b-32k": {"_name_or_path": "THUDM/chatglm3-6b-32k", "seq_length": 32768, "rope_ratio": 50},
    "chatglm3-6b-128k": {"_name_or_path": "THUDM/chatglm3-6b-128k", "seq_length": 131072, "rope_ratio": 500},
}


def released_config(member: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a member, at tiny sizes."""
    return {**RELEASED_KEYS, **SIZES, **MEMBERS[member], **changes}


def released_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the released names, the rotary buffer included."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    shapes = _shapes(config)
    # Large enough that attention is not uniform, as in a trained network.
    weights = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name:
            weights[name] = 1 + 0.1 * torch.randn(shapes[name], generator=generator)
    rotary = config["kv_channels"] // 2
    weights["transformer.rotary_pos_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, rotary, 2) / rotary)
    return {name: weight.to(dtype) for name, weight in weights.items()}


def write_checkpoint(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor] | None = None, layout: str = "bin", shards: int = 2
) -> dict[str, Tensor]:
    """Write config.json and weights (layout bin or safetensors); returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = released_weights(config) if weights is None else weights
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    stem, suffix, save = {
        "bin": ("pytorch_model", "bin", torch.save),
        "safetensors": ("model", "safetensors", lambda w, f: save_file(w, f, metadata={"format": "pt"})),
    }[layout]
    if shards == 1:
        save(weights, folder / f"{stem}.{suffix}")
        return weights
    weight_map = {}
    for number, names in enumerate(_parts(list(weights), shards), start=1):
        file = f"{stem}-{number:05}-of-{shards:05}.{suffix}"
        save({name: weights[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    size = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2))
    return weights


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn, vocabulary = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    heads, groups, channels = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    rows = (heads + 2 * groups) * channels
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (vocabulary, hidden)}
    for index in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{index}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attention.query_key_value.weight": (rows, hidden),
            layer + "self_attention.query_key_value.bias": (rows,),
            layer + "self_attention.dense.weight": (hidden, heads * channels),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
            layer + "mlp.dense_4h_to_h.weight": (hidden, ffn),
        }
    shapes |= {
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (vocabulary, hidden),
    }
    return shapes | _prefix_shapes(config)


def _prefix_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    if not config["pre_seq_len"]:
        return {}
    width = config["num_layers"] * 2 * config["multi_query_group_num"] * config["kv_channels"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.prefix_encoder.embedding.weight": (config["pre_seq_len"], width)}
    if config["prefix_projection"]:
        hidden = config["hidden_size"]
        shapes |= {
            "transformer.prefix_encoder.trans.0.weight": (hidden, width),
            "transformer.prefix_encoder.trans.0.bias": (hidden,),
            "transformer.prefix_encoder.trans.2.weight": (width, hidden),
            "transformer.prefix_encoder.trans.2.bias": (width,),
        }
    return shapes


def _parts(names: list[str], count: int) -> list[list[str]]:
    size = -(-len(names) // count)
    return [names[start : start + size] for start in range(0, len(names), size)]


def main(out: Path) -> None:
    for member in MEMBERS:
        for layout in ("bin", "safetensors"):
            write_checkpoint(out / layout / member, released_config(member), layout=layout)
    prefix = released_config("chatglm2-6b", pre_seq_len=8)
    write_checkpoint(out / "bin" / "chatglm2-6b-prefix", prefix)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
