"""Scores against published figures and known values."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.evaluation.report import report_retrieval
from glm2core.evaluation.retrieval_tables import by_length, grid, retrieval_rows
from glm2core.evaluation.scores import (
    Answer,
    effective_length,
    last_integer,
    score,
    short_context_change,
    wilson_interval,
)

SHARED = Path(os.environ.get("GLM2CORE_SHARED", Path(__file__).resolve().parents[2] / "../shared"))
PREDICTIONS = SHARED / "data/longeval/predictions"
# Accuracy at 200, 300, 400, 500, 600 and 680 lines, as the predictions' authors counted them
PUBLISHED = {
    "chatglm2-6b": [0.32, 0.14, 0.06, 0.08, 0.06, 0.04],
    "longchat-13b-16k": [0.96, 0.94, 0.92, 0.94, 0.80, 0.60],
}
PUBLISHED_ROW = re.compile(r"^Label: (\d+), Predict: (.*?), Parsed: (-?\d+), prompt length: (\d+)\s*$", re.S | re.M)


def answer(output: str = "", expected: int = 7, **fields: object) -> Answer:
    values = {
        "task": "lines",
        "length": 512,
        "context": 0,
        "depth": 0.5,
        "colliding": False,
        "chance": 0.05,
        "prompt_tokens": 500,
    }
    return Answer(**(values | fields), expected=expected, output=output)  # type: ignore[arg-type]


def answers(right: int, cases: int, **fields: object) -> list[Answer]:
    return [answer("7" if case < right else "8", **fields) for case in range(cases)]


@pytest.mark.skipif(not PREDICTIONS.exists(), reason="the published predictions are not here")
@pytest.mark.parametrize("model", PUBLISHED)
def test_published_predictions_are_scored_as_published(model: str) -> None:
    found = []
    for lines in (200, 300, 400, 500, 600, 680):
        rows = PUBLISHED_ROW.findall((PREDICTIONS / model / f"{lines}_response.txt").read_text())
        assert len(rows) == 50
        scored = [answer(output, int(label)) for label, output, _, _ in rows]
        assert [a.predicted for a in scored] == [None if parsed == "-1" else int(parsed) for *_, parsed, _ in rows]
        found.append(score(scored).accuracy)
    assert found == PUBLISHED[model]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("line tall-eraser: REGISTER_CONTENT is <35148>", 35148),
        ("The <REGISTER_CONTENT> in line x2 is <12>.", 12),
        ("", None),
        ("no number", None),
        ("007", 7),
        ("1" * 5000, None),
    ],
)
def test_last_integer(text: str, number: int | None) -> None:
    assert last_integer(text) == number


def test_wilson_interval_has_its_known_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81/263, 15/148, 0/20, 1/29
    for right, cases, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(right, cases) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_interval_holds_the_share(a: int, b: int) -> None:
    right, cases = min(a, b), max(a, b)
    low, high = wilson_interval(right, cases)
    assert 0 <= low <= high <= 1
    assert not cases or low <= right / cases <= high  # a picture's error bars would be negative


def test_distinct_and_colliding_keys_are_counted_apart() -> None:
    group = answers(3, 4) + answers(1, 6, colliding=True)
    (row,) = by_length(retrieval_rows(group)).to_dicts()
    assert (row["cases"], row["right"], row["accuracy"]) == (10, 4, 0.4)
    assert (row["distinct_cases"], row["distinct_accuracy"]) == (4, 0.75)
    assert (row["colliding_cases"], row["colliding_accuracy"]) == (6, pytest.approx(1 / 6))
    assert by_length(retrieval_rows(answers(3, 4)))["colliding_accuracy"].to_list() == [None]


def test_grid_puts_answers_into_their_rows() -> None:
    asked = answers(1, 1, depth=0.0) + answers(0, 1, depth=0.19) + answers(2, 2, depth=0.999)
    cells = grid(retrieval_rows(asked), depths=5)
    assert cells.select("depth", "cases", "accuracy").rows() == [(0.1, 2, 0.5), (0.9, 2, 1.0)]


@pytest.mark.parametrize(
    ("right_of_20", "reached"),
    [
        ({512: 20, 1024: 18, 2048: 17, 4096: 16, 8192: 20}, 2048),  # 16 of 20 is below 85%; later lengths don't count
        ({512: 20, 1024: 20}, 1024),
        ({512: 10, 1024: 9, 2048: 8}, 1024),  # of the model's own accuracy, not of 1
        ({512: 1, 1024: 1}, 0),  # not above chance
        ({}, 0),
    ],
)
def test_effective_length(right_of_20: dict[int, int], reached: int) -> None:
    group = [a for length, right in right_of_20.items() for a in answers(right, 20, length=length)]
    assert effective_length(group) == reached


def test_short_context_change_counts_what_both_were_asked() -> None:
    tuned = answers(9, 10) + answers(0, 10, length=1024) + answers(10, 10, length=8192)
    base = answers(7, 10, model="base") + answers(0, 10, length=8192, model="base")
    assert short_context_change(tuned, base) == pytest.approx(0.2)
    assert short_context_change(tuned, []) is None


def test_the_curve_pools_tasks_and_leaves_the_base_out(tmp_path: Path) -> None:
    asked = [*answers(3, 4, task="lines", length=512), *answers(1, 4, task="passkey", length=512)]
    base = answers(4, 4, task="lines", length=512, model="base")
    report_retrieval(asked, base, 1, tmp_path)
    assert (tmp_path / "accuracy_by_length.csv").read_text("utf-8") == "length,accuracy\n512,0.5\n"
    # Newcombe's table has (0.0624, 0.1605) for 15 of 148
    report_retrieval(answers(15, 148, prompt_tokens=500), [], 1, tmp_path)
    header, line = (tmp_path / "retrieval_by_length.csv").read_text("utf-8").splitlines()
    assert header.startswith("model,task,length,cases,right,accuracy,low,high,chance,prompt_tokens,distinct_cases,")
    assert line == "tuned,lines,512,148,15,0.101351,0.0623858,0.160489,0.05,500,148,0.101351,0,"
