"""A loaded model that answers conversations. `B` conversations, `T` tokens of the longest prompt."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from glm2core.cli.folders import Wording, read_wording
from glm2core.conversation import SYSTEM, Message
from glm2core.errors import UserError
from glm2core.evaluation.padding import left_mask, left_padded
from glm2core.hardware import choose_device, choose_dtype
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.text.tokenizer import PAD


class Answer(NamedTuple):
    """finished: the model ended it; False = it was cut at the longest length."""

    answer: str
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken: temperature 0 = the likeliest one."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 0.8


class Answerer:
    """A model with its wording.

    Args:
        model: in eval mode.
        positions: prompt and answer together never go beyond so many tokens.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, wording: Wording, sampling: Sampling) -> None:
        self._model: Any = model
        self.wording = wording
        self.positions: int = self._model.config.seq_length
        self._room = self.positions - sampling.max_new_tokens
        self._config = _generation_config(wording, sampling)

    @torch.inference_mode()
    def answer(self, conversations: Sequence[list[Message]], streamer: BaseStreamer | None = None) -> list[Answer]:
        """Answer the last message of each.

        Raises:
            UserError: a prompt that leaves no room for an answer.
        """
        prompts = [np.array(self.prompt_ids(messages)) for messages in conversations]
        inputs = left_padded(prompts, PAD, self._model.device)  # [B, T]
        made: Tensor = self._model.generate(
            input_ids=inputs, attention_mask=left_mask(prompts, self._model.device),
            generation_config=self._config, streamer=streamer,
        )  # fmt: skip
        return [self._read(ids) for ids in made[:, inputs.shape[1] :].tolist()]

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Ids up to where the answer begins.

        Raises:
            UserError: they leave no room for an answer.
        """
        ids = self.wording.prompt_ids(messages)
        if len(ids) > self._room:
            raise UserError(
                f"the prompt has {len(ids):,} tokens; with {self._config.max_new_tokens:,} for the answer that is more "
                f"than the model's {self.positions:,} positions. Shorten it, or lower --max-new-tokens."
            )
        return ids

    def drop_oldest_rounds(self, messages: list[Message]) -> list[Message]:
        """The messages with as few of the oldest rounds left out as it takes to fit."""
        start = 1 if messages[0]["role"] == SYSTEM else 0
        kept = messages
        while len(kept) > start + 1 and len(self.wording.prompt_ids(kept)) > self._room:
            kept = [*kept[:start], *kept[start + 2 :]]
        return kept

    def _read(self, ids: list[int]) -> Answer:
        # pad = unk = 0 is a token like any other in front of the stop: cut by place, not by value
        stops = self.wording.stop_ids
        end = next((place for place, token in enumerate(ids) if token in stops), None)
        return Answer(self.wording.tokenizer.decode(ids[:end]), finished=end is not None)


class AnswerStream(BaseStreamer):
    """Writes an answer as it grows. transformers' TextStreamer loses indents after a line end with SentencePiece.

    Args:
        write: gets each new piece of text.
    """

    def __init__(self, wording: Wording, write: Callable[[str], object]) -> None:
        self._wording, self._write = wording, write
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
        ids = [token for token in self._ids or [] if token not in self._wording.stop_ids]
        return self._wording.tokenizer.decode(ids)

    def _show(self, text: str) -> None:
        self._write(text[self._shown :])
        self._shown = max(self._shown, len(text))


def load_answerer(arguments: argparse.Namespace, notice: Callable[[str], None]) -> Answerer:
    """The model that the arguments of `chat` and `predict` name.

    Raises:
        UserError: no such folder, no model in it, or a device that isn't there.
    """
    wording = read_wording(arguments.model)
    device = choose_device(arguments.device, key="--device")
    dtype = choose_dtype(arguments.dtype, device, parameters=network_parameters(arguments.model), notice=notice)
    model = load_tuned(arguments.model, dtype=dtype, device=device, notice=notice)
    wording.require_rows(model.config.padded_vocab_size, arguments.model)
    torch.manual_seed(arguments.seed)
    return Answerer(model, wording, Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p))


def _generation_config(wording: Wording, sampling: Sampling) -> GenerationConfig:
    common = {"max_new_tokens": sampling.max_new_tokens, "pad_token_id": PAD, "eos_token_id": wording.stop_ids}
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, **common)
    return GenerationConfig(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=0, **common)
