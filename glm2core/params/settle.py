"""Replaces every `auto` with a value, which no other module does.

The value for an `auto` comes from the base's tuning.yaml. If tuning.yaml does not contain the key, the value comes
from the defaults in this module. The defaults depend on the method, on whether the network is large (released
weights) or small, and on whether it runs on a CPU or a GPU. Nothing is measured, so the same files and the same kind of
device give the same values.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from glm2core.errors import UserError
from glm2core.params.advice import TUNING_FILE, Base, dotted
from glm2core.params.data import TokenizeChoices, TokenizeParams
from glm2core.params.evaluate import RetrievalParams
from glm2core.params.file import PARAMS_FILE, Params
from glm2core.params.messages import messages
from glm2core.params.section import AUTO
from glm2core.params.settled import DeviceKind, Settled, TuningRecord, shown, value_of
from glm2core.params.train import FIT, TrainParams
from glm2core.process import available_cores

_ADVISED = f"the base's {TUNING_FILE}"
_KEPT = "as the checkpoint has it"
_DEFAULT = "default"

# For trained weights: the rates that their authors and peft's examples use.
_LEARNING_RATES = {"full": 1e-5, "lora": 1e-4, "qlora": 2e-4, "ptuning": 1e-2}
# From scratch: about the rate at which small transformers learn fastest without diverging.
_LEARNING_RATE_FROM_SCRATCH = 1e-3
# Only small networks take a rate that is more than this many times the method's rate.
_HIGH_RATE = 10

# On a CPU a step of 500 tokens through 6 billion parameters takes minutes; a run should end the same day.
_STEPS = {"small": 500, "large cpu": 100}
_EPOCHS = 2.0
_BATCH_TOKENS = {"small": 2048, "large cpu": 512, "large cuda": 1024}
_SAVE_STEPS = {"small": 100, "large cpu": 20, "large cuda": 100}
_LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768]
_LONGEST = {"small": 8192, "large cpu": 1024, "large cuda": 32768}
_LONGEST_OF_BASE = {"small": 8192, "large cpu": 512, "large cuda": 8192}
_CONTEXTS = {"small": 2, "large cpu": 1, "large cuda": 4}
_QUESTIONS = 25
_LARGEST_BASE_ON_CPU = 1_000_000_000  # parameters; a larger base would take hours, as the tuned model does
_ROWS = {"small": 64, "large cpu": 8, "large cuda": 64}


def settle(params: Params, base: Base, kind: DeviceKind, record: TuningRecord | None = None) -> Settled:
    """Replace every `auto` with a value.

    Args:
        base: facts about the network in params, from `read_base`.
        kind: the kind of device that the stage runs on.
        record: the record of the tuned model that is evaluated, whose model and train sections are used unchanged;
            None = settle these sections as well.

    Raises:
        UserError: some values are incompatible; the error message says what to set instead.
    """
    if record is not None:
        base = record.base
        params = params.model_copy(update={"model": record.model, "train": record.train})
    choices = _Choices(params, dotted(base.advice))
    if record is None:
        _settle_rope(choices, base)
        _settle_train(choices, base, kind)
    _settle_evaluate(choices, base, kind)
    settled = choices.settled(params, base)
    if record is None:
        _require_settings_for_size(settled)
    return settled


def settle_tokenize(choices: TokenizeChoices) -> TokenizeParams:
    """Settle the section of the tokenize stage, whose `auto` depends only on the machine."""
    threads = available_cores() if choices.threads == AUTO else choices.threads
    return TokenizeParams.model_validate({**choices.model_dump(), "threads": threads})


class _Choices:
    """The params as they stand in params.yaml; `settle` gives each key its value."""

    def __init__(self, params: Params, advice: dict[str, Any]) -> None:
        sections = ("tokenize", "model", "train", "evaluate")
        self._values: dict[str, Any] = {name: getattr(params, name).model_dump() for name in sections}
        self._advice = advice
        self._origins: dict[str, str] = {}

    def written(self, key: str) -> Any:
        return value_of(self._values, key)

    def advised(self, key: str) -> Any:
        return self._advice.get(key)

    def settle(self, key: str, default: Any, why: str = _DEFAULT, *, advisable: bool = True) -> Any:
        """Settle a key: take the value in params.yaml; if that is `auto`, take the advised value, else `default`.

        Args:
            advisable: False if only the default is compatible with the values that are already settled.
        """
        value, origin = self.written(key), str(PARAMS_FILE)
        if value == AUTO and advisable and key in self._advice:
            value, origin = self._advice[key], _ADVISED
        elif value == AUTO:
            value, origin = default, why
        *parents, name = key.split(".")
        value_of(self._values, ".".join(parents))[name] = value
        self._origins[key] = origin
        return value

    def settled(self, params: Params, base: Base) -> Settled:
        tokenize = settle_tokenize(params.tokenize)
        values = {**self._values, "tokenize": tokenize.model_dump()}
        try:
            checked = Settled.model_validate(values)
        except ValidationError as error:
            origins = sorted({origin for origin in self._origins.values() if origin == _ADVISED})
            taken = "; `auto` was settled with the base's tuning.yaml" if origins else ""
            sentences = [f"{PARAMS_FILE}: {sentence}{taken}" for sentence in messages(error, Settled)]
            raise UserError("\n".join(sentences)) from None
        return checked.model_copy(update={"origins": self._origins, "base": base})


def _settle_rope(choices: _Choices, base: Base) -> None:
    kind = choices.settle("model.rope.type", None, "as its preset has it" if base.from_scratch else _KEPT)
    if kind in (None, "default"):
        choices.settle("model.rope.factor", 1.0, "nothing is scaled", advisable=False)
        return
    factor = choices.settle("model.rope.factor", None)
    if factor is None:
        raise UserError(
            f"model.rope.type is {kind}, but the base advises no factor. Set model.rope.factor; a factor of 4 gives "
            "four times model.rope.unit positions."
        )


def _settle_train(choices: _Choices, base: Base, kind: DeviceKind) -> None:
    method = choices.written("train.method")
    size = _size(base, kind)
    _settle_memory(choices, base, method)
    plain = TrainParams()
    choices.settle(
        "train.quantization_bits",
        4 if method == "qlora" else None,
        f"method {method}",
        advisable=method in ("qlora", "ptuning"),
    )
    _settle_length(choices, base, kind)
    choices.settle("train.batch_tokens", _BATCH_TOKENS[size], f"{size} network")
    choices.settle(
        "train.learning_rate",
        _usual_rate(method, base),
        f"method {method}" + (" from scratch" if base.from_scratch else ""),
    )
    for name in ("schedule", "decay_fraction", "warmup_fraction", "bias_rate", "position_stretch", "curriculum"):
        choices.settle(f"train.{name}", getattr(plain, name))
    sharper = method == "full" and choices.written("model.rope.type") not in (None, "default")
    kept = f"method {method}" if method != "full" else "rope changes no positions"
    choices.settle("train.query_scale", plain.query_scale, _DEFAULT if sharper else kept, advisable=sharper)
    choices.settle("train.gradient_checkpointing", FIT, "as many blocks as memory requires")
    scales = choices.written("model.rope.type") is not None
    if scales or base.from_scratch:
        choices.settle("train.generated_rows", 1.0, "rope changes positions" if scales else "from scratch")
    else:
        choices.settle("train.generated_rows", 0.0, "rope changes no positions")
    choices.settle("train.save_steps", _SAVE_STEPS[size], f"{size} network")
    choices.settle("train.threads", available_cores(), "all cores", advisable=False)


def _settle_memory(choices: _Choices, base: Base, method: str) -> None:
    """Settle `train.memory`, and the keys that depend on it."""
    can_be_low = (
        method == "full"
        and choices.written("train.optimizer") in (AUTO, "adafactor")
        and choices.written("train.max_grad_norm") in (AUTO, None)
        and choices.written("train.gradient_accumulation_steps") == 1
        and choices.written("train.launcher") == "python"
    )
    wants_low = can_be_low and base.is_large
    why = "all weights of a large network" if wants_low else _DEFAULT
    low = choices.settle("train.memory", "low" if wants_low else "normal", why, advisable=can_be_low) == "low"
    why = "memory low" if low else _DEFAULT
    choices.settle("train.optimizer", "adafactor" if low else "adamw", why, advisable=not low)
    choices.settle("train.max_grad_norm", None if low else 1.0, why, advisable=not low)


def _settle_length(choices: _Choices, base: Base, kind: DeviceKind) -> None:
    """Settle steps and epochs: one of them becomes null."""
    steps, epochs = choices.written("train.max_steps"), choices.written("train.epochs")
    size = _size(base, kind)
    if steps not in (AUTO, None) or epochs is None:
        by_steps = True
    elif epochs != AUTO or steps is None:
        by_steps = False
    elif any(choices.advised(f"train.{name}") for name in ("max_steps", "epochs")):
        by_steps = bool(choices.advised("train.max_steps"))
    else:
        by_steps = size in _STEPS
    if by_steps:
        choices.settle("train.max_steps", _STEPS.get(size, _STEPS["small"]), f"{size} network")
        choices.settle("train.epochs", None, "set by train.max_steps", advisable=False)
    else:
        choices.settle("train.max_steps", None, "set by train.epochs", advisable=False)
        choices.settle("train.epochs", _EPOCHS, f"{size} network")


def _settle_evaluate(choices: _Choices, base: Base, kind: DeviceKind) -> None:
    size = _size(base, kind)
    choices.settle("evaluate.threads", available_cores(), "all cores", advisable=False)
    choices.settle("evaluate.generation.rows", _ROWS[size], f"{size} network")
    choices.settle("evaluate.generation.base", *_asks_base(base, kind), advisable=not base.from_scratch)
    usual = RetrievalParams()
    choices.settle("evaluate.retrieval.tasks", usual.tasks)
    choices.settle("evaluate.retrieval.shared", usual.shared)
    rope = choices.written("model.rope")
    reach = base.positions if rope["type"] in (None, "default") else round(rope["factor"] * rope["unit"])
    longest = min(_LONGEST[size], max(reach, 512)) if base.is_large else _LONGEST[size]
    lengths = choices.settle("evaluate.retrieval.lengths", _up_to(longest, _LENGTHS), f"{size} network")
    longest = min(_LONGEST_OF_BASE[size], base.positions)
    asked = [] if base.from_scratch else _up_to(longest, lengths)
    choices.settle("evaluate.retrieval.base_lengths", asked, "no base" if base.from_scratch else f"{size} network")
    choices.settle("evaluate.retrieval.contexts", _CONTEXTS[size], f"{size} network")
    choices.settle("evaluate.retrieval.questions", _QUESTIONS)


def _asks_base(base: Base, kind: DeviceKind) -> tuple[bool, str]:
    """Whether the base answers the held-out rows as well, and why."""
    if base.from_scratch:
        return False, "no base"
    if kind == "cpu" and (base.parameters is None or base.parameters > _LARGEST_BASE_ON_CPU):
        return False, "over 1 billion parameters on a CPU"
    return True, _DEFAULT


def _require_settings_for_size(settled: Settled) -> None:
    train, base = settled.train, settled.base
    usual: dict[str, Any] = {}
    if train.optimizer == "muon":
        usual["optimizer"] = "adamw"
    if train.bias_rate > 1:
        usual["bias_rate"] = 1
    rate = _usual_rate(train.method, base)
    if train.learning_rate > _HIGH_RATE * rate:
        usual["learning_rate"] = rate
    if not base.is_large or not usual:
        return
    found = ", ".join(f"{name} {shown(getattr(train, name))} ({settled.origins[f'train.{name}']})" for name in usual)
    size = "" if base.parameters is None else f"; this network has {base.parameters / 1e9:.1f} billion parameters"
    raise UserError(
        f"train sets {found}, but that is for small networks such as models/base{size}. Run with "
        + " ".join(f"-S train.{name}={value}" for name, value in usual.items())
    )


def _usual_rate(method: str, base: Base) -> float:
    return _LEARNING_RATE_FROM_SCRATCH if base.from_scratch and method == "full" else _LEARNING_RATES[method]


def _size(base: Base, kind: DeviceKind) -> str:
    """Which row of the defaults applies: small, large cpu or large cuda."""
    return f"large {kind}" if base.is_large else "small"


def _up_to(longest: int, lengths: Sequence[int]) -> list[int]:
    return [length for length in lengths if length <= longest]
