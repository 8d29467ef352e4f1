"""The real pipeline: dvc in a clone of this working tree, with settings small enough for a test.

Each trap of DVC and MLflow that the pipeline avoids has its test here.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from glm2core.tracking import headlines
from tests.workspace import ROOT, STEPS, Done, Workspace, copy_of, folder_bytes, new_workspace

pytestmark = pytest.mark.xdist_group("pipeline")  # the tests share one clone

STAGES = ["convert", "tokenize", "train", "evaluate"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return new_workspace(tmp_path_factory.mktemp("pipeline") / "project")


@pytest.fixture(scope="module")
def reproduced(clone: Workspace) -> Done:
    return clone.must("dvc", "repro")


@pytest.fixture(scope="module")
def repeated(clone: Workspace, reproduced: Done) -> Done:
    return clone.must("dvc", "repro")


@pytest.fixture(scope="module")
def experiment(clone: Workspace, repeated: Done) -> Done:
    done = clone.must("dvc", "exp", "run", "-n", "slower", "-S", "train.learning_rate=2e-5")
    assert "learning_rate: 2e-05" in (clone.folder / "params.yaml").read_text(encoding="utf-8")
    return done


@pytest.fixture(scope="module")
def temporary(clone: Workspace, experiment: Done) -> Done:
    return clone.must("dvc", "exp", "run", "--temp", "-n", "elsewhere", "-S", "evaluate.generation.rows=1")


def test_all_four_stages_run_and_leave_what_they_promise(clone: Workspace, reproduced: Done) -> None:
    for stage in STAGES:
        assert f"Running stage '{stage}'" in reproduced.out
        metrics = json.loads((clone.folder / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))
        assert metrics
    outs = [
        "data/converted/train.parquet",
        "data/tokenized/test.parquet",
        "data/tokenized/tokenizer",
        "models/tuned/config.json",
        "models/tuned/model.safetensors",
        "reports/evaluate",
    ]
    assert [out for out in outs if not (clone.folder / out).exists()] == []
    assert "Traceback" not in reproduced.out
    assert "make ui" in reproduced.out


def test_git_sees_nothing_but_the_lock_and_the_metrics(clone: Workspace, reproduced: Done) -> None:
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone.folder, capture_output=True, text=True, check=True
    )
    changed = {line[3:].split("/")[0] for line in status.stdout.splitlines()}
    assert changed <= {"dvc.lock", "metrics", "params.yaml"}


def test_a_second_repro_runs_nothing(clone: Workspace, repeated: Done) -> None:
    assert list((clone.folder / "glm2core").rglob("__pycache__"))  # which must not count as a change
    assert "Running stage" not in repeated.out
    assert "up to date" in repeated.out
    assert repeated.seconds < 10  # 1 s on an idle machine, imports of dvc included


def test_an_execution_is_one_row_with_four_children(clone: Workspace, reproduced: Done) -> None:
    row = clone.row(None)
    children = clone.children(row)
    assert list(children) == STAGES
    assert {run.info.status for run in (row, *children.values())} == {"FINISHED"}
    assert row.data.params["train.max_steps"] == str(STEPS)
    for stage, run in children.items():
        metrics = json.loads((clone.folder / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))
        figures = [name for name, value in metrics.items() if isinstance(value, int | float)]  # not what was settled
        for name in figures:  # the same names and figures in DVC and on the child
            assert run.data.metrics[name] == metrics[name]
        on_row = {name for name in row.data.metrics if name.startswith(f"{stage}/")}
        assert on_row == {f"{stage}/{name}" for name in headlines(stage, metrics)} != set()
        assert all(row.data.metrics[name] == metrics[name.removeprefix(f"{stage}/")] for name in on_row)
        assert run.inputs.dataset_inputs
    for run in (children["train"], row):
        assert set(clone.curve(run, "loss")) == set(range(1, STEPS + 1))
    assert "lines, tuned" in row.data.tags["mlflow.note.content"]
    assert set(clone.curve(children["train"], "learning_rate")) == set(range(1, STEPS + 1))
    assert row.data.tags["git_dirty"] == "false"
    for name in ("params.yaml", "dvc.lock", "retrieval_by_length.png", "report.html"):
        assert (Path(row.info.artifact_uri.removeprefix("file://")) / name).is_file()


def test_an_override_is_a_number_and_reruns_only_what_it_concerns(clone: Workspace, experiment: Done) -> None:
    ran = [stage for stage in STAGES if f"Running stage '{stage}'" in experiment.out]
    assert ran == ["train", "evaluate"]
    row = clone.row("slower")
    assert float(row.data.params["train.learning_rate"]) == 2e-5
    assert row.info.run_name.endswith("learning_rate=2e-05 (slower)")
    assert list(clone.children(row)) == ["train", "evaluate"]


def test_cached_stages_are_linked_and_their_figures_stand_on_the_row(clone: Workspace, experiment: Done) -> None:
    first, row = clone.row(None), clone.row("slower")
    made = clone.children(first)
    for stage in ("convert", "tokenize"):
        assert row.data.tags[f"{stage}.cached_from_run"] == made[stage].info.run_id
        figures = {name for name in first.data.metrics if name.startswith(f"{stage}/")}
        assert figures
        assert {name: row.data.metrics[name] for name in figures} == {
            name: first.data.metrics[name] for name in figures
        }


def test_a_temporary_workspace_writes_to_the_projects_store(clone: Workspace, temporary: Done) -> None:
    row = clone.row("elsewhere")
    children = clone.children(row)
    assert list(children) == ["evaluate"]
    assert row.data.params["evaluate.generation.rows"] == "1"
    kept = Path(children["evaluate"].info.artifact_uri.removeprefix("file://"))
    assert kept.is_relative_to(clone.folder / "mlruns")
    assert list(kept.iterdir())
    assert not list((clone.folder / ".dvc" / "tmp" / "exps").rglob("mlflow.db"))


def test_plain_mlflow_and_dvc_show_the_runs(clone: Workspace, temporary: Done) -> None:
    listed = clone.must("mlflow", "runs", "list", "--experiment-id", "1").out
    for name in ("(slower)", "(elsewhere)"):
        assert name in listed
    shown = clone.must("dvc", "exp", "show", "--json").out
    assert "slower" in shown
    assert "elsewhere" in shown
    assert "validation_loss" in clone.must("dvc", "metrics", "show").out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+train.methd=lora", "train.methd is not a key; got 'lora' (did you mean 'train.method'?)"),
        ("train.max_steps=many", "train.max_steps must be a whole number or auto or null; got 'many'"),
        ("train.quantization_bits=4", "method full needs quantization_bits to be auto or null, but it is 4"),
        ("train.methd=lora", "Key 'methd' is not in struct"),  # DVC's own refusal
    ],
)
def test_wrong_params_stop_the_run_at_once(clone: Workspace, temporary: Done, override: str, said: str) -> None:
    before = (clone.folder / "dvc.lock").read_bytes()
    tuned = folder_bytes(clone.folder / "models" / "tuned")
    done = clone.run("dvc", "exp", "run", "-S", override)
    clone.must("git", "checkout", "-q", "params.yaml")
    assert done.code != 0
    assert said in done.out
    assert "Traceback" not in done.out
    assert ("git checkout params.yaml" in done.out) == ("Running stage" in done.out)  # DVC's refusal writes no value
    assert (clone.folder / "dvc.lock").read_bytes() == before
    assert folder_bytes(clone.folder / "models" / "tuned") == tuned
    if "Running stage 'train'" in done.out:  # its figures, and those of what would follow, would be another run's
        assert {file.name for file in (clone.folder / "metrics").iterdir()} == {"convert.json", "tokenize.json"}


def test_after_a_failed_run_the_committed_params_bring_all_back_from_the_cache(
    clone: Workspace, temporary: Done
) -> None:
    clone.must("git", "checkout", "-q", "params.yaml")
    done = clone.must("dvc", "repro")
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in done.out] == []
    assert {file.stem for file in (clone.folder / "metrics").iterdir()} == set(STAGES)


def figures(workspace: Workspace, name: str) -> dict[str, Any]:
    """The metrics files with figures of a row in DVC's table of experiments."""
    baseline = json.loads(workspace.must("dvc", "exp", "show", "--json").out)
    found = [entry for row in baseline for entry in row.get("experiments") or [] if entry["name"] == name]
    (state,) = [entry["revs"][0] for entry in found]
    return {path: file["data"] for path, file in state["data"]["metrics"].items() if file.get("data")}


