"""Makes records of lines and questions about them, for training and for measuring retrieval.

Records and questions are worded exactly as in LongEval's `lines` task (DachengLi1/LongChat, `longeval/`,
Apache-2.0), so that results can be compared with published results.
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
    """One line of a record. Its key is `adjective-noun`."""

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
    """Return the text in front of the first question: the header, the record and an empty line."""
    return HEADER + "".join(f"{line.text}\n" for line in lines) + "\n"


def question_text(key: str) -> str:
    """Return a question about the record. `RECORD_OVER` precedes the first one. The space at the end is LongEval's."""
    return f"Tell me what is the <REGISTER_CONTENT> in line {key}? I need the number. "


def answer_text(line: Line) -> str:
    """Return the expected answer, which is the whole line.

    Small models learn to copy a line long before they learn to name only the number. LongEval's scorer reads the last
    integer of an answer, so it scores a line like a bare number.
    """
    return line.text


def generate_conversations(spec: GeneratedLines) -> Iterator[list[dict[str, str]]]:
    """Yield conversations with training words.

    The first message contains a record and the first question. Then answers and questions alternate.
    A record with fewer lines than `spec.questions` gets one question per line. Conversation `i` depends
    only on the seed and `i`.

    Yields:
        Messages `{"role": "user" | "assistant", "content": text}`, of which the last one is an answer.
    """
    words = pool("training")
    for index in range(spec.conversations):
        yield conversation(random.Random(f"lines {spec.seed} {index}"), spec, words)


def make_record(
    rng: random.Random, tokens: int, count_tokens: Callable[[str], int], words: Pool | None = None
) -> list[Line]:
    """Draw as many lines as fit into `tokens` together with the header. All lines have different keys.

    Args:
        rng: draws the keys, the values and their order.
        tokens: the largest number of tokens that `record_text` of the lines may have.
        count_tokens: a function that counts a text's tokens, and that is called only a few times per record.
        words: the source of keys and values; None = the evaluation pool.

    Returns:
        The lines. The list is empty if not even one line fits.
    """
    stream = _different_lines(rng, words or pool("evaluation"))
    drawn: list[Line] = []

    def tokens_of(count: int) -> int:
        drawn.extend(itertools.islice(stream, count - len(drawn)) if count > len(drawn) else ())
        return count_tokens(record_text(drawn[:count]))

    return drawn[: largest_fitting(tokens_of, tokens)]


def largest_fitting(tokens_of: Callable[[int], int], budget: int) -> int:
    """Return how many pieces fit into `budget` tokens, if all pieces have about the same number of tokens.

    The result is the largest number that fits, or smaller by one or two. `tokens_of` is called only a few times.
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
    """Draw `count` lines with different keys; with `hard_negatives`, the lines share words and first digits.

    In a long record, many lines share a word or some digits with the line that a question asks for.
    Hard negatives add such lines to short records, too.
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
    """Draw values like a few four-digit stems: the stem itself, with a fifth digit, or with a different last digit."""
    known = frozenset(words.values)
    values: list[int] = []
    for stem in rng.sample(range(1000, LARGEST_VALUE // 10), math.ceil(count / _LINES_A_STEM)):
        around = [stem, *range(10 * stem, 10 * stem + 10), *range(stem - stem % 10, stem - stem % 10 + 10)]
        values += rng.choices([value for value in around if value in known] or words.values, k=_LINES_A_STEM)
    rng.shuffle(values)
    return values[:count]


def parse_record(text: str) -> list[Line]:
    """Parse the lines of a record in LongEval's form. LongEval's words may contain a space or a hyphen."""
    return [Line(adjective, noun, int(value)) for adjective, noun, value in _LINE.findall(text)]


def colliding(lines: Sequence[Line]) -> list[bool]:
    """Return, for each line, whether a different line of the record contains the same adjective or noun.

    Wrong answers about colliding keys mean that the model confuses keys. Wrong answers about distinct keys mean that
    the model loses positions.
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
    """Draw one conversation of `generate_conversations` with `rng`."""
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
