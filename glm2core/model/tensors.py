"""Read stored weights one tensor at a time; unpack packed integers, and add an adapter's update.

Files stay memory-mapped, so only the requested tensor is in memory.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from glm2core.model.weight_files import SCALE
from glm2core.params import LoraParams

_IGNORED = "rotary_pos_emb.inv_freq"  # computed, never read (rope.py says why)
_LORA_PREFIX = "base_model.model."


class StoredTensors(Mapping[str, Tensor]):
    """A network's tensors by name.

    Args:
        weights: the result of `mapped_weights`.
        bits: 4 or 8 (quantization_bit in the config) if the weights of the blocks' linear layers are packed integers,
            each with a `weight_scale`; 0 if nothing is packed.
    """

    def __init__(self, weights: Mapping[str, Tensor], bits: int = 0) -> None:
        self._weights, self._bits = weights, bits

    def __getitem__(self, name: str) -> Tensor:
        if not self.is_packed(name):
            return self._weights[name]
        return unpacked(self._weights[name], self._weights[name + SCALE], self._bits)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._weights if not name.endswith(_IGNORED) and not self._is_scale(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Unpacked shapes of all tensors, without reading them."""
        return {name: self._shape(name) for name in self}

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is stored as integers."""
        return bool(self._bits) and name + SCALE in self._weights

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._weights[name].shape)
        return (*shape[:-1], shape[-1] * 8 // self._bits) if self.is_packed(name) else shape

    def _is_scale(self, name: str) -> bool:
        return name.endswith(SCALE) and self.is_packed(name.removesuffix(SCALE))


class LazyTensor:
    """One tensor of a mapping; it is read only when it is sliced, as transformers does with safetensors."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self._tensors, self._name = tensors, name

    def __getitem__(self, index: Any) -> Tensor:
        return self._tensors[self._name][index]

    def get_dtype(self) -> str:
        """The dtype's name in safetensors; tensors are always read as floats, even if unpacked from integers."""
        return "F32"


class MergedTensors(Mapping[str, Tensor]):
    """A base's tensors with a LoRA adapter's update added; changed tensors are in fp32, so they are rounded only once.

    Args:
        base: the network's tensors.
    """

    def __init__(self, base: Mapping[str, Tensor], updates: "LoraUpdates") -> None:
        self._base, self._updates = base, updates

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._base[name]
        if name not in self._updates:
            return tensor
        first, second = self._updates[name]
        return torch.addmm(tensor.float(), second, first, alpha=self._updates.scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


class LoraUpdates(Mapping[str, tuple[Tensor, Tensor]]):
    """A LoRA adapter's matrices A [r, I] and B [O, r] in fp32, by the name of the weight that they change.

    Args:
        lora: the params in the adapter's config.
        weights: the adapter's tensors, which have been checked.

    Attributes:
        rank: `r`.
        scale: the update's factor; the update is `scale` times B A.
    """

    def __init__(self, lora: LoraParams, weights: Mapping[str, Tensor]) -> None:
        self.rank = lora.rank
        self.scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
        self._weights = weights
        halves = (name.removeprefix(_LORA_PREFIX) for name in weights)
        self._names = sorted(name.replace(".lora_A.", ".") for name in halves if ".lora_A." in name)

    @property
    def alpha(self) -> float:
        """The value of alpha for tools that scale the update by alpha / rank."""
        return self.scale * self.rank

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._names:
            raise KeyError(name)
        module = _LORA_PREFIX + name.removesuffix(".weight")
        first, second = (self._weights[f"{module}.lora_{half}.weight"].float() for half in "AB")
        return first, second

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unpacked(packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Unpack a released weight into fp32, which is exact.

    A packed weight consists of symmetric integers with one scale per row. A byte holds two 4-bit integers, and the
    integer of the even column is in the byte's upper half.

    Args:
        packed: int8 [O, I * bits / 8].
        scale: [O]; each row's scale is the row's largest number divided by the largest integer.

    Returns:
        [O, I]
    """
    if bits == 4:
        packed = torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(1)  # int8 keeps the sign
    return packed.float() * scale.float()[:, None]
