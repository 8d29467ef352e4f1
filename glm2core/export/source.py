"""A model that is to be exported, open for reading tensor by tensor."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.model.adapters import base_folder, base_of
from glm2core.model.config import ChatGLM2Config, apply_rope
from glm2core.model.loading import packed_bits, read_config
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.model.rope import describe_rope
from glm2core.model.tensors import LoraUpdates, MergedTensors, StoredTensors
from glm2core.model.weight_files import require_readable, weight_files
from glm2core.text.chat_format import ChatFormat

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """A network whose weights are read one at a time.

    Attributes:
        folder: what was named: full weights or an adapter.
        base: where the weights lie: `folder` itself, or the adapter's base.
        config: of the network, with the adapter's scaling of positions.
        tensors: by released name, an adapter's update added.
        shapes: that the config asks for, by released name.
        updates: the adapter's own matrices; None = full weights.
    """

    folder: Path
    base: Path
    config: ChatGLM2Config
    chat_format: ChatFormat
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    updates: LoraUpdates | None = None

    @classmethod
    def open(cls, folder: Path, *, notice: Notice = print) -> "Source":
        """Open what `load_tuned` would load.

        Raises:
            UserError: no model there, a P-tuning prefix, or tensors that are missing or too many.
        """
        chat_format = ChatFormat.load(folder)
        refuse_prefix(folder)
        found = base_of(folder)
        base, reference = found or (folder, None)
        config = read_config(base, family=reference.family if reference else "auto", notice=notice)
        if config.pre_seq_len:
            raise UserError(_prefix_sentence(folder))
        apply_rope(config, reference.rope if reference else None)
        notice(f"{folder}: positions to {config.seq_length:,} by {describe_rope(config.rope_parameters)}")
        chat_format.require_rows(config.padded_vocab_size, folder)
        files = weight_files(base)
        for file in files:
            require_readable(file)
        tensors: Mapping[str, Tensor] = StoredTensors(files, packed_bits(base))
        with torch.device("meta"):
            shapes = {name: weight.shape for name, weight in ChatGLM2ForCausalLM(config).state_dict().items()}
        _require_names(base, tensors, shapes)
        if reference is None:
            return cls(folder, base, config, chat_format, tensors, shapes)
        merged = MergedTensors(tensors, folder)
        return cls(folder, base, config, chat_format, merged, shapes, merged.updates)

    def read(self, name: str) -> Tensor:
        """A tensor by its released name.

        Raises:
            UserError: it has another shape than the config says, or holds what is no number.
        """
        tensor = self.tensors[name]
        if tensor.shape != self.shapes[name]:
            raise UserError(
                f"{self.base}: {name} is {list(tensor.shape)} and should be {list(self.shapes[name])} by config.json."
            )
        return tensor

    def layer(self, index: int) -> Iterator[tuple[str, Tensor]]:
        """The weights of one block, by their names in it."""
        prefix = f"transformer.encoder.layers.{index}."
        for name in self.shapes:
            if name.startswith(prefix):
                yield name.removeprefix(prefix), self.read(name)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which a folder's weights (an adapter's base) are stored; of packed ones that of their scales."""
    folder = base_folder(folder) or folder
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = values.get("dtype") or values.get("torch_dtype")
    if named in DTYPES:
        return DTYPES[named]
    tensors = StoredTensors(weight_files(folder))
    return next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())


def refuse_prefix(folder: Path) -> None:
    """Before gigabytes are read.

    Raises:
        UserError: `folder` is a P-tuning prefix.
    """
    file = folder / ADAPTER
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("peft_type") == "PREFIX_TUNING":
        raise UserError(_prefix_sentence(folder))


def refuse_existing(out: Path) -> None:
    """Raises: UserError: `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists already. Remove it, or name another.")


def _prefix_sentence(folder: Path) -> str:
    return (
        f"{folder} has a P-tuning prefix, and the layouts of other tools have no place for one. Tune with train.method "
        "full, lora or qlora to export; chat, predict and serve take this one."
    )


def _require_names(folder: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    wrong = [f"missing {name}" for name in sorted(shapes.keys() - set(tensors))]
    wrong += [f"unexpected {name}" for name in sorted(set(tensors) - shapes.keys())]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise UserError(f"{folder}: the weights do not fit its config.json: {'; '.join(wrong[:8])}{more}")
