"""Turns conversations into supervised token pairs.

    glm2:  [gMASK] sop A B </s>        the order of the released models
    llama: <s> A B </s>

A is the encoded prompt, B the encoded answer. A label is at the position of its token (the model
shifts labels). Labels are `IGNORED` (-100) everywhere but on B and `</s>`. They are set by position,
not by id: padding has the same id as `<unk>`, 0, but a real `<unk>` stays supervised.

With loss_on "every", the answers of all rounds are supervised in one pass over the prompt's
text, which has no `</s>` between rounds: the end of an earlier answer is taught only by a label,
`</s>` instead of the line end or role token that follows the answer. Each answer is encoded by
itself, as the model writes it, so ids at its borders may differ from those of the whole text.

An answer of `max_target_length` tokens or more is truncated to that length and gets no `</s>`. A
prompt over `max_source_length` is shortened by `truncation.py`.

`spans.py` assembles the rows; this module has the steps.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from glm2core.conversation import Conversation
from glm2core.labels import IGNORED
from glm2core.text.prompt import PairFormat, TemplateName
from glm2core.text.spans import FlatRows, Limits, PlannedBatch, SpanConstants, row_ends_of
from glm2core.text.tokenizer import SpTokenizer
from glm2core.text.truncation import Tokens, Truncation, Truncator, joined

__all__ = ["Dropped", "Limits", "PairBatch", "PairBuilder"]


class Dropped(NamedTuple):
    """A row that gave no pair, and why."""

    row: int
    reason: str


@dataclass
class PairBatch:
    """The pairs of some rows in flat arrays, where row i is `[ends[i] : ends[i + 1]]`.

    rows: the index of the conversation that each pair comes from. [B]
    input_ids, labels: int32. [tokens of all rows]
    ends: int64. [B + 1]
    source_lengths: number of tokens before the last answer. [B]
    row_cuts: how much each row lost, by kind: counted in rounds or answers, else 1 for the row. [B]
    """

    rows: np.ndarray
    input_ids: np.ndarray
    labels: np.ndarray
    ends: np.ndarray
    source_lengths: np.ndarray
    row_cuts: list[Counter[str]]
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def cuts(self) -> Counter[str]:
        """Number of rows (or rounds, or answers) that lost something, by kind."""
        return sum(filter(None, self.row_cuts), Counter())

    @property
    def supervised_tokens(self) -> np.ndarray:
        """Number of labels that are not ignored, for each row. [B]"""
        counted: np.ndarray = np.add.reduceat((self.labels != IGNORED).astype(np.int32), self.ends[:-1])
        return counted

    def segments(self, newline: int) -> tuple[np.ndarray, np.ndarray]:
        """Where rounds and lines start in each row: at its first token and at each token after a line end.

        The start of a supervised answer is left out: an answer directly follows its question. With a gap
        between the two (text/stretch.py), a network would learn that the nearest question is not the one asked.

        Returns:
            The indices of these tokens within their rows (int32), and where each row's indices end. [B + 1]
        """
        line_ends = self.input_ids == newline
        starts = np.zeros(len(self.input_ids), bool)
        starts[1:] = line_ends[:-1] & ~line_ends[1:]
        answers = np.flatnonzero((self.labels[1:] != IGNORED) & (self.labels[:-1] == IGNORED)) + 1
        lines = np.flatnonzero(starts)
        heads = np.searchsorted(lines, answers, side="right") - 1
        starts[lines[heads[heads >= 0]]] = False
        starts[self.ends[:-1]] = True
        places = np.flatnonzero(starts)
        ends = np.searchsorted(places, self.ends)
        within = places - np.repeat(self.ends[:-1], np.diff(ends))
        return within.astype(np.int32), ends


class PairBuilder:
    """Makes pairs with one tokenizer and one template.

    Args:
        threads: number of threads for SentencePiece; None = one per core. The pairs are the same for any number.
    """

    def __init__(
        self,
        tokenizer: SpTokenizer,
        template: TemplateName = "chatglm2",
        pair_format: PairFormat = "glm2",
        truncation: Truncation = "rounds",
        threads: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._threads = threads
        self._constants = SpanConstants(tokenizer, tokenizer.prefix_ids(pair_format))
        self._truncator = Truncator(tokenizer, template, truncation)

    def plan(self, conversations: Sequence[Conversation], limits: Sequence[Limits]) -> PlannedBatch:
        """Plan a batch of answered conversations: which texts to encode, and which of these each row needs."""
        plan = PlannedBatch(self._template, self._constants, conversations, limits)
        for conversation, limit in zip(conversations, limits, strict=True):
            plan.add(conversation, limit)
        return plan

    def encode(self, plan: PlannedBatch) -> list[np.ndarray]:
        """The ids of the plan's texts, from one call of SentencePiece: most of the work."""
        return self._tokenizer.encode_batch(plan.texts, self._threads)

    def assemble(self, plan: PlannedBatch, encoded: list[np.ndarray]) -> PairBatch:
        """Assemble the spans into rows, and shorten rows that are too long."""
        flat = plan.flatten(encoded)
        limits = np.array([limit.max_source_length for limit in plan.limits], np.int64)
        long = np.flatnonzero(flat.source_lengths > limits)
        if len(long):
            return self._shorten(flat, plan, long.tolist())
        return PairBatch(np.arange(len(limits)), *flat[:4], _answer_cuts(flat))

    def build(self, conversations: Sequence[Conversation], limits: Sequence[Limits]) -> PairBatch:
        """The pairs of a batch of answered conversations, in the same order."""
        plan = self.plan(conversations, limits)
        return self.assemble(plan, self.encode(plan))

    def _shorten(self, flat: FlatRows, plan: PlannedBatch, long: list[int]) -> PairBatch:
        """Replace the prompts of the rows `long` by shorter ones, and leave out rows that must be dropped."""
        stretches = []
        whole = Tokens(flat.input_ids, flat.labels)
        lengths, sources = np.diff(flat.ends), flat.source_lengths.copy()
        kept = np.ones(len(lengths), bool)
        cuts = _answer_cuts(flat)
        dropped = []
        copied = 0
        for row in long:
            start, end = flat.ends[row], flat.ends[row + 1]
            target = start + sources[row]
            stretches.append(whole.part(copied, start))
            shorter = self._truncator.shorten(plan.long_row(row, whole.part(start, target)), cuts[row])
            if isinstance(shorter, str):
                dropped.append(Dropped(row, shorter))
                kept[row], copied = False, end
            else:
                stretches.append(shorter)
                lengths[row] += len(shorter.ids) - sources[row]
                sources[row], copied = len(shorter.ids), target
        stretches.append(whole.part(copied))
        ids, labels = joined(*stretches)
        rows = np.flatnonzero(kept)
        kept_cuts = [cuts[row] for row in rows]
        return PairBatch(rows, ids, labels, row_ends_of(lengths[kept]), sources[kept], kept_cuts, dropped)


def _answer_cuts(flat: FlatRows) -> list[Counter[str]]:
    return [Counter(responses_cut=cut) if cut else Counter() for cut in flat.cut_answers.tolist()]
