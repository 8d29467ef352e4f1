"""Held-out rows by kind and language, and their scores by group with intervals that hold."""

from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm2core.data.converted import SCHEMA
from glm2core.errors import UserError
from glm2core.evaluation.rows import read_rows
from glm2core.evaluation.scores import wilson_interval
from glm2core.evaluation.text_metrics import row_scores
from glm2core.evaluation.text_tables import FIGURES, by_source, scores_with_intervals

ROWS = [
    (["What is 2 + 2?", "4"], None, "question", "latin"),
    (["用 Python 写一个 hello world 程序", "print"], None, "question", "zh"),
    (["把这句话翻译成英语：你好", "Hello"], None, "question", "zh"),
    (["Say hello in Chinese, please, to all of them", "你好"], None, "question", "latin"),
    (["Сколько будет", "четыре"], None, "question", "other"),
    (["1 + 1 =", "2"], None, "question", "other"),
    (["What is it about?\nA fox and a dog.", "A fox"], 17, "text", "latin"),
    (["你好", "你好！", "再见", "再见！"], None, "chat", "zh"),
    (["Who?\nAnn and Bob.", "Ann"], 4, "extract", "latin"),
]


def write_converted(path: Path) -> None:
    rows = [
        {
            "id": str(number),
            "source": "a.json",
            "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)],
            "question_chars": question_chars,
            "kind": kind if kind == "extract" else None,  # a generator's own
        }
        for number, (texts, question_chars, kind, _) in enumerate(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def test_kind_and_language_of_each_row(tmp_path: Path) -> None:
    write_converted(tmp_path / "test.parquet")
    order = [str(number) for number in reversed(range(len(ROWS)))]
    found = read_rows(tmp_path / "test.parquet", order)
    assert found.rows() == [(str(i), "a.json", *ROWS[i][2:]) for i in reversed(range(len(ROWS)))]
    with pytest.raises(UserError, match="lacks 2 of the 3 tokenized rows"):
        read_rows(tmp_path / "test.parquet", ["0", "9", "10"])
    with pytest.raises(UserError, match="lacks 1 of the 1 tokenized rows"):
        read_rows(tmp_path / "none.parquet", ["0"])


def answered(count: int, right: float, seed: int) -> polars.DataFrame:
    """Rows of which a share is answered word for word, the others with nothing in common."""
    marks = np.random.default_rng(seed).random(count) < right
    scores = [row_scores(answer, "a b c d") for answer in ("e f", "a b c d")]
    rows = [scores[int(mark)] for mark in marks]
    keys = {"source": ["a.json", "b.json"], "kind": ["question", "chat"], "language": ["zh", "latin"]}
    columns = {name: polars.Series([values[i % 2] for i in range(count)]) for name, values in keys.items()}
    more = {"model": "tuned", "general": False, "tokens": 4}
    losses = polars.Series("loss", np.where(marks, 0.5, 8.0))
    return polars.DataFrame(rows).with_columns(losses, **columns, **{k: polars.lit(v) for k, v in more.items()})


def test_groups_and_columns_of_the_table() -> None:
    table = scores_with_intervals(answered(12, 0.5, 0))
    assert table.select("source", "kind", "language", "rows").rows() == [
        ("all", "all", "all", 12),
        ("a.json", "all", "all", 6),
        ("b.json", "all", "all", 6),
        ("all", "chat", "all", 6),
        ("all", "question", "all", 6),
        ("all", "all", "latin", 6),
        ("all", "all", "zh", 6),
        ("a.json", "question", "zh", 6),
        ("b.json", "chat", "latin", 6),
    ]
    for name in FIGURES:
        assert (table[f"{name}_low"] <= table[name] + 1e-9).all()
        assert (table[name] <= table[f"{name}_high"] + 1e-9).all()
    assert table.equals(scores_with_intervals(answered(12, 0.5, 0)))


def test_models_stand_apart_and_rows_of_another_kind_are_in_no_total() -> None:
    tuned = answered(12, 0.9, 0)
    base = answered(12, 0.1, 0).with_columns(model=polars.lit("base"))
    other = answered(6, 0.0, 1).with_columns(general=polars.lit(True), source=polars.lit("general: c.json"))
    table = scores_with_intervals(polars.concat([tuned, other, base]))
    compared = by_source(table)
    assert compared.select("source", "model", "rows").rows() == [
        ("all", "base", 12),
        ("all", "tuned", 12),
        ("a.json", "base", 6),
        ("a.json", "tuned", 6),
        ("b.json", "base", 6),
        ("b.json", "tuned", 6),
        ("general: c.json", "tuned", 6),
    ]
    alone = scores_with_intervals(tuned)
    assert table.filter(model="tuned", source="all").equals(alone.filter(source="all"))
    assert (table.filter(model="base")["exact_match"].mean() or 0) < (alone["exact_match"].mean() or 0)


def test_exact_match_and_loss_are_of_all_rows_of_a_group() -> None:
    rows = answered(40, 0.5, 3)
    row = scores_with_intervals(rows).row(0, named=True)
    right = int((rows["exact_match"] == 100).sum())
    assert row["exact_match"] == 100 * right / 40
    assert (row["exact_match_low"] / 100, row["exact_match_high"] / 100) == pytest.approx(wilson_interval(right, 40))
    assert row["loss"] == pytest.approx((0.5 * right + 8 * (40 - right)) / 160)


def test_few_rows_have_no_interval() -> None:
    few = scores_with_intervals(answered(4, 0.5, 0)).row(0, named=True)
    assert few["rouge_1"] is not None
    assert few["rouge_1_low"] is few["bleu_4_high"] is None


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    """Of 100 drawn sets about 95 must hold it; 88 or fewer would happen once in 300 times."""
    held = 0
    for seed in range(100):
        row = scores_with_intervals(answered(60, 0.4, seed)).row(0, named=True)
        held += row["rouge_1_low"] <= 40 <= row["rouge_1_high"]
    assert held > 88