def test_one_stage_in_a_fresh_clone_is_recorded_with_its_own_figures_alone(tmp_path: Path) -> None:
    """dvc.lock names outs that no clone has; no figure of the committed run may stand in the new one's row."""
    workspace = new_workspace(tmp_path / "fresh")
    assert (workspace.folder / "dvc.lock").read_bytes() == (ROOT / "dvc.lock").read_bytes()
    done = workspace.must("dvc", "exp", "run", "convert", "-n", "alone", "-S", "convert.seed=7")
    assert "Ran experiment" in done.out
    assert list(figures(workspace, "alone")) == ["metrics/convert.json"]


def test_no_figures_are_committed() -> None:
    """DVC shows what a commit holds as the figures of each experiment that failed on it."""
    tracked = subprocess.run(["git", "ls-files", "metrics"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert tracked.stdout == ""


def test_the_same_inputs_give_the_same_bytes(clone: Workspace, temporary: Done) -> None:
    clone.must("git", "checkout", "-q", "params.yaml")
    before = (clone.folder / "data" / "tokenized" / "train.parquet").read_bytes()
    lock = YAML(typ="safe").load((clone.folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    clone.must("dvc", "repro", "-f", "tokenize")
    again = YAML(typ="safe").load((clone.folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert (clone.folder / "data" / "tokenized" / "train.parquet").read_bytes() == before
    for stage in ("convert", "tokenize"):
        assert again[stage]["outs"] == lock[stage]["outs"]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until something is there; a process that ends before is a failure that shows what it said."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trainer_of(dvc: subprocess.Popen[str]) -> psutil.Process:
    children = psutil.Process(dvc.pid).children(recursive=True)
    return next(child for child in children if "stages.train" in child.cmdline() and "python" in child.name())


def test_a_stopped_and_then_killed_training_goes_on_and_is_whole_at_last(
    clone: Workspace, temporary: Done, tmp_path: Path
) -> None:
    workspace = copy_of(clone, tmp_path / "killed")
    workspace.must("git", "checkout", "-q", "params.yaml")
    steps = 60
    workspace.set_params({"train": {"max_steps": steps}})

    def checkpoints() -> set[str]:
        return {path.name for path in (workspace.folder / ".checkpoints").glob("*/step-*")}

    def tuned() -> dict[str, bytes]:
        return folder_bytes(workspace.folder / "models" / "tuned")

    before = tuned()
    assert "model.safetensors" in before

    # Ctrl-C in a terminal reaches dvc and its stage alike
    old = checkpoints()
    dvc = workspace.start("dvc", "repro", "train", start_new_session=True)
    wait_for(lambda: checkpoints() - old, dvc)
    os.killpg(dvc.pid, signal.SIGINT)
    out, _ = dvc.communicate()
    assert dvc.returncode != 0, out  # DVC would commit a stage that ends with 0
    assert tuned() == before
    stopped_at = max(checkpoints())
    (row,) = workspace.runs("execution")
    assert workspace.children(row)["train"].info.status == "KILLED"

    # The trainer alone is killed (out of memory, say)
    dvc = workspace.start("dvc", "repro", "train", start_new_session=True)
    wait_for(lambda: max(checkpoints()) > stopped_at, dvc)
    trainer_of(dvc).kill()
    out, _ = dvc.communicate()
    assert dvc.returncode != 0, out
    assert f"resuming from {stopped_at}" in out
    assert tuned() == before
    (row,) = workspace.runs("execution")
    assert workspace.children(row)["train"].info.status == "RUNNING"  # nobody was left to close it

    done = workspace.must("dvc", "repro", "train")
    assert f"resuming from {stopped_at}" not in done.out
    assert "resuming from step-" in done.out
    assert set(tuned()) == set(before) and tuned() != before
    (row,) = workspace.runs("execution")
    (train,) = workspace.runs("stage")
    assert {row.info.status, train.info.status} == {"FINISHED"}
    drawn = set(workspace.curve(train, "loss"))  # a kill loses the points of its last moment
    assert drawn <= set(range(1, steps + 1))
    assert {1, steps} <= drawn
    assert len(drawn) > steps - 10


@pytest.mark.parametrize(("stage", "out"), [("convert", "data/converted"), ("tokenize", "data/tokenized")])
def test_a_full_disk_stops_a_stage_and_leaves_no_out(
    clone: Workspace, temporary: Done, tmp_path: Path, stage: str, out: str
) -> None:
    workspace = copy_of(clone, tmp_path / "full")
    shutil.rmtree(workspace.folder / out)
    done = workspace.run("bash", "-c", f"ulimit -f 2; exec python -m stages.{stage}")  # KiB a file
    assert done.code == 1, done.out
    assert f"{stage}: could not write {out}" in done.out
    assert "Traceback" not in done.out
    assert not (workspace.folder / out).exists()
    assert list((workspace.folder / out).parent.glob(".*.partial-*")) == []


@pytest.mark.slow
def test_a_queue_of_two_workers_runs_to_its_end(clone: Workspace, temporary: Done, tmp_path: Path) -> None:
    workspace = copy_of(clone, tmp_path / "queue")
    workspace.must("git", "checkout", "-q", "params.yaml")
    workspace.must("git", "add", "-A")
    workspace.must("git", "commit", "-qm", "lock")
    workspace.must("dvc", "exp", "run", "--queue", "-S", "model.rope.type=linear,yarn", "-S", "model.rope.factor=2,4")
    workspace.must("dvc", "exp", "run", "--queue", "-n", "wrong", "-S", "train.max_steps=many")
    nowhere = subprocess.DEVNULL  # the workers would hold a pipe open for as long as they live
    command = ["dvc", "queue", "start", "-j", "2"]
    subprocess.run(command, cwd=workspace.folder, env=workspace.environment, stdout=nowhere, stderr=nowhere, check=True)
    deadline = time.monotonic() + 600
    while any(word in (status := workspace.must("dvc", "queue", "status").out) for word in ("Queued", "Running")):
        assert time.monotonic() < deadline, status
        time.sleep(2)
    workspace.must("dvc", "queue", "stop")
    assert (status.count("Success"), status.count("Failed")) == (4, 1), status
    assert figures(workspace, "wrong") == {}

    rows = workspace.runs("execution")
    assert len(rows) == 4
    assert {run.info.status for run in rows + workspace.runs("stage")} == {"FINISHED"}
    combinations = {(row.data.params["model.rope.type"], row.data.params["model.rope.factor"]) for row in rows}
    assert combinations == {(kind, factor) for kind in ("linear", "yarn") for factor in ("2.0", "4.0")}
    for row in rows:
        assert list(workspace.children(row)) == ["train", "evaluate"]  # shared stages come from the run cache
        assert "evaluate/test_loss" in row.data.metrics
        assert row.data.tags["git_dirty"] == "false"


@pytest.mark.slow
def test_an_untracked_source_is_found_from_a_temporary_workspace(
    clone: Workspace, temporary: Done, tmp_path: Path
) -> None:
    workspace = copy_of(clone, tmp_path / "untracked")
    workspace.must("git", "checkout", "-q", "params.yaml")
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"{n} it is, as asked."} for n in range(80)]
    (workspace.folder / ".git" / "info" / "exclude").write_text("own.json\n")
    (workspace.folder / "own.json").write_text(json.dumps(rows), encoding="utf-8")
    overrides = ("-S", "convert.sources=[{path: own.json, format: alpaca}]", "-S", "evaluate.retrieval.tasks=[]")
    done = workspace.must("dvc", "exp", "run", "--temp", "-n", "own", *overrides)
    assert "own.json is outside data/raw" in done.out
    assert workspace.children(workspace.row("own"))["convert"].data.metrics["rows_read"] == 80
