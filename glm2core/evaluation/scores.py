"""Scores of retrieval answers (exact match, or RULER's share), with intervals and effective lengths.

RULER's share (`string_match_all`) is the share of the references that an answer contains, ignoring case. In RULER's
question answering (`string_match_part`), one reference is enough.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_DIGITS = re.compile(r"\d+")
_LONGEST_NUMBER = 18  # digits; longer runs are noise, and no expected value is that long
_CONTROL = re.compile(r"[\x00-\x1f]")
EFFECTIVE_SHARE = 0.85
RULER_THRESHOLD = 0.856  # the score of Llama-2-7B at 4,096 tokens
SHORT_CONTEXT = 1024  # tokens; the range of a base without scaled positions
TUNED, BASE = "tuned", "base"


@dataclass(frozen=True)
class Answer:
    """One question, with the answer that a model gave."""

    task: str
    length: int  # requested tokens; 0 for cases read from a file
    context: int  # index of the context within task and length
    depth: float | None  # of the asked line: 0 at the start of the context, below 1 at its end; None for several lines
    colliding: bool  # whether another key in the context has one of the key's two words
    chance: float  # probability that naming one value of the context at random is right
    prompt_tokens: int
    expected: int | None  # the right number; None if there are references
    output: str
    model: str = TUNED
    references: Sequence[str] = ()
    any_reference: bool = False

    @property
    def predicted(self) -> int | None:
        return None if self.references else last_integer(self.output)

    @property
    def found(self) -> list[bool]:
        """For each reference, whether the answer contains it."""
        output = _CONTROL.sub("\n", self.output).strip().lower()
        return [reference.lower() in output for reference in self.references]

    @property
    def points(self) -> float:
        """1 for a right answer and 0 for a wrong one; if there are references, the share that the answer contains."""
        if not self.references:
            return float(self.predicted == self.expected)
        return float(any(self.found)) if self.any_reference else sum(self.found) / len(self.references)

    @property
    def correct(self) -> bool:
        return self.points == 1

    def record(self) -> dict[str, Any]:
        """All fields as JSON values; the references are included only if there are any."""
        values = asdict(self)
        if self.references:
            values |= {"references": list(self.references), "found": self.found, "points": self.points}
        else:
            del values["references"], values["any_reference"]
        return values | {"predicted": self.predicted, "correct": self.correct}


@dataclass(frozen=True)
class Score:
    """The points of a group of answers, with the 95% Wilson interval of the points' mean.

    The Wilson interval is too wide if some answers are partly right.

    Attributes:
        right: number of fully right answers.
    """

    cases: int
    right: int
    points: float

    @property
    def accuracy(self) -> float:
        return self.points / self.cases if self.cases else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.points, self.cases)


def last_integer(text: str) -> int | None:
    """The number in an answer, which is its last run of digits, as in LongEval; None if there are no digits."""
    runs = _DIGITS.findall(text)
    return int(runs[-1]) if runs and len(runs[-1]) <= _LONGEST_NUMBER else None


def wilson_interval(right: float, cases: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share (Wilson 1927), which stays within 0..1 and is not empty if the share is 0 or 1."""
    if cases == 0:
        return 0.0, 1.0
    share, spread = right / cases, z * z / cases
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / cases + spread / (4 * cases))
    # Rounding must not exclude the share itself
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def score(answers: Iterable[Answer]) -> Score:
    points = [answer.points for answer in answers]
    return Score(len(points), points.count(1), sum(points))


def effective_length(answers: Sequence[Answer], share: float = EFFECTIVE_SHARE) -> int:
    """The longest length up to which accuracy is at least `share` of the model's accuracy at the shortest length.

    The definition and its 85% come from NoLiMa. Every shorter length must reach this accuracy as well. The result is 0
    if the model does not beat chance at the shortest length.
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


def ruler_effective_length(answers: Sequence[Answer], threshold: float = RULER_THRESHOLD) -> int:
    """The longest length up to which the mean of all tasks' scores reaches RULER's threshold; 0 if no length does."""
    reached = 0
    for length, group in _grouped(answers, lambda answer: answer.length):
        scores = [score(of_task).accuracy for _, of_task in _grouped(group, lambda answer: answer.task)]
        if sum(scores) / len(scores) < threshold:
            break
        reached = length
    return reached


def short_context_change(tuned: Sequence[Answer], base: Sequence[Answer]) -> float | None:
    """How tuning changed accuracy on the short contexts that both models were asked about; below 0 if it fell.

    The result is None if there is no short context that both models were asked about.
    """
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
