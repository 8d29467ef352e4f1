"""Builds a record in which facts of several kinds stand among other lines, each fact at a known place."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from glm2core.lines.draws import Draws
from glm2core.lines.facts import LEAST_CODED_LINES, Fact, Sort, coded_lines, haystack, haystack_sort
from glm2core.lines.wordings import Wording

_CODED = 64  # largest number of coded words; the rarest word appears once in 2,600 lines
_LATE = 0.2  # largest share of its part of the record after which a topic begins
_SAMPLE = 16  # number of lines from which the line length of a type is estimated


@dataclass(frozen=True)
class AskedFact:
    """A fact in a record, and its place.

    Args:
        depth: the place of the fact's line, from 0 (the record's start) to 1; None if the fact has several lines.
        candidates: number of lines in the record that are of the same type as the fact; for fwe, number of coded words.
    """

    fact: Fact
    depth: float | None
    candidates: int


class Mixture:
    """A record, which consists of facts at known places and of other lines that fill it.

    Args:
        asked: the facts, each with the places of its lines in [0, 1), in ascending order.
        kinds: the kinds whose haystacks fill the record, each with about the same number of characters.
        invented: whether half of the noise consists of invented words.
    """

    def __init__(
        self,
        asked: Sequence[tuple[Fact, Sequence[float]]],
        kinds: Iterable[str],
        draws: Draws,
        wording: Wording,
        *,
        invented: bool = False,
    ) -> None:
        self._asked = asked
        self._wording = wording
        sorts = list(dict.fromkeys(map(haystack_sort, kinds)))
        self._coded = [draws.coded() for _ in range(_CODED)] if "coded" in sorts else []
        self._seed = draws.rng.getrandbits(32)
        self._streams: dict[Sort, Iterator[str]] = {
            sort: haystack(sort, draws, wording, invented=invented) for sort in sorts if sort != "coded"
        }
        self._taken: dict[Sort, list[str]] = {
            sort: list(itertools.islice(stream, _SAMPLE)) for sort, stream in self._streams.items()
        }
        if self._coded:
            self._taken["coded"] = coded_lines(self._seed, self._coded, wording, _SAMPLE)[0]
        lengths = {sort: sum(map(len, lines)) for sort, lines in self._taken.items()}
        inverse = sum(1 / length for length in lengths.values())
        self._shares = {sort: 1 / length / inverse for sort, length in lengths.items()}

    def text(self, count: int) -> str:
        """Return the record's text with `count` filling lines. The text ends with an empty line."""
        return self._joined(line for _, _, line in self._lines(count)[0])

    def record(self, count: int) -> tuple[str, list[AskedFact]]:
        """Return the text with `count` filling lines, and the record's facts; a fact about coded words comes last."""
        lines, coded = self._lines(count)
        place_of = {line: (number + 0.5) / len(lines) for number, (_, _, line) in enumerate(lines)}
        sorts = Counter(sort for _, sort, _ in lines)
        asked = [
            AskedFact(fact, place_of[fact.lines[0]] if _in_one_place(fact) else None, sorts[fact.sort])
            for fact, _ in self._asked
        ]
        asked += [AskedFact(fact, None, len(self._coded)) for fact in coded]
        return self._joined(line for _, _, line in lines), asked

    def _joined(self, lines: Iterable[str]) -> str:
        return self._wording.header + "".join(f"{line}\n" for line in lines) + "\n"

    def _lines(self, count: int) -> tuple[list[tuple[float, Sort, str]], list[Fact]]:
        """Return each line's (place, type, text) in order, and the fact about coded words, if there is one."""
        lines: list[tuple[float, Sort, str]] = [
            (place, fact.sort, line)
            for fact, places in self._asked
            for place, line in zip(places, fact.lines, strict=True)
        ]
        coded: list[Fact] = []
        for sort, share in self._shares.items():
            number = round(count * share)
            if sort == "coded":
                texts, fact = coded_lines(self._seed, self._coded, self._wording, max(LEAST_CODED_LINES, number))
                coded.append(fact)
            else:
                texts = self._take(sort, number)
            lines += [((place + 0.5) / len(texts), sort, text) for place, text in enumerate(texts)]
        return sorted(lines, key=lambda line: line[0]), coded

    def _take(self, sort: Sort, number: int) -> list[str]:
        taken = self._taken[sort]
        taken += itertools.islice(self._streams[sort], max(0, number - len(taken)))
        return taken[:number]


def places(rng: random.Random, fact: Fact, row: int = 0, rows: int = 1) -> list[float]:
    """Draw places for a fact's lines, in ascending order.

    If the answer stands in one place, the lines lie in part `row` of `rows` equal parts. Topics divide the record into
    parts of about the same length. Other lines lie anywhere.
    """
    if _in_one_place(fact):
        return sorted((row + rng.random()) / rows for _ in fact.lines)
    if fact.sort == "topic":
        return [(number + rng.random() * _LATE) / len(fact.lines) for number in range(len(fact.lines))]
    return sorted(rng.random() for _ in fact.lines)


def _in_one_place(fact: Fact) -> bool:
    """Whether the answer is one line of the record, which the record may repeat."""
    return len(fact.references) == 1 and len(set(fact.lines)) == 1
