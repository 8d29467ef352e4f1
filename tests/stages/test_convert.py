"""The convert stage as people meet it: outs, words, exit code, and what MLflow keeps."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.convert import convert
from tests.stages.data_project import ROWS, artifacts, run_in, run_of, write_project

ROOT = Path(__file__).resolve().parents[2]


def test_outs_words_exit_code_and_mlflow(tmp_path):
    write_project(tmp_path, [*ROWS, ROWS[0], {"instruction": "x"}])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "stages.convert"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    outs = {path.name for path in (tmp_path / "data/converted").iterdir()}
    assert outs == {"train.parquet", "validation.parquet", "test.parquet", "fates.parquet", "rejected.jsonl"}
    metrics = json.loads((tmp_path / "metrics/convert.json").read_text())
    expected = {"rows_read": 62, "rows_kept": 60, "rows_rejected": 1, "rows_duplicate": 1, "rows_not_taken": 0}
    assert expected.items() <= metrics.items()
    assert "data/raw/rows.json: alpaca (JSON array): 60 of 62 rows kept" in result.stdout
    assert "data/converted/rejected.jsonl" in result.stdout
    assert "warning" not in result.stderr
    assert "rejected: output is missing,1" in (tmp_path / "reports/convert/fates.csv").read_text()

    run = run_of(tmp_path, "convert")
    assert run.data.metrics["rows_kept"] == 60
    assert len(run.inputs.dataset_inputs) == 3
    assert {"fates.csv", "sources.csv", "rejected.jsonl"} <= artifacts(tmp_path, run)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """One folder for all that follows: MLflow takes seconds to set up a store."""
    return tmp_path_factory.mktemp("project")


def test_users_texts_stay_out_of_mlflow_and_untracked_sources_are_named(project, capsys):
    write_project(project, [*ROWS, {"instruction": "x"}], log_examples="false", path="elsewhere.json")
    (project / "data/raw/rows.json").rename(project / "elsewhere.json")
    assert run_in(project, "convert", convert) == 0
    assert "warning: elsewhere.json is outside data/raw" in capsys.readouterr().err
    kept = artifacts(project, run_of(project, "convert"))
    assert "fates.csv" in kept
    assert "rejected.jsonl" not in kept


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [([*ROWS, *[{"instruction": "x"}] * 9], "convert: 9 of 69 rows in files were rejected"), ([], "has no rows")],
)
def test_a_failed_run_says_why_and_leaves_nothing_half_done(project, capsys, rows, sentence):
    shutil.rmtree(project / "data", ignore_errors=True)
    write_project(project, rows)
    assert run_in(project, "convert", convert) == 1
    assert sentence in capsys.readouterr().err
    assert list((project / "data").iterdir()) == [project / "data/raw"]


def test_a_full_disk_is_a_sentence_and_the_old_output_stays(project, capsys):
    """The system refuses to let any file grow, as it does when no space is left."""
    write_project(project, ROWS)
    assert run_in(project, "convert", convert) == 0
    before = (project / "data/converted/train.parquet").read_bytes()
    write_project(project, [row | {"output": str(i) * 999} for i, row in enumerate(ROWS)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code = run_in(project, "convert", convert)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "convert: could not write data/converted: " in capsys.readouterr().err
    assert (project / "data/converted/train.parquet").read_bytes() == before
    assert {path.name for path in (project / "data").iterdir()} == {"raw", "converted"}
