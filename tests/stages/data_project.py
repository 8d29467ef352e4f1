"""A project of sixty rows for the tests of the convert and tokenize stages."""

import json
from pathlib import Path

import mlflow
import pytest

from stages.runner import run_stage

ROWS = [{"instruction": f"question {i}", "input": "", "output": f"answer {i}"} for i in range(60)]
PARAMS = """\
convert:
  sources:
    - path: {path}
  max_rejected_fraction: 0.1
tokenize: {{vocabulary_size: 300}}
model: {{}}
train: {{}}
evaluate: {{}}
tracking: {{log_examples: {log_examples}}}
"""


def write_project(folder: Path, rows: list, log_examples: str = "true", path: str = "data/raw/rows.json") -> None:
    (folder / "data/raw").mkdir(parents=True, exist_ok=True)
    (folder / "data/raw/rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "params.yaml").write_text(PARAMS.format(path=path, log_examples=log_examples), encoding="utf-8")


def run_in(folder: Path, name: str, stage) -> int:
    """Run a stage in this process, with `folder` as the current one; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_stage(name, stage)


def run_of(folder: Path, stage: str) -> mlflow.entities.Run:
    """A stage's run in the project's MLflow store."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return next(run for run in client.search_runs(experiments) if run.info.run_name.startswith(stage))


def artifacts(folder: Path, run: mlflow.entities.Run) -> set[str]:
    """Names of all files that a run keeps."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found, folders = set(), [None]
    while folders:
        for entry in client.list_artifacts(run.info.run_id, folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                found.add(Path(entry.path).name)
    return found
