"""MLflow rows as people see them: one a pipeline execution, stages as its children, in a real sqlite store."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest

from glm2core.files import sha256_file
from glm2core.params import Params, load_params
from glm2core.tracking import stage_run
from glm2core.tracking.execution import current_execution, flat_params

ROOT = Path(__file__).resolve().parents[1]


def client(project: Path) -> Any:
    """MLflow's own client on the store that plain `mlflow ui` opens in the project folder."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def runs(project: Path, **tags: str) -> list[Any]:
    """Runs with these tags, oldest first."""
    store = client(project)
    experiment = store.get_experiment_by_name("glm2core").experiment_id
    found = store.search_runs([experiment], order_by=["attributes.start_time ASC"])
    return [run for run in found if tags.items() <= run.data.tags.items()]


def rows(project: Path) -> list[Any]:
    return runs(project, kind="execution")


def artifacts(project: Path, run: Any, folder: str | None = None) -> set[str]:
    return {entry.path for entry in client(project).list_artifacts(run.info.run_id, folder)}


def changed(project: Path, old: str, new: str) -> Params:
    file = project / "params.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    return load_params()


def stage_process(project: Path, body: str, **environment: str) -> subprocess.Popen[str]:
    """A process that runs `body` inside a train stage."""
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from glm2core.params import load_params\nfrom glm2core.tracking import stage_run\n"
        "with stage_run('train', load_params()) as run:\n" + textwrap.indent(textwrap.dedent(body), "    ")
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_mlflow_sends_no_telemetry(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI"):  # nothing around may be what switches it off
        monkeypatch.delenv(name, raising=False)
    process = stage_process(
        project,
        """
        import mlflow.telemetry
        from mlflow.telemetry.client import get_telemetry_client
        print(os.environ["MLFLOW_DISABLE_TELEMETRY"], get_telemetry_client())
        """,
    )
    out, err = process.communicate(timeout=120)
    assert out.split() == ["true", "None"], err


def test_an_execution_is_one_row_with_its_stages_as_children(project: Path, git: Callable[..., str]) -> None:
    params = load_params()
    polars.DataFrame({"a": range(7)}).write_parquet("train.parquet")
    Path("reports").mkdir()
    Path("reports/curve.csv").write_text("step,loss\n")
    with stage_run("tokenize", params) as run:
        run.headline({"rows": 7})
    with stage_run("train", params) as run:
        run.settled(
            {"train.learning_rate": 3e-3, "train.quantization_bits": None, "train.curriculum": [{"until": 0.5}]}
        )
        for step in range(1, 301):
            run.report({"loss": 1 / step, "learning_rate": 1e-3}, step)
        run.headline(
            {"loss": 0.25, "validation": {"loss": 0.5}, "of": {"../a b[1].json": 2}, "method": "full", "bits": None}
        )
        run.dataset(Path("train.parquet"), context="training")
        run.artifact(Path("reports"))
        run.artifact(Path("reports/curve.csv"))
        run.tag("device", "cpu")

    (row,) = rows(project)
    tokenize, train = runs(project, kind="stage")
    assert {run.info.status for run in (row, tokenize, train)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in (tokenize, train)} == {row.info.run_id}

    settled = {
        "train.learning_rate": "0.003",
        "train.quantization_bits": "null",
        "train.curriculum": '[{"until": 0.5}]',
    }
    assert row.data.params == flat_params(params) | settled
    assert train.data.params == settled
    assert row.data.params["train.device"] == "auto"  # which torch decides, not settle
    assert "evaluate.retrieval.lengths" not in row.data.params  # evaluate will say
    assert json.loads(row.data.params["convert.sources"])[0]["path"] == "data/raw/alpaca_en.json"
    of_source = "of.../a b_1_.json"  # brackets are no part of MLflow's names
    figures = {"loss": 0.25, "validation.loss": 0.5, of_source: 2}
    of_the_row = {"tokenize/rows": 7, **{f"train/{name}": value for name, value in figures.items()}}
    assert row.data.metrics == of_the_row | {"loss": 1 / 300}  # and the loss as a curve

    loss = client(project).get_metric_history(train.info.run_id, "loss")
    assert [(point.step, point.value) for point in loss] == [(s, 1 / s) for s in range(1, 301)] + [(300, 0.25)]
    assert train.data.metrics["loss"] == 0.25
    assert artifacts(project, train) == {"curve.csv", "reports"}
    assert artifacts(project, row) == {"params.yaml", "dvc.yaml"}
    for run in (row, train):
        (given,) = run.inputs.dataset_inputs
        assert given.dataset.digest == sha256_file(Path("train.parquet"))[:36]
        assert json.loads(given.dataset.profile) == {"num_rows": 7}
        assert [tag.value for tag in given.tags] == ["training"]
    assert train.data.tags["device"] == row.data.tags["train.device"] == "cpu"

    assert row.data.tags["git_commit"] == git(project, "rev-parse", "HEAD").strip()
    assert row.data.tags["git_dirty"] == "false"
    assert Path(client(project).get_experiment("1").artifact_location.removeprefix("file://")) == project / "mlruns"


def test_other_params_code_or_commit_is_another_execution_and_outs_are_not(
    project: Path, git: Callable[..., str]
) -> None:
    params = load_params()
    first = current_execution(params)
    for out in ("dvc.lock", "metrics/train.json", "reports/train/curve.csv", "models/tuned/config.json"):
        (project / out).parent.mkdir(parents=True, exist_ok=True)
        (project / out).write_text("old")
        git(project, "add", "-f", out)
    git(project, "commit", "-qm", "outs in git")
    committed = current_execution(params)
    assert committed.key != first.key

    (project / "dvc.lock").write_text("new")
    (project / "metrics" / "train.json").write_text("new")
    assert current_execution(params) == committed

    with (project / "dvc.yaml").open("a") as file:
        file.write("# edited\n")
    edited = current_execution(params)
    assert edited.key != committed.key
    assert (edited.dirty, committed.dirty) == (True, False)
    assert edited.commit == committed.commit

    assert current_execution(changed(project, "weight_decay: 0.0", "weight_decay: 0.1")).key != edited.key


def test_an_experiment_in_a_temporary_workspace_lands_in_the_projects_store(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("DVC_EXP_NAME", "salty-tern")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")
    params = load_params()
    monkeypatch.chdir(workspace)
    Path("answers.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    for stage in ("convert", "tokenize"):
        with stage_run(stage, params) as run:
            run.artifact(Path("answers.jsonl"))
    assert list(workspace.iterdir()) == [workspace / "answers.jsonl"]

    (row,) = rows(project)
    assert row.info.run_name == row.data.tags["dvc_experiment"] == "salty-tern"
    assert row.data.tags["git_commit"] == "c0ffee"
    children = runs(project, kind="stage")
    assert [run.info.run_name for run in children] == ["convert salty-tern", "tokenize salty-tern"]
    assert all(artifacts(project, run) == {"answers.jsonl"} for run in children)


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no"), "FAILED"), (SystemExit(1), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_stage_that_fails_says_so_and_the_error_goes_on(project: Path, error: BaseException, status: str) -> None:
    params = load_params()
    with pytest.raises(type(error)), stage_run("train", params) as run:
        run.report({"loss": 1.0}, 1)
        raise error
    (row,), (train,) = rows(project), runs(project, kind="stage")
    assert (row.info.status, train.info.status) == (status, status)
    assert train.data.metrics == {"loss": 1.0}

    with stage_run("train", params) as run:
        run.report({"loss": 0.5}, 2)
    (row,) = rows(project)
    assert row.info.status == "FINISHED"
    # An interrupted stage goes on where it was; a failed one stays on record.
    assert [run.info.status for run in runs(project, kind="stage")] == {
        "KILLED": ["FINISHED"],
        "FAILED": ["FAILED", "FINISHED"],
    }[status]


def test_a_killed_stage_goes_on_in_its_run(project: Path) -> None:
    killed = stage_process(project, "run.report({'loss': 3.0}, 1); os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.wait() == -signal.SIGKILL
    assert [run.info.status for run in runs(project)] == ["RUNNING", "RUNNING"]

    with stage_run("train", load_params()) as run:
        assert [run.info.status for run in runs(project)] == ["RUNNING", "RUNNING"]
        run.report({"loss": 2.0}, 2)
    row, train = runs(project)
    assert [run.info.status for run in (row, train)] == ["FINISHED", "FINISHED"]
    loss = client(project).get_metric_history(train.info.run_id, "loss")
    assert [(point.step, point.value) for point in loss] == [(1, 3.0), (2, 2.0)]


def test_runs_of_processes_that_are_gone_are_closed_and_living_ones_left(project: Path) -> None:
    gone = stage_process(project, "os.kill(os.getpid(), signal.SIGKILL)", DVC_EXP_NAME="gone")
    assert gone.wait() == -signal.SIGKILL
    living = stage_process(project, "print('open', flush=True); sys.stdin.read()", DVC_EXP_NAME="living")
    try:
        assert living.stdout is not None
        assert living.stdout.readline() == "open\n"
        with stage_run("convert", load_params()):
            pass
        states = {run.info.run_name: run.info.status for run in runs(project)}
    finally:
        living.kill()
        living.communicate()
    assert states["gone"] == states["train gone"] == "KILLED"
    assert states["living"] == states["train living"] == "RUNNING"


def test_processes_that_start_at_once_share_a_fresh_store(project: Path) -> None:
    together = [stage_process(project, "run.headline({'n': 1})", DVC_EXP_NAME=f"exp-{n}") for n in range(3)]
    errors = [process.communicate()[1] for process in together]
    assert errors == ["", "", ""]
    assert {row.info.run_name for row in rows(project)} == {"exp-0", "exp-1", "exp-2"}
    assert [run.data.metrics for run in runs(project, stage="train")] == [{"n": 1}] * 3


LOCK = {
    "stages": {
        "convert": {
            "cmd": "python -m stages.convert",
            "deps": [{"path": "data/raw", "hash": "md5", "md5": "aa", "size": 1}],
            "params": {"params.yaml": {"convert": {"seed": 0}}},
            "outs": [{"path": "data/converted", "hash": "md5", "md5": "bb"}],
        }
    }
}


def test_a_cached_stage_is_linked_and_its_figures_are_on_the_row(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()

    def execute(name: str, stages: list[str]) -> Any:
        monkeypatch.setenv("DVC_EXP_NAME", name)
        for stage in stages:
            with stage_run(stage, params) as run:
                run.headline({"rows": len(name)})
            if stage == "convert":  # DVC writes the lock after each stage
                Path("dvc.lock").write_text(json.dumps(LOCK))
        return next(row for row in rows(project) if row.info.run_name == name)

    first = execute("first", ["convert", "tokenize"])
    second = execute("second-one", ["tokenize"])
    (converted,) = runs(project, stage="convert")
    assert second.data.tags["convert.cached_from_run"] == converted.info.run_id
    assert second.data.metrics == {"convert/rows": 5, "tokenize/rows": 10}
    assert "convert.cached_from_run" not in first.data.tags
    assert "dvc.lock" in artifacts(project, second)

    LOCK["stages"]["convert"]["deps"][0]["md5"] = "other"
    Path("dvc.lock").write_text(json.dumps(LOCK))
    third = execute("third", ["tokenize"])
    assert "convert.cached_from_run" not in third.data.tags


def test_a_user_who_has_another_store_is_obeyed(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mine/mlflow.db")
    with stage_run("convert", load_params()):
        pass
    assert len(runs(tmp_path / "mine")) == 2
    assert not (project / "mlflow.db").exists()


def test_other_ranks_of_torchrun_track_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with stage_run("train", load_params()) as run:
        run.report({"loss": 1.0}, 1)
        run.headline({"loss": 1.0})
    assert not (project / "mlflow.db").exists()


def test_a_store_that_can_not_be_opened_costs_a_warning_only(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "mlflow.db").mkdir()
    with stage_run("train", load_params()) as run:
        run.report({"loss": 1.0}, 1)
        run.artifact(Path("params.yaml"))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train:")]
    assert len(said) == 1
    assert "unable to open database file" in said[0]
    assert "the stage continues, and metrics/train.json will hold the figures" in said[0]


def test_a_full_disk_costs_a_warning_only(project: Path) -> None:
    body = """
        import resource
        limit = Path("mlflow.db").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for step in range(20_000):
            run.report({"loss": 1.0}, step)
        run.headline({"loss": 1.0})
        print("done")
    """
    process = stage_process(project, body)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "done\n")
    assert [line[:40] for line in err.splitlines() if line.startswith("train:")] == [
        "train: MLflow could not record everything"[:40]
    ]
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_store_locked_for_long_costs_a_warning_and_no_points(project: Path) -> None:
    body = """
        print("open", flush=True)
        sys.stdin.readline()
        for step in range(3):
            run.report({"loss": 1.0}, step)
        print("trained", flush=True)
        sys.stdin.readline()
    """
    process = stage_process(project, body)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    other = sqlite3.connect(project / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    print("go", file=process.stdin, flush=True)
    assert process.stdout.readline() == "trained\n"
    other.execute("ROLLBACK")
    other.close()
    _, err = process.communicate("end\n")
    assert process.returncode == 0
    assert sum("database is locked" in line for line in err.splitlines() if line.startswith("train:")) == 1
    (train,) = runs(project, stage="train")
    assert train.info.status == "FINISHED"
    assert len(client(project).get_metric_history(train.info.run_id, "loss")) == 3


def test_reporting_is_cheap(project: Path) -> None:
    with stage_run("train", load_params()) as run:
        started = time.perf_counter()
        for step in range(5000):
            run.report({"loss": 1.0, "learning_rate": 1e-3}, step)
        seconds = time.perf_counter() - started
    assert seconds / 5000 < 1e-3
    assert len(client(project).get_metric_history(runs(project, stage="train")[0].info.run_id, "loss")) == 5000
