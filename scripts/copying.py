"""Make conversations in which a part of a text is copied (words, names, numbers, Chinese characters), for `make base`.

    python scripts/copying.py data/raw/copying.jsonl --rows 16000

A text is a list of notes, each with two parts. All notes are in one message, or one note is in each round. A question
names one part and asks for the other part, which the text contains word for word. No wording of `glm2core.analysis` is
used, and none of its held-out entities. The same arguments give the same bytes.
"""

import argparse
import json
import random
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from glm2core.analysis.entities import split_of  # noqa: E402

Message = dict[str, str]
Unit = Callable[[random.Random], str]
_INVENTED_SHARE = 0.6
_NUMBERED_SHARE = 0.2
_LOCATED_SHARE = 0.5


@dataclass(frozen=True)
class Verb:
    """Templates for a note, and for questions about its right part, its left part, or the right parts of all its notes.

    Args:
        named: whether this verb's questions differ from those of other verbs.
    """

    note: str
    right: str
    left: str
    all_right: str | None = None
    named: bool = True


Note = tuple[str, Verb, str]


@dataclass(frozen=True)
class Language:
    """How notes are worded, joined, asked about and acknowledged.

    Args:
        filler: a function that draws a word for invented wordings.
        space: the text between two such words.
        marks: the marks with which a question can end.
        located: a question for the head of the note that contains a part. `head_mark` is the text after a head.
        check: a question that asks whether a note is in the text. `checked` is its answer, which contains one of
            `verdicts`: the first if the note is in the text, the second if not.
    """

    verbs: tuple[Verb, ...]
    units: tuple[Unit, ...]
    joints: tuple[str, ...]
    listing: str
    whole: str
    check: str
    checked: str
    located: str
    head_mark: str
    verdicts: tuple[str, str]
    acknowledged: tuple[str, ...]
    filler: Unit
    space: str
    marks: tuple[str, ...]


