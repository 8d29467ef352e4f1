"""The section of the network: `model`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from glm2core.params.section import AUTO, Auto, Count, Factor, FilePath, Section

RopeType = Literal["default", "linear", "ntk", "yarn"]


class RopeChoices(Section):
    """How positions are scaled."""

    type: Auto[RopeType] = Field(
        "auto",
        description="scaling of positions; auto = the base's advice, else that of the checkpoint; default = none; "
        "linear divides every position by factor; ntk enlarges the rotary base; yarn scales only slow pairs. A "
        "checkpoint that is already scaled takes only auto",
    )
    factor: Auto[Factor] = Field(
        "auto", description="context multiplier; auto = the base's advice; must be 1 if type scales nothing"
    )
    unit: Count = Field(2048, description="number of positions in the unscaled range, which factor multiplies")

    @model_validator(mode="after")
    def _factor_needs_a_type(self) -> Self:
        if self.type == "default" and self.factor != AUTO:
            _require_no_factor("default", self.factor)
        return self


class RopeParams(Section):
    """`RopeChoices` with every `auto` settled; type None = positions are scaled as in the checkpoint."""

    type: RopeType | None = None
    factor: Factor = 1.0
    unit: Count = 2048

    @model_validator(mode="after")
    def _factor_needs_a_type(self) -> Self:
        if self.type in (None, "default"):
            _require_no_factor(self.type or "auto, as the checkpoint has it", self.factor)
        return self


def _require_no_factor(kind: str, factor: float) -> None:
    if factor != 1:
        raise ValueError(
            f"factor {factor:g} has no effect with type {kind}: set type to linear, ntk or yarn, or factor to auto"
        )


Preset = Literal[
    "tiny",
    "mini",
    "small",
    "chatglm2-6b",
    "chatglm2-6b-32k",
    "codegeex2-6b",
    "chatglm3-6b",
    "chatglm3-6b-32k",
    "chatglm3-6b-128k",
]


class _Network(Section):
    """The keys of `model` that are never settled."""

    base: FilePath | None = Field(
        None, description="folder of released or tuned weights, relative to the project's folder; null = from scratch"
    )
    preset: Preset = Field(
        "tiny",
        description="shape of a network from scratch: tiny has 1.3 M parameters, mini 2.7 M, small 86 M; unused with "
        "a base",
    )
    family: Literal["auto", "chatglm2", "chatglm3"] = Field(
        "auto",
        description="what a checkpoint's rope_ratio means: chatglm2 divides positions by it, chatglm3 multiplies the "
        "rotary base by it; auto decides from the folder and prints its evidence",
    )
    initialization: Literal["default", "retrieval"] = Field(
        "default", description="from scratch only: retrieval helps small networks to learn retrieval"
    )

    @model_validator(mode="after")
    def _initialization_is_for_scratch(self) -> Self:
        if self.base is not None and self.initialization != "default":
            raise ValueError("initialization is for networks from scratch: set it to default, or base to null")
        return self


class ModelChoices(_Network):
    """The network that is tuned."""

    rope: RopeChoices = Field(RopeChoices(), description="scaling of the rotary positions")


class ModelParams(_Network):
    """`ModelChoices` with every `auto` settled."""

    rope: RopeParams = RopeParams()
