"""What all sections of params.yaml are made of: a strict base class, number types that recur, and `auto`."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

# What a generated record holds, to train on and to evaluate by: LongEval's lines, and RULER's kinds by their names.
FactKind = Literal[
    "lines", "niah_single_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "fwe"
]
RetrievalTask = Literal[FactKind, "passkey", "multikey"]  # and what this project asks besides

AUTO: Literal["auto"] = "auto"
# Names the branch of a value in pydantic's places of errors; no key can be called so.
VALUE = "<value>"


def _branch(value: Any) -> str:
    return AUTO if value == AUTO else VALUE


T = TypeVar("T")
# A key that also takes `auto`. Told apart before either is checked, so that a wrong value is one error and not two.
Auto = Annotated[Annotated[Literal["auto"], Tag(AUTO)] | Annotated[T, Tag(VALUE)], Discriminator(_branch)]


class Section(BaseModel):
    """Strict and frozen: no unknown key, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
