"""Settled params, which have a value for every key, and the record of them in a tuned model's folder."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from glm2core.errors import UserError
from glm2core.files import write_json
from glm2core.params.advice import Base, checked_advice
from glm2core.params.data import TokenizeParams
from glm2core.params.evaluate import EvaluateParams
from glm2core.params.file import flatten
from glm2core.params.messages import messages
from glm2core.params.model import ModelParams
from glm2core.params.section import Section
from glm2core.params.train import TrainParams

DeviceKind = Literal["cpu", "cuda"]
DEVICE_KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")

SETTLED_FILE = "settled.json"
_MOST_BYTES = 1 << 20
_WIDEST = 34  # characters that a column of the printed table is padded to


class TuningRecord(Section):
    """The contents of models/tuned/settled.json: train's settings, from which evaluate settles its own settings."""

    model: ModelParams
    train: TrainParams
    base: Base


class Settled(Section):
    """All sections with a value for every key.

    Attributes:
        origins: for each key that takes `auto`, by dotted key, where its value comes from.
        base: what is known about the base.
    """

    tokenize: TokenizeParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    origins: dict[str, str] = Field({})
    base: Base = Base()

    def values(self, *sections: str) -> dict[str, Any]:
        """Return {dotted key: value} for the keys in these sections that take `auto`."""
        dumped = self.model_dump(include=set(sections))
        settled = [key for key in flatten(self) if key in self.origins]
        return {key: value_of(dumped, key) for key in settled if key.partition(".")[0] in sections}

    def lines(self, *sections: str) -> list[str]:
        """One line for each key in `values`, with the key's value and origin.

        A line reads, for example, `train.optimizer  muon  the base's tuning.yaml`.
        """
        rows = [(key, shown(value), self.origins[key]) for key, value in self.values(*sections).items()]
        wide = [min(_WIDEST, max((len(row[column]) for row in rows), default=0)) for column in (0, 1)]
        return [f"  {key:<{wide[0]}}  {value:<{wide[1]}}  {origin}" for key, value, origin in rows]

    def metrics(self, *sections: str) -> dict[str, Any]:
        """The settled values, as numbers or text, and the SHA-256 of tuning.yaml, all for metrics/<stage>.json."""
        values = self.values(*sections)
        found: dict[str, Any] = {
            "settled": {key: value if type(value) in (int, float) else shown(value) for key, value in values.items()}
        }
        if self.base.tuning_sha256 is not None:
            found["base_tuning_sha256"] = self.base.tuning_sha256
        return found

    def write_record(self, folder: Path) -> None:
        """Write the record into a tuned model's folder, where the evaluate stage reads it."""
        record = TuningRecord(model=self.model, train=self.train, base=self.base)
        write_json(folder / SETTLED_FILE, record.model_dump(mode="json"))


def read_tuning_record(folder: Path) -> TuningRecord | None:
    """Read the record in a tuned model's folder; return None if there is none, as in a folder of released weights.

    Raises:
        UserError: the file was not written by train.
    """
    file = folder / SETTLED_FILE
    if not file.is_file():
        return None
    with file.open("rb") as handle:
        content = handle.read(_MOST_BYTES)
    try:
        record = TuningRecord.model_validate_json(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{file}: {sentence}" for sentence in messages(error, TuningRecord))) from None
    checked_advice(record.base.advice, str(file))
    return record


def shown(value: Any) -> str:
    """A value as text, as it would stand in params.yaml."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_of(values: Any, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        values = values[name]
    return values
