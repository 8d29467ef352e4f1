"""Make conversations in which a part of a text is copied (words, names, numbers, Chinese characters), for `make base`.

    python scripts/copying.py data/raw/copying.jsonl --rows 16000

A text is a list of notes, each with two parts. All notes are in one message, or one note is in each round. A question
names one part and asks for the other part, which the text contains word for word; or it asks for the parts of all notes
(`--lists`), or whether a claim agrees with a note (`--checks`). No wording of `glm2core.analysis` is used, and none of
its held-out entities. The same arguments give the same bytes.
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
_TYPED_SHARE = 0.5
_NUMBERED_SHARE = 0.3
_LOCATED_SHARE = 0.5


@dataclass(frozen=True)
class Verb:
    """Templates for a note, and for questions about its right part, its left part, or the right parts of all its notes.

    Args:
        named: whether this verb's questions differ from those of other verbs.
        claim: the template of a claim about a note; None = that of the note.
    """

    note: str
    right: str
    left: str
    all_right: str | None = None
    named: bool = True
    claim: str | None = None


Note = tuple[str, Verb, str]
Units = dict[Verb, tuple[Sequence[Unit], Sequence[Unit]]]


@dataclass(frozen=True)
class Language:
    """How notes are worded, joined, asked about and acknowledged.

    Args:
        filler: a function that draws a word for invented wordings.
        space: the text between two such words.
        marks: the marks with which a question can end.
        located: a question for the head of the note that contains a part. `head_mark` is the text after a head.
        gathered: questions for all parts of one unit, each of which has a word in `units`.
        checks: questions whether a claim agrees with the text. `checked` are their answers.
        verdicts: words for an answer: the first is used if the claim is true, the second if not.
    """

    verbs: tuple[Verb, ...]
    units: dict[Unit, str]
    names: tuple[Unit, ...]
    joints: tuple[str, ...]
    listing: str
    whole: str
    gathered: tuple[str, ...]
    checks: tuple[str, ...]
    checked: tuple[str, ...]
    verdicts: tuple[tuple[str, str], ...]
    located: str
    head_mark: str
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
    parser.add_argument("--checks", type=float, default=0.15, help="share of the conversations that check claims")
    parser.add_argument("--lists", type=float, default=0.1, help="share of the conversations that list parts")
    arguments = parser.parse_args()
    with arguments.out.open("w", encoding="utf-8") as file:
        for number in range(arguments.rows):
            rng = random.Random(f"copying {arguments.seed} {number}")
            language = CHINESE if rng.random() < 0.5 else ENGLISH
            messages = conversation(rng, language, checks=arguments.checks, lists=arguments.lists)
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def conversation(rng: random.Random, language: Language, *, checks: float, lists: float) -> list[Message]:
    """Make a conversation with one to six questions about two to seven notes.

    Args:
        checks, lists: the shares of conversations that ask whether claims are true, and for the parts of all notes.
    """
    kind = rng.choices(("ask", "check", "list"), (1 - checks - lists, checks, lists))[0]
    invented = rng.random() < _INVENTED_SHARE
    verbs = _invented_verbs(rng, language) if invented else rng.sample(language.verbs, 3)
    verbs = [verb for verb in verbs if verb.named or kind != "check"] or rng.sample(language.verbs, 1)
    units = _drawn_units(rng, language, verbs, one=kind == "list")
    notes = _notes(rng, verbs[: rng.randint(1, 3)], units, rng.randint(2, 4 if kind == "list" else 7))
    picked = rng.sample(range(len(notes)), min(len(notes), rng.randint(1, 4)))
    texts = [verb.note.format(left=left, right=right) for left, verb, right in notes]
    if kind == "check":
        asked = _checked(rng, language, notes, rng.choices(notes, k=rng.randint(2, 6)), units)
    elif kind == "list":
        asked = _listed(rng, language, notes, units)
    else:
        asked = [_question(rng, language, notes, notes[place]) for place in picked]
    if kind != "check" and rng.random() < _NUMBERED_SHARE:
        heads = _heads(rng, language, len(notes))
        texts = [head + language.head_mark + text for head, text in zip(heads, texts, strict=True)]
        word, parts = language.filler(rng), [part for left, _, right in notes for part in (left, right)]
        for number, place in enumerate(picked[: len(asked)]):
            part = rng.choice((notes[place][0], notes[place][2]))
            if parts.count(part) == 1 and rng.random() < _LOCATED_SHARE:
                asked[number] = language.located.format(word=word, part=part), heads[place]
    if rng.random() < 0.25:  # one note per round
        rounds = [(text, rng.choice(language.acknowledged)) for text in texts] + asked
    else:
        text, (question, answer) = rng.choice(language.joints).join(texts), asked[0]
        together = f"{question}\n{text}" if rng.random() < 0.6 else f"{text}\n{question}"
        rounds = [(together, answer), *asked[1:]]
    return [
        {"role": role, "content": content}
        for pair in rounds
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def _drawn_units(rng: random.Random, language: Language, verbs: Sequence[Verb], one: bool) -> Units:
    """Each verb's units on the left and on the right: any units, or names on the left and one other unit on the right.

    Args:
        one: whether the verbs always have one and the same unit on the right.
    """
    every, left = tuple(language.units), rng.choice(language.names)
    others = [unit for unit in every if unit is not left]
    if one:
        return dict.fromkeys(verbs, ((left,), (rng.choice(others),)))
    if rng.random() < _TYPED_SHARE:
        return {verb: ((left,), (rng.choice(others),)) for verb in verbs}
    return dict.fromkeys(verbs, (every, every))


def _notes(rng: random.Random, verbs: Sequence[Verb], units: Units, count: int) -> list[Note]:
    """Make unambiguous notes: if a left part appears twice, it has a different verb each time."""
    notes: list[Note] = []
    while len(notes) < count:
        verb = rng.choice(verbs)
        left = _drawn(rng, units[verb][0])
        if notes and rng.random() < 0.3 and all(verb.named for verb in verbs):
            left = rng.choice(notes)[0]
        if (left, verb) not in [note[:2] for note in notes]:
            notes.append((left, verb, _drawn(rng, units[verb][1])))
    return notes


def _heads(rng: random.Random, language: Language, count: int) -> list[str]:
    """Numbered heads of the notes, such as `bef 1`, `bef 2`, or `bef 1 ta`, `bef 2 ta`."""
    before, after = language.filler(rng), rng.choice(("", language.space + language.filler(rng)))
    first = rng.choice((1, 1, 1, rng.randint(2, 90)))
    return [f"{before}{language.space}{number}{after}" for number in range(first, first + count)]


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

    def note(parts: Sequence[str]) -> str:
        return joined(words(0, 2), parts[0], word, parts[1], words(0, 1))

    return Verb(
        note(parts),
        question("{left}"),
        question("{right}"),
        joined(words(1, 2), word, words(0, 1)) + rng.choice(language.marks),
        bool(asked),
        note(parts[:: rng.choice((1, 1, -1))]),
    )


def _question(rng: random.Random, language: Language, notes: Sequence[Note], note: Note) -> tuple[str, str]:
    left, verb, right = note
    kind = rng.random()
    if verb.all_right is not None and kind < 0.15:
        return verb.all_right, language.listing.join(other[2] for other in notes if other[1] == verb)
    if kind < 0.55:
        return verb.right.format(left=left), right
    if kind < 0.85:
        return verb.left.format(right=right), left
    return language.whole.format(right=right), verb.note.format(left=left, right=right)


def _listed(rng: random.Random, language: Language, notes: Sequence[Note], units: Units) -> list[tuple[str, str]]:
    """Ask for the parts on one side of all notes, by the word for their unit."""
    sides = [(units[notes[0][1]][0][0], [left for left, _, _ in notes])]
    sides.append((units[notes[0][1]][1][0], [right for _, _, right in notes]))
    rng.shuffle(sides)
    return [
        (rng.choice(language.gathered).format(unit=language.units[unit]), language.listing.join(parts))
        for unit, parts in sides[: rng.randint(1, 2)]
    ]


def _checked(
    rng: random.Random, language: Language, notes: Sequence[Note], asked: Sequence[Note], units: Units
) -> list[tuple[str, str]]:
    """Ask whether claims about notes are true. All questions of a conversation have one wording."""
    question, answer = rng.choice(language.checks), rng.choice(language.checked)
    verdicts = rng.choice(language.verdicts)
    rounds = []
    for left, verb, right in asked:
        claimed = right if rng.random() < 0.5 else _another_right(rng, units[verb][1], notes, right)
        # Only the units tell which part is which in a claim with the parts in the other order
        template = rng.choice((verb.note, verb.claim or verb.note)) if len(units[verb][1]) == 1 else verb.note
        claim = template.format(left=left, right=claimed)
        verdict = verdicts[claimed != right]
        rounds.append(
            (
                question.format(claim=claim, true=verdicts[0], false=verdicts[1]),
                answer.format(right=right, claimed=claimed, verdict=verdict),
            )
        )
    return rounds


def _another_right(rng: random.Random, units: Sequence[Unit], notes: Sequence[Note], right: str) -> str:
    """The right part of another note, the same part with a few characters changed, or a new part."""
    kind = rng.random()
    others = [note[2] for note in notes if note[2] != right]
    if others and kind < 0.4:
        return rng.choice(others)
    drawn = iter(lambda: _altered(rng, right) if kind < 0.7 else _drawn(rng, units), None)
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


def _short(rng: random.Random) -> str:
    return "".join(rng.choices(_CHARACTERS, k=2))


def _number(rng: random.Random) -> str:
    return "".join(rng.choices(string.digits, k=rng.randint(2, 6)))


def _dated(rng: random.Random) -> str:
    return f"{rng.choice(_MONTHS)} {rng.randint(1, 31)}, {rng.randint(1900, 2050)}"


def _measured(rng: random.Random) -> str:
    return f"{_number(rng)} {_word(rng)}"


def _characters(rng: random.Random) -> str:
    return "".join(rng.choices(_CHARACTERS, k=rng.randint(3, 4)))


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
    units={
        _word: "words",
        _number: "numbers",
        _full_name: "persons",
        _name: "titles",
        _dated: "days",
        _measured: "weights",
    },
    names=(_full_name, _full_name, _name, _word),
    joints=("\n", "; ", ". ", ". "),
    listing="; ",
    whole="Copy the note that ends with {right}",
    gathered=("Gather the {unit}", "{unit}, one by one:", "Copy all {unit} from above or below", "All {unit}?"),
    checks=("Check this, {true} or {false}: {claim}", "{claim} {true}/{false}?", "{true}, {false}? {claim}"),
    checked=(
        "written {right}, claimed {claimed}: {verdict}",
        "{right} / {claimed}: {verdict}",
        "Found {right}, asked for {claimed}. So {verdict}",
        "{claimed} in place of {right}. Result: {verdict}",
        "({right}) ({claimed}) = {verdict}",
        "It has {right}, we have {claimed}. OUTCOME: {verdict}",
    ),
    verdicts=(("equal", "unequal"), ("same", "different"), ("right", "wrong"), ("fits", "fails"), ("good", "bad")),
    located="{word} {part}?",
    head_mark=": ",
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
    units={_short: "词语", _characters: "名字", _number: "数字", _chinese_date: "日子", _chinese_amount: "数量"},
    names=(_characters,),
    joints=("\n", "；", "。", "。"),
    listing="；",
    whole="抄写以{right}结尾的一条",
    gathered=("收集{unit}", "{unit}，一个一个写：", "抄下上下文的{unit}", "全部{unit}？"),
    checks=("核对，{true}或{false}：{claim}", "{claim}{true}／{false}？", "{true}，{false}？{claim}"),
    checked=(
        "写的{right}，说的{claimed}：{verdict}",
        "{right}／{claimed}：{verdict}",
        "找到{right}，问的{claimed}。所以{verdict}",
        "{claimed}代替{right}。结果：{verdict}",
        "（{right}）（{claimed}）＝{verdict}",
        "原来{right}，现在{claimed}。OUTCOME: {verdict}",
    ),
    verdicts=(("相同", "不同"), ("一致", "不一"), ("符合", "不合"), ("正确", "错误"), ("一样", "两样")),
    located="{word}{part}？",
    head_mark="：",
    acknowledged=("嗯。", "请继续。", "然后呢？"),
    filler=lambda rng: "".join(rng.choices(_CHARACTERS, k=rng.randint(1, 2))),
    space="",
    marks=("？", "。", "", "："),
)

if __name__ == "__main__":
    main()
