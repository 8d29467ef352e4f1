"""Makes the data of benchmarks/train.py: Alpaca rows as the pipeline tokenizes them, and weights in released layout."""

import functools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glm2core.data.convert import convert_sources
from glm2core.data.converted import read_conversations
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.model.presets import preset_config
from glm2core.params import ConvertParams, Source, TokenizeParams
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.encode import encode_converted
from glm2core.text.prompt import prompt_text
from glm2core.text.tokenizer import train_tokenizer

_SHARD_BYTES = 2 << 30
_STATUS = Path("/proc/self/status")
_GIB = 1 << 30


def tokenized_rows(data: Path, folder: Path, vocabulary: int) -> tuple[TokenizedDataset, TokenizedDataset]:
    """Tokenize an Alpaca file's training and validation rows with its own tokenizer of at most `vocabulary` pieces."""
    converted, tokenized = folder / "converted", folder / "tokenized"
    convert_sources(
        ConvertParams(sources=[Source(path=str(data), format="alpaca")], max_rejected_fraction=0.5), converted
    )
    # Further pieces, and the rows that padding to a multiple of 64 adds, fit into the preset's vocabulary.
    tokenizer = train_tokenizer(_texts(converted / "train.parquet"), vocabulary - 64)
    params = TokenizeParams(vocabulary_size=vocabulary - 64, threads=os.cpu_count() or 1)
    encode_converted(converted, tokenized, tokenizer, "chatglm2", params)
    training, validation = (TokenizedDataset.load(tokenized / f"{split}.parquet") for split in ("train", "validation"))
    return training, validation


def write_released_weights(folder: Path, preset: str, device: torch.device | None = None, *, layers: int = 0) -> None:
    """Write random bf16 weights of a preset's shape in the released layout, as safetensors shards with their index.

    Args:
        device: the device that draws the numbers; None = the CPU, which takes minutes for billions of numbers.
        layers: number of blocks; 0 = the preset's number.

    Raises:
        SystemExit: there is too little disk space.
    """
    config = preset_config(preset)
    config.num_layers = layers or config.num_layers
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ChatGLM2ForCausalLM(config).state_dict().items()}
    size = 2 * sum(shape.numel() for shape in shapes.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.05 * size:
        raise SystemExit(
            f"{folder}: the weights of {preset} take {size / _GIB:.1f} GiB, but {free / _GIB:.1f} GiB are free there. "
            "Choose a different folder with --work."
        )
    _write_config(folder, config)
    _write_shards(folder, shapes, size, device or torch.device("cpu"))


def _write_config(folder: Path, config: Any) -> None:
    names = (
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
    )
    values = {name: getattr(config, name) for name in names}
    values |= {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "_name_or_path": "THUDM/chatglm2-6b",
        "torch_dtype": "bfloat16",
        "add_bias_linear": False,
        "rmsnorm": True,
        "post_layer_norm": True,
        "multi_query_attention": True,
        "original_rope": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")


def _write_shards(folder: Path, shapes: dict[str, torch.Size], size: int, device: torch.device) -> None:
    shards = max(1, -(-size // _SHARD_BYTES))
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    number = 1
    for position, (name, shape) in enumerate(shapes.items(), start=1):
        # Weights have the released weights' scale, so that losses and gradients are finite; norms are ones.
        weight = torch.ones(shape) if "norm" in name else None
        pending[name] = (
            torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator).cpu()
            if weight is None
            else weight.to(torch.bfloat16)
        )
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        weight_map[name] = file
        full = sum(2 * tensor.numel() for tensor in pending.values()) >= size / shards and number < shards
        if full or position == len(shapes):
            save_file(pending, folder / file, metadata={"format": "pt"})
            pending, number = {}, number + 1
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


@contextmanager
def anonymous_peak() -> Iterator[list[float]]:
    """Yield a list whose one entry is this process's peak of resident memory without mapped file pages, in GiB.

    The kernel keeps no peak of that figure, so it is sampled fifty times per second.
    """
    peak = [_anonymous()]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _anonymous())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _anonymous() -> float:
    lines = _STATUS.read_text().splitlines()
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) * 1024 / _GIB


def _texts(file: Path) -> Iterator[str]:
    prompt = functools.partial(prompt_text, template="chatglm2")
    for row in read_conversations(file):
        yield prompt(row["messages"])
        yield row["messages"][-1]["content"]
