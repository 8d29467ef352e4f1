"""What a model folder says besides its weights: the tokenizer, the wording of its prompts, the stored dtype."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from glm2core.conversation import Message
from glm2core.errors import UserError
from glm2core.family import template_of
from glm2core.model.adapters import base_folder
from glm2core.model.loading import weight_files
from glm2core.text.prompt import PREFIX_TOKENS, STOP_TOKENS, PairFormat, TemplateName
from glm2core.text.tokenizer import CONFIG_FILE, SpTokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Wording:
    """How a model wants to be spoken to."""

    tokenizer: SpTokenizer
    template: TemplateName
    pair_format: PairFormat

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Ids up to where the answer begins."""
        return self.tokenizer.prompt_ids(messages, self.template, self.pair_format)

    def require_rows(self, rows: int, folder: Path) -> None:
        """Raises: UserError: the network's `rows` are too few for the tokenizer in `folder`."""
        self.tokenizer.require_rows(rows, self.template, self.pair_format, folder)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return [self.tokenizer.special_ids[token] for token in STOP_TOKENS[self.template]]


def read_wording(folder: Path) -> Wording:
    """Read the tokenizer of a model folder, and what it says about prompts.

    Raises:
        UserError: no such folder, or no tokenizer.model in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Name one with a model in it; `dvc repro` makes models/tuned.")
    tokenizer = SpTokenizer.load(folder)
    file = folder / CONFIG_FILE
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    pair_format = values.get("pair_format", "glm2")
    if pair_format not in PREFIX_TOKENS:
        raise UserError(f"{file}: pair_format must be one of {', '.join(PREFIX_TOKENS)}; got {pair_format!r}")
    return Wording(tokenizer, template_of(folder)[0], pair_format)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which a folder's weights (an adapter's base) are stored."""
    folder = base_folder(folder) or folder
    file = weight_files(folder)[0]
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = values.get("dtype") or values.get("torch_dtype")
    if named in DTYPES:
        return DTYPES[named]
    if file.suffix == ".bin":
        return next(iter(torch.load(file, weights_only=True, mmap=True).values())).dtype
    with safe_open(file, "pt") as weights:
        return _SAFETENSORS_DTYPES[weights.get_slice(weights.keys()[0]).get_dtype()]
