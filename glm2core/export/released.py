"""Export with `--format released`: the layout of the released weights, for tools that run the original code.

The *.py files of the original code are copied from the base's folder. Files that are not in this folder are listed as
missing, and no such file is generated.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glm2core.console import Notice, progress_bar
from glm2core.errors import UserError
from glm2core.export.source import Source, refuse_existing, stored_dtype
from glm2core.files import atomic_path, write_json
from glm2core.model.config import ChatGLM2Config
from glm2core.model.loading import read_config
from glm2core.model.rope import BASE, describe_rope, inverse_frequencies, plain_rope
from glm2core.model.tensors import StoredTensors
from glm2core.model.weight_files import mapped_weights, weight_files

_SHARD_BYTES = 1 << 30
_FREQUENCIES = "transformer.rotary_pos_emb.inv_freq"
_CODE = ("configuration_chatglm.py", "modeling_chatglm.py", "quantization.py", "tokenization_chatglm.py")
# The keys of released config.json files, except those for sizes and positions
_KEYS: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "add_bias_linear": False,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_SIZES = (
    "num_layers",
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "kv_channels",
    "num_attention_heads",
    "multi_query_group_num",
    "seq_length",
    "layernorm_epsilon",
    "add_qkv_bias",
    "eos_token_id",
    "pad_token_id",
)
_TOKENIZER: dict[str, Any] = {
    "tokenizer_class": "ChatGLMTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    "remove_space": False,
    "do_lower_case": False,
}


def export_released(
    folder: Path, out: Path, *, dtype: torch.dtype | None = None, base: Path | None = None, notice: Notice = print
) -> str:
    """Write the model in `folder` as sharded safetensors in the released layout; an adapter is merged first.

    Args:
        folder: a folder with full weights (released or tuned) or with a LoRA adapter.
        out: the new folder, which must not exist yet.
        dtype: dtype of the exported weights; None = the dtype in which the weights are stored.
        base: where an adapter's base is now; None = it was not moved.

    Returns:
        The names of the files that the original code still needs in `out`, as text; empty = none.

    Raises:
        UserError: `out` exists, `folder` holds no model, `folder` holds a P-tuning prefix, or the released code does
            not support the model's scaling of positions.
    """
    refuse_existing(out)
    source = Source.open(folder, base, notice=notice)
    ratio = released_ratio(source.config)
    dtype = dtype or stored_dtype(folder, base)
    with atomic_path(out) as partial:
        partial.mkdir()
        write_json(partial / "config.json", _config(source, ratio, dtype))
        _write_weights(source, dtype, partial)
        copied = _copy_tokenizer_and_code(source, ratio, partial)
        _check(source, dtype, partial)
    notice("checked by reading back every tensor, the positions and the config")
    missing = [name for name in _CODE if name not in copied]
    return f"{', '.join(missing)} of {_member(source.config, ratio)}" if missing else ""


def released_ratio(config: ChatGLM2Config) -> float:
    """Return the `rope_ratio` with which the released code computes the same positions as this config.

    Raises:
        UserError: no ratio gives the same positions.
    """
    rope = config.rope_parameters
    base, is_linear = float(rope["rope_theta"]) / BASE, rope["rope_type"] == "linear"
    if rope["rope_type"] == "default" and base == 1:
        return 1.0
    if config.family == "chatglm2" and is_linear and base == 1:
        return float(rope["factor"])
    if config.family == "chatglm3" and rope["rope_type"] == "default":
        return base
    does = "divides positions" if config.family == "chatglm2" else "multiplies the rotary base"
    raise UserError(
        f"this model uses {describe_rope(rope)}, which the released {config.family} code can't compute. That code "
        f"{does} by rope_ratio and supports no other scaling. Export with --format hf or gguf, which support this "
        "model."
    )


def _config(source: Source, ratio: float, dtype: torch.dtype) -> dict[str, Any]:
    given = json.loads((source.base / "config.json").read_text(encoding="utf-8"))
    kept = given if "auto_map" in given else {"_name_or_path": f"THUDM/{_member(source.config, ratio)}", **_KEYS}
    values = {**kept, **{key: getattr(source.config, key) for key in _SIZES}}
    values |= {"torch_dtype": str(dtype).removeprefix("torch."), "quantization_bit": 0, "pre_seq_len": None}
    return values | ({"rope_ratio": int(ratio) if ratio == int(ratio) else ratio} if ratio != 1 else {})


def _member(config: ChatGLM2Config, ratio: float) -> str:
    """The family member whose code computes these positions."""
    if config.family == "chatglm2":
        return "chatglm2-6b" if ratio == 1 else "chatglm2-6b-32k"
    return "chatglm3-6b" if ratio == 1 else "chatglm3-6b-32k"


def _write_weights(source: Source, dtype: torch.dtype, folder: Path) -> None:
    frequencies, _ = inverse_frequencies(plain_rope(), source.config.rotary_channels)
    names = [*source.shapes, _FREQUENCIES]
    size = {name: source.shapes[name].numel() * dtype.itemsize for name in source.shapes}
    shards = _shards(names, size | {_FREQUENCIES: frequencies.numel() * dtype.itemsize})
    weight_map: dict[str, str] = {}
    with progress_bar(f"weights in {str(dtype).removeprefix('torch.')}", len(names)) as (bar, task):
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors: dict[str, Tensor] = {}
            for name in shard:
                tensor = frequencies if name == _FREQUENCIES else source.read(name)
                tensors[name] = tensor.to(dtype).contiguous()
                bar.advance(task)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(size.values())}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _shards(names: list[str], size: dict[str, int]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    for name in names:
        if shards[-1] and sum(size[held] for held in shards[-1]) + size[name] > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    return shards


def _copy_tokenizer_and_code(source: Source, ratio: float, folder: Path) -> list[str]:
    """Copy the tokenizer and, if they support the scaling, the base's *.py files; return these files' names."""
    shutil.copy2(source.folder / "tokenizer.model", folder)
    config = source.base / "tokenizer_config.json"
    given = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    write_json(folder / config.name, given if "auto_map" in given else _TOKENIZER)
    files = sorted(source.base.glob("*.py"))
    if ratio != 1:  # chatglm2-6b's own code ignores the ratio, and would use plain positions
        network = source.base / "modeling_chatglm.py"
        knows = network.is_file() and "rope_ratio" in network.read_text(encoding="utf-8", errors="replace")
        files = files if knows else []
    for file in files:
        shutil.copy2(file, folder)
    return [file.name for file in files]


def _check(source: Source, dtype: torch.dtype, folder: Path) -> None:
    read = read_config(folder, notice=lambda sentence: None)
    for key in ("family", "rope_parameters", *_SIZES):
        if getattr(read, key) != getattr(source.config, key):
            raise UserError(
                f"{key} is {getattr(read, key)!r} instead of {getattr(source.config, key)!r} when it is read back. "
                "Nothing was written, because the released config.json can't express this value."
            )
    stored = StoredTensors(mapped_weights(weight_files(folder)))
    for name in source.shapes:
        if not stored[name].equal(source.read(name).to(dtype)):
            raise UserError(
                f"{name} has different values when it is read back. Nothing was written. Check that the weights are "
                "finite."
            )
