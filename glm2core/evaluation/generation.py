"""Generates answers with a loaded model, to a batch of prompts or to many questions about one context.

A context with many questions is read only once. The context goes through the network in chunks, and its keys
and values are kept in a cache. All questions then run side by side as one sequence. A mask lets each question
see only the context and itself, and the positions of each question continue from the context. So any number of
questions needs only one cache, and memory grows linearly with length.

Shapes: `B` prompts, `T` tokens of the longest prompt, `K` tokens in the cache, `N` new tokens of all questions,
`Q` unfinished questions, `V` vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from glm2core.conversation import SYSTEM, Message
from glm2core.errors import UserError
from glm2core.hardware import product_dtype
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import PAD


def left_padded(rows: Sequence[np.ndarray], fill: int, device: torch.device) -> Tensor:
    """Stack rows [T_i] into one int64 tensor [B, T]; shorter rows are padded on the left with `fill`."""
    longest = max(map(len, rows))
    padded = np.full((len(rows), longest), fill, np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[longest - len(values) :] = values
    return torch.from_numpy(padded).to(device)


def left_mask(rows: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """The mask [B, T] of `left_padded`: 1 for tokens, 0 for padding."""
    return left_padded([np.ones(len(row), np.int64) for row in rows], 0, device)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; at temperature 0, it is always the most likely token."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 0.8


class Reply(NamedTuple):
    """An answer's text, and whether it is finished. Unfinished answers were truncated at the maximum length."""

    answer: str
    finished: bool


class Answerer:
    """A model with its chat format.

    Args:
        model: the model, in eval mode.

    Attributes:
        positions: maximum number of tokens in the prompt and the answer together.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, chat_format: ChatFormat, sampling: Sampling) -> None:
        self._model: Any = model
        self.chat_format = chat_format
        self.positions: int = self._model.config.seq_length
        self._room = self.positions - sampling.max_new_tokens
        self._config = _generation_config(chat_format, sampling)

    def answer(self, conversations: Sequence[list[Message]], streamer: BaseStreamer | None = None) -> list[Reply]:
        """Answer the last message of each conversation.

        Raises:
            UserError: a prompt leaves no room for an answer.
        """
        return self.answer_prompts([np.array(self.prompt_ids(messages)) for messages in conversations], streamer)

    def answer_prompts(self, prompts: Sequence[np.ndarray], streamer: BaseStreamer | None = None) -> list[Reply]:
        """Answer prompts that are given as token ids [T_i]."""
        return [self.read(ids) for ids in self.continued(prompts, streamer)]

    @torch.inference_mode()
    def continued(
        self,
        prompts: Sequence[np.ndarray],
        streamer: BaseStreamer | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> list[list[int]]:
        """Generate token ids for each prompt, and return them with the stop token and the padding after it.

        Args:
            processors: functions that are called with the logits [B, V] of each step.
        """
        inputs = left_padded(prompts, PAD, self._model.device)  # [B, T]
        made: Tensor = self._model.generate(
            input_ids=inputs,
            attention_mask=left_mask(prompts, self._model.device),
            generation_config=self._config,
            streamer=streamer,
            logits_processor=LogitsProcessorList(processors),
        )
        found: list[list[int]] = made[:, inputs.shape[1] :].tolist()
        return found

    def read(self, ids: list[int]) -> Reply:
        """Decode the token ids of an answer."""
        # pad = unk = 0 can also be a token of the answer, so the padding is cut off by position, not by value
        stops = self.chat_format.stop_ids
        end = next((place for place, token in enumerate(ids) if token in stops), None)
        return Reply(self.chat_format.tokenizer.decode(ids[:end]), finished=end is not None)

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Token ids of the prompt, up to the place where the answer begins.

        Raises:
            UserError: the prompt leaves no room for an answer.
        """
        ids = self.chat_format.prompt_ids(messages)
        if len(ids) > self._room:
            raise UserError(
                f"the prompt has {len(ids):,} tokens and the answer may have {self._config.max_new_tokens:,}, which is "
                f"more than the model's {self.positions:,} positions. Shorten the prompt, or lower --max-new-tokens."
            )
        return ids

    def drop_oldest_rounds(self, messages: list[Message]) -> list[Message]:
        """Drop as few of the oldest rounds as possible, so that the messages fit."""
        start = 1 if messages[0]["role"] == SYSTEM else 0
        kept = messages
        while len(kept) > start + 1 and len(self.chat_format.prompt_ids(kept)) > self._room:
            kept = [*kept[:start], *kept[start + 2 :]]
        return kept


def _generation_config(chat_format: ChatFormat, sampling: Sampling) -> GenerationConfig:
    # use_cache is set here because transformers would otherwise follow the model's config, which may say false
    common = {
        "max_new_tokens": sampling.max_new_tokens,
        "pad_token_id": PAD,
        "eos_token_id": chat_format.stop_ids,
        "use_cache": True,
    }
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, **common)
    return GenerationConfig(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=0, **common)


