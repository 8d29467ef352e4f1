"""The files that hold a checkpoint's weights: which they are, and that they can be read."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from glm2core.errors import UserError

# In the order in which transformers looks for them.
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ZIP = b"PK\x03\x04"
_LFS_POINTER = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, sorted.

    Raises:
        UserError: no such folder, no weights in it, or a shard of the index is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Name one with config.json and weights in it.")
    for name in _NAMES:
        file = folder / name
        if file.is_file():
            return _shards(file) if name.endswith(".index.json") else [file]
    raise UserError(
        f"{folder} holds no weights: neither pytorch_model*.bin nor *.safetensors (with their index.json where sharded)"
    )


def require_readable(file: Path) -> None:
    """Look into a weight file without reading its tensors; nothing in it is run.

    Raises:
        UserError: it is damaged, or holds other things than tensors.
    """
    with file.open("rb") as opened:
        start = opened.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise UserError(f"{file} is a git-lfs pointer, not the weights. Run `git lfs pull` in {file.parent}.")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return
        torch.load(file, weights_only=True, mmap=start.startswith(_ZIP))
    except Exception as error:  # damaged bytes make the parsers fail in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{file} cannot be read as weights ({reason}). Copy it again, and compare its size with the original's."
        ) from None


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is no index of weight files: {error!r}. Copy it again.") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} names files that are not there: {', '.join(missing)}. Copy them into {index.parent}.")
    return [index.parent / name for name in names]