_CHARACTERS = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
    "赵钱孙李周吴郑王冯陈卫蒋沈韩杨朱秦许何吕施张孔曹严华金魏陶姜谢邹苏潘葛范彭郎鲁韦昌马苗凤花方俞任袁柳唐罗薛雷贺倪汤"
    "刘黄胡林高梁宋邓曾萧蔡田董余叶杜春夏秋冬风雪雨云山水江河湖海石玉兰竹梅松柏明亮光辉文武英俊美丽芳香永平安康宁静远志强伟建军"
    "东西南北红蓝白青紫市县镇村港岛桥林田园月日元号第段冰博彩晨聪达丹德飞丰福刚歌广荷慧佳杰京菊君乐冷立玲龙梦敏木清晴泉然荣如少诗书"
    "树双思太桃天婷通完小晓心欣新星雅阳宜勇珍真古黑虎九绿三桑沙仙银黄住家搬生花付账单哥姐弟妹老师医朋友道谢好"
)
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
_ALPHABETS = (_CHARACTERS, string.digits, _VOWELS, _CONSONANTS)
_MONTHS = ("January February March April May June July August September October November December").split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--checks", type=float, default=0.15, help="share of the questions that check a claim")
    arguments = parser.parse_args()
    with arguments.out.open("w", encoding="utf-8") as file:
        for number in range(arguments.rows):
            rng = random.Random(f"copying {arguments.seed} {number}")
            messages = conversation(rng, CHINESE if rng.random() < 0.5 else ENGLISH, arguments.checks)
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def conversation(rng: random.Random, language: Language, checks: float) -> list[Message]:
    """Make a conversation with one to four questions about two to seven notes.

    Args:
        checks: the share of questions that ask whether a claim is true.
    """
    verbs = _invented_verbs(rng, language) if rng.random() < _INVENTED_SHARE else rng.sample(language.verbs, 3)
    notes = _notes(rng, language, verbs[: rng.randint(1, 3)], rng.randint(2, 7))
    picked = rng.sample(range(len(notes)), min(len(notes), rng.randint(1, 4)))
    asked = [_question(rng, language, notes, notes[place], checks) for place in picked]
    texts = [verb.note.format(left=left, right=right) for left, verb, right in notes]
    if rng.random() < _NUMBERED_SHARE:
        heads = _heads(rng, language, len(notes))
        texts = [head + language.head_mark + text for head, text in zip(heads, texts, strict=True)]
        word, parts = language.filler(rng), [part for left, _, right in notes for part in (left, right)]
        for number, place in enumerate(picked):
            part = rng.choice((notes[place][0], notes[place][2]))
            if parts.count(part) == 1 and rng.random() < _LOCATED_SHARE:
                asked[number] = language.located.format(word=word, part=part), heads[place]
    if rng.random() < 0.25:  # one note per round
        rounds = [(text, rng.choice(language.acknowledged)) for text in texts] + asked
    else:
        text, (question, answer) = rng.choice(language.joints).join(texts), asked[0]
        together = f"{question}\n{text}" if rng.random() < 0.4 else f"{text}\n{question}"
        rounds = [(together, answer), *asked[1:]]
    return [
        {"role": role, "content": content}
        for pair in rounds
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def _notes(rng: random.Random, language: Language, verbs: Sequence[Verb], count: int) -> list[Note]:
    """Make unambiguous notes: if a left part appears twice, it has a different verb each time."""
    notes: list[Note] = []
    while len(notes) < count:
        left, verb = _drawn(rng, language.units), rng.choice(verbs)
        if notes and rng.random() < 0.3 and all(verb.named for verb in verbs):
            left = rng.choice(notes)[0]
        if (left, verb) not in [note[:2] for note in notes]:
            notes.append((left, verb, _drawn(rng, language.units)))
    return notes


def _heads(rng: random.Random, language: Language, count: int) -> list[str]:
    """Numbered heads of the notes, such as `bef 1`, `bef 2`."""
    word, first = language.filler(rng), rng.choice((1, 1, 1, rng.randint(2, 90)))
    return [f"{word}{language.space}{number}" for number in range(first, first + count)]


def _invented_verbs(rng: random.Random, language: Language) -> list[Verb]:
    """Make three verbs of meaningless words. Each occurs in one conversation only, so a network learns only to copy."""
    return [_invented_verb(rng, language) for _ in range(3)]


def _invented_verb(rng: random.Random, language: Language) -> Verb:
    def words(least: int, most: int) -> str:
        return language.space.join(language.filler(rng) for _ in range(rng.randint(least, most)))

    def joined(*parts: str) -> str:
        return language.space.join(part for part in parts if part)

    word = words(1, 2)
    parts = ("{left}", "{right}") if rng.random() < 0.7 else ("{right}", "{left}")
    asked = word if rng.random() < 0.7 else ""

    def question(key: str) -> str:
        order = [words(0, 2), asked, key] if rng.random() < 0.5 else [words(0, 2), key, asked]
        return joined(*order, words(0, 2)) + rng.choice(language.marks)

    return Verb(
        joined(words(0, 2), parts[0], word, parts[1], words(0, 1)),
        question("{left}"),
        question("{right}"),
        joined(words(1, 2), word, words(0, 1)) + rng.choice(language.marks),
        bool(asked),
    )


def _question(
    rng: random.Random, language: Language, notes: Sequence[Note], note: Note, checks: float
) -> tuple[str, str]:
    left, verb, right = note
    if verb.named and rng.random() < checks:
        claimed = right if rng.random() < 0.5 else _another_right(rng, language, notes, right)
        claim = verb.note.format(left=left, right=claimed)
        verdict = language.verdicts[claimed != right]
        return language.check.format(claim=claim), language.checked.format(
            right=right, claimed=claimed, verdict=verdict
        )
    kind = rng.random()
    if verb.all_right is not None and kind < 0.15:
        return verb.all_right, language.listing.join(other[2] for other in notes if other[1] == verb)
    if kind < 0.55:
        return verb.right.format(left=left), right
    if kind < 0.85:
        return verb.left.format(right=right), left
    return language.whole.format(right=right), verb.note.format(left=left, right=right)


def _another_right(rng: random.Random, language: Language, notes: Sequence[Note], right: str) -> str:
    """The right part of another note, the same part with a few characters changed, or a new part."""
    kind = rng.random()
    others = [note[2] for note in notes if note[2] != right]
    if others and kind < 0.4:
        return rng.choice(others)
    drawn = iter(lambda: _altered(rng, right) if kind < 0.8 else _drawn(rng, language.units), None)
    return next(other for other in drawn if other != right and _is_trained_on(other))


def _altered(rng: random.Random, part: str) -> str:
    """The part with up to half of its characters replaced by others of their class."""
    characters = list(part)
    for place in rng.sample(range(len(part)), rng.randint(1, max(1, len(part) // 2))):
        alphabet = next((each for each in _ALPHABETS if characters[place] in each), characters[place])
        characters[place] = rng.choice(alphabet)
    return "".join(characters)


def _drawn(rng: random.Random, units: Sequence[Unit]) -> str:
    while True:
        text = rng.choice(units)(rng)
        if _is_trained_on(text):
            return text


def _is_trained_on(text: str) -> bool:
    return all(split_of(part) == "training" for part in (text, *text.split()))


def _word(rng: random.Random) -> str:
    syllables = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 3)))
    return syllables + rng.choice(("", *_CONSONANTS, *_CONSONANTS))


def _name(rng: random.Random) -> str:
    return _word(rng).capitalize()


def _full_name(rng: random.Random) -> str:
    return f"{_name(rng)} {_name(rng)}"


def _number(rng: random.Random) -> str:
    return "".join(rng.choices(string.digits, k=rng.randint(2, 6)))


def _dated(rng: random.Random) -> str:
    return f"{rng.choice(_MONTHS)} {rng.randint(1, 31)}, {rng.randint(1900, 2050)}"


def _measured(rng: random.Random) -> str:
    return f"{_number(rng)} {_word(rng)}"


def _characters(rng: random.Random) -> str:
    return "".join(rng.choices(_CHARACTERS, k=rng.randint(2, 4)))


def _chinese_date(rng: random.Random) -> str:
    while True:
        year, month, day = rng.randint(1900, 2050), rng.randint(1, 12), rng.randint(1, 31)
        if split_of(f"{year}-{month}-{day}") == "training":
            return f"{year}年{month}月{day}日"


def _chinese_amount(rng: random.Random) -> str:
    return f"{_number(rng)}{rng.choice('元斤个号')}"


ENGLISH = Language(
    verbs=(
        Verb("{left} -> {right}", "What follows {left}?", "What stands before {right}?"),
        Verb("{left}: {right}", "{left}?", "Copy the left side of {right}"),
        Verb("{left} = {right}", "What is equal to {left}?", "What is it that equals {right}?"),
        Verb("{left} likes {right}", "What does {left} like?", "What likes {right}?"),
        Verb("{left} carries {right}", "What does {left} carry?", "What carries {right}?"),
        Verb("{left} stands near {right}", "What does {left} stand near?", "What stands near {right}?"),
        Verb("{left} was sent to {right}", "Where was {left} sent?", "What was sent to {right}?"),
        Verb("{left} was swapped for {right}", "For what was {left} swapped?", "What was swapped for {right}?"),
        Verb("{left} begins at {right}", "At what does {left} begin?", "What begins at {right}?"),
        Verb("{left} weighs {right}", "What does {left} weigh?", "What weighs {right}?"),
    ),
    units=(_word, _name, _number, _full_name, _full_name, _dated, _measured),
    joints=("\n", "; ", ". ", ". "),
    listing="; ",
    whole="Copy the note that ends with {right}",
    check="Check this: {claim}",
    checked="written {right}, claimed {claimed}: {verdict}",
    located="{word} {part}?",
    head_mark=": ",
    verdicts=("equal", "unequal"),
    acknowledged=("Yes.", "Go on.", "And then?"),
    filler=_word,
    space=" ",
    marks=("?", ".", "", ":"),
)
CHINESE = Language(
    verbs=(
        Verb("{left}：{right}", "{left}？", "抄写{right}左边的字"),
        Verb("{left}＝{right}", "{left}等于什么？", "什么等于{right}？"),
        Verb("{left}→{right}", "{left}后面是什么？", "{right}前面是什么？"),
        Verb("{left}喜欢{right}", "{left}喜欢什么？", "什么喜欢{right}？"),
        Verb("{left}带着{right}", "{left}带着什么？", "什么带着{right}？"),
        Verb("{left}放在{right}", "{left}放在哪？", "什么放在{right}？"),
        Verb("{left}换成{right}", "{left}换成什么？", "什么换成{right}？"),
        Verb("{left}遇见{right}", "{left}遇见什么？", "什么遇见{right}？"),
        Verb("{left}重{right}", "{left}有多重？", "什么重{right}？"),
        Verb("{left}通向{right}", "{left}通向哪？", "什么通向{right}？"),
    ),
    units=(_characters, _characters, _characters, _number, _chinese_date, _chinese_amount),
    joints=("\n", "；", "。", "。"),
    listing="；",
    whole="抄写以{right}结尾的一条",
    check="核对：{claim}",
    checked="写的{right}，说的{claimed}：{verdict}",
    located="{word}{part}？",
    head_mark="：",
    verdicts=("相同", "不同"),
    acknowledged=("嗯。", "请继续。", "然后呢？"),
    filler=lambda rng: "".join(rng.choices(_CHARACTERS, k=rng.randint(1, 2))),
    space="",
    marks=("？", "。", "", "："),
)

if __name__ == "__main__":
    main()
