"""Turns conversations into supervised token pairs.

    glm2:  [gMASK] sop A B </s>        the order of the released models
    llama: <s> A B </s>

A is the encoded prompt, and B is the encoded answer. Each label stands at the position of its own token, because the
model shifts the labels. Labels are `IGNORED` (-100) everywhere except on B and `</s>`. Labels are set by position, not
by id, because padding has the same id (0) as `<unk>`, and a real `<unk>` stays supervised.

With loss_on "every", the answers of all rounds are supervised in one pass over the prompt's text. The prompt's text has
no `</s>` between rounds. The end of an earlier answer is therefore taught only by a label, because the line end or role
token that follows the answer gets the label `</s>`. Each answer is encoded by itself, as the model writes it. The ids
at the answer's start and end may therefore differ from the ids that the whole text would have there.

An answer of `max_target_length` tokens or more is truncated to that length and gets no `</s>`. A prompt longer than
`max_source_length` is shortened by `truncation.py`.

`spans.py` builds the rows; the classes in this module call it step by step.
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
    """The pairs of some rows in flat arrays, in which row i is the slice `[ends[i] : ends[i + 1]]`.

    rows: the index of the conversation that each pair comes from. [B]
    input_ids, labels: int32. [tokens of all rows]
    ends: int64. [B + 1]
    source_lengths: number of tokens before the last answer. [B]
    row_cuts: for each row, the number of truncations of each kind. Dropped rounds and truncated answers are counted
        one by one, and every other kind counts once per row. [B]
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
        """The sum of `row_cuts` over all rows."""
        return sum(filter(None, self.row_cuts), Counter())

    @property
    def supervised_tokens(self) -> np.ndarray:
        """Number of labels in each row that are not ignored. [B]"""
        counted: np.ndarray = np.add.reduceat((self.labels != IGNORED).astype(np.int32), self.ends[:-1])
        return counted

    def segments(self, newline: int) -> tuple[np.ndarray, np.ndarray]:
        """Find where rounds and lines start: at the first token of each row, and at the first token after line breaks.

        The start of a supervised answer is left out, so that position stretching (text/stretch.py) never opens a gap
        between a question and its answer. With such a gap, a network would learn that the nearest question is not the
        one to answer.

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
        threads: number of threads for SentencePiece; None = one per core. The number of threads does not
            change the pairs.
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
        """Decide which texts to encode for a batch of answered conversations, and which of them each row needs."""
        plan = PlannedBatch(self._template, self._constants, conversations, limits)
        for conversation, limit in zip(conversations, limits, strict=True):
            plan.add(conversation, limit)
        return plan

    def encode(self, plan: PlannedBatch) -> list[np.ndarray]:
        """The ids of the plan's texts, from one call of SentencePiece, which is most of the work."""
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
        """Replace the prompts of the rows `long` with shorter prompts, and leave out rows that must be dropped."""
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
