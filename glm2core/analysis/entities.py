"""Invented names, places, dates and amounts, split so that no entity of a held-out row is ever trained on.

Given names, family names, places, dates and amounts are split by a hash of their text, so the two splits never overlap,
whatever the seeds are. Only the few Chinese family names belong to both splits.
"""

import functools
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
EntitySplit = Literal["training", "held out"]

LANGUAGES: tuple[Language, ...] = ("en", "zh")
_HELD_OUT_SHARE = 0.2
_SIZES: dict[EntitySplit, int] = {"training": 3000, "held out": 750}  # words of each kind and language
_YEARS = range(1950, 2050)
_AMOUNTS = range(10, 10_000)

_ONSETS = tuple("b c d f g h j k l m n p r s t v w br cl dr fl gr pl st tr".split())
_NUCLEI = tuple("a e i o u a e i o ea ou".split())
_CODAS = ("", "", "", *"l m n r s t nd".split())
_GIVEN_ENDINGS = tuple("a an e el en ia ie in o on y".split())
_FAMILY_ENDINGS = tuple("ber by den er field ford ham ley low man more ner son ston well wood".split())
_PLACE_ENDINGS = tuple("bridge burg bury dale ham haven mouth port stead ton ville wick".split())

_FAMILIES = tuple("王李张刘陈杨赵黄周吴马朱胡林何高罗郑梁谢宋唐许邓冯韩曹曾彭萧蔡潘田董袁余叶蒋杜")
_GIVEN = tuple(
    "安白冰博彩晨成春聪达丹德东冬方芳飞丰风福刚歌光广海和河荷红华慧佳江杰金京静菊君军康可兰乐雷冷立丽林玲龙"
    "梅美梦敏明木南宁平青清晴秋泉然荣如山少诗石书树双水思松太桃天田婷通完伟文武夏香祥小晓心欣新星雪雅阳"
    "叶一宜英永勇雨玉月云珍真志中竹子"
)
_PLACE = tuple(
    "安白北长成春大丹东丰风福高古光海和河黑红湖虎花黄江金京九军兰乐立林柳龙绿马梅美明木南宁平青清泉三桑沙山上石"
    "双水松太桃天田文西下仙香新星雪阳银永玉月云竹紫"
)
_PLACE_SUFFIXES = tuple("市县镇村港岛")
_MONTHS = tuple("January February March April May June July August September October November December".split())


@dataclass(frozen=True)
class EntityPool:
    """The words from which the entities of one split and language are drawn."""

    language: Language
    split: EntitySplit
    families: tuple[str, ...]
    givens: tuple[str, ...]
    places: tuple[str, ...]
    amounts: tuple[int, ...]

    def draw(self, rng: random.Random, attribute: str, count: int) -> list[str]:
        """Draw `count` different names (also for `relation`), places, dates or amounts, as `attribute` says."""
        make: dict[str, Callable[[random.Random], str]] = {
            "name": self._name,
            "relation": self._name,
            "place": lambda rng: rng.choice(self.places),
            "date": self._date,
            "amount": self._amount,
        }
        found: dict[str, None] = {}
        while len(found) < count:
            found[make[attribute](rng)] = None
        return list(found)

    def _name(self, rng: random.Random) -> str:
        family, given = rng.choice(self.families), rng.choice(self.givens)
        return f"{given} {family}" if self.language == "en" else family + given

    def _date(self, rng: random.Random) -> str:
        while True:
            year, month, day = rng.choice(_YEARS), rng.randint(1, 12), rng.randint(1, 28)
            if split_of(f"{year}-{month}-{day}") == self.split:
                break
        return f"{_MONTHS[month - 1]} {day}, {year}" if self.language == "en" else f"{year}年{month}月{day}日"

    def _amount(self, rng: random.Random) -> str:
        amount = rng.choice(self.amounts)
        return f"{amount} dollars" if self.language == "en" else f"{amount}元"


@functools.cache
def pool(language: Language, split: EntitySplit) -> EntityPool:
    """Return a split's entities: 3,000 given names and 3,000 places for training, or 750 of each for held-out rows."""
    amounts = tuple(amount for amount in _AMOUNTS if split_of(str(amount)) == split)
    if language == "zh":
        return EntityPool(language, split, _FAMILIES, _words(split, _zh_given), _words(split, _zh_place), amounts)
    given, family, place = (
        _words(split, functools.partial(_en_word, endings=endings))
        for endings in (_GIVEN_ENDINGS, _FAMILY_ENDINGS, _PLACE_ENDINGS)
    )
    return EntityPool(language, split, family, given, place, amounts)


def split_of(text: str) -> EntitySplit:
    """Return the split to which an entity belongs."""
    first = hashlib.sha256(text.encode()).digest()[0]
    return "held out" if first < _HELD_OUT_SHARE * 256 else "training"


def _words(split: EntitySplit, build: Callable[[random.Random], str]) -> tuple[str, ...]:
    rng = random.Random(f"analysis {split}")
    found: dict[str, None] = {}
    while len(found) < _SIZES[split]:
        word = build(rng)
        if split_of(word) == split:
            found[word] = None
    return tuple(found)


def _en_word(rng: random.Random, endings: tuple[str, ...]) -> str:
    stem = rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)
    if rng.random() < 0.4:
        stem += rng.choice(_ONSETS) + rng.choice(_NUCLEI)
    return (stem + rng.choice(endings)).capitalize()


def _zh_given(rng: random.Random) -> str:
    return "".join(rng.sample(_GIVEN, 2))


def _zh_place(rng: random.Random) -> str:
    return "".join(rng.sample(_PLACE, 2)) + rng.choice(_PLACE_SUFFIXES)
