"""The section of the network: `model`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from glm2core.params.section import AUTO, Auto, Count, Factor, FilePath, Section

RopeType = Literal["default", "linear", "ntk", "yarn"]


class RopeChoices(Section):
    """How positions are scaled."""

    type: Auto[RopeType] = Field(
        "auto",
        description="how positions are scaled; auto = the base's advice, else as in the checkpoint; default = not "
        "scaled; linear = every position is divided by factor; ntk = the rotary base is enlarged; yarn = only the "
        "slowly rotating pairs are scaled; a checkpoint that is already scaled takes only auto",
    )
    factor: Auto[Factor] = Field(
        "auto",
        description="factor by which the context is extended; auto = the base's advice; must be 1 if nothing is scaled",
    )
    unit: Count = Field(2048, description="number of positions without scaling; factor multiplies this number")

    @model_validator(mode="after")
    def _factor_needs_a_type(self) -> Self:
        if self.type == "default" and self.factor != AUTO:
            _require_no_factor("default", self.factor)
        return self


class RopeParams(Section):
    """`RopeChoices`, with a value in place of every `auto`. If type is None, the checkpoint's scaling is kept."""

    type: RopeType | None = None
    factor: Factor = 1.0
    unit: Count = 2048

    @model_validator(mode="after")
    def _factor_needs_a_type(self) -> Self:
        if self.type in (None, "default"):
            _require_no_factor(self.type or "auto (the checkpoint's scaling)", self.factor)
        return self


def _require_no_factor(kind: str, factor: float) -> None:
    if factor != 1:
        raise ValueError(
            f"factor {factor:g} has no effect with type {kind}; set type to linear, ntk or yarn, or set factor to auto"
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
        None,
        description="folder of released or tuned weights, relative to the project's folder; null = a network from "
        "scratch",
    )
    preset: Preset = Field(
        "tiny",
        description="size of a network from scratch; tiny has 1.3 M parameters, mini 2.7 M, small 86 M; has no effect "
        "if base is set",
    )
    family: Literal["auto", "chatglm2", "chatglm3"] = Field(
        "auto",
        description="how a checkpoint uses its rope_ratio; chatglm2 = positions are divided by it; chatglm3 = the "
        "rotary base is multiplied by it; auto = decided from the files in the folder, and the evidence is printed",
    )
    initialization: Literal["default", "retrieval"] = Field(
        "default",
        description="initial weights of a network from scratch; retrieval = weights with which small networks learn "
        "retrieval better",
    )

    @model_validator(mode="after")
    def _initialization_is_for_scratch(self) -> Self:
        if self.base is not None and self.initialization != "default":
            raise ValueError(
                "initialization is for networks from scratch; set initialization to default, or set base to null"
            )
        return self


class ModelChoices(_Network):
    """The network that is tuned."""

    rope: RopeChoices = Field(RopeChoices(), description="scaling of positions (RoPE)")


class ModelParams(_Network):
    """`ModelChoices`, with a value in place of every `auto`."""

    rope: RopeParams = RopeParams()
