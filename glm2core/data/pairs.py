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

An answer over `max_target_length` loses its end and its `</s>`; a prompt over `max_source_length`
is cut as `truncation` says:
    rounds  drop whole oldest rounds; then tokens from the middle of the text that the question is
            asked about, or of the question where it is all there is; the system text stays. A row
            whose question can't be kept whole beside its text is dropped.
    left    keep the last tokens (the original recipe's cut, behind the first special tokens)
    right   keep the first tokens (the released script's cut: loses the question's end and 答：)
    drop    drop the row
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
    open_round_pieces,
    round_head,
    round_parts,
    split_rounds,
    system_parts,
)
from glm2core.data.sp import EOS, SpTokenizer

IGNORED = -100
_LEAST_TEXT = 8  # a text of fewer tokens than this says nothing any more: the row is dropped

LossOn = Literal["last", "every"]
Truncation = Literal["rounds", "left", "right", "drop"]


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
            flat indices within rows (int32), and their ends a row. [B + 1]
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
        self.tokenizer = tokenizer
        self.template = template
        self.truncation = truncation
        self.threads = threads
        self._prefix = np.array(tokenizer.prefix_ids(pair_format), np.int32)
        self._end = np.array([EOS], np.int32)
        self._heads: dict[tuple[int, bool], list[np.ndarray]] = {}
        self._special = {name: np.array([token], np.int32) for name, token in tokenizer.special_ids.items()}

    def build(self, conversations: Sequence[Conversation], limits: Sequence[Limits]) -> PairBatch:
        """Pairs of a batch of answered conversations, in their order."""
        plans = _Plans(self.template)
        for conversation, limit in zip(conversations, limits, strict=True):
            plans.add(conversation, limit)
        encoded = self.tokenizer.encode_batch(plans.texts, self.threads)
        rows = _Rows()
        for row, (plan, limit) in enumerate(zip(plans.plans, limits, strict=True)):
            source, target = self._spans(plan, encoded, limit)
            if source.length > limit.max_source_length:
                shorter = self._shorten(source, plan, encoded, limit, conversations[row], rows.cuts)
                if isinstance(shorter, str):
                    rows.dropped.append(Dropped(row, shorter))
                    continue
                source = shorter
            rows.add(row, source, target)
        return rows.batch()

    def _spans(
        self, plan: "_Plan", encoded: list[np.ndarray], limit: Limits, first: int = 0
    ) -> tuple["_Spans", "_Spans"]:
        """Prompt and last answer of a row, without its rounds before `first`."""
        source, target = _Spans(), _Spans()
        source.prompt(self._prefix)
        for part, text in plan.system:
            self._add_part(source, part, encoded[text])
        for number, turn in enumerate(plan.rounds[first:], 1):
            for head in self._head(number, first=number == 1 and not plan.system):
                source.prompt(head)
            for part, text in turn.parts:
                self._add_part(source, part, encoded[text])
            if turn.answer is not None:
                into = target if number == len(plan.rounds) - first else source
                self._add_answer(into, encoded[turn.answer], limit)
        if target.pending_end:
            target.answer(self._end)
        return source, target

    def _add_part(self, spans: "_Spans", part: Part, ids: np.ndarray) -> None:
        if part.special:
            spans.prompt(self._special[part.special])
        spans.prompt(ids[1:] if part.continues else ids)

    def _add_answer(self, spans: "_Spans", ids: np.ndarray, limit: Limits) -> None:
        if len(ids) < limit.max_target_length:
            spans.answer(ids)
            spans.pending_end = True
        else:
            spans.answer(ids[: limit.max_target_length])
            spans.cut_answers += 1

    def _head(self, number: int, *, first: bool) -> list[np.ndarray]:
        if self.template == "chatglm3":
            return []
        found = self._heads.get((number, first))
        if found is None:
            found = [np.array(self.tokenizer.part_ids(round_head(number, first=first)), np.int32)]
            self._heads[number, first] = found
        return found

    def _shorten(
        self,
        source: "_Spans",
        plan: "_Plan",
        encoded: list[np.ndarray],
        limit: Limits,
        conversation: Conversation,
        cuts: Counter[str],
    ) -> "_Spans | str":
        """The prompt cut to `max_source_length`, or why its row is dropped."""
        room = limit.max_source_length
        if self.truncation == "drop":
            return "the prompt is over max_source_length"
        if self.truncation == "right":
            cuts["prompts_cut_right"] += 1
            return source.slice(0, room)
        if self.truncation == "left":
            cuts["prompts_cut_left"] += 1
            kept = max(room - len(self._prefix), 0)
            return _Spans.joined(source.slice(0, len(self._prefix)), source.slice(source.length - kept, source.length))
        return self._drop_rounds(plan, encoded, limit, conversation, cuts)

    def _drop_rounds(
        self, plan: "_Plan", encoded: list[np.ndarray], limit: Limits, conversation: Conversation, cuts: Counter[str]
    ) -> "_Spans | str":
        first, source = 0, self._spans(plan, encoded, limit)[0]
        while source.length > limit.max_source_length and first < len(plan.rounds) - 1:
            first += 1
            source = self._spans(plan, encoded, limit, first)[0]
        if source.length > limit.max_source_length:
            shorter = self._cut_middle(source, plan, limit, conversation)
            if isinstance(shorter, str):
                return shorter
            source = shorter
            cuts["texts_cut_in_the_middle"] += 1
        if first:
            cuts["prompts_without_oldest_rounds"] += 1
            cuts["rounds_dropped"] += first
        return source

    def _cut_middle(self, source: "_Spans", plan: "_Plan", limit: Limits, conversation: Conversation) -> "_Spans | str":
        """Take the excess out of the open round's text; `source` holds that round alone."""
        query = conversation.messages[-2]["content"]
        chars = len(query) if conversation.question_chars is None else conversation.question_chars
        pieces = open_round_pieces(self.template, query[:chars], query[chars:])
        question, text, end = (np.array(self.tokenizer.part_ids(piece), np.int32) for piece in pieces)
        before = source.slice(0, source.length - len(question) - len(text) - len(end))
        longest, fixed = (text, [question]) if len(text) else (question, [])
        room = limit.max_source_length - before.length - sum(map(len, fixed)) - len(end)
        if room < min(_LEAST_TEXT, len(longest)):
            return "the question alone is over max_source_length"
        kept = _Spans()
        for ids in (*fixed, longest[: room - room // 2], longest[len(longest) - room // 2 :], end):
            kept.prompt(ids)
        return _Spans.joined(before, kept)


class _Turn(NamedTuple):
    """One round: its parts and its supervised answer, each with the index of its text."""

    parts: list[tuple[Part, int]]
    answer: int | None


class _Plan(NamedTuple):
    system: list[tuple[Part, int]]
    rounds: list[_Turn]


class _Plans:
    """The texts of a batch, collected for one call of SentencePiece, and which row needs which."""

    def __init__(self, template: TemplateName) -> None:
        self.texts: list[str] = []
        self.plans: list[_Plan] = []
        self._template = template

    def add(self, conversation: Conversation, limit: Limits) -> None:
        system, rounds = split_rounds(conversation.messages)
        system_texts = [] if system is None else self._parts(system_parts(self._template, system))
        last = len(rounds)
        turns = []
        for number, (query, answer) in enumerate(rounds, 1):
            supervised = number == last or limit.loss_on == "every"
            parts = round_parts(self._template, number, query, None if supervised else answer, first=False)
            if self._template == "chatglm2":
                parts = parts[1:]  # the head depends on how many rounds are dropped
            assert answer is not None, "only answered conversations make pairs"
            turns.append(_Turn(self._parts(parts), self._text(answer) if supervised else None))
        self.plans.append(_Plan(system_texts, turns))

    def _parts(self, parts: list[Part]) -> list[tuple[Part, int]]:
        return [(part, self._text(part.text)) for part in parts]

    def _text(self, text: str) -> int:
        self.texts.append(text)
        return len(self.texts) - 1


class _Spans:
    """A stretch of a row as arrays to be joined: ids and, beside them, labels."""

    __slots__ = ("cut_answers", "ids", "labels", "length", "pending_end")

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.length = 0
        self.cut_answers = 0
        self.pending_end = False  # the next token's label is the end of the answer before it

    def prompt(self, ids: np.ndarray) -> None:
        labels = _ignored(len(ids))
        if self.pending_end and len(ids):
            labels = labels.copy()
            labels[0] = EOS
            self.pending_end = False
        self._add(ids, labels)

    def answer(self, ids: np.ndarray) -> None:
        self._add(ids, ids)

    def slice(self, start: int, end: int) -> "_Spans":
        part = _Spans()
        part.cut_answers = self.cut_answers if end == self.length else 0
        if end > start:
            part._add(np.concatenate(self.ids)[start:end], np.concatenate(self.labels)[start:end])
        return part

    @staticmethod
    def joined(*parts: "_Spans") -> "_Spans":
        whole = _Spans()
        for part in parts:
            whole.cut_answers += part.cut_answers
            for ids, labels in zip(part.ids, part.labels, strict=True):
                whole._add(ids, labels)
        return whole

    def _add(self, ids: np.ndarray, labels: np.ndarray) -> None:
        self.ids.append(ids)
        self.labels.append(labels)
        self.length += len(ids)


class _Rows:
    """The rows of a batch, growing."""

    def __init__(self) -> None:
        self.cuts: Counter[str] = Counter()
        self.dropped: list[Dropped] = []
        self._ids: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._rows: list[int] = []
        self._ends = [0]
        self._sources: list[int] = []

    def add(self, row: int, source: _Spans, target: _Spans) -> None:
        self._ids += source.ids + target.ids
        self._labels += source.labels + target.labels
        if cut := source.cut_answers + target.cut_answers:
            self.cuts["responses_cut"] += cut
        self._rows.append(row)
        self._sources.append(source.length)
        self._ends.append(self._ends[-1] + source.length + target.length)

    def batch(self) -> PairBatch:
        empty = np.zeros(0, np.int32)
        return PairBatch(
            rows=np.array(self._rows, np.int64),
            input_ids=np.concatenate([empty, *self._ids]),
            labels=np.concatenate([empty, *self._labels]),
            ends=np.array(self._ends, np.int64),
            source_lengths=np.array(self._sources, np.int64),
            cuts=self.cuts,
            dropped=self.dropped,
        )


_IGNORED_RUN = np.full(4096, IGNORED, np.int32)
_IGNORED_RUN.flags.writeable = False


def _ignored(length: int) -> np.ndarray:
    return _IGNORED_RUN[:length] if length <= len(_IGNORED_RUN) else np.full(length, IGNORED, np.int32)
