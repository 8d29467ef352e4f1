"""The words of the notes in `scripts/copying.py`: units such as names, verbs, and questions, in two languages.

No wording of `glm2core.analysis` is used, and none of its held-out entities.
"""

import random
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from glm2core.analysis.entities import split_of  # noqa: E402

Unit = Callable[[random.Random], str]
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
        comparing: questions whether the parts of each of the following pairs are equal. `brief` makes short parts.
        verdicts: words for an answer: the first is used if the claim is true, the second if not.
    """

    verbs: tuple[Verb, ...]
    units: dict[Unit, str]
    names: tuple[Unit, ...]
    joints: tuple[str, ...]
    listing: str
    whole: str
    gathered: tuple[str, ...]
    comparing: tuple[str, ...]
    brief: Unit
    checks: tuple[str, ...]
    checked: tuple[str, ...]
    verdicts: tuple[tuple[str, str], ...]
    located: str
    head_mark: str
    acknowledged: tuple[str, ...]
    filler: Unit
    space: str
    marks: tuple[str, ...]


def altered(rng: random.Random, part: str) -> str:
    """The part with up to half of its characters replaced by others of their class."""
    characters = list(part)
    for place in rng.sample(range(len(part)), rng.randint(1, max(1, len(part) // 2))):
        alphabet = next((each for each in _ALPHABETS if characters[place] in each), characters[place])
        characters[place] = rng.choice(alphabet)
    return "".join(characters)


def drawn(rng: random.Random, units: Sequence[Unit]) -> str:
    while True:
        text = rng.choice(units)(rng)
        if is_trained_on(text):
            return text


def is_trained_on(text: str) -> bool:
    return all(split_of(part) == "training" for part in (text, *text.split()))


def _word(rng: random.Random) -> str:
    syllables = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 3)))
    return syllables + rng.choice(("", *_CONSONANTS, *_CONSONANTS))


def _brief(rng: random.Random) -> str:
    return rng.choice(
        (rng.choice(string.digits), str(rng.randint(10, 99)), rng.choice(_CONSONANTS) + rng.choice(_VOWELS))
    )


def _brief_chinese(rng: random.Random) -> str:
    return rng.choice((rng.choice(_CHARACTERS), rng.choice(string.digits), "".join(rng.choices(_CHARACTERS, k=2))))


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
    comparing=(
        "Compare, {true} or {false}:",
        "{true} / {false}, pair by pair:",
        "Go through the pairs: {true}, {false}?",
    ),
    brief=_brief,
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
    comparing=("比较，{true}或{false}：", "{true}／{false}，一对一对写：", "看每一对：{true}，{false}？"),
    brief=_brief_chinese,
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
