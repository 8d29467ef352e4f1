"""Memory, CPU and GPU use of the machine, as points of a stage's run."""

import threading
import time
from collections.abc import Callable

Point = tuple[str, float, int, int]
"""Name, value, milliseconds since the epoch, step."""

_PREFIX = "system/"  # the prefix that MLflow's pages expect


class SystemWatch:
    """A thread that measures every few seconds. It replaces MLflow's thread, which would write even to a failed server.

    Args:
        record: the function that is called with the points.
        first_step: step of the first points; a resumed run continues the earlier count.
        uri: URI of the store, which is not contacted.
    """

    def __init__(self, record: Callable[[list[Point]], object], first_step: int, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # Never started; it only collects, aggregates and reads the user's MLFLOW_SYSTEM_METRICS_ variables
        self._monitor = SystemMetricsMonitor("", tracking_uri=uri)
        self._record, self._step = record, first_step
        self._ended = threading.Event()
        threading.Thread(target=self._measure, daemon=True).start()

    def stop(self) -> None:
        """Stop measuring; don't wait for the thread."""
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
