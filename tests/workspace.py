"""A project folder of its own for tests of the real pipeline: this working tree, small settings, the real dvc."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
SMALL: dict[str, Any] = {
    "convert": {
        "sources": [
            {"path": "data/raw/alpaca_en.json", "format": "alpaca"},
            {"path": "data/raw/chat_pairs.jsonl", "format": "chatglm"},
            {"format": "lines", "generate": {"conversations": 8, "lines": [4], "questions": 2}},
        ]
    },
    "tokenize": {"vocabulary_size": 400},
    "train": {
        "max_steps": STEPS,
        "logging_steps": 1,
        "eval_steps": 3,
        "save_steps": 5,
        "batch_tokens": 512,
        "threads": 1,
    },
    "evaluate": {
        "threads": 1,
        "generation": {"rows": 2, "max_new_tokens": 4},
        "retrieval": {
            "tasks": ["lines"],
            "lengths": [512],
            "base_lengths": [],
            "contexts": 1,
            "questions": 5,
            "depths": 5,
        },
    },
}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    seconds: float


@dataclass(frozen=True)
class Workspace:
    """A project folder of its own, and the environment that its commands run in."""

    folder: Path
    environment: dict[str, str]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

    def run(self, *command: str, **options: Any) -> Done:
        started = time.perf_counter()
        process = self.start(*command, **options)
        out, _ = process.communicate()
        return Done(process.returncode, out, time.perf_counter() - started)

    def must(self, *command: str) -> Done:
        done = self.run(*command)
        assert done.code == 0, done.out
        return done

    def set_params(self, changes: dict[str, Any]) -> None:
        yaml = YAML()
        file = self.folder / "params.yaml"
        params = yaml.load(file.read_text(encoding="utf-8"))
        for section, values in changes.items():
            params[section].update(values)
        with file.open("w", encoding="utf-8") as handle:
            yaml.dump(params, handle)

    def client(self) -> Any:
        """MLflow's own client on the store that plain `mlflow ui` opens in the project's folder."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow.tracking import MlflowClient

        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    def runs(self, kind: str) -> list[Any]:
        """MLflow runs in the project's store, oldest first."""
        client = self.client()
        experiment = client.get_experiment_by_name("glm2core").experiment_id
        return list(client.search_runs([experiment], f"tags.kind = '{kind}'", order_by=["attributes.start_time ASC"]))

    def row(self, experiment: str | None) -> Any:
        (row,) = [run for run in self.runs("execution") if run.data.tags.get("dvc_experiment") == experiment]
        return row

    def children(self, row: Any) -> dict[str, Any]:
        runs = [run for run in self.runs("stage") if run.data.tags["mlflow.parentRunId"] == row.info.run_id]
        return {run.data.tags["stage"]: run for run in runs}

    def curve(self, run: Any, name: str) -> list[int]:
        """Steps of a curve."""
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            query = "SELECT step FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
            return [step for (step,) in database.execute(query, (run.info.run_id, name))]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def environment(cache: Path) -> dict[str, str]:
    names = ("GIT_AUTHOR", "GIT_COMMITTER")
    person = {f"{name}_{what}": value for name in names for what, value in (("NAME", "t"), ("EMAIL", "t@example.org"))}
    # Stages have to write bytecode here: it must not count as a change of the code.
    ours = ("DVC_", "MLFLOW_", "GIT_", "PYTEST_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **person, "PATH": path, "OMP_NUM_THREADS": "1", "DVC_SITE_CACHE_DIR": str(cache), "COLUMNS": "200"}


def new_workspace(folder: Path) -> Workspace:
    """The working tree as git would take it, committed in `folder`, with small settings."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("metrics/"):  # figures of a run are nothing that it needs
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    workspace = Workspace(folder, environment(folder.parent / "site-cache"))
    workspace.set_params(SMALL)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        workspace.must("git", *command)
    return workspace


def copy_of(clone: Workspace, folder: Path) -> Workspace:
    """The clone with its DVC cache, and nothing in MLflow."""
    shutil.copytree(clone.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    return Workspace(folder, clone.environment)


@contextlib.contextmanager
def serving(workspace: Workspace, command: str) -> Iterator[str]:
    """A command that serves MLflow's pages, on a free port; yields its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (workspace.folder.parent / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command} --port {port}"],
            cwd=workspace.folder,
            env=workspace.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def load_script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


def answers(url: str) -> bool:
    """Whether a page is there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
