"""Conversations -> supervised token pairs.

    glm2:  [gMASK] sop A B </s>        the released model's own order
    llama: <s> A B </s>

A is the encoded prompt, B the encoded answer. Labels stand at their token's own place (the model
shifts them), are -100 over everything but B and `</s>`, and are set by position: padding's id 0 is
`<unk>`'s too, and a real `<unk>` stays supervised.

With loss_on "every", the answers of all rounds are supervised in one pass over the prompt's own
text, which has no `</s>` between rounds: the end of an earlier answer is taught by a label alone,
`</s>` in place of the line end or role token that follows it. Each answer is encoded by itself, as
the model writes it, so ids at its borders may differ from those of the whole text at once.

An answer of `max_target_length` tokens or more is cut to that length and gets no `</s>`. A prompt
over `max_source_length` is cut by `truncation.py`.

A batch is encoded in one call and laid out by array arithmetic: a row is a sequence of spans, and
a span is a stretch of one long array of ids.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from glm2core.data.conversation import Conversation
from glm2core.data.prompt import (
    PairFormat,
    Part,
    TemplateName,
    has_heads,
    round_head,
    round_parts,
    split_rounds,
    system_parts,
)
from glm2core.data.sp import EOS, SpTokenizer
from glm2core.data.truncation import IGNORED, LongRow, Truncation, Truncator

__all__ = ["IGNORED", "Dropped", "Limits", "LossOn", "PairBatch", "PairBuilder", "Truncation"]

LossOn = Literal["last", "every"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What may differ from source to source; lengths in tokens."""

    max_source_length: int
    max_target_length: int
    loss_on: LossOn


class Dropped(NamedTuple):
    """A row that made no pair."""

    row: int
    reason: str


@dataclass
class PairBatch:
    """Pairs of some rows, flat; row i is `[ends[i] : ends[i + 1]]`.

    rows: which of the given conversations each pair comes from. [B]
    input_ids, labels: int32. [tokens of all rows]
    ends: int64. [B + 1]
    source_lengths: tokens before the last answer. [B]
    cuts: how many rows (or rounds, or answers) lost something, by kind.
    """

    rows: np.ndarray
    input_ids: np.ndarray
    labels: np.ndarray
    ends: np.ndarray
    source_lengths: np.ndarray
    cuts: Counter[str] = field(default_factory=Counter)
    dropped: list[Dropped] = field(default_factory=list)

    def segments(self, newline: int) -> tuple[np.ndarray, np.ndarray]:
        """Where rounds and lines start in each row: its first token and each one behind a line end.

        Returns:
            indices within their rows (int32), and their ends a row. [B + 1]
        """
        starts = np.zeros(len(self.input_ids), bool)
        starts[1:] = self.input_ids[:-1] == newline
        starts[self.ends[:-1]] = True
        places = np.flatnonzero(starts)
        ends = np.searchsorted(places, self.ends)
        within = places - np.repeat(self.ends[:-1], np.diff(ends))
        return within.astype(np.int32), ends


