"""A loaded model that answers one request at a time, with a whole or a streamed answer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Queue
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from glm2core.conversation import Message
from glm2core.errors import UserError
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.serving.requests import ChatRequest, RequestError
from glm2core.serving.stream import AnswerStream
from glm2core.text.chat_format import ChatFormat

_TOP_P = Sampling.top_p


@dataclass(frozen=True)
class TokenChoice:
    """A token of an answer, its log-probability, and the likeliest alternatives with their log-probabilities."""

    token: int
    logprob: float
    alternatives: list[tuple[int, float]]


@dataclass(frozen=True)
class Answered:
    """An answer. If `finished` is False, the answer was truncated at its largest number of tokens."""

    text: str
    finished: bool
    prompt_tokens: int
    answer_tokens: int
    choices: list[TokenChoice] = field(default_factory=list)


class Engine:
    """A model, and a lock that lets it answer one request at a time.

    Args:
        model: a network in eval mode.
        max_context: largest number of tokens in the prompt and the answer together; None = the model's number of
            positions.
    """

    def __init__(self, model: PreTrainedModel, chat_format: ChatFormat, max_context: int | None = None) -> None:
        self._model: Any = model
        self.chat_format = chat_format
        positions: int = self._model.config.seq_length
        if max_context is not None and max_context > positions:
            raise UserError(
                f"--max-context is {max_context:,}, but the model has {positions:,} positions. Lower --max-context."
            )
        self.context = max_context or positions
        self._one_at_a_time = Lock()

    def answer(self, request: ChatRequest) -> Answered:
        """Answer a request.

        Raises:
            RequestError: the prompt leaves no room for an answer.
        """
        return self._answer(request, self.prompt_ids(request), None)

    def answer_in_pieces(self, request: ChatRequest, ids: list[int]) -> Iterator[str | Answered]:
        """Stream the answer's text, then yield the whole answer.

        If the caller stops iterating, the model stops generating.

        Args:
            ids: what `prompt_ids` returns for the request.
        """
        pieces: Queue[str | Answered | BaseException] = Queue()
        gone = Event()

        def write(piece: str) -> None:
            if gone.is_set():
                raise _GoneError
            if piece:
                pieces.put(piece)

        def work() -> None:
            try:
                pieces.put(self._answer(request, ids, AnswerStream(self.chat_format, write)))
            except _GoneError:
                pass
            except BaseException as error:  # raised in the thread that waits for it
                pieces.put(error)

        Thread(target=work, daemon=True).start()
        try:
            while True:
                piece = pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if isinstance(piece, Answered):
                    return
        finally:
            gone.set()

    def prompt_ids(self, request: ChatRequest) -> list[int]:
        """Return the ids of a request's prompt.

        Raises:
            RequestError: the prompt leaves no room for the requested answer.
        """
        messages: list[Message] = request.conversation
        ids = self.chat_format.prompt_ids(messages)
        wanted = request.longest_answer or 1
        if len(ids) + wanted > self.context:
            raise RequestError(
                400,
                f"the messages have {len(ids):,} tokens and the answer may have {wanted:,}, which together exceed "
                f"this server's context of {self.context:,}. Shorten the messages, or ask for a shorter answer.",
                "messages",
                "context_length_exceeded",
            )
        return ids

    def _answer(self, request: ChatRequest, ids: list[int], stream: AnswerStream | None) -> Answered:
        longest = request.longest_answer or self.context - len(ids)
        sampling = Sampling(longest, request.temperature or 0.0, request.top_p or _TOP_P)
        answerer = Answerer(self._model, self.chat_format, sampling)
        recorder = _Recorder(request.top_logprobs or 0) if request.logprobs else None
        with self._one_at_a_time:
            torch.manual_seed(request.seed or 0)
            [made] = answerer.continued([np.array(ids)], stream, [recorder] if recorder else [])
        reply = answerer.read(made)
        choices = recorder.choices(made) if recorder else []
        return Answered(reply.answer, reply.finished, len(ids), len(made), choices)


class _GoneError(Exception):
    """The client no longer waits for the answer."""


class _Recorder(LogitsProcessor):
    """Records the likeliest tokens of each step, and the log-probability of the chosen one."""

    def __init__(self, alternatives: int) -> None:
        self._alternatives = alternatives
        self._rows: list[Tensor] = []  # [V] each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record a step's logits [1, V], and return them unchanged."""
        self._rows.append(scores[0].float().log_softmax(-1).cpu())
        return scores

    def choices(self, made: list[int]) -> list[TokenChoice]:
        found = []
        for token, row in zip(made, self._rows, strict=False):
            best = row.topk(self._alternatives)
            pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found.append(TokenChoice(token, float(row[token]), pairs))
        return found
