"""Makes contexts for RULER's tasks. If several tasks share a context, its record contains the facts of all of them."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping

from glm2core.evaluation.cases import Case, CountTokens, LengthTooShortError, Question, too_short
from glm2core.evaluation.plain_text import multikey_fact, passkey_fact
from glm2core.lines.draws import Draws
from glm2core.lines.facts import ONCE as FACTS_ONCE
from glm2core.lines.facts import Fact, facts
from glm2core.lines.mixture import AskedFact, Mixture, places
from glm2core.lines.records import RECORD_OVER, colliding, largest_fitting, parse_record
from glm2core.lines.wordings import EVALUATION

ONCE = ("passkey", *FACTS_ONCE)  # tasks with one question per context
SHARED = "shared"  # the task's name in cases with several tasks
_NEW_TOKENS = 160  # answers that repeat four lines have up to 140 tokens with the embedded tokenizer
_FULL = 0.75  # largest share of a context that is asked about; more questions need more contexts
_BY_NUMBER = ("lines", "passkey", "multikey")  # an answer is right if its last number is right


def mixed_cases(
    questions: Mapping[str, int], length: int, count_tokens: CountTokens, *, most: int, depths: int, seed: int
) -> Iterator[Case | LengthTooShortError]:
    """Make contexts, each with as many questions as fit, until every task has all its questions.

    If a context is too short for a fact of each task, it leaves out the tasks with the fewest remaining questions.

    Args:
        questions: number of questions for each task.
        length: length of each whole prompt, in tokens.
        most: maximum number of questions of one task in a context.
        depths: number of equal parts of a context; answers that stand in one place are put into these parts in turn.

    Yields:
        The cases. For each task that does not fit into a context even alone, one error with the reason.
    """
    left, asked = dict(questions), Counter[str]()
    task = SHARED if len(questions) > 1 else next(iter(questions))
    for index in itertools.count():
        open_tasks = [name for name, number in left.items() if number]
        if not open_tasks:
            return
        seed_of_case = f"{' '.join(questions)} {seed} {length} {index}"
        wanted = {name: 1 if name in ONCE else min(left[name], most) for name in open_tasks}
        filled = _filled(seed_of_case, wanted, left, asked, length, depths, count_tokens)
        if isinstance(filled, LengthTooShortError):
            left[filled.task] = 0
            yield filled
            continue
        wanted, text, answered = filled
        yield _case(text, answered, length, index, task)
        for name, number in wanted.items():
            left[name] -= number
            asked[name] += number


def _filled(
    seed: str,
    wanted: dict[str, int],
    left: Mapping[str, int],
    asked: Counter[str],
    length: int,
    depths: int,
    count_tokens: CountTokens,
) -> tuple[dict[str, int], str, list[AskedFact]] | LengthTooShortError:
    """A record with as many of the wanted questions as fit, filled up to `length`.

    It is given as the number of questions of each task, the record's text, and the facts that are asked for.
    """
    while True:
        mixture, questions = _mixture(seed, wanted, asked, depths)
        ending = max(questions, key=len)
        base, full = (count_tokens(text + ending) for text in (EVALUATION.header, mixture.text(0)))
        share = (full - base) / max(length - base, 1)
        smaller = _fewer(wanted, left, share) if full > length or share > _FULL else None
        if smaller is None:
            ending = max(questions, key=count_tokens)
            full = count_tokens(mixture.text(0) + ending)
            smaller = _fewer(wanted, left, share) if full > length else None
        if smaller is None:
            break
        wanted = smaller
    if full > length:
        (task,) = wanted
        return too_short(task, length, f"has no room for the facts that it asks for ({full} tokens)")
    count = largest_fitting(lambda lines: count_tokens(mixture.text(lines) + ending), length)
    return wanted, *mixture.record(count)


def _fewer(wanted: Mapping[str, int], left: Mapping[str, int], share: float) -> dict[str, int] | None:
    """Fewer questions of each task, or fewer tasks; None if only one question of one task is left."""
    largest = max(wanted.values())
    if largest > 1:
        limit = max(1, min(largest - 1, int(largest * _FULL / share)))
        return {task: min(number, limit) for task, number in wanted.items()}
    if len(wanted) > 1:
        least = min(reversed(list(wanted)), key=lambda task: left[task])
        return {task: 1 for task in wanted if task != least}
    return None


def _mixture(name: str, wanted: Mapping[str, int], asked: Counter[str], depths: int) -> tuple[Mixture, list[str]]:
    """Facts with their places, and the questions about them."""
    draws = Draws(random.Random(name), "evaluation")
    placed = [
        (fact, places(draws.rng, fact, (asked[task] + number) % depths, depths))
        for task, most in wanted.items()
        for number, fact in enumerate(itertools.islice(_facts(task, draws, asked[task]), most))
    ]
    questions = [fact.question for fact, _ in placed] + [EVALUATION.coded_question] * ("fwe" in wanted)
    return Mixture(placed, wanted, draws, EVALUATION), [RECORD_OVER + question for question in questions]


def _facts(task: str, draws: Draws, start: int) -> Iterator[Fact]:
    if task == "multikey":
        return (multikey_fact(draws) for _ in itertools.count())
    return iter([passkey_fact(draws)]) if task == "passkey" else facts(task, draws, EVALUATION, start)


def _case(text: str, answered: list[AskedFact], length: int, index: int, task: str) -> Case:
    lines = parse_record(text)
    collides = dict(zip((line.text for line in lines), colliding(lines), strict=True))
    questions = [_question(entry, collides.get(entry.fact.answer, False)) for entry in answered]
    return Case(task, length, index, text, tuple(questions), 0.0)


def _question(entry: AskedFact, collides: bool) -> Question:
    fact = entry.fact
    by_number = fact.kind in _BY_NUMBER
    wanted = len(fact.references)
    return Question(
        RECORD_OVER + fact.question,
        int(fact.references[0]) if by_number else None,
        entry.depth,
        collides,
        () if by_number else fact.references,
        task=fact.kind,
        chance=wanted / entry.candidates if entry.candidates > wanted else 0.0,
        most_new_tokens=None if by_number else _NEW_TOKENS,
    )
