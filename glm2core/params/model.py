"""The section of the network: `model`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from glm2core.params.section import Count, Section


class RopeParams(Section):
    """How positions are scaled."""

    type: Literal["default", "linear", "ntk", "yarn"] | None = Field(
        None,
        description="null = as the checkpoint has it; default = plain; linear divides every position by factor; ntk "
        "enlarges the rotary base; yarn scales slow pairs only. A checkpoint that is scaled already takes null only",
    )
    factor: Annotated[float, Field(ge=1)] = Field(
        1.0, description="context multiplier; must be 1 with type null or default"
    )
    unit: Count = Field(2048, description="positions of the unscaled range that factor multiplies")

    @model_validator(mode="after")
    def _factor_needs_a_type(self) -> "RopeParams":
        if self.type in (None, "default") and self.factor != 1:
            raise ValueError(
                f"factor {self.factor:g} has no effect with type {self.type or 'null'}: "
                "set type to linear, ntk or yarn, or factor to 1"
            )
        return self


Preset = Literal[
    "tiny", "small", "chatglm2-6b", "chatglm2-6b-32k", "codegeex2-6b", "chatglm3-6b", "chatglm3-6b-32k",
    "chatglm3-6b-128k",
]  # fmt: skip


class ModelParams(Section):
    """The network that is tuned."""

    base: str | None = Field(
        None, description="folder of released or tuned weights, against the project's folder; null = from scratch"
    )
    preset: Preset = Field(
        "tiny", description="shape of a network from scratch: tiny has 1.3 M parameters, small 86 M; unused with a base"
    )
    family: Literal["auto", "chatglm2", "chatglm3"] = Field(
        "auto",
        description="what a checkpoint's rope_ratio means: chatglm2 divides positions by it, chatglm3 multiplies the "
        "rotary base with it; auto decides from the folder and prints its evidence",
    )
    initialization: Literal["default", "retrieval"] = Field(
        "default", description="from scratch only: retrieval helps small networks to learn retrieval"
    )
    rope: RopeParams = Field(RopeParams(), description="scaling of the rotary positions")

    @model_validator(mode="after")
    def _initialization_is_for_scratch(self) -> "ModelParams":
        if self.base is not None and self.initialization != "default":
            raise ValueError("initialization is for networks from scratch: set it to default, or base to null")
        return self
