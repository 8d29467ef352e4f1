"""Scores of retrieval answers: exact match by length and depth, with intervals and the chance level."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_DIGITS = re.compile(r"\d+")
_LONGEST_NUMBER = 18  # digits; longer runs are babble, and no expected value has as many
EFFECTIVE_SHARE = 0.85
SHORT_CONTEXT = 1024  # tokens; up to here a base without scaled positions is at home
TUNED, BASE = "tuned", "base"


@dataclass(frozen=True)
class Answer:
    """One question as it was asked and answered."""

    task: str
    length: int  # tokens asked for; 0 for cases read from a file
    context: int  # index of the context within task and length
    depth: float  # place of the asked line: 0 = at the start of the context, below 1
    colliding: bool  # another key of the context shares one of the two words
    chance: float  # probability that naming one value of the context at random is right
    prompt_tokens: int
    expected: int
    output: str
    model: str = TUNED

    @property
    def predicted(self) -> int | None:
        return last_integer(self.output)

    @property
    def correct(self) -> bool:
        return self.predicted == self.expected

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"predicted": self.predicted, "correct": self.correct}


@dataclass(frozen=True)
class Score:
    """Right answers of a group, with the 95% Wilson interval of their share."""

    cases: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.cases if self.cases else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.right, self.cases)


def last_integer(text: str) -> int | None:
    """The number an answer names: the last run of digits, as LongEval reads it; None where there is none."""
    runs = _DIGITS.findall(text)
    return int(runs[-1]) if runs and len(runs[-1]) <= _LONGEST_NUMBER else None


def wilson_interval(right: int, cases: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): never outside 0..1, and honest where all or none are right."""
    if cases == 0:
        return 0.0, 1.0
    share, spread = right / cases, z * z / cases
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / cases + spread / (4 * cases))
    # Rounding must not put the share itself outside
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def score(answers: Iterable[Answer]) -> Score:
    marks = [answer.correct for answer in answers]
    return Score(len(marks), sum(marks))


def effective_length(answers: Sequence[Answer], share: float = EFFECTIVE_SHARE) -> int:
    """The longest length up to which accuracy holds `share` of the model's own at the shortest length.

    NoLiMa's definition with its 85%. Every shorter length has to hold too. 0 where the model does not
    beat chance at the shortest length: then there is nothing to hold.
    """
    groups = _grouped(answers, lambda answer: answer.length)
    if not groups:
        return 0
    shortest = score(groups[0][1])
    if shortest.interval[0] <= _chance(groups[0][1]):
        return 0
    reached = 0
    for length, group in groups:
        if score(group).accuracy < share * shortest.accuracy:
            break
        reached = length
    return reached


def short_context_change(tuned: Sequence[Answer], base: Sequence[Answer]) -> float | None:
    """Accuracy that tuning won (or, below 0, lost) on the short contexts both were asked; None where there are none."""
    asked = {(answer.task, answer.length) for answer in base if 0 < answer.length <= SHORT_CONTEXT}
    both = [[answer for answer in group if (answer.task, answer.length) in asked] for group in (tuned, base)]
    return score(both[0]).accuracy - score(both[1]).accuracy if all(both) else None


def _chance(group: Sequence[Answer]) -> float:
    return sum(answer.chance for answer in group) / len(group)


def _grouped(answers: Sequence[Answer], key: Callable[[Answer], Any]) -> list[tuple[Any, list[Answer]]]:
    groups: dict[Any, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return sorted(groups.items(), key=lambda item: item[0])
