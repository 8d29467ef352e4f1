"""The choice of the worst answers."""

from pathlib import Path

from glm2core.evaluation.worst import misses, worst_answers
from tests.evaluation.reports import HOSTILE, write_reports


def test_the_worst_of_a_source_come_first_and_exact_answers_never(tmp_path: Path) -> None:
    write_reports(tmp_path)
    worst = worst_answers(tmp_path)
    assert [(answer.source, answer.given) for answer in worst] == [("rows.json", HOSTILE)] * 3
    assert [answer.expected for answer in worst] == [f"the right answer {number}" for number in (0, 2, 4)]


def test_misses_have_the_expected_number_and_the_answer(tmp_path: Path) -> None:
    write_reports(tmp_path)
    missed = [(miss.tokens, miss.depth, miss.expected, miss.given) for miss in misses(tmp_path)]
    assert missed == [(length, depth, "41", HOSTILE) for length in (512, 1024) for depth in (0.6, 0.9)]


def test_without_reports_there_are_none(tmp_path: Path) -> None:
    assert worst_answers(tmp_path) == misses(tmp_path) == []
