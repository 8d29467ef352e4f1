"""Tasks with numbers hidden in plain text: this project's own `passkey` and `multikey`.

- `passkey` hides one number (after Mohtashami & Jaggi 2023), so it has one question per context.
- `multikey` hides many numbers with names and asks for each of them (after RULER's multi-key needles).
"""

import random
from collections.abc import Callable, Sequence

from glm2core.evaluation.cases import Case, CountTokens, Question, chance_of, too_short
from glm2core.lines.draws import Draws
from glm2core.lines.facts import Fact
from glm2core.lines.records import Line, colliding, draw_lines, largest_fitting
from glm2core.lines.wordings import EVALUATION
from glm2core.lines.words import pool

_PASSKEY_HEADER = "A pass key is hidden in the text below. Find it and remember it.\n\n"
_PASSKEY_QUESTION = "What is the pass key? Answer with the number."
_MULTIKEY_HEADER = "Access codes of several stations are hidden in the text below. Remember all of them.\n\n"
_MULTIKEY_NEEDLE = "The access code of station {key} is {value}."
_PASSKEY_NEEDLE = "The pass key is {value}. Remember that {value} is the pass key."


def passkey_fact(draws: Draws) -> Fact:
    """The pass key as a fact of a shared context."""
    value = str(draws.line().value)
    line = _PASSKEY_NEEDLE.format(value=value)
    return Fact("passkey", "hidden", (line,), _PASSKEY_QUESTION, (value,), line)


def multikey_fact(draws: Draws) -> Fact:
    """A station's code as a fact of a shared context."""
    station = draws.line()
    line = _MULTIKEY_NEEDLE.format(key=station.key, value=station.value)
    return Fact("multikey", "station", (line,), _code_question(station), (str(station.value),), line)


def multikey_case(rng: random.Random, depths: int, length: int, index: int, most: int, count: CountTokens) -> Case:
    filler = _filler(rng)
    stations = draw_lines(rng, most, pool("evaluation"))
    while stations:
        needles = [_MULTIKEY_NEEDLE.format(key=station.key, value=station.value) for station in stations]
        ending = max((_code_question(station) for station in stations), key=len)
        context = _fill(_MULTIKEY_HEADER, filler, needles, ending, length, count)
        if context is not None:
            break
        stations = stations[:-depths]
    else:
        raise too_short("multikey", length, f"has no room for {depths} needles with a sentence around each")
    collides = colliding(stations)
    questions = [
        Question(_code_question(station), station.value, (place + 0.5) / len(stations), collides[place])
        for place, station in enumerate(stations)
    ]
    return Case("multikey", length, index, context, tuple(questions), chance_of(stations))


def passkey_case(rng: random.Random, depths: int, length: int, index: int, most: int, count: CountTokens) -> Case:
    value = rng.choice(pool("evaluation").values)
    row = index % depths
    needle = _PASSKEY_NEEDLE.format(value=value)
    needles = [needle if part == row else "" for part in range(depths)]
    context = _fill(_PASSKEY_HEADER, _filler(rng), needles, _PASSKEY_QUESTION, length, count)
    if context is None:
        raise too_short("passkey", length, f"has no room for the needle and {depths} sentences")
    question = Question(_PASSKEY_QUESTION, value, (row + 0.5) / depths, colliding=False)
    return Case("passkey", length, index, context, (question,), 1 / len(pool("evaluation").values))


def _fill(
    header: str,
    filler: Callable[[int], list[str]],
    needles: Sequence[str],
    ending: str,
    length: int,
    count: CountTokens,
) -> str | None:
    """The needles within as much filler as fits; None if less than one sentence per needle fits."""
    sentences = largest_fitting(lambda number: count(_hide(header, filler(number), needles) + ending), length)
    return _hide(header, filler(sentences), needles) if sentences >= len(needles) else None


def _hide(header: str, sentences: Sequence[str], needles: Sequence[str]) -> str:
    """Put each needle in the middle of its part of the text; the parts are equal, and "" stands for no needle."""
    text: list[str] = []
    for part, needle in enumerate(needles):
        start, stop = (len(sentences) * (part + step) // len(needles) for step in (0, 1))
        middle = (start + stop) // 2
        text += [*sentences[start:middle], *([needle] if needle else []), *sentences[middle:stop]]
    return header + "".join(f"{sentence}\n" for sentence in text) + "\n"


def _filler(rng: random.Random) -> Callable[[int], list[str]]:
    order = rng.sample(EVALUATION.noise, len(EVALUATION.noise))
    return lambda count: [order[place % len(order)] for place in range(count)]


def _code_question(station: Line) -> str:
    return f"What is the access code of station {station.key}? Answer with the number."
