"""The dtype in which a model folder's weights are stored."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from glm2core.model.adapters import base_folder
from glm2core.model.loading import weight_files

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(folder: Path, moved_base: Path | None = None) -> torch.dtype:
    """The dtype in which a folder's weights (an adapter's base) are stored."""
    folder = base_folder(folder, moved_base) or folder
    file = weight_files(folder)[0]
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = values.get("dtype") or values.get("torch_dtype")
    if named in DTYPES:
        return DTYPES[named]
    if file.suffix == ".bin":
        return next(iter(torch.load(file, weights_only=True, mmap=True).values())).dtype
    with safe_open(file, "pt") as weights:
        return _SAFETENSORS_DTYPES[weights.get_slice(weights.keys()[0]).get_dtype()]
