"""Scores against published figures and known values."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.evaluation.report import report_retrieval
from glm2core.evaluation.retrieval_tables import by_hop, by_length, effective_lengths, grid, retrieval_rows
from glm2core.evaluation.scores import (
    Answer,
    effective_length,
    last_integer,
    ruler_effective_length,
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


@pytest.mark.parametrize(
    ("references", "output", "points"),
    [
        # By hand: RULER's string_match_all of one sample, its part of 1
        (["7654321"], " 7654321.", 1),
        (["7654321"], "The special magic number is 765432.", 0),
        (["7654321"], "87654321", 1),  # found within: RULER looks for text, not for numbers
        (["A1", "B2", "C3", "D4"], "a1, c3 and d4", 0.75),
        (["A1", "A1", "C3", "D4"], "a1", 0.5),
        (["ABCDE", "FGHIJ", "KLMNO"], "VAR ABCDE = 1 VAR FGHIJ = VAR ABCDE", 2 / 3),
        (["2b63d6dc-7ed5-4d6b-9c5e-1a2b3c4d5e6f"], "2B63D6DC-7ED5-4D6B-9C5E-1A2B3C4D5E6F", 1),
        (["2b63d6dc-7ed5-4d6b-9c5e-1a2b3c4d5e6f"], "2b63d6dc-7ed5-4d6b-9c5e-1a2b3c4d5e6", 0),
        (["a\nb"], "a\tb", 1),  # control characters are line ends
        (["x", "y"], "", 0),
    ],
)
def test_rulers_score_is_the_share_of_references_found(references: list[str], output: str, points: float) -> None:
    one = answer(output, None, references=references)  # type: ignore[arg-type]
    assert one.points == pytest.approx(points)
    assert one.correct == (points == 1) and one.predicted is None
    part = answer(output, None, references=references, any_reference=True)  # type: ignore[arg-type]
    assert part.points == float(points > 0)  # string_match_part


def test_a_group_of_ruler_answers_scores_their_mean() -> None:
    group = [answer(out, None, references=["A1", "B2"], depth=None) for out in ("a1 b2", "a1", "", "b2")]  # type: ignore[arg-type]
    total = score(group)
    assert (total.cases, total.right, total.accuracy) == (4, 1, 0.5)
    (row,) = by_length(retrieval_rows(group)).to_dicts()
    assert (row["cases"], row["right"], row["accuracy"]) == (4, 1, 0.5)
    assert (row["low"], row["high"]) == total.interval == wilson_interval(2, 4)
    assert grid(retrieval_rows(group), depths=5).is_empty()


def test_a_record_tells_references_only_where_there_are_some() -> None:
    assert "references" not in answer("7").record() and "points" not in answer("7").record()
    made = answer("a1", None, references=("A1", "B2")).record()  # type: ignore[arg-type]
    assert (made["references"], made["found"], made["points"]) == (["A1", "B2"], [True, False], 0.5)


def test_chains_are_scored_by_hop() -> None:
    chain = {"task": "vt_2", "references": ["A", "B", "C"]}
    outputs = ("a b c", "a b", "a", "x")
    table = by_hop([answer(out, None, **chain) for out in outputs] + answers(2, 2))  # type: ignore[arg-type]
    assert table.select("task", "hop", "cases", "share").rows() == [
        ("vt_2", 0, 4, 0.75),
        ("vt_2", 1, 4, 0.5),
        ("vt_2", 2, 4, 0.25),
    ]
    assert by_hop(answers(1, 2)).is_empty()


def test_rulers_effective_length_is_of_all_tasks_mean() -> None:
    # 512: 100 and 100; 1,024: 72 and 100 = 86; 2,048: 71 and 100 = 85.5, below 85.6; 4,096 doesn't count
    group = [
        a
        for length, right in ((512, 100), (1024, 72), (2048, 71), (4096, 100))
        for a in answers(right, 100, length=length) + answers(10, 10, length=length, task="passkey")
    ]
    assert ruler_effective_length(group) == 1024
    assert ruler_effective_length(answers(8, 10)) == 0
    assert ruler_effective_length([]) == 0
    table = effective_lengths(group + answers(9, 10, model="base"))
    assert table.rows() == [
        ("tuned", "lines", 512, 512),
        ("tuned", "passkey", 4096, 4096),
        ("tuned", "all", 512, 1024),
        ("base", "lines", 512, 512),
        ("base", "all", 512, 512),
    ]
