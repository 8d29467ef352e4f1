"""A checkpoint's tensors one at a time: as they are stored, packed integers unpacked, an adapter's update added.

Files stay mapped, so that memory is that of the tensor that is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor

from glm2core.errors import UserError

_SCALE = "_scale"  # behind the name of a packed weight
_IGNORED = "rotary_pos_emb.inv_freq"  # computed, never read (rope.py says why)
_LORA_PREFIX = "base_model.model."


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of some weight files by name; where two files hold one, the later file's.

    Args:
        files: of `weight_files`, safetensors or bin.
        bits: 4 or 8: the blocks' linears are packed integers with a `weight_scale` (config: quantization_bit);
            0 = nothing is packed.
    """

    def __init__(self, files: Sequence[Path], bits: int = 0) -> None:
        self._bits = bits
        self._places: dict[str, Any] = {}
        for file in files:
            opened = _opened(file)
            self._places |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._read(name)
        if not self._is_packed(name):
            return tensor
        return unpacked(tensor, self._read(name + _SCALE), self._bits)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._places if not name.endswith(_IGNORED) and not self._is_scale(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _read(self, name: str) -> Tensor:
        opened = self._places[name]
        tensor: Tensor = opened[name] if isinstance(opened, dict) else opened.get_tensor(name)
        return tensor

    def _is_packed(self, name: str) -> bool:
        return bool(self._bits) and name + _SCALE in self._places

    def _is_scale(self, name: str) -> bool:
        return name.endswith(_SCALE) and self._is_packed(name.removesuffix(_SCALE))


class LazyTensor:
    """One tensor of a mapping, read when it is sliced, as transformers reads safetensors."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self._tensors, self._name = tensors, name

    def __getitem__(self, index: Any) -> Tensor:
        return self._tensors[self._name][index]

    def get_dtype(self) -> str:
        """As safetensors names it; what is read is a float, whatever it was unpacked from."""
        return "F32"


class MergedTensors(Mapping[str, Tensor]):
    """A base's tensors with a LoRA adapter's update added; what is changed is in fp32, so that it is rounded once.

    Args:
        base: the network's tensors.
        adapter: folder with peft's adapter_config.json and adapter_model.safetensors.

    Raises:
        UserError: an adapter of another kind than plain LoRA.
    """

    def __init__(self, base: Mapping[str, Tensor], adapter: Path) -> None:
        self._base, self.updates = base, LoraUpdates(adapter)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._base[name]
        if name not in self.updates:
            return tensor
        first, second = self.updates[name]
        return torch.addmm(tensor.float(), second, first, alpha=self.updates.scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


class LoraUpdates(Mapping[str, tuple[Tensor, Tensor]]):
    """A LoRA adapter's two matrices of each weight it changes, by the weight's name: A [r, I] and B [O, r] in fp32.

    Attributes:
        rank: `r`.
        alpha: the update is `scale` = alpha / rank times B A.

    Raises:
        UserError: an adapter of another kind than plain LoRA.
    """

    def __init__(self, folder: Path) -> None:
        config: Any = LoraConfig.from_pretrained(str(folder))
        for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
            if getattr(config, key, None):
                raise UserError(
                    f"{folder / 'adapter_config.json'}: {key} is {getattr(config, key)!r}, and only plain LoRA is "
                    "exported tensor by tensor. Export with --format hf, which peft merges, and export that folder."
                )
        self.rank, self.alpha = int(config.r), float(config.lora_alpha)
        self.scale = self.alpha / self.rank
        self._tensors = _opened(folder / "adapter_model.safetensors")
        halves = (name.removeprefix(_LORA_PREFIX) for name in self._tensors.keys())  # noqa: SIM118  # no mapping
        self._names = sorted(name.replace(".lora_A.", ".") for name in halves if ".lora_A." in name)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._names:
            raise KeyError(name)
        module = _LORA_PREFIX + name.removesuffix(".weight")
        first, second = (self._tensors.get_tensor(f"{module}.lora_{half}.weight").float() for half in "AB")
        return first, second

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unpacked(packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """A released packed weight in fp32, which holds it exactly.

    Symmetric integers with a scale a row; of two 4-bit ones in a byte the even column is the upper.

    Args:
        packed: int8 [O, I * bits / 8].
        scale: [O]; the largest number of a row by the largest integer.

    Returns:
        [O, I]
    """
    if bits == 4:
        packed = torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(1)  # int8 keeps the sign
    return packed.float() * scale.float()[:, None]


def _opened(file: Path) -> Any:
    """A mapped file: a dict of tensors, or safetensors' handle."""
    if file.suffix == ".safetensors":
        return safe_open(file, framework="pt")
    with file.open("rb") as opened:
        is_zip = opened.read(4) == b"PK\x03\x04"
    return torch.load(file, weights_only=True, mmap=is_zip, map_location="cpu")
