"""Retrieval cases: one context, many questions about it, each at a known depth.

- `lines`: LongEval's wording (`glm2core.lines.records`), its keys and values never trained on.
- `passkey`: one number hidden in plain text (after Mohtashami & Jaggi 2023), so one question a context.
- `multikey`: many named numbers in plain text, each asked for (after RULER's multi-key needles).
- LongEval's own `*_lines.jsonl`, asked word for word.

Context ends and question starts at a line break, where no token spans the border: the context's
tokens are the same whatever is asked, and are read once for all its questions.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.files import refuse_lfs_pointer
from glm2core.lines.records import (
    RECORD_OVER,
    Line,
    colliding,
    draw_lines,
    largest_fitting,
    make_record,
    parse_record,
    question_text,
    record_text,
)
from glm2core.lines.words import pool

CountTokens = Callable[[str], int]  # text of a user's message -> tokens of the whole prompt

_PASSKEY_HEADER = "A pass key is hidden in the text below. Find it and remember it.\n\n"
_PASSKEY_QUESTION = "What is the pass key? Answer with the number."
_MULTIKEY_HEADER = "Access codes of several stations are hidden in the text below. Remember all of them.\n\n"
_FILLER = (
    "The ferry leaves the pier when the bell has rung twice.",
    "Rain fell on the roofs until the gutters sang.",
    "A baker opens her shutters before the street is awake.",
    "Two herons stand in the shallow end of the pond.",
    "The old clock in the hall is a little slow in winter.",
    "Somebody left a blue umbrella on the bench again.",
    "Bread cools on the sill while the kettle hums.",
    "The path climbs past the mill and ends at a gate.",
    "Children fly paper kites where the meadow is widest.",
    "A cat sleeps on the ledger and nobody moves it.",
    "The tailor counts his buttons and begins once more.",
    "Lanterns swing along the quay when the wind turns.",
)


@dataclass(frozen=True)
class Question:
    text: str
    expected: int
    depth: float  # middle of the asked piece: 0 = start of the context, 1 = its end
    colliding: bool


@dataclass(frozen=True)
class Case:
    task: str
    length: int  # tokens asked for, prompt and question included; 0 for cases read from a file
    index: int  # of the context within task and length
    context: str
    questions: tuple[Question, ...]
    chance: float


class LengthTooShortError(UserError):
    """A task does not fit into a context of this length, by this tokenizer."""


@dataclass(frozen=True)
class GeneratedCases:
    """Cases of every task and length: `contexts * questions` questions each, equally many at each depth.

    A context too short for all its questions takes fewer, and more contexts are made. `passkey` has one
    question a context, and `contexts` contexts at each depth.

    Args:
        tasks: of lines, passkey, multikey.
        lengths: of whole prompts, in tokens.
        questions: on each context; a multiple of `depths`.
        depths: parts of a context that are asked about equally often.
    """

    tasks: Sequence[str]
    lengths: Sequence[int]
    contexts: int
    questions: int
    depths: int
    seed: int

    def cases(self, count_tokens: CountTokens, notice: Notice = print) -> Iterator[Case]:
        """Make them.

        Args:
            notice: is told of each length that is left out, as it is too short for a task (a small tokenizer
                spends more tokens on a line).

        Raises:
            LengthTooShortError: no length is long enough for any task.
        """
        too_short, fits = None, False
        for task, length in itertools.product(self.tasks, sorted(set(self.lengths))):
            try:
                for case in self._cases(task, length, count_tokens):
                    fits = True
                    yield case
            except LengthTooShortError as error:
                too_short = too_short or error
                notice(f"left out: {error}")
        if too_short is not None and not fits:
            raise too_short

    @property
    def questions_in_all(self) -> int:
        """How many questions they ask where every length is long enough."""
        return len(set(self.lengths)) * sum(map(self.questions_of, self.tasks))

    def _cases(self, task: str, length: int, count_tokens: CountTokens) -> Iterator[Case]:
        build = {"lines": _lines_case, "multikey": _multikey_case, "passkey": _passkey_case}[task]
        left = self.questions_of(task)
        for index in itertools.count():
            rng = random.Random(f"{task} {self.seed} {length} {index}")
            case = build(rng, self.depths, length, index, min(left, self.questions), count_tokens)
            yield case
            left -= len(case.questions)
            if not left:
                return

    def questions_of(self, task: str) -> int:
        """How many questions a task asks at each length."""
        return self.contexts * (self.depths if task == "passkey" else self.questions)


def read_longeval(path: Path) -> list[Case]:
    """LongEval's own cases, a context and a question each; the task is named after the file.

    Raises:
        UserError: the file is missing, or a row is not one of LongEval's.
    """
    if not path.is_file():
        raise UserError(f"evaluate.retrieval.files: {path} does not exist. Give LongEval's *_lines.jsonl files.")
    refuse_lfs_pointer(path)
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines()
    cases = [_longeval_case(row, index, path) for index, row in enumerate(rows) if row.strip()]
    if not cases:
        raise UserError(f"{path} holds no cases. Take the file as LongEval ships it.")
    return cases


def _lines_case(rng: random.Random, depths: int, length: int, index: int, most: int, count: CountTokens) -> Case:
    words = pool("evaluation")
    longest = f"{max(words.adjectives, key=len)}-{max(words.nouns, key=len)}"
    ending = RECORD_OVER + question_text(longest)
    record = make_record(rng, length, lambda text: count(text + ending))
    asked = _spread(rng, len(record), depths, most)
    if not asked:
        raise _too_short("lines", length, f"holds {len(record)} lines, and each depth needs one")
    collides = colliding(record)
    questions = [
        Question(
            text=RECORD_OVER + question_text(record[place].key),
            expected=record[place].value,
            depth=(place + 0.5) / len(record),
            colliding=collides[place],
        )
        for place in asked
    ]
    return Case("lines", length, index, record_text(record), tuple(questions), _chance(record))


def _multikey_case(rng: random.Random, depths: int, length: int, index: int, most: int, count: CountTokens) -> Case:
    filler = _filler(rng)
    stations = draw_lines(rng, most, pool("evaluation"))
    while stations:
        needles = [f"The access code of station {station.key} is {station.value}." for station in stations]
        ending = max((_code_question(station) for station in stations), key=len)
        context = _fill(_MULTIKEY_HEADER, filler, needles, ending, length, count)
        if context is not None:
            break
        stations = stations[:-depths]
    else:
        raise _too_short("multikey", length, f"does not hold {depths} needles and a sentence around each")
    collides = colliding(stations)
    questions = [
        Question(_code_question(station), station.value, (place + 0.5) / len(stations), collides[place])
        for place, station in enumerate(stations)
    ]
    return Case("multikey", length, index, context, tuple(questions), _chance(stations))


def _passkey_case(rng: random.Random, depths: int, length: int, index: int, most: int, count: CountTokens) -> Case:
    value = rng.choice(pool("evaluation").values)
    row = index % depths
    needle = f"The pass key is {value}. Remember that {value} is the pass key."
    needles = [needle if part == row else "" for part in range(depths)]
    context = _fill(_PASSKEY_HEADER, _filler(rng), needles, _PASSKEY_QUESTION, length, count)
    if context is None:
        raise _too_short("passkey", length, f"does not hold the needle and {depths} sentences")
    question = Question(_PASSKEY_QUESTION, value, (row + 0.5) / depths, colliding=False)
    return Case("passkey", length, index, context, (question,), 1 / len(pool("evaluation").values))


def _longeval_case(row: str, index: int, path: Path) -> Case:
    try:
        fields = json.loads(row)
        prompt, expected, place = fields["prompt"], int(fields["expected_number"]), int(fields["random_idx"][1])
        context, question = _split_longeval(prompt)
        record = parse_record(context)
        line = record[place]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}, line {index + 1}: not a case of LongEval's lines task ({type(error).__name__}: {error}). "
            "It needs prompt, expected_number and random_idx, as in longeval/evaluation/lines/testcases."
        ) from None
    if line.value != expected:
        raise UserError(
            f"{path}, line {index + 1}: expected_number is {expected}, but line {place} of the record says "
            f"{line.value}. Take the file as LongEval ships it."
        )
    collides = colliding(record)[place]
    asked = Question(question, expected, (place + 0.5) / len(record), collides)
    return Case(f"longeval_{path.stem}", 0, index, context, (asked,), _chance(record))


def _split_longeval(prompt: str) -> tuple[str, str]:
    context, over, question = prompt.rpartition(RECORD_OVER)
    if not over:
        raise ValueError(f"the prompt lacks {RECORD_OVER.strip()!r}")
    return context, over + question


def _spread(rng: random.Random, pieces: int, depths: int, most: int) -> list[int]:
    """Indices of at most `most` pieces, equally many from each depth's row, none twice."""
    rows: list[list[int]] = [[] for _ in range(depths)]
    for piece in range(pieces):
        rows[int((piece + 0.5) / pieces * depths)].append(piece)
    each = min(most // depths, min(map(len, rows)))
    return [piece for row in rows for piece in sorted(rng.sample(row, each))]


def _fill(
    header: str,
    filler: Callable[[int], list[str]],
    needles: Sequence[str],
    ending: str,
    length: int,
    count: CountTokens,
) -> str | None:
    """The needles among as much filler as fits; None where that is less than a sentence a needle."""
    sentences = largest_fitting(lambda number: count(_hide(header, filler(number), needles) + ending), length)
    return _hide(header, filler(sentences), needles) if sentences >= len(needles) else None


def _too_short(task: str, length: int, reason: str) -> LengthTooShortError:
    return LengthTooShortError(
        f"evaluate.retrieval.lengths: {length} is too short for task {task}: a prompt of {length} tokens {reason}. "
        "Raise the length, or lower evaluate.retrieval.depths."
    )


def _hide(header: str, sentences: Sequence[str], needles: Sequence[str]) -> str:
    """Each needle in the middle of its equal part of the text, a sentence a line; "" leaves a part without."""
    text: list[str] = []
    for part, needle in enumerate(needles):
        start, stop = (len(sentences) * (part + step) // len(needles) for step in (0, 1))
        middle = (start + stop) // 2
        text += [*sentences[start:middle], *([needle] if needle else []), *sentences[middle:stop]]
    return header + "".join(f"{sentence}\n" for sentence in text) + "\n"


def _filler(rng: random.Random) -> Callable[[int], list[str]]:
    order = rng.sample(_FILLER, len(_FILLER))
    return lambda count: [order[place % len(order)] for place in range(count)]


def _code_question(station: Line) -> str:
    return f"What is the access code of station {station.key}? Answer with the number."


def _chance(record: Sequence[Line]) -> float:
    return 1 / len({line.value for line in record})
