"""Makes records of lines and questions about them, for training and for measuring retrieval.

The wording of record and question is exactly that of LongEval's `lines` task (DachengLi1/LongChat,
`longeval/`, Apache-2.0), so that results compare with the published ones.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from glm2core.lines.words import LARGEST_VALUE, Pool, pool
from glm2core.params import GeneratedLines

HEADER = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains "
    "a '<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
    "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
    "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
)
RECORD_OVER = "Now the record is over. "
_LINE = re.compile(r"^line ([^:\n]+?)-([^:\n]+): REGISTER_CONTENT is <(\d+)>$", re.MULTILINE)
_LINES_A_STEM = 6
_SAMPLE = 32  # lines for a first estimate of their cost


@dataclass(frozen=True)
class Line:
    """One line of a record: the key is `adjective-noun`."""

    adjective: str
    noun: str
    value: int

    @property
    def key(self) -> str:
        return f"{self.adjective}-{self.noun}"

    @property
    def text(self) -> str:
        return f"line {self.key}: REGISTER_CONTENT is <{self.value}>"


def record_text(lines: Sequence[Line]) -> str:
    """The header and the record, up to where the first question starts; the text ends in an empty line."""
    return HEADER + "".join(f"{line.text}\n" for line in lines) + "\n"


def question_text(key: str) -> str:
    """A question after the record; `RECORD_OVER` goes before the first question. The last space is LongEval's."""
    return f"Tell me what is the <REGISTER_CONTENT> in line {key}? I need the number. "


def answer_text(line: Line) -> str:
    """The answer is the whole line: small models learn to copy a line long before they learn to name only the number.

    LongEval's scorer reads the last integer, so a line counts like a bare number.
    """
    return line.text


def generate_conversations(spec: GeneratedLines) -> Iterator[list[dict[str, str]]]:
    """Yield conversations with training words: a record and its first question, the answer, the next question, ...

    A record shorter than `spec.questions` gets one question per line. Conversation `i` depends only on
    the seed and `i`.

    Yields:
        Messages `{"role": "user" | "assistant", "content": text}`, ending with an answer.
    """
    words = pool("training")
    for index in range(spec.conversations):
        yield conversation(random.Random(f"lines {spec.seed} {index}"), spec, words)


def make_record(
    rng: random.Random, tokens: int, count_tokens: Callable[[str], int], words: Pool | None = None
) -> list[Line]:
    """As many lines, all with different keys, as fit into `tokens` together with the header.

    Args:
        rng: Decides keys, values and order.
        tokens: Budget for `record_text`.
        count_tokens: Counts the tokens of a text. Called a few times on the whole record, whatever its length.
        words: Source of keys and values; the evaluation pool by default.

    Returns:
        The lines; none if not even one fits.
    """
    stream = _different_lines(rng, words or pool("evaluation"))
    drawn: list[Line] = []

    def tokens_of(count: int) -> int:
        drawn.extend(itertools.islice(stream, count - len(drawn)) if count > len(drawn) else ())
        return count_tokens(record_text(drawn[:count]))

    return drawn[: largest_fitting(tokens_of, tokens)]


def largest_fitting(tokens_of: Callable[[int], int], budget: int) -> int:
    """How many pieces fit into `budget` tokens, if each piece costs about the same.

    The result is the largest number that fits, or one or two less. `tokens_of` is called only a few times.
    """
    empty = tokens_of(0)
    cost = (tokens_of(_SAMPLE) - empty) / _SAMPLE
    count = 0
    for _ in range(2):
        count = max(1, round((budget - empty) / cost))
        cost = (tokens_of(count) - empty) / count
    while count > 0 and (excess := tokens_of(count) - budget) > 0:
        count -= max(1, int(excess / cost))
    return max(count, 0)


def draw_lines(rng: random.Random, count: int, words: Pool, hard_negatives: bool = False) -> list[Line]:
    """`count` lines with different keys; with `hard_negatives`, lines share words and first digits with each other.

    A long record has many lines that share a word or some digits with the line that is asked for;
    hard negatives give a short record such lines.
    """
    adjectives, nouns = words.adjectives, words.nouns
    if hard_negatives:
        side = math.ceil(math.sqrt(2 * count))
        adjectives, nouns = tuple(rng.sample(adjectives, side)), tuple(rng.sample(nouns, side))
    keys = rng.sample(range(len(adjectives) * len(nouns)), count)
    values = _values_alike(rng, count, words) if hard_negatives else rng.choices(words.values, k=count)
    return [
        Line(adjectives[key // len(nouns)], nouns[key % len(nouns)], value)
        for key, value in zip(keys, values, strict=True)
    ]


def _values_alike(rng: random.Random, count: int, words: Pool) -> list[int]:
    """Values around a few stems of four digits: the stem itself, with a fifth digit, or with another last digit."""
    known = frozenset(words.values)
    values: list[int] = []
    for stem in rng.sample(range(1000, LARGEST_VALUE // 10), math.ceil(count / _LINES_A_STEM)):
        around = [stem, *range(10 * stem, 10 * stem + 10), *range(stem - stem % 10, stem - stem % 10 + 10)]
        values += rng.choices([value for value in around if value in known] or words.values, k=_LINES_A_STEM)
    rng.shuffle(values)
    return values[:count]


def parse_record(text: str) -> list[Line]:
    """The lines in the text of a record in LongEval's form; LongEval's words may have a space or a hyphen."""
    return [Line(adjective, noun, int(value)) for adjective, noun, value in _LINE.findall(text)]


def colliding(lines: Sequence[Line]) -> list[bool]:
    """For each line, whether another line of the record shares its adjective or its noun.

    Wrong answers for colliding keys mean that keys are confused; for distinct keys, that positions are lost.
    """
    adjectives = Counter(line.adjective for line in lines)
    nouns = Counter(line.noun for line in lines)
    return [adjectives[line.adjective] > 1 or nouns[line.noun] > 1 for line in lines]


def _different_lines(rng: random.Random, words: Pool) -> Iterator[Line]:
    seen = set()
    while True:
        line = Line(rng.choice(words.adjectives), rng.choice(words.nouns), rng.choice(words.values))
        if line.key not in seen:
            seen.add(line.key)
            yield line


def conversation(rng: random.Random, spec: GeneratedLines, words: Pool) -> list[dict[str, str]]:
    """One conversation of `generate_conversations`, drawn with `rng`."""
    count = rng.choice(spec.lines)
    hard = rng.random() < spec.hard_negatives
    repeated = rng.random() < spec.repeats
    different = draw_lines(rng, math.ceil(count / 2) if repeated else count, words, hard)
    record = list(different)
    if repeated:
        record += rng.choices(different, k=count - len(different))
        rng.shuffle(record)
    asked = rng.sample(different, min(spec.questions, len(different)))
    messages = []
    for round_number, line in enumerate(asked):
        before = record_text(record) + RECORD_OVER if round_number == 0 else ""
        messages += [
            {"role": "user", "content": before + question_text(line.key)},
            {"role": "assistant", "content": answer_text(line)},
        ]
    return messages
