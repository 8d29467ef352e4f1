"""Cases fill their length, ask equally at every depth, and describe their questions correctly."""

import re
from collections import Counter

import pytest

from glm2core.errors import UserError
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.lines.words import pool
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import SpTokenizer

ASKED = GeneratedCases(
    tasks=["lines", "passkey", "multikey"], lengths=[700, 3000], contexts=2, questions=20, depths=4, seed=1
)


def test_cases_fill_their_length_and_cells_evenly(tokenizer: SpTokenizer) -> None:
    count = ChatFormat(tokenizer, "chatglm2").count_tokens
    cases = list(ASKED.cases(count))
    assert cases == list(ASKED.cases(count))
    cells: Counter[tuple[str, int, int]] = Counter()
    for case in cases:
        sizes = [count(case.context + question.text) for question in case.questions]
        assert max(sizes) <= case.length
        assert max(sizes) > case.length - 60
        for question in case.questions:
            cells[case.task, case.length, int(question.depth * 4)] += 1
    for task, each in (("lines", 10), ("multikey", 10), ("passkey", 2)):
        assert [cells[task, length, row] for length in (700, 3000) for row in range(4)] == [each] * 8
    assert sum(cells.values()) == ASKED.questions_in_all


def test_asked_values_stand_at_their_depth_and_are_never_trained_on(tokenizer: SpTokenizer) -> None:
    training = pool("training")
    for case in ASKED.cases(ChatFormat(tokenizer, "chatglm2").count_tokens):
        for question in case.questions:
            assert question.expected not in training.values
            found = re.search(rf"\b{question.expected}\b", case.context)
            assert found
            # Header and sentences of different lengths shift a depth by some characters
            place = found.start() / len(case.context)
            assert abs(place - question.depth) < (0.08 if case.length > 1000 else 0.35)
        if case.task == "lines":
            keys = {question.text.split("in line ")[1].split("?")[0] for question in case.questions}
            assert len(keys) == len(case.questions)
            assert not {key.split("-")[0] for key in keys} & set(training.adjectives)


@pytest.mark.parametrize("task", ["lines", "passkey", "multikey"])
def test_a_length_too_short_for_a_task_is_named(tokenizer: SpTokenizer, task: str) -> None:
    asked = GeneratedCases([task], [128], contexts=1, questions=20, depths=20, seed=1)
    with pytest.raises(UserError, match=rf"evaluate\.retrieval\.lengths: 128 is too short for task {task}"):
        list(asked.cases(ChatFormat(tokenizer, "chatglm2").count_tokens))


def test_a_length_too_short_is_left_out_where_others_are_long_enough(tokenizer: SpTokenizer) -> None:
    asked = GeneratedCases(["lines"], [128, 1024], contexts=1, questions=20, depths=20, seed=1)
    told: list[str] = []
    cases = list(asked.cases(ChatFormat(tokenizer, "chatglm2").count_tokens, told.append))
    assert {case.length for case in cases} == {1024}
    assert len(told) == 1 and "left out: evaluate.retrieval.lengths: 128 is too short for task lines" in told[0]
