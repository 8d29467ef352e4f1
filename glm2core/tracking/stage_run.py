"""MLflow tracking of the stages: the only package that imports mlflow (when a stage runs, not before).

One pipeline execution is one parent row that carries every param and the final figures; each stage
is a child run with its curves, inputs and artifacts. Everything lands in one store at the project
root, from `dvc repro`, `dvc exp run` (also `--temp`) and the queue alike, so that plain `mlflow ui`
shows it. Tracking never makes a good run fail: what can't be recorded is said once, and work goes on.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glm2core.params import Params
from glm2core.tracking.execution import current_execution
from glm2core.tracking.store import Recorder, open_recorder

__all__ = ["StageRun", "stage_run"]

_SHARE_OF_TIME = 0.02  # that may go to writing points
# A locked store holds a writer up for 20 s (MLflow's busy timeout), so failed writes are retried rarely.
_SECONDS_AFTER_FAILURE = 120.0

Point = tuple[str, float, int, int]  # name, value, milliseconds since the epoch, step


class StageRun:
    """What a stage tells MLflow. Without a recorder (store not usable, not rank 0) every call does nothing."""

    def __init__(self, stage: str, recorder: Recorder | None) -> None:
        self._stage = stage
        self._recorder = recorder
        self._points: list[Point] = []
        self._last_step = 0
        self._next_write = 0.0
        self._warned = False

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Add points to the stage's curves.

        Cheap: points are gathered, and writing them takes at most 2% of the time. A kill loses those
        of the last moment.
        """
        if self._recorder is None:
            return
        now = int(time.time() * 1000)
        self._points += [(name, value, now, step) for name, value in _numbers(metrics).items()]
        self._last_step = max(self._last_step, step)
        if time.monotonic() >= self._next_write:
            self._write_points()

    def headline(self, metrics: Mapping[str, Any]) -> None:
        """Record final figures, named as in metrics/<stage>.json (nested keys joined by dots).

        The child gets `name`, at its last step so that a curve of that name ends in it; the parent
        row gets `<stage>/name`. What isn't a number is left out.
        """
        figures = _numbers(metrics)
        self._attempt(lambda recorder: recorder.headline(figures, self._last_step))

    def settled(self, values: Mapping[str, Any]) -> None:
        """Record what each `auto` in params became, as params of the stage's run and of the row."""
        self._attempt(lambda recorder: recorder.settled(values))

    def artifact(self, path: Path) -> None:
        """Keep a copy of a file, or of a folder under its name, with the stage's run."""
        self._attempt(lambda recorder: recorder.artifact(path))

    def dataset(self, path: Path, context: str) -> None:
        """Name a file as the run's input: digest of its bytes, row count, path; `context` is e.g. training."""
        self._attempt(lambda recorder: recorder.dataset(path, context))

    def tag(self, name: str, value: object) -> None:
        """Tag the stage's run with `name`, and the parent row with `<stage>.name`."""
        self._attempt(lambda recorder: recorder.tag(name, str(value)))

    def _write_points(self) -> None:
        points, started = self._points, time.monotonic()
        if points and self._attempt(lambda recorder: recorder.points(points)):
            self._points = []
        now = time.monotonic()
        self._next_write = now + (_SECONDS_AFTER_FAILURE if self._points else (now - started) / _SHARE_OF_TIME)

    def _close(self, status: str) -> None:
        self._write_points()
        self._attempt(lambda recorder: recorder.close(status))

    def _attempt(self, action: Callable[[Recorder], None]) -> bool:
        if self._recorder is None:
            return False
        try:
            action(self._recorder)
        except Exception as error:  # whatever MLflow, its database or the disk has: the stage's work goes first
            if not self._warned:
                _warn(self._stage, error)
            self._warned = True
            return False
        return True


@contextmanager
def stage_run(stage: str, params: Params) -> Iterator[StageRun]:
    """Track one stage: opens (or, after a kill, reopens) its run and closes it with how it ended.

    An exception ends the run FAILED, Ctrl-C KILLED; both go on to the caller.
    """
    run = StageRun(stage, _open(stage, params))
    run._attempt(Recorder.complete_row)
    run._attempt(Recorder.watch_system)
    try:
        yield run
    except (KeyboardInterrupt, GeneratorExit):
        run._close("KILLED")
        raise
    except BaseException:
        run._close("FAILED")
        raise
    run._close("FINISHED")


def _open(stage: str, params: Params) -> Recorder | None:
    if os.environ.get("RANK", "0") != "0":  # torchrun's other processes
        return None
    try:
        return open_recorder(stage, params, current_execution(params))
    except Exception as error:
        _warn(stage, error)
        return None


def _warn(stage: str, error: Exception) -> None:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    print(
        f"{stage}: MLflow could not record everything ({reason[0][:200]}); the work goes on, "
        f"and metrics/{stage}.json will hold the figures.",
        file=sys.stderr,
    )


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            flat[prefix + str(name)] = float(value)
    return flat
