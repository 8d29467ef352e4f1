"""A retrieval case: one context and the questions about it.

Context ends and question starts at a line break, where no token spans the border: the context's
tokens are the same whatever is asked, and are read once for all its questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glm2core.errors import UserError
from glm2core.lines.records import Line

CountTokens = Callable[[str], int]  # text of a user's message -> tokens of the whole prompt


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        expected: the number that an answer names last; None where `references` say what it has to hold.
        depth: middle of the asked piece: 0 = start of the context, 1 = its end; None where it is in several places.
        colliding: another key of the context shares a word with the asked one.
        references: RULER's: what an answer has to hold.
        any_reference: one of them is enough (RULER's questions and answers).
        task: where it is another than the case's, as on a context that is shared.
        chance: where it is another than the case's.
        begun: how the answer begins, given to the model (RULER's `answer_prefix`).
        most_new_tokens: longest answer; None = as params say.
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
        length: tokens asked for, prompt and question included; 0 for cases read from a file.
        index: of the context within task and length.
        context: empty where a file's prompt has no line break to part it at.
    """

    task: str
    length: int
    index: int
    context: str
    questions: tuple[Question, ...]
    chance: float


class LengthTooShortError(UserError):
    """A task does not fit into a context of this length, by this tokenizer."""

    def __init__(self, task: str, sentence: str) -> None:
        super().__init__(sentence)
        self.task = task


def too_short(task: str, length: int, reason: str) -> LengthTooShortError:
    """The error in words.

    Args:
        reason: goes on behind "a prompt of so many tokens".
    """
    return LengthTooShortError(
        task,
        f"evaluate.retrieval.lengths: {length} is too short for task {task}: a prompt of {length} tokens {reason}. "
        "Raise the length, or lower evaluate.retrieval.depths.",
    )


def chance_of(record: Sequence[Line]) -> float:
    """That one of the record's values, named at random, is right."""
    return 1 / len({line.value for line in record})
