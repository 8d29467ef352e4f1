"""Find the files with a folder's weights, and check the tensors in them before any tensor is used.

Tensors are memory-mapped. Their names, shapes and dtypes are read immediately, and their numbers only when they are
used. No code in a file is run, because `.bin` files are unpickled by torch's own reader of weights, which knows only
tensors.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from glm2core.errors import UserError, printable, shown_names
from glm2core.files import refuse_lfs_pointer
from glm2core.model.pickles import require_harmless
from glm2core.params.model_files import IndexFile, read_model_file

# In the order in which transformers searches for them.
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_MOST_INDEX_BYTES = 16 << 20
_MOST_HEADER_BYTES = 16 << 20  # of names and shapes
_LONGEST_REASON = 200
SCALE = "_scale"  # suffix that turns a packed weight's name into the name of its rows' scales
_PACKED = torch.int8
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weight_files(folder: Path) -> list[Path]:
    """The files with a folder's weights, sorted.

    Raises:
        UserError: the folder is missing or holds no weights, or the weights' index is invalid or names a missing file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name a folder with config.json and weights in it.")
    for name in _NAMES:
        file = folder / name
        if file.is_file():
            return _shards(file) if name.endswith(".index.json") else [file]
    raise UserError(
        f"{folder} holds no weights: neither pytorch_model*.bin nor *.safetensors (with index.json if sharded)"
    )


def mapped_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return the tensors of all files by name; the tensors' numbers stay in the files until they are used.

    Raises:
        UserError: a file is damaged, holds something other than weights, or repeats another file's tensor.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        tensors = _tensors(file)
        if twice := sorted(weights.keys() & tensors.keys()):
            raise UserError(f"{file} repeats tensors of an earlier file: {shown_names(twice[:3])}.")
        weights |= tensors
    if stray := [name for name, t in weights.items() if t.dtype == _PACKED and name + SCALE not in weights]:
        raise UserError(
            f"{shown_names(stray[:3])} hold integers without a scale; weights must be dense floats. Download the "
            "files again."
        )
    return weights


def require_finite(weights: dict[str, Tensor], place: Path) -> None:
    """Read all numbers once, and reject tensors with NaN or infinity.

    Raises:
        UserError: some tensors hold NaN or infinity; the error names them.
    """
    broken = [name for name, tensor in weights.items() if not _is_finite(tensor)]
    if broken:
        raise UserError(
            f"{place}: the weights hold NaN or infinity (in {shown_names(broken[:3])}"
            f"{f' and {len(broken) - 3:,} more' if len(broken) > 3 else ''}), so every answer would be noise. Use an "
            "earlier checkpoint, or lower train.learning_rate and tune again."
        )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    least, most = torch.aminmax(tensor)  # NaN if any element is; allocates no memory of the tensor's size
    return bool(torch.isfinite(least) and torch.isfinite(most))


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        refuse_lfs_pointer(file)
        found = _mapped_safetensors(file) if file.suffix == ".safetensors" else _mapped_bin(file)
        _require_tensors(found, file.stat().st_size)
    except UserError:
        raise
    except Exception as error:  # damaged bytes can make the parsers fail in any way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{file} cannot be read as weights ({printable(lines[0][:_LONGEST_REASON])}). Copy the file again, "
            "and compare its size with the original's."
        ) from None
    return found


def _mapped_safetensors(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as start:
        length = start.read(8)
    if len(length) == 8 and struct.unpack("<Q", length)[0] > _MOST_HEADER_BYTES:
        raise ValueError("its list of tensors is too long")
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def _mapped_bin(file: Path) -> Any:
    return torch.load(file, weights_only=True, mmap=require_harmless(file), map_location="cpu")


def _require_tensors(found: Any, file_bytes: int) -> None:
    if not isinstance(found, dict):
        raise TypeError(f"it holds a {type(found).__name__}, not tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or type(tensor) not in (Tensor, torch.nn.Parameter):
            raise TypeError(f"{str(name)[:80]} is not a tensor")
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (dense and tensor.dtype in (*_FLOATS, _PACKED)):
            found_as = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
            raise TypeError(f"{name[:80]} is {found_as}; weights must be dense floats")
    if sum(tensor.numel() * tensor.element_size() for tensor in found.values()) > file_bytes:
        raise ValueError("its tensors would take more memory than the file has bytes")


def _shards(index: Path) -> list[Path]:
    names = read_model_file(index, IndexFile, most_bytes=_MOST_INDEX_BYTES)
    assert names is not None  # the caller has checked that it exists
    files = [index.parent / name for name in sorted(set(names.weight_map.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{index} names files that do not exist: {shown_names(missing)}. Copy them into {index.parent}."
        )
    return files
