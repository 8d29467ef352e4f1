"""Memory, CPU and GPU use of the machine, as points of a stage's run."""

import threading
import time
from collections.abc import Callable

Point = tuple[str, float, int, int]
"""Name, value, milliseconds since the epoch, step."""

_PREFIX = "system/"  # where MLflow's pages look


class SystemWatch:
    """A thread that measures every few seconds. MLflow's own writes by itself, and asks a server that has failed again.

    Args:
        record: gets the points.
        first_step: of the first ones; a run that goes on counts on.
        uri: of the store; nothing is asked of it.
    """

    def __init__(self, record: Callable[[list[Point]], object], first_step: int, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # Never started: it collects and adds up, and knows the user's MLFLOW_SYSTEM_METRICS_ variables
        self._monitor = SystemMetricsMonitor("", tracking_uri=uri)
        self._record, self._step = record, first_step
        self._ended = threading.Event()
        threading.Thread(target=self._measure, daemon=True).start()

    def stop(self) -> None:
        """Measure no more; returns at once."""
        self._ended.set()

    def _measure(self) -> None:
        samples = 0
        while not self._ended.is_set():
            self._monitor.collect_metrics()
            samples += 1
            if self._ended.wait(self._monitor.sampling_interval):
                return
            if samples % self._monitor.samples_before_logging == 0:
                self._record(self._points())

    def _points(self) -> list[Point]:
        now, step = int(time.time() * 1000), self._step
        found = self._monitor.aggregate_metrics()
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()
        self._step += 1
        return [(f"{_PREFIX}{name}", float(value), now, step) for name, value in found.items()]
