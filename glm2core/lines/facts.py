"""Makes RULER's kinds of facts and LongEval's topics, each with its question, and the lines that hide such facts.

`niah_single_1` hides one key among unrelated sentences, and asks for its number.
`niah_multikey_2` asks for the number of one of many keys.
`niah_multikey_3` asks for the uuid that belongs to one of many keys.
`niah_multivalue` asks for all four numbers of one key.
`niah_multiquery` asks for the numbers of four keys.
`vt` asks for all variables in a chain of 1, 2 or 4 assignments.
`fwe` asks for the three most frequent coded words.
`topics` asks for the first of several topics, as in LongEval (DachengLi1/LongChat).
The structure of all tasks but `topics`, and their counts, are RULER's (arXiv:2404.06654).
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from glm2core.lines.draws import Draws
from glm2core.lines.records import question_text
from glm2core.lines.wordings import Wording

Sort = Literal["line", "hidden", "number", "token", "station", "assignment", "coded", "topic", "noise"]

ONCE = ("niah_single_1", "fwe", "topics")  # kinds with one question per record
HOPS = (1, 2, 4)
LEAST_CODED_LINES = 5
_VALUES = 4
_FREQUENT = 3
_TOPICS = 5  # as in the shortest of LongEval's files
_CODED_WORDS = 6  # in a line
_DOTS = "..."
_ZETA_2 = 1.6449
_HAYSTACKS: dict[str, Sort] = {"lines": "line", "niah_multikey_2": "number", "niah_multikey_3": "token", "fwe": "coded"}


@dataclass(frozen=True)
class Fact:
    """Some lines of a record, and one question about them.

    Args:
        kind: the kind's name in tables, which for vt includes the number of hops, as in `vt_2`.
        sort: the type of these lines.
        lines: the fact's lines in the order of the record, in which other lines stand between them.
        question: the question about these lines.
        references: what an answer must contain, in the order in which `answer` contains it.
        answer: the expected answer, which repeats these lines, because small models learn to copy lines long before
            they learn to name only a part of a line.
    """

    kind: str
    sort: Sort
    lines: tuple[str, ...]
    question: str
    references: tuple[str, ...]
    answer: str


def facts(kind: str, draws: Draws, wording: Wording, start: int = 0) -> Iterator[Fact]:
    """Yield an endless stream of facts of a kind (`FactKind`).

    There are exceptions: only one fact of niah_single_1 and of topics is yielded, and none of fwe, which `coded_lines`
    makes.

    Args:
        start: number of vt facts that were made earlier, which decides how many hops the next vt fact has.
    """
    match kind:
        case "lines":
            return (_line_fact(draws) for _ in itertools.count())
        case "niah_single_1":
            return iter([_single(draws, wording)])
        case "niah_multikey_2":
            return (_number(draws, wording) for _ in itertools.count())
        case "niah_multikey_3":
            return (_token(draws, wording) for _ in itertools.count())
        case "niah_multivalue":
            return (_values(draws, wording) for _ in itertools.count())
        case "niah_multiquery":
            return _queries(draws, wording)
        case "topics":
            return iter([_first_topic(draws, wording)])
        case "vt":
            return (_chain(draws, wording, HOPS[number % len(HOPS)]) for number in itertools.count(start))
        case _:
            return iter([])


def coded_lines(seed: int, words: Sequence[str], wording: Wording, count: int) -> tuple[list[str], Fact]:
    """Make `count` lines of coded words, and the fact about these words.

    A word's frequency is inversely proportional to the square of its rank.

    Args:
        seed: the seed that decides the order of the words.
        words: the coded words, from the most to the least frequent; only dots are even more frequent.
        count: number of lines, at least `LEAST_CODED_LINES`.
    """
    total = _CODED_WORDS * count
    counts = [int(total / _ZETA_2 / rank**2) for rank in range(2, len(words) + 2)]
    rare = counts[_FREQUENT - 1] - 1
    counts = [*counts[:_FREQUENT], *(min(number, rare) for number in counts[_FREQUENT:])]
    text = [word for word, number in zip(words, counts, strict=True) for _ in range(number)]
    text += [_DOTS] * (total - len(text))
    random.Random(seed).shuffle(text)
    lines = [
        wording.coded.format(words=" ".join(text[start : start + _CODED_WORDS]))
        for start in range(0, total, _CODED_WORDS)
    ]
    frequent = tuple(words[:_FREQUENT])
    return lines, Fact("fwe", "coded", (), wording.coded_question, frequent, " ".join(frequent))


def haystack_sort(kind: str) -> Sort:
    """Return the type of the lines among which facts of a kind are hidden: the facts' own type, or noise."""
    return _HAYSTACKS.get(kind, "noise")


