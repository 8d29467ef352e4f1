"""retrieval: the evaluate stage's questions to any model folder."""

import json
from pathlib import Path

import pytest

from glm2core.cli.main import main
from tests.cli.conftest import PROJECT, SHARED

PARAMS = PROJECT / "params.yaml"


def retrieval(model: Path, out: Path, *more: str) -> int:
    return main(["retrieval", str(model), str(out), "--params", str(PARAMS), "--contexts", "1", *more])


def test_any_folder_is_asked_and_scored(full_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert retrieval(full_model, out, "--lengths", "700", "900") == 0
    answers = [json.loads(line) for line in (out / "retrieval_predictions.jsonl").read_text("utf-8").splitlines()]
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert {answer["length"] for answer in answers} == {700, 900}
    for length in (700, 900):
        marks = [answer["correct"] for answer in answers if answer["length"] == length]
        assert metrics[f"retrieval_lines_{length}"] == sum(marks) / len(marks)
    assert (out / "retrieval_by_length.csv").is_file()
    assert (out / "retrieval_grid_lines.png").is_file()


def test_longeval_files_alone(full_model: Path, tmp_path: Path) -> None:
    source = SHARED / "data" / "longeval" / "lines" / "200_lines.jsonl"
    if not source.is_file():
        pytest.skip("LongEval's files are not here")
    file = tmp_path / "two_lines.jsonl"
    file.write_text("".join(source.read_text("utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    assert retrieval(full_model, tmp_path / "out", "--file", str(file), "--lengths") == 0
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))) == {"longeval_two_lines"}


def test_a_scaling_on_a_scaled_model_is_refused(
    full_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrieval(full_model, tmp_path / "out", "--rope-type", "yarn", "--rope-factor", "4") == 1
    assert "already has linear scaling by 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(full_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retrieval(full_model, tmp_path) == 1
    assert "already exists" in capsys.readouterr().err


def test_other_tasks_are_asked_and_rulers_files_with_them(full_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "niah_multikey_3.jsonl"
    row = {
        "index": 0,
        "input": "The token is a1-b2.\nWhat is the token?",
        "outputs": ["a1-b2"],
        "answer_prefix": " It is",
    }
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    tasks = ("--tasks", "vt", "niah_multikey_3", "--lengths", "1200")
    assert retrieval(full_model, out, *tasks, "--file", str(file)) == 0
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    names = {f"retrieval_{task}_1200" for task in ("vt_1", "vt_2", "vt_4", "niah_multikey_3")}
    assert names | {"ruler_niah_multikey_3", "effective_context_length_ruler"} <= set(metrics)
    assert (out / "retrieval_by_hop.csv").read_text("utf-8").count("vt_4") == 5
    assert (out / "effective_length.csv").read_text("utf-8").startswith("model,task,own_85,ruler_85_6\n")
    assert not (out / "retrieval_grid_vt_1.png").exists() and (out / "retrieval_grid_niah_multikey_3.png").exists()


def test_questions_are_written_and_nothing_is_asked(
    full_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert retrieval(full_model, out, "--tasks", "fwe", "--lengths", "900", "--only-write") == 0
    assert "1 questions written as RULER's files" in capsys.readouterr().out
    (row,) = (out / "900" / "fwe" / "validation.jsonl").read_text("utf-8").splitlines()
    assert len(json.loads(row)["outputs"]) == 3


def test_an_unknown_task_is_told(full_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retrieval(full_model, tmp_path / "out", "--tasks", "line") == 1
    assert "--tasks takes lines, niah_single_1" in capsys.readouterr().err
