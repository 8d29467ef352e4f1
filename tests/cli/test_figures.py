"""`python -m glm2core figures`: the last run's figures, and a sentence where there is none."""

import json
from pathlib import Path

import pytest

from glm2core.cli.figures import answers_table, retrieval_table
from glm2core.cli.main import main


def test_each_task_has_a_line_for_each_model_and_a_column_for_each_length() -> None:
    metrics = {
        "retrieval_lines_512": 1.0,
        "retrieval_lines_32768": 0.965,
        "base_retrieval_lines_512": 0.99,
        "retrieval_vt_2_512": 0.5,
        "retrieval_accuracy": 0.9,
        "test_loss": 2.0,
    }
    header, lines = retrieval_table(metrics)
    assert header == ["", "512", "32,768"]
    assert lines == [["lines, base", "99", "–"], ["lines, tuned", "100", "96"], ["vt_2, tuned", "50", "–"]]


def test_answers_stand_before_and_after_in_all_and_for_generated_sources() -> None:
    scores = {"exact_match": 87.5, "base_exact_match": 0.0, "rouge_l": 90.04, "answers_loss": 0.254}
    of_a_file = {"exact_match": 0.0}
    metrics = {**scores, "by_source": {"analysis": scores, "data/raw/a.json": of_a_file}}
    _, lines = answers_table(metrics)
    assert lines == [["all", "0 -> 88", "90.0", "–", "0.25"], ["analysis", "0 -> 88", "90.0", "–", "0.25"]]
    assert answers_table({"retrieval_lines_512": 1.0})[1] == []


def test_without_a_run_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["figures"]) == 1
    assert "Run: dvc repro" in capsys.readouterr().err
    (tmp_path / "metrics").mkdir()
    train = {"steps": 20, "tokens": 20480, "seconds": 90.0}
    (tmp_path / "metrics/train.json").write_text(json.dumps(train), encoding="utf-8")
    (tmp_path / "metrics/evaluate.json").write_text('{"retrieval_lines_512": 1.0}', encoding="utf-8")
    assert main(["figures"]) == 0
    out = capsys.readouterr().out
    assert "lines, tuned" in out and "20 steps on 20,480 tokens, 1.5 min" in out
