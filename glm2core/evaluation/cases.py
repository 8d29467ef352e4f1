"""A retrieval case: one context and the questions about it.

The context ends at a line break, which no token spans. The context's tokens therefore do not depend on
the question, and they are read only once for all questions.
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
        depth: where the middle of the requested piece lies, from 0 (start of the context) to 1 (end of the context);
            None if several pieces are requested.
        colliding: whether another key of the context shares a word with the requested key.
        references: texts that an answer must contain, as in RULER.
        any_reference: whether one of the references is enough, as in RULER's question answering.
        task: the question's task, if it differs from the case's task, as in a shared context.
        chance: the probability of a right guess, if it differs from the case's chance.
        begun: the start of the answer, which is given to the model (RULER's `answer_prefix`).
        most_new_tokens: maximum number of tokens in the answer; None = the number in params.
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
        index: number of the context among the contexts with the same task and length.
        context: text of the context; empty if a prompt from a file has no line break at which it can be split.
    """

    task: str
    length: int
    index: int
    context: str
    questions: tuple[Question, ...]
    chance: float


class LengthTooShortError(UserError):
    """With this tokenizer, a task does not fit into a context of this length."""

    def __init__(self, task: str, sentence: str) -> None:
        super().__init__(sentence)
        self.task = task


def too_short(task: str, length: int, reason: str) -> LengthTooShortError:
    """The error for a length that is too short for a task.

    Args:
        reason: the words that follow "a prompt of N tokens" in the error message.
    """
    return LengthTooShortError(
        task,
        f"evaluate.retrieval.lengths: {length} is too short for task {task}, as a prompt of {length} tokens {reason}. "
        "Raise the length, or lower evaluate.retrieval.depths.",
    )


def chance_of(record: Sequence[Line]) -> float:
    """The probability that a value drawn at random from the record is right."""
    return 1 / len({line.value for line in record})
