"""RULER's kinds and shared contexts: all are answerable, fill their length, and report when they don't fit."""

from collections import Counter

import pytest

from glm2core.evaluation.cases import Case, Question
from glm2core.evaluation.mixed import ONCE, SHARED
from glm2core.evaluation.retrieval import _batches, answer_case
from glm2core.evaluation.scores import Answer
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.lines.records import RECORD_OVER, Line, question_text
from glm2core.lines.wordings import EVALUATION
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import SpTokenizer
from tests.lines.test_facts import KINDS

TASKS = [*KINDS, "passkey", "multikey"]
LENGTH = 2500


def answered(case: Case, question: Question, output: str) -> Answer:
    return Answer(
        question.task or case.task,
        case.length,
        case.index,
        question.depth,
        question.colliding,
        question.chance or case.chance,
        0,
        question.expected,
        output,
        references=question.references,
        any_reference=question.any_reference,
    )


def generated(tasks: list[str], length: int = LENGTH, *, shared: bool) -> GeneratedCases:
    return GeneratedCases(tasks, [length], contexts=2, questions=8, depths=4, seed=1, shared=shared)


@pytest.mark.parametrize("tasks", [[task] for task in TASKS] + [TASKS, ["vt", "lines", "niah_multikey_3"]])
def test_every_question_is_answerable_and_a_reference_scores_100(tokenizer: SpTokenizer, tasks: list[str]) -> None:
    count = ChatFormat(tokenizer, "chatglm2").count_tokens
    asked = generated(tasks, shared=True)
    cases = list(asked.cases(count))
    assert cases == list(asked.cases(count))
    numbers: Counter[str] = Counter()
    for case in cases:
        assert case.task == (tasks[0] if len(tasks) == 1 else SHARED)
        assert case.context.endswith("\n")
        sizes = [count(case.context + question.text) for question in case.questions]
        assert LENGTH - 120 < max(sizes) <= LENGTH
        assert len({question.text for question in case.questions}) == len(case.questions)
        for question in case.questions:
            references = question.references or (str(question.expected),)
            assert all(reference in case.context for reference in references)
            assert len(set(references)) == len(references)
            right = answered(case, question, ", ".join(references))
            assert (right.points, right.correct) == (1.0, True)
            assert answered(case, question, "nothing").points == 0
            if len(references) > 1:
                assert answered(case, question, references[0].upper()).points == 1 / len(references)
            numbers[right.task.rpartition("_")[0] if right.task.startswith("vt") else right.task] += 1
    for task in tasks:
        most = 16 if task not in ONCE else 8 if len(tasks) == 1 and task != "fwe" else 2
        assert numbers[task] == most
    assert sum(numbers.values()) == asked.questions_in_all


def test_a_shared_context_is_read_once_for_all_tasks(tokenizer: SpTokenizer) -> None:
    count = ChatFormat(tokenizer, "chatglm2").count_tokens
    tasks = ["lines", "niah_multikey_3", "niah_multivalue", "vt"]
    long = list(generated(tasks, 12_000, shared=True).cases(count))
    assert len(long) == 2
    assert {question.task for question in long[0].questions} == {"lines", *tasks[1:3], "vt_1", "vt_2", "vt_4"}
    short = list(generated(tasks, 800, shared=True).cases(count))
    assert len(short) > 2 * len(long)
    assert len(list(generated(tasks, 12_000, shared=False).cases(count))) == 8


def test_questions_with_one_answer_are_spread_over_the_depths(tokenizer: SpTokenizer) -> None:
    count = ChatFormat(tokenizer, "chatglm2").count_tokens
    for length in (900, 6000):
        cases = generated(["lines", "niah_multikey_3", "vt"], length, shared=True).cases(count)
        depths = [(q.task, q.depth) for case in cases for q in case.questions if q.depth is not None]
        rows = Counter((task, min(3, int(depth * 4))) for task, depth in depths if depth is not None)
        # A place is a share of the lines, some of which are asked about: a row's border may move by a line
        assert all(2 <= rows[task, row] <= 6 for task in ("lines", "niah_multikey_3") for row in range(4)), rows


def test_what_does_not_fit_is_named_and_the_rest_is_asked(tokenizer: SpTokenizer) -> None:
    count = ChatFormat(tokenizer, "chatglm2").count_tokens
    told: list[str] = []
    line = Line("marvellous", "rearrangement", 12345)
    length = count(EVALUATION.header + f"{line.text}\n\n" + RECORD_OVER + question_text(line.key))  # of one line
    cases = list(generated(["niah_multivalue", "lines"], length, shared=True).cases(count, told.append))
    assert {question.task for case in cases for question in case.questions} == {"lines"}
    assert len(told) == 1 and f"{length} is too short for task niah_multivalue" in told[0]


def test_lines_alone_are_the_same_questions_shared_or_not(tokenizer: SpTokenizer) -> None:
    count = ChatFormat(tokenizer, "chatglm2").count_tokens
    alone, shared = (list(generated(["lines"], shared=shared).cases(count)) for shared in (False, True))
    assert alone == shared


def test_questions_in_batches_are_answered_as_each_alone(model: ChatGLM2ForCausalLM, tokenizer: SpTokenizer) -> None:
    chat_format = ChatFormat(tokenizer, "chatglm2")
    case = next(iter(generated(["niah_multikey_3", "vt", "lines"], 2000, shared=True).cases(chat_format.count_tokens)))
    many = Case(SHARED, 2000, 0, case.context, 8 * case.questions, 0.0)
    _, tails = chat_format.encode_questions(many.context, [question.text for question in many.questions])
    assert len(list(_batches(tails))) > 1
    together = answer_case(model, chat_format, many, prefill_chunk=4096, max_new_tokens=6)
    first = len(case.questions)
    for number, question in enumerate(case.questions[:3]):
        alone = Case(SHARED, 2000, 0, case.context, (question,), 0.0)
        (answer,) = answer_case(model, chat_format, alone, prefill_chunk=4096, max_new_tokens=6)
        assert answer == together[number] == together[number + 7 * first]