class PairBuilder:
    """Makes pairs with one tokenizer and one wording.

    Args:
        threads: SentencePiece's; None = one a core. The pairs are the same for any number.
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
        self._constants = _Constants(tokenizer, tokenizer.prefix_ids(pair_format))
        self._truncator = Truncator(tokenizer, template, truncation)

    def plan(self, conversations: Sequence[Conversation], limits: Sequence[Limits]) -> "PlannedBatch":
        """Render a batch of answered conversations: which texts to encode, and which row needs which."""
        plan = PlannedBatch(self._template, self._constants, conversations, limits)
        for conversation, limit in zip(conversations, limits, strict=True):
            plan.add(conversation, limit)
        return plan

    def encode(self, plan: "PlannedBatch") -> list[np.ndarray]:
        """Ids of the plan's texts: one call of SentencePiece, the bulk of the work."""
        return self._tokenizer.encode_batch(plan.texts, self._threads)

    def assemble(self, plan: "PlannedBatch", encoded: list[np.ndarray]) -> PairBatch:
        """Lay the spans out as rows, and cut what is too long."""
        batch = plan.lay_out(encoded)
        limits = np.array([limit.max_source_length for limit in plan.limits], np.int64)
        long = np.flatnonzero(batch.source_lengths > limits)
        return self._shorten(batch, plan, long.tolist()) if len(long) else batch

    def build(self, conversations: Sequence[Conversation], limits: Sequence[Limits]) -> PairBatch:
        """Pairs of a batch of answered conversations, in their order."""
        plan = self.plan(conversations, limits)
        return self.assemble(plan, self.encode(plan))

    def _shorten(self, batch: PairBatch, plan: "PlannedBatch", long: list[int]) -> PairBatch:
        """Put shorter prompts in place of those of the rows `long`, and leave dropped rows out."""
        ids, labels = [], []
        lengths, sources = np.diff(batch.ends), batch.source_lengths.copy()
        kept = np.ones(len(lengths), bool)
        copied = 0
        for row in long:
            start, end = batch.ends[row], batch.ends[row + 1]
            target = start + sources[row]
            ids.append(batch.input_ids[copied:start])
            labels.append(batch.labels[copied:start])
            long_row = plan.long_row(row, batch.input_ids[start:target], batch.labels[start:target])
            shorter = self._truncator.shorten(long_row, batch.cuts)
            if isinstance(shorter, str):
                batch.dropped.append(Dropped(row, shorter))
                batch.cuts["responses_cut"] -= plan.cut_answers(row)
                kept[row], copied = False, end
                continue
            ids.append(shorter.ids)
            labels.append(shorter.labels)
            lengths[row] += len(shorter.ids) - sources[row]
            sources[row] = len(shorter.ids)
            copied = target
        ids.append(batch.input_ids[copied:])
        labels.append(batch.labels[copied:])
        return PairBatch(
            rows=batch.rows[kept],
            input_ids=np.concatenate(ids),
            labels=np.concatenate(labels),
            ends=_ends(lengths[kept]),
            source_lengths=sources[kept],
            cuts=+batch.cuts,
            dropped=batch.dropped,
        )


class _Constants:
    """Spans that are the same in every row; number n is span -1 - n, counted from the table's end."""

    def __init__(self, tokenizer: SpTokenizer, prefix: list[int]) -> None:
        self.arrays: list[np.ndarray] = []
        self._tokenizer = tokenizer
        self._heads: dict[tuple[int, bool], int] = {}
        self.prefix = self._add(prefix)
        self.end = self._add([EOS])
        self.special = {name: self._add([token]) for name, token in tokenizer.special_ids.items()}

    def head(self, number: int, *, first: bool) -> int:
        found = self._heads.get((number, first))
        if found is None:
            found = self._add(self._tokenizer.part_ids(round_head(number, first=first)))
            self._heads[number, first] = found
        return found

    def _add(self, ids: list[int]) -> int:
        self.arrays.append(np.array(ids, np.int32))
        return -len(self.arrays)


