"""Open a model that is to be exported, so that its tensors can be read one at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.model.adapter_files import adapter_weights, is_adapter, read_adapter
from glm2core.model.adapters import base_folder, base_of
from glm2core.model.config import ChatGLM2Config, apply_rope
from glm2core.model.loading import packed_bits, read_config
from glm2core.model.misfits import require_fit
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.model.rope import describe_rope
from glm2core.model.tensors import LoraUpdates, MergedTensors, StoredTensors
from glm2core.model.weight_files import mapped_weights, weight_files
from glm2core.params.model_files import read_config_file
from glm2core.text.chat_format import ChatFormat

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A network whose weights are read one at a time.

    Attributes:
        folder: the folder to export, which holds full weights or an adapter.
        base: the folder with the network's weights, which is `folder` itself or the folder of the adapter's base.
        config: the network's config, including the adapter's scaling of positions.
        tensors: the network's tensors, keyed by their released names; an adapter's update is already added.
        shapes: the tensors' shapes as the config implies them, keyed by released names.
        updates: the adapter's own matrices; None if `folder` holds full weights.
    """

    folder: Path
    base: Path
    config: ChatGLM2Config
    chat_format: ChatFormat
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    updates: LoraUpdates | None = None

    @classmethod
    def open(cls, folder: Path, moved_base: Path | None = None, *, notice: Notice = print) -> "Source":
        """Open a folder of any kind that `load_tuned` can load.

        Args:
            moved_base: where an adapter's base is now; None = it was not moved.

        Raises:
            UserError: `folder` holds no model, `folder` holds a P-tuning prefix, or some tensors are missing,
                unexpected or of the wrong shape.
        """
        chat_format = ChatFormat.load(folder)
        refuse_prefix(folder)
        found = base_of(folder, moved_base)
        base, reference = found or (folder, None)
        config = read_config(base, family=reference.family if reference else "auto", notice=notice)
        if config.pre_seq_len:
            raise UserError(_prefix_sentence(folder))
        apply_rope(config, reference.rope if reference else None)
        notice(f"{folder}: positions up to {config.seq_length:,}, {describe_rope(config.rope_parameters)}")
        chat_format.require_rows(config.padded_vocab_size, folder)
        weights = mapped_weights(weight_files(base))
        tensors = StoredTensors(weights, packed_bits(base))
        with torch.device("meta"):
            network = ChatGLM2ForCausalLM(config)
        shapes = {name: weight.shape for name, weight in network.state_dict().items()}
        require_fit(tensors.shapes, shapes, f"{base}: the weights do not fit its config.json")
        if reference is None:
            return cls(folder, base, config, chat_format, tensors, shapes)
        adapter = read_adapter(folder)
        updates = LoraUpdates(adapter.lora, adapter_weights(folder, adapter, network))
        return cls(folder, base, config, chat_format, MergedTensors(tensors, updates), shapes, updates)

    def read(self, name: str) -> Tensor:
        """Read the tensor with this released name."""
        return self.tensors[name]

    def layer(self, index: int) -> Iterator[tuple[str, Tensor]]:
        """Yield one block's weights with their names inside the block."""
        prefix = f"transformer.encoder.layers.{index}."
        for name in self.shapes:
            if name.startswith(prefix):
                yield name.removeprefix(prefix), self.read(name)


def stored_dtype(folder: Path, moved_base: Path | None = None) -> torch.dtype:
    """Return the dtype in which a folder's weights are stored; for an adapter, the dtype of its base's weights.

    For packed (quantized) weights, the dtype of their scales is returned.

    Raises:
        UserError: config.json or the weights can't be read.
    """
    folder = base_folder(folder, moved_base) or folder
    config = read_config_file(folder)
    named = None if config is None else config.dtype or config.torch_dtype
    if named is not None and named in DTYPES:
        return DTYPES[named]
    tensors = mapped_weights(weight_files(folder)[:1]).values()
    return next((tensor.dtype for tensor in tensors if tensor.dtype in DTYPES.values()), torch.float32)


def refuse_prefix(folder: Path) -> None:
    """Refuse a P-tuning prefix before gigabytes of weights are read.

    Raises:
        UserError: `folder` holds a P-tuning prefix.
    """
    if is_adapter(folder) and read_adapter(folder).method == "ptuning":
        raise UserError(_prefix_sentence(folder))


def refuse_existing(out: Path) -> None:
    """Refuse to write over existing files.

    Raises:
        UserError: `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} already exists. Remove it, or choose a different name.")


def _prefix_sentence(folder: Path) -> str:
    return (
        f"{folder} holds a P-tuning prefix, which other tools' formats can't store. To export a model, tune it with "
        "train.method full, lora or qlora. The commands chat, predict and serve accept a P-tuning prefix."
    )
