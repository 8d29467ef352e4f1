"""Draws the keys, numbers, uuids and names for a record's facts, all from one split and none of them twice."""

import itertools
import math
import random
import string
import uuid
from collections.abc import Callable

from glm2core.lines.records import Line
from glm2core.lines.words import Pool, Split, pool, split_of

_ALIKE = 0.5  # share of numbers and uuids that are derived from an earlier one
_ALIKE_KEYS = 24  # number of adjectives, and of nouns, for keys that nearly collide
_DIGITS = 7  # RULER's numbers
_NAME_LETTERS = 5  # RULER's variables
_CODED_LETTERS = 6  # RULER's coded words
_SENTENCE_WORDS = (4, 9)
_START = 8  # largest number of first characters that similar uuids share


class Draws:
    """Draws from the words of one split. Only sentences and invented words may repeat.

    The hash that splits words also splits numbers, uuids, names and coded words.

    Args:
        alike: whether values are easy to confuse, so that a short record contains as many near collisions as a long
            one. Keys then share words, some numbers differ in only one digit, and some uuids begin alike.
    """

    def __init__(self, rng: random.Random, split: Split, *, alike: bool = False) -> None:
        self.rng = rng
        self._split: Split = split
        self._alike = alike
        self._pool = pool(split)
        self._keys = _fewer(self._pool, rng) if alike else self._pool
        self._drawn: dict[str, list[str]] = {}
        self._seen: set[str] = set()

    def key(self) -> str:
        """A key, `adjective-noun`."""
        return self.line().key

    def line(self) -> Line:
        """Draw a line of the kind `lines` with a new key."""
        for tried in itertools.count():
            words = self._keys if tried < _ALIKE_KEYS else self._pool  # the keys of the fewer words may be used up
            line = Line(self.rng.choice(words.adjectives), self.rng.choice(words.nouns), self.rng.choice(words.values))
            if line.key not in self._seen:
                self._seen.add(line.key)
                break
        return line

    def number(self, digits: int = _DIGITS) -> str:
        return self._new(f"number {digits}", lambda: str(self.rng.randrange(10 ** (digits - 1), 10**digits)), _one_off)

    def uuid(self) -> str:
        return self._new("uuid", lambda: str(uuid.UUID(int=self.rng.getrandbits(128), version=4)), _same_start)

    def variable(self) -> str:
        return self._new("variable", lambda: self._letters(string.ascii_uppercase, _NAME_LETTERS), _one_off)

    def coded(self) -> str:
        return self._new("coded", lambda: self._letters(string.ascii_lowercase, _CODED_LETTERS), None)

    def sentence(self) -> str:
        """Draw a meaningless sentence of invented words."""
        words = [self.rng.choice(self.rng.choice((self._pool.adjectives, self._pool.nouns)))]
        words += (self.rng.choice(self._pool.nouns) for _ in range(self.rng.randint(*_SENTENCE_WORDS)))
        return " ".join(words).capitalize() + "."

    def words(self, fewest: int, most: int) -> str:
        """Draw invented words, which may repeat."""
        count = self.rng.randint(fewest, most)
        return " ".join(self.rng.choice(self._pool.nouns) for _ in range(count))

    def _letters(self, alphabet: str, count: int) -> str:
        return "".join(self.rng.choices(alphabet, k=count))

    def _new(self, sort: str, make: Callable[[], str], change: Callable[[random.Random, str, str], str] | None) -> str:
        earlier = self._drawn.setdefault(sort, [])
        while True:
            made = make()
            if self._alike and change and earlier and self.rng.random() < _ALIKE:
                made = change(self.rng, self.rng.choice(earlier), made)
            if made not in self._seen and split_of(made) == self._split:
                self._seen.add(made)
                earlier.append(made)
                return made


def _fewer(words: Pool, rng: random.Random) -> Pool:
    side = min(_ALIKE_KEYS, math.isqrt(len(words.nouns)))
    return Pool(tuple(rng.sample(words.adjectives, side)), tuple(rng.sample(words.nouns, side)), words.values)


def _one_off(rng: random.Random, earlier: str, other: str) -> str:
    """Replace one character of `earlier`, but never the first, with the character of `other` in the same place."""
    place = rng.randrange(1, len(earlier))
    return earlier[:place] + other[place] + earlier[place + 1 :]


def _same_start(rng: random.Random, earlier: str, other: str) -> str:
    shared = rng.randint(1, _START)
    return earlier[:shared] + other[shared:]