class PlannedBatch:
    """The texts of a batch, for one call of SentencePiece, and each row as a sequence of spans."""

    def __init__(
        self,
        template: TemplateName,
        constants: _Constants,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
    ) -> None:
        self.texts: list[str] = []
        self.limits = limits
        self._conversations = conversations
        self._template = template
        self._constants = constants
        self._skipped: list[bool] = []  # of each text: leave out its first id
        self._answer_limits: list[int] = []  # of each text: tokens of an answer; 0 = not supervised
        self._spans: list[int] = []
        self._row_ends: list[int] = [0]
        self._rounds: list[list[int]] = []  # of each row: the spans where its rounds start
        self._offsets = np.zeros(0, np.int64)
        self._cut = np.zeros(0, bool)

    def add(self, conversation: Conversation, limit: Limits) -> None:
        """A row: prefix, system text, rounds with their answers, `</s>`."""
        assert conversation.answered, "only answered conversations make pairs"
        spans, constants, template = self._spans, self._constants, self._template
        system, rounds = split_rounds(conversation.messages)
        spans.append(constants.prefix)
        if system is not None:
            self._add_parts(system_parts(template, system))
        starts = []
        last = len(rounds)
        for number, (query, answer) in enumerate(rounds, 1):
            starts.append(len(spans))
            if has_heads(template):
                spans.append(constants.head(number, first=number == 1 and system is None))
            supervised = number == last or limit.loss_on == "every"
            self._add_parts(round_parts(template, query, None if supervised else answer))
            if supervised:
                self._add_text(str(answer), skipped=False, answer_limit=limit.max_target_length)
        spans.append(constants.end)
        self._rounds.append(starts)
        self._row_ends.append(len(spans))

    def lay_out(self, encoded: list[np.ndarray]) -> PairBatch:
        """All rows, uncut on the prompt's side.

        Args:
            encoded: ids of each of `texts`.
        """
        arrays = [*encoded, *reversed(self._constants.arrays)]
        flat = np.concatenate(arrays)
        starts = _ends(np.fromiter(map(len, arrays), np.int64, len(arrays)))
        lengths = np.diff(starts)
        starts = starts[:-1]
        texts = len(encoded)
        starts[:texts] += self._skipped
        lengths[:texts] -= self._skipped
        limits = np.zeros(len(arrays), np.int64)
        limits[:texts] = self._answer_limits
        cut = (limits > 0) & (lengths >= limits)
        lengths[cut] = limits[cut]

        spans, row_ends = np.array(self._spans, np.int64), np.array(self._row_ends, np.int64)
        span_lengths = lengths[spans]
        is_answer = limits[spans] > 0
        self._cut = cut[spans]
        last_answers = row_ends[1:] - 2
        span_lengths[last_answers + 1] = ~self._cut[last_answers]  # a cut answer gets no </s>
        offsets = self._offsets = _ends(span_lengths)

        places = np.repeat(starts[spans] - offsets[:-1], span_lengths) + np.arange(offsets[-1])
        input_ids = flat[places]
        labels = np.where(np.repeat(is_answer, span_lengths), input_ids, np.int32(IGNORED))
        whole_answers = np.flatnonzero(is_answer & ~self._cut)
        labels[offsets[whole_answers + 1]] = EOS  # the token behind an answer
        ends = offsets[row_ends]
        return PairBatch(
            rows=np.arange(len(self._rounds)),
            input_ids=input_ids,
            labels=labels,
            ends=ends,
            source_lengths=offsets[last_answers] - ends[:-1],
            cuts=+Counter(responses_cut=int(self._cut.sum())),
        )

    def long_row(self, row: int, ids: np.ndarray, labels: np.ndarray) -> LongRow:
        """What `truncation.py` needs to know of a row; `ids`, `labels`: its prompt."""
        first_span = self._row_ends[row]
        rounds = self._rounds[row]
        starts = self._offsets[rounds] - self._offsets[first_span]
        return LongRow(
            conversation=self._conversations[row],
            max_length=self.limits[row].max_source_length,
            ids=ids,
            labels=labels,
            prefix=int(self._offsets[first_span + 1] - self._offsets[first_span]),
            round_starts=starts.tolist(),
            head_lengths=[int(n) for n in np.diff(self._offsets)[self._rounds[row]]]
            if has_heads(self._template)
            else [],
        )

    def cut_answers(self, row: int) -> int:
        return int(self._cut[self._row_ends[row] : self._row_ends[row + 1]].sum())

    def _add_parts(self, parts: list[Part]) -> None:
        for text, special, continues in parts:
            if special:
                self._spans.append(self._constants.special[special])
            self._add_text(text, skipped=continues, answer_limit=0)

    def _add_text(self, text: str, *, skipped: bool, answer_limit: int) -> None:
        self._spans.append(len(self.texts))
        self.texts.append(text)
        self._skipped.append(skipped)
        self._answer_limits.append(answer_limit)


def _ends(lengths: np.ndarray) -> np.ndarray:
    """Where stretches of such lengths end, after a first 0."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends
