"""MLflow tracking of the stages. Only this package imports mlflow, and only when a stage runs.

One pipeline execution is one parent row, which contains every param and the final figures. Each stage is a
child run, which contains its curves, inputs and artifacts. All runs of `dvc repro`, `dvc exp run` (also with
`--temp`) and the queue go into one store at the project root, so that plain `mlflow ui` shows them. Tracking
never makes a good run fail. If something can't be recorded, that is reported once, and work continues.
"""

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glm2core.errors import masked
from glm2core.files import project_root
from glm2core.params import Params
from glm2core.result_tables import result_note
from glm2core.tracking.address import is_sqlite, store_uri
from glm2core.tracking.execution import current_execution
from glm2core.tracking.store import Point, import_client, open_own_recorder, open_recorder
from glm2core.tracking.writers import Action, DirectWriter, ServerWriter, Writer

__all__ = ["StageRun", "stage_run"]

_SHARE_OF_TIME = 0.02  # share of the time that may be spent on writing points
# A locked store blocks a writer for 20 s (MLflow's busy timeout), so failed writes are rarely retried.
_SECONDS_AFTER_FAILURE = 120.0


class StageRun:
    """A stage's interface to MLflow. Without a writer (if no store is usable, or on ranks above 0), it does nothing."""

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer
        self._points: list[Point] = []
        self._last_steps: dict[str, int] = {}  # the last step of each curve
        self._next_write = 0.0

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Add points to the stage's curves.

        This is cheap: points are buffered, and writing them takes at most 2% of the time. If the process is
        killed, the latest points are lost.
        """
        if self._writer is None:
            return
        now = int(time.time() * 1000)
        self._points += [(name, value, now, step) for name, value in _numbers(metrics).items()]
        self._last_steps |= dict.fromkeys(metrics, step)
        if time.monotonic() >= self._next_write:
            self._write_points()

    def headline(self, metrics: Mapping[str, Any], on_row: Collection[str] | None = None) -> None:
        """Record final figures, named as in metrics/<stage>.json (nested keys are joined with dots).

        The child run logs a figure as `name`, at the last step of the figure's curve if there is one, and otherwise
        at step 0. The parent row logs the figure as `<stage>/name`. Values that aren't numbers are left out.

        Args:
            on_row: names of the figures that the parent row logs; None = all.
        """
        figures = _numbers(metrics)
        row = [name for name in figures if on_row is None or name in on_row]
        steps = {name: self._last_steps.get(name, 0) for name in figures}
        self._do(lambda recorder: recorder.headline(figures, steps, row))

    def result(self, metrics: Mapping[str, Any]) -> None:
        """Put two tables of evaluate's results at the top of the row's page in MLflow."""
        self._do(lambda recorder: recorder.note(result_note(dict(metrics))))

    def settled(self, values: Mapping[str, Any]) -> None:
        """Record the values that replaced each `auto` in the params, as params of the stage's run and of the row."""
        self._do(lambda recorder: recorder.settled(values))

    def artifact(self, path: Path, *, on_row: bool = False) -> None:
        """Copy a file or folder under its own name to the stage's run and, with `on_row`, also to the row."""
        self._do(lambda recorder: recorder.artifact(path, on_row=on_row))

    def dataset(self, path: Path, context: str) -> None:
        """Record a file's digest, row count and path as an input of the run; `context` is its use, e.g. `training`."""
        self._do(lambda recorder: recorder.dataset(path, context))

    def tag(self, name: str, value: object) -> None:
        """Tag the stage's run with `name`, and the parent row with `<stage>.name`."""
        self._do(lambda recorder: recorder.tag(name, str(value)))

    def _write_points(self) -> None:
        points, started = self._points, time.monotonic()
        if points and self._writer and self._writer.points(points):
            self._points = []
        now = time.monotonic()
        self._next_write = now + (_SECONDS_AFTER_FAILURE if self._points else (now - started) / _SHARE_OF_TIME)

    def _close(self, status: str) -> None:
        self._write_points()
        self._do(lambda recorder: recorder.close(status))
        if self._writer:
            self._writer.finish()

    def _do(self, action: Action) -> None:
        if self._writer:
            self._writer.do(action)


@contextmanager
def stage_run(stage: str, params: Params) -> Iterator[StageRun]:
    """Track one stage: open its run (after a kill, reopen it), and close the run with a status.

    After an exception, the run's status is FAILED; after Ctrl-C, it is KILLED. Either one is passed on to the caller.
    """
    run = StageRun(_open(stage, params))
    try:
        yield run
    except (KeyboardInterrupt, GeneratorExit):
        run._close("KILLED")
        raise
    except BaseException:
        run._close("FAILED")
        raise
    run._close("FINISHED")


def _open(stage: str, params: Params) -> Writer | None:
    if os.environ.get("RANK", "0") != "0":  # torchrun's other processes
        return None
    words = _Words(stage)
    try:
        uri, execution = store_uri(project_root()), current_execution(params)
        if is_sqlite(uri):
            return DirectWriter(open_recorder(stage, params, execution, uri), words.incomplete)
        import_client()  # before a thread would import it
        return ServerWriter(
            lambda: open_recorder(stage, params, execution, uri),
            lambda: open_own_recorder(stage, params, execution),
            say=words.incomplete,
            say_gone=words.server_gone,
        )
    except Exception as error:
        words.incomplete(error)
        return None


class _Words:
    """Prints messages about tracking; each kind of message is printed once per stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._said: set[str] = set()

    def incomplete(self, error: Exception) -> None:
        self._say(
            "incomplete",
            f"MLflow could not record everything ({_reason(error)}); the stage continues, "
            f"and metrics/{self._stage}.json will hold the figures.",
        )

    def server_gone(self, error: Exception) -> None:
        self._say(
            "server gone",
            f"MLflow's server {masked(store_uri(project_root()))} does not answer ({_reason(error)}). The rest of this "
            "stage is recorded in the project's own mlflow.db, under the same name.",
        )

    def _say(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            print(f"{self._stage}: {sentence}", file=sys.stderr)


def _reason(error: Exception) -> str:
    lines = masked(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            flat[prefix + str(name)] = float(value)
    return flat
