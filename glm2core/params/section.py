"""Building blocks of params.yaml's sections: a strict base class, shared types with their bounds, and `auto`."""

import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

# A larger number is a typo, overflows 64 bits if two are multiplied, or is more than libraries can count
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
        raise ValueError("holds a control character or a line break; write plain text on one line")
    return text


def _as_path(text: str) -> str:
    if any(len(part.encode()) > _LONGEST_PART for part in text.split("/")):
        raise ValueError(f"holds a name of more than {_LONGEST_PART} bytes, but no file's name can be that long")
    return text


Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME), AfterValidator(_in_one_line)]
FilePath = Annotated[str, Field(max_length=_LONGEST_TEXT), AfterValidator(_in_one_line), AfterValidator(_as_path)]

# Contents of a generated record, for training and for evaluation: LongEval's lines and topics, and RULER's kinds
FactKind = Literal[
    "lines",
    "niah_single_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "fwe",
    "topics",
]
RetrievalTask = Literal[FactKind, "passkey", "multikey"]  # and this project's own tasks

AUTO: Literal["auto"] = "auto"
# Names a value's branch in pydantic's error locations; no key can have this name.
VALUE = "<value>"


def _branch(value: Any) -> str:
    return AUTO if value == AUTO else VALUE


T = TypeVar("T")
# A key that also takes `auto`. The branch is chosen before validation, so a wrong value gives one error, not two.
Auto = Annotated[Annotated[Literal["auto"], Tag(AUTO)] | Annotated[T, Tag(VALUE)], Discriminator(_branch)]


class Section(BaseModel):
    """A frozen section, which rejects unknown keys, NaN and infinity, and does not convert types silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
