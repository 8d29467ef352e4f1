"""Generates retrieval cases. A case has one context, and many questions whose answers are at known depths.

- `lines` uses LongEval's wording (`glm2core.lines.records`), with keys and values that were never trained on.
- RULER's tasks keep RULER's names, and `topics` follows LongEval's other task (`glm2core.lines.facts`).
- `passkey` and `multikey` are in `plain_text.py`.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glm2core.console import Notice
from glm2core.evaluation.cases import Case, CountTokens, LengthTooShortError, Question, chance_of, too_short
from glm2core.evaluation.mixed import ONCE, mixed_cases
from glm2core.evaluation.plain_text import multikey_case, passkey_case
from glm2core.lines.records import RECORD_OVER, colliding, make_record, question_text, record_text
from glm2core.lines.words import pool


@dataclass(frozen=True)
class GeneratedCases:
    """The cases for every task and length.

    A task has `contexts * questions` questions per length, with the same number of questions at each depth. If a
    context is too short for all its questions, it gets fewer questions, and more contexts are made. Tasks in `ONCE`
    have one question per context. Among the tasks in `ONCE`, fwe has `contexts` contexts in all, and the others have
    `contexts` contexts at each depth. If contexts are shared, a task in `ONCE` asks one question per context.

    Args:
        tasks: names of tasks, as in `evaluate.retrieval.tasks`.
        lengths: lengths of whole prompts, in tokens.
        questions: number of questions per context; a multiple of `depths`.
        depths: number of parts of a context; each part has the same number of questions.
        shared: whether all tasks share the same contexts, which hold the facts of each task.
    """

    tasks: Sequence[str]
    lengths: Sequence[int]
    contexts: int
    questions: int
    depths: int
    seed: int
    shared: bool = False

    def cases(self, count_tokens: CountTokens, notice: Notice = print) -> Iterator[Case]:
        """Make the cases.

        Args:
            notice: called for each length that is left out because it is too short for a task, as can happen with a
                small tokenizer, which needs more tokens per line.

        Raises:
            LengthTooShortError: every length is too short for every task.
        """
        errors: list[LengthTooShortError] = []
        fits = False
        for group, length in itertools.product(self.groups, sorted(set(self.lengths))):
            for made in self._cases(group, length, count_tokens):
                if isinstance(made, Case):
                    fits = True
                    yield made
                else:
                    errors.append(made)
                    notice(f"left out: {made}")
        if errors and not fits:
            raise errors[0]

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Groups of tasks that share contexts."""
        tasks = tuple(dict.fromkeys(self.tasks))
        return [tasks] if self.shared and tasks else [(task,) for task in tasks]

    @property
    def questions_in_all(self) -> int:
        """Number of questions at all lengths, if every length is long enough."""
        return len(set(self.lengths)) * sum(map(self.questions_of, self.groups))

    def questions_of(self, group: tuple[str, ...]) -> int:
        """Number of questions of a group of tasks at each length."""
        return sum(self._questions(group).values())

    def contexts_of(self, group: tuple[str, ...]) -> int:
        """Number of contexts of a group at each length, if the contexts are long enough for all questions."""
        once = self._questions(group)[group[0]] if len(group) == 1 and group[0] in ONCE else 0
        return max(once, self.contexts)

    def _questions(self, group: tuple[str, ...]) -> dict[str, int]:
        alone = len(group) == 1
        once = {task: self.depths if alone and task != "fwe" else 1 for task in ONCE}
        return {task: self.contexts * once.get(task, self.questions) for task in group}

    def _cases(
        self, group: tuple[str, ...], length: int, count_tokens: CountTokens
    ) -> Iterator[Case | LengthTooShortError]:
        """Cases of one group and length, or the error if the length is too short."""
        build = {"lines": _lines_case, "multikey": multikey_case, "passkey": passkey_case}.get(" ".join(group))
        if build is None:
            yield from mixed_cases(
                self._questions(group), length, count_tokens, most=self.questions, depths=self.depths, seed=self.seed
            )
            return
        (task,) = group
        left = self.questions_of(group)
        for index in itertools.count():
            rng = random.Random(f"{task} {self.seed} {length} {index}")
            try:
                case = build(rng, self.depths, length, index, min(left, self.questions), count_tokens)
            except LengthTooShortError as error:
                yield error
                return
            yield case
            left -= len(case.questions)
            if not left:
                return


def _lines_case(rng: random.Random, depths: int, length: int, index: int, most: int, count: CountTokens) -> Case:
    words = pool("evaluation")
    longest = f"{max(words.adjectives, key=len)}-{max(words.nouns, key=len)}"
    ending = RECORD_OVER + question_text(longest)
    record = make_record(rng, length, lambda text: count(text + ending))
    asked = _spread(rng, len(record), depths, most)
    if not asked:
        raise too_short("lines", length, f"has only {len(record)} lines, and each depth needs one")
    collides = colliding(record)
    questions = [
        Question(
            text=RECORD_OVER + question_text(record[place].key),
            expected=record[place].value,
            depth=(place + 0.5) / len(record),
            colliding=collides[place],
        )
        for place in asked
    ]
    return Case("lines", length, index, record_text(record), tuple(questions), chance_of(record))


def _spread(rng: random.Random, pieces: int, depths: int, most: int) -> list[int]:
    """Indices of at most `most` distinct pieces, equally many from each depth."""
    rows: list[list[int]] = [[] for _ in range(depths)]
    for piece in range(pieces):
        rows[int((piece + 0.5) / pieces * depths)].append(piece)
    each = min(most // depths, min(map(len, rows)))
    return [piece for row in rows for piece in sorted(rng.sample(row, each))]