def haystack(sort: Sort, draws: Draws, wording: Wording, *, invented: bool) -> Iterator[str]:
    """Yield an endless stream of lines that no question asks about.

    Args:
        invented: whether every second sentence of noise consists of invented words.
    """
    make: dict[Sort, Callable[[], str]] = {
        "line": lambda: draws.line().text,
        "number": lambda: _number(draws, wording).lines[0],
        "token": lambda: _token(draws, wording).lines[0],
    }
    if sort in make:
        return (make[sort]() for _ in itertools.count())
    noise = draws.rng.sample(wording.noise, len(wording.noise))
    sentences = itertools.cycle(noise)
    return (draws.sentence() if invented and place % 2 else next(sentences) for place in itertools.count())


def _line_fact(draws: Draws) -> Fact:
    line = draws.line()
    return Fact("lines", "line", (line.text,), question_text(line.key), (str(line.value),), line.text)


def _single(draws: Draws, wording: Wording) -> Fact:
    key, value = draws.key(), draws.number()
    line = wording.hidden.format(key=key, value=value)
    return Fact("niah_single_1", "hidden", (line,), wording.hidden_question.format(key=key), (value,), line)


def _first_topic(draws: Draws, wording: Wording) -> Fact:
    labels = [f"{line.adjective} {line.noun}" for line in (draws.line() for _ in range(_TOPICS))]
    lines = tuple(wording.topic.format(topic=label) for label in labels)
    return Fact("topics", "topic", lines, wording.topic_question, (labels[0],), lines[0])


def _number(draws: Draws, wording: Wording) -> Fact:
    key, value = draws.key(), draws.number()
    line = wording.number.format(key=key, value=value)
    return Fact("niah_multikey_2", "number", (line,), wording.number_question.format(key=key), (value,), line)


def _token(draws: Draws, wording: Wording) -> Fact:
    key, value = draws.uuid(), draws.uuid()
    line = wording.token.format(key=key, value=value)
    return Fact("niah_multikey_3", "token", (line,), wording.token_question.format(key=key), (value,), line)


def _values(draws: Draws, wording: Wording) -> Fact:
    key, values = draws.key(), tuple(draws.number() for _ in range(_VALUES))
    lines = tuple(wording.number.format(key=key, value=value) for value in values)
    question = wording.all_numbers_question.format(key=key)
    return Fact("niah_multivalue", "number", lines, question, values, " ".join(lines))


def _queries(draws: Draws, wording: Wording) -> Iterator[Fact]:
    """The first fact adds four lines to the record; each later fact adds one, and also asks for three earlier lines."""
    known: list[tuple[str, str, str]] = []
    while True:
        new = []
        for _ in range(1 if known else _VALUES):
            key, value = draws.key(), draws.number()
            new.append((key, value, wording.number.format(key=key, value=value)))
        asked = [*new, *draws.rng.sample(known, _VALUES - len(new))]
        known += new
        draws.rng.shuffle(asked)
        keys, values, lines = zip(*asked, strict=True)
        question = wording.several_question.format(keys=f"{', '.join(keys[:-1])} and {keys[-1]}")
        yield Fact("niah_multiquery", "number", tuple(line for *_, line in new), question, values, " ".join(lines))


def _chain(draws: Draws, wording: Wording, hops: int) -> Fact:
    value, names = draws.number(5), tuple(draws.variable() for _ in range(hops + 1))
    lines = (
        wording.set_value.format(name=names[0], value=value),
        *(wording.set_name.format(name=name, other=other) for other, name in itertools.pairwise(names)),
    )
    question = wording.chain_question.format(value=value)
    return Fact(f"vt_{hops}", "assignment", lines, question, names, " ".join(lines))
