"""Plans a batch as rows of spans, so that one call encodes all its texts and array operations build all its rows.

A span is a slice of one long array of ids. The slice holds an encoded text, or a constant such as a round's head. The
following example has two rows, (Tea? -> Yes) and (2 + 2 -> 4, + 1 -> 5). In it, every answer is supervised, the
texts are encoded by the tests' tokenizer, and / stands for a line end:

    texts      0 "//问：Tea?//答："   1 "Yes"   2 "//问：2 + 2//答："   3 "4"   4 "//问：+ 1//答："   5 "5"
    constants  -1 [gMASK] sop     -2 </s>     -15 [Round 1]     -16 //[Round 2]
    lengths    texts 12 3 12 2 11 2 (a text that continues another leaves out its first id), constants 2 1 5 7
    spans      -1 -15  0  1 -2   -1 -15  2  3 -16  4  5 -2
    offsets     0   2  7 19 22   23  25 30 42  44 51 62 64  (65)
    rows       [0:23] and [23:65], with 19 and 39 tokens before their last answers
    labels     ids at 19:23, 42:44 and 62:65; `</s>` at 44, where span -16 has its first line end

The source array holds the texts' ids, then the constants in reverse order, so that span -1 is the last slice. One
index array, `places`, copies all spans of the batch out of the source array. A truncated answer is a shorter span,
followed by an empty `</s>` span.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from glm2core.conversation import Conversation
from glm2core.labels import IGNORED
from glm2core.text.prompt import Part, TemplateName, has_heads, round_head, round_parts, split_rounds, system_parts
from glm2core.text.tokenizer import EOS, SpTokenizer
from glm2core.text.truncation import LongRow, Tokens

LossOn = Literal["last", "every"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings that may differ between sources; lengths are in tokens."""

    max_source_length: int
    max_target_length: int
    loss_on: LossOn


class FlatRows(NamedTuple):
    """Concatenated rows, in which row i is the slice `[ends[i] : ends[i + 1]]`.

    input_ids, labels: int32. [tokens of all rows]
    ends: int64. [B + 1]
    source_lengths: number of tokens before the last answer. [B]
    cut_answers: number of truncated answers in each row. [B]
    """

    input_ids: np.ndarray
    labels: np.ndarray
    ends: np.ndarray
    source_lengths: np.ndarray
    cut_answers: np.ndarray


class SpanConstants:
    """Spans whose ids never change. Constant n is span -1 - n, counted from the end of the source array."""

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
    """The texts of a batch, which one call of SentencePiece encodes, and each row as a sequence of spans."""

    def __init__(
        self,
        template: TemplateName,
        constants: SpanConstants,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
    ) -> None:
        self.texts: list[str] = []
        self.limits = limits
        self._conversations = conversations
        self._template = template
        self._constants = constants
        self._skipped: list[bool] = []  # for each text, whether to leave out its first id
        self._answer_limits: list[int] = []  # for each text, the limit of an answer in tokens; 0 = not supervised
        self._spans: list[int] = []
        self._row_ends: list[int] = [0]
        self._rounds: list[list[int]] = []  # for each row, the spans at which its rounds start
        self._offsets = np.zeros(0, np.int64)

    def add(self, conversation: Conversation, limit: Limits) -> None:
        """Add a row: its prefix, system text, rounds with their answers, and `</s>`."""
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

    def flatten(self, encoded: list[np.ndarray]) -> FlatRows:
        """Build all rows, without shortening prompts.

        Args:
            encoded: the ids of each text in `texts`.
        """
        arrays = [*encoded, *reversed(self._constants.arrays)]
        flat = np.concatenate(arrays)
        starts = row_ends_of(np.fromiter(map(len, arrays), np.int64, len(arrays)))
        lengths = np.diff(starts)
        starts = starts[:-1]
        texts = len(encoded)
        skipped = np.array(self._skipped, np.int64)
        starts[:texts] += skipped
        lengths[:texts] -= skipped
        limits = np.zeros(len(arrays), np.int64)
        limits[:texts] = self._answer_limits
        cut = (limits > 0) & (lengths >= limits)
        lengths[cut] = limits[cut]

        spans, row_ends = np.array(self._spans, np.int64), np.array(self._row_ends, np.int64)
        span_lengths = lengths[spans]
        is_answer = limits[spans] > 0
        is_cut = cut[spans]
        last_answers = row_ends[1:] - 2
        span_lengths[last_answers + 1] = ~is_cut[last_answers]  # a cut answer gets no </s>
        offsets = self._offsets = row_ends_of(span_lengths)

        places = np.repeat(starts[spans] - offsets[:-1], span_lengths) + np.arange(offsets[-1])
        input_ids = flat[places]
        labels = np.where(np.repeat(is_answer, span_lengths), input_ids, np.int32(IGNORED))
        whole_answers = np.flatnonzero(is_answer & ~is_cut)
        labels[offsets[whole_answers + 1]] = EOS  # the token after an answer
        ends = offsets[row_ends]
        cut_answers = np.add.reduceat(is_cut.astype(np.int64), row_ends[:-1])
        return FlatRows(input_ids, labels, ends, offsets[last_answers] - ends[:-1], cut_answers)

    def long_row(self, row: int, prompt: Tokens) -> LongRow:
        """What `truncation.py` needs to know about a flattened row."""
        first_span = self._row_ends[row]
        rounds = self._rounds[row]
        starts = self._offsets[rounds] - self._offsets[first_span]
        return LongRow(
            conversation=self._conversations[row],
            max_length=self.limits[row].max_source_length,
            tokens=prompt,
            prefix=int(self._offsets[first_span + 1] - self._offsets[first_span]),
            round_starts=starts.tolist(),
            head_lengths=np.diff(self._offsets)[rounds].tolist() if has_heads(self._template) else [],
        )

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


def row_ends_of(lengths: np.ndarray) -> np.ndarray:
    """Lay slices of these lengths one after another; returns 0, then the end of each slice."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends
