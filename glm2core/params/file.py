"""Reads, checks and flattens params.yaml as a whole."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from glm2core.errors import UserError
from glm2core.params.annotations import takes_auto
from glm2core.params.data import ConvertParams, TokenizeChoices
from glm2core.params.evaluate import EvaluateChoices
from glm2core.params.messages import messages
from glm2core.params.model import ModelChoices
from glm2core.params.section import AUTO, Name, Section
from glm2core.params.train import TrainChoices
from glm2core.params.yaml_text import parse_yaml, read_yaml_file

PARAMS_FILE = Path("params.yaml")
_MOST_BYTES = 1 << 20


class TrackingParams(Section):
    """What MLflow records."""

    experiment: Name = Field("glm2core", description="name of the MLflow experiment and of promoted models")
    log_examples: bool = Field(True, description="false keeps users' texts out of MLflow")


class Params(Section):
    """The sections of params.yaml, one per stage, plus model and tracking. No `auto` is replaced yet."""

    convert: ConvertParams
    tokenize: TokenizeChoices
    model: ModelChoices
    train: TrainChoices
    evaluate: EvaluateChoices
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> "Params":
        if self.evaluate.retrieval.base_lengths not in (AUTO, []) and self.model.base is None:
            raise ValueError(
                "evaluate.retrieval.base_lengths needs model.base; set model.base, or set base_lengths to [] or auto"
            )
        if self.evaluate.generation.base is True and self.model.base is None:
            raise ValueError(
                "evaluate.generation.base is true and needs model.base; set model.base, or set generation.base to "
                "false or auto"
            )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a params file.

    Raises:
        UserError: the file can't be read, or some keys are wrong; the error message describes each wrong key.
    """
    try:
        text = read_yaml_file(path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}. Run the stages from the project's folder.") from None
    return parse_params(text, path)


def parse_params(text: str, path: Path = PARAMS_FILE) -> Params:
    """Check the text of a params file; `path` is the file's name in error messages.

    Raises:
        UserError: some keys are wrong; the error message describes each wrong key.
    """
    values = parse_yaml(text, path)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {sentence}" for sentence in messages(error, Params))) from None


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Map dotted keys to values, with the key names that `-S` and MLflow use. A list counts as one value."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def changed(section: BaseModel, default: BaseModel | None = None, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (value, default)} for each key that has no default or whose value differs from its default.

    Args:
        default: the default of the whole section; None = use the defaults of the section's keys.
        prefix: text that is put in front of each key.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        known = getattr(default, name, None) if default else None
        if default is None and not field.is_required():
            known = field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            found |= changed(value, known if isinstance(known, BaseModel) else None, f"{prefix}{name}.")
        elif value != known or type(value) is not type(known):
            found[prefix + name] = (value, known)
    return found


def unsettled(section: BaseModel, prefix: str = "") -> set[str]:
    """The dotted keys whose `auto` is replaced in `settle`. Torch decides device and dtype, so they are missing."""
    keys: set[str] = set()
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            keys |= unsettled(value, f"{prefix}{name}.")
        elif value == AUTO and takes_auto(field.annotation):
            keys.add(prefix + name)
    return keys
