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
        expected: the last number in a right answer; None if `references` say what an answer must contain.
        depth: place of the requested piece's middle: 0 = start of the context, 1 = its end; None = several pieces.
        colliding: whether another key of the context shares a word with the requested key.
        references: texts that an answer must contain, as in RULER.
        any_reference: whether one of the references is enough (RULER's questions and answers).
        task: the question's task, if it differs from the case's, as on a shared context.
        chance: the question's chance, if it differs from the case's.
        begun: start of the answer, given to the model (RULER's `answer_prefix`).
        most_new_tokens: length of the longest answer, in tokens; None = as set in params.
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
        length: requested number of tokens, including prompt and question; 0 for cases read from a file.
        index: number of the context among those of its task and length.
        context: text of the context; empty if a file's prompt has no line break at which to split it.
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
    """The error for a length that is too short for a task.

    Args:
        reason: words that follow "a prompt of N tokens" in the sentence.
    """
    return LengthTooShortError(
        task,
        f"evaluate.retrieval.lengths: {length} is too short for task {task}: a prompt of {length} tokens {reason}. "
        "Raise the length, or lower evaluate.retrieval.depths.",
    )


def chance_of(record: Sequence[Line]) -> float:
    """Probability that a value named at random from the record is right."""
    return 1 / len({line.value for line in record})
