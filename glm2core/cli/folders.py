"""The dtype in which a model folder's weights are stored."""

from pathlib import Path

import torch

from glm2core.model.adapters import base_folder
from glm2core.model.weight_files import mapped_weights, weight_files
from glm2core.params.model_files import read_config_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which a folder's weights (an adapter's base) are stored.

    Raises:
        UserError: a config.json or weights that can't be read.
    """
    folder = base_folder(folder) or folder
    config = read_config_file(folder)
    named = None if config is None else config.dtype or config.torch_dtype
    if named is not None and named in DTYPES:
        return DTYPES[named]
    tensors = mapped_weights(weight_files(folder)[:1]).values()
    return next((tensor.dtype for tensor in tensors if tensor.dtype in DTYPES.values()), torch.float32)
