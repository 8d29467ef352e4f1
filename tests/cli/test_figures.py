"""`python -m glm2core figures`: the last run's figures, and a sentence where there is none."""

import json
from pathlib import Path

import pytest

from glm2core.cli.main import main


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