@dataclass(frozen=True)
class Context:
    """A context whose keys and values are cached."""

    network: PreTrainedModel
    cache: DynamicCache
    next_position: int  # as in the network's position_ids


def open_cache(model: PreTrainedModel) -> tuple[PreTrainedModel, DynamicCache]:
    """Return the network to call, and the cache from which to start.

    peft puts its P-tuning prefix into a new cache at each call. This function puts the prefix into a cache
    once, and returns the inner network, which can be called directly.
    """
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return model.get_base_model(), model.get_prompt(batch_size=1)
    return model, DynamicCache()


@torch.inference_mode()
def read_context(model: PreTrainedModel, ids: Sequence[int], prefill_chunk: int) -> Context:
    """Compute the keys and values of the context, chunk by chunk."""
    network, cache = open_cache(model)
    counted = cache.get_seq_length()  # with a peft prefix, positions start after the prefix
    tokens = torch.tensor([ids], device=model.device)  # [1, K]
    for chunk in tokens.split(prefill_chunk, dim=1):
        network(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Context(network, cache, counted + len(ids))


@torch.inference_mode()
def answer_questions(
    context: Context, questions: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], stop_ids: Collection[int]
) -> list[list[int]]:
    """Answer several questions about one context greedily; all answers extend the cache of the context.

    In fp32, each answer equals the answer to the same question asked alone. In half precision, ties between tokens may
    be broken differently.

    Args:
        questions: token ids of each question, up to the place where the answer begins.
        max_new_tokens: maximum number of tokens in an answer, as one number for all questions or a number for each.

    Returns:
        The token ids of each answer, without the stop token.
    """
    answers: list[list[int]] = [[] for _ in questions]
    limits = [max_new_tokens] * len(questions) if isinstance(max_new_tokens, int) else max_new_tokens
    pack = _Pack(context)
    active = list(range(len(questions)))
    feed: list[Sequence[int]] = list(questions)
    for _ in range(max(limits)):
        chosen = pack.step(active, feed)
        going_on = [(owner, token) for owner, token in zip(active, chosen, strict=True) if token not in stop_ids]
        for owner, token in going_on:
            answers[owner].append(token)
        going_on = [(owner, token) for owner, token in going_on if len(answers[owner]) < limits[owner]]
        if not going_on:
            break
        active = [owner for owner, _ in going_on]
        feed = [[token] for _, token in going_on]
    return answers


class _Pack:
    """Several continuations of one cached context, packed into one sequence."""

    def __init__(self, context: Context) -> None:
        self._model = context.network
        self._cache = context.cache
        self._shared = context.cache.get_seq_length()
        self._first_position = context.next_position
        self._owners = torch.empty(0, dtype=torch.long, device=self._model.device)  # of tokens after the context
        self._lengths: dict[int, int] = {}

    def step(self, owners: Sequence[int], feed: Sequence[Sequence[int]]) -> list[int]:
        """Append `feed[i]` to continuation `owners[i]`, and return the most likely next token of each continuation."""
        device = self._model.device
        new = torch.tensor([owner for owner, ids in zip(owners, feed, strict=True) for _ in ids], device=device)  # [N]
        last = torch.tensor([len(ids) for ids in feed], device=device).cumsum(0) - 1  # [Q]
        logits = self._model(
            input_ids=torch.tensor([[token for ids in feed for token in ids]], device=device),
            position_ids=torch.tensor([self._positions(owners, feed)], device=device),
            attention_mask=self._mask(new),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits  # [1, Q, V]
        chosen: list[int] = logits[0].argmax(-1).tolist()
        return chosen

    def _positions(self, owners: Sequence[int], feed: Sequence[Sequence[int]]) -> list[int]:
        positions: list[int] = []
        for owner, ids in zip(owners, feed, strict=True):
            start = self._lengths.get(owner, 0)
            positions += range(self._first_position + start, self._first_position + start + len(ids))
            self._lengths[owner] = start + len(ids)
        return positions

    def _mask(self, new: Tensor) -> Tensor:
        """Additive mask [1, 1, N, K + N], which shows the context and the earlier tokens of the same continuation."""
        self._owners = torch.cat((self._owners, new))
        after = len(self._owners) - len(new)
        same = self._owners[None, :] == new[:, None]  # [N, tokens after the context]
        earlier = torch.arange(len(self._owners), device=new.device) <= after + torch.arange(
            len(new), device=new.device
        ).unsqueeze(1)
        dtype = product_dtype(self._model.dtype, new.device)  # that of the activations
        hidden = torch.zeros(len(new), self._shared + len(self._owners), dtype=dtype, device=new.device)
        hidden[:, self._shared :].masked_fill_(~(same & earlier), torch.finfo(hidden.dtype).min)
        return hidden[None, None]
