"""MLflow's side of tracking: the store at the project root, and the two runs that a stage writes to."""

import contextlib
import getpass
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from glm2core.errors import masked
from glm2core.files import project_root, sha256_file
from glm2core.params import PARAMS_FILE, Params
from glm2core.tracking.address import is_sqlite, limit_requests, own_uri, sqlite_file, store_uri
from glm2core.tracking.execution import (
    LOCK_FILE,
    PIPELINE_FILE,
    Execution,
    flat_params,
    is_gone,
    param_text,
    stages_before,
    this_process,
)
from glm2core.tracking.moved import artifacts_uri, follow_move
from glm2core.tracking.system_watch import Point, SystemWatch

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_LOCK_SECONDS = 60
_BUSY_SECONDS = 20
_METRICS_A_WRITE = 1000  # MLflow's limit
_DIGEST_CHARACTERS = 36  # MLflow's limit
_CURVES_OF_ROW = ("loss", "validation_loss")  # so that the curves of several runs can be overlaid
_A_SYSTEM_METRIC = "system/cpu_utilization_percentage"


class Recorder:
    """Writes to a stage's run (the child) and to its execution's row (the parent), which are given by their ids."""

    def __init__(self, client: "MlflowClient", book: "_Book", stage: str, parent: str, child: str) -> None:
        self._client = client
        self._book = book
        self._stage = stage
        self._parent = parent
        self._child = child
        self._watch: SystemWatch | None = None

    def watch_system(self, record: Callable[[list[Point]], object]) -> None:
        """Start a thread that passes measurements of memory, CPU and GPU use to `record` every 10 seconds."""
        before = self._client.get_metric_history(self._child, _A_SYSTEM_METRIC)
        first = max((point.step + 1 for point in before), default=0)
        self._watch = SystemWatch(record, first, self._client.tracking_uri)

    def stop_watching(self) -> None:
        """Tell the thread of `watch_system` to end; don't wait for it."""
        if self._watch:
            self._watch.stop()

    def complete_row(self) -> None:
        """Add the files that reproduce the run, and the figures of stages whose results DVC took from its cache."""
        for file in (PARAMS_FILE, PIPELINE_FILE, LOCK_FILE):
            if file.exists():
                self._client.log_artifact(self._parent, str(file))
        self._book.link_cached(self._stage, self._parent)

    def points(self, points: list[Point]) -> None:
        """Write points (name, value, milliseconds, step) to the child's curves, and loss curves to the row as well."""
        self._log_metrics(self._child, points)
        self._log_metrics(self._parent, [point for point in points if point[0] in _CURVES_OF_ROW])

    def headline(self, figures: Mapping[str, float], steps: Mapping[str, int], on_row: Collection[str]) -> None:
        now = _milliseconds()
        self._log_metrics(self._child, [(name, value, now, steps[name]) for name, value in figures.items()])
        self._log_metrics(self._parent, [(f"{self._stage}/{name}", figures[name], now, 0) for name in on_row])

    def note(self, markdown: str) -> None:
        self._client.set_tag(self._parent, "mlflow.note.content", markdown)

    def settled(self, values: Mapping[str, Any]) -> None:
        texts = {key: param_text(value) for key, value in values.items()}
        for run in (self._child, self._parent):
            self._book.add_params(run, texts)

    def artifact(self, path: Path, *, on_row: bool) -> None:
        for run in (self._child, self._parent) if on_row else (self._child,):
            if path.is_dir():
                self._client.log_artifacts(run, str(path), artifact_path=path.name)
            else:
                self._client.log_artifact(run, str(path))

    def dataset(self, path: Path, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        rows = _row_count(path)
        dataset = Dataset(
            name=path.name,
            digest=sha256_file(path)[:_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": str(path)}),
            profile=None if rows is None else json.dumps({"num_rows": rows}),
        )
        named = [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])]
        self._client.log_inputs(self._child, named)
        self._client.log_inputs(self._parent, named)

    def tag(self, name: str, value: str) -> None:
        self._client.set_tag(self._child, name, value)
        self._client.set_tag(self._parent, f"{self._stage}.{name}", value)

    def close(self, status: str) -> None:
        """End both the child and the row with `status`; the next stage, if there is one, reopens the row."""
        self.stop_watching()
        for run in (self._child, self._parent):
            self._client.set_terminated(run, status)

    def _log_metrics(self, run: str, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(metric_name(name), value, when, step) for name, value, when, step in points]
        for start in range(0, len(metrics), _METRICS_A_WRITE):
            self._client.log_batch(run, metrics=metrics[start : start + _METRICS_A_WRITE])


def open_recorder(stage: str, params: Params, execution: Execution, uri: str) -> Recorder:
    """Find or create the execution's row and the stage's run in a store, and mark both as running.

    Raises:
        Exception: MLflow, its database or the disk failed, or the lock could not be taken within a minute.
    """
    root = project_root()
    with locked_client(root, uri) as client:
        book = _Book(client, _experiment_id(client, params.tracking.experiment, root))
        book.close_abandoned()
        parent = book.parent(execution, flat_params(params))
        child = book.child(stage, parent, execution)
    return Recorder(client, book, stage, parent, child)


def open_own_recorder(stage: str, params: Params, execution: Execution) -> Recorder:
    """A recorder for the project's own store, after the server has failed; a tag of both runs names that server."""
    root = project_root()
    recorder = open_recorder(stage, params, execution, own_uri(root))
    recorder.tag("tracking_server_failed", masked(store_uri(root)))
    return recorder


