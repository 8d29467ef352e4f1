"""Invented words and numbers for retrieval tasks, split so that no evaluation word or value is ever trained on.

The words are built from syllables and English endings. A tokenizer splits them like English words, but they come from
no existing list. Half of the training words instead consist of letters and parts of words in any order, because real
words combine the tokenizer's pieces in ways that syllables never do. From syllables alone, a network would learn which
piece follows which, and would then copy keys made of real words wrongly.
"""

import functools
import hashlib
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["training", "evaluation"]

LARGEST_VALUE = 50_000  # exclusive; LongEval's range
_HELD_OUT_SHARE = 0.2
_SIZES: dict[Split, int] = {"training": 8000, "evaluation": 4000}  # words of each kind

_ONSETS = tuple(
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sk sl sm sn sp st str t th tr v w "
    "z".split()
)
_NUCLEI = tuple("a a a e e e i i i o o u ai ea ee io oa ou".split())
_CODAS = tuple("b ck ct d ff g l ld ll lt m mp n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t tch th x".split())
_ADJECTIVE_ENDINGS = ("able", "al", "ant", "ed", "ful", "ible", "ic", "ing", "ish", "ive", "less", "ly", "ous", "y", "")
_NOUN_ENDINGS = ("age", "ance", "er", "hood", "ist", "ity", "ment", "ness", "or", "ship", "tion", "ture", "", "", "")
# A single letter is as likely as a longer part: half of models/base's pieces of LongEval's words are single letters
_PARTS = (*string.ascii_lowercase * 4, *_ONSETS, *_NUCLEI, *_CODAS, *_ADJECTIVE_ENDINGS[:-1], *_NOUN_ENDINGS[:-3])
_PARTS_A_WORD = (2, 3, 4, 5, 6, 7)
_LOOSE_SHARE = 0.5  # of the training words
_HYPHENATED = 0.04  # share of nouns with two words, as in LongEval's lists
_LOOSELY_HYPHENATED = 0.15  # more than LongEval, because a key with two hyphens is harder to copy


@dataclass(frozen=True)
class Pool:
    """The words and values from which the lines of one split are drawn."""

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    values: tuple[int, ...]


@functools.cache
def pool(split: Split) -> Pool:
    """Return a split's words and values: 8,000 adjectives and 8,000 nouns for training, 4,000 of each for evaluation.

    A hash of each word and value decides its split, so the two splits never overlap, whatever the seeds are.
    """
    loose = _LOOSE_SHARE if split == "training" else 0.0
    return Pool(
        adjectives=_words(split, "adjectives", _adjective, loose),
        nouns=_words(split, "nouns", _noun, loose),
        values=tuple(value for value in range(1, LARGEST_VALUE) if split_of(str(value)) == split),
    )


def _words(split: Split, kind: str, build: Callable[[random.Random], str], loose: float) -> tuple[str, ...]:
    rng = random.Random(f"glm2core {kind}")
    found: dict[str, None] = {}
    while len(found) < _SIZES[split]:
        word = _loose(rng) if len(found) < loose * _SIZES[split] else build(rng)
        # Each part decides, so that a hyphenated word shares no half with the other split.
        if all(split_of(part) == split for part in word.split("-")):
            found[word] = None
    return tuple(found)


def split_of(text: str) -> Split:
    """Return the split of a word, a number or a name, which its hash decides."""
    first = hashlib.sha256(text.encode()).digest()[0]
    return "evaluation" if first < _HELD_OUT_SHARE * 256 else "training"


def _loose(rng: random.Random) -> str:
    """Make a word from letters and parts of words in any order. Some parts occur twice, and some words have a hyphen.

    The next piece of such a key can't be guessed, not even from the last piece, so a model must look it up.
    """
    count = rng.choice(_PARTS_A_WORD)
    parts = rng.choices(rng.sample(_PARTS, count), k=count)
    if count > 2 and rng.random() < _LOOSELY_HYPHENATED:
        parts.insert(rng.randrange(1, count), "-")
    return "".join(parts)


def _adjective(rng: random.Random) -> str:
    return _stem(rng) + rng.choice(_ADJECTIVE_ENDINGS)


def _noun(rng: random.Random) -> str:
    word = _stem(rng) + rng.choice(_NOUN_ENDINGS)
    return f"{word}-{_stem(rng)}" if rng.random() < _HYPHENATED else word


def _stem(rng: random.Random) -> str:
    syllables = rng.choice((1, 1, 1, 2, 2))
    opened = [rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(syllables)]
    return "".join(opened) + rng.choice(_CODAS)
