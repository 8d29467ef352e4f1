"""Rotary position embedding: its parameters, and frequencies that casting the model does not affect.

Shapes: `B` batch, `T` tokens, `H` heads, `D` channels per head, `R` rotary channels (D / 2).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from glm2core.errors import UserError
from glm2core.model.fused import fused
from glm2core.params import RopeParams

BASE = 10000.0
PARTIAL_ROTARY_FACTOR = 0.5
RopeType = Literal["default", "linear", "ntk", "yarn"]


def plain_rope(base: float = BASE) -> dict[str, Any]:
    """Unscaled rotary parameters, in transformers' standard layout."""
    return {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": PARTIAL_ROTARY_FACTOR}


def linear_rope(factor: float, base: float = BASE) -> dict[str, Any]:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): positions are divided by `factor`."""
    return {**plain_rope(base), "rope_type": "linear", "factor": float(factor)}


def yarn_rope(factor: float, unit: int, base: float = BASE) -> dict[str, Any]:
    """YaRN (Peng et al. 2023, arXiv:2309.00071) for a network whose unscaled range is `unit` positions."""
    return {**plain_rope(base), "rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": unit}


def ntk_base(factor: float, rotary_channels: int, base: float = BASE) -> float:
    """Return the rotary base for NTK-aware scaling, which is base * factor ** (R / (R - 2)).

    With this base, the slowest pair rotates `factor` times slower, as with interpolation, and the fastest pair rotates
    as it does without scaling (bloc97, "NTK-Aware Scaled RoPE", 2023; arXiv:2309.00071, section 3.1). The
    library transformers has no such type, so configs store this scaling as `default` with the larger base, which every
    tool understands.
    """
    return base * factor ** (rotary_channels / (rotary_channels - 2))


@dataclass(frozen=True)
class RopeScaling:
    """The scaling of positions that `model.rope` in params.yaml sets.

    Functions that take a scaling keep the checkpoint's scaling if they get None instead.

    Args:
        type: default, linear, ntk or yarn.
        factor: number by which the range of positions is multiplied.
        unit: unscaled range, as a number of positions.

    Raises:
        UserError: the type is unknown.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=False)  # in an adapter's base.json it is an object

    type: RopeType
    factor: Annotated[float, Field(strict=True, gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    unit: Annotated[int, Field(strict=True, ge=1, le=1 << 24)] = 2048

    def __post_init__(self) -> None:
        if self.type not in get_args(RopeType):
            types = ", ".join(get_args(RopeType))
            raise UserError(f"model.rope.type must be one of {types}; got {self.type!r}")

    @classmethod
    def of(cls, params: RopeParams) -> "RopeScaling | None":
        """Return the scaling that params set; None if they keep the checkpoint's scaling."""
        return None if params.type is None else cls(params.type, params.factor, params.unit)

    @property
    def range(self) -> int:
        """Number of positions in the scaled range."""
        return round(self.factor * self.unit)

    def parameters(self, existing: dict[str, Any], rotary_channels: int) -> dict[str, Any]:
        """Return a checkpoint's rotary parameters after this scaling is applied.

        Args:
            existing: the checkpoint's own parameters.
            rotary_channels: `R`.

        Raises:
            UserError: the checkpoint is already scaled.
        """
        if is_scaled(existing):
            raise UserError(
                f"model.rope.type is {self.type}, but the checkpoint already has {describe_rope(existing)}. "
                "Scaling again would shift every position on which it was trained. Set model.rope.type and "
                "model.rope.factor to auto to keep the checkpoint's scaling."
            )
        base = float(existing["rope_theta"])
        match self.type:
            case "linear":
                return linear_rope(self.factor, base)
            case "ntk":
                return plain_rope(ntk_base(self.factor, rotary_channels, base))
            case "yarn":
                return yarn_rope(self.factor, self.unit, base)
            case _:
                return plain_rope(base)


def is_scaled(rope: dict[str, Any]) -> bool:
    """Whether these parameters differ from plain RoPE with the family's base."""
    stretched = rope["rope_type"] != "default" and rope.get("factor", 1) != 1
    return stretched or float(rope["rope_theta"]) != BASE


def describe_rope(rope: dict[str, Any]) -> str:
    """Describe the parameters, e.g. 'linear scaling by 16'."""
    if rope["rope_type"] != "default":
        return f"{rope['rope_type']} scaling by {rope.get('factor', 1):g}"
    return f"a rotary base of {rope['rope_theta']:g}" + ("" if is_scaled(rope) else " (no scaling)")


def inverse_frequencies(rope: dict[str, Any], rotary_channels: int) -> tuple[Tensor, float]:
    """Return each rotary pair's radians per position [R / 2] in fp32, and a factor for cosine and sine.

    The factor differs from 1 only for YaRN. Functions of transformers compute both results. Only plain RoPE is computed
    here, because transformers leaves it to each network.

    Args:
        rope: a config's `rope_parameters`.
        rotary_channels: `R`.
    """
    cpu = torch.device("cpu")
    if rope["rope_type"] != "default":
        # transformers' functions read a config; this config describes a single head with only rotary channels
        positions = round(rope.get("original_max_position_embeddings", 1) * rope.get("factor", 1))
        values: dict[str, Any] = {
            "rope_parameters": {**rope, "partial_rotary_factor": 1.0},
            "hidden_size": rotary_channels,
            "num_attention_heads": 1,
            "max_position_embeddings": positions,
        }
        head = PreTrainedConfig(**values)
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](head, cpu)
    exponents = torch.arange(0, rotary_channels, 2, device=cpu).float() / rotary_channels
    return 1.0 / rope["rope_theta"] ** exponents, 1.0


class RotaryEmbedding(nn.Module):
    """Computes rotations from positions, in fp32 for any dtype of the weights.

    The frequencies are stored as Python numbers, not as a buffer, because `.to(bf16)`, `.half()`, quantization and
    loading on the meta device cast or drop buffers. In half precision, the fastest pair would have only 6,145 distinct
    angles over 32,768 positions.
    """

    def __init__(self, rope: dict[str, Any], rotary_channels: int) -> None:
        super().__init__()
        self._rope, self._channels = rope, rotary_channels
        self._on: dict[torch.device, Tensor] = {}  # copied to a GPU only once, because each copy makes it wait

    @cached_property
    def _frequencies(self) -> tuple[list[float], float]:
        frequencies, attention_factor = inverse_frequencies(self._rope, self._channels)
        return frequencies.tolist(), float(attention_factor)

    @torch.no_grad()
    def angles(self, position_ids: Tensor) -> Tensor:
        """Map position_ids [B, T] to radians [B, T, R / 2] in fp32."""
        device = position_ids.device
        if device not in self._on:
            self._on[device] = torch.tensor(self._frequencies[0], dtype=torch.float32, device=device)
        return position_ids[..., None].float() * self._on[device]

    @torch.no_grad()
    def forward(self, position_ids: Tensor) -> Tensor:
        """Map position_ids [B, T] to rotations [B, T, 1, R / 2] in complex64, where one number rotates one pair."""
        angles = self.angles(position_ids)
        radius = torch.full_like(angles, self._frequencies[1])
        return torch.polar(radius, angles).unsqueeze(2)


def rotate(heads: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the first R channels of each head as interleaved pairs (x0, x1), (x2, x3), ...

    Args:
        heads: [B, T, H, D] in any dtype; the rotation itself is in fp32.
        rotations: [B or 1, T, 1, R / 2], complex64.

    Returns:
        [B, T, H, D] in the dtype of `heads`.
    """
    if heads.device.type == "cuda":
        turned: Tensor = Turn.apply(heads, torch.view_as_real(rotations))
        return turned
    channels = 2 * rotations.shape[-1]
    turning, passing = heads[..., :channels], heads[..., channels:]
    pairs = torch.view_as_complex(turning.float().unflatten(-1, (-1, 2)))  # [B, T, H, R / 2]
    turned = torch.view_as_real(pairs * rotations).flatten(-2).to(heads.dtype)
    return torch.cat((turned, passing), dim=-1)


class Turn(torch.autograd.Function):
    """The function `rotate` in real numbers, which compiles to one kernel; backward rotates in the other direction."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, parts: Tensor) -> Tensor:
        """Rotate [B, T, H, D] by cosines and sines [B or 1, T, 1, R / 2, 2]."""
        ctx.save_for_backward(parts)
        return fused(turned, heads.device)(heads, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (parts,) = ctx.saved_tensors
        return fused(turned_back, gradient.device)(gradient, parts), None


def turned(heads: Tensor, parts: Tensor) -> Tensor:
    """Multiply the pairs of the first R channels by cosine + i sine, in fp32."""
    return _turned(heads, parts[..., 0], parts[..., 1])


def turned_back(heads: Tensor, parts: Tensor) -> Tensor:
    """Apply the transpose of `turned`, which multiplies by cosine - i sine."""
    return _turned(heads, parts[..., 0], -parts[..., 1])


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    channels = 2 * cosine.shape[-1]
    first, second = heads[..., :channels].float().unflatten(-1, (-1, 2)).unbind(-1)  # [B, T, H, R / 2]
    pairs = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return torch.cat((pairs.flatten(-2).to(heads.dtype), heads[..., channels:]), dim=-1)