def server_is_gone(error: Exception) -> bool:
    """Whether an error means that the tracking server is broken, rather than that the server refused one request."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.get_http_status_code() >= 500
    response = getattr(error, "response", None)  # only errors from the requests library, which are OSErrors, contain it
    if response is not None:
        return bool(response.status_code >= 500)
    return isinstance(error, OSError) and error.filename is None


@contextlib.contextmanager
def locked_client(root: Path, uri: str) -> "Iterator[MlflowClient]":
    """A client of a store; the store's lock is held during the body of the `with`.

    The lock is needed because MLflow migrates the schema when a client is created. If two processes did that to a new
    file at once, both would fail.
    """
    client_class = import_client()
    kind = "lock" if is_sqlite(uri) else "server.lock"  # a server that hangs must not lock the project's own store
    with FileLock(root / f"mlflow.db.{kind}", timeout=_LOCK_SECONDS):
        _probe(uri)
        if uri == own_uri(root):
            follow_move(Path(sqlite_file(uri)), root)
        yield client_class(tracking_uri=uri)


class _Book:
    """The rows of one MLflow experiment, found by their tags."""

    def __init__(self, client: "MlflowClient", experiment: str) -> None:
        self._client = client
        self._experiment = experiment

    def close_abandoned(self) -> None:
        """End the runs whose process was killed, because nothing else ends them."""
        for run in self._client.search_runs([self._experiment], "attributes.status = 'RUNNING'"):
            if is_gone(run.data.tags.get("process", this_process())):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def parent(self, execution: Execution, params: Mapping[str, str]) -> str:
        """Find or create the execution's row, and mark it as running; a new row records all params settled so far."""
        found = self._newest(execution=execution.key, kind="execution")
        if found:
            self._reopen(found)
            return found.info.run_id
        tags = {**_common_tags(execution), "kind": "execution"}
        run = self._client.create_run(self._experiment, run_name=execution.name, tags=tags)
        self.add_params(run.info.run_id, params)
        return run.info.run_id

    def add_params(self, run: str, params: Mapping[str, str]) -> None:
        """Record only those params that the run does not have yet, because MLflow does not allow changes."""
        from mlflow.entities import Param

        there = self._client.get_run(run).data.params
        new = [Param(key, value) for key, value in params.items() if key not in there]
        self._client.log_batch(run, params=new)

    def child(self, stage: str, parent: str, execution: Execution) -> str:
        """Resume the stage's run if the same execution has one that was killed; otherwise create a new run."""
        found = self._newest(execution=execution.key, kind="stage", stage=stage)
        # An execution can't have two live runs of one stage, so RUNNING here means a kill on another host.
        if found and found.info.status in ("KILLED", "RUNNING"):
            self._reopen(found)
            return found.info.run_id
        tags = {**_common_tags(execution), "kind": "stage", "stage": stage, "mlflow.parentRunId": parent}
        return self._client.create_run(self._experiment, run_name=f"{stage} {execution.name}", tags=tags).info.run_id

    def link_cached(self, stage: str, parent: str) -> None:
        """For each earlier stage that DVC took from its cache, add to the row the stage's figures and its run's id.

        Later executions find a stage's run by a tag with the stage's inputs. The next stage sets that tag, because
        a stage's inputs are in dvc.lock only after the stage has finished.
        """
        for name, inputs in stages_before(stage).items():
            own = self._newest(**{"mlflow.parentRunId": parent, "stage": name})
            if own:
                self._client.set_tag(own.info.run_id, "inputs", inputs)
            elif found := self._newest(stage=name, inputs=inputs):
                self._link(parent, name, found)

    def _link(self, parent: str, stage: str, found: "Run") -> None:
        self._client.set_tag(parent, f"{stage}.cached_from_run", found.info.run_id)
        row = self._client.get_run(found.data.tags["mlflow.parentRunId"])
        for name, value in row.data.metrics.items():
            if name.startswith(f"{stage}/"):
                self._client.log_metric(parent, name, value)
        self.add_params(parent, found.data.params)  # a stage's own run contains the params that it settled

    def _newest(self, **tags: str) -> "Run | None":
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return next(iter(self._client.search_runs([self._experiment], wanted, max_results=1)), None)

    def _reopen(self, run: "Run") -> None:
        self._client.update_run(run.info.run_id, status="RUNNING")
        self._client.set_tag(run.info.run_id, "process", this_process())


def import_client() -> "type[MlflowClient]":
    """Set the environment variables that MLflow reads, and return its client class."""
    limit_requests()
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # MLflow would print a password in the URL
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # we report errors ourselves, once
    from mlflow.tracking import MlflowClient

    return MlflowClient


def _probe(uri: str) -> None:
    """Raise at once if a sqlite store can't be written, because MLflow would retry for 100 seconds."""
    if is_sqlite(uri):
        with contextlib.closing(sqlite3.connect(sqlite_file(uri), timeout=_BUSY_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")


def _experiment_id(client: "MlflowClient", name: str, root: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    local = is_sqlite(client.tracking_uri)
    return client.create_experiment(name, artifact_location=artifacts_uri(root) if local else None)


def _common_tags(execution: Execution) -> dict[str, str]:
    tags = {"execution": execution.key, "process": this_process(), "git_dirty": str(execution.dirty).lower()}
    if execution.commit:
        tags |= {"git_commit": execution.commit, "mlflow.source.git.commit": execution.commit}
    if execution.experiment:
        tags["dvc_experiment"] = execution.experiment
    tags["mlflow.source.name"] = "dvc exp run" if execution.experiment else "dvc repro"
    with contextlib.suppress(OSError, KeyError):  # a user without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def metric_name(name: str) -> str:
    """A figure's name, with `_` in place of characters that MLflow does not allow."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _row_count(path: Path) -> int | None:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_metadata(path).num_rows
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return None


def _milliseconds() -> int:
    return int(time.time() * 1000)
