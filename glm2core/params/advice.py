"""Reads from a base's folder what to know before tuning: the size, in config.json, and the advice, in tuning.yaml.

tuning.yaml comes with the weights, so it is untrusted. The file must be small, and it may contain only plain values for
those keys of params.yaml that take `auto`.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, create_model

from glm2core.errors import UserError
from glm2core.files import resolve_path, sha256_file
from glm2core.params.annotations import is_section, takes_auto, without_auto
from glm2core.params.evaluate import EvaluateChoices
from glm2core.params.messages import messages
from glm2core.params.model import ModelChoices
from glm2core.params.model_files import ConfigFile, read_config_file
from glm2core.params.section import Section
from glm2core.params.train import TrainChoices
from glm2core.params.yaml_text import parse_yaml, read_yaml_file

TUNING_FILE = "tuning.yaml"
_MOST_BYTES = 16_384
_LARGEST = 1_000_000  # steps, tokens or rows; advice never needs more
_MOST_ENTRIES = 100
_NOT_ADVISED = "threads"  # takes auto as well, but depends on the machine
_SMALL_PRESETS = {"tiny": 1_313_920, "mini": 2_658_496, "small": 85_660_416}
# As in the released configurations.
_RELEASED_POSITIONS = 32_768


def _advisable(choices: type[BaseModel]) -> type[BaseModel] | None:
    """The section of tuning.yaml that belongs to a section of params.yaml; None if no key takes `auto`."""
    fields: dict[str, Any] = {}
    for name, field in choices.model_fields.items():
        if is_section(field.annotation):
            inner = _advisable(field.annotation)  # type: ignore[arg-type]
            if inner is not None:
                fields[name] = (inner, None)
        elif takes_auto(field.annotation) and name != _NOT_ADVISED:
            fields[name] = (without_auto(field.annotation), None)
    return create_model(f"{choices.__name__}Advice", __base__=Section, **fields) if fields else None


_SECTIONS: dict[str, type[BaseModel]] = {"model": ModelChoices, "train": TrainChoices, "evaluate": EvaluateChoices}
_Advice: type[BaseModel] = create_model(
    "Advice",
    __base__=Section,
    **{name: (_advisable(choices), None) for name, choices in _SECTIONS.items()},  # type: ignore[call-overload]
)


_Size = Annotated[int, Field(ge=1)]  # of an existing network: a fact, not a choice, so it has no upper bound


class Base(Section):
    """What `settle` needs to know about the base, or about a network that is trained from scratch.

    Attributes:
        from_scratch: whether the network is trained from scratch, without a base.
        parameters: number of parameters in the network; None if it is unknown because there is no config.json.
        positions: number of positions that the network was made for (its seq_length).
        tuning_sha256: SHA-256 of the base's tuning.yaml; None if there is no tuning.yaml.
        advice: the sections of tuning.yaml, which have been checked.
    """

    from_scratch: bool = True
    parameters: _Size | None = None
    positions: _Size = _RELEASED_POSITIONS
    tuning_sha256: str | None = None
    advice: dict[str, Any] = Field({})

    @property
    def is_large(self) -> bool:
        """Whether to treat the network like released weights; an unknown size counts as large."""
        return self.parameters is None or self.parameters > SMALL_NETWORK


# Settings that help a small network to adjust to a change of RoPE would ruin a larger one in a few steps.
SMALL_NETWORK = 200_000_000


def read_base(folder: str | Path | None, preset: str = "tiny") -> Base:
    """Return what is known about `model.base`, or about the preset of a network that is trained from scratch.

    A missing config.json is reported later, when the weights are read.

    Raises:
        UserError: config.json is wrong or describes an unsupported network, or tuning.yaml is wrong. The error message
            names each wrong key of tuning.yaml.
    """
    if folder is None:
        parameters = _SMALL_PRESETS.get(preset)
        return Base(parameters=parameters, positions=2048 if parameters else _RELEASED_POSITIONS)
    place = resolve_path(folder)
    tuning = place / TUNING_FILE
    config = read_config_file(place)
    there = tuning.exists() or tuning.is_symlink()
    return Base(
        from_scratch=False,
        parameters=None if config is None else _count(config),
        positions=_RELEASED_POSITIONS if config is None else config.seq_length,
        advice=_read_advice(tuning) if there else {},
        tuning_sha256=sha256_file(tuning) if there else None,
    )


def checked_advice(values: Any, name: str) -> dict[str, Any]:
    """Check the values of a tuning.yaml, and return its sections with only the keys that the file sets.

    Args:
        name: the file's name, for error messages.

    Raises:
        UserError: `values` contains a key that takes no advice, or a value that is not allowed for its key.
    """
    try:
        advice = _Advice.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{name}: {sentence}" for sentence in messages(error, _Advice))) from None
    sections = advice.model_dump(exclude_unset=True)
    for key, value in dotted(sections).items():
        if _is_too_much(value):
            raise UserError(
                f"{name}: {key} is too large for advice, which allows numbers up to {_LARGEST:,} and lists of up to "
                f"{_MOST_ENTRIES} entries. Lower the value in this file, or remove the key and set it in params.yaml."
            )
    return sections


def dotted(sections: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map dotted keys to values. Every dict counts as a section, because the stages of a curriculum are in a list."""
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _read_advice(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} is not a file. Remove it, or put the base's tuning.yaml there.")
    values = parse_yaml(read_yaml_file(file, _MOST_BYTES), file)
    return checked_advice({} if values is None else values, str(file))


def _count(config: ConfigFile) -> int:
    """Number of parameters in the blocks, the embedding and the output layer, without biases and norms."""
    heads = 2 * config.num_attention_heads + 2 * config.multi_query_group_num
    block = config.hidden_size * (config.kv_channels * heads + 3 * config.ffn_hidden_size)
    return config.num_layers * block + 2 * config.padded_vocab_size * config.hidden_size


def _is_too_much(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > _MOST_ENTRIES or any(map(_is_too_much, value))
    if isinstance(value, dict):  # a stage of the curriculum
        return any(map(_is_too_much, value.values()))
    return isinstance(value, (int, float)) and value > _LARGEST
