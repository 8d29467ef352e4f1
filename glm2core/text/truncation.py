"""Shortens a prompt that is longer than `max_source_length`, with one of four policies.

rounds  Drop the oldest rounds as a whole and renumber the rest. If the prompt is still too long, remove tokens from the
        middle of the text that the question is about, or from the middle of the question if there is no such text. The
        system text, both ends of the question and 答： stay. If the question leaves no room for a text, drop the row.
left    Keep the first special tokens and the last tokens, as the original recipe does.
right   Keep the first tokens, as the released script does; the question's end and 答： are then lost.
drop    Drop the row.
"""

from collections import Counter
from typing import Literal, NamedTuple

import numpy as np

from glm2core.conversation import Conversation
from glm2core.labels import IGNORED
from glm2core.text.prompt import TemplateName, has_heads, open_round_pieces, round_head
from glm2core.text.tokenizer import SpTokenizer

Truncation = Literal["rounds", "left", "right", "drop"]

_LEAST_TEXT = 8  # a text shortened to fewer tokens says nothing, so its row is dropped


class Tokens(NamedTuple):
    """A slice of a row: ids and labels of the same length."""

    ids: np.ndarray
    labels: np.ndarray

    def part(self, start: int, end: int | None = None) -> "Tokens":
        return Tokens(self.ids[start:end], self.labels[start:end])


class LongRow(NamedTuple):
    """A prompt that is too long.

    max_length: maximum number of tokens in the prompt.
    tokens: the prompt with all its rounds. [T]
    prefix: number of special tokens that the prompt begins with.
    round_starts: indices of the tokens at which the prompt's rounds start.
    head_lengths: number of tokens in each round's numbered head; empty if the template has no heads.
    """

    conversation: Conversation
    max_length: int
    tokens: Tokens
    prefix: int
    round_starts: list[int]
    head_lengths: list[int]


class Truncator:
    """Shortens prompts with one policy, for one tokenizer and one template."""

    def __init__(self, tokenizer: SpTokenizer, template: TemplateName, truncation: Truncation) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._truncation = truncation

    def shorten(self, row: LongRow, cuts: Counter[str]) -> Tokens | str:
        """The prompt in at most `max_length` tokens, or why its row is dropped; `cuts` counts the truncations."""
        whole = row.tokens
        match self._truncation:
            case "rounds":
                return self._drop_rounds(row, cuts)
            case "left":
                cuts["prompts_cut_left"] += 1
                kept = max(row.max_length - row.prefix, 0)
                return joined(whole.part(0, row.prefix), _without_cut_answer(whole.part(len(whole.ids) - kept)))
            case "right":
                cuts["prompts_cut_right"] += 1
                return whole.part(0, row.max_length)
            case "drop":
                return "the prompt is over max_source_length"

    def _drop_rounds(self, row: LongRow, cuts: Counter[str]) -> Tokens | str:
        whole = row.tokens
        before = whole.part(0, row.round_starts[0])
        heads, bodies = _rounds(row)
        first = self._first_kept(row, len(before.ids), bodies)
        kept_heads = self._heads(row, heads[first:])
        kept = [tokens for turn in zip(kept_heads, bodies[first:], strict=True) for tokens in turn]
        kept[0], kept[1] = _without_end_label(kept[0]), _without_end_label(kept[1])
        shorter = joined(before, *kept)
        if len(shorter.ids) > row.max_length:
            cut = self._cut_middle(row, joined(before, kept[0]), kept[1])
            if isinstance(cut, str):
                return cut
            shorter = cut
            cuts["texts_cut_in_the_middle"] += 1
        if first:
            cuts["prompts_without_oldest_rounds"] += 1
            cuts["rounds_dropped"] += first
        return shorter

    def _first_kept(self, row: LongRow, before: int, bodies: list[Tokens]) -> int:
        """How many of the oldest rounds to drop: as few as possible, and never the last round."""
        for first in range(1, len(bodies)):
            heads = sum(len(self._head(row, number)) for number in range(1, len(bodies) - first + 1))
            if before + heads + sum(len(body.ids) for body in bodies[first:]) <= row.max_length:
                return first
        return len(bodies) - 1

    def _heads(self, row: LongRow, old: list[Tokens]) -> list[Tokens]:
        """Heads with new numbers. Each keeps its old first label, which teaches the end of the answer before it."""
        heads = []
        for number, head in enumerate(old, 1):
            ids = self._head(row, number)
            labels = np.full(len(ids), IGNORED, np.int32)
            labels[:1] = head.labels[:1]
            heads.append(Tokens(ids, labels))
        return heads

    def _head(self, row: LongRow, number: int) -> np.ndarray:
        if not has_heads(self._template):
            return np.zeros(0, np.int32)
        opens = number == 1 and row.round_starts[0] == row.prefix
        return np.array(self._tokenizer.part_ids(round_head(number, first=opens)), np.int32)

    def _cut_middle(self, row: LongRow, before: Tokens, body: Tokens) -> Tokens | str:
        """Remove the excess from the middle of the open round's text.

        Args:
            before: everything in front of the question.
            body: the open round after its head.
        """
        query = row.conversation.messages[-2]["content"]
        chars = row.conversation.question_chars
        question, _, end = open_round_pieces(self._template, query[:chars], "")
        fixed = 0 if chars is None else len(self._tokenizer.part_ids(question))
        close = len(body.ids) - len(self._tokenizer.part_ids(end))
        room = row.max_length - len(before.ids) - fixed - (len(body.ids) - close)
        if room < min(_LEAST_TEXT, close - fixed):
            return "the question alone is over max_source_length"
        return joined(before, body.part(0, fixed + room - room // 2), body.part(close - room // 2))


def _rounds(row: LongRow) -> tuple[list[Tokens], list[Tokens]]:
    """Head and body of each round."""
    whole = row.tokens
    heads, bodies = [], []
    ends = [*row.round_starts[1:], len(row.tokens.ids)]
    lengths = row.head_lengths or [0] * len(ends)
    for start, length, end in zip(row.round_starts, lengths, ends, strict=True):
        heads.append(whole.part(start, start + length))
        bodies.append(whole.part(start + length, end))
    return heads, bodies


def _without_end_label(tokens: Tokens) -> Tokens:
    """Remove the first label. The first remaining round follows no answer, so there is no answer's end to teach."""
    labels = tokens.labels.copy()
    labels[:1] = IGNORED
    return Tokens(tokens.ids, labels)


def _without_cut_answer(tokens: Tokens) -> Tokens:
    """Remove the labels of an answer that lost its beginning. The model reads the rest, but is not taught it."""
    labels = tokens.labels.copy()
    ignored = np.flatnonzero(labels == IGNORED)
    labels[: ignored[0] if len(ignored) else len(labels)] = IGNORED
    return Tokens(tokens.ids, labels)


def joined(*parts: Tokens) -> Tokens:
    return Tokens(np.concatenate([p.ids for p in parts]), np.concatenate([p.labels for p in parts]))
