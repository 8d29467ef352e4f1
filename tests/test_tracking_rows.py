"""What a row of MLflow shows a person, and that it goes along with its project."""

import os
import re
import shutil
from pathlib import Path

import pytest

from glm2core.params import PARAMS_FILE, load_params
from glm2core.tracking import stage_run
from glm2core.tracking.execution import current_execution
from tests.test_tracking import artifacts, client, rows, runs


def test_a_moved_or_copied_project_keeps_its_artifacts(project: Path, tmp_path: Path) -> None:
    Path("figure.txt").write_text("1")
    with stage_run("train", load_params()) as run:
        run.artifact(Path("figure.txt"), on_row=True)
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    os.chdir(copy)
    with stage_run("evaluate", load_params()) as run:
        run.artifact(Path("figure.txt"))
    for kept in runs(copy):
        assert kept.info.artifact_uri.startswith((copy / "mlruns").as_uri())
    (train,) = runs(copy, stage="train")
    assert "figure.txt" in artifacts(copy, train)
    shutil.rmtree(project / "mlruns")  # what the copy has is its own
    (evaluate,) = runs(copy, stage="evaluate")
    assert "figure.txt" in artifacts(copy, evaluate) and "figure.txt" in artifacts(copy, train)


def test_a_row_has_headlines_loss_curves_and_a_note(project: Path) -> None:
    with stage_run("train", load_params()) as run:
        for step in (1, 2):
            run.report({"loss": 1 / step, "mfu": 0.5}, step)
        run.headline({"loss": 0.25, "seconds": 3.0, "rare": 1.0}, on_row=["seconds"])
        run.result({"retrieval_lines_512": 1.0})
    (row,), (train,) = rows(project), runs(project, stage="train")
    assert row.data.metrics == {"loss": 0.5, "train/seconds": 3.0}
    assert "| lines, tuned | 100 |" in row.data.tags["mlflow.note.content"]
    assert row.data.tags["mlflow.source.name"] == "dvc repro" and row.data.tags["mlflow.user"]
    steps = {
        name: [point.step for point in client(project).get_metric_history(train.info.run_id, name)]
        for name in ("loss", "seconds")
    }
    assert steps == {"loss": [1, 2, 2], "seconds": [0]}


def test_a_run_is_named_by_what_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch("params of [0-9a-f]{7}", current_execution(load_params()).name)
    text = PARAMS_FILE.read_text(encoding="utf-8")
    PARAMS_FILE.write_text(text.replace("method: full", "method: qlora").replace("factor: auto", "factor: 8"))
    assert current_execution(load_params()).name == "rope.factor=8, method=qlora"
    monkeypatch.setenv("DVC_EXP_NAME", "salty-tern")
    assert current_execution(load_params()).name == "rope.factor=8, method=qlora (salty-tern)"
