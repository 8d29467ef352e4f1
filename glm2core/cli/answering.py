"""What `chat` and `predict` share: the model their arguments name, and answers that appear as they grow."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from glm2core.console import Notice
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.hardware import choose_device, choose_dtype
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.text.chat_format import ChatFormat


class AnswerStream(BaseStreamer):
    """Writes an answer as it grows. transformers' TextStreamer loses indents after a line end with SentencePiece.

    Args:
        write: gets each new piece of text.
    """

    def __init__(self, chat_format: ChatFormat, write: Callable[[str], object]) -> None:
        self._format, self._write = chat_format, write
        self._ids: list[int] | None = None  # None until the prompt has passed
        self._shown = 0

    def put(self, value: Tensor) -> None:
        """Take the prompt [1, T] first, then token after token [1]."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        # Characters of which not all bytes are there yet decode to U+FFFD
        self._show(self._text().rstrip("\ufffd"))

    def end(self) -> None:
        self._show(self._text())
        self._ids, self._shown = None, 0

    def _text(self) -> str:
        ids = [token for token in self._ids or [] if token not in self._format.stop_ids]
        return self._format.tokenizer.decode(ids)

    def _show(self, text: str) -> None:
        self._write(text[self._shown :])
        self._shown = max(self._shown, len(text))


def load_answerer(arguments: argparse.Namespace, notice: Notice) -> Answerer:
    """The model that the arguments of `chat` and `predict` name.

    Raises:
        UserError: no such folder, no model in it, or a device that isn't there.
    """
    chat_format = ChatFormat.load(arguments.model)
    device = choose_device(arguments.device, key="--device")
    parameters = network_parameters(arguments.model, arguments.base)
    dtype = choose_dtype(arguments.dtype, device, parameters=parameters, notice=notice)
    model = load_tuned(arguments.model, dtype=dtype, device=device, moved_base=arguments.base, notice=notice)
    chat_format.require_rows(model.config.padded_vocab_size, arguments.model)
    torch.manual_seed(arguments.seed)
    return Answerer(model, chat_format, Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p))
