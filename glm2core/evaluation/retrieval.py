"""Greedy answers to many questions about one context, which is read once.

The context goes through the network in chunks and leaves its keys and values in a cache. All its
questions then run side by side as one sequence: a mask lets each see the context and itself, and
positions continue from the context for each. So the cache is held once, whatever the number of
questions, and memory grows linearly with length.

Shapes: `K` tokens in the cache, `N` new tokens of all questions, `Q` unfinished questions, `V` vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from glm2core.evaluation.scores import Answer
from glm2core.evaluation.tasks import Case
from glm2core.hardware import product_dtype
from glm2core.text.prompt import STOP_TOKENS, PairFormat, Part, TemplateName, render
from glm2core.text.tokenizer import SpTokenizer


@dataclass(frozen=True)
class PromptFormat:
    """How a question becomes token ids, and where an answer ends."""

    tokenizer: SpTokenizer
    template: TemplateName
    pair_format: PairFormat = "glm2"

    def count_tokens(self, text: str) -> int:
        """Tokens of the whole prompt around a user's message."""
        return len(self.tokenizer.prompt_ids([{"role": "user", "content": text}], self.template, self.pair_format))

    def encode_case(self, case: Case) -> tuple[list[int], list[list[int]]]:
        """Ids that all questions begin with, and what is left of each: together the ids of its whole prompt.

        A part may be cut in front of a line end without changing its ids (prompt.py), and a context
        ends in one: it is encoded once.
        """
        tails = []
        context_ids: list[int] = []
        for question in case.questions:
            before, after = self._cut(case.context, question.text)
            context_ids = context_ids or self.tokenizer.prefix_ids(self.pair_format) + self._ids(before)
            tails.append(self._ids(after))
        common = _common_length(tails)
        return context_ids + tails[0][:common], [tail[common:] for tail in tails]

    def _cut(self, context: str, question: str) -> tuple[list[Part], list[Part]]:
        parts = render([{"role": "user", "content": context + question}], self.template)
        index = next(index for index, part in enumerate(parts) if context in part.text)
        part = parts[index]
        place = part.text.index(context) + len(context) - 1
        before, after = part._replace(text=part.text[:place]), Part(part.text[place:], continues=True)
        return [*parts[:index], before], [after, *parts[index + 1 :]]

    def _ids(self, parts: Iterable[Part]) -> list[int]:
        return [token for part in parts for token in self.tokenizer.part_ids(part)]

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.special_ids[token] for token in STOP_TOKENS[self.template])


def answer_case(
    model: PreTrainedModel, prompt_format: PromptFormat, case: Case, *, prefill_chunk: int, max_new_tokens: int
) -> list[Answer]:
    """Ask `model` every question of a case.

    Args:
        prefill_chunk: longer contexts are read in chunks of so many tokens.
        max_new_tokens: longest answer.
    """
    context, tails = prompt_format.encode_case(case)
    outputs = answer_questions(
        read_context(model, context, prefill_chunk), tails, max_new_tokens, prompt_format.stop_ids
    )
    return [
        Answer(
            task=case.task,
            length=case.length,
            context=case.index,
            depth=question.depth,
            colliding=question.colliding,
            chance=case.chance,
            prompt_tokens=len(context) + len(tail),
            expected=question.expected,
            output=prompt_format.tokenizer.decode(output),
        )
        for question, tail, output in zip(case.questions, tails, outputs, strict=True)
    ]


def _common_length(tails: Sequence[Sequence[int]]) -> int:
    """How many ids all tails begin with; at least one is left to each."""
    shortest = min(map(len, tails)) - 1
    return next((i for i in range(shortest) if len({tail[i] for tail in tails}) > 1), shortest)


@dataclass(frozen=True)
class Context:
    """A context that the network has read."""

    network: PreTrainedModel
    cache: DynamicCache
    next_position: int  # as the network takes it in position_ids


def open_cache(model: PreTrainedModel) -> tuple[PreTrainedModel, DynamicCache]:
    """The network and a cache to start with.

    peft puts its P-tuning prefix into a new cache at each call; here it is put in once, and the network
    below is called.
    """
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return model.get_base_model(), model.get_prompt(batch_size=1)
    return model, DynamicCache()


@torch.inference_mode()
def read_context(model: PreTrainedModel, ids: Sequence[int], prefill_chunk: int) -> Context:
    """Compute keys and values of the context, in chunks."""
    network, cache = open_cache(model)
    counted = cache.get_seq_length()  # a peft prefix: the network takes positions with its length added
    tokens = torch.tensor([ids], device=model.device)  # [1, K]
    for chunk in tokens.split(prefill_chunk, dim=1):
        network(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Context(network, cache, counted + len(ids))


@torch.inference_mode()
def answer_questions(
    context: Context, questions: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int]
) -> list[list[int]]:
    """Greedy answers to several questions after one context, whose cache is extended by all of them.

    In fp32 they are those of each question asked alone; in half precision a tie may fall otherwise.

    Args:
        questions: ids of each question, up to where the answer begins.

    Returns:
        Ids of each answer, without the stop token.
    """
    answers: list[list[int]] = [[] for _ in questions]
    pack = _Pack(context)
    active = list(range(len(questions)))
    feed: list[Sequence[int]] = list(questions)
    for _ in range(max_new_tokens):
        chosen = pack.step(active, feed)
        going_on = [(owner, token) for owner, token in zip(active, chosen, strict=True) if token not in stop_ids]
        for owner, token in going_on:
            answers[owner].append(token)
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
        """Append `feed[i]` to continuation `owners[i]`; returns the most likely next token of each."""
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
        """Additive mask [1, 1, N, K + N]: all of the context, and what the same continuation has said so far."""
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
