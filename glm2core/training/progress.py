"""The curves of a training run: what is summed between points, and what is kept of them.

All of it is part of the checkpoint, so that a resumed run has the curves of an uninterrupted one.
"""

import time
from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, float], int], None]
Record = dict[str, float]


class Progress:
    """Sums losses, tokens and seconds of the steps, and makes a record every `every` steps.

    Args:
        every: steps between records.
        operations_per_second: the machine's own matrix rate, of which `mfu` is the share.
        report: gets each record's metrics with its step.
    """

    def __init__(self, *, every: int, operations_per_second: float, report: Report) -> None:
        self._every, self._rate, self._report = every, operations_per_second, report
        self.records: list[Record] = []
        self._sums = _zeros()
        self._totals = _zeros()
        self._clock = time.perf_counter()

    def restart_clock(self) -> None:
        """Leave out what happened since the last step: validation, saving, loading."""
        self._clock = time.perf_counter()

    def add_batch(self, tokens: float, supervised: float, operations: float) -> None:
        """Count the real (unpadded) tokens of one batch in each process."""
        for sums in (self._sums, self._totals):
            sums["tokens"] += tokens
            sums["supervised"] += supervised
            sums["operations"] += operations

    def add_step(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, peak_memory: float) -> None:
        """Close an optimizer step; every `every` of them become a record of their mean loss."""
        now = time.perf_counter()
        for sums in (self._sums, self._totals):
            sums["seconds"] += now - self._clock
            sums["steps"] += 1
        self._sums["loss"] += loss
        self._clock = now
        if step % self._every == 0:
            self._close(step, learning_rate=learning_rate, grad_norm=grad_norm, peak_memory=peak_memory)

    def add_validation(self, step: int, loss: float) -> None:
        """Record the validation loss; a step validated again replaces its record."""
        self.records = [r for r in self.records if not (r["step"] == step and "validation_loss" in r)]
        self._record(step, {"validation_loss": loss})
        self.restart_clock()

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every record that has `name`."""
        return [(int(r["step"]), r[name]) for r in self.records if name in r]

    @property
    def latest(self) -> Record:
        """The newest record of the training loss; empty before the first."""
        return next((r for r in reversed(self.records) if "loss" in r), {})

    @property
    def totals(self) -> dict[str, float]:
        """Tokens, supervised tokens, operations, seconds and steps since step 0."""
        return dict(self._totals)

    @property
    def mfu(self) -> float:
        """Share of the machine's matrix rate over all steps."""
        return self._totals["operations"] / max(self._totals["seconds"], 1e-9) / self._rate

    def best_validation(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss; the earliest where equal."""
        return min(self.curve("validation_loss"), key=lambda point: point[1], default=None)

    def validations_since_best(self) -> int:
        """Validations after the best one."""
        losses = [loss for _, loss in self.curve("validation_loss")]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def state_dict(self) -> dict[str, Any]:
        return {"records": self.records, "sums": self._sums, "totals": self._totals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records, self._sums, self._totals = state["records"], state["sums"], state["totals"]

    def _close(self, step: int, *, learning_rate: float, grad_norm: float, peak_memory: float) -> None:
        sums, seconds = self._sums, max(self._sums["seconds"], 1e-9)
        self._record(
            step,
            {
                "loss": sums["loss"] / sums["steps"],
                "learning_rate": learning_rate,
                "grad_norm": grad_norm,
                "tokens_per_second": sums["tokens"] / seconds,
                "mfu": sums["operations"] / seconds / self._rate,
                "peak_memory_gib": peak_memory,
            },
        )
        self._sums = _zeros()

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        self.records.append({"step": step, **metrics})
        self._report(metrics, step)


def _zeros() -> dict[str, float]:
    return {"loss": 0.0, "tokens": 0.0, "supervised": 0.0, "operations": 0.0, "seconds": 0.0, "steps": 0.0}
