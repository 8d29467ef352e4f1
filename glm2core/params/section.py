"""What all sections of params.yaml are made of: a strict base class, types that recur with their bounds, and `auto`."""

import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

# More is a slip of the pen, or no product of two fits 64 bits, or no library counts so far
_MOST = 1_000_000_000
_MOST_SEEDS = 2**32 - 1
_MOST_STEPS = 10_000_000
_MOST_EPOCHS = 10_000
_MOST_THREADS = 1024
_MOST_TOKENS = 100_000_000
_HIGHEST = 1_000_000
_LONGEST_TEXT = 4096
_LONGEST_NAME = 250
_NO_TEXT = {"Cc", "Zl", "Zp"}  # Unicode's categories of control characters and line breaks
_LONGEST_PART = 255  # bytes of a file's or folder's name

Count = Annotated[int, Field(ge=1, le=_MOST)]
NonNegative = Annotated[int, Field(ge=0, le=_MOST)]
Seed = Annotated[int, Field(ge=0, le=_MOST_SEEDS)]
Steps = Annotated[int, Field(ge=1, le=_MOST_STEPS)]
Epochs = Annotated[float, Field(gt=0, le=_MOST_EPOCHS)]
Threads = Annotated[int, Field(ge=1, le=_MOST_THREADS)]
ContextLength = Annotated[int, Field(ge=128, le=_MOST_TOKENS)]
Share = Annotated[float, Field(ge=0, le=_HIGHEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=_HIGHEST)]
Factor = Annotated[float, Field(ge=1, le=_HIGHEST)]


def _in_one_line(text: str) -> str:
    if any(unicodedata.category(character) in _NO_TEXT for character in text):
        raise ValueError("holds a control character or a line break; write plain text in one line")
    return text


def _as_path(text: str) -> str:
    if any(len(part.encode()) > _LONGEST_PART for part in text.split("/")):
        raise ValueError(f"holds a name of more than {_LONGEST_PART} bytes, which no file has")
    return text


Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME), AfterValidator(_in_one_line)]
FilePath = Annotated[str, Field(max_length=_LONGEST_TEXT), AfterValidator(_in_one_line), AfterValidator(_as_path)]

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
