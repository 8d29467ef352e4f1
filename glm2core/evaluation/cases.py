"""A retrieval case: one context and the questions about it.

The context ends at a line break, which no token spans. Its tokens therefore do not depend on the
question, and are read once for all its questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glm2core.errors import UserError
from glm2core.lines.records import Line

CountTokens = Callable[[str], int]  # text of a user message -> tokens of the whole prompt


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        expected: the last number in a right answer; None if `references` list what it must contain.
        depth: middle of the asked piece: 0 = start of the context, 1 = its end; None if it is in several places.
        colliding: another key of the context shares a word with the asked one.
        references: RULER's: texts that an answer must contain.
        any_reference: one of them is enough (RULER's questions and answers).
        task: if it differs from the case's, as on a shared context.
        chance: if it differs from the case's.
        begun: start of the answer, given to the model (RULER's `answer_prefix`).
        most_new_tokens: longest answer; None = as set in params.
    """

    text: str
    expected: int | None
    depth: float | None
    colliding: bool
    references: tuple[str, ...] = ()
    any_reference: bool = False
    task: str | None = None
    chance: float | None = None
    begun: str = ""
    most_new_tokens: int | None = None


@dataclass(frozen=True)
class Case:
    """A context with its questions.

    Args:
        length: requested tokens, including prompt and question; 0 for cases read from a file.
        index: number of the context within task and length.
        context: empty if a file's prompt has no line break to split at.
    """

    task: str
    length: int
    index: int
    context: str
    questions: tuple[Question, ...]
    chance: float


class LengthTooShortError(UserError):
    """With this tokenizer a task does not fit into a context of this length."""

    def __init__(self, task: str, sentence: str) -> None:
        super().__init__(sentence)
        self.task = task


def too_short(task: str, length: int, reason: str) -> LengthTooShortError:
    """Build the error.

    Args:
        reason: continues the sentence "a prompt of N tokens".
    """
    return LengthTooShortError(
        task,
        f"evaluate.retrieval.lengths: {length} is too short for task {task}: a prompt of {length} tokens {reason}. "
        "Raise the length, or lower evaluate.retrieval.depths.",
    )


def chance_of(record: Sequence[Line]) -> float:
    """Probability that a value named at random from the record is right."""
    return 1 / len({line.value for line in record})
